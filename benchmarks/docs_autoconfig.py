"""What docs/autoconfig.md shows: a choice from what study "budget" of benchmarks/train has measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import docs_tables
from docs_markdown import prose

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))

from lab import budget, store

SHARE = 4
"""AdamW's state over what is allowed."""


def result() -> dict[str, Any]:
    return store.read(docs_tables.RESULTS / "train" / f"{budget.MEASURE}.json")


def configuration() -> Any:
    config = budget.restored(result()["measured"])
    return config.within(state_bytes=config.adamw_bytes // SHARE)


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
