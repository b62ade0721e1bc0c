"""The CUDA kernels: what nvcc made of them, what they move, and, where there is a GPU, how long they take.

    python benchmarks/kernels.py [MODULE] [--all] [--json FILE]

1. The machine code of MODULE, which is the running environment's sage_ext unless a file is named: one line
   for each kernel and architecture, over its template instantiations (--all: one for each of those). Needs
   NVIDIA's cuobjdump and nvdisasm: from CUDA_HOME, the PATH, or the triton that comes with torch.
2. Bytes and launches of a step, counted on the emulator of the C++ tests (make test-cpp builds it), and the
   time that these bytes take at the bandwidth of an H100 and an H200.
3. Times by CUDA events, if torch finds a GPU.

Exits with 1 if a kernel spills registers or uses local memory, has no launch bound, moves no 16 bytes at a
time, or does not coalesce its accesses.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import counted
from audit import VECTOR, Kernel, audit, problems_of

# A section prints its part of the report, and returns it for the JSON file together with what is wrong.
Section = Callable[[argparse.Namespace], tuple[Any, list[str]]]


def find_module() -> Path:
    """The compiled module of the sage_ext that this Python would import, without importing it."""
    spec = importlib.util.find_spec("sage_ext")
    if spec is None or spec.origin is None:
        sys.exit("kernels.py: this Python has no sage_ext; install it, or name the compiled module's file")
    folder = Path(spec.origin).parent
    files = sorted(folder.glob("_C*.so"))
    if len(files) != 1:
        sys.exit(f"kernels.py: one _C*.so expected in {folder}, found {len(files)}; name the one to audit")
    return files[0]


def find_cuobjdump() -> str:
    """A cuobjdump that has nvdisasm beside it."""
    folders = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep)]
    if os.environ.get("CUDA_HOME"):
        folders.insert(0, Path(os.environ["CUDA_HOME"]) / "bin")
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    for folder in folders:
        if shutil.which("cuobjdump", path=str(folder)) and shutil.which("nvdisasm", path=str(folder)):
            return str(folder / "cuobjdump")
    sys.exit(
        "kernels.py: no folder with cuobjdump and nvdisasm: not in CUDA_HOME/bin, on the PATH, or in triton"
    )


Extent = tuple[float, float]  # the least and the most of a kernel's variants


def extent(values: Iterable[float]) -> Extent:
    low, high = min(values := list(values)), max(values)
    return low, high


def by_width(counts: list[Counter[int]]) -> dict[int, Extent]:
    """Instructions by the bytes that each moves, widest first."""
    widths = sorted({width for count in counts for width in count}, reverse=True)
    return {width: extent(count[width] for count in counts) for width in widths}


def summarize(name: str, kernels: list[Kernel]) -> dict[str, Any]:
    """One line of the table: variants of a kernel for one architecture."""
    shares = [kernel.occupancy for kernel in kernels if kernel.occupancy is not None]
    looping = (kernel.loop_loads + kernel.loop_stores for kernel in kernels)
    return {
        "kernel": name,
        "arch": kernels[0].arch,
        "variants": len(kernels),
        "registers": extent(kernel.registers for kernel in kernels),
        "threads": extent(kernel.threads or 0 for kernel in kernels),
        "occupancy": extent(shares) if len(shares) == len(kernels) else None,
        "shared_bytes": extent(kernel.shared_bytes for kernel in kernels),
        "stack_bytes": extent(kernel.stack_bytes + kernel.local_bytes for kernel in kernels),
        "local_accesses": extent(kernel.local_accesses for kernel in kernels),
        "loads": by_width([kernel.loads for kernel in kernels]),
        "stores": by_width([kernel.stores for kernel in kernels]),
        "vector_accesses_in_loops": extent(
            sum(count for width, count in counts.items() if width >= VECTOR) for counts in looping
        ),
    }


def span(values: Extent) -> str:
    """``3`` or ``3-7``."""
    low, high = values
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


def widths(counts: dict[int, Extent]) -> str:
    """``16 B x 4-8, 2 B x 24``."""
    return ", ".join(f"{width} B x {span(number)}" for width, number in counts.items()) or "-"


def percent(share: Extent | None) -> str:
    return "?" if share is None else span((round(100 * share[0]), round(100 * share[1]))) + "%"


# What the table calls the entries of a summary, and how it writes them.
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "kernel": ("kernel", str),
    "arch": ("arch", str),
    "variants": ("variants", str),
    "registers": ("registers", span),
    "threads": ("threads", span),
    "occupancy": ("occupancy", percent),
    "shared_bytes": ("shared B", span),
    "stack_bytes": ("stack B", span),
    "local_accesses": ("spills", span),
    "loads": ("global loads", widths),
    "stores": ("global stores", widths),
    "vector_accesses_in_loops": ("16 B in loops", span),
}


def number(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits}f}"


def by_gpu(times: dict[str, float]) -> str:
    return ", ".join(f"{name} {time:.1f}" for name, time in times.items())


TRAFFIC_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "rule": ("rule", str),
    "dtype": ("W, g", str),
    "state_dtype": ("state", str),
    "launches": ("launches", str),
    "bytes_per_param": ("B/param", number(2)),
    "floor": ("floor", "{:g}".format),
    "cached_bytes_per_param": ("cached B/param", number(2)),
    "scratch_7b": ("7B: scratch B/param", number(2)),
    "predicted_7b_ms": ("7B: predicted ms", by_gpu),
    "sector_efficiency": ("sector efficiency", number(2)),
}
TIME_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "case": ("Llama", str),
    "dtype": ("dtype", str),
    "optimizer": ("optimizer", str),
    "graph_ms": ("ms in a graph", number(3)),
    "eager_ms": ("ms by the host", number(3)),
    "ratio": ("x AdamW", number(2)),
    "share_of_copy": ("of a copy's speed", number(2)),
}


def print_table(
    summaries: list[dict[str, Any]], columns: dict[str, tuple[str, Callable[[Any], str]]] = COLUMNS
) -> None:
    rows = [[title for title, _ in columns.values()]]
    rows += [[write(summary[key]) for key, (_, write) in columns.items()] for summary in summaries]
    wide = [max(len(line[column]) for line in rows) for column in range(len(columns))]
    for line in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True)).rstrip())


def machine_code(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    """The audit of the machine code."""
    module = arguments.module or find_module()
    kernels = audit(find_cuobjdump(), module)
    if arguments.all:
        summaries = [summarize(f"{kernel.name}<{kernel.variant}>", [kernel]) for kernel in kernels]
    else:
        groups = groupby(kernels, key=lambda kernel: (kernel.name, kernel.arch))
        summaries = [summarize(name, list(group)) for (name, _), group in groups]
    print(f"Machine code in {module.name}; numbers are the least and the most of a kernel's variants:\n")
    print_table(summaries)
    problems = [problem for kernel in kernels for problem in problems_of(kernel)]
    return summaries, problems if kernels else [f"{module} has no CUDA kernels"]


def traffic(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    """Bytes and launches, counted; times at a GPU's bandwidth, predicted."""
    try:
        summaries = counted.count()
    except FileNotFoundError:
        return None, [f"{counted.PROGRAM} is not there: run make test-cpp first"]
    print("\nTraffic of a step, counted on the emulator for a small Llama (not timed); predicted for 7B:\n")
    print_table(summaries, TRAFFIC_COLUMNS)
    return summaries, [problem for summary in summaries for problem in counted.problems_of(summary)]


def timed(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    """Times on the GPU, if there is one."""
    import torch

    if not torch.cuda.is_available():
        print("\nNot timed: torch finds no GPU here.")
        return None, []
    from gpu_time import timings

    rows = timings()
    print(f"\nTimes on {torch.cuda.get_device_name()}, medians by CUDA events, caches flushed:\n")
    print_table(rows, TIME_COLUMNS)
    return {"gpu": torch.cuda.get_device_name(), "rows": rows}, []


SECTIONS: dict[str, Section] = {"machine_code": machine_code, "traffic": traffic, "timed": timed}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("module", nargs="?", type=Path, help="the compiled module's file")
    parser.add_argument("--all", action="store_true", help="a line for every template instantiation")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file as well")
    arguments = parser.parse_args()

    report, problems = {}, []
    for name, section in SECTIONS.items():
        report[name], found = section(arguments)
        problems += found
    if arguments.json:
        arguments.json.write_text(json.dumps({**report, "problems": problems}, indent=1) + "\n")
    print(*(f"\nPROBLEM: {problem}" for problem in problems), sep="")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
