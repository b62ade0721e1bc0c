"""Hugging Face's Trainer with a hybrid::

    from sage_ext.integrations.transformers import HybridFactory

    trainer = Trainer(..., optimizer_cls_and_kwargs=(HybridFactory, {"preset": "sage", "lr": 2e-3}))

Trainer calls a class that is no optimizer as ``cls()(model, **kwargs)`` (since pull request 43738 of 2026;
tested with transformers 5.24). An optimizer class would get two groups without names, from which no rule can
be chosen. Trainer passes on neither ``learning_rate`` nor ``weight_decay`` of its ``TrainingArguments``: what
is not among the keyword arguments is the preset's. Its scheduler multiplies what each group begins with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from sage_ext.optimizers import FusedHybrid

__all__ = ["HybridFactory", "no_decay_names"]


def no_decay_names(model: nn.Module) -> list[str]:
    """Return the names of the trainable parameters that Trainer itself keeps weight decay from.

    The list is that of the installed transformers: norms and biases.

    Args:
        model: what is trained.
    """
    trainer: Any = None  # the method looks at nothing of it, and there is none yet
    decays = set(Trainer.get_decay_parameter_names(trainer, model))
    return [name for name, param in model.named_parameters() if param.requires_grad and name not in decays]


class HybridFactory:
    """Makes a :class:`.FusedHybrid` of the model that a Trainer trains.

    Weight decay is kept from norms and biases, as Trainer does it, and everything else goes by rule.
    Parameters have the names that they have in the model. With PEFT only what is trained is in it.

    ALIAS with ``gap="lower_bound"`` needs the loss of its first step, which Trainer passes to no optimizer:
    it is taken from what the model returns. With a loss that the model does not compute itself, call
    ``set_loss`` of the optimizer instead.
    """

    def __init__(self, *groups: Any, **arguments: Any) -> None:
        """Make a factory. It takes nothing, as what is said about the optimizer goes to the call.

        Args:
            groups, arguments: what a Trainer passes that takes this for an optimizer; refused.

        Raises:
            TypeError: there are some.
        """
        if groups or arguments:
            raise TypeError(
                "HybridFactory: it was called with parameter groups, as an optimizer. A Trainer that does so "
                "is older than factories: update transformers, or pass "
                "optimizers=(FusedHybrid(model, ...), None)"
            )

    def __call__(
        self,
        model: nn.Module,
        preset: str | None = None,
        *,
        no_decay: str | Sequence[str] | None = None,
        **arguments: Any,
    ) -> FusedHybrid:
        """Build the optimizer.

        Args:
            model: what is trained; it may be wrapped.
            preset: as in :class:`.FusedHybrid`; None is "sage".
            no_decay: names of parameters without weight decay; None takes ``no_decay_names(model)``.
            arguments: all others of :class:`.FusedHybrid`: lr, betas, eps, weight_decay, and what is said to
                one rule, e.g. ``sinkgd={"iterations": 3}``.

        Raises:
            ValueError: an argument, a name or a parameter cannot be used; the message names it, and the cure.
        """
        names = no_decay_names(model) if no_decay is None else no_decay
        optimizer = FusedHybrid(model, preset, no_decay=names, **arguments)
        if any(optimizer.rules[group["rule"]].takes_loss(group) for group in optimizer.param_groups):
            _FirstLoss(optimizer).watch(model)
        return optimizer


class _FirstLoss:
    """Passes on the loss that a model returns, until the optimizer has made its first step."""

    def __init__(self, optimizer: FusedHybrid) -> None:
        self.optimizer = optimizer
        self.losses: list[Tensor] = []

    def watch(self, model: nn.Module) -> None:
        hook = model.register_forward_hook(self.after_forward, with_kwargs=True)
        # This one stays: the optimizer is going through its hooks when it is called.
        self.optimizer.register_step_post_hook(lambda *_: hook.remove())

    def after_forward(
        self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if loss is None or not (model.training and torch.is_grad_enabled()):
            return
        self.losses.append(loss.detach())
        total = torch.stack(self.losses).sum()
        # Of a step in several batches, each loss is a share of the whole, where the model was told of what.
        is_share = kwargs.get("num_items_in_batch") is not None
        self.optimizer.set_loss(total if is_share else total / len(self.losses))
