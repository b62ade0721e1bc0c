"""What the tests of the example share: a tiny text, a tiny model, and a call of its script.

A plugin (``pytest_plugins``) of the files whose name begins with ``test_example``. They import from it too,
so that the example is on the path, and there are no asserts here (PYTEST_DONT_REWRITE).
"""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from llama.app import main  # noqa: E402
from llama.settings import flag  # noqa: E402

SIZES = {
    "hidden": 32,
    "layers": 1,
    "heads": 2,
    "vocab_size": 320,
    "seq_len": 16,
    "batch_size": 4,
    "warmup": 2,
    "val_windows": 16,
}
TINY = [word for name, value in SIZES.items() for word in (flag(name), str(value))]


@pytest.fixture
def here_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    """A folder of the test's own, and no network."""

    def refuse(*_args: object) -> None:
        raise AssertionError("the example used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents of 40 sentences from a small grammar: learnable, and no two alike."""
    folder = tmp_path_factory.mktemp("text")
    write_documents(folder, 60)
    return folder


def write_documents(folder: Path, count: int, sentences: int = 40) -> None:
    draw = random.Random(1)
    words = ["the red fox", "a quiet river", "one old tailor", "their grey cat", "every winter"]
    verbs = ["sees", "carries", "forgets", "remembers", "follows"]
    for number in range(count):
        lines = [
            f"{draw.choice(words)} {draw.choice(verbs)} {draw.choice(words)}, number {draw.randrange(100)}.\n"
            for _ in range(sentences)
        ]
        (folder / f"{number}.txt").write_text("".join(lines))


@pytest.fixture
def run(text: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Calls the script's ``main``; returns exit status, stdout and stderr."""

    def call(*words: str, tiny: bool = True) -> tuple[int, str, str]:
        arguments = [*words, *TINY, "--text", str(text)] if tiny else list(words)
        capsys.readouterr()
        try:
            status = main(arguments)
        except SystemExit as end:  # argparse
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return call


def same(left: object, right: object) -> bool:
    """Equal to the last bit, through any nesting."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def exact(state: dict) -> dict:
    """A checkpoint without the times in it."""
    history = {key: state["history"][key] for key in ("loss", "validation", "step_size")}
    return {**state, "history": history}
