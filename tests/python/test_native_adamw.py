"""The AdamW kernel against the reference in float64, and against torch's own fused kernel."""

from __future__ import annotations

from types import ModuleType

import pytest
import support
import torch
from native_suite import NativeSuite, native  # noqa: F401
from support import BF16, FP32


class TestAdamw(NativeSuite):
    rule = "adamw"

    @pytest.mark.parametrize("scale", [1e-18, 1e18])
    @pytest.mark.parametrize("dtype", [FP32, BF16])
    def test_tiny_and_huge_gradients(
        self,
        native: ModuleType,  # noqa: F811
        scale: float,
        dtype: torch.dtype,
    ) -> None:
        """As far as the second moment, a square, has a float32."""
        tensors = support.make(self.rule, self.shapes(), (FP32, dtype, FP32), scale=scale)
        self.compare(native, tensors)

    @pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.99), (0.95, 0.9)])
    @pytest.mark.parametrize("eps", [1e-8, 1e-3])
    def test_betas_and_eps(self, native: ModuleType, betas: tuple[float, float], eps: float) -> None:  # noqa: F811
        self.compare(native, support.make(self.rule, self.shapes()), betas=betas, eps=eps)

    def test_zero_eps_and_zero_gradients(self, native: ModuleType) -> None:  # noqa: F811
        tensors = support.make(self.rule, [(40, 30)])
        tensors.grads[0][::2] = 0
        before = tensors.params[0].clone()
        support.step_and_compare(native, self.rule, tensors, eps=0.0, weight_decay=0.0)
        assert torch.equal(before[::2], tensors.params[0][::2])

    def test_bias_correction_far_into_training(self, native: ModuleType) -> None:  # noqa: F811
        tensors = support.make(self.rule, [(65, 129)])
        tensors.states["step"][0].fill_(99_999)
        support.step_and_compare(native, self.rule, tensors)

    def test_same_as_torch_fused(self, native: ModuleType) -> None:  # noqa: F811
        ours = support.make(self.rule, [(65, 129), (777,)])
        theirs = [torch.nn.Parameter(param.clone()) for param in ours.params]
        optimizer = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1, fused=True)
        for step in range(10):
            for param, grad in zip(theirs, ours.grads, strict=True):
                param.grad = grad.clone()
            optimizer.step()
            support.call(native, self.rule, ours, lr=1e-2, weight_decay=0.1)
            ours.grads = support.new_grads(ours, FP32, seed=step)
        for a, b in zip(ours.params, theirs, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)
