"""Builds the extension module ``sage_ext._C``. Metadata is in pyproject.toml, sources in csrc/sources.txt.

``SAGE_EXT_CUDA=1`` demands CUDA kernels, ``SAGE_EXT_CUDA=0`` leaves them out.
"""

import os
import re
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent.resolve()

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    sys.exit(
        f"sage_ext: torch cannot be imported while building ({error}). The extension is compiled against the "
        "torch that it will run with: install torch first, then run `pip install --no-build-isolation .`"
    )


def version() -> str:
    text = (ROOT / "sage_ext" / "_version.py").read_text()
    return re.search(r'__version__ = "([^"]+)"', text).group(1)


def sources() -> list[str]:
    lines = (ROOT / "csrc" / "sources.txt").read_text().splitlines()
    return [f"csrc/{line.split()[1]}" for line in lines if line and not line.startswith("#")]


def refuse_cuda_request() -> None:
    """This version has CPU kernels only: a build that must have CUDA kernels must not succeed without."""
    wanted = os.environ.get("SAGE_EXT_CUDA", "")
    if wanted not in ("", "0", "1"):
        sys.exit(f"sage_ext: SAGE_EXT_CUDA is '{wanted}'; it may be 0 (no CUDA kernels) or 1 (demand them)")
    if wanted == "1":
        sys.exit(
            f"sage_ext: SAGE_EXT_CUDA=1 demands CUDA kernels, and version {version()} has none: its native "
            "kernels run on the CPU. Unset SAGE_EXT_CUDA to build those; for CUDA tensors use "
            'backend="reference".'
        )


refuse_cuda_request()
setup(
    ext_modules=[
        CppExtension(
            "sage_ext._C",
            sources(),
            include_dirs=[str(ROOT / "csrc")],
            define_macros=[("SAGE_EXT_VERSION", f'"{version()}"')],
            extra_compile_args=[
                "-std=c++20",
                "-O3",
                "-funroll-loops",
                "-g0",
                "-fopenmp",
                "-fvisibility=hidden",
                # The same arithmetic on every instruction set; CMakeLists.txt has the same flags.
                "-ffp-contract=off",
                "-fno-math-errno",
                "-fno-trapping-math",
                "-Wall",
            ],
            extra_link_args=["-fopenmp"],
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True)},
)
