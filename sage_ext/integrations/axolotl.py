"""axolotl with a hybrid: two lines in its YAML::

    plugins: [sage_ext.integrations.axolotl.SageExtPlugin]
    optim_args: preset=sage

``learning_rate``, ``weight_decay``, ``adam_beta1``, ``adam_beta2``, ``adam_epsilon``, ``embedding_lr`` and
``embedding_lr_scale`` mean what they mean to axolotl's own optimizers; ``optimizer`` does not matter any
more. ``optim_args`` has what else :class:`.FusedHybrid` takes, as text or as a mapping:
``preset=sinkgd,lr.adamw=1e-4,lr.sinkgd=0.02,sinkgd.iterations=3``.

Follows axolotl 0.18.0 (commit 067b021c8), which has the hook ``create_optimizer`` but calls it nowhere. So
the plugin tells the trainer, as soon as there is one (``post_trainer_create``), which factory to call:
``cls()(model, training_args, **kwargs)``.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from torch import nn

from sage_ext.integrations import transformers as trainer
from sage_ext.integrations.arguments import parse
from sage_ext.optimizers import FusedHybrid

__all__ = ["HybridFactory", "SageExtPlugin"]


class HybridFactory:
    """Makes a :class:`.FusedHybrid` as axolotl's trainers ask for it."""

    def __call__(self, model: nn.Module, training_args: Any = None, **arguments: Any) -> FusedHybrid:
        """Build the optimizer.

        Args:
            model: what is trained.
            training_args: axolotl's training arguments; trainers of others leave them out.
            arguments: as in :class:`sage_ext.integrations.transformers.HybridFactory`, as values or as text.

        Raises:
            ValueError: an argument cannot be used; the message names it, and the cure.
        """
        for name in ("lr_groups", "loraplus_lr_ratio"):
            if (value := getattr(training_args, name, None)) is not None:
                raise ValueError(
                    f"{name}: got {value!r}, but a hybrid has its groups by rule and role; leave it out, and "
                    "say learning rates by rule, e.g. optim_args: lr.sinkgd=0.02,lr.adamw=1e-4"
                )
        optimizer = trainer.HybridFactory()(model, **parse(arguments))
        scale = getattr(training_args, "embedding_lr_scale", None)
        rate = getattr(training_args, "embedding_lr", None)
        for group in optimizer.param_groups:
            # What axolotl counts to the embeddings: the head, too.
            if group["role"] in ("embedding", "lm_head"):
                group["lr"] = group["lr"] * scale if scale else rate if rate else group["lr"]
        return optimizer


class SageExtPlugin(BasePlugin):
    """Has axolotl train with a :class:`.FusedHybrid`."""

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Tell a new trainer which factory to call.

        Args:
            cfg: axolotl's configuration.
            trainer: gets :class:`HybridFactory` and its arguments as ``optimizer_cls_and_kwargs``.
        """
        trainer.optimizer_cls_and_kwargs = (HybridFactory, _arguments(cfg, trainer))

    def create_optimizer(self, cfg: Any, trainer: Any) -> FusedHybrid:
        """Return the hybrid that a configuration asks for.

        Args:
            cfg: axolotl's configuration.
            trainer: has the model, and the arguments.

        Raises:
            ValueError: an argument cannot be used; the message names it, and the cure.
        """
        return HybridFactory()(trainer.model, trainer.args, **_arguments(cfg, trainer))


def _arguments(cfg: Any, trainer: Any) -> dict[str, Any]:
    """Return the arguments that a configuration has for the optimizer."""
    given = {"lr": trainer.args.learning_rate, "weight_decay": trainer.args.weight_decay}
    if cfg.adam_beta1 and cfg.adam_beta2:
        given["betas"] = (cfg.adam_beta1, cfg.adam_beta2)
    if cfg.adam_epsilon:
        given["eps"] = cfg.adam_epsilon
    return {**parse(given), **parse(cfg.optim_args)}
