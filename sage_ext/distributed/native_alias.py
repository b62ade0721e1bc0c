"""ALIAS and ALIAS-Adam on pieces: their kernels, with scalars that all processes have in common.

The kernels look at gradients, and move parameters, of this process. What they would make of that by
themselves goes into scratch scalars; what the next kernel gets is made here of what all processes have
seen. No number is read on the host. The signs of a DTensor, int8 in the state, are packed for the kernels
and unpacked behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sage_ext import _loader, pieces
from sage_ext.distributed.alias_scalars import AT, after_step, before_step, observed_sums
from sage_ext.distributed.exchange import Lines, Presence, Work
from sage_ext.distributed.placements import cuts
from sage_ext.optimizers.step import Call
from sage_ext.reference._stages import COMMIT, Exchange, Stages
from sage_ext.reference.alias import adds_distances

_NOTHING = (-torch.inf, torch.inf, 0.0, 0.0)
"""What no element says: the largest, the smallest, <g, sign(p)>, and the 1-norm of g - p or of g."""


@dataclass
class Piece:
    """What this process has of one parameter, and what the kernels get in its place."""

    param: Tensor
    grad: Tensor
    states: list[Tensor]
    presence: Presence
    place: tuple[Any, ...]
    """The lines along which it is cut."""
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """(what belongs to the optimizer, what the kernels write)."""

    def finish(self) -> None:
        """Take up what the kernels have written."""
        for target, copy in self.copies:
            value = _unpacked(copy, target) if target.dtype == torch.int8 else copy
            if self.presence.has_gradient:
                target.copy_(value)
            elif self.presence.counts:
                self.presence.store(target, value)


def _pieces(call: Call, lines: Lines, found_inf: Tensor | None) -> list[Piece]:
    result = []
    for position, (param, grad) in enumerate(zip(call.params, call.grads, strict=True)):
        along = tuple(lines.of(param, mesh_dim) for mesh_dim, _ in cuts(param))
        presence = Presence(grad is not None, list(along), found_inf)
        own = pieces.local(param)
        piece = Piece(own, pieces.local_grad(param, grad), [], presence, tuple(line.place for line in along))
        piece.param = _writable(own, piece)
        piece.states = [_writable(pieces.local(held[position]), piece) for held in call.states if held]
        result.append(piece)
    return result


def _writable(tensor: Tensor, piece: Piece) -> Tensor:
    if tensor.dtype == torch.int8:
        copy = _packed(tensor)
    elif piece.presence.has_gradient and tensor.is_contiguous():
        return tensor
    else:
        copy = tensor.clone(memory_format=torch.contiguous_format)
    piece.copies.append((tensor, copy))
    return copy


def _words(numel: int) -> tuple[int, int]:
    """Return the words of a sign plane, and those of a plane of votes, which come in fours."""
    words = -(-numel // 32)
    return words, max(-(-words // 4) * 4, 4) if words else 0


def _packed(signs: Tensor) -> Tensor:
    """Return the bit planes of int8 signs."""
    words, padded = _words(signs.numel())
    if not words:
        return torch.zeros(2, 0, dtype=torch.int32, device=signs.device)
    votes = torch.empty(1, 2, padded, dtype=torch.int32, device=signs.device)
    _loader.load().pack_votes(signs.to(torch.bfloat16).reshape(-1), None, votes, 0.0)
    return votes[0, :, :words].contiguous()


def _unpacked(planes: Tensor, like: Tensor) -> Tensor:
    words, padded = _words(like.numel())
    if not words:
        return torch.zeros_like(like)
    votes = torch.zeros(1, 2, padded, dtype=torch.int32, device=planes.device)
    votes[0, :, :words] = planes
    signs = torch.empty(like.numel(), dtype=torch.bfloat16, device=planes.device)
    _loader.load().unpack_votes(votes, signs)
    return signs.reshape(like.shape).to(torch.int8)


def alias_work(call: Call, lines: Lines, scaling: tuple[Any, Tensor | None]) -> Work:
    """Return the step of all parameters of an ALIAS group."""
    (scalars,) = call.shared.values()
    return Work(_alias_stages(call, _pieces(call, lines, scaling[1]), scalars, scaling), call.params, lines)


def _alias_stages(
    call: Call, own: list[Piece], scalars: Tensor, scaling: tuple[Any, Tensor | None]
) -> Stages:
    """Two exchanges: what the gradients say, and how far the parameters went."""
    grad_scale, found_inf = scaling
    arguments = call.arguments
    parts = _alike(own)
    rows = [[float(piece.presence.has_gradient), *_NOTHING] for piece in own]
    seen = torch.tensor(rows, dtype=torch.float64).to(scalars.device, non_blocking=True)
    for members in parts:
        seen[members[0], 1:] = _observed(call, [own[i] for i in members], scalars, scaling)
    answers = yield [
        Exchange(seen[i], "gather", tuple(range(param.ndim)), i) for i, param in enumerate(call.params)
    ]
    yield COMMIT
    exists = []
    for piece, answer in zip(own, answers, strict=True):
        count = answer[:, 0].sum().float()
        exists.append(count > 0)
        piece.presence.count = count.reshape(1)
        piece.presence.decide()
    nothing = torch.tensor(_NOTHING, dtype=torch.float64).to(scalars.device, non_blocking=True)
    table = torch.cat(
        [torch.where(there, answer[:, 1:], nothing) for there, answer in zip(exists, answers, strict=True)]
    )
    whole = torch.stack([table[:, 0].amax(), table[:, 1].amin(), table[:, 2].sum(), table[:, 3].sum()])
    whole[:2] = torch.where(whole[0] < whole[1], torch.zeros_like(whole[:2]), whole[:2])  # not one element
    before = before_step(scalars, whole, arguments)

    went = torch.zeros(len(own), 1, dtype=torch.float64, device=scalars.device)
    after = before
    for members in parts:
        after = before.clone()
        _loader.load().alias_(
            [own[i].param for i in members],
            [own[i].grad for i in members],
            *_lists(call, [own[i] for i in members]),
            [after],
            **arguments,
            grad_scale=grad_scale,
            found_inf=found_inf,
        )
        went[members[0], 0] = after[AT["displacement"]]
    for piece in own:
        piece.finish()
    answers = yield [
        Exchange(went[i], "gather", tuple(range(param.ndim)), i) for i, param in enumerate(call.params)
    ]
    far = [torch.where(there, answer, 0.0) for there, answer in zip(exists, answers, strict=True)]
    distance = torch.cat(far).sum() if adds_distances(arguments) else torch.cat(far).amax()
    new = after_step(after, whole, distance, arguments)
    happens = torch.stack(exists).any()
    if found_inf is not None:
        happens = happens & (found_inf.reshape(()).to(happens.device) == 0)
    scalars.copy_(torch.where(happens, new, scalars))


def _alike(own: Sequence[Piece]) -> list[list[int]]:
    """Return which pieces go through the kernels together: those that are cut along the same lines and have a
    gradient here; each of the others by itself."""
    found: dict[Any, list[int]] = {}
    for i, piece in enumerate(own):
        key = piece.place if piece.presence.has_gradient else i
        found.setdefault((piece.presence.has_gradient, key), []).append(i)
    return list(found.values())


def _lists(call: Call, own: Sequence[Piece]) -> list[list[Tensor]]:
    """Return the lists of states, with an empty one for what a form does not keep."""
    kept = iter(range(len(own[0].states)))
    return [
        [piece.states[i] for piece in own] if held and (i := next(kept)) >= 0 else [] for held in call.states
    ]


def _observed(
    call: Call, own: Sequence[Piece], scalars: Tensor, scaling: tuple[Any, Tensor | None]
) -> Tensor:
    """Return what some gradients say, as ``_NOTHING`` has it."""
    arguments = call.arguments
    has_extrema = adds_distances(arguments)
    result = torch.tensor(_NOTHING, dtype=torch.float64).to(scalars.device, non_blocking=True)
    if has_extrema:
        extrema = [piece.grad.aminmax() for piece in own if piece.grad.numel()]
        if extrema:
            ends = torch.stack([torch.stack([each.max, each.min]).double() for each in extrema])
            if scaling[0] is not None:
                ends = ends / torch.as_tensor(scaling[0]).detach().reshape(()).to(ends.device, torch.float64)
            if arguments["maximize"]:
                ends = -ends
            result[0], result[1] = ends.amax(), ends.amin()
        if arguments["gap"] != "descent":
            return result
    scratch = torch.zeros_like(scalars)
    scratch[AT["step_size"]] = scratch[AT["displacement"]] = 1.0
    scratch[AT["grad_factor"]] = scalars[AT["grad_factor"]]
    _loader.load().alias_(
        [piece.param for piece in own],
        [piece.grad for piece in own],
        *_lists(call, own),
        [scratch],
        **{**arguments, "phase": "refresh", "loss": None},
        grad_scale=scaling[0],
    )
    result[2] = scratch[AT["gap"]]
    if not has_extrema:
        result[3] = scratch[AT["eta"]]
    return result


def alias_adam_work(call: Call, lines: Lines, scaling: tuple[Any, Tensor | None]) -> Work:
    """Return the steps of all parameters of an ALIAS-Adam group."""
    own = _pieces(call, lines, scaling[1])
    presences = [piece.presence for piece in own]
    return Work(_alias_adam_stages(call, own, scaling), call.params, lines, presences)


def _alias_adam_stages(call: Call, own: list[Piece], scaling: tuple[Any, Tensor | None]) -> Stages:
    """One exchange: the inner products of the gradients and the signs of the last ones."""
    grad_scale, found_inf = scaling
    signs, scalars = (call.rule.state_keys.index(key) for key in ("signs", "scalars"))
    root = call.arguments["beta2"] ** 0.5
    inner = []
    for piece in own:
        found, _ = observed_sums(
            _loader.load().alias_,
            [piece.param],
            [piece.grad],
            [piece.states[signs]],
            maximize=call.arguments["maximize"],
            grad_scale=grad_scale,
        )
        inner.append(found)
    answers = yield [
        Exchange(value, "total", tuple(range(param.ndim)), i)
        for i, (param, value) in enumerate(zip(call.params, inner, strict=True))
    ]
    yield COMMIT
    ready, known = [], []
    for piece, answer in zip(own, answers, strict=True):
        r, d = piece.states[scalars].unbind()
        new_r = root * r + (1 - root) * (d * answer.reshape(()))
        new_d = torch.maximum(new_r, d)
        known.append(torch.stack([new_r, new_d]))
        # With an r that never wins, the kernels take d as it is.
        ready.append(torch.stack([torch.full_like(r, -torch.inf), new_d]))
    lists = _lists(call, own)
    lists[scalars] = ready
    _loader.load().alias_adam_(
        [piece.param for piece in own],
        [piece.grad for piece in own],
        *lists,
        **call.arguments,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
    for piece, new in zip(own, known, strict=True):
        held = piece.states[scalars]
        held.copy_(new if found_inf is None else torch.where(found_inf.reshape(()) == 0, new, held))
        piece.finish()
