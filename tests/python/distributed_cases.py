"""What ``test_distributed.py`` runs on several processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from sharded_models import BUILDS, Layout, Pair, layouts

Case = Callable[[int, int], None]


def cases(size: int) -> dict[str, Case]:
    """All cases for ``size`` processes, by name."""
    found: dict[str, Case] = {}
    for place, layout in layouts(size).items():
        for name in BUILDS:
            found[f"{place}-{name}"] = partial(same_as_one_process, name, layout)
    return found


def same_as_one_process(name: str, layout: Layout, rank: int, size: int) -> None:
    pair = Pair(BUILDS[name], layout)
    pair.step()
    pair.compare()
