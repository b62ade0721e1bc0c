"""An optimizer whose replicas, on several processes, may have to agree on something before a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sage_ext.optimizers.base import FusedOptimizer
from sage_ext.optimizers.step import is_known_skip

if TYPE_CHECKING:
    from sage_ext.distributed.replicas import ReplicaStep


class ReplicatedOptimizer(FusedOptimizer):
    """Base of the optimizers that take a ``process_group``."""

    _together: ReplicaStep | None = None
    """The step under way, where it is one of several processes."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: float | Tensor | None = None) -> Any:
        found_inf = getattr(self, "found_inf", None)
        if self._process_group is None or is_known_skip(found_inf) or super()._team() is not None:
            return super().step(closure, loss=loss)
        from sage_ext.distributed.replicas import ReplicaStep, first_losses

        if not first_losses(self, before_closure=closure is not None):
            return super().step(closure, loss=loss)
        return self._step_together(ReplicaStep(self), closure, loss)

    step.__doc__ = FusedOptimizer.step.__doc__

    def _step_together(
        self, together: ReplicaStep, closure: Callable[[], Any] | None, loss: float | Tensor | None
    ) -> Any:
        """Take a step that all processes take, or none."""
        self._together = together
        try:
            together.check()
            return FusedOptimizer.step(self, closure, loss=loss)
        except BaseException as error:
            together.undo()
            if isinstance(error, Exception):
                together.fail()
            raise
        finally:
            self._together = None

    def _team(self) -> Any:
        return super()._team() if self._together is None else self._together

    def _loss_for(self, index: int, loss: float | Tensor | None) -> float | Tensor:
        if self._together is None or self._has_begun(index):
            return super()._loss_for(index, loss)
        with self._together.asking(index):
            return super()._loss_for(index, loss)
