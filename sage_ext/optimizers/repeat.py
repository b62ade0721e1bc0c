"""A step like the last one takes what that one gathered and checked, where all of it is in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sage_ext import _loader
from sage_ext.optimizers.rule import Rule
from sage_ext.optimizers.step import Call, State, is_known_zero

_MAX_WAIT = 100


class Kept(NamedTuple):
    """A group as the last step found it."""

    group_index: int
    rule: Rule
    keys: tuple[str, ...]
    """The states that its rule kept."""
    gathered: Any


class Ready(NamedTuple):
    """What a group contributes to a step."""

    group_index: int
    rule: Rule
    tensors: Any


class LastStep:
    """What the last step of all groups has found. It keeps no tensor alive.

    Each step looks whether every parameter, gradient and state is there, the same tensors with the same
    shapes in the same memory (gradients may be others of the same kind). If one is not, the step is taken in
    the general way, which finds out what has changed and whether it may.
    """

    def __init__(self) -> None:
        self._groups: list[Kept] | None = None
        self._misses = 0
        self._wait = 0

    def remember(
        self,
        groups: Sequence[Mapping[str, Any]],
        rules: Mapping[str, Rule],
        calls: Sequence[Call],
        state: State,
    ) -> None:
        """Keep what a step by native kernels has found. Where that has often been of no use, wait longer."""
        self._groups = None
        if self._wait > 0:
            self._wait -= 1
            return
        if not isinstance(state, dict):
            return
        native = _loader.load()
        items = native.StateItems(state)
        stepped = {call.group for call in calls}
        found = []
        for index, group in enumerate(groups):
            rule, params = rules[group["rule"]], group["params"]
            if not _can_be_same(rule, group) or not all(map(_has_own_grad, set(map(type, params)))):
                return
            keys = rule.kept_keys(group)
            is_kept = [key in keys for key in rule.state_keys]
            shared = _shared(rule, group) if index in stepped else []
            gathered = native.Gathered(params, items, rule.state_keys, is_kept, shared)
            if not gathered.is_valid or gathered.has_grads != (index in stepped):
                return
            found.append(Kept(index, rule, keys, gathered))
        self._groups = found

    def repeats(
        self,
        groups: Sequence[Mapping[str, Any]],
        rules: Mapping[str, Rule],
        state: State,
        validate: Callable[[Rule, Mapping[str, Any], int], None],
    ) -> list[Ready] | None:
        """Return what to step, where all tensors are as the last step left them; None if any is not.

        Args:
            validate: checks the hyperparameters of (rule, group, its index).
        """
        if self._groups is None:
            return None
        if len(self._groups) == len(groups) and isinstance(state, dict):
            items = _loader.load().StateItems(state)
            ready = []
            for kept in self._groups:
                group = groups[kept.group_index]
                if rules.get(group["rule"]) is not kept.rule:
                    break
                validate(kept.rule, group, kept.group_index)
                if (tensors := _look(kept, group, items)) is None:
                    break
                if kept.gathered.has_grads:
                    ready.append(Ready(kept.group_index, kept.rule, tensors))
            else:
                self._misses = 0
                return ready
        self._groups = None
        self._wait = min(self._misses, _MAX_WAIT)
        self._misses += 1
        return None


def _can_be_same(rule: Rule, group: Mapping[str, Any]) -> bool:
    """Whether steps of a group take nothing but tensors that can be looked at, and numbers."""
    return type(group["params"]) is list and not rule.takes_loss(group) and not rule.reevaluates(group)


def _has_own_grad(kind: type) -> bool:
    """Whether a kind of tensor has torch's own ``grad``, and no property in its place."""
    return getattr(kind, "grad", None) is Tensor.grad


def _look(kept: Kept, group: Mapping[str, Any], items: Any) -> Any:
    rule = kept.rule
    if not _can_be_same(rule, group) or rule.kept_keys(group) != kept.keys:
        return None
    if is_known_zero(group["lr"]):
        return None  # a step that must change nothing looks at the gradients
    shared = _shared(rule, group) if kept.gathered.has_grads else []
    return kept.gathered.look(group["params"], items, shared)


def _shared(rule: Rule, group: Mapping[str, Any]) -> list[Tensor]:
    return [group[key] for key in rule.shared_keys]
