"""ALIAS, Sign-SGD that finds its own step size, and ALIAS-Adam."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from sage_ext.reference._common import (
    check_lengths,
    compute_dtype,
    is_skipped,
    load_grad,
    scalar,
)
from sage_ext.reference._signs import pack_signs, unpack_signs

ALIAS_SCALARS = (
    "step",
    "eta",
    "d",
    "gap",
    "step_size",
    "grad_max",
    "grad_min",
    "displacement",
    "grad_factor",
)
"""What the tensors of a group share, by the place in their float64 tensor."""


class _Observation(NamedTuple):
    """What a gradient g and the one before it, p, say: each in float64, over all elements of all tensors.

    A form has what it needs, and 0 for the others.
    """

    grad_max: float
    grad_min: float
    inner: float
    """<g, sign(p)>"""
    difference: float
    """The 1-norm of g - p."""


@torch.no_grad()
def alias_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    signs: Sequence[Tensor],
    prev_grads: Sequence[Tensor],
    scalars: Sequence[Tensor],
    *,
    lr: float | Tensor,
    memory_efficient: bool,
    gap: str,
    lower_bound: float,
    max_step: float,
    warmup_steps: int,
    update_every: int,
    weight_decay: float,
    loss: float | Tensor | None = None,
    phase: str = "step",
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One ALIAS step in place, with the scalars eta, d and gamma shared by all tensors, and t counted from
    1::

        base              eta <- eta + ||g_t - g_{t-1}||_1 / ||x_t - x_{t-1}||_inf
        memory-efficient  eta <- eta + B_t / ||x_t - x_{t-1}||_1
                          B_t = max(|max g_t - min g_{t-1}|, |max g_{t-1} - min g_t|)
        descent           dt <- dt + gamma_{t-1} <g_t, sign(g_{t-1})> ;  d <- max(d, dt)
        lower bound       d = f(x_0) - lower_bound
        gamma = min(sqrt(d / eta), max_step) ;  W <- W (1 - gamma*wd) - gamma*sign(g)

    While eta is 0, gamma is ``max_step``; in warm-up it is ``lr``, but no more than ``max_step``. The
    displacement ||x_t - x_{t-1}|| is that of what was stored. If nothing moved, eta stays as it is.

    Source: Medyakov et al., "Sign-SGD via Parameter-Free Optimization" (arXiv 2506.03725, ICLR 2026);
    ``max_step``, warm-up and ``update_every`` are of the authors' code.

    Args:
        params: W, any shape and floating dtype.
        grads: g, shaped as W.
        signs: of the last gradient, as int32 bit planes of shape ``(2, ceil(numel / 32))``, in the
            memory-efficient form with the descent gap; otherwise empty.
        prev_grads: the last gradient, shaped and as it came, in the base form; otherwise empty.
        scalars: one float64 tensor of 9 elements for all parameters (``ALIAS_SCALARS``), with step 0, and eta
            and d as they shall begin.
        lr: gamma during warm-up: a number or a 0-dim tensor.
        memory_efficient: which form.
        gap: ``"descent"`` or ``"lower_bound"``.
        lower_bound: of the loss.
        max_step: gamma is at most this.
        warmup_steps: how many steps take ``lr``.
        update_every: eta and d are brought up to date in step 2, and every so many steps from there.
        loss: f(x_0), which the first step with the lower-bound gap needs; a number or one element.
        phase: ``"step"`` for all of it. ``"move"`` does the step without bringing eta and d up to date, and
            ``"refresh"`` only brings them up to date, from g and the gradient of the last step: with a
            gradient of the same batch in between, the two are the stochastic form of the method.
        maximize: negates g on load.
        grad_scale: g is divided by it on load (the gradient itself is not written).
        found_inf: if non-zero, nothing changes.

    Raises:
        ValueError: the lists differ in length, one is there that the form does not keep, or the loss is
            missing.
    """
    descent = gap == "descent"
    check_lengths(params, grads=grads)
    _check_kept(params, "signs", signs, memory_efficient and descent)
    _check_kept(params, "prev_grads", prev_grads, not memory_efficient)
    if len(scalars) != 1:
        raise ValueError(f"scalars: got {len(scalars)} tensors, expected one for all params")
    if not params or is_skipped(found_inf):
        return
    shared = dict(zip(ALIAS_SCALARS, scalars[0].tolist(), strict=True))
    step = shared["step"] + (phase != "refresh")
    if phase == "step":
        refreshes = step >= 2 and (step - 2) % update_every == 0
        records = (step - 1) % update_every == 0
    else:
        refreshes, records = phase == "refresh", phase == "move"
    if step == 1 and phase != "refresh" and not descent and loss is None:
        raise ValueError(
            'loss: got None, but the first step with gap="lower_bound" needs it: call step(closure) or '
            "step(loss=...)"
        )
    factor = (-1.0 if maximize else 1.0) / (1.0 if grad_scale is None else float(grad_scale))

    loaded = [
        load_grad(grad, compute_dtype(param, grad), maximize, grad_scale)
        for param, grad in zip(params, grads, strict=True)
    ]
    if refreshes or records:
        seen = _observe(loaded, signs, prev_grads, shared["grad_factor"])
        if refreshes:
            if shared["displacement"] != 0:
                change = seen.difference
                if memory_efficient:
                    change = _nan_max(
                        abs(seen.grad_max - shared["grad_min"]), abs(shared["grad_max"] - seen.grad_min)
                    )
                shared["eta"] += change / shared["displacement"]
            if descent:
                shared["gap"] += shared["step_size"] * seen.inner
                shared["d"] = _nan_max(shared["gap"], shared["d"])
        if records:
            shared.update(grad_max=seen.grad_max, grad_min=seen.grad_min, grad_factor=factor)
            for planes, g in zip(signs, loaded, strict=False):
                planes.copy_(pack_signs(g))
            for prev_grad, grad in zip(prev_grads, grads, strict=False):
                prev_grad.copy_(grad)

    if phase != "refresh":
        shared["step"] = step
        if step == 1 and loss is not None and not descent:
            shared["d"] = _nan_max(float(loss) - lower_bound, 0.0)
        if step <= warmup_steps:
            gamma = float(lr)
        elif shared["eta"] == 0:
            gamma = max_step
        else:
            gamma = math.sqrt(shared["d"] / shared["eta"])
        gamma = shared["step_size"] = -_nan_max(-gamma, -max_step)
        total = farthest = 0.0
        for param, g in zip(params, loaded, strict=True):
            if param.numel():
                moved = _move(param, g, gamma, weight_decay)
                total += float(moved.sum(dtype=torch.float64))
                farthest = _nan_max(float(moved.max()), farthest)
        shared["displacement"] = total if memory_efficient else farthest
    scalars[0].copy_(torch.tensor([shared[name] for name in ALIAS_SCALARS], dtype=torch.float64))


def _check_kept(params: Sequence[Tensor], name: str, tensors: Sequence[Tensor], is_kept: bool) -> None:
    if is_kept:
        check_lengths(params, **{name: tensors})
    elif tensors:
        raise ValueError(
            f"{name}: got {len(tensors)} tensors, but this form of ALIAS keeps none; pass an empty list"
        )


def _observe(
    grads: Sequence[Tensor], signs: Sequence[Tensor], prev_grads: Sequence[Tensor], prev_factor: float
) -> _Observation:
    inner = difference = 0.0
    for g, planes in zip(grads, signs, strict=False):
        inner += float((g * unpack_signs(planes, g)).sum(dtype=torch.float64))
    for g, prev_grad in zip(grads, prev_grads, strict=False):
        p = prev_grad.to(g.dtype) * prev_factor
        inner += float((g * p.sign()).sum(dtype=torch.float64))
        difference += float((g - p).abs().sum(dtype=torch.float64))
    filled = [] if prev_grads else [g for g in grads if g.numel()]
    grad_max = reduce(_nan_max, (float(g.max()) for g in filled), -math.inf) if filled else 0.0
    grad_min = -reduce(_nan_max, (-float(g.min()) for g in filled), -math.inf) if filled else 0.0
    return _Observation(grad_max, grad_min, inner, difference)


def _move(param: Tensor, g: Tensor, gamma: float, weight_decay: float) -> Tensor:
    """Move one parameter and return how far each element went, as stored."""
    before = param.to(g.dtype, copy=True)
    param.copy_(before * (1 - gamma * weight_decay) - gamma * torch.sign(g))
    return (param.to(g.dtype) - before).abs()


def _nan_max(a: float, b: float) -> float:
    """The larger, or NaN if one is NaN."""
    return a if a > b or math.isnan(a) else b


@torch.no_grad()
def alias_adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    signs: Sequence[Tensor],
    scalars: Sequence[Tensor],
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
    """One ALIAS-Adam step in place, each tensor with scalars r and d of its own::

        r <- sqrt(b2)*r + (1-sqrt(b2))*d*<g_t, sign(g_{t-1})> ;  d <- max(d, r)
        m <- b1*m + (1-b1)*d*g ;  v <- b2*v + (1-b2)*d^2*g^2
        W <- W (1 - lr*wd) - lr*d*m/(sqrt(v) + eps)

    Source: the released code of the authors of ALIAS (arXiv 2506.03725), which corrects no bias. Where the
    denominator is zero (with eps = 0, an element that never had a gradient) the update is zero and not NaN.

    Args:
        params: W, any shape and floating dtype.
        grads: g, shaped as W.
        exp_avgs: m, shaped as W.
        exp_avg_sqs: v, shaped as W, dtype of m.
        signs: of the last gradient, as int32 bit planes of shape ``(2, ceil(numel / 32))``.
        scalars: r and d of each parameter, float64 of 2 elements; d as it shall begin.
        lr: a number or a 0-dim tensor.
        maximize: negates g on load.
        grad_scale: g is divided by it on load (the gradient itself is not written).
        found_inf: if non-zero, nothing changes.

    Raises:
        ValueError: the lists differ in length.
    """
    check_lengths(
        params, grads=grads, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs, signs=signs, scalars=scalars
    )
    if is_skipped(found_inf):
        return
    root = math.sqrt(beta2)
    for param, grad, exp_avg, exp_avg_sq, planes, own in zip(
        params, grads, exp_avgs, exp_avg_sqs, signs, scalars, strict=True
    ):
        dtype = compute_dtype(param, grad, exp_avg, exp_avg_sq)
        g = load_grad(grad, dtype, maximize, grad_scale)
        inner = (g.double() * unpack_signs(planes, g)).sum()
        r = root * own[0] + (1 - root) * (own[1] * inner)
        d = torch.maximum(r, own[1])
        own.copy_(torch.stack([r, d]))
        planes.copy_(pack_signs(g))
        rate = scalar(lr, param.device)
        m = beta1 * exp_avg.to(dtype) + (1 - beta1) * (d * g)
        v = beta2 * exp_avg_sq.to(dtype) + (1 - beta2) * (d * g).square()
        denominator = v.sqrt() + eps
        update = torch.where(denominator == 0, torch.zeros_like(m), m / denominator)
        param.copy_(param.to(dtype) * (1 - rate * weight_decay) - rate * d * update)
        exp_avg.copy_(m)
        exp_avg_sq.copy_(v)
