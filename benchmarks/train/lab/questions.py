"""The questions about parts of the methods, each a study: a function from a scale to its list of runs.

All of them take the rates that study "main" found and vary what they are about.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lab.contenders import MATRICES, PRESET, Contender
from lab.packages import available
from lab.plan import SEEDS, Change, Run, grid_then_seeds, round_robin, run_at_best
from lab.scales import Scale

ITERATIONS = (1, 2, 3, 5, 10)
ITERATED = "adamw-sinkgd-scale"
ITERATION_FACTORS = (1.0, 0.5, 2.0)


def iterations(scale: Scale) -> list[Run]:
    """SinkGD with 1 to 10 iterations: each its own rate for the matrices, then three seeds.

    After that the rates alone, with four times the batch and on the larger model.
    """
    runs: list[Run] = []
    for label, given in (("", {}), ("-batch4", {"batch": 4}), ("-large", {"model": scale.confirm})):
        cases = [(ITERATED, {"iterations": count}, _iterate(count), given) for count in ITERATIONS]
        seeds = () if label else SEEDS
        runs += grid_then_seeds(
            scale, "iterations", cases, ITERATION_FACTORS, ("matrix",), seeds=seeds, label=label
        )
    return runs


def _iterate(count: int) -> Change:
    def change(groups: list[dict[str, Any]]) -> None:
        for group in groups:
            if group.get("rule") == "sinkgd":
                group["iterations"] = count

    return change


BATCHES = (4, 16)  # and 1: the first seed of study "main"
BATCHED = ("adamw", "adamw-sinkgd-scale", "scale", "sage-hybrid", "sign-sgd")
BATCH_FACTORS = (1.0, 2.0, 4.0)
SHORTER = "beta2-0.9"
"""SAGE's momentum over some ten steps; the usual 0.99 goes over most of the steps that a large batch has."""


def batch(scale: Scale) -> list[Run]:
    """4 and 16 times the batch at the same budget of tokens, with factors on all rates, one seed.

    With 16 times the batch the SAGE hybrid once more, with a shorter momentum.
    """

    def at(multiple: int, name: str, *labels: str, change: Change | None = None, **variant: Any) -> list[Run]:
        return [
            run_at_best(
                scale,
                available()[name],
                "batch",
                f"{multiple}x",
                *labels,
                f"x{factor:g}",
                variant={**variant, "factor": factor},
                factors=dict.fromkeys(MATRICES, factor),
                change=change,
                tokens=scale.final_tokens,
                seed=1,
                batch=multiple,
            )
            for factor in BATCH_FACTORS
        ]

    runs: list[Run] = []
    for multiple in BATCHES:
        runs += round_robin(at(multiple, name, batch=multiple) for name in BATCHED)
    shorter = _on("sage", betas=(0.9, 0.9))
    return runs + at(BATCHES[-1], "sage-hybrid", SHORTER, change=shorter, changed=SHORTER)


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

    def decay(value: float) -> Change:
        """The same decay a step for all matrices, whatever the rule: W (1 - lr * decay)."""

        def change(groups: list[dict[str, Any]]) -> None:
            for group in groups:
                if "vector" not in group["roles"]:
                    group["weight_decay"] = value

        return change

    cases = [
        ("sage-hybrid", "no-instant-damper", _on("sage", instant_damper=False)),
        ("sage-hybrid", "momentum-first", _on("sage", momentum_first=True)),
        ("sage", "no-instant-damper", _on("sage", instant_damper=False)),
        ("sage", "momentum-first", _on("sage", momentum_first=True)),
        ("scale", "no-momentum", _on("scale", momentum=0.0)),
        *((name, "decay-0.1", decay(0.1)) for name in ("adamw", "adamw-sinkgd-scale", "sage-hybrid")),
        *((f"{PRESET}{name}", "five-iterations", _on("sinkgd", iterations=5)) for name in ("sage", "sinkgd")),
        *((f"{PRESET}{name}", "decay-0.1", decay(0.1)) for name in ("sinkgd-scale", "sage", "stateless")),
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


def _on(rule: str, **values: Any) -> Change:
    """Other hyperparameters of a rule's groups."""

    def change(groups: list[dict[str, Any]]) -> None:
        for group in groups:
            if group.get("rule") == rule and "vector" not in group["roles"]:
                group.update(values)

    return change


ALIAS_FORMS = (
    "alias",
    "alias-base-descent",
    "alias-sum-descent",
    "alias-lower-bound",
    "alias-base",
    "alias-sum",
)
ALIAS_D0 = (1e-6, 1e-4, 1e-2, 1e-8)  # the first is the contenders' own


def alias(scale: Scale, everyone: dict[str, Contender] | None = None) -> list[Run]:
    """ALIAS at the small budget, one seed: where it begins (d0, for the gap by descent), batch and length.

    The longer run is the first seed of study "main". ``everyone``: the contenders there are; default: those
    that this installation has.
    """

    def begin(d0: float) -> Change:
        return lambda groups: [group.update(d0=d0) for group in groups if group.get("rule") == "alias"]

    everyone = available() if everyone is None else everyone
    lists = []
    for name in ALIAS_FORMS:
        if name not in everyone:
            continue
        by_descent = any(group.get("gap") == "descent" for group in everyone[name].make({}, 10))
        cases = [(d0, 1) for d0 in (ALIAS_D0 if by_descent else (None,))]
        cases += [(cases[0][0], multiple) for multiple in BATCHES]
        lists.append(
            [
                run_at_best(
                    scale,
                    everyone[name],
                    "alias",
                    *([f"d{d0:g}"] if d0 else []),
                    f"{multiple}x",
                    variant={**({"d0": d0} if d0 else {}), "batch": multiple},
                    change=begin(d0) if d0 else None,
                    tokens=scale.search_tokens,
                    seed=1,
                    batch=multiple,
                )
                for d0, multiple in cases
            ]
        )
    return round_robin(lists)


CONSTRAINED = (("adamw-sinkgd-scale", ("matrix",)), ("sage-hybrid", MATRICES))
SPHERE_FACTORS = (1.0, 2.0, 0.5, 4.0)


def sphere(scale: Scale) -> list[Run]:
    """Matrices held on the sphere where they begin: each its own rate, then three seeds."""

    def on(roles: tuple[str, ...]) -> Change:
        def change(groups: list[dict[str, Any]]) -> None:
            for group in groups:
                if set(group["roles"]) <= set(roles):
                    group["constraint"] = "sphere"

        return change

    runs = []
    for name, roles in CONSTRAINED:
        cases = [(name, {}, on(roles), {})]
        runs.append(grid_then_seeds(scale, "sphere", cases, SPHERE_FACTORS, roles))
    return round_robin(runs)
