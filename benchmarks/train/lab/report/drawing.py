"""How the data of ``pictures`` looks: one function a picture, for SVGs that are readable at 800 px."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from lab.report.frame import (
    PERPLEXITY,
    SETTINGS,
    figure,
    legend,
    line_look,
    perplexity_axis,
    shade,
    ticks,
)
from lab.report.scatter import front, seconds
from lab.report.style import CONTENDERS

Data = dict[str, Any]
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
        axes.plot(curve["x"], curve["y"], label=label, **line_look(style))
    values = [value for curve in found["curves"] for value in (*curve["y"], *curve["training"][4:])]
    perplexity_axis(axes, values)
    axes.set_xlim(0)
    axes.set_xlabel("training tokens (millions)")
    axes.set_title("Validation (markers, band: three seeds) and training (pale)")
    axes.legend(title="perplexity at the end, the best of each colour")
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
        perplexity_axis(axes, [min(values), top], label=i == 0)
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
        axes.plot(x, y, label=curve["name"], markevery=4, **line_look(style))
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
    legend(made, entries)
    return made


def iterations(found: Data) -> Figure:
    made, all_axes = figure(3.7, columns=len(found["panels"]))
    for i, (axes, panel) in enumerate(zip(all_axes, found["panels"], strict=True)):
        x, y, spread = zip(*panel["points"], strict=True)
        bars = [value or 0 for value in spread]
        axes.errorbar(
            x, y, yerr=bars if any(bars) else None, capsize=3, **line_look(CONTENDERS[panel["name"]])
        )
        axes.set_xscale("log")
        axes.set_xlim(x[0] / 1.2, x[-1] * 1.2)
        ticks(axes, FixedLocator(x))
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
        ticks(axes, LogLocator(subs=(1, 2, 5)))
        perplexity_axis(
            axes, [y for line in panel["lines"] for _, y in line["points"]], label=i % columns == 0
        )
        axes.set_title(panel["name"], fontsize=10.5)
        if i + columns >= len(panels):
            axes.set_xlabel("rate of the matrices")
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    legend(
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
        ticks(axes, FixedLocator(rates))
        perplexity_axis(axes, every, label=i % columns == 0, most=4)
        axes.set_title(panel["name"], fontsize=10.5)
        if i + columns >= len(panels):
            axes.set_xlabel("rate of matrices and head")
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    keys = [({"color": GREY, "marker": "o", "linestyle": "--"}, "one rate for all roles")]
    keys += [({"color": GREY, "marker": "s", "linestyle": "-"}, "the embedding's ten times that")]
    keys += [({"color": GREY, "linestyle": ":"}, "a rate for each role: the search's best")]
    legend(made, keys)
    return made


def batch(found: Data) -> Figure:
    made, (axes,) = figure(5)
    sizes = sorted({x for line in found["lines"] for x, _ in line["points"]})
    for line in found["lines"]:
        axes.plot(
            *zip(*line["points"], strict=True), label=line["name"], **line_look(CONTENDERS[line["name"]])
        )
    axes.set_xscale("log")
    ticks(axes, FixedLocator(sizes), ",.0f")
    perplexity_axis(axes, [y for line in found["lines"] for _, y in line["points"]])
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
        axes.plot(*zip(*points, strict=True), label=label, **line_look(CONTENDERS[line["name"]]))
    axes.set_xscale("log")
    perplexity_axis(axes, [y for line in found["lines"] for _, y in line["points"]], most=6)
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


def _over_run(values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Shares of the run and the values there; a logarithmic axis has no place for zero."""
    pairs = [(100 * (i + 0.5) / len(values), value) for i, value in enumerate(values) if value]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _step_axes(axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the run (%)")
    axes.set_ylabel("step size")
