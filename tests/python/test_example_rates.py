"""The demo's contenders: a learning rate for each role of each, found with as many runs, in time."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from example_support import EXAMPLES, SIZES
from llama import optim
from llama.cli import DEMO_COMPARE
from llama.model import build_model
from llama.rows import RATES, ROWS
from llama.settings import Settings
from lr_grid import run, search

from sage_ext.routing import route

pytest_plugins = ["example_support"]
pytestmark = pytest.mark.usefixtures("here_and_offline")

RESULTS = EXAMPLES.parent / "benchmarks" / "results"
BY_ROLE = [name for name, row in ROWS.items() if set(RATES.values()) <= set(row.defaults)]


def tiny(tied: bool = False) -> torch.nn.Module:
    names = ("hidden", "layers", "heads", "vocab_size", "seq_len")
    return build_model(**{name: SIZES[name] for name in names}, ffn=64, tied=tied, seed=0)


# --- rates by role ---


def test_every_contender_of_the_demo_has_its_rates_by_role() -> None:
    assert set(DEMO_COMPARE) <= set(BY_ROLE)
    assert DEMO_COMPARE[0] == report_baseline()
    assert all(ROWS[name].tuned for name in DEMO_COMPARE)


def report_baseline() -> str:
    from llama.report import BASELINE

    return BASELINE


@pytest.mark.parametrize("name", BY_ROLE)
def test_each_rate_goes_to_its_role_alone(name: str) -> None:
    model = tiny()
    rates = {setting: 0.001 * (index + 1) for index, setting in enumerate(RATES.values())}
    spec = ":".join([name, *(f"{setting}={rate:g}" for setting, rate in rates.items())])
    optimizer = optim.build(optim.parse(f"{spec}:weight_decay=0.5"), model)
    given = {id(param): group for group in optimizer.param_groups for param in group["params"]}
    routed = route(model)
    assert len(routed) == len(given)
    assert {entry.role for entry in routed} == set(RATES)
    for entry in routed:
        group = given[id(entry.param)]
        assert group["role"] == entry.role
        assert group["lr"] == pytest.approx(rates[RATES[entry.role]])
        assert group["weight_decay"] == (0.0 if entry.role == "vector" else 0.5)


@pytest.mark.parametrize("name", [name for name in BY_ROLE if name != "adamw"])
def test_every_hyperparameter_of_a_group_is_the_rows_or_the_rules_own(name: str) -> None:
    choice = optim.parse(name)
    optimizer = optim.build(choice, tiny())
    for group in optimizer.param_groups:
        own = optimizer.rules[group["rule"]].defaults
        for key in own.keys() - {"lr", "weight_decay", "dim", "momentum"}:
            assert group[key] == choice.settings.get(key, own[key]), key
        if group["rule"] == "scale":
            assert group["dim"] == (0 if group["role"] == "embedding" else 1)
            assert group["momentum"] == (choice.settings["momentum"] if group["role"] == "lm_head" else 0)


def test_a_tied_head_has_the_rule_that_the_row_says() -> None:
    roles = {
        name: {
            group["role"]: group["rule"]
            for group in optim.build(optim.parse(name), tiny(tied=True)).param_groups
        }
        for name in ("sinkgd-scale", "scale")
    }
    assert roles["sinkgd-scale"] == {"embedding": "adamw", "matrix": "sinkgd", "vector": "adamw"}
    assert roles["scale"] == {"lm_head": "scale", "matrix": "scale", "vector": "adamw"}


# --- how they were found ---


def bowl(best: dict[str, float]):
    """A loss with its least value at ``best``, and the rates that it was asked for."""
    asked: list[dict[str, float]] = []

    def loss(rates: dict[str, float]) -> float:
        asked.append(dict(rates))
        if max(rates.values()) > 1:
            return math.nan
        return sum(math.log2(rates[name] / best[name]) ** 2 for name in best)

    return loss, asked


@pytest.mark.parametrize("best", [{"a": 4e-3, "b": 5e-4}, {"a": 1e-3, "b": 2e-3}, {"a": 1e-3, "b": 1e-3}])
def test_search_finds_the_rates_and_keeps_to_its_budget(best: dict[str, float]) -> None:
    loss, asked = bowl(best)
    found = search(loss, {"a": 1e-3, "b": 1e-3}, 14)
    assert len(asked) == 14
    assert len({tuple(rates.values()) for rates in asked}) == 14
    assert found == best


def test_a_search_that_is_cut_short_is_the_beginning_of_a_longer_one() -> None:
    (loss, long), (again, short) = bowl({"a": 8e-3, "b": 1e-4}), bowl({"a": 8e-3, "b": 1e-4})
    start = {"a": 1e-3, "b": 1e-3}
    search(loss, start, 12)
    best = search(again, start, 5)
    assert len(short) == 5
    assert short == long[:5]
    assert best == min(list(short), key=loss)


def test_search_stays_where_everything_else_diverges() -> None:
    loss, asked = bowl({"a": 1.0})
    assert search(lambda rates: loss(rates) if rates["a"] == 1 else math.nan, {"a": 1.0}, 4) == {"a": 1.0}
    assert asked == [{"a": 1.0}]  # and comes to an end, though there are runs left


def test_a_finished_run_is_read_back_unless_its_settings_are_others(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    class Finished:
        def __init__(self, settings: Settings, _text: object) -> None:
            ran.append(settings.optimizer)

        def run(self, **_: object) -> None:
            pass

        def result(self) -> dict:
            zero = {"optimizer_ms": 0.0, "tokens_per_second": 0.0, "validation_perplexity": 2.0, "label": ""}
            return {**zero, "validation_loss": math.nan, "state_bytes": 8}

    monkeypatch.setattr("lr_grid.Trainer", Finished)
    monkeypatch.setattr("lr_grid.corpus.prepare", lambda *_, **__: None)
    path = tmp_path / "grid" / "results.jsonl"
    first = run(path, "adamw:lr=0.5", {"steps": 3})
    assert first["validation_loss"] is None
    assert run(path, "adamw:lr=0.5", {"steps": 3}) == first
    assert ran == ["adamw:lr=0.5"]
    run(path, "adamw:lr=0.5", {"steps": 4})
    changed = {**ROWS["adamw"].defaults, "head_lr": 0.25}
    monkeypatch.setitem(ROWS, "adamw", type(ROWS["adamw"])(ROWS["adamw"].build, "", changed))
    run(path, "adamw:lr=0.5", {"steps": 3})  # the same words, another row
    assert len(ran) == 3


def test_rates_of_the_demo_are_the_best_that_are_on_record() -> None:
    found = json.loads((RESULTS / "demo_rates.json").read_text())
    settings = Settings()
    for name in ("steps", "warmup", "final_lr", "seed", "tied"):
        assert found["settings"][name] == getattr(settings, name), name
    counts = set()
    for name in DEMO_COMPARE:
        runs = [r for r in found["runs"] if r["optimizer"].partition(":")[0] == name]
        counts.add(len(runs))
        best = min((r for r in runs if r["validation_loss"] is not None), key=lambda r: r["validation_loss"])
        assert json.loads(json.dumps(ROWS[name].defaults)) == best["optimizer_settings"], name
    assert len(counts) == 1  # as many runs for each


# --- time ---


def work(s: Settings) -> float:
    """Tokens of a run; of validation a third, which is forward alone."""
    evaluations = -(-s.steps // s.eval_every)
    return s.steps * s.tokens_per_step + evaluations * s.val_windows * s.seq_len / 3


def test_demo_takes_less_than_five_minutes_on_two_cores() -> None:
    """Today's demo, at the speed of the recorded one."""
    found = json.loads((RESULTS / "demo.json").read_text())
    recorded = Settings.from_dict({**found["settings"], "optimizer": "adamw"})

    def seconds(result: dict) -> float:
        # Processor time where there is one: the machine may have been busy, and threads that wait sleep.
        cpu = result["history"].get("cpu_seconds")
        return cpu / 2 if cpu else work(recorded) / result["tokens_per_second"]

    slowest = max(map(seconds, found["results"]))
    assert len(DEMO_COMPARE) * slowest * work(Settings()) / work(recorded) < 300


@pytest.mark.parametrize("own", [None, "ACTIVE"])
def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise(own: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= {"OMP_DISPLAY_ENV": "verbose"} | ({"OMP_WAIT_POLICY": own} if own else {})
    script = [sys.executable, str(EXAMPLES / "train_llama.py"), "--help"]
    told = subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stderr
    spins = re.search(r"GOMP_SPINCOUNT = '(\d+)'", told)
    if spins is None:
        pytest.skip("this torch has another OpenMP than GNU's")
    assert (int(spins[1]) <= 10_000) == (own is None)
