"""Small models and optimizers for the tests of what a user touches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sage_ext.optimizers import (
    FusedAdamW,
    FusedHybrid,
    FusedLion,
    FusedSAGE,
    FusedSCALE,
    FusedSignSGD,
    FusedSinkGD,
)

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
    hybrid("sage"),
    hybrid("lion"),
    hybrid("sinkgd"),
    hybrid("scale"),
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
        losses.append(float(backward(model, optimizer, seed)))
        optimizer.step()
    return losses


def snapshot(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of every parameter and every state tensor, in order."""
    tensors = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            tensors.append(param.detach().clone())
            if param in optimizer.state:
                tensors.extend(value.clone() for _, value in sorted(optimizer.state[param].items()))
    return tensors
