"""ms-swift with a hybrid: two arguments on its command line::

    swift sft ... --external_plugins my_plugin.py --optimizer sage_ext --optim_args preset=sage

where ``my_plugin.py`` has one line, ``import sage_ext.integrations.ms_swift``. ``--learning_rate`` and
``--weight_decay`` mean what they always do; ``--optim_args`` has what else :class:`.FusedHybrid` takes:
``preset=sinkgd,lr.adamw=1e-4,lr.sinkgd=0.02,sinkgd.iterations=3``. ``--adam_beta1`` and the like are left
out: they have defaults, which say nothing of what was asked for, and Lion's betas are not Adam's.

Follows ms-swift 4.6.0.dev0 (commit 3602360a5): ``optimizers_map[args.optimizer](args, trainer)``, and then
``create_optimizer(model)``.
"""

from __future__ import annotations

from typing import Any

from swift.optimizers import OptimizerCallback, optimizers_map
from torch import nn

from sage_ext.integrations.arguments import parse
from sage_ext.integrations.transformers import HybridFactory
from sage_ext.optimizers import FusedHybrid

__all__ = ["HybridCallback"]


class HybridCallback(OptimizerCallback):
    """Has ms-swift train with a :class:`.FusedHybrid`."""

    def create_optimizer(self, model: nn.Module | None = None) -> FusedHybrid:
        """Return the hybrid that the command line asks for.

        Args:
            model: what is trained; None takes the trainer's.

        Raises:
            ValueError: an argument cannot be used; the message names it, and the cure.
        """
        given: dict[str, Any] = {"lr": self.args.learning_rate, "weight_decay": self.args.weight_decay}
        given.update(parse(self.args.optim_args))
        return HybridFactory()(self.trainer.model if model is None else model, **given)


optimizers_map["sage_ext"] = HybridCallback
