"""AdamW, as torch computes it: the rule that the hybrids use where a sign update does not fit."""

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
def adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One AdamW step in place, with t counted from 1::

        W <- W (1 - lr*wd)
        m <- b1*m + (1-b1)*g ;   v <- b2*v + (1-b2)*g^2
        W <- W - lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps)

    Source: Loshchilov and Hutter (arXiv 1711.05101), in the form of ``torch.optim.AdamW``, except that where
    the denominator is zero (with eps = 0, an element that never had a gradient) the update is zero and not
    NaN.

    Args:
        params: W, any shape and floating dtype.
        grads: g, shaped as W.
        exp_avgs: m, shaped as W.
        exp_avg_sqs: v, shaped as W, dtype of m.
        steps: 0-dim float32 counters of the steps done so far; each is raised by one before it is used as t.
        lr: a number or a 0-dim tensor.
        beta1, beta2, eps, weight_decay: numbers, as :class:`~sage_ext.FusedAdamW` has them.
        maximize: negates g on load.
        grad_scale: g is divided by it on load (the gradient itself is not written).
        found_inf: if non-zero, nothing changes, the step counters included.

    Raises:
        ValueError: the lists differ in length.
    """
    check_lengths(params, grads=grads, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs, steps=steps)
    if is_skipped(found_inf):
        return
    for param, grad, exp_avg, exp_avg_sq, step in zip(
        params, grads, exp_avgs, exp_avg_sqs, steps, strict=True
    ):
        step += 1
        if param.numel() == 0:
            continue
        dtype = compute_dtype(param, grad, exp_avg, exp_avg_sq)
        g = load_grad(grad, dtype, maximize, grad_scale)
        rate = scalar(lr, param.device)
        m = beta1 * exp_avg.to(dtype) + (1 - beta1) * g
        v = beta2 * exp_avg_sq.to(dtype) + (1 - beta2) * g.square()
        denominator = v.sqrt() / bias_correction(beta2, step) ** 0.5 + eps
        update = torch.where(denominator == 0, torch.zeros_like(m), m / denominator)
        param.copy_(
            param.to(dtype) * (1 - rate * weight_decay) - rate / bias_correction(beta1, step) * update
        )
        exp_avg.copy_(m)
        exp_avg_sq.copy_(v)
