"""What the build and the tests need, and whether this machine has it; then, what ``python -m sage_ext`` says.

    python benchmarks/gpu_check.py --json FILE --settings FILE [--dry-run]
    python benchmarks/gpu_check.py --json FILE --diagnose

The first writes what it finds, and shell assignments for the build: the GPU's architecture and, where
Python's headers are not where Python says, their folder. It fails if something is missing that the build
needs. The second adds the diagnosis of the installed package, and fails if that does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from on_gpu_report import write_json

DRY_ARCH = "9.0"  # what a dry run builds for, where there is no GPU


class Need(NamedTuple):
    """Something that has to be here."""

    what: str
    found: str | None
    wanted: str
    ok: bool
    for_build: bool


def version_of(*command: str, pattern: str = r"(\d+(\.\d+)+)") -> str | None:
    """What matches in the output of a command; None if it fails or is not there."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(pattern, result.stdout)
    return match[1] if match else None


def at_least(version: str | None, least: str) -> bool:
    """Whether a version is there and not older."""

    def numbers(text: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", text.split("+")[0])]

    return version is not None and numbers(version) >= numbers(least)


def package(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def python_headers() -> Path | None:
    """The folder of Python.h: where Python says, or in one of the usual places for this version."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [Path(sysconfig.get_path("include")), Path(sys.base_prefix) / "include" / version]
    places += [Path("/usr/include") / version, Path("/usr/local/include") / version]
    places += sorted(Path("/opt").glob(f"*/include/{version}"))
    return next((place for place in places if (place / "Python.h").is_file()), None)


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on the PATH, in CUDA_HOME, or in the usual place."""
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    folders = [str(home / part) for home in homes for part in ("bin", "compute-sanitizer")]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))


def needs() -> list[Need]:
    """Everything looked for, found or not."""
    import torch

    headers, nvcc, sanitizer = python_headers(), tool("nvcc"), tool("compute-sanitizer")
    cuda = torch.version.cuda
    compiler = version_of(
        *shlex.split(os.environ.get("CXX", "g++")), "-dumpfullversion", "-dumpversion", pattern=r"([\d.]+)"
    )
    nvcc_version = version_of(nvcc, "--version", pattern=r"release ([\d.]+)") if nvcc else None
    major = cuda.split(".")[0] if cuda else "of torch, which has no CUDA"
    found = [
        Need(
            "Python.h", str(headers) if headers else None, sys.version.split()[0], headers is not None, True
        ),
        Need("g++", compiler, "12", at_least(compiler, "12"), True),
        Need("torch", torch.__version__, "2.6", at_least(torch.__version__, "2.6"), True),
        Need("nvcc", nvcc_version, major, bool(nvcc_version and nvcc_version.split(".")[0] == major), True),
        Need("GPU", gpu_name(), "one", torch.cuda.is_available(), False),
        Need("compute-sanitizer", sanitizer, "any", sanitizer is not None, False),
    ]
    for name, least, for_build in (
        ("setuptools", "77", True),
        ("pip", "21.3", True),
        ("ninja", "1", True),
        ("pytest", "8", False),
        ("pytest-xdist", "3.6", False),
        ("hypothesis", "6.100", False),
        ("numpy", "1.26", False),
        ("triton", "2", False),
    ):
        version = package(name) or (version_of("ninja", "--version") if name == "ninja" else None)
        found.append(Need(name, version, least, at_least(version, least), for_build))
    return found


def gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def settings() -> dict[str, str]:
    """Environment variables for the build."""
    import torch

    arch = DRY_ARCH
    if torch.cuda.is_available():
        arch = "{}.{}".format(*torch.cuda.get_device_capability())
    chosen = {"TORCH_CUDA_ARCH_LIST": arch}
    headers = python_headers()
    if headers is not None and headers != Path(sysconfig.get_path("include")):
        chosen["CPATH"] = os.pathsep.join(filter(None, [str(headers), os.environ.get("CPATH")]))
    return chosen


def machine() -> dict[str, Any]:
    """What the numbers are of."""
    driver = version_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {"python": sys.version.split()[0], "cores": os.cpu_count(), "gpu": gpu_name(), "driver": driver}


def diagnosis() -> dict[str, Any]:
    """What the installed package says of itself, from a folder that hides it from nobody."""
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [sys.executable, "-m", "sage_ext"], cwd=folder, capture_output=True, text=True, check=False
        )
    text = result.stdout + result.stderr
    print(text)
    return {"exit_code": result.returncode, "lines": text.splitlines()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the report")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="assignments for the build's shell")
    parser.add_argument("--diagnose", action="store_true", help="add what python -m sage_ext says")
    parser.add_argument("--dry-run", action="store_true", help="go on without a GPU and its tools")
    arguments = parser.parse_args()
    if arguments.diagnose:
        report = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {}
        report["diagnosis"] = diagnosis()
        write_json(arguments.json, report)
        return report["diagnosis"]["exit_code"]

    found, chosen = needs(), settings()
    for need in found:
        verdict = "ok" if need.ok else f"NOT OK, wanted: {need.wanted}"
        print(f"{need.what:18} {need.found or 'not found':40} {verdict}")
    write_json(arguments.json, {**machine(), "needs": [need._asdict() for need in found], "settings": chosen})
    if arguments.settings:
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in chosen.items()]
        arguments.settings.write_text("".join(lines))
    return 1 if any(need.for_build and not need.ok for need in found) and not arguments.dry_run else 0


if __name__ == "__main__":
    sys.exit(main())
