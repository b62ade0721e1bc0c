"""What ``optimizer.describe()`` returns: the rule and the state bytes of each parameter."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sage_ext import checks, pieces
from sage_ext.optimizers.rule import Rule


@dataclass(frozen=True)
class Row:
    """One parameter."""

    name: str
    """As the model calls it, or its place in the groups."""
    shape: tuple[int, ...]
    """Of the whole parameter."""
    dtype: torch.dtype
    """Of the parameter."""
    rule: str
    """What its group names."""
    state_bytes: int
    """Of this process."""
    placements: str | None = None
    """Where the elements of a DTensor lie."""
    in_stages: bool = False
    """Whether its rule runs in PyTorch, in stages with exchanges between processes."""
    is_frozen: bool = False
    """Whether it has ``requires_grad=False``, no gradient and no state, and so is not stepped."""

    @property
    def numel(self) -> int:
        """Elements, of the whole parameter."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Total:
    """All parameters of one rule."""

    tensors: int
    """How many parameters."""
    numel: int
    """Their elements."""
    state_bytes: int
    """Of this process, with what their groups share."""


@dataclass(frozen=True)
class Setting:
    """What one parameter group runs with."""

    rule: str
    """What the group names."""
    role: str | None
    """Of its parameters in the model, where a hybrid has given them one."""
    hyperparameters: Mapping[str, Any]
    """Name -> value, all of the rule's; for a learning rate on an accelerator its device."""

    def __str__(self) -> str:
        values = ", ".join(f"{name} {_value(value)}" for name, value in self.hyperparameters.items())
        return f"{self.rule}{f' ({self.role})' if self.role else ''}: {values}"


@dataclass(frozen=True)
class Description:
    """What each parameter costs, in the order of the groups, once all but the frozen ones were stepped."""

    rows: tuple[Row, ...]
    """One a parameter."""
    backend: str
    """``"native"`` or ``"reference"``."""
    groups: tuple[Setting, ...] = ()
    """In the order of ``optimizer.param_groups``."""
    shared_bytes: Mapping[str, int] = field(default_factory=dict)
    """Rule -> bytes of what the parameters of its groups share."""

    @property
    def totals(self) -> dict[str, Total]:
        """Totals for each rule."""
        by_rule: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            by_rule[row.rule].append(row)
        return {rule: _total(rows, self.shared_bytes.get(rule, 0)) for rule, rows in by_rule.items()}

    @property
    def total(self) -> Total:
        """Totals over all rules."""
        return _total(self.rows, sum(self.shared_bytes.values()))

    @property
    def state_bytes(self) -> int:
        """Bytes of optimizer state of all parameters."""
        return self.total.state_bytes

    def __str__(self) -> str:
        is_cut = any(row.placements for row in self.rows)
        header = ("parameter", "shape", "dtype", "rule", *(["placements"] if is_cut else []), "state")
        body = [
            (
                row.name,
                "x".join(map(str, row.shape)) or "scalar",
                _dtype(row.dtype),
                row.rule,
                *([row.placements or "-"] if is_cut else []),
                _size(row.state_bytes),
            )
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]
        lines = [_line(header, widths), "  ".join("-" * width for width in widths)]
        lines += [_line(row, widths) for row in body]
        lines.append("")
        everything = [*self.totals.items()]
        if len(everything) > 1:
            everything.append(("all", self.total))
        for rule, total in everything:
            size = _size(total.state_bytes)
            lines.append(
                f"{rule:8} {total.tensors:6} tensors {total.numel:14,} parameters {size:>11} of state"
            )
        lines += [f"group {index}: {setting}" for index, setting in enumerate(self.groups)]
        if any(row.placements for row in self.rows):
            lines.append("state is that of this process")
        if frozen := [row for row in self.rows if row.is_frozen]:
            numel = sum(row.numel for row in frozen)
            lines.append(
                f"{len(frozen)} tensors with {numel:,} parameters are frozen (requires_grad=False): no state"
            )
        if staged := [row for row in self.rows if row.in_stages]:
            lines.append(f"{len(staged)} tensors are stepped with exchanges between processes")
        lines.append(f"backend: {self.backend}")
        return "\n".join(lines)


def describe(
    groups: Sequence[Mapping[str, Any]], rules: Mapping[str, Rule], state: Mapping[Any, Any], backend: str
) -> Description:
    """Return the description of an optimizer. It looks at shapes and dtypes only: meta tensors will do."""
    rows: list[Row] = []
    shared: defaultdict[str, int] = defaultdict(int)
    settings: list[Setting] = []
    for index, group in enumerate(groups):
        rule = rules[group["rule"]]
        settings.append(_setting(group, rule))
        for spec in rule.shared_layout(group).values():
            shared[rule.name] += spec.nbytes
        staged: set[int] = set()
        if cut := pieces.has_pieces(group["params"]):
            from sage_ext.distributed.team import staged as in_stages_of

            staged = set(map(id, in_stages_of(group["params"], rule)))
        names = checks.names_of(group) or [f"group {index}, param {i}" for i in range(len(group["params"]))]
        for name, param in zip(names, group["params"], strict=True):
            held = state.get(param)
            is_frozen = not (held or param.requires_grad or param.grad is not None)
            if is_frozen:
                size = 0
            elif held:
                size = sum(pieces.local(held[key]).nbytes for key in rule.state_keys if key in held)
            elif pieces.is_piece(param):
                from sage_ext.distributed.sharded import state_bytes

                size = state_bytes(param, rule, group)
            else:
                size = sum(spec.nbytes for spec in rule.state_layout(param, group).values())
            place, in_stages = None, False
            if cut:
                from sage_ext.distributed import placements

                place = placements.describe(param) if pieces.is_piece(param) else None
                in_stages = id(param) in staged
            shape = tuple(param.shape)
            rows.append(Row(name, shape, param.dtype, rule.name, size, place, in_stages, is_frozen))
    return Description(tuple(rows), backend, tuple(settings), dict(shared))


def _setting(group: Mapping[str, Any], rule: Rule) -> Setting:
    values = {name: group[name] for name in rule.defaults if name != "capturable"}
    for name, value in values.items():
        if isinstance(value, Tensor):
            values[name] = float(value) if value.device.type == "cpu" else f"on {value.device}"
    return Setting(rule.name, group.get("role"), values)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).removeprefix("torch.")


def _total(rows: Sequence[Row], shared_bytes: int) -> Total:
    return Total(
        len(rows), sum(row.numel for row in rows), shared_bytes + sum(row.state_bytes for row in rows)
    )


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    *left, last = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "  ".join([*left, last.strip().rjust(widths[-1])])


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} B"
    for unit, power in (("KiB", 1), ("MiB", 2)):
        if count < 1024 ** (power + 1):
            return f"{count / 1024**power:.1f} {unit}"
    return f"{count / 1024**3:.2f} GiB"
