"""Checkpoints: one file, replaced in one step, so that a crash while saving leaves the previous one whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from .errors import UsageError

FORMAT = 2
NAME = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Writes ``folder/checkpoint.pt``."""
    folder.mkdir(parents=True, exist_ok=True)
    path, scratch = folder / NAME, folder / f"{NAME}.{os.getpid()}.tmp"
    try:
        with scratch.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


def find(argument: str | Path) -> Path:
    """The checkpoint that ``--resume`` names: a file, or the folder of a run."""
    path = Path(argument)
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise UsageError(
            f"--resume: there is no checkpoint at {path}; name the folder of a run, or leave --resume out"
        )
    return path


def load(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for a broken file
        raise UsageError(
            f"--resume: {path} is not a readable checkpoint ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UsageError(
            f"--resume: {path} was not written by this version of train_llama.py; start the run anew"
        )
    return state
