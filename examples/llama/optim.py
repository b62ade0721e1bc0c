"""The optimizers that ``--optimizer`` knows, one row each, and how one is chosen: ``NAME[:KEY=VALUE]...``.

To add one, add its row to ``ROWS``. Where a row says "tuned", its defaults are what ``lr_grid.py`` found best
for the demo's model, text and number of steps; the others are usual starting points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .errors import UsageError

Build = Callable[..., Optimizer]  # build(model, backend=..., **settings)


@dataclass(frozen=True)
class Row:
    build: Build
    about: str
    defaults: dict[str, Any]
    tuned: bool = False


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
    """How far the last step went, by rule: what an optimizer of this library says, else the learning rate.

    To be asked before the scheduler moves on. Groups of a rule differ in weight decay alone, so the first of
    them speaks for all.
    """
    sizes: dict[str, float] = {}
    for index, group in enumerate(optimizer.param_groups):
        rule = group.get("rule", type(optimizer).__name__)
        if rule not in sizes:
            sizes[rule] = optimizer.step_size(index) if is_ours(optimizer) else float(group["lr"])
    return sizes


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of all tensors that the optimizer really holds as state; storage that is shared counts once.

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


def _matrices_decay(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The usual two groups: weight decay on the matrices, none on gains and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _torch(name: str, **fixed: Any) -> Build:
    def make(model: nn.Module, *, backend: str, weight_decay: float = 0.0, **settings: Any) -> Optimizer:
        del backend
        return getattr(torch.optim, name)(_matrices_decay(model, weight_decay), **fixed, **settings)

    return make


def _library(name: str) -> Build:
    def make(model: nn.Module, *, backend: str, weight_decay: float = 0.0, **settings: Any) -> Optimizer:
        import sage_ext.optimizers

        cls = getattr(sage_ext.optimizers, name)
        return cls(_matrices_decay(model, weight_decay), backend=backend, **settings)

    return make


def _hybrid(preset: str, **fixed: Any) -> Build:
    """``FusedHybrid`` with one learning rate; ``alpha`` and ``fixed`` are SinkGD's."""

    def make(
        model: nn.Module, *, backend: str, lr: float, alpha: float, betas: Any, weight_decay: float
    ) -> Optimizer:
        from sage_ext.optimizers import FusedHybrid

        shared = {"weight_decay": weight_decay}
        other = "adamw" if preset == "sinkgd" else preset
        rules = {"sinkgd": {**shared, **fixed, "alpha": alpha}, other: {**shared, "betas": betas}}
        return FusedHybrid(model, preset=preset, lr=lr, backend=backend, **rules)

    return make


def _scale(model: nn.Module, *, backend: str, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    """The preset "scale"; a tied head counts as the head, which is what has momentum."""
    from sage_ext.optimizers import FusedHybrid

    shared = {"weight_decay": weight_decay}
    optimizer = FusedHybrid(
        model, preset="scale", lr=lr, tied="lm_head", backend=backend, scale=shared, adamw=shared
    )
    for group in optimizer.param_groups:
        if group["role"] == "lm_head":
            group["momentum"] = momentum
    return optimizer


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


def _sinkgd_alone(
    model: nn.Module, *, backend: str, lr: float, alpha: float, weight_decay: float, vector_lr: float
) -> Optimizer:
    """SinkGD has no update for 1-D parameters: AdamW takes them."""
    from sage_ext.optimizers import FusedHybrid

    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "rule": "sinkgd", "lr": lr, "alpha": alpha, "weight_decay": weight_decay},
        {"params": vectors, "rule": "adamw", "lr": vector_lr, "weight_decay": 0.0},
    ]
    return FusedHybrid(groups, preset="sinkgd", backend=backend)


ROWS: dict[str, Row] = {
    "sage-hybrid": Row(
        _hybrid("sage", normalization="unit"),
        "SAGE on embedding, head and 1-D, unit-norm SinkGD on the rest",
        {"lr": 1e-3, "alpha": 10.0, "betas": (0.9, 0.99), "weight_decay": 0.01},
        tuned=True,
    ),
    "sage-hybrid-sqrt": Row(
        _hybrid("sage", normalization="sqrt"),
        "the same with SinkGD in the paper's sqrt form",
        {"lr": 1e-3, "alpha": 0.6, "betas": (0.9, 0.99), "weight_decay": 0.01},
    ),
    "lion-hybrid": Row(
        _hybrid("lion"),
        "Lion on embedding, head and 1-D, SinkGD on the rest",
        {"lr": 1e-3, "alpha": 0.3, "betas": (0.9, 0.99), "weight_decay": 0.01},
    ),
    "sinkgd-hybrid": Row(
        _hybrid("sinkgd"),
        "AdamW on embedding, head and 1-D, SinkGD on the rest",
        {"lr": 2e-2, "alpha": 0.015, "betas": (0.9, 0.95), "weight_decay": 0.0},
    ),
    "scale": Row(
        _scale,
        "SCALE on every matrix, with momentum on the head, AdamW on 1-D",
        {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0},
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
        _sinkgd_alone,
        "SinkGD on every matrix, AdamW on 1-D",
        {"lr": 2e-2, "alpha": 0.05, "weight_decay": 0.0, "vector_lr": 1e-3},
    ),
    "fused-adamw": Row(
        _library("FusedAdamW"),
        "this library's AdamW",
        {"lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.1, "eps": 1e-8},
    ),
    "adamw": Row(
        _torch("AdamW", fused=True),
        "torch.optim.AdamW(fused=True), the baseline",
        {"lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.1, "eps": 1e-8},
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
