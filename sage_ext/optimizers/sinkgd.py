"""SinkGD: descent along the gradient with its rows and columns normalised in turn (arXiv 2502.06742)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT

from sage_ext.backend import Backend
from sage_ext.optimizers import validate
from sage_ext.optimizers.base import FusedOptimizer, hyperparameters, of_rule
from sage_ext.optimizers.rule import Rule


class SinkgdRule(Rule):
    name = "sinkgd"
    checks: ClassVar[Mapping[str, validate.Check]] = {
        "iterations": validate.positive_int,
        "alpha": validate.non_negative,
        "normalization": validate.one_of("sqrt", "unit"),
    }
    needs_contiguous = True
    min_ndim = 2


SINKGD = SinkgdRule()


@of_rule(SINKGD)
class FusedSinkGD(FusedOptimizer):
    """SinkGD (SR-Sinkhorn): the gradient's rows and columns are normalised in turn (arXiv 2502.06742).

    For each trailing ``[m, n]`` matrix X of the gradient, ``iterations`` times::

        X_i,: <- sqrt(n) * X_i,: / (||X_i,:||_2 + eps)     # every row
        X_:,j <- sqrt(m) * X_:,j / (||X_:,j||_2 + eps)     # then every column

    and then ``W <- W (1 - lr*wd) - lr*alpha*X``. A zero row or column stays put. No state.

    Native kernels keep X as ``diag(r) G diag(c)``, with r and c in float32. They are right to about 2e-6 of
    the largest entry as long as

    - the root mean square of a row that is not zero is at least 1e-38 (with an eps of 1e-8 it may be as small
      as float32 goes), and at most ``lr * alpha * 8e37``: above that the update loses bits;
    - no column is more than 1e38 times smaller than what its rows hold elsewhere;
    - zeros do not drive r and c apart: where all but m' rows and n' columns are zero, they part by
      ``sqrt(m*n' / (m'*n))`` in every iteration, and at worst, in patterns such as one full row and one full
      column, by ``sqrt(max(m, n))``. All iterations together have to stay below 1e38, over the size of the
      gradient or its inverse. Five do, whatever the zeros, for gradients from 1e-20 to 1e20 and up to a
      million rows and columns.

    Beyond, a scale stays at 3e38 or becomes 0, and its row or column moves too little. The reference, which
    keeps X itself, has none of these bounds but float32's own.

    Args:
        params: parameters of two or more dimensions, named parameters or groups. float32, bfloat16 or float16
            in any mix; float64 with ``backend="reference"``. Parameters must be contiguous for native
            kernels.
        lr: a number or a one-element tensor. One on the parameter's GPU is read by the kernels alone, so a
            captured CUDA graph follows its value; any other is read on the host at each step.
        iterations: how often rows and columns are normalised.
        alpha: scale of the update beside ``lr``; weight decay does not see it.
        eps: added to each norm; may be 0.
        weight_decay: decoupled, as in AdamW.
        normalization: ``"sqrt"`` as above, or ``"unit"``, which drops both square-root factors (the pairing
            in the released hybrid of SAGE's authors) and so divides the update by ``sqrt(m)``.
        maximize: ascend instead of descend.
        backend: ``"auto"``, ``"native"`` or ``"reference"``; ``optimizer.backend`` says what was chosen.

    Raises:
        ValueError: an argument or a parameter cannot be used (a 1-D one, for instance); the message names it.
        NativeUnavailableError: native kernels were asked for, or are needed on a GPU, and cannot be used.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.02,
        iterations: int = 5,
        alpha: float = 0.05,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        normalization: Literal["sqrt", "unit"] = "sqrt",
        maximize: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(params, hyperparameters(locals()), backend=backend)
