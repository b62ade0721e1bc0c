"""The optimizer that runs rules over parameter groups: gather, check everything, then change everything."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sage_ext import _loader, checks, reference
from sage_ext import backend as backends
from sage_ext.optimizers import state_io, validate
from sage_ext.optimizers.description import Description, describe
from sage_ext.optimizers.rule import Rule


class Call(NamedTuple):
    """What one group contributes to a step: the parameters that have a gradient, and their state."""

    rule: Rule
    group: int
    params: list[Tensor]
    grads: list[Tensor]
    states: list[list[Tensor]]
    shared: dict[str, Tensor]
    """What the parameters of the group share, with the group's keys."""
    arguments: dict[str, Any]

    @property
    def lists(self) -> list[list[Tensor]]:
        """What a rule's function takes behind the gradients."""
        return [*self.states, *([tensor] for tensor in self.shared.values())]


class FusedOptimizer(Optimizer):
    """Base of all optimizers here: every parameter group is stepped by the rule that ``group["rule"]`` names.

    A step either happens as a whole or raises before anything has changed, be it a parameter, a state or a
    step counter.
    """

    rules: ClassVar[Mapping[str, Rule]]
    """The rules that a group of this optimizer may have. With a single one, groups need not name it."""

    # GradScaler then leaves grad_scale and found_inf on the optimizer for the kernels to apply.
    _step_supports_amp_scaling = True

    def __init__(self, params: ParamsT, defaults: dict[str, Any], *, backend: backends.Backend) -> None:
        backends.validate(backend)
        self._requested_backend: backends.Backend = backend
        self._backend: str | None = None
        # The last loss of a group whose rule takes one. Only a GPU knows whether its first step was skipped.
        self._losses: dict[int, float | Tensor] = {}
        if len(self.rules) == 1:
            next(iter(self.rules.values())).validate(defaults, "")
        # Memory that groups share is looked for once at the end: looking at every group would be quadratic.
        self._is_complete = False
        super().__init__(params, defaults)
        self._is_complete = True
        self._check_distinct(self.param_groups)

    @property
    def backend(self) -> str:
        """What runs: ``"native"`` or ``"reference"``. Worked out anew where an optimizer is unpickled."""
        if self._backend is None:
            self._backend = self._resolve(chain.from_iterable(group["params"] for group in self.param_groups))
        return self._backend

    def label(self, group: int, index: int) -> str:
        """Return how messages name a parameter: its name if known, its place, shape, dtype and device."""
        return _label(self.param_groups[group], group, index)

    def step_size(self, group: int = 0) -> float:
        """Return how far the last step went: gamma of ALIAS (NaN before the first), else the learning rate.

        Reading a number that is on a GPU makes the host wait; a step itself never does.

        Args:
            group: index of the parameter group.
        """
        chosen = self.param_groups[group]
        return self._rule(chosen, group).step_size(chosen)

    def describe(self) -> Description:
        """Return which parameter has which rule and how many bytes of state that costs, as a table."""
        return describe(self)

    # ------------------------------------------------------------------------------------------------ groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters. If it raises, the optimizer is unchanged.

        Args:
            param_group: ``"params"`` (tensors, or name and tensor pairs), hyperparameters that differ from
                the optimizer's, and, for an optimizer with several rules, ``"rule"``.

        Raises:
            ValueError: a hyperparameter or a parameter cannot be used; the message names it and the cure.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group: got {type(param_group).__name__}, expected a dict")
        index = len(self.param_groups)
        group = self._complete(param_group, index)
        backend = self._check_params(group, index)
        param_group.update(group)
        super().add_param_group(param_group)
        self._backend = backend

    def _complete(self, param_group: dict[str, Any], index: int) -> dict[str, Any]:
        """Return a copy of the group with a list of parameters, its rule and all of its hyperparameters."""
        group = dict(param_group)
        params = group["params"]
        if isinstance(params, set):
            raise TypeError("params: got a set, whose order changes between runs; pass a list")
        params = param_group["params"] = [params] if isinstance(params, Tensor) else list(params)
        named = [item for item in params if isinstance(item, tuple)]
        if named and len(named) != len(params):
            raise ValueError(
                f"params: {len(named)} of {len(params)} have a name in group {index}; name all or none"
            )
        if named:
            group["param_names"] = [name for name, _ in named]
            params = [param for _, param in named]
        for position, param in enumerate(params):
            if not isinstance(param, Tensor):
                raise TypeError(
                    f"params: item {position} of group {index} is {type(param).__name__}, expected a tensor"
                )
        group["params"] = params

        rule = self._rule(group, index)
        group["rule"] = rule.name
        for key, value in self._group_defaults(rule.name).items():
            group.setdefault(key, value)
        for key in rule.shared_keys:
            group[key] = None  # also in a copy of a group that has its own
        rule.validate(group, f" in param group {index}")
        return group

    def _rule(self, group: Mapping[str, Any], index: int) -> Rule:
        """Return the rule that the group names; if it names none, the only one there is."""
        name = group.get("rule", next(iter(self.rules)) if len(self.rules) == 1 else None)
        if name not in self.rules:
            options = ", ".join(map(repr, self.rules))
            raise ValueError(f"rule: got {name!r} in param group {index}, expected one of {options}")
        return self.rules[name]

    def _group_defaults(self, rule: str) -> Mapping[str, Any]:
        """Return the hyperparameters that a new group of ``rule`` takes where it does not give its own."""
        return {key: self.defaults.get(key, value) for key, value in self.rules[rule].defaults.items()}

    def _check_params(self, group: dict[str, Any], index: int) -> str:
        """Check a new group's parameters, also against those owned already, and return the backend."""
        params, rule = group["params"], self.rules[group["rule"]]
        native = (backend := self._resolve(params)) == "native"
        if native and group.get("state_dtype") == torch.float64:
            validate.fail(
                "state_dtype", torch.float64, 'float32, bfloat16 or float16 unless backend="reference"', ""
            )
        for position, param in enumerate(params):
            where = _label(group, index, position)
            checks.check_param(param, where, native=native, needs_contiguous=rule.needs_contiguous)
            rule.check_param(param, where)
        checks.check_devices(params, lambda i: _label(group, index, i))
        if self._is_complete:
            self._check_distinct([*self.param_groups, group])
        else:
            checks.check_distinct(params, lambda i: _label(group, index, i))
        return backend

    def _check_distinct(self, groups: Sequence[Mapping[str, Any]]) -> None:
        places = state_io.places(groups)
        params = [groups[group]["params"][index] for group, index in places]
        checks.check_distinct(params, lambda i: _label(groups[places[i][0]], *places[i]))

    def _resolve(self, params: Iterable[Tensor]) -> str:
        return backends.resolve(self._requested_backend, (param.device for param in params))

    # ------------------------------------------------------------------------------------------------ step

    @torch._disable_dynamo  # as torch.optim does: there is nothing to trace in a call of the kernels
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: float | Tensor | None = None) -> Any:
        """Perform one step over all groups. Parameters without a gradient are skipped and get no state.

        With native kernels on a GPU the step is only enqueued, on the current stream: the host waits for
        nothing. A CUDA graph can capture it once every parameter has its state.

        Args:
            closure: re-evaluates the model and returns the loss; runs with gradients enabled.
            loss: of this step, where there is no closure. Only ALIAS with ``gap="lower_bound"`` needs one, in
                its first step: a number or a one-element tensor, not multiplied by ``grad_scale``.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: a gradient, a state or a hyperparameter cannot be used. Nothing has changed then.
            RuntimeError: a parameter's state would be made inside a CUDA graph. Nothing has changed then.
        """
        evaluated = None
        if closure is not None:
            if loss is not None:
                raise ValueError("loss: got one and a closure, which returns it; pass one of the two")
            with torch.enable_grad():
                evaluated = loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if _is_known_skip(found_inf):
            return evaluated
        found_inf = found_inf if isinstance(found_inf, Tensor) else None
        scaling = (getattr(self, "grad_scale", None), found_inf)

        everything = range(len(self.param_groups))
        again = [index for index in everything if self._reevaluates(index)]
        if again and closure is None:
            raise ValueError(
                f"closure: got None, but param group {again[0]} has same_batch=True, which takes the "
                "gradient a second time; call step(closure)"
            )
        self._run(everything, scaling, loss)
        if again:
            with torch.enable_grad():
                closure()
            self._run(again, scaling, None, again=True)
        return evaluated

    def _reevaluates(self, index: int) -> bool:
        group = self.param_groups[index]
        return self._rule(group, index).reevaluates(group)

    def _run(
        self,
        groups: Iterable[int],
        scaling: tuple[Any, Any],
        loss: float | Tensor | None,
        *,
        again: bool = False,
    ) -> None:
        """Check all of these groups, then step all of them."""
        pending: dict[Tensor, dict[str, Tensor]] = {}
        calls = [self._gather(index, pending, loss, again) for index in groups]
        calls = [call for call in calls if call.params]
        _check_not_captured(self._without_state(calls, pending))
        if self.backend == "native":
            self._run_native(calls, scaling, pending)
        else:
            self._run_reference(calls, scaling, pending)

    def _gather(
        self, index: int, pending: dict[Tensor, dict[str, Tensor]], loss: float | Tensor | None, again: bool
    ) -> Call:
        """Collect what one group's step works on. New states go to ``pending``, not yet to ``self.state``."""
        group = self.param_groups[index]
        rule = self._rule(group, index)
        rule.validate(group, f" in param group {index}")
        params = group["params"]
        grads = [grad for param in params if (grad := param.grad) is not None]
        if len(grads) != len(params):
            params = [param for param in params if param.grad is not None]
        states: list[list[Tensor]] = []
        if rule.state_keys:
            kept = rule.kept_keys(group)
            found: list[Any] = list(map(self.state.get, params))
            if not kept:
                # A state of former hyperparameters must not be taken up again when it is out of date.
                pending.update((param, {}) for param, state in zip(params, found, strict=True) if state)
            elif not all(found):
                for position, param in enumerate(params):
                    if not found[position]:
                        found[position] = pending[param] = rule.init_state(param, group)
            try:
                states = [[state[key] for state in found] if key in kept else [] for key in rule.state_keys]
            except KeyError as error:
                raise ValueError(
                    f"param group {index}: the state of a parameter has no {error}, which rule {rule.name!r} "
                    "keeps; was the rule changed? Clear optimizer.state for its parameters"
                ) from None
        shared = {key: group[key] for key in rule.shared_keys}
        if params and any(value is None for value in shared.values()):
            device = params[0].device
            # From pageable memory the host need not wait for the device.
            shared = {
                key: value.to(device, non_blocking=True) for key, value in rule.init_shared(group).items()
            }
        arguments = rule.arguments(group, again=True) if again else rule.arguments(group)
        if params and rule.takes_loss(group) and not again:
            arguments["loss"] = self._loss_for(index, loss)
        return Call(rule, index, params, grads, states, shared, arguments)

    def _without_state(self, calls: list[Call], pending: dict[Any, Any]) -> list[Tensor]:
        """Return the parameters whose state, or that of their group, is made in this step."""
        fresh = {id(param): param for param, state in pending.items() if state}
        for call in calls:
            if any(self.param_groups[call.group][key] is None for key in call.shared):
                fresh.update((id(param), param) for param in call.params)
        return list(fresh.values())

    def _loss_for(self, index: int, loss: float | Tensor | None) -> float | Tensor | None:
        """Return the loss for a group that takes one: without one the last, as first steps may be skipped."""
        where = f" in param group {index}"
        if loss is not None:
            validate.number_or_scalar(loss, "loss", where)
            if isinstance(loss, Tensor):
                loss = loss.detach()
        elif index in self._losses:
            return self._losses[index]
        else:
            raise ValueError(
                f'loss: got None{where}, but the first step with gap="lower_bound" needs it: call '
                "step(closure) or step(loss=...)"
            )
        if index not in self._losses and not (isinstance(loss, Tensor) and loss.device.type != "cpu"):
            group = self.param_groups[index]
            self._rule(group, index).check_first_loss(float(loss), group, where)
        return loss

    def _run_native(self, calls: list[Call], scaling: tuple[Any, Any], pending: dict[Any, Any]) -> None:
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
                describe=self._describer(call),
            )
        self._install(calls, pending)
        step.run()

    def _install(self, calls: list[Call], pending: dict[Any, Any]) -> None:
        """Take up the new states: everything has been checked."""
        self.state.update(pending)
        for call in calls:
            self.param_groups[call.group].update(call.shared)
            if (loss := call.arguments.get("loss")) is not None:
                self._losses[call.group] = loss

    def _run_reference(self, calls: list[Call], scaling: tuple[Any, Any], pending: dict[Any, Any]) -> None:
        for call in calls:
            label = self._describer(call)
            states = dict(zip(call.rule.state_keys, call.states, strict=True))
            layouts = partial(call.rule.state_layout, group=self.param_groups[call.group])
            checks.check_step(call.params, call.grads, states, layouts, label)
            for position, param in enumerate(call.params):
                if param.ndim < call.rule.min_ndim:
                    call.rule.check_param(param, label(position))
        self._install(calls, pending)
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

    def _describer(self, call: Call) -> Callable[[int], str]:
        """Return what names the parameters of a call in messages: position in the call -> label."""

        def name(position: int) -> str:
            params = self.param_groups[call.group]["params"]
            return self.label(call.group, next(i for i, p in enumerate(params) if p is call.params[position]))

        return name

    # ------------------------------------------------------------------------------------------------ files

    def __getstate__(self) -> dict[str, Any]:
        own = ("_requested_backend", "_losses")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for index, group in enumerate(self.param_groups):
            for key, value in self._rule(group, index).defaults.items():
                group.setdefault(key, value)  # pickled before the rule had this hyperparameter
        self.__dict__.setdefault("_losses", {})
        self._is_complete = True
        self._backend = None  # this machine may have other kernels than the one that pickled

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict; every state tensor keeps the dtype it was saved with, bit for bit.

        Hyperparameters that the saved groups lack stay as they are, so that a checkpoint of
        ``torch.optim.AdamW`` loads into ``FusedAdamW``.

        Raises:
            ValueError: groups, rules or shapes differ from this optimizer's. Nothing has changed then.
        """
        new_state: Any = None

        def before(_: Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
            nonlocal new_state
            incoming, new_state = state_io.plan(self, incoming)
            return incoming

        def after(_: Optimizer) -> None:
            self.state = new_state
            self._losses = state_io.known_losses(self)

        # Between the user's hooks: theirs see the dict as it was given, and the state as it was loaded.
        handles = [
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(after, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()


def _label(group: Mapping[str, Any], group_index: int, index: int) -> str:
    names = group.get("param_names")
    return checks.label(index, group_index, names[index] if names else None, group["params"][index])


def _is_known_skip(found_inf: Any) -> bool:
    """Whether ``found_inf`` says, without asking an accelerator, that this step must change nothing."""
    if found_inf is None or (isinstance(found_inf, Tensor) and found_inf.device.type != "cpu"):
        return False
    return bool(found_inf)


def _check_not_captured(pending: Collection[Tensor]) -> None:
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
