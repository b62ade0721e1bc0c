"""The example on several processes: one process's losses, checkpoints that go anywhere, plain errors.

Two processes run all cases of ``parallel_cases.py``; each case is a test here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import parallel_cases
import processes
import pytest
from example_support import EXAMPLES, TINY, write_documents
from llama import checkpoint

import sage_ext

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


def test_torchrun_starts_it(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    write_documents(tmp_path / "text", 40)
    words = [*TINY, "--text", "text", "--steps", "3", "--optimizer", "adamw", "--out", "run"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(Path(sage_ext.__file__).parents[1]),  # as installed, or the source folder
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    script = str(EXAMPLES / "train_llama.py")
    ended = subprocess.run(
        [sys.executable, *launch, script, *words, "--parallel", "ddp"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Validation perplexity") == 1
    state = checkpoint.load(tmp_path / "run" / checkpoint.NAME)
    assert state["step"] == 3
    assert [len(counts) for _, counts in state["history"]["sent_bytes"]] == [2, 2, 2]
