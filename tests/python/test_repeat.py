"""A step like the last one takes what that one gathered: the same bits, and no change goes unseen."""

from __future__ import annotations

import gc
import weakref
from collections import UserDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
from sage_ext.optimizers.base import FusedOptimizer
from sage_ext.optimizers.repeat import LastStep

BUILDS: dict[str, Callable[[list[nn.Parameter]], FusedOptimizer]] = {
    "sage": lambda p: FusedSAGE(p, lr=0.01),
    "lion": lambda p: FusedLion(p, lr=0.01),
    "sign_sgd": lambda p: FusedSignSGD(p, lr=0.01),
    "signum": lambda p: FusedSignSGD(p, lr=0.01, momentum=0.9),
    "adamw": lambda p: FusedAdamW(p, lr=0.01),
    "sinkgd": lambda p: FusedSinkGD(p[:2], lr=0.1),
    "scale": lambda p: FusedSCALE(p[:2], lr=0.01, momentum=0.9),
    "alias": lambda p: FusedALIAS(p),
    "alias_base": lambda p: FusedALIAS(p, memory_efficient=False),
    "alias_adam": lambda p: FusedALIASAdam(p),
    "hybrid": lambda p: FusedHybrid(
        [{"params": p[:2], "rule": "sinkgd"}, {"params": p[2:], "rule": "adamw", "weight_decay": 0.1}]
    ),
}
SHAPES = ((6, 8), (5, 3), (7,), (4,))


class Twins:
    """The same optimizer twice; the second one never takes a step like its last."""

    def __init__(self, build: Callable[[list[nn.Parameter]], FusedOptimizer]) -> None:
        self.params = [self._params(), self._params()]
        self.optimizers = [build(params) for params in self.params]
        self.seed = 0

    @staticmethod
    def _params() -> list[nn.Parameter]:
        torch.manual_seed(1)
        return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]

    def set_grads(self) -> None:
        """New tensors, as ``zero_grad()`` and ``backward()`` leave them."""
        self.seed += 1
        for params in self.params:
            torch.manual_seed(self.seed)
            for param in params:
                param.grad = torch.randn_like(param)

    def both(self, change: Callable[[FusedOptimizer, list[nn.Parameter]], Any]) -> None:
        for optimizer, params in zip(self.optimizers, self.params, strict=True):
            change(optimizer, params)

    def step(self) -> bool:
        """Take a step with both; return whether the first took one like its last."""
        seen = []
        first, second = self.optimizers
        ready = first._last.repeats
        first._last.repeats = lambda *args: seen.append(ready(*args)) or seen[-1]  # type: ignore[method-assign]
        first.step()
        del first._last.repeats
        second._last = LastStep()
        second.step()
        return seen[0] is not None

    def check(self) -> None:
        for a, b in zip(*self.params, strict=True):
            assert torch.equal(a, b)
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        for index, state in states[1]["state"].items():
            assert states[0]["state"][index].keys() == state.keys()
            for key, value in state.items():
                assert torch.equal(states[0]["state"][index][key], value), key


@pytest.mark.parametrize("name", BUILDS)
def test_steps_have_the_bits_of_the_general_way(name: str) -> None:
    twins = Twins(BUILDS[name])
    taken = []
    for _ in range(5):
        twins.set_grads()
        taken.append(twins.step())
    assert taken == [False, True, True, True, True]
    twins.check()


def _replace_data(optimizer: FusedOptimizer, params: list[nn.Parameter]) -> None:
    params[0].data = params[0].data.clone()


def _replace_state(optimizer: FusedOptimizer, params: list[nn.Parameter]) -> None:
    optimizer.state[params[1]]["exp_avg"] = torch.full_like(params[1], 0.25)


def _replace_dict(optimizer: FusedOptimizer, params: list[nn.Parameter]) -> None:
    optimizer.state[params[1]] = {"exp_avg": torch.full_like(params[1], 0.25)}


def _move_state(optimizer: FusedOptimizer, params: list[nn.Parameter]) -> None:
    optimizer.state[params[1]] = optimizer.state.pop(params[1])


def _swap_states(optimizer: FusedOptimizer, params: list[nn.Parameter]) -> None:
    params[1].data = torch.ones(6, 8)
    params[1].grad = torch.ones(6, 8)
    state = optimizer.state
    state[params[1]]["exp_avg"] = torch.zeros(6, 8)
    state[params[0]], state[params[1]] = state[params[1]], state[params[0]]


def _forget(optimizer: FusedOptimizer, params: list[nn.Parameter]) -> None:
    optimizer.state.clear()


def _no_grad(optimizer: FusedOptimizer, params: list[nn.Parameter]) -> None:
    params[2].grad = None


def _transpose(optimizer: FusedOptimizer, params: list[nn.Parameter]) -> None:
    params[0].grad = params[0].grad.t().contiguous().t()


def _other_dtype(optimizer: FusedOptimizer, params: list[nn.Parameter]) -> None:
    params[0].grad = None
    params[0].data = params[0].data.bfloat16()
    params[0].grad = torch.ones_like(params[0])


def _swap_tensors(optimizer: FusedOptimizer, params: list[nn.Parameter]) -> None:
    params[0].grad = None
    torch.utils.swap_tensors(params[0], nn.Parameter(torch.ones(6, 8)))
    params[0].grad = torch.ones(6, 8)


def _replace_param(optimizer: FusedOptimizer, params: list[nn.Parameter]) -> None:
    del optimizer.state[params[0]]
    params[0] = nn.Parameter(torch.ones(6, 8))
    params[0].grad = torch.full((6, 8), 0.5)
    optimizer.param_groups[0]["params"][0] = params[0]


def _add_group(optimizer: FusedOptimizer, params: list[nn.Parameter]) -> None:
    params.append(nn.Parameter(torch.ones(3)))
    params[-1].grad = torch.ones(3)
    optimizer.add_param_group({"params": params[-1:]})


def _load(optimizer: FusedOptimizer, params: list[nn.Parameter]) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


def _no_rate(optimizer: FusedOptimizer, params: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["lr"] = 0.0


def _new_rate(optimizer: FusedOptimizer, params: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["lr"] = torch.tensor(0.02)


CHANGES = {
    change.__name__.strip("_"): (change, is_seen)
    for change, is_seen in (
        (_replace_data, True),
        (_replace_state, True),
        (_replace_dict, True),
        (_move_state, True),
        (_swap_states, True),
        (_forget, True),
        (_no_grad, True),
        (_transpose, True),
        (_other_dtype, True),
        (_swap_tensors, True),
        (_replace_param, True),
        (_add_group, True),
        (_load, True),
        (_no_rate, True),
        (_new_rate, False),  # nothing that was gathered
    )
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_between_steps_is_seen(name: str) -> None:
    change, is_seen = CHANGES[name]
    twins = Twins(BUILDS["lion"])
    for _ in range(3):
        twins.set_grads()
        twins.step()
    twins.set_grads()
    twins.both(change)
    assert twins.step() is not is_seen
    twins.check()
    for _ in range(2):
        twins.set_grads()
        twins.step()
    twins.check()


def test_momentum_that_begins_later_makes_its_state() -> None:
    twins = Twins(BUILDS["sign_sgd"])
    for momentum in (0.0, 0.0, 0.9, 0.9, 0.0, 0.5):
        twins.set_grads()
        twins.both(lambda optimizer, _, m=momentum: optimizer.param_groups[0].update(momentum=m))
        twins.step()
        twins.check()


def test_a_gradient_that_comes_back() -> None:
    twins = Twins(BUILDS["adamw"])
    for step in range(8):
        twins.set_grads()
        if step % 3:
            twins.both(_no_grad)
        twins.step()
        twins.check()


def _shared_memory(param: nn.Parameter) -> Tensor:
    return param.detach()


def _sparse(param: nn.Parameter) -> Tensor:
    return torch.ones_like(param).to_sparse()


def _freed(param: nn.Parameter) -> Tensor:
    grad = torch.ones_like(param)
    grad.untyped_storage().resize_(0)
    return grad


@pytest.mark.parametrize(
    ("make", "message"),
    [(_shared_memory, "shares memory"), (_sparse, "sparse"), (_freed, "freed")],
    ids=["shared", "sparse", "freed"],
)
def test_a_gradient_that_cannot_be_used_is_refused(
    make: Callable[[nn.Parameter], Tensor], message: str
) -> None:
    params = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(3))]
    optimizer = FusedLion(params, lr=0.1)
    for _ in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    before = [param.detach().clone() for param in params]
    params[0].grad = make(params[0])
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    for param, old in zip(params, before, strict=True):
        assert torch.equal(param, old)


def test_a_rate_that_cannot_be_used_is_refused() -> None:
    (param,) = params = [nn.Parameter(torch.ones(4, 4))]
    optimizer = FusedLion(params, lr=0.1)
    for lr in (0.1, 0.1, -1.0, torch.tensor([-1.0])):
        param.grad = torch.ones_like(param)
        optimizer.param_groups[0]["lr"] = lr
        before = param.detach().clone()
        if float(lr) > 0:
            optimizer.step()
            continue
        with pytest.raises(ValueError, match="lr"):
            optimizer.step()
        assert torch.equal(param, before)


def test_skipped_steps_change_nothing() -> None:
    (param,) = params = [nn.Parameter(torch.ones(4, 4))]
    optimizer = FusedAdamW(params, lr=0.1)
    for found in (0.0, 0.0, 1.0, 0.0):
        param.grad = torch.ones_like(param)
        optimizer.found_inf = torch.tensor(found)
        before = param.detach().clone()
        optimizer.step()
        assert torch.equal(param, before) == bool(found)
    assert optimizer.state[param]["step"] == 3


def test_nothing_is_kept_alive() -> None:
    """Who moves the state elsewhere, or drops it, gets its memory back at once."""
    params = [nn.Parameter(torch.ones(4, 4))]
    optimizer = FusedLion(params, lr=0.1)
    for _ in range(3):
        params[0].grad = torch.ones(4, 4)
        optimizer.step()
    watched = [weakref.ref(params[0].grad), weakref.ref(optimizer.state[params[0]]["exp_avg"])]
    watched.append(weakref.ref(optimizer.state[params[0]]["exp_avg"].untyped_storage()))
    params[0].grad = None
    optimizer.state[params[0]]["exp_avg"] = optimizer.state[params[0]]["exp_avg"].clone()
    gc.collect()
    assert [ref() for ref in watched] == [None, None, None]


@pytest.mark.filterwarnings("ignore:parameters without a gradient")
def test_a_mixture_expert_that_sees_no_token_now_and_then_costs_no_rebuilding() -> None:
    """Where steps often differ, what they found is not kept each time in vain."""
    params = [nn.Parameter(torch.ones(4, 4)) for _ in range(3)]
    optimizer = FusedLion(params, lr=0.1)
    kept = []
    for step in range(40):
        for index, param in enumerate(params):
            param.grad = None if (step + index) % 2 else torch.ones(4, 4)
        optimizer.step()
        kept.append(optimizer._last._groups is not None)
    assert sum(kept) < 12


def test_settings_that_take_more_than_tensors_are_seen() -> None:
    """A second gradient in a step is the general way's, and another form is refused."""
    for changes, message in (
        ({"same_batch": True}, "closure"),
        ({"gap": "lower_bound"}, "^gap: .*'descent'"),
    ):
        param = nn.Parameter(torch.ones(4, 4))
        optimizer = FusedALIAS([param], memory_efficient=False)
        for _ in range(3):
            param.grad = torch.randn(4, 4)
            optimizer.step()
        optimizer.param_groups[0].update(changes)
        with pytest.raises(ValueError, match=message):
            optimizer.step()


class _OwnGrad(nn.Parameter):
    @property
    def grad(self) -> Tensor | None:  # type: ignore[override]
        return self.__dict__.get("main_grad")

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self.__dict__["main_grad"] = value


def test_a_gradient_of_the_class_own_making_is_the_one_that_counts() -> None:
    params = [_OwnGrad(torch.ones(4, 4)), nn.Parameter(torch.ones(3))]
    optimizer = FusedSignSGD(params, lr=0.1)
    for step in range(1, 5):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        torch.testing.assert_close(params[0].detach(), torch.full((4, 4), 1 - 0.1 * step))


def test_groups_and_states_of_other_kinds_are_stepped() -> None:
    for kind in ("tuple", "mapping"):
        (param,) = params = [nn.Parameter(torch.ones(4, 4))]
        optimizer = FusedLion(params, lr=0.1, weight_decay=0.0)
        if kind == "tuple":
            optimizer.param_groups[0]["params"] = (param,)
        else:
            optimizer.state = _Mapping()
        for _ in range(3):
            param.grad = torch.ones_like(param)
            optimizer.step()
        torch.testing.assert_close(param.detach(), torch.full((4, 4), 0.7))


class _Mapping(UserDict):
    def __missing__(self, key: Tensor) -> dict[str, Tensor]:
        self[key] = {}
        return self[key]


def test_something_else_in_place_of_a_parameter_is_no_crash() -> None:
    params = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(3))]
    optimizer = FusedLion(params, lr=0.1, weight_decay=0.0)
    for step in range(4):
        params[0].grad = torch.ones(4, 4)
        params[1].grad = torch.ones(3)
        if step == 2:
            optimizer.param_groups[0]["params"][1] = SimpleNamespace(grad=None)
        optimizer.step()
    torch.testing.assert_close(params[0].detach(), torch.full((4, 4), 0.6))
    torch.testing.assert_close(params[1].detach(), torch.full((3,), 0.8))


@pytest.mark.parametrize("how", ["skipped", "refused"])
def test_a_step_that_is_not_taken_keeps_no_gradient(how: str) -> None:
    (param,) = params = [nn.Parameter(torch.ones(4, 4))]
    optimizer = FusedLion(params, lr=0.1)
    for _ in range(3):
        param.grad = torch.ones(4, 4)
        optimizer.step()
    param.grad = torch.ones(4, 4)
    seen = weakref.ref(param.grad.untyped_storage())
    if how == "skipped":
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step()
    else:
        optimizer.param_groups[0]["lr"] = -1.0
        with pytest.raises(ValueError, match="lr"):
            optimizer.step()
    param.grad = None
    gc.collect()
    assert seen() is None


def test_messages_name_the_parameter() -> None:
    param = nn.Parameter(torch.ones(4, 4))
    optimizer = FusedAdamW([("weight", param)], lr=0.1)
    for _ in range(3):
        param.grad = torch.ones(4, 4)
        optimizer.step()
    optimizer.state[param]["step"].fill_(-3)
    with pytest.raises(ValueError, match="weight"):
        optimizer.step()
    optimizer.state[param]["step"].fill_(3)
    optimizer.param_groups[0]["lr"] = torch.tensor([0.1, 0.2])
    with pytest.raises(ValueError, match=r"lr: got a tensor of shape \(2,\)"):
        optimizer.step()


def test_threads_lose_no_step() -> None:
    param = nn.Parameter(torch.ones(4))
    param.grad = torch.ones(4)
    optimizer = FusedAdamW([param], lr=0.0001)
    optimizer.step()
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(lambda: [optimizer.step() for _ in range(50)]) for _ in range(4)]:
            future.result()
    assert optimizer.state[param]["step"] == 201
