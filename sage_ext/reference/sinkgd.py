"""SinkGD (arXiv 2502.06742): the gradient with its rows and columns normalised in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sage_ext.reference._common import (
    check_lengths,
    compute_dtype,
    is_skipped,
    load_grad,
    scalar,
    scaled_norm,
)


@torch.no_grad()
def sinkgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    *,
    lr: float | Tensor,
    iterations: int,
    alpha: float,
    eps: float,
    weight_decay: float,
    normalization: str = "sqrt",
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One SinkGD step in place; stateless.

    For each trailing ``[m, n]`` matrix X of the gradient, ``iterations`` times::

        X_i,: <- sqrt(n) * X_i,: / (||X_i,:||_2 + eps)     # every row
        X_:,j <- sqrt(m) * X_:,j / (||X_:,j||_2 + eps)     # then every column

    and then ``W <- W (1 - lr*wd) - lr*alpha*X``. A row or column that is exactly zero stays zero.

    Source: the paper (SR-Sinkhorn); eps and weight decay are this library's, the latter with ``lr`` and not
    ``lr*alpha``, as in the code of SAGE's authors.

    Args:
        params: W, two or more dimensions, any floating dtype.
        grads: g, shaped as W.
        lr: a number or a 0-dim tensor.
        alpha, eps, weight_decay: numbers, as :class:`~sage_ext.FusedSinkGD` has them.
        iterations: how often rows and columns are normalised.
        normalization: ``"sqrt"`` as above, or ``"unit"``, which drops both square-root factors.
        maximize: negates g on load.
        grad_scale: g is divided by it on load (the gradient itself is not written).
        found_inf: if non-zero, nothing changes.

    Raises:
        ValueError: the lists differ in length, a tensor has fewer than two dimensions, or ``normalization``
            is unknown.
    """
    check_lengths(params, grads=grads)
    if normalization not in ("sqrt", "unit"):
        raise ValueError(f"normalization: got {normalization!r}, expected 'sqrt' or 'unit'")
    for index, param in enumerate(params):
        if param.ndim < 2:
            raise ValueError(
                f"params[{index}]: SinkGD needs two or more dimensions, got shape {tuple(param.shape)}; "
                "use SAGE, Lion or AdamW for it"
            )
    if is_skipped(found_inf):
        return
    for param, grad in zip(params, grads, strict=True):
        if param.numel() == 0:
            continue
        dtype = compute_dtype(param, grad)
        x = load_grad(grad, dtype, maximize, grad_scale)
        rate = scalar(lr, param.device)
        rows, columns = x.shape[-2:]
        row_target, column_target = (
            (math.sqrt(columns), math.sqrt(rows)) if normalization == "sqrt" else (1.0, 1.0)
        )

        for iteration in range(iterations):
            # Only the raw gradient can be as small or large as its squares cannot be: 1e-20 or 1e20.
            row_norm = scaled_norm(x, dim=-1) if iteration == 0 else _norm(x, dim=-1)
            x = _rescale(x, row_norm, row_target, eps)
            x = _rescale(x, _norm(x, dim=-2), column_target, eps)

        param.copy_(param.to(dtype) * (1 - rate * weight_decay) - rate * (alpha * x))


def _norm(x: Tensor, dim: int) -> Tensor:
    return x.square().sum(dim=dim, keepdim=True).sqrt()


def _rescale(x: Tensor, norm: Tensor, target: float, eps: float) -> Tensor:
    """x * target / (norm + eps), and zero where the norm is exactly zero."""
    return x * torch.where(norm == 0, torch.zeros_like(norm), target / (norm + eps))
