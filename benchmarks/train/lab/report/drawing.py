"""How the data of ``pictures`` looks: one function a picture, for SVGs that are readable at 800 px."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
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

from lab.report.scatter import scatter
from lab.report.style import CONTENDERS, Style

Data = dict[str, Any]
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
DASHES = ("-", "--", ":", "-.")
GREY = "#777777"


def save(name: str, found: Data, path: Path, description: str) -> None:
    """Draws a picture of ``pictures.PICTURES`` into a file that says ``description``."""
    with matplotlib.rc_context(SETTINGS):
        text = io.StringIO()
        metadata = {"Description": description, "Date": None, "Creator": "sage_ext"}
        DRAWN[name](found).savefig(text, format="svg", metadata=metadata)
    path.write_text(_TAG.sub(lambda tag: _LONG.sub(_rounded, tag[0]), text.getvalue()))


# Within tags, where coordinates are, a hundredth of a point is enough. What people read is between them.
_TAG = re.compile(r"<[^>]*>")
_LONG = re.compile(r"\d+\.\d{3,}")


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"


def figure(height: float, columns: int = 1, rows: int = 1, **keywords: Any) -> tuple[Figure, list[Any]]:
    made = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    axes = made.subplots(rows, columns, squeeze=False, **keywords)
    return made, list(axes.flat)


# ---------------------------------------------------------------------------------------------- study "main"


def tokens(found: Data) -> Figure:
    made, (axes,) = figure(5.2)
    for curve in found["curves"]:
        style = CONTENDERS[curve["name"]]
        last = curve["x"][-1]
        training = curve["training"]
        at = [last * (i + 0.5) / len(training) for i in range(len(training))]
        axes.plot(at, training, color=style.color, alpha=0.3, linewidth=1)
        axes.fill_between(curve["x"], curve["low"], curve["high"], color=style.color, alpha=0.2, linewidth=0)
        label = f"{curve['name']}: {curve['y'][-1]:.1f}"
        axes.plot(curve["x"], curve["y"], label=label, **_line(style))
    values = [value for curve in found["curves"] for value in (*curve["y"], *curve["training"][4:])]
    _perplexity(axes, values)
    axes.set_xlim(0)
    axes.set_xlabel("training tokens (millions)")
    axes.set_title("Validation (markers, band: three seeds) and training (pale)")
    axes.legend(title="perplexity at the end, the best of each colour")
    return made


def front(found: Data) -> Figure:
    made, (axes,) = figure(6)
    points = found["points"]
    axes.set_xscale("symlog", linthresh=0.25, linscale=0.4)
    points = _within(axes, points)
    edge, least = [], math.inf
    for point in sorted(points, key=lambda point: (point["x"], point["y"])):
        if point["y"] < least:
            edge.append((point["x"], point["y"]))
            least = point["y"]
    axes.plot(*zip(*edge, strict=True), color="#BBBBBB", linewidth=4, zorder=0, drawstyle="steps-post")
    ticks = [0, 0.25, 0.5, 1, 2, 4, 8, 16]
    _ticks(axes, FixedLocator(ticks))
    axes.set_xlim(-0.08, max(16, *(point["x"] for point in points)) * 1.5)
    axes.set_xlabel("optimizer state (bytes a parameter)")
    axes.set_title("Perplexity against state; grey: the least state for each; a colour is a family of rules")
    scatter(made, axes, points)
    return made


def seconds(found: Data) -> Figure:
    made, (axes,) = figure(6)
    points = _within(axes, found["points"])
    low, high = min(point["x"] for point in points), max(point["x"] for point in points)
    room = (high - low) or high
    axes.set_xlim(low - 0.08 * room, high + 0.25 * room)
    axes.set_xlabel(f"{found['what']} of an optimizer's step (ms, mean over seeds)")
    axes.set_title("Perplexity against the optimizer's time")
    scatter(made, axes, points)
    return made


def rates(found: Data) -> Figure:
    roles = found["roles"]
    made, all_axes = figure(4.6, columns=len(roles), sharey=True)
    values = [y for of in found["of"] for y in of["y"] if y is not None]
    top = min(max(values), 4 * min(values))
    for axes, role, limits, i in zip(all_axes, roles, found["ranges"], range(len(roles)), strict=True):
        for of in found["of"]:
            style = CONTENDERS[of["name"]]
            # What is above, or diverged, lies at the upper edge.
            y = [top if value is None else min(value, top) for value in of["y"]]
            x = [point[i] for point in of["rates"]]
            axes.plot(
                x, y, color=style.color, marker=style.marker, linestyle="", alpha=0.85, label=of["name"]
            )
            best = min(range(len(y)), key=y.__getitem__)
            axes.plot(x[best], y[best], "o", markersize=12, markerfacecolor="none", color=style.color)
        axes.set_xscale("log")
        axes.set_xlim(limits[0] / 1.2, limits[1] * 1.2)
        axes.set_xlabel(f"rate of the {ROLES.get(role, role)}")
        _perplexity(axes, [min(values), top], label=i == 0)
    handles, labels = all_axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=4)
    made.suptitle("The search's runs (ring: each one's best; at the top: worse, or diverged)", fontsize=11)
    return made


ROLES = {"embedding": "embedding", "matrix": "matrices", "lm_head": "head"}


def alias_steps(found: Data) -> Figure:
    made, (axes,) = figure(5.2)
    for curve in found["curves"]:
        style = CONTENDERS[curve["name"]]
        x, y = _over_run(curve["y"])
        axes.plot(x, y, label=curve["name"], markevery=4, **_line(style))
    _step_axes(axes)
    made.legend(loc="outside lower center", ncols=4)  # lines may be anywhere in between
    axes.set_title("The step size that each finds, mean over its seeds")
    return made


# --------------------------------------------------------------------------------------------- other studies


def alias_starts(found: Data) -> Figure:
    panels = found["panels"]
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    made, all_axes = figure(1 + 2.9 * rows, columns=columns, rows=rows, sharex=True, sharey=True)
    starts = sorted({line["d0"] for panel in panels for line in panel["lines"] if line["d0"]})
    batches = sorted({line["batch"] for panel in panels for line in panel["lines"]})
    for axes, panel in zip(all_axes, panels, strict=False):
        for line in panel["lines"]:
            dashes = DASHES[batches.index(line["batch"]) % 4]
            color = CONTENDERS[panel["name"]].color
            if line["d0"]:
                color = shade(color, starts.index(line["d0"]), len(starts))
            axes.plot(*_over_run(line["y"]), color=color, linestyle=dashes)
        _step_axes(axes)
        axes.set_title(panel["name"], fontsize=10.5)
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    for i, axes in enumerate(all_axes[: len(panels)]):
        axes.tick_params(labelbottom=i + columns >= len(panels))
        if i + columns < len(panels):
            axes.set_xlabel("")
        if i % columns:
            axes.set_ylabel("")
    entries = [({"color": shade(GREY, i, len(starts))}, f"d0 {d0:g}") for i, d0 in enumerate(starts)]
    entries += [
        ({"color": GREY, "linestyle": DASHES[i % 4]}, f"batch x {multiple}")
        for i, multiple in enumerate(batches)
    ]
    _legend(made, entries)
    return made


def iterations(found: Data) -> Figure:
    made, all_axes = figure(3.7, columns=len(found["panels"]))
    for i, (axes, panel) in enumerate(zip(all_axes, found["panels"], strict=True)):
        x, y, spread = zip(*panel["points"], strict=True)
        bars = [value or 0 for value in spread]
        axes.errorbar(x, y, yerr=bars if any(bars) else None, capsize=3, **_line(CONTENDERS[panel["name"]]))
        axes.set_xscale("log")
        axes.set_xlim(x[0] / 1.2, x[-1] * 1.2)
        _ticks(axes, FixedLocator(x))
        # A range of at least 4 %: what is smaller than noise should look small.
        low, high = min(y), max(y)
        room = max(high - low, 0.04 * high) / 2 + max(bars)
        axes.set_ylim((low + high) / 2 - 1.2 * room, (low + high) / 2 + 1.2 * room)
        axes.set_xlabel("iterations")
        axes.set_title(panel["title"], fontsize=10.5)
        if i == 0:
            axes.set_ylabel(PERPLEXITY)
    return made


def widths(found: Data) -> Figure:
    panels = found["panels"]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    made, all_axes = figure(1 + 2.9 * rows, columns=columns, rows=rows)
    known = sorted({line["width"] for panel in panels for line in panel["lines"]})
    for i, (axes, panel) in enumerate(zip(all_axes, panels, strict=False)):
        for line in panel["lines"]:
            number = known.index(line["width"])
            points = [(x, y) for x, y in line["points"] if y is not None]
            if not points:
                continue
            color = shade(CONTENDERS[panel["name"]].color, number, len(known))
            axes.plot(*zip(*points, strict=True), color=color, marker="os^Dv"[number % 5])
            x, y = min(points, key=lambda point: point[1])
            axes.plot(x, y, "o", markersize=12, markerfacecolor="none", color=color)
        axes.set_xscale("log")
        _ticks(axes, LogLocator(subs=(1, 2, 5)))
        _perplexity(axes, [y for line in panel["lines"] for _, y in line["points"]], label=i % columns == 0)
        axes.set_title(panel["name"], fontsize=10.5)
        if i + columns >= len(panels):
            axes.set_xlabel("rate of the matrices")
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    _legend(
        made,
        [
            ({"color": shade(GREY, i, len(known)), "marker": "os^Dv"[i % 5]}, f"width {width}")
            for i, width in enumerate(known)
        ],
    )
    return made


def one_rate(found: Data) -> Figure:
    panels = found["panels"]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    made, all_axes = figure(1 + 2.9 * rows, columns=columns, rows=rows)
    every = [y for panel in panels for line in panel["lines"] for _, y in line["points"]]
    every += [panel["search"] for panel in panels]
    rates = sorted({x for panel in panels for line in panel["lines"] for x, _ in line["points"]})
    for i, (axes, panel) in enumerate(zip(all_axes, panels, strict=False)):
        color = CONTENDERS[panel["name"]].color
        for line in panel["lines"]:
            points = [(x, y) for x, y in line["points"] if y is not None]
            look = {"marker": "o", "linestyle": "--"} if line["ratio"] == 1 else {"marker": "s"}
            axes.plot(*zip(*points, strict=True), color=color, **look)
        if panel["search"]:
            axes.axhline(panel["search"], color=color, linestyle=":")
        axes.set_xscale("log")
        _ticks(axes, FixedLocator(rates))
        _perplexity(axes, every, label=i % columns == 0, most=4)
        axes.set_title(panel["name"], fontsize=10.5)
        if i + columns >= len(panels):
            axes.set_xlabel("rate of matrices and head")
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    keys = [({"color": GREY, "marker": "o", "linestyle": "--"}, "one rate for all roles")]
    keys += [({"color": GREY, "marker": "s", "linestyle": "-"}, "the embedding's ten times that")]
    keys += [({"color": GREY, "linestyle": ":"}, "a rate for each role: the search's best")]
    _legend(made, keys)
    return made


def batch(found: Data) -> Figure:
    made, (axes,) = figure(5)
    sizes = sorted({x for line in found["lines"] for x, _ in line["points"]})
    for line in found["lines"]:
        axes.plot(*zip(*line["points"], strict=True), label=line["name"], **_line(CONTENDERS[line["name"]]))
    axes.set_xscale("log")
    _ticks(axes, FixedLocator(sizes), ",.0f")
    _perplexity(axes, [y for line in found["lines"] for _, y in line["points"]])
    axes.set_xlabel("tokens a step")
    axes.set_title("The same tokens in larger batches, each at the best of its rates")
    axes.legend(ncols=2)
    return made


def sweep(found: Data) -> Figure:
    made, (axes,) = figure(5)
    for line in found["lines"]:
        points = [(x, y) for x, y in line["points"] if y is not None]
        lost = [x for x, y in line["points"] if y is None]
        label = line["name"] + (f" (diverged at {', '.join(f'{x:g}' for x in lost)})" if lost else "")
        axes.plot(*zip(*points, strict=True), label=label, **_line(CONTENDERS[line["name"]]))
    axes.set_xscale("log")
    _perplexity(axes, [y for line in found["lines"] for _, y in line["points"]], most=6)
    axes.set_xlabel("rate of embedding and head")
    axes.set_title("Which rates SAGE and Lion bear")
    axes.legend()
    return made


DRAWN = {
    "tokens": tokens,
    "front": front,
    "seconds": seconds,
    "rates": rates,
    "alias-steps": alias_steps,
    "alias-starts": alias_starts,
    "iterations": iterations,
    "widths": widths,
    "one-rate": one_rate,
    "batch": batch,
    "sweep": sweep,
}


# ------------------------------------------------------------------------------------------------------ parts


def _line(style: Style) -> dict[str, str]:
    return {"color": style.color, "marker": style.marker, "linestyle": style.line}


def shade(color: str, index: int, count: int) -> tuple[float, ...]:
    """The ``index``-th of ``count`` shades of an optimizer's colour, light to dark: more of something."""
    share = index / max(count - 1, 1)
    other, most = (1.0, 0.55 * (1 - 2 * share)) if share < 0.5 else (0.0, 0.65 * (2 * share - 1))
    base = to_rgb(color)
    if max(base) == 0:  # there is nothing darker than black
        other, most = 1.0, 0.75 * (1 - share)
    return tuple(part + (other - part) * most for part in base)


def _over_run(values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Shares of the run and the values there; a logarithmic axis has no place for zero."""
    pairs = [(100 * (i + 0.5) / len(values), value) for i, value in enumerate(values) if value]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _ticks(axes, locator: Locator, form: str = "g") -> None:
    """Plain numbers below, where a logarithmic axis has powers of ten of its own."""
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:{form}}"))


def _step_axes(axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the run (%)")
    axes.set_ylabel("step size")


def _perplexity(axes, values: Iterable[float | None], *, label: bool = True, most: float = math.inf) -> None:
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


def _within(axes, points: list[Data]) -> list[Data]:
    """Sets the axis of perplexities so that near ones are told apart; what is far above lies at the top, one
    below the other, and its label says how far."""
    _perplexity(axes, [point["y"] for point in points], most=1.6)
    top = axes.get_ylim()[1] / 1.01
    above = sorted((point for point in points if point["y"] > top), key=lambda point: -point["y"])
    moved = {
        point["name"]: {
            **point,
            "y": top / 1.025**place,
            "sd": 0.0,
            "label": f"{point['name']}: {point['y']:,.0f}",
        }
        for place, point in enumerate(above)
    }
    return [moved.get(point["name"], point) for point in points]


def _legend(made: Figure, entries: list[tuple[dict[str, str], str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **look) for look, _ in entries]
    made.legend(
        handles, [text for _, text in entries], loc="outside lower center", ncols=min(len(entries), 4)
    )
