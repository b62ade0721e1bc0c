"""SAGE: sign updates damped per column (arXiv 2604.07663)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sage_ext.backend import Backend
from sage_ext.optimizers import validate
from sage_ext.optimizers.base import FusedOptimizer, hyperparameters, of_rule
from sage_ext.optimizers.rule import Group, Rule, StateSpec, moment, step_counter


class SageRule(Rule):
    name = "sage"
    checks: ClassVar[Mapping[str, validate.Check]] = {
        "momentum_first": validate.flag,
        "instant_damper": validate.flag,
    }
    state_keys = ("exp_avg", "s_range", "step")
    needs_contiguous = True

    def state_layout(self, param: Tensor, group: Group) -> dict[str, StateSpec]:
        dims = tuple(range(1 if param.ndim >= 2 else 0, param.ndim))
        columns = tuple(param.shape[dim] for dim in dims)
        range_dtype = torch.promote_types(param.dtype, torch.float32)
        return {
            "step": step_counter(),
            "exp_avg": moment(param, group),
            "s_range": StateSpec(columns, range_dtype, False, dims),
        }


SAGE = SageRule()


@of_rule(SAGE)
class FusedSAGE(FusedOptimizer):
    """SAGE: the sign of a momentum, damped column by column where gradients are large (arXiv 2604.07663).

    With ``s = mean over rows of |g|`` (``|g|`` itself below two dimensions) and t counted from 1::

        W   <- W (1 - lr*wd)
        S   <- b2*S + (1-b2)*s ;   Sh = S / (1 - b2^t)
        H_j  = min( rms(Sh)/(Sh_j + eps),  rms(s)/(s_j + eps),  1 )
        W   <- W - lr * H * sign(b1*m + (1-b1)*g) ;   m <- b2*m + (1-b2)*g

    A parameter's state is ``exp_avg`` (m), ``s_range`` (S: float32, shape ``W.shape[1:]``, or ``W.shape``
    below two dimensions, so as large as W there) and ``step`` (0-dim float32).

    float32 has to hold the sum of ``|g|`` over a column: the mean may be up to 3.4e38 divided by the rows.
    Beyond, that column turns to NaN, as it does where a gradient is not finite.

    Args:
        params: parameters, named parameters or groups, as any torch optimizer takes them. float32, bfloat16
            or float16 in any mix; float64 with ``backend="reference"``. Parameters must be contiguous for
            native kernels.
        lr: the most that an element moves in a step, but for weight decay; a number or a one-element tensor.
            One on the parameter's GPU is read by the kernels alone, so a captured CUDA graph follows its
            value; any other is read on the host at each step.
        betas: (b1, b2), each in [0, 1). b1 is the share of m in the sign, and 1 - b1 that of the gradient. b2
            is how long m and S remember.
        eps: added to the damper's denominators; may be 0. It stands beside the mean of ``|g|`` over all rows
            of a column, rows without a gradient included, so a large vocabulary divides that mean. About
            mean / (mean + eps) of a step is left: keep eps below a hundredth of the smallest mean.
        weight_decay: decoupled, as in AdamW.
        momentum_first: form the sign from the updated momentum (the authors' released code) instead of the
            old one (the paper).
        instant_damper: whether the second term of the minimum takes part.
        maximize: ascend instead of descend.
        state_dtype: dtype of ``exp_avg``; None takes the parameter's.
        capturable: accepted for parity with torch, without effect: the whole state is on the parameter's
            device, and a step can be captured in a CUDA graph, either way.
        backend: ``"auto"``, ``"native"`` or ``"reference"``; ``optimizer.backend`` says what was chosen.

    Raises:
        ValueError: an argument or a parameter cannot be used; the message names it, and the cure.
        NativeUnavailableError: native kernels were asked for, or are needed on a GPU, and cannot be used.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        momentum_first: bool = False,
        instant_damper: bool = True,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
        capturable: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(params, hyperparameters(locals()), backend=backend)
