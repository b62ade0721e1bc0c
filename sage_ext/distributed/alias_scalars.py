"""ALIAS's scalars as a step of several processes makes them, between kernels: no number is read on the host.

A process's own kernels would go by what this process alone has seen. So eta and d are brought up to date here
before they run, from what all have seen, and they find that nothing had moved, which leaves both as they are;
what they have recorded of their own gradients is corrected behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sage_ext.reference.alias import ALIAS_SCALARS

AT = {name: place for place, name in enumerate(ALIAS_SCALARS)}


def observed_sums(
    alias: Callable[..., None],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    signs: Sequence[Tensor],
    *,
    maximize: bool = False,
    grad_scale: Any = None,
) -> tuple[Tensor, Tensor]:
    """Return <g, sign(p)> and ||g||_1 over some parameters, each of no dimension, in float64 on their device.

    Args:
        alias: ``alias_`` of the native module or of ``reference``.
        params: left as they are.
        signs: of the gradients p before, as ``alias`` keeps them; empty where there are none: then the first
            number is 0.
    """
    # The observing half of a step, on scalars of its own: the "gap" and "eta" that it begins with are 0.
    scalars = torch.zeros(len(AT), dtype=torch.float64)
    scalars[AT["step_size"]] = scalars[AT["displacement"]] = 1.0
    scalars = scalars.to(params[0].device, non_blocking=True)
    alias(
        params,
        grads,
        signs,
        [],
        [scalars],
        lr=0.0,
        memory_efficient=True,
        smoothness="sum",
        gap="descent" if signs else "lower_bound",
        lower_bound=0.0,
        max_step=0.0,
        warmup_steps=0,
        update_every=1,
        weight_decay=0.0,
        phase="refresh",
        maximize=maximize,
        grad_scale=grad_scale,
    )
    return scalars[AT["gap"]], scalars[AT["eta"]]


def before_step(scalars: Tensor, seen: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Return the scalars with eta and d brought up to date, as if nothing had moved since.

    Args:
        seen: of the gradients g of all processes, and p before them, in float64: the largest element of g,
            the smallest, <g, sign(p)>, and the 1-norm, of g - p in the base form and of g with
            ``smoothness="sum"``. A form has what it needs.
        settings: ``memory_efficient``, ``smoothness``, ``gap`` and ``update_every``.
    """
    s = dict(zip(ALIAS_SCALARS, scalars.unbind(), strict=True))
    step = s["step"] + 1
    refreshes = (step >= 2) & (torch.remainder(step - 2, settings["update_every"]) == 0)
    if not settings["memory_efficient"]:
        change = seen[3]
    elif settings["smoothness"] == "sum":
        change = seen[3] + s["grad_max"]
    else:
        change = torch.maximum((seen[0] - s["grad_min"]).abs(), (s["grad_max"] - seen[1]).abs())
    new = {"eta": torch.where(s["displacement"] != 0, s["eta"] + change / s["displacement"], s["eta"])}
    if settings["gap"] == "descent":
        new["gap"] = s["gap"] + s["step_size"] * seen[2]
        new["d"] = torch.maximum(new["gap"], s["d"])
    s.update((name, torch.where(refreshes, value, s[name])) for name, value in new.items())
    zero = torch.zeros_like(step)
    s.update(displacement=zero, step_size=zero)
    return torch.stack(list(s.values()))


def after_step(scalars: Tensor, seen: Tensor, distance: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Return the scalars that a step has left, with what all processes have seen in place of what one has.

    Args:
        seen: as for ``before_step``.
        distance: how far the parameters went, all of them.
    """
    new = scalars.clone()
    records = torch.remainder(scalars[AT["step"]] - 1, settings["update_every"]) == 0
    adds_up = settings["memory_efficient"] and settings["smoothness"] == "sum"
    for name, value in (("grad_max", seen[3] if adds_up else seen[0]), ("grad_min", seen[1])):
        new[AT[name]] = torch.where(records, value, scalars[AT[name]])
    new[AT["displacement"]] = distance
    return new
