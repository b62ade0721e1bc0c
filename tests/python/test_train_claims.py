"""The verdicts of ``benchmarks/train``'s report on what the papers claim, on made-up results."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "train"))

from lab import packages, studies
from lab.contenders import contenders
from lab.report import claims, data, rules, standings, transfer
from lab.report.data import Estimate
from lab.report.rules import NO, NOT_RUN, NOT_SHOWN, YES
from lab.store import Store
from train_results import TINY, a_store, seeds, whole_store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return whole_store(tmp_path_factory.mktemp("results"))


FIVE, ONE = math.log1p(0.05), math.log1p(0.01)


@pytest.mark.parametrize(
    ("rule", "mean", "error", "expected"),
    [
        (rules.better, -0.021, 0.01, YES),
        (rules.better, -0.019, 0.01, NOT_SHOWN),
        (rules.better, 0.019, 0.01, NOT_SHOWN),
        (rules.better, 0.021, 0.01, NO),
        (rules.better, math.inf, 0.0, NO),
        (rules.better, math.nan, math.inf, NOT_SHOWN),
        (rules.near, -1.0, 0.01, YES),
        (rules.near, FIVE - 0.021, 0.01, YES),
        (rules.near, FIVE - 0.019, 0.01, NOT_SHOWN),
        (rules.near, FIVE + 0.019, 0.01, NOT_SHOWN),
        (rules.near, FIVE + 0.021, 0.01, NO),
        (rules.near, math.nan, math.inf, NOT_SHOWN),
        (rules.fails, FIVE + 0.021, 0.01, YES),
        (rules.fails, FIVE, 0.01, NOT_SHOWN),
        (rules.fails, FIVE - 0.021, 0.01, NO),
        (rules.fails, math.inf, 0.0, YES),
        (rules.matters, 0.021, 0.01, YES),
        (rules.matters, -0.021, 0.01, YES),
        (rules.matters, 0.019, 0.01, NOT_SHOWN),
        (rules.matters, ONE - 0.0021, 0.001, YES),  # small, and yet there
        (rules.matters, 0.001, 0.001, NO),
        (rules.matters, -0.001, 0.001, NO),
        (rules.matters, 0.001, 0.01, NOT_SHOWN),
        (rules.matters, math.nan, math.inf, NOT_SHOWN),
    ],
)
def test_a_rule_looks_at_twice_the_standard_error(
    rule: Any, mean: float, error: float, expected: str
) -> None:
    assert rule(Estimate(mean, error)) == expected


def test_the_error_of_a_difference_is_that_of_both_means(tmp_path: Path) -> None:
    kept = a_store(tmp_path, seeds(4.0, 4.1, 4.2, contender="lion"), seeds(4.4, 4.4, 4.7, contender="sage"))
    difference = data.estimate(data.seeds(kept, "lion")) - data.estimate(data.seeds(kept, "sage"))
    assert difference.mean == pytest.approx(-0.4)
    assert difference.error == pytest.approx(math.sqrt(0.01 / 3 + 0.03 / 3))


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((4.00, 4.01, 4.02), (4.10, 4.11, 4.12), YES),
        ((4.10, 4.11, 4.12), (4.00, 4.01, 4.02), NO),
        ((4.00, 4.10, 4.20), (4.01, 4.11, 4.21), NOT_SHOWN),
        ((4.00, None, 4.02), (4.10, 4.11, 4.12), NO),
        ((None, None, None), (None, 4.1, 4.1), NOT_SHOWN),
        ((4.00, 4.01), (4.10, 4.11, 4.12), NOT_RUN),
        ((), (4.10, 4.11, 4.12), NOT_RUN),
    ],
)
def test_a_claim_is_judged_by_three_seeds_a_side(
    left: tuple[Any, ...], right: tuple[Any, ...], expected: str, tmp_path: Path
) -> None:
    claim = claims.Claim("x", "y", "sage-hybrid", "lion-hybrid", rules.better)
    kept = a_store(tmp_path, seeds(*left, contender="sage-hybrid"), seeds(*right, contender="lion-hybrid"))
    verdict = claim.judge(kept)
    assert verdict.word == expected
    assert verdict.command.endswith("--study main --only sage-hybrid lion-hybrid")
    if expected == NOT_RUN:
        assert f"`sage-hybrid` ({len(left)} of 3 seeds)" in verdict.numbers
    if expected == YES:
        assert "-9.5 ± 1.5 %" in verdict.numbers


@pytest.mark.parametrize(
    ("mean", "error", "expected"),
    [
        (math.log(3.49), 0.0105, "+249.0 ± 7.3 %"),
        (math.log(0.368), 0.005, "-63.2 ± 0.4 %"),
        (0.0, 0.01, "+0.0 ± 2.0 %"),
        (math.inf, 0.0, "diverged"),
        (math.nan, math.inf, "both diverged"),
    ],
)
def test_an_error_is_in_points_of_the_difference_that_it_is_of(
    mean: float, error: float, expected: str
) -> None:
    assert data.percent_and_error(Estimate(mean, error)) == expected
    shown = [word for word in expected.split() if word[-1].isdigit()]
    if len(shown) == 2:  # the ends of the interval are those that the logarithms have
        ends = [100 * math.expm1(mean + sign * 2 * error) for sign in (-1, 1)]
        assert ends == pytest.approx([float(shown[0]) + sign * float(shown[1]) for sign in (-1, 1)], abs=0.2)


def test_a_part_taken_out_is_compared_with_the_whole(tmp_path: Path) -> None:
    claim = claims.Claim("x", "y", "sage", "sage:no-instant-damper", rules.better)
    kept = a_store(
        tmp_path,
        seeds(4.0, 4.01, 4.02, contender="sage"),
        seeds(4.5, 4.5, 4.5, contender="sage", study="ablation", change="no-instant-damper"),
        seeds(3.0, 3.0, 3.0, contender="sage", study="ablation", change="momentum-first"),
    )
    assert claim.judge(kept).word == YES
    assert claim.judge(kept).command.endswith("--study ablation --only sage")


def of_sweep(contender: str, losses: list[float | None]) -> dict[str, Any]:
    found = {}
    for rate, loss in zip(sorted(claims.SWEEP_RATES), losses, strict=True):
        found |= seeds(loss, contender=contender, study="sweep", rate=rate)
    return found


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ([4.0, 4.0, 4.0, 4.0, 4.0, 4.05, 4.5, 5.0, None], YES),
        ([4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.05, 5.0, None], NOT_SHOWN),
        ([9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.05], NO),
        ([None] * 9, YES),
    ],
)
def test_the_highest_rate_borne(right: list[float | None], expected: str, tmp_path: Path) -> None:
    claim = claims.BearsMore("x", "y", "sage", "lion")
    left = of_sweep("sage", [4.3, 4.2, 4.1, 4.0, 4.0, 4.0, 4.09, 4.2, None])
    kept = a_store(tmp_path, of_sweep("lion", right), left)
    assert claim.judge(kept).word == NOT_RUN  # no spread is known
    kept.results |= seeds(4.0, 4.001, 4.002, contender="adamw")
    assert claim.judge(kept).word == expected
    assert "`sage` up to 0.008" in claim.judge(kept).numbers
    del kept.results["sweep.sage.0.032.seed.1"]
    assert claim.judge(kept).word == NOT_RUN


@pytest.mark.parametrize(("spread", "expected"), [(0.0001, YES), (0.016, NOT_SHOWN)])
def test_a_rate_that_is_borne_by_a_hair_shows_nothing(spread: float, expected: str, tmp_path: Path) -> None:
    """Study "sweep" as it came out: of SAGE 95.61 where 95.73 is 10 % above its best."""
    claim = claims.BearsMore("x", "y", "sage", "lion")
    sage = [289.11, 188.86, 109.27, 87.03, 87.93, 95.61, 116.99, 161.04, 366.57]
    lion = [304.14, 186.53, 106.71, 90.64, 94.18, 107.81, 131.36, 190.41, 599.38]
    kept = a_store(
        tmp_path,
        seeds(4.0, 4.0 + spread, 4.0 - spread, contender="adamw"),
        of_sweep("sage", list(map(math.log, sage))),
        of_sweep("lion", list(map(math.log, lion))),
    )
    assert data.pooled_spread(kept) == pytest.approx(spread)
    verdict = claim.judge(kept)
    assert verdict.word == expected
    by_spread = " (by the spread 0.002 to 0.004)" if expected == NOT_SHOWN else ""
    assert verdict.numbers == f"`sage` up to 0.004{by_spread}; `lion` up to 0.002"


@pytest.mark.parametrize(
    ("tuned", "expected"),
    [((3.9, 3.91, 3.92), NOT_SHOWN), ((4.35, 4.36, 4.37), YES), ((4.27, 4.40, 4.14), YES), ((), NOT_RUN)],
)
def test_to_be_no_worse_than_what_did_badly_shows_nothing(
    tuned: tuple[float, ...], expected: str, tmp_path: Path
) -> None:
    claim = claims.Claim("x", "y", "alias", "alias-base-descent", rules.near)
    kept = a_store(
        tmp_path,
        seeds(4.0, 4.01, 4.02, contender="alias"),
        seeds(4.5, 4.51, 4.52, contender="alias-base-descent"),
        seeds(*tuned, contender="sign-sgd"),
    )
    verdict = claim.judge(kept)
    assert verdict.word == expected
    assert ("did badly here itself" in verdict.numbers) == (expected == NOT_SHOWN)
    if expected == NOT_SHOWN:  # and why
        assert "here itself: +82.2 ± 3.0 % from `sign-sgd` 49.9" in verdict.numbers
    if expected == NOT_RUN:
        assert "`sign-sgd` (0 of 3 seeds)" in verdict.numbers
    assert verdict.command.endswith("--only alias alias-base-descent sign-sgd")
    # What is worse than that is no less worse.
    worse = a_store(tmp_path, kept.results, seeds(5.0, 5.01, 5.02, contender="alias"))
    assert claim.judge(worse).word == (NOT_RUN if expected == NOT_RUN else NO)


def test_what_finds_its_own_rate_is_held_against_its_tuned_form() -> None:
    everyone = contenders()
    compared = [claim.right for claim in claims.CLAIMS if isinstance(claim, claims.Claim)]
    own = {name for name in compared if name in everyone and not everyone[name].searched}
    assert own == set(claims.TUNED)
    assert all(everyone[name].searched for name in claims.TUNED.values())


def test_what_the_page_says_of_a_rule_is_what_the_rule_does() -> None:
    text = standings.table_of_claims(a_store(Path("nowhere"), {}))
    assert f"**near, little**: yes if {rules.MEANINGS[rules.near]}." in text
    for rule, share in ((rules.near, rules.NEAR), (rules.fails, rules.NEAR), (rules.matters, rules.MATTERS)):
        assert f"{100 * share:g} %" in rules.MEANINGS[rule]
    assert f"within {100 * rules.BEARS:g} % of one's own best" in text
    assert f"more than {100 * rules.FAR:g} % behind" in text


def test_the_distance_at_a_larger_batch_has_the_spread_of_the_seeds(tmp_path: Path) -> None:
    claim = claims.Batch("x", "y", "sign-sgd", rules.better)
    kept = a_store(tmp_path)
    for name, at_16 in (("sign-sgd", 4.6), ("adamw", 4.3)):
        for factor in claims.BATCH_FACTORS:
            about = {"study": "batch", "batch": 16, "factor": factor}
            kept.results |= seeds(at_16 + (0.0 if factor == 2 else 0.5), contender=name, **about)
    assert claim.judge(kept).word == NOT_RUN  # no spread yet, and nothing at the batch of study "main"
    for name, at_1 in (("sign-sgd", 4.5), ("adamw", 4.0)):
        kept.results |= seeds(at_1, at_1 + 0.01, at_1 + 0.02, contender=name)
    assert claim.judge(kept).word == YES  # 0.5 and then 0.3 away
    assert "-18.1 ± 3.3 %" in claim.judge(kept).numbers  # twice the root of four times 0.01 squared, of 0.82
    for name, at_1 in (("sign-sgd", 4.5), ("adamw", 4.0)):
        kept.results |= seeds(at_1, at_1 + 0.2, at_1 + 0.4, contender=name)
    assert claim.judge(kept).word == NOT_SHOWN


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_law_of_rates_is_found_where_it_holds(power: float) -> None:
    """Grids whose smallest loss goes with the width as the law says: nothing is lost with it alone."""
    factors = [x / 2 for x in range(-4, 5)]
    lines = [
        (ratio, [(x, abs(x - 0.5 + power * math.log2(ratio))) for x in factors]) for ratio in (0.5, 1.0, 2.0)
    ]
    lost = {}
    for law in transfer.LAWS:
        found = transfer.best_constant(lines, law)
        assert found is not None
        factor, excess = found
        lost[law] = sum(excess)
        if law == power:
            assert 1.0 <= factor <= 2.0
    assert min(lost, key=lost.__getitem__) == power
    assert lost[power] == pytest.approx(0.0, abs=1e-9)
    far = [(16.0, lines[0][1]), (1 / 16, lines[0][1])]
    assert transfer.best_constant(far, 1.0) is None, "no rate is within both grids"
    diverged = [(1.0, [(0.0, 1.0), (1.0, math.inf)])]
    assert transfer.best_constant(diverged, 0.0) == (1.0, [0.0])


def test_every_claim_is_about_runs_that_a_study_plans(whole: Store) -> None:
    assert {claim.judge(whole).word for claim in claims.CLAIMS} <= {YES, NO, NOT_SHOWN}


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: f"{claim.whose}: {claim.text}")
def test_the_command_of_a_claim_is_one_that_runs(claim: claims.AnyClaim, tmp_path: Path) -> None:
    for part in claim.judge(a_store(tmp_path, {})).command.split(" && "):
        words = part.removeprefix("python benchmarks/train/run.py --study ").split()
        assert words[1] == "--only"
        if absent := packages.left_out().keys() & set(words[2:]):
            pytest.skip(f"without the package of {', '.join(absent)}")
        assert {run.contender for run in studies.plan(words[0], TINY, only=words[2:])} == set(words[2:])
