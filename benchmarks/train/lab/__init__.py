"""Perplexity at a fixed token budget: which optimizer, at what cost, on real text. ``run.py`` is the command.

The model and the reading of text are the example's (``examples/llama``), which this makes importable, as it
does what writes Markdown (``benchmarks/docs_markdown.py``).
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks")]
