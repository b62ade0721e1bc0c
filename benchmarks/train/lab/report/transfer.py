"""The parts of the report on whether a rate serves elsewhere (``lab/transfer.py``)."""

from __future__ import annotations

from docs_markdown import prose, table

from lab import transfer
from lab.report import data
from lab.report.data import millions, number
from lab.report.tables import AGAIN, again, grid_cells
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
            row = [f"`{name}`", str(model.hidden), *grid_cells(runs, len(transfer.WIDTH_FACTORS))]
            rows.append([*row, f"{chosen['config']['rates']['matrix']:g}", again([chosen])])
    columns = ["contender", "width", "best factor", "perplexity there", "rate of the matrices there", AGAIN]
    text = prose(
        "The matrices' rate that study `main` found at width",
        f"{scale.model.hidden}, times {_factors(transfer.WIDTH_FACTORS)}, on other widths; one seed,",
        f"{millions(scale.search_tokens)} tokens. All rates are the update's root mean square. If the best",
        "factor stays, one rate serves all widths; if it goes as 1 / sqrt(width), SinkGD's unit form or a",
        "constant spectral norm would; if as 1 / width, a rate over fan-in.",
    )
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
            star = "\\*" if chosen["variant"]["rate"] in (min(rates), max(rates)) else ""
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
        *(
            ["A star: the rate lies at an end of those tried."]
            if any("\\*" in cell for row in rows for cell in row)
            else []
        ),
    )
    return f"{text}\n\n{table(columns, rows, text_last=True)}"
