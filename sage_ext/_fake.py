"""``torch.ops.sage_ext.*`` without memory: fake kernels, and how a compiler traces a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey

SHAPED = ("grads", "exp_avgs", "exp_avg_sqs", "prev_grads")
"""Lists of tensors that have their parameters' shapes."""


def register(native: ModuleType) -> None:
    """Make all operators of ``sage_ext._C`` known to meta tensors, to FakeTensorMode and to torch.compile."""
    for rule, (_, lists, _) in native.signatures().items():
        fake = partial(check, [name for name, _, _ in lists])
        for overload in ("", ".tensor_lr"):
            torch.library.register_fake(f"sage_ext::{rule}_{overload}", fake)
        operator = getattr(torch.ops.sage_ext, f"{rule}_")
        # Seen by tracers only: what they record instead of the call with a number.
        operator.default.py_impl(DispatchKey.Autograd)(_with_symbol_as_tensor(operator))


def check(names: Sequence[str], *lists: Sequence[Tensor], lr: float | Tensor, **_: Any) -> None:
    """Refuse lists that do not go together, as the kernels do; what is in tensors is for them to judge."""
    params = lists[0]
    for name, tensors in zip(names[1:], lists[1:], strict=True):
        if name == "scalars":  # one for all parameters, or one for each
            continue
        if len(tensors) != len(params) and (tensors or name == "grads"):
            raise ValueError(
                f"{name} has {len(tensors)} tensors for {len(params)} params; give one tensor for each "
                "parameter"
            )
        for index, (tensor, param) in enumerate(zip(tensors, params, strict=False)):
            if name in SHAPED and tensor.shape != param.shape:
                raise ValueError(
                    f"{name}[{index}], shape {list(tensor.shape)}: its shape is not its parameter's "
                    f"{list(param.shape)}"
                )
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("lr must be a number or a floating-point tensor with one element")


def _with_symbol_as_tensor(operator: Any) -> Callable[..., None]:
    """A number that is an input of what is compiled goes on as a tensor, by a sum with one: in sums
    torch.compile has such numbers as tensors, which serve all values; elsewhere they are constants."""

    def call(*lists: Sequence[Tensor], lr: Any, **settings: Any) -> None:
        if isinstance(lr, torch.SymFloat):
            number: Any = lr
            operator.tensor_lr(*lists, lr=torch.zeros((), dtype=torch.float64) + number, **settings)
            return
        with torch._C._AutoDispatchBelowAutograd():
            operator.default(*lists, lr=lr, **settings)

    return call
