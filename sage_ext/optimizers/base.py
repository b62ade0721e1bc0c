"""The optimizer that runs rules over its groups: gather, check everything, then change everything."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sage_ext import _loader, pieces
from sage_ext import backend as backends
from sage_ext.optimizers import keywords, state_io, step, validate
from sage_ext.optimizers.advice import Advice
from sage_ext.optimizers.first_loss import FirstLosses
from sage_ext.optimizers.groups import GroupedOptimizer
from sage_ext.optimizers.repeat import LastStep, Ready
from sage_ext.optimizers.rule import NOT_HYPERPARAMETERS, Rule
from sage_ext.optimizers.step import Call

if TYPE_CHECKING:
    from sage_ext.distributed.team import Team

Optimizer_ = TypeVar("Optimizer_", bound="FusedOptimizer")


class Known(NamedTuple):
    """What the last step has seen of a group."""

    params: list[Tensor]
    members: tuple[Tensor, ...]
    """What was in ``params``."""
    stepped: int
    """How many of them had a gradient."""
    kept: tuple[str, ...]
    """The states that its rule kept for them."""


def hyperparameters(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a constructor's ``locals()`` hold of its rule's hyperparameters."""
    return {key: value for key, value in arguments.items() if key not in (*NOT_HYPERPARAMETERS, "__class__")}


def of_rule(rule: Rule) -> Callable[[type[Optimizer_]], type[Optimizer_]]:
    """Make a class the optimizer of one rule, whose hyperparameters are its constructor's arguments."""

    def decorate(optimizer: type[Optimizer_]) -> type[Optimizer_]:
        rule.read_signature(optimizer.__init__)
        optimizer.rules = MappingProxyType({rule.name: rule})
        optimizer.__init__ = keywords.named(optimizer.__init__)  # type: ignore[method-assign]
        return optimizer

    return decorate


class FusedOptimizer(GroupedOptimizer):
    """Base of all optimizers here: every parameter group is stepped by the rule that ``group["rule"]`` names.

    A step either happens as a whole or raises before anything has changed, be it a parameter, a state or a
    step counter.
    """

    _process_group: Any = None
    """The processes over which a loss is averaged. Of this process alone: it is not saved or copied."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any], *, backend: backends.Backend) -> None:
        self._first_losses = FirstLosses()
        self._amp_scaling: bool | None = None
        self._forget()
        super().__init__(params, defaults, backend=backend)

    def _forget(self) -> None:
        """Begin anew what is of this process alone, and is not saved or copied."""
        self._next_loss: float | Tensor | None = None
        self._last = LastStep()
        # Index of a group -> what the last step has seen and checked of it.
        self._known: dict[int, Known] = {}
        # Index of a group -> its hyperparameters as they were when they were last checked.
        self._valid: dict[int, list[Any]] = {}
        # Index of a group -> the group, and what the form of its rule was in its last step.
        self._forms: dict[int, tuple[Mapping[str, Any], dict[str, Any]]] = {}
        # Where parameters are DTensors: the processes that have them, and which of their groups are inert.
        self._shared_by: Team | None = None
        self._inert: dict[int, bool] = {}

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

    # ------------------------------------------------------------------------------------------------ step

    def _patch_step_function(self) -> None:
        """As torch does it, and then untraced, hooks and all: there is nothing to trace in a call of the
        kernels, and in a compiled function it is one graph break."""
        is_new = not hasattr(type(self).step, "hooked")
        super()._patch_step_function()
        if is_new:
            type(self).step = _disable_dynamo(type(self).step)  # type: ignore[method-assign]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: float | Tensor | None = None) -> Any:
        """Perform one step over all groups. Parameters without a gradient are skipped and get no state.

        With native kernels on a GPU the step is only enqueued, on the current stream: the host waits for
        nothing, but for the first loss of ALIAS with ``gap="lower_bound"``, to look at it. A CUDA graph can
        capture a step once every parameter has its state.

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
            ValueError: a gradient, a state or a hyperparameter cannot be used. Nothing has changed then; but
                for the second gradient of ALIAS with ``same_batch=True`` parameters have moved.
            RuntimeError: a parameter's state would be made inside a CUDA graph. Nothing has changed then.
        """
        evaluated = None
        if closure is not None:
            with torch.enable_grad():
                evaluated = closure()
        loss = next((given for given in (loss, self._next_loss, evaluated) if given is not None), None)
        found_inf = getattr(self, "found_inf", None)
        ready = self._last.repeats(self.param_groups, self.rules, self.state, self._validate)
        if ready is not None and (step.is_known_skip(found_inf) or self._run_again(ready, found_inf)):
            self._next_loss = None
            return evaluated
        with self._telling(found_inf):
            team = self._team()
        if team is None:
            if step.is_known_skip(found_inf) or self._is_skip_before_the_first(found_inf):
                self._keep_loss(loss)
                self._next_loss = None
                return evaluated
            found_inf = found_inf if isinstance(found_inf, Tensor) else None
        else:
            team.add_up(self.param_groups)
        scaling = (getattr(self, "grad_scale", None), found_inf)
        everything = range(len(self.param_groups))
        with self._telling(found_inf):
            self._inert = {} if team is None else team.inert(self.param_groups, self.rules, self.state)
            again = [index for index in everything if self._reevaluates(index)]
            if again and closure is None:
                raise ValueError(
                    f"closure: got None, but param group {again[0]} has same_batch=True, which takes the "
                    "gradient a second time; call step(closure)"
                )
        self._run(everything, scaling, loss, team)
        if again:
            assert closure is not None  # or it has been refused above
            with torch.enable_grad():
                closure()
            self._run(again, scaling, None, team, again=True)
        self._next_loss = None
        return evaluated

    @contextmanager
    def _telling(self, found_inf: Any) -> Iterator[None]:
        """Tell the processes that share parameters of an error here: they would wait for this one."""
        try:
            yield
        except Exception as error:
            if (team := self._shared_by) is not None:
                team.agree(found_inf, team.flag(found_inf), error)
            raise

    def _run_again(self, ready: Sequence[Ready], found_inf: Any) -> bool:
        """Step these groups, whose tensors and numbers have been looked at.

        Returns:
            False where the kernels refuse something: the general way then says what, and nothing has changed.
        """
        native = _loader.load().Step()
        flag = found_inf if isinstance(found_inf, Tensor) else None
        grad_scale = getattr(self, "grad_scale", None)
        try:
            for index, rule, tensors in ready:
                arguments = rule.arguments(self.param_groups[index])
                getattr(native, f"again_{rule.name}")(
                    tensors, **arguments, grad_scale=grad_scale, found_inf=flag
                )
        except ValueError:
            self._last = LastStep()
            return False
        native.run()
        self._advice.after_step(self.param_groups, self.rules, ())
        return True

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
        calls: list[Call] = []
        staged: list[Call] = []
        inert: list[Call] = []
        met: dict[int, Known] = {}
        with step.Alone(scaling) if team is None else team.agreement(scaling) as agreement:
            for index in groups:
                group = self.param_groups[index]
                rule = self._rule(group, index)
                self._validate(rule, group, index)
                params, grads = step.with_gradient(group["params"])
                in_stages = team is not None and bool(team.staged.get(index))
                if not params and not in_stages:
                    continue
                kept = rule.kept_keys(group)
                if is_new := not self._knows(index, kept, len(params)):
                    self._meet(met, index, kept, len(params))
                found = partial(step.gather, index, group, rule, state=self.state, is_new=is_new, again=again)
                is_inert = self._is_inert(index, rule, params, grads)
                if team is not None and index in team.sharded:
                    name = partial(self._name, index)
                    whole, cut = team.gather(index, group, found, name, native=self.backend == "native")
                else:
                    whole, cut = found(params, grads), None
                for call, active in ((whole, calls), (cut, staged)):
                    if call is None:
                        continue
                    if call.fresh and not is_new:  # one was put in another's place
                        self._meet(met, index, kept, len(params))
                    if rule.takes_loss(group) and not again and not is_inert:
                        call.arguments["loss"] = self._loss_for(index, loss)
                    (inert if is_inert else active).append(call)
            if met:
                self._check_distinct(self.param_groups)
            everything = [*calls, *staged, *inert]
            step.check_not_captured(step.without_state(everything, self.param_groups))

            planned = [] if team is None else team.plan(staged, agreement.scaling, self._describer)

            def take_up() -> None:
                agreement.reach(staged, self._first_losses.taken)
                self._known.update(met)
                step.install(everything, self.param_groups, self.state)
                for call in (*calls, *staged):
                    group = self.param_groups[call.group]
                    self._forms[call.group] = (group, {name: group[name] for name in call.rule.form})
                    if (used := call.arguments.get("loss")) is not None:
                        self._first_losses.take(call.group, used)

            if self.backend == "native":
                step.run_native(calls, agreement.scaling, self._describer, take_up)
            else:
                step.run_reference(calls, self.param_groups, agreement.scaling, self._describer, take_up)
            if team is not None:
                team.run(planned, agreement.scaling)
        if agreement.is_skipped:
            self._keep_loss(loss)
        else:
            if self.backend == "native" and team is None and not inert:
                self._last.remember(self.param_groups, self.rules, calls, self.state)
            self._advice.after_step(self.param_groups, self.rules, [*calls, *staged])

    def _validate(self, rule: Rule, group: Mapping[str, Any], index: int) -> None:
        """Check a group's hyperparameters, unless they are the very objects that the last step checked."""
        values = [group.get(name) for name in rule.defaults]
        valid = self._valid.get(index, ())
        if len(values) != len(valid) or not all(map(operator.is_, values, valid)):
            rule.validate(group, f" in param group {index}")
            self._check_cycled_momentum(group, index)
            stepped, form = self._forms.get(index, (None, {}))
            if stepped is group and any(group.get(key) is not None for key in rule.shared_keys):
                rule.check_form(group, form, f" in param group {index}")
            # A tensor may hold another number by the next step.
            self._valid[index] = [] if any(isinstance(value, Tensor) for value in values) else values

    def _knows(self, index: int, kept: tuple[str, ...], stepped: int) -> bool:
        """Whether a group's parameters are those of its last step, as many as before have a gradient, and its
        rule keeps the same.

        Wrappers put others into a group, or make pieces of them, when the optimizer has long been built. A
        parameter that is new in the same list has no state, which says as much; only where none is kept each
        one is looked at.
        """
        known = self._known.get(index)
        params = self.param_groups[index]["params"]
        if known is None or stepped > known.stepped or kept != known.kept or params is not known.params:
            return False
        if len(params) != len(known.members):
            return False
        return bool(kept) or all(map(operator.is_, known.members, params))

    def _meet(self, met: dict[int, Known], index: int, kept: tuple[str, ...], stepped: int) -> None:
        """Check the parameters of a group that have a gradient, and note in ``met`` that they are known."""
        group = self.param_groups[index]
        self._check_params(group, index, native=self.backend == "native", with_gradient=True)
        met[index] = Known(group["params"], tuple(group["params"]), stepped, kept)

    def _is_skip_before_the_first(self, found_inf: Any) -> bool:
        """Whether ``found_inf`` keeps a group from its first step, with a loss that need not be finite then.
        For this the host waits for an accelerator."""
        if not isinstance(found_inf, Tensor) or next(self._awaiting_loss(), None) is None:
            return False
        if found_inf.is_cuda and torch.cuda.is_current_stream_capturing():
            return False  # the host cannot look
        return bool(found_inf)

    def _awaiting_loss(self) -> Iterator[tuple[int, dict[str, Any], Rule]]:
        """Yield the groups whose first step is to come, and takes a loss."""
        for index, group in enumerate(self.param_groups):
            rule = self._rule(group, index)
            if self._first_losses.are_awaited(index, group, rule):
                yield index, group, rule

    def _keep_loss(self, loss: float | Tensor | None) -> None:
        if loss is not None:
            for index, group, rule in self._awaiting_loss():
                self._first_losses.skip(index, loss, group, rule)

    def _has_begun(self, index: int) -> bool:
        group = self.param_groups[index]
        return self._first_losses.has_begun(index, group, self.rules.get(group.get("rule", "")))

    def _loss_for(self, index: int, loss: float | Tensor | None) -> float | Tensor:
        group, processes = self.param_groups[index], self._process_group
        if processes is None and not self._has_begun(index):
            self._advice.before_first_loss(group["params"])
        return self._first_losses.of(index, loss, group, self._rule(group, index), process_group=processes)

    def _describer(self, call: Call) -> Callable[[int], str]:
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
        own = ("_requested_backend", "_first_losses", "_amp_scaling", "_without_momentum")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for index, group in enumerate(self.param_groups):
            group.setdefault("rule", (rule := self._rule(group, index)).name)
            for key, value in rule.defaults.items():
                group.setdefault(key, value)  # pickled before the rule had this hyperparameter
        self.__dict__.setdefault("_first_losses", FirstLosses())
        self.__dict__.setdefault("_amp_scaling", None)
        self.__dict__.setdefault("_doubted", set())
        if "_without_momentum" not in self.__dict__:
            self._without_momentum = set()
            for index in range(len(self.param_groups)):
                self._note_momentum(index)
        if "_advice" not in self.__dict__:
            self._advice = Advice()
            for count in range(1, len(self.param_groups) + 1):
                self._advice.note(self.param_groups[:count], self.rules)  # said before it was pickled
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

        Args:
            state_dict: what ``state_dict()`` has returned, here or of torch's optimizer of the same rule.

        Raises:
            TypeError: it is no dict.
            ValueError: groups, rules or shapes differ from this optimizer's, or another optimizer that takes
                other steps has saved it. Nothing has changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"state_dict: got {type(state_dict).__name__}, expected what optimizer.state_dict() has "
                "returned; a file of it goes through torch.load first"
            )
        new_state: Any = None

        def before(_: Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
            nonlocal new_state
            incoming, new_state = state_io.plan(
                incoming, self.param_groups, self.rules, self.label, native=self.backend == "native"
            )
            return incoming

        def after(_: Optimizer) -> None:
            self.state = new_state
            self._first_losses = FirstLosses()
            for index in range(len(self.param_groups)):
                self._note_momentum(index)
            list(self._awaiting_loss())  # looks at accelerators now, and not while a graph is captured

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
