"""The example's optimizers, its comparison of them, and what that leaves behind."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from example_support import SIZES
from llama import corpus, optim, report
from llama.loop import Trainer, lr_factor
from llama.settings import Settings

from sage_ext.reference.alias import ALIAS_SCALARS

pytest_plugins = ["example_support"]
pytestmark = pytest.mark.usefixtures("here_and_offline")


def test_interrupt_in_a_comparison_can_be_resumed(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--compare", "adamw,sgd", "--steps", "8", "--out", "both"]
    train_step = Trainer.train_step

    def stop_in_the_second(trainer: Trainer) -> None:
        train_step(trainer)
        if trainer.choice.name == "sgd" and trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    monkeypatch.setattr(Trainer, "train_step", stop_in_the_second)
    status, out, _ = run(*words)
    assert status == 130
    assert "--compare adamw,sgd" in out
    assert out.rstrip().endswith("--resume")
    steps: list[str] = []

    def count(trainer: Trainer) -> None:
        steps.append(trainer.choice.name)
        train_step(trainer)

    monkeypatch.setattr(Trainer, "train_step", count)
    assert run(*words, "--resume")[0] == 0
    assert steps == ["sgd"] * 5
    assert Path("both/results.json").is_file()


def test_demo_writes_table_json_and_pictures(run: Callable) -> None:
    status, out, _ = run("demo", "--steps", "12", "--eval-every", "6")
    assert status == 0
    files = {path.name for path in Path("demo_out").iterdir() if path.is_file()}
    assert files == {"results.md", "results.json", "loss.png", "state_memory.png", "step_size.png"}
    facts = json.loads(Path("demo_out/results.json").read_text())
    names = [result["optimizer"] for result in facts["results"]]
    assert names[0] == "adamw"
    assert "sage-hybrid" in [name.partition(":")[0] for name in names]
    adamw = facts["results"][0]
    assert adamw["state_bytes"] >= 8 * adamw["parameters"]
    for result in facts["results"]:
        assert len(result["history"]["loss"]) == 12
        assert result["history"]["validation"][-1][0] == 12
        assert result["validation_perplexity"] == pytest.approx(math.exp(result["validation_loss"]))
        assert result["history"]["loss"][0] == pytest.approx(adamw["history"]["loss"][0], abs=0)  # same start
    for name in names:
        assert name in out
        assert name in Path("demo_out/results.md").read_text()
    for name in ("loss.png", "state_memory.png", "step_size.png"):
        assert f"({name})" in Path("demo_out/results.md").read_text()
        assert Path("demo_out", name).read_bytes().startswith(b"\x89PNG")
        assert str(Path("demo_out", name)) in out
    assert run("demo", "--steps", "2", "--eval-every", "0")[0] == 0  # a second demo replaces the first


def result_like(name: str, perplexity: float, state: int = 100) -> dict:
    return {
        "optimizer": name,
        "label": name,
        "validation_perplexity": perplexity,
        "state_bytes": state,
        "optimizer_ms": 2.0,
    }


@pytest.mark.parametrize(
    ("perplexity", "words"),
    [(90.0, "is ahead of"), (110.0, "NOT ahead of"), (101.0, "about level"), (math.inf, "diverged")],
)
def test_verdict_is_plain_whichever_way_it_went(perplexity: float, words: str) -> None:
    (line,) = report.verdict([result_like("sage-hybrid", perplexity, 25), result_like("adamw", 100.0)])
    assert words in line
    assert line.startswith("sage-hybrid ")
    assert "25.0% of its optimizer state" in line


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


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("adamw", ["AdamW"]),
        ("fused-adamw", ["adamw"]),
        ("sage-hybrid", ["sage", "sinkgd"]),
        ("alias-adam", ["alias_adam"]),
    ],
)
def test_step_size_is_the_learning_rate_of_the_step(
    name: str, rules: list[str], trained: Callable[..., Trainer]
) -> None:
    trainer = trained(f"{name}:lr=0.002", steps=6, warmup=2)
    expected = [
        [step + 1, pytest.approx(0.002 * lr_factor(step, steps=6, warmup=2, final=trainer.settings.final_lr))]
        for step in range(6)
    ]
    assert sorted(trainer.history.step_size) == rules
    for points in trainer.history.step_size.values():
        assert points == expected
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
    curves = report.step_size_curves({"history": history})
    assert curves == {"sage, sinkgd": constant, "adamw": falling}


@pytest.mark.parametrize("size", [0.0, math.nan, math.inf, 1e-3])
def test_step_sizes_that_no_axis_holds_are_left_out(size: float, tmp_path: Path) -> None:
    result = {
        **result_like("alias", 90.0),
        "parameters": 1000,
        "history": {"step_size": {"alias": [[1, size]]}},
    }
    nothing = {**result, "history": {"step_size": {}}}
    path = report.step_size_figure(tmp_path, [result, nothing], Settings())
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("amp", ["none", "bf16"])
@pytest.mark.parametrize("name", optim.ROWS)
def test_every_optimizer_takes_steps(name: str, amp: str, trained: Callable[..., Trainer]) -> None:
    trainer = trained(name, amp=amp, steps=2)
    start = Trainer(trainer.settings, trainer.corpus).model.named_parameters()
    for (name, before), param in zip(start, parameters(trainer), strict=True):
        assert not torch.equal(param, before), name
        assert param.isfinite().all(), name
