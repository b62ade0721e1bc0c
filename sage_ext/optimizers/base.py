"""The optimizer that runs rules over parameter groups: gather, check everything, then change everything."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sage_ext import backend as backends
from sage_ext import checks, pieces
from sage_ext.optimizers import state_io, step, validate
from sage_ext.optimizers.advice import Advice
from sage_ext.optimizers.description import Description, describe
from sage_ext.optimizers.rule import NOT_HYPERPARAMETERS, Rule

if TYPE_CHECKING:
    from sage_ext.distributed.team import Team

Optimizer_ = TypeVar("Optimizer_", bound="FusedOptimizer")
Known = tuple[tuple[Tensor, ...], int]


def hyperparameters(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a constructor's ``locals()`` hold of its rule's hyperparameters."""
    return {key: value for key, value in arguments.items() if key not in (*NOT_HYPERPARAMETERS, "__class__")}


def of_rule(rule: Rule) -> Callable[[type[Optimizer_]], type[Optimizer_]]:
    """Make a class the optimizer of one rule, whose hyperparameters are its constructor's arguments."""

    def decorate(optimizer: type[Optimizer_]) -> type[Optimizer_]:
        rule.read_signature(optimizer.__init__)
        optimizer.rules = MappingProxyType({rule.name: rule})
        return optimizer

    return decorate


class FusedOptimizer(Optimizer):
    """Base of all optimizers here: every parameter group is stepped by the rule that ``group["rule"]`` names.

    A step either happens as a whole or raises before anything has changed, be it a parameter, a state or a
    step counter.
    """

    rules: ClassVar[Mapping[str, Rule]]
    """The rules that a group of this optimizer may have. With a single one, groups need not name it."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any], *, backend: backends.Backend) -> None:
        backends.validate(backend)
        defaults = {key: validate.plain(value) for key, value in defaults.items()}
        self._requested_backend: backends.Backend = backend
        self._backend: str | None = None
        # The last loss of a group whose rule takes one. Only a GPU knows whether its first step was skipped.
        self._losses: dict[int, float | Tensor] = {}
        self._amp_scaling: bool | None = None
        self._advice = Advice()
        self._forget()
        if len(self.rules) == 1:
            next(iter(self.rules.values())).validate(defaults, "")
        # Memory that groups share is looked for once at the end: looking at every group would be quadratic.
        self._is_complete = False
        super().__init__(params, defaults)
        self._is_complete = True
        self._check_distinct(self.param_groups)

    def _forget(self) -> None:
        """Begin anew what is of this process alone, and is not saved or copied."""
        self._next_loss: float | Tensor | None = None
        # Index of a group -> its parameters that have been checked, and how many of them have been stepped.
        self._known: dict[int, Known] = {}
        # Where parameters are DTensors: the processes that have them, and which of their groups are inert.
        self._shared_by: Team | None = None
        self._inert: dict[int, bool] = {}

    @property
    def backend(self) -> str:
        """What runs: ``"native"`` or ``"reference"``. Worked out anew where an optimizer is unpickled."""
        if self._backend is None:
            self._backend = self._resolve(chain.from_iterable(group["params"] for group in self.param_groups))
        return self._backend

    @property
    def amp_scaling(self) -> bool:
        """Whether the kernels themselves divide by a GradScaler's scale and skip steps with an overflow.

        False leaves that to ``torch.amp.GradScaler``, which everybody can work with: Lightning clips
        gradients, accelerate knows which steps were skipped. True, as in torch's fused optimizers, saves a
        pass over the gradients and, on a GPU, a wait of the host in every step; the gradients that ``step()``
        finds are then still multiplied by the scale, so to clip them takes ``scaler.unscale_(optimizer)``
        first. May be set to either, or to None for the default: True only where a parameter is float16, whose
        gradients GradScaler itself refuses to divide.
        """
        if self._amp_scaling is not None:
            return self._amp_scaling
        return any(param.dtype == torch.float16 for group in self.param_groups for param in group["params"])

    @amp_scaling.setter
    def amp_scaling(self, value: bool | None) -> None:
        if value is not None:
            validate.flag(value, "amp_scaling", "")
        self._amp_scaling = value

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """GradScaler asks for it, and then leaves grad_scale and found_inf on the optimizer."""
        return self.amp_scaling

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
        return describe(self.param_groups, self.rules, self.state, self.backend)

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
        backend = self._resolve(group["params"])
        self._check_params(group, index, native=backend == "native")
        if self._is_complete:
            self._check_distinct([*self.param_groups, group])
        else:
            checks.check_distinct(group["params"], lambda i: _label(group, index, i))
        param_group.update(group)
        super().add_param_group(param_group)
        self._backend = backend
        self._advice.after_addition(self.param_groups, self.rules)

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
            group[key] = validate.plain(group.get(key, value))
        for key in rule.shared_keys:
            group[key] = None  # also in a copy of a group that has its own
        rule.validate(group, f" in param group {index}")
        return group

    def _rule(self, group: Mapping[str, Any], index: int) -> Rule:
        """Return the rule that the group names; if it names none, the only one there is."""
        name = group.get("rule", next(iter(self.rules)) if len(self.rules) == 1 else None)
        if name not in self.rules:
            options = ", ".join(map(repr, self.rules))
            if name is None:
                raise ValueError(
                    f"rule: param group {index} names none; pass the model itself, which tells which "
                    "parameter is "
                    f'what, or a "rule" in each group: {options}'
                )
            raise ValueError(f"rule: got {name!r} in param group {index}, expected one of {options}")
        return self.rules[name]

    def _group_defaults(self, rule: str) -> Mapping[str, Any]:
        """Return the hyperparameters that a new group of ``rule`` takes where it does not give its own."""
        return {key: self.defaults.get(key, value) for key, value in self.rules[rule].defaults.items()}

    def _check_params(
        self, group: Mapping[str, Any], index: int, *, native: bool, with_gradient: bool = False
    ) -> None:
        """Check a group's parameters, each by itself: all, or those that have a gradient."""
        params, rule = group["params"], self.rules[group["rule"]]
        why_whole = _why_whole(group, rule)
        if native and group.get("state_dtype") == torch.float64:
            validate.fail(
                "state_dtype", torch.float64, 'float32, bfloat16 or float16 unless backend="reference"', ""
            )
        for position, param in enumerate(params):
            if with_gradient and param.grad is None:
                continue
            where = _label(group, index, position)
            checks.check_whole(param, where, why_whole)
            # The stages of what is cut run in PyTorch, which takes any strides.
            in_order = rule.needs_contiguous and not pieces.is_piece(param)
            checks.check_param(pieces.local(param), where, native=native, needs_contiguous=in_order)
            rule.check_param(param, where)
        checks.check_devices(params, lambda i: _label(group, index, i))

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

        Where lr is 0 and every gradient zero, ALIAS changes and counts nothing and needs no loss, and no rule
        changes what it has just made: torch's checkpoint helpers have the state made by such a step.

        Args:
            closure: re-evaluates the model and returns the loss; runs with gradients enabled.
            loss: of this step. Only ALIAS with ``gap="lower_bound"`` needs one, in its first step: a number
                or a one-element tensor, not multiplied by ``grad_scale``. Goes before what ``set_loss`` was
                given, and that before what the closure returns, which may be None.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: a gradient, a state or a hyperparameter cannot be used. Nothing has changed then.
            RuntimeError: a parameter's state would be made inside a CUDA graph. Nothing has changed then.
        """
        evaluated = None
        if closure is not None:
            with torch.enable_grad():
                evaluated = closure()
        loss = next((given for given in (loss, self._next_loss, evaluated) if given is not None), None)
        found_inf = getattr(self, "found_inf", None)
        team = self._team()
        if team is None:
            if step.is_known_skip(found_inf):
                self._keep_loss(loss)
                self._next_loss = None
                return evaluated
            found_inf = found_inf if isinstance(found_inf, Tensor) else None
        else:
            team.add_up(self.param_groups)
        scaling = (getattr(self, "grad_scale", None), found_inf)
        self._inert = {} if team is None else team.inert(self.param_groups, self.rules, self.state)

        everything = range(len(self.param_groups))
        again = [index for index in everything if self._reevaluates(index)]
        if again and closure is None:
            raise ValueError(
                f"closure: got None, but param group {again[0]} has same_batch=True, which takes the "
                "gradient a second time; call step(closure)"
            )
        self._run(everything, scaling, loss, team)
        if again:
            with torch.enable_grad():
                closure()
            self._run(again, scaling, None, team, again=True)
        self._next_loss = None
        return evaluated

    def set_loss(self, loss: float | Tensor | None) -> None:
        """Give the next step its loss, where somebody else calls ``step()`` (a trainer, for instance).

        Only ALIAS with ``gap="lower_bound"`` uses it, in its first step; None takes it back.

        Args:
            loss: a number or a one-element tensor, not multiplied by a GradScaler's scale.
        """
        if loss is not None:
            validate.number_or_scalar(loss, "loss", "")
        self._next_loss = loss.detach() if isinstance(loss, Tensor) else loss

    def _reevaluates(self, index: int) -> bool:
        group = self.param_groups[index]
        rule = self._rule(group, index)
        if not rule.reevaluates(group):
            return False
        return not self._is_inert(index, rule, *step.with_gradient(group["params"]))

    def _is_inert(self, index: int, rule: Rule, params: list[Tensor], grads: list[Tensor]) -> bool:
        if index in self._inert:  # what all processes have agreed on
            return self._inert[index]
        return step.is_inert(self.param_groups[index], rule, params, grads, self.state)

    def _team(self) -> Team | None:
        """Return the processes that share the parameters, where some of these are DTensors."""
        if not any(pieces.has_pieces(group["params"]) for group in self.param_groups):
            return None
        if self._shared_by is None or not self._shared_by.fits(self.param_groups):
            from sage_ext.distributed.team import Team

            for index, group in enumerate(self.param_groups):
                self._rule(group, index)
            self._shared_by = Team(self.param_groups, self.rules)
        return self._shared_by

    def _run(
        self,
        groups: Iterable[int],
        scaling: tuple[Any, Any],
        loss: float | Tensor | None,
        team: Team | None,
        *,
        again: bool = False,
    ) -> None:
        """Check all of these groups, then step all of them."""
        calls: list[step.Call] = []
        staged: list[step.Call] = []
        inert: list[step.Call] = []
        met: dict[int, Known] = {}
        with step.Alone(scaling) if team is None else team.agreement(scaling) as agreement:
            for index in groups:
                group = self.param_groups[index]
                rule = self._rule(group, index)
                rule.validate(group, f" in param group {index}")
                params, grads = step.with_gradient(group["params"])
                in_stages = team is not None and bool(team.staged.get(index))
                if not params and not in_stages:
                    continue
                if is_new := not self._knows(index, len(params)):
                    self._check_params(group, index, native=self.backend == "native", with_gradient=True)
                    met[index] = (tuple(group["params"]), len(params))
                found = partial(step.gather, index, group, rule, state=self.state, is_new=is_new, again=again)
                is_inert = self._is_inert(index, rule, params, grads)
                if team is not None and index in team.sharded:
                    whole, cut = team.gather(index, group, found, partial(self._name, index))
                else:
                    whole, cut = found(params, grads), None
                for call, active in ((whole, calls), (cut, staged)):
                    if call is None:
                        continue
                    if rule.takes_loss(group) and not again and not is_inert:
                        call.arguments["loss"] = self._loss_for(index, loss)
                    (inert if is_inert else active).append(call)
            if met:
                self._check_distinct(self.param_groups)
            everything = [*calls, *staged, *inert]
            step.check_not_captured(step.without_state(everything, self.param_groups))

            def take_up() -> None:
                agreement.reach(staged, self._losses)
                self._known.update(met)
                step.install(everything, self.param_groups, self.state)
                for call in (*calls, *staged):
                    if (used := call.arguments.get("loss")) is not None:
                        self._losses[call.group] = used

            if self.backend == "native":
                step.run_native(calls, agreement.scaling, self._describer, take_up)
            else:
                step.run_reference(calls, self.param_groups, agreement.scaling, self._describer, take_up)
            if team is not None:
                team.run(staged, agreement.scaling)
        if agreement.is_skipped:
            self._keep_loss(loss)
        else:
            self._advice.after_step(self.param_groups, self.rules, [*calls, *staged])

    def _knows(self, index: int, stepped: int) -> bool:
        """Whether a group's parameters are those of its last step, and as many as before have a gradient.

        Wrappers put others into a group, or make pieces of them, when the optimizer has long been built.
        """
        params = self.param_groups[index]["params"]
        known, before = self._known.get(index, ((), 0))
        return stepped <= before and len(known) == len(params) and all(map(operator.is_, known, params))

    def _keep_loss(self, loss: float | Tensor | None) -> None:
        """Keep the loss of a step that is skipped: the next is the first one then, and may come without."""
        for index, group in enumerate(self.param_groups):
            if loss is not None and self._rule(group, index).takes_loss(group):
                self._losses[index] = self._loss_for(index, loss)

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
                "step(closure) or step(loss=...), or set_loss(...) before someone else calls step()"
            )
        if index not in self._losses and not (isinstance(loss, Tensor) and loss.device.type != "cpu"):
            group = self.param_groups[index]
            self._rule(group, index).check_first_loss(float(loss), group, where)
        return loss

    def _describer(self, call: step.Call) -> Callable[[int], str]:
        """Return what names the parameters of a call in messages: position in the call -> label."""

        def name(position: int) -> str:
            return self._name(call.group, (call.owners or call.params)[position])

        return name

    def _name(self, group: int, param: Tensor) -> str:
        """Return what messages call a parameter of a group."""
        params = self.param_groups[group]["params"]
        return self.label(group, next(i for i, p in enumerate(params) if p is param))

    # ------------------------------------------------------------------------------------------------ files

    def __getstate__(self) -> dict[str, Any]:
        own = ("_requested_backend", "_losses", "_amp_scaling")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for index, group in enumerate(self.param_groups):
            group.setdefault("rule", (rule := self._rule(group, index)).name)
            for key, value in rule.defaults.items():
                group.setdefault(key, value)  # pickled before the rule had this hyperparameter
        self.__dict__.setdefault("_losses", {})
        self.__dict__.setdefault("_amp_scaling", None)
        if "_advice" not in self.__dict__:
            self._advice = Advice()
            for count in range(1, len(self.param_groups) + 1):
                self._advice.after_addition(self.param_groups[:count], self.rules)
        self._forget()
        self._is_complete = True
        self._backend = None  # this machine may have other kernels than the one that pickled

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict; every state tensor keeps the dtype it was saved with, bit for bit.

        Where both sides have the parameters' names, state goes by name, in whatever order; elsewhere by
        position. What others than the rule keep in ``optimizer.state`` (a Lookahead's slow weights) is loaded
        as it is.

        Hyperparameters that the saved groups lack stay as they are, so that a checkpoint of
        ``torch.optim.AdamW`` loads into ``FusedAdamW``.

        Raises:
            ValueError: groups, rules or shapes differ from this optimizer's. Nothing has changed then.
        """
        new_state: Any = None

        def before(_: Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
            nonlocal new_state
            incoming, new_state = state_io.plan(
                incoming, self.param_groups, self.rules, self.label, native=self.backend == "native"
            )
            return incoming

        def after(_: Optimizer) -> None:
            self.state = new_state
            self._losses = state_io.known_losses(self.param_groups, self.rules)

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


def _why_whole(group: Mapping[str, Any], rule: Rule) -> str | None:
    """Return why a group's parameters must not be flat pieces of others; None where that is no matter."""
    if group.get("role") is not None:
        return "A hybrid goes by the shape that a parameter has in the model"
    return None if rule.is_elementwise else f"Rule {rule.name!r} looks at rows, columns or whole tensors"


def _label(group: Mapping[str, Any], group_index: int, index: int) -> str:
    names = group.get("param_names")
    return checks.label(index, group_index, names[index] if names else None, group["params"][index])
