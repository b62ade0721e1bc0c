"""Checks of hyperparameters: ``check(value, name, where)``.

Each raises ValueError naming the argument, what it was and what it may be; ``where`` names the group or rule
in the message.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sage_ext.checks import brief

Check = Callable[[Any, str, str], None]

STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def fail(name: str, value: object, expected: str, where: str) -> None:
    raise ValueError(f"{name}: got {brief(value)}{where}, expected {expected}")


def plain(value: Any) -> Any:
    """Return Python's own number for one of NumPy's, and a tuple of them for a sequence of two.

    A state dict that holds them then loads with ``weights_only=True``. Everything else is returned as it is:
    to refuse it is the checks' business.
    """
    if type(value) in _PLAIN or isinstance(value, (Tensor, str)):
        return value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    if _is_sequence(value):
        return tuple(plain(item) for item in value)
    return value


_PLAIN = (float, int, bool, type(None), torch.dtype)


def _is_sequence(value: Any) -> bool:
    """Whether it is a list, a tuple, an OmegaConf list or an array: something with items in an order."""
    if isinstance(value, (str, bytes, Tensor)):
        return False
    return isinstance(value, Sequence) or (hasattr(value, "tolist") and hasattr(value, "__len__"))


def rate(value: Any, name: str, where: str) -> None:
    """A finite number >= 0, or a floating tensor of one element; its value is read only from a CPU."""
    number_or_scalar(value, name, where)
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            return
        value = value.item()
    non_negative(value, name, where)


def number_or_scalar(value: Any, name: str, where: str) -> None:
    """A number, or a floating tensor of one element. Reads no value."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or not value.is_floating_point():
            shape, dtype = tuple(value.shape), value.dtype
            raise ValueError(
                f"{name}: got a tensor of shape {shape} and dtype {dtype}{where}, expected a number or a "
                "floating tensor of one element"
            )
    elif not _is_number(value):
        fail(name, value, "a number or a floating tensor of one element", where)


def non_negative(value: Any, name: str, where: str) -> None:
    if not _is_number(value) or not 0 <= value < math.inf:
        fail(name, value, "a finite number >= 0", where)


def positive(value: Any, name: str, where: str) -> None:
    if not _is_number(value) or not 0 < value < math.inf:
        fail(name, value, "a finite number > 0", where)


def finite(value: Any, name: str, where: str) -> None:
    if not _is_number(value) or not math.isfinite(value):
        fail(name, value, "a finite number", where)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def fraction(value: Any, name: str, where: str) -> None:
    """A number in [0, 1)."""
    if not _is_number(value) or not 0 <= value < 1:
        fail(name, value, "a number in [0, 1)", where)


def fraction_pair(value: Any, name: str, where: str) -> None:
    """Two numbers in [0, 1), in any sequence."""
    if (
        not _is_sequence(value)
        or len(value) != 2
        or any(not _is_number(item) or not 0 <= item < 1 for item in value)
    ):
        kind = "" if isinstance(value, (tuple, list)) else f", of type {type(value).__name__}"
        raise ValueError(f"{name}: got {value!r}{kind}{where}, expected two numbers in [0, 1)")


def positive_int(value: Any, name: str, where: str) -> None:
    _int_from(1, value, name, where)


def non_negative_int(value: Any, name: str, where: str) -> None:
    _int_from(0, value, name, where)


def _int_from(least: int, value: Any, name: str, where: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        fail(name, value, f"an integer >= {least}", where)


def flag(value: Any, name: str, where: str) -> None:
    if not isinstance(value, bool):
        fail(name, value, "True or False", where)


def one_of(*options: Any) -> Check:
    """One of these values; a bool or a float is not the integer that it may compare equal to."""

    def check(value: Any, name: str, where: str) -> None:
        if type(value) is not type(options[0]) or value not in options:
            fail(name, value, "one of " + ", ".join(map(repr, options)), where)

    return check


def state_dtype(value: Any, name: str, where: str) -> None:
    if value is not None and value not in STATE_DTYPES:
        fail(
            name,
            value,
            "None (see the optimizer's documentation) or one of " + ", ".join(map(str, STATE_DTYPES)),
            where,
        )


def process_group(value: Any, name: str, where: str) -> None:
    """None, or a group of ``torch.distributed`` that this process belongs to."""
    kind = getattr(dist, "ProcessGroup", None)  # not in every build of torch
    if value is not None and (kind is None or not isinstance(value, kind)):
        fail(name, value, "None or a process group, for instance torch.distributed.group.WORLD", where)
