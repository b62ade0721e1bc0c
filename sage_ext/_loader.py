"""Loads the compiled module ``sage_ext._C`` at first use, and explains a failure together with its cure.

Importing this file never fails and never imports the compiled module: a machine without it can still read the
documentation, unpickle an optimizer and run the reference backend.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import re
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from sage_ext._version import __version__

MODULE = "sage_ext._C"
_REBUILD = (
    "rebuild it in the environment that runs it, from the source folder: "
    "pip install --no-build-isolation --force-reinstall --no-deps ."
)


class NativeUnavailableError(ImportError):
    """The compiled module cannot be used. The message says what was found and what to do about it."""


def load() -> ModuleType:
    """Return ``sage_ext._C``.

    Raises:
        NativeUnavailableError: it is missing, was built for something else, or does not load. The first
            attempt is remembered for the life of the process, so asking again costs nothing and gives the
            same answer.
    """
    module, problem = _attempt()
    if module is None:
        raise NativeUnavailableError(problem)
    return module


def problem() -> str | None:
    """Return why the compiled module cannot be used, or None if it can."""
    return _attempt()[1]


@lru_cache(maxsize=1)
def _attempt() -> tuple[ModuleType | None, str | None]:
    import torch  # the compiled module needs libtorch to be in the process already

    folder = Path(__file__).parent
    try:
        module = importlib.import_module(MODULE)
    except (ImportError, OSError, RuntimeError) as error:  # the last: its operators are registered already
        return None, explain(error, folder, torch.__version__)
    if mismatch := version_mismatch(module.build_info(), torch.__version__):
        return None, mismatch
    from sage_ext import _fake

    _fake.register(module)
    return module, None


def explain(error: Exception, folder: Path, torch_version: str) -> str:
    """Say what went wrong when the module in ``folder`` was imported, and what to do about it."""
    text = str(error)
    head = "sage_ext's compiled module cannot be used: "
    if isinstance(error, ModuleNotFoundError) and error.name == MODULE:
        built = (path.name for path in folder.glob("_C*") if path.suffix in (".so", ".pyd", ".dylib"))
        others = sorted(set(built) - {f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES})
        if others:
            wanted = f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
            return (
                f"{head}it was built for another Python or platform. Looked for {wanted} (Python "
                f"{sys.version_info.major}.{sys.version_info.minor}) in {folder}, found {', '.join(others)}. "
                f"Cure: {_REBUILD}"
            )
        return (
            f"{head}it was not built. Looked for _C{importlib.machinery.EXTENSION_SUFFIXES[0]} in {folder}. "
            "Cure: build it from the source folder: pip install --no-build-isolation . "
            "(if sage_ext is installed already, the source folder may be hiding it: run from another folder)"
        )
    if "undefined symbol" in text or "Symbol not found" in text:
        return (
            f"{head}it was built against another version of torch than the {torch_version} that is running "
            f"({text}). Cure: {_REBUILD}"
        )
    missing = re.search(r"(\S+\.so[\.\d]*): cannot open shared object file", text)
    if missing:
        library = missing.group(1)
        what = (
            "a CUDA library: the module was built for a CUDA build of torch and this one has none"
            if re.match(r"lib(cuda|cudart|c10_cuda|torch_cuda|nv)", library)
            else "a library that is not on this machine or not on the loader's path"
        )
        return f"{head}it needs {library}, {what}. Cure: {_REBUILD}"
    if "GLIBC" in text:
        return f"{head}it was built on a system with a newer C or C++ runtime ({text}). Cure: {_REBUILD}"
    return f"{head}{type(error).__name__}: {text}. Cure: {_REBUILD}"


def version_mismatch(build_info: dict[str, object], torch_version: str) -> str | None:
    """Return the explanation if a module that loaded was compiled for something else, else None.

    Torch keeps no binary compatibility between releases (major.minor), even where every symbol resolves; and
    a module left over from another version of sage_ext may take other arguments.
    """
    built = str(build_info["torch_version"])
    if _release(built) != _release(torch_version):
        other, running = f"with torch {built}", f"torch {torch_version}"
    elif build_info["version"] != __version__:
        other, running = f"from sage_ext {build_info['version']}", f"sage_ext {__version__}"
    else:
        return None
    return (
        f"sage_ext's compiled module cannot be used: it was built {other} and {running} is running. "
        f"Cure: {_REBUILD}"
    )


def gpu_mismatch(build_info: dict[str, object], capability: tuple[int, int]) -> str | None:
    """Return the explanation if a module with CUDA kernels has none for a GPU of this compute capability."""
    archs = str(build_info["cuda_arch_list"])
    if any(_runs_on(arch, capability) for arch in archs.split(";")):
        return None
    number = f"{capability[0]}.{capability[1]}"
    return (
        f"sage_ext's CUDA kernels were built for compute capability {archs}, and the GPU has {number}. "
        f"Cure: {_REBUILD} (with SAGE_EXT_CUDA=1 TORCH_CUDA_ARCH_LIST={number} before it)"
    )


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``arch``, an item of TORCH_CUDA_ARCH_LIST, runs on a GPU of this compute capability.

    Machine code runs on the same major version from its minor version on, PTX on every later GPU; with an
    ``a`` after the number both run on that GPU only.
    """
    match = re.fullmatch(r"(\d+)\.(\d+)(a?)(\+PTX)?", arch)
    if match is None:
        return True  # a name, such as Hopper: what torch took it for is not known here
    wanted = (int(match[1]), int(match[2]))
    if match[3]:
        return capability == wanted
    return capability >= wanted and (capability[0] == wanted[0] or match[4] is not None)


def _release(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]
