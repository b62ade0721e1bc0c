"""The command line of ``run.py``, and the loop that starts runs and keeps their results."""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import signal
import sys
import threading
import time
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from llama.errors import UsageError

from lab import ROOT, packages, store, studies, tables, text, worker
from lab.plan import Run
from lab.scales import SCALES, Scale


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _main(options)
    except UsageError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # "--list | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _main(options: argparse.Namespace) -> int:
    scale = _scale(options)
    folder = options.results or store.RESULTS / ("" if scale.name == "cpu" else scale.name)
    kept = store.Store(folder)
    if options.rerun:
        if given := [name for name in ("device", "amp", "threads") if getattr(options, name) is not None]:
            raise UsageError(f"--{given[0]}: --rerun takes the configuration in the JSON; leave this out")
        return _rerun(kept, options)
    runs = studies.plan(options.study, scale, only=options.only)
    if options.list:
        print(tables.plan(runs, kept))
        return 0
    if options.status:
        print(tables.status(options.study, runs, kept))
        return 0
    for name, package in packages.left_out().items():
        print(f"Without {name}: it needs {package}", flush=True)
    tokens = text.prepare(options.text, vocab_size=scale.vocab_size, cache=options.cache)
    kept.check_text(tokens.about)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UsageError(
            f"another run.py is at work on {folder}; use --jobs for several runs at once"
        ) from None
    try:
        return Runner(options.study, runs, kept, tokens, options).run()
    finally:
        os.close(handle)


class Runner:
    """Starts runs that are missing and ready, in the plan's order, ``jobs`` at a time."""

    def __init__(
        self, study: str, runs: list[Run], kept: store.Store, tokens: text.Text, options: argparse.Namespace
    ) -> None:
        self.study, self.runs, self.kept, self.tokens = study, runs, kept, tokens
        self.jobs, self.limit = options.jobs, options.limit
        self.command = _command(options)
        self.failed: dict[str, str] = {}
        self.active: dict[str, tuple[BaseProcess, Path, float]] = {}

    def run(self) -> int:
        """Runs what is missing; returns 1 where a run failed. Ctrl-C and SIGTERM end the runs under way."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        started = 0
        try:
            while True:
                while len(self.active) < self.jobs and (self.limit is None or started < self.limit):
                    if (run := self._next()) is None:
                        break
                    self._start(run)
                    started += 1
                if not self.active:
                    break
                wait([process.sentinel for process, _, _ in self.active.values()])
                self._collect()
        finally:
            for process, _, _ in self.active.values():
                process.terminate()
        left = [run for run in self.runs if run.id not in self.kept]
        print(f"{len(self.runs) - len(left)} of {len(self.runs)} runs of study {self.study} are done.")
        waiting = {
            need for run in left for need in run.needs if need not in self.kept and not self._mine(need)
        }
        if waiting:
            print(f"Waiting for other studies: {', '.join(sorted(waiting)[:4])} ...")
        for name, why in self.failed.items():
            print(f"failed: {name} ({why})", file=sys.stderr)
        return 1 if self.failed else 0

    def _mine(self, name: str) -> bool:
        return any(run.id == name for run in self.runs)

    def _next(self) -> Run | None:
        for run in self.runs:
            if run.id in self.kept or run.id in self.active or run.id in self.failed:
                continue
            if run.is_ready(self.kept):
                return run
        return None

    def _start(self, run: Run) -> None:
        path = self.kept.folder / f"{run.id}.json"
        head = {
            "format": store.FORMAT,
            "id": run.id,
            "study": run.study,
            "contender": run.contender,
            "stage": run.stage,
            "variant": run.variant,
            "command": f"{self.command} --rerun {run.id}",
            "text": self.tokens.about,
            "config": run.config(self.kept),
        }
        process = worker.start(head, self.tokens.folder, path)
        self.active[run.id] = (process, path, time.monotonic())

    def _collect(self) -> None:
        for name, (process, path, began) in list(self.active.items()):
            if process.is_alive():
                continue
            process.join()
            del self.active[name]
            if process.exitcode != 0 or not path.is_file():
                self.failed[name] = f"exit code {process.exitcode}"
                print(f"{name}: failed, exit code {process.exitcode}", flush=True)
                continue
            result = self.kept.load(path)
            done = sum(run.id in self.kept for run in self.runs)
            print(
                f"[{done}/{len(self.runs)}] {name}: perplexity {tables.perplexity(result)}, "
                f"{time.monotonic() - began:.0f} s ({result['result']['cpu_seconds']:.0f} s of processor)",
                flush=True,
            )


def _rerun(kept: store.Store, options: argparse.Namespace) -> int:
    """Trains once more with the configuration in a JSON and prints both results. Keeps nothing."""
    if options.rerun not in kept:
        raise UsageError(f"--rerun {options.rerun}: no such result in {kept.folder}; see --status")
    old = kept[options.rerun]
    tokens = text.prepare(options.text, vocab_size=old["config"]["model"]["vocab_size"], cache=options.cache)
    if tokens.about["sha256"] != old["text"]["sha256"]:
        print("The text is not the one of the result kept: expect another perplexity.", flush=True)
    path = ROOT / "runs" / "train" / f"rerun-{os.getpid()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    process = worker.start({**old, "text": tokens.about}, tokens.folder, path)
    try:
        process.join()
        if process.exitcode:
            raise UsageError(f"--rerun {options.rerun}: the run failed with exit code {process.exitcode}")
        new = store.read(path)
    finally:
        process.terminate()
        path.unlink(missing_ok=True)
    print(f"{options.rerun}: perplexity {tables.perplexity(old)} kept, {tables.perplexity(new)} now")
    return 0


def _scale(options: argparse.Namespace) -> Scale:
    scale = SCALES[options.scale]
    changes: dict[str, Any] = {
        name: value for name in ("device", "amp", "threads") if (value := getattr(options, name)) is not None
    }
    return replace(scale, **changes)


def _command(options: argparse.Namespace) -> str:
    words = ["python benchmarks/train/run.py"]
    if options.scale != "cpu":
        words.append(f"--scale {options.scale}")
    if options.text:
        words.append(f"--text {shlex.join(options.text)}")
    return " ".join(words)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected 1 or more")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py", description="Train small Llamas with every optimizer at the same budget of tokens."
    )
    parser.add_argument("--study", choices=studies.STUDIES, default="main")
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="size of models, budgets and batches")
    parser.add_argument("--only", metavar="NAME", nargs="+", default=[], help="these contenders alone")
    parser.add_argument("--jobs", type=_positive, default=1, help="runs at once, one thread each")
    parser.add_argument("--limit", type=_positive, help="stop after so many runs")
    parser.add_argument("--text", metavar="PATH", nargs="+", default=[], help="text in place of the default")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="default: benchmarks/results/train")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="of tokens; default: runs/train/text")
    parser.add_argument("--device", help="in place of the scale's")
    parser.add_argument("--amp", choices=("bf16", "none"), help="in place of the scale's")
    parser.add_argument("--threads", type=_positive, help="of a run, in place of the scale's")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print the plan")
    what.add_argument("--status", action="store_true", help="print what is done and the best so far")
    what.add_argument("--rerun", metavar="ID", help="one finished run again; keeps nothing")
    return parser
