"""Runs cases on several processes that talk over gloo: one start for many cases.

``run`` is for the tests. As a script, this forks the processes: torch is imported once, and has started no
thread by then.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

MESSAGE_TIMEOUT = 120
"""Seconds after which a process that waits for another raises."""


def run(
    module: str, size: int, folder: Path, checkpoints: Path, timeout: float
) -> dict[str, list[str | None]]:
    """Run all cases of a module on ``size`` processes.

    Args:
        module: next to this file; ``cases(size)`` returns name -> function of (rank, size). What its
            ``preload()`` imports, if it has one, all processes have then.
        folder: an empty one.
        checkpoints: a folder for what one run saves and another loads.
        timeout: seconds after which all processes are killed.

    Returns:
        Name of the case -> for each process None, or what it raised. A process that was killed has no entry.
    """
    command = [sys.executable, __file__, module, str(size), str(folder)]
    settings = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CHECKPOINTS": str(checkpoints)}
    environment = {**os.environ, **settings}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    results: dict[str, list[str | None]] = {}
    for rank in range(size):
        path = folder / f"{rank}.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            name, error = json.loads(line)
            results.setdefault(name, []).append(error)
    return results


def _serve(rank: int, module: str, size: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=MESSAGE_TIMEOUT),
    )
    only = os.environ.get("DISTRIBUTED_CASES", "")
    with (folder / f"{rank}.jsonl").open("w", buffering=1) as file:
        for name, case in importlib.import_module(module).cases(size).items():
            if only and not any(part in name for part in only.split(",")):
                continue
            torch.manual_seed(0)
            try:
                case(rank, size)
                error = None
            except Exception:
                error = traceback.format_exc()
            file.write(json.dumps([name, error]) + "\n")
    with contextlib.suppress(RuntimeError):
        dist.barrier()
    os._exit(0)  # gloo's threads may hang in an ordinary end


def _main(module: str, size: int, folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    getattr(importlib.import_module(module), "preload", lambda: None)()
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            try:
                _serve(rank, module, size, folder)
            finally:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
