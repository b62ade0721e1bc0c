#!/usr/bin/env python3
"""Train a small Llama on real text with an optimizer of sage_ext, or compare several.

    python examples/train_llama.py demo                      the comparison that `make demo` runs
    python examples/train_llama.py --optimizer sage-hybrid   one optimizer
    python examples/train_llama.py --help                    everything else

The parts are in ``examples/llama``.
"""

from __future__ import annotations

import sys

from llama.app import main

if __name__ == "__main__":
    sys.exit(main())
