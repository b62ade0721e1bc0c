"""The example on several processes: one process's losses, checkpoints that go anywhere, plain errors.

Two processes run all cases of ``parallel_cases.py``; each case is a test here.
"""

from __future__ import annotations

from pathlib import Path

import parallel_cases
import processes
import pytest

pytestmark = pytest.mark.processes
TIMEOUT = 600
SIZE = 2


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str | None]]:
    folders: list[Path] = [tmp_path_factory.mktemp(name) for name in ("processes", "runs")]
    return processes.run("parallel_cases", SIZE, *folders, TIMEOUT)


@pytest.mark.parametrize("name", parallel_cases.cases(SIZE))
def test_case(results: dict[str, list[str | None]], name: str) -> None:
    outcomes = results.get(name, [])
    errors = [error for error in outcomes if error is not None]
    assert not errors, "\n".join(errors)
    assert len(outcomes) == SIZE, f"{SIZE - len(outcomes)} processes were killed before they had finished"
