#!/usr/bin/env python3
"""Run what is missing of all studies, then write docs/results.md and its pictures from the results.

    python benchmarks/train/report.py            all runs that are missing, then the page
    python benchmarks/train/report.py --no-run   the page alone, from the results there are
    python benchmarks/train/report.py --check    write nothing; exit with 1 if anything is out of date

``make report`` is the first. With another ``--scale`` or ``--out`` the page goes elsewhere. What run.py takes
beside a study (``--jobs``, ``--text``, ``--results``, ``--device`` ...) is handed on to it.
"""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from lab.report.command import main

if __name__ == "__main__":
    sys.exit(main())
