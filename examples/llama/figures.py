"""The pictures of a comparison. An optimizer has the same colour and marker in all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

from .loop import lr_factor
from .settings import Settings, millions

MIB = 1 << 20
NAMES = ("perplexity.png", "state_memory.png", "step_time.png", "step_size.png")
LINES = ("-", "--", ":", "-.")  # for the groups of one optimizer

# Okabe and Ito's colours, which the colour-blind tell apart, less the yellow, which white paper swallows. A
# marker each, for prints without colour.
STYLES = (
    ("#000000", "o"),
    ("#0072B2", "s"),
    ("#D55E00", "^"),
    ("#009E73", "D"),
    ("#CC79A7", "v"),
    ("#E69F00", "P"),
    ("#56B4E9", "X"),
)
# Whose colour is whose in every comparison, as an index of STYLES; any other optimizer takes one that is
# left.
OWN = {
    "adamw": 0,
    "sage-hybrid": 1,
    "sinkgd-scale": 2,
    "scale": 3,
    "lion-hybrid": 4,
    "sinkgd-hybrid": 5,
    "alias": 6,
}

Result = dict[str, Any]


def styles(names: Sequence[str]) -> list[tuple[str, str]]:
    """A colour and a marker for each optimizer, given its name or ``NAME:KEY=VALUE``."""
    chosen: list[int | None] = []
    for name in names:
        own = OWN.get(name.partition(":")[0])
        chosen.append(None if own in chosen else own)
    left = [i for i in range(len(STYLES)) if i not in chosen] or range(len(STYLES))
    others = cycle(left)
    return [STYLES[next(others) if index is None else index] for index in chosen]


def can_draw() -> bool:
    """Whether there is a matplotlib. Training goes without."""
    return find_spec("matplotlib") is not None


def draw(out: Path, results: list[Result], s: Settings) -> list[Path]:
    """Draws every picture that has something to show into ``out``, and takes old ones away.

    Without matplotlib there is none.
    """
    for name in NAMES:
        (out / name).unlink(missing_ok=True)
    if not can_draw():
        return []
    files = [
        perplexity(out / "perplexity.png", results, s),
        bars(
            out / "state_memory.png",
            results,
            [result["state_bytes"] / MIB for result in results],
            "{:.2f} MiB",
            "optimizer state (MiB, measured)",
        ),
        bars(
            out / "step_time.png",
            results,
            [result["optimizer_ms"] for result in results],
            "{:.2f} ms",
            f"time of an optimizer step (ms, median of {results[0]['steps_done']})",
        ),
    ]
    if any(not follows_schedule(points, s) for r in results for points in step_size_curves(r).values()):
        files.append(step_size(out / "step_size.png", results, s))
    return files


def perplexity(path: Path, results: list[Result], s: Settings) -> Path:
    """Perplexity step by step: of validation with markers, of the training batches, smoothed, pale."""
    figure, axes = _axes(8, 5)
    shown = []
    for result, (color, marker) in zip(results, styles([r["optimizer"] for r in results]), strict=True):
        curve = [_exp(loss) for loss in smooth(result["history"]["loss"])]
        points = [[step, _exp(loss)] for step, loss in result["history"]["validation"]]
        axes.plot(range(1, len(curve) + 1), curve, color=color, alpha=0.35, linewidth=1.2)
        value = result["validation_perplexity"]
        axes.plot(
            *zip(*points, strict=True) if points else ([], []),
            color=color,
            marker=marker,
            markersize=6,
            label=f"{result['label']}: {f'{value:.1f}' if math.isfinite(value) else 'diverged'}",
        )
        # The first steps are the same for all: leave most of their height out.
        shown += curve[len(curve) // 15 :] + [value for _, value in points]
    shown = [value for value in shown if math.isfinite(value) and value > 0]
    axes.set_yscale("log")
    if shown:
        axes.set_ylim(min(shown) / 1.1, max(shown) * 1.1)
    _plain_log_ticks(axes)
    _steps(axes, s)
    axes.set_ylabel("perplexity")
    axes.set_title(f"Llama of {_size(results)}: validation (markers) and training (pale, smoothed)")
    axes.legend(title="validation perplexity at the end", frameon=False)
    return _save(figure, path)


def bars(path: Path, results: list[Result], values: list[float], form: str, what: str) -> Path:
    """One bar for each optimizer, with its number."""
    figure, axes = _axes(8, 1.4 + 0.55 * len(results))
    drawn = axes.barh(
        range(len(results)),
        values,
        color=[color for color, _ in styles([r["optimizer"] for r in results])],
        height=0.6,
        tick_label=[result["label"] for result in results],
    )
    axes.bar_label(drawn, [form.format(value) for value in values], padding=5)
    axes.invert_yaxis()
    axes.set_xlim(0, (max(values) or 1) * 1.18)  # room for the longest bar's label
    axes.set_xlabel(what)
    axes.set_title(f"Llama of {_size(results)}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=False)
    return _save(figure, path)


def step_size_curves(result: Result) -> dict[str, list[list[float]]]:
    """The ``[step, size]`` pairs of each group; groups that go the same way are one curve."""
    curves: dict[str, list[list[float]]] = {}
    for name, points in result["history"]["step_size"].items():
        twin = next((other for other, others in curves.items() if others == points), None)
        curves[f"{twin}, {name}" if twin else name] = curves.pop(twin) if twin else points
    return curves


def follows_schedule(points: Iterable[Sequence[float]], s: Settings) -> bool:
    """Whether the sizes are the schedule of the run, up to a factor: then no picture of them is needed."""
    peaks = [
        size / lr_factor(int(step) - 1, steps=s.steps, warmup=s.warmup, final=s.final_lr)
        for step, size in points
    ]
    return all(math.isclose(peak, peaks[0], rel_tol=1e-4) for peak in peaks)


def step_size(path: Path, results: list[Result], s: Settings) -> Path:
    """How far each optimizer went, step by step: the schedule that it was given, or ALIAS found."""
    figure, axes = _axes(8, 5)
    for result, (color, _) in zip(results, styles([r["optimizer"] for r in results]), strict=True):
        curves = step_size_curves(result)
        for line, (name, points) in zip(cycle(LINES), curves.items(), strict=False):
            # A logarithmic axis has no place for 0, nor for what is not finite.
            shown = [point for point in points if math.isfinite(point[1]) and point[1] > 0]
            axes.plot(
                *zip(*shown, strict=True) if shown else ([], []),
                color=color,
                linestyle=line,
                linewidth=1.4,
                label=result["label"] if len(curves) == 1 else f"{result['label']}: {name}",
            )
    axes.set_yscale("log")
    _steps(axes, s)
    axes.set_ylabel("step size (learning rate; ALIAS: its own)")
    axes.set_title(f"Step size, Llama of {_size(results)}")
    if axes.lines:
        axes.legend(frameon=False)
    return _save(figure, path)


def smooth(values: list[float], share: float = 0.9) -> list[float]:
    """Exponential moving average with bias correction: an early value is not pulled towards zero."""
    out, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = share * mean + (1 - share) * value, share * weight + (1 - share)
        out.append(mean / weight)
    return out


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _size(results: list[Result]) -> str:
    return f"{millions(results[0]['parameters'])} parameters"


def _axes(width: float, height: float):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    axes.grid(alpha=0.3)
    return figure, axes


def _steps(axes, s: Settings) -> None:
    axes.set_xlim(0, s.steps * 1.01)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(f"step (of {s.tokens_per_step:,} tokens)")


def _plain_log_ticks(axes) -> None:
    """Numbers as people write them, also where the axis spans less than a factor of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _save(figure, path: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path
