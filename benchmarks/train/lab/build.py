"""From the parameter groups of a configuration to optimizers that step a model."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

NOT_SETTINGS = frozenset({"by", "roles", "names", "shape_rule", "constraint"})


def optimizers(model: nn.Module, groups: list[dict[str, Any]]) -> list[Optimizer]:
    """One optimizer for each ``by`` that the groups name, over the parameters of the roles they name; of a
    group with ``names``, over those alone.

    Raises:
        ValueError: a parameter of the model is in no group or in two.
    """
    from sage_ext import routing

    routed = routing.route(model)
    for entry in routed:
        owners = [group for group in groups if _owns(group, entry)]
        if len(owners) != 1:
            raise ValueError(f"groups: {entry.name}, of role {entry.role}, is in {len(owners)} of them")
    made: dict[str, list[dict[str, Any]]] = {}
    held: set[nn.Parameter] = set()
    for group in groups:
        params = [entry.param for entry in routed if _owns(group, entry)]
        settings = {key: _value(key, value) for key, value in group.items() if key not in NOT_SETTINGS}
        for factor, of in _by_factor(params, group.get("shape_rule")).items():
            made.setdefault(group["by"], []).append({"params": of, **settings, "lr": settings["lr"] * factor})
        if group.get("constraint") == "sphere":
            held |= set(params)
    optimizers = [_build(by, of) for by, of in made.items()]
    for optimizer in optimizers:
        on_sphere(optimizer, held)
    return optimizers


def _by_factor(params: list[nn.Parameter], rule: dict[str, Any] | None) -> dict[float, list[nn.Parameter]]:
    """The parameters by the factor on their rate."""
    if rule is None:
        return {1.0: params}
    made: dict[float, list[nn.Parameter]] = {}
    for param in params:
        made.setdefault(shape_factor(rule["rule"], tuple(param.shape), rule["width"]), []).append(param)
    return made


def shape_factor(rule: str, shape: tuple[int, int], width: int) -> float:
    """What a rate is multiplied by for a matrix ``[rows, columns]``; 1 for a square one of ``width``.

    "rms": 1, so that updates of all shapes have the same root mean square. "unit": SinkGD's unit form,
    1 / sqrt(rows). "fan-in": 1 / columns. "spectral": the update's largest singular value goes as
    sqrt(rows / columns), where a full-rank update's of root mean square 1 is sqrt(rows) + sqrt(columns).
    """
    rows, columns = shape
    if rule == "rms":
        return 1.0
    if rule == "unit":
        return math.sqrt(width / rows)
    if rule == "fan-in":
        return width / columns
    if rule == "spectral":
        return math.sqrt(rows / columns) * 2 * math.sqrt(width) / (math.sqrt(rows) + math.sqrt(columns))
    raise ValueError(f"shape_rule: got {rule!r}, expected 'rms', 'unit', 'fan-in' or 'spectral'")


def _owns(group: dict[str, Any], entry: Any) -> bool:
    return entry.role in group["roles"] and entry.name in group.get("names", (entry.name,))


def _value(key: str, value: Any) -> Any:
    if key == "state_dtype" and isinstance(value, str):  # JSON has no dtypes
        return getattr(torch, value)
    return tuple(value) if isinstance(value, list) else value  # nor tuples


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


def on_sphere(optimizer: Optimizer, held: set[nn.Parameter]) -> None:
    """Keeps the Frobenius norm of the parameters in ``held``: after a step, its part along the parameter is
    taken out and the result scaled to the norm from before. Eager: for the question what it does to a loss.
    """
    params = [p for group in optimizer.param_groups for p in group["params"] if p in held]
    if not params:
        return
    norms = {p: p.detach().norm() for p in params}
    before: list[torch.Tensor] = []

    def remember(*_: Any) -> None:
        before[:] = [p.detach().clone() for p in params]

    @torch.no_grad()
    def hold(*_: Any) -> None:
        for p, old in zip(params, before, strict=True):
            update = p - old
            update -= (update * old).sum() / norms[p] ** 2 * old
            moved = old + update
            p.copy_(moved * (norms[p] / moved.norm()))

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(hold)


def settings(optimizers: Iterable[Optimizer]) -> dict[str, list[dict[str, Any]]]:
    """Class -> its groups with every hyperparameter that they have, those that nobody gave too."""
    simple = (bool, int, float, str, type(None), list, tuple)
    return {
        type(optimizer).__name__: [
            {
                key: _written(value)
                for key, value in group.items()
                if key != "params" and isinstance(value, simple) and not _holds_tensors(value)
            }
            for group in optimizer.param_groups
        ]
        for optimizer in optimizers
    }


def _written(value: Any) -> Any:
    """JSON has no infinity, which is Prodigy's largest growth of d: "inf"."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(item, torch.Tensor) for item in value)


def state_bytes(optimizers: Iterable[Optimizer]) -> int:
    """Bytes of all tensors that the optimizers keep from step to step; storage that is shared counts once.

    Some keep them in their groups, in lists or inside of objects (a projection): all of that is looked into.
    """
    storages: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for key, inner in value.items():
                if key not in ("params", "lr"):
                    visit(inner)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                visit(inner)
        elif hasattr(value, "__dict__"):
            visit(vars(value))

    for optimizer in optimizers:
        for state in optimizer.state.values():
            visit(state)
        for group in optimizer.param_groups:
            visit(group)
    return sum(storages.values())
