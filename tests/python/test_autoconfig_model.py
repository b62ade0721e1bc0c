"""What ``sage_ext.autoconfig`` does to a model, which is nothing, takes for a loss, and refuses."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sage_ext import FusedHybrid, autoconfig

X = torch.ones(1, 2)

# ------------------------------------------------------------------------------------- nothing has happened


class Restless(nn.Module):
    """Draws random numbers, counts in a buffer, and has running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.frozen = nn.Linear(4, 1).requires_grad_(False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1  # another tensor, not the same in place
        return self.frozen(self.body(x)).square().mean()


@pytest.mark.parametrize("breaks_in", [None, 0, 3])
def test_the_model_is_as_it_was_to_the_bit(breaks_in: int | None) -> None:
    torch.manual_seed(0)
    model = Restless()
    model.body[2].eval()
    gradient = model.body[0].weight.grad = torch.full((4, 4), 0.5)
    frozen = model.frozen.weight.grad = torch.ones(1, 4)
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffer = model.calls
    seen = []

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        seen.append(module.training and module.body[2].training)
        if len(seen) - 1 == breaks_in:
            raise KeyError("in the middle")
        return module(x) + 0 * torch.rand(())

    random = torch.get_rng_state()
    inputs = [torch.randn(5, 4) for _ in range(2)]
    torch.set_rng_state(random)
    if breaks_in is None:
        autoconfig(model, inputs, loss=loss, steps=5, lr=0.1)
        assert len(seen) == 5
    else:
        with pytest.raises(KeyError, match="in the middle"):
            autoconfig(model, inputs, loss=loss, steps=5, lr=0.1)
    assert all(seen)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model.calls is buffer
    assert model.body[0].weight.grad is gradient
    assert bool((gradient == 0.5).all())
    assert model.frozen.weight.grad is frozen
    assert model.body[0].bias.grad is None
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


class Moving(nn.Module):
    """A frozen teacher that follows, a buffer that is filled in, one that cannot be written to, a norm that
    goes a step on whenever its weight is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.teacher = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("mean", None)
        self.register_buffer("ones", torch.ones(1).expand(4))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = x.mean(0) if self.mean is None else self.mean.lerp(x.mean(0), 0.1)
        self.register_buffer("later", torch.zeros(1))
        self.teacher.weight.data.lerp_(self.body.weight, 0.1)
        self.teacher.bias.requires_grad_(True)
        return (self.body(x) - self.teacher(x) - self.ones - self.mean).square().mean()


def test_what_a_forward_changes_besides_is_put_back() -> None:
    torch.manual_seed(0)
    model = Moving()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = autoconfig(model, [torch.randn(3, 4)], steps=4)
    FusedHybrid(model)  # finds roles without looking at computed weights
    assert [block.name for block in config.blocks] == ["body.bias", "body.parametrizations.weight.original"]
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not model.teacher.bias.requires_grad


@pytest.mark.parametrize("kind", ["meta", "sparse", "sparse buffer"])
def test_what_cannot_be_compared_keeps_nothing_from_being_put_back(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].weight.data[0, 0] = -0.0
    if kind == "meta":
        model.idle = nn.Linear(2, 2, device="meta").requires_grad_(False)
    elif kind == "sparse":
        model.idle = nn.Parameter(torch.eye(2).to_sparse(), requires_grad=False)
    else:
        model.register_buffer("adjacent", torch.eye(2).to_sparse())
    before = {name: tensor.clone() for name, tensor in model[:2].state_dict().items()}
    autoconfig(model, [torch.randn(4, 2)], loss=lambda m, x: m[:2](x).square().sum(), steps=4, lr=0.1)
    for name, tensor in model[:2].state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(tensor.float().signbit(), before[name].float().signbit())


def test_groups_for_names_that_a_wrapper_has_changed() -> None:
    """Only what stands in front of all names is a wrapper's."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))
            self.module = nn.Linear(2, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x @ self.weight).square().sum()

    model = Outer()
    config = autoconfig(model, [X], steps=4)
    for other in (model, torch.compile(Outer()), nn.ModuleDict({"module": Outer()})):
        named = {name for group in config.groups_for(other) for name, _ in group["params"]}
        assert named == {name for name, _ in other.named_parameters()}
    wrapped = autoconfig(torch.compile(model, backend="eager"), [X], steps=4)
    assert len(wrapped.groups_for(model)) == len(wrapped.groups)


def test_groups_for_a_model_of_the_same_names() -> None:
    torch.manual_seed(0)
    model, other, narrow = WithLoss(), WithLoss(), nn.Module()
    config = autoconfig(model, [X], steps=4, state_bytes=0)
    twin = nn.ModuleDict({"module": other})  # as DistributedDataParallel names them
    for target in (other, twin):
        groups = config.groups_for(target)
        assert [{k: v for k, v in g.items() if k != "params"} for g in groups] == [
            {k: v for k, v in g.items() if k != "params"} for g in config.groups
        ]
        names = [[name.removeprefix("module.") for name, _ in g["params"]] for g in groups]
        assert names == [[name for name, _ in g["params"]] for g in config.groups]
        assert {id(p) for g in groups for _, p in g["params"]} == {id(p) for p in other.parameters()}
    assert FusedHybrid(pickle.loads(pickle.dumps(config)).groups_for(other)).describe().state_bytes == 0
    with pytest.raises(ValueError, match=r"model: has no trained parameter '"):
        config.groups_for(narrow)
    other.more = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"model: 'more.weight' has no rule"):
        config.groups_for(other)


def test_several_processes_want_one_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"model: there are several processes, .* DistributedDataParallel"):
        autoconfig(WithLoss(), [X], steps=4)


def test_it_follows_the_device(device: torch.device) -> None:
    """Dropout draws from the device's own generator, and states are where their parameters are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Dropout(0.5), nn.Linear(4, 3)).to(device)
    rows = [torch.tensor([1, 2, 2, 5], device=device)]

    def drawn() -> list[float]:
        torch.manual_seed(1)
        config = autoconfig(model, rows, loss=lambda m, x: m(x).square().sum(), steps=4, state_bytes=100)
        optimizer = FusedHybrid(config.groups)
        model(rows[0]).square().sum().backward()
        optimizer.step()
        states = [tensor for state in optimizer.state.values() for tensor in state.values()]
        assert {tensor.device.type for tensor in states} == {device.type}
        assert sum(t.nbytes for t in states) == config.state_bytes <= 100
        return torch.rand(3, device=device).tolist()

    # Of the generator only the step behind it has drawn.
    torch.manual_seed(1)
    model(rows[0])
    expected = torch.rand(3, device=device).tolist()
    assert drawn() == expected


# ------------------------------------------------------------------------------------------------- losses


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, wrapped: str = "object") -> Any:
        loss = self.layer(x).square().mean()
        return {"object": SimpleNamespace(loss=loss), "dict": {"loss": loss}, "itself": loss}.get(wrapped)


@pytest.mark.parametrize(
    "batch",
    [{"x": torch.ones(1, 2)}, (torch.ones(1, 2), "dict"), [torch.ones(1, 2), "itself"], torch.ones(1, 2)],
    ids=["dict", "tuple", "list", "tensor"],
)
def test_the_loss_that_a_model_computes_by_itself(batch: Any) -> None:
    assert autoconfig(WithLoss(), [batch], steps=2).risk == 0.0


def test_a_model_of_vectors_alone() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return (self.weight * x).square().sum()

    config = autoconfig(
        Scale(), [torch.ones(3)], steps=2, state_bytes=12, candidates=["adamw", "sage", "lion"]
    )
    assert config.rules == {"weight": "lion"}
    assert config.state_bytes == 12


# ------------------------------------------------------------------------------------------------- errors


class Unused(WithLoss):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(2, 2)


class Gaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4)[:, ::2])

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.t()).square().sum()


def total(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).sum()


def sparse() -> nn.Module:
    return nn.Embedding(4, 2, sparse=True)


def piece() -> nn.Module:
    model = WithLoss()
    model.layer.weight._fsdp_flattened = True
    return model


def end() -> Iterator[Tensor]:
    return iter([X, X, X])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": [nn.Parameter(X)]}, TypeError, "model: got list, expected an nn.Module"),
        ({"model": WithLoss().requires_grad_(False)}, ValueError, "requires_grad=True"),
        ({"model": WithLoss().to("meta")}, ValueError, "model: layer.weight is on the meta device"),
        (
            {"model": WithLoss().double()},
            ValueError,
            'layer.weight: .*backend="reference", .* float64',
        ),
        ({"model": Gaps}, ValueError, r"model: weight: .* without gaps; .*contiguous"),
        ({"model": piece}, ValueError, "layer.weight is a piece .* call autoconfig before fully_shard"),
        ({"model": Unused}, ValueError, "model: idle.weight had no gradient, .* requires_grad_"),
        ({"batches": [X * 0]}, ValueError, "model: layer.weight had no gradient, or zeros alone"),
        (
            {"model": sparse, "batches": [torch.tensor([1])], "loss": total},
            ValueError,
            "model: weight has a .* gradient; .* sparse=False",
        ),
        (
            {
                "model": sparse,
                "batches": [torch.tensor([1])],
                "loss": lambda m, x: m(x).sum(),
                "max_grad_norm": 1,
            },
            ValueError,
            "model: weight has a .* gradient; .* sparse=False",
        ),
        ({"batches": []}, ValueError, "batches: there is none"),
        ({"batches": end}, ValueError, "batches: an iterator that ended after 3 of 4 steps; .* steps=3"),
        ({"batches": lambda: iter([X])}, ValueError, "ended after 1 of 4 steps; .* begin again$"),
        ({"batches": [X * math.nan]}, ValueError, "loss: nan in step 1; look at that batch"),
        ({"batches": [(X, "nothing")]}, ValueError, "loss: the model returned NoneType without a loss"),
        ({"loss": lambda m, x: m.layer(x)}, ValueError, r"loss: got a tensor of shape \(1, 2\)"),
        ({"loss": lambda m, x: 1.0}, ValueError, "loss: got float"),
        ({"loss": lambda m, x: m(x).loss.detach()}, ValueError, r"loss: has no gradient.*\.detach"),
        ({"loss": lambda m, x: torch.ones((), requires_grad=True)}, ValueError, "loss: no parameter of the"),
        ({"loss": 3}, TypeError, "loss: got int, expected a function"),
        ({"state_bytes": -1}, ValueError, "state_bytes: got -1, expected a whole number of bytes >= 0"),
        ({"state_bytes": 1e6 + 0.5}, ValueError, "state_bytes: got 1000000.5, expected a whole number"),
        ({"ms": 0}, ValueError, "ms: got 0 milliseconds, expected a finite number > 0"),
        ({"steps": 1}, ValueError, "steps: got 1, expected an integer >= 2"),
        ({"lr": 0.0}, ValueError, "lr: got 0.0, expected a finite number > 0"),
        ({"lr": {"matrix": 1e-3}}, ValueError, "lr: names no rate for role 'vector'"),
        ({"lr": {"head": 1e-3}}, ValueError, "lr: 'head' is not known"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay: got -0.1"),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm: got 0.0"),
        ({"candidates": ["muon"]}, ValueError, "candidates: 'muon' is not known, expected some of 'adamw'"),
        ({"candidates": []}, ValueError, "candidates: got none"),
        (
            {"candidates": ["sinkgd"]},
            ValueError,
            "candidates: none of sinkgd applies to layer.bias, .*'adamw'",
        ),
        ({"batches": X}, TypeError, "batches: got Tensor, expected a list .* \\[batch\\]"),
        ({"batches": {"x": X}}, TypeError, "batches: got dict, expected a list"),
        ({"blocks": "layer"}, ValueError, "blocks: got 'layer', expected 'tensor' or 'role'"),
        ({"tied": None}, ValueError, "tied: got None"),
        ({"lm_head": "layers.weight"}, ValueError, "lm_head: there is no parameter named"),
        ({"hardware": "tpu"}, ValueError, "hardware: got 'tpu', expected 'a100'"),
        ({"bandwidth": -1.0}, ValueError, "bandwidth: got -1.0"),
        ({"backend": "cuda"}, ValueError, "backend: got 'cuda'"),
        ({"muon": {}}, ValueError, "argument 'muon' is not known"),
        ({"sinkgd": {"lr": 0.1}}, ValueError, "sinkgd: 'lr' cannot be given here, .* rates"),
        ({"sinkgd": {"iterations": 0}}, ValueError, "iterations: got 0 for rule 'sinkgd'"),
        ({"sinkgd": 3}, TypeError, "sinkgd: got int, expected a dict"),
        ({"adamw": {"state_dtype": torch.bfloat16}}, ValueError, "adamw: 'state_dtype' cannot be given here"),
        ({"sign_sgd": {"momentum": 0.9}, "state_bytes": 0}, ValueError, "'sign_sgd' without momentum"),
    ],
)
def test_an_error_names_the_argument_and_the_cure(
    change: dict[str, Any], error: type[Exception], says: str
) -> None:
    arguments: dict[str, Any] = {"model": WithLoss, "batches": [X], "steps": 4, **change}
    for name in ("model", "batches"):
        if isinstance(arguments[name], (type, type(end))):
            arguments[name] = arguments[name]()
    with pytest.raises(error, match=says):
        autoconfig(arguments.pop("model"), arguments.pop("batches"), **arguments)


def test_time_without_a_bandwidth_is_measured_or_refused() -> None:
    config = autoconfig(WithLoss(), [X], steps=2, ms=1e3)
    assert 1e8 < config.bandwidth < 1e13
    assert config.ms == pytest.approx(config.moved_bytes / config.bandwidth * 1e3)
    assert autoconfig(WithLoss(), [X], steps=2, hardware="h100").bandwidth == 3.35e12
    with pytest.raises(ValueError, match="ms: no bandwidth is known; give bandwidth= or hardware="):
        autoconfig(WithLoss(), [X], steps=2).within(ms=1.0)
