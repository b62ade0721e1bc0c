"""A step like the last one takes what that one gathered and checked, where all of it is in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sage_ext import _loader
from sage_ext.optimizers.rule import Rule
from sage_ext.optimizers.step import Call, State

_MAX_WAIT = 100


class Kept(NamedTuple):
    """A group as the last step found it."""

    index: int
    rule: Rule
    keys: tuple[str, ...]
    """The states that its rule kept."""
    gathered: Any


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
        native = _loader.load()
        items = native.StateItems(state)
        stepped = {call.group for call in calls}
        found = []
        for index, group in enumerate(groups):
            rule = rules[group["rule"]]
            if rule.takes_loss(group) or rule.reevaluates(group):
                return
            keys = rule.kept_keys(group)
            is_kept = [key in keys for key in rule.state_keys]
            shared = _shared(rule, group) if index in stepped else []
            gathered = native.Gathered(group["params"], items, rule.state_keys, is_kept, shared)
            if not gathered.is_valid or gathered.has_grads != (index in stepped):
                return
            found.append(Kept(index, rule, keys, gathered))
        self._groups = found

    def repeats(
        self, groups: Sequence[Mapping[str, Any]], rules: Mapping[str, Rule], state: State
    ) -> list[Kept] | None:
        """Return the groups to step, whose tensors are as the last step left them; None if any is not."""
        if self._groups is None:
            return None
        if len(self._groups) == len(groups):
            items = _loader.load().StateItems(state)
            if all(_is_same(kept, groups[kept.index], rules, items) for kept in self._groups):
                self._misses = 0
                return [kept for kept in self._groups if kept.gathered.has_grads]
        self._groups = None
        self._wait = min(self._misses, _MAX_WAIT)
        self._misses += 1
        return None


def _is_same(kept: Kept, group: Mapping[str, Any], rules: Mapping[str, Rule], items: Any) -> bool:
    rule, lr = kept.rule, group["lr"]
    if rules.get(group["rule"]) is not rule or rule.kept_keys(group) != kept.keys:
        return False
    if not (isinstance(lr, Tensor) and lr.device.type != "cpu") and lr == 0:
        return False  # a step that must change nothing looks at the gradients
    shared = _shared(rule, group) if kept.gathered.has_grads else []
    return kept.gathered.refresh(group["params"], items, shared)


def _shared(rule: Rule, group: Mapping[str, Any]) -> list[Tensor]:
    return [group[key] for key in rule.shared_keys]
