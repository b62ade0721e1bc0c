"""The sign family: Lion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sage_ext.reference._common import check_lengths, compute_dtype, is_skipped, load_grad, scalar


@torch.no_grad()
def lion_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    weight_decay: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One Lion step in place: ``W <- W (1 - lr*wd) - lr*sign(b1*m + (1-b1)*g) ; m <- b2*m + (1-b2)*g``.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms" (arXiv 2302.06675), Program 1.

    Args:
        params: W, any shape and floating dtype.
        grads: g, shaped as W.
        exp_avgs: m, shaped as W.
        lr: a number or a 0-dim tensor.
        maximize: negates g on load.
        grad_scale: g is divided by it on load (the gradient itself is not written).
        found_inf: if non-zero, nothing changes.

    Raises:
        ValueError: the lists differ in length.
    """
    check_lengths(params, grads=grads, exp_avgs=exp_avgs)
    if is_skipped(found_inf):
        return
    for param, grad, exp_avg in zip(params, grads, exp_avgs, strict=True):
        if param.numel() == 0:
            continue
        dtype = compute_dtype(param, grad, exp_avg)
        g = load_grad(grad, dtype, maximize, grad_scale)
        m = exp_avg.to(dtype)
        rate = scalar(lr, param.device)
        update = torch.sign(beta1 * m + (1 - beta1) * g)
        param.copy_(param.to(dtype) * (1 - rate * weight_decay) - rate * update)
        exp_avg.copy_(beta2 * m + (1 - beta2) * g)
