"""torch.ops.sage_ext.*: the rules behind PyTorch's dispatcher."""

from __future__ import annotations

import inspect

import pytest
import support
import torch
from support import RULES

from sage_ext import _loader, reference


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


@pytest.mark.parametrize("rule", RULES)
def test_schema(rule: str) -> None:
    """The reference's arguments, by name, in order and with its defaults; only gradients are not written."""
    _loader.load()
    schema = getattr(torch.ops.sage_ext, f"{rule}_").default._schema
    parameters = inspect.signature(getattr(reference, f"{rule}_")).parameters.values()
    assert len(schema.returns) == 0
    for argument, parameter in zip(schema.arguments, parameters, strict=True):
        assert argument.name == parameter.name
        assert argument.kwarg_only == (parameter.kind is parameter.KEYWORD_ONLY)
        assert argument.is_write == (not argument.kwarg_only and argument.name != "grads")
        assert argument.has_default_value() == (parameter.default is not parameter.empty)
        if argument.has_default_value():
            assert argument.default_value == parameter.default
