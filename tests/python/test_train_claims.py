"""The verdicts of ``benchmarks/train``'s report on what the papers claim, on made-up results."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "train"))

from lab import packages, studies
from lab.report import claims, data, transfer
from lab.report.claims import NO, NOT_RUN, NOT_SHOWN, YES
from lab.report.data import Estimate
from lab.store import Store
from train_results import TINY, a_store, seeds, whole_store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return whole_store(tmp_path_factory.mktemp("results"))


FIVE, ONE = math.log1p(0.05), math.log1p(0.01)


@pytest.mark.parametrize(
    ("rule", "mean", "error", "expected"),
    [
        (claims.better, -0.021, 0.01, YES),
        (claims.better, -0.019, 0.01, NOT_SHOWN),
        (claims.better, 0.019, 0.01, NOT_SHOWN),
        (claims.better, 0.021, 0.01, NO),
        (claims.better, math.inf, 0.0, NO),
        (claims.better, math.nan, math.inf, NOT_SHOWN),
        (claims.near, -1.0, 0.01, YES),
        (claims.near, FIVE - 0.021, 0.01, YES),
        (claims.near, FIVE - 0.019, 0.01, NOT_SHOWN),
        (claims.near, FIVE + 0.019, 0.01, NOT_SHOWN),
        (claims.near, FIVE + 0.021, 0.01, NO),
        (claims.near, math.nan, math.inf, NOT_SHOWN),
        (claims.fails, FIVE + 0.021, 0.01, YES),
        (claims.fails, FIVE, 0.01, NOT_SHOWN),
        (claims.fails, FIVE - 0.021, 0.01, NO),
        (claims.fails, math.inf, 0.0, YES),
        (claims.matters, 0.021, 0.01, YES),
        (claims.matters, -0.021, 0.01, YES),
        (claims.matters, 0.019, 0.01, NOT_SHOWN),
        (claims.matters, ONE - 0.0021, 0.001, YES),  # small, and yet there
        (claims.matters, 0.001, 0.001, NO),
        (claims.matters, -0.001, 0.001, NO),
        (claims.matters, 0.001, 0.01, NOT_SHOWN),
        (claims.matters, math.nan, math.inf, NOT_SHOWN),
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
    claim = claims.Claim("x", "y", "sage-hybrid", "lion-hybrid", claims.better)
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
    claim = claims.Claim("x", "y", "sage", "sage:no-instant-damper", claims.better)
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
    kept = a_store(tmp_path, left, of_sweep("lion", right))
    assert claim.judge(kept).word == expected
    assert "`sage` up to 0.008" in claim.judge(kept).numbers
    kept.results.popitem()
    assert claim.judge(kept).word == NOT_RUN


def test_the_distance_at_a_larger_batch_has_the_spread_of_the_seeds(tmp_path: Path) -> None:
    claim = claims.Batch("x", "y", "sign-sgd", claims.better)
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
