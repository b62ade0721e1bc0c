"""The tests marked ``gpu``, the most telling first; a result is on disk as soon as its test has ended.

    python benchmarks/gpu_tests.py --results FILE [--exclusive] [--processes N] [--budget SECONDS] [--dry-run]

Tests marked ``exclusive`` look at the memory or the time of a GPU: ``--exclusive`` runs them alone, and
without it all others run, in several processes. FILE gets a line of JSON when a test begins (``{"run",
"started"}``) and when it ends (``{"run", "test", "outcome", "seconds", "message"}``), and one about the run
(``{"run", "selected", "stopped"}``). A test that began and did not end was stopped in it.

``--dry-run`` runs a handful of tests that need no GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "python"
FIRST = ("test_cuda.py", "test_native_*.py", "test_vote_cuda.py", "test_optimizers.py", "test_state.py")
DRY = {True: "test_sign_of_zero_is_zero", False: "test_lr_as_tensor or test_zero_gradients"}
MOST_FAILURES = 200
# A test is marked gpu itself, or by the fixture that the tests share.
FOR_GPU = re.compile(r'mark\.gpu\b|NativeSuite|\bdevice: torch\.device\b|"device"')


class Results:
    """Writes what happens, and ends the session when the time is up. Lives in the process that leads."""

    def __init__(self, path: Path, run: str, deadline: float) -> None:
        self.run, self.deadline = run, deadline
        self.selected = 0
        self.stopped: str | None = None
        self._unreadable: set[str] = set()
        self._file = path.open("a")

    def write(self, **entry: Any) -> None:
        self._file.write(json.dumps({"run": self.run, **entry}) + "\n")
        self._file.flush()

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        if not self.selected:
            self.selected = len(ids)
            self.write(selected=self.selected)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and report.nodeid not in self._unreadable:  # each process reports it
            self._unreadable.add(report.nodeid)
            self.write(test=report.nodeid, outcome="error", seconds=0.0, message=str(report.longrepr)[-1500:])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write(started=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            is_error = report.failed and report.when in ("setup", "teardown")
            self.write(
                test=report.nodeid,
                outcome="error" if is_error else report.outcome,
                seconds=round(report.duration, 3),
                message="" if report.passed else str(report.longrepr)[-1500:],
            )
        if time.monotonic() > self.deadline and self.stopped is None:
            self.stopped = "the budget was used up"
            self._config.pluginmanager.getplugin("dsession").shouldstop = self.stopped

    def pytest_sessionfinish(self) -> None:
        self.write(selected=self.selected, stopped=self.stopped)


def files() -> list[str]:
    """The files with tests for a GPU, the most telling first. Each process imports all of them."""
    first = [path for pattern in FIRST for path in sorted(TESTS.glob(pattern))]
    rest = [path for path in sorted(TESTS.glob("test_*.py")) if path not in first]
    return [str(path.relative_to(ROOT)) for path in (*first, *rest) if FOR_GPU.search(path.read_text())]


def arguments_of(exclusive: bool, processes: int, dry_run: bool) -> list[str]:
    """What pytest is called with."""
    chosen = f"gpu and {'' if exclusive else 'not '}exclusive"
    some = ["-m", "not gpu", "-k", DRY[exclusive], "tests/python/test_native_lion.py"]
    return [
        # One process as well is one beside this: a fault on the GPU ends it, and the next takes its place.
        # Few tests ahead for each: when the time is up they still take those that they have.
        *("-n", str(processes), "--maxschedchunk", "1"),
        *("--maxfail", str(MOST_FAILURES)),
        *("--tb=short", "-p", "no:cacheprovider", "--continue-on-collection-errors"),
        *(some if dry_run else ["-m", chosen, *files()]),
    ]


def main() -> int:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, metavar="FILE", help="lines are added to it")
    parser.add_argument("--exclusive", action="store_true", help="those that have the GPU to themselves")
    parser.add_argument("--processes", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--budget", type=float, default=3600.0, metavar="SECONDS", help="to use at most")
    parser.add_argument("--dry-run", action="store_true", help="a few tests that need no GPU")
    arguments = parser.parse_args()
    run = "exclusive" if arguments.exclusive else "parallel"
    results = Results(arguments.results, run, begin + arguments.budget)
    words = arguments_of(arguments.exclusive, arguments.processes, arguments.dry_run)
    return int(pytest.main([f"--rootdir={ROOT}", *words], plugins=[results]))


if __name__ == "__main__":
    sys.exit(main())
