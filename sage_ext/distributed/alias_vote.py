"""ALIAS that steps by a majority vote: what its scalars need to know of each process's own gradients.

How the paper's authors combine the scalars of several workers is not known; this is ours. All numbers are
taken from the gradients before the vote. The extrema are over the gradients of all processes, as if these
were one long gradient; a parameter that a process has not used has no gradient there. The inner product with
the signs of the last step, which are the last vote, is the mean over the processes: that of their mean
gradient. So is the 1-norm of smoothness="sum", which bounds that of their mean gradient. One message a step
carries them, and everybody computes the same from it: eta, d and gamma have the same bits on all processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from sage_ext import _loader, pieces, reference
from sage_ext.distributed.alias_scalars import AT, after_step, before_step, observed_sums
from sage_ext.distributed.messages import gather_equal, refused_elsewhere
from sage_ext.distributed.replicas import ReplicaStep
from sage_ext.distributed.vote import Bucket, MajorityVote, parts_of
from sage_ext.reference.alias import adds_distances

if TYPE_CHECKING:
    from sage_ext.optimizers import FusedALIAS

_NOTHING = (-torch.inf, torch.inf, 0.0, 0.0)
"""What a group without elements says: its largest and smallest element, the inner product, and the 1-norm."""


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
        self._voted: set[int] = set()
        """Identities of the parameters that were in the buckets: DDP alone knows what it reduces."""
        vote.attach(self, [param for group in optimizer.param_groups for param in group["params"]])

    def see(self, bucket: Bucket) -> None:
        """Take what a bucket says of this process's gradients, before the vote overwrites them.

        Raises:
            RuntimeError: in ``ddp.join()``, where a process that has left would not come to the step.
        """
        params, buffer = bucket.parameters(), bucket.buffer()
        if bucket.index() == 0:
            self._seen = {}
            self._voted = set()
            if self.vote.is_joining:
                raise RuntimeError(
                    "vote: a step of FusedALIAS takes a message of all processes, and in ddp.join() some may "
                    "have left; use ddp.join(throw_on_early_termination=True), which ends as soon as one has "
                    "no batch left, or step by the vote with FusedSignSGD"
                )
        self._voted.update(map(id, params))
        grads = parts_of(buffer, params)
        found: dict[int, list[Tensor]] = {}
        for index, group in enumerate(self._optimizer.param_groups):
            own = {id(param) for param in group["params"]}
            # What the last forward pass has not used is zeros in the bucket, and has no gradient yet.
            members = [i for i, param in enumerate(params) if id(param) in own and param.grad is not None]
            if not members:
                continue
            ends = [buffer.new_full((), value, dtype=torch.float64) for value in _NOTHING[:2]]
            if adds_distances(group):
                whole = [buffer] if len(members) == len(params) else [grads[i] for i in members]
                extrema = [each.aminmax() for each in whole if each.numel()]
                if not extrema:
                    continue
                largest = torch.stack([each.max for each in extrema]).max()
                smallest = torch.stack([each.min for each in extrema]).min()
                ends = [largest.double(), smallest.double()]
            sums = self._sums(group, [params[i] for i in members], [grads[i] for i in members])
            found[index] = [*ends, *(value.to(buffer.device) for value in sums)]
        self._seen[bucket.index()] = found

    def _sums(
        self, group: Mapping[str, Any], params: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return <g, sign of the last vote> over the parameters that have been stepped, and the 1-norm of g
        where the group needs it."""
        state = self._optimizer.state
        alias = _loader.load().alias_ if self._optimizer.backend == "native" else reference.alias_
        stepped = ["signs" in state.get(param, ()) for param in params]
        with_signs = [i for i, found in enumerate(stepped) if found]
        parts = [(with_signs, [state[params[i]]["signs"] for i in with_signs])]
        if not adds_distances(group):
            parts.append(([i for i, found in enumerate(stepped) if not found], []))
        inner = norm = torch.zeros((), dtype=torch.float64)
        for members, signs in parts:
            if members:
                of_values = [params[i].data for i in members]  # autograd goes on with the parameters' version
                own_inner, own_norm = observed_sums(alias, of_values, [grads[i] for i in members], signs)
                inner, norm = inner + own_inner, norm + own_norm
        return inner, norm

    @property
    def is_empty(self) -> bool:
        """Whether no gradient has been voted on since the last step."""
        return not self._seen

    def check_all_voted(self, params: Sequence[Tensor]) -> None:
        """Raise ValueError if one of ``params`` has a gradient that was not voted on."""
        self.vote.check_owns(params)  # some may have been added or swapped
        for index, param in enumerate(params):
            if param.requires_grad and param.grad is not None and id(param) not in self._voted:
                self.vote.refuse(index, param)

    def forget(self) -> None:
        """A step has been taken, or left out."""
        self._seen = {}

    def exchange(self, *, has_failed: bool) -> tuple[Tensor, Tensor]:
        """Say in one message what has been seen, and whether this process cannot take the step.

        Returns:
            For each group the largest and the smallest element on any process, the mean inner product and
            the mean 1-norm, shape ``(groups, 4)``; and how many processes cannot, of one element. In float64,
            on the device of the parameters.
        """
        groups = self._optimizer.param_groups
        device = next(param.device for group in groups for param in group["params"])
        own = torch.tensor([*_NOTHING * len(groups), float(has_failed)], dtype=torch.float64)
        own = own.to(device, non_blocking=True)
        for index in range(0 if has_failed else len(groups)):
            found = [each[index] for each in self._seen.values() if index in each]
            if found:
                largest, smallest, *sums = (torch.stack(list(values)) for values in zip(*found, strict=True))
                row = [largest.max(), smallest.min(), *(each.sum() for each in sums)]
                own[4 * index : 4 * index + 4] = torch.stack(row)
        size = dist.get_world_size(self.vote.group)
        everybody = own.new_empty(size, own.numel())
        gather_equal(everybody, own, self.vote.group)
        largest, smallest, *sums = everybody[:, :-1].view(size, len(groups), 4).unbind(-1)
        ends = torch.stack([largest.amax(0), smallest.amin(0)])
        ends = torch.where(ends[0] < ends[1], 0.0, ends)  # not one element
        combined = torch.stack([*ends, *(each.sum(0) / size for each in sums)], dim=-1)
        return combined, everybody[:, -1].sum()


class VoteStep(ReplicaStep):
    """One step of ALIAS by votes: what all processes have seen goes into the scalars before kernels run."""

    def __init__(self, optimizer: FusedALIAS, observations: Observations) -> None:
        super().__init__(optimizer)
        self._optimizer: FusedALIAS = optimizer
        self._observations = observations
        self._factor: Tensor | float = 1.0
        self._changed: list[tuple[Any, Tensor | None, Tensor]] = []
        """(group, its scalars before the step, what has been seen for it)."""

    def check(self) -> None:
        """Check that all parameters were voted on, without momentum, since the last step.

        Raises:
            RuntimeError: no ``backward()`` has been voted on.
            ValueError: the vote has momentum by now, or does not have one of the parameters.
        """
        if self._observations.is_empty:
            raise RuntimeError(
                "vote: no gradient has been voted on since the last step; before step() call backward(), "
                "outside of no_sync()"
            )
        self._factor = factor_of_votes(self._optimizer)
        self._optimizer._check_votes()
        self._observations.vote.check_can_be_seen()
        for group in self._optimizer.param_groups:
            self._observations.check_all_voted(group["params"])

    def agreement(self, scaling: tuple[Any, Any]) -> VoteStep:
        super().agreement(scaling)
        grad_scale, found_inf = self.scaling
        if self._device.type != "cpu":
            flag = torch.zeros(1, device=self._device)
            if found_inf is not None:
                flag += found_inf.to(self._device)
            self.scaling = (grad_scale, flag)
        return self

    def _agree(self) -> None:
        combined, failed = self._observations.exchange(has_failed=False)
        if self._device.type == "cpu":
            if failed:
                raise refused_elsewhere()
        else:
            self.scaling[1].add_(failed)  # the host does not wait: kernels leave the step out
        for row, group in zip(combined * self._factor, self._optimizer.param_groups, strict=True):
            seen = _negated(row) if group["maximize"] else row
            scalars = group["scalars"]
            self._changed.append((group, None if scalars is None else scalars.clone(), seen))
            if scalars is not None:
                scalars.copy_(before_step(scalars, seen.to(scalars.device), group))

    def _tell_failure(self) -> None:
        if self._awaited:
            super()._tell_failure()
        else:
            self._observations.exchange(has_failed=True)

    def undo(self) -> None:
        for group, old, _ in self._changed:
            if old is not None:
                group["scalars"].copy_(old)

    def finish(self) -> None:
        """Correct what the kernels have recorded: they have seen votes."""
        self._observations.forget()
        for group, old, seen in self._changed:
            if group["scalars"] is not None:
                own = seen.to(group["scalars"].device)
                group["scalars"].copy_(_recorded(old, group["scalars"], own, group))


def factor_of_votes(optimizer: FusedALIAS) -> Tensor | float:
    """Return what the votes were multiplied by since the gradients were measured, or are to be.

    ``scaler.unscale_()`` divides the votes, and not what was measured. Where the kernels are to divide, a
    GradScaler has left its scale on the optimizer; where it has divided itself it has not, but is calling the
    step. Where nobody says anything the votes are looked at: they were 1, and a factor that is a power of two
    is one over a scale, while one of clipping hardly ever is.
    """
    device = next(param.device for group in optimizer.param_groups for param in group["params"])
    if (scale := getattr(optimizer, "grad_scale", None)) is not None:
        return 1 / torch.as_tensor(scale).detach().reshape(()).to(device, torch.float64)
    if (scaler := pieces.among_callers(torch.amp.GradScaler)) is not None:
        return 1 / float(scaler.get_scale())
    params = (param for group in optimizer.param_groups for param in group["params"])
    grads = [param.grad for param in params if param.grad is not None and param.numel()]
    if not grads:
        return 1.0
    sizes = [size.to(device, torch.float64) for size in torch._foreach_norm(grads, torch.inf)]
    largest = torch.stack(sizes).amax()
    mantissa, _ = torch.frexp(largest)
    return torch.where(mantissa == 0.5, largest, 1.0)


def _negated(seen: Tensor) -> Tensor:
    """Return what gradients of the other sign say. The signs of the last step are of that sign, too."""
    largest, smallest, inner, norm = seen
    return torch.stack([-smallest, -largest, -inner, norm])


def _recorded(before: Tensor | None, after: Tensor, seen: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Return ALIAS's scalars after a step by votes: with the extrema of the gradients, if anything has
    happened; otherwise those of before it."""
    new = after_step(after, seen, after[AT["displacement"]], group)
    if before is None:
        return torch.where(after[AT["step"]] > 0, new, after)
    return torch.where(after[AT["step"]] > before[AT["step"]], new, before)
