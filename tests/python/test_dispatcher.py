"""torch.ops.sage_ext.*: the rules behind PyTorch's dispatcher."""

from __future__ import annotations

import pytest
import support
import torch

from sage_ext import _loader


@pytest.mark.parametrize("rule", support.ALL)
def test_what_torch_asks_of_an_operator(rule: str) -> None:
    """opcheck: what the schema says is written and nothing else is, autograd, fake tensors, compile backends.

    The last hand the arguments on by name to functions of their own: an argument called "mode" would collide
    with one of theirs.
    """
    _loader.load()
    tensors = support.make(rule, [(4, 6), (3, 5)])
    settings = support.hyper(rule)
    if settings.get("loss") is not None:
        settings["loss"] = torch.tensor(settings["loss"])
    operator = getattr(torch.ops.sage_ext, f"{support.rule_of(rule)}_")
    checks = torch.library.opcheck(operator, (tensors.params, tensors.grads, *tensors.lists), settings)
    assert set(checks.values()) == {"SUCCESS"}
