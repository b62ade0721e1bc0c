"""The SinkGD kernel against the reference in float64."""

from __future__ import annotations

import itertools
from types import ModuleType

import pytest
import support
import torch
from native_suite import NativeSuite, native  # noqa: F401
from support import BF16, FP32, FP64

from sage_ext import reference


class TestSinkgd(NativeSuite):
    rule = "sinkgd"

    @pytest.mark.parametrize(
        ("iterations", "normalization", "eps"),
        list(itertools.product([1, 2, 5, 8], ["sqrt", "unit"], [0.0, 1e-8, 1e-3])),
    )
    def test_iterations_normalizations_and_eps(
        self,
        native: ModuleType,  # noqa: F811
        iterations: int,
        normalization: str,
        eps: float,
    ) -> None:
        tensors = support.make(self.rule, self.shapes(), (FP32, BF16, FP32))
        changes = {"iterations": iterations, "normalization": normalization, "eps": eps}
        self.compare(native, tensors, steps=1, alpha=1.0, **changes)

    @pytest.mark.parametrize("scale", [1e-20, 1e20])
    @pytest.mark.parametrize("eps", [0.0, 1e-8])
    def test_extreme_gradients_with_and_without_eps(
        self,
        native: ModuleType,  # noqa: F811
        scale: float,
        eps: float,
    ) -> None:
        tensors = support.make(self.rule, support.MATRIX_SHAPES, scale=scale)
        before = [param.clone() for param in tensors.params]
        support.step_and_compare(native, self.rule, tensors, eps=eps, alpha=1.0)
        for old, new in zip(before, tensors.params, strict=True):
            assert not torch.equal(old, new), "the update vanished"

    def test_rows_of_very_different_size(self, native: ModuleType) -> None:  # noqa: F811
        """One matrix that holds rows of 1e-18 and rows of 1e18: every row still counts the same."""
        tensors = support.make(self.rule, [(64, 33)])
        tensors.grads[0] *= torch.logspace(-18, 18, 64)[:, None]
        support.step_and_compare(native, self.rule, tensors, eps=0.0, alpha=1.0)

    @pytest.mark.parametrize("normalization", ["sqrt", "unit"])
    @pytest.mark.parametrize("eps", [0.0, 1e-8])
    def test_large_beside_small(self, native: ModuleType, normalization: str, eps: float) -> None:  # noqa: F811
        """One matrix that holds numbers of 1e30 and of 1e-30, by rows, by elements and in four fields."""
        tensors = support.make(self.rule, [(64, 34)] * 3)
        large = torch.ones(3, 64, 34, dtype=torch.bool)
        large[0, ::2] = False
        large[1] = torch.randn(64, 34, device="cpu") > 0
        large[2, :32, :17] = large[2, 32:, 17:] = False
        for grad, is_large in zip(tensors.grads, large, strict=True):
            grad.mul_(torch.where(is_large, 1e30, 1e-30))
        support.step_and_compare(native, self.rule, tensors, normalization=normalization, eps=eps, alpha=1.0)

    @pytest.mark.parametrize(
        ("shape", "iterations", "scale"),
        [
            ((1, 4096), 40, 1.0),
            ((4096, 8), 40, 1.0),
            ((65536, 2), 15, 1e-8),
            ((2, 65536), 20, 1.0),
            ((16, 1024), 100, 1.0),
            ((2, 65536), 5, 1e30),
        ],
    )
    def test_scales_of_the_unit_form_stay_in_range(
        self,
        native: ModuleType,  # noqa: F811
        shape: tuple[int, int],
        iterations: int,
        scale: float,
    ) -> None:
        """Iterated as it is written, the unit form's row and column scales leave float32 in each of these."""
        grad = scale * torch.randn(shape)

        def update(module: ModuleType, dtype: torch.dtype, eps: float, normalization: str) -> torch.Tensor:
            w = torch.zeros(shape, dtype=dtype)
            settings = {"lr": 1.0, "alpha": 1.0, "weight_decay": 0.0, "iterations": iterations, "eps": eps}
            module.sinkgd_([w], [grad.to(dtype)], normalization=normalization, **settings)
            return w.double()

        exact = update(reference, FP64, 1e-8, "unit")
        assert (update(native, FP32, 1e-8, "unit") - exact).abs().max() <= 2e-6 * exact.abs().max()
        # Without eps it is the other form, divided by sqrt(m).
        other = update(native, FP32, 0.0, "sqrt") / shape[0] ** 0.5
        assert (update(native, FP32, 0.0, "unit") - other).abs().max() <= 1e-6 * other.abs().max()

    def test_experts_are_normalised_one_matrix_at_a_time(self, native: ModuleType) -> None:  # noqa: F811
        experts = support.make(self.rule, [(3, 17, 29)])
        experts.grads[0] *= torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
        apart = experts.clone()
        apart.params = list(experts.params[0].clone().unbind())
        apart.grads = list(experts.grads[0].unbind())
        support.call(native, self.rule, experts)
        support.call(native, self.rule, apart)
        support.assert_same_bits(apart.params, list(experts.params[0].unbind()))

    def test_a_single_entry_in_a_matrix_of_zeros(self, native: ModuleType) -> None:  # noqa: F811
        tensors = support.make(self.rule, [(40, 50)])
        tensors.grads[0].zero_()
        tensors.grads[0][7, 11] = -3e-5
        before = tensors.params[0].clone()
        support.step_and_compare(native, self.rule, tensors, eps=0.0)
        moved = before != tensors.params[0]
        assert moved.sum() == 1
        assert moved[7, 11]

    @pytest.mark.parametrize("shape", [(2048, 768), (768, 2048), (2, 300_000), (300_000, 2)])
    def test_large_matrices(self, native: ModuleType, shape: tuple[int, int]) -> None:  # noqa: F811
        self.compare(native, support.make(self.rule, [shape]), steps=1, alpha=1.0)

    @pytest.mark.parametrize("shape", [(1, 300_001), (2, 300_001), (300_001, 1), (300_001, 2), (100_001, 7)])
    @pytest.mark.parametrize("iterations", [1, 2, 5])
    def test_error_does_not_grow_with_size(
        self,
        native: ModuleType,  # noqa: F811
        shape: tuple[int, int],
        iterations: int,
    ) -> None:
        """Entries of one magnitude: the additions of a plain float32 sum would then all round the same
        way."""
        settings = {"lr": 1.0, "alpha": 1.0, "eps": 1.0, "weight_decay": 0.0, "normalization": "unit"}
        grad = 1.37 * torch.randn(shape).sign()
        w, exact = torch.zeros(shape), torch.zeros(shape, dtype=torch.float64)
        native.sinkgd_([w], [grad], iterations=iterations, **settings)
        reference.sinkgd_([exact], [grad.double()], iterations=iterations, **settings)
        assert ((w - exact).abs() <= 256 * support.UNIT * exact.abs()).all()

    def test_float32_reference_is_as_close(self) -> None:
        """The oracle in float32, which runs where nothing was compiled, keeps within the same bounds."""
        for scale in (1e-20, 1.0, 1e20):
            tensors = support.make(self.rule, support.MATRIX_SHAPES, scale=scale)
            support.step_and_compare(reference, self.rule, tensors, alpha=1.0)
