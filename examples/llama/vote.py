"""``--parallel vote``: each process sends the signs of its gradient, and the majority counts."""

from __future__ import annotations

from typing import Any

from . import optim
from .errors import UsageError

ABLE = ("signsgd",)
"""Optimizers that go by signs alone, and so can take a vote for a gradient."""


def check(spec: str) -> None:
    """Raise UsageError where an optimizer cannot take votes, or nobody can count them."""
    if optim.parse(spec).name not in ABLE:
        raise UsageError(
            f"--parallel vote --optimizer {spec}: it goes by more than signs; use --optimizer "
            f"{' or '.join(ABLE)}, or --parallel ddp"
        )
    _hook()


def attach(wrapped: Any, spec: str) -> None:
    """Have DistributedDataParallel vote instead of taking means."""
    _hook()(wrapped)


def _hook() -> Any:
    try:
        from sage_ext.distributed import MajorityVote
    except ImportError:
        raise UsageError(
            "--parallel vote: the installed sage_ext has no MajorityVote; install this version of it, or "
            "use --parallel ddp"
        ) from None
    return lambda wrapped: wrapped.register_comm_hook(MajorityVote(), MajorityVote.hook)
