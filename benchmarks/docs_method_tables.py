"""What the pages in docs/methods say that was measured: state, time of a step, and how it trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import docs_report
from contenders import HYBRIDS
from docs_tables import ADAMW, load, prose, size, table
from lab.questions import ALIAS_FORMS

# Page -> what the benchmarks call the optimizers of a method, and the training runs its contenders.
ROWS: dict[str, tuple[list[str], list[str]]] = {
    "sage": (
        ["SAGE hybrid", "FusedSAGE", "FusedSAGE (embedding)"],
        ["preset-sage", "sage-hybrid", "sage", "lion", "lion-hybrid"],
    ),
    "sinkgd": (
        [
            "SAGE hybrid",
            "SinkGD hybrid",
            "FusedSinkGD",
            "FusedSinkGD (matrices)",
            "FusedSinkGD (matrices), 1 iteration",
        ],
        [
            "preset-sinkgd-scale",
            "preset-sage",
            "preset-sinkgd",
            "sinkgd",
            "sinkgd-hybrid",
            "adamw-sinkgd-scale",
            "sage-hybrid",
            "stateless-columns",
        ],
    ),
    "scale": (
        ["SCALE hybrid", "FusedSCALE", "FusedSCALE (columns)", "FusedSCALE (matrices)"],
        [
            "preset-scale",
            "preset-sinkgd-scale",
            "preset-stateless",
            "scale",
            "adamw-sinkgd-scale",
            "adamw-momentum",
            "adamw-momentum-adamw",
            "scale-sinkgd-scale",
            "adamw-scale-scale",
            "stateless",
            "stateless-columns",
        ],
    ),
    "alias": (
        ["ALIAS hybrid", "FusedALIAS", "FusedALIAS (lower bound)", "FusedALIAS (base)", "FusedALIASAdam"],
        [
            "alias-adam",
            "prodigy",
            "sign-sgd",
            "sign-sgd-adamw",
            *ALIAS_FORMS,
            "alias-head-adamw",
            "alias-base-head-adamw",
            "alias-sum-head-adamw",
        ],
    ),
    "lion": (["FusedLion", "Lion hybrid"], ["lion", "lion-hybrid", "lion-sinkgd-adamw", "preset-lion"]),
    "sign_sgd": (
        ["FusedSignSGD"],
        ["sign-sgd", "sign-sgd-adamw", "signum", "alias-lower-bound", "alias-head-adamw"],
    ),
    "adamw": (["FusedAdamW"], ["adamw-8bit", "muon", "schedule-free"]),
    "hybrids": (
        [f"{label} hybrid" for label in HYBRIDS.values()],
        [
            *(f"preset-{name}" for name in ("sinkgd-scale", "sage", "scale", "sinkgd", "lion")),
            "adamw-sinkgd-scale",
            "sage-hybrid",
            "sinkgd-hybrid",
            "lion-hybrid",
            "scale",
            "stateless-columns",
            "preset-stateless",
        ],
    ),
}
# Case -> its column, and what the text calls it.
CASES = {
    "llama 53M fp32": ("Llama, fp32", "a Llama with 53 million parameters"),
    "llama 53M bf16": ("Llama, bf16", "a Llama with 53 million parameters"),
    "8192 x 8192 fp32": ("8192 x 8192", "one matrix"),
    "2000 x 256 fp32": ("2,000 x 256", "2,000 tensors of 256 numbers"),
}


def costs(names: Sequence[str]) -> str:
    """State, and the time of a step over AdamW's, of some optimizers."""
    memory, times = load("memory.json"), load("step_time.json")
    own = next(row for row in memory["rows"] if row["dtype"] == "bf16" and not row["tied"])
    ratios = {(row["case"], row["optimizer"]): f"{row['ratio']:.2f}" for row in times["rows"]}
    names = [ADAMW, *names]
    cases = [case for case in CASES if any((case, name) in ratios for name in names[1:])]
    rows = [
        [
            name,
            size(own["state_bytes"][name]) if name in own["state_bytes"] else "",
            *(ratios.get((case, name), "") for case in cases),
        ]
        for name in names
    ]
    stepped = ", of ".join(dict.fromkeys(CASES[case][1] for case in cases))
    parts = [part for part in ("(matrices)", "(embedding)") if any(part in name for name in names)]
    text = prose(
        f"State of a Llama with {own['parameters'] / 1e9:.2f} billion parameters in bf16, and time of a step",
        f"over that of torch's fused AdamW, of {stepped}; on {times['setting']['threads']} cores.",
        *(f"What is called {part} steps these alone." for part in parts),
        "[Measurements](../measurements.md) has the rest.",
    )
    return f"{text}\n\n{table(['optimizer', 'state, GiB', *(CASES[case][0] for case in cases)], rows)}"


def makers(page: str) -> list[Callable[[], str]]:
    names, contenders = ROWS[page]
    return [partial(costs, names), partial(docs_report.of_method, [docs_report.ANCHOR, *contenders])]
