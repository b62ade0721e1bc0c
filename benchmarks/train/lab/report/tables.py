"""Cells that the tables of several studies have."""

from __future__ import annotations

from collections.abc import Sequence

from lab.report import data
from lab.report.data import number

AGAIN = "runs it again"


def again(runs: Sequence[data.Result]) -> str:
    return f"`{runs[0]['command']}`" if runs else ""


def grid_cells(runs: Sequence[data.Result], of: int) -> list[str]:
    """The best factor of a grid and its perplexity; how much of the grid is there, if not all."""
    if not runs:
        return ["-", "-"]
    chosen = min(runs, key=data.loss)
    note = f" ({len(runs)} of {of})" if len(runs) < of else ""
    return [f"{chosen['variant']['factor']:g}{note}", number(data.perplexity(chosen))]
