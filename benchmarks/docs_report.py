"""The page of the training runs, docs/results.md, whose parts benchmarks/train/lab/report makes."""

from __future__ import annotations

import sys
from pathlib import Path

import docs_tables

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))

from lab.report import page
from lab.scales import SCALES
from lab.store import Store


def report() -> str:
    return page.text(Store(docs_tables.RESULTS / "train"), SCALES["cpu"])
