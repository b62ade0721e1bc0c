"""ALIAS that steps by a majority vote: what its scalars need to know of each process's own gradients.

How the paper's authors combine the scalars of several workers is not known; this is ours. All numbers are
taken from the gradients before the vote. The extrema are over the gradients of all processes, as if these
were one long gradient. The inner product with the signs of the last step, which are the last vote, is the
mean over the processes: that of their mean gradient. One message a step carries them, and everybody computes
the same from it: eta, d and gamma have the same bits on all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from sage_ext import _loader, reference
from sage_ext.distributed.alias_scalars import AT, after_step
from sage_ext.distributed.vote import Bucket, MajorityVote, gather_equal, parts_of

if TYPE_CHECKING:
    from sage_ext.optimizers import FusedALIAS

_NOTHING = (-torch.inf, torch.inf, 0.0)
"""What a group without elements says: its largest and smallest element, and the inner product."""


class Observations:
    """What a vote's gradients say to an optimizer, group by group."""

    def __init__(self, vote: MajorityVote, optimizer: FusedALIAS) -> None:
        """Look at the gradients of every ``backward()`` from now on.

        Raises:
            RuntimeError: the vote has no model yet.
            ValueError: a parameter of the optimizer is not voted on, or the vote has momentum.
        """
        self.vote = vote
        self._optimizer = optimizer
        self._seen: dict[int, dict[int, list[Tensor]]] = {}
        vote.attach(self, [param for group in optimizer.param_groups for param in group["params"]])

    def see(self, bucket: Bucket) -> None:
        """Take what a bucket says of this process's gradients, before the vote overwrites them."""
        if bucket.index() == 0:
            self._seen = {}
        params, buffer = bucket.parameters(), bucket.buffer()
        grads = parts_of(buffer, params)
        found: dict[int, list[Tensor]] = {}
        for index, group in enumerate(self._optimizer.param_groups):
            own = {id(param) for param in group["params"]}
            members = [i for i, param in enumerate(params) if id(param) in own]
            if not members:
                continue
            whole = [buffer] if len(members) == len(params) else [grads[i] for i in members]
            extrema = [each.aminmax() for each in whole if each.numel()]
            inner = self._inner([params[i] for i in members], [grads[i] for i in members])
            if extrema:
                largest = torch.stack([each.max for each in extrema]).max().double()
                smallest = torch.stack([each.min for each in extrema]).min().double()
                found[index] = [largest, smallest, inner.to(largest.device)]
        self._seen[bucket.index()] = found

    def _inner(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
        """Return <g, sign of the last vote> over the parameters that have been stepped."""
        state = self._optimizer.state
        kept = [
            (p, g, state[p]["signs"])
            for p, g in zip(params, grads, strict=True)
            if "signs" in state.get(p, ())
        ]
        # The observing half of a step, on scalars of its own: the "gap" that it begins with is 0.
        scalars = torch.zeros(len(AT), dtype=torch.float64)
        scalars[AT["step_size"]] = 1.0
        if not kept:
            return scalars[AT["gap"]]
        scalars = scalars.to(params[0].device, non_blocking=True)
        native = self._optimizer.backend == "native"
        observe: Callable[..., None] = _loader.load().alias_ if native else reference.alias_
        observe(
            [param.data for param, _, _ in kept],  # whose version autograd goes on with
            [grad for _, grad, _ in kept],
            [signs for _, _, signs in kept],
            [],
            [scalars],
            lr=0.0,
            memory_efficient=True,
            gap="descent",
            lower_bound=0.0,
            max_step=0.0,
            warmup_steps=0,
            update_every=1,
            weight_decay=0.0,
            phase="refresh",
        )
        return scalars[AT["gap"]]

    @property
    def is_empty(self) -> bool:
        """Whether no gradient has been voted on since the last step."""
        return not self._seen

    def take(self, grad_scale: Tensor | float | None) -> list[Tensor]:
        """Return for each group its largest and smallest element on any process, and the mean inner product.

        One message. What has been seen is forgotten.

        Raises:
            RuntimeError: no ``backward()`` has been voted on since the last step.
        """
        if self.is_empty:
            raise RuntimeError(
                "vote: no gradient has been voted on since the last step; before step() call backward(), "
                "outside of no_sync()"
            )
        groups = self._optimizer.param_groups
        device = next(param.device for group in groups for param in group["params"])
        own = torch.tensor([_NOTHING] * len(groups), dtype=torch.float64).to(device, non_blocking=True)
        for index in range(len(groups)):
            found = [each[index] for each in self._seen.values() if index in each]
            if found:
                largest, smallest, inner = (torch.stack(list(values)) for values in zip(*found, strict=True))
                own[index] = torch.stack([largest.max(), smallest.min(), inner.sum()])
        self._seen = {}
        size = dist.get_world_size(self.vote.group)
        everybody = own.new_empty(size, *own.shape)
        gather_equal(everybody, own, self.vote.group)
        largest, smallest, inner = everybody.unbind(-1)
        combined = torch.stack([largest.amax(0), smallest.amin(0), inner.sum(0) / size], dim=-1)
        if grad_scale is not None:
            combined = combined / torch.as_tensor(grad_scale).detach().reshape(()).to(device, torch.float64)
        return [
            _negated(row) if group["maximize"] else row for row, group in zip(combined, groups, strict=True)
        ]


def _negated(seen: Tensor) -> Tensor:
    """Return what gradients of the other sign say. The signs of the last step are of that sign, too."""
    largest, smallest, inner = seen
    return torch.stack([-smallest, -largest, -inner])


def recorded(before: Tensor | None, after: Tensor, seen: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Return ALIAS's scalars after a step by votes: with the extrema of the gradients, if anything has
    happened; otherwise those of before it."""
    new = after_step(after, seen, after[AT["displacement"]], group)
    if before is None:
        return torch.where(after[AT["step"]] > 0, new, after)
    return torch.where(after[AT["step"]] > before[AT["step"]], new, before)
