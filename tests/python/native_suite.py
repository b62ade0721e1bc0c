"""What every rule's kernel must do. ``test_native_*.py`` runs it for each rule and adds what is the rule's
own."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, ClassVar

import pytest
import support
import torch
from support import BF16, DTYPE_MIXES, FP16, FP32, MIX_NAMES, Tensors
from torch import Tensor

from sage_ext import _loader


@pytest.fixture(scope="module")
def native() -> ModuleType:
    return _loader.load()


def arrange(tensor: Tensor, layout: str) -> Tensor:
    """A copy of a tensor of shape (2, 3, 7, 15) that is dense in another order of the dimensions."""
    if layout == "transposed":
        return tensor.new_empty(15, 7, 3, 2).permute(3, 2, 1, 0).copy_(tensor)
    if layout == "channels_last":
        return tensor.clone(memory_format=torch.channels_last)
    return tensor.new_empty(3, 2, 15, 7).permute(1, 0, 3, 2).copy_(tensor)


@pytest.mark.usefixtures("device")
class NativeSuite:
    """Subclass, set ``rule``, and pytest runs all of this for it, on every device."""

    rule: ClassVar[str]
    """A rule's name, or that of one of support.VARIANTS."""

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return support.shapes_of(self.rule)

    def compare(self, native: ModuleType, tensors: Tensors, steps: int = 2, **changes: Any) -> None:
        """Some steps with new gradients of the same dtype and size, each compared with the float64
        reference: one from a new state, the others from what is in use."""
        scale = max((float(grad.abs().max()) for grad in tensors.grads if grad.numel()), default=1.0) / 4
        for step in range(steps):
            support.step_and_compare(native, self.rule, tensors, **changes)
            dtype = tensors.grads[0].dtype
            tensors.grads = support.new_grads(tensors, dtype, scale=scale, seed=100 + step)

    @pytest.mark.parametrize("mix", DTYPE_MIXES, ids=MIX_NAMES)
    def test_every_dtype_mix_and_shape(self, native: ModuleType, mix: tuple[torch.dtype, ...]) -> None:
        self.compare(native, support.make(self.rule, self.shapes(), mix), weight_decay=0.1)

    @pytest.mark.parametrize("weight_decay", [0.0, 0.3])
    @pytest.mark.parametrize("maximize", [False, True])
    def test_weight_decay_and_maximize(self, native: ModuleType, weight_decay: float, maximize: bool) -> None:
        tensors = support.make(self.rule, self.shapes())
        self.compare(native, tensors, steps=3, lr=0.1, weight_decay=weight_decay, maximize=maximize)

    def test_lr_as_tensor(self, native: ModuleType) -> None:
        first = support.make(self.rule, self.shapes())
        second = first.clone()
        support.call(native, self.rule, first, lr=0.125)
        support.call(native, self.rule, second, lr=torch.tensor(0.125))
        support.assert_same_bits(first.flat(), second.flat())

    @pytest.mark.parametrize("scale", [1e-20, 1e20])
    @pytest.mark.parametrize("dtype", [FP32, BF16])
    def test_tiny_and_huge_gradients(self, native: ModuleType, scale: float, dtype: torch.dtype) -> None:
        """Neither vanish nor overflow. fp16 cannot hold them; AdamW squares them and has its own test."""
        tensors = support.make(self.rule, self.shapes(), (FP32, dtype, FP32), scale=scale)
        self.compare(native, tensors)

    def test_zero_gradients(self, native: ModuleType) -> None:
        tensors = support.make(self.rule, self.shapes())
        tensors.grads = [torch.zeros_like(grad) for grad in tensors.grads]
        before = [param.clone() for param in tensors.params]
        for _ in range(2):
            support.step_and_compare(native, self.rule, tensors, weight_decay=0.0)
        support.assert_same_bits(before, tensors.params)

    def test_zero_rows_and_columns(self, native: ModuleType) -> None:
        tensors = support.make(self.rule, support.MATRIX_SHAPES)
        for grad in tensors.grads:
            grad[..., ::2, :] = 0
            grad[..., 1::3] = 0
        before = [param.clone() for param in tensors.params]
        support.step_and_compare(native, self.rule, tensors, weight_decay=0.0)
        for old, new, grad in zip(before, tensors.params, tensors.grads, strict=True):
            assert new.isfinite().all()
            assert torch.equal(old[grad == 0], new[grad == 0]), "an element without gradient moved"

    @pytest.mark.parametrize("value", range(3))
    @pytest.mark.parametrize("dtype", range(3))
    def test_not_finite_first_and_last(self, native: ModuleType, value: int, dtype: int) -> None:
        """Every value in every dtype, each of them in both places."""
        place = -((value + dtype) % 2)
        value, dtype = (math.inf, -math.inf, math.nan)[value], support.DTYPES[dtype]
        shapes = [shape for shape in self.shapes() if shape]
        tensors = support.make(self.rule, shapes, (FP32, dtype, FP32))
        for grad in tensors.grads:
            if grad.numel():
                grad.view(-1)[place] = value
        support.step_and_compare(native, self.rule, tensors)

    def test_not_finite_stays_in_its_tensor(self, native: ModuleType) -> None:
        tensors = support.make(self.rule, [(33, 65)] * 3)
        tensors.grads[1][3, 7] = float("nan")
        support.step_and_compare(native, self.rule, tensors)
        assert tensors.params[0].isfinite().all()
        assert tensors.params[2].isfinite().all()

    def test_grad_scale(self, native: ModuleType) -> None:
        tensors = support.make(self.rule, self.shapes(), (FP32, FP16, FP32), scale=100.0)
        self.compare(native, tensors, grad_scale=torch.tensor(1024.0))

    def test_found_inf_skips_everything(self, native: ModuleType) -> None:
        tensors = support.make(self.rule, self.shapes())
        support.call(native, self.rule, tensors)
        before = tensors.clone()
        support.call(native, self.rule, tensors, found_inf=torch.tensor(1.0))
        support.assert_same_bits(before.flat(), tensors.flat())
        moved = tensors.clone()
        support.call(native, self.rule, moved, found_inf=torch.tensor(0.0))
        support.call(native, self.rule, tensors)
        support.assert_same_bits(moved.flat(), tensors.flat())
        assert not torch.equal(before.params[-4], tensors.params[-4])

    def test_only_empty_tensors_and_no_tensors(self, native: ModuleType) -> None:
        tensors = support.make(self.rule, support.EMPTY_SHAPES)
        support.step_and_compare(native, self.rule, tensors)
        for step in tensors.states.get("step", []):
            assert float(step) == 1.0
        support.call(native, self.rule, support.make(self.rule, []))

    def test_list_that_ends_in_an_empty_tensor(self, native: ModuleType) -> None:
        """The last chunk of work must not be lost when nothing follows it."""
        for count in (1, 2, 63, 64, 65):
            self.compare(native, support.make(self.rule, [(3, 5)] * count + [(0, 5)]), steps=1)

    def test_thousands_of_small_tensors(self, native: ModuleType) -> None:
        tensors = support.make(self.rule, [(1 + i % 7, 1 + i % 13) for i in range(2000)])
        self.compare(native, tensors, steps=1)

    @pytest.mark.parametrize("offset", [1, 2, 3, 7])
    @pytest.mark.parametrize("mix", [(FP32, FP32, FP32), (BF16, BF16, BF16), (BF16, FP32, FP16)])
    def test_storage_offsets(self, native: ModuleType, offset: int, mix: tuple[torch.dtype, ...]) -> None:
        """Tensors that do not begin on a vector boundary, all of them differently, with guards around
        them."""
        tensors = support.make(self.rule, [(65, 129), (7, 1031)], mix)
        guards: list[tuple[Tensor, int, int]] = []

        def shift(values: list[Tensor], by: int) -> list[Tensor]:
            shifted = []
            for value in values:
                storage = torch.full((value.numel() + by + 16,), 7.0, dtype=value.dtype)
                view = storage[by : by + value.numel()].view(value.shape)
                shifted.append(view.copy_(value))
                guards.append((storage, by, by + value.numel()))
            return shifted

        tensors.params = shift(tensors.params, offset)
        tensors.grads = shift(tensors.grads, offset + 1)
        tensors.states = {
            key: values if key == "step" else shift(values, offset + 2 + i)
            for i, (key, values) in enumerate(tensors.states.items())
        }
        self.compare(native, tensors, steps=1)
        for storage, begin, end in guards:
            assert (storage[:begin] == 7).all(), "written before the beginning"
            assert (storage[end:] == 7).all(), "written beyond the end"

    def test_gradients_of_any_strides(self, native: ModuleType) -> None:
        """A gradient is only read, so its layout may be any: transposed, sliced or expanded."""
        tensors = support.make(self.rule, [(64, 33)] * 3)
        plain = tensors.clone()
        odd = [
            torch.empty(33, 64).t().copy_(tensors.grads[0]),
            torch.empty(64, 66)[:, ::2].copy_(tensors.grads[1]),
            torch.full((1, 1), 0.25).expand(64, 33),
        ]
        tensors.grads, plain.grads = odd, [grad.contiguous() for grad in odd]
        support.call(native, self.rule, tensors)
        support.call(native, self.rule, plain)
        support.assert_same_bits(plain.params, tensors.params)

    @pytest.mark.parametrize("mix", [(FP32, FP32, FP32), (BF16, BF16, BF16)])
    def test_same_bits_in_every_run_and_for_any_number_of_threads(
        self, native: ModuleType, threads: None, mix: tuple[torch.dtype, ...]
    ) -> None:
        shapes = (*self.shapes(), (1031, 257), (70000, 3), (3, 70000))
        start = support.make(self.rule, shapes, mix)
        second = support.new_grads(start, mix[1], seed=0)
        results = []
        for count in (1, 2, 1, 2, 3):
            torch.set_num_threads(count)
            tensors = start.clone()
            support.call(native, self.rule, tensors)
            tensors.grads = second
            support.call(native, self.rule, tensors)
            results.append(tensors.flat())
        for other in results[1:]:
            support.assert_same_bits(results[0], other)

    def test_in_place_updates_are_seen_by_autograd(self, native: ModuleType) -> None:
        tensors = support.make(self.rule, [(5, 7)])
        version = tensors.params[0]._version
        support.call(native, self.rule, tensors)
        assert tensors.params[0]._version > version
