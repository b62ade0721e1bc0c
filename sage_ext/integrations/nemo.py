"""NeMo Automodel with a hybrid: a section of its YAML::

    optimizer:
      _target_: sage_ext.integrations.nemo.HybridConfig
      preset: sage
      lr: 2e-3

The keys are the arguments of :class:`.FusedHybrid`. An optimizer of one rule needs nothing of ours: its own
dotted path will do (``_target_: sage_ext.optimizers.FusedLion``).

Follows NeMo Automodel 0.5.0 (commit 36044ad3d), which gives an optimizer class parameters without names, but
a subclass of its ``OptimizerConfig`` the model, or its parts. Its scheduler sets the rates and decays of all
groups from those of the first, times ``lr_mult`` and ``wd_mult`` of each: these are set to what each has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemo_automodel.components.optim.optimizer import OptimizerConfig
from torch import nn

from sage_ext.integrations.arguments import parse
from sage_ext.optimizers import FusedHybrid

__all__ = ["HybridConfig"]


class HybridConfig(OptimizerConfig):
    """Builds a :class:`.FusedHybrid` for each part of a model."""

    supports_megatron_fsdp_sharding = False

    def __init__(self, *, param_group_overrides: Sequence[Any] = (), **arguments: Any) -> None:
        """Keep the arguments of :class:`.FusedHybrid`, as values or as text.

        Args:
            param_group_overrides: NeMo's own; has to be empty.
            arguments: of the optimizer.

        Raises:
            ValueError: ``param_group_overrides`` are given.
        """
        super().__init__()
        if param_group_overrides:
            raise ValueError(
                f"param_group_overrides: got {param_group_overrides!r}, but a hybrid has its groups by rule "
                "and role; say learning rates by rule, e.g. lr: {sinkgd: 0.02, adamw: 1e-4}, and no_decay"
            )
        self.arguments = parse(arguments)

    def build(self, model: nn.Module, *, device_mesh: Any = None, is_peft: bool = False) -> list[FusedHybrid]:
        """Return one optimizer for each of ``model.parts``, or for the model.

        Args:
            model: what is trained.
            device_mesh, is_peft: as NeMo calls it; they do not matter here.

        Raises:
            ValueError: an argument cannot be used; the message names it, and the cure.
        """
        return [
            self._build_optimizer(part, foreach=None) for part in getattr(model, "parts", None) or [model]
        ]

    def _build_optimizer(self, params: Any, *, foreach: bool | None = None) -> FusedHybrid:
        optimizer = FusedHybrid(params, **self.arguments)
        groups = optimizer.param_groups
        # The first says what all others are a multiple of, so it must be one that decays, if any does.
        groups.sort(key=lambda group: group["weight_decay"] == 0)
        for group in groups:
            for key, multiple in (("lr", "lr_mult"), ("weight_decay", "wd_mult")):
                group[multiple] = group[key] / groups[0][key] if groups[0][key] else 1.0
        return optimizer
