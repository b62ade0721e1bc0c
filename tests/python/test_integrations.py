"""sage_ext.integrations: with the real packages where they are installed, else by the form of their calls."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import pytest
import support
import torch
from integration_support import EXAMPLES, decays, run_example, stand_in
from models import TinyLanguageModel, loss_of
from torch import nn

from sage_ext.integrations import arguments
from sage_ext.optimizers import FusedHybrid, FusedSinkGD


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

    @pytest.mark.parametrize(
        ("own", "expected"),
        [
            ({}, {"lora_A": "matrix", "lora_B": "matrix"}),
            ({"use_dora": True}, {"lora_A": "matrix", "lora_magnitude_vector": "vector"}),
            ({"modules_to_save": ["lm_head", "embed_tokens"]}, {"lm_head": "lm_head", "embed": "embedding"}),
            ({"trainable_token_indices": [1, 2]}, {"trainable_tokens_delta": "embedding"}),
        ],
    )
    def test_roles_of_what_peft_trains(self, own: dict[str, Any], expected: dict[str, str]) -> None:
        import trainer_run

        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **own)
        model = peft.get_peft_model(trainer_run.model_of(), config)
        optimizer = self.module.HybridFactory()(model, "scale")
        trained = {name for name, param in model.named_parameters() if param.requires_grad}
        assert set(decays(optimizer)) == trained
        for kind, role in expected.items():
            found = {
                (group["role"], group.get("dim"))
                for group in optimizer.param_groups
                for name in group["param_names"]
                if kind in name
            }
            assert found == {(role, {"embedding": 0, "vector": None}.get(role, 1))}

    def test_arguments_arrive_as_users_write_them(self, tmp_path: Path) -> None:
        import trainer_run

        kwargs = {"preset": "lion", "lr": 3e-4, "betas": [0.8, 0.9], "weight_decay": 0.2, "no_decay": []}
        trainer = trainer_run.trainer_of(tmp_path, trainer_run.model_of(), kwargs)
        trainer.create_optimizer()
        groups = trainer.optimizer.param_groups
        assert {(group["lr"], group["weight_decay"]) for group in groups} == {(3e-4, 0.2)}
        assert {tuple(group["betas"]) for group in groups if group["rule"] == "lion"} == {(0.8, 0.9)}

    def test_a_trainer_without_factories_is_told_what_to_do(self) -> None:
        with pytest.raises(
            TypeError, match=r"older than factories: update transformers, or pass optimizers="
        ):
            self.module.HybridFactory([{"params": []}], lr=1e-3)

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
        assert float(optimizer._first_losses.taken[group]) == pytest.approx(sum(seen[:2]), rel=1e-6)
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
        assert float(optimizer._first_losses.taken[0]) == 12.0
        assert not model._forward_hooks

    def test_decay_that_alias_cannot_split_is_refused_with_a_cure(self) -> None:
        import trainer_run

        build = self.module.HybridFactory()
        with pytest.raises(ValueError, match=r'^no_decay: .*q_proj.bias .*alias=\{"weight_decay": 0.0\}'):
            build(trainer_run.model_of(), "alias", weight_decay=0.1)
        optimizer = build(trainer_run.model_of(), "alias", weight_decay=0.1, alias={"weight_decay": 0.0})
        assert sorted({group["weight_decay"] for group in optimizer.param_groups}) == [0.0, 0.1]


def test_docs_have_the_lines_of_the_examples() -> None:
    """What an example marks as its first and second line, up to arguments that the page leaves out."""
    page = re.sub(r"\s+", "", (EXAMPLES.parents[1] / "docs" / "trainers.md").read_text())
    texts = [path.read_text() for path in EXAMPLES.iterdir() if path.is_file()]
    marked = [line for text in texts for line in re.findall(r"^(.*?),? +# [12]$", text, re.MULTILINE)]
    assert len(marked) == 8
    for line in marked:
        short = re.sub(r"^engine.*optimizer=optimizer, |, weight_decay=.*|,sinkgd.*|\)$", "", line.strip())
        assert re.sub(r"\s+", "", short) in page, line


@pytest.mark.parametrize("shape", [(1, 40), (40, 1)], ids=["A", "B"])
def test_sinkgd_on_a_lora_of_rank_one_is_sign_descent(shape: tuple[int, int]) -> None:
    """As docs/trainers.md says."""
    torch.manual_seed(0)
    param = nn.Parameter(torch.zeros(shape))
    param.grad = torch.randn(shape)
    FusedSinkGD([param], lr=1.0, alpha=0.5).step()
    torch.testing.assert_close(param.detach(), -0.5 * param.grad.sign())


class TestArguments:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (None, {}),
            ("", {}),
            ("preset=sage", {"preset": "sage"}),
            ("lr=1e-3, betas=(0.9,0.95)", {"lr": 1e-3, "betas": (0.9, 0.95)}),
            ("sinkgd.iterations=3,sinkgd.eps=0", {"sinkgd": {"iterations": 3, "eps": 0}}),
            ("maximize=False,capturable=true,eps=none", {"maximize": False, "capturable": True, "eps": None}),
            ({"lr": "2e-3", "lion": {"betas": "[0.8, 0.9]"}}, {"lr": 2e-3, "lion": {"betas": [0.8, 0.9]}}),
            ({"lion": {"lr": 0.1}, "lion.betas": "(0, 0)"}, {"lion": {"lr": 0.1, "betas": (0, 0)}}),
        ],
    )
    def test_text(self, given: Any, expected: dict[str, Any]) -> None:
        assert arguments.parse(given) == expected

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("preset", "got 'preset', expected key=value"),
            ("lr=", "got 'lr=', expected key=value"),
            ("lr=1,lr.sage=2", "lr.sage says what is in lr, which has a value itself"),
            ("lr.sage=2,lr=1", "lr is given a value, and lr.sage, too"),
        ],
    )
    def test_errors(self, given: str, message: str) -> None:
        with pytest.raises(ValueError, match=f"^optim_args: {message}"):
            arguments.parse(given)


class Configuration(dict):
    """axolotl's DictDefault, as far as it is read: what is not there is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


class TestAxolotl:
    @pytest.fixture(autouse=True)
    def package(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """axolotl 0.18.0 in what a plugin sees of it, where it is not installed."""
        pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        if importlib.util.find_spec("axolotl") is None:
            base = stand_in(monkeypatch, "axolotl.integrations.base")
            base.BasePlugin = type("BasePlugin", (), {})
        monkeypatch.delitem(sys.modules, "sage_ext.integrations.axolotl", raising=False)
        self.module = importlib.import_module("sage_ext.integrations.axolotl")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield

    def trainer(self, cfg: Configuration, folder: Path, model: nn.Module, **own: Any) -> Any:
        """What axolotl's builder and train() do: a trainer, then the plugins, then its create_optimizer()."""
        import trainer_run

        trainer = trainer_run.trainer_of(
            folder, model, {}, learning_rate=float(cfg.learning_rate), weight_decay=cfg.weight_decay or 0.0
        )
        trainer.optimizer_cls_and_kwargs = None
        for name, value in own.items():
            setattr(trainer.args, name, value)
        for plugin in cfg.plugins:
            module, name = plugin.rsplit(".", 1)
            getattr(importlib.import_module(module), name)().post_trainer_create(cfg, trainer)

        def create_optimizer(model: Any = None) -> Any:
            factory, kwargs = trainer.optimizer_cls_and_kwargs
            assert not issubclass(factory, torch.optim.Optimizer)
            trainer.optimizer = factory()(trainer.model if model is None else model, trainer.args, **kwargs)
            return trainer.optimizer

        trainer.create_optimizer = create_optimizer
        return trainer

    def test_example(self, tmp_path: Path) -> None:
        import trainer_run
        import yaml

        text = (EXAMPLES / "axolotl.yml").read_text()
        cfg = Configuration(yaml.safe_load(text))
        trainer = self.trainer(cfg, tmp_path, trainer_run.model_of())
        trainer.train()
        groups = trainer.optimizer.optimizer.param_groups
        assert {group["initial_lr"] for group in groups} == {float(cfg.learning_rate)}
        assert {group["iterations"] for group in groups if group["rule"] == "sinkgd"} == {3}
        expected = {name for name, _ in trainer.model.named_parameters() if "norm" in name or "bias" in name}
        assert {name for name, decay in decays(trainer.optimizer).items() if not decay} == expected

    def test_resumes_bit_for_bit(self, tmp_path: Path) -> None:
        import trainer_run

        cfg = Configuration(
            plugins=["sage_ext.integrations.axolotl.SageExtPlugin"], learning_rate="1e-2", weight_decay=0.1,
            adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-7, optim_args={"preset": "sinkgd", "lr": "2e-2"},
        )  # fmt: skip
        ends = []
        for folder, resume in (("straight", None), ("resumed", True)):
            if resume:
                shutil.copytree(tmp_path / "straight" / "checkpoint-2", tmp_path / folder / "checkpoint-2")
            trainer = self.trainer(cfg, tmp_path / folder, trainer_run.model_of())
            trainer.train(resume_from_checkpoint=resume)
            ends.append(models.snapshot(trainer.optimizer.optimizer))
        adamw = next(group for group in trainer.optimizer.param_groups if group["rule"] == "adamw")
        assert (adamw["betas"], adamw["eps"], adamw["initial_lr"]) == ((0.8, 0.9), 1e-7, 2e-2)
        support.assert_same_bits(*ends)

    @pytest.mark.parametrize(
        ("own", "expected"), [({"embedding_lr": 1e-4}, 1e-4), ({"embedding_lr_scale": 0.5}, 5e-3), ({}, 1e-2)]
    )
    def test_rate_of_embeddings(self, own: dict[str, float], expected: float, tmp_path: Path) -> None:
        import trainer_run

        plugin = "sage_ext.integrations.axolotl.SageExtPlugin"
        cfg = Configuration(plugins=[plugin], learning_rate=1e-2)
        trainer = self.trainer(cfg, tmp_path, trainer_run.model_of(), **own)
        rates = {group["role"]: group["lr"] for group in trainer.create_optimizer().param_groups}
        assert (rates["embedding"], rates["lm_head"], rates["matrix"]) == (expected, expected, 1e-2)

    def test_hook_that_makes_the_optimizer_itself(self, tmp_path: Path) -> None:
        import trainer_run

        cfg = Configuration(plugins=[], learning_rate=1e-2, optim_args="preset=lion")
        trainer = self.trainer(cfg, tmp_path, trainer_run.model_of())
        optimizer = self.module.SageExtPlugin().create_optimizer(cfg, trainer)
        assert {group["rule"] for group in optimizer.param_groups} == {"lion", "sinkgd"}

    def test_what_it_cannot_do_is_refused(self) -> None:
        arguments = types.SimpleNamespace(lr_groups=[{"name": "a"}], loraplus_lr_ratio=None)
        with pytest.raises(ValueError, match=r"^lr_groups: .*say learning rates by rule"):
            self.module.HybridFactory()(TinyLanguageModel(), arguments, lr="1e-3")


@pytest.mark.filterwarnings("ignore")
class TestWithoutAModuleOfOurs:
    """Lightning and its Fabric, as docs/trainers.md says."""

    EPOCH = range(2)  # Lightning goes on with the next epoch

    @pytest.fixture(autouse=True)
    def lightning(self) -> None:
        self.pl = pytest.importorskip("pytorch_lightning")

    def fit(self, folder: Path, steps: int, manual: bool = False, **arguments: Any) -> list[torch.Tensor]:
        class Module(self.pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(5)
                self.model = TinyLanguageModel()
                self.automatic_optimization = not manual

            def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor | None:
                loss = loss_of(self.model, int(batch))
                if not manual:
                    return loss
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                return None

            def configure_optimizers(self) -> FusedHybrid:
                return FusedHybrid(self.model, "sinkgd")

        module = Module()
        saves = self.pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)
        trainer = self.pl.Trainer(
            accelerator="cpu", max_steps=steps, logger=False, callbacks=[saves], enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(self.EPOCH), **arguments)
        return models.snapshot(trainer.optimizers[0])

    def plain(self) -> list[torch.Tensor]:
        torch.manual_seed(5)
        model = TinyLanguageModel()
        optimizer = FusedHybrid(model, "sinkgd")
        models.train(model, optimizer, [*self.EPOCH] * 2)
        return models.snapshot(optimizer)

    def test_lightning_resumes(self, tmp_path: Path) -> None:
        support.assert_same_bits(self.plain(), self.fit(tmp_path / "straight", 4))
        self.fit(tmp_path / "half", 2)
        resumed = self.fit(tmp_path / "rest", 4, ckpt_path=tmp_path / "half" / "step=2.ckpt")
        support.assert_same_bits(self.plain(), resumed)

    def test_lightning_by_hand(self, tmp_path: Path) -> None:
        support.assert_same_bits(self.plain(), self.fit(tmp_path, 4, manual=True))

    def test_fabric(self) -> None:
        fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu")
        torch.manual_seed(5)
        model = TinyLanguageModel()
        optimizer = FusedHybrid(model, "sinkgd")
        wrapped, wrapper = fabric.setup(model, optimizer)
        for seed in [*self.EPOCH] * 2:
            wrapper.zero_grad()
            fabric.backward(loss_of(wrapped, seed))
            wrapper.step()
        support.assert_same_bits(self.plain(), models.snapshot(optimizer))

    @pytest.mark.parametrize("name", ["accelerate", "lightning"])
    def test_killed_and_resumed(self, name: str, tmp_path: Path) -> None:
        """The weights and states of a run that was never interrupted, bit for bit, clipped and scheduled."""
        import killed_run

        pytest.importorskip({"lightning": "pytorch_lightning"}.get(name, name))
        folders = [tmp_path / "straight", tmp_path / "killed"]
        for folder in folders:
            folder.mkdir()
        script = [sys.executable, killed_run.__file__, name, str(folders[1]), "3"]
        environment = {**os.environ, "PYTHONPATH": ""}
        result = subprocess.run(script, env=environment, cwd=tmp_path, capture_output=True, check=False)
        assert result.returncode == -signal.SIGKILL, result.stderr.decode()
        assert len(list(folders[1].iterdir())) == 1
        straight, resumed = (killed_run.RUNS[name](folder) for folder in folders)
        support.assert_same_bits(straight, resumed)
        assert len(list(folders[0].iterdir())) == len(list(folders[1].iterdir())) == 3
