"""sage_ext.integrations for those who pretrain.

As in test_integrations.py the real packages are used where they are installed; else stand-ins call as they
do, in the versions that the docstrings of the modules name.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import models
import pytest
import support
import torch
import torch.distributed.checkpoint as dcp
from integration_support import EXAMPLES, run_example, stand_in
from models import TinyLanguageModel, loss_of
from torch import nn
from torch.optim import Optimizer

from sage_ext.integrations import deepspeed
from sage_ext.optimizers import FusedAdamW, FusedHybrid, FusedLion, FusedSAGE, FusedSignSGD


@dataclass(kw_only=True)
class ParamGroupConfig:
    pattern: str
    optimizer_name: str
    optimizer_kwargs: dict[str, Any] = field(default_factory=dict)


class OptimizersContainer(Optimizer):
    """torchtitan's, in what a subclass of it meets."""

    @dataclass(kw_only=True, slots=True)
    class Config:
        owner: ClassVar[Any] = None
        param_groups: list[ParamGroupConfig] = field(default_factory=list)

        def build(self, **kwargs: Any) -> Any:
            return self.owner(config=self, **kwargs)

    def __init_subclass__(cls) -> None:
        cls.Config.owner = cls

    @staticmethod
    def _resolve_optimizer_factory(name: str) -> Callable[..., Optimizer]:
        return {"AdamW": torch.optim.AdamW}[name]

    @staticmethod
    def _build_param_groups(model: nn.Module, configs: list[ParamGroupConfig], impl: Any) -> Any:
        groups: dict[str, list[dict[str, Any]]] = {}
        patterns: dict[str, list[str]] = {}
        left = dict(model.named_parameters())
        for config in configs:
            names = [name for name in left if re.search(config.pattern, name)]
            group = {"params": [left.pop(name) for name in names], "param_names": names, **impl}
            groups.setdefault(config.optimizer_name, []).append({**group, **config.optimizer_kwargs})
            patterns.setdefault(config.optimizer_name, []).append(config.pattern)
        return groups, patterns

    def __init__(self, config: Any, *, model_parts: list[nn.Module]) -> None:
        self.optimizers = []
        every = []
        for model in model_parts:
            groups, patterns = self._build_param_groups(
                model, config.param_groups, {"fused": True, "foreach": False}
            )
            for name, own in groups.items():
                self.optimizers.append(self._resolve_optimizer_factory(name)(own))
                every += [param for group in own for param in group["params"]]
                assert len(patterns[name]) == len(self.optimizers[-1].param_groups)
        assert set(map(id, every)) == {id(param) for model in model_parts for param in model.parameters()}
        Optimizer.__init__(self, every, {})

    def __iter__(self) -> Iterator[Optimizer]:
        return iter(self.optimizers)

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Flat, by the parameters' names; what has no state yet makes it in a step of no gradient at lr 0."""
        flat = {}
        for optimizer in self.optimizers:
            groups = optimizer.param_groups
            if not optimizer.state and all(p.grad is None for group in groups for p in group["params"]):
                rates = [group["lr"] for group in groups]
                for group in groups:
                    group["lr"] = 0.0
                    for param in group["params"]:
                        param.grad = torch.zeros_like(param)
                optimizer.step()
                for group, rate in zip(groups, rates, strict=True):
                    group["lr"] = rate
                optimizer.zero_grad()
            saved = optimizer.state_dict()
            for group in saved["param_groups"]:
                for key, name in zip(group["params"], group["param_names"], strict=True):
                    flat |= {f"state.{name}.{k}": v for k, v in saved["state"].get(key, {}).items()}
                    own = {k: v for k, v in group.items() if k not in ("params", "param_names")}
                    flat |= {f"param_groups.{name}.{k}": v for k, v in own.items()}
        return flat

    def load_state_dict(self, flat: dict[str, Any]) -> None:
        for optimizer in self.optimizers:
            state, groups, count = {}, [], 0
            for group in optimizer.param_groups:
                keys = []
                for name, param in zip(group["param_names"], group["params"], strict=True):
                    if own := {k: flat[f"state.{name}.{k}"] for k in optimizer.state.get(param, {})}:
                        state[count] = own
                    keys.append(count)
                    count += 1
                first = group["param_names"][0]
                own = {
                    k: flat[f"param_groups.{first}.{k}"] for k in group if k not in ("params", "param_names")
                }
                groups.append({"params": keys, **own})
            optimizer.load_state_dict({"state": state, "param_groups": groups})


class TitanModel(nn.Module):
    """With the names that torchtitan's models have."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(models.VOCABULARY, models.WIDTH)
        self.up = nn.Linear(models.WIDTH, models.WIDTH)
        self.norm = nn.RMSNorm(models.WIDTH)
        self.lm_head = nn.Linear(models.WIDTH, models.VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.norm(self.up(self.tok_embeddings(tokens))))


class TestTorchtitan:
    @pytest.fixture(autouse=True)
    def package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if importlib.util.find_spec("torchtitan") is None:
            module = stand_in(monkeypatch, "torchtitan.components.optimizer")
            module.OptimizersContainer, module.ParamGroupConfig = OptimizersContainer, ParamGroupConfig
        monkeypatch.delitem(sys.modules, "sage_ext.integrations.torchtitan", raising=False)
        self.module = importlib.import_module("sage_ext.integrations.torchtitan")
        self.ParamGroupConfig = self.module.ParamGroupConfig

    def build(self, *configs: tuple[str, str, dict[str, Any]]) -> tuple[nn.Module, Any]:
        torch.manual_seed(5)
        model = TitanModel()
        groups = [
            self.ParamGroupConfig(pattern=pattern, optimizer_name=name, optimizer_kwargs=kwargs)
            for pattern, name, kwargs in configs
        ]
        config = self.module.HybridsContainer.Config(param_groups=groups)
        return model, config.build(model_parts=[model])

    def found(self, container: Any) -> dict[str, dict[str, Any]]:
        return {
            name: group
            for optimizer in container
            for group in optimizer.param_groups
            for name in group["param_names"]
        }

    def test_example(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # The real one's models need triton.
        registry = stand_in(monkeypatch, "torchtitan.models.llama3.config_registry")
        registry.llama3_debugmodel = type("Configuration", (), {"optimizer": None})
        config = run_example("torchtitan_config", tmp_path, monkeypatch)["llama3_debug"]().optimizer
        model = TitanModel()
        container = config.build(model_parts=[model])
        assert {group["lr"] for group in self.found(container).values()} == {2e-3}
        loss_of(model).backward()
        container.step()

    def test_one_hybrid_by_role(self) -> None:
        _, container = self.build((".*", "FusedHybrid", {"preset": "scale", "lr": 1e-2}))
        (optimizer,) = container
        assert isinstance(optimizer, FusedHybrid)
        found = self.found(container)
        assert {name: group["role"] for name, group in found.items()} == {
            "tok_embeddings.weight": "embedding", "up.weight": "matrix", "up.bias": "vector",
            "norm.weight": "vector", "lm_head.weight": "lm_head",
        }  # fmt: skip
        assert found["lm_head.weight"]["momentum"] == 0.9
        assert not any({"fused", "foreach"} & set(group) for group in found.values())

    def test_a_rule_by_regex_beside_roles_and_torchs_own(self) -> None:
        model, container = self.build(
            ("^up.weight", "FusedHybrid", {"rule": "sinkgd", "lr": 0.5, "iterations": 3}),
            ("norm|bias", "FusedHybrid", {"preset": "lion", "lr": 0.25, "weight_decay": 0.0}),
            ("lm_head", "AdamW", {"lr": 0.125}),
            ("tok", "FusedSAGE", {"lr": 0.75}),
        )
        assert [type(optimizer).__name__ for optimizer in container] == ["FusedHybrid", "AdamW", "FusedSAGE"]
        found = self.found(container)
        assert (found["up.weight"]["rule"], found["up.weight"]["iterations"]) == ("sinkgd", 3)
        assert (found["norm.weight"]["rule"], found["up.bias"]["role"]) == ("lion", "vector")
        assert {name: group["lr"] for name, group in found.items()} == {
            "up.weight": 0.5, "norm.weight": 0.25, "up.bias": 0.25, "lm_head.weight": 0.125,
            "tok_embeddings.weight": 0.75,
        }  # fmt: skip
        loss_of(model).backward()
        container.step()

    def test_names_of_roles_that_a_pipeline_stage_lacks(self) -> None:
        kwargs = {"preset": "sage", "embeddings": "not.here", "lm_head": ["up.weight", "nor.here"]}
        _, container = self.build((".*", "FusedHybrid", kwargs))
        roles = {name: group["role"] for name, group in self.found(container).items()}
        assert (roles["up.weight"], roles["tok_embeddings.weight"]) == ("lm_head", "matrix")

    @pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
    @pytest.mark.parametrize("preset", ["sage", "sinkgd", "scale", "alias"])
    def test_resumes_bit_for_bit(self, preset: str, tmp_path: Path) -> None:
        """Through torch.distributed.checkpoint, as its checkpoints go."""

        def train(model: nn.Module, container: Any, steps: Sequence[int]) -> list[torch.Tensor]:
            for step in steps:
                loss_of(model, step).backward()
                container.step()
                model.zero_grad()
            return models.snapshot(next(iter(container)))

        model, container = self.build((".*", "FusedHybrid", {"preset": preset}))
        train(model, container, range(2))
        dcp.save({"optimizer": container.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
        weights = copy.deepcopy(model.state_dict())
        straight = train(model, container, range(2, 4))

        model, container = self.build((".*", "FusedHybrid", {"preset": preset}))
        model.load_state_dict(weights)
        loaded = {"optimizer": container.state_dict()}
        dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
        container.load_state_dict(loaded["optimizer"])
        support.assert_same_bits(straight, train(model, container, range(2, 4)))


def two_rules(model: nn.Module) -> FusedHybrid:
    tables = {"embed.weight", "head.weight"}
    named = list(model.named_parameters())
    return FusedHybrid(
        [
            {"params": [(n, p) for n, p in named if n in tables], "rule": "adamw", "lr": 1e-2},
            {"params": [(n, p) for n, p in named if n not in tables], "rule": "lion", "lr": 2e-2},
        ]
    )


ELEMENTWISE: dict[str, Callable[[nn.Module], Any]] = {
    "lion": lambda model: FusedLion(model.parameters(), lr=1e-2),
    "signum": lambda model: FusedSignSGD(model.named_parameters(), lr=1e-2, momentum=0.9),
    "adamw": lambda model: FusedAdamW(model.named_parameters(), lr=1e-2),
    "hybrid": two_rules,
}


class Zero:
    """What ZeRO does to an optimizer: each group becomes one flat tensor, and is stepped alone."""

    def __init__(self, model: nn.Module, optimizer: Any, stage: int) -> None:
        self.model, self.optimizer, self.stage = model, optimizer, stage
        self.members = [list(group["params"]) for group in optimizer.param_groups]
        self.flats = [
            nn.Parameter(torch.cat([param.detach().flatten() for param in members]))
            for members in self.members
        ]
        for group, flat in zip(optimizer.param_groups, self.flats, strict=True):
            group["params"] = [flat] if stage < 3 else []

    def step(self, seed: int) -> None:
        self.model.zero_grad()
        loss_of(self.model, seed).backward()
        groups = self.optimizer.param_groups
        for index, (members, flat) in enumerate(zip(self.members, self.flats, strict=True)):
            flat.grad = torch.cat([param.grad.flatten() for param in members])
            if self.stage < 3:
                self.optimizer.param_groups = [groups[index]]
                self.optimizer.step()
                self.optimizer.param_groups = groups
            else:
                groups[index]["params"] = [flat]
                self.optimizer.step()
                groups[index]["params"] = []
            flat.grad = None
            pieces = flat.detach().split([param.numel() for param in members])
            for param, piece in zip(members, pieces, strict=True):
                param.data.copy_(piece.view_as(param))

    def state(self) -> list[dict[str, torch.Tensor]]:
        return [copy.deepcopy(self.optimizer.state[flat]) for flat in self.flats]

    def load(self, state: list[dict[str, torch.Tensor]]) -> None:
        """As stages 1 and 2 do: the tensors are put into the optimizer's state."""
        for flat, saved in zip(self.flats, state, strict=True):
            self.optimizer.state[flat].update(saved)


class TestDeepSpeed:
    @pytest.mark.parametrize("stage", [2, 3])
    @pytest.mark.parametrize("build", ELEMENTWISE.values(), ids=ELEMENTWISE)
    def test_steps_on_flat_partitions_are_those_on_whole_tensors(
        self, build: Callable[..., Any], stage: int
    ) -> None:
        torch.manual_seed(5)
        model = TinyLanguageModel()
        plain = copy.deepcopy(model)
        whole = build(plain)
        models.train(plain, whole, range(4))

        zero = Zero(model, build(model), stage)
        for seed in range(2):
            zero.step(seed)
        resumed = copy.deepcopy(model)
        again = Zero(resumed, build(resumed), stage)
        again.load(zero.state())
        for run in (zero, again):
            for seed in range(2, 4):
                run.step(seed)
            support.assert_same_bits(list(plain.parameters()), list(run.model.parameters()))

    @pytest.mark.parametrize("stage", [2, 3])
    def test_a_hybrid_by_roles_is_refused(self, stage: int) -> None:
        model = TinyLanguageModel()
        zero = Zero(model, FusedHybrid(model, "lion"), stage)
        with pytest.raises(ValueError, match=r"one flat tensor in the place of \d parameters.*FusedLion"):
            zero.step(0)
        with pytest.raises(ValueError, match=r"in the place of 8 parameters, the first .* embed.weight"):
            Zero(model, FusedSAGE(model.named_parameters()), stage).step(0)

    def test_keys(self) -> None:
        optimizer = FusedLion(TinyLanguageModel().parameters())
        given = {"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}
        assert deepspeed.configure(given, optimizer) == {**given, "zero_allow_untested_optimizer": True}
        assert set(given) == {"zero_optimization", "gradient_clipping"}
        given["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        assert deepspeed.configure(given, optimizer)["zero_force_ds_cpu_optimizer"] is False

    def test_rules_that_cannot_run_under_zero(self) -> None:
        assert set(deepspeed.RULES_OF_FLAT_PARTITIONS) == {"lion", "sign_sgd", "adamw"}
        model = TinyLanguageModel()
        zero = {"zero_optimization": {"stage": 1}}
        for build in models.BUILDERS:
            optimizer = build(model)
            names = {group["rule"] for group in optimizer.param_groups}
            roles = any("role" in group for group in optimizer.param_groups)
            assert deepspeed.configure({"zero_optimization": {"stage": 0}}, optimizer)
            if roles or not names <= set(deepspeed.RULES_OF_FLAT_PARTITIONS):
                with pytest.raises(ValueError, match=r"^optimizer: param group 0 .*stage 1.*FusedLion"):
                    deepspeed.configure(zero, optimizer)
            else:
                assert deepspeed.configure(zero, optimizer)
        assert deepspeed.configure(zero, two_rules(model))

    def test_example(self, tmp_path: Path) -> None:
        pytest.importorskip("deepspeed")
        one = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, **one, "MASTER_PORT": "29761", "DS_ACCELERATOR": "cpu"}
        script = [sys.executable, str(EXAMPLES / "zero.py")]
        result = subprocess.run(script, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert "loss " in result.stdout, result.stderr
