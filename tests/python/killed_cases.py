"""A process that is killed in the middle of a step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist
from sharded_models import BUILDS, Pair, layouts


def cases(size: int) -> dict[str, Callable[[int, int], None]]:
    return {"killed": killed}


def killed(rank: int, size: int) -> None:
    """The others raise, and do not wait for ever."""
    pair = Pair(BUILDS["sinkgd"], layouts(size)["rows"])
    pair.step(1)
    pair.set_grads(2)
    reduce = dist.all_reduce
    sent: list[Any] = []

    def reduce_or_die(*args: Any, **changes: Any) -> Any:
        sent.append(args)
        if rank == 1 and len(sent) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return reduce(*args, **changes)

    dist.all_reduce = reduce_or_die
    with pytest.raises(RuntimeError):
        pair.optimizer.step()
    assert len(sent) == 3
