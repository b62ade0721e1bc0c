"""The sign family: Lion, Sign-SGD and Signum."""

from __future__ import annotations

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
)


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
        beta1, beta2, weight_decay: numbers, as :class:`~sage_ext.FusedLion` has them.
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


@torch.no_grad()
def sign_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One Sign-SGD step in place, ``W <- W (1 - lr*wd) - lr*sign(g)``; with momentum one of Signum.

    Signum: ``m <- momentum*m + (1-momentum)*g ; W <- W (1 - lr*wd) - lr*sign(m)`` with the new m.

    Source: Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex Problems" (arXiv 1802.04434),
    Algorithms 1 and 2; the weight decay is decoupled here.

    Args:
        params: W, any shape and floating dtype.
        grads: g, shaped as W.
        exp_avgs: m, shaped as W; empty if ``momentum`` is 0.
        lr: a number or a 0-dim tensor.
        weight_decay: a number, as :class:`~sage_ext.FusedSignSGD` has it.
        momentum: in [0, 1).
        maximize: negates g on load.
        grad_scale: g is divided by it on load (the gradient itself is not written).
        found_inf: if non-zero, nothing changes.

    Raises:
        ValueError: the lists differ in length, or there are ``exp_avgs`` without momentum.
    """
    check_lengths(params, grads=grads)
    check_momentum(params, exp_avgs, momentum)
    if is_skipped(found_inf):
        return
    for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if param.numel() == 0:
            continue
        moments = exp_avgs[index : index + 1] if momentum else []
        dtype = compute_dtype(param, grad, *moments)
        x = load_grad(grad, dtype, maximize, grad_scale)
        if momentum:
            x = momentum * moments[0].to(dtype) + (1 - momentum) * x
            moments[0].copy_(x)
        rate = scalar(lr, param.device)
        param.copy_(param.to(dtype) * (1 - rate * weight_decay) - rate * torch.sign(x))
