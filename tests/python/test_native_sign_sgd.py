"""The kernels of Sign-SGD and Signum against the reference in float64."""

from __future__ import annotations

from types import ModuleType

import pytest
import support
import torch
from native_suite import NativeSuite, arrange, native  # noqa: F401
from support import Tensors

from sage_ext import reference

LAYOUTS = ["transposed", "channels_last", "permuted"]


class TestSignSGD(NativeSuite):
    rule = "sign_sgd"

    def test_sign_of_zero_is_zero(self, native: ModuleType) -> None:  # noqa: F811
        tensors = support.make(self.rule, [(64,)])
        before = tensors.params[0].clone()
        for zero in (0.0, -0.0):
            tensors.grads[0].fill_(zero)
            support.call(native, self.rule, tensors)
            support.assert_same_bits([before], tensors.params)

    def test_smallest_numbers_have_a_sign(self, native: ModuleType) -> None:  # noqa: F811
        tensors = support.make(self.rule, [(64,)])
        tensors.grads[0].fill_(2.0**-140)
        before = tensors.params[0].clone()
        support.call(native, self.rule, tensors, lr=0.5)
        torch.testing.assert_close(tensors.params[0], before - 0.5)

    @pytest.mark.parametrize("layout", LAYOUTS)
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
        support.assert_same_bits(plain.flat(), odd.flat())


class TestSignum(TestSignSGD):
    rule = "signum"

    @pytest.mark.parametrize("momentum", [0.1, 0.5, 0.99])
    def test_momentum(self, native: ModuleType, momentum: float) -> None:  # noqa: F811
        self.compare(native, support.make(self.rule, self.shapes()), momentum=momentum)

    def test_the_sign_is_that_of_the_new_momentum(self, native: ModuleType) -> None:  # noqa: F811
        """0.75 * 1 - 0.25 * 4 is negative, 0.75 * 1 - 0.25 * 3 is zero; the old m is positive in both."""
        w, m = torch.zeros(2), torch.ones(2)
        native.sign_sgd_([w], [torch.tensor([-4.0, -3.0])], [m], lr=0.5, momentum=0.75, weight_decay=0.0)
        assert w.tolist() == [0.5, 0.0]
        assert m.tolist() == [-0.25, 0.0]

    def test_the_sign_is_taken_before_the_store_rounds(self, native: ModuleType) -> None:  # noqa: F811
        """A moment that rounds to zero at its store in float16 still has a sign."""
        w, m = torch.zeros(40), torch.zeros(40, dtype=torch.float16)
        native.sign_sgd_([w], [torch.full((40,), 1e-9)], [m], lr=0.5, momentum=0.5, weight_decay=0.0)
        assert (w == -0.5).all()
        assert (m == 0).all()


def test_moments_without_momentum_and_momentum_without_moments(rules: ModuleType) -> None:
    without, having = support.make("sign_sgd", [(4, 5)] * 2), support.make("signum", [(4, 5)] * 2)
    before = [tensor.clone() for tensor in [*without.flat(), *having.flat()]]
    with pytest.raises(ValueError, match=r"exp_avgs.* 2 tensors, but momentum is 0.*pass an empty list"):
        support.call(rules, "signum", having, momentum=0.0)
    with pytest.raises(ValueError, match=r"exp_avgs.* 0 tensors.* 2 params"):
        support.call(rules, "sign_sgd", without, momentum=0.5)
    support.assert_same_bits(before, [*without.flat(), *having.flat()])


def test_same_numbers_as_lion_with_equal_betas(rules: ModuleType) -> None:
    """Lion's sign is that of b1*m + (1-b1)*g, and with b2 = b1 that is the new m."""
    signum = support.make("signum", [(17, 29), (31,)])
    lion = Tensors([p.clone() for p in signum.params], signum.grads, signum.clone().states)
    for _ in range(3):
        support.call(rules, "signum", signum, lr=0.25, weight_decay=0.5, momentum=0.75)
        support.call(rules, "lion", lion, lr=0.25, weight_decay=0.5, betas=(0.75, 0.75))
    support.assert_same_bits(signum.flat(), lion.flat())


def test_reference_by_hand() -> None:
    w = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    g = torch.tensor([2.0, 0.0, -1e-30], dtype=torch.float64)
    reference.sign_sgd_([w], [g], [], lr=0.1, momentum=0.0, weight_decay=0.5)
    torch.testing.assert_close(w, torch.tensor([0.85, 0.95, 1.05], dtype=torch.float64))
