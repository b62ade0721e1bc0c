"""Whose state is it: parameters in another order than in the file, and what wrappers keep beside the rule's
own."""

from __future__ import annotations

import copy
import io
from typing import Any

import models
import pytest
import support
import torch
from models import BUILDERS, NAMES, TinyLanguageModel
from torch import nn

from sage_ext.optimizers import FusedAdamW, FusedHybrid, FusedLion, FusedSCALE, FusedSignSGD


class Net(nn.Module):
    def __init__(self, names: str) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Embedding(4, 4))


def stepped(names: str, backend: str, prefix: str = "") -> tuple[Net, Any]:
    """A model whose parameters have gradients 1, 2, 3 in the order of the alphabet."""
    model = Net(names)
    pairs = [(prefix + name, param) for name, param in model.named_parameters()]
    optimizer = FusedLion(pairs, backend=backend)
    for name in names:
        param = model.get_submodule(name).weight
        param.grad = torch.full((4, 4), float("abc".index(name) + 1))
    optimizer.step()
    return model, optimizer


def momenta(model: Net, optimizer: Any) -> dict[str, float]:
    return {
        name: round(100 * float(optimizer.state[module.weight]["exp_avg"][0, 0]))
        for name, module in model.named_children()
    }


class TestOrder:
    def test_state_goes_by_name(self, backend: str) -> None:
        _, optimizer = stepped("abc", backend)
        model, other = stepped("cab", backend)
        other.state.clear()
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert momenta(model, other) == {"a": 1, "b": 2, "c": 3}
        assert other.param_groups[0]["param_names"] == ["c.weight", "a.weight", "b.weight"]
        assert [row.name for row in other.describe().rows] == ["c.weight", "a.weight", "b.weight"]

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
    def test_what_wrappers_put_into_names_is_no_difference(self, prefix: str, backend: str) -> None:
        _, optimizer = stepped("abc", backend, prefix)
        model, other = stepped("bca", backend)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert momenta(model, other) == {"a": 1, "b": 2, "c": 3}
        assert other.param_groups[0]["param_names"][0] == "b.weight"

    def test_other_parameters_are_refused(self, backend: str) -> None:
        _, optimizer = stepped("ab", backend)
        _, other = stepped("bc", backend)
        before = models.snapshot(other)
        with pytest.raises(
            ValueError,
            match=r"^state_dict: group 0 .*it has 'a.weight'.*and not 'c.weight'.*delete \"param_names\"",
        ):
            other.load_state_dict(optimizer.state_dict())
        support.assert_same_bits(before, models.snapshot(other))

    def test_and_the_cure_works(self, backend: str) -> None:
        _, optimizer = stepped("ab", backend)
        model, other = stepped("bc", backend)
        saved = copy.deepcopy(optimizer.state_dict())
        del saved["param_groups"][0]["param_names"]
        other.load_state_dict(saved)
        assert momenta(model, other) == {"b": 1, "c": 2}

    def test_without_names_by_position(self, backend: str) -> None:
        _, optimizer = stepped("ab", backend)
        model = Net("ba")
        other = FusedLion(model.parameters(), backend=backend)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert momenta(model, other) == {"b": 1, "a": 2}

    def test_hybrids_always_have_names(self, backend: str) -> None:
        first, second = Net("ab"), Net("ba")
        second.load_state_dict(first.state_dict())
        optimizers = [FusedHybrid(model, "lion", backend=backend) for model in (first, second)]
        for step in range(4):
            if step == 2:
                optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
                second.load_state_dict(first.state_dict())
            for model, optimizer in zip((first, second), optimizers, strict=True):
                model.a.weight.grad = torch.full((4, 4), 1.0 - step)
                model.b.weight.grad = torch.full((4, 4), 2.0 - step)
                if step >= 2 or model is first:
                    optimizer.step()
        for name in "ab":
            support.assert_same_bits(
                [getattr(first, name).weight.detach()], [getattr(second, name).weight.detach()]
            )


class TestWrappersKeys:
    """timm's Lookahead keeps slow weights in ``optimizer.state[param]``."""

    @pytest.mark.parametrize("build", BUILDERS, ids=NAMES)
    def test_stay_and_are_saved(self, build: Any, backend: str) -> None:
        model = TinyLanguageModel().to(torch.bfloat16)
        optimizer = build(model, backend=backend)
        models.train(model, optimizer, [0])
        kept = {}
        for group in optimizer.param_groups:
            for param in group["params"]:
                optimizer.state[param]["slow"] = kept[param] = param.detach().float() + 1e-6
                optimizer.state[param]["count"] = 3
        models.train(model, optimizer, [1, 2])
        assert all(optimizer.state[param]["slow"] is slow for param, slow in kept.items())
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        twin = copy.deepcopy(model)
        other = build(twin, backend=backend)
        other.load_state_dict(torch.load(file, weights_only=True))
        for param, copied in zip(model.parameters(), twin.parameters(), strict=True):
            if param in kept:
                support.assert_same_bits([kept[param]], [other.state[copied]["slow"]])
                assert other.state[copied]["count"] == 3
                assert other.state[copied]["slow"] is not kept[param]
        models.train(model, optimizer, [3])
        models.train(twin, other, [3])
        support.assert_same_bits(
            [param.detach() for param in model.parameters()], [param.detach() for param in twin.parameters()]
        )
        assert (
            other.describe().state_bytes
            == optimizer.describe().state_bytes
            == build(twin).describe().state_bytes
        )

    @pytest.mark.parametrize("build", BUILDERS, ids=NAMES)
    def test_may_be_there_before_the_first_step(self, build: Any, backend: str) -> None:
        model = TinyLanguageModel()
        optimizer = build(model, backend=backend)
        for group in optimizer.param_groups:
            for param in group["params"]:
                optimizer.state[param]["slow"] = torch.zeros(1)
        models.train(model, optimizer, [0, 1])
        assert all("slow" in optimizer.state[p] for group in optimizer.param_groups for p in group["params"])

    @pytest.mark.parametrize("optimizer_class", [FusedSignSGD, FusedSCALE])
    def test_stay_when_the_rule_drops_its_own(self, optimizer_class: Any, backend: str) -> None:
        param = nn.Parameter(torch.ones(2, 2))
        optimizer = optimizer_class([param], momentum=0.9, backend=backend)
        param.grad = torch.ones(2, 2)
        optimizer.step()
        optimizer.state[param]["slow"] = torch.zeros(2)
        optimizer.param_groups[0]["momentum"] = 0.0
        optimizer.step()
        assert set(optimizer.state[param]) == {"slow"}

    def test_another_rules_state_is_no_wrappers(self, backend: str) -> None:
        model = TinyLanguageModel()
        theirs = models.adamw(model, backend=backend)
        models.train(model, theirs, [0])
        saved = theirs.state_dict()
        del saved["param_groups"][0]["rule"], saved["param_groups"][0]["eps"]
        ours = models.lion(model, backend=backend)
        with pytest.raises(ValueError, match=r"has exp_avg, exp_avg_sq, step; rule 'lion' keeps exp_avg"):
            ours.load_state_dict(saved)


def test_numpy_numbers_leave_as_pythons(backend: str) -> None:
    """A state dict with NumPy's numbers would not load with ``weights_only=True``."""
    numpy = pytest.importorskip("numpy")
    param = nn.Parameter(torch.ones(2))
    groups = [{"params": [param], "weight_decay": numpy.float32(0.5)}]
    optimizer = FusedAdamW(
        groups,
        lr=numpy.float64(0.1),
        betas=numpy.array([0.5, 0.75]),
        maximize=numpy.bool_(True),
        backend=backend,
    )
    param.grad = torch.ones(2)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    group = torch.load(file, weights_only=True)["param_groups"][0]
    assert (group["lr"], group["betas"], group["weight_decay"], group["maximize"]) == (
        0.1,
        (0.5, 0.75),
        0.5,
        True,
    )
    assert {type(value) for value in group["betas"]} == {float}
