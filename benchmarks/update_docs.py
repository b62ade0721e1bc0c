"""Writes the measured parts of README.md and docs/ from benchmarks/results: nobody types numbers there.

    python benchmarks/update_docs.py            write them
    python benchmarks/update_docs.py --check    write nothing; exit with 1 if a page is out of date

A part stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``. What is outside is left alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import docs_autoconfig as autoconfig
import docs_gpu_tables as gpu
import docs_method_tables as methods
import docs_plan_tables as plan
import docs_report as runs
import docs_scaling_tables as scaling
import docs_tables as cpu

ROOT = Path(__file__).resolve().parent.parent

# Page -> name of the part -> what makes its paragraphs.
PARTS: dict[str, dict[str, list[Callable[[], str]]]] = {
    "README.md": {
        "training": [runs.in_short],
        "costs": [cpu.costs, gpu.in_short, cpu.low_precision_in_short],
    },
    "docs/autoconfig.md": {"verdict": [autoconfig.verdict], "example": [autoconfig.example]},
    "docs/choose.md": {
        "low-precision": [cpu.low_precision_to_choose],
        "rates": [runs.rates, runs.one_rate],
        "standing": [runs.to_choose],
        "gpu": [partial(gpu.in_short, "gpu.md")],
    },
    "docs/measurements.md": {
        "memory": [cpu.memory],
        "step-time": [cpu.step_time],
        "other-machines": [cpu.other_machines],
        "hybrid-profile": [cpu.hybrid_profile],
        "reading": [cpu.reading],
    },
    "docs/distributed.md": {"scaling": [scaling.assumptions, scaling.exchanged, scaling.predicted]},
    "docs/results.md": {"report": [runs.report]},
    "docs/training.md": {"training": [cpu.training]},
    "docs/numerics.md": {"low-precision": [cpu.second_moment, cpu.low_precision_losses]},
    "docs/plan.md": {
        "example": [plan.example],
        "side-by-side": [plan.side_by_side],
        "on-gpu": [gpu.against_plan],
    },
    "docs/trainers.md": {"lora": [cpu.lora]},
    "docs/install.md": {"stable-abi": [cpu.stable_abi]},
    "docs/gpu.md": {
        "on-gpu": [gpu.timed],
        "on-gpu-checks": [gpu.checked],
        "on-gpu-iterations": [gpu.iterations],
        "on-gpu-waves": [gpu.waves],
        "traffic": [gpu.traffic],
        "machine-code": [gpu.machine_code],
        "l2": [gpu.l2],
    },
    **{f"docs/methods/{page}.md": {"measured": methods.makers(page)} for page in methods.ROWS},
}


def replace(text: str, name: str, part: str) -> str:
    """Return ``text`` with ``part`` between the two marks of ``name``.

    Raises:
        ValueError: the marks are not there, or not once, or in the wrong order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if (text.count(begin), text.count(end)) != (1, 1) or text.index(begin) > text.index(end):
        raise ValueError(f"expected {begin} once and {end} once behind it")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n\n{part}\n\n{end}{after}"


def pages(root: Path = ROOT) -> Iterator[tuple[Path, str, str]]:
    """Yield every page with its text as it is, and as it has to be."""
    for file, parts in PARTS.items():
        path = root / file
        text = new = path.read_text()
        for name, makers in parts.items():
            try:
                new = replace(new, name, "\n\n".join(make() for make in makers))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        yield path, text, new


def stale(root: Path = ROOT) -> list[Path]:
    """Return the pages that do not say what benchmarks/results says."""
    return [path for path, text, new in pages(root) if text != new]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a page is out of date"
    )
    if parser.parse_args().check:
        found = stale()
        for path in found:
            print(f"{path}: out of date; run python benchmarks/update_docs.py", file=sys.stderr)
        return 1 if found else 0
    for path, text, new in pages():
        if text != new:
            path.write_text(new)
            print(f"{path}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
