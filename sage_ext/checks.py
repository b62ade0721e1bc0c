"""Checks of tensors. Every error names the tensor (index, name if known, shape, dtype, device) and the cure.

There are two kinds: what must hold when parameters are handed to an optimizer (``check_param`` and the two
below it), and what must hold at each step (``check_step``), which the native module checks for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sage_ext import memory, pieces

NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REFERENCE_DTYPES = (*NATIVE_DTYPES, torch.float64)


def brief(value: object, most: int = 200, otherwise: str = "something of type") -> str:
    """Return how a message shows a value: not by pages of numbers."""
    text = repr(value)
    return text if len(text) <= most else f"{otherwise} {type(value).__name__}"


def label(index: int, group: int, name: str | None, param: Tensor) -> str:
    """Name a parameter in a message: ``w (param 3 of group 0, shape (4, 5), torch.float32, cpu)``."""
    facts = f"shape {tuple(param.shape)}, {param.dtype}, {param.device}"
    place = f"param {index} of group {group}"
    return f"{name} ({place}, {facts})" if name else f"{place} ({facts})"


def names_of(group: Mapping[str, Any]) -> Sequence[str] | None:
    """Return the names of a group's parameters, if they are those that are in it.

    DeepSpeed's ZeRO and others put one flat tensor in the place of them all, and leave the names.
    """
    names = group.get("param_names")
    return names if names and len(names) == len(group["params"]) else None


def check_param(param: Tensor, where: str, *, native: bool, needs_contiguous: bool) -> None:
    """Raise ValueError if an optimizer cannot own ``param``; ``where`` is its label."""
    if param.layout != torch.strided:
        raise ValueError(f"{where}: {param.layout} parameters are not supported; convert it with .to_dense()")
    if param.is_complex():
        raise ValueError(f"{where}: complex parameters are not supported; optimise torch.view_as_real of it")
    allowed = NATIVE_DTYPES if native else REFERENCE_DTYPES
    if param.dtype not in allowed:
        raise ValueError(f"{where}: expected a dtype of {_names(allowed)}; {_dtype_cure(param.dtype)}")
    if native and hasattr(param, "__tensor_flatten__"):
        raise ValueError(
            f"{where}: {type(param).__name__} is a tensor subclass that native kernels cannot read; "
            'pass backend="reference" or a plain tensor'
        )
    if memory.overlaps_itself(param):
        raise ValueError(
            f"{where}: strides {param.stride()} make elements share memory (an expanded tensor?), so it "
            "cannot be updated in place; build the parameter from .contiguous()"
        )
    if not native:
        return
    if needs_contiguous and not param.is_contiguous():
        raise ValueError(
            f"{where}: native kernels of this rule need a contiguous parameter; {_layout_cure(param)}"
        )
    if not memory.is_dense(param):
        raise ValueError(f"{where}: native kernels need a parameter without gaps; {_layout_cure(param)}")


def check_whole(param: Tensor, where: str, why_whole: str | None) -> None:
    """Raise ValueError if ``param`` is a piece of a tensor, and ``why_whole`` says why it must be the whole.

    FullyShardedDataParallel (FSDP1) hands over one-dimensional pieces, which torch marks. A DTensor says
    itself of which tensor it is a piece, so it only has to say so in terms that are known.
    """
    if pieces.is_piece(param):
        from sage_ext.distributed.placements import check_placements

        check_placements(param, where)
        return
    if why_whole is None:
        return
    if getattr(param, "_fsdp_flattened", False) or getattr(param, "_is_flat_param", False):
        raise ValueError(
            f"{where}: a flat piece that FullyShardedDataParallel (FSDP1) cut out of the model. {why_whole}, "
            "and on a piece it would be another algorithm. Ways out: FSDP2 (fully_shard), "
            "DistributedDataParallel, or a rule that works element by element (FusedLion, FusedSignSGD, "
            "FusedAdamW)"
        )


def check_distinct(params: Sequence[Tensor], labels: Callable[[int], str]) -> None:
    """Raise ValueError if a parameter occurs twice, or two of them share memory."""
    seen: dict[int, int] = {}
    for index, param in enumerate(params):
        if (first := seen.setdefault(id(param), index)) != index:
            raise ValueError(
                f"{labels(index)}: the same parameter as {labels(first)}; list every parameter once"
            )
    overlap = memory.find_overlap([pieces.local(param) for param in params])
    if overlap is not None:
        first, second = overlap
        raise ValueError(
            f"{labels(second)}: shares memory with {labels(first)}; give the optimizer one parameter for it"
        )


def check_devices(params: Sequence[Tensor], labels: Callable[[int], str]) -> None:
    """Raise ValueError unless all parameters are on one device."""
    for index, param in enumerate(params):
        if param.device != params[0].device:
            raise ValueError(
                f"{labels(index)}: on another device than {labels(0)}; make one param group for each device"
            )


def check_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Mapping[str, Sequence[Tensor]],
    layouts: Callable[[Tensor], Mapping[str, tuple[Any, ...]]],
    describe: Callable[[int], str],
) -> None:
    """Raise ValueError if a reference step cannot run on these tensors. Reads no value and changes nothing.

    Args:
        params, grads: of one length.
        states: key of the state -> one tensor for each parameter.
        layouts: parameter -> key -> (shape, dtype, whether any floating dtype will do, ...).
        describe: index -> label of the parameter.
    """
    for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if (
            param.layout != torch.strided
            or param.dtype not in REFERENCE_DTYPES
            or memory.overlaps_itself(param)
        ):
            check_param(param, describe(index), native=False, needs_contiguous=False)
        _check_memory(param, describe, index, "parameter")
        _check_grad(param, grad, describe, index)
        for key, (shape, dtype, any_float, *_) in layouts(param).items():
            state = states[key][index]
            if not isinstance(state, Tensor):
                raise TypeError(
                    f"{describe(index)}: state {key!r} is {type(state).__name__}, expected a tensor"
                )
            if tuple(state.shape) != shape or state.device != param.device:
                raise ValueError(
                    f"{describe(index)}: state {key!r} has shape {tuple(state.shape)} on {state.device}, "
                    f"expected {shape} on {param.device}; after moving parameters, "
                    "optimizer.load_state_dict(optimizer.state_dict()); if this one was replaced, begin its "
                    "state anew with del optimizer.state[param]"
                )
            _check_memory(state, describe, index, f"state {key!r}")
            if state.dtype != dtype and not (any_float and state.dtype in REFERENCE_DTYPES):
                raise ValueError(
                    f"{describe(index)}: state {key!r} has dtype {state.dtype}, expected {dtype}"
                )


def _check_grad(param: Tensor, grad: Tensor, describe: Callable[[int], str], index: int) -> None:
    if grad.layout != torch.strided:
        raise ValueError(
            f"{describe(index)}: its gradient is {grad.layout}; sparse gradients are not supported "
            "(nn.Embedding: build it with sparse=False)"
        )
    _check_memory(grad, describe, index, "gradient")
    if grad.dtype not in REFERENCE_DTYPES:
        raise ValueError(
            f"{describe(index)}: its gradient has dtype {grad.dtype}, expected {_names(REFERENCE_DTYPES)}"
        )
    if grad.shape != param.shape:
        raise ValueError(f"{describe(index)}: its gradient has shape {tuple(grad.shape)}")
    if grad.device != param.device:
        raise ValueError(
            f"{describe(index)}: its gradient is on {grad.device}; call zero_grad() after moving a model"
        )


def _check_memory(tensor: Tensor, describe: Callable[[int], str], index: int, what: str) -> None:
    """Raise ValueError if the storage of ``tensor`` has been freed under it: torch would crash."""
    if memory.is_freed(tensor):
        raise ValueError(
            f"{describe(index)}: the memory of its {what} has been freed (storage().resize_(0)); have what "
            "freed it bring it back before optimizer.step()"
        )


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(dtype) for dtype in dtypes)


def _dtype_cure(dtype: torch.dtype) -> str:
    if dtype == torch.float64:
        return 'convert the model with .float(), or pass backend="reference", which takes float64'
    return "leave it out of the optimizer, or convert it to a floating dtype"


def _layout_cure(param: Tensor) -> str:
    return (
        f"its strides are {param.stride()}. Before building the optimizer: "
        'param.data = param.data.contiguous(); or pass backend="reference"'
    )
