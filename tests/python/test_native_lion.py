"""The Lion kernel against the reference in float64."""

from __future__ import annotations

from types import ModuleType

import pytest
import support
from native_suite import NativeSuite, arrange, native  # noqa: F401


class TestLion(NativeSuite):
    rule = "lion"

    @pytest.mark.parametrize("betas", [(0.9, 0.99), (0.95, 0.98), (0.0, 0.0), (0.0, 0.9), (0.9, 0.0)])
    def test_betas(self, native: ModuleType, betas: tuple[float, float]) -> None:  # noqa: F811
        self.compare(native, support.make(self.rule, self.shapes()), betas=betas)

    def test_sign_of_zero_is_zero(self, native: ModuleType) -> None:  # noqa: F811
        """Where the two terms cancel exactly, nothing moves; negative zero counts as zero."""
        tensors = support.make(self.rule, [(64,)])
        tensors.grads[0].fill_(-0.0)
        before = tensors.params[0].clone()
        support.call(native, self.rule, tensors, weight_decay=0.0)
        support.assert_same_bits([before], tensors.params)
        tensors.grads[0].fill_(1.0)
        tensors.states["exp_avg"][0].fill_(-1.0)
        support.call(native, self.rule, tensors, weight_decay=0.0, betas=(0.5, 0.99))
        support.assert_same_bits([before], tensors.params)

    @pytest.mark.parametrize("layout", ["transposed", "channels_last", "permuted"])
    def test_dense_strides(self, native: ModuleType, layout: str) -> None:  # noqa: F811
        """Element-wise rules take parameters in any order of dimensions, if the state has the same."""
        plain = support.make(self.rule, [(2, 3, 7, 15)])
        odd = plain.clone()
        odd.params = [arrange(param, layout) for param in plain.params]
        odd.states = {
            key: [arrange(value, layout) for value in values] for key, values in plain.states.items()
        }
        for _ in range(2):
            support.call(native, self.rule, plain)
            support.call(native, self.rule, odd)
        support.assert_same_bits(plain.params, odd.params)
        support.assert_same_bits(plain.states["exp_avg"], odd.states["exp_avg"])
