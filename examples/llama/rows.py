"""The optimizers that ``--optimizer`` knows, one row each. To add one, add its row to ``ROWS``.

Where a row says "tuned", its rates are what ``lr_grid.py`` found best for the demo's model, text and steps,
with as many runs as every other such row; the others are usual starting points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

Build = Callable[..., Optimizer]  # build(model, backend=..., **settings)

# Role -> the setting that is its learning rate.
RATES = {"embedding": "embedding_lr", "matrix": "lr", "lm_head": "head_lr", "vector": "vector_lr"}


@dataclass(frozen=True)
class Row:
    build: Build
    about: str
    defaults: dict[str, Any]
    tuned: bool = False


def _rates(embedding: float, matrix: float, head: float, vector: float) -> dict[str, float]:
    return dict(zip(RATES.values(), (embedding, matrix, head, vector), strict=True))


def _by_role(
    model: nn.Module, rates: dict[str, float], weight_decay: float, tied: str = "embedding"
) -> list[dict[str, Any]]:
    """One group a role that the model has, with its rate. Gains and biases do not decay."""
    from sage_ext.routing import route

    routed = route(model, tied=tied)
    return [
        {
            "params": [(entry.name, entry.param) for entry in routed if entry.role == role],
            "role": role,
            "lr": rates[name],
            "weight_decay": 0.0 if role == "vector" else weight_decay,
        }
        for role, name in RATES.items()
        if any(entry.role == role for entry in routed)
    ]


def _take_rates(settings: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    return (
        {name: settings[name] for name in RATES.values()},
        {name: value for name, value in settings.items() if name not in RATES.values()},
    )


def _torch_by_role(name: str, **fixed: Any) -> Build:
    def make(model: nn.Module, *, backend: str, weight_decay: float, **settings: Any) -> Optimizer:
        import torch

        del backend
        rates, others = _take_rates(settings)
        groups = [
            {**group, "params": [param for _, param in group["params"]]}
            for group in _by_role(model, rates, weight_decay)
        ]
        return getattr(torch.optim, name)(groups, **fixed, **others)

    return make


def _mix(*, embedding: str, matrix: str, lm_head: str, vector: str, tied: str = "embedding") -> Build:
    """``FusedHybrid`` with a rule and a rate for each role; ``tied`` is the role of a tied head.

    Every hyperparameter of a group is said: the rule's own default where the settings have no such name.
    """
    rules = {"embedding": embedding, "matrix": matrix, "lm_head": lm_head, "vector": vector}

    def make(model: nn.Module, *, backend: str, weight_decay: float, **settings: Any) -> Optimizer:
        from sage_ext.optimizers import FusedHybrid

        rates, others = _take_rates(settings)
        groups = []
        for group in _by_role(model, rates, weight_decay, tied):
            rule = rules[group["role"]]
            known = FusedHybrid.rules[rule].defaults
            said = {**known, **{name: value for name, value in others.items() if name in known}}
            if rule == "scale":  # as its paper has it: one output unit each, momentum on the head alone
                said["dim"] = 0 if group["role"] == "embedding" else 1
                said["momentum"] = said["momentum"] if group["role"] == "lm_head" else 0.0
            groups.append({**said, **group, "rule": rule})
        return FusedHybrid(groups, backend=backend)

    return make


def _matrices_decay(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The usual two groups: weight decay on the matrices, none on gains and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _torch(name: str, **fixed: Any) -> Build:
    def make(model: nn.Module, *, backend: str, weight_decay: float = 0.0, **settings: Any) -> Optimizer:
        import torch

        del backend
        return getattr(torch.optim, name)(_matrices_decay(model, weight_decay), **fixed, **settings)

    return make


def _library(name: str) -> Build:
    def make(model: nn.Module, *, backend: str, weight_decay: float = 0.0, **settings: Any) -> Optimizer:
        import sage_ext.optimizers

        cls = getattr(sage_ext.optimizers, name)
        return cls(_matrices_decay(model, weight_decay), backend=backend, **settings)

    return make


def _sage_preset(
    model: nn.Module, *, backend: str, alpha: float, betas: Any, weight_decay: float, lr: float
) -> Optimizer:
    from sage_ext.optimizers import FusedHybrid

    sinkgd, sage = ({"weight_decay": weight_decay, **own} for own in ({"alpha": alpha}, {"betas": betas}))
    return FusedHybrid(model, preset="sage", lr=lr, backend=backend, sinkgd=sinkgd, sage=sage)


def _alias(**form: Any) -> Build:
    """``FusedALIAS``, whose step size belongs to a group: one for all tensors, the 1-D ones included.

    A scheduler's learning rate matters during its warm-up alone, where it rises to ``max_step``.
    """

    def make(model: nn.Module, *, backend: str, **settings: Any) -> Optimizer:
        from sage_ext.optimizers import FusedALIAS

        parameters = [p for p in model.parameters() if p.requires_grad]
        return FusedALIAS(parameters, lr=settings["max_step"], backend=backend, **form, **settings)

    return make


def _alias_preset(model: nn.Module, *, backend: str, lr: float, **settings: Any) -> Optimizer:
    """The preset "alias"; ``lr`` is of AdamW on the head. A tied head counts as embedding and has ALIAS."""
    from sage_ext.optimizers import FusedHybrid

    rates = {"adamw": lr, "alias": settings["max_step"]}
    return FusedHybrid(model, preset="alias", lr=rates, backend=backend, alias=settings)


# SinkGD moves an element by about lr * alpha. Two iterations train as well here as the paper's five.
_SINKGD = {"alpha": 0.015, "iterations": 2}

ROWS: dict[str, Row] = {
    "sage-hybrid": Row(
        _mix(embedding="sage", matrix="sinkgd", lm_head="sage", vector="sage"),
        "SAGE on embedding, head and 1-D, SinkGD on the rest",
        {**_rates(8e-3, 4e-2, 5e-4, 1e-3), **_SINKGD, "betas": (0.9, 0.99), "weight_decay": 0.01},
        tuned=True,
    ),
    "sage-preset": Row(
        _sage_preset,
        "the library's preset: the same with one rate for all and SinkGD in the unit form",
        {"lr": 1e-3, "alpha": 10.0, "betas": (0.9, 0.99), "weight_decay": 0.01},
    ),
    "lion-hybrid": Row(
        _mix(embedding="lion", matrix="sinkgd", lm_head="lion", vector="lion"),
        "Lion on embedding, head and 1-D, SinkGD on the rest",
        {**_rates(4e-3, 2e-2, 5e-4, 1e-3), **_SINKGD, "betas": (0.9, 0.99), "weight_decay": 0.01},
    ),
    "sinkgd-hybrid": Row(
        _mix(embedding="adamw", matrix="sinkgd", lm_head="adamw", vector="adamw"),
        "AdamW on embedding, head and 1-D, SinkGD on the rest",
        {**_rates(2e-2, 2e-2, 1e-3, 1e-3), **_SINKGD, "betas": (0.9, 0.95), "weight_decay": 0.0},
    ),
    "sinkgd-scale": Row(
        _mix(embedding="adamw", matrix="sinkgd", lm_head="scale", vector="adamw"),
        "AdamW on embedding and 1-D, SCALE with momentum on the head, SinkGD on the rest",
        {
            **_rates(4e-2, 4e-2, 3e-4, 1e-3),
            **_SINKGD,
            "momentum": 0.9,
            "betas": (0.9, 0.95),
            "weight_decay": 0.0,
        },
        tuned=True,
    ),
    "scale": Row(
        _mix(embedding="scale", matrix="scale", lm_head="scale", vector="adamw", tied="lm_head"),
        "SCALE on every matrix, with momentum on the head, AdamW on 1-D",
        {**_rates(3.2e-2, 3e-4, 3e-4, 1e-3), "momentum": 0.9, "betas": (0.9, 0.95), "weight_decay": 0.0},
        tuned=True,
    ),
    "sage": Row(
        _library("FusedSAGE"), "SAGE on everything", {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.01}
    ),
    "lion": Row(
        _library("FusedLion"), "Lion on everything", {"lr": 3e-4, "betas": (0.9, 0.99), "weight_decay": 0.1}
    ),
    "signsgd": Row(
        _library("FusedSignSGD"),
        "Sign-SGD on everything; Signum with a momentum",
        {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.01},
    ),
    "alias": Row(
        _alias_preset,
        "ALIAS finds the step size for all but the head, which has AdamW",
        {"lr": 1e-3, "max_step": 1e-3, "d0": 1e-6, "warmup_steps": 0, "weight_decay": 0.0},
    ),
    "alias-descent": Row(
        _alias(),
        "ALIAS on everything, memory-efficient: two bits of state a number",
        {"max_step": 1e-3, "d0": 1e-6, "warmup_steps": 0, "update_every": 1, "weight_decay": 0.0},
    ),
    "alias-lower-bound": Row(
        _alias(gap="lower_bound"),
        "ALIAS on everything, from the loss's lower bound: 72 bytes of state",
        {"max_step": 1e-3, "lower_bound": 0.0, "warmup_steps": 0, "update_every": 1, "weight_decay": 0.0},
    ),
    "alias-base": Row(
        _alias(memory_efficient=False),
        "ALIAS on everything, in its exact form: keeps the last gradient",
        {
            "max_step": 1e-3,
            "gap": "lower_bound",  # by descent the step shrinks to nothing: examples/README.md
            "d0": 1e-6,
            "lower_bound": 0.0,
            "warmup_steps": 0,
            "update_every": 1,
            "weight_decay": 0.0,
        },
    ),
    "alias-adam": Row(
        _library("FusedALIASAdam"),
        "ALIAS-Adam: Adam on gradients scaled tensor by tensor",
        {"lr": 1e-3, "betas": (0.9, 0.999), "d0": 1.0, "weight_decay": 0.0},
    ),
    "sinkgd": Row(
        _mix(embedding="sinkgd", matrix="sinkgd", lm_head="sinkgd", vector="adamw"),
        "SinkGD on every matrix, AdamW on 1-D",
        {**_rates(2e-2, 2e-2, 2e-2, 1e-3), **_SINKGD, "betas": (0.9, 0.95), "weight_decay": 0.0},
    ),
    "fused-adamw": Row(
        _mix(embedding="adamw", matrix="adamw", lm_head="adamw", vector="adamw"),
        "this library's AdamW",
        {**_rates(2e-2, 1e-3, 1e-3, 1e-3), "betas": (0.9, 0.95), "weight_decay": 0.1, "eps": 1e-8},
    ),
    "adamw": Row(
        _torch_by_role("AdamW", fused=True),
        "torch.optim.AdamW(fused=True), the baseline",
        {**_rates(1.6e-1, 1e-3, 1e-3, 1e-3), "betas": (0.9, 0.95), "weight_decay": 0.1, "eps": 1e-8},
        tuned=True,
    ),
    "adam": Row(
        _torch("Adam", fused=True),
        "torch.optim.Adam(fused=True)",
        {"lr": 2e-3, "betas": (0.9, 0.95), "eps": 1e-8},
    ),
    "adafactor": Row(_torch("Adafactor"), "torch.optim.Adafactor", {"lr": 1e-2, "weight_decay": 0.0}),
    "sgd": Row(
        _torch("SGD", nesterov=True),
        "torch.optim.SGD with Nesterov momentum",
        {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.0},
    ),
}
