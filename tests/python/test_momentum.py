"""Rules whose only state is a momentum that may be 0: no state then, and none left when it becomes 0."""

from __future__ import annotations

from typing import Any

import models
import pytest
import support
import torch
from models import TinyLanguageModel

from sage_ext import _loader

pytestmark = pytest.mark.usefixtures("device")

BUILDERS = (models.sign_sgd, models.scale)
every_builder = pytest.mark.parametrize("build", BUILDERS, ids=[build.__name__ for build in BUILDERS])


def states(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [state for state in optimizer.state_dict()["state"].values() if state]


@every_builder
def test_no_state_without_momentum(build: Any, backend: str) -> None:
    model = TinyLanguageModel()
    optimizer = build(model, backend=backend)
    models.train(model, optimizer, range(2))
    assert states(optimizer) == []
    assert optimizer.describe().state_bytes == 0


@every_builder
def test_momentum_that_comes_and_goes(build: Any, backend: str) -> None:
    """A momentum that becomes positive starts from zeros, also when there was one before."""
    model = TinyLanguageModel()
    optimizer = build(model, backend=backend)
    models.train(model, optimizer, [0])
    group = optimizer.param_groups[0]
    for _ in range(2):
        group["momentum"] = 0.75
        models.backward(model, optimizer, 1)
        expected = [0.25 * param.grad for param in group["params"]]
        optimizer.step()
        moments = [optimizer.state[param]["exp_avg"] for param in group["params"]]
        support.assert_same_bits(moments, expected)
        assert optimizer.describe().state_bytes == 4 * sum(param.numel() for param in group["params"])
        group["momentum"] = 0.0
        models.train(model, optimizer, [2])
        assert states(optimizer) == []


@every_builder
def test_momentum_changed_between_saving_and_loading(build: Any, backend: str) -> None:
    """What the loaded hyperparameters do without is left out; what they need is made at the next step."""
    model = TinyLanguageModel()
    optimizer = build(model, backend=backend, momentum=0.5)
    models.train(model, optimizer, [0])
    optimizer.param_groups[0]["momentum"] = 0.0
    twin = TinyLanguageModel()
    twin.load_state_dict(model.state_dict())
    other = build(twin, backend=backend, momentum=0.5)
    other.load_state_dict(optimizer.state_dict())
    assert states(other) == []
    for one, its in ((model, optimizer), (twin, other)):
        models.train(one, its, [1])
        its.param_groups[0]["momentum"] = 0.5
        models.train(one, its, [2])
    support.assert_same_bits(models.snapshot(optimizer), models.snapshot(other))


@every_builder
def test_moments_have_the_state_dtype(build: Any, backend: str) -> None:
    model = TinyLanguageModel().to(torch.bfloat16)
    optimizer = build(model, backend=backend, momentum=0.9, state_dtype=torch.float32)
    models.train(model, optimizer, range(2))
    assert {state["exp_avg"].dtype for state in optimizer.state.values()} == {torch.float32}
    other = build(TinyLanguageModel().to(torch.bfloat16), backend=backend)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["momentum"] == 0.9
    for a, b in zip(states(optimizer), states(other), strict=True):
        support.assert_same_bits([a["exp_avg"]], [b["exp_avg"]])


@every_builder
def test_groups_with_and_without_momentum(build: Any, backend: str) -> None:
    model = TinyLanguageModel()
    optimizer = build(model, backend=backend)
    late = torch.nn.Parameter(torch.ones(4, 4))
    optimizer.add_param_group({"params": [late], "momentum": 0.5})
    models.backward(model, optimizer)
    late.grad = torch.ones(4, 4)
    optimizer.step()
    assert [param for param, state in optimizer.state.items() if state] == [late]
    rule = _loader.load()
    assert hasattr(rule.Step(), optimizer.param_groups[0]["rule"])
