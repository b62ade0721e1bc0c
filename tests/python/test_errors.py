"""Wrong arguments: an error that names the argument or the tensor and the cure, before anything has
changed."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import models
import numpy as np
import pytest
import support
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

WITH_STATE = [FusedSAGE, FusedLion, FusedSignSGD, FusedSCALE, FusedALIASAdam, FusedAdamW]
CLASSES = [*WITH_STATE, FusedSinkGD, FusedALIAS]
WITH_MOMENTUM = [FusedSignSGD, FusedSCALE]


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape, dtype=dtype))


HYPERPARAMETERS: list[tuple[Any, str, Any]] = [
    *((c, "lr", value) for c in CLASSES for value in (-1.0, float("nan"), float("inf"), "0.1", None, True)),
    *((c, "lr", torch.ones(2)) for c in CLASSES),
    *((c, "lr", torch.tensor(-1.0)) for c in CLASSES),
    *((c, "lr", torch.tensor(1)) for c in CLASSES),
    *((c, "weight_decay", value) for c in CLASSES for value in (-0.1, float("nan"), None)),
    *((c, "maximize", value) for c in CLASSES for value in (1, None)),
    *((c, "eps", -1e-8) for c in (FusedSAGE, FusedSinkGD, FusedSCALE, FusedALIASAdam, FusedAdamW)),
    *(
        (c, "betas", value)
        for c in (FusedSAGE, FusedLion, FusedALIASAdam, FusedAdamW)
        for value in (
            (0.9, 1.0),
            (-0.1, 0.9),
            (0.9,),
            0.9,
            (0.9, float("nan")),
            ("a", "b"),
            (0.9, 0.99, 0.999),
        )
    ),
    *((c, "state_dtype", value) for c in WITH_STATE for value in (torch.int8, "bf16")),
    *((c, "capturable", None) for c in WITH_STATE),
    *(
        (c, "momentum", value)
        for c in WITH_MOMENTUM
        for value in (1.0, -0.1, float("nan"), None, "0.9", True)
    ),
    *((FusedSAGE, name, 1) for name in ("momentum_first", "instant_damper")),
    *((FusedSinkGD, "iterations", value) for value in (0, -1, 2.0, True)),
    *((FusedSinkGD, "alpha", value) for value in (-1.0, float("inf"))),
    *((FusedSinkGD, "normalization", value) for value in ("l2", None)),
    *((FusedSCALE, "normalization", value) for value in ("sqrt", None)),
    *((FusedSCALE, "dim", value) for value in (2, -1, True, 1.0, None)),
    *((FusedALIAS, name, value) for name in ("d0", "eta0") for value in (-1.0, float("inf"), None, True)),
    *((FusedALIAS, "lower_bound", value) for value in (float("inf"), float("nan"), None)),
    *((FusedALIAS, "max_step", value) for value in (0.0, -1.0, float("inf"), float("nan"), None)),
    *((FusedALIAS, "warmup_steps", value) for value in (-1, 1.0, True, None)),
    *((FusedALIAS, "update_every", value) for value in (0, -1, 1.0, True, None)),
    *((FusedALIAS, "smoothness", value) for value in ("max", None)),
    *((FusedALIAS, "gap", value) for value in ("upper", None)),
    *((FusedALIAS, name, 1) for name in ("memory_efficient", "same_batch", "capturable")),
    *((FusedALIASAdam, "d0", value) for value in (0.0, -1.0, float("nan"), None)),
]


@pytest.mark.parametrize(("optimizer_class", "name", "value"), HYPERPARAMETERS)
def test_hyperparameters_by_name(optimizer_class: Any, name: str, value: Any) -> None:
    """In the constructor, in a group, and in a group that is changed between steps."""
    with pytest.raises(ValueError, match=f"^{name}: got .* expected"):
        optimizer_class([parameter(2, 2)], **{name: value}, backend="reference")
    with pytest.raises(ValueError, match=f"^{name}: got .* in param group 0, expected"):
        optimizer_class([{"params": [parameter(2, 2)], name: value}], backend="reference")
    param = parameter(2, 2)
    optimizer = optimizer_class([param], backend="reference")
    optimizer.param_groups[0][name] = value
    param.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match=f"^{name}: got .* in param group 0, expected"):
        optimizer.step()
    assert (param == 1).all()
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("optimizer_class", CLASSES)
def test_keywords_that_it_does_not_take(optimizer_class: Any) -> None:
    known = list(inspect.signature(optimizer_class).parameters)
    assert known[0] == "params"
    arguments = inspect.getfullargspec(optimizer_class.__init__)
    assert [*arguments.args, *arguments.kwonlyargs] == ["self", *known]
    assert arguments.varkw is None
    takes = f"It takes {', '.join(known)}$"
    for name, cure in {
        "fused": "leave it out: ",
        "foreach": "leave it out: ",
        "amsgrad": "leave it out: ",
        "differentiable": "leave it out: ",
        "wd": rf"did you mean 'weight_decay'\? {takes}",
        "weight_deacy": rf"did you mean 'weight_decay'\? {takes}",
        "preset": takes,
    }.items():
        message = rf"^{optimizer_class.__name__}: argument '{name}' is not known; {cure}"
        with pytest.raises(TypeError, match=message):
            optimizer_class([parameter(2, 2)], lr=0.1, **{name: False})


def test_keywords_that_a_hybrid_does_not_take() -> None:
    with pytest.raises(ValueError, match=r"^argument 'fused' is not known; leave it out: "):
        FusedHybrid(nn.Linear(2, 2), fused=True)  # type: ignore[arg-type]


def test_a_subclass_may_take_more() -> None:
    class Mine(FusedLion):
        def __init__(self, params: Any, speed: float, **rest: Any) -> None:
            super().__init__(params, lr=speed, **rest)

    assert Mine([parameter(2)], speed=0.5, weight_decay=0.1).param_groups[0]["lr"] == 0.5
    with pytest.raises(TypeError, match=r"^Mine: argument 'wd' is not known"):
        Mine([parameter(2)], speed=0.5, wd=0.1)


@pytest.mark.parametrize("optimizer_class", CLASSES)
def test_backend_by_name(optimizer_class: Any) -> None:
    with pytest.raises(
        ValueError, match=r"backend: got 'cuda', expected one of 'auto', 'native', 'reference'"
    ):
        optimizer_class([parameter(2, 2)], backend="cuda")


def expanded() -> Tensor:
    return torch.ones(1, 4).expand(3, 4)


# kind -> (how to make it, dtype in the message, cure in the message)
UNUSABLE = {
    "complex": (lambda: parameter(2, 2, dtype=torch.complex64), "torch.complex64", "view_as_real"),
    "integer": (lambda: torch.ones(2, 2, dtype=torch.int32), "torch.int32", "to a floating dtype"),
    "float8": (
        lambda: torch.ones(2, 2).to(torch.float8_e4m3fn),
        "torch.float8_e4m3fn",
        "to a floating dtype",
    ),
    "sparse": (lambda: torch.ones(2, 2).to_sparse(), "torch.float32", r"sparse_coo.*to_dense\(\)"),
    "expanded": (expanded, "torch.float32", r"strides \(0, 1\).*\.contiguous\(\)"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
@pytest.mark.parametrize("optimizer_class", CLASSES)
def test_parameters_that_cannot_be_optimised(optimizer_class: Any, kind: str, backend: str) -> None:
    build, dtype, cure = UNUSABLE[kind]
    good = parameter(2, 2)
    with pytest.raises(ValueError, match=rf"^odd \(param 1 of group 0, shape .*{dtype}, cpu\): .*{cure}"):
        optimizer_class([("good", good), ("odd", build())], backend=backend)
    optimizer = optimizer_class([good], backend=backend)
    with pytest.raises(ValueError, match=rf"^param 0 of group 1 \(shape \(.*, {dtype}, cpu\): .*{cure}"):
        optimizer.add_param_group({"params": [build()]})
    assert len(optimizer.param_groups) == 1


def test_vectors_for_sinkgd(backend: str) -> None:
    for shape in ((), (3,)):
        with pytest.raises(
            ValueError, match=r"bias \(param 0 of group 0.*2 or more dimensions.*SAGE, Lion or AdamW"
        ):
            FusedSinkGD([("bias", parameter(*shape))], backend=backend)


def test_vectors_for_scale(backend: str) -> None:
    for shape in ((), (3,)):
        with pytest.raises(
            ValueError, match=r"bias \(param 0 of group 0.*2 or more dimensions.*parameter to AdamW \("
        ):
            FusedSCALE([("bias", parameter(*shape))], backend=backend)


@pytest.mark.parametrize("optimizer_class", [FusedSAGE, FusedSinkGD, FusedSCALE, FusedALIAS, FusedALIASAdam])
def test_not_contiguous(optimizer_class: Any) -> None:
    odd = nn.Parameter(torch.ones(4, 6).t())
    with pytest.raises(
        ValueError, match=r"contiguous parameter.*strides are \(1, 6\).*\.contiguous\(\).*reference"
    ):
        optimizer_class([odd], backend="native")


@pytest.mark.parametrize("optimizer_class", [FusedLion, FusedSignSGD, FusedAdamW])
def test_gaps_in_memory(optimizer_class: Any) -> None:
    odd = nn.Parameter(torch.ones(4, 12)[:, ::2])
    with pytest.raises(ValueError, match=r"without gaps.*strides are \(12, 2\)"):
        optimizer_class([odd], backend="native")
    optimizer_class([odd], backend="reference")


class TestSharedMemory:
    def test_same_parameter_twice(self, backend: str) -> None:
        param, other = parameter(2, 2), parameter(2, 2)
        with pytest.raises(ValueError, match=r"param 2 of group 0 .*same parameter as param 0 of group 0"):
            FusedLion([param, other, param], backend=backend)
        with pytest.raises(ValueError, match=r"more than one parameter group"):
            FusedLion([{"params": [param]}, {"params": [param]}], backend=backend)
        optimizer = FusedLion([param], backend=backend)
        with pytest.raises(ValueError, match=r"param 0 of group 1 .*same parameter as param 0 of group 0"):
            optimizer.add_param_group({"params": [param]})
        assert len(optimizer.param_groups) == 1

    def test_overlapping_views(self, backend: str) -> None:
        storage = torch.zeros(10)
        first, second = nn.Parameter(storage[:6]), nn.Parameter(storage[5:])
        for groups in ([first, second], [{"params": [first]}, {"params": [second]}]):
            with pytest.raises(ValueError, match=r"shares memory with param 0 of group 0"):
                FusedLion(groups, backend=backend)

    def test_view_within_a_view(self, backend: str) -> None:
        storage = torch.zeros(100)
        views = [storage[:], storage[2:3], storage[50:60]]
        with pytest.raises(ValueError, match="shares memory"):
            FusedLion([nn.Parameter(view) for view in views], backend=backend)

    def test_views_side_by_side_are_fine(self, backend: str) -> None:
        storage = torch.zeros(4, 6)
        FusedLion([nn.Parameter(row) for row in storage], backend=backend)
        FusedLion([nn.Parameter(storage[:2]), nn.Parameter(storage[2:])], backend=backend)

    def test_interleaved_views_do_not_overlap(self) -> None:
        storage = torch.zeros(4, 6)
        FusedLion([nn.Parameter(storage[:, :3]), nn.Parameter(storage[:, 3:])], backend="reference")
        with pytest.raises(ValueError, match="shares memory"):
            FusedLion([nn.Parameter(storage[:, :4]), nn.Parameter(storage[:, 3:])], backend="reference")

    @pytest.mark.parametrize("strides", [(2, 1), (1, 1), (0, 3), (1, 2)])
    def test_windows_into_one_memory(self, strides: tuple[int, int], backend: str) -> None:
        window = torch.zeros(20).as_strided((3, 3), strides)
        with pytest.raises(ValueError, match="make elements share memory"):
            FusedLion([window], backend=backend)

    @pytest.mark.parametrize("strides", [(3, 1), (1, 3), (7, 2), (2, 5)])
    def test_strides_that_reach_every_element_once(self, strides: tuple[int, int]) -> None:
        FusedLion([torch.zeros(20).as_strided((3, 3), strides)], backend="reference")

    def test_empty_parameters_share_nothing(self, backend: str) -> None:
        storage = torch.zeros(4)
        FusedLion([nn.Parameter(storage), nn.Parameter(storage[2:2])], backend=backend)


class TestGroups:
    def test_failed_group_leaves_the_optimizer_as_it_was(self, backend: str) -> None:
        first, new = parameter(2, 2), parameter(3)
        optimizer = FusedSAGE([("a", first)], backend=backend)
        before = optimizer.state_dict()
        refused = [
            ({"params": [("b", new)], "betas": (2.0, 0.0)}, r"betas: got .* in param group 1"),
            ({"params": [("b", new), ("c", first)]}, r"c \(param 1 of group 1.*same parameter as a \("),
            ({"params": [new]}, r"with/without names"),
            ({"params": [("b", new), parameter(2)]}, r"1 of 2 have a name in group 1"),
            ({"params": [("b", new * 1.0)]}, r"non-leaf"),
            (
                {"params": [("b", new)], "rule": "lion"},
                r"rule: got 'lion' in param group 1, expected one of 'sage'",
            ),
        ]
        for group, match in refused:
            with pytest.raises(ValueError, match=match):
                optimizer.add_param_group(group)
            assert optimizer.state_dict() == before
        optimizer.add_param_group({"params": [("b", new)]})
        assert len(optimizer.param_groups) == 2

    def test_types(self, backend: str) -> None:
        with pytest.raises(TypeError, match=r"item 1 of group 0 is str"):
            FusedSAGE([parameter(2), "w"], backend=backend)
        with pytest.raises(TypeError, match=r"set"):
            FusedSAGE([{"params": {parameter(2)}}], backend=backend)
        with pytest.raises(TypeError, match=r"Tensor"):
            FusedSAGE(parameter(2), backend=backend)
        with pytest.raises(ValueError, match=r"empty"):
            FusedSAGE([], backend=backend)

    @pytest.mark.parametrize("optimizer_class", CLASSES)
    @pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))])
    def test_a_module(self, optimizer_class: Any, model: nn.Module) -> None:
        """Some can be gone through, and their parts are no tensors."""
        with pytest.raises(
            TypeError, match=r"^params: got \w+, which is a module; pass model.parameters\(\)"
        ):
            optimizer_class(model)

    def test_mixed_devices(self, backend: str) -> None:
        on_cpu, elsewhere = parameter(2), nn.Parameter(torch.ones(2, device="meta"))
        with pytest.raises(
            ValueError, match=r"param 1 of group 0 .*meta\): on another device.*one param group"
        ):
            FusedLion([on_cpu, elsewhere], backend=backend)


class TestStepChangesNothing:
    """Two groups: the first is in order, the second cannot be stepped. Neither may move, nor gain any
    state."""

    def pair(self, backend: str) -> tuple[Any, nn.Parameter, nn.Parameter]:
        good, bad = parameter(4, 4), parameter(4, 4)
        groups = [
            {"params": [("good", good)], "rule": "sage"},
            {"params": [("fine", parameter(2)), ("bad", bad)], "rule": "lion"},
        ]
        optimizer = FusedHybrid(groups, backend=backend)
        good.grad = torch.ones(4, 4)
        return optimizer, good, bad

    def refuse(self, optimizer: Any, match: str) -> None:
        before = models.snapshot(optimizer)
        with pytest.raises((ValueError, TypeError), match=match):
            optimizer.step()
        support.assert_same_bits(before, models.snapshot(optimizer))

    @pytest.mark.parametrize("has_state", [False, True])
    def test_sparse_gradient(self, backend: str, has_state: bool) -> None:
        optimizer, _, bad = self.pair(backend)
        if has_state:
            bad.grad = torch.ones(4, 4)
            optimizer.step()
        bad.grad = torch.ones(4, 4).to_sparse()
        self.refuse(optimizer, r"bad \(param 1 of group 1")

    def test_parameter_converted_to_float64(self) -> None:
        optimizer, _, bad = self.pair("native")
        bad.data = torch.ones(4, 4, dtype=torch.float64)
        bad.grad = torch.ones(4, 4, dtype=torch.float64)
        self.refuse(optimizer, r"bad \(param 1 of group 1.*float64.*reference")

    def test_state_of_another_shape(self, backend: str) -> None:
        optimizer, _, bad = self.pair(backend)
        bad.grad = torch.ones(4, 4)
        optimizer.step()
        optimizer.state[bad]["exp_avg"] = torch.zeros(3)
        self.refuse(optimizer, r"bad \(param 1 of group 1")

    def test_parameter_replaced_by_another_shape(self, backend: str) -> None:
        optimizer, _, bad = self.pair(backend)
        bad.grad = torch.ones(4, 4)
        optimizer.step()
        bad.grad = None
        bad.data = torch.ones(2, 4)
        bad.grad = torch.ones(2, 4)
        self.refuse(optimizer, r"bad \(param 1 of group 1")

    def test_rule_changed_between_steps(self, backend: str) -> None:
        optimizer, _, bad = self.pair(backend)
        bad.grad = torch.ones(4, 4)
        optimizer.step()
        optimizer.param_groups[1].update(rule="adamw", eps=1e-8)
        self.refuse(optimizer, r"param group 1.*exp_avg_sq.*rule 'adamw'")
        optimizer.param_groups[1]["rule"] = "nonsense"
        self.refuse(optimizer, r"rule: got 'nonsense' in param group 1")

    def test_parameter_made_discontiguous(self) -> None:
        optimizer, good, _ = self.pair("native")
        good.grad = None
        good.data = torch.ones(4, 4).t().contiguous().t()
        good.grad = torch.ones(4, 4)
        self.refuse(optimizer, r"good \(param 0 of group 0.*contiguous")

    def test_expanded_behind_the_optimizers_back(self, backend: str) -> None:
        optimizer, _, bad = self.pair(backend)
        bad.data = torch.ones(1, 4).expand(4, 4)
        bad.grad = torch.ones(4, 4)
        self.refuse(optimizer, r"bad \(param 1 of group 1")


class Items(Sequence):
    """A sequence that is no list and no tuple, as OmegaConf's ListConfig."""

    def __init__(self, *items: float) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]


@pytest.mark.parametrize(
    "betas", [[0.5, 0.75], Items(0.5, 0.75), np.array([0.5, 0.75]), (np.float64(0.5), 0.75)]
)
@pytest.mark.parametrize("optimizer_class", [FusedSAGE, FusedLion, FusedALIASAdam, FusedAdamW])
def test_betas_in_any_sequence(optimizer_class: Any, betas: Any, backend: str) -> None:
    optimizer = optimizer_class(
        [{"params": [parameter(2)]}, {"params": [parameter(2)], "betas": betas}], betas=betas
    )
    for group in optimizer.param_groups:
        assert group["betas"] == (0.5, 0.75)
        assert [type(value) for value in group["betas"]] == [float, float]
    optimizer.param_groups[0]["betas"] = betas  # and as they are put into a group later
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()


def test_betas_that_are_none_name_their_type() -> None:
    optimizer = FusedLion([parameter(2)])
    optimizer.param_groups[0]["betas"] = Items(0.5, 0.75, 0.9)
    with pytest.raises(
        ValueError, match=r"^betas: got .*of type Items in param group 0, expected two numbers"
    ):
        optimizer.step()


class TestChangedBehindTheOptimizersBack:
    """Memory that is laid out anew, replaced or freed: an error that names the parameter, and a cure that
    works."""

    def stepped(self, optimizer_class: Any, backend: str, *shape: int) -> tuple[Any, nn.Parameter]:
        param = nn.Parameter(torch.randn(shape))
        optimizer = optimizer_class([("w", param)], backend=backend)
        param.grad = torch.randn(shape)
        optimizer.step()
        return optimizer, param

    def refuse(self, optimizer: Any, match: str) -> None:
        before = models.snapshot(optimizer)
        with pytest.raises(ValueError, match=match):
            optimizer.step()
        support.assert_same_bits(before, models.snapshot(optimizer))

    @pytest.mark.parametrize("optimizer_class", [FusedLion, FusedAdamW])
    def test_strides(self, optimizer_class: Any) -> None:
        optimizer, param = self.stepped(optimizer_class, "native", 2, 3, 4, 5)
        twin = nn.Parameter(param.detach().clone())
        straight = optimizer_class([("w", twin)])
        straight.load_state_dict(optimizer.state_dict())
        param.data = param.data.to(memory_format=torch.channels_last)
        param.grad = torch.randn(2, 3, 4, 5)
        self.refuse(
            optimizer, r"w \(param 0.*strides.*optimizer\.load_state_dict\(optimizer\.state_dict\(\)\)"
        )
        optimizer.load_state_dict(optimizer.state_dict())
        twin.grad = param.grad
        for each in (optimizer, straight):
            each.step()
        support.assert_same_bits([param.detach().contiguous()], [twin.detach()])

    @pytest.mark.parametrize("optimizer_class", CLASSES)
    def test_longer(self, optimizer_class: Any, backend: str) -> None:
        if optimizer_class in (FusedSinkGD, *WITH_MOMENTUM):
            return  # they keep nothing here, so there is nothing that could not fit
        optimizer, param = self.stepped(optimizer_class, backend, 20, 10)
        param.grad = None
        param.data = torch.randn(30, 10)
        param.grad = torch.randn(30, 10)
        self.refuse(
            optimizer,
            r"w \(param 0.*if .*was replaced, begin its state anew with del optimizer\.state\[param\]",
        )
        del optimizer.state[param]
        optimizer.step()

    @pytest.mark.parametrize("optimizer_class", CLASSES)
    @pytest.mark.parametrize("what", ["parameter", "gradient"])
    def test_freed(self, optimizer_class: Any, what: str, backend: str) -> None:
        optimizer, param = self.stepped(optimizer_class, backend, 20, 10)
        tensor = param.data if what == "parameter" else param.grad
        kept, storage = tensor.clone(), tensor.untyped_storage()
        size = storage.nbytes()
        storage.resize_(0)
        with pytest.raises(ValueError, match=r"w \(param 0.*memory .*been freed.*bring it back before"):
            optimizer.step()
        storage.resize_(size)
        tensor.copy_(kept)
        optimizer.step()

    @pytest.mark.parametrize("optimizer_class", [FusedSAGE, FusedLion, FusedALIASAdam, FusedAdamW])
    def test_freed_state(self, optimizer_class: Any, backend: str) -> None:
        optimizer, param = self.stepped(optimizer_class, backend, 20, 10)
        before = param.detach().clone()
        optimizer.state[param]["exp_avg"].untyped_storage().resize_(0)
        with pytest.raises(ValueError, match=r"w \(param 0.*memory .*been freed"):
            optimizer.step()
        support.assert_same_bits([before], [param.detach()])
