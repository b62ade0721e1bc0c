"""The parts of ``examples/train_llama.py``: corpus, data, model, optimizers, training loop, report.

To be imported before torch, for what it says about torch's threads.
"""

import os

# A thread that waits for the others spins first, and sleeps then. libgomp, which torch's wheels have, spins
# 300,000 times, which takes milliseconds: beside busy processes, which keep those others from running, nearly
# all time goes there. 10,000 times outlast the gap between most operations.
if "OMP_WAIT_POLICY" not in os.environ:  # which it would override
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
