"""ALIAS, Sign-SGD that finds its own step size, and ALIAS-Adam."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sage_ext.reference._common import (
    check_lengths,
    compute_dtype,
    is_skipped,
    load_grad,
    scalar,
)
from sage_ext.reference._signs import read_signs, write_signs
from sage_ext.reference._stages import COMMIT, Exchange, Stages, Store, run_alone, store

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
"""What the tensors of a group share, by the place in their float64 tensor.

With ``smoothness="sum"`` "grad_max" is the 1-norm of the last gradient, and "grad_min" 0.
"""


class _Observation(NamedTuple):
    """What a gradient g and the one before it, p, say: each in float64, over all elements of all tensors.

    A form has what it needs, and 0 for the others.
    """

    grad_max: float
    grad_min: float
    inner: float
    """<g, sign(p)>"""
    norm: float
    """The 1-norm: of g - p in the base form, of g with ``smoothness="sum"``."""


def adds_distances(settings: Mapping[str, Any]) -> bool:
    """Whether the displacement is the sum of how far the elements went, or the largest of that.

    Args:
        settings: ``memory_efficient`` and ``smoothness``.
    """
    return bool(settings["memory_efficient"]) and settings["smoothness"] == "extrema"


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
    smoothness: str = "extrema",
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
                          or, with smoothness="sum",
                          eta <- eta + (||g_t||_1 + ||g_{t-1}||_1) / ||x_t - x_{t-1}||_inf
        descent           dt <- dt + gamma_{t-1} <g_t, sign(g_{t-1})> ;  d <- max(d, dt)
        lower bound       d = f(x_0) - lower_bound
        gamma = min(sqrt(d / eta), max_step) ;  W <- W (1 - gamma*wd) - gamma*sign(g)

    While eta is 0, gamma is ``max_step``; in warm-up it is ``lr``, but no more than ``max_step``. The
    displacement ||x_t - x_{t-1}|| is that of what was stored. If nothing moved, eta stays as it is.

    Source: Medyakov et al., "Sign-SGD via Parameter-Free Optimization" (arXiv 2506.03725, ICLR 2026);
    ``max_step``, warm-up and ``update_every`` are of the authors' code. ``smoothness="sum"`` is ours: a bound
    of the base form's term, and so of its eta.

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
        weight_decay: decoupled, with gamma in the learning rate's place.
        smoothness: in the memory-efficient form, what eta comes from: ``"extrema"`` or ``"sum"``.
        loss: f(x_0), which the first step with the lower-bound gap needs; a number or one element. Without it
            this function raises; native kernels on a GPU, where the host does not read which step it is, take
            NaN for it. The optimizers know, and raise on every device.
        phase: ``"step"`` for all of it. ``"move"`` does the step without bringing eta and d up to date, and
            ``"refresh"`` only brings them up to date, from g and the gradient of the last step: with a
            gradient of the same batch in between, the two are the stochastic form of the method.
        maximize: negates g on load.
        grad_scale: g is divided by it on load (the gradient itself is not written).
        found_inf: if non-zero, nothing changes.

    Raises:
        ValueError: the lists differ in length, one is there that the form does not keep, the loss is missing,
            or ``smoothness`` is not for this form.
    """
    if smoothness not in ("extrema", "sum"):
        raise ValueError(f"smoothness: got {smoothness!r}, expected 'extrema' or 'sum'")
    if smoothness == "sum" and not memory_efficient:
        raise ValueError(
            "smoothness: got 'sum', expected 'extrema' with memory_efficient=False, which has the difference "
            "of the gradients itself"
        )
    descent = gap == "descent"
    check_lengths(params, grads=grads)
    _check_kept(params, "signs", signs, memory_efficient and descent)
    _check_kept(params, "prev_grads", prev_grads, not memory_efficient)
    if len(scalars) != 1:
        raise ValueError(f"scalars: got {len(scalars)} tensors, expected one for all params")
    if not params or is_skipped(found_inf):
        return
    run_alone(
        alias_stages(
            params,
            grads,
            signs,
            prev_grads,
            scalars[0],
            lr=lr,
            memory_efficient=memory_efficient,
            gap=gap,
            lower_bound=lower_bound,
            max_step=max_step,
            warmup_steps=warmup_steps,
            update_every=update_every,
            weight_decay=weight_decay,
            smoothness=smoothness,
            loss=loss,
            phase=phase,
            maximize=maximize,
            grad_scale=grad_scale,
        )
    )


def alias_stages(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    signs: Sequence[Tensor],
    prev_grads: Sequence[Tensor],
    scalars: Tensor,
    *,
    present: Sequence[bool] | None = None,
    lr: float | Tensor,
    memory_efficient: bool,
    gap: str,
    lower_bound: float,
    max_step: float,
    warmup_steps: int,
    update_every: int,
    weight_decay: float,
    smoothness: str,
    loss: float | Tensor | None,
    phase: str,
    maximize: bool,
    grad_scale: Tensor | None,
) -> Stages:
    """The step of all tensors of a group, or of pieces of them.

    Two exchanges: what the gradients say, and how far the parameters went.

    Args:
        present: whether each tensor has a gradient on this process; where it has none but another process
            has, it has zeros here, and where no process has, the tensor is left out.
    """
    descent = gap == "descent"
    adds_up = memory_efficient and smoothness == "sum"
    shared = dict(zip(ALIAS_SCALARS, scalars.tolist(), strict=True))
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

    def load(index: int) -> Tensor:
        grad = grads[index]
        return load_grad(grad, compute_dtype(params[index], grad), maximize, grad_scale)

    observes = refreshes or records
    requests = []
    for index, param in enumerate(params):
        seen = [float(present is None or present[index])]
        if observes:
            kept, prev = (tensors[index] if tensors else None for tensors in (signs, prev_grads))
            seen += _observe(load(index), kept, prev, shared["grad_factor"], adds_up)
        numbers = torch.tensor(seen, dtype=torch.float64, device=param.device)
        requests.append(Exchange(numbers, "gather", tuple(range(param.ndim)), index))
    gathered = [answer.tolist() for answer in (yield requests)]
    active = [i for i, pieces in enumerate(gathered) if any(piece[0] for piece in pieces)]
    yield COMMIT
    if not active:
        return
    if observes:
        whole = _combine([_Observation(*piece[1:]) for index in active for piece in gathered[index]])
        if refreshes:
            if shared["displacement"] != 0:
                change = whole.norm
                if adds_up:
                    change += shared["grad_max"]
                elif memory_efficient:
                    change = _nan_max(
                        abs(whole.grad_max - shared["grad_min"]), abs(shared["grad_max"] - whole.grad_min)
                    )
                shared["eta"] += change / shared["displacement"]
            if descent:
                shared["gap"] += shared["step_size"] * whole.inner
                shared["d"] = _nan_max(shared["gap"], shared["d"])
        if records:
            largest = whole.norm if adds_up else whole.grad_max
            shared.update(grad_max=largest, grad_min=whole.grad_min, grad_factor=factor)
            for index in active:
                if signs:
                    write_signs(signs[index], load(index), store)
                if prev_grads:
                    prev_grads[index].copy_(grads[index])

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
        requests = []
        for index in active:
            param = params[index]
            went = [0.0, 0.0]
            if param.numel():
                moved = _move(param, load(index), gamma, weight_decay)
                went = [float(moved.sum(dtype=torch.float64)), float(moved.max())]
            numbers = torch.tensor(went, dtype=torch.float64, device=param.device)
            requests.append(Exchange(numbers, "gather", tuple(range(param.ndim)), index))
        moves = [piece for answer in (yield requests) for piece in answer.tolist()]
        total = sum(piece[0] for piece in moves)
        farthest = reduce(_nan_max, (piece[1] for piece in moves), 0.0)
        settings = {"memory_efficient": memory_efficient, "smoothness": smoothness}
        shared["displacement"] = total if adds_distances(settings) else farthest
    values = [shared[name] for name in ALIAS_SCALARS]
    scalars.copy_(torch.tensor(values, dtype=torch.float64, device=scalars.device))


def _check_kept(params: Sequence[Tensor], name: str, tensors: Sequence[Tensor], is_kept: bool) -> None:
    if is_kept:
        check_lengths(params, **{name: tensors})
    elif tensors:
        raise ValueError(
            f"{name}: got {len(tensors)} tensors, but this form of ALIAS keeps none; pass an empty list"
        )


def _observe(
    g: Tensor, signs: Tensor | None, prev_grad: Tensor | None, prev_factor: float, adds_up: bool
) -> tuple[float, float, float, float]:
    """Return what one tensor's gradient says, as an ``_Observation`` has it."""
    if signs is not None:
        inner = float((g * read_signs(signs, g)).sum(dtype=torch.float64))
    elif prev_grad is not None:
        p = prev_grad.to(g.dtype) * prev_factor
        inner = float((g * p.sign()).sum(dtype=torch.float64))
        return 0.0, 0.0, inner, float((g - p).abs().sum(dtype=torch.float64))
    else:
        inner = 0.0
    if adds_up:
        return 0.0, 0.0, inner, float(g.abs().sum(dtype=torch.float64))
    if not g.numel():
        return -math.inf, math.inf, inner, 0.0
    return float(g.max()), float(g.min()), inner, 0.0


def _combine(seen: Sequence[_Observation]) -> _Observation:
    """Return what all pieces of all tensors say together."""
    grad_max = reduce(_nan_max, (piece.grad_max for piece in seen), -math.inf)
    grad_min = -reduce(_nan_max, (-piece.grad_min for piece in seen), -math.inf)
    if grad_max < grad_min:  # not one of them has an element
        grad_max = grad_min = 0.0
    return _Observation(
        grad_max, grad_min, sum(piece.inner for piece in seen), sum(piece.norm for piece in seen)
    )


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
        beta1, beta2, eps, weight_decay: numbers, as :class:`~sage_ext.FusedALIASAdam` has them.
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
    for param, grad, exp_avg, exp_avg_sq, planes, own in zip(
        params, grads, exp_avgs, exp_avg_sqs, signs, scalars, strict=True
    ):
        run_alone(
            alias_adam_stages(
                param,
                grad,
                exp_avg,
                exp_avg_sq,
                planes,
                own,
                shape=param.shape,
                lr=lr,
                beta1=beta1,
                beta2=beta2,
                eps=eps,
                weight_decay=weight_decay,
                maximize=maximize,
                grad_scale=grad_scale,
            )
        )


def alias_adam_stages(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    signs: Tensor,
    scalars: Tensor,
    *,
    shape: Sequence[int],
    store: Store = store,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    grad_scale: Tensor | None,
) -> Stages:
    """The step of one tensor, or of a piece of one whose whole has ``shape``.

    One exchange: the inner product of the gradient and the signs of the last one.
    """
    root = math.sqrt(beta2)
    dtype = compute_dtype(param, grad, exp_avg, exp_avg_sq)
    g = load_grad(grad, dtype, maximize, grad_scale)
    inner = (g.double() * read_signs(signs, g)).sum()
    del g
    (inner,) = yield [Exchange(inner, "total", tuple(range(len(shape))))]
    yield COMMIT

    r = root * scalars[0] + (1 - root) * (scalars[1] * inner)
    d = torch.maximum(r, scalars[1])
    g = load_grad(grad, dtype, maximize, grad_scale)
    rate = scalar(lr, param.device)
    m = beta1 * exp_avg.to(dtype) + (1 - beta1) * (d * g)
    v = beta2 * exp_avg_sq.to(dtype) + (1 - beta2) * (d * g).square()
    denominator = v.sqrt() + eps
    update = torch.where(denominator == 0, torch.zeros_like(m), m / denominator)
    store(scalars, torch.stack([r, d]))
    write_signs(signs, g, store)
    store(param, param.to(dtype) * (1 - rate * weight_decay) - rate * d * update)
    store(exp_avg, m)
    store(exp_avg_sq, v)
