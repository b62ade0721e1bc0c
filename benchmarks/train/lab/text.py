"""The text: documentation that a Linux distribution ships (English), Python's library (code), or your own.

Tokens go to ``runs/train/text`` once. Kinds of text are mixed in training and kept apart in validation.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llama import corpus
from llama.errors import UsageError

from lab import ROOT

CACHE = ROOT / "runs" / "train" / "text"
FORMAT = 1  # part of the key: raise it when the way the tokens are made changes
VAL_FRACTION = 0.05
PODS = Path("/usr/share/perl")


@dataclass(frozen=True)
class Text:
    """Token ids, memory-mapped: all kinds together for training, one array a kind for validation."""

    folder: Path
    about: dict[str, Any]
    """What goes into the JSON of a run: key, digest of the tokens, kinds with their bytes and tokens."""
    train: np.ndarray
    validation: dict[str, np.ndarray]


def default_sources() -> dict[str, list[Path]]:
    """English: Perl's manual (9 MB of prose with examples). Code: the running Python's standard library."""
    pods = sorted(path for path in PODS.glob("**/*.pod") if not path.is_symlink())
    if sum(path.stat().st_size for path in pods) < 4 << 20:
        raise UsageError(
            f"there is no Perl manual below {PODS}: apt-get install perl-doc, or name text of your own with "
            "--text FOLDER"
        )
    return {"english": pods, "code": corpus.stdlib_files()}


def prepare(text: Sequence[str], *, vocab_size: int, cache: Path | None = None, say=print) -> Text:
    """The tokens of ``text`` (files and folders; none: the default), from the cache or made now."""
    cache = cache or CACHE
    sources = {"text": corpus.text_files(list(text))} if text else default_sources()
    parts: dict[str, list[corpus.Document]] = {"train": []}
    kinds = {}
    for kind, paths in sources.items():
        documents, _ = corpus.load_documents(paths, VAL_FRACTION)
        training, parts[f"validation-{kind}"] = corpus.split(documents, VAL_FRACTION)
        parts["train"] += training
        kinds[kind] = {
            "documents": len(documents),
            "bytes": sum(document.size for document in documents),
            "from": sorted(text) if text else _origin(kind),
        }
    # By digest: a fixed random order, so that the tokenizer, which reads the first 32 MB, sees all kinds.
    parts["train"].sort(key=lambda document: document.digest)

    content = hashlib.sha256(json.dumps([FORMAT, vocab_size, VAL_FRACTION, sorted(kinds)]).encode())
    for name, documents in sorted(parts.items()):
        content.update(name.encode())
        for document in documents:
            content.update(document.digest.encode())
    folder = cache / content.hexdigest()[:16]
    if not (folder / "meta.json").is_file():
        say(f"Reading text into {folder}, once ...")
        _build(folder, parts, kinds, vocab_size)
    return load(folder)


def load(folder: Path) -> Text:
    """The tokens in a folder that ``prepare`` made."""
    meta = json.loads((folder / "meta.json").read_text())
    tokens = {
        name: np.memmap(folder / f"{name}.bin", dtype=meta["dtype"], mode="r") for name in meta["tokens"]
    }
    return Text(
        folder=folder,
        about={key: meta[key] for key in ("key", "sha256", "vocab_size", "tokens", "kinds")},
        train=tokens.pop("train"),
        validation={name.removeprefix("validation-"): ids for name, ids in tokens.items()},
    )


def _origin(kind: str) -> str:
    import platform

    return {
        "english": "Perl's manual (Debian package perl-doc)",
        "code": f"Python {platform.python_version()}",
    }[kind]


def _build(
    folder: Path, parts: dict[str, list[corpus.Document]], kinds: dict[str, Any], vocab_size: int
) -> None:
    """Trains the tokenizer on training documents, writes all tokens; the folder appears when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
    try:
        tokenizer = corpus.train_tokenizer(parts["train"], vocab_size)
        tokenizer.save(str(scratch / "tokenizer.json"))
        actual = tokenizer.get_vocab_size()
        if actual != vocab_size:
            raise UsageError(
                f"--text: its vocabulary has {actual:,} tokens, the scale's {vocab_size:,}; give more text"
            )
        dtype = "uint16" if actual <= 1 << 16 else "uint32"
        counts = {}
        digest = hashlib.sha256()
        for name, documents in sorted(parts.items()):
            path = scratch / f"{name}.bin"
            counts[name] = corpus.write_tokens(path, tokenizer, documents, dtype)
            digest.update(np.memmap(path, dtype="uint8", mode="r"))
        meta = {
            "key": folder.name,
            "sha256": digest.hexdigest(),
            "vocab_size": actual,
            "dtype": dtype,
            "tokens": counts,
            "kinds": kinds,
        }
        (scratch / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        try:
            os.replace(scratch, folder)
        except OSError:
            if not (folder / "meta.json").is_file():  # else another process finished the same work first
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
