"""Does a rate serve elsewhere: on other widths, on matrices of other shapes, on every role at once?"""

from __future__ import annotations

from typing import Any

from lab.contenders import MATRICES, Contender, preset_row
from lab.packages import available
from lab.plan import Change, Run, round_robin, run_at_best, run_at_rates, seeds_at_best
from lab.scales import Scale

WIDTH_FACTORS = (1.0, 0.5, 2.0, 0.25, 4.0)
WIDENED = ("adamw-sinkgd-scale", "adamw")
WIDENED_PRESET = "preset-sinkgd-scale"
PRESET_RULES = ("same-rate", "over-width")


def widths(scale: Scale) -> list[Run]:
    """The matrices' rate times 1/4 to 4 on widths from 64 to 512, the other rates as they are, one seed.

    How the best factor moves with the width says which rule for rates is right: the same root mean square
    for all (it stays), the unit form or a constant spectral norm (1 / sqrt(width)), 1 / fan-in (1 / width).
    Then a preset with the matrices' rate that it has at its own width, and with that rate by the last of
    these rules, which beyond that width is the preset as it is.
    """
    runs, found_at = [], preset_row(WIDENED_PRESET).width
    for model in scale.widths:
        runs += round_robin(
            [
                run_at_best(
                    scale,
                    available()[name],
                    "widths",
                    "width",
                    model.hidden,
                    f"x{factor:g}",
                    variant={"width": model.hidden, "factor": factor},
                    factors={"matrix": factor},
                    tokens=scale.search_tokens,
                    seed=1,
                    model=model,
                )
                for factor in WIDTH_FACTORS
            ]
            for name in WIDENED
        )
    return runs + [
        run_at_best(
            scale,
            available()[WIDENED_PRESET],
            "widths",
            "preset",
            model.hidden,
            rule,
            variant={"width": model.hidden, "rule": rule},
            change=_matrices_times(factor),
            tokens=scale.search_tokens,
            seed=1,
            model=model,
        )
        for model in scale.widths
        for rule, factor in zip(PRESET_RULES, (1.0, found_at / model.hidden), strict=True)
    ]


def _matrices_times(factor: float) -> Change:
    def change(groups: list[dict[str, Any]]) -> None:
        for group in groups:
            if group["roles"] == ["matrix"]:
                group.update(alpha=1.0, lr=group["lr"] * factor)

    return change


SHAPED = "adamw-sinkgd-scale"
SHAPE_RULES = ("rms", "unit", "fan-in", "spectral")  # as in build.shape_factor
SHAPE_FACTORS = (1.0, 0.5, 2.0)


def shapes(scale: Scale) -> list[Run]:
    """SinkGD's rate by the shape of a matrix, by four rules that agree on the square ones: one seed."""

    def by(rule: str) -> Change:
        def change(groups: list[dict[str, Any]]) -> None:
            for group in groups:
                if group["roles"] == ["matrix"]:
                    group["shape_rule"] = {"rule": rule, "width": scale.model.hidden}

        return change

    return round_robin(
        [
            run_at_best(
                scale,
                available()[SHAPED],
                "shapes",
                rule,
                f"x{factor:g}",
                variant={"rule": rule, "factor": factor},
                factors={"matrix": factor},
                change=by(rule),
                tokens=scale.search_tokens,
                seed=0,
            )
            for factor in SHAPE_FACTORS
        ]
        for rule in SHAPE_RULES
    )


SHARED = ("adamw", "adamw-sinkgd-scale", "scale", "sage-hybrid", "sign-sgd", "sign-sgd-adamw")
SHARED_RATES = {1: (1e-3, 2e-3, 5e-4, 4e-3, 8e-3), 10: (5e-4, 1e-3, 2.5e-4, 2e-3)}
"""The embedding's rate over that of all others -> the others' rates: as many runs as a search has."""
ONE_STEP = ("sign-sgd", "sign-sgd-adamw")  # where ALIAS finds a step, it is one for all


def one_rate(scale: Scale) -> list[Run]:
    """One rate for all roles, and one with ten times that for the embedding: nine runs, as a search has.

    Then Sign-SGD at the best rate for all, three seeds: what ALIAS's one step is compared with.
    """

    def one(contender: Contender, ratio: int, rate: float) -> Run:
        rates = {role: float(f"{rate * (ratio if role == 'embedding' else 1):g}") for role in MATRICES}
        return run_at_rates(
            scale,
            contender,
            "one-rate",
            f"embedding{ratio}",
            f"{rate:g}",
            variant={"ratio": ratio, "rate": rate},
            rates=rates,
            tokens=scale.search_tokens,
            seed=0,
        )

    runs = round_robin(
        [one(available()[name], ratio, rate) for ratio, rates in SHARED_RATES.items() for rate in rates]
        for name in SHARED
    )
    of_one = {
        name: [run for run in runs if run.contender == name and run.variant["ratio"] == 1]
        for name in ONE_STEP
    }
    return runs + round_robin(
        seeds_at_best(scale, available()[name], "one-rate", "seed", {}, grid) for name, grid in of_one.items()
    )
