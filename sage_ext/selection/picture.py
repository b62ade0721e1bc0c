"""The picture of an ``AutoConfig``: risk against state, and which rules make the least risk at each state."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sage_ext import _pictures
from sage_ext.selection.candidates import CANDIDATES, IN_BF16, WITH_MOMENTUM

if TYPE_CHECKING:
    from sage_ext.selection.config import AutoConfig

# AdamW in bf16 is a lighter shade of AdamW, SCALE with momentum a darker one of SCALE.
SHADES = {name: _pictures.RULES[rule] for name, rule in CANDIDATES.items()} | {
    IN_BF16: "#484848",
    WITH_MOMENTUM: "#005A41",
}
MARKS = dict(zip(CANDIDATES, "osD^v<P>", strict=True))


def draw(config: AutoConfig, path: str | os.PathLike[str]) -> None:
    """Draw it into a file.

    Raises:
        ImportError: there is no matplotlib.
    """
    figure = _pictures.new_figure((7.6, 6.4), "picture", "print the configuration")
    fill(figure, config)
    figure.savefig(path, dpi=150)


def fill(figure: Any, config: AutoConfig) -> None:
    """Draw it into a figure of matplotlib."""
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    points = config.front
    count = max(sum(block.param.numel() for block in config.blocks), 1)
    states = [point.state_bytes / count for point in points]

    above.plot(
        states, [point.risk for point in points], "-", color="black", linewidth=1.4, label="least risk"
    )
    for candidate in CANDIDATES:
        if (alone := config.alone(candidate)) is not None:
            above.plot(
                alone.state_bytes / count,
                alone.risk,
                MARKS[candidate],
                color=SHADES[candidate],
                markeredgecolor="black",
                markeredgewidth=0.6,
                clip_on=False,
                label=f"{candidate} on all",
            )
    above.plot(
        config.state_bytes / count,
        config.risk,
        "*",
        color="white",
        markeredgecolor="black",
        markersize=15,
        clip_on=False,
        zorder=5,
        label="chosen",
    )
    above.set_ylabel("risk (0: as AdamW)")
    above.set_ylim(bottom=0)
    below.stackplot(
        states,
        [[point.shares.get(name, 0.0) for point in points] for name in CANDIDATES],
        colors=[SHADES[name] for name in CANDIDATES],
        step="post",
        edgecolor="white",
        linewidth=0.4,
    )
    used = [name for name in CANDIDATES if any(name in point.shares for point in points)]
    below.legend(
        handles=[_patch(name) for name in reversed(used)],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=8,
    )
    below.set_ylabel("share of parameters")
    below.set_ylim(0, 1)
    below.set_xlabel("optimizer state (bytes a parameter)")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    if config.state_budget is not None and config.state_budget <= 1.05 * max(max(states), 1e-9) * count:
        for axes in (above, below):
            axes.axvline(config.state_budget / count, color="black", linestyle="--", linewidth=0.9, zorder=4)
        above.plot([], [], "--", color="black", linewidth=0.9, label="allowed")
    above.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)


def _patch(candidate: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=SHADES[candidate], label=candidate)
