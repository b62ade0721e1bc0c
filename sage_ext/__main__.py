"""``python -m sage_ext``: what was built, what works, and what to do about what does not.

Exits with 1 if the native kernels cannot be used, else with 0.
"""

from __future__ import annotations

import platform
import sys
from types import ModuleType

import sage_ext


def main() -> int:
    """Print the report and return the exit code."""
    _line("sage_ext", sage_ext.__version__)
    _line("python", f"{platform.python_version()} on {platform.machine()}")
    try:
        import torch
    except ImportError as error:
        _line("torch", f"cannot be imported ({error})")
        print("\nsage_ext needs torch. Cure: install it, then sage_ext: pip install --no-build-isolation .")
        return 1
    _line(
        "torch",
        f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} threads",
    )

    from sage_ext import _loader

    try:
        native = _loader.load()
    except _loader.NativeUnavailableError as error:
        _line("native", "not usable")
        print(f"\n{error}")
        print('Until then backend="auto" runs plain PyTorch on a CPU and refuses to run on a GPU.')
        return 1
    _report_build(native)
    return _check(native, torch.cuda.is_available())


def _report_build(native: ModuleType) -> None:
    info = native.build_info()
    _line("native", native.__file__ or "built in")
    _line("built with", f"torch {info['torch_version']}, {info['compiler']}")
    _line("cpu kernels", f"{', '.join(info['cpu_capabilities'])}; running {native.cpu_capability()}")
    _line("cuda kernels", f"for {info['cuda_arch_list']}" if info["cuda"] else "not built")


def _check(native: ModuleType, has_gpu: bool) -> int:
    from sage_ext import selfcheck

    devices = ["cpu", "cuda"] if has_gpu and native.build_info()["cuda"] else ["cpu"]
    is_good = True
    for device in devices:
        try:
            differences = selfcheck.run(native, device)
        except Exception as error:  # a diagnosis has to survive what it diagnoses
            _line(f"{device} check", f"failed: {type(error).__name__}: {error}")
            is_good = False
            continue
        for rule, difference in differences.items():
            agrees = selfcheck.is_good(difference)
            is_good = is_good and agrees
            verdict = "agrees with" if agrees else "DIFFERS from"
            _line(f"{device} check", f"{rule} {verdict} the reference (largest difference {difference:.1e})")
    if has_gpu and not native.build_info()["cuda"]:
        print(
            "\nThis machine has a GPU and the module has no CUDA kernels. Cure: rebuild where nvcc is found, "
            "with SAGE_EXT_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps ."
        )
    if not is_good:
        print(
            "\nThe native kernels do not work here. Cure: rebuild them on this machine with pip install "
            '--no-build-isolation --force-reinstall --no-deps . and use backend="reference" until then.'
        )
        return 1
    return 0


def _line(name: str, value: str) -> None:
    print(f"{name:13} {value}")


if __name__ == "__main__":
    sys.exit(main())
