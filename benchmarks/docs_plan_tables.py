"""The tables of docs/plan.md: what ``sage_ext.plan`` says of published models. Nothing of it is measured,
so it is the same whatever benchmarks/results has, and made once.
"""

from __future__ import annotations

from functools import cache

import sage_ext
from sage_ext.planning.report import size, time

CASE = ("llama-7b", "sage", 8)
MODELS = (("llama-1b", 1), ("llama-7b", 8), ("llama3-8b", 8), ("llama-70b", 64), ("llama-405b", 512))
PRESETS = ("sage", "sinkgd-scale", "sinkgd", "scale", "stateless", "alias")


@cache
def example() -> str:
    """What the first command of the page prints."""
    model, preset, devices = CASE
    return f"```\n{sage_ext.plan(model, preset, devices=devices, precision='bf16')}\n```"


@cache
def side_by_side() -> str:
    """Peak and time of a step of several models and presets."""
    lines = [
        "Peak of parameters, gradients, state and what a step allocates, and predicted time of the step:",
        "a device of FSDP2 over so many H100s, in bf16.",
        "",
        "| model | devices | AdamW | " + " | ".join(f"`{preset}`" for preset in PRESETS) + " |",
        "|---|---:|---:|" + "---:|" * len(PRESETS),
    ]
    for model, devices in MODELS:
        plans = [sage_ext.plan(model, preset, devices=devices) for preset in PRESETS]
        cells = [
            f"{size(budget.peak_bytes)}, {time(budget.seconds or 0.0)}"
            for budget in (plans[0].adamw, *(plan.chosen for plan in plans))
        ]
        lines.append(f"| {model} | {devices} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
