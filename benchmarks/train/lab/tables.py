"""Plans and results as text, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from lab import search
from lab.plan import Run
from lab.store import Store


def perplexity(result: dict[str, Any]) -> str:
    value = result["result"]["perplexity"]
    return "diverged" if value is None else f"{value:.2f}"


def plan(runs: Sequence[Run], kept: Store) -> str:
    """A line a run: whether it is done, its budget, its name."""
    lines = []
    for run in runs:
        state = perplexity(kept[run.id]) if run.id in kept else "ready" if run.is_ready(kept) else "waits"
        lines.append(f"{state:>9}  {run.tokens / 1e6:5.2f} M  {run.id}")
    return "\n".join([*lines, f"{len(runs)} runs, {sum(run.tokens for run in runs) / 1e6:,.0f} M tokens"])


def status(study: str, runs: Sequence[Run], kept: Store) -> str:
    """The best first: of study "main" a line a contender, else a line a variant."""
    done = sum(run.id in kept for run in runs)
    rows = _by_contender(runs, kept) if study == "main" else _by_variant(runs, kept)
    return "\n".join([*_aligned(rows), f"{done} of {len(runs)} runs are done"])


def _by_contender(runs: Sequence[Run], kept: Store) -> list[list[str]]:
    entries = []
    for name in dict.fromkeys(run.contender for run in runs):
        of_name = [run for run in runs if run.contender == name]
        searches = [run.id for run in of_name if run.stage == "search"]
        seeds = [run.id for run in of_name if run.stage == "seed"]
        found = [run for run in searches if run in kept]
        final = [run for run in seeds if run in kept]
        best = min(found, key=kept.loss, default=None)
        values = [math.exp(kept.loss(run)) for run in final]
        rates = kept[best]["config"]["rates"] if best else {}
        edge = search.at_edge(rates) if rates else []
        last = kept[(final or [best])[-1]]["result"] if final or best else None
        order = (0, mean(values)) if values else (1, kept.loss(best)) if best else (2, 0.0)
        entries.append(
            (
                order,
                [
                    name,
                    f"{len(found)}/{len(searches)}" if searches else "-",
                    f"{math.exp(kept.loss(best)):.2f}" if best else "",
                    f"{len(final)}/{len(seeds)}",
                    f"{mean(values):.2f}" + (f" +- {stdev(values):.2f}" if len(values) > 1 else "")
                    if values
                    else "",
                    f"{last['state_bytes'] / last['parameters']:.2f}" if last else "",
                    *(f"{rates[role]:g}" + "*" * (role in edge) if rates else "" for role in search.RANGES),
                ],
            )
        )
    head = ["contender", "search", "best", "seeds", "perplexity", "state B/param", *search.RANGES]
    notes = [["* at an end of its range"]] if any("*" in row[-1] for _, row in entries) else []
    return [head, *(row for _, row in sorted(entries, key=lambda entry: entry[0])), *notes]


def _by_variant(runs: Sequence[Run], kept: Store) -> list[list[str]]:
    groups: dict[tuple[str, ...], list[float]] = {}
    for run in runs:
        if run.id in kept:
            variant = {key: value for key, value in run.variant.items() if key != "seed"}
            label = " ".join(f"{key}={value}" for key, value in variant.items() if value != "")
            key = (run.contender, run.stage.split("-")[0], label, f"{run.tokens / 1e6:.2f} M")
            groups.setdefault(key, []).append(math.exp(kept.loss(run.id)))
    rows = [
        [
            *key,
            str(len(values)),
            f"{mean(values):.2f}" + (f" +- {stdev(values):.2f}" if len(values) > 1 else ""),
        ]
        for key, values in groups.items()
    ]
    return [["contender", "stage", "variant", "tokens", "runs", "perplexity"], *rows]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]
