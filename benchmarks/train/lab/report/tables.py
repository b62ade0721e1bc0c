"""What the tables of several parts have: the column that runs a row again, the cells of a grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lab.report import data
from lab.report.data import number
from lab.scales import Scale
from lab.store import Store

RUN = "python benchmarks/train/run.py"
AGAIN = "`--rerun`"
"""The head of a column of ids, with which ``RUN --rerun`` runs a row again."""


STAR = r"\*"


def again(runs: Sequence[data.Result]) -> str:
    return f"`{runs[0]['id']}`" if runs else ""


def at_home(scale: Scale) -> bool:
    """Whether results, page and commands of a scale are those without a name."""
    return scale.name == "cpu"


def home(scale: Scale) -> str:
    """The folder of a scale's results, from the checkout, where no other is named."""
    return "benchmarks/results/train" + ("" if at_home(scale) else f"/{scale.name}")


def run_py(store: Store, scale: Scale, elsewhere: bool) -> str:
    """``RUN`` with what it takes to have these results: what most of them say themselves, and the folder
    where that is ``elsewhere``."""
    said = Counter(result["command"].rpartition(" --rerun ")[0] for result in store.results.values())
    command = max(
        said, key=said.__getitem__, default=RUN + ("" if at_home(scale) else f" --scale {scale.name}")
    )
    return command + (" --results FOLDER" if elsewhere else "")


def grid_cells(runs: Sequence[data.Result], of: int, ends: Sequence[float] = ()) -> list[str]:
    """The best factor of a grid and its perplexity; how much of the grid is there, if not all; a star where
    the factor is the smallest or the largest of ``ends``."""
    chosen = data.best(runs)
    if chosen is None:
        return ["-", "-"]
    factor = chosen["variant"]["factor"]
    note = f" ({len(runs)} of {of})" if len(runs) < of else ""
    star = star_at_an_end(factor, ends) if ends else ""
    return [f"{factor:g}{note}{star}", number(data.perplexity(chosen))]


def star_at_an_end(value: float, tried: Sequence[float]) -> str:
    """Return the star of a rate, or of a factor on one, beyond which nothing was tried."""
    return STAR if value in (min(tried), max(tried)) else ""


def starred(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return what the star of ``star_at_an_end`` means, where one is in these rows."""
    is_there = any(STAR in cell for row in rows for cell in row)
    return ["A star: the rate lies at an end of those tried."] if is_there else []
