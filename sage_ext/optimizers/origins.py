"""Which optimizer has saved a group that names no rule, as far as its keys tell.

Every optimizer calls its rate ``lr``, and many have ``weight_decay``, ``betas`` and states of the same names.
A group of another would load, and training go on with its numbers, which mean something else here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_ext.optimizers.rule import Rule

_MARKS = (
    ("ns_coefficients", "torch.optim.Muon"),
    ("dampening", "torch.optim.SGD"),
    ("nesterov", "torch.optim.SGD"),
    ("momentum_decay", "torch.optim.NAdam"),
    ("etas", "torch.optim.Rprop"),
    ("lambd", "torch.optim.ASGD"),
    ("centered", "torch.optim.RMSprop"),
    ("initial_accumulator_value", "torch.optim.Adagrad"),
    ("beta2_decay", "torch.optim.Adafactor"),
    ("line_search_fn", "torch.optim.LBFGS"),
    ("clip_threshold", "transformers.Adafactor"),
    ("d_coef", "Prodigy"),
    ("numerator_weighted", "D-Adaptation"),
    ("train_mode", "a schedule-free optimizer"),
    ("update_proj_gap", "GaLore or APOLLO"),
)
"""A key that is in the groups of no other optimizer but those behind it, and whose they are."""
_ADAMS = ("amsgrad", "bias_correction", "correct_bias")
"""What the groups of Adam and AdamW have in torch, in apex and DeepSpeed, and in older transformers."""
_SHARED = ("betas", "eps", "momentum")
"""Hyperparameters that some of the rules here have, and other optimizers too."""


def check(index: int, saved: Mapping[str, Any], rule: Rule) -> None:
    """Raise ValueError if a saved group without a rule's name cannot be one of ``rule``.

    What has no mark of another optimizer passes: lion-pytorch's groups have ``lr``, ``betas`` and
    ``weight_decay``.
    """
    if "rule" in saved:
        return
    for key, name in _MARKS:
        if key in saved:
            _refuse(index, f"looks like one of {name} (it has {key!r})", rule)
    adams = [key for key in _ADAMS if key in saved]
    if adams and rule.name != "adamw":
        _refuse(index, f"looks like one of Adam or AdamW (it has {adams[0]!r})", rule)
    if adams:
        _check_adam(index, saved)
    elif "decoupled_weight_decay" in saved:
        key = "'decoupled_weight_decay' and no 'amsgrad'"
        _refuse(index, f"looks like one of torch.optim.RAdam (it has {key})", rule)
    elif "differentiable" in saved:
        name = (
            "torch.optim.Adamax"
            if "betas" in saved
            else "torch.optim.Adadelta"
            if "rho" in saved
            else "torch"
        )
        _refuse(index, f"looks like one of {name} (it has 'differentiable' and no 'amsgrad')", rule)
    if others := [key for key in _SHARED if key in saved and key not in rule.defaults]:
        _refuse(index, f"names no rule and has {', '.join(map(repr, others))}", rule)
    if "betas" in saved and "eps" not in saved and "eps" in rule.defaults:
        _refuse(index, "looks like one of Lion (it has 'betas' and no 'eps')", rule)


def _check_adam(index: int, saved: Mapping[str, Any]) -> None:
    """Raise ValueError if a group of Adam or AdamW takes other steps than AdamW does here."""
    if saved.get("amsgrad"):
        raise ValueError(
            f"state_dict: group {index} has amsgrad=True, whose max_exp_avg_sq rule 'adamw' does not keep; "
            "begin with new state"
        )
    for key in ("bias_correction", "correct_bias"):
        if not saved.get(key, True):
            raise ValueError(
                f"state_dict: group {index} has {key}=False, and rule 'adamw' corrects the bias of its "
                "moments; begin with new state"
            )
    if saved.get("decoupled_weight_decay") is False and saved.get("weight_decay"):
        raise ValueError(
            f"state_dict: group {index} looks like one of torch.optim.Adam (its 'decoupled_weight_decay' is "
            f"False), and its weight_decay of {saved['weight_decay']} is an L2 penalty there, but decoupled "
            "in rule 'adamw'; in the saved group set weight_decay to 0, or decoupled_weight_decay to True to "
            "have it decoupled from here on, or begin with new state"
        )


def _refuse(index: int, what: str, rule: Rule) -> None:
    raise ValueError(
        f"state_dict: group {index} {what}, and this optimizer's group has rule {rule.name!r}, to which its "
        "hyperparameters and state mean something else; begin with new state, and with a rate for this rule"
    )
