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
)
from sage_ext.reference._stages import COMMIT, Exchange, Stages, Store, norm_along, run_alone, store


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
        eps, weight_decay: numbers, as :class:`~sage_ext.FusedSCALE` has them.
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
        run_alone(
            scale_stages(
                param,
                grad,
                exp_avgs[index] if momentum else None,
                shape=param.shape,
                lr=lr,
                momentum=momentum,
                dim=dim,
                eps=eps,
                weight_decay=weight_decay,
                normalization=normalization,
                maximize=maximize,
                grad_scale=grad_scale,
            )
        )


def scale_stages(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor | None,
    *,
    shape: Sequence[int],
    store: Store = store,
    lr: float | Tensor,
    momentum: float,
    dim: int,
    eps: float,
    weight_decay: float,
    normalization: str,
    maximize: bool,
    grad_scale: Tensor | None,
) -> Stages:
    """The step of one tensor, or of a piece of one whose whole has ``shape``. One exchange: the norms."""
    if math.prod(shape) == 0:
        yield COMMIT
        return
    dtype = compute_dtype(param, grad, *([] if exp_avg is None else [exp_avg]))
    rate = scalar(lr, param.device)
    reduced = len(shape) + dim - 2

    def direction() -> tuple[Tensor, Tensor | None]:
        """Return x, and m as it shall be stored."""
        x = load_grad(grad, dtype, maximize, grad_scale)
        if exp_avg is None:
            return x, None
        stored = (momentum * exp_avg.to(dtype) + (1 - momentum) * x).to(exp_avg.dtype)
        return stored.to(dtype), stored

    (norm,) = yield [Exchange(norm_along(direction()[0], reduced), "norm", (reduced,))]
    if normalization == "rms":
        norm = norm / math.sqrt(shape[reduced])
    norm = norm.clamp(min=eps)
    yield COMMIT

    x, stored = direction()
    update = torch.where(norm == 0, torch.zeros_like(x), x / norm)
    store(param, param.to(dtype) * (1 - rate * weight_decay) - rate * update)
    if exp_avg is not None and stored is not None:
        store(exp_avg, stored)
