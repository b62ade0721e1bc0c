"""Real wrappers on several processes: fully_shard, parallelize_module and both, for several steps."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from models import TinyLanguageModel, loss_of
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from sage_ext.optimizers import FusedAdamW, FusedHybrid, FusedSAGE

PRESETS = ("sage", "lion", "sinkgd", "scale", "alias", "sinkgd-scale")
STEPS = 4


def cases(size: int) -> dict[str, Callable[[int, int], None]]:
    found: dict[str, Callable[[int, int], None]] = {}
    for preset in PRESETS:
        if size == 4:
            found[f"fsdp_and_tensor_parallel-{preset}"] = partial(same_curve, preset, fsdp_and_tp)
        else:
            found[f"fsdp-{preset}"] = partial(same_curve, preset, fsdp)
            found[f"tensor_parallel-{preset}"] = partial(same_curve, preset, tensor_parallel)
    if size == 4:
        return found
    found["fsdp-kept"] = partial(same_curve, "sage", partial(fsdp, reshard_after_forward=False))
    found["fsdp-offloaded"] = partial(
        same_curve, "sage", partial(fsdp, offload_policy=CPUOffloadPolicy(pin_memory=False))
    )
    found["sequence_parallel"] = sequence_parallel
    found["fsdp-mixed_precision"] = mixed_precision
    if size == 2 and importlib.util.find_spec("accelerate"):
        for preset in ("sage", "scale", "alias"):
            found[f"accelerate-{preset}"] = partial(accelerated, preset)
    return found


def fsdp(model: nn.Module, size: int, **changes: Any) -> None:
    mesh = init_device_mesh("cpu", (size,))
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh, **changes)
    fully_shard(model, mesh=mesh, **changes)


PLAN = {"up": ColwiseParallel(), "down": RowwiseParallel()}


def tensor_parallel(model: nn.Module, size: int) -> None:
    parallelize_module(model, init_device_mesh("cpu", (size,)), PLAN)


def fsdp_and_tp(model: nn.Module, size: int) -> None:
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("dp", "tp"))
    parallelize_module(model, mesh["tp"], PLAN)
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])


def same_curve(preset: str, wrap: Callable[[nn.Module, int], None], rank: int, size: int) -> None:
    """The losses of one process, with the same batch on each."""
    torch.manual_seed(7)
    model = TinyLanguageModel()
    alone = copy.deepcopy(model)
    wrap(model, size)
    optimizers = [FusedHybrid(m, preset, lr=0.01) for m in (model, alone)]
    losses: list[list[float]] = [[], []]
    for step in range(STEPS):
        for m, optimizer, curve in zip((model, alone), optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss = loss_of(m, step)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
    assert losses[0][0] != losses[0][-1]
    flips = sum(
        int(((_whole(a) - b.detach()).abs() > 1e-3).sum())
        for a, b in zip(model.parameters(), alone.parameters(), strict=True)
    )
    # A gradient of which only rounding is left has either sign.
    assert flips <= 0.002 * sum(param.numel() for param in alone.parameters()), flips


@contextmanager
def accelerator_of(rank: int, size: int) -> Iterator[Any]:
    """accelerate's with FSDP2, which it takes for GPUs only unless it is told otherwise."""
    import accelerate
    from accelerate.utils import FullyShardedDataParallelPlugin

    before = dict(os.environ)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in numbers.items()}, ACCELERATE_USE_CPU="true")
    try:
        accelerator = accelerate.Accelerator(cpu=True)
        accelerator.state.distributed_type = accelerate.DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="size_based_wrap",
            min_num_params=1,
            cpu_ram_efficient_loading=False,
        )
        assert accelerator.is_fsdp2
        yield accelerator
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.clear()
        os.environ.update(before)


def accelerated(preset: str, rank: int, size: int) -> None:
    """accelerate puts sharded parameters into an optimizer that was built of whole ones: the weights of a
    loop with fully_shard, bit for bit, clipped."""
    models = TinyLanguageModel(), TinyLanguageModel()
    models[1].load_state_dict(models[0].state_dict())
    fsdp(models[1], size)
    optimizers = [FusedHybrid(model, preset, lr=0.01) for model in models]
    with accelerator_of(rank, size) as accelerator:
        model, optimizer = accelerator.prepare(models[0], optimizers[0])
        start = [_whole(param).clone() for param in model.parameters()]
        for step in range(STEPS):
            optimizer.zero_grad()
            accelerator.backward(loss_of(model, step))
            accelerator.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
            optimizers[1].zero_grad()
            loss_of(models[1], step).backward()
            nn.utils.clip_grad_norm_(models[1].parameters(), 0.25)
            optimizers[1].step()
    params = [dict(m.named_parameters()) for m in (model, models[1])]
    assert params[0].keys() == params[1].keys()
    for before, ours, theirs in zip(start, *(p.values() for p in params), strict=True):
        assert isinstance(ours, DTensor)
        assert torch.equal(_whole(ours), _whole(theirs))
        assert not torch.equal(_whole(ours), before)


def mixed_precision(rank: int, size: int) -> None:
    """The optimizer sees float32 parameters and gradients, whatever the layers compute in."""
    model = TinyLanguageModel()
    fsdp(model, size, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    optimizer = FusedHybrid(model, "sage", lr=0.01)
    curve = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    assert curve[-1] < curve[0], curve


def sequence_parallel(rank: int, size: int) -> None:
    """It leaves the gradients of a norm as sums that nobody has done yet: one message does them all."""
    mesh = init_device_mesh("cpu", (size,))
    for build in (FusedSAGE, FusedAdamW):
        alone = nn.Sequential(nn.LayerNorm(6), nn.LayerNorm(6))
        model = copy.deepcopy(alone)
        parallelize_module(model, mesh, {"0": SequenceParallel(), "1": SequenceParallel()})
        optimizers = [build(m.named_parameters(), lr=0.1) for m in (model, alone)]
        for seed in range(3):
            x = torch.randn(2, 4 * size, 6, generator=torch.Generator().manual_seed(seed))
            spread = distribute_tensor(x, mesh, [Shard(1)], src_data_rank=None)
            for m, optimizer, value in zip((model, alone), optimizers, (spread, x), strict=True):
                optimizer.zero_grad()
                y = m(value)
                y = y.redistribute(placements=[Replicate()]).to_local() if m is model else y
                (y * x).square().sum().backward()
                optimizer.step()
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(_whole(ours), theirs.detach(), rtol=1e-5, atol=1e-5)


def _whole(value: Any) -> torch.Tensor:
    value = value.detach()
    return value.full_tensor() if hasattr(value, "full_tensor") else value
