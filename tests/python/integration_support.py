"""What the tests of sage_ext.integrations share."""

from __future__ import annotations

import runpy
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest

from sage_ext.optimizers import FusedHybrid

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "integrations"


def run_example(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a script of examples/integrations in ``folder``, and return what it has made."""
    monkeypatch.chdir(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """Put an empty module of this name in the place of one that is not installed, and return it."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), types.ModuleType(".".join(parts[:count])))
    return sys.modules[name]


def decays(optimizer: FusedHybrid) -> dict[str, bool]:
    """Name of a parameter -> whether it has weight decay."""
    return {
        name: group["weight_decay"] > 0 for group in optimizer.param_groups for name in group["param_names"]
    }
