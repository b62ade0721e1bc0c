"""SAGE (arXiv 2604.07663): a sign update, damped per column by how large the column's gradients are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sage_ext.reference._common import (
    bias_correction,
    check_lengths,
    compute_dtype,
    is_skipped,
    load_grad,
    scalar,
)


@torch.no_grad()
def sage_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    s_ranges: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    momentum_first: bool = False,
    instant_damper: bool = True,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One SAGE step in place.

    With ``s = mean over rows of |g|`` (``|g|`` itself below two dimensions) and t counted from 1::

        W   <- W (1 - lr*wd)
        S   <- b2*S + (1-b2)*s ;   Sh = S / (1 - b2^t)
        H_j  = min( rms(Sh)/(Sh_j + eps),  rms(s)/(s_j + eps),  1 )
        W   <- W - lr * H * sign(b1*m + (1-b1)*g)        # the old m
        m   <- b2*m + (1-b2)*g

    Source: the paper. ``momentum_first=True`` forms the sign from the updated m, as the authors' released
    code does.

    Args:
        params: W, any shape and floating dtype.
        grads: g, shaped as W.
        exp_avgs: m, shaped as W.
        s_ranges: S, float32 (float64 for a float64 W), shape ``W.shape[1:]``, or ``W.shape`` below two
            dimensions.
        steps: 0-dim float32 counters of the steps done so far; each is raised by one before it is used as t.
        lr: a number or a 0-dim tensor.
        eps: added to the damper's denominators; may be 0.
        instant_damper: whether the second term takes part in the minimum.
        maximize: negates g on load.
        grad_scale: g is divided by it on load (the gradient itself is not written).
        found_inf: if non-zero, nothing changes, the step counters included.

    Raises:
        ValueError: the lists differ in length.
    """
    check_lengths(params, grads=grads, exp_avgs=exp_avgs, s_ranges=s_ranges, steps=steps)
    if is_skipped(found_inf):
        return
    # With the updated m' = b2*m + (1-b2)*g in place of m, b1*m' + (1-b1)*g is b1*b2*m + (1-b1*b2)*g.
    keep = beta1 * beta2 if momentum_first else beta1
    for param, grad, exp_avg, s_range, step in zip(params, grads, exp_avgs, s_ranges, steps, strict=True):
        step += 1
        if param.numel() == 0:
            continue
        dtype = compute_dtype(param, grad, exp_avg, s_range)
        g = load_grad(grad, dtype, maximize, grad_scale)
        m = exp_avg.to(dtype)
        rate = scalar(lr, param.device)

        s = g.abs().mean(dim=0) if param.ndim >= 2 else g.abs()
        new_range = beta2 * s_range.to(dtype) + (1 - beta2) * s
        damper = _damper(new_range / bias_correction(beta2, step), eps).clamp(max=1)
        if instant_damper:
            damper = torch.minimum(damper, _damper(s, eps))

        update = damper * torch.sign(keep * m + (1 - keep) * g)
        param.copy_(param.to(dtype) * (1 - rate * weight_decay) - rate * update)
        exp_avg.copy_(beta2 * m + (1 - beta2) * g)
        s_range.copy_(new_range)


def _damper(scale: Tensor, eps: float) -> Tensor:
    """rms(scale) / (scale_j + eps), with 0/0 taken as 0. The square of 1e20 needs float64."""
    rms = scale.double().square().mean().sqrt().to(scale.dtype)
    return torch.where(rms == 0, torch.zeros_like(scale), rms / (scale + eps))
