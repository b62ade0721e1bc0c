"""LLaMA-Factory v1 with a hybrid: an import before training starts, and its name in the YAML::

    import sage_ext.integrations.llamafactory

    optim_config: {name: sage_ext, preset: sage}

``optim_config`` has what :class:`.FusedHybrid` takes, by the names that it has there; the learning rate is
``learning_rate``, which LLaMA-Factory puts into it as ``lr``. A rule's own rate goes before that:
``sinkgd: {lr: 0.02}``. Weight decay is kept from norms and biases.

Follows LLaMA-Factory 0.9.6.dev0 (commit ff6d4d12e), which calls what is registered as
``plugin(model, optim_config)``, and looks for plugins nowhere: the script that starts it imports this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamafactory.v1.plugins.trainer_plugins.optimizers.optimizer import OptimizerPlugin
from torch import nn

from sage_ext.integrations.arguments import parse
from sage_ext.integrations.transformers import HybridFactory
from sage_ext.optimizers import FusedHybrid

__all__ = ["create_hybrid"]


@OptimizerPlugin("sage_ext").register()
def create_hybrid(model: nn.Module, optim_config: Mapping[str, Any]) -> FusedHybrid:
    """Return the hybrid that a configuration asks for.

    Args:
        model: what is trained; it may be wrapped.
        optim_config: the arguments of :class:`sage_ext.integrations.transformers.HybridFactory`, as values or
            as text, and ``name``.
    """
    arguments = parse({key: value for key, value in optim_config.items() if key != "name"})
    return HybridFactory()(model, **arguments)
