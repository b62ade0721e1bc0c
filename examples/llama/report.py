"""What a comparison leaves behind: table, verdict and JSON. The pictures are in ``figures.py``."""

from __future__ import annotations

import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import torch

from . import figures
from .corpus import Corpus
from .settings import Settings, millions

MIB = 1 << 20
BASELINE = "adamw"
NEAR = 0.02  # perplexities closer than this share are called level: another seed may change as much
COLUMNS = ("optimizer", "validation perplexity", "optimizer state", "optimizer step", "speed")
UNITS = ("", "", "MiB", "ms, median", "tokens/s, median")

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


def verdict(results: list[Result], s: Settings) -> list[str]:
    """One plain sentence for each optimizer against the baseline, whichever way it went; the last is what
    none of them shows."""
    base = next((r for r in results if r["optimizer"].split(":")[0] == BASELINE), results[0])
    lines = [_against(result, base) for result in results if result is not base]
    tokens = s.steps * s.tokens_per_step
    return [
        *lines,
        "Not shown: what longer training, a larger model, other text or another seed would say. This was one "
        f"seed, {millions(base['parameters'])} parameters and {s.steps:,} steps, {millions(tokens)} tokens.",
    ]


def _against(result: Result, base: Result) -> str:
    ours, theirs = result["validation_perplexity"], base["validation_perplexity"]
    name, other = result["label"], base["label"]
    if not math.isfinite(ours):
        quality = f"{name} diverged at these settings ({other}: {_perplexity(theirs)})"
    elif not math.isfinite(theirs):
        quality = f"{name} ends at perplexity {ours:.1f}; {other} diverged at these settings"
    else:
        change = ours / theirs - 1
        if abs(change) < NEAR:
            how = f"level with {other} within {NEAR:.0%}"
        else:
            how = f"{'ahead of' if change < 0 else 'behind'} {other}"
        quality = f"{name} is {how}: perplexity {ours:.1f} against {theirs:.1f} ({change:+.1%})"
    size, base_size = result["state_bytes"], base["state_bytes"]
    memory = f"{size / MIB:.2f} MiB of optimizer state against {base_size / MIB:.2f}"
    memory += f" ({size / base_size:.1%})" if base_size else ""
    step, base_step = result["optimizer_ms"], base["optimizer_ms"]
    return (
        f"{quality}, with {memory} and an optimizer step of {step:.2f} ms against {base_step:.2f} "
        f"({step / base_step:.2f} times)."
    )


def _perplexity(value: float) -> str:
    return f"perplexity {value:.1f}" if math.isfinite(value) else "diverged as well"


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
        "verdict": verdict(results, settings),
        "results": results,
    }
    (out / "results.json").write_text(json.dumps(_plain(facts), indent=1, allow_nan=False) + "\n")
    drawn = figures.draw(out, results, settings)
    (out / "results.md").write_text(_markdown(results, settings, corpus, drawn))
    return [out / "results.md", out / "results.json", *drawn]


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


def _markdown(results: list[Result], s: Settings, corpus: Corpus, drawn: list[Path]) -> str:
    facts = machine()
    used = "\n".join(
        f"- `{r['label']}` ({r['about']}; backend {r['backend']}): "
        + ", ".join(
            f"{k} {'/'.join(map(str, v)) if isinstance(v, tuple) else v}"
            for k, v in r["optimizer_settings"].items()
        )
        for r in results
    )
    told = "\n".join(f"- {line}" for line in verdict(results, s))
    pictures = "\n".join(f"![{path.stem.replace('_', ' ')}]({path.name})" for path in drawn)
    size = f"{millions(results[0]['parameters'])} parameters"
    windows = min(s.val_windows, (len(corpus.validation) - 1) // s.seq_len)
    return f"""# Llama, {size}, {s.steps} steps of {s.tokens_per_step:,} tokens

{table(results, markdown=True)}

{told}

{pictures}

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
