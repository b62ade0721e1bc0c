"""SinkGD as stages: X is not kept, but as ``diag(r) G diag(c)``, of which r and c alone live between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sage_ext.reference._common import compute_dtype, load_grad, scalar
from sage_ext.reference._stages import COMMIT, Exchange, Stages, Store, norm_along, store


def sinkgd_stages(
    param: Tensor,
    grad: Tensor,
    *,
    shape: Sequence[int],
    store: Store = store,
    lr: float | Tensor,
    iterations: int,
    alpha: float,
    eps: float,
    weight_decay: float,
    normalization: str,
    maximize: bool,
    grad_scale: Tensor | None,
) -> Stages:
    """The step of one tensor, or of a piece of one whose whole has ``shape``.

    Two exchanges an iteration: the row norms over the columns, and the column norms over the rows.

    The unit form's X is held as a multiple of itself, as the native kernels do: iterated as it is written, r
    and c would part by ``sqrt(n/m)`` each time. Any multiple gives the same X if eps is multiplied, too.
    """
    if math.prod(shape) == 0:
        yield COMMIT
        return
    dtype = compute_dtype(param, grad)
    rate = scalar(lr, param.device)
    rows, columns = shape[-2:]
    along_rows, along_columns = (len(shape) - 1,), (len(shape) - 2,)
    is_unit = normalization == "unit"
    of_rows, of_columns = _target(columns, rows, eps, is_unit), _target(rows, columns, eps, is_unit)
    row_scale: Tensor | None = None
    column_scale: Tensor | None = None

    def iterate() -> Tensor:
        x = load_grad(grad, dtype, maximize, grad_scale)
        if row_scale is not None:
            x = x * row_scale
        return x if column_scale is None else x * column_scale

    for iteration in range(iterations):
        # Only the raw gradient can be as small or large as its squares cannot be: 1e-20 or 1e20.
        if iteration == 0:
            (norm,) = yield [Exchange(norm_along(iterate(), -1), "norm", along_rows)]
        else:
            squares = iterate().square().sum(dim=-1, keepdim=True)
            (squares,) = yield [Exchange(squares, "sum", along_rows)]
            norm = squares.to(dtype).sqrt()
        multiple = of_columns if is_unit and iteration else 1.0
        row_scale = _rescaled(row_scale, norm, of_rows, eps * multiple)
        squares = iterate().square().sum(dim=-2, keepdim=True)
        (squares,) = yield [Exchange(squares, "sum", along_columns)]
        target = 1.0 if is_unit and iteration == iterations - 1 else of_columns
        multiple = of_rows if is_unit else 1.0
        column_scale = _rescaled(column_scale, squares.to(dtype).sqrt(), target, eps * multiple)
    yield COMMIT

    store(param, param.to(dtype) * (1 - rate * weight_decay) - rate * (alpha * iterate()))


def _target(length: int, count: int, eps: float, is_unit: bool) -> float:
    """What the norms of ``count`` vectors of ``length`` entries are brought to."""
    return math.sqrt(length) + (min(eps, 1.0) * math.sqrt(count) if is_unit else 0.0)


def _rescaled(scale: Tensor | None, norm: Tensor, target: float, eps: float) -> Tensor:
    """Return the scale times target / (norm + eps), and zero where the norm is exactly zero."""
    change = torch.where(norm == 0, torch.zeros_like(norm), target / (norm + eps))
    return change if scale is None else scale * change
