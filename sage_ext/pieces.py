"""DTensors, as far as one can tell them without importing ``torch.distributed.tensor``.

Where nobody has imported that, there are none: plain tensors pay nothing for the question.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def has_pieces(tensors: Iterable[Tensor]) -> bool:
    """Whether one of the tensors is a DTensor."""
    dtensor = _dtensor()
    return dtensor is not None and any(issubclass(kind, dtensor) for kind in set(map(type, tensors)))


def is_piece(value: object) -> bool:
    """Whether it is a DTensor, wherever its elements lie."""
    dtensor = _dtensor()
    return dtensor is not None and isinstance(value, dtensor)


def local(tensor: Tensor) -> Tensor:
    """Return what this process has of a DTensor; any other tensor as it is."""
    if not is_piece(tensor):
        return tensor
    piece: Any = tensor.detach()
    held = piece.to_local()
    own: Tensor = held.wait() if hasattr(held, "wait") else held  # the result of a collective under way
    return own


def local_grad(param: Tensor, grad: Tensor | None) -> Tensor:
    """Return what this process has of a gradient: zeros where it is another process that has one."""
    return torch.zeros_like(local(param)) if grad is None else local(grad)


def _dtensor() -> Any:
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def is_built_by_zero() -> bool:
    """Whether the caller is being run by a ``ZeroRedundancyOptimizer`` of several processes, which gives each
    of them some whole parameters.

    Nothing about these says so: ZeRO is looked for among the callers, where its module has been imported.
    """
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    zero = getattr(module, "ZeroRedundancyOptimizer", None)
    caller = None if zero is None else among_callers(zero)
    return caller is not None and getattr(caller, "world_size", 2) > 1


def among_callers(kind: type) -> Any:
    """Return the nearest object of a kind one of whose methods has led here; None if there is none."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if isinstance(caller := frame.f_locals.get("self"), kind):
            return caller
        frame = frame.f_back
    return None
