"""The part of the report about study "main": who got how far, with what, and what the papers claim."""

from __future__ import annotations

import math
from statistics import mean

from docs_markdown import prose, table

from lab import search
from lab.contenders import PRESET, contenders
from lab.plan import SEEDS
from lab.report import claims, data, rules, tables
from lab.report.data import with_spread
from lab.report.tables import AGAIN, RUN, again
from lab.scales import Scale
from lab.store import BEFORE, Store

ANCHOR = "adamw"


STAR = "A star: the rate lies at an end of its range, and the best may be beyond it."


def rates(result: data.Result) -> str:
    """ "0.005 / 0.001 / 0.001", with the ``STAR`` at what lies at an end of its range."""
    values = result["config"].get("rates")
    if result["contender"].startswith(PRESET):
        return "the preset's"
    if not values:
        return "finds its own"
    edge = search.at_edge(values)
    return " / ".join(f"{value:g}" + tables.STAR * (role in edge) for role, value in values.items())


def _by_role(run: data.Result) -> str:
    """The rates of a run whose groups say them alone."""
    found = {role: group["lr"] for group in run["config"]["groups"] for role in group["roles"]}
    return " / ".join(f"{found[role]:g}" for role in search.RANGES)


def table_of_ranked(store: Store, scale: Scale) -> str:
    """Contenders with all seeds, the best first, AdamW as the anchor."""
    names = data.ranked(store)
    if not names:
        text = f"No contender has its {len(SEEDS)} seeds yet, so that nothing is ranked."
        return prose(text, "`python benchmarks/train/run.py --study main` runs them.")
    level = data.adamw_level(store)
    found = []  # rank, contender, the best of its search, rates, those that count
    if best := data.adamw_at_all_rates(store):
        found.append(("-", f"`{ANCHOR}` at the best rates of all searches", "-", _by_role(best[-1]), best))
    for rank, name in enumerate(names, 1):
        runs = data.seeds(store, name)
        label = f"**`{name}`**" if name == ANCHOR else f"`{name}`"
        found.append((str(rank), label, _searched(store, name), rates(runs[-1]), runs))
    rows = []
    for rank, label, searched, at, runs in found:
        last = runs[-1]
        ratio = mean(map(data.perplexity, runs)) / level
        rows.append(
            [
                rank,
                label,
                with_spread(runs),
                f"{ratio:.3f}" if math.isfinite(ratio) else "-",
                searched,
                at,
                f"{data.state_per_parameter(last):.2f}",
                _step(data.average(runs, "optimizer_ms")),
                f"{data.seconds(runs, scale):.0f}" + _otherwise(store, runs, scale),
                again(runs),
            ]
        )
    columns = [
        "rank",
        "contender",
        "perplexity",
        "of the better AdamW's",
        _search_at(scale),
        "rates: embedding / matrices / head",
        "state, bytes a parameter",
        "step, ms",
        "run, s",
        AGAIN,
    ]
    text = prose(
        f"Validation perplexity after {data.millions(scale.final_tokens)} tokens, mean and standard",
        f"deviation over seeds {', '.join(map(str, SEEDS))}, at the best rates of the search; lower is",
        f"better. The search's best is of its {search.RUNS} runs of one seed, which end at",
        f"{data.millions(scale.search_tokens)} tokens: it compares within its column, and with that of the",
        "table of what is not ranked, not with the perplexity beside it. Steps and runs are in",
        "processor time, so that what else the machine did counts little;"
        if scale.device == "cpu"
        else "seconds by the clock;",
        "a step is the optimizer's, the median of a run, mean over seeds. Runs called eager are from before",
        "the model was compiled, those called sdpa had torch's attention kernel, those called by a processor",
        "ran on that one: their times and others' do not compare.",
        STAR,
        "1-D parameters, where nothing else is said, have AdamW at one rate: those are the bytes where a",
        "contender says that it keeps nothing.",
        *(
            [
                "Presets run as they are, with no search of their own. Those of papers have their papers'",
                "rates. Those of `sinkgd-scale` and `stateless` are from the searches of other contenders",
                "and from study `iterations`, on this text and with these seeds: their rows had those runs",
                "before them, and are no proof for another text. So has AdamW in the row without a rank: at",
                "what any search has found for AdamW in a role, from study `budget`.",
            ]
            if any(name.startswith(PRESET) for name in names)
            else []
        ),
    )
    return f"{text}\n\n{table(columns, rows, left=2, text_last=True)}"


def _search_at(scale: Scale) -> str:
    return f"search's best, at {data.millions(scale.search_tokens)} tokens"


def _searched(store: Store, name: str) -> str:
    """The best perplexity of a contender's search, and how far that has come if it is not whole."""
    runs = data.select(store, "main", name, "search")
    if not runs:
        return "-"
    note = f" ({len(runs)} of {search.RUNS} runs)" if len(runs) < search.RUNS else ""
    return data.number(min(map(data.perplexity, runs))) + note


def _otherwise(store: Store, runs: list[data.Result], scale: Scale) -> str:
    """What must be said of a run's time where others compute the same in another way."""
    kinds = {
        "eager" if not run["config"]["compile"] else run["config"]["attention"]
        for run in runs
        if any(run["config"][key] != getattr(scale, key) for key in BEFORE)
    }
    kinds |= data.other_processors(store, runs)
    return f" ({', '.join(sorted(kinds))})" if kinds else ""


def _step(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def table_of_others(store: Store, scale: Scale) -> str | None:
    """Contenders that have begun and rank nothing: their state."""
    ranked = set(data.ranked(store))
    rows, waiting = [], []
    for name, contender in contenders().items():
        if name in ranked:
            continue
        runs, found = data.seeds(store, name), data.select(store, "main", name, "search")
        if not runs and not found:
            waiting.append(f"`{name}`")
            continue
        lead = data.best(found)
        rows.append(
            [
                f"`{name}`",
                f"{len(found)} of {search.RUNS}" if contender.searched else "none needed",
                data.number(data.perplexity(lead)) if lead else "",
                rates(lead or runs[-1]),
                f"{len(runs)} of {len(SEEDS)}",
                with_spread(runs),
                f"{data.state_per_parameter((runs or [lead])[-1]):.2f}",
                again(runs or [lead]),
            ]
        )
    parts = []
    if rows:
        columns = [
            "contender",
            "search",
            _search_at(scale),
            "its rates: embedding / matrices / head",
            "seeds",
            "perplexity of those",
            "state, bytes a parameter",
            AGAIN,
        ]
        text = prose(
            f"**Not ranked**: fewer than {len(SEEDS)} seeds. The search's best compares with the others',",
            "above.",
            *([STAR] if any(tables.STAR in row[3] for row in rows) else []),
        )
        parts.append(f"{text}\n\n{table(columns, rows, text_last=True)}")
    if waiting:
        parts.append(prose(f"Not begun: {', '.join(waiting)}."))
    return "\n\n".join(parts) or None


def table_of_claims(store: Store) -> str:
    rows = []
    for claim in claims.CLAIMS:
        verdict = claim.judge(store)
        commands = [f"`{part.removeprefix(RUN).strip()}`" for part in verdict.command.split(" && ")]
        what = " and ".join(commands)
        rows.append([claim.whose, claim.text, f"**{verdict.word}**", verdict.numbers, what])
    text = prose(
        "As far as these runs can say, at this size. A verdict is worked out from the losses over seeds",
        "(`lab/report/claims.py` and `rules.py`), not written by hand; what has fewer than three seeds on",
        "either side has none. The last column is what runs both sides, with",
        f"`{RUN} --study STUDY --only NAMES`.",
    )
    columns = ["whose", "claim", "verdict", "measured", "`run.py`"]
    return f"{text}\n\n{table(columns, rows, left=5)}\n\n{_rules()}"


def _rules() -> str:
    kinds = {
        "helps, beats, brings nearer": rules.better,
        "near, little": rules.near,
        "fails": rules.fails,
        "matters": rules.matters,
    }
    lines = [f"- **{words}**: yes if {rules.MEANINGS[rule]}." for words, rule in kinds.items()]
    pairs = ", ".join(f"of `{name}` it is `{tuned}`" for name, tuned in claims.TUNED.items())
    lines += [
        f"- **bears a higher rate**: yes if the highest rate within {100 * rules.BEARS:g} % of one's own "
        "best perplexity is higher; no: lower. One seed, so each distance from the best may be off by twice "
        "the standard error that the [spread](#spread) gives: what this would change is not shown.",
        "- **a larger batch**: the distance from AdamW at 16 times the batch less that at 1. One seed; its "
        "spread is taken from the same contender's seeds above.",
        "- **no yes against what did badly**: what finds its own rate and is itself more than "
        f"{100 * rules.FAR:g} % behind its tuned form, by more than twice the standard error, is easily "
        f"beaten or come near to: that is not shown then. The tuned form has the same update at rates of "
        f"the search: {pairs}.",
    ]
    note = prose(
        "What follows ± in a difference is twice its standard error, in points of the same percentage;",
        "verdicts are by the logarithms of the perplexities. With three seeds a side, two means that are",
        "truly equal come out further apart than that about one time in nine: of so many rows some are",
        "chance.",
    )
    return "\n".join(lines) + f"\n\n{note}"
