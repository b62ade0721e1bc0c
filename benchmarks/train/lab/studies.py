"""The studies: which runs answer which question. A study is a function from a scale to its list of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llama.errors import UsageError

from lab import budget, questions, search, transfer
from lab.contenders import MATRICES
from lab.packages import available
from lab.plan import SEEDS, Run, grid_then_seeds, round_robin, run_at_best, search_run
from lab.scales import Scale


def plan(study: str, scale: Scale, only: Sequence[str] = ()) -> list[Run]:
    """The runs of a study in their order; of some contenders alone where ``only`` names them."""
    runs = STUDIES[study](scale)
    known = {run.contender for run in runs}
    for name in only:
        if name not in known:
            raise UsageError(f"--only {name}: study {study} has {', '.join(sorted(known))}")
    return [run for run in runs if not only or run.contender in only]


def main(scale: Scale) -> list[Run]:
    """Every contender: the search at the small budget, then three seeds at the full one, tier by tier."""
    runs = []
    everyone = available().values()
    for tier in sorted({contender.tier for contender in everyone}):
        of_tier = [contender for contender in everyone if contender.tier == tier]
        runs += round_robin(
            [search_run(scale, contender, k) for k in range(search.RUNS)]
            for contender in of_tier
            if contender.searched
        )
        runs += round_robin(
            [
                run_at_best(scale, contender, "main", "seed", seed, tokens=scale.final_tokens, seed=seed)
                for seed in SEEDS
            ]
            for contender in of_tier
        )
    return runs


CONFIRMED = ("adamw", "adamw-sinkgd-scale", "sage-hybrid")
CONFIRM_FACTORS = (1.0, 0.5, 2.0)


def confirm(scale: Scale) -> list[Run]:
    """The larger model: all rates times 1, 1/2 and 2 at the small budget, then three seeds at the best."""
    return grid_then_seeds(
        scale,
        "confirm",
        [(name, {}, None, {"model": scale.confirm}) for name in CONFIRMED],
        CONFIRM_FACTORS,
        MATRICES,
    )


LONG = ("adamw", "adamw-sinkgd-scale", "sage-hybrid", "scale")


def long(scale: Scale) -> list[Run]:
    """Twice the budget, the rates of study "main" times 1 and 1/2, one seed: does the order stay?"""
    return round_robin(
        [
            run_at_best(
                scale,
                available()[name],
                "long",
                f"x{factor:g}",
                variant={"factor": factor},
                factors=dict.fromkeys(MATRICES, factor),
                tokens=scale.long_tokens,
                seed=1,
            )
            for factor in (1.0, 0.5)
        ]
        for name in LONG
    )


STUDIES: dict[str, Callable[[Scale], list[Run]]] = {
    "main": main,
    "confirm": confirm,
    "iterations": questions.iterations,
    "batch": questions.batch,
    "widths": transfer.widths,
    "shapes": transfer.shapes,
    "one-rate": transfer.one_rate,
    "sphere": questions.sphere,
    "sweep": questions.sweep,
    "ablation": questions.ablation,
    "alias": questions.alias,
    "long": long,
    "budget": budget.budget,
}
