"""What a comparison leaves behind: table, verdict, JSON and pictures."""

from __future__ import annotations

import json
import math
import os
import platform
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from .corpus import Corpus
from .settings import Settings, millions

MIB = 1 << 20
BASELINE = "adamw"
NEAR = 0.02  # perplexities closer than this share are not called different: one seed tells no more
COLUMNS = ("optimizer", "validation perplexity", "optimizer state", "optimizer step", "speed")
UNITS = ("", "", "MiB", "ms, median", "tokens/s, median")

LINES = ("-", "--", ":", "-.")  # for the rules of one optimizer

Result = dict[str, Any]


def cells(result: Result) -> tuple[str, ...]:
    value = result["validation_perplexity"]
    return (
        result["label"],
        f"{value:.1f}" if math.isfinite(value) else "diverged",
        f"{result['state_bytes'] / MIB:.2f}",
        f"{result['optimizer_ms']:.2f}",
        f"{result['tokens_per_second']:,.0f}",
    )


def summary(result: Result) -> str:
    """One line for one run."""
    _, perplexity, state, step, speed = cells(result)
    return (
        f"Validation perplexity {perplexity}; optimizer state {state} MiB, step {step} ms; {speed} tokens/s."
    )


def table(results: list[Result], markdown: bool = False) -> str:
    heads = [f"{name} ({unit})" if unit else name for name, unit in zip(COLUMNS, UNITS, strict=True)]
    rows = [cells(result) for result in results]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]

    def line(row) -> str:
        padded = [
            text.ljust(w) if i == 0 else text.rjust(w)
            for i, (text, w) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded)

    rule = ["-" * w if i == 0 or not markdown else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(heads), line(rule), *(line(row) for row in rows)])


def verdict(results: list[Result]) -> list[str]:
    """One plain sentence for each optimizer against the baseline, whichever way it went."""
    base = next((r for r in results if r["optimizer"].split(":")[0] == BASELINE), results[0])
    lines = []
    for result in results:
        if result is base:
            continue
        ours, theirs = result["validation_perplexity"], base["validation_perplexity"]
        name, other = result["label"], base["label"]
        if not math.isfinite(ours):
            quality = f"{name} diverged at these settings"
        elif not math.isfinite(theirs):
            quality = f"{name} ends at perplexity {ours:.1f}; {other} diverged at these settings"
        else:
            change = ours / theirs - 1
            if abs(change) < NEAR:
                how = f"about level with {other} ({change:+.1%}: within what another seed may change)"
            else:
                how = f"{'ahead of' if change < 0 else 'NOT ahead of'} {other}: perplexity {change:+.1%}"
            quality = f"{name} is {how}, {ours:.1f} against {theirs:.1f}"
        size, base_size = result["state_bytes"], base["state_bytes"]
        memory = (
            f"{size / base_size:.1%} of its optimizer state" if base_size and size else "no optimizer state"
        )
        step = result["optimizer_ms"] / base["optimizer_ms"]
        lines.append(f"{quality}, with {memory} and an optimizer step that takes {step:.2f} times as long.")
    return lines


def write(out: Path, results: list[Result], settings: Settings, corpus: Corpus) -> list[Path]:
    """Writes everything into ``out``; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    shared = {k: v for k, v in settings.to_dict().items() if k != "optimizer"}
    facts = {
        "settings": shared,
        "corpus": {
            "source": corpus.source,
            "key": corpus.key,
            "vocab_size": corpus.vocab_size,
            "documents": corpus.documents,
            "bytes": corpus.bytes,
            "tokens": {"train": len(corpus.train), "validation": len(corpus.validation)},
        },
        "machine": machine(),
        "verdict": verdict(results),
        "results": results,
    }
    (out / "results.json").write_text(json.dumps(_plain(facts), indent=1, allow_nan=False) + "\n")
    (out / "results.md").write_text(_markdown(results, settings, corpus))
    return [
        out / "results.md",
        out / "results.json",
        loss_figure(out, results, settings),
        memory_figure(out, results),
        step_size_figure(out, results, settings),
    ]


def machine() -> dict[str, Any]:
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    facts = {
        "cpu": name,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _plain(value: Any) -> Any:
    """JSON has no infinity: what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _markdown(results: list[Result], s: Settings, corpus: Corpus) -> str:
    facts = machine()
    used = "\n".join(
        f"- `{r['label']}` ({r['about']}; backend {r['backend']}): "
        + ", ".join(
            f"{k} {'/'.join(map(str, v)) if isinstance(v, tuple) else v}"
            for k, v in r["optimizer_settings"].items()
        )
        for r in results
    )
    told = "\n".join(f"- {line}" for line in verdict(results))
    size = f"{millions(results[0]['parameters'])} parameters"
    windows = min(s.val_windows, (len(corpus.validation) - 1) // s.seq_len)
    return f"""# Llama, {size}, {s.steps} steps of {s.tokens_per_step:,} tokens

{table(results, markdown=True)}

{told}

![Loss](loss.png)
![Optimizer state](state_memory.png)
![Step size](step_size.png)

Text: {corpus.source}.
{len(corpus.train):,} training tokens ({corpus.documents["train"]} documents),
{len(corpus.validation):,} validation tokens ({corpus.documents["validation"]} documents),
vocabulary {corpus.vocab_size:,}.
Validation: {windows} fixed windows of {s.seq_len} tokens.
Same initial weights (seed {s.seed}), same batches, same schedule ({s.warmup} steps of warm-up,
cosine to {s.final_lr:g} of the peak), gradient norm clipped at {s.clip:g}, mixed precision: {s.amp}.
Machine: {facts["cpu"]}, {s.threads} threads, {s.device}, torch {facts["torch"]}.

Optimizer settings:
{used}
"""


def smooth(values: list[float], share: float = 0.9) -> list[float]:
    """Exponential moving average with bias correction: an early value is not pulled towards zero."""
    out, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = share * mean + (1 - share) * value, share * weight + (1 - share)
        out.append(mean / weight)
    return out


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def loss_figure(out: Path, results: list[Result], s: Settings) -> Path:
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    shown = []
    for index, result in enumerate(results):
        losses, color = result["history"]["loss"], f"C{index}"
        curve = smooth(losses)
        axes.plot(range(1, len(curve) + 1), curve, color=color, alpha=0.45, linewidth=1.2)
        points = result["history"]["validation"]
        value = result["validation_perplexity"]
        label = f"{result['label']}: {f'perplexity {value:.1f}' if math.isfinite(value) else 'diverged'}"
        axes.plot(
            *zip(*points, strict=True) if points else ([], []),
            color=color,
            marker="o",
            markersize=4,
            label=label,
        )
        # The first steps are the same for all: leave most of their height out.
        shown += curve[len(curve) // 15 :] + [loss for _, loss in points]
    shown = [loss for loss in shown if math.isfinite(loss)]
    if shown:
        margin = 0.05 * (max(shown) - min(shown)) or 0.1
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.set_xlim(0, s.steps * 1.01)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(f"step (of {s.tokens_per_step:,} tokens)")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(
        f"Llama, {millions(results[0]['parameters'])} parameters: validation (dots), training (pale)"
    )
    axes.grid(alpha=0.3)
    axes.legend(title="validation at the end", frameon=False)
    path = out / "loss.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def memory_figure(out: Path, results: list[Result]) -> Path:
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.55 * len(results)), layout="constrained")
    sizes = [result["state_bytes"] / MIB for result in results]
    bars = axes.barh(
        [r["label"] for r in results], sizes, color=[f"C{i}" for i in range(len(results))], height=0.6
    )
    axes.bar_label(bars, [f"{size:.2f} MiB" for size in sizes], padding=5)
    axes.invert_yaxis()
    axes.set_xlim(0, (max(sizes) or 1) * 1.18)  # room for the longest bar's label
    axes.set_xlabel("optimizer state (MiB, measured)")
    axes.set_title(f"Optimizer state of {millions(results[0]['parameters'])} parameters")
    axes.spines[["top", "right"]].set_visible(False)
    path = out / "state_memory.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def step_size_curves(result: Result) -> dict[str, list[list[float]]]:
    """The ``[step, size]`` pairs of each rule; rules that go the same way are one curve."""
    curves: dict[str, list[list[float]]] = {}
    for rule, points in result["history"]["step_size"].items():
        twin = next((name for name, others in curves.items() if others == points), None)
        curves[f"{twin}, {rule}" if twin else rule] = curves.pop(twin) if twin else points
    return curves


def step_size_figure(out: Path, results: list[Result], s: Settings) -> Path:
    """How far each optimizer went, step by step: the schedule that it was given, or ALIAS found."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for index, result in enumerate(results):
        curves = step_size_curves(result)
        for style, (rule, points) in zip(cycle(LINES), curves.items(), strict=False):
            # A logarithmic axis has no place for 0, nor for what is not finite.
            shown = [point for point in points if math.isfinite(point[1]) and point[1] > 0]
            axes.plot(
                *zip(*shown, strict=True) if shown else ([], []),
                color=f"C{index}",
                linestyle=style,
                linewidth=1.4,
                label=result["label"] if len(curves) == 1 else f"{result['label']}: {rule}",
            )
    axes.set_yscale("log")
    axes.set_xlim(0, s.steps * 1.01)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(f"step (of {s.tokens_per_step:,} tokens)")
    axes.set_ylabel("step size (learning rate; ALIAS: its own)")
    axes.set_title(f"Step size, Llama of {millions(results[0]['parameters'])} parameters")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)
    path = out / "step_size.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
