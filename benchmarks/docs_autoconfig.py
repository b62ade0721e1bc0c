"""What docs/autoconfig.md shows: a choice from what study "budget" of benchmarks/train has measured."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean
from typing import Any

import docs_tables
from docs_markdown import prose

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))

from lab import budget, store
from lab.plan import SEEDS
from lab.report import data

SHARE = 4
"""AdamW's state over what is allowed."""


def result() -> dict[str, Any]:
    return store.read(docs_tables.RESULTS / "train" / f"{budget.MEASURE}.json")


def configuration() -> Any:
    config = budget.restored(result()["measured"])
    return config.within(state_bytes=config.adamw_bytes // SHARE)


def verdict() -> str:
    """How what was picked has trained, beside hybrids of the same state."""
    kept = store.Store(docs_tables.RESULTS / "train")
    said = []
    for name in budget.AGAINST:
        runs, theirs = data.select(kept, "budget", budget.NAME, "seed", against=name), data.seeds(kept, name)
        if runs and theirs:
            said.append(
                f"at the state of `{name}` perplexity {mean(map(data.perplexity, runs)):.1f} "
                f"({len(runs)} of {len(SEEDS)} seeds) against {mean(map(data.perplexity, theirs)):.1f}"
            )
    if not said:
        return prose("Whether what it picks trains better than a hybrid of the same state is not known yet.")
    return prose(
        "**Does what it picks train as well as a hybrid of the same state?** On our small Llama:",
        "; ".join(said) + ".",
        "[Results](results.md) has the picks. So take it for what it measures, try what it picks, and",
        "keep to a [preset](methods/hybrids.md#presets) where that is ahead.",
    )


def example() -> str:
    """The table of a choice, and where it is from."""
    run = result()
    about = prose(
        f"A Llama with {run['result']['parameters'] / 1e6:.1f} million parameters on real text,",
        f"{run['result']['steps']} steps at AdamW's best rates of [results](results.md), a quarter of its",
        f"state allowed, 1-D parameters left out: {run['result']['cpu_seconds']:.0f} seconds of a processor.",
        f"`{run['command']}` measures it again.",
    )
    return f"{about}\n\n```\n{configuration()}\n```"
