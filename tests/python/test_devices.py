"""What the native module says about devices, and the scalars of a step, as far as it shows without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import models
import pytest
import support
import torch
from models import TinyLanguageModel

from sage_ext import _loader
from sage_ext.optimizers import step
from sage_ext.optimizers.hybrid import RULES


def kept_keys(rule: str) -> tuple[str, ...]:
    return RULES[support.rule_of(rule)].kept_keys(support.defaults_of(rule))


every_rule = pytest.mark.parametrize("rule", RULES)
SHAPES = [(4, 5), (6, 3)]


def refuse(rule: str, tensors: support.Tensors, match: str, **changes: Any) -> None:
    before = [tensor.clone() for tensor in tensors.flat()]
    with pytest.raises(ValueError, match=match):
        support.call(_loader.load(), rule, tensors, **changes)
    on_cpu = [(a, b) for a, b in zip(before, tensors.flat(), strict=True) if a.device.type == "cpu"]
    support.assert_same_bits(*(list(side) for side in zip(*on_cpu, strict=True)))


@every_rule
def test_operators_have_kernels_for_what_was_built(rule: str) -> None:
    _loader.load()
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel(f"sage_ext::{rule}_", "CPU")
    assert has_kernel(f"sage_ext::{rule}_", "CUDA") == _loader.load().build_info()["cuda"]


@every_rule
def test_device_without_kernels(rule: str) -> None:
    tensors = support.make(rule, SHAPES)
    tensors.params[1] = tensors.params[1].to("meta")
    refuse(rule, tensors, r"^params\[1\].*device meta: .*kernels.*move the parameter to the CPU.*reference")


@every_rule
def test_gradient_elsewhere(rule: str) -> None:
    tensors = support.make(rule, SHAPES)
    tensors.grads[1] = tensors.grads[1].to("meta")
    refuse(rule, tensors, r"^grads\[1\].*device meta: it is not on its parameter's device")


@pytest.mark.parametrize(
    ("rule", "key"),
    [(rule, key) for rule in support.ALL for key in kept_keys(rule)],
)
def test_state_elsewhere(rule: str, key: str) -> None:
    tensors = support.make(rule, SHAPES)
    tensors.states[key][1] = tensors.states[key][1].to("meta")
    name = key if key.endswith("s") else f"{key}s"
    refuse(rule, tensors, rf"^{name}\[1\].*device meta: .*on its parameter's device")


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scalars_of_any_dtype(rule: str, dtype: torch.dtype) -> None:
    native = _loader.load()
    first = support.make(rule, SHAPES)
    second = first.clone()
    first.grads = [grad / 8 for grad in first.grads]
    scalars = {"lr": 0.125, "grad_scale": 8.0, "found_inf": 0.0}
    support.call(native, rule, first, **support.at_rate(rule, 0.125))
    settings = {k: torch.tensor(v, dtype=dtype) for k, v in scalars.items()}
    support.call(native, rule, second, **{**support.at_rate(rule, 0.125), **settings})
    support.assert_same_bits(first.params, second.params)


@every_rule
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_learning_rates_out_of_range(rule: str, value: float) -> None:
    for lr in (value, torch.tensor(value)):
        refuse(rule, support.make(rule, SHAPES), r"^lr is .*must be finite and at least 0", lr=lr)


@every_rule
@pytest.mark.parametrize("name", ["lr", "grad_scale", "found_inf"])
@pytest.mark.parametrize("value", [torch.ones(2), torch.ones(1, dtype=torch.int32), torch.ones(0)])
def test_scalars_that_are_none(rule: str, name: str, value: torch.Tensor) -> None:
    tensors = support.make(rule, SHAPES)
    refuse(rule, tensors, rf"^{name} must be .* or a floating-point tensor with one element", **{name: value})


def test_states_are_not_made_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu: Any = [SimpleNamespace(is_cuda=False)]
    on_gpu: Any = [*on_cpu, SimpleNamespace(is_cuda=True)]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    step.check_not_captured(on_gpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    step.check_not_captured(on_cpu)
    with pytest.raises(RuntimeError, match=r"^2 parameters have no optimizer state yet.*before capturing"):
        step.check_not_captured(on_gpu)


def test_learning_rate_of_a_checkpoint_goes_where_the_optimizers_own_is() -> None:
    """A rate on a device is never read by the host, so that meta stands for a GPU here."""
    saved = models.lion(TinyLanguageModel(), lr=torch.tensor(0.5)).state_dict()
    optimizer = models.lion(TinyLanguageModel(), lr=torch.tensor(0.25, device="meta"))
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"].device.type == "meta"
    optimizer = models.lion(TinyLanguageModel(), lr=0.25)
    optimizer.load_state_dict(saved)
    assert float(optimizer.param_groups[0]["lr"]) == 0.5
