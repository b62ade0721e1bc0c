"""The kernel of ALIAS-Adam against the reference in float64."""

from __future__ import annotations

import math
from types import ModuleType

import alias_bounds
import pytest
import support
import torch
from native_suite import NativeSuite, native  # noqa: F401
from support import BF16, FP16, FP32


class TestAliasAdam(NativeSuite):
    rule = "alias_adam"

    @pytest.mark.parametrize("scale", [1e-18, 1e18])
    @pytest.mark.parametrize("dtype", [FP32, BF16])
    def test_tiny_and_huge_gradients(
        self,
        native: ModuleType,  # noqa: F811
        scale: float,
        dtype: torch.dtype,
    ) -> None:
        """As far as the second moment has a float32: d follows huge gradients from the second step on, and
        the square of d*g is then beyond it."""
        tensors = support.make(self.rule, self.shapes(), (FP32, dtype, FP32), scale=scale)
        self.compare(native, tensors, 1 if scale > 1 else 3)

    @pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9), (0.95, 0.25), (0.9, 0.0)])
    @pytest.mark.parametrize("eps", [1e-8, 1e-3])
    @pytest.mark.parametrize("d0", [1e-8, 1.0])
    def test_betas_eps_and_d0(
        self,
        native: ModuleType,  # noqa: F811
        betas: tuple[float, float],
        eps: float,
        d0: float,
    ) -> None:
        """Gradients whose signs persist, so that d grows where beta2 is not near 1."""
        tensors = support.make(self.rule, [(65, 129), (31,), (0, 5), ()])
        for scalars in tensors.states["scalars"]:
            scalars[1] = d0
        grads = [1e-3 * grad for grad in tensors.grads]
        for factor in (1.0, 0.5, 2.0, 1.0):
            tensors.grads = [factor * grad for grad in grads]
            support.step_and_compare(native, self.rule, tensors, betas=betas, eps=eps)
        grew = float(tensors.states["scalars"][0][1]) > d0
        assert grew == (betas[1] < 0.99)

    def test_zero_eps_and_zero_gradients(self, native: ModuleType) -> None:  # noqa: F811
        tensors = support.make(self.rule, [(40, 30)])
        tensors.grads[0][::2] = 0
        before = tensors.params[0].clone()
        for _ in range(2):
            support.step_and_compare(native, self.rule, tensors, eps=0.0, weight_decay=0.0)
        assert torch.equal(before[::2], tensors.params[0][::2])

    def test_every_tensor_has_a_d_of_its_own(self, native: ModuleType) -> None:  # noqa: F811
        together = support.make(self.rule, [(40, 30), (7,), (65, 129)])
        apart = together.clone()
        for _ in range(3):
            support.call(native, self.rule, together, betas=(0.9, 0.5))
            for i in range(3):
                states = {key: [values[i]] for key, values in apart.states.items()}
                one = support.Tensors([apart.params[i]], [apart.grads[i]], states)
                support.call(native, self.rule, one, betas=(0.9, 0.5))
        support.assert_same_bits(together.flat(), apart.flat())
        assert len({float(scalars[1]) for scalars in together.states["scalars"]}) == 3

    @pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
    def test_planes(self, native: ModuleType, dtype: torch.dtype) -> None:  # noqa: F811
        for count in (1, 31, 32, 33, 65, 4099):
            tensors = support.make(self.rule, [(count,)], (FP32, dtype, FP32), seed=count)
            tensors.grads[0][::3], tensors.grads[0][1::5] = 0.0, math.nan
            tensors.states["signs"][0].fill_(-1)
            support.call(native, self.rule, tensors)
            alias_bounds.check_planes(tensors.states["signs"][0], tensors.grads[0], f"{count} elements")


def test_states_that_do_not_fit(native: ModuleType) -> None:  # noqa: F811
    for key, value, match in (
        ("signs", torch.zeros(2, 7), r"^signs\[1\].*of dtype int "),
        ("scalars", torch.zeros(2), r"^scalars\[1\].*of dtype double"),
        ("scalars", torch.zeros(3, dtype=torch.float64), r"^scalars\[1\].*shape \[2\]"),
    ):
        tensors = support.make("alias_adam", [(4, 50)] * 2)
        tensors.states[key][1] = value
        before = [tensor.clone() for tensor in tensors.flat()]
        with pytest.raises(ValueError, match=match):
            support.call(native, "alias_adam", tensors)
        support.assert_same_bits(before, tensors.flat())
