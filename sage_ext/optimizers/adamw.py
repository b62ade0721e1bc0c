"""AdamW, as torch computes it: the rule that hybrids use where a sign update does not fit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sage_ext.backend import Backend
from sage_ext.optimizers.base import FusedOptimizer, hyperparameters, of_rule
from sage_ext.optimizers.rule import Group, Rule, StateSpec, adam_moment, step_counter


class AdamwRule(Rule):
    name = "adamw"
    is_elementwise = True
    state_keys = ("exp_avg", "exp_avg_sq", "step")

    def state_layout(self, param: Tensor, group: Group) -> dict[str, StateSpec]:
        return {
            "step": step_counter(),
            "exp_avg": adam_moment(param, group),
            "exp_avg_sq": adam_moment(param, group),
        }


ADAMW = AdamwRule()


@of_rule(ADAMW)
class FusedAdamW(FusedOptimizer):
    """AdamW as ``torch.optim.AdamW`` computes it (arXiv 1711.05101), in float32 with one rounding at the
    store.

    A parameter's state is ``exp_avg``, ``exp_avg_sq`` and ``step`` (0-dim float32), under torch's names, so
    that a checkpoint of ``torch.optim.AdamW`` loads.

    Args:
        params: parameters, named parameters or groups. float32, bfloat16 or float16 in any mix; float64 with
            ``backend="reference"``. Native kernels take any dense strides.
        lr: a number or a one-element tensor. One on the parameter's GPU is read by the kernels alone, so a
            captured CUDA graph follows its value; any other is read on the host at each step.
        betas: (b1, b2), each in [0, 1).
        eps: added to the denominator.
        weight_decay: decoupled.
        maximize: ascend instead of descend.
        state_dtype: dtype of both moments; None takes float32, also beside bfloat16 and float16 parameters
            (float64 beside float64): in 16 bits ``exp_avg_sq`` vanishes or cannot decay.
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
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
        capturable: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(params, hyperparameters(locals()), backend=backend)
