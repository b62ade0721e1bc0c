"""The report of ``benchmarks/train``: verdicts, the page and its pictures, on made-up results."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "train"))

from lab import packages, runner, search, store, studies
from lab.contenders import contenders
from lab.plan import SEEDS
from lab.report import claims, command, data, page, pictures, standings, transfer
from lab.report.claims import NO, NOT_RUN, NOT_SHOWN, YES
from lab.report.data import Estimate
from lab.report.style import CONTENDERS
from lab.scales import SCALES
from lab.store import Store

TINY, CPU = SCALES["test"], SCALES["cpu"]


def option(candidate: str, state_bytes: int, risk: float, **settings: Any) -> dict[str, Any]:
    rest = {"lr": 1e-3, "weight_decay": 0.0, "moved_bytes": 0, "risk": [risk, 0.0, 0.0]}
    rule = candidate.partition("-")[0]
    return {"candidate": candidate, "rule": rule, "state_bytes": state_bytes, **rest, "settings": settings}


# Of three matrices, what study "budget" measures.
MEASURED = {
    f"the.{role}": {
        "role": role,
        "shape": [8, 4],
        "dtype": "float32",
        "options": [
            option("adamw", 260, 0.0),
            option("adamw-bf16", 132, 0.001, state_dtype="bfloat16"),
            option("sage", 148, 0.3),
            option("sinkgd", 0, 0.7),
            option("scale", 0, 0.8, dim=0),
            option("scale-momentum", 64, 0.2, dim=1, momentum=0.9, state_dtype="bfloat16"),
            option("sign_sgd", 0, 0.9),
        ],
    }
    for role in ("embedding", "matrix", "lm_head")
}
DOCS = Path(__file__).resolve().parents[2] / "docs"


def result(run: str, loss: float | None, config: dict[str, Any], **about: Any) -> dict[str, Any]:
    """A result as ``run.py`` keeps it, with made-up numbers."""
    points = [{"tokens": config["tokens"] * k / 2, "loss": loss} for k in (1, 2)]
    return {
        "format": store.FORMAT,
        "id": run,
        **about,
        "command": f"python benchmarks/train/run.py --rerun {run}",
        "text": {
            "sha256": "c0ffee",
            "tokens": {"train": 1000, "validation-text": 100},
            "kinds": {"text": {"documents": 3, "bytes": 4000, "from": ["/some/where/my-text"]}},
        },
        "config": config,
        "versions": {"python": "3", "processor": "made up", "torch": "2"},
        "result": {
            "loss": loss,
            "perplexity": None if loss is None else math.exp(loss),
            "parameters": 1000,
            "state_bytes": 100 * (len(run) % 9),
            "optimizer_ms": None if loss is None else 1.5,
            "cpu_seconds": 10.0,
            "wall_seconds": 30.0,
        },
        "curve": {
            "train_loss": [loss] * 8 if loss else [6.0],
            "step_size": [[1e-6 * 2**i for i in range(8)] if loss else []],
            "validation": points if loss else [],
        },
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """All runs of all studies at scale "test"; the highest rate of the sweep diverges."""
    draw = random.Random(0)
    kept = Store(tmp_path_factory.mktemp("results"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "missing", lambda contender: None)
        patch.setattr(search, "propose", lambda done: search.rates([draw.random() for _ in range(3)]))
        for study in studies.STUDIES:
            for run in studies.plan(study, TINY):
                loss = 4 + 0.01 * (len(run.contender) % 9) + draw.gauss(0, 0.004)
                lost = study == "sweep" and run.variant["rate"] > 0.03
                about = {
                    "study": study,
                    "contender": run.contender,
                    "stage": run.stage,
                    "variant": run.variant,
                }
                kept.results[run.id] = result(run.id, None if lost else loss, run.config(kept), **about)
                if run.stage == "measure":
                    kept.results[run.id]["measured"] = MEASURED
    return kept


def seeds(*losses: float | None, contender: str, study: str = "main", **variant: Any) -> dict[str, Any]:
    """Results of one contender: a seed a loss, at scale "cpu"."""
    found = {}
    for seed, loss in zip(SEEDS, losses, strict=False):
        run = f"{study}.{contender}.{'-'.join(map(str, variant.values()))}.seed.{seed}"
        config = {**CPU.config(tokens=CPU.final_tokens, seed=seed), "groups": []}
        about = {"contender": contender, "stage": "seed", "variant": {**variant, "seed": seed}}
        found[run] = result(run, loss, config, study=study, **about)
    return found


def a_store(tmp_path: Path, *results: dict[str, Any]) -> Store:
    kept = Store(tmp_path)
    for each in results:
        kept.results.update(each)
    return kept


# ------------------------------------------------------------------------------------------------- verdicts

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
        assert "-9.5 % ± 1.6 %" in verdict.numbers


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
    assert "± 4.0 %" in claim.judge(kept).numbers  # twice the root of four times 0.01 squared
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


# ------------------------------------------------------------------------------------------------- the page


def row_of(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: f"{claim.whose}: {claim.text}")
def test_the_command_of_a_claim_is_one_that_runs(claim: claims.AnyClaim, tmp_path: Path) -> None:
    for part in claim.judge(a_store(tmp_path, {})).command.split(" && "):
        words = part.removeprefix("python benchmarks/train/run.py --study ").split()
        assert words[1] == "--only"
        if absent := packages.left_out().keys() & set(words[2:]):
            pytest.skip(f"without the package of {', '.join(absent)}")
        assert {run.contender for run in studies.plan(words[0], TINY, only=words[2:])} == set(words[2:])


def test_a_row_says_what_its_runs_say_and_which_command_runs_it_again(tmp_path: Path) -> None:
    kept = a_store(
        tmp_path,
        seeds(4.1, 4.2, 4.3, contender="adamw"),
        seeds(4.0, 4.1, 4.2, contender="alias"),
        seeds(3.0, 3.1, contender="dog"),
    )
    text = page.text(kept, CPU)
    adamw = [math.exp(loss) for loss in (4.1, 4.2, 4.3)]
    mean = sum(adamw) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in adamw) / 2)
    assert row_of(text, "| 1 |")[1] == "`alias`"
    assert row_of(text, "| 2 |")[1:4] == ["**`adamw`**", f"{mean:.2f} ± {deviation:.2f}", "1.000"]
    assert row_of(text, "| 1 |")[3] == f"{math.exp(-0.1):.3f}"
    for rank, run in ((1, "main.alias..seed.1"), (2, "main.adamw..seed.1")):
        assert row_of(text, f"| {rank} |")[-1] == f"`python benchmarks/train/run.py --rerun {run}`"
    # Two seeds rank nothing, however good they are.
    assert "| 3 | `" not in text
    assert row_of(text, "| `dog` |")[4] == "2 of 3"
    assert "Not begun: `adamw-sinkgd-scale`" in text


def test_times_of_another_processor_are_called_so_and_not_drawn(tmp_path: Path) -> None:
    away = seeds(3.9, 4.0, 4.1, contender="lion")
    for run in away.values():
        run["versions"]["processor"] = "another"
    kept = a_store(
        tmp_path, seeds(4.0, 4.1, 4.2, contender="adamw"), seeds(5.0, 5.1, 5.2, contender="sage"), away
    )
    rows = {
        line.split("`")[1]: line for line in standings.table_of_ranked(kept, CPU).splitlines() if "`" in line
    }
    assert "10 (another)" in rows["lion"]
    assert "another" not in rows["adamw"]
    drawn = pictures.PICTURES["seconds"].data(kept, CPU)
    assert [point["name"] for point in drawn["points"]] == ["adamw", "sage"]


def test_without_results_the_page_says_what_runs_them(tmp_path: Path) -> None:
    text = page.text(a_store(tmp_path), CPU)
    for study in studies.STUDIES:
        assert f"`python benchmarks/train/run.py --study {study}`" in text
        assert study == "main" or f"Study `{study}` has not run yet" in text
    assert "![" not in text
    assert "nothing is ranked" in text
    assert {claim.judge(a_store(tmp_path)).word for claim in claims.CLAIMS} == {NOT_RUN}


def test_a_whole_page_has_every_section_and_every_picture(whole: Store) -> None:
    text = page.text(whole, TINY)
    assert "has not run yet" not in text
    assert "Not finished" not in text
    for picture in pictures.PICTURES.values():
        assert f"![{picture.alt}](results/{picture.name}.svg)" in text
    for heading in ("What is fixed", "Spread", "What was not shown"):
        assert f"## {heading}" in text
    assert "c0ffee" in text
    assert text.count("run.py --scale test --study") > len(claims.CLAIMS)
    assert "run.py --study" not in text
    assert "my-text; 3 documents" in text
    assert "/some/where" not in text  # a path of somebody's machine
    for rows in text.split("\n\n"):  # a table's rows have as many cells as its head
        if rows.startswith("| "):
            assert len({row.count(" | ") for row in rows.splitlines() if row[1] != "-"}) == 1, rows


def test_a_study_that_is_under_way_is_said_to_be(whole: Store, tmp_path: Path) -> None:
    part = a_store(tmp_path, dict(whole.results))
    for run in [run for run in part.results if run.startswith("iterations") and ".seed-iterations1." in run]:
        del part.results[run]
    text = page.text(part, TINY)
    assert "**Not finished**: 57 of 60 runs." in text
    assert row_of(text, "| 1 | -")[:3] == ["1", "-", "-"]


# ------------------------------------------------------------------------------------------------- pictures


def test_an_optimizer_has_one_look_and_the_demos_colour() -> None:
    from llama.figures import OWN, STYLES

    assert set(CONTENDERS) == set(contenders())
    looks = [(style.color, style.marker) for style in CONTENDERS.values()]
    assert len(set(looks)) == len(looks)
    for name in set(OWN) & set(CONTENDERS):
        assert CONTENDERS[name].color == STYLES[OWN[name]][0]


def test_curves_are_of_one_optimizer_a_colour_adamw_among_them() -> None:
    chosen = pictures.representatives(["schedule-free", "sage", "sage-hybrid", "adamw", "lion"])
    assert chosen == ["sage", "adamw", "lion"]


def test_pictures_are_drawn_once_and_anew_when_their_data_changes(whole: Store, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    kept = a_store(tmp_path / "results", dict(whole.results))
    folder = tmp_path / "pictures"
    assert pictures.stale(kept, TINY, folder) == list(pictures.PICTURES)
    assert [path.stem for path in pictures.write(kept, TINY, folder)] == list(pictures.PICTURES)
    assert pictures.stale(kept, TINY, folder) == []
    for name in pictures.PICTURES:
        file = folder / f"{name}.svg"
        words = " ".join(ElementTree.parse(file).getroot().itertext())
        assert ("step size" if name.startswith("alias") else "perplexity") in words, name
        assert file.stat().st_size < 150_000
    assert "0.000125" not in words  # the last is the sweep, which has a logarithmic axis
    assert "diverged at 0.032" in words

    run = "sweep.sage.0.001"
    kept.results[run] = json.loads(json.dumps(kept.results[run]))
    kept.results[run]["result"]["loss"] += 0.1
    assert pictures.stale(kept, TINY, folder) == ["sweep"]
    assert [path.stem for path in pictures.write(kept, TINY, folder)] == ["sweep"]
    for run in [run for run in kept.results if run.startswith("sweep")]:
        del kept.results[run]
    assert pictures.write(kept, TINY, folder) == []
    assert not (folder / "sweep.svg").exists()


def test_the_pictures_in_docs_are_what_the_results_say() -> None:
    assert pictures.stale(Store(store.RESULTS), CPU, DOCS / "results") == [], (
        "run make report REPORT=--no-run"
    )


# -------------------------------------------------------------------------------------------------- command


def test_the_command_runs_all_studies_writes_and_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, each in seeds(4.1, 4.2, 4.3, contender="adamw").items():
        store.write(tmp_path / "results" / f"{run}.json", each)
    asked: list[list[str]] = []
    monkeypatch.setattr(runner, "main", lambda words: asked.append(words) or 0)
    monkeypatch.setattr(pictures, "write", lambda *_, **__: [])  # drawn above
    monkeypatch.setattr(pictures, "stale", lambda *_: [])
    where = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "docs")]
    assert command.main([*where, "--check"]) == 1
    assert command.main([*where, "--jobs", "2"]) == 0
    assert [words[1] for words in asked] == list(studies.STUDIES)
    assert all(words[2:4] == ["--jobs", "2"] for words in asked)
    assert command.main([*where, "--check"]) == 0
    assert command.main([*where, "--no-run"]) == 0
    assert len(asked) == len(studies.STUDIES)

    written = tmp_path / "docs" / "results.md"
    kept = written.read_text().replace("# Which", "# By hand: which")
    written.write_text(kept.replace("± ", "± 1"))
    assert command.main([*where, "--check"]) == 1
    assert "results.md: out of date" in capsys.readouterr().err
    assert command.main([*where, "--no-run"]) == 0
    assert written.read_text() == kept  # what stands outside of the marks stays

    monkeypatch.setattr(runner, "main", lambda words: 2)
    assert command.main(where) == 2
    assert "--no-run" in capsys.readouterr().err
