"""Perplexity against a cost of each optimizer: named points, in two panels where some are far worse.

Every point is drawn at its own value. What is worse than ``beyond`` has a panel of its own above, with a
scale of its own, so that the others can be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator

from lab.report.frame import figure, perplexity_axis, ticks
from lab.report.labels import place
from lab.report.style import CONTENDERS

Data = dict[str, Any]
LETTERS = 8.5
MARKER = 8.0
STEPS = "steps-post"


def front(found: Data) -> Figure:
    points = found["points"]
    made, panels = _panels(found)
    edge: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point["x"], point["y"])):
        if not edge or point["y"] < edge[-1][1]:
            edge.append((point["x"], point["y"]))
    for axes, of in panels:
        axes.set_xscale("symlog", linthresh=0.25, linscale=0.4)
        ticks(axes, FixedLocator([0, 0.25, 0.5, 1, 2, 4, 8, 16]))
        axes.set_xlim(-0.08, max(16, *(point["x"] for point in points)) * 1.5)
        if {(point["x"], point["y"]) for point in of} & set(edge):
            axes.plot(*zip(*edge, strict=True), color="#CCCCCC", linewidth=4, zorder=0, drawstyle=STEPS)
    panels[-1][0].set_xlabel("optimizer state (bytes a parameter)")
    made.suptitle("Perplexity against state (grey: the best with so much; a colour: a family of rules)")
    _draw(made, panels, edge)
    return made


def seconds(found: Data) -> Figure:
    made, panels = _panels(found)
    low, high = (function(point["x"] for point in found["points"]) for function in (min, max))
    room = max(high / low, 1.5)
    for axes, _ in panels:
        axes.set_xscale("log")
        ticks(axes, LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.set_xlim(low / room**0.08, high * room**0.12)
    panels[-1][0].set_xlabel(f"{found['what']} of an optimizer's step (ms, mean over seeds)")
    made.suptitle("Perplexity against the optimizer's time (a colour: a family of rules)")
    _draw(made, panels)
    return made


def _panels(found: Data) -> tuple[Figure, list[tuple[Axes, list[Data]]]]:
    """A figure, and its axes from above to below with the points of each."""
    beyond, points = found["beyond"], found["points"]
    if beyond is None:
        made, (axes,) = figure(7)
        panels = [(axes, points)]
    else:
        made, (above, below) = figure(9.5, rows=2, sharex=True, height_ratios=[3, 6])
        panels = [
            (above, [point for point in points if point["y"] > beyond]),
            (below, [point for point in points if point["y"] <= beyond]),
        ]
        above.set_facecolor("#F3F3F3")
        above.set_title(f"worse than {beyond:g}: another scale", fontsize=9.5, loc="left")
        above.spines["bottom"].set_visible(False)
        above.tick_params(bottom=False)
        cut = {"marker": [(-1, -0.6), (1, 0.6)], "markersize": 9, "linestyle": "none", "color": "black"}
        above.plot(0, 0, transform=above.transAxes, clip_on=False, **cut)
        below.plot(0, 1, transform=below.transAxes, clip_on=False, **cut)
    for axes, of in panels:
        perplexity_axis(axes, [end for point in of for end in _ends(point)], label=axes is panels[-1][0])
    if beyond is not None:  # where one ends the other begins, but for a bar that goes on
        above.set_ylim(bottom=min([beyond, *(_ends(point)[0] for point in panels[0][1])]))
        below.set_ylim(top=max([beyond, *(_ends(point)[1] for point in panels[1][1])]))
    return made, panels


def _ends(point: Data) -> tuple[float, float]:
    """Of its spread; at least above nothing, where the axis is logarithmic."""
    return max(point["y"] - point["sd"], 0.5 * point["y"]), point["y"] + point["sd"]


def _draw(
    made: Figure, panels: Sequence[tuple[Axes, list[Data]]], edge: Sequence[tuple[float, float]] = ()
) -> None:
    """The markers with their spread, then the names where there is room. ``edge``: steps that are drawn."""
    made.draw_without_rendering()  # what follows needs to know where things are
    made.set_layout_engine("none")
    for number, (axes, points) in enumerate(panels):
        to = _Points(made, axes)
        middles = [to.points(point["x"], point["y"]) for point in points]
        for point, size in zip(points, _sizes(middles), strict=True):
            style = CONTENDERS[point["name"]]
            axes.errorbar(
                point["x"],
                point["y"],
                yerr=[[point["y"] - _ends(point)[0]], [point["sd"]]],
                color=style.color,
                marker=style.marker,
                markeredgecolor="white",
                markeredgewidth=0.6,
                markersize=size,
                capsize=2,
                zorder=3 - size / 100,
            )
        half = MARKER / 2 + 0.5
        taken = [(x - half, y - half, x + half, y + half) for x, y in middles]
        for (x, _), point in zip(middles, points, strict=True):
            low, high = (to.points(point["x"], end)[1] for end in _ends(point))
            taken.append((x - 1.5, low - 1, x + 1.5, high + 1))
        steps = [to.points(*step) for step in edge]
        rather_not = [(x0, y0 - 2, x1, y0 + 2) for (x0, y0), (x1, _) in pairwise(steps)]
        rather_not += [(x1 - 2, y1, x1 + 2, y0) for (_, y0), (x1, y1) in pairwise(steps)]
        above = number < len(panels) - 1
        texts = [axes.text(0, 0, label(point, above), fontsize=LETTERS) for point in points]
        extents = [text.get_window_extent() for text in texts]
        sizes = [(extent.width * to.scale, extent.height * to.scale) for extent in extents]
        places = place(middles, sizes, taken, to.limits, rather_not)
        for point, text, found in zip(points, texts, places, strict=True):
            left, low, _, high = found.box
            text.set(transform=axes.transAxes, va="center", ha="left", color="#222222", zorder=6)
            text.set_position(to.share(left, (low + high) / 2))
            if found.line is not None:
                ends = [to.share(*end) for end in found.line]
                axes.plot(
                    *zip(*ends, strict=True),
                    transform=axes.transAxes,
                    color=CONTENDERS[point["name"]].color,
                    linewidth=0.8,
                    zorder=1.5,
                )


class _Points:
    """Between data, points (1/72 inch) of the figure and shares of the axes."""

    def __init__(self, made: Figure, axes: Axes) -> None:
        self.axes, self.scale = axes, 72 / made.dpi
        left, low, right, high = (float(value) * self.scale for value in axes.get_window_extent().extents)
        self.limits = left, low, right, high

    def points(self, x: float, y: float) -> tuple[float, float]:
        across, up = self.axes.transData.transform((x, y))
        return float(across) * self.scale, float(up) * self.scale

    def share(self, x: float, y: float) -> tuple[float, float]:
        left, low, right, high = self.limits
        return (x - left) / (right - left), (y - low) / (high - low)


def _sizes(middles: Sequence[tuple[float, float]]) -> list[float]:
    """Of markers: what would hide another is smaller, and on top of it."""
    sizes: list[float] = []
    for i, middle in enumerate(middles):
        hidden = [sizes[j] for j in range(i) if math.dist(middle, middles[j]) < MARKER / 2]
        sizes.append(max(min(hidden, default=MARKER + 3) - 3, 3.0))
    return sizes


def label(point: Data, above: bool) -> str:
    """A name; in the upper panel, whose scale is small, with the number."""
    return f"{point['name']} {point['y']:,.0f}" if above else point["name"]
