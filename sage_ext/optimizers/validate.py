"""Checks of hyperparameters. Each raises ValueError naming the argument, what it was and what it may be."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Real
from typing import Any

import torch
from torch import Tensor

STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def fail(name: str, value: object, expected: str, where: str) -> None:
    raise ValueError(f"{name}: got {value!r}{where}, expected {expected}")


def rate(value: Any, where: str, name: str = "lr") -> None:
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
    """Two numbers in [0, 1)."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        fail(name, value, "two numbers in [0, 1)", where)
    for item in value:
        if not _is_number(item) or not 0 <= item < 1:
            fail(name, value, "two numbers in [0, 1)", where)


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


def integer_choice(value: Any, options: Collection[int], name: str, where: str) -> None:
    """One of some integers: no bool, no float, though they may compare equal."""
    if type(value) is not int or value not in options:
        fail(name, value, "one of " + ", ".join(map(repr, options)), where)


def choice(value: Any, options: Collection[Any], name: str, where: str) -> None:
    if value not in options:
        fail(name, value, "one of " + ", ".join(map(repr, options)), where)


def state_dtype(value: Any, where: str) -> None:
    if value is not None and value not in STATE_DTYPES:
        fail(
            "state_dtype",
            value,
            "None (the parameter's dtype) or one of " + ", ".join(map(str, STATE_DTYPES)),
            where,
        )
