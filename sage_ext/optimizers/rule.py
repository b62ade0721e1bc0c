"""What a rule is to an optimizer: its hyperparameters, its state, and the arguments of its functions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sage_ext import pieces
from sage_ext.optimizers import validate

Group = Mapping[str, Any]

_COMMON_CHECKS: Mapping[str, validate.Check] = MappingProxyType(
    {
        "lr": validate.rate,
        "betas": validate.fraction_pair,
        "eps": validate.non_negative,
        "weight_decay": validate.non_negative,
        "momentum": validate.fraction,
        "maximize": validate.flag,
        "state_dtype": validate.state_dtype,
        "capturable": validate.flag,
    }
)
"""What a hyperparameter of this name may be, whichever rule has it."""


class StateSpec(NamedTuple):
    """One tensor of a parameter's optimizer state."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    follows_param: bool
    """Whether it has the parameter's shape and strides, and may have any floating dtype (``state_dtype``)."""
    dims: tuple[int, ...] | None = None
    """Which of the parameter's dimensions its own are, where they are some: it is cut where a DTensor is."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def nbytes_of_piece(self, local: Sequence[int]) -> int:
        """Return the bytes of a process that has a piece of this shape of the parameter."""
        if self.follows_param:
            return math.prod(local) * self.dtype.itemsize
        if self.dims is not None:
            return math.prod(local[dim] for dim in self.dims) * self.dtype.itemsize
        return self.nbytes


ALL_STATE_KEYS: set[str] = set()
"""What any rule keeps in ``optimizer.state``. Other keys there are somebody else's."""


class Rule:
    """One update rule. Stateless itself: everything it needs comes from the parameter group.

    ``sage_ext._C.Step`` has a method, and ``sage_ext.reference`` a function with an underscore behind it, of
    the rule's name. Both take ``(params, grads, *[list of each state tensor], **arguments(group))``, and an
    empty list for a state that the group's hyperparameters do without. Behind the states comes a list with
    one tensor for each of ``shared_keys``.

    A rule's hyperparameters and their defaults are those of its optimizer's constructor: see
    ``read_signature``.
    """

    name: ClassVar[str]
    checks: ClassVar[Mapping[str, validate.Check]] = {}
    """What the rule's own hyperparameters may be, beside those that many rules have."""
    not_passed: ClassVar[tuple[str, ...]] = ("state_dtype", "capturable")
    """Hyperparameters that are no arguments of the functions."""
    state_keys: ClassVar[tuple[str, ...]] = ()
    """Keys of all states that the rule can keep, in the order in which the functions take their lists."""
    shared_keys: ClassVar[tuple[str, ...]] = ()
    """Keys of states that the parameters of a group share: they are in the group, and None before the first
    step."""
    form: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that say what the numbers in those states mean, and so stay as they are."""
    needs_contiguous: ClassVar[bool] = False
    """Whether the native kernels need row-major parameters, or take any dense strides."""
    is_elementwise: ClassVar[bool] = False
    """Whether an element's update depends on that element alone, so that any piece of a tensor will do."""
    min_ndim: ClassVar[int] = 0
    """How many dimensions a parameter must have."""
    cure_for_vectors: ClassVar[str] = "SAGE, Lion or AdamW"
    """The rules that take parameters of fewer dimensions."""
    lr_is_step: ClassVar[bool] = True
    """Whether ``lr`` is how far a step goes. With another rule, a step at lr 0 would still move."""

    def __init_subclass__(cls) -> None:
        ALL_STATE_KEYS.update(cls.state_keys)

    def __init__(self) -> None:
        self.defaults: Mapping[str, Any] = {}
        """The group's hyperparameters and their defaults. ``maximize`` is one of every rule."""

    def read_signature(self, constructor: Callable[..., Any]) -> None:
        """Take the hyperparameters and their defaults from the constructor of the rule's own optimizer."""
        parameters = inspect.signature(constructor).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.name not in NOT_HYPERPARAMETERS}
        self.defaults = MappingProxyType(defaults)
        self._checks = tuple(
            (name, self.checks[name] if name in self.checks else _COMMON_CHECKS[name]) for name in defaults
        )
        self._passed = tuple(name for name in defaults if name not in (*self.not_passed, "betas"))

    def validate(self, group: Group, where: str) -> None:
        """Raise ValueError naming the first hyperparameter that cannot be used; ``where`` names the group."""
        for name, check in self._checks:
            check(group[name], name, where)

    def check_form(self, group: Group, before: Group, where: str) -> None:
        """Raise ValueError if a hyperparameter of ``form`` is not what it was in the step before."""
        for name, value in before.items():
            if group[name] != value:
                shared = " and ".join(map(repr, self.shared_keys))
                validate.fail(
                    name,
                    group[name],
                    f"{value!r} as in the steps before; to begin anew, clear optimizer.state for its "
                    f"parameters and set its {shared} to None",
                    where,
                )

    def check_param(self, param: Tensor, label: str) -> None:
        """Raise ValueError if the rule cannot be applied to a tensor of this shape."""
        if param.ndim < self.min_ndim:
            raise ValueError(
                f"{label}: rule {self.name!r} needs {self.min_ndim} or more dimensions; give this parameter "
                f"to {self.cure_for_vectors} (FusedHybrid does that for a whole model). If it is a flat "
                "partition of several parameters (DeepSpeed ZeRO, Megatron's distributed optimizer), no rule "
                "that looks at rows and columns can run on it: use FusedLion, FusedSignSGD or FusedAdamW, or "
                "FSDP2 or DDP"
            )

    def kept_keys(self, group: Group) -> tuple[str, ...]:
        """Return those of ``state_keys`` that are kept with the group's hyperparameters."""
        return self.state_keys

    def state_layout(self, param: Tensor, group: Group) -> dict[str, StateSpec]:
        """Return shape and dtype of each state tensor of ``param``. It allocates nothing: meta will do."""
        return {}

    def init_state(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        """Return a new state of zeros for ``param``, on its device."""
        return {key: allocate(spec, param).zero_() for key, spec in self.state_layout(param, group).items()}

    def shared_layout(self, group: Group) -> dict[str, StateSpec]:
        """Return shape and dtype of each state that the parameters of a group share."""
        return {}

    def init_shared(self, group: Group) -> dict[str, Tensor]:
        """Return the shared states as they begin, on the CPU."""
        return {}

    def takes_loss(self, group: Group) -> bool:
        """Return whether the functions take ``loss``, and need it in the first step."""
        return False

    def has_begun(self, group: Group) -> bool:
        """Return whether a group of a rule that takes a loss has had its first step; the host may wait."""
        return False

    def check_first_loss(self, loss: float, group: Group, where: str) -> None:
        """Raise ValueError if the first step cannot begin with this loss."""

    def reevaluates(self, group: Group) -> bool:
        """Return whether a step ends with another gradient, for ``arguments(group, again=True)``."""
        return False

    def step_size(self, group: Group) -> float:
        """Return the size of the last step, where the host may have to wait for it; NaN before the first."""
        return float(group["lr"])

    def arguments(self, group: Group, *, again: bool = False) -> dict[str, Any]:
        """Return the keyword arguments of the functions, without loss, grad_scale and found_inf; ``again`` is
        the second part of a step that takes the gradient twice."""
        result = {name: group[name] for name in self._passed}
        if "betas" in self.defaults:
            result["beta1"], result["beta2"] = group["betas"]
        return result


NOT_HYPERPARAMETERS = ("self", "params", "backend", "process_group", "vote")
"""What a constructor takes beside its rule's hyperparameters: what is of this process, and not saved."""


def allocate(spec: StateSpec, param: Tensor) -> Tensor:
    """Return an uninitialised state tensor for ``param``, a DTensor where that is one."""
    if pieces.is_piece(param):
        from sage_ext.distributed import placements

        return placements.allocate(spec, param)
    if spec.follows_param:
        return torch.empty_like(param, dtype=spec.dtype, requires_grad=False)
    return torch.empty(spec.shape, dtype=spec.dtype, device=param.device)


def moment(param: Tensor, group: Group) -> StateSpec:
    """The layout of a moment: the parameter's shape, strides and, without ``state_dtype``, its dtype."""
    return StateSpec(tuple(param.shape), group["state_dtype"] or param.dtype, True)


def adam_moment(param: Tensor, group: Group) -> StateSpec:
    """The layout of Adam's two moments, which share a dtype: float32 or wider without ``state_dtype``.

    In float16 the square of a gradient under 7e-3 is zero. In bfloat16 ``exp_avg_sq`` cannot decay at a beta2
    of 0.998 or more: what a step takes from it is less than half a unit in its last place.
    """
    dtype = group["state_dtype"] or torch.promote_types(param.dtype, torch.float32)
    return StateSpec(tuple(param.shape), dtype, True)


def keys_of_momentum(group: Group) -> tuple[str, ...]:
    """The kept keys of a rule whose only state is a moment that it needs where ``momentum`` is not 0."""
    return ("exp_avg",) if group["momentum"] else ()


def step_counter() -> StateSpec:
    """The layout of a step counter: 0-dim float32, on the parameter's device."""
    return StateSpec((), torch.float32, False)
