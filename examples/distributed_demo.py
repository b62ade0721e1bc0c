#!/usr/bin/env python3
"""The same model on one process, with DDP, with FSDP2 and with a vote of signs: losses, and what was sent.

    python examples/distributed_demo.py                 what `make demo-distributed` runs, about two minutes
    python examples/distributed_demo.py --steps 200     every argument goes to train_llama.py

Two processes of one thread each. What they sent is counted, by the system, on their connections.
"""

from __future__ import annotations

import sys

from llama.comparison import main

if __name__ == "__main__":
    sys.exit(main())
