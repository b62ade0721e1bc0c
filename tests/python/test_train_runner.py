"""The runner of ``benchmarks/train``: plans, the search, what is kept, and a tiny run from end to end."""

from __future__ import annotations

import json
import math
import multiprocessing
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest_plugins = ["example_support"]

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "train"
sys.path.insert(0, str(BENCHMARK))

from lab import budget, build, packages, plan, runner, search, single, store, studies, text, worker  # noqa: E402
from lab.contenders import EVERYTHING, PRESET, contenders  # noqa: E402
from lab.scales import SCALES, Model  # noqa: E402
from llama.errors import UsageError  # noqa: E402

TINY = SCALES["test"]


# ---------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("study", studies.STUDIES)
def test_a_plan_is_the_same_every_time_and_names_no_run_twice(study: str) -> None:
    ids = [run.id for run in studies.plan(study, SCALES["cpu"])]
    assert ids == [run.id for run in studies.plan(study, SCALES["cpu"])]
    assert [name for name, count in Counter(ids).items() if count > 1] == []


def test_every_contender_has_the_same_budget_and_what_finds_its_rates_has_no_search() -> None:
    runs = studies.plan("main", SCALES["cpu"])
    for name, contender in packages.available().items():
        of_name = [run for run in runs if run.contender == name]
        searches = [run.tokens for run in of_name if run.stage == "search"]
        seeds = [run.tokens for run in of_name if run.stage == "seed"]
        assert searches == [SCALES["cpu"].search_tokens] * (search.RUNS if contender.searched else 0), name
        assert seeds == [SCALES["cpu"].final_tokens] * len(plan.SEEDS), name


def test_a_run_waits_only_for_runs_before_it_or_of_the_main_study() -> None:
    main = {run.id for run in studies.plan("main", TINY)}
    for study in studies.STUDIES:
        seen: set[str] = set()
        for run in studies.plan(study, TINY):
            assert set(run.needs) <= seen | main, run.id
            seen.add(run.id)


def test_contenders_differ_in_their_groups_alone_and_begin_at_the_same_points(tmp_path: Path) -> None:
    empty = store.Store(tmp_path)
    first = {run.id: run.config(empty) for run in studies.plan("main", TINY) if run.id.endswith("search0")}
    assert len(first) == sum(contender.searched for contender in packages.available().values())
    for config in first.values():
        assert config.pop("groups")
        assert config.pop("schedule") in ("cosine", "constant")
    assert len({json.dumps(config) for config in first.values()}) == 1


@pytest.mark.parametrize("name", contenders())
def test_a_contender_gives_every_role_one_rate_and_the_rates_are_the_searchs(name: str) -> None:
    contender = contenders()[name]
    rates = {"embedding": 0.011, "matrix": 0.0022, "lm_head": 0.0033}
    groups = contender.make(rates if contender.searched else {}, 100)
    assert sorted(role for group in groups for role in group["roles"]) == sorted(EVERYTHING)
    if contender.searched:
        given = {group["roles"][0]: group["lr"] for group in groups}
        assert given["embedding"] == rates["embedding"]
        assert given["lm_head"] == rates["lm_head"]
        assert given["matrix"] in (rates["matrix"], rates["matrix"] / 0.2)  # Muon's own factor taken out
    assert json.loads(json.dumps(groups)) == groups


# --------------------------------------------------------------------------------------------------- search


def bowl(best: np.ndarray, stretch: np.ndarray) -> Callable[[dict[str, float]], float]:
    return lambda rates: 4.0 + float((stretch * (np.array(search.point(rates)) - best) ** 2).sum())


@pytest.mark.parametrize("hidden", [192, 512])
@pytest.mark.parametrize("name", [name for name in contenders() if name.startswith(PRESET)])
def test_a_preset_among_the_contenders_is_the_preset_as_it_is(name: str, hidden: int) -> None:
    """What it is configured with is what ``FusedHybrid(model, name)`` has, in a model of any width."""
    from sage_ext.optimizers import FusedHybrid

    wide = Model(hidden, layers=1, heads=1, ffn=2 * hidden)
    run = plan.configured(TINY, contenders()[name], tokens=64, seed=0, model=wide)({})
    layers = {
        "embed_tokens": torch.nn.Embedding(8, hidden),
        "up": torch.nn.Linear(hidden, 2 * hidden),
        "down": torch.nn.Linear(2 * hidden, hidden, bias=False),
        "gate": torch.nn.Linear(hidden, 2 * hidden, bias=False),
        "head": torch.nn.Linear(hidden, 8, bias=False),
    }
    optimizer = FusedHybrid(torch.nn.ModuleDict(layers), name.removeprefix(PRESET), lm_head=["head.weight"])
    assert {role for group in run["groups"] for role in group["roles"]} == set(EVERYTHING)
    for group in optimizer.param_groups:
        (asked,) = [asked for asked in run["groups"] if group["role"] in asked["roles"]]
        for key in ("rule", "lr", "alpha", "dim", "momentum", "iterations", "normalization"):
            assert asked.get(key) == group.get(key), (key, group["role"])


def test_the_search_finds_the_bottom_of_a_bowl_better_than_the_same_number_of_random_runs() -> None:
    draw = np.random.default_rng(0)
    found, random = [], []
    for _ in range(20):
        loss = bowl(draw.uniform(0.1, 0.9, 3), draw.uniform(0.3, 3.0, 3))
        done: list[tuple[dict[str, float], float]] = []
        for _ in range(search.RUNS):
            rates = search.propose(done)
            done.append((rates, loss(rates)))
        found.append(min(value for _, value in done) - 4)
        random.append(min(loss(search.rates(draw.random(3))) for _ in range(search.RUNS)) - 4)
    assert np.median(found) < 0.4 * np.median(random)


def test_the_search_is_deterministic_stays_in_its_ranges_and_bears_divergence() -> None:
    done: list[tuple[dict[str, float], float]] = []
    for k in range(search.RUNS):
        rates = search.propose(done)
        assert rates == search.propose(list(done))
        for name, (low, high) in search.RANGES.items():
            assert low <= rates[name] <= high
        done.append((rates, math.inf if k % 3 == 1 else 5.0 - 0.1 * k))
    assert len({tuple(rates.values()) for rates, _ in done}) == search.RUNS
    assert all(math.isfinite(x) for x in search.propose([(rates, math.inf) for rates, _ in done]).values())


def test_a_rate_at_the_end_of_its_range_is_pointed_out() -> None:
    middle = search.rates((0.5, 0.5, 0.5))
    assert search.at_edge(middle) == []
    assert search.at_edge({**middle, "matrix": search.RANGES["matrix"][1]}) == ["matrix"]


# ------------------------------------------------------------------------------------------- what is run next


def result(run: str, loss: float | None, rates: dict[str, float] | None = None) -> dict[str, Any]:
    return {
        "format": store.FORMAT,
        "id": run,
        "text": {"sha256": "text"},
        "config": {"rates": rates or search.rates((0.5, 0.5, 0.5))},
        "result": {
            "loss": loss,
            "perplexity": None if loss is None else math.exp(loss),
            "cpu_seconds": 1.0,
            "state_bytes": 8,
            "parameters": 2,
        },
    }


def write_and_end(head: dict[str, Any], path: Path, fails: bool) -> None:
    if fails:
        raise SystemExit(3)
    store.write(path, {**head, "result": result(head["id"], 5.0)["result"]})


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs study "main" with processes that write a made-up result; names in ``fails`` die instead."""
    started: list[str] = []

    def run(*, limit: int | None = None, jobs: int = 1, fails: tuple[str, ...] = (), only: Any = ("lion",)):
        started.clear()

        def start(head: dict[str, Any], tokens: Path, path: Path) -> Any:
            started.append(head["id"])
            process = multiprocessing.get_context("fork").Process(
                target=write_and_end, args=(head, path, head["id"] in fails)
            )
            process.start()
            return process

        monkeypatch.setattr(worker, "start", start)
        tokens = text.Text(tmp_path, {"sha256": "text"}, np.empty(0), {})
        options = Namespace(jobs=jobs, limit=limit, scale="test", text=[])
        runs = studies.plan("main", TINY, only=only)
        code = runner.Runner("main", runs, store.Store(tmp_path / "results"), tokens, options).run()
        return code, list(started)

    return run


def test_what_is_done_is_not_done_again(loop: Callable[..., Any], tmp_path: Path) -> None:
    planned = [run.id for run in studies.plan("main", TINY, only=["lion"])]
    assert loop(limit=4) == (0, planned[:4])
    (tmp_path / "results" / f"{planned[1]}.json").unlink()
    assert loop() == (0, [planned[1], *planned[4:]])
    assert loop() == (0, [])


def test_runs_at_once_are_of_different_contenders_while_they_search(loop: Callable[..., Any]) -> None:
    code, started = loop(jobs=4, only=("lion", "scale"), limit=2)
    assert (code, sorted(started)) == (0, ["main.lion.search0", "main.scale.search0"])


def test_a_run_that_dies_leaves_no_result_and_the_others_go_on(
    loop: Callable[..., Any], tmp_path: Path
) -> None:
    code, started = loop(fails=("main.lion.search2",), only=("lion", "alias"))
    assert code == 1
    assert started.count("main.lion.search2") == 1
    assert not (tmp_path / "results" / "main.lion.search2.json").exists()
    assert "main.lion.search3" not in started  # needs what failed
    assert {"main.alias.seed.1", "main.alias.seed.2", "main.alias.seed.3"} <= set(started)


def test_seeds_are_run_at_the_best_rates_of_the_search(tmp_path: Path) -> None:
    kept = store.Store(tmp_path)
    losses = [5.0, None, 4.5, 4.8, 4.5, 5.5, 5.5, 5.5, 5.5]
    points = np.random.default_rng(0).random((search.RUNS, 3))
    for k, (loss, at) in enumerate(zip(losses, points, strict=True)):
        store.write(tmp_path / f"{k}.json", result(f"main.lion.search{k}", loss, search.rates(at)))
    kept = store.Store(tmp_path)
    run = next(run for run in studies.plan("main", TINY) if run.id == "main.lion.seed.1")
    config = run.config(kept)
    assert config["rates"] == search.rates(points[2])
    assert [group["lr"] for group in config["groups"]][:3] == list(config["rates"].values())


def test_a_study_of_variants_changes_what_it_says_and_nothing_else(tmp_path: Path) -> None:
    for name in ("adamw-sinkgd-scale", "sage-hybrid"):
        for k in range(search.RUNS):
            store.write(tmp_path / f"{name}{k}.json", result(f"main.{name}.search{k}", 5.0 + k))
    kept = store.Store(tmp_path)
    best = kept["main.sage-hybrid.search0"]["config"]["rates"]

    def rule(config: dict[str, Any], name: str) -> dict[str, Any]:
        return next(group for group in config["groups"] if group.get("rule") == name)

    for run in studies.plan("iterations", TINY, only=["adamw-sinkgd-scale"]):
        if run.is_ready(kept):
            sinkgd = rule(run.config(kept), "sinkgd")
            assert sinkgd["iterations"] == run.variant["iterations"]
            assert sinkgd["lr"] == pytest.approx(best["matrix"] * run.variant["factor"], rel=1e-2)
    changed = {run.variant["change"]: run for run in studies.plan("ablation", TINY, only=["sage-hybrid"])}
    assert rule(changed["momentum-first"].config(kept), "sage")["momentum_first"] is True
    assert rule(changed["no-instant-damper"].config(kept), "sage")["instant_damper"] is False
    for run in studies.plan("sweep", TINY, only=["sage-hybrid"]):
        rates = run.config(kept)["rates"]
        assert rates == {**best, "embedding": run.variant["rate"], "lm_head": run.variant["rate"]}


# --------------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("content", ['{"format": 1, "id": "x"', "[]", '{"format": 99, "id": "x"}'])
def test_a_file_that_is_no_result_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(UsageError, match=r"broken\.json is not a result"):
        store.Store(tmp_path)


def test_results_on_other_text_are_not_mixed(tmp_path: Path) -> None:
    store.write(tmp_path / "x.json", result("x", 5.0))
    kept = store.Store(tmp_path)
    kept.check_text({"sha256": "text"})
    with pytest.raises(UsageError, match="other text"):
        kept.check_text({"sha256": "another"})


def test_a_result_survives_a_failed_write(tmp_path: Path) -> None:
    path = store.write(tmp_path / "x.json", result("x", 5.0))
    with pytest.raises(ValueError, match="JSON"):
        store.write(path, {"loss": math.nan})
    assert store.read(path) == result("x", 5.0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


# ------------------------------------------------------------------------------------------------ real runs


@pytest.fixture(scope="module")
def tokens(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from lab import text as reading

    return reading.prepare(
        [str(text)], vocab_size=TINY.vocab_size, cache=tmp_path_factory.mktemp("tokens"), say=lambda _: None
    )


@pytest.mark.parametrize("name", [name for name, row in contenders().items() if row.package is None])
def test_every_contender_of_ours_and_torchs_trains(name: str, tokens: Any, threads: None) -> None:
    contender = contenders()[name]
    rates = search.rates((0.5, 0.5, 0.5)) if contender.searched else {}
    config = plan.configured(TINY, contender, tokens=TINY.search_tokens, seed=0)(rates)
    outcome = single.execute(config, tokens)
    assert outcome["result"]["diverged"] is False
    assert outcome["result"]["steps"] == 2
    assert [point["tokens"] for point in outcome["curve"]["validation"]] == [32, 64]
    assert 0 < outcome["result"]["loss"] < 1.1 * math.log(TINY.vocab_size)
    assert outcome["result"]["loss"] == single.execute(config, tokens)["result"]["loss"]  # to the bit


def test_a_budget_picks_a_rule_for_every_matrix_and_what_is_kept_trains(
    tokens: Any, tmp_path: Path, threads: None
) -> None:
    for number, name in enumerate(budget.SOURCES):
        for k, run in enumerate(plan.search_ids(contenders()[name])):
            at = search.rates((0.1 * k, 0.5, 0.9))
            about = {**result(run, 4.0 + number + k, at), "id": run}
            about["config"]["groups"] = contenders()[name].make(at, 10)
            store.write(tmp_path / f"{run}.json", about)
    kept = store.Store(tmp_path)
    first, *runs = studies.plan("budget", TINY)
    config = json.loads(json.dumps(first.config(kept)))
    outcome = budget.execute(config, tokens)
    head = {"format": store.FORMAT, "id": first.id, "config": config, "text": tokens.about}
    store.write(tmp_path / "measured.json", {**head, **outcome})
    kept = store.Store(tmp_path)
    for run in [run for run in runs if run.stage == "seed"][: len(budget.AGAINST)]:
        config = run.config(kept)
        assert config == json.loads(json.dumps(config))
        names = [name for group in config["groups"] for name in group.get("names", ())]
        assert sorted(names) == sorted(outcome["measured"])
        trained = single.execute({**config, "tokens": 32, "evaluations": 1}, tokens)["result"]
        whole = budget.restored(outcome["measured"])
        vectors = trained["state_bytes"] - budget.picked(kept, run.against).state_bytes
        # Of the norms, two in the layer and one behind it: what the hybrid has there, which may be Sign-SGD.
        assert vectors == (0 if "stateless" in run.against else 3 * (8 * TINY.model.hidden + 4))
        assert trained["state_bytes"] <= budget.ROOM * budget.state_of(whole, run.against) + vectors
    # The best of all that had the rule there: AdamW's first run, Lion's, and none had SCALE by rows without
    # momentum on the head.
    assert budget.rate_of(kept, "adamw", "embedding", {}) == search.rates((0.0, 0.5, 0.9))["embedding"]
    assert budget.rate_of(kept, "lion", "matrix", {}) == search.rates((0.0, 0.5, 0.9))["matrix"]
    assert (
        budget.rate_of(kept, "scale", "lm_head", {"momentum": 0.9})
        == search.rates((0.0, 0.5, 0.9))["lm_head"]
    )
    assert budget.rate_of(kept, "scale", "lm_head", {"dim": 1}) is None


def test_settings_are_written_whatever_an_optimizer_has() -> None:
    group = {"params": [torch.ones(1)], "lr": 0.1, "growth_rate": math.inf, "betas": (0.9, 0.99)}
    (written,) = build.settings([torch.optim.SGD([group])])["SGD"]
    assert (written["growth_rate"], written["lr"]) == ("inf", 0.1)
    json.dumps(written, allow_nan=False)


def test_pieces_of_a_batch_change_nothing_but_rounding(tokens: Any, threads: None) -> None:
    config = plan.configured(TINY, contenders()["adamw"], tokens=256, seed=0, batch=4)(
        search.rates((0.5,) * 3)
    )
    config["amp"] = "none"
    whole = single.execute(config, tokens)["result"]["loss"]
    assert single.execute({**config, "micro_batch": 3}, tokens)["result"]["loss"] == pytest.approx(
        whole, rel=1e-5
    )


def test_a_compiled_run_is_an_eager_one_but_for_rounding(tokens: Any, threads: None) -> None:
    config = plan.configured(TINY, contenders()["adamw"], tokens=64, seed=0)(search.rates((0.5,) * 3))
    eager = single.execute(config, tokens)["result"]["loss"]
    compiled = single.execute({**config, "compile": "eager"}, tokens)["result"]["loss"]
    assert compiled == pytest.approx(eager, rel=1e-3)


@pytest.mark.parametrize(
    ("rule", "tall", "wide"),  # of [4, 1] and [1, 4] where the model is 4 wide
    [("rms", 1, 1), ("unit", 1, 2), ("fan-in", 4, 1), ("spectral", 8 / 3, 2 / 3)],
)
def test_the_rate_by_the_shape_of_a_matrix(rule: str, tall: float, wide: float) -> None:
    assert build.shape_factor(rule, (4, 1), 4) == pytest.approx(tall)
    assert build.shape_factor(rule, (1, 4), 4) == pytest.approx(wide)
    assert build.shape_factor(rule, (4, 4), 4) == 1


def test_a_shape_rule_gives_each_shape_its_rate(tokens: Any, threads: None) -> None:
    config = plan.configured(TINY, contenders()["adamw-sinkgd-scale"], tokens=32, seed=0)(
        search.rates((0.5,) * 3)
    )
    (matrices,) = (group for group in config["groups"] if group["roles"] == ["matrix"])
    matrices["shape_rule"] = {"rule": "fan-in", "width": TINY.model.hidden}
    (optimizer,) = single.Run(config, tokens).optimizers
    rates = {
        tuple(p.shape): group["lr"] / matrices["lr"]
        for group in optimizer.param_groups
        if group["rule"] == "sinkgd"
        for p in group["params"]
    }
    hidden, ffn = TINY.model.hidden, TINY.model.ffn
    assert rates == {(hidden, hidden): 1, (ffn, hidden): 1, (hidden, ffn): hidden / ffn}


def test_matrices_on_a_sphere_keep_their_norm_and_move_across(threads: None) -> None:
    torch.manual_seed(0)
    held, free = torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(5, 3))
    start = held.detach().clone()
    optimizer = torch.optim.SGD([held, free], lr=0.1)
    build.on_sphere(optimizer, {held})
    for p in (held, free):
        p.grad = start.clone() + torch.eye(5, 3)
    expected = start - 0.1 * torch.eye(5, 3) * 1.0
    along = (torch.eye(5, 3) * start).sum() / start.norm() ** 2
    expected += 0.1 * along * start  # only what is across moves it
    before = free.detach().clone()
    optimizer.step()
    assert torch.allclose(held, expected * start.norm() / expected.norm(), atol=1e-6)
    assert torch.allclose(free, before - 0.1 * free.grad)


def test_a_run_that_diverges_is_kept_as_such(tokens: Any, tmp_path: Path, threads: None) -> None:
    config = plan.configured(TINY, contenders()["sign-sgd"], tokens=256, seed=0)(
        dict.fromkeys(search.RANGES, 1e37)
    )
    outcome = single.execute(config, tokens)
    assert outcome["result"]["diverged"] is True
    assert outcome["result"]["loss"] is None
    head = {"format": store.FORMAT, "id": "x", "config": config, "text": tokens.about}
    store.write(tmp_path / "x.json", {**head, **outcome})
    assert store.Store(tmp_path).loss("x") == math.inf


def test_the_command_from_end_to_end(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--scale", "test", "--results", tmp_path / "results", "--cache", tmp_path / "tokens"]
    words = [*map(str, [*words, "--text", text]), "--only", "alias", "--study", "main"]

    def command(*arguments: str) -> str:
        assert runner.main([*words, *arguments]) == 0
        return capsys.readouterr().out

    done = subprocess.run(
        [sys.executable, BENCHMARK / "run.py", *words, "--limit", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").iterdir()
    kept = json.loads(path.read_text())
    assert kept["id"] == "main.alias.seed.1"
    assert kept["config"]["seed"] == 1
    assert kept["config"]["tokens"] == TINY.final_tokens
    assert kept["text"]["tokens"]["train"] > 0
    assert {"python", "torch", "transformers", "sage_ext"} <= set(kept["versions"])
    assert kept["result"]["perplexity"] == pytest.approx(math.exp(kept["result"]["loss"]), rel=1e-4)
    assert kept["optimizers"]["FusedHybrid"][0]["rule"] == "alias"
    assert len(kept["curve"]["train_loss"]) == 4
    assert kept["command"].endswith("--rerun main.alias.seed.1")

    again = command("--rerun", "main.alias.seed.1")
    value = f"{kept['result']['perplexity']:.2f}"
    assert again.strip().endswith(f"perplexity {value} kept, {value} now"), again
    status = command("--status")
    assert "1 of 3 runs are done" in status
    assert value in status
