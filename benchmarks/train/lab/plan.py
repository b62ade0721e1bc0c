"""What a plan is: a fixed list of runs, of which each knows what it waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lab import contenders, search
from lab.contenders import Contender, Group
from lab.scales import Scale
from lab.store import Store

Rates = dict[str, float]
Change = Callable[[list[Group]], object]
"""Of a configuration's parameter groups, in place."""
SEEDS = (1, 2, 3)  # of the runs that count; a search has seed 0


@dataclass(frozen=True)
class Run:
    """A run of a plan. ``configure`` is asked when all of ``needs`` have results."""

    id: str
    study: str
    contender: str
    stage: str
    """"search", "seed", or what a study calls its parts."""
    variant: dict[str, Any]
    """What distinguishes it from other runs of its contender and stage, for tables."""
    needs: tuple[str, ...]
    tokens: int
    rates: Callable[[Store], Rates]
    configure: Callable[[Rates], dict[str, Any]]

    def config(self, store: Store) -> dict[str, Any]:
        """The configuration, with ``rates`` in it where there are any."""
        values = self.rates(store)
        return {**self.configure(values), **({"rates": values} if values else {})}

    def is_ready(self, store: Store) -> bool:
        return all(run in store for run in self.needs)


def run_id(study: str, contender: str, *parts: object) -> str:
    return ".".join(map(str, (study, contender, *parts)))


def configured(
    scale: Scale,
    contender: Contender,
    change: Change | None = None,
    **given: Any,
) -> Callable[[Rates], dict[str, Any]]:
    """rates -> configuration. ``change`` alters the groups in place; ``given`` goes to ``Scale.config``."""

    def make(rates: Rates) -> dict[str, Any]:
        config = scale.config(**given)
        steps = config["tokens"] // (config["batch_size"] * config["seq_len"])
        groups = contender.make(rates, steps)
        contenders.widen(contender, groups, config["model"]["hidden"])
        if change:
            change(groups)
        return {**config, "schedule": contender.schedule, "groups": groups}

    return make


def search_ids(contender: Contender, study: str = "main") -> tuple[str, ...]:
    """The runs that look for the rates of a contender: none where it finds its own."""
    if not contender.searched:
        return ()
    return tuple(run_id(study, contender.name, f"search{k}") for k in range(search.RUNS))


def best_rates(store: Store, ids: Sequence[str]) -> Rates:
    """The rates of the best of these runs (the first of equals); none for no runs."""
    if not ids:
        return {}
    best = min(ids, key=store.loss)
    return store[best]["config"]["rates"]


def scaled(rates: Rates, factors: dict[str, float]) -> Rates:
    """Rates times factors, rounded as the search rounds."""
    return {role: float(f"{rate * factors.get(role, 1.0):.{search.DIGITS}g}") for role, rate in rates.items()}


def search_run(scale: Scale, contender: Contender, k: int, study: str = "main", **given: Any) -> Run:
    """The ``k``-th run of a contender's search: needs those before it."""
    ids = search_ids(contender, study)

    def rates(store: Store) -> Rates:
        return search.propose([(store[run]["config"]["rates"], store.loss(run)) for run in ids[:k]])

    given = {"tokens": scale.search_tokens, "seed": 0, **given}
    return Run(
        id=ids[k],
        study=study,
        contender=contender.name,
        stage="search",
        variant={"k": k},
        needs=ids[:k],
        tokens=given["tokens"],
        rates=rates,
        configure=configured(scale, contender, **given),
    )


def run_at_best(
    scale: Scale,
    contender: Contender,
    study: str,
    stage: str,
    *parts: object,
    variant: dict[str, Any] | None = None,
    factors: dict[str, float] | None = None,
    change: Change | None = None,
    **given: Any,
) -> Run:
    """A run at the best rates of study "main", times ``factors``."""
    ids = search_ids(contender)

    def rates(store: Store) -> Rates:
        return scaled(best_rates(store, ids), factors or {})

    return Run(
        id=run_id(study, contender.name, stage, *parts),
        study=study,
        contender=contender.name,
        stage=stage,
        variant={**(variant or {}), "seed": given["seed"]},
        needs=ids,
        tokens=given["tokens"],
        rates=rates,
        configure=configured(scale, contender, change, **given),
    )


def run_at_rates(
    scale: Scale,
    contender: Contender,
    study: str,
    stage: str,
    *parts: object,
    variant: dict[str, Any],
    rates: Rates,
    **given: Any,
) -> Run:
    """A run at given rates: it waits for nothing."""
    return Run(
        id=run_id(study, contender.name, stage, *parts),
        study=study,
        contender=contender.name,
        stage=stage,
        variant={**variant, "seed": given["seed"]},
        needs=(),
        tokens=given["tokens"],
        rates=lambda store: rates,
        configure=configured(scale, contender, **given),
    )


def round_robin(lists: Iterable[Sequence[Run]]) -> list[Run]:
    """First the first of each list, then the second of each, and so on."""
    lists = list(lists)
    longest = max(map(len, lists), default=0)
    return [runs[i] for i in range(longest) for runs in lists if i < len(runs)]


def seeds_at_best(
    scale: Scale,
    contender: Contender,
    study: str,
    stage: str,
    variant: dict[str, Any],
    grid: Sequence[Run],
    change: Change | None = None,
    *,
    seeds: tuple[int, ...] = SEEDS,
    **given: Any,
) -> list[Run]:
    """Runs at the full budget, at the best rates of a grid: a run a seed."""
    ids = tuple(run.id for run in grid)
    return [
        Run(
            id=run_id(study, contender.name, stage, seed),
            study=study,
            contender=contender.name,
            stage="seed",
            variant={**variant, "seed": seed},
            needs=ids,
            tokens=scale.final_tokens,
            rates=partial(best_rates, ids=ids),
            configure=configured(scale, contender, change, tokens=scale.final_tokens, seed=seed, **given),
        )
        for seed in seeds
    ]


def grid_then_seeds(
    scale: Scale,
    study: str,
    cases: list[tuple[str, dict[str, Any], Any, dict[str, Any]]],
    factors: tuple[float, ...],
    roles: tuple[str, ...],
    *,
    seeds: tuple[int, ...] = SEEDS,
    label: str = "",
) -> list[Run]:
    """For each case (contender, variant, change, what ``Scale.config`` takes): the best rates of study "main"
    times each factor at the small budget, then three seeds at the best of those, at the full budget."""
    from lab.packages import available

    everyone = available()
    grids, finals = [], []
    for name, variant, change, given in cases:
        contender = everyone[name]
        case = "".join(f"-{key}{value}" for key, value in variant.items()) + label
        grid = [
            run_at_best(
                scale,
                contender,
                study,
                f"search{case}",
                f"x{factor:g}",
                variant={**variant, "case": label.strip("-"), "factor": factor},
                factors=dict.fromkeys(roles, factor),
                change=change,
                tokens=scale.search_tokens,
                seed=0,
                **given,
            )
            for factor in factors
        ]
        grids.append(grid)
        labels = {**variant, "case": label.strip("-")}
        finals.append(
            seeds_at_best(scale, contender, study, f"seed{case}", labels, grid, change, seeds=seeds, **given)
        )
    return round_robin(grids) + round_robin(finals)
