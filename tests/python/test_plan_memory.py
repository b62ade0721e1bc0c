"""The memory that ``sage_ext.plan`` says, against what steps allocate, counted to the byte in processes of
their own, and against the plans that csrc makes."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sage_ext.planning import workspaces

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
WITHIN = 0.02
BOOKKEEPING = 16 << 10
"""Bytes that lists, plans and Python's objects take in a step of a few tensors."""


# --- steps, counted ---


def counted(cases: str, tmp_path: Path) -> list[dict[str, Any]]:
    """Run cases of plan_cases.py in a process whose allocations are counted."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("counting allocations takes a C compiler, on Linux")
    library = tmp_path / "counted_memory.so"
    source = str(HERE / "counted_memory.c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), source], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_WAIT_POLICY": "passive"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-W", "ignore", str(HERE / "plan_cases.py"), cases]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_memory_of_real_models_is_within_two_per_cent(tmp_path: Path) -> None:
    """Peak of all that is held in the first step, and what that step adds: states and scratch."""
    pytest.importorskip("transformers")
    for case in counted("models", tmp_path):
        for name, measured in case["measured"].items():
            assert measured == pytest.approx(case["planned"][name], rel=WITHIN), (case["case"], name)


def test_scratch_of_the_kernels_is_within_two_per_cent(tmp_path: Path) -> None:
    for case in counted("kernels", tmp_path):
        measured, planned = case["measured"]["transient"], case["planned"]["transient"]
        assert measured <= (1 + WITHIN) * planned + BOOKKEEPING, case
        # How many threads have a matrix at the same moment is up to the machine; the plan is for all of them.
        least = planned / case["threads"] if case["a_thread_each"] else planned
        assert measured >= (1 - WITHIN) * least, case


def test_pieces_of_a_process_cost_what_is_planned(tmp_path: Path) -> None:
    """FSDP2 over 8: messages and their bytes, state, and what the stages allocate."""
    pytest.importorskip("transformers")
    for case in counted("pieces", tmp_path):
        measured, planned = case["measured"], case["planned"]
        for name in ("messages", "sent", "state"):
            assert measured[name] == planned[name], (case["case"], name)
        assert case["as_it_lies"] == planned
        allowed = WITHIN * planned["transient"] + max(BOOKKEEPING, 4096 * case["tensors"])
        assert 0.98 * planned["transient"] <= measured["transient"] <= planned["transient"] + allowed, case


# --- plans of csrc ---


def test_plans_are_those_of_csrc(tmp_path: Path) -> None:
    """The formulas in Python against the functions of csrc/core/launch_plan.cpp."""
    compiler = shutil.which("c++")
    if compiler is None or not CSRC.exists():
        pytest.skip("needs a C++ compiler and csrc")
    program = tmp_path / "launch_plans"
    sources = [str(HERE / "launch_plans.cpp"), str(CSRC / "core" / "launch_plan.cpp")]
    subprocess.run([compiler, "-std=c++20", "-I", str(CSRC), *sources, "-o", str(program)], check=True)
    draw = random.Random(0)
    sides = [1, 2, 7, 31, 64, 255, 256, 257, 777, 2048, 4096, 4097, 11008, 32000, 50257]
    matrices = [(rows, cols, itemsize) for rows in sides for cols in sides for itemsize in (2, 4)]
    totals = [rows * cols * draw.choice((1, 5, 224)) for rows, cols, _ in matrices]
    lines = [
        f"{rows} {cols} {size} {total}" for (rows, cols, size), total in zip(matrices, totals, strict=True)
    ]
    found = subprocess.run([str(program)], input="\n".join(lines), capture_output=True, text=True, check=True)
    expected = []
    for (rows, cols, itemsize), total in zip(matrices, totals, strict=True):
        vec = 16 // itemsize
        aligned = cols % vec == 0
        threads = workspaces.sinkhorn_threads(cols, vec, aligned)
        numbers = [
            *workspaces.tile_columns(rows, cols),
            workspaces.row_blocks(rows, cols),
            *workspaces.column_blocks(rows, cols, vec),
            threads,
            workspaces.sinkhorn_blocks(rows, cols, vec, aligned, threads, total),
        ]
        expected.append(" ".join(map(str, numbers)))
    assert found.stdout.splitlines() == expected


def test_scratch_of_a_gpu_is_that_of_csrc() -> None:
    """The sums in Python against the functions of csrc/cuda, which ask no GPU."""
    program = HERE.parents[1] / "build" / "cpp" / "tests" / "cpp" / "cuda" / "sage_ext_workspaces"
    sources = [path.stat().st_mtime for path in CSRC.rglob("*") if path.is_file()]
    if not sources or not program.exists() or program.stat().st_mtime < max(sources):
        pytest.skip("needs the C++ tests: make test-cpp")
    draw = random.Random(1)
    sides = [1, 2, 7, 31, 64, 100, 777, 1024, 2048, 4096, 5461, 11008, 32000, 50257]
    formulas: dict[str, Callable[[list[tuple[int, ...]], list[int], int], int]] = {
        "sage": lambda shapes, _, size: workspaces.sage_cuda([shape[1:] for shape in shapes], size),
        "sage_pieces": lambda shapes, _, size: workspaces.sage_cuda(
            [shape[1:] for shape in shapes], size, is_cut=True
        ),
        "sinkgd": lambda shapes, _, size: workspaces.sinkgd_cuda(shapes, size),
        "scale0": lambda shapes, _, size: workspaces.scale_cuda(shapes, 0, size),
        "scale1": lambda shapes, _, size: workspaces.scale_cuda(shapes, 1, size),
        "alias": lambda _, numels, __: workspaces.alias_cuda(numels, (32, 8), 1),
        "alias_adam": lambda _, numels, __: workspaces.alias_cuda(numels, (8,), 0),
        "adamw": lambda shapes, _, __: 4 * len(shapes),
    }
    asked, expected = [], []
    for rule, formula in formulas.items():
        for _ in range(100):
            size = draw.choice((2, 4))
            stacks = 1 if rule.startswith("sage") else draw.choice((1, 3))
            shapes = [(stacks, draw.choice(sides), draw.choice(sides)) for _ in range(draw.randint(1, 6))]
            numbers = " ".join(str(number) for shape in shapes for number in shape)
            asked.append(f"{rule} {size} {len(shapes)} {numbers}")
            expected.append(formula(shapes, [math.prod(shape) for shape in shapes], size))
    found = subprocess.run([str(program)], input="\n".join(asked), capture_output=True, text=True, check=True)
    assert list(map(int, found.stdout.split())) == expected


def test_scratch_of_a_gpu_is_laid_out_in_lines() -> None:
    """A number for each row, rounded up to 128 bytes; twice as much of a stack of twice as many rows."""
    assert workspaces.scale_cuda([(100, 64)], 1, 2) == 512
    assert workspaces.scale_cuda([(2, 100, 64)], 1, 2) == 896
    assert workspaces.scale_cuda([(100, 64), (100, 64)], 1, 2) == 1024
    # Two scales and the slots of 2,048 columns, in blocks of 16 rows.
    assert workspaces.sinkgd_cuda([(64, 2048)], 2) == 4 * (64 + 2048 + 4 * 2048)
