"""The pictures: what each draws, as plain data made from the results, and which files are out of date.

A file says the digest of its data, so that a picture that is not what the results give is noticed without
drawing it, and one that is stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lab import questions, search
from lab.contenders import contenders
from lab.plan import SEEDS
from lab.questions import ALIAS_FORMS, BATCHED, ITERATED, ITERATIONS, SWEPT
from lab.report import data
from lab.report.style import CONTENDERS
from lab.scales import Scale
from lab.store import Store
from lab.transfer import SHARED, SHARED_RATES, WIDENED

Data = dict[str, Any]
MANY = 8  # curves in one picture at most: one of each colour


@dataclass(frozen=True)
class Picture:
    name: str
    alt: str
    data: Callable[[Store, Scale], Data | None]
    """None: there is nothing to draw yet."""

    def digest(self, store: Store, scale: Scale) -> str | None:
        found = self.data(store, scale)
        if found is None:
            return None
        return hashlib.sha256(json.dumps([self.name, found], sort_keys=True).encode()).hexdigest()


def short(value: float) -> float | None:
    """As it is kept and compared; None for what diverged, which JSON has no number for."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def representatives(names: list[str]) -> list[str]:
    """The best of each colour of a list that begins with the best; AdamW is among them if it is there."""
    chosen: dict[str, str] = {}
    for name in (*[name for name in names if name == "adamw"], *names):
        chosen.setdefault(CONTENDERS[name].color, name)
    return [name for name in names if name in chosen.values()][:MANY]


# ------------------------------------------------------------------------------------------ study "main"


def tokens(store: Store, scale: Scale) -> Data | None:
    curves = []
    for name in representatives(data.ranked(store)):
        runs = data.seeds(store, name)
        points = [run["curve"]["validation"] for run in runs if data.loss(run) < math.inf]
        if not points:
            continue
        columns = [
            (column[0]["tokens"] / 1e6, [math.exp(point["loss"]) for point in column])
            for column in zip(*points, strict=True)
        ]
        training = [run["curve"]["train_loss"] for run in runs if data.loss(run) < math.inf]
        curves.append(
            {
                "name": name,
                "x": [short(x) for x, _ in columns],
                "y": [short(mean(values)) for _, values in columns],
                "low": [short(min(values)) for _, values in columns],
                "high": [short(max(values)) for _, values in columns],
                "training": [short(math.exp(mean(each))) for each in zip(*training, strict=True)],
            }
        )
    return {"curves": curves} if curves else None


def _points(store: Store, x: Callable[[list[data.Result]], float]) -> list[Data]:
    points = []
    for name in data.ranked(store):
        values = [data.perplexity(run) for run in data.seeds(store, name)]
        if all(map(math.isfinite, values)):
            at = x(data.seeds(store, name))
            points.append(
                {"name": name, "x": short(at), "y": short(mean(values)), "sd": short(stdev(values))}
            )
    return points


FAR = 1.3  # times the best perplexity: what is worse has a panel of its own


def _beyond(points: list[Data]) -> float | None:
    """From where on points are in the upper panel: a short number, or None if all are near enough."""
    limit = FAR * min(point["y"] for point in points)
    last = max(point["y"] for point in points if point["y"] <= limit)
    unit = 10.0 ** (math.floor(math.log10(last)) - 1)
    beyond = float(f"{math.ceil(last / unit) * unit:.6g}")
    return beyond if any(point["y"] > beyond for point in points) else None


def front(store: Store, scale: Scale) -> Data | None:
    points = _points(store, lambda runs: data.state_per_parameter(runs[-1]))
    return {"points": points, "beyond": _beyond(points)} if points else None


def seconds(store: Store, scale: Scale) -> Data | None:
    """Against the optimizer's own time: a run's would say whether its model was compiled.

    Without those that another processor timed.
    """

    def time(runs: list[data.Result]) -> float:
        return math.nan if data.other_processors(store, runs) else data.average(runs, "optimizer_ms")

    points = [point for point in _points(store, time) if point["x"] is not None]
    what = f"{data.usual_processor(store)}: processor time" if scale.device == "cpu" else "time"
    return {"points": points, "beyond": _beyond(points), "what": what} if points else None


def rates(store: Store, scale: Scale) -> Data | None:
    """The points of the search, of one contender a colour, by rank, else by the search's best."""
    searched = [name for name in contenders() if data.found(store, name)]
    order = {name: i for i, name in enumerate(data.ranked(store))}
    searched.sort(key=lambda name: (order.get(name, len(order)), data.loss(data.found(store, name))))
    shown = []
    for name in representatives(searched):
        runs = data.select(store, "main", name, "search")
        points = [[*(run["config"]["rates"][role] for role in search.RANGES)] for run in runs]
        shown.append(
            {"name": name, "rates": points, "y": [short(data.perplexity(run)) for run in runs]},
        )
    return (
        {"roles": list(search.RANGES), "ranges": list(search.RANGES.values()), "of": shown} if shown else None
    )


def alias_steps(store: Store, scale: Scale) -> Data | None:
    """The step sizes over a run, mean over seeds, of what finds its own."""
    curves = []
    for name in (*ALIAS_FORMS, "prodigy", "dadapt-adam"):
        runs = data.seeds(store, name)
        sizes = [run["curve"]["step_size"][0] for run in runs if run["curve"]["step_size"]]
        if sizes:
            points = [[value for value in each if value is not None] for each in zip(*sizes, strict=False)]
            curves.append({"name": name, "y": [short(mean(each)) if each else None for each in points]})
    return {"curves": curves} if curves else None


# ----------------------------------------------------------------------------------------- other studies


def alias_starts(store: Store, scale: Scale) -> Data | None:
    """Study "alias": a panel a form; a line a start and a batch."""
    panels = []
    for name in ALIAS_FORMS:
        lines = []
        for run in data.select(store, "alias", name):
            sizes = run["curve"]["step_size"]
            if sizes:
                about = {"d0": run["variant"].get("d0"), "batch": run["variant"]["batch"]}
                lines.append({**about, "y": [value and short(value) for value in sizes[0]]})
        if lines:
            lines.sort(key=lambda line: (line["batch"], line["d0"] or 0))
            panels.append({"name": name, "lines": lines})
    return {"panels": panels} if panels else None


def iterations(store: Store, scale: Scale) -> Data | None:
    panels = []
    for case, title in (
        ("seeds", "at the full budget"),
        ("", "in the search"),
        ("batch4", "4 times the batch"),
        ("large", "larger model"),
    ):
        points = []
        for count in ITERATIONS:
            chosen = iteration_seeds(store, count) if case == "seeds" else iteration_best(store, count, case)
            values = [data.perplexity(run) for run in chosen]
            if values and all(map(math.isfinite, values)):
                spread = short(stdev(values)) if len(values) > 1 else None
                points.append([count, short(mean(values)), spread])
        if points:
            panels.append({"title": title, "name": ITERATED, "points": points})
    return {"panels": panels} if panels else None


def iteration_seeds(store: Store, count: int) -> list[data.Result]:
    """The seeds, if all of them are there."""
    seeds = data.select(store, "iterations", ITERATED, "seed", iterations=count, case="")
    return seeds if len(seeds) == len(SEEDS) else []


def iteration_best(store: Store, count: int, case: str) -> list[data.Result]:
    """The best of a case's grid, if that is whole."""
    grid = data.select(store, "iterations", ITERATED, "search", iterations=count, case=case)
    return [min(grid, key=data.loss)] if len(grid) == len(questions.ITERATION_FACTORS) else []


def widths(store: Store, scale: Scale) -> Data | None:
    panels = []
    for name in WIDENED:
        lines = []
        for model in scale.widths:
            runs = data.select(store, "widths", name, width=model.hidden)
            points = sorted([run["config"]["rates"]["matrix"], short(data.perplexity(run))] for run in runs)
            if points:
                lines.append({"width": model.hidden, "points": points})
        if lines:
            panels.append({"name": name, "lines": lines})
    return {"panels": panels} if panels else None


def one_rate(store: Store, scale: Scale) -> Data | None:
    """Perplexity against the one rate, a line for each factor on the embedding's; and the search's best."""
    panels = []
    for name in SHARED:
        lines = []
        for ratio in SHARED_RATES:
            runs = data.select(store, "one-rate", name, ratio=ratio)
            points = sorted([run["variant"]["rate"], short(data.perplexity(run))] for run in runs)
            if points:
                lines.append({"ratio": ratio, "points": points})
        if lines:
            found = data.found(store, name)
            panels.append({"name": name, "lines": lines, "search": found and short(data.perplexity(found))})
    return {"panels": panels} if panels else None


def batch(store: Store, scale: Scale) -> Data | None:
    if not data.select(store, "batch"):
        return None
    lines = []
    for name in BATCHED:
        points = []
        for multiple in (1, *questions.BATCHES):
            run = data.best(data.of_batch(store, name, multiple))
            if run and data.loss(run) < math.inf:
                points.append(
                    [run["config"]["batch_size"] * run["config"]["seq_len"], short(data.perplexity(run))]
                )
        if points:
            lines.append({"name": name, "points": points})
    return {"lines": lines} if lines else None


def sweep(store: Store, scale: Scale) -> Data | None:
    lines = []
    for name in SWEPT:
        runs = data.select(store, "sweep", name)
        points = sorted((run["variant"]["rate"], short(data.perplexity(run))) for run in runs)
        if points:
            lines.append({"name": name, "points": [list(point) for point in points]})
    return {"lines": lines} if lines else None


PICTURES = {
    picture.name: picture
    for picture in (
        Picture(
            "tokens",
            "Validation perplexity against training tokens, a line for the best of each colour",
            tokens,
        ),
        Picture("front", "Perplexity against bytes of optimizer state a parameter", front),
        Picture(
            "seconds",
            "Perplexity against the time of an optimizer's step, of what one processor has timed",
            seconds,
        ),
        Picture(
            "rates",
            "Perplexity of the search's runs against each role's rate, of the best of each colour",
            rates,
        ),
        Picture("alias-steps", "Step sizes over a run, of optimizers that find their own", alias_steps),
        Picture("alias-starts", "ALIAS's step sizes over a run, by start and batch", alias_starts),
        Picture("iterations", "Perplexity against SinkGD's number of iterations", iterations),
        Picture("widths", "Perplexity against the matrices' rate, a line a width", widths),
        Picture("one-rate", "Perplexity against one rate for all roles, a panel an optimizer", one_rate),
        Picture("batch", "Perplexity against tokens a step, a line an optimizer", batch),
        Picture("sweep", "Perplexity against the rate of embedding and head, SAGE and Lion", sweep),
    )
}

_DIGEST = re.compile(r"data ([0-9a-f]{64})")


def digest_in(path: Path) -> str | None:
    """The digest that a file says; None: there is no such file, or it says none."""
    found = _DIGEST.search(path.read_text()) if path.is_file() else None
    return found.group(1) if found else None


def stale(store: Store, scale: Scale, folder: Path) -> list[str]:
    """The pictures whose files are not what the results give: missing, of other data, or one too many."""
    return [
        picture.name
        for picture in PICTURES.values()
        if digest_in(folder / f"{picture.name}.svg") != picture.digest(store, scale)
    ]


def write(store: Store, scale: Scale, folder: Path, *, redraw: bool = False) -> list[Path]:
    """Draws what is stale (``redraw``: all) into ``folder`` and takes away what has no data. Returns what is
    new."""
    from lab.report import drawing

    written = []
    for name in PICTURES if redraw else stale(store, scale, folder):
        path = folder / f"{name}.svg"
        found = PICTURES[name].data(store, scale)
        if found is None:
            path.unlink(missing_ok=True)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        drawing.save(name, found, path, f"data {PICTURES[name].digest(store, scale)}")
        written.append(path)
    return written
