"""A run in a process of its own, forked from one that has imported torch already."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lab import ROOT

PRELOAD = "lab.preload"


def start(head: dict[str, Any], tokens: Path, path: Path) -> BaseProcess:
    """Starts the run that ``head["config"]`` says, on the tokens in a folder; its JSON goes to ``path``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOAD])
    # The server that imports torch once knows nothing of this process's sys.path but this.
    here = [str(ROOT / "benchmarks" / "train"), str(ROOT / "examples")]
    os.environ["PYTHONPATH"] = os.pathsep.join([*here, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = context.Process(target=work, args=(head, tokens, path), daemon=True)
    process.start()
    return process


def work(head: dict[str, Any], tokens: Path, path: Path) -> None:
    """Runs and writes ``path``: what ``head`` has, versions, result and curve."""
    sys.stdout = sys.stderr  # some packages greet on standard output
    from lab import budget, single, store, text

    execute = budget.execute if "measure" in head["config"] else single.execute
    outcome = execute(head["config"], text.load(tokens))
    store.write(path, {**head, "versions": store.versions(), **outcome})
