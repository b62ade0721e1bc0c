"""Keyword arguments that an optimizer does not take: the error names those that it does."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

OF_TORCH: Mapping[str, str] = MappingProxyType(
    {
        "fused": "leave it out: native kernels are fused",
        "foreach": "leave it out: native kernels take all tensors at once",
        "amsgrad": "leave it out: no rule here has such a form",
        "differentiable": "leave it out: autograd cannot go through a step here",
    }
)
"""Arguments of torch's optimizers that none of ours takes -> what to do, for messages."""

_OTHER_NAMES = {"wd": "weight_decay", "learning_rate": "lr"}


def named(constructor: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor whose error about a keyword that it does not take names those that it takes.

    It keeps the signature for those who ask. Type checkers and editors read the class itself.
    """
    signature = inspect.signature(constructor)
    known = [name for name in signature.parameters if name != "self"]

    @functools.wraps(constructor)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in known:
                cure = OF_TORCH.get(name) or _what_it_takes(name, known)
                raise TypeError(f"{type(self).__name__}: argument {name!r} is not known; {cure}")
        constructor(self, *args, **kwargs)

    checked.__signature__ = signature  # type: ignore[attr-defined]  # getfullargspec() unwraps nothing
    return checked


def _what_it_takes(argument: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(_OTHER_NAMES.get(argument, argument), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}It takes {', '.join(known)}"
