"""The results: one small JSON a run, written whole or not at all."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from llama.errors import UsageError
from machine import processor

from lab import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "train"
FORMAT = 1
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "sage_ext",
    "prodigyopt",
    "apollo-torch",
    "galore-torch",
    "dadaptation",
    "dog-optimizer",
    "lion-pytorch",
    "schedulefree",
    "bitsandbytes",
)


BEFORE: dict[str, Any] = {"compile": None, "attention": "sdpa"}
"""What holds for a run whose configuration has no such entry: it is from before there was the choice."""


class Store:
    """The results in a folder, read once and kept up to date by ``load``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob("*.json")):
            self.load(path)

    def __contains__(self, run: str) -> bool:
        return run in self.results

    def __getitem__(self, run: str) -> dict[str, Any]:
        return self.results[run]

    def loss(self, run: str) -> float:
        """Validation loss at the end, nats a token; infinite where the run diverged."""
        loss = self.results[run]["result"]["loss"]
        return float("inf") if loss is None else loss

    def check_text(self, about: dict[str, Any]) -> None:
        """Raises ``UsageError`` where the folder holds results on other text: they cannot be compared."""
        for run, result in self.results.items():
            if result["text"]["sha256"] != about["sha256"]:
                theirs, here = result["text"]["sha256"][:12], about["sha256"][:12]
                raise UsageError(
                    f"{self.folder} holds results on other text ({run} has {theirs}, this is {here}); give "
                    "another folder with --results"
                )

    def load(self, path: Path) -> dict[str, Any]:
        """Reads a result and keeps it, with what was no choice yet when it was made."""
        result = read(path)
        for key, value in BEFORE.items():
            result["config"].setdefault(key, value)
        self.results[result["id"]] = result
        return result


def read(path: Path) -> dict[str, Any]:
    """Reads one result; raises ``UsageError`` for a file that is not one."""
    try:
        result = json.loads(path.read_text())
        if result["format"] != FORMAT:
            raise ValueError(f"its format is {result['format']!r}, expected {FORMAT}")
        result["id"], result["config"], result["text"]["sha256"], result["result"]["loss"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not a result ({error!r}); delete it, and its run is done again"
        ) from error
    return result


def write(path: Path, value: dict[str, Any]) -> Path:
    """Writes JSON in one step: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(_lines(value))
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


def _lines(value: dict[str, Any]) -> str:
    """JSON with one line for each value of the first two levels: short, and readable as a difference."""
    rows = []
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            pairs = [f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in inner.items()]
            rows.append(f" {json.dumps(key)}: {{\n" + ",\n".join(pairs) + "\n }")
        else:
            rows.append(f" {json.dumps(key)}: {json.dumps(inner, allow_nan=False)}")
    return "{\n" + ",\n".join(rows) + "\n}\n"


def versions() -> dict[str, str]:
    """Of everything that the numbers of a run may depend on, as far as it is installed."""
    import torch

    found = {
        "python": platform.python_version(),
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if commit.returncode == 0:
        found["commit"] = commit.stdout.strip()
    return found
