"""The parts of the report on whether a rate serves elsewhere (``lab/transfer.py``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import mean

from docs_markdown import prose, table

from lab import transfer
from lab.contenders import PRESET, preset_row
from lab.report import data
from lab.report.data import millions, number
from lab.report.tables import AGAIN, again, grid_cells, star_at_an_end, starred
from lab.scales import Scale
from lab.store import Store


def _factors(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))


def widths(store: Store, scale: Scale) -> str:
    rows = []
    for name in transfer.WIDENED:
        for model in scale.widths:
            runs = data.select(store, "widths", name, width=model.hidden)
            if not runs:
                continue
            chosen = min(runs, key=data.loss)
            factor, value = grid_cells(runs, len(transfer.WIDTH_FACTORS), transfer.WIDTH_FACTORS)
            rate = f"{chosen['config']['rates']['matrix']:g}"
            rows.append([f"`{name}`", str(model.hidden), factor, value, rate, again([chosen])])
    columns = ["contender", "width", "best factor", "perplexity there", "rate of the matrices there", AGAIN]
    text = prose(
        "The matrices' rate that study `main` found at width",
        f"{scale.model.hidden}, times {_factors(transfer.WIDTH_FACTORS)}, on other widths; one seed,",
        f"{millions(scale.search_tokens)} tokens. All rates are the update's root mean square. If the best",
        "factor stays, one rate serves all widths; if it goes as 1 / sqrt(width), SinkGD's unit form or a",
        "constant spectral norm would; if as 1 / width, a rate over fan-in.",
        *starred(rows),
    )
    parts = [text, table(columns, rows, text_last=True), _laws(store, scale), _preset_by_width(store, scale)]
    return "\n\n".join(filter(None, parts))


LAWS = {0.0: "the same everywhere", 0.5: "over the root of the width", 1.0: "over the width"}


def _laws(store: Store, scale: Scale) -> str:
    """How much worse than its grid's best each width were if its rate followed a law; "": not whole."""
    rows = []
    for name in transfer.WIDENED:
        grids = [
            (model.hidden / scale.model.hidden, data.select(store, "widths", name, width=model.hidden))
            for model in scale.widths
        ]
        if any(len(runs) < len(transfer.WIDTH_FACTORS) for _, runs in grids):
            continue
        lines = [
            (ratio, sorted((math.log2(run["variant"]["factor"]), data.loss(run)) for run in runs))
            for ratio, runs in grids
        ]
        for power, law in LAWS.items():
            found = best_constant(lines, power)
            if found is not None:
                factor, excess = found
                cells = [data.percent(nats) for nats in (*excess, mean(excess))]
                rows.append([f"`{name}`", law, f"{factor:.2g}", *cells])
    if not rows:
        return ""
    text = prose(
        "How much worse than its own best each width would be, had the matrices' rate followed a law, with",
        f"the factor at width {scale.model.hidden} that suits all of them most. Between the rates that ran,",
        "the loss is interpolated.",
    )
    widths_of = [f"width {model.hidden}" for model in scale.widths]
    columns = ["contender", "rate", f"factor at {scale.model.hidden}", *widths_of, "mean"]
    return f"{text}\n\n{table(columns, rows)}"


def best_constant(
    lines: Sequence[tuple[float, Sequence[tuple[float, float]]]], power: float
) -> tuple[float, list[float]] | None:
    """The factor ``c`` at width ratio 1 for which rates ``c / ratio**power`` lose least, and what each line
    loses then, in nats over its smallest loss.

    Args:
        lines: of each width, its ratio and its points (log2 of the factor, loss), sorted.
        power: 0 for the same rate everywhere, 1 for a rate over the width.

    Returns None where no factor keeps every line within its points.
    """
    low = max(points[0][0] + power * math.log2(ratio) for ratio, points in lines)
    high = min(points[-1][0] + power * math.log2(ratio) for ratio, points in lines)
    tried = []
    for step in range(math.ceil(low * 100), math.floor(high * 100) + 1):
        excess = [
            _interpolated(points, step / 100 - power * math.log2(ratio)) - min(y for _, y in points)
            for ratio, points in lines
        ]
        tried.append((mean(excess), 2 ** (step / 100), excess))
    if not tried:
        return None
    _, factor, excess = min(tried)
    return factor, excess


def _interpolated(points: Sequence[tuple[float, float]], x: float) -> float:
    for (left, below), (right, above) in pairwise(points):
        if x <= right:
            share = max(x - left, 0.0) / (right - left)
            # Of a run that diverged: no share of it is a number.
            return below if share == 0.0 else above if share == 1.0 else below + share * (above - below)
    return points[-1][1]


def _preset_by_width(store: Store, scale: Scale) -> str:
    name = transfer.WIDENED_PRESET
    rows = []
    for model in scale.widths:
        by = [
            data.select(store, "widths", name, width=model.hidden, rule=rule)
            for rule in transfer.PRESET_RULES
        ]
        if any(by):
            grid = data.select(store, "widths", transfer.WIDENED[0], width=model.hidden)
            best = data.best(grid)
            cells = [number(data.perplexity(runs[0])) if runs else "-" for runs in by]
            known = number(data.perplexity(best)) if best else "-"
            rows.append([str(model.hidden), *cells, known, again(by[-1] or by[0])])
    if not rows:
        return ""
    preset, found_at = name.removeprefix(PRESET), preset_row(name).width
    text = prose(
        f"The preset `{preset}`, whose rates are from width {found_at}: with the matrices'",
        f"rate of there, and with that times {found_at} / width, which is the preset as it is",
        "beyond that width. Beside it the best of the grid above.",
    )
    columns = ["width", "the same rate", "over the width", f"best of `{transfer.WIDENED[0]}`", AGAIN]
    return f"{text}\n\n{table(columns, rows, text_last=True)}"


def shapes(store: Store, scale: Scale) -> str:
    rows = []
    for rule in transfer.SHAPE_RULES:
        runs = data.select(store, "shapes", transfer.SHAPED, rule=rule)
        if runs:
            cells = [
                number(data.perplexity(of[0]))
                if (of := [r for r in runs if r["variant"]["factor"] == factor])
                else "-"
                for factor in sorted(transfer.SHAPE_FACTORS)
            ]
            rows.append([f"`{rule}`", *cells, again([min(runs, key=data.loss)])])
    columns = ["rule", *(f"rate x {factor:g}" for factor in sorted(transfer.SHAPE_FACTORS)), AGAIN]
    text = prose(
        f"`{transfer.SHAPED}`, SinkGD's rate for each matrix by its shape: `rms` the same for all (the sqrt",
        "form), `unit` over sqrt(rows) (the unit form), `fan-in` over columns, `spectral` so that the",
        "largest singular value goes as sqrt(rows / columns). All agree on square matrices of the",
        "model's width, so the feed-forward matrices are what differs. One seed,",
        f"{millions(scale.search_tokens)} tokens.",
    )
    return f"{text}\n\n{table(columns, rows, text_last=True)}"


def one_rate(store: Store, scale: Scale) -> str:
    rows = []
    for name in transfer.SHARED:
        cells, best = [], []
        for ratio, rates in transfer.SHARED_RATES.items():
            runs = data.select(store, "one-rate", name, ratio=ratio)
            if not runs:
                cells += ["-", "-"]
                continue
            chosen = min(runs, key=data.loss)
            note = f" ({len(runs)} of {len(rates)})" if len(runs) < len(rates) else ""
            star = star_at_an_end(chosen["variant"]["rate"], rates)
            cells += [f"{chosen['variant']['rate']:g}{star}{note}", number(data.perplexity(chosen))]
            best.append(chosen)
        if best:
            found = data.found(store, name)
            rows.append(
                [f"`{name}`", *cells, number(data.perplexity(found)) if found else "-", again(best[-1:])]
            )
    columns = ["contender"]
    for ratio in transfer.SHARED_RATES:
        columns += ["one rate for all" if ratio == 1 else f"embedding's {ratio} times that", "perplexity"]
    columns += ["three rates (the search)", AGAIN]
    text = prose(
        "Every role at the same rate; then the embedding's ten times that of all others: together as many",
        "runs as the search for three rates, whose best is beside them. One seed, the same for all,",
        f"{millions(scale.search_tokens)} tokens.",
        *starred(rows),
    )
    return f"{text}\n\n{table(columns, rows, text_last=True)}"
