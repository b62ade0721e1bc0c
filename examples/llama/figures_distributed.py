"""The picture of ``distributed_demo.py``: losses step by step, and what each process sent in a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .figures import STYLES, _save, _steps, millions, smooth
from .settings import Settings

Result = dict[str, Any]


def draw(path: Path, results: Sequence[Result], s: Settings) -> Path:
    """Curves that lie on each other are told apart by width, dashes and markers at places of their own."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (curves, bars) = pyplot.subplots(
        2, 1, figsize=(8, 8.5), height_ratios=(5, 3), layout="constrained"
    )
    _losses(curves, results, s)
    _sent(bars, results)
    return _save(figure, path)


def _losses(axes: Any, results: Sequence[Result], s: Settings) -> None:
    count = len(results)
    for index, (each, (color, marker)) in enumerate(zip(results, STYLES, strict=False)):
        loss = smooth(each["loss"], 0.7)
        every = max(len(loss) // 12, 1)
        axes.plot(
            range(1, len(loss) + 1),
            loss,
            color=color,
            alpha=0.35 if index == 0 else 1,
            linewidth=6 if index == 0 else 1.6,
            linestyle=("-", "-", "--", "-.")[index % 4],
            marker=None if index == 0 else marker,
            markevery=(every * index // count, every),
            markersize=6,
            label=f"{each['name']} ({each['optimizer']}): {each['validation'][-1][1]:.3f}",
        )
    _steps(axes, s)
    axes.grid(alpha=0.3)
    axes.set_ylabel("training loss (nats a token, smoothed)")
    axes.set_title(f"Llama of {millions(results[0]['parameters'])} parameters, the same batches in total")
    axes.legend(title="validation loss at the end", frameon=False)


def _sent(axes: Any, results: Sequence[Result]) -> None:
    """A bar for each process; those of a run stand together."""
    drawn = [(each, style) for each, style in zip(results, STYLES, strict=False) if each["processes"] > 1]
    place, ticks = 0.0, []
    for each, (color, _) in drawn:
        sent = each["sent_bytes_a_step"]
        for process, count in enumerate(sent):
            bar = axes.barh(place, count / 1e6, color=color, height=0.8, alpha=1 - 0.35 * (process % 2))
            number = f"{count / 1e6:.2f} MB, {count / each['parameters']:.2f} bytes a parameter"
            axes.bar_label(bar, [number], padding=5)
            ticks.append((place, f"{each['name']}, process {process}"))
            place += 1
        if not sent:
            axes.text(0, place, "  not counted here", va="center")
            ticks.append((place, each["name"]))
            place += 1
        place += 0.6
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.invert_yaxis()
    most = max((count for each, _ in drawn for count in each["sent_bytes_a_step"]), default=1e6)
    axes.set_xlim(0, most / 1e6 * 1.65)  # room for the longest bar's label
    axes.set_xlabel("sent by a process in a step (MB, counted on its TCP connections, median)")
    axes.set_title("Messages; one process sends none")
    axes.spines[["top", "right"]].set_visible(False)
