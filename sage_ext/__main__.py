"""``python -m sage_ext``: what was built, what works, and what to do about what does not.

``python -m sage_ext plan`` says what an optimizer will cost: see ``sage_ext.plan``.

Exits with 1 if the native kernels cannot be used, else with 0.
"""

from __future__ import annotations

import os
import platform
import sys
from types import ModuleType
from typing import Any

import sage_ext

_USAGE = """usage: python -m sage_ext              what was built, what works, and what to do about the rest
       python -m sage_ext plan --help  what an optimizer will cost a model"""


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
    return _check(native)


def _report_build(native: ModuleType) -> None:
    info = native.build_info()
    _line("native", native.__file__ or "built in")
    _line("built with", f"torch {info['torch_version']}, {info['compiler']}")
    _line("cpu kernels", f"{', '.join(info['cpu_capabilities'])}; running {native.cpu_capability()}")
    with_cuda = f"for {info['cuda_arch_list']}, CUDA {info['cuda_version']}"
    _line("cuda kernels", with_cuda if info["cuda"] else "not built")


def _report_gpus(info: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Print what GPUs there are. Return those that the kernels run on, and what is wrong with the others."""
    import torch

    from sage_ext import _loader, backend

    usable: list[str] = []
    problems: list[str] = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        capability = torch.cuda.get_device_capability(index)
        name = f"{torch.cuda.get_device_name(index)}, compute capability {capability[0]}.{capability[1]}"
        problem: str | None
        if not info["cuda"]:
            problem = f"sage_ext's compiled module has no CUDA kernels. Cure: {backend.BUILD_WITH_CUDA}"
        else:
            problem = _loader.gpu_mismatch(info, capability)
        _line(f"cuda:{index}", name if problem is None else f"{name}: NOT USABLE")
        if problem is None:
            usable.append(f"cuda:{index}")
        elif problem not in problems:
            problems.append(problem)
    if not usable and not problems:
        _line("gpu", f"none usable: {_why_no_gpu()}")
    return usable, problems


def _why_no_gpu() -> str:
    """Why torch sees no GPU, and what to do if there should be one."""
    import torch

    if torch.version.cuda is None:
        return "this torch is a build without CUDA. To use a GPU, install one with it and rebuild sage_ext"
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        return f"torch sees none, and CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r}"
    return "torch sees none. If there should be one, nvidia-smi has to list it (its driver may be missing)"


def _check(native: ModuleType) -> int:
    """Run every rule on every device that has kernels, and return the exit code."""
    from sage_ext import selfcheck

    info = native.build_info()
    gpus, problems = _report_gpus(info)
    is_good = True
    for device in ["cpu", *gpus]:
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
    for problem in problems:
        print(f"\n{problem}")
    if not is_good:
        print(
            "\nThe native kernels do not work here. Cure: rebuild them on this machine with pip install "
            '--no-build-isolation --force-reinstall --no-deps . and use backend="reference" until then.'
        )
    # CUDA kernels that do not fit the GPU are a fault; CPU kernels next to a GPU may be what was wanted.
    return 0 if is_good and not (problems and info["cuda"]) else 1


def _line(name: str, value: str) -> None:
    print(f"{name:13} {value}")


def _command(arguments: list[str]) -> int:
    if arguments[:1] == ["plan"]:
        from sage_ext.planning import cli

        return cli.main(arguments[1:])
    if arguments:
        print(_USAGE)
        return 0 if arguments[0] in ("-h", "--help") else 2
    return main()


if __name__ == "__main__":
    try:
        code = _command(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # "| head" has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
