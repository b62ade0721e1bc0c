"""Where the elements of a DTensor lie: which mesh dimensions cut which of its dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

from sage_ext import pieces
from sage_ext.optimizers.rule import StateSpec


def check_placements(param: Any, where: str, what: str = "") -> None:
    """Raise ValueError unless each placement cuts a dimension or repeats the tensor."""
    for mesh_dim, placement in enumerate(param.placements):
        if not placement.is_replicate() and cut_dim(placement, param.ndim) is None:
            place = _name(param.device_mesh, mesh_dim)
            raise ValueError(
                f"{where}: {what}placement {placement!r} on mesh dimension {place}, expected Shard or "
                "Replicate; redistribute it first: tensor.redistribute(placements=[...])"
            )


def cut_dim(placement: Any, ndim: int) -> int | None:
    """Return the dimension that a placement cuts; None if it cuts none. Strided shards cut one, too, though
    their ``is_shard()`` is False."""
    if placement.is_partial() or placement.is_replicate():
        return None
    dim = getattr(placement, "dim", None)
    return None if dim is None else dim % ndim


def cuts(tensor: Any) -> list[tuple[int, int]]:
    """Return (mesh dimension, dimension that it cuts) wherever a tensor is cut into more than one piece."""
    if not isinstance(tensor, DTensor):
        return []
    found = ((i, cut_dim(p, tensor.ndim)) for i, p in enumerate(tensor.placements))
    return [(i, dim) for i, dim in found if dim is not None and tensor.device_mesh.size(i) > 1]


def pending_sums(param: Any, grad: Any) -> list[int]:
    """Return the mesh dimensions along which a gradient is a sum that nobody has done yet, if doing it is all
    that it takes to have it lie as its parameter does."""
    if not (isinstance(param, DTensor) and isinstance(grad, DTensor)):
        return []
    if grad.placements == param.placements or grad.device_mesh != param.device_mesh:
        return []
    found = []
    for mesh_dim, (own, placement) in enumerate(zip(param.placements, grad.placements, strict=True)):
        if own == placement:
            continue
        if type(placement) is not Partial or placement.reduce_op != "sum" or not own.is_replicate():
            return []
        found.append(mesh_dim)
    return found


def allocate(spec: StateSpec, param: Any) -> Tensor:
    """Return an uninitialised state for a DTensor: one, too, where it has dimensions of the parameter's."""
    local = pieces.local(param)
    if spec.follows_param:
        return wrap(torch.empty_like(local, dtype=spec.dtype, requires_grad=False), param, spec)
    if spec.dims is None:
        return torch.empty(spec.shape, dtype=spec.dtype, device=param.device)
    shape = [local.shape[dim] for dim in spec.dims]
    return wrap(torch.empty(shape, dtype=spec.dtype, device=param.device), param, spec)


def wrap(local: Tensor, param: Any, spec: StateSpec) -> Tensor:
    """Return the state whose piece on this process is ``local``. Nothing is sent."""
    placements = placements_of(spec, param)
    stride = param.stride() if spec.follows_param else torch.empty(spec.shape, device="meta").stride()
    meta = TensorMeta(torch.Size(spec.shape), tuple(stride), local.dtype)
    return DTensor(  # type: ignore[no-untyped-call]
        local, DTensorSpec(param.device_mesh, placements, tensor_meta=meta), requires_grad=False
    )


def placements_of(spec: StateSpec, param: Any) -> tuple[Any, ...]:
    """Return how a state lies: cut where the parameter is, as far as it has the dimension."""
    dims = range(param.ndim) if spec.follows_param else spec.dims or ()
    return tuple(_along(placement, param.ndim, tuple(dims)) for placement in param.placements)


def _along(placement: Any, ndim: int, dims: Sequence[int]) -> Any:
    dim = cut_dim(placement, ndim)
    if dim is None or dim not in dims:
        return Replicate()
    place = dims.index(dim)
    factor = getattr(placement, "split_factor", None)
    return Shard(place) if factor is None else type(placement)(place, split_factor=factor)


def describe(param: Any) -> str:
    """Return the placements for a human: ``Shard(0) x Replicate``."""
    names = [
        "Replicate" if (dim := cut_dim(p, param.ndim)) is None else f"{type(p).__name__.lstrip('_')}({dim})"
        for p in param.placements
    ]
    return " x ".join(names)


def _name(mesh: Any, mesh_dim: int) -> str:
    names = mesh.mesh_dim_names
    return repr(names[mesh_dim]) if names else str(mesh_dim)
