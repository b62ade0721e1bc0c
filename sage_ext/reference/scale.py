"""SCALE (arXiv 2506.16659): the gradient, or its momentum, over the norms of its rows or columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sage_ext.reference._common import (
    check_lengths,
    check_momentum,
    compute_dtype,
    is_skipped,
    load_grad,
    scalar,
    scaled_norm,
)


@torch.no_grad()
def scale_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    dim: int,
    eps: float,
    weight_decay: float,
    normalization: str = "rms",
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One SCALE step in place: ``W <- W (1 - lr*wd) - lr * x / max(norm(x), eps)``.

    x is g, or with momentum ``m <- momentum*m + (1-momentum)*g ; x = m``, as m is stored. The norm is that of
    each row of each trailing matrix (``dim=1``, over the last dimension), or of each column (``dim=0``, over
    the last but one). A row or column that is exactly zero does not move, also with ``eps=0``.

    Source: Glentis et al., "SCALE" (arXiv 2506.16659); the rms norm is that of the authors' code.

    Args:
        params: W, two or more dimensions, any floating dtype.
        grads: g, shaped as W.
        exp_avgs: m, shaped as W; empty if ``momentum`` is 0.
        lr: a number or a 0-dim tensor.
        momentum: in [0, 1).
        dim: 1 or 0.
        normalization: ``"rms"``, or ``"l2"``, which is larger by the root of the length.
        maximize: negates g on load.
        grad_scale: g is divided by it on load (the gradient itself is not written).
        found_inf: if non-zero, nothing changes.

    Raises:
        ValueError: the lists differ in length, there are ``exp_avgs`` without momentum, a tensor has fewer
            than two dimensions, or ``dim`` or ``normalization`` is unknown.
    """
    check_lengths(params, grads=grads)
    check_momentum(params, exp_avgs, momentum)
    if dim not in (0, 1):
        raise ValueError(f"dim: got {dim!r}, expected 0 or 1")
    if normalization not in ("rms", "l2"):
        raise ValueError(f"normalization: got {normalization!r}, expected 'rms' or 'l2'")
    for index, param in enumerate(params):
        if param.ndim < 2:
            raise ValueError(
                f"params[{index}]: SCALE needs two or more dimensions, got shape {tuple(param.shape)}; use "
                "AdamW for it"
            )
    if is_skipped(found_inf):
        return
    for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if param.numel() == 0:
            continue
        moments = exp_avgs[index : index + 1] if momentum else []
        dtype = compute_dtype(param, grad, *moments)
        x = load_grad(grad, dtype, maximize, grad_scale)
        if momentum:
            moments[0].copy_(momentum * moments[0].to(dtype) + (1 - momentum) * x)
            x = moments[0].to(dtype)
        rate = scalar(lr, param.device)
        norm = scaled_norm(x, dim - 2)
        if normalization == "rms":
            norm = norm / math.sqrt(x.shape[dim - 2])
        norm = norm.clamp(min=eps)
        update = torch.where(norm == 0, torch.zeros_like(x), x / norm)
        param.copy_(param.to(dtype) * (1 - rate * weight_decay) - rate * update)
