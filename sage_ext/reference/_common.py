"""What every reference rule shares: the compute dtype, loading a gradient, scalars, and list checks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float32, or what is wider among the tensors. Arithmetic runs in it; the store rounds once."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def load_grad(grad: Tensor, dtype: torch.dtype, maximize: bool, grad_scale: Tensor | float | None) -> Tensor:
    """Return a copy or view of ``grad`` in ``dtype``, divided by ``grad_scale``, negated for ``maximize``."""
    loaded = grad.to(dtype)
    if grad_scale is not None:
        loaded = loaded / scalar(grad_scale, loaded.device)
    return -loaded if maximize else loaded


def scalar(value: float | Tensor, device: torch.device) -> float | Tensor:
    """Return a number for a number or CPU tensor, and for any other tensor a 0-dim float64 one on ``device``.

    A 0-dim tensor never changes the dtype of what it multiplies, and reading one that is on a GPU would make
    the host wait.
    """
    if not isinstance(value, Tensor):
        return value
    if value.device.type == "cpu":
        return value.item()
    return value.reshape(()).to(device=device, dtype=torch.float64)


def bias_correction(beta: float, step: Tensor) -> float | Tensor:
    """Return ``1 - beta**t`` in float64 for the step counter ``step`` (counted from 1)."""
    if step.device.type == "cpu":
        return 1.0 - beta ** step.item()
    return 1.0 - beta ** step.double()


def is_skipped(found_inf: Tensor | float | None) -> bool:
    """Whether ``found_inf`` says that this step must change nothing. For a GPU tensor the host waits."""
    return found_inf is not None and bool(found_inf)


def check_lengths(params: Sequence[Tensor], **lists: Sequence[Tensor]) -> None:
    """Raise ValueError unless every list is as long as ``params``."""
    for name, tensors in lists.items():
        if len(tensors) != len(params):
            raise ValueError(
                f"{name}: got {len(tensors)} tensors, expected one for each of the {len(params)} params"
            )


def check_momentum(params: Sequence[Tensor], exp_avgs: Sequence[Tensor], momentum: float) -> None:
    """Raise ValueError unless there is a moment for each parameter, or none if ``momentum`` is 0."""
    if momentum:
        check_lengths(params, exp_avgs=exp_avgs)
    elif exp_avgs:
        raise ValueError(
            f"exp_avgs: got {len(exp_avgs)} tensors, but momentum is 0, which keeps none; pass an empty list"
        )


def scaled_norm(x: Tensor, dim: int) -> Tensor:
    """The Euclidean norm along ``dim``, with the largest magnitude taken out before anything is squared."""
    peak = x.abs().amax(dim=dim, keepdim=True)
    norm = (x / peak).square().sum(dim=dim, keepdim=True).sqrt()
    return torch.where((peak == 0) | peak.isinf(), peak, peak * norm)
