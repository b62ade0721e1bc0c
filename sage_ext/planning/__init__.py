"""What an optimizer will cost, before training starts: memory, traffic, messages and time of a step, on any
number of devices, for models of any size. Nothing is allocated and nothing runs.

    print(sage_ext.plan("llama-7b", "sage", devices=8, precision="bf16"))
"""

from __future__ import annotations

from typing import Any

import torch

from sage_ext import _torch as _torch
from sage_ext.optimizers.base import FusedOptimizer
from sage_ext.planning.budget import Budget, GroupCost, Target, budget
from sage_ext.planning.hardware import CLUSTERS, Cluster
from sage_ext.planning.report import Plan
from sage_ext.planning.shapes import MODELS
from sage_ext.planning.sources import Group, Mesh, adamw_of, read

__all__ = ["CLUSTERS", "MODELS", "Budget", "Cluster", "GroupCost", "Plan", "plan"]


def plan(
    model_or_config: Any,
    preset: str | FusedOptimizer = "sage",
    *,
    devices: int | tuple[int, int] | None = None,
    precision: str | torch.dtype | None = None,
    hardware: str | Cluster = "h100",
    bandwidth: float | None = None,
    threads: int | None = None,
    **options: Any,
) -> Plan:
    """Return what a step of an optimizer costs a device, beside AdamW with moments in float32.

    Shapes and dtypes are all that is looked at, so a model on ``torch.device("meta")`` will do. Activations,
    buffers, what FSDP2 gathers for the forward and backward pass, and what allocators and libraries keep are
    not in the plan.

    Args:
        model_or_config: a module; a transformers configuration; a mapping of names to shapes; or the name of
            a published model, one of ``sage_ext.planning.MODELS``. A module that ``fully_shard`` or
            ``parallelize_module`` has cut is planned as it lies on this process.
        preset: of :class:`FusedHybrid`; or the class of a single rule, such as ``"FusedLion"``; or an
            optimizer that has been built, whose groups are then what is planned.
        devices: N for FSDP2 over N devices, which cuts dimension 0; (R, N) for R such replicas, as HSDP has
            them, so that (R, 1) is DDP; None for parameters as they are.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``, or the dtype: that of parameters and gradients as the
            optimizer has them, which autocast and FSDP2's ``MixedPrecisionPolicy`` leave in fp32. None is the
            model's own, and bf16 for names and shapes.
        hardware: ``"a100"``, ``"h100"``, ``"h200"`` or ``"b200"``, or a ``Cluster`` of your own, for what the
            CUDA kernels allocate and for times; ``"cpu"`` for what the CPU kernels allocate.
        bandwidth: of the memory, in bytes a second, in place of the hardware's published one. For ``"cpu"``
            nothing is published: without it no time is predicted.
        threads: of a CPU's step; None takes ``torch.get_num_threads()``.
        options: go to the optimizer's constructor: ``tied``, ``embeddings``, ``state_dtype``,
            ``sinkgd={"iterations": 1}`` and so on.

    Returns:
        A :class:`Plan`, to ``print`` for a table, to ``as_dict()``, or to ``draw("plan.png")``. Bytes are
        those of one device, the one that has most.

    Raises:
        TypeError, ValueError: an argument cannot be used; the message names it, and the cure.
    """
    mesh = _mesh(devices)
    target = Target(_cluster(hardware), _bandwidth(bandwidth, hardware), _threads(threads))
    label, groups = read(model_or_config, preset, mesh, precision, options)
    sizes = _sizes(groups)
    is_hybrid = isinstance(preset, str) and not preset.startswith("Fused")
    name = f"{preset} hybrid" if is_hybrid else preset if isinstance(preset, str) else type(preset).__name__
    return Plan(
        model=label,
        precision=_dtypes(groups),
        mesh=sizes,
        layout=_layout(mesh, groups),
        hardware="CPU" if target.cluster is None else target.cluster.name,
        device_bytes=None if target.cluster is None else round(target.cluster.memory_bytes),
        chosen=budget(name, groups, sizes, target),
        adamw=budget("AdamW", adamw_of(groups), sizes, target),
    )


def _mesh(devices: Any) -> Mesh | None:
    if devices is None:
        return None
    numbers = devices if isinstance(devices, (tuple, list)) else (1, devices)
    is_good = len(numbers) == 2 and all(
        isinstance(number, int) and not isinstance(number, bool) and number >= 1 for number in numbers
    )
    if not is_good:
        raise ValueError(
            f"devices: got {devices!r}, expected a number of devices from 1 for FSDP2, or (replicas, devices "
            "of a replica) for HSDP; (replicas, 1) is DDP"
        )
    return (numbers[0], numbers[1])


def _cluster(hardware: Any) -> Cluster | None:
    if isinstance(hardware, Cluster):
        return hardware
    if hardware == "cpu":
        return None
    if isinstance(hardware, str) and hardware in CLUSTERS:
        return CLUSTERS[hardware]
    raise ValueError(
        f"hardware: got {hardware!r}, expected {', '.join(map(repr, CLUSTERS))} or 'cpu', or a "
        "sage_ext.planning.Cluster(name, memory_bytes=..., memory=..., nvlink=..., network=...) of yours"
    )


def _bandwidth(bandwidth: Any, hardware: Any) -> float | None:
    if bandwidth is None:
        cluster = _cluster(hardware)
        return None if cluster is None else cluster.memory
    if isinstance(bandwidth, bool) or not isinstance(bandwidth, (int, float)) or not bandwidth > 0:
        raise ValueError(f"bandwidth: got {bandwidth!r}, expected bytes a second above 0, such as 3.35e12")
    return float(bandwidth)


def _threads(threads: Any) -> int:
    if threads is None:
        return torch.get_num_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads: got {threads!r}, expected a whole number from 1")
    return threads


def _sizes(groups: list[Group]) -> tuple[int, ...]:
    """Return the largest mesh that a parameter lies on."""
    meshes = [part.piece.mesh for group in groups for part in group.parts]
    return max(meshes, key=lambda mesh: (len(mesh), mesh))


def _dtypes(groups: list[Group]) -> str:
    short = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    found = dict.fromkeys(part.dtype for group in groups for part in group.parts)
    return "+".join(short.get(dtype, str(dtype).removeprefix("torch.")) for dtype in found)


def _layout(mesh: Mesh | None, groups: list[Group]) -> str:
    if mesh is None:
        cut = any(part.is_piece for group in groups for part in group.parts)
        return "as it is cut on this process" if cut else "1 device"
    replicas, shards = mesh
    if shards == 1:
        return "1 device" if replicas == 1 else f"DDP on {replicas:,} devices"
    over = f"FSDP2 over {shards:,} devices"
    return over if replicas == 1 else f"{over}, {replicas:,} replicas"
