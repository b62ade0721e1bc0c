"""The page of the training runs, docs/results.md, and what other pages say of it.

benchmarks/train/lab/report makes its parts.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import docs_tables
from docs_markdown import prose, table

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))

from lab import search
from lab.contenders import PRESET, contenders
from lab.plan import SEEDS
from lab.report import data, page
from lab.scales import SCALES
from lab.search import RANGES
from lab.store import Store


def report() -> str:
    return page.text(Store(docs_tables.RESULTS / "train"), SCALES["cpu"])


@functools.cache
def _ranks(folder: Path) -> bool:
    return bool(data.ranked(Store(folder)))


def link(target: str) -> str:
    """A link to the page, and that it has no answer as long as nothing is ranked there."""
    begun = "" if _ranks(docs_tables.RESULTS / "train") else " (begun; nothing is ranked yet)"
    return f"[results]({target}){begun}"


ANCHOR = "adamw"
IN_SHORT = (ANCHOR, "preset-sinkgd-scale", "preset-sage", "preset-scale", "lion", "preset-stateless")


def in_short() -> str:
    """The README's paragraph on training."""
    return "\n\n".join(
        filter(
            None,
            [
                prose(f"**How much quality for how much memory.** {setting(IN_SHORT)}"),
                standing(IN_SHORT),
                prose(
                    "Not shown: larger models, longer runs, other text, any GPU.",
                    f"All contenders, rates, and what the papers claim: {link('docs/results.md')}.",
                    "`make demo` is far shorter and ranks nobody: [training](docs/training.md).",
                ),
            ],
        )
    )


def of_method(names: Sequence[str]) -> str:
    """What a page of a method says of training: how these contenders did."""
    return "\n\n".join(
        filter(None, [prose(setting(names)), standing(names), prose(f"All of it: {link('../results.md')}.")])
    )


def _ranked(names: Sequence[str]) -> tuple[Store, list[str]]:
    store = Store(docs_tables.RESULTS / "train")
    shown = [name for name in data.ranked(store) if name in names]
    return store, shown if set(shown) != {ANCHOR} else []


def setting(names: Sequence[str]) -> str:
    """What the numbers of ``standing`` are; empty without any."""
    store, shown = _ranked(names)
    if not shown:
        return ""
    run = data.seeds(store, shown[0])[0]
    everyone = contenders()
    own = ""
    if any(not everyone[name].searched and not name.startswith(PRESET) for name in shown):
        own += "; what finds its own has had no search"
    if any(name.startswith(PRESET) for name in shown):
        own += "; presets run as they are (`sinkgd-scale`, `stateless`: with rates that such runs led to)"
    return (
        f"Validation perplexity of a Llama with {data.millions(run['result']['parameters'])} parameters "
        f"after {data.millions(run['config']['tokens'])} tokens of real text, mean and standard deviation "
        f"of {len(SEEDS)} seeds. {search.RUNS} shorter runs have found a rate each for embedding, matrices "
        f"and head, AdamW's too{own}."
    )


def standing(names: Sequence[str]) -> str:
    """Those of ``names`` that are ranked, the best first; empty without any."""
    store, shown = _ranked(names)
    if not shown:
        return ""
    everyone = contenders()
    level = data.adamw_level(store)
    found = [(everyone[name].about.removesuffix(": no state"), data.seeds(store, name)) for name in shown]
    if best := data.adamw_at_all_rates(store):
        found.insert(0, ("AdamW at the best rates of all searches", best))
    rows = []
    for about, runs in found:
        rows.append(
            [
                about,
                f"{data.state_per_parameter(runs[0]):.2f}",
                data.with_spread(runs),
                f"{mean(map(data.perplexity, runs)) / level:.2f}",
            ]
        )
    return table(["optimizer", "state, bytes a parameter", "perplexity", "of the better AdamW's"], rows)


def rates() -> str:
    """Which rates to try, in docs/choose.md: the ranges of the search."""

    def span(role: str) -> str:
        low, high = RANGES[role]
        return f"{low:g} to {high:g}"

    assert RANGES["matrix"] == RANGES["lm_head"]
    return prose(
        f"Try {span('embedding')} for the embedding, and {span('matrix')} for matrices and head, each rate",
        "two or three times the one before. These are sizes of an update: the root mean square of what a",
        f"step adds to the weights. The search of {link('results.md')} takes the same ranges.",
    )
