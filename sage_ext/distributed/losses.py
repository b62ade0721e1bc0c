"""The loss that ALIAS with a lower bound begins with, where each process has that of its own batch."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def mean_of_losses(loss: Any, group: Any, device: torch.device) -> Any:
    """Return the mean over all processes of a group; the host waits for it. All of them have to call it.

    Args:
        loss: of this process. What is no number and no tensor of one element is told to the others.
        device: of the message.

    Returns:
        The mean, a float; ``loss`` itself where it is no number, at which the caller raises.

    Raises:
        RuntimeError: another process has none, or has met an error.
    """
    is_number = isinstance(loss, Real) or (isinstance(loss, Tensor) and loss.numel() == 1)
    both = torch.zeros(2, dtype=torch.float64, device=device)
    if is_number:
        both[0] = loss.detach().reshape(()) if isinstance(loss, Tensor) else float(loss)
        both[1] = 1.0
    dist.all_reduce(both, group=group)
    total, count = both.tolist()
    if not is_number:
        return loss
    if count < dist.get_world_size(group):
        raise RuntimeError(
            "another process of process_group has no loss for this step, or cannot take it: its own error "
            "says why. Nothing has changed here"
        )
    return total / count
