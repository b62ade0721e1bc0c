"""The page of the training runs, docs/results.md, and what other pages say of it.

benchmarks/train/lab/report makes its parts.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from types import MappingProxyType

import docs_tables
from docs_markdown import prose, table

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))

from lab import search, transfer
from lab.contenders import PRESET, contenders
from lab.plan import SEEDS
from lab.report import data, page, standings, tables
from lab.scales import SCALES
from lab.search import RANGES
from lab.store import Store


def trained() -> Store:
    """The runs of benchmarks/train."""
    return _read((docs_tables.RESULTS / "train").resolve())


# Once: many parts of pages are made of them.
_read = functools.cache(Store)


def report() -> str:
    return page.text(trained(), SCALES["cpu"])


def link(target: str) -> str:
    """A link to the page, and that it has no answer as long as nothing is ranked there."""
    begun = "" if data.ranked(trained()) else " (begun; nothing is ranked yet)"
    return f"[results]({target}){begun}"


ANCHOR = "adamw"
# The presets, and what else docs/choose.md leads to.
PRESETS = [f"{PRESET}{name}" for name in ("sinkgd-scale", "sage", "scale", "stateless", "sinkgd", "lion")]
IN_SHORT = (ANCHOR, *PRESETS, "lion", "alias-head-adamw")
TO_CHOOSE = (*IN_SHORT, "alias-adam")
# No preset as it is: how it differs.
CALLED = {
    "alias-head-adamw": '`FusedHybrid(model, "alias")` with a warm-up, and betas of 0.9 and 0.95 on the head'
}


def in_short() -> str:
    """The README's paragraph on training."""
    return "\n\n".join(
        filter(
            None,
            [
                prose(f"**How much quality for how much memory.** {setting(IN_SHORT)}"),
                standing(IN_SHORT, CALLED),
                prose(
                    "Not shown: larger models, longer runs, other text, any GPU.",
                    f"All contenders, rates, and what the papers claim: {link('docs/results.md')}.",
                    "`make demo` is far shorter and ranks nobody: [training](docs/training.md).",
                ),
            ],
        )
    )


def to_choose() -> str:
    """How what docs/choose.md leads to did."""
    return "\n\n".join(filter(None, [prose(setting(TO_CHOOSE)), standing(TO_CHOOSE, CALLED)]))


def of_method(names: Sequence[str]) -> str:
    """What a page of a method says of training: how these contenders did."""
    return "\n\n".join(
        filter(None, [prose(setting(names)), standing(names), prose(f"All of it: {link('../results.md')}.")])
    )


def _ranked(names: Sequence[str]) -> tuple[Store, list[str]]:
    store = trained()
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
    if any(map(_star, (data.seeds(store, name) for name in shown))):
        own += "; a star: a rate lies at an end of its range, and the best may be beyond it"
    return (
        f"Validation perplexity of a Llama with {data.millions(run['result']['parameters'])} parameters "
        f"after {data.millions(run['config']['tokens'])} tokens of real text, mean and standard deviation "
        f"of {len(SEEDS)} seeds. {search.RUNS} shorter runs have found a rate each for embedding, matrices "
        f"and head, AdamW's too{own}."
    )


def _star(runs: Sequence[data.Result]) -> str:
    """A star where a rate that the search found lies at an end of its range."""
    return tables.STAR if tables.STAR in standings.rates(runs[-1]) else ""


def standing(names: Sequence[str], called: Mapping[str, str] = MappingProxyType({})) -> str:
    """Those of ``names`` that are ranked, the best first; empty without any. ``called``: in other words."""
    store, shown = _ranked(names)
    if not shown:
        return ""
    everyone = contenders()
    level = data.adamw_level(store)
    found = [
        (called.get(name, everyone[name].about.removesuffix(": no state")), data.seeds(store, name))
        for name in shown
    ]
    if best := data.adamw_at_all_rates(store):
        found.insert(0, ("AdamW at the best rates of all searches", best))
    rows = []
    for about, runs in found:
        rows.append(
            [
                about,
                f"{data.state_per_parameter(runs[0]):.2f}",
                data.with_spread(runs) + _star(runs),
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


EMBEDDING_TIMES = 10


def one_rate() -> str:
    """What one rate, with ten times that for the embedding, comes to, in docs/choose.md."""
    store = trained()
    behind = {}
    for name in transfer.SHARED:
        lead = data.best(data.select(store, "one-rate", name, ratio=EMBEDDING_TIMES))
        found = data.found(store, name)
        if lead and found:
            behind[name] = data.loss(lead) - data.loss(found)
    told = [f"`{name}` {data.percent(behind[name])}" for name in sorted(behind, key=behind.__getitem__)]
    measured = [
        f"The best of {len(transfer.SHARED_RATES[EMBEDDING_TIMES])} such runs against the best of a search",
        f"for three rates, {search.RUNS} runs, in perplexity: {', '.join(told)}. That is one seed at",
        f"{data.millions(SCALES['cpu'].search_tokens)} tokens:",
        "[one rate](results.md#one-rate-for-all-roles).",
    ]
    return prose(
        "If one rate is all that you can tune, take it for all, and ten times it for the embedding.",
        *(measured if told else []),
    )
