"""What an optimizer costs one device: bytes that it holds, that a step moves and sends, and its time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from sage_ext.planning import workspaces
from sage_ext.planning.exchanges import GATHER, Message, Spread, messages
from sage_ext.planning.hardware import Cluster, lines_of, on_the_wire, seconds
from sage_ext.planning.sources import Group, Part
from sage_ext.planning.traffic import SIGN, moved_of_piece


@dataclass(frozen=True)
class Target:
    """Where the step will run."""

    cluster: Cluster | None
    """None: a CPU."""
    bandwidth: float | None
    """Of the memory, in bytes a second, if it is known."""
    threads: int
    """That a CPU steps with."""


@dataclass(frozen=True)
class GroupCost:
    """A parameter group. Bytes are those of the device that has most."""

    rule: str
    """What the group names."""
    role: str | None
    """Of its parameters in the model, where a hybrid has given them one."""
    tensors: int
    """How many parameters."""
    numel: int
    """Elements of the whole parameters."""
    parameter_bytes: int
    """Of parameters."""
    gradient_bytes: int
    """Of gradients."""
    state_bytes: int
    """Of optimizer state."""
    scratch_bytes: int
    """That the kernels allocate for its step."""
    moved_bytes: int
    """That its step reads and writes in memory."""


@dataclass(frozen=True)
class Budget:
    """An optimizer on one device: the one that has most, where parameters are cut."""

    name: str
    """Of the optimizer."""
    groups: tuple[GroupCost, ...]
    """In the order of its parameter groups."""
    transient_bytes: int
    """The most that a step allocates beside parameters, gradients and state. That is scratch of the kernels,
    and what is exchanged; what a communication library keeps is not in it."""
    messages: int
    """Collective calls a step."""
    message_bytes: int
    """That this device puts into them."""
    sent_bytes: int
    """That it sends for them, by ring."""
    memory_seconds: float | None
    """Time for ``moved_bytes`` at the bandwidth of the memory; None where that is not known."""
    exchange_seconds: float | None
    """Time for its messages, one after the other; None where nothing is known of the links."""

    @property
    def parameter_bytes(self) -> int:
        """Of parameters."""
        return sum(group.parameter_bytes for group in self.groups)

    @property
    def gradient_bytes(self) -> int:
        """Of gradients, in the dtype of their parameters."""
        return sum(group.gradient_bytes for group in self.groups)

    @property
    def state_bytes(self) -> int:
        """Of optimizer state."""
        return sum(group.state_bytes for group in self.groups)

    @property
    def state_by_rule(self) -> dict[str, int]:
        """Rule -> bytes of its states."""
        found: dict[str, int] = {}
        for group in self.groups:
            found[group.rule] = found.get(group.rule, 0) + group.state_bytes
        return found

    @property
    def moved_bytes(self) -> int:
        """That a step reads and writes in memory."""
        return sum(group.moved_bytes for group in self.groups)

    @property
    def peak_bytes(self) -> int:
        """The most that is held in a step, with parameters, gradients, state and what the step allocates."""
        return self.parameter_bytes + self.gradient_bytes + self.state_bytes + self.transient_bytes

    @property
    def seconds(self) -> float | None:
        """Predicted time of a step. Launches, the host's time and the model's own messages are not in it."""
        if self.memory_seconds is None or self.exchange_seconds is None:
            return None
        return self.memory_seconds + self.exchange_seconds

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers, in bytes and seconds, as JSON takes them."""
        names = ("parameter", "gradient", "state", "transient", "peak", "moved", "message", "sent")
        return {
            "name": self.name,
            **{f"{name}_bytes": getattr(self, f"{name}_bytes") for name in names},
            "state_bytes_by_rule": self.state_by_rule,
            "messages": self.messages,
            "memory_seconds": self.memory_seconds,
            "exchange_seconds": self.exchange_seconds,
            "seconds": self.seconds,
            "groups": [vars(group) for group in self.groups],
        }


def budget(name: str, groups: Sequence[Group], mesh: Sequence[int], target: Target) -> Budget:
    """Return what a step of these groups costs.

    Args:
        mesh: sizes of the mesh on which parameters lie, for the time of messages.
    """
    costs = tuple(_cost(group, target) for group in groups)
    sent = messages([(g.rule.name, g.settings, [part.piece for part in g.parts]) for g in groups])
    moved = sum(cost.moved_bytes for cost in costs)
    sizes = [mesh[message.mesh_dim] for message in sent]
    wire = sum(_on_the_wire(message, size) for message, size in zip(sent, sizes, strict=True))
    return Budget(
        name=name,
        groups=costs,
        transient_bytes=_transient(groups, sent, sizes, target),
        messages=len(sent),
        message_bytes=sum(message.nbytes for message in sent),
        sent_bytes=round(wire),
        memory_seconds=None if target.bandwidth is None else moved / target.bandwidth,
        exchange_seconds=_exchange_seconds(sent, mesh, target.cluster),
    )


def _on_the_wire(message: Message, size: int) -> float:
    return on_the_wire(message, lines_of((size,))[0])


def _exchange_seconds(sent: Sequence[Message], mesh: Sequence[int], cluster: Cluster | None) -> float | None:
    if not sent:
        return 0.0
    if cluster is None:
        return None
    lines = lines_of(mesh, cluster)
    return sum(seconds(message, lines[message.mesh_dim], cluster) for message in sent)


# ------------------------------------------------------------------------------------------ bytes of a group


def _cost(group: Group, target: Target) -> GroupCost:
    held = sum(part.numel * part.dtype.itemsize for part in group.parts)
    state = sum(part.state_bytes(group.rule, group.settings) for part in group.parts)
    state += sum(spec.nbytes for spec in group.rule.shared_layout(group.settings).values())
    whole, staged = _by_way(group)
    return GroupCost(
        rule=group.rule.name,
        role=group.role,
        tensors=len(group.parts),
        numel=sum(prod(part.piece.shape) for part in group.parts),
        parameter_bytes=held,
        gradient_bytes=held,
        state_bytes=state,
        scratch_bytes=max(_scratch(group, whole, target), _scratch_of_pieces(group, staged, target)),
        moved_bytes=round(sum(_moved(group, part) for part in group.parts)),
    )


def _moved(group: Group, part: Part) -> float:
    layout = part.layout(group.rule, group.settings)

    def width(key: str) -> float:
        return float((layout[key].dtype if key in layout else part.dtype).itemsize)

    per_element = moved_of_piece(
        group.rule.name, group.settings, part.piece, width, is_packed=not part.is_piece
    )
    return per_element * part.numel


def _by_way(group: Group) -> tuple[list[Part], list[Part]]:
    """Return the parts that are stepped as they are, and those in stages, with exchanges in between."""
    rule = group.rule
    if rule.is_elementwise:
        return list(group.parts), []
    found = [part for part in group.parts if part.is_piece and (part.is_cut or "signs" in rule.state_keys)]
    if found and rule.shared_keys:
        return [], list(group.parts)
    staged = set(map(id, found))
    return [part for part in group.parts if id(part) not in staged], found


# ---------------------------------------------------------------------------------------------- scratch


def _local(parts: Iterable[Part]) -> list[tuple[int, ...]]:
    return [part.piece.local for part in parts]


def _itemsize(parts: Iterable[Part]) -> int:
    """Of the gradients. Of several, the widest needs the most scratch."""
    return max((part.dtype.itemsize for part in parts), default=4)


def _scratch(group: Group, parts: Sequence[Part], target: Target) -> int:
    """Return what the kernels allocate for whole parameters."""
    rule, local, size = group.rule.name, _local(parts), _itemsize(parts)
    on_cpu = target.cluster is None
    if not parts:
        return 0
    if rule == "sage":
        return workspaces.sage_cpu(local) if on_cpu else workspaces.sage_cuda(local, size)
    if rule == "sinkgd":
        if on_cpu:
            return workspaces.sinkgd_cpu(local, size, target.threads)
        return workspaces.sinkgd_cuda(local, size)
    if rule == "scale":
        return _scale(group, parts, on_cpu)
    numels = [part.numel for part in parts]
    if on_cpu:  # at most a few numbers for 65,536 elements
        return 0
    if rule == "alias":
        return workspaces.alias_cuda(numels, (32, 8), 1)
    if rule == "alias_adam":
        return workspaces.alias_cuda(numels, (8,), 0)
    return 4 * len(parts) if rule == "adamw" else 0


def _scratch_of_pieces(group: Group, parts: Sequence[Part], target: Target) -> int:
    """Return what stages keep from the first to the last: scratch, and the sums that are exchanged."""
    rule, local, size = group.rule.name, _local(parts), _itemsize(parts)
    on_cpu = target.cluster is None
    if not parts:
        return 0
    if rule in ("alias", "alias_adam"):
        return _packed_signs(group, parts)
    buffers = sum(_sums(group, part.piece) for part in parts)
    if rule == "sage":
        return buffers + (
            workspaces.sage_cpu(local) if on_cpu else workspaces.sage_cuda(local, size, is_cut=True)
        )
    if rule == "sinkgd":
        return buffers + (
            workspaces.sinkgd_stages_cpu(local) if on_cpu else workspaces.sinkgd_cuda(local, size)
        )
    return buffers + _scale(group, parts, on_cpu)


def _scale(group: Group, parts: Sequence[Part], on_cpu: bool) -> int:
    local, dim = _local(parts), group.settings["dim"]
    if on_cpu:
        return workspaces.scale_cpu(local, dim)
    layouts = [part.layout(group.rule, group.settings) for part in parts]
    widest = max((spec.dtype.itemsize for layout in layouts for spec in layout.values()), default=0)
    return workspaces.scale_cuda(local, dim, max(widest, _itemsize(parts)))


def _sums(group: Group, piece: Spread) -> int:
    """Bytes of the buffers that a piece's sums go into: make_buffers() of csrc/ops."""
    local, ndim = piece.local, len(piece.shape)
    if group.rule.name == "sage":
        _, columns = workspaces.sage_matrix(local)
        return 4 * columns + 16
    matrices, rows, columns = workspaces.trailing_matrices(local)
    if group.rule.name == "sinkgd":
        return matrices * (8 * rows + (8 + 4) * columns)  # the first iteration's are in fp64
    reduced = ndim + group.settings["dim"] - 2
    if reduced not in piece.cuts:  # nothing is exchanged
        return 0
    return 8 * matrices * (columns if group.settings["dim"] == 0 else rows)


def _packed_signs(group: Group, parts: Sequence[Part]) -> int:
    """Bit planes of all signs, and of one tensor's what they are unpacked through: bfloat16, then int8."""
    kept = group.rule.kept_keys(group.settings)
    if "signs" not in kept:
        return 0
    packed = [part.numel for part in parts if part.is_piece]
    return round(SIGN * sum(packed) + (SIGN + 3) * max(packed, default=0))


def _transient(
    groups: Sequence[Group],
    sent: Sequence[Message],
    sizes: Sequence[int],
    target: Target,
) -> int:
    """Groups of whole tensors are stepped one after the other; what runs in stages runs together.

    A message is put together in memory of its own. What came of the last is there until the next has come,
    and what came of the first to the end: in it is the number that says whether a tensor has a gradient.
    """
    alone = max((_scratch(group, _by_way(group)[0], target) for group in groups), default=0)
    together = sum(_scratch_of_pieces(group, _by_way(group)[1], target) for group in groups)
    flat = [
        message.nbytes * (1 + size if message.how == GATHER else 1)
        for message, size in zip(sent, sizes, strict=True)
    ]
    held = [
        sum({0: flat[0], max(k - 1, 0): flat[max(k - 1, 0)], k: flat[k]}.values()) for k in range(len(flat))
    ]
    return max(alone, together + max(held, default=0))
