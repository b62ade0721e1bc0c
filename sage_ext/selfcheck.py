"""A small step of every rule, native against reference: what ``python -m sage_ext`` runs to see that it
works."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sage_ext import reference
from sage_ext.optimizers.hybrid import RULES
from sage_ext.optimizers.rule import Rule

# Sizes that reach the vector body, its tail, and more than one chunk of rows.
_SHAPES = ((37, 129), (3, 20, 17))
_STEPS = 3
# Hyperparameters beside the defaults that choose other kernels.
_VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "sign_sgd": ({"momentum": 0.9},),
    "scale": ({"momentum": 0.9}, {"dim": 0}, {"dim": 0, "momentum": 0.9}),
    "alias": ({"memory_efficient": False}, {"gap": "lower_bound"}, {"smoothness": "sum"}),
}
# Both sides compute in float32 and round in another order: a few units in the last place, of values of order
# one.
_TOLERANCE = 2e-6


def run(native: ModuleType, device: torch.device | str = "cpu") -> dict[str, float]:
    """Return, for each rule, the largest difference between native and reference parameters after a few
    steps.

    Raises:
        Whatever the native module raises; a difference above the tolerance is the caller's to judge
        (``is_good``).
    """
    return {name: _difference(rule, native, torch.device(device)) for name, rule in RULES.items()}


def is_good(difference: float) -> bool:
    """Whether a difference that ``run`` returned is rounding. A NaN is not."""
    return difference <= _TOLERANCE


def _difference(rule: Rule, native: ModuleType, device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator).to(device) for shape in _SHAPES]
    grads = [[torch.randn(shape, generator=generator).to(device) for shape in _SHAPES] for _ in range(_STEPS)]
    ends: list[list[Tensor]] = []
    for module in (native, reference):
        params: list[Tensor] = []
        for changes in ({}, *_VARIANTS.get(rule.name, ())):
            moved = [param.clone() for param in start]
            _steps(rule, getattr(module, f"{rule.name}_"), moved, grads, {**rule.defaults, **changes})
            params += moved
        ends.append(params)
    return max(float((a - b).abs().max()) for a, b in zip(*ends, strict=True))


def _steps(
    rule: Rule, function: Any, params: list[Tensor], grads: list[list[Tensor]], group: dict[str, Any]
) -> None:
    states = [rule.init_state(param, group) for param in params]
    shared = [[value.to(params[0].device)] for value in rule.init_shared(group).values()]
    kept = rule.kept_keys(group)
    loss = {"loss": 1.0} if rule.takes_loss(group) else {}
    for step_grads in grads:
        function(
            params,
            step_grads,
            *([state[key] for state in states] if key in kept else [] for key in rule.state_keys),
            *shared,
            **rule.arguments(group),
            **loss,
        )
