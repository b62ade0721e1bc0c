"""Arguments that a framework hands over as text."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

import torch

_WORDS: Mapping[str, bool | None] = {"true": True, "false": False, "none": None, "null": None}


def parse(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return keyword arguments from ``"key=value,key=value"``, or from a mapping whose values may be text.

    A number, a tuple in brackets, ``true``, ``false``, ``none`` and a dtype of torch become what they say;
    other text stays text. ``sinkgd.iterations=3`` is ``sinkgd={"iterations": 3}``.

    Raises:
        ValueError: a part is no ``key=value``, or a key is given as a value and as a mapping.
    """
    result: dict[str, Any] = {}
    for key, value in _pairs(given):
        *outer, last = key.split(".")
        place = result
        for name in outer:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ValueError(f"optim_args: {key} says what is in {name}, which has a value itself")
        if isinstance(place.get(last), dict) and not isinstance(value, Mapping):
            raise ValueError(f"optim_args: {key} is given a value, and {key}.{next(iter(place[last]))}, too")
        place[last] = {**place.get(last, {}), **parse(value)} if isinstance(value, Mapping) else _value(value)
    return result


def _pairs(given: str | Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    if given is None:
        return
    if not isinstance(given, str):
        yield from given.items()
        return
    for part in _split(given):
        key, equals, value = part.partition("=")
        if not (equals and key.strip() and value.strip()):
            raise ValueError(f"optim_args: got {part.strip()!r}, expected key=value, with commas between")
        yield key.strip(), value.strip()


def _split(text: str) -> list[str]:
    """Cut at the commas that are in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def _value(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if isinstance(dtype := getattr(torch, value.removeprefix("torch."), None), torch.dtype):
        return dtype
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
