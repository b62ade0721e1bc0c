"""Fused, memory-efficient optimizers for PyTorch: SAGE, SinkGD, Lion, Sign-SGD, SCALE,
ALIAS, AdamW and hybrids of them.

    from sage_ext.optimizers import FusedHybrid, FusedSAGE

``import sage_ext`` imports neither torch nor the compiled module: the submodules load at first use, and a
compiled module that cannot be loaded explains itself when an optimizer first needs it. ``python -m sage_ext``
shows what works.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sage_ext._version import __version__

if TYPE_CHECKING:
    from sage_ext import optimizers as optimizers
    from sage_ext import reference as reference
    from sage_ext import routing as routing

_SUBMODULES = ("optimizers", "reference", "routing")

__all__ = ["__version__", *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES})
