"""Second moments beside 16-bit parameters: they must neither vanish nor stay what they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sage_ext.optimizers import FusedAdamW, FusedALIASAdam, FusedHybrid

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def steps_of(sizes: list[float], dtype: torch.dtype, **changes: Any) -> list[float]:
    """How far AdamW goes, over its rate, for a gradient of these sizes."""
    param = nn.Parameter(torch.zeros(4, dtype=dtype))
    optimizer = FusedAdamW([param], lr=1e-3, weight_decay=0.0, **changes)
    moved = []
    for size in sizes:
        param.data.zero_()
        param.grad = torch.full_like(param, size)
        optimizer.step()
        moved.append(float(param.detach().abs().max()) / 1e-3)
    return moved


@HALVES
@pytest.mark.parametrize("size", [1e-3, 1e-5])
def test_small_gradients(dtype: torch.dtype, size: float, backend: str) -> None:
    """The square of 1e-3 is not a number that float16 has beside beta2 = 0.999: the step grew to twenty times
    lr."""
    moved = steps_of([size] * 200, dtype, backend=backend)
    assert all(0.95 < step < 1.05 for step in moved)


@HALVES
def test_gradients_that_become_smaller(dtype: torch.dtype, backend: str) -> None:
    """In bfloat16 the second moment cannot decay: the step stayed a fifth of what float32 takes."""
    sizes = [1.0] * 100 + [0.1] * 1500
    exact = steps_of(sizes, torch.float32, backend=backend)[-1]
    assert steps_of(sizes, dtype, backend=backend)[-1] == pytest.approx(exact, rel=0.02)
    if dtype == torch.bfloat16:
        assert steps_of(sizes, dtype, backend=backend, state_dtype=dtype)[-1] < 0.7 * exact, (
            "asked for, and got"
        )


@HALVES
@pytest.mark.parametrize("optimizer_class", [FusedAdamW, FusedALIASAdam])
def test_default_and_choice(optimizer_class: Any, dtype: torch.dtype, backend: str) -> None:
    for changes, expected in (({}, torch.float32), ({"state_dtype": dtype}, dtype)):
        param = nn.Parameter(torch.zeros(8, dtype=dtype))
        optimizer = optimizer_class([param], backend=backend, **changes)
        planned = optimizer.describe().state_bytes
        param.grad = torch.ones_like(param)
        optimizer.step()
        held = optimizer.state[param]
        assert held["exp_avg"].dtype == held["exp_avg_sq"].dtype == expected
        assert sum(tensor.nbytes for tensor in held.values()) == planned


@HALVES
def test_hybrids(dtype: torch.dtype, backend: str) -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)).to(dtype)
    optimizer = FusedHybrid(model, "sinkgd", backend=backend)
    model(torch.arange(5)).float().square().sum().backward()
    optimizer.step()
    assert optimizer.state[model[0].weight]["exp_avg_sq"].dtype == torch.float32


def test_alias_adam_in_float16_stays_finite(backend: str) -> None:
    param = nn.Parameter(torch.zeros(64, dtype=torch.float16))
    optimizer = FusedALIASAdam([param], backend=backend)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        param.grad = (1e-3 * torch.randn(64, generator=generator)).half()
        optimizer.step()
    assert param.isfinite().all()
    assert float(param.detach().abs().max()) < 1.0
