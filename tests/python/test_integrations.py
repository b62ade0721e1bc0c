"""sage_ext.integrations: with the real packages where they are installed, else by the form of their calls."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import pytest
import support
import torch
from torch import nn

from sage_ext.optimizers import FusedHybrid, FusedSinkGD

ROOT = Path(__file__).resolve().parents[2]


def run_example(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a script of examples/integrations in ``folder``, and return what it has made."""
    monkeypatch.chdir(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return runpy.run_path(str(ROOT / "examples" / "integrations" / f"{name}.py"))


def decays(optimizer: FusedHybrid) -> dict[str, bool]:
    """Name of a parameter -> whether it has weight decay."""
    return {
        name: group["weight_decay"] > 0 for group in optimizer.param_groups for name in group["param_names"]
    }


def test_importing_them_imports_no_framework() -> None:
    code = "import sys, sage_ext.integrations; print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


class TestTransformers:
    @pytest.fixture(autouse=True)
    def package(self) -> Iterator[None]:
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        if not hasattr(transformers.trainer, "is_optimizer_factory"):
            pytest.skip("this Trainer calls no factories")
        self.module = pytest.importorskip("sage_ext.integrations.transformers")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Trainer's own
            yield

    def test_example(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trainer = run_example("trainer", tmp_path, monkeypatch)["trainer"]
        optimizer = trainer.optimizer.optimizer
        assert isinstance(optimizer, FusedHybrid)
        assert {group["initial_lr"] for group in optimizer.param_groups} == {2e-3}
        assert all(param.isfinite().all() for param in trainer.model.parameters())
        assert (tmp_path / "runs" / "trainer" / "checkpoint-20" / "optimizer.pt").is_file()

    @pytest.mark.parametrize("peft", [False, True], ids=["whole", "lora"])
    def test_decay_is_where_trainer_has_it(self, peft: bool, tmp_path: Path) -> None:
        import trainer_run

        model = trainer_run.model_of()
        if peft:
            package = pytest.importorskip("peft")
            config = package.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"])
            model = package.get_peft_model(model, config)
        ends = []
        for own in (True, False):
            trainer = trainer_run.trainer_of(tmp_path, model, {"weight_decay": 0.1}, weight_decay=0.1)
            if own:
                trainer.optimizer_cls_and_kwargs = None
            trainer.create_optimizer()
            names = {id(param): name for name, param in model.named_parameters()}
            ends.append(
                {
                    names[id(param)]: group["weight_decay"] > 0
                    for group in trainer.optimizer.param_groups
                    for param in group["params"]
                }
            )
        assert ends[0] == ends[1] == decays(trainer.optimizer)
        assert set(ends[0].values()) == {True, False}

    def test_arguments_arrive_as_users_write_them(self, tmp_path: Path) -> None:
        import trainer_run

        kwargs = {"preset": "lion", "lr": 3e-4, "betas": [0.8, 0.9], "weight_decay": 0.2, "no_decay": []}
        trainer = trainer_run.trainer_of(tmp_path, trainer_run.model_of(), kwargs)
        trainer.create_optimizer()
        groups = trainer.optimizer.param_groups
        assert {(group["lr"], group["weight_decay"]) for group in groups} == {(3e-4, 0.2)}
        assert {tuple(group["betas"]) for group in groups if group["rule"] == "lion"} == {(0.8, 0.9)}

    def test_killed_and_resumed(self, tmp_path: Path) -> None:
        """The weights and states of a run that was never interrupted, bit for bit."""
        import trainer_run

        def run(folder: str, **arguments: Any) -> list[torch.Tensor]:
            model = trainer_run.model_of()
            trainer = trainer_run.trainer_of(tmp_path / folder, model, trainer_run.ARGUMENTS)
            trainer.train(**arguments)
            return models.snapshot(trainer.optimizer.optimizer)

        script = [sys.executable, trainer_run.__file__, str(tmp_path / "killed"), "3"]
        environment = {**os.environ, "PYTHONPATH": ""}
        result = subprocess.run(script, env=environment, cwd=tmp_path, capture_output=True, check=False)
        assert result.returncode == -signal.SIGKILL, result.stderr.decode()
        assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-2"]
        support.assert_same_bits(run("straight"), run("killed", resume_from_checkpoint=True))

    def test_first_loss_is_that_of_the_model(self, tmp_path: Path) -> None:
        import trainer_run

        model = trainer_run.model_of()
        seen: list[float] = []
        model.register_forward_hook(lambda *call: seen.append(float(call[-1]["loss"])))
        kwargs = {"preset": "alias", "alias": {"gap": "lower_bound"}}
        trainer = trainer_run.trainer_of(tmp_path, model, kwargs, save_strategy="no", max_steps=2)
        trainer.train()
        optimizer = trainer.optimizer.optimizer
        group = next(index for index, g in enumerate(optimizer.param_groups) if g["rule"] == "alias")
        # Trainer tells the model how many tokens both batches of a step have: each loss is a share.
        assert float(optimizer._losses[group]) == pytest.approx(sum(seen[:2]), rel=1e-6)
        assert len(seen) == 4
        assert len(model._forward_hooks) == 1, "only that of this test is left"

    def test_losses_of_several_batches_are_averaged(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(2, 3))

            def forward(self, factor: float) -> dict[str, torch.Tensor]:
                return {"loss": factor * self.weight.sum()}

        model = Model()
        optimizer = self.module.HybridFactory()(model, "alias", alias={"gap": "lower_bound"})
        with torch.no_grad():
            model(100.0)
        for factor in (1.0, 3.0):
            model(factor)["loss"].backward()
        optimizer.step()
        assert float(optimizer._losses[0]) == 12.0
        assert not model._forward_hooks

    def test_decay_that_alias_cannot_split_is_refused_with_a_cure(self) -> None:
        import trainer_run

        build = self.module.HybridFactory()
        with pytest.raises(ValueError, match=r'^no_decay: .*q_proj.bias .*alias=\{"weight_decay": 0.0\}'):
            build(trainer_run.model_of(), "alias", weight_decay=0.1)
        optimizer = build(trainer_run.model_of(), "alias", weight_decay=0.1, alias={"weight_decay": 0.0})
        assert sorted({group["weight_decay"] for group in optimizer.param_groups}) == [0.0, 0.1]


@pytest.mark.parametrize("shape", [(1, 40), (40, 1)], ids=["A", "B"])
def test_sinkgd_on_a_lora_of_rank_one_is_sign_descent(shape: tuple[int, int]) -> None:
    """As docs/trainers.md says."""
    torch.manual_seed(0)
    param = nn.Parameter(torch.zeros(shape))
    param.grad = torch.randn(shape)
    FusedSinkGD([param], lr=1.0, alpha=0.5).step()
    torch.testing.assert_close(param.detach(), -0.5 * param.grad.sign())
