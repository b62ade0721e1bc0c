"""What users write, for mypy --strict and pyright (``make types``); the tests run it, too.

Every public class and function in its usual calls, of the integrations the one that imports no framework.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import assert_type

import sage_ext
import sage_ext.ops
from sage_ext import (
    AutoConfig,
    Description,
    FusedAdamW,
    FusedALIAS,
    FusedALIASAdam,
    FusedHybrid,
    FusedLion,
    FusedSAGE,
    FusedSCALE,
    FusedSignSGD,
    FusedSinkGD,
    Plan,
    autoconfig,
    plan,
    reference,
    routing,
)
from sage_ext.distributed import MajorityVote
from sage_ext.integrations.deepspeed import configure
from sage_ext.planning import CLUSTERS, MODELS, Budget, Cluster, GroupCost
from sage_ext.selection import CANDIDATES, Block, Option, Point, Risk


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.up = nn.Linear(8, 8)
        self.head = nn.Linear(8, 16, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.up(self.embed(tokens)))
        logits: Tensor = self.head(hidden)
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    schedule = LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        loss = model(torch.arange(16).reshape(2, 8))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()


def hybrids() -> None:
    for preset in ("sage", "lion", "sinkgd", "scale", "alias", "sinkgd-scale", "stateless"):
        model = Model()
        train(model, FusedHybrid(model, preset, lm_head="head.weight"))
    model = Model()
    optimizer = FusedHybrid(
        model,
        "lion",
        lr={"lion": 1e-4, "sinkgd": torch.tensor(0.02)},
        lm_head=["head.weight"],
        tied="embedding",
        betas=(0.9, 0.98),
        weight_decay=0.1,
        no_decay=[name for name, parameter in model.named_parameters() if parameter.ndim < 2],
        state_dtype=torch.bfloat16,
        sinkgd={"iterations": 3, "alpha": 0.05},
    )
    description = optimizer.describe()
    assert_type(description, Description)
    assert_type(description.state_bytes, int)
    assert_type(str(description), str)
    assert_type(optimizer.backend, str)
    assert_type(optimizer.step_size(0), float)
    for group in optimizer.param_groups:
        if group["role"] == "embedding":
            group["lr"] = 3e-4
    FusedHybrid(model.named_parameters(), embeddings=["embed.weight"], lm_head=[])
    groups: list[dict[str, Any]] = [
        {"params": [model.up.weight], "rule": "sinkgd", "iterations": 1},
        {"params": [model.up.bias], "rule": "lion", "betas": (0.9, 0.98)},
    ]
    FusedHybrid(groups, lr=1e-3)


def single_rules() -> None:
    model = Model()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    for optimizer in (
        FusedSAGE(model.parameters(), lr=1e-3, betas=(0.9, 0.99), momentum_first=True),
        FusedLion(model.parameters(), lr=torch.tensor(1e-4), weight_decay=0.1),
        FusedSignSGD([{"params": list(model.parameters()), "lr": 1e-3}], momentum=0.9),
        FusedAdamW(model.parameters(), eps=1e-6, maximize=False, state_dtype=torch.float32),
        FusedALIASAdam(model.parameters(), d0=1.0, backend="reference"),
        FusedSinkGD(matrices, iterations=3, normalization="unit"),
        FusedSCALE(matrices, momentum=0.9, dim=0, normalization="l2"),
    ):
        train(model, optimizer)
        state = optimizer.state_dict()
        optimizer.load_state_dict(state)
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))]})


def losses() -> None:
    model = Model()
    optimizer = FusedALIAS(model.parameters(), gap="lower_bound", max_step=1e-3, warmup_steps=2)
    tokens = torch.arange(16).reshape(2, 8)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert isinstance(optimizer.step(closure), Tensor)
    optimizer.step(loss=2.5)
    optimizer.set_loss(torch.tensor(2.5))
    optimizer.amp_scaling = True
    optimizer.step()


def votes(ddp: nn.parallel.DistributedDataParallel) -> FusedALIAS:
    """Under torchrun."""
    vote = MajorityVote().register(ddp)
    assert_type(vote, MajorityVote)
    vote.load_state_dict(vote.state_dict())
    return FusedALIAS(ddp.parameters(), vote=vote)


def plans() -> None:
    found = plan("llama-7b", "sage", devices=8, precision="bf16", hardware="h100", tied="embedding")
    assert_type(found, Plan)
    assert_type(found.chosen, Budget)
    assert_type(found.fits, bool | None)
    costs: list[GroupCost] = list(found.chosen.groups)
    assert costs
    assert sum(found.chosen.state_by_rule.values()) == found.chosen.state_bytes
    print(found, found.as_dict()["precision"], sorted(MODELS), sorted(CLUSTERS))
    own = Cluster("mine", memory_bytes=24e9, memory=1e12, nvlink=0.0, network=1e10)
    with torch.device("meta"):
        model = Model()
    sage_ext.plan(model, "FusedLion", devices=(2, 4), precision=torch.bfloat16, hardware=own)


def choices() -> None:
    model, batches = Model(), [torch.arange(16).reshape(2, 8)]

    def loss(module: nn.Module, tokens: Tensor) -> Tensor:
        value: Tensor = module(tokens)
        return value

    config = autoconfig(model, batches, state_bytes=500, steps=2, loss=loss, sinkgd={"iterations": 2})
    assert_type(config, AutoConfig)
    assert_type(config.within(state_bytes=0), AutoConfig)
    points: tuple[Point, ...] = config.front
    blocks: tuple[Block, ...] = config.blocks
    options: tuple[Option, ...] = config.chosen
    risk: Risk = options[0].risk
    print(config, config.table(merged=False), points[0].risk, blocks[0].name, risk.total, list(CANDIDATES))
    train(model, FusedHybrid(config.groups))


def functions() -> None:
    weight, momentum = torch.zeros(4, 4), torch.zeros(4, 4)
    gradients = [torch.ones(4, 4)]
    settings: dict[str, Any] = {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}
    reference.lion_([weight], gradients, [momentum], lr=0.1, **settings)
    torch.ops.sage_ext.lion_([weight], gradients, [momentum], lr=torch.tensor(0.1), **settings)
    for routed in routing.route(Model(), lm_head="head.weight"):
        assert_type(routed.role, str)
    config = configure({"zero_optimization": {"stage": 2}}, FusedLion([nn.Parameter(weight)]))
    assert config["zero_allow_untested_optimizer"]


def drawing() -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan("llama-60m").draw(Path(folder) / "plan.png")


def main() -> None:
    print(sage_ext.__version__)
    hybrids()
    single_rules()
    losses()
    plans()
    choices()
    functions()


if __name__ == "__main__":
    main()
