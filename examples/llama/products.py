"""Products of bf16 matrices where the processor has no instructions for them.

On one without AVX-512 torch takes more than ten times as long for bf16 matrices as for fp32 ones. Here they
are multiplied in fp32 and the result is rounded: the same but for the order of the sums, since products of
two bf16 numbers are exact in fp32, and sums are in fp32 with such instructions, too.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")


def are_slow(device: torch.device) -> bool:
    """Whether torch has but slow kernels for bf16 products: on an x86 processor without AVX-512."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return device.type == "cpu" and is_x86 and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


def mend_compiled() -> None:
    """From now on, has what inductor compiles in this process multiply bf16 matrices in fp32."""
    from torch._inductor.select_algorithm import extern_kernels

    for name in _PRODUCTS:
        kernel = getattr(extern_kernels, name)
        if not hasattr(kernel, "in_fp32"):
            setattr(extern_kernels, name, _in_fp32(kernel))


def where_needed(device: torch.device, amp: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return ``Mended`` for mixed precision in bf16 where its products are slow, else what does nothing."""
    return Mended if amp == "bf16" and are_slow(device) else nullcontext


class Mended(TorchDispatchMode):
    """Has what runs inside, uncompiled, multiply bf16 matrices in fp32."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in _PRODUCTS and args[0].dtype == torch.bfloat16:
            function = _in_fp32(function.overloadpacket)
        return function(*args, **(kwargs or {}))


def _in_fp32(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def product(*factors: Tensor, out: Tensor | None = None, **scales: float) -> Tensor:
        if factors[0].dtype != torch.bfloat16:
            return kernel(*factors, out=out, **scales)
        result = kernel(*(factor.float() for factor in factors), **scales)
        return result.bfloat16() if out is None else out.copy_(result)

    product.in_fp32 = True  # type: ignore[attr-defined]
    return product
