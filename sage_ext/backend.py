"""Which implementation an optimizer runs: the compiled kernels or plain PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Literal

import torch

from sage_ext import _loader

Backend = Literal["auto", "native", "reference"]
BACKENDS = ("auto", "native", "reference")

# What a machine with a GPU needs whose compiled module has CPU kernels only.
BUILD_WITH_CUDA = (
    "rebuild sage_ext with a CUDA build of torch and where nvcc is found, from the source folder: "
    "SAGE_EXT_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps ."
)

_warned = False


def validate(backend: object) -> None:
    """Raise ValueError unless ``backend`` is one of ``BACKENDS``."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(map(repr, BACKENDS))}")


def resolve(requested: Backend, devices: Iterable[torch.device]) -> Literal["native", "reference"]:
    """Return what ``requested`` means for parameters on ``devices``.

    ``"auto"`` is native wherever there are native kernels. Without the compiled module it runs the reference
    on a CPU, with one warning in the life of the process; on an accelerator it never does so silently.

    Raises:
        NativeUnavailableError: native was asked for, or parameters are on an accelerator, and the compiled
            module cannot be used; or it has no kernels for the device.
    """
    if requested == "reference":
        return "reference"
    devices = list(devices)
    # The meta device holds shapes only: nothing will run there, so any backend will do.
    types = sorted({device.type for device in devices} - {"cpu", "meta"})
    problem = _loader.problem()
    if problem is not None:
        if requested == "native" or types:
            raise _loader.NativeUnavailableError(problem + _reference_hint(types))
        _warn_once(problem)
        return "reference"
    info = _loader.load().build_info()
    for kind in types:
        if kind != "cuda" or not info["cuda"]:
            cure = BUILD_WITH_CUDA if kind == "cuda" else "move them to a CPU"
            raise _loader.NativeUnavailableError(
                f"parameters are on a {kind} device, and sage_ext's compiled module has no kernels for it. "
                f"Cure: {cure}{_reference_hint(types)}"
            )
    if types and torch.cuda.is_available():
        for capability in {torch.cuda.get_device_capability(d) for d in devices if d.type == "cuda"}:
            problem = _loader.gpu_mismatch(info, capability)
            if problem is not None:
                raise _loader.NativeUnavailableError(problem + _reference_hint(types))
    return "native"


def _reference_hint(types: list[str]) -> str:
    slow = " on the accelerator" if types else ""
    return f'; or pass backend="reference" to run plain PyTorch{slow} (correct, but slower)'


def _warn_once(problem: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f'{problem}; running backend="reference" (plain PyTorch: correct, but slower) until then',
            RuntimeWarning,
            stacklevel=2,
        )
