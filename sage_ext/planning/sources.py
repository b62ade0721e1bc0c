"""What is planned for: the tensors of a model, cut as they will be, and the rule that each of them gets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from sage_ext import optimizers, pieces
from sage_ext.optimizers.adamw import ADAMW
from sage_ext.optimizers.alias import signs_of_pieces
from sage_ext.optimizers.base import FusedOptimizer
from sage_ext.optimizers.hybrid import FusedHybrid
from sage_ext.optimizers.presets import PRESETS
from sage_ext.optimizers.rule import Rule, StateSpec
from sage_ext.planning import shapes
from sage_ext.planning.exchanges import Spread, spread

PRECISIONS: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
SINGLE: Mapping[str, Callable[..., FusedOptimizer]] = {
    name: getattr(optimizers, name)
    for name in optimizers.__all__
    if inspect.isclass(getattr(optimizers, name))
    and issubclass(getattr(optimizers, name), FusedOptimizer)
    and getattr(optimizers, name) is not FusedHybrid
}
"""The optimizers of one rule, by the name of their class."""

Mesh = tuple[int, int]
"""Replicas, and devices over which each of them is cut."""


@dataclass(frozen=True)
class Part:
    """A parameter, what one process has of it, and in which dtype."""

    name: str
    dtype: torch.dtype
    piece: Spread
    is_piece: bool
    """Whether it is a DTensor."""

    @property
    def numel(self) -> int:
        """Elements that this process has."""
        return prod(self.piece.local)

    @property
    def is_cut(self) -> bool:
        return any(dim is not None for dim in self.piece.cuts)

    def layout(self, rule: Rule, settings: Mapping[str, Any]) -> dict[str, StateSpec]:
        """Return the states that a rule keeps for the whole parameter. It allocates nothing."""
        whole = torch.empty(self.piece.shape, dtype=self.dtype, device="meta")
        found = rule.state_layout(whole, settings)
        if self.is_piece and "signs" in found:
            found["signs"] = signs_of_pieces(self.piece.shape)
        return found

    def state_bytes(self, rule: Rule, settings: Mapping[str, Any]) -> int:
        """Return the bytes of state of this process."""
        layout = self.layout(rule, settings)
        return sum(spec.nbytes_of_piece(self.piece.local) for spec in layout.values())


@dataclass(frozen=True)
class Group:
    """Parameters with one rule and its hyperparameters, as in ``optimizer.param_groups``."""

    rule: Rule
    role: str | None
    settings: Mapping[str, Any]
    parts: tuple[Part, ...]


def read(
    source: Any, preset: str | FusedOptimizer, mesh: Mesh | None, precision: Any, options: Mapping[str, Any]
) -> tuple[str, list[Group]]:
    """Return a name for the model, and its groups.

    Args:
        source, preset, precision, options: as :func:`sage_ext.plan` has them.
        mesh: None leaves parameters as they are, DTensors where they are some.

    Raises:
        TypeError, ValueError: an argument cannot be used; the message names it, and the cure.
    """
    dtype = _dtype(precision)
    if isinstance(preset, FusedOptimizer):
        if options:
            raise ValueError(
                f"{', '.join(options)}: preset is an optimizer, which has its hyperparameters; leave this out"
            )
        label = source if isinstance(source, str) else type(source).__name__
        return label, _groups(preset, mesh, dtype)
    _check_preset(preset)
    if isinstance(source, str):
        model = shapes.find(source)
        named: Any = list(_meta(model.shapes(), dtype or torch.bfloat16))
        known: dict[str, Any] = {"embeddings": [name for name, _ in named if _is_table(name, model)]}
        known["lm_head"] = [model.embedding if model.tied else model.lm_head]
        return source.lower(), _groups(_build(named, preset, {**known, **options}), mesh, dtype)
    if isinstance(source, nn.Module):
        return type(source).__name__, _groups(_build(source, preset, options), mesh, dtype)
    if isinstance(source, Mapping):
        named = list(_meta(source, dtype or torch.bfloat16))
        return "shapes", _groups(_build(named, preset, options), mesh, dtype)
    if type(source).__module__.startswith("transformers"):
        built = _from_config(source)
        return type(built).__name__, _groups(_build(built, preset, options), mesh, dtype)
    raise TypeError(
        f"model_or_config: got {type(source).__name__}, expected a module (one on torch.device('meta') will "
        "do), a transformers configuration, a mapping of names to shapes, or the name of a published model: "
        f"{', '.join(shapes.MODELS)}"
    )


def adamw_of(groups: Sequence[Group]) -> list[Group]:
    """Return the same parameters under AdamW with both moments in float32."""
    parts = tuple(part for group in groups for part in group.parts)
    settings = {**ADAMW.defaults, "state_dtype": torch.float32}
    return [Group(ADAMW, None, settings, parts)]


def _dtype(precision: Any) -> torch.dtype | None:
    if precision is None:
        return None
    if isinstance(precision, torch.dtype) and precision in PRECISIONS.values():
        return precision
    if isinstance(precision, str) and precision in PRECISIONS:
        return PRECISIONS[precision]
    raise ValueError(
        f"precision: got {precision!r}, expected {', '.join(map(repr, PRECISIONS))}, one of their torch "
        "dtypes, or None for the model's own. It is the dtype of parameters and gradients as the optimizer "
        "has them: under autocast and FSDP2's MixedPrecisionPolicy that is 'fp32'"
    )


def _check_preset(preset: Any) -> None:
    if not (isinstance(preset, str) and (preset in PRESETS or preset in SINGLE)):
        raise ValueError(
            f"preset: got {preset!r}, expected a preset of FusedHybrid ({', '.join(map(repr, PRESETS))}), "
            f"the name of an optimizer ({', '.join(map(repr, SINGLE))}), or an optimizer of sage_ext"
        )


def _build(source: Any, preset: str, options: Mapping[str, Any]) -> FusedOptimizer:
    """Return the optimizer that a training script would build. Nothing of it ever runs."""
    if preset in PRESETS:
        return FusedHybrid(source, preset, backend="reference", **options)
    params = list(source.named_parameters()) if isinstance(source, nn.Module) else source
    own = {key: value for key, value in options.items() if key not in ("embeddings", "lm_head")}
    if roles := [key for key in ("tied", "no_decay") if key in own]:
        raise ValueError(
            f"{roles[0]}: {preset} has one rule for all parameters, whatever their role; leave it out"
        )
    trainable = [(name, param) for name, param in params if param.requires_grad]
    return SINGLE[preset](trainable, backend="reference", **own)


def _groups(optimizer: FusedOptimizer, mesh: Mesh | None, dtype: torch.dtype | None) -> list[Group]:
    if mesh is not None and any(pieces.has_pieces(group["params"]) for group in optimizer.param_groups):
        raise ValueError(
            "devices: the model's parameters are DTensors, which are cut already; leave devices out, and the "
            "plan is for this process, or give the model as it is before fully_shard"
        )
    found = []
    for index, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or [f"group {index}, param {i}" for i in range(len(group["params"]))]
        parts = tuple(
            _part(name, param, mesh, dtype) for name, param in zip(names, group["params"], strict=True)
        )
        settings = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        found.append(Group(optimizer.rules[group["rule"]], group.get("role"), settings, parts))
    return found


def _part(name: str, param: Tensor, mesh: Mesh | None, dtype: torch.dtype | None) -> Part:
    kind = dtype if dtype is not None and param.dtype.is_floating_point else param.dtype
    if pieces.is_piece(param):
        return Part(name, kind, _spread_of(param), True)
    if mesh is None:
        return Part(name, kind, spread(param.shape, (), ()), False)
    shards = mesh[1] > 1
    rows = 0 if param.ndim and shards else None  # FSDP2 cuts dimension 0
    return Part(name, kind, spread(param.shape, mesh, (None, rows)), shards)


def _spread_of(param: Any) -> Spread:
    """Return what this process has of a DTensor."""
    from sage_ext.distributed.placements import cuts

    mesh = tuple(param.device_mesh.size(i) for i in range(param.device_mesh.ndim))
    along = dict(cuts(param))
    own = tuple(along.get(i) for i in range(len(mesh)))
    return Spread(tuple(param.shape), tuple(pieces.local(param).shape), mesh, own)


def _meta(sizes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> Iterator[tuple[str, nn.Parameter]]:
    for name, shape in sizes.items():
        yield name, nn.Parameter(torch.empty(tuple(shape), dtype=dtype, device="meta"))


def _is_table(name: str, model: shapes.Model) -> bool:
    return name in (model.embedding, "transformer.wpe.weight")


def _from_config(config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model: Any = auto.from_config(config)
    if getattr(config, "tie_word_embeddings", False):
        model.tie_weights()
    built: nn.Module = model
    return built
