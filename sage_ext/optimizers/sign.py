"""The sign family: Lion (arXiv 2302.06675), Sign-SGD and Signum (arXiv 1802.04434)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sage_ext.backend import Backend
from sage_ext.optimizers.base import FusedOptimizer, hyperparameters, of_rule
from sage_ext.optimizers.rule import Group, Rule, StateSpec, keys_of_momentum, moment


class LionRule(Rule):
    name = "lion"
    is_elementwise = True
    state_keys = ("exp_avg",)

    def state_layout(self, param: Tensor, group: Group) -> dict[str, StateSpec]:
        return {"exp_avg": moment(param, group)}


LION = LionRule()


@of_rule(LION)
class FusedLion(FusedOptimizer):
    """Lion: ``W <- W (1 - lr*wd) - lr*sign(b1*m + (1-b1)*g) ; m <- b2*m + (1-b2)*g`` (arXiv 2302.06675).

    A parameter's state is ``exp_avg`` (m).

    Args:
        params: parameters, named parameters or groups. float32, bfloat16 or float16 in any mix; float64 with
            ``backend="reference"``. Native kernels take any dense strides.
        lr: a number or a one-element tensor. One on the parameter's GPU is read by the kernels alone, so a
            captured CUDA graph follows its value; any other is read on the host at each step.
        betas: (b1, b2), each in [0, 1).
        weight_decay: decoupled, as in AdamW.
        maximize: ascend instead of descend.
        state_dtype: dtype of ``exp_avg``; None takes the parameter's.
        capturable: accepted for parity with torch, without effect: a step can be captured in a CUDA graph
            either way.
        backend: ``"auto"``, ``"native"`` or ``"reference"``; ``optimizer.backend`` says what was chosen.

    Raises:
        ValueError: an argument or a parameter cannot be used; the message names it, and the cure.
        NativeUnavailableError: native kernels were asked for, or are needed on a GPU, and cannot be used.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
        capturable: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(params, hyperparameters(locals()), backend=backend)


class SignSgdRule(Rule):
    name = "sign_sgd"
    is_elementwise = True
    state_keys = ("exp_avg",)

    def kept_keys(self, group: Group) -> tuple[str, ...]:
        return keys_of_momentum(group)

    def state_layout(self, param: Tensor, group: Group) -> dict[str, StateSpec]:
        return {key: moment(param, group) for key in self.kept_keys(group)}


SIGN_SGD = SignSgdRule()


@of_rule(SIGN_SGD)
class FusedSignSGD(FusedOptimizer):
    """Sign-SGD: ``W <- W (1 - lr*wd) - lr*sign(g)``; with momentum Signum (both arXiv 1802.04434).

    Signum is ``m <- momentum*m + (1-momentum)*g ; W <- W (1 - lr*wd) - lr*sign(m)`` with the new m. sign(0)
    is 0, so what has no gradient (and no momentum) does not move.

    Without momentum there is no state. With it, a parameter's state is ``exp_avg`` (m). A group's
    ``momentum`` may change between steps: m is made, of zeros, at the first step that needs it, and dropped
    by a step with momentum 0. Where it was 0, the step after a scheduler begins to cycle it is refused.

    Args:
        params: parameters, named parameters or groups. float32, bfloat16 or float16 in any mix; float64 with
            ``backend="reference"``. Native kernels take any dense strides.
        lr: a number or a one-element tensor. One on the parameter's GPU is read by the kernels alone, so a
            captured CUDA graph follows its value; any other is read on the host at each step.
        momentum: in [0, 1).
        weight_decay: decoupled, as in AdamW.
        maximize: ascend instead of descend.
        state_dtype: dtype of ``exp_avg``; None takes the parameter's.
        capturable: accepted for parity with torch, without effect: a step can be captured in a CUDA graph
            either way.
        backend: ``"auto"``, ``"native"`` or ``"reference"``; ``optimizer.backend`` says what was chosen.

    Raises:
        ValueError: an argument or a parameter cannot be used; the message names it, and the cure.
        NativeUnavailableError: native kernels were asked for, or are needed on a GPU, and cannot be used.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
        capturable: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(params, hyperparameters(locals()), backend=backend)
