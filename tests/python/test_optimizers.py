"""What every optimizer promises as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import models
import pytest
import support
import torch
from models import BUILDERS, NAMES, TinyLanguageModel
from torch import nn

from sage_ext.optimizers import (
    FusedAdamW,
    FusedALIAS,
    FusedALIASAdam,
    FusedHybrid,
    FusedLion,
    FusedSAGE,
    FusedSCALE,
    FusedSignSGD,
    FusedSinkGD,
)

pytestmark = pytest.mark.usefixtures("device")

Builder = Callable[..., Any]
every_optimizer = pytest.mark.parametrize("build", BUILDERS, ids=NAMES)


@every_optimizer
def test_learns(build: Builder, backend: str) -> None:
    model = TinyLanguageModel()
    optimizer = build(model, backend=backend)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.backend == backend
    losses = models.train(model, optimizer, range(60))
    assert losses[-1] < losses[0] - 0.1


@every_optimizer
def test_backends_agree(build: Builder) -> None:
    ends = []
    for backend in ("reference", "native"):
        torch.manual_seed(7)
        model = TinyLanguageModel()
        models.train(model, build(model, backend=backend, lr=1e-3), range(5))
        ends.append([param.detach() for param in model.parameters()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@every_optimizer
def test_closure_runs_once_with_gradients(build: Builder, backend: str) -> None:
    model, twin = TinyLanguageModel(), TinyLanguageModel()
    twin.load_state_dict(model.state_dict())
    optimizer, other = build(model, backend=backend), build(twin, backend=backend)
    calls = []

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        calls.append(1)
        optimizer.zero_grad()
        loss = models.loss_of(model)
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert len(calls) == 1
    assert float(loss.detach()) == float(other_loss := models.backward(twin, other))
    assert other.step(loss=other_loss) is None
    support.assert_same_bits(models.snapshot(optimizer), models.snapshot(other))


def test_step_hooks(backend: str) -> None:
    model = TinyLanguageModel()
    optimizer = models.sage(model, backend=backend)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    models.train(model, optimizer, [0])
    assert seen == ["before", "after"]


@every_optimizer
def test_parameters_without_gradient_are_left_alone(build: Builder, backend: str) -> None:
    model = TinyLanguageModel()
    optimizer = build(model, backend=backend)
    models.backward(model, optimizer)
    model.up.weight.grad = None
    before = model.up.weight.detach().clone()
    models.step(optimizer)
    assert torch.equal(before, model.up.weight)
    assert model.up.weight not in optimizer.state
    for _ in range(2):  # it joins later, with a step counter of its own
        models.train(model, optimizer, [1])
    for state in optimizer.state.values():
        assert set(state) <= {"step", "exp_avg", "exp_avg_sq", "s_range", "signs", "prev_grad", "scalars"}
    if "step" in optimizer.state.get(model.up.weight, {}):
        assert float(optimizer.state[model.up.weight]["step"]) == 2
        assert float(optimizer.state[model.down.weight]["step"]) == 3


@every_optimizer
def test_step_without_any_gradient_does_nothing(build: Builder, backend: str) -> None:
    model = TinyLanguageModel()
    optimizer = build(model, backend=backend)
    before = models.snapshot(optimizer)
    optimizer.step()
    support.assert_same_bits(before, models.snapshot(optimizer))
    assert len(optimizer.state) == 0


def test_groups_have_their_own_settings(backend: str) -> None:
    first, second = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    groups = [{"params": [first], "lr": 0.5}, {"params": second, "weight_decay": 0.0, "maximize": True}]
    optimizer = FusedLion(groups, lr=0.25, weight_decay=0.1, backend=backend)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    first.grad, second.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    assert torch.equal(first, torch.full((3,), -0.5))
    assert torch.equal(second, torch.full((3,), 0.25))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_lr_as_tensor_may_change_in_place(backend: str, shape: tuple[int, ...]) -> None:
    param = nn.Parameter(torch.zeros(3))
    lr = torch.full(shape, 0.5)
    optimizer = FusedLion([param], lr=lr, backend=backend)
    param.grad = torch.ones(3)
    optimizer.step()
    lr.fill_(0.25)
    optimizer.step()
    assert torch.equal(param, torch.full((3,), -0.75))


def test_named_parameters_keep_their_names(backend: str) -> None:
    model = TinyLanguageModel()
    optimizer = FusedAdamW(model.named_parameters(), backend=backend)
    names = [name for name, _ in model.named_parameters()]
    assert optimizer.param_groups[0]["param_names"] == names
    assert [row.name for row in optimizer.describe().rows] == names
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names


def test_layers_added_later(backend: str) -> None:
    model = TinyLanguageModel()
    model.up.requires_grad_(False)
    optimizer = FusedSAGE([p for p in model.parameters() if p.requires_grad], backend=backend)
    models.train(model, optimizer, [0, 1])
    frozen = model.up.weight.detach().clone()
    model.up.requires_grad_(True)
    optimizer.add_param_group({"params": model.up.parameters(), "lr": 0.5})
    models.train(model, optimizer, [2])
    assert not torch.equal(frozen, model.up.weight)
    assert float(optimizer.state[model.up.weight]["step"]) == 1
    assert float(optimizer.state[model.down.weight]["step"]) == 3


@every_optimizer
def test_bfloat16_model(build: Builder, backend: str) -> None:
    model = TinyLanguageModel().to(torch.bfloat16)
    optimizer = build(model, backend=backend, lr=2e-2)
    losses = models.train(model, optimizer, range(60))
    assert losses[-1] < losses[0]
    for param, state in optimizer.state.items():
        for key in {"exp_avg", "exp_avg_sq", "prev_grad"} & set(state):
            # In bfloat16 Adam's second moment could not decay.
            assert state[key].dtype == (torch.float32 if "exp_avg_sq" in state else torch.bfloat16)
            assert state[key].shape == param.shape
        if "s_range" in state:
            assert state["s_range"].dtype == torch.float32
            assert state["s_range"].shape == (param.shape[1:] if param.ndim > 1 else param.shape)


@pytest.mark.parametrize("build", [models.sage, models.lion, models.adamw, models.hybrid("sinkgd")])
def test_state_dtype_and_capturable(build: Builder, backend: str) -> None:
    model = TinyLanguageModel()
    optimizer = build(model, backend=backend, state_dtype=torch.bfloat16, capturable=True)
    models.train(model, optimizer, range(2))
    with_state = [state for state in optimizer.state.values() if state]
    assert with_state
    for state in with_state:
        assert state["exp_avg"].dtype == torch.bfloat16
        assert isinstance(state.get("step", torch.ones(())), torch.Tensor)


def test_float64_runs_on_the_reference_only() -> None:
    model = TinyLanguageModel().double()
    models.train(model, models.sage(model, backend="reference"), range(2))
    with pytest.raises(ValueError, match=r"float64.*reference"):
        models.sage(model, backend="native")


def test_contiguity_where_kernels_need_it(backend: str) -> None:
    """Element-wise rules take a transposed parameter; the others do on the reference."""
    odd = nn.Parameter(torch.randn(4, 6).t())
    odd.grad = torch.ones(6, 4)
    FusedLion([odd], backend=backend).step()
    FusedAdamW([odd], backend=backend).step()
    if backend == "reference":
        FusedSAGE([odd], backend=backend).step()
        FusedSinkGD([odd], backend=backend).step()


@pytest.mark.parametrize("optimizer_class", [FusedLion, FusedAdamW])
def test_strided_parameter_gives_the_same_numbers(optimizer_class: type, backend: str) -> None:
    odd, plain = nn.Parameter(torch.randn(4, 6).t()), None
    plain = nn.Parameter(odd.detach().clone(memory_format=torch.contiguous_format))
    optimizers = [optimizer_class([param], backend=backend) for param in (odd, plain)]
    for seed in range(3):
        grad = support.normal((6, 4), torch.Generator().manual_seed(seed))
        for param, optimizer in zip((odd, plain), optimizers, strict=True):
            param.grad = grad.clone()
            optimizer.step()
    support.assert_same_bits([odd.detach()], [plain.detach()])


@every_optimizer
def test_zero_grad(build: Builder, backend: str) -> None:
    model = TinyLanguageModel()
    optimizer = build(model, backend=backend)
    models.backward(model, optimizer)
    optimizer.zero_grad(set_to_none=False)
    assert all((p.grad == 0).all() for group in optimizer.param_groups for p in group["params"])
    optimizer.zero_grad()
    assert all(p.grad is None for group in optimizer.param_groups for p in group["params"])


def test_signature_of_the_public_classes() -> None:
    """Positional arguments as torch.optim users write them."""
    param = nn.Parameter(torch.zeros(2, 2))
    sage = FusedSAGE([param], 1e-3, (0.8, 0.9), 1e-6, 0.1, momentum_first=True, instant_damper=False)
    assert sage.defaults["eps"] == 1e-6
    sinkgd = FusedSinkGD([param], 0.1, 3, 0.5, 1e-6, 0.1, normalization="unit")
    assert (sinkgd.defaults["iterations"], sinkgd.defaults["alpha"]) == (3, 0.5)
    assert FusedLion([param], 1e-4, (0.9, 0.99), 0.1).defaults["weight_decay"] == 0.1
    assert FusedAdamW([param], 1e-3, (0.9, 0.999), 1e-6, 0.1).defaults["eps"] == 1e-6
    sign_sgd = FusedSignSGD([param], 1e-4, 0.9, 0.1)
    alias_adam = FusedALIASAdam([param], 1e-3, (0.9, 0.999), 1e-6, 0.5, 0.1)
    assert [alias_adam.defaults[name] for name in ("eps", "d0", "weight_decay")] == [1e-6, 0.5, 0.1]
    assert FusedALIAS([param], max_step=0.5).defaults["max_step"] == 0.5
    with pytest.raises(TypeError, match="positional"):
        FusedALIAS([param], 1e-3)  # there is no learning rate to give
    scale = FusedSCALE([param], 1e-3, 0.9, 0, normalization="l2", eps=1e-6)
    assert (scale.defaults["momentum"], scale.defaults["dim"]) == (0.9, 0)
    assert (sign_sgd.defaults["momentum"], sign_sgd.defaults["weight_decay"]) == (0.9, 0.1)
    assert "weight_decay: 0.1" in repr(sage)


def test_sparse_embedding_gradients_are_refused(backend: str) -> None:
    model = nn.Embedding(10, 4, sparse=True)
    optimizer = FusedSAGE(model.named_parameters(), backend=backend)
    model(torch.tensor([1, 2])).sum().backward()
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match=r"weight.*sparse=False"):
        optimizer.step()
    assert torch.equal(before, model.weight)
    assert len(optimizer.state) == 0


def test_deep_copies_go_their_own_way(backend: str) -> None:
    model = TinyLanguageModel()
    optimizer = FusedHybrid(model, backend=backend)
    models.train(model, optimizer, [0])
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    before = models.snapshot(optimizer)
    models.train(twin, twin_optimizer, [1])
    support.assert_same_bits(before, models.snapshot(optimizer))
    models.train(model, optimizer, [1])
    support.assert_same_bits(models.snapshot(twin_optimizer), models.snapshot(optimizer))


def test_compiled_model_and_eager_step(backend: str) -> None:
    """A compiled forward pass leaves parameters and gradients as they are for the step."""
    model = TinyLanguageModel()
    compiled = torch.compile(model, backend="eager")
    optimizer = FusedHybrid(compiled, backend=backend)
    assert {group["role"] for group in optimizer.param_groups} == {"embedding", "lm_head", "matrix", "vector"}
    first = float(models.backward(compiled, optimizer))
    for _ in range(20):
        optimizer.step()
        last = float(models.backward(compiled, optimizer))
    assert last < first


@pytest.mark.parametrize("preset", ["sage", "alias"])
def test_step_inside_a_compiled_function(backend: str, preset: str, recwarn: pytest.WarningsRecorder) -> None:
    """The step is one graph break and nothing more, whatever the schedulers do: it is not traced, and says
    nothing."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model, twin = TinyLanguageModel(), TinyLanguageModel()
    twin.load_state_dict(model.state_dict())
    optimizer, other = (FusedHybrid(m, preset, lr=1e-2, backend=backend) for m in (model, twin))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (optimizer, other)]

    def around(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        optimizer.step()
        return y + 1

    compiled = torch.compile(around, backend="eager")
    for seed in range(4):
        models.backward(model, optimizer, seed)
        assert float(compiled(torch.tensor(3.0))) == 7
        models.train(twin, other, [seed])
        for schedule in schedules:
            schedule.step()
        assert sum(counters["graph_break"].values()) == 1
        assert counters["stats"]["unique_graphs"] == 2
    support.assert_same_bits(models.snapshot(optimizer), models.snapshot(other))
    assert not [warning for warning in recwarn if "sage_ext" in str(warning.message)]
