"""What a step of 2,000 small tensors would cost through libtorch's stable ABI: one wheel for many torches?

    python benchmarks/stable_abi.py --objects build/cpu/objects [--json FILE]

stable_abi.cpp is compiled for at::Tensor ("pinned", as sage_ext is: to one release of torch) and for
torch::stable::Tensor, with the CPU kernels of a build that is there. Both are timed in turns, in one process
and on one thread, by the processor time of that thread; and their instructions are counted under valgrind,
where the machine's other work makes no difference. Beside them: a step of the optimizer that is installed,
and torch's fused AdamW.

Needs torch 2.14 or newer, sage_ext built for it, valgrind with its headers, and a compiler.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sage_ext import FusedLion, FusedSinkGD

ROOT = Path(__file__).resolve().parent.parent
TORCH = Path(torch.__file__).parent
TENSORS = 2000
SHAPES = {"lion": (64,), "sinkgd": (8, 8)}
OPTIMIZERS = {"lion": FusedLion, "sinkgd": FusedSinkGD}
LR = 1e-9
ROUNDS = 300
VARIANTS = {
    "pinned": ["-ltorch_python"],
    "stable": ["-DSTABLE", "-DTORCH_TARGET_VERSION=0x020e000000000000"],
}

# What the module asks of tensors, and torch 2.14's stable ABI has nothing for.
MISSING = {
    "Tensor::grad": r"(->|\.)grad\(\)",
    "TensorImpl::bump_version": r"->bump_version\(\)",
    "Tensor::is_inference": r"\.is_inference\(\)",
    "Tensor::key_set": r"\.key_set\(\)",
    "Tensor::is_non_overlapping_and_dense": r"\.is_non_overlapping_and_dense\(\)",
    "THPVariable_Check": r"THPVariable_Check\(",
}


def missing() -> dict[str, int]:
    """How often the module uses what has no counterpart."""
    files = [path for path in (ROOT / "csrc" / "ops").rglob("*") if path.suffix in {".h", ".cpp"}]
    files += [ROOT / "csrc" / "bindings.cpp", ROOT / "csrc" / "gathered.h"]
    text = "\n".join(path.read_text() for path in files)
    return {name: len(re.findall(pattern, text)) for name, pattern in MISSING.items()}


def compile_variants(objects: Path, folder: Path) -> None:
    kernels = [str(path) for layer in ("core", "cpu") for path in (objects / "csrc" / layer).rglob("*.o")]
    if not kernels:
        sys.exit(f"{objects} has no objects of csrc/core and csrc/cpu: build sage_ext first")
    includes = [ROOT / "csrc", TORCH / "include", sysconfig.get_path("include")]
    for name, flags in VARIANTS.items():
        module = f"spike_{name}"
        command = ["c++", "-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", "-fvisibility=hidden"]
        command += [f"-I{folder}" for folder in includes] + [f"-DTORCH_EXTENSION_NAME={module}"]
        command += [str(ROOT / "benchmarks" / "stable_abi.cpp"), *kernels, f"-L{TORCH / 'lib'}", *flags]
        subprocess.run([*command, "-ltorch_cpu", "-lc10", "-o", str(folder / f"{module}.so")], check=True)


def steps(rule: str, modules: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """What is compared: each does one step, or a part of it."""
    params = [torch.nn.Parameter(torch.randn(SHAPES[rule])) for _ in range(TENSORS)]
    for param in params:
        param.grad = torch.randn(SHAPES[rule])
    grads = [param.grad for param in params]
    exp_avgs = [torch.zeros(SHAPES[rule]) for _ in params] if rule == "lion" else []
    states = [{"exp_avg": exp_avg} for exp_avg in exp_avgs]
    lists = [params, grads, exp_avgs] if rule == "lion" else [params, grads]
    found: dict[str, Callable[[], Any]] = {}
    for name, module in modules.items():
        kept, known = module.Kept(params, states), module.Known(params)
        call = getattr(module, rule)
        op = getattr(getattr(torch.ops, f"spike_{name}"), f"{rule}_")
        found |= {
            f"{name}: lists": lambda call=call: call(*lists, LR),
            f"{name}: torch.ops": lambda op=op: op(*lists, LR),
            f"{name}: like the last step": lambda kept=kept: kept.step(params, states, LR),
            f"{name}: gradients found": lambda known=known: known.find_grads(params),
        }
    # The stable ABI has no way to do it in C++.
    found["versions bumped from Python"] = lambda: torch._C._increment_version(params + exp_avgs)
    found["optimizer.step()"] = OPTIMIZERS[rule](params, lr=LR, backend="native").step
    found["AdamW(fused=True).step()"] = torch.optim.AdamW(params, lr=LR, fused=True).step
    for step in found.values():
        for _ in range(3):
            step()
    return found


def cpu_times(found: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The median microseconds of each, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(ROUNDS):
        for name, step in found.items():
            start = time.thread_time_ns()
            step()
            times[name].append((time.thread_time_ns() - start) / 1e3)
    return {name: round(statistics.median(values), 1) for name, values in times.items()}


def load(folder: Path) -> dict[str, Any]:
    sys.path.insert(0, str(folder))
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    return {name: importlib.import_module(f"spike_{name}") for name in VARIANTS}


def count_here(folder: Path) -> None:
    """One step of each for callgrind."""
    modules = load(folder)
    for rule in SHAPES:
        for name, step in steps(rule, modules).items():
            modules["pinned"].start_counting()
            step()
            modules["pinned"].stop_counting(f"{rule}/{name}")


def instructions(folder: Path) -> dict[str, dict[str, int]]:
    """The instructions of one step of each."""
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/counts"]
    subprocess.run(
        [*command, sys.executable, __file__, "--count-here", str(folder)],
        check=True,
        stderr=subprocess.DEVNULL,
        # What valgrind knows.
        env={**os.environ, "SAGE_EXT_CPU_CAPABILITY": "avx2", "ATEN_CPU_CAPABILITY": "avx2"},
    )
    counts: dict[str, dict[str, int]] = {rule: {} for rule in SHAPES}
    for path in folder.glob("counts*"):
        text = path.read_text()
        trigger = re.search(r"^desc: Trigger: Client Request: (\w+)/(.+)$", text, re.MULTILINE)
        total = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
        if trigger and total:
            counts[trigger[1]][trigger[2]] = int(total[1])
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--objects", type=Path, help="of the CPU kernels: what setup.py has compiled")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--count-here", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.count_here:
        count_here(args.count_here)
        return
    if args.objects is None:
        parser.error("--objects: where the compiled CPU kernels are, such as build/cpu/objects")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compile_variants(args.objects, folder)
        counts = instructions(folder)
        modules = load(folder)
        results = {
            rule: {
                name: {"cpu_us": time_of, "instructions": counts[rule][name]}
                for name, time_of in cpu_times(steps(rule, modules)).items()
            }
            for rule in SHAPES
        }
    for rule, rows in results.items():
        print(f"\n{rule}, {TENSORS} tensors of {SHAPES[rule]}")
        for name, row in rows.items():
            print(f"  {name:<30} {row['cpu_us']:>9.1f} us  {row['instructions'] / 1e6:>7.2f} M instructions")
    if args.json:
        report = {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "tensors": TENSORS,
            "rounds": ROUNDS,
            "missing": missing(),
            "results": results,
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
