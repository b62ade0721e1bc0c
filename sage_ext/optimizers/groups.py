"""Parameter groups: each has a rule, all of its hyperparameters, and parameters that the rule can own."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sage_ext import backend as backends
from sage_ext import checks, pieces
from sage_ext.optimizers import state_io, validate
from sage_ext.optimizers.advice import Advice, tell
from sage_ext.optimizers.description import Description, describe
from sage_ext.optimizers.rule import Rule

_MISSPELT = 0.85
"""How like a hyperparameter's name a key has to be. ``max_momentum``, which schedulers write, is 0.8 like
``momentum``."""

_CYCLED = "max_momentum"
"""What a scheduler that cycles the momentum, or beta1, writes into every group."""


class GroupedOptimizer(Optimizer):
    """An optimizer as far as its groups go: it checks what is put into them, and says what they hold."""

    rules: ClassVar[Mapping[str, Rule]]
    """The rules that a group of this optimizer may have. With a single one, groups need not name it."""
    _adds_by_role: ClassVar[bool] = False
    """Whether it has ``add_parameters``, which gives new parameters a name and a rule."""
    _is_complete = False
    """Whether it has been built. Memory that groups share is looked for once at the end: looking at every
    group would be quadratic."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any], *, backend: backends.Backend) -> None:
        backends.validate(backend)
        if isinstance(params, nn.Module):
            raise TypeError(
                f"params: got {type(params).__name__}, which is a module; pass model.parameters() or "
                "model.named_parameters(), or take FusedHybrid(model), which finds a rule for each parameter"
            )
        defaults = {key: validate.plain(value) for key, value in defaults.items()}
        self._requested_backend: backends.Backend = backend
        self._backend: str | None = None
        self._advice = Advice()
        self._doubted: set[str] = set()  # keys of groups that a warning has named
        self._without_momentum: set[int] = set()  # groups that began with none, where their rule takes one
        if len(self.rules) == 1:
            next(iter(self.rules.values())).validate(defaults, "")
        super().__init__(params, defaults)
        self._is_complete = True
        self._check_distinct(self.param_groups)

    @property
    def backend(self) -> str:
        """``"native"`` or ``"reference"``, as it runs. Worked out anew where an optimizer is unpickled."""
        if self._backend is None:
            self._backend = self._resolve(chain.from_iterable(group["params"] for group in self.param_groups))
        return self._backend

    def label(self, group: int, index: int) -> str:
        """Return how messages name a parameter: its name if known, its place, shape, dtype and device."""
        return _label(self.param_groups[group], group, index)

    def step_size(self, group: int | Mapping[str, Any] = 0) -> float:
        """Return how far the last step went: gamma of ALIAS (NaN before the first), else the learning rate.

        Reading a number that is on a GPU makes the host wait; a step itself never does.

        Args:
            group: of ``param_groups``: its index, or the group itself.
        """
        index = self._index_of(group)
        chosen = self.param_groups[index]
        return self._rule(chosen, index).step_size(chosen)

    def describe(self) -> Description:
        """Return which parameter has which rule and how many bytes of state that costs, as a table."""
        return describe(self.param_groups, self.rules, self.state, self.backend)

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
        self._check_named(group, index)
        backend = self._resolve(group["params"])
        self._check_params(group, index, native=backend == "native")
        if self._is_complete:
            self._check_distinct([*self.param_groups, group])
        else:
            checks.check_distinct(group["params"], lambda i: _label(group, index, i))
        self._doubt_keys(group, index)
        param_group.update(group)
        super().add_param_group(param_group)
        self._note_momentum(index)
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
        if rule.shared_keys and pieces.is_built_by_zero():
            raise ValueError(
                f"param group {index}: rule {rule.name!r} has one step size for all parameters, and "
                "ZeroRedundancyOptimizer gives this process only some of them, so each process would take "
                "steps of another size. Without ZeRO the signs take 0.25 byte a parameter: use FusedALIAS "
                'under DDP, with gap="lower_bound" to keep none; or FSDP2, which cuts parameters and '
                "state; or FusedALIASAdam, which has a number for each parameter"
            )
        return group

    def _index_of(self, group: int | Mapping[str, Any]) -> int:
        """Return the index of a group that is given by it, or as it is."""
        groups = self.param_groups
        if isinstance(group, Mapping):
            found = next((index for index, own in enumerate(groups) if own is group), None)
            if found is None:
                raise ValueError(
                    "group: this one is not in optimizer.param_groups, where load_state_dict() puts new "
                    "ones; pass its index, or take it from there"
                )
            return found
        try:
            index = operator.index(group)
        except TypeError:
            what = "the index of a param group, or the group itself"
            raise TypeError(f"group: got {type(group).__name__}, expected {what}") from None
        if not -len(groups) <= index < len(groups):
            raise IndexError(f"group: got {index}, and the optimizer has {len(groups)}, which count from 0")
        return index

    def _rule(self, group: Mapping[str, Any], index: int) -> Rule:
        """Return the rule that the group names; if it names none, the only one there is."""
        name = group.get("rule", next(iter(self.rules)) if len(self.rules) == 1 else None)
        if name not in self.rules:
            options = ", ".join(map(repr, self.rules))
            if name is None and self._is_complete:
                raise ValueError(
                    f"rule: param group {index} names none; optimizer.add_parameters(model) adds what is "
                    'new in the model, by role; or give the group a "rule": '
                    f"{options}"
                )
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

    def _check_named(self, group: Mapping[str, Any], index: int) -> None:
        """Raise ValueError unless a new group has names where the groups before it have some."""
        is_named = "param_names" in group
        if all(("param_names" in other) == is_named for other in self.param_groups):
            return
        what, others, cure = "with", "without", "leave the names out of it"
        if not is_named:
            what, others, cure = others, what, 'give it pairs: {"params": [("name", param)]}'
            if self._adds_by_role and self._is_complete:
                cure = f"call optimizer.add_parameters(model), or {cure}"
        raise ValueError(
            f"params: group {index} is {what} names, and those before it {others}, where all have to be "
            f"with/without names; {cure}"
        )

    def _note_momentum(self, index: int) -> None:
        """Note whether a group that was just added or loaded begins without momentum."""
        group = self.param_groups[index]
        takes_any = "momentum" in self.rules[group["rule"]].defaults
        if not takes_any or group["momentum"]:
            self._without_momentum.discard(index)
        elif _CYCLED not in group:  # else it is what a scheduler came to, and what was noted before holds
            self._without_momentum.add(index)

    def _check_cycled_momentum(self, group: Mapping[str, Any], index: int) -> None:
        """Raise ValueError if a scheduler has given momentum to a group that began without.

        Sign-SGD would go on as Signum, with a state. Set by hand it is what somebody wants.
        """
        if index not in self._without_momentum or not group.get("momentum"):
            return
        if _CYCLED in group:
            validate.fail(
                "momentum",
                group["momentum"],
                "0, as it was before a scheduler (OneCycleLR, CyclicLR) began to cycle it; build both anew, "
                "the scheduler with cycle_momentum=False, or the optimizer with a momentum to cycle, say 0.9",
                f" in param group {index}",
            )
        self._without_momentum.discard(index)

    def _doubt_keys(self, group: Mapping[str, Any], index: int) -> None:
        """Warn, once a key, where one looks like a hyperparameter misspelt.

        torch lets a group have any keys, and schedulers and trainers keep theirs there: none is refused.
        """
        names = self.rules[group["rule"]].defaults
        for key in group:
            if not isinstance(key, str) or key in names or key in self._doubted:
                continue
            if close := difflib.get_close_matches(key.lower(), names, n=1, cutoff=_MISSPELT):
                self._doubted.add(key)
                tell(
                    f"param group {index}: {key!r} is no hyperparameter of rule {group['rule']!r} and "
                    f"changes nothing; did you mean {close[0]!r}?"
                )

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
            _check_not_flat(param, group, where, why_whole)
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


def _why_whole(group: Mapping[str, Any], rule: Rule) -> str | None:
    """Return why a group's parameters must not be flat pieces of others; None where that is no matter."""
    if group.get("role") is not None:
        return "A hybrid goes by the shape that a parameter has in the model"
    return None if rule.is_elementwise else f"Rule {rule.name!r} looks at rows, columns or whole tensors"


def _check_not_flat(param: Tensor, group: Mapping[str, Any], where: str, why_whole: str | None) -> None:
    """Raise ValueError if a group's only parameter has taken the place of several that had names."""
    names: Sequence[str] = group.get("param_names") or ()
    if why_whole is not None and len(names) > len(group["params"]) == 1 and param.ndim == 1:
        raise ValueError(
            f"{where}: one flat tensor in the place of {len(names)} parameters, the first of which is "
            f"{names[0]}. {why_whole}, and on this it would be another algorithm. Under DeepSpeed ZeRO and "
            "Megatron's distributed optimizer use FusedLion, FusedSignSGD or FusedAdamW, or a FusedHybrid of "
            "group dicts with these rules; or use FSDP2 or DDP"
        )


def _label(group: Mapping[str, Any], group_index: int, index: int) -> str:
    names = checks.names_of(group)
    return checks.label(index, group_index, names[index] if names else None, group["params"][index])
