"""From text on disk to memory-mapped token files: documents, split, tokenizer, cache.

The order of the documents, the split and the cache key depend only on what the documents say, never on their
names, their place or the time: the same text gives the same tokens on every machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import UsageError

FORMAT = 2  # part of the cache key: raise it when the files or the way they are made change
END_OF_TEXT = "<|endoftext|>"
TOKENIZER_BYTES = (
    32 << 20
)  # the tokenizer learns from at most this much text: more does not change 8,192 merges
ENCODE_BYTES = 4 << 20  # encoded and written together
FEW_DOCUMENTS = 20  # fewer than this: they are cut, else a split by document could not reach the wanted share
# Left out: test suites, which the Python of Linux distributions lacks, so that the corpus is much the same
# everywhere; and generated character tables, which are neither prose nor code.
STDLIB_TESTS = frozenset({"test", "tests", "idle_test"})
STDLIB_SKIP = frozenset({"site-packages", "dist-packages", "__pycache__", "encodings", "lib-dynload"})


@dataclass(frozen=True)
class Document:
    """A text file, or the part ``[start, stop)`` (in bytes) of one."""

    path: Path
    start: int
    stop: int
    digest: str  # SHA-256 of the bytes

    @property
    def size(self) -> int:
        return self.stop - self.start

    def read(self) -> str:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size).decode("utf-8")


@dataclass(frozen=True)
class Corpus:
    """A tokenized corpus in the cache; ``train`` and ``validation`` are memory-mapped 1-D token ids."""

    source: str  # what it was made from, for people
    folder: Path
    key: str  # of the text and how it is cut up
    tokens_digest: str  # SHA-256 of both token files
    vocab_size: int
    documents: dict[str, int]
    bytes: dict[str, int]
    train: np.ndarray
    validation: np.ndarray


def stdlib_files(with_tests: bool = False) -> list[Path]:
    """The ``.py`` files of the running Python's standard library, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    skip = STDLIB_SKIP if with_tests else STDLIB_SKIP | STDLIB_TESTS
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in skip)
        found += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    if not found:
        raise UsageError(
            f"no source files in {root}: this Python has no readable standard library; give --text"
        )
    return found


def text_files(arguments: list[str]) -> list[Path]:
    """The files named by ``--text``; of folders, every file below that is not hidden, sorted."""
    found = []
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_file():
            found.append(path)
        elif path.is_dir():
            before = len(found)
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                found += [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
            if len(found) == before:
                raise UsageError(
                    f"--text {argument}: the folder holds no files; name one that holds text files"
                )
        else:
            raise UsageError(f"--text {argument}: there is no such file or folder")
    return found


def load_documents(
    paths: list[Path], val_fraction: float, named: frozenset[Path] = frozenset()
) -> tuple[list[Document], int]:
    """Hashes the files; drops empty ones, duplicates, what is not UTF-8 (an error if in ``named``).

    Returns the documents sorted by digest, which is a fixed random order, and how many files were not text.
    """
    documents: dict[str, Document] = {}
    not_text = 0
    contents = []
    for path in paths:
        try:
            data = path.read_bytes()
            data.decode("utf-8")
            is_text = b"\0" not in data
        except UnicodeDecodeError:
            is_text = False
        except OSError as error:
            raise UsageError(f"--text: cannot read {path}: {error.strerror}") from error
        if is_text and data.strip():
            contents.append((path, len(data)))
            digest = hashlib.sha256(data).hexdigest()
            documents.setdefault(digest, Document(path, 0, len(data), digest))
        elif not is_text:
            if path in named:
                raise UsageError(f"--text {path}: this is not UTF-8 text; convert it first (iconv -t utf-8)")
            not_text += 1
    if not documents:
        raise UsageError("--text: the files hold no text; name files that do, or leave --text out")
    if len(documents) < FEW_DOCUMENTS:
        total = sum(document.size for document in documents.values())
        limit = max(int(total * val_fraction / 2), 1)
        pieces = [piece for document in documents.values() for piece in cut(document, limit)]
        documents = {piece.digest: piece for piece in pieces}
    return sorted(documents.values(), key=lambda document: document.digest), not_text


def cut(document: Document, limit: int) -> Iterator[Document]:
    """Cuts a document at line ends into pieces of about ``limit`` bytes (longer where a line is)."""
    data = document.path.read_bytes()
    start = 0
    while start < len(data):
        stop = data.find(b"\n", start + limit) + 1 or len(data)
        yield Document(document.path, start, stop, hashlib.sha256(data[start:stop]).hexdigest())
        start = stop


def split(documents: list[Document], val_fraction: float) -> tuple[list[Document], list[Document]]:
    """Training and validation documents: each is wholly in one of them. Needs them sorted by digest."""
    target = val_fraction * sum(document.size for document in documents)
    train, validation, taken = [], [], 0
    for document in documents:
        # One that is larger than the whole share stays in training: it would be the validation set by itself.
        if taken < target and document.size <= target:
            validation.append(document)
            taken += document.size
        else:
            train.append(document)
    if not validation or not train:
        raise UsageError(
            "--text: too little text to hold some back for validation; give more, or a larger --val-fraction"
        )
    return train, validation


def default_cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sage_ext" / "train_llama"


def prepare(
    text: list[str] | None,
    *,
    vocab_size: int,
    val_fraction: float = 0.05,
    with_tests: bool = False,
    cache_dir: Path | None = None,
    say=print,
) -> Corpus:
    """The tokenized corpus: from the cache, or made now (the tokenizer sees only training documents)."""
    if text:
        paths = text_files(text)
        named = frozenset(path for path in paths if str(path) in {str(Path(a).expanduser()) for a in text})
        source = ", ".join(text)
    else:
        paths, named = stdlib_files(with_tests), frozenset()
        source = f"the Python {sysconfig.get_python_version()} standard library"
    documents, not_text = load_documents(paths, val_fraction, named)
    if not_text:
        say(f"Left out {not_text} file{'s' if not_text > 1 else ''} that are not UTF-8 text.")
    train, validation = split(documents, val_fraction)
    parts = {"train": train, "validation": validation}

    content = hashlib.sha256(json.dumps([FORMAT, vocab_size, val_fraction]).encode())
    for document in documents:
        content.update(document.digest.encode())
    key = content.hexdigest()[:16]
    root = cache_dir or default_cache_dir()
    folder = root / key
    if not (folder / "meta.json").is_file():
        build(folder, parts, vocab_size, say)
    meta = json.loads((folder / "meta.json").read_text())
    tokens = {name: np.memmap(folder / f"{name}.bin", dtype=meta["dtype"], mode="r") for name in parts}
    return Corpus(
        source=source,
        folder=folder,
        key=key,
        tokens_digest=meta["sha256"],
        vocab_size=meta["vocab_size"],
        documents={name: len(part) for name, part in parts.items()},
        bytes={name: sum(document.size for document in part) for name, part in parts.items()},
        **tokens,
    )


def build(folder: Path, parts: dict[str, list[Document]], vocab_size: int, say) -> None:
    """Trains the tokenizer, writes both token files, and moves the finished folder into place in one step."""
    started = time.perf_counter()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
    except OSError as error:
        raise UsageError(
            f"--cache-dir {folder.parent}: cannot write there ({error.strerror}); name another"
        ) from error
    try:
        megabytes = sum(document.size for document in parts["train"]) / 1e6
        say(f"Training a byte-level BPE of {vocab_size:,} tokens on {megabytes:.1f} MB, once ...")
        tokenizer = train_tokenizer(parts["train"], vocab_size)
        tokenizer.save(str(scratch / "tokenizer.json"))
        actual = tokenizer.get_vocab_size()
        dtype = "uint16" if actual <= 1 << 16 else "uint32"
        counts = {
            name: write_tokens(scratch / f"{name}.bin", tokenizer, part, dtype)
            for name, part in parts.items()
        }
        digest = hashlib.sha256()
        for name in parts:
            with (scratch / f"{name}.bin").open("rb") as file:
                while chunk := file.read(ENCODE_BYTES):
                    digest.update(chunk)
        meta = {"vocab_size": actual, "dtype": dtype, "tokens": counts, "sha256": digest.hexdigest()}
        (scratch / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        try:
            os.replace(scratch, folder)
        except OSError:
            if not (folder / "meta.json").is_file():  # else another process finished the same work first
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = time.perf_counter() - started
    say(f"Tokenized into {counts['train']:,} + {counts['validation']:,} tokens in {seconds:.0f} s.")


def train_tokenizer(documents: list[Document], vocab_size: int):
    """A byte-level BPE (any bytes can be encoded) with one special token, ``<|endoftext|>``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def texts() -> Iterator[str]:
        budget = TOKENIZER_BYTES
        for document in documents:
            if budget <= 0:
                return
            budget -= document.size
            yield document.read()

    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" inside a document is text, not the end of it
    return tokenizer


def write_tokens(path: Path, tokenizer, documents: list[Document], dtype: str) -> int:
    """Encodes the documents, each followed by the end-of-text token; returns how many tokens were written."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    count, batch, pending = 0, [], 0

    def flush(file) -> int:
        written = 0
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            ids = np.array([*encoding.ids, end], dtype=dtype)
            ids.tofile(file)
            written += ids.size
        batch.clear()
        return written

    with path.open("wb") as file:
        for document in documents:
            batch.append(document.read())
            pending += document.size
            if pending >= ENCODE_BYTES:
                count += flush(file)
                pending = 0
        count += flush(file)
    return count
