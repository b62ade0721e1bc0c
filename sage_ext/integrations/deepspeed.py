"""DeepSpeed with an optimizer of sage_ext: two lines::

    from sage_ext.integrations.deepspeed import configure

    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=configure(config, optimizer))

ZeRO makes one flat tensor of each parameter group and gives each process a piece of it. Nothing is left there
of rows, columns and whole tensors, so that only rules that work element by element are right: Lion, Sign-SGD
(Signum) and AdamW, one for all or several in a :class:`.FusedHybrid` of group dicts. They take the very steps
that they take on whole parameters. Without ZeRO (stage 0) every rule is right.

DeepSpeed has two keys for optimizers that are not its own, both at the top of the configuration:
``zero_allow_untested_optimizer`` lets one in, and ``zero_force_ds_cpu_optimizer`` has to be off where its
state is offloaded to the CPU. ``configure`` sets them. Follows DeepSpeed 0.19 (commit edaa72212), and was
tested with 0.19.8; nothing of it is imported.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from sage_ext.optimizers import FusedHybrid
from sage_ext.optimizers.base import FusedOptimizer

__all__ = ["RULES_OF_FLAT_PARTITIONS", "configure"]

RULES_OF_FLAT_PARTITIONS = tuple(name for name, rule in FusedHybrid.rules.items() if rule.is_elementwise)
"""The rules that may run under ZeRO."""


def configure(config: Mapping[str, Any], optimizer: FusedOptimizer) -> dict[str, Any]:
    """Return a copy of DeepSpeed's configuration with the keys that this optimizer needs.

    Args:
        config: a configuration of DeepSpeed.
        optimizer: what goes to ``deepspeed.initialize`` with it.

    Raises:
        ValueError: a rule of the optimizer cannot run under the configuration's stage of ZeRO.
    """
    result = copy.deepcopy(dict(config))
    zero = result.get("zero_optimization") or {}
    if not zero.get("stage", 0):
        return result
    for index, group in enumerate(optimizer.param_groups):
        name = group["rule"]
        if name not in RULES_OF_FLAT_PARTITIONS or group.get("role") is not None:
            what = "goes by the parameters' roles" if name in RULES_OF_FLAT_PARTITIONS else f"is {name!r}"
            raise ValueError(
                f"optimizer: param group {index} {what}, and ZeRO stage {zero['stage']} makes a flat tensor "
                "of each group, of which nobody can tell rows, columns and tensors. Use FusedLion, "
                "FusedSignSGD or FusedAdamW, or a FusedHybrid of group dicts with these rules; or stage 0, "
                "FSDP2 or DDP, where every rule is right"
            )
    result["zero_allow_untested_optimizer"] = True
    if zero.get("offload_optimizer"):
        result["zero_force_ds_cpu_optimizer"] = False
    return result
