"""How the processes that train replicas agree on a step: each has all parameters, and a batch of its own.

Where they exchange something in a step (the losses that ALIAS with a lower bound begins with, or what its
votes were before they became votes), an error of one process must not leave the others waiting, nor let them
take a step that it has not taken. So everything is checked first, and a process that cannot go on says so in
the very message that the others wait for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sage_ext.distributed.losses import mean_of_losses
from sage_ext.optimizers import step

if TYPE_CHECKING:
    from sage_ext.optimizers.base import FusedOptimizer


class ReplicaStep:
    """One step of replicas. It has the face of a ``Team``, and of its ``Agreement``, for a step of tensors
    that are not cut.

    ``fail`` tells the others of an error before ``reach``; they raise one, too.
    """

    sharded: frozenset[int] = frozenset()
    staged: Mapping[int, list[Tensor]] = {}
    is_skipped = False

    def __init__(self, optimizer: FusedOptimizer) -> None:
        self._optimizer = optimizer
        self._group = optimizer._process_group
        self._awaited = first_losses(optimizer)
        self._is_over = False
        """Whether no process waits for another any more."""
        self.scaling: tuple[Any, Any] = (None, None)

    def check(self) -> None:
        """Check what the optimizer itself does not."""

    @contextmanager
    def asking(self, index: int) -> Iterator[None]:
        """A context in which the losses of a parameter group are averaged: whose error is everybody's."""
        self._awaited = [other for other in self._awaited if other != index]
        try:
            yield
        except Exception:
            self._is_over = True
            raise

    def fail(self) -> None:
        """Tell the others that this process cannot take the step. The caller raises why."""
        if not self._is_over:
            self._is_over = True
            self._tell_failure()

    def _tell_failure(self) -> None:
        mean_of_losses(None, self._group, self._device)

    def undo(self) -> None:
        """Take back what ``reach`` has changed."""

    @property
    def _device(self) -> torch.device:
        params = (param for group in self._optimizer.param_groups for param in group["params"])
        first: Tensor = next(params)
        return first.device

    # --------------------------------------------------------------------------- what an Agreement has to say

    def __enter__(self) -> ReplicaStep:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def reach(self, staged: Sequence[step.Call], losses: Mapping[int, Any]) -> None:
        """Hear whether all processes can take the step.

        Raises:
            RuntimeError: another process cannot.
        """
        if self._is_over:  # the second gradient of the step
            return
        self._is_over = True
        self._agree()

    def _agree(self) -> None:
        # Two numbers, as where losses are averaged: whatever the others wait for, it can be told there.
        mean_of_losses(0.0, self._group, self._device)

    # -------------------------------------------------------------------------------- what a Team has to say

    def agreement(self, scaling: tuple[Any, Any]) -> ReplicaStep:
        grad_scale, found_inf = scaling
        self.scaling = (grad_scale, found_inf if isinstance(found_inf, Tensor) else None)
        return self

    def add_up(self, *_: object) -> None:
        pass

    def inert(self, *_: object) -> dict[int, bool]:
        return {}

    def plan(self, *_: object) -> list[Any]:
        return []

    def run(self, *_: object) -> None:
        pass


def first_losses(optimizer: FusedOptimizer, *, before_closure: bool = False) -> list[int]:
    """Return the indices of the groups whose next step needs the first loss.

    What a rule refuses counts as well: the other processes may have something better there, and wait.

    Args:
        before_closure: whether the gradients of the step are still to come.
    """
    found = []
    for index, group in enumerate(optimizer.param_groups):
        if group.get("gap", "descent") == "descent" or optimizer._has_begun(index):
            continue
        params, grads = step.with_gradient(group["params"])
        rule = optimizer.rules.get(group.get("rule", ""))
        is_inert = rule is not None and optimizer._is_inert(index, rule, params, grads)
        if before_closure or (params and not is_inert):
            found.append(index)
    return found
