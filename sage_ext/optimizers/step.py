"""One step of one parameter group: what it works on is gathered, then checked, then changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sage_ext import _loader, checks, reference
from sage_ext.optimizers.rule import Rule

State = MutableMapping[Any, dict[str, Any]]
"""Parameter -> key -> state tensor, as in ``optimizer.state``. Wrappers keep tensors of their own in it."""


class Call(NamedTuple):
    """What one group contributes to a step: the parameters that have a gradient, and their state."""

    rule: Rule
    group: int
    params: list[Tensor]
    grads: list[Any]
    """None for a parameter whose gradient another process may have."""
    states: list[list[Tensor]]
    shared: dict[str, Tensor]
    """What the parameters of the group share, with the group's keys."""
    arguments: dict[str, Any]
    fresh: dict[Tensor, dict[str, Tensor]]
    """New states, not yet in the optimizer's; an empty one drops what the rule kept."""
    owners: list[Tensor] | None = None
    """The parameters as the optimizer has them, where ``params`` are what this process holds of them."""
    in_stages: bool = False
    """Whether it runs in PyTorch, in stages with exchanges between processes, and not in native kernels."""

    @property
    def lists(self) -> list[list[Tensor]]:
        """What a rule's function takes behind the gradients."""
        return [*self.states, *([tensor] for tensor in self.shared.values())]


def with_gradient(params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters that have a gradient, and the gradients."""
    grads = [grad for param in params if (grad := param.grad) is not None]
    if len(grads) != len(params):
        params = [param for param in params if param.grad is not None]
    return params, grads


def gather(
    index: int,
    group: Mapping[str, Any],
    rule: Rule,
    params: list[Tensor],
    grads: list[Any],
    *,
    state: State,
    is_new: bool,
    again: bool,
) -> Call:
    """Collect what the step of the group at ``index`` works on. It changes nothing.

    Args:
        params, grads: what ``with_gradient`` found.
        state: of the optimizer.
        is_new: whether some of the parameters have not been stepped before, or kept another state.
        again: whether this is the second gradient of a step (``Rule.reevaluates``).
    """
    states, fresh = _states(index, group, rule, params, state, is_new=is_new)
    if is_new and not (rule.state_keys and rule.kept_keys(group)):
        # An empty entry says that there is no state: torch.distributed.checkpoint wants one for each
        # parameter.
        fresh.update((param, {}) for param in params if param not in state)
    shared = {key: group[key] for key in rule.shared_keys}
    if params and any(value is None for value in shared.values()):
        device = params[0].device
        # From pageable memory the host need not wait for the device.
        shared = {key: value.to(device, non_blocking=True) for key, value in rule.init_shared(group).items()}
    arguments = rule.arguments(group, again=again)
    return Call(rule, index, params, grads, states, shared, arguments, fresh)


def _states(
    index: int,
    group: Mapping[str, Any],
    rule: Rule,
    params: list[Tensor],
    state: State,
    *,
    is_new: bool,
) -> tuple[list[list[Tensor]], dict[Tensor, dict[str, Tensor]]]:
    """Return the list of each state, new ones included, and the states that are new."""
    fresh: dict[Tensor, dict[str, Tensor]] = {}
    if not rule.state_keys:
        return [], fresh
    kept = rule.kept_keys(group)
    if not kept and not is_new:
        return [[] for _ in rule.state_keys], fresh
    found: list[Any] = list(map(state.get, params))
    if not kept:
        # A state of former hyperparameters must not be taken up again when it is out of date.
        own = set(rule.state_keys)
        fresh.update(
            (p, {}) for p, held in zip(params, found, strict=True) if held and not own.isdisjoint(held)
        )
    try:
        return [[held[key] for held in found] if key in kept else [] for key in rule.state_keys], fresh
    except (KeyError, TypeError):  # one has none yet
        pass
    for position, param in enumerate(params):
        held = found[position] or {}
        if not any(key in held for key in rule.state_keys):
            found[position] = fresh[param] = rule.init_state(param, group)
    try:
        return [[held[key] for held in found] if key in kept else [] for key in rule.state_keys], fresh
    except KeyError as error:
        raise ValueError(
            f"param group {index}: the state of a parameter has no {error}, which rule {rule.name!r} "
            "keeps; was the rule changed? Clear optimizer.state for its parameters"
        ) from None


def install(calls: Sequence[Call], groups: Sequence[dict[str, Any]], state: State) -> None:
    """Take up the new states: everything has been checked. What is not the rule's own stays."""
    for call in calls:
        for param, new in call.fresh.items():
            held = state[param]
            for key in call.rule.state_keys:
                held.pop(key, None)
            held.update(new)
        groups[call.group].update(call.shared)


def without_state(calls: Sequence[Call], groups: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """Return the parameters whose state, or that of their group, is made in this step."""
    fresh = {id(param): param for call in calls for param, new in call.fresh.items() if new}
    for call in calls:
        if any(groups[call.group][key] is None for key in call.shared):
            fresh.update((id(param), param) for param in call.params)
    return list(fresh.values())


def is_inert(
    group: Mapping[str, Any], rule: Rule, params: list[Tensor], grads: list[Tensor], state: State
) -> bool:
    """Whether the step of a group must change nothing: lr is 0 and every gradient is zero.

    torch's checkpoint helpers take such a step to have the state made. Of the rules whose steps ``lr`` scales
    this concerns new parameters only: those with a state go on as torch's own optimizers do. Where an
    accelerator has the learning rate, it is not looked at.
    """
    if not params or not is_known_zero(group["lr"]):
        return False
    if rule.lr_is_step and any(state.get(param) for param in params):
        return False
    if params[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return False  # the host cannot look
    return all(grad.layout == torch.strided and not bool(grad.any()) for grad in grads)


def run_native(
    calls: Sequence[Call],
    scaling: tuple[Any, Any],
    describer: Callable[[Call], Callable[[int], str]],
    take_up: Callable[[], None],
) -> None:
    """Check all calls, take up the new states, and step."""
    step = _loader.load().Step()
    grad_scale, found_inf = scaling
    for call in calls:
        plan = getattr(step, call.rule.name)
        plan(
            call.params,
            call.grads,
            *call.lists,
            **call.arguments,
            grad_scale=grad_scale,
            found_inf=found_inf,
            describe=describer(call),
        )
    take_up()
    step.run()


def run_reference(
    calls: Sequence[Call],
    groups: Sequence[Mapping[str, Any]],
    scaling: tuple[Any, Any],
    describer: Callable[[Call], Callable[[int], str]],
    take_up: Callable[[], None],
) -> None:
    """The same in plain PyTorch."""
    for call in calls:
        label = describer(call)
        states = dict(zip(call.rule.state_keys, call.states, strict=True))
        layouts = partial(call.rule.state_layout, group=groups[call.group])
        checks.check_step(call.params, call.grads, states, layouts, label)
        for position, param in enumerate(call.params):
            if param.ndim < call.rule.min_ndim:
                call.rule.check_param(param, label(position))
    take_up()
    for call in calls:
        grad_scale, found_inf = (_on_device(value, call.params[0].device) for value in scaling)
        run = getattr(reference, f"{call.rule.name}_")
        run(
            call.params,
            call.grads,
            *call.lists,
            **call.arguments,
            grad_scale=grad_scale,
            found_inf=found_inf,
        )


class Alone:
    """The agreement of a process with itself: see ``sage_ext.distributed.team.Agreement``."""

    is_skipped = False

    def __init__(self, scaling: tuple[Any, Any]) -> None:
        self.scaling = scaling

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def reach(self, staged: Sequence[Call], losses: Mapping[int, Any]) -> None:
        pass


def is_known_zero(lr: Any) -> bool:
    """Whether a learning rate is 0, as far as the host can tell without asking an accelerator."""
    if isinstance(lr, Tensor) and (lr.device.type != "cpu" or lr.numel() != 1):
        return False
    return bool(lr == 0)


def is_known_skip(found_inf: Any) -> bool:
    """Whether ``found_inf`` says, without asking an accelerator, that this step must change nothing."""
    if found_inf is None or (isinstance(found_inf, Tensor) and found_inf.device.type != "cpu"):
        return False
    return bool(found_inf)


def check_not_captured(pending: Collection[Tensor]) -> None:
    """Refuse to make states while a CUDA graph is captured: each replay would set them to zero again."""
    if any(param.is_cuda for param in pending) and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{len(pending)} parameters have no optimizer state yet. Made while a CUDA graph is captured, it "
            "would be zero again at every replay: take a step, or load a state dict, before capturing"
        )


def _on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor) and value.device != device and device.type != "meta":
        return value.to(device)
    return value
