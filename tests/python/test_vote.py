"""Sign-SGD with majority vote under DDP, ALIAS on top of it, and DDP's replicas of every optimizer.

Processes are started once for each size, and run all cases of ``vote_cases.py``; each case is a test here.
"""

from __future__ import annotations

from pathlib import Path

import processes
import pytest
import vote_cases

pytestmark = pytest.mark.processes
TIMEOUT = 300
"""Seconds for all cases of a size, on a machine that does much else."""
SIZES = (2, 3)
ALL = [(size, name) for size in SIZES for name in vote_cases.cases(size)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[str | None]]]:
    found = {}
    for size in SIZES:
        folder: Path = tmp_path_factory.mktemp(f"{size}_processes")
        checkpoints: Path = tmp_path_factory.mktemp(f"{size}_checkpoints")
        found[size] = processes.run("vote_cases", size, folder, checkpoints, TIMEOUT)
    return found


@pytest.mark.parametrize(("size", "name"), ALL, ids=[f"{size}-{name}" for size, name in ALL])
def test_case(results: dict[int, dict[str, list[str | None]]], size: int, name: str) -> None:
    outcomes = results[size].get(name, [])
    errors = [error for error in outcomes if error is not None]
    assert not errors, "\n".join(errors)
    assert len(outcomes) == size, f"{size - len(outcomes)} processes were killed before they had finished"


def test_bytes_of_eight_processes() -> None:
    """Where a bfloat16 all-reduce sends 3.5 bytes a parameter."""
    assert vote_cases.words_at_eight(25 * 2**20 // 4) == 0.4375
    assert vote_cases.words_at_eight(7_000_001) == pytest.approx(0.4375, rel=1e-3)
