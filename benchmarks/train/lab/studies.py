"""The studies: which runs answer which question. A study is a function from a scale to its list of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from llama.errors import UsageError

from lab import search
from lab.contenders import Contender, contenders
from lab.packages import missing
from lab.plan import Run, configured, round_robin, run_at_best, run_id, search_run
from lab.scales import Scale

SEEDS = (1, 2, 3)
ALL_MATRICES = ("embedding", "matrix", "lm_head")


def available() -> dict[str, Contender]:
    """The contenders whose packages are installed."""
    return {name: contender for name, contender in contenders().items() if missing(contender) is None}


def left_out() -> dict[str, str]:
    """Contender -> what to install for it."""
    return {name: package for name, contender in contenders().items() if (package := missing(contender))}


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


CONFIRMED = ("adamw", "adamw-sinkgd-scale", "sage-hybrid", "scale", "sinkgd-hybrid", "scale-sinkgd-scale")
CONFIRM_FACTORS = (1.0, 0.5, 2.0)


def confirm(scale: Scale) -> list[Run]:
    """The larger model: all rates times 1, 1/2 and 2 at the small budget, then three seeds at the best."""
    return _grid_then_seeds(
        scale,
        "confirm",
        [(name, {}, None, {"model": scale.confirm}) for name in CONFIRMED],
        CONFIRM_FACTORS,
        ALL_MATRICES,
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
                factors=dict.fromkeys(ALL_MATRICES, factor),
                tokens=scale.long_tokens,
                seed=1,
            )
            for factor in (1.0, 0.5)
        ]
        for name in LONG
    )


ITERATIONS = (1, 2, 3, 5, 10)
ITERATED = ("adamw-sinkgd-scale", "sinkgd-hybrid")
ITERATION_FACTORS = (1.0, 0.5, 2.0)


def iterations(scale: Scale) -> list[Run]:
    """SinkGD with 1 to 10 iterations: each its own rate for the matrices, then three seeds.

    At two batch sizes and on two models; the larger ones after the smaller.
    """
    runs = []
    for label, given in (("", {}), ("-batch4", {"batch": 4}), ("-large", {"model": scale.confirm})):
        cases = [
            (name, {"iterations": count}, _iterate(count), given) for count in ITERATIONS for name in ITERATED
        ]
        runs += _grid_then_seeds(scale, "iterations", cases, ITERATION_FACTORS, ("matrix",), label)
    return runs


def _iterate(count: int) -> Callable[[list[dict[str, Any]]], None]:
    def change(groups: list[dict[str, Any]]) -> None:
        for group in groups:
            if group.get("rule") == "sinkgd":
                group["iterations"] = count

    return change


BATCHES = (1, 4, 16)
BATCHED = ("adamw", "adamw-sinkgd-scale", "sage-hybrid", "lion", "sign-sgd", "scale")
BATCH_FACTORS = (1.0, 2.0, 4.0, 0.5)


def batch(scale: Scale) -> list[Run]:
    """1, 4 and 16 times the batch at the same budget of tokens, with factors on all rates, one seed."""
    runs = []
    for multiple in BATCHES:
        runs += round_robin(
            [
                run_at_best(
                    scale,
                    available()[name],
                    "batch",
                    f"{multiple}x",
                    f"x{factor:g}",
                    variant={"batch": multiple, "factor": factor},
                    factors=dict.fromkeys(ALL_MATRICES, factor),
                    tokens=scale.final_tokens,
                    seed=1,
                    batch=multiple,
                )
                for factor in BATCH_FACTORS
            ]
            for name in BATCHED
        )
    return runs


WIDTH_FACTORS = (1.0, 0.5, 2.0, 0.25, 4.0)
WIDENED = ("adamw", "adamw-sinkgd-scale", "sinkgd-unit", "scale")


def widths(scale: Scale) -> list[Run]:
    """The matrices' rate times 1/4 to 4 on widths from 64 to 512, the other rates as they are.

    "sinkgd-unit" is "adamw-sinkgd-scale" with the unit form, at rates that agree with the sqrt form's for
    square matrices of the scale's own width.
    """
    runs = []
    for model in scale.widths:
        runs += round_robin(
            [
                replace(
                    run_at_best(
                        scale,
                        available()["adamw-sinkgd-scale" if name == "sinkgd-unit" else name],
                        "widths",
                        *(("unit",) if name == "sinkgd-unit" else ("sqrt",)),
                        model.hidden,
                        f"x{factor:g}",
                        variant={"form": name, "width": model.hidden, "factor": factor},
                        factors={"matrix": factor},
                        change=_unit(scale.model.hidden) if name == "sinkgd-unit" else None,
                        tokens=scale.search_tokens,
                        seed=1,
                        model=model,
                    )
                )
                for factor in WIDTH_FACTORS
            ]
            for name in WIDENED
        )
    return runs


def _unit(width: int) -> Callable[[list[dict[str, Any]]], None]:
    def change(groups: list[dict[str, Any]]) -> None:
        for group in groups:
            if group.get("rule") == "sinkgd":
                group.update(normalization="unit", alpha=round(width**0.5, 4))

    return change


SWEPT = ("sage-hybrid", "lion-hybrid", "sage", "lion")
SWEEP_RATES = (1e-3, 4e-3, 2.5e-4, 2e-3, 5e-4, 8e-3, 1.6e-2, 1.25e-4, 3.2e-2)


def sweep(scale: Scale) -> list[Run]:
    """SAGE against Lion: one rate for embedding and head over two decades.

    The matrices' rate is the best of study "main", of SinkGD in the hybrids, of the rule itself alone.
    """

    def one(contender: Contender, rate: float) -> Run:
        run = run_at_best(
            scale,
            contender,
            "sweep",
            f"{rate:g}",
            variant={"rate": rate},
            tokens=scale.search_tokens,
            seed=1,
        )
        found = run.rates
        return replace(run, rates=lambda store: {**found(store), "embedding": rate, "lm_head": rate})

    return round_robin([one(available()[name], rate) for rate in SWEEP_RATES] for name in SWEPT)


def ablation(scale: Scale) -> list[Run]:
    """Parts of the methods taken out or changed, at the best rates, three seeds each."""

    def on(rule: str, **values: Any) -> Callable[[list[dict[str, Any]]], None]:
        def change(groups: list[dict[str, Any]]) -> None:
            for group in groups:
                if group.get("rule") == rule and "vector" not in group["roles"]:
                    group.update(values)

        return change

    def decay(value: float) -> Callable[[list[dict[str, Any]]], None]:
        """The same decay a step for all matrices, whatever the rule: W (1 - lr * decay)."""

        def change(groups: list[dict[str, Any]]) -> None:
            for group in groups:
                if "vector" not in group["roles"]:
                    group["weight_decay"] = value

        return change

    cases = [
        ("sage-hybrid", "no-instant-damper", on("sage", instant_damper=False)),
        ("sage-hybrid", "momentum-first", on("sage", momentum_first=True)),
        ("sage", "no-instant-damper", on("sage", instant_damper=False)),
        ("sage", "momentum-first", on("sage", momentum_first=True)),
        ("scale", "no-momentum", on("scale", momentum=0.0)),
        *((name, "decay-0.1", decay(0.1)) for name in ("adamw", "adamw-sinkgd-scale", "sage-hybrid")),
    ]
    return round_robin(
        [
            run_at_best(
                scale,
                available()[name],
                "ablation",
                label,
                seed,
                variant={"change": label},
                change=change,
                tokens=scale.final_tokens,
                seed=seed,
            )
            for seed in SEEDS
        ]
        for name, label, change in cases
    )


def _grid_then_seeds(
    scale: Scale,
    study: str,
    cases: list[tuple[str, dict[str, Any], Any, dict[str, Any]]],
    factors: tuple[float, ...],
    roles: tuple[str, ...],
    label: str = "",
) -> list[Run]:
    """For each case (contender, variant, change, what ``Scale.config`` takes): the best rates of study "main"
    times each factor at the small budget, then three seeds at the best of those, at the full budget."""
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
        ids = tuple(run.id for run in grid)
        finals.append(
            [_seed(scale, contender, study, case, variant, label, ids, change, seed, given) for seed in SEEDS]
        )
    return round_robin(grids) + round_robin(finals)


def _seed(scale, contender, study, case, variant, label, ids, change, seed, given) -> Run:
    from lab.plan import best_rates

    return Run(
        id=run_id(study, contender.name, f"seed{case}", seed),
        study=study,
        contender=contender.name,
        stage="seed",
        variant={**variant, "case": label.strip("-"), "seed": seed},
        needs=ids,
        tokens=scale.final_tokens,
        rates=lambda store: best_rates(store, ids),
        configure=configured(scale, contender, change, tokens=scale.final_tokens, seed=seed, **given),
    )


STUDIES: dict[str, Callable[[Scale], list[Run]]] = {
    "main": main,
    "confirm": confirm,
    "iterations": iterations,
    "batch": batch,
    "widths": widths,
    "sweep": sweep,
    "ablation": ablation,
    "long": long,
}
