"""Rules whose update needs sums over a whole tensor, as stages with exchanges between them.

A rule's stages are a generator over one tensor (ALIAS: over all tensors of a call). It yields lists of
``Exchange`` and gets for each what it is summed over all pieces of the tensor; and it yields ``COMMIT`` once,
before it writes anything. On one process, where a tensor is whole, an exchange changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple

import torch
from torch import Tensor

from sage_ext.reference._common import scaled_norm


class Exchange(NamedTuple):
    """A buffer that holds something of a piece, and is needed of the whole tensor."""

    buffer: Tensor
    how: str
    """``"sum"`` of vectors, in float32 (float64 for float64 parameters); ``"total"`` of a few float64
    numbers; ``"norm"`` of Euclidean norms, by their squares in float64; ``"gather"`` of a few float64
    numbers, which come back as one row for each piece."""
    dims: tuple[int, ...]
    """The tensor's dimensions that the buffer was reduced over."""
    tensor: int = 0
    """Which tensor of the call it belongs to."""


Stages = Generator[list[Exchange], list[Tensor], None]
Store = Callable[[Tensor, Tensor], object]
"""(target, value): writes the value into the target, rounded once."""

COMMIT: list[Exchange] = []
"""Yielded before the first write. The answer to it says nothing."""


def run_alone(stages: Stages) -> None:
    """Run all stages of a whole tensor, back to back."""
    try:
        requests = next(stages)
        while True:
            requests = stages.send([alone(request) for request in requests])
    except StopIteration:
        pass


def alone(request: Exchange) -> Tensor:
    """Return the answer to an exchange with nobody."""
    return request.buffer.unsqueeze(0) if request.how == "gather" else request.buffer


def store(target: Tensor, value: Tensor) -> None:
    """The plain way to write."""
    target.copy_(value)


def norm_along(x: Tensor, dim: int) -> Tensor:
    """``scaled_norm`` along ``dim``, and 0 where this piece has nothing there."""
    if x.shape[dim] == 0:
        shape = list(x.shape)
        shape[dim] = 1
        return torch.zeros(shape, dtype=x.dtype, device=x.device)
    return scaled_norm(x, dim)
