"""sage_ext.integrations that are plugins of LLaMA-Factory, ms-swift, NeMo Automodel and Megatron-LM.

As in test_integrations.py the real packages are used where they are installed; else stand-ins call as they
do, in the versions that the docstrings of the modules name.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
import pytest
import support
import torch
from integration_support import EXAMPLES, decays, run_example, stand_in
from models import TinyLanguageModel, loss_of
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from sage_ext.optimizers import FusedALIAS, FusedHybrid, FusedLion, FusedSCALE, FusedSinkGD

FOUND = {
    package
    for package in ("llamafactory", "swift", "nemo_automodel", "megatron")
    if importlib.util.find_spec(package)
}
SETTINGS = {"name": "sage_ext", "preset": "sinkgd", "lr": 1e-3, "weight_decay": 0.1, "sinkgd": {"lr": 0.02}}


def load(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """Import a module of sage_ext.integrations anew, with the stand-ins that are there."""
    monkeypatch.delitem(sys.modules, f"sage_ext.integrations.{name}", raising=False)
    return importlib.import_module(f"sage_ext.integrations.{name}")


def train(model: nn.Module, optimizer: Any, steps: Sequence[int]) -> list[torch.Tensor]:
    models.train(model, optimizer, steps)
    return models.snapshot(optimizer)


def assert_resumes(build: Callable[[], tuple[nn.Module, Any]], save: Callable, restore: Callable) -> None:
    """A run that goes on from what was saved ends with the bits of one that was not interrupted."""
    model, optimizer = build()
    train(model, optimizer, range(2))
    saved, weights = copy.deepcopy(save(model, optimizer)), copy.deepcopy(model.state_dict())
    straight = train(model, optimizer, range(2, 4))
    model, optimizer = build()
    model.load_state_dict(weights)
    restore(model, optimizer, saved)
    support.assert_same_bits(straight, train(model, optimizer, range(2, 4)))


class TestLlamaFactory:
    @pytest.fixture(autouse=True)
    def package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        if "llamafactory" not in FOUND:
            registry: dict[str, Any] = {}

            class OptimizerPlugin:
                def __init__(self, name: str) -> None:
                    self.name = name

                def register(self) -> Callable[[Any], Any]:
                    return lambda plugin: registry.setdefault(self.name, plugin)

                def __call__(self, *args: Any) -> Any:
                    return registry[self.name](*args)

            place = "llamafactory.v1.plugins.trainer_plugins.optimizers.optimizer"
            stand_in(monkeypatch, place).OptimizerPlugin = OptimizerPlugin
        module = load(monkeypatch, "llamafactory")
        self.plugin = module.OptimizerPlugin("sage_ext")

    def test_by_its_name(self) -> None:
        config = type("PluginConfig", (dict,), {})(SETTINGS, no_decay=None)
        optimizer = self.plugin(TinyLanguageModel(), config)
        rates = {group["rule"]: group["lr"] for group in optimizer.param_groups}
        assert rates == {"sinkgd": 0.02, "adamw": 1e-3}
        assert {n for n, decay in decays(optimizer).items() if not decay} == {
            "up.bias", "down.bias", "norm.weight", "norm.bias",
        }  # fmt: skip
        assert config["name"] == "sage_ext"

    def test_resumes_bit_for_bit(self) -> None:
        """Through the state dicts of torch.distributed.checkpoint, as its checkpoints do."""

        def build() -> tuple[nn.Module, Any]:
            torch.manual_seed(5)
            model = TinyLanguageModel()
            return model, self.plugin(model, SETTINGS)

        assert_resumes(build, get_optimizer_state_dict, lambda m, o, s: set_optimizer_state_dict(m, o, s))

    def test_example(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        stand_in(monkeypatch, "llamafactory.v1.trainers.sft_trainer").run_sft = lambda: None
        run_example("llamafactory_train", tmp_path, monkeypatch)
        assert self.plugin(TinyLanguageModel(), {"name": "sage_ext", "lr": 1e-3}).param_groups


class TestMsSwift:
    @pytest.fixture(autouse=True)
    def package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        if "swift" not in FOUND:

            class OptimizerCallback:
                def __init__(self, args: Any, trainer: Any) -> None:
                    self.args, self.trainer = args, trainer

            module = stand_in(monkeypatch, "swift.optimizers")
            module.OptimizerCallback, module.optimizers_map = OptimizerCallback, {}
        load(monkeypatch, "ms_swift")
        self.map = sys.modules["swift.optimizers"].optimizers_map

    def trainer(self, folder: Path, model: nn.Module, optim_args: str | None) -> Any:
        """What ms-swift's trainer does with the map."""
        import trainer_run

        trainer = trainer_run.trainer_of(folder, model, {}, learning_rate=1e-3, weight_decay=0.1)
        trainer.optimizer_cls_and_kwargs = None
        trainer.args.optim_args = optim_args
        trainer.args.max_epochs = None  # which ms-swift, once imported, asks every Trainer for
        callback = self.map["sage_ext"](trainer.args, trainer)

        def create_optimizer(model: nn.Module | None = None) -> Any:
            trainer.optimizer = callback.create_optimizer(model=model)
            trainer.optimizer.param_groups = [g for g in trainer.optimizer.param_groups if g["params"]]
            return trainer.optimizer

        trainer.create_optimizer = create_optimizer
        return trainer

    def test_arguments(self, tmp_path: Path) -> None:
        model = TinyLanguageModel()
        optimizer = self.trainer(tmp_path, model, None).create_optimizer()
        assert {(group["rule"], group["lr"]) for group in optimizer.param_groups} == {
            ("sage", 1e-3), ("sinkgd", 1e-3),
        }  # fmt: skip
        assert {n for n, decay in decays(optimizer).items() if decay} == {
            "embed.weight", "head.weight", "up.weight", "down.weight",
        }  # fmt: skip
        optimizer = self.trainer(tmp_path, model, "preset=lion, lr.lion=1e-4").create_optimizer(model)
        assert {(group["rule"], group["lr"]) for group in optimizer.param_groups} == {
            ("lion", 1e-4), ("sinkgd", 0.02),
        }  # fmt: skip

    @pytest.mark.filterwarnings("ignore")
    def test_resumes_bit_for_bit(self, tmp_path: Path) -> None:
        import trainer_run

        ends = []
        for resume in (None, str(tmp_path / "checkpoint-2")):
            trainer = self.trainer(tmp_path, trainer_run.model_of(), "preset=sinkgd")
            trainer.train(resume_from_checkpoint=resume)
            ends.append(models.snapshot(trainer.optimizer.optimizer))
        support.assert_same_bits(*ends)

    def test_example(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.map.clear()
        sys.modules.pop("sage_ext.integrations.ms_swift")
        run_example("ms_swift_plugin", tmp_path, monkeypatch)
        assert list(self.map) == ["sage_ext"]


class TestNemo:
    @pytest.fixture(autouse=True)
    def package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if "nemo_automodel" not in FOUND:

            @dataclass
            class OptimizerConfig:
                param_group_overrides: list[Any] = field(default_factory=list)

            stand_in(
                monkeypatch, "nemo_automodel.components.optim.optimizer"
            ).OptimizerConfig = OptimizerConfig
        self.module = load(monkeypatch, "nemo")

    def build(self, section: dict[str, Any], model: nn.Module) -> list[Any]:
        """What its recipes do: the dotted path with the other keys, and then build() with the model."""
        kwargs = dict(section)
        path, name = kwargs.pop("_target_").rsplit(".", 1)
        return getattr(importlib.import_module(path), name)(**kwargs).build(
            model, device_mesh=None, is_peft=False
        )

    def test_example(self) -> None:
        yaml = pytest.importorskip("yaml")
        section = yaml.safe_load((EXAMPLES / "nemo.yml").read_text())["optimizer"]
        model = TinyLanguageModel()
        (optimizer,) = self.build(section, model)
        assert isinstance(optimizer, FusedHybrid)
        assert {group["lr"] for group in optimizer.param_groups} == {2e-3}
        train(model, optimizer, range(2))

    def test_parts_of_a_pipeline(self) -> None:
        model = nn.Module()
        model.parts = [TinyLanguageModel(), nn.Linear(3, 4)]
        config = self.module.HybridConfig(preset="lion")
        optimizers = config.build(model)
        assert [len(decays(optimizer)) for optimizer in optimizers] == [8, 2]

    def test_its_scheduler_keeps_what_each_group_has(self) -> None:
        """It takes the rate and the decay of the first group, and multiplies them for each."""
        config = self.module.HybridConfig(
            preset="sinkgd", lr={"adamw": 1e-3, "sinkgd": 0.02}, weight_decay="0.1",
            no_decay=["embed.weight"], state_dtype="torch.bfloat16",
        )  # fmt: skip
        (optimizer,) = config.build(TinyLanguageModel())
        groups = optimizer.param_groups
        before = [(group["lr"], group["weight_decay"]) for group in groups]
        assert len({rate for rate, _ in before}) == 2
        assert {decay for _, decay in before} == {0.0, 0.1}
        rate, decay = before[0]
        for group in groups:
            group["lr"], group["weight_decay"] = 0.5 * rate * group["lr_mult"], decay * group["wd_mult"]
        assert [(group["lr"], group["weight_decay"]) for group in groups] == [
            (pytest.approx(0.5 * rate), pytest.approx(decay)) for rate, decay in before
        ]
        adamw = next(group for group in groups if group["rule"] == "adamw")
        assert adamw["state_dtype"] == torch.bfloat16

    def test_resumes_bit_for_bit(self) -> None:
        def build() -> tuple[nn.Module, Any]:
            torch.manual_seed(5)
            model = TinyLanguageModel()
            config = self.module.HybridConfig(preset="sinkgd", weight_decay=0.1, no_decay="norm.weight")
            return model, config.build(model)[0]

        assert_resumes(build, get_optimizer_state_dict, lambda m, o, s: set_optimizer_state_dict(m, o, s))

    def test_what_it_cannot_do_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"^param_group_overrides: .*lr: \{sinkgd: 0.02"):
            self.module.HybridConfig(param_group_overrides=[{"pattern": "router"}])
        with pytest.raises(ValueError, match=r"^rule: param group 0 names none"):
            self.module.HybridConfig()._build_optimizer([{"params": [nn.Parameter(torch.ones(2))]}])

    def test_one_rule_by_its_own_path(self) -> None:
        """Called as factory(params=..., **kwargs)."""
        optimizer = FusedLion(params=list(TinyLanguageModel().parameters()), lr=1e-3, weight_decay=0.1)
        assert optimizer.param_groups[0]["weight_decay"] == 0.1


class TestMegatron:
    @pytest.fixture(autouse=True)
    def package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if "megatron" not in FOUND:

            @dataclass
            class EmergingOptimizerEntry:
                optimizer_cls: type
                init_state_fn: Callable[..., None] = lambda optimizer, config=None: [
                    optimizer._init_group(group, skip_non_grad_params=False)
                    for group in optimizer.param_groups
                ]
                config_to_kwargs: Callable[..., dict[str, Any]] | None = None

            module = stand_in(monkeypatch, "megatron.core.optimizer.emerging_optimizers")
            module.EmergingOptimizerEntry, module._EMERGING_OPTIMIZERS = EmergingOptimizerEntry, {}
        self.module = load(monkeypatch, "megatron")
        self.entries = self.module._EMERGING_OPTIMIZERS

    def build(self, name: str, model: nn.Module, tp: int = 1) -> tuple[Any, Callable[[], None]]:
        """What Megatron does with an entry, and with its matrices."""
        entry = self.entries[name]
        config = types.SimpleNamespace(lr=1e-3, min_lr=1e-4, weight_decay=0.1)
        groups = types.SimpleNamespace(tp=types.SimpleNamespace(size=lambda: tp), expt_tp=None)
        kwargs = entry.config_to_kwargs(config, [model], groups)
        more = {"wd_mult": 1.0, "lr_mult": 1.0, "is_expert_parallel": False, "default_config": True}
        matrices = [model.up.weight, model.down.weight]
        optimizer = entry.optimizer_cls(
            [{"params": matrices, "max_lr": 1e-3, "min_lr": 1e-4, **more}], **kwargs
        )
        return optimizer, lambda: entry.init_state_fn(optimizer, config)

    def test_example(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        run_example("megatron_pretrain", tmp_path, monkeypatch)
        model = TinyLanguageModel()
        optimizer, init = self.build("sinkgd", model)
        init()
        before = model.up.weight.detach().clone()
        (group,) = optimizer.param_groups
        found = {key: group[key] for key in ("rule", "lr", "alpha", "weight_decay")}
        assert found == {"rule": "sinkgd", "lr": 1e-3, "alpha": 1.0, "weight_decay": 0.1}
        loss_of(model).backward()
        optimizer.step()
        moved = (model.up.weight.detach() - before).square().mean().sqrt()
        assert float(moved) == pytest.approx(1e-3, rel=0.1), "about the learning rate, as with Adam"
        assert not any(optimizer.state.values())

    @pytest.mark.parametrize(
        ("optimizer", "arguments"), [(FusedSCALE, {"momentum": 0.9}), (FusedLion, {}), (FusedSinkGD, {})]
    )
    def test_state_can_be_made_and_loaded_before_the_first_step(
        self, optimizer: Any, arguments: dict[str, Any]
    ) -> None:
        self.module.register("ours", optimizer, **arguments)
        made: list[bool] = []

        def build() -> tuple[nn.Module, Any]:
            torch.manual_seed(5)
            model = TinyLanguageModel()
            built, init = self.build("ours", model)
            if made:  # as Megatron does before it loads
                init()
                assert set(built.state) <= {model.up.weight, model.down.weight}
                assert bool(built.state) is (optimizer is not FusedSinkGD)
            made.append(True)
            return model, built

        assert_resumes(build, lambda _, o: o.state_dict(), lambda _, o, saved: o.load_state_dict(saved))

    def test_made_state_changes_no_step(self) -> None:
        self.module.register("ours", FusedSCALE, momentum=0.9)
        ends = []
        for makes in (True, False):
            torch.manual_seed(5)
            model = TinyLanguageModel()
            optimizer, init = self.build("ours", model)
            if makes:
                init()
            ends.append(train(model, optimizer, range(2)))
        support.assert_same_bits(*ends)

    def test_what_it_cannot_do_is_refused(self) -> None:
        for optimizer in (FusedALIAS, FusedHybrid):
            with pytest.raises(ValueError, match=f"^optimizer: got {optimizer.__name__}, expected one of a"):
                self.module.register("ours", optimizer)
        self.module.register("sinkgd")
        self.module.register("lion", FusedLion)
        with pytest.raises(ValueError, match=r"^optimizer: 'sinkgd' looks at rows.*over 2 processes \(tp\)"):
            self.build("sinkgd", TinyLanguageModel(), tp=2)
        self.build("lion", TinyLanguageModel(), tp=2)
