"""compute-sanitizer's tools over benchmarks/gpu_step.py, side by side, each result written when it is there.

    python benchmarks/gpu_sanitize.py --json FILE [--limit SECONDS] [--only PATTERN] [--dry-run]

Fails if a tool finds an error, cannot run, or has not ended within the limit. ``--dry-run`` takes the steps
on the CPU, with no tool looking on.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from gpu_check import tool
from on_gpu_report import write_json

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
STEP = Path(__file__).resolve().parent / "gpu_step.py"
SHOWN = 200  # errors of a tool
KEPT = 40  # lines of its output in the report
_SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
_PLACE = re.compile(r"\bat (?:void )?(\S.*?)\+0x[0-9a-f]+")


def parse(output: str) -> dict[str, Any]:
    """Return how many errors a tool reports, and in which kernels; ``errors`` is None without a summary."""
    summary = _SUMMARY.search(output)
    lines = [line for line in output.splitlines() if line.startswith("=========")]
    # Without namespaces that have no name, casts of template arguments, and parameters.
    places = Counter(
        re.sub(r"\(anonymous namespace\)::|(?<=[<, ])\(\w+\)(?=\w)", "", match[1]).split("(")[0]
        for line in lines
        if (match := _PLACE.search(line))
    )
    return {
        "errors": int(summary[1] or summary[2]) if summary else None,
        "kernels": dict(places.most_common()),
        "lines": lines[:KEPT],
    }


def command(name: str, dry_run: bool, only: str) -> list[str]:
    """How to run the steps under a tool; in a dry run, without it."""
    steps = [sys.executable, str(STEP), f"--only={only}"]
    if dry_run:
        return [*steps, "--device", "cpu"]
    program = tool("compute-sanitizer")
    if program is None:
        sys.exit("gpu_sanitize.py: compute-sanitizer is not on the PATH, in CUDA_HOME or in /usr/local/cuda")
    options = [f"--tool={name}", f"--print-limit={SHOWN}", "--error-exitcode=99", "--target-processes=all"]
    return [program, *options, *steps]


def run_all(
    names: tuple[str, ...], limit: float, dry_run: bool, path: Path, only: str = ""
) -> list[dict[str, Any]]:
    """Run the tools at the same time; a GPU and 16 cores have room for all of them.

    Args:
        names: of the tools.
        limit: seconds, after which those that have not ended are stopped.
        dry_run: leave the tool out.
        path: of the JSON file, written whenever one has ended.
        only: of which optimizers, by a pattern of their names.
    """
    begin = time.monotonic()
    # Each tensor in memory of its own: an access beyond its end is then one beyond what was allocated.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_MODULE_LOADING": "LAZY"}
    results: list[dict[str, Any]] = []
    running: dict[str, tuple[IO[str], subprocess.Popen[bytes]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in names:
                output = (Path(folder) / name).open("w+")
                running[name] = (
                    output,
                    subprocess.Popen(
                        command(name, dry_run, only),
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,  # the program that the tool starts has to end with it
                    ),
                )
            while running:
                is_late = time.monotonic() - begin > limit
                for name, (output, process) in list(running.items()):
                    if process.poll() is None and not is_late:
                        continue
                    code = process.poll()
                    end(process)
                    del running[name]
                    output.seek(0)
                    results.append(judge(name, code, output.read(), dry_run))
                    results[-1]["seconds"] = round(time.monotonic() - begin, 1)
                    write_json(path, {"tools": results, "missing": list(running)})
                time.sleep(0.05)
        finally:
            for _, process in running.values():
                end(process)
    return results


def end(process: subprocess.Popen[bytes]) -> None:
    """End a tool, and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def judge(name: str, code: int | None, output: str, dry_run: bool) -> dict[str, Any]:
    """What is to be said of a tool that exited with ``code``, or (None) had to be stopped."""
    print(f"--- {name}\n{output}", flush=True)
    found = parse(output)
    return {
        "tool": name,
        "ok": code == 0 and (dry_run or found["errors"] == 0),
        "stopped": code is None,
        "exit_code": code,
        **found,
        "last_lines": output.splitlines()[-5:],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the report")
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="for each tool")
    parser.add_argument("--dry-run", action="store_true", help="the steps on the CPU, without a tool")
    parser.add_argument("--only", default="", metavar="PATTERN", help="of the optimizers' names")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what is running is ended on the way out
    names = ("none",) if arguments.dry_run else TOOLS
    results = run_all(names, arguments.limit, arguments.dry_run, arguments.json, arguments.only)
    return 0 if all(result["ok"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
