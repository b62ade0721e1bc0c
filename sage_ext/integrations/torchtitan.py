"""torchtitan with a hybrid: two lines in a configuration function::

    from sage_ext.integrations.torchtitan import default_hybrid

    optimizer=default_hybrid("sage", lr=2e-3)     # was default_adamw(lr=8e-4)

Or by regular expressions, with ``HybridsContainer.Config`` in the place of ``OptimizersContainer.Config``:
``ParamGroupConfig(pattern=..., optimizer_name="FusedHybrid", optimizer_kwargs={...})``. Where the arguments
have a ``"rule"``, all that the pattern finds gets it, with the other arguments as hyperparameters; else they
are those of :class:`.FusedHybrid`, and what the pattern finds goes by role. The other optimizers of
``sage_ext.optimizers`` go by their names, too (``"FusedLion"``), beside torchtitan's own.

Follows torchtitan 0.3.0 (and commit b5bcd76c6): groups come with ``params``, ``param_names``, ``fused`` and
``foreach``, of which the last two mean nothing here. It knows the head by its name there, ``lm_head`` (or
``output``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig

from sage_ext import optimizers as ours
from sage_ext import routing
from sage_ext.optimizers import FusedHybrid

__all__ = ["HybridsContainer", "default_hybrid"]

HEADS = ("lm_head.weight", "output.weight")
"""What torchtitan's models call their head."""
_NOT_OURS = ("fused", "foreach")


class HybridsContainer(OptimizersContainer):
    """torchtitan's container of optimizers, which knows those of sage_ext as well."""

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        """As torchtitan's own."""

    @staticmethod
    def _resolve_optimizer_factory(name: str) -> Callable[..., Optimizer]:
        if name in ours.__all__ and name.startswith("Fused"):
            return _Factory(getattr(ours, name))
        return OptimizersContainer._resolve_optimizer_factory(name)

    @staticmethod
    def _build_param_groups(
        model: nn.Module, param_group_configs: list[Any], impl_kwargs: dict[str, Any]
    ) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[str]]]:
        groups, patterns = OptimizersContainer._build_param_groups(model, param_group_configs, impl_kwargs)
        if FusedHybrid.__name__ in groups:
            found, names = [], []
            own = zip(groups[FusedHybrid.__name__], patterns[FusedHybrid.__name__], strict=True)
            for group, pattern in own:
                parts = [group] if "rule" in group else list(_by_role(model, group))
                found += parts
                names += [pattern] * len(parts)
            groups[FusedHybrid.__name__], patterns[FusedHybrid.__name__] = found, names
        return groups, patterns


class _Factory:
    """Makes an optimizer of groups that also say what torch's own are to run on."""

    def __init__(self, optimizer: Callable[..., Optimizer]) -> None:
        self.optimizer = optimizer

    def __call__(self, groups: list[dict[str, Any]], **arguments: Any) -> Optimizer:
        return self.optimizer([_without(group, _NOT_OURS) for group in groups], **arguments)


def _without(group: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in keys}


def _by_role(model: nn.Module, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the groups, one a role, of what a pattern has found."""
    arguments = _without(group, ("params", "param_names", *_NOT_OURS))
    named = list(zip(group["param_names"], group["params"], strict=True))
    ids = {name: id(param) for name, param in named}
    for kind, found in _kinds(model).items():
        # A part of a pipeline may have none of the names.
        given = arguments.get(kind)
        given = [given] if isinstance(given, str) else given
        arguments[kind] = [n for n in ids if (ids[n] in found if given is None else n in given)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer of all groups will say it
        yield from map(dict, FusedHybrid(named, **arguments).param_groups)


def _kinds(model: nn.Module) -> dict[str, set[int]]:
    """Return the identities of what is an embedding, and of what is a head; a tied weight is both."""
    every = dict(model.named_parameters(remove_duplicate=False))
    heads = [name for name in every if ".".join(name.rsplit(".", 2)[-2:]) in HEADS]
    return {
        kind: {
            id(entry.param) for entry in routing.route(model, lm_head=heads, tied=role) if entry.role == role
        }
        for kind, role in (("embeddings", "embedding"), ("lm_head", "lm_head"))
    }


def default_hybrid(preset: str = "sage", **arguments: Any) -> Any:
    """Return the configuration of one hybrid of the whole model, as ``default_adamw`` does of AdamW.

    Args:
        preset, arguments: as in :class:`.FusedHybrid`.
    """
    everything = ParamGroupConfig(
        pattern=".*", optimizer_name=FusedHybrid.__name__, optimizer_kwargs={"preset": preset, **arguments}
    )
    return HybridsContainer.Config(param_groups=[everything])
