"""What ALIAS and ALIAS-Adam keep: how much it is, and how it is saved, loaded and copied."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import models
import pytest
import support
import torch
from models import TinyLanguageModel
from torch import nn

from sage_ext.optimizers import FusedALIAS, FusedALIASAdam, FusedHybrid
from sage_ext.reference.alias import ALIAS_SCALARS

BUILDERS = [
    models.alias,
    models.alias_lower_bound,
    models.alias_base,
    models.alias_sum,
    models.alias_adam,
]
every_builder = pytest.mark.parametrize("build", BUILDERS, ids=[build.__name__ for build in BUILDERS])
every_form = pytest.mark.parametrize("build", BUILDERS[:4], ids=[build.__name__ for build in BUILDERS[:4]])
Builder = Callable[..., Any]


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def trained(build: Builder, backend: str, steps: int = 3, **changes: Any) -> tuple[Any, Any]:
    torch.manual_seed(11)
    model = TinyLanguageModel()
    optimizer = build(model, backend=backend, **changes)
    models.train(model, optimizer, range(steps))
    return model, optimizer


class TestBytes:
    @pytest.mark.parametrize("count", [1, 32, 33, 10_000])
    def test_of_each_form(self, backend: str, count: int) -> None:
        for changes, expected in (
            ({}, 8 * -(-count // 32)),
            ({"memory_efficient": False}, 4 * count),
            ({"gap": "lower_bound"}, 0),
            ({"smoothness": "sum"}, 8 * -(-count // 32)),
            ({"memory_efficient": False, "gap": "lower_bound"}, 4 * count),
        ):
            param = nn.Parameter(torch.ones(count))
            optimizer = FusedALIAS([param], backend=backend, **changes)
            before = optimizer.describe()
            assert before.state_bytes == expected + 72
            assert before.rows[0].state_bytes == expected
            param.grad = torch.ones(count)
            optimizer.step(loss=1.0)
            held = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
            assert held == expected
            assert optimizer.param_groups[0]["scalars"].nbytes == 72
            assert optimizer.describe() == before
            if changes == {"gap": "lower_bound"}:
                assert not optimizer.state.get(param)

    def test_shared_scalars_count_once_a_group(self) -> None:
        groups = [{"params": [nn.Parameter(torch.ones(32)) for _ in range(3)]} for _ in range(2)]
        description = FusedALIAS(groups).describe()
        assert description.state_bytes == 2 * 72 + 6 * 8
        assert description.totals["alias"].state_bytes == description.state_bytes

    def test_of_alias_adam(self, backend: str) -> None:
        model = nn.Linear(100, 7)
        optimizer = FusedALIASAdam(model.parameters(), backend=backend)
        assert [row.state_bytes for row in optimizer.describe().rows] == [
            8 * 700 + 8 * 22 + 16,
            8 * 7 + 8 + 16,
        ]

    def test_of_a_llama_on_the_meta_device(self) -> None:
        """1.3 billion parameters: under 0.4 GB with descent, under 1 MB with the lower bound."""
        with torch.device("meta"):
            params = [nn.Parameter(torch.empty(2048, 2048)) for _ in range(310)]
        assert FusedALIAS(params).describe().state_bytes < 0.4e9
        assert FusedALIAS(params, gap="lower_bound").describe().state_bytes == 72

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_last_gradient_has_the_gradients_dtype(self, backend: str, dtype: torch.dtype) -> None:
        param = nn.Parameter(torch.ones(5, dtype=dtype))
        optimizer = FusedALIAS([param], memory_efficient=False, backend=backend)
        param.grad = torch.full((5,), -0.5, dtype=dtype)
        optimizer.step()
        support.assert_same_bits([optimizer.state[param]["prev_grad"]], [param.grad])


class TestFiles:
    @every_builder
    def test_everything_survives(self, build: Builder, backend: str) -> None:
        model, optimizer = trained(build, backend)
        saved = through_a_file(optimizer.state_dict())
        twin = TinyLanguageModel()
        twin.load_state_dict(model.state_dict())
        other = build(twin, backend=backend)
        other.load_state_dict(saved)
        support.assert_same_bits(models.snapshot(optimizer), models.snapshot(other))
        assert other.step_size() == optimizer.step_size()
        for a, b in ((model, optimizer), (twin, other)):  # the lower bound needs no loss any more
            for seed in range(3):
                models.backward(a, b, seed)
                b.step()
        support.assert_same_bits(models.snapshot(optimizer), models.snapshot(other))

    @every_form
    def test_saved_before_the_first_step(self, build: Builder, backend: str) -> None:
        _, optimizer = trained(build, backend, 0)
        saved = through_a_file(optimizer.state_dict())
        assert saved["param_groups"][0]["scalars"] is None
        model, other = trained(build, backend, 2)
        other.load_state_dict(saved)
        assert math.isnan(other.step_size())
        models.train(model, other, [0])
        assert float(other.param_groups[0]["scalars"][0]) == 1

    def test_loss_is_needed_again_after_loading_a_beginning(self, backend: str) -> None:
        _, optimizer = trained(models.alias_lower_bound, backend, 0)
        model, other = trained(models.alias_lower_bound, backend, 2)
        other.load_state_dict(optimizer.state_dict())
        models.backward(model, other)
        with pytest.raises(ValueError, match=r"^loss: got None"):
            other.step()

    @every_form
    def test_loaded_scalars_are_no_part_of_the_dict(self, build: Builder, backend: str) -> None:
        model, optimizer = trained(build, backend)
        other = build(TinyLanguageModel(), backend=backend)
        other.load_state_dict(optimizer.state_dict())
        held = other.param_groups[0]["scalars"].clone()
        models.train(model, optimizer, [5])
        support.assert_same_bits([held], [other.param_groups[0]["scalars"]])

    @every_builder
    def test_copies_and_pickles_go_their_own_way(self, build: Builder, backend: str) -> None:
        model, optimizer = trained(build, backend)
        copies = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
        before = models.snapshot(optimizer)
        for twin, other in copies:
            models.backward(twin, other, 4)
            other.step()
        support.assert_same_bits(before, models.snapshot(optimizer))
        models.backward(model, optimizer, 4)
        optimizer.step()
        for _, other in copies:
            support.assert_same_bits(models.snapshot(optimizer), models.snapshot(other))

    def test_last_gradient_keeps_its_dtype(self, backend: str) -> None:
        """torch would cast it to the parameter's."""
        model = TinyLanguageModel().to(torch.bfloat16)
        optimizer = models.alias_base(model, backend=backend)
        models.train(model, optimizer, range(2))
        other = models.alias_base(TinyLanguageModel().to(torch.bfloat16), backend=backend)
        other.load_state_dict(through_a_file(optimizer.state_dict()))
        support.assert_same_bits(models.snapshot(optimizer)[2::2], models.snapshot(other)[2::2])
        assert {state["prev_grad"].dtype for state in other.state.values()} == {torch.bfloat16}

    def test_gradients_of_another_dtype_later(self) -> None:
        """The kernels refuse to compare them, and say what to do, which works."""
        model = TinyLanguageModel().to(torch.bfloat16)
        optimizer = models.alias_base(model, backend="native")
        models.train(model, optimizer, range(2))
        twin = TinyLanguageModel()
        other = models.alias_base(twin, backend="native")
        other.load_state_dict(optimizer.state_dict())
        models.backward(twin, other)
        before = models.snapshot(other)
        match = r"param 0 of group 0.*BFloat16.*dtype, which is float32.*clear the optimizer's state"
        with pytest.raises(ValueError, match=match):
            other.step()
        support.assert_same_bits(before, models.snapshot(other))
        other.state.clear()
        other.step()
        assert {state["prev_grad"].dtype for state in other.state.values()} == {torch.float32}

    @pytest.mark.parametrize(
        ("name", "value"), [("memory_efficient", False), ("smoothness", "sum"), ("gap", "lower_bound")]
    )
    def test_form_that_changes(self, backend: str, name: str, value: Any) -> None:
        """eta and d of another form are other numbers: an error that says so, and a cure that works."""
        model, optimizer = trained(models.alias, backend)
        group = optimizer.param_groups[0]
        old, group[name] = group[name], value
        models.backward(model, optimizer)
        before = models.snapshot(optimizer)
        match = (
            rf"{name}: got {value!r} in param group 0, expected {old!r} as in.*clear optimizer.state.*None"
        )
        with pytest.raises(ValueError, match=match):
            optimizer.step(loss=1.0)
        support.assert_same_bits(before, models.snapshot(optimizer))
        optimizer.state.clear()
        group["scalars"] = None
        optimizer.step(loss=1.0)
        assert group["scalars"][ALIAS_SCALARS.index("step")] == 1

    def test_before_there_was_a_smoothness(self, backend: str) -> None:
        """A file without the argument, from the form that there was: it goes on bit for bit."""
        model, optimizer = trained(models.alias, backend)
        saved = through_a_file(optimizer.state_dict())
        del saved["param_groups"][0]["smoothness"]
        twin = TinyLanguageModel()
        twin.load_state_dict(model.state_dict())
        other = models.alias(twin, backend=backend)
        other.load_state_dict(saved)
        for a, b in ((model, optimizer), (twin, other)):
            models.train(a, b, range(3, 5))
        support.assert_same_bits(models.snapshot(optimizer), models.snapshot(other))


class TestRefused:
    """A state dict that does not fit, and nothing has changed."""

    def refuse(self, optimizer: Any, saved: dict[str, Any], match: str) -> None:
        before = models.snapshot(optimizer)
        with pytest.raises(ValueError, match=match):
            optimizer.load_state_dict(saved)
        support.assert_same_bits(before, models.snapshot(optimizer))

    @pytest.mark.parametrize(
        "value",
        [
            torch.zeros(8, dtype=torch.float64),
            torch.zeros(9),
            [0.0] * 9,
            torch.zeros((), dtype=torch.float64),
        ],
    )
    def test_scalars(self, backend: str, value: Any) -> None:
        _, optimizer = trained(models.alias, backend)
        saved = copy.deepcopy(optimizer.state_dict())
        saved["param_groups"][0]["scalars"] = value
        self.refuse(
            optimizer, saved, r"^state_dict: group 0: the saved 'scalars' is .*shape \(9,\) .*float64"
        )

    @pytest.mark.parametrize("build", [models.alias, models.alias_adam])
    def test_planes_of_another_shape(self, build: Builder, backend: str) -> None:
        _, optimizer = trained(build, backend)
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0]["signs"] = torch.zeros(2, 7, dtype=torch.int32)
        self.refuse(optimizer, saved, r"param 0 of group 0.*'signs' has shape \(2, 7\), expected \(2, 8\)")

    @pytest.mark.parametrize("build", [models.alias, models.alias_adam])
    @pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
    def test_planes_of_another_dtype(self, build: Builder, backend: str, dtype: torch.dtype) -> None:
        """Bits are not numbers: a conversion would not keep them."""
        _, optimizer = trained(build, backend)
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0]["signs"] = saved["state"][0]["signs"].to(dtype)
        self.refuse(optimizer, saved, rf"param 0 of group 0.*'signs' has dtype {dtype}, expected torch.int32")

    def test_other_forms(self, backend: str) -> None:
        _, optimizer = trained(models.alias, backend)
        saved = copy.deepcopy(trained(models.alias_base, backend)[1].state_dict())
        saved["param_groups"][0]["memory_efficient"] = True
        self.refuse(
            optimizer, saved, r"param 0 of group 0.*saved state has nothing; rule 'alias' keeps signs"
        )

    def test_another_rule(self, backend: str) -> None:
        _, optimizer = trained(models.alias, backend)
        saved = trained(models.alias_adam, backend)[1].state_dict()
        self.refuse(optimizer, saved, "group 0 was saved with rule 'alias_adam'.*'alias'")


def test_hybrid_files(backend: str) -> None:
    model, optimizer = trained(models.hybrid("alias"), backend)
    twin = TinyLanguageModel()
    twin.load_state_dict(model.state_dict())
    other = FusedHybrid(twin, "alias", backend=backend)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    models.train(model, optimizer, range(3, 6))
    models.train(twin, other, range(3, 6))
    support.assert_same_bits(models.snapshot(optimizer), models.snapshot(other))
