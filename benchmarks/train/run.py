#!/usr/bin/env python3
"""Run a study, or what is left of it: perplexity at a fixed token budget on real text.

    python benchmarks/train/run.py --study main               all runs that are missing, one after the other
    python benchmarks/train/run.py --study main --status      what is done, and the best so far
    python benchmarks/train/run.py --study main --list        the plan, a run a line
    python benchmarks/train/run.py --rerun main.adamw.seed.1  a finished run again, beside the numbers kept

Each run is a process of its own and leaves one JSON in ``benchmarks/results/train``. A run whose JSON is
there is not done again, so the command can be stopped at any time and started anew; what is lost is the run
that was under way. ``nice -n 19`` in front makes it give way to everything else.
"""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from lab.runner import main

if __name__ == "__main__":
    sys.exit(main())
