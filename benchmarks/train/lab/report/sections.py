"""The parts of the report about the studies beside "main": a function a study, Markdown if it has results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from docs_markdown import prose, table

from lab import questions, studies
from lab.plan import SEEDS
from lab.questions import ALIAS_FORMS, BATCHED, ITERATED, ITERATIONS, SWEPT
from lab.report import budget, claims, data, rules, transfer
from lab.report.data import millions, number, with_spread
from lab.report.tables import AGAIN, again, grid_cells, starred
from lab.scales import Scale
from lab.store import Store

Section = Callable[[Store, Scale], str]


def iterations(store: Store, scale: Scale) -> str:
    def seeds(count: int) -> list[data.Result]:
        return data.select(store, "iterations", ITERATED, "seed", iterations=count, case="")

    rows = []
    for count in ITERATIONS:
        runs = seeds(count)
        difference, verdict = ("-", "-") if count == 5 else judged(runs, seeds(5), rules.matters)
        row = [str(count), _labelled(runs), difference if difference == "-" else f"{difference}: {verdict}"]
        for case in ("", "batch4", "large"):
            grid = data.select(store, "iterations", ITERATED, "search", iterations=count, case=case)
            factor, value = grid_cells(grid, len(questions.ITERATION_FACTORS))
            row.append(value if value == "-" else f"{value} (rate x {factor})")
        anything = data.select(store, "iterations", ITERATED, iterations=count)
        rows.append([*row, again(runs or anything)])
    columns = [
        "iterations",
        f"perplexity, {millions(scale.final_tokens)} tokens",
        "from five; does it matter?",
        f"{millions(scale.search_tokens)} tokens",
        "the same, 4 x batch",
        "the same, larger model",
        AGAIN,
    ]
    text = prose(
        f"`{ITERATED}` with SinkGD at so many iterations, each at the best of three rates for the",
        "matrices; three seeds for the first column, one run for each rate for the three others.",
    )
    return f"{text}\n\n{table(columns, rows, text_last=True)}"


def from_to(runs: Sequence[data.Result], others: Sequence[data.Result]) -> str:
    """How much worse in perplexity, and twice the standard error; a dash where seeds are missing."""
    if min(len(runs), len(others)) < len(SEEDS):
        return "-"
    return data.percent_and_error(data.estimate(runs) - data.estimate(others))


def judged(
    runs: Sequence[data.Result], others: Sequence[data.Result], rule: Callable[[data.Estimate], str]
) -> tuple[str, str]:
    """``from_to``, and what a rule of ``claims`` says of it; dashes where seeds are missing."""
    difference = from_to(runs, others)
    return difference, difference if difference == "-" else rule(data.estimate(runs) - data.estimate(others))


def _labelled(runs: Sequence[data.Result]) -> str:
    """A perplexity, and beside it how many seeds it is of where they are too few."""
    if not runs:
        return "-"
    return with_spread(runs) + (f" ({len(runs)} of {len(SEEDS)} seeds)" if len(runs) < len(SEEDS) else "")


def _at_best_factor(runs: Sequence[data.Result]) -> str:
    """The best perplexity of a grid of factors on all rates, and the factor."""
    factor, value = grid_cells(runs, len(questions.BATCH_FACTORS), questions.BATCH_FACTORS)
    return f"{value} (rates x {factor})" if runs else value


def batch(store: Store, scale: Scale) -> str:
    rows = []
    for name in BATCHED:
        cells, chosen = [], []
        for multiple in (1, *questions.BATCHES):
            runs = data.of_batch(store, name, multiple)
            if multiple == 1:
                cells.append(number(data.perplexity(runs[0])) if runs else "-")
                continue
            cells.append(_at_best_factor(runs))
            if best := data.best(runs):
                chosen.append(best)
        if chosen:
            rows.append([f"`{name}`", *cells, again(chosen)])
    shorter = data.select(store, "batch", "sage-hybrid", changed=questions.SHORTER)
    if best := data.best(shorter):
        others = ["-"] * len(questions.BATCHES)
        rows.append(["`sage-hybrid`, SAGE's beta2 0.9", *others, _at_best_factor(shorter), again([best])])
    columns = [
        "contender",
        "main's batch",
        *(f"{multiple} x the batch" for multiple in questions.BATCHES),
        AGAIN,
    ]
    text = prose(
        f"The same {millions(scale.final_tokens)} tokens in batches of",
        f"{scale.batch_size * scale.seq_len:,} tokens (study `main`) and multiples of that, there with all",
        f"rates times {', '.join(f'{factor:g}' for factor in sorted(questions.BATCH_FACTORS))}: the best of",
        "these. One seed.",
        *starred(rows),
        *([_why_shorter(scale)] if shorter else []),
    )
    return f"{text}\n\n{table(columns, rows, text_last=True)}"


def _why_shorter(scale: Scale) -> str:
    most = max(questions.BATCHES)
    steps = scale.final_tokens // (scale.batch_size * scale.seq_len * most)
    return (
        f"At {most} times the batch there are {steps} steps, and SAGE's momentum, a mean over some hundred "
        "with its usual beta2 of 0.99, goes over most of them: the last row has one of 0.9, over some ten."
    )


def sweep(store: Store, scale: Scale) -> str:
    rows = []
    for rate in sorted(questions.SWEEP_RATES):
        runs = [data.select(store, "sweep", name, rate=rate) for name in SWEPT]
        if any(runs):
            values = [number(data.perplexity(of[0])) if of else "-" for of in runs]
            rows.append([f"{rate:g}", *values, again([of[0] for of in runs if of])])
    spread = data.pooled_spread(store)
    highest = [
        f"`{name}` {claims.up_to(runs, spread)}"
        for name in SWEPT
        if len(runs := data.select(store, "sweep", name)) == len(questions.SWEEP_RATES)
    ]
    text = prose(
        "One rate for embedding and head, the matrices' as study `main` found it; one seed,",
        f"{millions(scale.search_tokens)} tokens.",
        *([f"Within {100 * rules.BEARS:.0f} % of its own best: {'; '.join(highest)}."] if highest else []),
    )
    return f"{text}\n\n{table(['rate', *(f'`{name}`' for name in SWEPT), AGAIN], rows, text_last=True)}"


def ablation(store: Store, scale: Scale) -> str:
    rows = []
    every = data.select(store, "ablation")
    for name, change in dict.fromkeys((run["contender"], run["variant"]["change"]) for run in every):
        changed, plain = data.select(store, "ablation", name, change=change), data.seeds(store, name)
        cells = [_labelled(plain), _labelled(changed), *judged(changed, plain, rules.matters)]
        rows.append([f"`{name}`", change, *cells, again(changed)])
    columns = ["contender", "change", "unchanged", "changed", "difference", "does it matter?", AGAIN]
    text = "At the rates of study `main`, which were found without the change; three seeds each."
    return f"{text}\n\n{table(columns, rows, left=2, text_last=True)}"


def alias(store: Store, scale: Scale) -> str:
    rows = []
    for name in ALIAS_FORMS:
        every = data.select(store, "alias", name)
        every.sort(key=lambda run: (run["variant"]["batch"], run["variant"].get("d0", 0.0)))
        longer = data.select(store, "main", name, "seed", seed=SEEDS[0])
        for run in (*every, *longer):
            d0, multiple = run["variant"].get("d0"), run["variant"].get("batch", 1)
            if run in longer:
                d0 = next((g["d0"] for g in run["config"]["groups"] if g.get("gap") == "descent"), None)
            rows.append(
                [
                    f"`{name}`",
                    f"{d0:g}" if d0 else "-",
                    f"{multiple} x",
                    millions(run["config"]["tokens"]),
                    number(data.perplexity(run)),
                    *_steps(run),
                    again([run]),
                ]
            )
    columns = ["form", "d0", "batch", "tokens", "perplexity", "largest step", "last step", AGAIN]
    text = prose(
        "Where ALIAS begins (d0, where it takes the gap by descent), how large its batches are and how",
        "long it runs: one seed; the longer runs are the first seeds of study `main`. Steps are means of a",
        "thirty-second part of a run; their cap is `max_step`,",
        f"{' or '.join(f'{cap:g}' for cap in _caps(store))}.",
        *_without_effect(store),
    )
    return f"{text}\n\n{table(columns, rows, left=2, text_last=True)}"


def _without_effect(store: Store) -> list[str]:
    """What to say where every d0 of a form has led to the same run, to the last digit that is kept."""
    found = []
    for name in ALIAS_FORMS:
        runs = [run for run in data.select(store, "alias", name, batch=1) if "d0" in run["variant"]]
        if len(runs) > 1 and len({(data.loss(run), str(run["curve"]["step_size"])) for run in runs}) == 1:
            found.append(f"`{name}`")
    if not found:
        return []
    return [
        f"Of {', '.join(found)} all d0 led to the same run: in the warm-up d grows past them, or the step is",
        "at its cap anyhow.",
    ]


def _steps(run: data.Result | None) -> list[str]:
    """The largest and the last step of a run."""
    sizes = [
        value
        for each in (run["curve"]["step_size"][:1] if run else [])
        for value in each
        if value is not None
    ]
    return [f"{max(sizes):.2g}", f"{sizes[-1]:.2g}"] if sizes else ["-", "-"]


def _caps(store: Store) -> list[float]:
    groups = [group for run in data.select(store, "alias") for group in run["config"]["groups"]]
    return sorted({group["max_step"] for group in groups if group.get("rule") == "alias"})


def sphere(store: Store, scale: Scale) -> str:
    rows = []
    for name, roles in questions.CONSTRAINED:
        grid = data.select(store, "sphere", name, "search")
        if not grid:
            continue
        seeds, plain = data.select(store, "sphere", name, "seed"), data.seeds(store, name)
        judgement = judged(seeds, plain, rules.better)
        factor, _ = grid_cells(grid, len(questions.SPHERE_FACTORS))
        cells = [" ".join(roles), factor, _labelled(plain), _labelled(seeds), *judgement]
        rows.append([f"`{name}`", *cells, again(seeds or grid)])
    columns = ["contender", "held", "rates x", "free", "on the sphere", "difference", "does it help?", AGAIN]
    text = prose(
        "After each step the part of the update along the matrix is taken out and the matrix scaled back to",
        "the Frobenius norm that it began with. Of the rates of study `main` those of the roles held are",
        f"multiplied by {', '.join(f'{factor:g}' for factor in sorted(questions.SPHERE_FACTORS))} at",
        f"{millions(scale.search_tokens)} tokens; three seeds at the best of these.",
    )
    return f"{text}\n\n{table(columns, rows, left=2, text_last=True)}"


def confirm(store: Store, scale: Scale) -> str:
    rows = []
    every = {name: data.select(store, "confirm", name, "seed") for name in studies.CONFIRMED}
    order = sorted(every, key=lambda name: min(map(data.loss, every[name]), default=math.inf))
    for name in order:
        grid = data.select(store, "confirm", name, "search")
        if grid:
            cells = grid_cells(grid, len(studies.CONFIRM_FACTORS))
            difference = "-" if name == "adamw" else from_to(every[name], every["adamw"])
            rows.append([f"`{name}`", _labelled(every[name]), difference, *cells, again(every[name] or grid)])
    columns = [
        "contender",
        f"perplexity, {millions(scale.final_tokens)} tokens",
        "from AdamW",
        "rates x",
        "in the search",
        AGAIN,
    ]
    text = prose(
        f"A larger model{_parameters(store, 'confirm')}, all rates of study `main` times",
        f"{', '.join(f'{factor:g}' for factor in studies.CONFIRM_FACTORS)} at",
        f"{millions(scale.search_tokens)} tokens, then three seeds at the best of these.",
    )
    return f"{text}\n\n{table(columns, rows, text_last=True)}"


def _parameters(store: Store, study: str) -> str:
    counts = {run["result"]["parameters"] for run in data.select(store, study)}
    return f" of {millions(min(counts))} parameters" if len(counts) == 1 else ""


def long(store: Store, scale: Scale) -> str:
    rows = [
        [f"`{name}`", *grid_cells(runs, 2), again([min(runs, key=data.loss)])]
        for name in studies.LONG
        if (runs := data.select(store, "long", name))
    ]
    columns = ["contender", "rates x", f"perplexity, {millions(scale.long_tokens)} tokens", AGAIN]
    text = (
        "Twice the budget, at the rates of study `main` and at half of them: the better of the two. One seed."
    )
    return f"{text}\n\n{table(columns, rows, text_last=True)}"


# Study -> heading, what makes its text, its pictures.
SECTIONS: dict[str, tuple[str, Section, tuple[str, ...]]] = {
    "alias": ("The steps that ALIAS finds", alias, ("alias-starts",)),
    "iterations": ("SinkGD's iterations", iterations, ("iterations",)),
    "widths": ("Does the best rate stay as the width grows?", transfer.widths, ("widths",)),
    "shapes": ("Does the best rate depend on a matrix's shape?", transfer.shapes, ()),
    "one-rate": ("One rate for all roles", transfer.one_rate, ("one-rate",)),
    "sphere": ("Matrices held on a sphere", sphere, ()),
    "batch": ("Batch size", batch, ("batch",)),
    "sweep": ("Does SAGE bear higher rates than Lion?", sweep, ("sweep",)),
    "ablation": ("Parts of the methods, taken out or changed", ablation, ()),
    "confirm": ("A larger model", confirm, ()),
    "long": ("A longer run", long, ()),
    "budget": ("A rule for each matrix, picked within a budget", budget.section, ()),
}
