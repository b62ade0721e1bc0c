"""The loss that a rule may take in the first step of its group (ALIAS with a lower bound)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sage_ext.optimizers import validate
from sage_ext.optimizers.rule import Rule


def given(loss: Any, where: str, *, process_group: Any, device: torch.device) -> float | Tensor:
    """Return the loss that a group begins with: with a ``process_group`` the mean of all processes' losses.

    Raises:
        ValueError: there is none, or it is no number and no floating tensor of one element.
        RuntimeError: another process has none, or has met an error.
    """
    if process_group is not None:
        from sage_ext.distributed.losses import mean_of_losses

        loss = mean_of_losses(loss, process_group, device)
    if loss is None:
        raise ValueError(
            f'loss: got None{where}, but the first step with gap="lower_bound" needs it: call '
            "step(closure) or step(loss=...), or set_loss(...) before someone else calls step()"
        )
    validate.number_or_scalar(loss, "loss", where)
    return loss


def checked(loss: float | Tensor, rule: Rule, group: Mapping[str, Any], where: str) -> float | Tensor:
    """Return the loss as a number, for which the host waits for an accelerator. While a CUDA graph is
    captured it cannot, and the loss stays a tensor that nobody has looked at.

    Raises:
        ValueError: the rule cannot begin with this one.
    """
    if isinstance(loss, Tensor) and loss.is_cuda and torch.cuda.is_current_stream_capturing():
        return loss.detach()
    number = float(loss)
    rule.check_first_loss(number, group, where)
    return number
