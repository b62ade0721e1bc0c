"""Time of a step on a GPU: every rule and hybrid, torch's AdamW, the compiled reference, and plain copies.

    python benchmarks/gpu_time.py [--json FILE] [--budget SECONDS] [--dry-run] [--resume]

Rows are taken in the order of how much they tell, and written to FILE one by one, until the budget is used
up; what was left out is in the file as well. Each row has the step's time

- ``eager_ms``: called by the host, with nothing before it on the GPU; where the host is slower, the host's;
- ``graph_ms``: of a replayed CUDA graph: the GPU's alone;
- ``copy_ms``: of a copy that reads and writes as many bytes as the step has to;

all of them medians by CUDA events with the second-level cache flushed, beside ``host_ms`` (until the call
returned), the bytes of the state, and the most that a step allocated (``peak_bytes``; ``first_peak_bytes``:
the first step, which makes the state). The file's other entries: ``launch`` and ``waves`` of gpu_launches.py,
``errors`` and ``left_out``; ``done`` names all that was begun. A fault on the GPU ends a process's use of it:
then the program starts itself anew with ``--resume``, which goes on behind what is in FILE.

``--dry-run`` takes the same path on the CPU with tensors of a few bytes. Its numbers say nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from compiled import compiled_reference
from contenders import (
    BASELINE,
    DTYPES,
    LLAMAS,
    Build,
    Named,
    builders,
    llama_parameters,
    matrices_of,
    state_bytes,
    step_of,
    torch_builders,
    traffic,
)
from gpu_launches import launches, waves
from on_gpu_report import read_json, write_json
from stopwatch import Copier, Stopwatch

COPY_BUFFER = 2**30
REFERENCES = ("SAGE hybrid", "FusedAdamW", "FusedLion", "FusedSignSGD", "SCALE hybrid", "FusedALIASAdam")
EAGER_REFERENCE = "SAGE hybrid, reference"


class OverranError(BaseException):
    """The time is up. Not an Exception, so that nothing on the way takes it for a fault of its own."""


class GpuLostError(Exception):
    """A fault on the GPU, after which every call of this process fails."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise OverranError within it once so much time has passed."""

    def stop(*_: object) -> None:
        raise OverranError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Session:
    """What is measured with, until when, and what came out so far."""

    watch: Stopwatch
    copier: Copier
    deadline: float = float("inf")  # of time.monotonic()
    save: Callable[[dict[str, Any]], None] = lambda _: None
    report: dict[str, Any] = field(
        default_factory=lambda: {
            "steps": [],
            "launch": None,
            "waves": [],
            "errors": [],
            "left_out": [],
            "done": [],
        }
    )

    def run(self, what: str, measure: Callable[[], None]) -> None:
        """Measure, or note why not. The next measurement is none the worse for a failure of this one.

        Raises:
            GpuLostError: nothing can be measured any more in this process.
        """
        if what in self.report["done"]:
            return
        left = self.deadline - time.monotonic()
        if left <= 0:
            self.report["left_out"].append({"what": what, "why": "the budget was used up"})
        else:
            self.report["done"].append(what)
            try:
                with at_most(left) if left < float("inf") else nullcontext():
                    measure()
            except OverranError:
                self.report["left_out"].append({"what": what, "why": "the budget ran out in it"})
            except torch.OutOfMemoryError:
                self.report["left_out"].append({"what": what, "why": "it does not fit the GPU's memory"})
            except Exception as error:
                print(f"{what}: {type(error).__name__}: {error}", file=sys.stderr)
                self.report["errors"].append(
                    {"what": what, "error": f"{type(error).__name__}: {error}"[:2000]}
                )
        self.save(self.report)
        if not self.watch.release():  # a large model's states must be gone before the next ones are made
            raise GpuLostError(what)


class Case:
    """The parameters of a Llama in a dtype. They are made when first asked for."""

    def __init__(self, llama: str, dtype: str) -> None:
        self.llama, self.dtype = llama, dtype
        self._named: Named | None = None

    def __str__(self) -> str:
        return f"{self.llama} {self.dtype}"

    def named(self, device: torch.device) -> Named:
        if self._named is None:
            self._named = llama_parameters(LLAMAS[self.llama], DTYPES[self.dtype], device)
        return self._named

    def names(self) -> list[str]:
        """Everything to time on it, the most telling first."""
        tiny = llama_parameters(LLAMAS["tiny"], torch.float32)
        baselines = torch_builders([param for _, param in tiny])
        try:
            return [*baselines, *builders(tiny)]
        except ImportError:  # ours could not be built; torch's are worth their time all the same
            return list(baselines)


def measure(session: Session, case: Case, name: str, build: Build, for_graph: Build | None = None) -> None:
    """Add a row.

    Args:
        session: gets the row.
        case: the tensors.
        name: of the optimizer.
        build: makes the optimizer.
        for_graph: makes the one to capture, if it is another; None takes the same.
    """
    watch = session.watch
    optimizer = build()
    step = step_of(optimizer)
    first_peak = watch.peak(step)
    step()
    peak = watch.peak(step)
    moved = traffic(optimizer)
    held = state_bytes(optimizer)
    times = watch.medians({"step": step, "copy": session.copier.step(sum(moved))})
    row: dict[str, Any] = {
        "case": case.llama,
        "dtype": case.dtype,
        "optimizer": name,
        "parameters": sum(param.numel() for _, param in case.named(watch.device)),
        "eager_ms": times["step"].ms,
        "host_ms": times["step"].host_ms,
        "graph_ms": None,
        "copy_ms": times["copy"].ms,
        "reads": moved[0],
        "writes": moved[1],
        "state_bytes": held,
        "peak_bytes": peak,
        "first_peak_bytes": first_peak,
        "rounds": times["step"].rounds,
    }
    session.report["steps"].append(row)
    if for_graph is not None:
        del optimizer, step
        watch.release()
        optimizer = for_graph()
        step = step_of(optimizer)
        step()
    replay = watch.captured(step)
    if replay is not None:
        replay()
        row["graph_ms"] = watch.medians({"graph": replay}, idle=False)["graph"].ms


def measure_named(session: Session, case: Case, name: str) -> None:
    """Add the row of one of :meth:`Case.names`, or of the plain reference."""
    named = case.named(session.watch.device)
    params = [param for _, param in named]
    baselines = torch_builders(params)
    if name in baselines:
        capturable = torch_builders(params, capturable=True)[name] if session.watch.on_gpu else None
        measure(session, case, name, baselines[name], capturable)
    elif name == EAGER_REFERENCE:
        measure(session, case, name, builders(named, "reference")[name.split(",")[0]])
    else:
        measure(session, case, name, builders(named)[name])


def measure_compiled(session: Session, case: Case, name: str, backend: str) -> None:
    """Add the row of the reference under torch.compile."""
    with compiled_reference(backend):
        build = builders(case.named(session.watch.device), "reference")[name]
        measure(session, case, f"{name}, reference, torch.compile", build)


def setting(device: torch.device) -> dict[str, Any]:
    """What the numbers are of."""
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": str(device)}
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": gpu.name,
            "compute_capability": f"{gpu.major}.{gpu.minor}",
            "multiprocessors": gpu.multi_processor_count,
            "l2_bytes": gpu.L2_cache_size,
            "memory_bytes": gpu.total_memory,
        }
    return found


def run_all(session: Session, *, dry_run: bool) -> None:
    """Everything, the most telling first."""
    small, large, middle = ("tiny", "tiny untied", None) if dry_run else ("53M", "7B", "1.3B")
    report = session.report
    # Torch's optimizers import this; what is there by now needs no looking at each time that memory is freed.
    import torch._dynamo

    gc.collect()
    gc.freeze()

    def steps(llama: str, dtype: str, *more: str) -> Case:
        case = Case(llama, dtype)
        for name in (*case.names(), *more):
            session.run(f"{case}: {name}", lambda name=name: measure_named(session, case, name))
        return case

    def launch() -> None:
        report["launch"] = launches(session.watch, session.copier)

    def wave(llama: str) -> None:
        shapes = [
            tuple(p.shape) for p in matrices_of(llama_parameters(LLAMAS[llama], torch.bfloat16, "meta"))
        ]
        report["waves"].append(waves(session.watch, llama, shapes, report["launch"]))

    def compiled(case: Case, name: str) -> None:
        session.run(
            f"{case}: {name} under torch.compile", lambda: measure_compiled(session, case, name, backend)
        )

    backend, references = ("eager", REFERENCES[:1]) if dry_run else ("inductor", REFERENCES)
    first = steps(small, "bf16", EAGER_REFERENCE)
    session.run("launches", launch)
    steps(large, "bf16")
    if report["launch"]:
        for llama in filter(None, (middle, large, small)):
            session.run(f"waves: {llama}", lambda llama=llama: wave(llama))
    if middle:
        steps(middle, "bf16")
    for name in references:
        compiled(first, name)
    for llama in filter(None, (small, middle, large)):
        steps(llama, "fp32")
    last = Case(large, "bf16")
    for name in () if dry_run else REFERENCES[:2]:
        compiled(last, name)


def timings(device: str = "cuda") -> list[dict[str, Any]]:
    """Rows for the small Llama in both dtypes: what benchmarks/kernels.py prints."""
    session = Session(Stopwatch(device), Copier(device, COPY_BUFFER))
    for dtype in DTYPES:
        case = Case("53M", dtype)
        for name in (*case.names(), EAGER_REFERENCE):
            measure_named(session, case, name)
    rows = session.report["steps"]
    for row in rows:
        baseline = next(r for r in rows if r["dtype"] == row["dtype"] and r["optimizer"] == BASELINE)
        row["ratio"] = row["graph_ms"] / baseline["graph_ms"]
        row["share_of_copy"] = row["copy_ms"] / row["graph_ms"]
    return rows


def main() -> int:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="to use at most (default: any)")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tensors of a few bytes")
    parser.add_argument("--resume", action="store_true", help="go on behind what is in the file")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        sys.exit("gpu_time.py: torch finds no GPU; --dry-run tries the same on a CPU")

    torch.manual_seed(0)
    device = torch.device("cpu" if arguments.dry_run else "cuda")
    if arguments.dry_run:
        torch.set_num_threads(1)
    head = {"setting": setting(device), "dry_run": arguments.dry_run, "budget_s": arguments.budget}

    def save(report: dict[str, Any]) -> None:
        if arguments.json:
            write_json(arguments.json, {**head, "seconds": time.monotonic() - begin, **report})

    session = Session(
        Stopwatch(device, seconds=0.0 if arguments.dry_run else 0.25),
        Copier(device, 2**16 if arguments.dry_run else COPY_BUFFER),
        begin + (float("inf") if arguments.budget is None else arguments.budget),
        save,
    )
    if arguments.resume and arguments.json and (before := read_json(arguments.json)):
        session.report.update({key: before[key] for key in session.report})
    try:
        run_all(session, dry_run=arguments.dry_run)
    except GpuLostError as error:
        if not arguments.json:
            raise
        print(f"{error}: a fault on the GPU; going on in a new process", flush=True)
        left = [] if arguments.budget is None else [f"--budget={session.deadline - time.monotonic()}"]
        os.execv(sys.executable, [sys.executable, __file__, f"--json={arguments.json}", *left, "--resume"])
    print(", ".join(f"{len(session.report[key])} {key}" for key in ("steps", "waves", "errors", "left_out")))
    return 1 if session.report["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
