"""Products of bf16 matrices in fp32, for processors that have no instructions for them."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.select_algorithm import extern_kernels

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from llama import products

CASES: dict[str, tuple[tuple[tuple[int, ...], ...], dict[str, float]]] = {
    "mm": (((37, 192), (192, 50)), {}),
    "bmm": (((3, 17, 64), (3, 64, 9)), {}),
    "addmm": (((37, 50), (37, 192), (192, 50)), {"beta": 0.5, "alpha": 2.0}),
    "baddbmm": (((3, 17, 9), (3, 17, 64), (3, 64, 9)), {"beta": -1.0}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, list[Tensor], dict[str, float], Tensor]:
    """A product's name, its factors, its scales, and what it is in fp64."""
    shapes, scales = CASES[request.param]
    generator = torch.Generator().manual_seed(7)
    factors = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    exact = getattr(torch, request.param)(*(factor.double() for factor in factors), **scales)
    return request.param, factors, scales, exact


@pytest.fixture
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CASES:
        monkeypatch.setattr(extern_kernels, name, getattr(extern_kernels, name))
    products.mend_compiled()


def check_rounded(found: Tensor, exact: Tensor) -> None:
    """Half a digit of bf16 away at most, and what sums in fp32 are off."""
    assert found.dtype == torch.bfloat16
    digit = 2.0 ** (exact.abs().log2().floor() - 7)
    assert ((found.double() - exact).abs() <= digit / 2 + 1e-5).all()


def test_uncompiled(case: Any) -> None:
    name, factors, scales, exact = case
    with products.Mended():
        check_rounded(getattr(torch, name)(*factors, **scales), exact)
        in_place = getattr(torch, name)(*factors, **scales, out=torch.empty_like(exact, dtype=torch.bfloat16))
    check_rounded(in_place, exact)


def test_compiled_code_calls_it(case: Any, mended: None) -> None:
    name, factors, scales, exact = case
    out = torch.empty_like(exact, dtype=torch.bfloat16)
    assert getattr(extern_kernels, name)(*factors, **scales, out=out) is out
    check_rounded(out, exact)


def test_other_dtypes_are_left_alone(case: Any, mended: None) -> None:
    name, factors, scales, _ = case
    factors = [factor.float() for factor in factors]
    expected = getattr(torch, name)(*factors, **scales)
    found = getattr(extern_kernels, name)(*factors, **scales, out=torch.empty_like(expected))
    assert torch.equal(found, expected)
    with products.Mended():
        assert torch.equal(getattr(torch, name)(*factors, **scales), expected)


def test_inductor_takes_it(mended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []
    kernel: Callable[..., Tensor] = extern_kernels.mm

    def watched(*factors: Tensor, **rest: Any) -> Tensor:
        calls.append(factors[0].dtype)
        return kernel(*factors, **rest)

    monkeypatch.setattr(extern_kernels, "mm", watched)
    weight = torch.randn(48, 64, requires_grad=True)
    loss = torch.compile(lambda x: torch.nn.functional.linear(x, weight).square().sum(), dynamic=False)
    with torch.autocast("cpu", torch.bfloat16):
        loss(torch.randn(40, 64)).backward()
    assert calls == [torch.bfloat16] * 2  # forward, and backward to the weight


@pytest.mark.parametrize(("capability", "slow"), [("DEFAULT", True), ("AVX2", True), ("AVX512", False)])
def test_where_they_are_slow(capability: str, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert products.are_slow(torch.device("cpu")) is slow
    assert products.are_slow(torch.device("cuda")) is False
    assert (products.where_needed(torch.device("cpu"), "bf16") is products.Mended) is slow
    assert products.where_needed(torch.device("cpu"), "none") is not products.Mended
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert products.are_slow(torch.device("cpu")) is False
