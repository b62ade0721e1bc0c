"""What an optimizer step on several processes sends: each message with its bytes, from shapes and placements.

These are the rules of ``sage_ext/distributed`` and of the native stages that it runs, written down once more
without a tensor, so that they can be asked about a thousand processes. The tests hold them to what is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

SUM, GATHER = "sum", "gather"
FLOAT32, FLOAT64 = 4, 8


@dataclass(frozen=True)
class Spread:
    """A parameter, and what one process has of it."""

    shape: tuple[int, ...]
    local: tuple[int, ...]
    mesh: tuple[int, ...]
    """How many processes there are along each mesh dimension."""
    cuts: tuple[int | None, ...]
    """For each mesh dimension the dimension that it cuts into more than one piece, or None."""


def spread(shape: Sequence[int], mesh: Sequence[int], cuts: Sequence[int | None]) -> Spread:
    """Return what the first process of a mesh has of a parameter: the largest piece there is.

    Args:
        shape: of the whole.
        mesh: how many processes there are along each of its dimensions.
        cuts: for each mesh dimension the dimension of the parameter that it cuts, or None.
    """
    local = list(shape)
    for size, dim in zip(mesh, cuts, strict=True):
        if dim is not None:
            local[dim] = -(-local[dim] // size)
    real = tuple(dim if size > 1 else None for size, dim in zip(mesh, cuts, strict=True))
    return Spread(tuple(shape), tuple(local), tuple(mesh), real)


class Message(NamedTuple):
    """One collective call."""

    mesh_dim: int
    how: str
    """``"sum"``: an all-reduce; ``"gather"``: an all-gather."""
    nbytes: int
    """That each process puts in."""


@dataclass
class _Item:
    """A buffer on its way along some mesh dimensions."""

    how: str
    count: int
    width: int
    left: list[int]
    mesh: tuple[int, ...]
    is_flag: bool = False


@dataclass
class _Work:
    """The exchanges of one tensor, one list a stage, or of all tensors of an ALIAS group."""

    stages: Iterator[list[_Item]]
    mesh: tuple[int, ...]
    flag_left: list[int] = field(default_factory=list)
    """Along which it has not yet been told whether anybody has a gradient."""

    def proceed(self) -> list[_Item]:
        for items in self.stages:
            lines = sorted({line for item in items for line in item.left})
            if not lines:
                continue
            told = [line for line in self.flag_left if line in lines]
            self.flag_left = [line for line in self.flag_left if line not in lines]
            return [*items, *self._flag(told)]
        told, self.flag_left = self.flag_left, []
        return self._flag(told)

    def _flag(self, told: list[int]) -> list[_Item]:
        return [_Item(SUM, 1, FLOAT32, told, self.mesh, is_flag=True)] if told else []


def messages(step: Sequence[tuple[str, Mapping[str, Any], Sequence[Spread]]]) -> list[Message]:
    """Return the messages of a step, in their order, without the one in which the processes agree.

    Args:
        step: rule, hyperparameters and parameters of each group.
    """
    works = [work for rule, group, params in step for work in _works(rule, group, params)]
    live = [(work, work.proceed()) for work in works]
    sent: list[Message] = []
    while live := [(work, items) for work, items in live if items]:
        sent += _send([item for _, items in live for item in items if item.left])
        live = [(work, items if any(item.left for item in items) else work.proceed()) for work, items in live]
    return sent


def _send(items: Sequence[_Item]) -> list[Message]:
    """Send along the first mesh dimension what has to go along it: a message an operation and dtype."""
    line = min(line for item in items for line in item.left)
    parcels: dict[tuple[str, int], int] = {}
    for item in sorted(items, key=lambda item: item.is_flag):
        if line not in item.left:
            continue
        item.left = [other for other in item.left if other != line]
        kind = (item.how, item.width)
        if item.is_flag and kind not in parcels:  # it takes the dtype of what it goes with
            kind = next((other for other in sorted(parcels) if other[0] == SUM), kind)
            item.width = kind[1]
        parcels[kind] = parcels.get(kind, 0) + item.count
        if item.how == GATHER:  # what all have goes on along the next
            item.count *= item.mesh[line]
    order = sorted(parcels, key=lambda kind: (kind[0] == GATHER, kind[1]))
    return [Message(line, how, width * parcels[how, width]) for how, width in order]


def _works(rule: str, group: Mapping[str, Any], params: Sequence[Spread]) -> list[_Work]:
    if rule == "alias":
        cut = any(dim is not None for param in params for dim in param.cuts)
        return [_Work(_alias(params), ())] if cut else []
    stages = {"sage": _sage, "sinkgd": _sinkgd, "scale": _scale, "alias_adam": _alias_adam}.get(rule)
    if stages is None:  # looks at one number at a time
        return []
    return [
        _Work(stages(param, group), param.mesh, [i for i, dim in enumerate(param.cuts) if dim is not None])
        for param in params
    ]


def _item(param: Spread, how: str, count: int, width: int, over: Sequence[int]) -> _Item:
    """Return a buffer that was reduced over some dimensions: it goes to those who have others of them."""
    return _Item(how, count, width, [i for i, dim in enumerate(param.cuts) if dim in over], param.mesh)


def _sage(param: Spread, group: Mapping[str, Any]) -> Iterator[list[_Item]]:
    columns = range(1, len(param.shape)) if len(param.shape) > 1 else range(1)
    if len(param.shape) > 1:
        yield [_item(param, SUM, prod(param.local[1:]), FLOAT32, [0])]
    yield [_item(param, SUM, 2, FLOAT64, columns)]


def _sinkgd(param: Spread, group: Mapping[str, Any]) -> Iterator[list[_Item]]:
    rows, columns = len(param.shape) - 2, len(param.shape) - 1
    for iteration in range(group["iterations"]):
        yield [_item(param, SUM, _without(param, columns), FLOAT64, [columns])]
        yield [_item(param, SUM, _without(param, rows), FLOAT32 if iteration else FLOAT64, [rows])]


def _scale(param: Spread, group: Mapping[str, Any]) -> Iterator[list[_Item]]:
    reduced = len(param.shape) + group["dim"] - 2
    yield [_item(param, SUM, _without(param, reduced), FLOAT64, [reduced])]


def _alias_adam(param: Spread, group: Mapping[str, Any]) -> Iterator[list[_Item]]:
    yield [_item(param, SUM, 1, FLOAT64, range(len(param.shape)))]


def _alias(params: Sequence[Spread]) -> Iterator[list[_Item]]:
    """Whether there is a gradient and four numbers of it, then how far the tensor went."""
    for count in (5, 1):
        yield [_item(param, GATHER, count, FLOAT64, range(len(param.shape))) for param in params]


def _without(param: Spread, dim: int) -> int:
    """Elements of a piece that has length 1 along a dimension."""
    return prod(length for i, length in enumerate(param.local) if i != dim)
