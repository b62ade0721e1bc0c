"""GradScaler: gradients are unscaled on load, and a step with an infinity in it changes nothing."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import models
import pytest
import support
import torch
from models import BUILDERS, NAMES, TinyLanguageModel

pytestmark = pytest.mark.usefixtures("device")

Builder = Callable[..., Any]
every_optimizer = pytest.mark.parametrize("build", BUILDERS, ids=NAMES)
SCALE = 2.0**12


def scaler() -> torch.amp.GradScaler:
    kind = torch.get_default_device().type
    return torch.amp.GradScaler(kind, init_scale=SCALE, growth_interval=1000)


def scaled_backward(
    model: TinyLanguageModel, optimizer: Any, grad_scaler: torch.amp.GradScaler, seed: int
) -> None:
    optimizer.zero_grad()
    grad_scaler.scale(models.loss_of(model, seed)).backward()


def step(grad_scaler: torch.amp.GradScaler, optimizer: Any, model: TinyLanguageModel, seed: int) -> None:
    """With the loss, which is not multiplied by the scale."""
    grad_scaler.step(optimizer, loss=models.loss_of(model, seed).detach())


@pytest.fixture(params=[False, True], ids=["scaler", "kernels"])
def amp_scaling(request: pytest.FixtureRequest) -> bool:
    """Who divides by the scale and skips a step: the GradScaler, or the kernels."""
    return request.param


def copies(model: TinyLanguageModel) -> list[torch.Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def undo_scale(optimizer: Any) -> None:
    """ALIAS records the last gradient as it came, and beside it the factor that it came with."""
    for group in optimizer.param_groups:
        if (scalars := group.get("scalars")) is not None:
            for param in group["params"]:
                for prev_grad in (v for k, v in optimizer.state.get(param, {}).items() if k == "prev_grad"):
                    prev_grad.mul_(scalars[-1])
            scalars[-1] = 1.0


@every_optimizer
@pytest.mark.parametrize("unscale_first", [False, True])
def test_same_as_without_scaling(
    build: Builder, backend: str, unscale_first: bool, amp_scaling: bool
) -> None:
    """A scale that is a power of two leaves no trace, whether the user or the kernel divides by it."""
    ends = []
    for use_scaler in (False, True):
        torch.manual_seed(5)
        model = TinyLanguageModel()
        optimizer = build(model, backend=backend)
        optimizer.amp_scaling = amp_scaling
        grad_scaler = scaler()
        for seed in range(3):
            if not use_scaler:
                models.train(model, optimizer, [seed])
                continue
            scaled_backward(model, optimizer, grad_scaler, seed)
            if unscale_first:
                grad_scaler.unscale_(optimizer)
            step(grad_scaler, optimizer, model, seed)
            grad_scaler.update()
        undo_scale(optimizer)
        ends.append(models.snapshot(optimizer))
    support.assert_same_bits(*ends)


@every_optimizer
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("is_first_step", [True, False])
def test_overflow_changes_nothing(
    build: Builder, backend: str, device: torch.device, value: float, is_first_step: bool, amp_scaling: bool
) -> None:
    model = TinyLanguageModel()
    optimizer, grad_scaler = build(model, backend=backend), scaler()
    optimizer.amp_scaling = amp_scaling
    if not is_first_step:
        models.train(model, optimizer, [0])
    scaled_backward(model, optimizer, grad_scaler, 1)
    model.down.weight.grad[0, 0] = value
    weights, before = copies(model), models.snapshot(optimizer)
    step(grad_scaler, optimizer, model, 1)
    grad_scaler.update()
    support.assert_same_bits(weights, copies(model))
    assert grad_scaler.get_scale() == SCALE / 2
    if not is_first_step:
        support.assert_same_bits(before, models.snapshot(optimizer))
    elif device.type == "cpu" or not amp_scaling:
        assert len(optimizer.state) == 0
    else:  # only the device knew that the step was to be skipped, so there are states: new ones
        for group in optimizer.param_groups:
            rule = optimizer.rules[group["rule"]]
            for key, value in rule.init_shared(group).items():
                support.assert_same_bits([value], [group[key].cpu()])
            for param in group["params"]:
                new = rule.init_state(param, group) if optimizer.state.get(param) else {}
                support.assert_same_bits(list(new.values()), list(optimizer.state.get(param, {}).values()))
    scaled_backward(model, optimizer, grad_scaler, 2)
    step(grad_scaler, optimizer, model, 2)
    assert not torch.equal(before[0], models.snapshot(optimizer)[0])


def test_gradients_are_not_written(backend: str) -> None:
    model = TinyLanguageModel()
    optimizer, grad_scaler = models.sage(model, backend=backend), scaler()
    optimizer.amp_scaling = True
    scaled_backward(model, optimizer, grad_scaler, 0)
    before = [param.grad.clone() for param in model.parameters()]
    grad_scaler.step(optimizer)
    support.assert_same_bits(before, [param.grad for param in model.parameters()])


def test_scaler_leaves_nothing_behind(backend: str) -> None:
    model = TinyLanguageModel()
    optimizer, grad_scaler = models.lion(model, backend=backend), scaler()
    optimizer.amp_scaling = True
    scaled_backward(model, optimizer, grad_scaler, 0)
    grad_scaler.step(optimizer)
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")


def test_half_precision_model_with_half_precision_gradients(backend: str) -> None:
    """fp16 gradients cannot be unscaled in place, but the kernels divide on load."""
    model = TinyLanguageModel().half()
    optimizer, grad_scaler = models.sage(model, backend=backend, state_dtype=torch.float32), scaler()
    assert optimizer.amp_scaling
    before = copies(model)
    scaled_backward(model, optimizer, grad_scaler, 0)
    grad_scaler.step(optimizer)
    assert all(param.isfinite().all() for param in model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_who_scales_may_be_chosen(backend: str) -> None:
    """Lightning refuses to clip, and accelerate cannot tell a skipped step, where the optimizer divides."""
    optimizer = models.lion(TinyLanguageModel(), backend=backend)
    assert optimizer.amp_scaling is optimizer._step_supports_amp_scaling is False
    optimizer.amp_scaling = True
    assert optimizer._step_supports_amp_scaling is True
    assert pickle.loads(pickle.dumps(optimizer)).amp_scaling is True
    with pytest.raises(ValueError, match=r"^amp_scaling: got 1, expected True or False"):
        optimizer.amp_scaling = 1
    assert optimizer.amp_scaling is True
    optimizer.amp_scaling = None
    assert optimizer.amp_scaling is False
    assert models.lion(TinyLanguageModel().half(), backend=backend).amp_scaling is True


def test_no_gradients_at_all(backend: str) -> None:
    """found_inf is then the number 0 instead of a tensor."""
    optimizer = models.sage(TinyLanguageModel(), backend=backend)
    optimizer.found_inf, optimizer.grad_scale = 0, torch.tensor(SCALE)
    optimizer.step()
    assert len(optimizer.state) == 0


def test_autocast(backend: str, device: torch.device) -> None:
    model = TinyLanguageModel()
    optimizer = models.hybrid("sage")(model, backend=backend)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = models.loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
