"""What the pictures have in common: their size and letters, an axis of perplexities, ticks, a legend."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    Locator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from lab.report.style import Style

WIDTH = 8.0
PERPLEXITY = "validation perplexity"
# What makes a file the same whenever it is drawn, and small.
SETTINGS = {
    "svg.hashsalt": "sage_ext",
    "svg.fonttype": "none",  # text stays text: a third of the bytes
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 10.5,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 6,
}


def figure(height: float, columns: int = 1, rows: int = 1, **keywords: Any) -> tuple[Figure, list[Any]]:
    made = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    axes = made.subplots(rows, columns, squeeze=False, **keywords)
    return made, list(axes.flat)


def line_look(style: Style) -> dict[str, str]:
    return {"color": style.color, "marker": style.marker, "linestyle": style.line}


def shade(color: str, index: int, count: int) -> tuple[float, ...]:
    """The ``index``-th of ``count`` shades of an optimizer's colour, light to dark: more of something."""
    share = index / max(count - 1, 1)
    other, most = (1.0, 0.55 * (1 - 2 * share)) if share < 0.5 else (0.0, 0.65 * (2 * share - 1))
    base = to_rgb(color)
    if max(base) == 0:  # there is nothing darker than black
        other, most = 1.0, 0.75 * (1 - share)
    return tuple(part + (other - part) * most for part in base)


def ticks(axes, locator: Locator, form: str = "g") -> None:
    """Plain numbers below, where a logarithmic axis has powers of ten of its own."""
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:{form}}"))


def perplexity_axis(
    axes, values: Iterable[float | None], *, label: bool = True, most: float = math.inf
) -> None:
    """A logarithmic axis with numbers as people write them; at most ``most`` times the smallest is shown."""
    shown = [value for value in values if value is not None]
    axes.set_yscale("log")
    low, high = min(shown), min(max(shown), most * min(shown))
    axes.set_ylim(low / (high / low) ** 0.06 / 1.01, high * (high / low) ** 0.06 * 1.01)
    if high > 3 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=12))
    else:
        axes.yaxis.set_major_locator(
            FixedLocator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]).tick_values(*axes.get_ylim())[1:-1])
        )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    if label:
        axes.set_ylabel(PERPLEXITY)


def legend(made: Figure, entries: list[tuple[dict[str, str], str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **look) for look, _ in entries]
    made.legend(
        handles, [text for _, text in entries], loc="outside lower center", ncols=min(len(entries), 4)
    )
