#!/usr/bin/env python3
"""Train a small Llama on real text with an optimizer of sage_ext, or compare several.

    python examples/train_llama.py demo                      the comparison that `make demo` runs
    python examples/train_llama.py --optimizer sage-hybrid   one optimizer
    python examples/train_llama.py --help                    everything else

The parts are in ``examples/llama``.
"""

from __future__ import annotations

import os
import sys

# Threads that wait for work sleep instead of spinning: on a busy machine that leaves the processor to those
# that have work. Before torch is imported, whose OpenMP reads it once.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from llama.app import main

if __name__ == "__main__":
    sys.exit(main())
