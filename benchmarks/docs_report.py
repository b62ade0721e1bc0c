"""The page of the training runs, docs/results.md, and what other pages say of it.

benchmarks/train/lab/report makes its parts.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import docs_tables
from docs_markdown import prose

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))

from lab.report import data, page
from lab.scales import SCALES
from lab.search import RANGES
from lab.store import Store


def report() -> str:
    return page.text(Store(docs_tables.RESULTS / "train"), SCALES["cpu"])


@functools.cache
def _ranks(folder: Path) -> bool:
    return bool(data.ranked(Store(folder)))


def link(target: str) -> str:
    """A link to the page, and that it has no answer as long as nothing is ranked there."""
    begun = "" if _ranks(docs_tables.RESULTS / "train") else " (begun; nothing is ranked yet)"
    return f"[results]({target}){begun}"


def in_short() -> str:
    """The README's sentences on training."""
    return prose(
        docs_tables.training_in_short(),
        "Each has rates by role, which presets have not: [training](docs/training.md). Longer runs:",
        f"{link('docs/results.md')}.",
    )


def rates() -> str:
    """Which rates to try, in docs/choose.md: the ranges of the search."""

    def span(role: str) -> str:
        low, high = RANGES[role]
        return f"{low:g} to {high:g}"

    assert RANGES["matrix"] == RANGES["lm_head"]
    return prose(
        f"Try {span('embedding')} for the embedding, and {span('matrix')} for matrices and head, each rate",
        "two or three times the one before. These are sizes of an update: the root mean square of what a",
        f"step adds to the weights. The search of {link('results.md')} takes the same ranges.",
    )
