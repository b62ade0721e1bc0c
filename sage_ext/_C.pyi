"""The native module: everything here changes tensors in place; sage_ext.reference has the formulas.

All tensors of a call are on one device, the step counters too; ``lr`` (if a tensor), ``grad_scale`` and
``found_inf`` are one floating element each, on any device. On a CUDA device a call enqueues kernels on the
current stream and the host reads no value from the device: it never waits, and a CUDA graph can capture the
call. Where a rule has a ``momentum``, ``exp_avgs`` is empty if that is 0. ALIAS takes one tensor of scalars
for all of a call's, and empty lists for what its form does not keep (see sage_ext.reference.alias_).

Written by tools/stub.py from csrc/ops/rules.h and functions.h, where they are declared: ``make stub`` writes
it anew.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

__version__: str

def build_info() -> dict[str, Any]: ...
def cpu_capability() -> str: ...
def signatures() -> dict[str, tuple[str, list[Parameter], list[Parameter]]]:
    """For every rule what its function says of itself, its lists of tensors, and its keyword arguments."""

def functions() -> dict[str, tuple[str, list[Parameter]]]:
    """For every function that is no rule what it says of itself, and its arguments."""

# Name, type, and default, which is None where there is none.
Parameter = tuple[str, str, str | None]

class Stages:
    """A step on pieces of tensors, for SAGE, SinkGD and SCALE."""

    def proceed(self) -> tuple[str, list[Tensor]] | None:
        """Go on to the next exchange: what was summed over (``"rows"`` or ``"columns"``), and a buffer for
        each parameter, which has to hold the sum over all pieces by the next call. None when it is done."""

class StateItems:
    """The items of ``optimizer.state``, for ``Gathered``; valid until that changes."""

    def __init__(self, state: Mapping[Tensor, dict[str, Any]]) -> None: ...

class GroupTensors:
    """The tensors of one step of a parameter group. A step takes them out of it."""

class Gathered:
    """Where the last step has found the tensors of a parameter group. It keeps none of them alive.

    ``keys`` are a rule's names in the states, ``kept`` says which of them are there, and ``shared`` is what
    the group's parameters share.
    """

    is_valid: bool
    """Whether steps can begin with it."""
    has_grads: bool
    """Whether any parameter had a gradient."""

    def __init__(
        self,
        params: list[Tensor],
        state: StateItems,
        keys: Sequence[str],
        kept: Sequence[bool],
        shared: list[Tensor],
    ) -> None: ...
    def look(self, params: list[Tensor], state: StateItems, shared: list[Tensor]) -> GroupTensors | None:
        """The tensors for a step, if all of them are in their places and as they were."""

class Step:
    """Plans of several groups: each method checks its arguments and changes nothing, run() runs them all.

    On a CUDA device the methods and run() have to be called on one stream.
    """

    def __init__(self) -> None: ...
    def run(self) -> None: ...
    def stages(self, *, shapes: Sequence[Sequence[int]], rows: bool, columns: bool) -> Stages:
        """Begin the only plan in stages: its parameters are pieces of tensors of these shapes, and ``rows``
        and ``columns`` say what other processes have the rest of."""
    def sage(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        s_ranges: Sequence[Tensor],
        steps: Sequence[Tensor],
        *,
        lr: float | Tensor,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        momentum_first: bool = False,
        instant_damper: bool = True,
        maximize: bool = False,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        describe: Callable[[int], str] | None = None,
    ) -> None:
        """One SAGE step, in place."""
    def sinkgd(
        self,
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
        describe: Callable[[int], str] | None = None,
    ) -> None:
        """One SinkGD step, in place."""
    def lion(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        *,
        lr: float | Tensor,
        beta1: float,
        beta2: float,
        weight_decay: float,
        maximize: bool = False,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        describe: Callable[[int], str] | None = None,
    ) -> None:
        """One Lion step, in place."""
    def sign_sgd(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        *,
        lr: float | Tensor,
        momentum: float,
        weight_decay: float,
        maximize: bool = False,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        describe: Callable[[int], str] | None = None,
    ) -> None:
        """One step of Sign-SGD or, with momentum, Signum, in place."""
    def scale(
        self,
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
        describe: Callable[[int], str] | None = None,
    ) -> None:
        """One SCALE step, in place."""
    def adamw(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        steps: Sequence[Tensor],
        *,
        lr: float | Tensor,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        maximize: bool = False,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        describe: Callable[[int], str] | None = None,
    ) -> None:
        """One AdamW step, in place."""
    def alias(
        self,
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
        describe: Callable[[int], str] | None = None,
    ) -> None:
        """One ALIAS step, in place."""
    def alias_adam(
        self,
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
        describe: Callable[[int], str] | None = None,
    ) -> None:
        """One ALIAS-Adam step, in place."""
    def again_sage(
        self,
        tensors: GroupTensors,
        *,
        lr: float | Tensor,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        momentum_first: bool = False,
        instant_damper: bool = True,
        maximize: bool = False,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """One SAGE step, in place."""
    def again_sinkgd(
        self,
        tensors: GroupTensors,
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
        """One SinkGD step, in place."""
    def again_lion(
        self,
        tensors: GroupTensors,
        *,
        lr: float | Tensor,
        beta1: float,
        beta2: float,
        weight_decay: float,
        maximize: bool = False,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """One Lion step, in place."""
    def again_sign_sgd(
        self,
        tensors: GroupTensors,
        *,
        lr: float | Tensor,
        momentum: float,
        weight_decay: float,
        maximize: bool = False,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """One step of Sign-SGD or, with momentum, Signum, in place."""
    def again_scale(
        self,
        tensors: GroupTensors,
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
        """One SCALE step, in place."""
    def again_adamw(
        self,
        tensors: GroupTensors,
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
        """One AdamW step, in place."""
    def again_alias(
        self,
        tensors: GroupTensors,
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
        """One ALIAS step, in place."""
    def again_alias_adam(
        self,
        tensors: GroupTensors,
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
        """One ALIAS-Adam step, in place."""

def sage_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    s_ranges: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    momentum_first: bool = False,
    instant_damper: bool = True,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    describe: Callable[[int], str] | None = None,
) -> None:
    """One SAGE step, in place."""

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
    describe: Callable[[int], str] | None = None,
) -> None:
    """One SinkGD step, in place."""

def lion_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    weight_decay: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    describe: Callable[[int], str] | None = None,
) -> None:
    """One Lion step, in place."""

def sign_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    describe: Callable[[int], str] | None = None,
) -> None:
    """One step of Sign-SGD or, with momentum, Signum, in place."""

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
    describe: Callable[[int], str] | None = None,
) -> None:
    """One SCALE step, in place."""

def adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    describe: Callable[[int], str] | None = None,
) -> None:
    """One AdamW step, in place."""

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
    describe: Callable[[int], str] | None = None,
) -> None:
    """One ALIAS step, in place."""

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
    describe: Callable[[int], str] | None = None,
) -> None:
    """One ALIAS-Adam step, in place."""

def pack_votes(
    grad: Tensor,
    exp_avg: Tensor | None,
    packed: Tensor,
    momentum: float,
) -> None:
    """Writes `packed`: the signs of a gradient, or of its momentum, as votes."""

def count_votes(
    received: Tensor,
    result: Tensor,
) -> None:
    """Writes `result`: what most votes on a piece are, of all voters' in `received`."""

def unpack_votes(
    packed: Tensor,
    grad: Tensor,
) -> None:
    """Writes `grad`: -1, 0 and 1, and NaN where a voter's number was not finite."""
