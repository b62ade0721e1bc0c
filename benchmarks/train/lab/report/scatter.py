"""A scatter of named points: each name goes where it covers least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.report.style import CONTENDERS

Data = dict[str, Any]


def scatter(made: Figure, axes: Axes, points: Sequence[Data]) -> None:
    """A marker with its spread and its name a point; names go where they cover least of the others."""
    for point in points:
        style = CONTENDERS[point["name"]]
        axes.errorbar(
            point["x"], point["y"], yerr=point["sd"], color=style.color, marker=style.marker, capsize=2
        )
    texts = [
        axes.annotate(
            point.get("label", point["name"]),
            (point["x"], point["y"]),
            (0, 0),
            textcoords="offset points",
            fontsize=8.5,
            color="#333333",
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
        )
        for point in points
    ]
    made.draw_without_rendering()  # what follows needs to know where things are
    points_of = made.dpi / 72
    at = [axes.transData.transform((point["x"], point["y"])) for point in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    limits = axes.get_window_extent().extents
    for text, (x, y) in zip(texts, at, strict=True):
        found = text.get_window_extent()
        options = []
        for place in PLACES:
            dx, dy, across, up = place
            left = x + dx * points_of - SHIFTS[across] * found.width
            low = y + dy * points_of - SHIFTS[up] * found.height
            box = (left, low, left + found.width, low + found.height)
            covered = sum(_overlap(box, other) for other in taken)
            outside = found.width * found.height - _overlap(box, limits)
            options.append((round(covered + outside), place, box))
        _, (dx, dy, across, up), box = min(options, key=lambda option: option[0])
        text.set(position=(dx, dy), ha=across, va=up)
        taken.append(box)


SHIFTS = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}
PLACES = (
    (7, 0, "left", "center"),
    (-7, 0, "right", "center"),
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
    (6, 7, "left", "bottom"),
    (6, -7, "left", "top"),
    (-6, 7, "right", "bottom"),
    (-6, -7, "right", "top"),
    (0, 17, "center", "bottom"),
    (0, -17, "center", "top"),
    (12, 17, "left", "bottom"),
    (12, -17, "left", "top"),
)


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """The area that two boxes (x0, y0, x1, y1) share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)
