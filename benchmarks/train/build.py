"""From the parameter groups of a configuration to optimizers that step a model."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from llama.optim import state_bytes as _tensor_bytes
from torch import nn
from torch.optim import Optimizer

NOT_SETTINGS = frozenset({"by", "roles"})


def optimizers(model: nn.Module, groups: list[dict[str, Any]]) -> list[Optimizer]:
    """One optimizer for each ``by`` that the groups name, over the parameters of the roles they name.

    Raises:
        ValueError: a role of the model is in no group or in two.
    """
    from sage_ext import routing

    routed = routing.route(model)
    owners = [role for group in groups for role in group["roles"]]
    roles = {entry.role for entry in routed}
    if len(set(owners)) != len(owners) or not roles <= set(owners):
        raise ValueError(f"groups: roles {sorted(owners)}, expected each of {sorted(roles)} once")
    made: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        params = [entry.param for entry in routed if entry.role in group["roles"]]
        settings = {key: _value(value) for key, value in group.items() if key not in NOT_SETTINGS}
        made.setdefault(group["by"], []).append({"params": params, **settings})
    return [_build(by, of) for by, of in made.items()]


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # JSON has no tuples


def _build(by: str, groups: list[dict[str, Any]]) -> Optimizer:
    if by == "sage_ext":
        from sage_ext.optimizers import FusedHybrid

        return FusedHybrid(groups, preset="sage")  # every group has a rule: the preset says nothing
    module, _, name = by.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    if by == "torch.optim.AdamW":
        return cls(groups, fused=True)
    if len(groups) == 1:
        # Several of these take settings from their arguments alone.
        (group,) = groups
        return cls(group.pop("params"), **group)
    first = groups[0]
    shared = {key: value for key, value in first.items() if all(key in group for group in groups)}
    shared.pop("params")
    return cls(groups, **shared)


def state_bytes(optimizers: Iterable[Optimizer]) -> int:
    """Bytes that the optimizers keep from step to step, tensors inside of objects (a projection) too."""
    total = 0
    for optimizer in optimizers:
        total += _tensor_bytes(optimizer)
        for state in optimizer.state.values():
            for value in state.values():
                if not isinstance(value, torch.Tensor) and hasattr(value, "__dict__"):
                    total += sum(_bytes(held) for held in vars(value).values())
    return total


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0
