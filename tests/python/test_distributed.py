"""DTensors on several processes: the numbers of one process, few messages, agreement, checkpoints.

Processes are started once for each size, and run all cases of ``distributed_cases.py``; each case is a test
here.
"""

from __future__ import annotations

from pathlib import Path

import checkpoint_cases
import distributed_cases
import processes
import pytest

pytestmark = pytest.mark.processes
TIMEOUT = 600
"""Seconds for all cases of a size, on a machine that does much else; a case that hangs ends in
``processes.MESSAGE_TIMEOUT``."""
SIZES = checkpoint_cases.SIZES
ALL = [(size, name) for size in SIZES for name in distributed_cases.cases(size)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[str | None]]]:
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    for name in (*checkpoint_cases.PRESETS, "alias_adam"):
        (checkpoints / name).mkdir()
    found = {}
    for size in SIZES:
        folder: Path = tmp_path_factory.mktemp(f"{size}_processes")
        found[size] = processes.run("distributed_cases", size, folder, checkpoints, TIMEOUT)
    return found


@pytest.mark.parametrize(("size", "name"), ALL, ids=[f"{size}-{name}" for size, name in ALL])
def test_case(results: dict[int, dict[str, list[str | None]]], size: int, name: str) -> None:
    outcomes = results[size].get(name, [])
    errors = [error for error in outcomes if error is not None]
    assert not errors, "\n".join(errors)
    assert len(outcomes) == size, f"{size - len(outcomes)} processes were killed before they had finished"


def test_a_process_is_killed_in_mid_step(tmp_path: Path) -> None:
    (outcome,) = processes.run("killed_cases", 2, tmp_path, tmp_path, TIMEOUT)["killed"]
    assert outcome is None, outcome
