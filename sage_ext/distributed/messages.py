"""What any exchange between processes needs, whatever it is about."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


def gather_equal(output: Tensor, own: Tensor, group: Any) -> None:
    """Gather ``own`` of all processes into ``output``, which is as many times as long."""
    # The function has another name in newer releases of torch, which warn of the old one.
    gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(output.view(-1), own.view(-1), group=group)


def refused_elsewhere() -> RuntimeError:
    """Return the error of a process whose step is not taken because another one cannot take it."""
    return RuntimeError(
        "another process cannot take this step: its own error says why. Nothing has changed here"
    )
