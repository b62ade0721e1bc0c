"""The loss that a rule may take in the first step of its group (ALIAS with a lower bound)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from sage_ext.optimizers import validate
from sage_ext.optimizers.rule import Rule
from sage_ext.optimizers.step import with_gradient

Group = Mapping[str, Any]


class FirstLosses:
    """What groups began with, or are to begin with, by their index."""

    def __init__(self) -> None:
        self.taken: dict[int, float | Tensor] = {}
        self.skipped: dict[int, float | Tensor] = {}
        """The last loss of the steps before the first, which were skipped."""

    def take(self, index: int, loss: float | Tensor) -> None:
        """Note what a group's step was given. What skipped steps before it were given is of no more use."""
        self.taken[index] = loss
        self.skipped.pop(index, None)

    def has_begun(self, index: int, group: Group, rule: Rule | None) -> bool:
        """Return whether a group whose rule takes a loss has had its first step."""
        if rule is None or any(group.get(key) is None for key in rule.shared_keys):
            self.taken.pop(index, None)  # of another group that was at this place, or it begins anew
        elif index not in self.taken and rule.has_begun(group):
            self.taken[index] = 0.0  # nobody looks at it any more
        return index in self.taken

    def are_awaited(self, index: int, group: Group, rule: Rule) -> bool:
        """Return whether a group's next step is its first, and takes a loss."""
        takes_loss = rule.takes_loss(group) and not self.has_begun(index, group, rule)
        return takes_loss and bool(with_gradient(group["params"])[0])

    def skip(self, index: int, loss: float | Tensor, group: Group, rule: Rule) -> None:
        """Keep the loss of a step that is skipped: the next is the first one then, and may come without.

        One that no step can begin with is not kept: what made the gradients overflow may have made it, too.
        Of replicas each keeps its own, and tells nobody: some may have none.
        """
        where = f" in param group {index}"
        validate.number_or_scalar(loss, "loss", where)
        with suppress(ValueError):
            self.skipped[index] = _checked(loss, rule, group, where)

    def of(
        self, index: int, loss: float | Tensor | None, group: Group, rule: Rule, *, process_group: Any
    ) -> float | Tensor:
        """Return the loss for a group that takes one. Only that of its first step is looked at, for which the
        host waits.

        Raises:
            ValueError: the group cannot begin with it, or it is no number and no floating tensor of one
                element.
            RuntimeError: another process of ``process_group`` has none, or has met an error.
        """
        where = f" in param group {index}"
        if self.has_begun(index, group, rule):
            if loss is not None:
                validate.number_or_scalar(loss, "loss", where)
            return self.taken[index]
        if loss is None:
            loss = self.skipped.get(index)
        if process_group is not None:
            from sage_ext.distributed.losses import mean_of_losses

            loss = mean_of_losses(loss, process_group, group["params"][0].device)
        if loss is None:
            raise ValueError(
                f'loss: got None{where}, but the first step with gap="lower_bound" needs it: call '
                "step(closure) or step(loss=...), or set_loss(...) before someone else calls step()"
            )
        validate.number_or_scalar(loss, "loss", where)
        return _checked(loss, rule, group, where)


def _checked(loss: float | Tensor, rule: Rule, group: Group, where: str) -> float | Tensor:
    """Return the loss as a number, if the rule can begin with it. While a CUDA graph is captured the host
    cannot wait, and the loss stays a tensor that nobody has looked at."""
    if isinstance(loss, Tensor) and loss.is_cuda and torch.cuda.is_current_stream_capturing():
        return loss.detach()
    number = float(loss)
    rule.check_first_loss(number, group, where)
    return number
