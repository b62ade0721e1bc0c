"""Saved state for parameters that are cut otherwise: whole into pieces, pieces into whole, other pieces."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import distribute_tensor

from sage_ext import pieces


def whole(value: Tensor) -> Tensor:
    """Return the whole of a DTensor, to which all of its processes come; any other tensor as it is."""
    held: Any = value
    return held.full_tensor() if pieces.is_piece(value) else value


def fill(target: Tensor, value: Tensor) -> Tensor:
    """Copy a tensor or DTensor of the same whole shape into another, in the target's dtype.

    Only where a DTensor lies otherwise than the target is anything sent.
    """
    own: Any = target
    other: Any = value
    if not pieces.is_piece(target):
        return target.copy_(whole(value))
    mesh, placements = own.device_mesh, own.placements
    if pieces.is_piece(value) and other.device_mesh == mesh:
        if tuple(other.placements) != tuple(placements):
            other = other.redistribute(placements=placements)
    else:
        other = distribute_tensor(whole(value).detach(), mesh, placements, src_data_rank=None)
    pieces.local(target).copy_(pieces.local(other))
    return target
