"""The SAGE kernel against the reference in float64."""

from __future__ import annotations

import itertools
from types import ModuleType

import pytest
import support
import torch
from native_suite import NativeSuite, native  # noqa: F401
from support import BF16, FP32

from sage_ext import reference


class TestSage(NativeSuite):
    rule = "sage"

    @pytest.mark.parametrize(
        ("momentum_first", "instant_damper", "eps"),
        list(itertools.product([False, True], [False, True], [0.0, 1e-8, 1e-2])),
    )
    def test_both_momentum_orders_and_dampers(
        self,
        native: ModuleType,  # noqa: F811
        momentum_first: bool,
        instant_damper: bool,
        eps: float,
    ) -> None:
        tensors = support.make(self.rule, self.shapes(), (BF16, FP32, FP32), scale=1e-2)
        self.compare(native, tensors, momentum_first=momentum_first, instant_damper=instant_damper, eps=eps)

    @pytest.mark.parametrize("scale", [1e-20, 1e-9, 1e33])
    @pytest.mark.parametrize("eps", [0.0, 1e-8])
    def test_eps_where_gradients_are_near_it(self, native: ModuleType, scale: float, eps: float) -> None:  # noqa: F811
        self.compare(native, support.make(self.rule, self.shapes(), scale=scale), eps=eps)

    def test_a_column_whose_sum_overflows_is_not_hidden(self, native: ModuleType) -> None:  # noqa: F811
        """Gradients that float32 holds, and their sum over many rows, which it does not; then one that it
        holds."""
        tensors = support.make(self.rule, [(1000, 3)])
        tensors.grads[0][:, 1] = 1e38
        for module in (native, reference):
            stepped = tensors.clone()
            support.call(module, self.rule, stepped)
            assert stepped.params[0].isnan().any(dim=0).tolist() == [False, True, False], module
        tensors.grads[0][:, 1] = 3e35
        support.step_and_compare(native, self.rule, tensors)

    def test_momentum_orders_differ(self, native: ModuleType) -> None:  # noqa: F811
        """The two orders are not the same rule: with m and g opposed, more weight on g turns signs."""
        results = []
        for momentum_first in (False, True):
            tensors = support.make(self.rule, [(64, 64)])
            tensors.states["exp_avg"][0].copy_(-0.115 * tensors.grads[0])
            support.step_and_compare(native, self.rule, tensors, momentum_first=momentum_first)
            results.append(tensors.params[0])
        assert (results[0] != results[1]).float().mean() > 0.9

    def test_embedding_of_which_most_rows_are_unseen(self, native: ModuleType) -> None:  # noqa: F811
        """Rows without gradient stay while their momentum is zero, and go on moving, as in Lion, while it is
        not."""
        tensors = support.make(self.rule, [(5000, 64)])
        seen = torch.zeros(5000, dtype=torch.bool)
        seen[::97] = True
        tensors.grads[0][~seen] = 0
        before = tensors.params[0].clone()
        support.step_and_compare(native, self.rule, tensors, weight_decay=0.0)
        assert torch.equal(before[~seen], tensors.params[0][~seen])
        assert (before[seen] != tensors.params[0][seen]).all()
        tensors.grads[0][seen] = 0
        tensors.grads[0][1::97] = 1
        before = tensors.params[0].clone()
        support.step_and_compare(native, self.rule, tensors, weight_decay=0.0)
        assert (
            before[seen] != tensors.params[0][seen]
        ).float().mean() > 0.999  # where 2e-4 is not rounded away

    def test_bias_correction_far_into_training(self, native: ModuleType) -> None:  # noqa: F811
        tensors = support.make(self.rule, [(65, 129), (33,)])
        for step in tensors.states["step"]:
            step.fill_(99_999)
        for s_range in tensors.states["s_range"]:
            s_range.uniform_(0.1, 1.0)
        support.step_and_compare(native, self.rule, tensors)
        assert [float(step) for step in tensors.states["step"]] == [100_000.0] * 2

    @pytest.mark.parametrize("rows", [1_000, 100_000, 1_000_000])
    def test_column_mean_of_many_rows(self, native: ModuleType, rows: int) -> None:  # noqa: F811
        """The error of a long reduction does not grow with its length, not even where every addition errs
        alike."""
        tensors = support.make(self.rule, [(rows, 2)])
        tensors.grads[0].fill_(0.1)
        support.call(native, self.rule, tensors, betas=(0.9, 0.0))
        mean = tensors.states["s_range"][0].double()
        exact = tensors.grads[0][0].double()
        assert ((mean - exact).abs() <= 64 * support.UNIT * exact).all()
