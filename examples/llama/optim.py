"""How an optimizer is chosen, ``NAME[:KEY=VALUE]...``, with a name of ``rows.py``; what is asked of one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .errors import UsageError
from .rows import ROWS, Row


@dataclass(frozen=True)
class Choice:
    """An optimizer and its settings. ``label`` is the name, with the settings that the user gave."""

    name: str
    settings: dict[str, Any]
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> Row:
        return ROWS[self.name]

    @property
    def label(self) -> str:
        given = ", ".join(f"{key}={_show(value)}" for key, value in self.given.items())
        return f"{self.name} ({given})" if given else self.name

    @property
    def spec(self) -> str:
        return ":".join([self.name, *(f"{key}={_show(value)}" for key, value in self.given.items())])


def parse(spec: str) -> Choice:
    """Reads ``name`` or ``name:key=value:key=value``; a pair of numbers is written ``0.9/0.95``."""
    name, *pairs = spec.strip().split(":")
    if name not in ROWS:
        raise UsageError(
            f"--optimizer {spec}: there is no optimizer called {name!r}; choose from {', '.join(ROWS)}"
        )
    defaults = ROWS[name].defaults
    given = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key not in defaults:
            raise UsageError(
                f"--optimizer {spec}: {pair!r} is not one of its settings, {_settings_help(defaults)}"
            )
        given[key] = _read(spec, key, text, defaults[key])
    return Choice(name, {**defaults, **given}, given)


def build(choice: Choice, model: nn.Module, *, backend: str = "auto") -> Optimizer:
    """The optimizer for ``model``. ``backend`` goes to this library's own; torch's have no choice of it."""
    try:
        return choice.row.build(model, backend=backend, **choice.settings)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--optimizer {choice.spec}: {error}") from error


def is_ours(optimizer: Optimizer) -> bool:
    """Whether it is of this library: ``step`` takes the loss then, and ``step_size`` says how far it went."""
    return hasattr(optimizer, "step_size")


def step_sizes(optimizer: Optimizer) -> dict[str, float]:
    """How far the last step went: what an optimizer of this library says, else the learning rate.

    By role, ``"embedding (adamw)"``, where the groups have one, else by rule. To be asked before the
    scheduler moves on. Groups without a role differ in weight decay alone, so the first speaks for all.
    """
    sizes: dict[str, float] = {}
    for index, group in enumerate(optimizer.param_groups):
        rule = group.get("rule", type(optimizer).__name__)
        name = f"{group['role']} ({rule})" if "role" in group else rule
        if name not in sizes:
            sizes[name] = optimizer.step_size(index) if is_ours(optimizer) else float(group["lr"])
    return sizes


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of all tensors that the optimizer really holds as state in this process; storage that is shared
    counts once.

    What the parameters of a group share, as ALIAS's scalars, is in the group itself.
    """
    shared = [
        {key: value for key, value in group.items() if key not in ("params", "lr")}
        for group in optimizer.param_groups
    ]
    storages = {}
    for state in (*optimizer.state.values(), *shared):
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value = value.to_local() if hasattr(value, "to_local") else value
                storage = value.untyped_storage()
                storages[storage.data_ptr()] = max(storage.nbytes(), storages.get(storage.data_ptr(), 0))
    return sum(storages.values())


def table() -> str:
    """The rows for ``--help``."""
    width = max(map(len, ROWS))
    lines = []
    for name, row in ROWS.items():
        values = " ".join(f"{key}={_show(value)}" for key, value in row.defaults.items())
        lines.append(
            f"  {name:<{width}}  {row.about}\n  {'':<{width}}  {values}{' (tuned)' if row.tuned else ''}"
        )
    return "\n".join(lines)


def _read(spec: str, key: str, text: str, default: Any) -> Any:
    try:
        if isinstance(default, tuple):
            first, second = text.split("/")
            return (float(first), float(second))
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, str):
            return text
        value = type(default)(text)
        if not math.isfinite(value):
            raise ValueError
        return value
    except (ValueError, KeyError):
        kinds = {
            tuple: "two numbers, as 0.9/0.95",
            bool: "true or false",
            int: "a whole number",
            float: "a number",
        }
        raise UsageError(f"--optimizer {spec}: {key} must be {kinds[type(default)]}, not {text!r}") from None


def _settings_help(defaults: dict[str, Any]) -> str:
    return "which are " + ", ".join(f"{key} ({_show(value)})" for key, value in defaults.items())


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(_show(part) for part in value)
    return (
        f"{value:g}"
        if isinstance(value, float)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
