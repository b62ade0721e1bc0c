"""SCALE: the gradient, or its momentum, over the norms of its rows or columns (arXiv 2506.16659)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sage_ext.backend import Backend
from sage_ext.optimizers import validate
from sage_ext.optimizers.base import FusedOptimizer, hyperparameters, of_rule
from sage_ext.optimizers.rule import Group, Rule, StateSpec, keys_of_momentum, moment


class ScaleRule(Rule):
    name = "scale"
    checks: ClassVar[Mapping[str, validate.Check]] = {
        "dim": validate.one_of(0, 1),
        "normalization": validate.one_of("rms", "l2"),
    }
    state_keys = ("exp_avg",)
    needs_contiguous = True
    min_ndim = 2
    cure_for_vectors = "AdamW"

    def kept_keys(self, group: Group) -> tuple[str, ...]:
        return keys_of_momentum(group)

    def state_layout(self, param: Tensor, group: Group) -> dict[str, StateSpec]:
        return {key: moment(param, group) for key in self.kept_keys(group)}


SCALE = ScaleRule()


@of_rule(SCALE)
class FusedSCALE(FusedOptimizer):
    """SCALE: ``W <- W (1 - lr*wd) - lr * x / max(norm(x), eps)`` (arXiv 2506.16659).

    x is the gradient, or with momentum ``m <- momentum*m + (1-momentum)*g ; x = m`` (zero at first, without
    bias correction, x as m is stored). The norm is taken along ``dim`` of each trailing matrix: a zero row or
    column stays put.

    The paper writes weights as ``[in, out]`` and normalises the columns, one output unit each. That is
    ``dim=1`` for ``nn.Linear``, and ``dim=0`` for ``nn.Embedding``. Only the output head has momentum there
    (0.9), and 1-D parameters are AdamW's: ``FusedHybrid(model, "scale")`` is the whole method.

    Without momentum there is no state. With it, a parameter's state is ``exp_avg`` (m). A group's
    ``momentum`` may change between steps: m is made, of zeros, at the first step that needs it, and dropped
    by a step with momentum 0. Where it was 0, the step after a scheduler begins to cycle it is refused.

    Native kernels hold 1 / max(norm, eps) in float32, where it is at most 3e38. Without eps, a row or column
    with a norm below 3.4e-39 therefore moves too little; above a norm of 8e37 the update loses bits.

    Args:
        params: parameters of two or more dimensions, named parameters or groups. float32, bfloat16 or float16
            in any mix; float64 with ``backend="reference"``. Parameters must be contiguous for native
            kernels.
        lr: a number or a one-element tensor. One on the parameter's GPU is read by the kernels alone, so a
            captured CUDA graph follows its value; any other is read on the host at each step.
        momentum: in [0, 1).
        dim: 1 takes the norm of every row (over the last dimension), 0 that of every column (over the last
            but one).
        normalization: ``"rms"``, the root of the mean square, as in the authors' code, or ``"l2"``, the
            paper's norm, with which the update is smaller by the root of the length.
        eps: the least norm; may be 0.
        weight_decay: decoupled, as in AdamW.
        maximize: ascend instead of descend.
        state_dtype: dtype of ``exp_avg``; None takes the parameter's.
        capturable: accepted for parity with torch, without effect: a step can be captured in a CUDA graph
            either way.
        backend: ``"auto"``, ``"native"`` or ``"reference"``; ``optimizer.backend`` says what was chosen.

    Raises:
        ValueError: an argument or a parameter cannot be used (a 1-D one, for instance); the message names it,
            and the cure.
        NativeUnavailableError: native kernels were asked for, or are needed on a GPU, and cannot be used.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dim: Literal[0, 1] = 1,
        *,
        normalization: Literal["rms", "l2"] = "rms",
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
        capturable: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(params, hyperparameters(locals()), backend=backend)
