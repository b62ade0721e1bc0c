"""Several processes: parameters that lie on them as DTensors, and Sign-SGD with majority vote under DDP.

``MajorityVote`` is DDP's communication hook. The rest is imported where the first DTensor is met:
``placements`` says over which processes a tensor is spread, ``team`` how the processes agree, ``exchange``
how the stages of all tensors share messages, and ``sharded`` puts a step together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sage_ext.distributed.vote import MajorityVote as MajorityVote

__all__ = ["MajorityVote"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from sage_ext.distributed import vote

        return getattr(vote, name)
