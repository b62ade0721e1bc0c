"""The example's optimizers, its comparison of them, and what that leaves behind."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from example_support import SIZES
from llama import corpus, figures, optim, report
from llama.cli import DEMO_COMPARE
from llama.loop import Trainer, lr_factor
from llama.rows import ROWS
from llama.settings import Settings

from sage_ext.reference.alias import ALIAS_SCALARS

pytest_plugins = ["example_support"]
pytestmark = pytest.mark.usefixtures("here_and_offline")


def test_interrupt_in_a_comparison_can_be_resumed(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--compare", "adamw,sgd", "--steps", "8", "--out", "both"]
    train_step = Trainer.train_step

    def stop_in_the_second(trainer: Trainer, *stops: bool) -> None:
        train_step(trainer, *stops)
        if trainer.choice.name == "sgd" and trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    monkeypatch.setattr(Trainer, "train_step", stop_in_the_second)
    status, out, _ = run(*words)
    assert status == 130
    assert "--compare adamw,sgd" in out
    assert out.rstrip().endswith("--resume")
    steps: list[str] = []

    def count(trainer: Trainer, *stops: bool) -> None:
        steps.append(trainer.choice.name)
        train_step(trainer, *stops)

    monkeypatch.setattr(Trainer, "train_step", count)
    assert run(*words, "--resume")[0] == 0
    assert steps == ["sgd"] * 5
    assert Path("both/results.json").is_file()


def test_without_matplotlib_all_but_the_pictures_is_written(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, _ = run("--compare", "adamw,sgd", "--steps", "2", "--eval-every", "0", "--out", "plain")
    assert status == 0
    assert {path.name for path in Path("plain").iterdir() if path.is_file()} == {"results.md", "results.json"}
    assert "pip install matplotlib" in out
    assert "png" not in Path("plain/results.md").read_text()


def test_demo_writes_table_json_and_pictures(run: Callable) -> None:
    pytest.importorskip("matplotlib")
    status, out, _ = run("demo", "--steps", "12", "--eval-every", "6")
    assert status == 0
    pictures = ("perplexity.png", "state_memory.png", "step_time.png")  # step sizes are the schedule's
    files = {path.name for path in Path("demo_out").iterdir() if path.is_file()}
    assert files == {"results.md", "results.json", *pictures}
    facts = json.loads(Path("demo_out/results.json").read_text())
    names = [result["optimizer"] for result in facts["results"]]
    assert names == list(DEMO_COMPARE)
    adamw = facts["results"][0]
    assert adamw["optimizer"] == "adamw"
    assert adamw["state_bytes"] >= 8 * adamw["parameters"]
    for result in facts["results"]:
        assert len(result["history"]["loss"]) == 12
        assert result["history"]["validation"][-1][0] == 12
        assert result["validation_perplexity"] == pytest.approx(math.exp(result["validation_loss"]))
        assert result["history"]["loss"][0] == pytest.approx(adamw["history"]["loss"][0], abs=0)  # same start
        assert 0 < sum(result["history"]["step_seconds"]) <= result["history"]["seconds"]
        assert result["history"]["cpu_seconds"] > 0
    for name in names:
        assert name in out
        assert name in Path("demo_out/results.md").read_text()
    for line in facts["verdict"]:
        assert line in out
    for name in pictures:
        assert f"({name})" in Path("demo_out/results.md").read_text()
        assert Path("demo_out", name).read_bytes().startswith(b"\x89PNG")
        assert str(Path("demo_out", name)) in out
    assert run("demo", "--steps", "2", "--eval-every", "0")[0] == 0  # a second demo replaces the first


def result_like(name: str, perplexity: float, state: int = 100, ms: float = 2.0) -> dict:
    return {
        "optimizer": name,
        "label": name,
        "parameters": 7_400_000,
        "steps_done": 2,
        "validation_perplexity": perplexity,
        "state_bytes": state * report.MIB,
        "optimizer_ms": ms,
    }


@pytest.mark.parametrize(
    ("perplexity", "words"),
    [
        (90.0, "is ahead of adamw: perplexity 90.0 against 100.0 (-10.0%), "),
        (110.0, "is behind adamw: perplexity 110.0 against 100.0 (+10.0%), "),
        (101.0, "is level with adamw within 2%: perplexity 101.0 against 100.0 (+1.0%), "),
        (99.0, "is level with adamw within 2%: perplexity 99.0 against 100.0 (-1.0%), "),
        (math.inf, "diverged at these settings (adamw: perplexity 100.0), "),
    ],
)
def test_sentence_follows_the_numbers_whichever_way_they_went(perplexity: float, words: str) -> None:
    ours, base = result_like("sage-hybrid", perplexity, 25, 1.5), result_like("adamw", 100.0)
    line, _ = report.verdict([ours, base], Settings())
    assert line == (
        f"sage-hybrid {words}with 25.00 MiB of optimizer state against 100.00 (25.0%) "
        "and an optimizer step of 1.50 ms against 2.00 (0.75 times)."
    )


def test_sentence_of_a_baseline_that_diverged() -> None:
    line, _ = report.verdict([result_like("adamw", math.inf), result_like("scale", 50.0)], Settings())
    assert line.startswith("scale ends at perplexity 50.0; adamw diverged")


@pytest.mark.parametrize(
    ("steps", "said"), [(150, "150 steps, 154 k tokens"), (2000, "2,000 steps, 2.0 M tokens")]
)
def test_last_sentence_says_what_was_not_shown(steps: int, said: str) -> None:
    results = [result_like(name, 100.0) for name in DEMO_COMPARE]
    *lines, last = report.verdict(results, Settings(steps=steps))
    assert len(lines) == len(DEMO_COMPARE) - 1
    assert last.startswith("Not shown: ")
    assert f"one seed, 7.4 M parameters and {said}." in last


# --- pictures ---


def test_an_optimizer_has_one_colour_in_every_comparison() -> None:
    demo = dict(zip(DEMO_COMPARE, figures.styles(DEMO_COMPARE), strict=True))
    assert len(set(demo.values())) == len(demo)
    for names in (DEMO_COMPARE[::-1], ("sgd", "scale:lr=1", "adam", "adamw"), ("sgd:lr=1", "sage-hybrid")):
        chosen = figures.styles(names)
        assert len(set(chosen)) == len(names)
        for name, style in zip(names, chosen, strict=True):
            assert style == demo.get(name.partition(":")[0], style)
    twins = figures.styles(["adamw", "adamw:lr=1"])
    assert twins[0] == demo["adamw"] != twins[1]
    assert len(figures.styles(list(ROWS))) == len(ROWS)  # more than there are colours


def test_step_sizes_are_drawn_only_where_they_are_not_the_schedule(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    settings = Settings(steps=20, warmup=5)
    given = [
        [step, 0.02 * lr_factor(step - 1, steps=20, warmup=5, final=settings.final_lr)]
        for step in range(1, 21)
    ]
    found = [[step, 1e-3] for step in range(1, 21)]
    history = {"loss": [5.0, 4.0], "validation": [[2, 4.5]], "step_size": {"matrix (sinkgd)": given}}
    result = {**result_like("scale", 90.0), "history": history}

    def drawn(step_size: dict) -> set[str]:
        of_alias = {**result, "optimizer": "alias", "history": {**history, "step_size": step_size}}
        files = figures.draw(tmp_path, [result, of_alias], settings)
        assert set(files) == set(tmp_path.glob("*.png"))
        return {path.name for path in files}

    assert drawn({"alias": found}) == set(figures.NAMES)
    assert drawn({"alias_adam": given}) == set(figures.NAMES) - {"step_size.png"}  # the old one is gone


# --- state and step size ---


@pytest.fixture
def trained(text: Path) -> Callable[..., Trainer]:
    """Trains for a few steps with an optimizer and returns the trainer."""

    def train(optimizer: str, **changes: object) -> Trainer:
        made = corpus.prepare([str(text)], vocab_size=320)
        settings = {**SIZES, "steps": 4, "warmup": 0, "eval_every": 0, **changes, "optimizer": optimizer}
        trainer = Trainer(Settings(**settings), made)
        trainer.run(say=lambda line: None)
        return trainer

    return train


def parameters(trainer: Trainer) -> list[torch.Tensor]:
    return list(trainer.model.parameters())


def test_state_bytes_are_those_of_the_real_state(trained: Callable[..., Trainer]) -> None:
    trainer = trained("sage-hybrid", steps=1)
    tables = 2 * trainer.corpus.vocab_size * 32  # embedding and head: a momentum each
    vectors = sum(p.numel() for p in parameters(trainer) if p.ndim == 1)
    counters = sum("step" in state for state in trainer.optimizer.state.values())
    ranges = 2 * 32 + vectors
    assert optim.state_bytes(trainer.optimizer) == 4 * (tables + vectors + ranges + counters)


def test_state_bytes_count_what_a_group_shares(trained: Callable[..., Trainer]) -> None:
    scalars = 72
    lower_bound = trained("alias-lower-bound", steps=1)
    assert optim.state_bytes(lower_bound.optimizer) == scalars
    numbers = sum(p.numel() for p in parameters(lower_bound))
    assert optim.state_bytes(trained("alias-base", steps=1).optimizer) == scalars + 4 * numbers
    assert all(p.numel() % 32 == 0 for p in parameters(lower_bound))
    assert optim.state_bytes(trained("alias-descent", steps=1).optimizer) == scalars + numbers // 4


@pytest.mark.parametrize("name", ["alias-descent", "alias-lower-bound", "alias-base", "alias"])
def test_alias_is_one_group_with_one_step_size(name: str, trained: Callable[..., Trainer]) -> None:
    trainer = trained(f"{name}:weight_decay=0.1", steps=2)
    groups = [group for group in trainer.optimizer.param_groups if group["rule"] == "alias"]
    assert len(groups) == 1
    count = len(parameters(trainer))
    assert len(groups[0]["params"]) == (count - 1 if name == "alias" else count)  # the preset's head: AdamW
    assert groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_alias_begins_with_the_loss_of_the_first_step(
    accumulate: int, trained: Callable[..., Trainer]
) -> None:
    trainer = trained("alias-lower-bound:lower_bound=0.5", accumulate=accumulate)
    scalars = trainer.optimizer.param_groups[0]["scalars"]
    assert scalars[ALIAS_SCALARS.index("d")].item() == pytest.approx(trainer.history.loss[0] - 0.5, abs=1e-6)


def by_role(embedding: str, matrix: str, head: str, vector: str) -> dict[str, float]:
    return {
        f"embedding ({embedding})": 0.02,
        f"lm_head ({head})": 0.003,
        f"matrix ({matrix})": 0.002,
        f"vector ({vector})": 0.001,
    }


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("adamw", by_role("AdamW", "AdamW", "AdamW", "AdamW")),
        ("sinkgd-scale", by_role("adamw", "sinkgd", "scale", "adamw")),
        ("adam", {"Adam": 0.002}),
        ("alias-adam", {"alias_adam": 0.002}),
    ],
)
def test_step_size_is_the_learning_rate_of_the_step(
    name: str, rates: dict[str, float], trained: Callable[..., Trainer]
) -> None:
    others = "embedding_lr=0.02:head_lr=0.003:vector_lr=0.001:" if len(rates) > 1 else ""
    trainer = trained(f"{name}:{others}lr=0.002", steps=6, warmup=2)
    factors = [lr_factor(step, steps=6, warmup=2, final=trainer.settings.final_lr) for step in range(6)]
    assert trainer.history.step_size.keys() == rates.keys()
    for key, points in trainer.history.step_size.items():
        steps, sizes = zip(*points, strict=True)
        assert steps == tuple(range(1, 7))
        assert sizes == pytest.approx([rates[key] * factor for factor in factors])
    assert trainer.result()["history"]["step_size"] == trainer.history.step_size


def test_step_size_of_alias_is_the_one_that_it_found(trained: Callable[..., Trainer]) -> None:
    trainer = trained("alias-base:gap=descent:d0=1:max_step=0.01:warmup_steps=2", steps=8, warmup=4)
    points = trainer.history.step_size["alias"]
    assert [step for step, _ in points] == list(range(1, 9))
    sizes = [size for _, size in points]
    assert sizes[:2] == pytest.approx([0.0025, 0.005])  # the scheduler's warm-up, towards max_step
    assert len(set(sizes[2:])) == 6
    assert all(0 < size <= 0.01 for size in sizes)
    assert sizes[-1] == trainer.optimizer.step_size()


def test_step_size_is_read_only_where_a_step_is_logged(trained: Callable[..., Trainer]) -> None:
    trainer = trained("alias", steps=1)
    trainer.device = torch.device("cuda")  # where reading waits; nothing runs there
    logged = []
    for trainer.step in range(1, 31):
        logged += [trainer.step] if trainer.is_logged else []
    assert logged == [1, 10, 20, 30]  # 1 is the last of its steps, and evaluated


def test_curves_of_rules_that_go_the_same_way_are_one() -> None:
    constant, falling = [[1, 1e-3], [2, 1e-3]], [[1, 1e-3], [2, 5e-4]]
    history = {"step_size": {"sage": constant, "adamw": falling, "sinkgd": constant}}
    curves = figures.step_size_curves({"history": history})
    assert curves == {"sage, sinkgd": constant, "adamw": falling}


@pytest.mark.parametrize("size", [0.0, math.nan, math.inf, 1e-3])
def test_step_sizes_that_no_axis_holds_are_left_out(size: float, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = {**result_like("alias", 90.0), "history": {"step_size": {"alias": [[1, size]]}}}
    nothing = {**result, "history": {"step_size": {}}}
    path = figures.step_size(tmp_path / "step_size.png", [result, nothing], Settings())
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("amp", ["none", "bf16"])
@pytest.mark.parametrize("name", optim.ROWS)
def test_every_optimizer_takes_steps(name: str, amp: str, trained: Callable[..., Trainer]) -> None:
    trainer = trained(name, amp=amp, steps=2)
    start = Trainer(trainer.settings, trainer.corpus).model.named_parameters()
    for (name, before), param in zip(start, parameters(trainer), strict=True):
        assert not torch.equal(param, before), name
        assert param.isfinite().all(), name
