"""The candidates: which rules a parameter may have, with what settings, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from sage_ext.optimizers.hybrid import RULES
from sage_ext.optimizers.presets import PRESETS
from sage_ext.optimizers.rule import Rule
from sage_ext.planning.budget import Target, budget
from sage_ext.planning.exchanges import spread
from sage_ext.planning.sources import Group, Part
from sage_ext.routing import Routed

REFERENCE = "adamw"
IN_BF16 = "adamw-bf16"
WITHOUT_MOMENTUM, WITH_MOMENTUM = "scale", "scale-momentum"
CANDIDATES: Mapping[str, str] = MappingProxyType(
    {
        REFERENCE: "adamw",
        IN_BF16: "adamw",
        "sage": "sage",
        "lion": "lion",
        "sinkgd": "sinkgd",
        WITHOUT_MOMENTUM: "scale",
        WITH_MOMENTUM: "scale",
        "sign_sgd": "sign_sgd",
    }
)
"""Name of a candidate -> its rule. Of candidates with equal risk and cost the first is taken."""

SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # As language models are pretrained. bf16 holds a second moment that decays that fast.
        "adamw": {"betas": (0.9, 0.95)},
        # An update of root mean square 1 or a little less: the rate alone says how large a step is.
        "sinkgd": {"alpha": 1.0, "normalization": "sqrt", "iterations": 1},
    }
)
"""Rule -> hyperparameters in which the candidates differ from its own defaults; SinkGD as in our presets."""
SLOWEST_BF16 = 0.998
"""From this beta2 on a second moment in bf16 cannot decay: what a step takes from it is rounded away. So few
steps do not show it."""


@dataclass(frozen=True)
class Candidate:
    """A rule with all of its hyperparameters, for one parameter."""

    name: str
    rule: Rule
    settings: Mapping[str, Any]
    """All hyperparameters of the rule; a rate of 1 and no weight decay."""
    given: Mapping[str, Any]
    """Those that a parameter group has to name."""
    state_bytes: int
    moved_bytes: int

    def new_state(self, param: Tensor) -> dict[str, Tensor]:
        """Return new states for ``param``, on its device."""
        return self.rule.init_state(param, self.settings)


def check_names(names: Iterable[str]) -> list[str]:
    """Return the names in the order of ``CANDIDATES``, each once.

    Raises:
        ValueError: one is unknown, or there is none.
    """
    given = [names] if isinstance(names, str) else list(names)
    options = ", ".join(map(repr, CANDIDATES))
    for name in given:
        if name not in CANDIDATES:
            raise ValueError(f"candidates: {name!r} is not known, expected some of {options}")
    if not given:
        raise ValueError(f"candidates: got none, expected some of {options}")
    return [name for name in CANDIDATES if name in given]


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Raise ValueError for what is no hyperparameter of a candidate's rule, or cannot have this value."""
    rules = dict.fromkeys(CANDIDATES.values())
    own = {"lr", "weight_decay", "maximize", "capturable", "dim"}
    for name, values in overrides.items():
        if name not in rules:
            options = ", ".join(map(repr, rules))
            raise ValueError(f"argument {name!r} is not known, expected the name of a rule: {options}")
        # "adamw" is in float32, and "adamw-bf16" stands beside it.
        taken = own | {"state_dtype"} if name == REFERENCE else own
        allowed = [key for key in RULES[name].defaults if key not in taken]
        if not isinstance(values, Mapping):
            raise TypeError(f"{name}: got {type(values).__name__}, expected a dict of hyperparameters")
        for key in values:
            if key not in allowed:
                raise ValueError(
                    f"{name}: {key!r} cannot be given here, expected some of {', '.join(allowed)}; rates and "
                    "weight decay follow from lr= and weight_decay="
                )
        RULES[name].validate({**RULES[name].defaults, **values}, f" for rule {name!r}")


def candidates_of(
    entry: Routed, names: Sequence[str], overrides: Mapping[str, Mapping[str, Any]], *, native: bool
) -> list[Candidate]:
    """Return the candidates that apply to a parameter: its shape, dtype and memory layout."""
    found = []
    for name in names:
        rule = RULES[CANDIDATES[name]]
        if entry.param.ndim < rule.min_ndim:
            continue
        if native and rule.needs_contiguous and not entry.param.is_contiguous():
            continue
        given = {**SETTINGS.get(rule.name, {}), **_own(name, entry), **overrides.get(rule.name, {})}
        if name == WITHOUT_MOMENTUM:
            given.pop("momentum", None)
        if name == IN_BF16:
            if {**rule.defaults, **given}["betas"][1] >= SLOWEST_BF16:
                continue
            given["state_dtype"] = torch.bfloat16
        settings = {**rule.defaults, **given, "lr": 1.0, "weight_decay": 0.0}
        cost = _cost(entry, rule, settings)
        found.append(Candidate(name, rule, settings, given, cost.state_bytes, cost.moved_bytes))
    return found


def _own(name: str, entry: Routed) -> dict[str, Any]:
    """Return what SCALE gets in this role.

    Without momentum what the preset "stateless" has: the head not by its rows, where noise would move rare
    tokens as far as frequent ones. A momentum mends that, and then a row is a token or an output unit.
    """
    if name == WITHOUT_MOMENTUM:
        return {"dim": PRESETS["stateless"].scale_dim(entry.role, entry.output_dim)}
    if name == WITH_MOMENTUM:
        dim = entry.output_dim if entry.role == "embedding" else 1 - entry.output_dim
        return {"dim": dim, "momentum": 0.9, "state_dtype": torch.bfloat16}
    return {}


def _cost(entry: Routed, rule: Rule, settings: Mapping[str, Any]) -> Any:
    part = Part(entry.name, entry.param.dtype, spread(entry.param.shape, (), ()), False)
    group = Group(rule, entry.role, settings, (part,))
    return budget(rule.name, [group], (1,), Target(None, None, 1)).groups[0]
