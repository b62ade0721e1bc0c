"""Processes that are new but for torch, which one process has imported for all of them.

``Warm`` is for the tests. As a script, this imports torch and then forks for every piece of code that it is
sent: to import torch takes longer than all else that such a process does. No thread has started by then.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

TIMEOUT = 300
"""Seconds after which the process of a piece of code is killed."""


class Warm:
    """Runs Python code, each time in a process of its own in which torch is imported and nothing of ours."""

    def __init__(self, environment: dict[str, str]) -> None:
        here = Path(__file__)
        self._server = subprocess.Popen(
            [sys.executable, str(here)],
            cwd=here.parent,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """What ``python -c code`` does and prints, with more in its environment."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            request = {"code": code, "environment": environment, "folder": folder}
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            code_of_exit = int(self._server.stdout.readline())
            out, err = (Path(folder, name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess([code], code_of_exit, out, err)

    def end(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()


@contextlib.contextmanager
def warm(environment: dict[str, str]) -> Iterator[Warm]:
    """A ``Warm`` that ends with the block."""
    started = Warm(environment)
    try:
        yield started
    finally:
        started.end()


def _run(code: str, environment: dict[str, str], folder: str) -> int:
    """Run code as ``python -c`` does, with its output in files. Return the exit code."""
    signal.alarm(TIMEOUT)
    os.environ.update(environment)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        return 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def _serve() -> None:
    import torch  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if not child:
            code = 1
            try:
                code = _run(**json.loads(line))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
