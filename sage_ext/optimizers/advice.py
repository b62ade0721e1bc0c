"""Warnings about what is legal and rarely meant, each given once in the life of an optimizer."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from sage_ext import checks, pieces
from sage_ext.optimizers.rule import Rule
from sage_ext.optimizers.step import Call

_SHOWN = 5
_INSIDE = ("sage_ext.", "torch.")


class Advice:
    """What an optimizer has seen of its groups, and whether it has said so."""

    def __init__(self) -> None:
        self._has_stepped = False
        self._has_said_slow = False
        self._has_said_alone = False
        self._empty_steps = 0  # before the first that has moved anything
        self._apart: tuple[int, int] | None = None  # two groups of different rules whose rates differ
        # Groups that find their own step, with the rate that they had when their warm-up was over.
        self._idle: dict[int, float | None] = {}
        self._steps = 0

    def after_addition(self, groups: Sequence[Mapping[str, Any]], rules: Mapping[str, Rule]) -> None:
        """Look at a group that was just added, the last."""
        self.note(groups, rules)
        if not rules[groups[-1]["rule"]].lr_is_step:
            _say_what_is_idle(groups[-1], rules)

    def note(self, groups: Sequence[Mapping[str, Any]], rules: Mapping[str, Rule]) -> None:
        """Note what later steps are to be compared with, of the last group."""
        if not rules[groups[-1]["rule"]].lr_is_step:
            self._idle[len(groups) - 1] = None
        if self._apart is not None or not _has_rate(groups[-1], rules):
            return
        for index, group in enumerate(groups[:-1]):
            is_other = group["rule"] != groups[-1]["rule"] and _has_rate(group, rules)
            if is_other and group["lr"] != groups[-1]["lr"]:
                self._apart = (index, len(groups) - 1)
                return

    def after_step(
        self, groups: Sequence[Mapping[str, Any]], rules: Mapping[str, Rule], calls: Sequence[Call]
    ) -> None:
        """Look at the groups and at what the last step did."""
        if not self._has_said_slow:
            self._say_what_is_slow(calls)
        if not self._has_stepped and not calls:
            self._empty_steps += 1
            if self._empty_steps == 2:  # one alone may be meant: schedulers want a step before their own
                _say_nothing_moves(groups)
        if not self._has_stepped and calls:
            self._has_stepped = True
            _say_what_stays(groups)
        if self._idle:
            self._steps += 1
            self._look_at_idle_rates(groups)
        # DeepSpeed's ZeRO shows one group at a time.
        if self._apart is not None and max(self._apart) < len(groups):
            first, second = (groups[index] for index in self._apart)
            if first["lr"] == second["lr"]:
                self._say_one_rate(groups, rules)

    def before_first_loss(self, params: Sequence[Tensor]) -> None:
        """Look at parameters whose steps will go by the loss of this process alone."""
        if self._has_said_alone or pieces.has_pieces(params):  # with DTensors, the step itself averages it
            return
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return
        self._has_said_alone = True
        tell(
            f'ALIAS with gap="lower_bound" begins with the loss of this process alone, one of '
            f"{dist.get_world_size()}. If they have batches of their own (under DDP, say), their parameters "
            "will drift apart: pass process_group=torch.distributed.group.WORLD, or the group of their "
            "replicas, which averages the loss"
        )

    def _say_what_is_slow(self, calls: Sequence[Call]) -> None:
        """Nothing runs in plain PyTorch on an accelerator without a word."""
        slow = [call for call in calls if call.in_stages and call.params[0].device.type != "cpu"]
        if slow:
            self._has_said_slow = True
            count = sum(len(call.params) for call in slow)
            names = ", ".join(dict.fromkeys(call.rule.name for call in slow))
            tell(
                f"{count} sharded parameters of rules {names} are stepped in plain PyTorch between "
                "exchanges, not by fused kernels: correct, but slower"
            )

    def _look_at_idle_rates(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Say once that a schedule changes nothing, where a step is found and the warm-up is over."""
        for index, before in self._idle.items():
            group = groups[index] if index < len(groups) else None
            if group is None or isinstance(group["lr"], Tensor) or self._steps <= group["warmup_steps"]:
                continue
            if before is None:
                self._idle[index] = group["lr"]
            elif group["lr"] != before:
                self._idle = {}
                tell(
                    f"the learning rate of group {index} went from {before:.3g} to {group['lr']:.3g}, which "
                    f"changes nothing there: rule {group['rule']!r} finds its own step size, up to "
                    f"max_step={group['max_step']:g}. To lower it as well, change group['max_step']"
                )
                return

    def _say_one_rate(self, groups: Sequence[Mapping[str, Any]], rules: Mapping[str, Rule]) -> None:
        rated = [group for group in groups if _has_rate(group, rules)]
        rates = {float(group["lr"]) for group in rated}
        if len(rates) > 1 or rates == {0.0}:
            return
        self._apart = None
        names = ", ".join(dict.fromkeys(group["rule"] for group in rated))
        tell(
            f"the learning rates of rules {names} differed and are now all {rates.pop():.3g}: has a "
            "scheduler given one value to every group (a scalar max_lr of OneCycleLR, SWALR)? Each rule "
            "wants its own, for instance max_lr=[group['lr'] for group in optimizer.param_groups]"
        )


def tell(message: str) -> None:
    """Warn, in the name of the caller of torch's and this package's functions."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _say_what_is_idle(group: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Name a learning rate that somebody has chosen and nothing goes by."""
    lr, usual = group["lr"], rules[group["rule"]].defaults["lr"]
    if not isinstance(lr, Tensor) and lr != usual and lr != 0 and group["warmup_steps"] == 0:
        tell(
            f"lr={lr:g} is idle for rule {group['rule']!r}, which finds its own step size, up to "
            f"max_step={group['max_step']:g}: choose max_step, or give warmup_steps, which take lr"
        )


def _has_rate(group: Mapping[str, Any], rules: Mapping[str, Rule]) -> bool:
    """Whether the group's rate is what its rule steps by, and the host has it."""
    lr = group["lr"]
    return rules[group["rule"]].lr_is_step and not (isinstance(lr, Tensor) and lr.device.type != "cpu")


def _say_what_stays(groups: Sequence[Mapping[str, Any]]) -> None:
    """Name the parameters that had no gradient in the first step."""
    names = []
    for index, group in enumerate(groups):
        given = checks.names_of(group) or [f"param {i} of group {index}" for i in range(len(group["params"]))]
        names += [
            name
            for name, param in zip(given, group["params"], strict=True)
            if param.grad is None and param.requires_grad
        ]
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        tell(
            f"parameters without a gradient in the first step, which did not move: "
            f"{', '.join(names[:_SHOWN])}{more}. If the loss does not depend on them, leave them out of the "
            "optimizer"
        )


def _say_nothing_moves(groups: Sequence[Mapping[str, Any]]) -> None:
    params = [param for group in groups for param in group["params"]]
    if params and all(param.grad is None for param in params):
        tell(
            "no parameter of this optimizer has a gradient, so nothing moves. If backward() has run, a "
            "wrapper has put others into the model since (fully_shard does): wrap the model first, then "
            "build the optimizer from it"
        )
