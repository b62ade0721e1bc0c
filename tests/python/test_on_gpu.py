"""benchmarks/on_gpu.sh, the script for a first GPU: on a CPU, with the code that runs there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import contenders
import gpu_check
import gpu_launches
import gpu_step
import gpu_tests
import gpu_time
import on_gpu_report
from gpu_sanitize import parse
from stopwatch import Copier, Stopwatch

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
PARTS = ["check", "diagnosis", "exclusive", "tests", "sanitizer", "time"]


def on_gpu(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script, as far as possible as a shell outside of pytest would."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    return subprocess.run(
        ["bash", str(BENCHMARKS / "on_gpu.sh"), *words],
        env={**inherited, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_dry_run(tmp_path: Path) -> None:
    """Every part on a CPU. One test, for it takes a while."""
    out = tmp_path / "made by it"
    result = on_gpu("--dry-run", "--skip-build", str(out))
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}\n{(out / 'on_gpu.log').read_text()}"
    report = json.loads((out / "on_gpu.json").read_text())
    assert [(part["part"], part["status"]) for part in report["parts"]] == [(part, "ok") for part in PARTS]
    assert all(part["seconds"] > 0 for part in report["parts"])

    needs = {need["what"]: need["ok"] for need in report["build"]["needs"]}
    assert needs["torch"]
    assert needs["pytest-xdist"]
    assert {"Python.h", "g++", "nvcc", "setuptools", "GPU", "compute-sanitizer"} <= set(needs)
    assert any("agrees with the reference" in line for line in report["build"]["diagnosis"]["lines"])

    assert [run["run"] for run in report["tests"]["runs"]] == ["exclusive", "parallel"]
    for run in report["tests"]["runs"]:
        assert run["passed"] == run["selected"] > 0
        assert run["unfinished"] == []
        assert run["stopped"] == ""
    assert report["tests"]["failures"] == []

    (tool,) = report["sanitizer"]["tools"]
    assert (tool["ok"], tool["exit_code"]) == (True, 0)
    check_times(report["time"])

    tables = on_gpu_report.tables(report)
    assert {"parts", "needs", "tests", "sanitizer", "steps", "launch", "waves"} == set(tables)
    text = (out / "on_gpu.txt").read_text()
    assert all(table in text for table in tables.values())
    assert result.stdout.endswith(text + "\n")
    head, rule, *rows = tables["steps"].splitlines()
    assert len(rows) == len(report["time"]["steps"])
    assert len({len(line) for line in (head, rule, *rows)}) == 1


def check_times(found: dict[str, Any]) -> None:
    assert (found["errors"], found["left_out"]) == ([], [])
    named = contenders.llama_parameters(contenders.LLAMAS["tiny"], torch.float32)
    expected = {*contenders.torch_builders([]), *contenders.builders(named)}
    for case in ("tiny", "tiny untied"):
        for dtype in ("bf16", "fp32"):
            rows = [row for row in found["steps"] if (row["case"], row["dtype"]) == (case, dtype)]
            assert expected <= {row["optimizer"] for row in rows}
    for row in found["steps"]:
        assert row["eager_ms"] > 0
        assert row["copy_ms"] > 0
        assert row["reads"] > row["writes"] > 0
    assert any("torch.compile" in row["optimizer"] for row in found["steps"])
    assert found["launch"]["sinkgd_us"] is not None
    assert [wave["matrices"] for wave in found["waves"]] == ["tiny untied", "tiny"]


FAKE = """#!/bin/sh
# Does what a test says in place of each part, and combines the results as ever.
case "$*" in
  *on_gpu_report.py*) exec {python} "$@" ;;
  *gpu_check.py*--settings*) echo 'no compiler here'; exit 3 ;;
  *--exclusive*) echo $$ > {pid}; exec sleep 600 ;;
esac
"""


@pytest.fixture
def fake(tmp_path: Path) -> str:
    python = tmp_path / "python"
    python.write_text(FAKE.format(python=sys.executable, pid=tmp_path / "pid"))
    python.chmod(0o755)
    return str(python)


def test_a_part_takes_nothing_with_it(fake: str, tmp_path: Path) -> None:
    """One fails, one hangs and takes the time of those behind it, and the last has what is kept for it."""
    out = tmp_path / "out"
    begin = time.monotonic()
    result = on_gpu(str(out), PYTHON=fake, ON_GPU_SECONDS="91")
    assert time.monotonic() - begin < 91
    assert result.returncode == 1
    parts = {part["part"]: part for part in json.loads((out / "on_gpu.json").read_text())["parts"]}
    assert list(parts) == ["check", "build", *PARTS[1:]]
    status = {name: part["status"] for name, part in parts.items()}
    assert status["check"] == "failed"
    assert parts["check"]["exit_code"] == 3
    assert status["build"] == status["diagnosis"] == "ok"
    assert status["exclusive"] == "overran"
    assert parts["exclusive"]["seconds"] < 15
    assert status["tests"] == status["sanitizer"] == "left out"
    assert status["time"] == "ok"
    assert "no compiler here" in result.stdout
    assert "no compiler here" in (out / "on_gpu.log").read_text()


def has_ended(pid: Path) -> bool:
    """Whether the process whose number is in a file is there no more."""
    stat = Path(f"/proc/{pid.read_text().strip()}/stat")
    return not stat.exists() or stat.read_text().split()[2] == "Z"  # ended, and not yet waited for


def test_who_stops_it_stops_its_part(fake: str, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with subprocess.Popen(
        ["bash", str(BENCHMARKS / "on_gpu.sh"), "--skip-build", str(tmp_path / "out")],
        env={**os.environ, "PYTHON": fake},
        stdout=subprocess.DEVNULL,
    ) as script:
        while not (pid.is_file() and pid.read_text()):
            assert script.poll() is None
            time.sleep(0.05)
        script.terminate()
        assert script.wait(timeout=30) == 143
    give_up = time.monotonic() + 60  # on a busy machine
    while not has_ended(pid) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert has_ended(pid)


def test_results_of_an_earlier_run_are_not_taken_for_this_one(fake: str, tmp_path: Path) -> None:
    (tmp_path / "time.json").write_text(json.dumps({"steps": []}))
    (tmp_path / "mine.json").write_text("{}")
    on_gpu("--skip-build", str(tmp_path), PYTHON=fake, ON_GPU_SECONDS="83")
    assert json.loads((tmp_path / "on_gpu.json").read_text())["time"] is None
    assert (tmp_path / "mine.json").is_file()


@pytest.mark.parametrize("words", [(), ("--dry",), ("a", "b")])
def test_wrong_arguments(words: tuple[str, ...]) -> None:
    assert on_gpu(*words).returncode == 2


class TestSanitizer:
    CLEAN = "========= COMPUTE-SANITIZER\nwhat the program says\n========= ERROR SUMMARY: 0 errors\n"
    INVALID = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at void sage_ext::cuda::(anonymous namespace)::lion_kernel<float, (int)2>(T1)+0x90
=========     by thread (31,0,0) in block (0,0,0)
=========     Access at 0x7f1b4fe00404 is out of bounds
=========         Host Frame: cudaLaunchKernel [0x73350]
=========
========= ERROR SUMMARY: 1 error
"""
    RACE = """========= Error: Race reported between Write access at sage_ext::cuda::finish_kernel(P)+0x1b0
=========     and Read access at sage_ext::cuda::finish_kernel(P)+0x2c0 [8 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""

    def test_clean(self) -> None:
        found = parse(self.CLEAN)
        assert (found["errors"], found["kernels"]) == (0, {})
        assert parse("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")["errors"] == 0

    def test_errors_and_their_kernels(self) -> None:
        found = parse(self.INVALID)
        assert found["errors"] == 1
        assert found["kernels"] == {"sage_ext::cuda::lion_kernel<float, 2>": 1}
        found = parse(self.RACE)
        assert found["errors"] == 1
        assert found["kernels"] == {"sage_ext::cuda::finish_kernel": 2}

    TOOL = """#!/bin/sh
case "$1" in
  --tool=memcheck) echo '========= ERROR SUMMARY: 0 errors' ;;
  --tool=racecheck) sleep 600 & echo $! > {pid}; wait ;;
  *) echo '========= Error: Device not supported' ;;
esac
"""

    def test_each_tool_for_itself(self, tmp_path: Path) -> None:
        """One finds nothing, one does not end and is stopped with what it has started, others cannot run."""
        pid, path = tmp_path / "pid", tmp_path / "sanitizer.json"
        program = tmp_path / "compute-sanitizer"
        program.write_text(self.TOOL.format(pid=pid))
        program.chmod(0o755)
        result = subprocess.run(
            [sys.executable, str(BENCHMARKS / "gpu_sanitize.py"), f"--json={path}", "--limit=2"],
            env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
            check=False,
        )
        assert result.returncode == 1
        tools = {tool["tool"]: tool for tool in json.loads(path.read_text())["tools"]}
        assert {name: tool["ok"] for name, tool in tools.items()} == {
            "memcheck": True,
            "racecheck": False,
            "initcheck": False,
            "synccheck": False,
        }
        assert [name for name, tool in tools.items() if tool["stopped"]] == ["racecheck"]
        assert has_ended(pid)

    def test_steps_that_move_nothing_are_found_and_no_others(self) -> None:
        """Not those whose update a bfloat16 would have rounded away."""
        from sage_ext.optimizers import FusedSignSGD

        param = contenders.parameter((1,), torch.bfloat16)
        param.data.fill_(256.0)
        gpu_step.check("", lambda: FusedSignSGD([param], lr=1e-4), [param])
        with pytest.raises(AssertionError, match=r"^still: 1 of 1 parameters did not move"):
            gpu_step.check("still", lambda: FusedSignSGD([param], lr=0.0), [param])

    def test_no_summary_is_no_success(self) -> None:
        assert parse("========= Error: Device not supported\n")["errors"] is None


class TestResultsOfTests:
    LINES = (
        {"run": "parallel", "selected": 4},
        {"run": "parallel", "started": "a"},
        {"run": "parallel", "test": "a", "outcome": "passed", "seconds": 1.5, "message": ""},
        {"run": "parallel", "started": "b"},
        {"run": "parallel", "test": "b", "outcome": "failed", "seconds": 0.5, "message": "x\nE 1 is not 2"},
        {"run": "parallel", "test": "b", "outcome": "passed", "seconds": 0.1, "message": ""},
        {"run": "parallel", "started": "c"},
    )

    def test_of_a_run_that_was_killed(self, tmp_path: Path) -> None:
        """What had begun is named, and half a line does no harm."""
        lines = "".join(json.dumps(line) + "\n" for line in self.LINES)
        (tmp_path / "tests.jsonl").write_text(lines + '{"run": "paral')
        report = on_gpu_report.combine(tmp_path)
        (run,) = report["tests"]["runs"]
        assert (run["selected"], run["passed"], run["failed"]) == (4, 1, 1)
        assert run["unfinished"] == ["c"]
        assert run["stopped"] is None
        tables = on_gpu_report.tables(report)
        assert "killed" in tables["tests"]
        assert "E 1 is not 2" in tables["failures"]
        assert "began and did not end" in tables["failures"]

    def test_the_most_telling_come_first(self) -> None:
        files = gpu_tests.files()
        assert files[0].endswith("test_cuda.py")
        native = len(list((ROOT / "tests" / "python").glob("test_native_*.py")))
        assert all("test_native_" in file for file in files[1 : 1 + native])
        assert files[1 + native].endswith("test_vote_cuda.py")
        tests = ROOT / "tests" / "python"
        marked = {str(p.relative_to(ROOT)) for p in tests.glob("test_*.py") if "NativeSuite" in p.read_text()}
        assert marked | {"tests/python/test_amp.py", "tests/python/test_state.py"} <= set(files)
        assert "tests/python/test_example.py" not in files  # which needs packages that may not be there

    def test_a_file_that_cannot_be_imported_is_an_error(self, tmp_path: Path) -> None:
        results = gpu_tests.Results(tmp_path / "tests.jsonl", "parallel", deadline=0.0)
        for _ in range(2):
            results.pytest_collectreport(
                SimpleNamespace(failed=True, nodeid="test_x.py", longrepr="E   ImportError: no such thing")
            )
        (failure,) = on_gpu_report.combine(tmp_path)["tests"]["failures"]
        assert failure["test"] == "test_x.py"
        assert "no such thing" in failure["message"]

    def test_the_budget_ends_a_run(self, tmp_path: Path) -> None:
        """What ended is there, and that it was stopped; nothing waits for the rest."""
        results = gpu_tests.Results(tmp_path / "lines", "parallel", deadline=0.0)
        session = SimpleNamespace(shouldstop=False)
        manager = SimpleNamespace(getplugin=lambda name: session if name == "dsession" else None)
        results.pytest_configure(SimpleNamespace(pluginmanager=manager))
        results.pytest_runtest_logreport(
            SimpleNamespace(
                when="call", nodeid="a", outcome="passed", duration=0.1, passed=True, failed=False
            )
        )
        results.pytest_sessionfinish()
        assert session.shouldstop
        entries = on_gpu_report.read_lines(tmp_path / "lines")
        assert entries[0]["test"] == "a"
        assert entries[-1]["stopped"] == "the budget was used up"


class TestLostGpu:
    """One of several processes ends when the GPU answers no more, and only then."""

    @pytest.fixture
    def exits(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        exits: list[int] = []
        monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
        monkeypatch.setattr(os, "_exit", exits.append)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        return exits

    def fault(self) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def test_a_fault_ends_the_process(self, exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "synchronize", self.fault)
        conftest.pytest_runtest_logreport(SimpleNamespace(failed=False))
        assert exits == []
        conftest.pytest_runtest_logreport(SimpleNamespace(failed=True))
        assert exits == [1]

    def test_nothing_else_does(self, exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        conftest.pytest_runtest_logreport(SimpleNamespace(failed=True))
        monkeypatch.setattr(torch.cuda, "synchronize", self.fault)
        monkeypatch.delenv("PYTEST_XDIST_WORKER")
        conftest.pytest_runtest_logreport(SimpleNamespace(failed=True))
        assert exits == []


class TestSession:
    def session(self, deadline: float = float("inf")) -> tuple[gpu_time.Session, list[int]]:
        saved: list[int] = []
        watch, copier = Stopwatch("cpu", seconds=0.0), Copier("cpu", 64)
        return gpu_time.Session(
            watch, copier, deadline, lambda report: saved.append(len(report["done"]))
        ), saved

    def test_failures_are_noted_and_the_rest_goes_on(self) -> None:
        def fail() -> None:
            raise RuntimeError("no kernel image")

        def too_large() -> None:
            raise torch.OutOfMemoryError("out of memory")

        session, saved = self.session()
        done: list[str] = []
        for what, measure in (("a", fail), ("b", too_large), ("c", lambda: done.append("c"))):
            session.run(what, measure)
        assert done == ["c"]
        assert session.report["errors"] == [{"what": "a", "error": "RuntimeError: no kernel image"}]
        assert session.report["left_out"] == [{"what": "b", "why": "it does not fit the GPU's memory"}]
        assert saved == [1, 2, 3]  # after each, not in the end

    def test_what_overruns_is_stopped_and_what_follows_is_left_out(self) -> None:
        session, _ = self.session(deadline=time.monotonic() + 0.2)
        session.run("a", lambda: time.sleep(60))
        session.run("b", lambda: pytest.fail("there was no time for it"))
        left_out = session.report["left_out"]
        assert [entry["what"] for entry in left_out] == ["a", "b"]
        assert left_out[0]["why"] != left_out[1]["why"]

    def test_a_lost_gpu_ends_the_process_and_the_next_one_goes_on_behind(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session, _ = self.session()
        monkeypatch.setattr(session.watch, "release", lambda: False)
        with pytest.raises(gpu_time.GpuLostError, match="a"):
            session.run("a", lambda: None)
        monkeypatch.setattr(session.watch, "release", lambda: True)
        session.run("a", lambda: pytest.fail("it was begun before"))
        assert session.report["done"] == ["a"]


class TestMeasuring:
    def test_bytes_are_those_that_the_kernels_were_counted_to_need(self) -> None:
        """benchmarks/results/kernels.json has them from the emulator."""
        rows = json.loads((BENCHMARKS / "results" / "kernels.json").read_text())["traffic"]
        floors = {row["rule"]: row["floor"] for row in rows if row["dtype"] == "bfloat16"}
        names = {
            "FusedSAGE": "sage",
            "FusedLion": "lion",
            "FusedSignSGD": "sign_sgd",
            "FusedALIAS": "alias",
            "FusedALIAS (lower bound)": "alias_lower_bound",
            "FusedALIAS (base)": "alias_base",
            "FusedALIASAdam": "alias_adam",
            "FusedAdamW": "adamw",
            contenders.SINKGD: "sinkgd",
        }
        params = [contenders.parameter((64, 96), torch.bfloat16)]
        found = {**contenders.vector_builders(params), **contenders.matrix_builders(params)}
        for name, rule in names.items():
            optimizer = found[name]()
            contenders.step_of(optimizer)()
            moved = sum(contenders.traffic(optimizer)) / params[0].numel()
            assert moved == floors[rule], name

    def test_state_in_another_dtype_counts_as_it_is(self) -> None:
        from sage_ext.optimizers import FusedAdamW

        params = [contenders.parameter((64, 96), torch.bfloat16)]
        moved = []
        for dtype in (torch.bfloat16, torch.float32):
            optimizer = FusedAdamW(params, state_dtype=dtype)
            optimizer.step()
            moved.append(sum(contenders.traffic(optimizer)) / params[0].numel())
            assert contenders.state_bytes(optimizer) >= 2 * params[0].numel() * dtype.itemsize
        assert moved == [14, 22]

    def test_a_copy_moves_as_many_bytes(self) -> None:
        copier = Copier("cpu", buffer=100)
        for moved in (2, 150, 200, 450, 600):
            copier._source.random_(1, 255)
            copier._target.zero_()
            copier.step(moved)()
            expected = copier._source.clone()
            if moved < 200:
                expected[moved // 2 :] = 0
            assert torch.equal(copier._target, expected)

    def test_line(self) -> None:
        slope, start = gpu_launches.line_through([(x, 3.0 + 0.25 * x) for x in (1.0, 2.0, 8.0, 9.0)])
        assert (slope, start) == (pytest.approx(0.25), pytest.approx(3.0))

    def test_compiled_reference_takes_the_reference_s_steps(self) -> None:
        from compiled import compiled_reference

        from sage_ext import reference
        from sage_ext.optimizers import FusedLion

        plain = reference.lion_
        ends = []
        for is_compiled in (False, True):
            torch.manual_seed(0)
            params = [contenders.parameter((3, 5), torch.float32) for _ in range(2)]
            optimizer = FusedLion(params, backend="reference")
            if is_compiled:
                with compiled_reference("eager"):
                    assert reference.lion_ is not plain
                    optimizer.step()
            else:
                optimizer.step()
            ends.append(params)
        assert reference.lion_ is plain
        for a, b in zip(*ends, strict=True):
            assert torch.equal(a, b)


def test_versions() -> None:
    assert gpu_check.at_least("2.11.0+cu130", "2.6")
    assert gpu_check.at_least("77.0.3", "77")
    assert not gpu_check.at_least("9.5", "12")
    assert not gpu_check.at_least(None, "1")
