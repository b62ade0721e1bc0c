"""Fused, memory-efficient optimizers for PyTorch: SAGE, SinkGD, Lion, Sign-SGD, SCALE,
ALIAS, AdamW and hybrids of them.

    from sage_ext import FusedHybrid, FusedSAGE

``import sage_ext`` imports neither torch nor the compiled module: the optimizers and the submodules load at
first use. Where torch is missing, that raises an ``ImportError`` with the cure; a compiled module that cannot
be loaded explains itself when an optimizer first needs it. ``python -m sage_ext`` shows what works, and
``python -m sage_ext plan`` what an optimizer will cost; ``sage_ext.autoconfig`` chooses one within a budget.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sage_ext._version import __version__

if TYPE_CHECKING:
    from sage_ext import distributed as distributed
    from sage_ext import optimizers as optimizers
    from sage_ext import planning as planning
    from sage_ext import reference as reference
    from sage_ext import routing as routing
    from sage_ext import selection as selection
    from sage_ext.optimizers import (
        Description,
        FusedAdamW,
        FusedALIAS,
        FusedALIASAdam,
        FusedHybrid,
        FusedLion,
        FusedSAGE,
        FusedSCALE,
        FusedSignSGD,
        FusedSinkGD,
    )
    from sage_ext.planning import Plan, plan
    from sage_ext.selection import AutoConfig, autoconfig

__all__ = [
    "AutoConfig",
    "Description",
    "FusedALIAS",
    "FusedALIASAdam",
    "FusedAdamW",
    "FusedHybrid",
    "FusedLion",
    "FusedSAGE",
    "FusedSCALE",
    "FusedSignSGD",
    "FusedSinkGD",
    "Plan",
    "__version__",
    "autoconfig",
    "distributed",
    "optimizers",
    "plan",
    "planning",
    "reference",
    "routing",
    "selection",
]

_SUBMODULES = ("distributed", "optimizers", "planning", "reference", "routing", "selection")
_HOMES = {"Plan": "planning", "plan": "planning", "AutoConfig": "selection", "autoconfig": "selection"}


if not TYPE_CHECKING:  # a type checker would take it for leave to import any name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from sage_ext import _torch as _torch

        if name in _SUBMODULES:
            return importlib.import_module(f"{__name__}.{name}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'optimizers')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
