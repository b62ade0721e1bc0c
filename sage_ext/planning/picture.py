"""The picture of a plan: what a device holds, and how long a step takes, beside AdamW."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sage_ext import _pictures
from sage_ext.optimizers.hybrid import RULES
from sage_ext.planning.budget import Budget

if TYPE_CHECKING:
    from sage_ext.planning.report import Plan

GIB = float(1 << 30)
Of = Callable[[Budget, str], float]
COLORS = {
    **_pictures.RULES,
    "parameters": "#BBBBBB",
    "gradients": "#DDDDDD",
    "transient": "#F0E442",
    "memory": "#555555",
    "messages": "#D55E00",
}


def draw(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Draw a plan into a file.

    Raises:
        ImportError: there is no matplotlib.
    """
    has_time = plan.chosen.seconds is not None and plan.adamw.seconds is not None
    figure = _pictures.new_figure((9.6, 4.6 if has_time else 3.0), "draw", "print the plan")
    places = figure.subplots(2 if has_time else 1, 1, squeeze=False)[:, 0]
    place = plan.layout if plan.layout == "1 device" else f"one device, {plan.layout}"
    figure.suptitle(f"{plan.model}, {plan.precision}, {place}", fontsize=11)
    budgets = (plan.adamw, plan.chosen)  # from below

    axes = places[0]
    _stack(axes, budgets, _parts(budgets), _bytes_of, GIB)
    most = max(budget.peak_bytes for budget in budgets) / GIB
    _totals(axes, [budget.peak_bytes / GIB for budget in budgets], "GiB")
    room = None if plan.device_bytes is None else plan.device_bytes / GIB
    if room is not None and room < 1.6 * most:
        axes.axvline(room, color="black", linestyle="--", linewidth=1)
        axes.text(
            room,
            len(budgets) - 0.4,
            f"a device has {room:.1f} GiB",
            ha="center",
            va="bottom",
            fontsize=8,
        )
    axes.set_xlim(0, 1.16 * max(most, room if room is not None and room < 1.6 * most else 0.0))
    axes.set_xlabel("held in a step (GiB)")
    if has_time:
        axes = places[1]
        _stack(axes, budgets, ("memory", "messages"), _seconds_of, 1e-3)
        seconds = [1e3 * (budget.seconds or 0.0) for budget in budgets]
        _totals(axes, seconds, "ms")
        axes.set_xlim(0, 1.16 * max(seconds))
        axes.set_xlabel(f"optimizer step (ms, predicted), {plan.hardware}")
    for axes in places:
        axes.set_yticks(range(len(budgets)), [budget.name for budget in budgets])
        axes.set_ylim(-0.6, len(budgets) - 0.4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _parts(budgets: tuple[Budget, ...]) -> list[str]:
    rules = dict.fromkeys(
        rule for budget in reversed(budgets) for rule, held in budget.state_by_rule.items() if held
    )
    return ["parameters", "gradients", *rules, "transient"]


def _bytes_of(budget: Budget, part: str) -> float:
    if part in ("parameters", "gradients", "transient"):
        return float(getattr(budget, f"{part.removesuffix('s')}_bytes"))
    return float(budget.state_by_rule.get(part, 0))


def _seconds_of(budget: Budget, part: str) -> float:
    return (budget.memory_seconds if part == "memory" else budget.exchange_seconds) or 0.0


def _stack(axes: Any, budgets: tuple[Budget, ...], names: Sequence[str], of: Of, unit: float) -> None:
    """Draw the bars, made of the parts of these names, one behind the other."""
    ends = [0.0] * len(budgets)
    for name in names:
        widths = [of(budget, name) / unit for budget in budgets]
        if any(widths):
            label = f"state: {name}" if name in RULES else name
            axes.barh(range(len(budgets)), widths, 0.6, left=ends, color=COLORS[name], label=label)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]


def _totals(axes: Any, totals: Sequence[float], unit: str) -> None:
    for place, total in enumerate(totals):
        text, middle = f"{total:.3g} {unit}", {"textcoords": "offset points", "va": "center"}
        axes.annotate(text, (total, place), xytext=(4, 0), fontsize=9, **middle)
