"""The kernels of ALIAS, in all its forms, against the reference in float64."""

from __future__ import annotations

import itertools
import math
from types import ModuleType
from typing import Any

import alias_bounds
import pytest
import support
import torch
from native_suite import NativeSuite, native  # noqa: F401
from support import BF16, FP16, FP32, FP64

from sage_ext import reference

MIXES = [(FP32, FP32, FP32), (BF16, FP32, FP32), (FP32, FP16, FP32)]
FORMS = [name for name, (rule, _) in support.VARIANTS.items() if rule == "alias"]


def scalars_of(tensors: support.Tensors) -> dict[str, float]:
    return alias_bounds.named(tensors.shared["scalars"][0])


class TestAlias(NativeSuite):
    rule = "alias"

    @pytest.mark.parametrize("warmup_steps", [0, 3])
    @pytest.mark.parametrize("update_every", [1, 2, 3])
    @pytest.mark.parametrize("mix", MIXES, ids=["fp32", "bf16", "fp16 gradients"])
    def test_warmup_and_update_every(
        self,
        native: ModuleType,  # noqa: F811
        warmup_steps: int,
        update_every: int,
        mix: tuple[torch.dtype, ...],
    ) -> None:
        """Over some periods, with the default eta0 of 0 and a d0 that is soon left behind."""
        tensors = support.make(self.rule, [(65, 129), (33,), (0, 5), (40, 50)], mix)
        changes: dict[str, Any] = {"lr": 1e-3, "eta0": 0.0, "max_step": 10.0, "weight_decay": 0.1}
        tensors.shared["scalars"][0][1] = 0.0
        self.compare(native, tensors, 8, warmup_steps=warmup_steps, update_every=update_every, **changes)
        seen = scalars_of(tensors)
        assert seen["step"] == 8
        assert seen["eta"] > 0

    def test_step_in_two_halves(self, native: ModuleType) -> None:  # noqa: F811
        """What same_batch=True does: move with one gradient, then refresh eta and d with another."""
        tensors = support.make(self.rule, self.shapes())
        for step in range(3):
            for phase in ("move", "refresh"):
                before = [param.clone() for param in tensors.params]
                support.step_and_compare(native, self.rule, tensors, phase=phase, weight_decay=0.1)
                tensors.grads = support.new_grads(tensors, FP32, seed=7 * step + len(phase))
                if phase == "refresh":
                    support.assert_same_bits(before, tensors.params)
        assert scalars_of(tensors)["step"] == 3

    def test_nothing_moved(self, native: ModuleType) -> None:  # noqa: F811
        """eta is left alone after a step of displacement 0; d is not."""
        tensors = support.make(self.rule, [(65, 129)])
        tensors.grads[0].zero_()
        support.step_and_compare(native, self.rule, tensors)
        assert scalars_of(tensors)["displacement"] == 0
        eta = scalars_of(tensors)["eta"]
        tensors.grads = support.new_grads(tensors, FP32)
        support.step_and_compare(native, self.rule, tensors)
        assert scalars_of(tensors)["eta"] == eta
        tensors.grads = support.new_grads(tensors, FP32, seed=1)
        support.step_and_compare(native, self.rule, tensors)
        assert scalars_of(tensors)["eta"] > eta

    def test_too_small_for_the_parameters_dtype(self, native: ModuleType) -> None:  # noqa: F811
        """A bfloat16 parameter that a step rounds back to what it was did not move."""
        tensors = support.make(self.rule, [(65, 129)], (BF16, FP32, FP32))
        tensors.params[0].fill_(256.0)
        support.step_and_compare(native, self.rule, tensors, max_step=1e-3)
        assert scalars_of(tensors)["displacement"] == 0
        tensors.params[0].fill_(0.5)
        support.step_and_compare(native, self.rule, tensors, max_step=1.4e-3)
        assert scalars_of(tensors)["displacement"] > 0  # half of the elements move by 2^-9, the others not

    def test_not_finite_in_one_step_is_seen_in_the_next(self, native: ModuleType) -> None:  # noqa: F811
        """NaN is in the shared scalars then, and the reference has it where the kernels have it."""
        for value, place in itertools.product((math.nan, math.inf, -math.inf), (0, 77, -1)):
            tensors = support.make(self.rule, [(33, 65)] * 3)
            tensors.grads[1].view(-1)[place] = value
            self.compare(native, tensors, 3)
            assert not math.isfinite(scalars_of(tensors)["eta"])

    @pytest.mark.parametrize("dtype", support.DTYPES)
    def test_zeros_keep_their_place(self, native: ModuleType, dtype: torch.dtype) -> None:  # noqa: F811
        """0, -0, NaN and the smallest numbers in the last gradient, at every place of a word."""
        tensors = support.make(self.rule, [(n,) for n in (1, 31, 32, 33, 64, 257, 4099)], (FP32, dtype, FP32))
        for grad in tensors.grads:
            grad[::3], grad[1::7] = 0.0, -0.0
        self.compare(native, tensors, 1)
        for grad, planes in zip(tensors.grads, tensors.states["signs"], strict=False):
            assert planes.shape == (2, -(-grad.numel() // 32))
        tensors.grads = [grad.clone() for grad in tensors.grads]
        for grad in tensors.grads:
            grad[2::5] = 0.0
        self.compare(native, tensors, 2)

    @pytest.mark.parametrize("count", [300_001, 3_000_001])
    def test_error_does_not_grow_with_size(self, native: ModuleType, count: int) -> None:  # noqa: F811
        """Terms that are all alike, so that the additions of a plain float32 sum would all round alike."""
        tensors = support.make(self.rule, [(count,)])
        tensors.params[0].zero_()
        tensors.grads[0] = torch.full((count,), 1.37) * (1 - 2 * (torch.arange(count) % 2)).to(FP32)
        support.call(native, self.rule, tensors)
        tensors.grads[0] = tensors.grads[0] * 0.7
        exact, before = tensors.clone(FP64), [param.clone() for param in tensors.params]
        support.call(native, self.rule, tensors)
        support.call(reference, self.rule, exact)
        found, expected = scalars_of(tensors), scalars_of(exact)
        for name in ("eta", "d", "gap", "step_size"):
            assert found[name] == pytest.approx(expected[name], rel=alias_bounds.SUM_OF_LIKE_TERMS), name
        moved = alias_bounds.displacement(before, tensors.params, support.defaults_of(self.rule))
        assert found["displacement"] == pytest.approx(moved, rel=alias_bounds.SUM_OF_LIKE_TERMS)

    def test_gradients_seen_where_they_are_not_needed(self, native: ModuleType) -> None:  # noqa: F811
        """Between two refreshes neither the planes nor the extrema follow the gradient."""
        tensors = support.make(self.rule, [(65, 129)])
        support.step_and_compare(native, self.rule, tensors, update_every=3)
        held = tensors.clone()
        for seed in (1, 2):  # step 2 refreshes from step 1; step 3 does nothing but move
            tensors.grads = support.new_grads(tensors, FP32, seed=seed)
            support.step_and_compare(native, self.rule, tensors, update_every=3)
        support.assert_same_bits(
            [x for xs in held.states.values() for x in xs], [x for xs in tensors.states.values() for x in xs]
        )
        assert scalars_of(tensors)["grad_max"] == scalars_of(held)["grad_max"]
        tensors.grads = support.new_grads(tensors, FP32, seed=3)
        support.step_and_compare(native, self.rule, tensors, update_every=3)
        if held.states["signs"]:
            assert not torch.equal(held.states["signs"][0], tensors.states["signs"][0])


class TestLowerBound(TestAlias):
    rule = "alias_lower_bound"

    @pytest.mark.parametrize("lower_bound", [-3.0, 0.0, 2.0])
    def test_d_is_the_distance_to_the_bound(self, native: ModuleType, lower_bound: float) -> None:  # noqa: F811
        for loss in (2.5, torch.tensor(2.5), torch.tensor([2.5], dtype=FP64), torch.tensor(2.5, dtype=BF16)):
            tensors = support.make(self.rule, [(4, 5)])
            support.step_and_compare(native, self.rule, tensors, loss=loss, lower_bound=lower_bound)
            assert scalars_of(tensors)["d"] == 2.5 - lower_bound
            for later in (7.0, torch.tensor(9.0), None):  # is not looked at any more
                support.step_and_compare(native, self.rule, tensors, loss=later, lower_bound=lower_bound)
            assert scalars_of(tensors)["d"] == 2.5 - lower_bound

    def test_a_loss_under_the_bound_is_no_distance(self, rules: ModuleType) -> None:
        """On a GPU nobody sees it in time; d is then 0 and nothing moves any more."""
        tensors = support.make(self.rule, [(4, 5)])
        support.call(rules, self.rule, tensors, loss=-1.0)
        assert scalars_of(tensors)["d"] == 0
        support.call(rules, self.rule, nan := support.make(self.rule, [(4, 5)]), loss=math.nan)
        assert math.isnan(scalars_of(nan)["d"])

    def test_missing_loss(self, rules: ModuleType, device: torch.device) -> None:
        """An error; of the kernels on a GPU, where the host does not know which step it is, NaN."""
        tensors = support.make(self.rule, [(4, 5)])
        before = tensors.clone()
        if device.type == "cuda" and rules is not reference:
            support.call(rules, self.rule, tensors, loss=None)
            assert math.isnan(scalars_of(tensors)["d"])
            assert math.isnan(scalars_of(tensors)["step_size"])
            assert tensors.params[0].isnan().all()
            return
        with pytest.raises(ValueError, match=r"^loss.* None.*step\(closure\) or step\(loss="):
            support.call(rules, self.rule, tensors, loss=None)
        support.assert_same_bits(before.flat(), tensors.flat())


class TestSum(TestAlias):
    rule = "alias_sum"
    test_thousands_of_small_tensors = None  # TestAlias has it, and tables do not know the form

    def test_terms_of_either_sign(self, native: ModuleType) -> None:  # noqa: F811
        """The sum is of magnitudes, recorded with the factor that its gradient was loaded with."""
        for count in (5, 4099):
            tensors = support.make(self.rule, [(count,), (3,)])
            moved = 0.0
            for scale, value in ((1.0, -2.0), (4.0, 8.0)):
                tensors.grads = [torch.full_like(grad, value) for grad in tensors.grads]
                support.call(native, self.rule, tensors, grad_scale=torch.tensor(scale), max_step=0.5)
                assert scalars_of(tensors)["grad_max"] == 2.0 * (count + 3)
                moved = moved or scalars_of(tensors)["displacement"]
            assert scalars_of(tensors)["eta"] == pytest.approx(1.0 + 4.0 * (count + 3) / moved, rel=1e-12)


@pytest.mark.usefixtures("device")
class TestSumLowerBound:
    """The kernel that looks at the gradient alone; the suite runs it for the extrema."""

    @pytest.mark.parametrize("grad", support.DTYPES)
    @pytest.mark.parametrize("value", [None, 0.0, math.nan, math.inf])
    def test_of_every_dtype(self, native: ModuleType, grad: torch.dtype, value: float | None) -> None:  # noqa: F811
        rule = "alias_sum_lower_bound"
        tensors = support.make(rule, support.shapes_of(rule), (FP32, grad, FP32))
        for step in range(3):
            if value is not None and step == 1:
                for each in tensors.grads:
                    each.view(-1)[-1:] = value
            support.step_and_compare(native, rule, tensors, weight_decay=0.1)
            tensors.grads = support.new_grads(tensors, grad, seed=step)


class TestBase(TestAlias):
    rule = "alias_base"

    def test_scale_that_changes(self, native: ModuleType, device: torch.device) -> None:  # noqa: F811
        """The last gradient is kept as it came, so it is read with the factor of its own step."""
        tensors = support.make(self.rule, [(65, 129), (31,)])
        for step, scale in enumerate((1.0, 1024.0, 0.5, 3.0)):
            tensors.grads = [g * scale for g in support.new_grads(tensors, FP32, seed=step)]
            settings = {"grad_scale": torch.tensor(scale), "maximize": step % 2 == 1}
            support.step_and_compare(native, self.rule, tensors, **settings)
            factor = torch.tensor((-1) ** step / scale, dtype=FP64)
            if device.type == "cuda":  # a quotient of float32, which kernels on a CPU make of it later
                factor = factor.float()
            assert scalars_of(tensors)["grad_factor"] == float(factor)

    @pytest.mark.parametrize("dtype", support.DTYPES)
    def test_last_gradient_as_it_came(self, native: ModuleType, dtype: torch.dtype) -> None:  # noqa: F811
        tensors = support.make(self.rule, self.shapes(), (FP32, dtype, FP32))
        support.call(native, self.rule, tensors, maximize=True, grad_scale=torch.tensor(3.0))
        support.assert_same_bits(tensors.grads, tensors.states["prev_grad"])

    def test_another_dtype_than_the_gradient(self, native: ModuleType) -> None:  # noqa: F811
        tensors = support.make(self.rule, [(4, 5)] * 2)
        tensors.states["prev_grad"][1] = tensors.states["prev_grad"][1].to(BF16)
        before = tensors.clone()
        with pytest.raises(
            ValueError,
            match=r"^prev_grads\[1\].*BFloat16.*gradient's dtype, which is float32.*clear the optimizer's",
        ):
            support.call(native, self.rule, tensors)
        support.assert_same_bits(before.flat(), tensors.flat())


class TestBaseLowerBound(TestBase, TestLowerBound):
    rule = "alias_base_lower_bound"


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_planes_of_the_kernels(rules: ModuleType, dtype: torch.dtype) -> None:
    """Bit for bit what the reference packs: 0, -0 and NaN have neither bit, bits behind the end are 0."""
    for count in (1, 31, 32, 33, 63, 65, 1000, 4099):
        tensors = support.make("alias", [(count,)], (FP32, dtype, FP32), seed=count)
        grad = tensors.grads[0]
        grad[::3], grad[1::5], grad[2::7] = 0.0, -0.0, math.nan
        tensors.states["signs"][0].fill_(-1)
        support.call(rules, "alias", tensors)
        alias_bounds.check_planes(tensors.states["signs"][0], grad, f"{count} elements")


@pytest.mark.parametrize("name", FORMS)
def test_lists_that_the_form_keeps(rules: ModuleType, name: str) -> None:
    for missing in (key for key, values in support.make(name, [(4, 5)]).states.items() if values):
        tensors = support.make(name, [(4, 5)] * 2)
        tensors.states[missing] = []
        with pytest.raises(ValueError, match=rf"^{missing}.* 0 tensors"):
            support.call(rules, name, tensors)
    for key, values in support.make(name, [(4, 5)]).states.items():
        if values:
            continue
        tensors = support.make(name, [(4, 5)])
        extra = torch.zeros(2, 1, dtype=torch.int32) if key == "signs" else torch.zeros(4, 5)
        tensors.states[key] = [extra]
        with pytest.raises(ValueError, match=rf"^{key}.* 1 tensors.*keeps none; pass an empty list"):
            support.call(rules, name, tensors)
    for count in (0, 2):
        tensors = support.make(name, [(4, 5)] * 2)
        tensors.shared["scalars"] *= count
        with pytest.raises(ValueError, match=rf"^scalars.* {count} tensors.* one "):
            support.call(rules, name, tensors)


def broken(**changes: Any) -> support.Tensors:
    tensors = support.make("alias", [(4, 50)] * 2)
    for key, value in changes.items():
        if key == "scalars":
            tensors.shared[key] = [value]
        else:
            tensors.states[key][1] = value
    return tensors


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"signs": torch.zeros(2, 7)}, r"^signs\[1\].*dtype float, .*contiguous .* of dtype int "),
        ({"signs": torch.zeros(2, 6, dtype=torch.int32)}, r"^signs\[1\].*shape \[2, 7\]"),
        ({"signs": torch.zeros(7, 2, dtype=torch.int32).t()}, r"^signs\[1\].*contiguous"),
        ({"scalars": torch.zeros(9)}, r"^scalars\[0\].*dtype float, .*of dtype double"),
        ({"scalars": torch.zeros(8, dtype=FP64)}, r"^scalars\[0\].*shape \[9\]"),
    ],
)
def test_states_that_do_not_fit(native: ModuleType, changes: dict[str, Any], match: str) -> None:  # noqa: F811
    tensors = broken(**changes)
    before = [tensor.clone() for tensor in tensors.flat()]
    with pytest.raises(ValueError, match=match):
        support.call(native, "alias", tensors)
    support.assert_same_bits(before, tensors.flat())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gap", "upper"),
        ("phase", "half"),
        ("smoothness", "max"),
        ("max_step", -1.0),
        ("max_step", math.nan),
        ("lower_bound", math.inf),
        ("warmup_steps", -1),
        ("update_every", 0),
        ("weight_decay", -0.5),
    ],
)
def test_arguments_that_cannot_be_used(native: ModuleType, name: str, value: Any) -> None:  # noqa: F811
    tensors = support.make("alias", [(4, 5)])
    before = tensors.clone()
    settings = {**support.hyper("alias"), name: value}
    with pytest.raises(ValueError, match=rf"^{name} "):
        native.alias_(tensors.params, tensors.grads, *tensors.lists, **settings)
    support.assert_same_bits(before.flat(), tensors.flat())


def test_sum_is_no_base_form(rules: ModuleType) -> None:
    tensors = support.make("alias_base", [(4, 5)])
    before = tensors.clone()
    with pytest.raises(ValueError, match=r"^smoothness.*'sum'.*'extrema' with memory_efficient=False"):
        support.call(rules, "alias_base", tensors, smoothness="sum")
    support.assert_same_bits(before.flat(), tensors.flat())
