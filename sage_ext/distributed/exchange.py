"""The stages of all tensors in lock-step: what goes to the same processes at the same time is one message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sage_ext.distributed.messages import gather_equal
from sage_ext.distributed.placements import cuts
from sage_ext.reference._stages import COMMIT, Exchange, Stages, alone

Place = tuple[int, int]
"""(mesh, in the order in which they are met; dimension of it). The same on all processes, so that it orders
messages."""


@dataclass
class Line:
    """The processes along one dimension of a mesh."""

    place: Place
    group: Any
    device: torch.device
    """Where messages have to be."""


class Lines:
    """All lines of the meshes of an optimizer's parameters, each known by its process group."""

    def __init__(self) -> None:
        self.meshes: list[Any] = []
        self._by_group: dict[str, Line] = {}
        self._by_mesh: dict[tuple[int, int], Line] = {}

    def of(self, tensor: Any, mesh_dim: int) -> Line:
        """Return the processes among which ``mesh_dim`` of a DTensor's mesh spreads it."""
        return self.along(tensor.device_mesh, mesh_dim)

    def along(self, mesh: Any, mesh_dim: int) -> Line:
        known = self._by_mesh.get((id(mesh), mesh_dim))
        if known is not None:
            return known
        if not any(mesh is other for other in self.meshes):
            self.meshes.append(mesh)  # kept alive, as its id is what it is known by
        group = mesh.get_group(mesh_dim)
        place = (self.meshes.index(mesh), mesh_dim)
        line = self._by_group.setdefault(group.group_name, Line(place, group, torch.device(mesh.device_type)))
        self._by_mesh[id(mesh), mesh_dim] = line
        return line


@dataclass
class Item:
    """A buffer on its way along some lines."""

    value: Tensor
    gathers: bool
    lines: list[Line]
    is_flag: bool = False
    """One small number, which goes in whatever dtype others do."""
    left: list[Line] = field(default_factory=list)
    """Lines that it has not gone along yet."""

    def __post_init__(self) -> None:
        self.left = list(self.lines)


def send(items: Sequence[Item]) -> None:
    """Reduce or gather along the first line that any item has to go along: one message an operation and
    dtype. What has to go elsewhere waits, so that it can go together with what comes to want that later."""
    line = min((line for item in items for line in item.left), key=lambda line: line.place)
    here = [item for item in items if any(other is line for other in item.left)]
    for item in here:
        item.left = [other for other in item.left if other is not line]
    for parcel, gathers in _parcels(here):
        _send(parcel, line, gathers=gathers)


def _parcels(items: Sequence[Item]) -> list[tuple[list[Item], bool]]:
    """Return what makes a message of its own, and whether that is gathered: the same on all processes."""
    found: dict[tuple[bool, str, str], list[Item]] = {}
    for item in sorted(items, key=lambda item: item.is_flag):  # in their order, flags last
        kind = (item.gathers, str(item.value.dtype), item.value.device.type)
        if item.is_flag and kind not in found:
            for other, parcel in sorted(found.items()):
                if not other[0] and other[2] == kind[2]:
                    item.value = item.value.to(parcel[0].value.dtype)
                    kind = other
                    break
        found.setdefault(kind, []).append(item)
    return [(found[kind], kind[0]) for kind in sorted(found)]


def _send(parcel: Sequence[Item], line: Line, *, gathers: bool) -> None:
    device = parcel[0].value.device
    flat = torch.cat([item.value.reshape(-1) for item in parcel])
    if device.type != line.device.type:  # parameters offloaded to the CPU, processes that talk from GPUs
        flat = flat.to(line.device)
    if gathers:
        size = dist.get_world_size(line.group)
        all_rows = flat.new_empty(size * flat.numel())
        gather_equal(all_rows, flat, line.group)
        flat = all_rows.view(size, -1)
    else:
        dist.all_reduce(flat, group=line.group)
    flat = flat.to(device)
    parts = torch.split(flat, [item.value.numel() for item in parcel], dim=-1)
    for item, part in zip(parcel, parts, strict=True):
        item.value = part.reshape(-1) if gathers else part.reshape(item.value.shape)


@dataclass
class Presence:
    """Whether any process has a gradient for its piece of a tensor: nothing is written where none has.

    The flag goes with the tensor's own messages. A CPU looks at it; on a GPU it becomes a mask, so that the
    host need not wait.
    """

    has_gradient: bool
    left: list[Line]
    """Along which it has not gone yet."""
    found_inf: Tensor | None = None
    """On a GPU: not zero where the step is skipped."""
    count: Tensor | None = None
    counts: bool = True
    """Whether anything may be written, as far as the host knows."""
    mask: Tensor | None = None

    def along(self, lines: Sequence[Line], device: torch.device) -> Item | None:
        """Return what has to go along these lines, if anything."""
        taken = [line for line in self.left if any(line is other for other in lines)]
        if not taken:
            return None
        self.left = [line for line in self.left if not any(line is other for other in taken)]
        count = self.count
        if count is None:
            count = torch.full((1,), float(self.has_gradient), dtype=torch.float32, device=device)
        return Item(count.float(), False, taken, is_flag=True)

    def decide(self) -> bool:
        """Return whether anything may be written; on a GPU always True, and ``store`` masks."""
        count = torch.full((1,), float(self.has_gradient)) if self.count is None else self.count
        if count.device.type == "cpu" and self.found_inf is None:
            self.counts = bool(count > 0)
            return self.counts
        self.mask = (count > 0).reshape(())
        if self.found_inf is not None:
            self.mask = self.mask.to(self.found_inf.device) & (self.found_inf.reshape(()) == 0)
        return True

    def store(self, target: Tensor, value: Tensor) -> None:
        target.copy_(value if self.mask is None else torch.where(self.mask, value, target))


@dataclass
class Work:
    """The stages of one tensor, of tensors that are cut alike, or of all tensors of an ALIAS group."""

    stages: Stages
    tensors: Sequence[Tensor]
    lines: Lines
    presences: Sequence[Presence] = ()
    """Of each tensor; none where the stages see to it."""
    _answers: list[Tensor] | None = None
    _requests: list[Exchange] = field(default_factory=list)
    _items: list[Item] = field(default_factory=list)
    _flags: list[tuple[Presence, Item]] = field(default_factory=list)
    _commits: bool = False

    def proceed(self) -> list[Item]:
        """Run until something has to be sent, and return that; nothing if this is the end."""
        self._take_up()
        while True:
            if self._commits:
                self._commits = False
                decided = [presence.decide() for presence in self.presences]
                if decided and not any(decided):
                    self.stages.close()
                    return []
            try:
                requests = next(self.stages) if self._answers is None else self.stages.send(self._answers)
            except StopIteration:
                return []
            self._answers = []
            if requests is COMMIT:
                self._commits = True
                if flags := self._raise_flags([presence.left for presence in self.presences]):
                    return flags
                continue
            self._requests, self._items = requests, [self._item(request) for request in requests]
            sent = [item for item in self._items if item.lines]
            if not sent:
                self._take_up()
                continue
            return [*sent, *self._raise_flags([self._lines_of(i) for i in range(len(self.presences))])]

    def _lines_of(self, tensor: int) -> list[Line]:
        """Return the lines along which something of a tensor goes now."""
        pairs = zip(self._requests, self._items, strict=True)
        return [line for request, item in pairs if request.tensor == tensor for line in item.lines]

    def _raise_flags(self, lines: Sequence[Sequence[Line]]) -> list[Item]:
        """Have the flag of each tensor go along these lines, where it has not gone yet."""
        for presence, own in zip(self.presences, lines, strict=True):
            if (item := presence.along(own, self.tensors[0].device)) is not None:
                self._flags.append((presence, item))
        return [item for _, item in self._flags]

    def _item(self, request: Exchange) -> Item:
        tensor, buffer = self.tensors[request.tensor], request.buffer
        lines = [self.lines.of(tensor, i) for i, dim in cuts(tensor) if dim in request.dims]
        if not lines:
            return Item(buffer, False, [])
        if request.how == "norm":
            buffer = buffer.double().square()
        elif request.how == "sum":
            buffer = buffer.to(torch.promote_types(tensor.dtype, torch.float32))
        return Item(buffer, request.how == "gather", lines)

    def _take_up(self) -> None:
        """Turn what came back into the answers to the requests."""
        for presence, item in self._flags:
            presence.count = item.value
        self._flags = []
        if self._requests:
            self._answers = [self._answer(*pair) for pair in zip(self._requests, self._items, strict=True)]
            self._requests, self._items = [], []

    def _answer(self, request: Exchange, item: Item) -> Tensor:
        if not item.lines:
            return alone(request)
        if request.how == "norm":
            return item.value.sqrt().to(request.buffer.dtype)
        if request.how == "gather":
            return item.value.reshape(-1, request.buffer.numel())
        return item.value.to(request.buffer.dtype)


def run(works: Sequence[Work]) -> None:
    """Run the stages of all works to their end."""
    live = [(work, work.proceed()) for work in works]
    while live := [(work, items) for work, items in live if items]:
        send([item for _, items in live for item in items])
        live = [(work, items if any(item.left for item in items) else work.proceed()) for work, items in live]
