"""What docs/autoconfig.md shows: a choice from what study "budget" of benchmarks/train has measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import docs_report
import docs_tables
from docs_markdown import prose

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))

from lab import budget, store
from lab.plan import SEEDS
from lab.report import budget as section
from lab.report import data, rules

SHARE = 4
"""AdamW's state over what is allowed."""


def result() -> dict[str, Any]:
    return store.read(docs_tables.RESULTS / "train" / f"{budget.MEASURE}.json")


def configuration() -> Any:
    config = budget.restored(result()["measured"])
    return config.within(state_bytes=config.adamw_bytes // SHARE)


def verdict() -> str:
    """How what was picked has trained, beside the best of the contenders with no more state."""
    kept = docs_report.trained()
    said = []
    for name in budget.AGAINST:
        runs = data.select(kept, "budget", budget.NAME, "seed", against=name)
        rival = section.best_within(kept, name)
        theirs = data.seeds(kept, rival) if rival else []
        difference = section.ahead(runs, theirs)
        if name == "adamw" or difference is None:  # AdamW's state picks AdamW
            continue
        said.append(
            f"at {data.state_per_parameter(runs[0]):.2f} bytes a parameter {data.with_spread(runs)} against "
            f"{data.with_spread(theirs)} of `{rival}` ({rules.better(difference)})"
        )
    if not said:
        return prose("Whether what it picks trains better than a hybrid of the same state is not known yet.")
    return prose(
        "**Does what it picks train better than the best contender with no more state?** On our small Llama,",
        f"perplexity of {len(SEEDS)} seeds:",
        "; ".join(said) + ".",
        "[Results](results.md#a-rule-for-each-matrix-picked-within-a-budget) has the picks. Try what it",
        "picks, and keep to a [preset](methods/hybrids.md#presets) where that is ahead.",
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
