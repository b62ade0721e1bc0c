"""Megatron-LM with SinkGD on its matrices: two lines before ``pretrain()``::

    from sage_ext.integrations.megatron import register

    register("sinkgd", FusedSinkGD, alpha=1.0)

and ``--optimizer sinkgd``. Megatron has one learning rate for all: with ``alpha=1.0`` SinkGD moves an entry
by about that rate, as Adam does (its own defaults are a rate of 0.02 and an alpha of 0.05).

Follows Megatron-LM 0.20.0 (commit d98e8a64d): an ``EmergingOptimizerEntry``, for which the package
``emerging-optimizers`` has to be there. Embeddings, the head and vectors go to Adam, as the entry's default
says; an optimizer of ours gets the matrices, whole. ``--use-distributed-optimizer`` then deals out whole
tensors. Not so tensor parallelism, whose pieces are plain tensors that no mark tells from whole ones: there
only rules that work element by element are registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron.core.optimizer.emerging_optimizers import _EMERGING_OPTIMIZERS, EmergingOptimizerEntry

from sage_ext.optimizers import FusedSinkGD
from sage_ext.optimizers.base import FusedOptimizer

__all__ = ["register"]


class _WithState(FusedOptimizer):
    """Makes state before the first step, which Megatron's distributed checkpoints load into."""

    def _init_group(self, group: dict[str, Any], skip_non_grad_params: bool = True) -> None:
        rule = self.rules[group["rule"]]
        for param in group["params"]:
            is_left_out = skip_non_grad_params and param.grad is None
            if rule.kept_keys(group) and not is_left_out and not self.state.get(param):
                self.state[param] = rule.init_state(param, group)


def register(name: str, optimizer: type[FusedOptimizer] = FusedSinkGD, **arguments: Any) -> None:
    """Register an optimizer of one rule for ``--optimizer NAME``.

    Args:
        name: what Megatron is to call it.
        optimizer: a class of ``sage_ext.optimizers``, for matrices.
        arguments: its hyperparameters. ``lr`` and ``weight_decay`` are Megatron's.

    Raises:
        ValueError: the optimizer has no single rule, or one whose state a whole group shares.
    """
    rule = next(iter(optimizer.rules.values()))
    if len(optimizer.rules) > 1 or rule.shared_keys:
        raise ValueError(
            f"optimizer: got {optimizer.__name__}, expected one of a single rule without shared state: "
            "Megatron gives it the matrices alone, in groups of its own"
        )

    def config_to_kwargs(config: Any, model_chunks: Sequence[Any], pg_collection: Any) -> dict[str, Any]:
        for kind in ("tp", "expt_tp"):
            group = getattr(pg_collection, kind, None)
            if not rule.is_elementwise and group is not None and group.size() > 1:
                raise ValueError(
                    f"optimizer: {name!r} looks at rows, columns or whole tensors, and tensor parallelism "
                    f"over {group.size()} processes ({kind}) leaves pieces of them here. Use "
                    "--tensor-model-parallel-size 1, or register FusedLion, FusedSignSGD or FusedAdamW"
                )
        return {"lr": config.lr, "weight_decay": config.weight_decay, **arguments}

    own = type(f"Megatron{optimizer.__name__}", (_WithState, optimizer), {})
    _EMERGING_OPTIMIZERS[name] = EmergingOptimizerEntry(optimizer_cls=own, config_to_kwargs=config_to_kwargs)
