"""``--parallel vote``: each process sends the signs of its gradient, and the majority counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.optim import Optimizer

from .errors import UsageError
from .optim import Choice

ABLE = ("signsgd", "alias-descent", "alias-lower-bound")
"""Optimizers that go by signs alone, and so can take a vote for a gradient."""


def check(choice: Choice) -> None:
    """Raise UsageError where an optimizer cannot take votes, or nobody can count them."""
    if choice.name not in ABLE:
        raise UsageError(
            f"--parallel vote --optimizer {choice.spec}: it goes by more than signs; use --optimizer "
            f"{', '.join(ABLE)}, or --parallel ddp"
        )
    _majority_vote()


class Ballot:
    """The vote of a model's gradients, which each process has a part in.

    The momentum of Sign-SGD belongs to the voters then: each votes by the sign of its own.
    """

    def __init__(self, wrapped: Any, choice: Choice) -> None:
        """Have DistributedDataParallel vote instead of taking means."""
        self._vote = _majority_vote()(choice.settings.get("momentum", 0.0)).register(wrapped)
        self.has_state = self._vote.momentum > 0

    def of_stepper(self, choice: Choice) -> Choice:
        """What is left of an optimizer's settings where the votes arrive."""
        return replace(choice, settings={**choice.settings, "momentum": 0.0}) if self.has_state else choice

    def tell(self, optimizer: Optimizer) -> None:
        """Let ALIAS see the gradients before they are voted on."""
        if hasattr(type(optimizer), "vote"):
            optimizer.vote = self._vote

    def state_dict(self) -> dict[str, Any]:
        """Of this process alone, on the CPU."""
        state = self._vote.state_dict()
        return {**state, "exp_avg": {name: value.cpu() for name, value in state["exp_avg"].items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._vote.load_state_dict(state)


def check_voters(votes: list[Any], size: int) -> None:
    """Raise UsageError unless as many processes go on as have voted, where each has something of its own."""
    if votes and len(votes) != size:
        raise UsageError(
            f"--resume: {len(votes)} processes have voted, each with a momentum of its own, and {size} "
            f"cannot take theirs up; use --nproc-per-node {len(votes)}"
        )


def _majority_vote() -> Any:
    try:
        from sage_ext.distributed import MajorityVote
    except ImportError:
        raise UsageError(
            "--parallel vote: the installed sage_ext has no MajorityVote; install this version of it "
            "(pip install --no-build-isolation .), or use --parallel ddp"
        ) from None
    return MajorityVote
