"""SAGE (arXiv 2604.07663): a sign update, damped per column by how large the column's gradients are."""

from __future__ import annotations

import math
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
from sage_ext.reference._stages import COMMIT, Exchange, Stages, Store, run_alone, store


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
        beta1, beta2, weight_decay: numbers, as :class:`~sage_ext.FusedSAGE` has them.
        eps: added to the damper's denominators; may be 0.
        momentum_first: which m the sign is formed from, as above.
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
    for param, grad, exp_avg, s_range, step in zip(params, grads, exp_avgs, s_ranges, steps, strict=True):
        run_alone(
            sage_stages(
                param,
                grad,
                exp_avg,
                s_range,
                step,
                shape=param.shape,
                lr=lr,
                beta1=beta1,
                beta2=beta2,
                eps=eps,
                weight_decay=weight_decay,
                momentum_first=momentum_first,
                instant_damper=instant_damper,
                maximize=maximize,
                grad_scale=grad_scale,
            )
        )


def sage_stages(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    s_range: Tensor,
    step: Tensor,
    *,
    shape: Sequence[int],
    store: Store = store,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    momentum_first: bool,
    instant_damper: bool,
    maximize: bool,
    grad_scale: Tensor | None,
) -> Stages:
    """The step of one tensor, or of a piece of one whose whole has ``shape``.

    Two exchanges: the column sums over the rows, and the sums of squares over the columns.
    """
    after = step + 1
    if math.prod(shape) == 0:
        yield COMMIT
        store(step, after)
        return
    # With the updated m' = b2*m + (1-b2)*g in place of m, b1*m' + (1-b1)*g is b1*b2*m + (1-b1*b2)*g.
    keep = beta1 * beta2 if momentum_first else beta1
    dtype = compute_dtype(param, grad, exp_avg, s_range)
    rate = scalar(lr, param.device)

    def magnitude() -> Tensor:
        return load_grad(grad, dtype, maximize, grad_scale).abs()

    columns: tuple[int, ...] = (0,)
    if len(shape) >= 2:
        (total,) = yield [Exchange(magnitude().sum(dim=0), "sum", (0,))]
        s = total.to(dtype) / shape[0]
        columns = tuple(range(1, len(shape)))
    else:
        s = magnitude()
    new_range = beta2 * s_range.to(dtype) + (1 - beta2) * s
    scales = [new_range / bias_correction(beta2, after)]
    if instant_damper:
        scales.append(s)
    # The square of 1e20 needs float64.
    squares = torch.stack([scale.double().square().sum() for scale in scales])
    (squares,) = yield [Exchange(squares, "total", columns)]
    count = math.prod(shape[dim] for dim in columns) if shape else 1
    rms = (squares / count).sqrt().to(dtype)
    yield COMMIT

    dampers = [_damper(scale, own, eps) for scale, own in zip(scales, rms, strict=True)]
    damper = dampers[0].clamp(max=1)
    if instant_damper:
        damper = torch.minimum(damper, dampers[1])
    g = load_grad(grad, dtype, maximize, grad_scale)
    m = exp_avg.to(dtype)
    update = damper * torch.sign(keep * m + (1 - keep) * g)
    store(param, param.to(dtype) * (1 - rate * weight_decay) - rate * update)
    store(exp_avg, beta2 * m + (1 - beta2) * g)
    store(s_range, new_range)
    store(step, after)


def _damper(scale: Tensor, rms: Tensor, eps: float) -> Tensor:
    """rms(scale) / (scale_j + eps), with 0/0 taken as 0."""
    return torch.where(rms == 0, torch.zeros_like(scale), rms / (scale + eps))
