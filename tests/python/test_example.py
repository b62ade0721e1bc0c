"""The example end to end, on a tiny model and text: what a user of ``examples/train_llama.py`` relies on.

Its optimizers and comparisons are in ``test_example_optimizers.py``.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from example_support import EXAMPLES, TINY, exact, same, write_documents
from llama import checkpoint, corpus, data
from llama.loop import lr_factor
from tokenizers import Tokenizer

import sage_ext

pytest_plugins = ["example_support"]
pytestmark = pytest.mark.usefixtures("here_and_offline")


# --- corpus and batches ---


def test_tokens_are_the_documents_and_none_is_in_both_parts(text: Path) -> None:
    made = corpus.prepare([str(text)], vocab_size=320)
    tokenizer = Tokenizer.from_file(str(made.folder / "tokenizer.json"))
    end = tokenizer.token_to_id(corpus.END_OF_TEXT)

    def documents(tokens: np.ndarray) -> list[str]:
        assert tokens[-1] == end
        parts = np.split(np.asarray(tokens[:-1]), np.flatnonzero(tokens[:-1] == end))
        return [tokenizer.decode(part.tolist(), skip_special_tokens=True) for part in parts]

    train, validation = documents(made.train), documents(made.validation)
    assert sorted(train + validation) == sorted(path.read_text() for path in text.iterdir())
    assert len(validation) == made.documents["validation"] >= 2
    assert not set(train) & set(validation)
    assert made.train.dtype == np.uint16
    assert isinstance(made.train, np.memmap)


def test_cache_is_keyed_by_what_the_text_says(tmp_path: Path) -> None:
    said: list[str] = []

    def prepare(vocab_size: int = 320) -> corpus.Corpus:
        said.clear()
        return corpus.prepare([str(tmp_path / "text")], vocab_size=vocab_size, say=said.append)

    (tmp_path / "text").mkdir()
    write_documents(tmp_path / "text", 30)
    first = prepare()
    assert said
    (tmp_path / "text" / "3.txt").rename(tmp_path / "text" / "renamed.txt")
    (tmp_path / "text" / "copy.txt").write_text((tmp_path / "text" / "5.txt").read_text())
    again = prepare()
    assert not said
    assert again.folder == first.folder
    assert prepare(vocab_size=300).folder != first.folder
    (tmp_path / "text" / "5.txt").write_text("something else\n" * 20)
    assert prepare().key != first.key
    assert not list(first.folder.parent.glob("building-*"))


def test_special_token_inside_a_document_is_text(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(f"{number} <|endoftext|> in the middle\n" * 20)
    made = corpus.prepare([str(tmp_path)], vocab_size=300, cache_dir=tmp_path / "c")
    ends = int((made.train == 0).sum() + (made.validation == 0).sum())
    assert ends == 30


def test_one_large_file_is_cut_for_the_split(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {i} of a book that is a single file\n" for i in range(3000)))
    made = corpus.prepare([str(path)], vocab_size=300, cache_dir=tmp_path / "c")
    share = made.bytes["validation"] / (made.bytes["train"] + made.bytes["validation"])
    assert 0.03 < share < 0.1


def test_standard_library_is_the_default_text() -> None:
    files = corpus.stdlib_files()
    assert sum(path.stat().st_size for path in files) > 5e6
    assert not any({"site-packages", "test", "tests"} & set(path.parts) for path in files)
    assert files == corpus.stdlib_files()


def test_batches_see_each_window_once_an_epoch_and_continue_from_a_position() -> None:
    tokens = np.arange(16 * 10 + 1, dtype=np.uint16)
    batches = data.Batches(tokens, batch_size=4, seq_len=16, seed=3)
    seen = torch.cat([batches.next() for _ in range(5)])  # two epochs
    for epoch in (seen[:10], seen[10:]):
        assert sorted(epoch[:, 0].tolist()) == list(range(0, 160, 16))
    assert torch.equal(seen[:, 1:], seen[:, :-1] + 1)
    later = data.Batches(tokens, batch_size=4, seq_len=16, seed=3)
    later.position = 12
    assert torch.equal(later.next(), seen[12:16])
    other = data.Batches(tokens, batch_size=4, seq_len=16, seed=4)
    assert not torch.equal(other.next(), seen[:4])


def test_schedule() -> None:
    factors = [lr_factor(step, steps=100, warmup=10, final=0.1) for step in range(101)]
    assert factors[0] == 0.1
    assert factors[9] == factors[10] == 1
    assert factors[55] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[10:]))


# --- one run ---


def test_trains_and_loss_falls(run: Callable, tmp_path: Path) -> None:
    rates = "sage-hybrid:embedding_lr=0.02:lr=0.1:head_lr=0.005"  # a model this small wants larger steps
    status, out, _ = run("--steps", "60", "--eval-every", "30", "--optimizer", rates)
    assert status == 0
    assert "Validation perplexity" in out
    (path,) = (tmp_path / "runs").rglob("checkpoint.pt")
    state = checkpoint.load(path)
    losses = state["history"]["loss"]
    assert len(losses) == 60
    assert losses[0] == pytest.approx(math.log(320), rel=0.05)
    assert np.mean(losses[-5:]) < losses[0] - 3
    (first, early), (last, late) = state["history"]["validation"]
    assert (first, last) == (30, 60)
    assert late < early


@pytest.mark.parametrize(
    "optimizer",
    ["sage-hybrid", "sinkgd-hybrid", "adamw", "alias", "alias-base", "alias-lower-bound:warmup_steps=3"],
)
@pytest.mark.parametrize("extra", [(), ("--amp", "bf16", "--accumulate", "2", "--tied")])
def test_resumed_run_equals_straight_one_to_the_bit(
    run: Callable, optimizer: str, extra: tuple[str, ...]
) -> None:
    words = ["--optimizer", optimizer, "--steps", "20", "--eval-every", "5", *extra]
    assert run(*words, "--out", "straight")[0] == 0
    status, out, _ = run(*words, "--out", "parts", "--stop-at", "10")
    assert status == 0
    assert "--resume parts" in out
    assert run("--resume", "parts", tiny=False)[0] == 0
    straight, parts = (checkpoint.load(Path(name, "checkpoint.pt")) for name in ("straight", "parts"))
    assert straight["step"] == 20
    assert same(exact(straight), exact(parts))
    for points in parts["history"]["step_size"].values():
        assert [step for step, _ in points] == list(range(1, 21))
    unfinished_differs = {**exact(parts), "step": 19}
    assert not same(exact(straight), unfinished_differs)


def test_ctrl_c_saves_and_tells_how_to_go_on(text: Path, run: Callable, tmp_path: Path) -> None:
    words = ["--steps", "400", "--eval-every", "5", "--optimizer", "sage-hybrid", "--out", "stopped"]
    package = str(Path(sage_ext.__file__).parents[1])  # as installed, or the source folder
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package}
    process = subprocess.Popen(
        [
            sys.executable,
            str(EXAMPLES / "train_llama.py"),
            *words,
            *TINY,
            "--text",
            str(text),
            "--threads",
            "1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "step   5/400" in line:
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "--resume stopped" in out
    state = checkpoint.load(tmp_path / "stopped" / "checkpoint.pt")
    assert 5 <= state["step"] < 400
    # What was saved is a run that goes on as if nothing had happened.
    resumed = run("--resume", "stopped", "--stop-at", str(state["step"] + 5), tiny=False)
    assert resumed[0] == 0
    stop = str(state["step"] + 5)
    assert run(*words[:-1], "straight", "--threads", "1", "--stop-at", stop)[0] == 0
    straight, stopped = (checkpoint.load(Path(name, "checkpoint.pt")) for name in ("straight", "stopped"))
    assert same(exact(straight), exact(stopped))


def test_crash_while_saving_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, {"step": 1})

    def crash(_state: object, file) -> None:
        file.write(b"half a checkp")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(tmp_path, {"step": 2})
    assert checkpoint.load(tmp_path / checkpoint.NAME)["step"] == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [checkpoint.NAME]


def test_divergence_is_told_and_not_saved(run: Callable) -> None:
    status, _, err = run("--optimizer", "sgd:lr=1e30", "--clip", "0", "--steps", "20", "--out", "diverged")
    assert status == 1
    assert "smaller lr" in err
    assert not Path("diverged/checkpoint.pt").exists()


# --- wrong arguments ---


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--steps none", "--steps: must be a whole number of at least 1, not 'none'"),
        ("--val-fraction 2", "--val-fraction: must be a number between 0 and 0.5, not '2'"),
        ("--optimizer adamv", "no optimizer called 'adamv'; choose from sage-hybrid"),
        ("--optimizer adamw:alpha=1", "'alpha=1' is not one of its settings, which are embedding_lr ("),
        ("--optimizer adamw:lr=fast", "lr must be a number, not 'fast'"),
        ("--optimizer adamw:betas=0.9", "betas must be two numbers, as 0.9/0.95, not '0.9'"),
        ("--optimizer adamw:betas=0.9/1.5", "--optimizer adamw:betas=0.9/1.5: Invalid beta parameter"),
        ("--optimizer sage-hybrid:lr=-1", "--optimizer sage-hybrid:lr=-1: lr"),
        ("--compare adamw,sgd --lr 1", "--lr: there is more than one optimizer"),
        ("--compare adamw", "--compare: needs two or more names"),
        ("--compare adamw,adamw", "adamw is there twice"),
        ("demo --optimizer sgd", "name them all in --compare"),
        ("--hidden 30 --heads 4", "--hidden 30 --heads 4: a head's width"),
        ("--device nowhere", "--device nowhere: this torch cannot use it"),
        ("--resume", "--resume: there is no checkpoint at runs/sage-hybrid"),
    ],
)
def test_wrong_argument_is_named_with_the_cure(run: Callable, words: str, told: str) -> None:
    status, _, err = run(*words.split(), "--vocab-size", "300", "--text", str(EXAMPLES), tiny=False)
    assert status == 2
    assert told in err
    assert "Traceback" not in err
    assert err.count("\n") == 1


def test_text_that_cannot_be_used_is_told(run: Callable, tmp_path: Path) -> None:
    def told(path: Path, *more: str) -> str:
        status, _, err = run("--text", str(path), "--vocab-size", "300", *more, tiny=False)
        assert status == 2
        assert err.startswith("train_llama.py: error: --text")
        return err

    assert "no such file or folder" in told(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    assert "holds no files" in told(tmp_path / "folder")
    (tmp_path / "folder" / "blank.txt").write_text(" \n")
    assert "hold no text" in told(tmp_path / "folder")
    (tmp_path / "folder" / "short.txt").write_text("hello\n")
    assert "too little text" in told(tmp_path / "folder")
    (tmp_path / "folder" / "short.txt").write_text("".join(f"hello {i}\n" for i in range(500)))
    assert "too few for one window of 256" in told(tmp_path / "folder")
    assert "too few for one batch of 999 windows of 8" in told(
        tmp_path / "folder", "--seq-len", "8", "--batch-size", "999"
    )
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    assert "not UTF-8 text" in told(tmp_path / "picture.png")


def test_folder_with_files_that_are_not_text_leaves_them_out(tmp_path: Path) -> None:
    write_documents(tmp_path, 30)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    said: list[str] = []
    made = corpus.prepare([str(tmp_path)], vocab_size=300, cache_dir=tmp_path / "c", say=said.append)
    assert sum(made.documents.values()) == 30
    assert said[0] == "Left out 1 file that are not UTF-8 text."


def test_a_run_is_not_overwritten_or_resumed_with_other_settings(run: Callable, tmp_path: Path) -> None:
    words = ("--optimizer", "adamw", "--steps", "4", "--out", "kept")
    assert run(*words, "--stop-at", "2")[0] == 0
    status, _, err = run(*words)
    assert status == 2
    assert "--overwrite" in err
    status, _, err = run("--resume", "kept", "--seq-len", "8", tiny=False)
    assert status == 2
    assert "was started with --seq-len 16, and cannot go on with 8" in err
    status, _, err = run("--resume", "kept", "--lr", "0.5", tiny=False)
    assert status == 2
    assert "cannot go on with adamw:lr=0.5" in err
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "checkpoint.pt").write_bytes(b"nothing")
    status, _, err = run("--resume", "broken", tiny=False)
    assert status == 2
    assert "not a readable checkpoint" in err
    assert run(*words, "--overwrite")[0] == 0


def test_resume_refuses_text_that_has_changed(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write_documents(tmp_path / "mine", 30)
    words = ("--optimizer", "adamw", "--steps", "4", "--out", "kept", *TINY, "--text", "mine")
    assert run(*words, "--stop-at", "2", tiny=False)[0] == 0
    (tmp_path / "mine" / "3.txt").write_text("something else\n" * 50)
    status, _, err = run("--resume", "kept", tiny=False)
    assert status == 2
    assert "the text has changed" in err
