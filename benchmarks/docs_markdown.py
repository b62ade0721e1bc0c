"""Markdown that the pages' generators share: a table, a paragraph."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, *, text_last: bool = False
) -> str:
    """A Markdown table; the first ``left`` columns are text, the others numbers, but the last if
    ``text_last``."""
    rule = ["---" if index < left else "---:" for index in range(len(columns))]
    if text_last:
        rule[-1] = "---"
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join(rule)}|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def prose(*sentences: str) -> str:
    """A paragraph in lines as long as those of the pages."""
    return textwrap.fill(" ".join(sentences), 120, break_long_words=False, break_on_hyphens=False)
