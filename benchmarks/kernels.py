"""The CUDA kernels of the compiled module, judged without a GPU: what nvcc made of them.

    python benchmarks/kernels.py [MODULE] [--all] [--json FILE]

MODULE is the running environment's sage_ext unless a file is named. Prints one line for each kernel and
architecture, over its template instantiations (--all: one for each of those). Exits with 1 if a kernel spills
registers or uses local memory, has no launch bound, or moves no 16 bytes at a time. Needs NVIDIA's cuobjdump
and nvdisasm: from CUDA_HOME, the PATH, or the triton that comes with torch.
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


def print_table(summaries: list[dict[str, Any]]) -> None:
    rows = [[title for title, _ in COLUMNS.values()]]
    rows += [[write(summary[key]) for key, (_, write) in COLUMNS.items()] for summary in summaries]
    wide = [max(len(line[column]) for line in rows) for column in range(len(COLUMNS))]
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


SECTIONS: dict[str, Section] = {"machine_code": machine_code}


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
