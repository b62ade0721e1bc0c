"""Builds the package and its extension module ``sage_ext._C``. Metadata is in pyproject.toml, sources in
csrc/sources.txt.

Only compiling needs torch, a compiler and perhaps a CUDA toolkit, and only then are they looked for: metadata
and sdists are made with setuptools alone.

``SAGE_EXT_CUDA=1`` demands CUDA kernels, ``SAGE_EXT_CUDA=0`` leaves them out; unset builds them where torch
has CUDA and there is a toolkit for it. ``TORCH_CUDA_ARCH_LIST`` says for which GPUs, as for any extension.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import setuptools
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
OLDEST_SETUPTOOLS = 77
OLDEST_TORCH = "2.6"
# They make the metadata of what is compiled, which name its torch, unlike an sdist's.
BUILD_COMMANDS = {"bdist_wheel", "develop", "dist_info", "editable_wheel", "install"}
OLDEST_ARCH = (7, 5)
# Jetson, Drive and handheld chips: who builds for one builds on it, or names it in TORCH_CUDA_ARCH_LIST.
EMBEDDED_ARCHS = {(8, 7), (8, 8), (10, 1), (11, 0)}
# Runs the code for 12.0, which differs in nothing that the kernels use.
REDUNDANT_ARCHS = {(12, 1)}


class CudaUnavailableError(Exception):
    """Why CUDA kernels cannot be built here."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit with nvcc and headers."""

    home: Path
    version: str  # "13.0"

    @property
    def nvcc(self) -> str:
        return str(self.home / "bin" / "nvcc")

    @property
    def has_static_runtime(self) -> bool:
        """Whether the module can have the runtime in it. Some toolkits that are packages leave that out."""
        return any((self.home / folder / "libcudart_static.a").is_file() for folder in ("lib64", "lib"))


def torch_version() -> str | None:
    """The version of the torch here, or None. It is read from torch's file: importing torch takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).with_name("version.py")
    text = file.read_text() if file.is_file() else ""
    found = re.search(r"^__version__ = ['\"]([^'\"]+)", text, re.MULTILINE)
    return found.group(1) if found else None


def release(version: str) -> tuple[int, int]:
    """The part of a version of torch within which its binary interface stays the same."""
    major, minor = re.match(r"(\d+)\.(\d+)", version).groups()
    return int(major), int(minor)


def requirements() -> list[str]:
    """Compiled, the package needs the torch release that it was compiled with; an sdist leaves that open."""
    found = torch_version()
    if BUILD_COMMANDS.isdisjoint(sys.argv) or found is None or release(found) < release(OLDEST_TORCH):
        return [f"torch>={OLDEST_TORCH}"]
    major, minor = release(found)
    return [f"torch=={major}.{minor}.*"]


def check_torch() -> None:
    """Exit with what to do where there is no torch to compile against."""
    try:
        import torch
    except ImportError as error:
        sys.exit(
            f"sage_ext: torch cannot be imported while building ({error}). The extension is compiled against "
            "the torch that it will run with: install torch first, then run "
            "`pip install --no-build-isolation .`"
        )
    if release(torch.__version__) < release(OLDEST_TORCH):
        sys.exit(
            f"sage_ext: torch is {torch.__version__}, and has to be {OLDEST_TORCH} or newer: run "
            f'`pip install --upgrade "torch>={OLDEST_TORCH}"` first'
        )


def check_compiler() -> None:
    """Exit with what to install where there is no compiler for C++20, or no Python.h."""
    compiler = os.environ.get("CXX", "c++")
    include = sysconfig.get_path("include")
    command = [*shlex.split(compiler), "-std=c++20", f"-I{include}", "-fsyntax-only", "-x", "c++", "-"]
    try:
        result = subprocess.run(
            command,
            check=False,
            input="#include <Python.h>\n",
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        sys.exit(
            f"sage_ext: the C++ compiler {compiler!r} cannot be run ({error.strerror}). Install g++ 12 or "
            "newer (Debian, Ubuntu: apt-get install build-essential), or name a compiler in CXX"
        )
    if re.search("Python.h: No such file|'Python.h' file not found", result.stderr):
        sys.exit(
            f"sage_ext: this Python's headers are missing: there is no Python.h in {include}. Install them "
            "(Debian, Ubuntu: apt-get install python3-dev)"
        )
    if result.returncode:
        sys.exit(
            f"sage_ext: {compiler!r} does not compile C++20. Install g++ 12 or newer, or name a compiler "
            f"that does in CXX. It said: {result.stderr.strip()}"
        )


def version() -> str:
    text = (ROOT / "sage_ext" / "_version.py").read_text()
    return re.search(r'__version__ = "([^"]+)"', text).group(1)


def sources(with_cuda: bool) -> list[str]:
    lines = (ROOT / "csrc" / "sources.txt").read_text().splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#")]
    return [f"csrc/{file}" for layer, file in pairs if with_cuda or layer != "cuda"]


def output_of(*command: str) -> str:
    """What a command prints, on either stream."""
    result = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return result.stdout


def toolkit_home() -> Path:
    """The toolkit's folder: CUDA_HOME, else that of the nvcc on the PATH, else the usual one.

    The nvcc on the PATH may be a link or a script elsewhere, so it is asked where its toolkit is.
    """
    home = os.environ.get("CUDA_HOME")
    if home:
        for part in ("bin/nvcc", "include/cuda_runtime.h"):
            if not (Path(home) / part).is_file():
                sys.exit(f"sage_ext: CUDA_HOME is '{home}', and it has no {part}. Correct or unset it.")
        return Path(home)
    nvcc = shutil.which("nvcc")
    if nvcc:
        top = re.search(r"TOP=(.+)", output_of(nvcc, "--dryrun", "-c", "any.cu"))
        return Path(top.group(1).strip()).resolve() if top else Path(nvcc).resolve().parent.parent
    usual = Path("/usr/local/cuda")
    if not (usual / "bin" / "nvcc").is_file():
        raise CudaUnavailableError(
            f"nvcc was not found: it is not on the PATH or in {usual}, and CUDA_HOME is not set"
        )
    return usual


def find_toolkit() -> Toolkit:
    """Return the toolkit to build with.

    Raises:
        CudaUnavailableError: torch has no CUDA, or there is no toolkit for it.
    """
    import torch

    if torch.version.cuda is None:
        raise CudaUnavailableError(f"torch {torch.__version__} is a build without CUDA")
    home = toolkit_home()
    for part, what in (("bin/nvcc", "nvcc was"), ("include/cuda_runtime.h", "the toolkit's headers were")):
        if not (home / part).is_file():
            raise CudaUnavailableError(f"{what} not found: no {home / part}")
    text = output_of(str(home / "bin" / "nvcc"), "--version")
    found = re.search(r"release (\d+)\.(\d+)", text)
    if found is None:
        raise CudaUnavailableError(f"{home}/bin/nvcc does not say its version: {text.strip()!r}")
    if found.group(1) != torch.version.cuda.split(".")[0]:
        raise CudaUnavailableError(
            f"the toolkit in {home} is CUDA {found.group(1)}.{found.group(2)}, and torch {torch.__version__} "
            f"is built for CUDA {torch.version.cuda}: their major versions have to be the same"
        )
    return Toolkit(home, f"{found.group(1)}.{found.group(2)}")


def choose_toolkit() -> Toolkit | None:
    """The toolkit for the CUDA kernels, or None to build without them."""
    wanted = os.environ.get("SAGE_EXT_CUDA", "")
    if wanted not in ("", "0", "1"):
        sys.exit(f"sage_ext: SAGE_EXT_CUDA is '{wanted}'; it may be 0 (no CUDA kernels) or 1 (demand them)")
    if wanted == "0":
        print("sage_ext: building CPU kernels only, as SAGE_EXT_CUDA=0 says")
        return None
    try:
        return find_toolkit()
    except CudaUnavailableError as error:
        if wanted == "1":
            sys.exit(f"sage_ext: SAGE_EXT_CUDA=1 demands CUDA kernels, and they cannot be built: {error}")
        print(f"sage_ext: building CPU kernels only: {error}")
        return None


def default_archs(toolkit: Toolkit) -> list[tuple[int, int]]:
    """What to build for: the GPUs of this machine, else all that nvcc knows and that are worth their time."""
    import torch

    listed = re.findall(r"^compute_(\d+)(\d)$", output_of(toolkit.nvcc, "--list-gpu-arch"), re.MULTILINE)
    known = sorted({(int(major), int(minor)) for major, minor in listed})
    visible = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    if visible:  # a GPU newer than nvcc runs the PTX of the newest architecture that nvcc knows
        return sorted({max((arch for arch in known if arch <= gpu), default=known[0]) for gpu in visible})
    return [arch for arch in known if arch >= OLDEST_ARCH and arch not in EMBEDDED_ARCHS | REDUNDANT_ARCHS]


def arch_flags(toolkit: Toolkit) -> tuple[str, list[str]]:
    """The list of architectures, in TORCH_CUDA_ARCH_LIST's notation, and nvcc's flags for it.

    No flags for a list from the environment: torch adds them. It may not know all of our own list.
    """
    given = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if given not in ("", "native"):
        return ";".join(given.replace(";", " ").split()), []
    os.environ.pop("TORCH_CUDA_ARCH_LIST", None)
    archs = default_archs(toolkit)
    numbers = [f"{major}{minor}" for major, minor in archs]
    flags = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    flags.append(f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}")
    return ";".join(f"{major}.{minor}" for major, minor in archs) + "+PTX", flags


def nvcc_threads(files: int) -> int:
    """How many architectures nvcc compiles at a time, so that all files together use the jobs there are."""
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    return max(1, jobs // max(1, files))


CXX_FLAGS = [
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
]
NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "-DNDEBUG",
    "--fmad=false",  # the same rounding as on the CPU
    "-Xcompiler=-fvisibility=hidden,-ffp-contract=off,-Wall",
]


def native_extension() -> setuptools.Extension:
    """The extension module with all that torch and, where it is wanted, CUDA add to it."""
    toolkit = choose_toolkit()
    files = sources(with_cuda=toolkit is not None)
    cxx_flags, nvcc_flags = list(CXX_FLAGS), list(NVCC_FLAGS)
    if toolkit:
        archs, gencode = arch_flags(toolkit)
        print(f"sage_ext: building CUDA kernels for {archs} with CUDA {toolkit.version} in {toolkit.home}")
        cxx_flags += [
            "-DSAGE_EXT_WITH_CUDA=1",
            f'-DSAGE_EXT_CUDA_VERSION="{toolkit.version}"',
            f'-DSAGE_EXT_CUDA_ARCH_LIST="{archs}"',
        ]
        threads = nvcc_threads(sum(file.endswith(".cu") for file in files))
        nvcc_flags += [f"--threads={threads}", *gencode]
        # torch reads it on import, and without it takes the folder above nvcc's for the toolkit.
        os.environ["CUDA_HOME"] = str(toolkit.home)
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    extension = CUDAExtension if toolkit else CppExtension
    made = extension(
        "sage_ext._C",
        files,
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("SAGE_EXT_VERSION", f'"{version()}"')],
        extra_compile_args={"cxx": cxx_flags, "nvcc": nvcc_flags},
        extra_link_args=["-fopenmp"],
    )
    if toolkit and toolkit.has_static_runtime:
        others = [library for library in made.libraries if library != "cudart"]
        made.libraries = [*others, "cudart_static", "rt", "pthread", "dl"]
    return made


class BuildNative(build_ext):
    """Lets torch's command compile. That is imported only then: sdists ask this one for the files, too."""

    def run(self) -> None:
        check_torch()
        check_compiler()
        vars(self.extensions[0]).update(vars(native_extension()))
        from torch.utils.cpp_extension import BuildExtension

        command = BuildExtension(self.distribution)
        # force: ninja knows what has changed.
        vars(command).update({**vars(self), "force": True})
        command.run()


def main() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036 (pip looks at pyproject.toml later)
        sys.exit("sage_ext: it needs Python 3.10 or newer, and this is {}.{}".format(*sys.version_info))
    # Before setup() reads pyproject.toml: older releases take the licence in there for a mistake.
    if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
        sys.exit(
            f"sage_ext: setuptools is {setuptools.__version__}, and has to be {OLDEST_SETUPTOOLS} or newer: "
            f'run `pip install --upgrade "setuptools>={OLDEST_SETUPTOOLS}"` first'
        )
    setuptools.setup(
        install_requires=requirements(),
        ext_modules=[setuptools.Extension("sage_ext._C", sources(with_cuda=True))],
        cmdclass={"build_ext": BuildNative},
    )


if __name__ == "__main__":  # for builders, too
    main()
