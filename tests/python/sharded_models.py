"""Parameters that are cut in many ways, optimizers for them, and the same on one process to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

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
from sage_ext.reference._signs import unpack_signs

SHAPES: Mapping[str, tuple[int, ...]] = {
    "embed": (13, 6),
    "up": (7, 10),
    "thin": (2, 5),
    "experts": (4, 3, 5),
    "norm": (9,),
    "bias": (3,),
    "head": (13, 6),
}
"""Uneven pieces on two and four processes, and empty ones on four."""
Named = list[tuple[str, nn.Parameter]]
Build = Callable[[Named], FusedOptimizer]


def _matrices(params: Named) -> Named:
    return [(name, param) for name, param in params if param.ndim >= 2]


def _hybrid(preset: str, **changes: Any) -> Build:
    return lambda params: FusedHybrid(params, preset, embeddings=["embed"], lm_head=["head"], **changes)


BUILDS: Mapping[str, Build] = {
    "sage": lambda p: FusedSAGE(p, lr=0.01, weight_decay=0.1),
    "sage_momentum_first": lambda p: FusedSAGE(p, lr=0.01, momentum_first=True, instant_damper=False),
    "lion": lambda p: FusedLion(p, lr=0.01, weight_decay=0.1),
    "sign_sgd": lambda p: FusedSignSGD(p, lr=0.01, weight_decay=0.1),
    "signum": lambda p: FusedSignSGD(p, lr=0.01, momentum=0.9),
    "adamw": lambda p: FusedAdamW(p, lr=0.01),
    "sinkgd": lambda p: FusedSinkGD(_matrices(p), lr=0.1, weight_decay=0.1),
    "sinkgd_unit": lambda p: FusedSinkGD(_matrices(p), lr=0.1, normalization="unit", eps=1e-3, iterations=3),
    "scale_rows": lambda p: FusedSCALE(_matrices(p), lr=0.01, weight_decay=0.1),
    "scale_columns": lambda p: FusedSCALE(_matrices(p), lr=0.01, dim=0, normalization="l2"),
    "scale_momentum": lambda p: FusedSCALE(_matrices(p), lr=0.01, dim=0, momentum=0.9),
    "alias": lambda p: FusedALIAS(p, eta0=1.0, d0=1e-4, max_step=100.0, weight_decay=0.1),
    "alias_base": lambda p: FusedALIAS(p, eta0=1.0, d0=1e-4, max_step=100.0, memory_efficient=False),
    "alias_lower_bound": lambda p: FusedALIAS(p, gap="lower_bound", eta0=1.0, max_step=100.0),
    "alias_sum": lambda p: FusedALIAS(p, smoothness="sum", eta0=1.0, d0=1e-4, max_step=100.0),
    "alias_sum_lower_bound": lambda p: FusedALIAS(
        p, smoothness="sum", gap="lower_bound", eta0=1.0, max_step=100.0, update_every=2
    ),
    "alias_seldom": lambda p: FusedALIAS(p, eta0=1.0, max_step=1.0, update_every=2),
    "alias_adam": lambda p: FusedALIASAdam(p, lr=0.01, weight_decay=0.1),
    "hybrid_sage": _hybrid("sage", weight_decay=0.1),
    "hybrid_lion": _hybrid("lion"),
    "hybrid_sinkgd": _hybrid("sinkgd", weight_decay=0.1),
    "hybrid_scale": _hybrid("scale"),
    "hybrid_alias": _hybrid("alias"),
}
ELEMENTWISE = ("lion", "sign_sgd", "signum", "adamw")


class Layout:
    """A mesh, and where each parameter goes on it."""

    def __init__(self, mesh: Sequence[int], place: Callable[[str, int], Any]) -> None:
        self._shape, self._place = tuple(mesh), place

    def mesh(self) -> DeviceMesh:
        if self._shape not in _MESHES:
            names = ("outer", "inner")[-len(self._shape) :]
            _MESHES[self._shape] = init_device_mesh("cpu", self._shape, mesh_dim_names=names)
        return _MESHES[self._shape]

    def distribute(self, name: str, full: Tensor) -> Tensor:
        """Return the DTensor, or the plain tensor where the layout leaves it plain. Nothing is sent."""
        placements = self._place(name, full.ndim)
        if placements is None:
            return full.clone()
        return distribute_tensor(full.clone(), self.mesh(), placements, src_data_rank=None)


_MESHES: dict[tuple[int, ...], DeviceMesh] = {}


def layouts(size: int) -> dict[str, Layout]:
    """Layouts for ``size`` processes."""
    found = {
        "rows": Layout([size], lambda name, ndim: [Shard(0)]),
        "columns": Layout([size], lambda name, ndim: [Shard(ndim - 1)]),
        "middle": Layout([size], lambda name, ndim: [Shard(max(ndim - 2, 0))]),
        "mixed": Layout([size], _mixed),
        "replicated": Layout([size], lambda name, ndim: [Replicate()]),
    }
    if size == 4:
        halves = [2, 2]
        found |= {
            "hsdp": Layout(halves, lambda name, ndim: [Replicate(), Shard(0)]),
            "both": Layout(halves, lambda name, ndim: [Shard(0), Shard(ndim - 1)]),
            "twice": Layout(halves, lambda name, ndim: [Shard(0), Shard(0)]),
            "strided": Layout(halves, lambda name, ndim: [_StridedShard(0, split_factor=2), Shard(0)]),
        }
    return found


def _mixed(name: str, ndim: int) -> Any:
    return {"embed": [Shard(0)], "up": [Shard(1)], "norm": None, "head": None}.get(name, [Shard(0)])


def fulls(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Whole tensors, the same on every process; in some rows and columns zeros."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, shape in SHAPES.items():
        value = torch.randn(shape, generator=generator)
        if name == "embed" and seed:
            value[2:5] = 0
            value[:, 3] = 0
        result[name] = value.to(dtype)
    return result


class Pair:
    """An optimizer of cut parameters, and the same one of whole parameters."""

    def __init__(self, build: Build, layout: Layout, dtype: torch.dtype = torch.float32) -> None:
        self.layout, self.dtype = layout, dtype
        self.cut = [(n, nn.Parameter(layout.distribute(n, v))) for n, v in fulls(dtype).items()]
        self.whole = [(n, nn.Parameter(v)) for n, v in fulls(dtype).items()]
        self.optimizer, self.oracle = build(self.cut), build(self.whole)

    def set_grads(self, seed: int, without: Sequence[str] = ()) -> None:
        for name, value in fulls(self.dtype, seed).items():
            whole, cut = dict(self.whole)[name], dict(self.cut)[name]
            whole.grad = None if name in without else value
            cut.grad = None if name in without else self.layout.distribute(name, value)

    def step(self, steps: int = 3) -> None:
        for seed in range(1, steps + 1):
            self.set_grads(seed)
            self.optimizer.step(loss=torch.tensor(2.5))
            self.oracle.step(loss=torch.tensor(2.5))

    def compare(self, tolerance: float = 2e-6) -> int:
        """Fail unless both are the same but for the order of sums, and return how many elements differ."""
        differing = 0
        for (name, cut), (_, whole) in zip(self.cut, self.whole, strict=True):
            values, expected = as_whole(cut.detach()), whole.detach()
            close(values, expected, tolerance, name)
            differing += int((values != expected).sum())
            held, oracle = self.optimizer.state.get(cut, {}), self.oracle.state.get(whole, {})
            assert set(held) == set(oracle), (name, set(held), set(oracle))
            for key, value in oracle.items():
                own = as_whole(held[key])
                if key == "signs" and value.dtype != own.dtype:
                    value = unpack_signs(value, expected.float()).to(torch.int8)
                assert own.dtype == value.dtype, (name, key, own.dtype)
                close(own, value, tolerance, f"{name}: {key}")
        for group, other in zip(self.optimizer.param_groups, self.oracle.param_groups, strict=True):
            if group.get("scalars") is not None:
                torch.testing.assert_close(group["scalars"], other["scalars"], rtol=1e-5, atol=1e-12)
        return differing


def close(value: Tensor, expected: Tensor, tolerance: float, where: str) -> None:
    assert value.shape == expected.shape, (where, value.shape, expected.shape)
    size = expected.abs().max().clamp(min=1e-30) if expected.numel() else 1.0
    unit = torch.finfo(value.dtype).eps if value.dtype in (torch.bfloat16, torch.float16) else 0.0
    bound = tolerance * size.double() + unit * expected.double().abs()
    excess = ((value.double() - expected.double()).abs() - bound).max() if value.numel() else 0.0
    assert excess <= 0, f"{where}: {value} is not {expected}"


def as_whole(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value
