"""What ``distributed_demo.py`` does: runs of ``train_llama.py`` in turn, then table and picture."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from . import checkpoint, optim, report
from .errors import UsageError
from .figures_distributed import draw
from .settings import Settings, millions

PROCESSES = 2
SIZES = {"hidden": 128, "layers": 2, "seq-len": 128, "batch-size": 8, "steps": 60, "eval-every": 20}
SCRIPT = Path(__file__).resolve().parents[1] / "train_llama.py"
MIB = 1 << 20


@dataclass(frozen=True)
class Run:
    """One way to train. ``parallel`` is None on one process."""

    name: str
    parallel: str | None
    optimizer: str


RUNS = (
    Run("one process", None, "sage-hybrid"),
    Run("DDP", "ddp", "sage-hybrid"),
    Run("FSDP2", "fsdp", "sage-hybrid"),
    Run("vote", "vote", "signsgd"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or that of the run that failed."""
    parser = argparse.ArgumentParser(
        prog="distributed_demo.py",
        description="Compares one process, DDP, FSDP2 and a vote of signs. All other arguments go to "
        "train_llama.py.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=Path("demo_distributed_out"), metavar="DIR")
    arguments, others = parser.parse_known_args(argv)
    results = []
    for number, run in enumerate(RUNS, start=1):
        print(f"[{number}/{len(RUNS)}] {run.name}: {run.optimizer}", flush=True)
        folder = arguments.out / "runs" / (run.parallel or "one")
        started = time.perf_counter()
        status = start(command(run, folder, others), environment(run))
        if status:
            print(f"distributed_demo.py: error: {run.name} ended with status {status}", file=sys.stderr)
            return status
        try:
            state = checkpoint.load(folder / checkpoint.NAME)
        except UsageError as error:
            print(f"distributed_demo.py: error: {error}", file=sys.stderr)
            return 2
        results.append(result(run, state, time.perf_counter() - started))
    against_one_process(results)
    settings = Settings.from_dict({**state["settings"], "text": []})
    for file in write(arguments.out, results, settings):
        print(f"  {file}")
    return 0


def start(words: Sequence[str], variables: dict[str, str]) -> int:
    return subprocess.run(words, env=variables, check=False).returncode


def command(run: Run, folder: Path, others: Sequence[str]) -> list[str]:
    """The command line of a run."""
    given = {word.split("=")[0] for word in others}
    words = [
        word
        for name, value in SIZES.items()
        if f"--{name}" not in given
        for word in (f"--{name}", f"{value}")
    ]
    words += ["--optimizer", run.optimizer, "--out", str(folder), "--overwrite", "--device", "cpu"]
    words += others  # where one is there twice, the later one holds
    if run.parallel is None:
        return [sys.executable, str(SCRIPT), *words, "--threads", str(PROCESSES)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    return [sys.executable, *launch, str(SCRIPT), *words, "--parallel", run.parallel, "--threads", "1"]


def environment(run: Run) -> dict[str, str]:
    """All processes are on this machine; torchrun need not say how many threads they have."""
    own = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform.startswith("linux") else {}
    threads = PROCESSES if run.parallel is None else 1
    return {**own, **os.environ, "OMP_NUM_THREADS": str(threads)}


def result(run: Run, state: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What a run's checkpoint says."""
    history = state["history"]
    sent = [counts for _, counts in history["sent_bytes"]]
    return {
        "name": run.name,
        "parallel": run.parallel or "none",
        "processes": len(state["state_bytes"]),
        "optimizer": run.optimizer,
        "optimizer_settings": optim.parse(run.optimizer).settings,
        "parameters": sum(value.numel() for value in state["model"].values()),
        "state_bytes": state["state_bytes"],
        # By each process, of a step like most: the first ones arrange how the others go.
        "sent_bytes_a_step": [median(counts) for counts in zip(*sent, strict=True)],
        "loss": history["loss"],
        "validation": history["validation"],
        "seconds": seconds,
    }


def against_one_process(results: list[dict[str, Any]]) -> None:
    """Note how far the losses of each run were from those of the first, where the optimizer is the same."""
    first = results[0]
    for each in results:
        far = [abs(a - b) for a, b in zip(each["loss"], first["loss"], strict=True)]
        each["largest_difference"] = max(far) if each["optimizer"] == first["optimizer"] else None


COLUMNS = (
    "run",
    "optimizer",
    "validation loss",
    "largest difference of a loss from one process",
    "state a process (MiB)",
    "sent a step and process (MB)",
    "bytes a parameter",
)


def cells(each: dict[str, Any]) -> tuple[str, ...]:
    far, sent = each["largest_difference"], each["sent_bytes_a_step"]
    most = max(sent, default=0)
    counted = bool(sent) or each["processes"] == 1
    return (
        f"{each['name']}, {each['processes']} processes" if each["processes"] > 1 else each["name"],
        each["optimizer"],
        f"{each['validation'][-1][1]:.4f}",
        "" if far is None or each["processes"] == 1 else f"{far:.1e}",
        " / ".join(f"{count / MIB:.2f}" for count in each["state_bytes"]),
        (" / ".join(f"{count / 1e6:.2f}" for count in sent) or "0") if counted else "not counted",
        f"{most / each['parameters']:.2f}" if counted else "not counted",
    )


def table(results: list[dict[str, Any]]) -> str:
    rows = [COLUMNS, *(cells(each) for each in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [f"| {' | '.join(text.ljust(w) for text, w in zip(row, widths, strict=True))} |" for row in rows]
    return "\n".join([lines[0], f"|{'|'.join('-' * (w + 2) for w in widths)}|", *lines[1:]])


def write(out: Path, results: list[dict[str, Any]], settings: Settings) -> list[Path]:
    """Writes everything into ``out``; returns the files. There are no paths in them."""
    shared = {
        key: value
        for key, value in settings.to_dict().items()
        if key not in ("optimizer", "parallel", "text", "threads")
    }
    facts = {"settings": shared, "machine": report.machine(), "results": results}
    (out / "results.json").write_text(json.dumps(facts, indent=1) + "\n")
    picture = draw(out / "distributed.png", results, settings)
    size, cpu = millions(results[0]["parameters"]), facts["machine"]["cpu"]
    (out / "results.md").write_text(
        f"# Llama, {size} parameters, {settings.steps} steps of {settings.tokens_per_step:,} tokens\n\n"
        f"{table(results)}\n\n![losses and bytes]({picture.name})\n\n"
        "The same weights at the start and the same batches in total; each of the processes has its part of "
        "every batch. Sent: the bytes that went out on a process's TCP connections in a step, as Linux "
        "counts them (median). The vote is of another optimizer, with a rate of its own: what it sends "
        f"can be compared here, how it trains cannot.\nMachine: {cpu}, torch {facts['machine']['torch']}.\n"
    )
    print(f"\n{table(results)}\n\nWritten:")
    return [out / "results.md", out / "results.json", picture]
