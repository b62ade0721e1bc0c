"""Stages that native kernels run: the pieces of a call that are cut alike go through them in one plan.

A piece that the kernels must not write yet goes through them as a copy, and what comes of it is copied back
at the end: where this process has no gradient (whether anybody has is only known after the first exchange),
and where a piece does not lie in order. All processes so run the same stages, whatever each of them has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sage_ext import _loader, pieces
from sage_ext.distributed.exchange import Lines, Presence, Work
from sage_ext.distributed.placements import cuts
from sage_ext.optimizers.step import Call
from sage_ext.reference._stages import COMMIT, Exchange, Stages


def axes(rule: str, ndim: int) -> dict[str, tuple[int, ...]]:
    """Return which dimensions of a parameter are rows to a rule, and which columns."""
    if rule == "sage":
        return (
            {"rows": (0,), "columns": tuple(range(1, ndim))} if ndim >= 2 else {"rows": (), "columns": (0,)}
        )
    return {"rows": (ndim - 2,), "columns": (ndim - 1,)}


@dataclass
class Part:
    """Pieces of one call whose rows, and whose columns, are cut along the same lines."""

    rule: str
    params: list[Tensor]
    """As the optimizer has them."""
    presences: list[Presence]
    copies: list[tuple[Tensor, Tensor, Presence]] = field(default_factory=list)
    """(what belongs to the optimizer, the copy that the kernels write, whether it counts)."""
    native: Any = None

    def work(self, lines: Lines) -> Work:
        return Work(self._stages(), self.params, lines, self.presences)

    def _stages(self) -> Stages:
        while (exchange := self.native.proceed()) is not None:
            over, buffers = exchange
            answers = yield [
                Exchange(buffer, "total", axes(self.rule, param.ndim)[over], index)
                for index, (param, buffer) in enumerate(zip(self.params, buffers, strict=True))
            ]
            torch._foreach_copy_(buffers, answers)
        yield COMMIT
        for target, copy, presence in self.copies:
            if presence.counts:
                presence.store(target, copy)


def plan(
    call: Call, lines: Lines, scaling: tuple[Any, Tensor | None], label: Callable[[int], str]
) -> tuple[list[Part], list[int]]:
    """Check a call and return its parts, and the positions of parameters without an element, which have none.

    Raises:
        ValueError: a tensor or a hyperparameter cannot be used. Nothing has changed then.
    """
    grad_scale, found_inf = scaling
    alike: dict[tuple[Any, ...], list[int]] = {}
    empty = []
    for position, param in enumerate(call.params):
        if param.numel() == 0:
            empty.append(position)
            continue
        along = axes(call.rule.name, param.ndim)
        found = [(lines.of(param, i).place, dim) for i, dim in cuts(param)]
        key = tuple(tuple(place for place, dim in found if dim in dims) for dims in along.values())
        alike.setdefault(key, []).append(position)
    parts = []
    for (rows, columns), positions in alike.items():
        part = Part(call.rule.name, [call.params[i] for i in positions], [])
        for i in positions:
            own_lines = [lines.of(call.params[i], mesh_dim) for mesh_dim, _ in cuts(call.params[i])]
            part.presences.append(Presence(call.grads[i] is not None, own_lines, found_inf))
        taken = list(zip(positions, part.presences, strict=True))
        step = _loader.load().Step()
        add = getattr(step, call.rule.name)
        add(
            [_writable(call.params[i], presence, part) for i, presence in taken],
            [pieces.local_grad(call.params[i], call.grads[i]) for i in positions],
            *(
                [_writable(held[i], presence, part) for i, presence in taken] if held else []
                for held in call.states
            ),
            **call.arguments,
            grad_scale=grad_scale,
            found_inf=found_inf,
            describe=lambda index, positions=positions: label(positions[index]),
        )
        shapes = [list(param.shape) for param in part.params]
        part.native = step.stages(shapes=shapes, rows=bool(rows), columns=bool(columns))
        parts.append(part)
    return parts, empty


def _writable(tensor: Tensor, presence: Presence, part: Part) -> Tensor:
    """Return what this process has of a tensor, or a copy that the kernels can write in its place."""
    own = pieces.local(tensor)
    if presence.has_gradient and own.is_contiguous():
        return own
    copy = own.clone(memory_format=torch.contiguous_format)
    part.copies.append((own, copy, presence))
    return copy
