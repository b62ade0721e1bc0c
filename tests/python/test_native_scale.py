"""The SCALE kernels against the reference in float64."""

from __future__ import annotations

import itertools
import math
from types import ModuleType

import pytest
import support
import torch
from native_suite import NativeSuite, native  # noqa: F401
from support import BF16, FP32, FP64

from sage_ext import reference


class TestRows(NativeSuite):
    rule = "scale"

    @pytest.mark.parametrize(
        ("normalization", "eps"), list(itertools.product(["rms", "l2"], [0.0, 1e-8, 0.5]))
    )
    def test_normalizations_and_eps(
        self,
        native: ModuleType,  # noqa: F811
        normalization: str,
        eps: float,
    ) -> None:
        tensors = support.make(self.rule, self.shapes(), (FP32, BF16, FP32))
        self.compare(native, tensors, steps=2, lr=0.5, normalization=normalization, eps=eps)

    @pytest.mark.parametrize("scale", [1e-30, 1e35])
    def test_extreme_gradients_without_eps(self, native: ModuleType, scale: float) -> None:  # noqa: F811
        tensors = support.make(self.rule, support.MATRIX_SHAPES, scale=scale)
        before = [param.clone() for param in tensors.params]
        support.step_and_compare(native, self.rule, tensors, eps=0.0, lr=1.0)
        for old, new in zip(before, tensors.params, strict=True):
            assert not torch.equal(old, new), "the update vanished"

    def test_rows_and_columns_of_very_different_size(self, native: ModuleType) -> None:  # noqa: F811
        """One matrix that holds numbers of 1e-18 and of 1e18: each row and column has its own norm."""
        for shape in ((64, 1), (1, 33)):
            tensors = support.make(self.rule, [(64, 33)])
            tensors.grads[0] *= torch.logspace(-18, 18, max(shape)).view(shape)
            support.step_and_compare(native, self.rule, tensors, eps=0.0, lr=1.0)

    def test_experts_are_normalised_one_matrix_at_a_time(self, native: ModuleType) -> None:  # noqa: F811
        for shape in ((3, 17, 29), (5, 8, 16), (2, 300, 64)):
            experts = support.make(self.rule, [shape])
            experts.grads[0] *= torch.logspace(-3, 3, shape[0])[:, None, None]
            apart = experts.clone()
            apart.params = list(experts.params[0].clone().unbind())
            apart.grads = list(experts.grads[0].unbind())
            apart.states = {
                key: [m for v in values for m in v.unbind()] for key, values in apart.states.items()
            }
            for _ in range(2):
                support.call(native, self.rule, experts)
                support.call(native, self.rule, apart)
            for expert, alone in zip(experts.params[0].unbind(), apart.params, strict=True):
                torch.testing.assert_close(expert, alone, rtol=1e-6, atol=1e-7)

    def test_a_single_entry_in_a_matrix_of_zeros(self, native: ModuleType) -> None:  # noqa: F811
        tensors = support.make(self.rule, [(40, 50)])
        tensors.grads[0].zero_()
        tensors.grads[0][7, 11] = -3e-25
        before = tensors.params[0].clone()
        support.step_and_compare(native, self.rule, tensors, eps=0.0)
        moved = before != tensors.params[0]
        assert moved.sum() == 1
        assert moved[7, 11]

    @pytest.mark.parametrize("shape", [(2048, 768), (768, 2048), (2, 300_000), (300_000, 2), (1, 300_001)])
    def test_large_matrices(self, native: ModuleType, shape: tuple[int, int]) -> None:  # noqa: F811
        self.compare(native, support.make(self.rule, [shape]), steps=1, lr=1.0)

    @pytest.mark.parametrize("shape", [(1, 300_001), (300_001, 1), (300_001, 2), (2, 300_001), (100_001, 7)])
    def test_error_does_not_grow_with_size(self, native: ModuleType, shape: tuple[int, int]) -> None:  # noqa: F811
        """Entries of one magnitude: the additions of a plain float32 sum would all round the same way."""
        tensors = support.make(self.rule, [shape])
        tensors.params[0].zero_()
        tensors.grads[0] = 1.37 * torch.randn(shape).sign()
        exact = tensors.clone(FP64)
        support.call(native, self.rule, tensors, lr=1.0)
        support.call(reference, self.rule, exact, lr=1.0)
        difference = (tensors.params[0] - exact.params[0]).abs()
        assert (difference <= 64 * support.UNIT * exact.params[0].abs()).all()


class TestColumns(TestRows):
    rule = "scale_columns"


class TestMomentumRows(TestRows):
    rule = "scale_momentum"

    @pytest.mark.parametrize("momentum", [0.1, 0.99])
    def test_momentum(self, native: ModuleType, momentum: float) -> None:  # noqa: F811
        self.compare(native, support.make(self.rule, self.shapes()), momentum=momentum, lr=0.5)

    def test_the_update_is_that_of_the_stored_momentum(self, native: ModuleType) -> None:  # noqa: F811
        """In bfloat16, W moves by the momentum as it is after its rounding, whose norm is then exact."""
        tensors = support.make(self.rule, [(16, 48)], (FP32, FP32, BF16))
        tensors.params[0].zero_()
        support.call(native, self.rule, tensors, lr=1.0)
        m = tensors.states["exp_avg"][0].double()
        dim = support.hyper(self.rule)["dim"]
        expected = -m / m.square().mean(dim, keepdim=True).sqrt()
        torch.testing.assert_close(tensors.params[0].double(), expected, rtol=1e-6, atol=0)


class TestMomentumColumns(TestMomentumRows):
    rule = "scale_momentum_columns"


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("normalization", ["rms", "l2"])
@pytest.mark.parametrize("rule", ["scale", "scale_columns"])
def test_smallest_and_largest_norms(native: ModuleType, rule: str, normalization: str) -> None:  # noqa: F811
    """The update is exact for the norms that FusedSCALE's docstring names, and not beyond them."""
    dim = support.hyper(rule)["dim"]
    for norm, is_exact in ((1e-39, False), (3.4e-39, True), (8e37, True), (1e39, False)):
        if normalization == "rms" and norm > 1e38:  # fp32 has no such entries
            continue
        tensors = support.make(rule, [(64, 96)])
        tensors.params[0].zero_()
        g = tensors.grads[0].double()
        squares = g.square()
        size = squares.sum(dim, True) if normalization == "l2" else squares.mean(dim, True)
        tensors.grads[0] = (g / size.sqrt() * norm).clamp(-3e38, 3e38).float()
        expected = tensors.clone(FP64)
        for module, moved in ((native, tensors), (reference, expected)):
            support.call(module, rule, moved, normalization=normalization, eps=0.0, lr=1.0)
        error = (tensors.params[0] - expected.params[0]).abs()
        assert (error <= 3 * support.UNIT * expected.params[0].abs()).all() == is_exact, norm


def test_reference_by_hand() -> None:
    """Rows of (3, 4) and (0, 0): rms sqrt(12.5), and a row that stays."""
    for normalization, norm in (("rms", math.sqrt(12.5)), ("l2", 5.0)):
        w = torch.ones(2, 2, dtype=FP64)
        arguments = {"momentum": 0.0, "eps": 0.0, "weight_decay": 0.5, "normalization": normalization}
        g = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=FP64)
        reference.scale_([w], [g], [], lr=0.1, dim=1, **arguments)
        expected = torch.tensor([[0.95 - 0.3 / norm, 0.95 - 0.4 / norm], [0.95, 0.95]], dtype=FP64)
        torch.testing.assert_close(w, expected, rtol=1e-13, atol=0)
        w = torch.ones(2, 2, dtype=FP64)
        reference.scale_([w], [g.t()], [], lr=0.1, dim=0, **arguments)
        torch.testing.assert_close(w, expected.t(), rtol=1e-13, atol=0)


def test_eps_is_the_least_norm(rules: ModuleType) -> None:
    w, g = torch.zeros(1, 4), torch.full((1, 4), 0.25)
    settings = {"lr": 1.0, "momentum": 0.0, "dim": 1, "weight_decay": 0.0}
    rules.scale_([w], [g], [], eps=0.5, **settings)
    assert (w == -0.5).all()
    rules.scale_([w], [g], [], eps=0.125, **settings)
    assert (w == -1.5).all()


def test_arguments_that_cannot_be_used(rules: ModuleType) -> None:
    tensors = support.make("scale", [(2, 2)])
    for dim in (2, -1):
        with pytest.raises(ValueError, match=r"^dim.* 0 .*or 1"):
            rules.scale_(
                tensors.params, tensors.grads, [], lr=1.0, momentum=0.0, dim=dim, eps=0.0, weight_decay=0.0
            )
    with pytest.raises(ValueError, match=r"^normalization.*rms.*l2"):
        support.call(rules, "scale", tensors, normalization="sqrt")
    with pytest.raises(ValueError, match=r"^exp_avgs.*1 tensors, but momentum is 0"):
        support.call(rules, "scale_momentum", support.make("scale_momentum", [(2, 2)]), momentum=0.0)
    vectors = support.make("scale", [(2, 2)])
    vectors.params.append(torch.ones(3))
    vectors.grads.append(torch.ones(3))
    with pytest.raises(ValueError, match=r"params\[1\].*two .*dimensions.*AdamW"):
        support.call(rules, "scale", vectors)
