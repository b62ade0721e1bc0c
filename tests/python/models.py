"""Small models and optimizers for the tests of what a user touches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sage_ext.optimizers import (
    FusedAdamW,
    FusedALIAS,
    FusedALIASAdam,
    FusedHybrid,
    FusedLion,
    FusedSAGE,
    FusedSCALE,
    FusedSignSGD,
    FusedSinkGD,
)
from sage_ext.optimizers.base import FusedOptimizer

VOCABULARY, WIDTH = 29, 8


class TinyLanguageModel(nn.Module):
    """An embedding, two dense layers with biases and a norm, and a head that may be tied to the embedding."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.norm(x + self.down(torch.tanh(self.up(x)))))

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def sage(model: nn.Module, **changes: Any) -> FusedSAGE:
    return FusedSAGE(model.parameters(), **{"lr": 1e-2, **changes})


def lion(model: nn.Module, **changes: Any) -> FusedLion:
    return FusedLion(model.parameters(), **{"lr": 1e-2, **changes})


def sign_sgd(model: nn.Module, **changes: Any) -> FusedSignSGD:
    return FusedSignSGD(model.parameters(), **{"lr": 1e-2, **changes})


def signum(model: nn.Module, **changes: Any) -> FusedSignSGD:
    return FusedSignSGD(model.parameters(), **{"lr": 1e-2, "momentum": 0.9, **changes})


def adamw(model: nn.Module, **changes: Any) -> FusedAdamW:
    return FusedAdamW(model.parameters(), **{"lr": 1e-2, **changes})


def sinkgd(model: nn.Module, **changes: Any) -> FusedSinkGD:
    """SinkGD on the matrices alone, for it takes no others."""
    matrices = [param for param in model.parameters() if param.ndim == 2]
    return FusedSinkGD(matrices, **{"lr": 0.1, **changes})


def scale(model: nn.Module, **changes: Any) -> FusedSCALE:
    """SCALE on the matrices alone, for it takes no others."""
    matrices = [param for param in model.parameters() if param.ndim == 2]
    return FusedSCALE(matrices, **{"lr": 1e-2, **changes})


def scale_with_momentum(model: nn.Module, **changes: Any) -> FusedSCALE:
    return scale(model, **{"dim": 0, "momentum": 0.9, **changes})


def alias(model: nn.Module, **changes: Any) -> FusedALIAS:
    return FusedALIAS(model.parameters(), **{"max_step": 1e-2, **changes})


def alias_lower_bound(model: nn.Module, **changes: Any) -> FusedALIAS:
    return alias(model, **{"gap": "lower_bound", **changes})


def alias_sum(model: nn.Module, **changes: Any) -> FusedALIAS:
    return alias(model, **{"smoothness": "sum", **changes})


def alias_base(model: nn.Module, **changes: Any) -> FusedALIAS:
    return alias(model, **{"memory_efficient": False, **changes})


def alias_adam(model: nn.Module, **changes: Any) -> FusedALIASAdam:
    return FusedALIASAdam(model.parameters(), **{"lr": 1e-2, **changes})


def hybrid(preset: str) -> Callable[..., FusedHybrid]:
    def build(model: nn.Module, **changes: Any) -> FusedHybrid:
        return FusedHybrid(model, preset, **changes)

    build.__name__ = f"hybrid_{preset}"
    return build


BUILDERS: tuple[Callable[..., Any], ...] = (
    sage,
    lion,
    sign_sgd,
    signum,
    adamw,
    sinkgd,
    scale,
    scale_with_momentum,
    alias,
    alias_lower_bound,
    alias_base,
    alias_adam,
    hybrid("sage"),
    hybrid("lion"),
    hybrid("sinkgd"),
    hybrid("scale"),
    hybrid("alias"),
)
NAMES = [builder.__name__ for builder in BUILDERS]


def batch(seed: int = 0) -> Tensor:
    tokens = torch.randint(VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(seed), device="cpu")
    return tokens.to(torch.get_default_device())


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    """The model has to repeat its input: learnable within a few steps."""
    tokens = batch(seed)
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1).float(), tokens.flatten())


def backward(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> Tensor:
    """Fill the gradients of the next step and return the loss."""
    optimizer.zero_grad()
    model.zero_grad()
    loss = loss_of(model, seed)
    loss.backward()
    return loss.detach()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: Sequence[int]) -> list[float]:
    losses = []
    for seed in seeds:
        loss = backward(model, optimizer, seed)
        step(optimizer, loss)
        losses.append(float(loss))
    return losses


def step(optimizer: torch.optim.Optimizer, loss: float | Tensor = 1.0) -> None:
    """A step that hands over the loss, which a rule may need in its first, if it is one of ours."""
    if isinstance(optimizer, FusedOptimizer):
        optimizer.step(loss=loss)
    else:
        optimizer.step()


def snapshot(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of every parameter and every state tensor, in order, and of what a group's parameters share."""
    tensors = []
    for group in optimizer.param_groups:
        tensors.extend(group[key].clone() for key in ("scalars",) if group.get(key) is not None)
        for param in group["params"]:
            tensors.append(param.detach().clone())
            if param in optimizer.state:
                tensors.extend(value.clone() for _, value in sorted(optimizer.state[param].items()))
    return tensors
