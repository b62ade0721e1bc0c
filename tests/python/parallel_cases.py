"""What ``test_example_parallel.py`` runs on two processes: the example with ``--parallel``."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from example_support import TINY, exact, same, write_documents
from llama import checkpoint, comparison, corpus, loop
from llama.app import main

STEPS = 12
RUN = ("--steps", str(STEPS), "--eval-every", "5", "--threads", "1", "--layers", "2", "--val-windows", "15")
EXTRA = ("--accumulate", "2", "--tied")
OPTIMIZERS = {
    "ddp": ("sage-hybrid", "alias-lower-bound", "adamw"),
    "fsdp": ("sage-hybrid", "scale", "alias", "alias-lower-bound", "alias-adam", "adamw", "adam", "sgd"),
}
RESUMED = ("sage-hybrid", "alias", "adamw")
"""Ours, ours with signs in its state, and torch's own."""
VOTED = ("signsgd", "signsgd:momentum=0", "alias-descent", "alias-lower-bound")
HAS_VOTE = importlib.util.find_spec("sage_ext.distributed.vote") is not None


def cases(size: int) -> dict[str, Callable[[int, int], None]]:
    found: dict[str, Callable[[int, int], None]] = {}
    for kind in ("ddp", "fsdp"):
        for optimizer in OPTIMIZERS[kind]:
            found[f"curve-{kind}-{optimizer}"] = partial(same_curve, kind, optimizer, ())
        found[f"curve-{kind}-accumulated"] = partial(same_curve, kind, "sage-hybrid", EXTRA)
        found[f"curve-{kind}-bf16"] = partial(same_curve, kind, "sage-hybrid", ("--amp", "bf16"))
        for optimizer in RESUMED:
            found[f"resume-{kind}-{optimizer}"] = partial(resume, kind, optimizer)
        found[f"one_speaks-{kind}"] = partial(one_speaks, kind)
        found[f"interrupt-{kind}"] = partial(interrupt, kind)
    if HAS_VOTE:
        for optimizer in VOTED:
            found[f"vote-{optimizer}"] = partial(voted, optimizer)
        found["voters"] = voters
    found["demo"] = demo
    found["errors"] = errors
    found["error_of_one"] = error_of_one
    found["cache"] = cache
    return found


def preload() -> None:
    from transformers import LlamaForCausalLM  # noqa: F401


def folder() -> Path:
    return Path(os.environ["CHECKPOINTS"])


def run(*words: str, kind: str = "", torchrun: bool = True) -> tuple[int, str, str]:
    """Call the script's ``main`` as torchrun's processes do if there is a kind; exit status and what was
    said."""
    environment: dict[str, str] = {}
    if kind:
        words = (*words, "--parallel", kind)
    if kind and torchrun:
        environment = {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
        environment |= {"LOCAL_RANK": environment["RANK"], "LOCAL_WORLD_SIZE": environment["WORLD_SIZE"]}
        environment |= {"MASTER_PORT": "1"}
    said, failed = io.StringIO(), io.StringIO()
    text = folder() / "text"
    if dist.get_rank() == 0 and not text.exists():
        text.mkdir()
        write_documents(text, 40)
    dist.barrier()
    with (
        mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(folder() / "cache"), **environment}),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(failed),
    ):
        status = main([*TINY, "--text", str(text), *RUN, *words] if "--resume" not in words else list(words))
    dist.barrier()
    return status, said.getvalue(), failed.getvalue()


def done(*words: str, kind: str = "", out: Path) -> dict[str, Any]:
    """The checkpoint of a run that went well."""
    status, _, failed = run(*words, "--out", str(out), kind=kind)
    assert status == 0, failed
    return checkpoint.load(out / checkpoint.NAME)


def alone(optimizer: str, extra: tuple[str, ...]) -> dict[str, Any]:
    """The run of one process, which all do by themselves."""
    name = f"{optimizer}{''.join(extra)}-{dist.get_rank()}"
    if not (folder() / name).exists():
        return done("--optimizer", optimizer, *extra, out=folder() / name)
    return checkpoint.load(folder() / name / checkpoint.NAME)


def close(left: dict[str, Any], right: dict[str, Any], tolerance: float = 1e-4) -> None:
    """Fail unless two checkpoints differ by no more than the order of sums makes them."""
    for key in ("loss", "validation"):
        values = [torch.tensor(state["history"][key]) for state in (left, right)]
        torch.testing.assert_close(*values, rtol=tolerance, atol=tolerance)
    assert left["step"] == right["step"]
    assert left["position"] == right["position"]
    for key, value in left["model"].items():
        other = right["model"][key]
        assert value.shape == other.shape
        if left["settings"]["amp"] != "none":  # bf16 rounds each part of a batch by itself
            continue
        # A gradient of which only rounding is left has either sign, and moves a weight by a step.
        far = (value - other).abs() > 1e-3
        assert far.sum() <= 0.01 * value.numel(), (key, int(far.sum()))
    for index, state in left["optimizer"]["state"].items():
        other = right["optimizer"]["state"][index]
        assert {key: value.shape for key, value in state.items() if key != "signs"} == {
            key: value.shape for key, value in other.items() if key != "signs"
        }


def same_curve(kind: str, optimizer: str, extra: tuple[str, ...], rank: int, size: int) -> None:
    """The losses of one process, from the same batches."""
    expected = alone(optimizer, extra)
    state = done(
        "--optimizer", optimizer, *extra, kind=kind, out=folder() / f"{kind}-{optimizer}{''.join(extra)}"
    )
    close(state, expected, 1e-2 if "bf16" in extra else 1e-4)
    assert state["history"]["loss"][0] > state["history"]["loss"][-1]
    assert state["history"]["step_size"].keys() == expected["history"]["step_size"].keys()
    assert state["settings"]["parallel"] == kind
    sent = state["history"]["sent_bytes"]
    assert [step for step, _ in sent] == list(range(1, STEPS + 1))
    assert all(len(counts) == size for _, counts in sent)
    numbers = sum(value.numel() for value in state["model"].values())
    assert all(2 * numbers < count < 40 * numbers for _, counts in sent for count in counts), (sent, numbers)


def resume(kind: str, optimizer: str, rank: int, size: int) -> None:
    """A run that two processes began goes on on two to the bit, and on one to rounding, and back."""
    words = ("--optimizer", optimizer)
    straight = done(*words, kind=kind, out=folder() / f"straight-{kind}-{optimizer}")
    parts = folder() / f"parts-{kind}-{optimizer}"
    done(*words, "--stop-at", "7", kind=kind, out=parts)
    mine = folder() / f"{parts.name}-{rank}"
    shutil.copytree(parts, mine)
    assert run("--resume", str(parts), kind=kind)[0] == 0
    again = checkpoint.load(parts / checkpoint.NAME)
    assert same(exact(again), exact(straight))
    assert len(again["history"]["sent_bytes"]) == STEPS

    status, said, failed = run("--resume", str(mine))
    assert status == 0, failed
    assert "Continuing after step 7 of 12" in said
    state = checkpoint.load(mine / checkpoint.NAME)
    close(state, straight)
    assert len(state["history"]["sent_bytes"]) == 7

    back = [folder() / f"back-{kind}-{optimizer}-{process}" for process in range(size)]
    done(*words, "--stop-at", "7", out=back[rank])
    status, said, failed = run("--resume", str(back[0]), kind=kind)
    assert status == 0, failed
    close(checkpoint.load(back[0] / checkpoint.NAME), straight)


def voted(optimizer: str, rank: int, size: int) -> None:
    """A vote sends a fraction of what means take, trains, and goes on to the bit."""
    words = ("--optimizer", optimizer, "--checkpoint-every", "5")
    straight = done(*words, kind="vote", out=folder() / f"straight-{optimizer}")
    losses = straight["history"]["loss"]
    assert losses[-1] < losses[0]
    numbers = sum(value.numel() for value in straight["model"].values())
    sent = [count for _, counts in straight["history"]["sent_bytes"] for count in counts]
    assert all(0.25 * numbers < count < numbers for count in sent), (sent, numbers)
    # The momentum is the voters', and each has its own.
    votes = [vote["exp_avg"] for vote in straight["votes"]]
    assert len(votes) == (size if optimizer == "signsgd" else 0)
    assert not votes or any(not torch.equal(votes[0][name], votes[1][name]) for name in votes[0])
    assert not any("exp_avg" in state for state in straight["optimizer"]["state"].values())

    parts = folder() / f"parts-{optimizer}"
    done(*words, "--stop-at", "7", kind="vote", out=parts)
    assert run("--resume", str(parts), kind="vote")[0] == 0
    assert same(exact(checkpoint.load(parts / checkpoint.NAME)), exact(straight))


def voters(rank: int, size: int) -> None:
    """Others cannot take up the momenta of those who have voted."""
    out = folder() / "voters"
    state = done("--optimizer", "signsgd", "--stop-at", "3", kind="vote", out=out)
    if rank == 0:
        checkpoint.save(out, {**state, "votes": [*state["votes"], state["votes"][0]]})
    dist.barrier()
    status, _, failed = run("--resume", str(out), kind="vote")
    assert status == 2
    assert rank or "3 processes have voted, each with a momentum of its own" in failed
    status, _, failed = run("--resume", str(out))
    assert status == 2
    assert "was started with --parallel vote" in failed


def one_speaks(kind: str, rank: int, size: int) -> None:
    """Only the first process writes files and prints."""
    with mock.patch.object(checkpoint, "save", wraps=checkpoint.save) as save:
        out = folder() / f"speaks-{kind}"
        status, said, failed = run("--checkpoint-every", "5", "--out", str(out), kind=kind)
    assert (status, failed) == (0, "")
    assert save.call_count == (0 if rank else 3)
    assert ("Validation perplexity" in said) == (rank == 0)
    assert bool(said) == (rank == 0)
    assert [path.name for path in out.iterdir()] == [checkpoint.NAME]


def interrupt(kind: str, rank: int, size: int) -> None:
    """A signal to one process stops all after the same step, and says how to go on."""
    out = folder() / f"interrupted-{kind}"
    step = loop.Trainer.train_step

    def struck(trainer: loop.Trainer, *args: Any) -> None:
        if rank == 1 and trainer.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        step(trainer, *args)

    with mock.patch.object(loop.Trainer, "train_step", struck):
        status, said, _ = run("--out", str(out), kind=kind)
    assert status == (128 + signal.SIGTERM if rank else 0)
    assert checkpoint.load(out / checkpoint.NAME)["step"] == 6
    if rank == 0:
        assert f"torchrun --nproc-per-node {size}" in said
        assert f"--parallel {kind} --resume {out}" in said
    assert run("--resume", str(out), kind=kind)[0] == 0
    assert checkpoint.load(out / checkpoint.NAME)["step"] == STEPS


def demo(rank: int, size: int) -> None:
    """The demo's table, file and picture, from runs that other cases have made."""
    out = folder() / f"demo-{rank}"
    made = {None: alone("sage-hybrid", ())}
    for kind in ("ddp", "fsdp"):
        made[kind] = done("--optimizer", "sage-hybrid", kind=kind, out=folder() / f"demo-{kind}")
    made["vote"] = {**made["ddp"], "history": {**made["ddp"]["history"], "sent_bytes": []}}
    commands = []

    def make(command: list[str], variables: dict[str, str]) -> int:
        assert variables["OMP_NUM_THREADS"] == ("1" if "--parallel" in command else "2")
        commands.append(command)
        kind = command[command.index("--parallel") + 1] if "--parallel" in command else None
        checkpoint.save(Path(command[command.index("--out") + 1]), made[kind])
        return 0

    said = io.StringIO()
    with mock.patch.object(comparison, "start", make), contextlib.redirect_stdout(said):
        assert comparison.main(["--out", str(out), "--steps", "9"]) == 0
    # What the user says comes last, and holds.
    assert all(" ".join(command).rpartition("--steps ")[2].startswith("9 ") for command in commands)
    assert ["torch.distributed.run" in command for command in commands] == [False, True, True, True]
    assert {path.name for path in out.iterdir()} == {
        "runs",
        "results.json",
        "results.md",
        "distributed.png",
    }
    facts = json.loads((out / "results.json").read_text())
    found = {each["name"]: each for each in facts["results"]}
    assert found["one process"]["sent_bytes_a_step"] == []
    assert [len(each["sent_bytes_a_step"]) for each in found.values()] == [0, size, size, 0]
    assert 0 < found["DDP"]["largest_difference"] < 1e-4
    assert found["vote"]["largest_difference"] is None
    whole, *parts = found["one process"]["state_bytes"] + found["FSDP2"]["state_bytes"]
    assert all(part < 0.6 * whole for part in parts)
    for path in (out / "results.json", out / "results.md"):
        assert not re.search(r"/(root|home|tmp|work)\b", path.read_text()), path
    assert re.search(r"\| vote, 2 processes +\| signsgd +\|", said.getvalue())
    assert "not counted" in said.getvalue()
    with mock.patch.object(comparison, "start", return_value=3):
        assert comparison.main(["--out", str(out)]) == 3


def errors(rank: int, size: int) -> None:
    """What cannot work is told by one process, in one line."""
    voted = folder() / "voted"
    if rank == 0:
        checkpoint.save(voted, {**alone("sage-hybrid", ()), "settings": _voted()})
    else:
        alone("sage-hybrid", ())
    dist.barrier()
    for kind, words, told in (
        (
            "ddp",
            "--batch-size 3",
            "--batch-size 3: 2 processes cannot have equal parts of it",
        ),
        ("fsdp", "--optimizer adafactor", "--optimizer adafactor: torch's Adafactor cannot take the pieces"),
        (
            "vote",
            "--optimizer adamw",
            "adamw: it goes by more than signs; use --optimizer signsgd",
        ),
        ("vote", "--optimizer signsgd --clip 1", "--clip: a sign has no norm"),
        ("ddp", "--compare adamw,sgd", "trains one optimizer; leave out demo and --compare"),
        ("ddp", "demo", "trains one optimizer"),
        ("fsdp", "--device nowhere", "--device nowhere: this torch cannot use it"),
        ("fsdp", "--heads 3", "a head's width"),
        ("fsdp", "--optimizer adamw:betas=0.9/1.5", "Invalid beta parameter"),
        ("fsdp", f"--resume {voted}", "was started with --parallel vote, and a vote is another algorithm"),
        ("ddp", "--resume nowhere", "there is no checkpoint at nowhere"),
    ):
        status, said, failed = run(*words.split(), "--out", str(folder() / "none"), kind=kind)
        assert (status, said) == (2, ""), (words, said)
        assert bool(failed) == (rank == 0)
        assert rank or (told in failed and failed.count("\n") == 1), (words, failed)
    assert not (folder() / "none").exists()

    status, _, failed = run("--out", str(folder() / "none"), kind="ddp", torchrun=False)
    assert status == 2
    assert "--parallel ddp: there is one process; start several, as torchrun" in failed
    with mock.patch.dict(sys.modules, {"sage_ext.distributed": ModuleType("older")}):
        words = ("--optimizer", "signsgd", "--out", str(folder() / "none"))
        status, _, failed = run(*words, kind="vote")
    assert status == 2
    assert rank or "--parallel vote: the installed sage_ext has no MajorityVote" in failed
    with mock.patch.dict(os.environ, {"RANK": "0", "WORLD_SIZE": "2"}):
        status, _, failed = run("--out", str(folder() / "none"))
    assert status == 2
    assert "--parallel: torchrun has started 2 processes; say how they train" in failed


def _voted() -> dict[str, Any]:
    return {**alone("sage-hybrid", ())["settings"], "parallel": "vote"}


def error_of_one(rank: int, size: int) -> None:
    """What one process alone finds out ends all of them, and is told."""
    words = ["--out", str(folder() / "lonely")]
    if rank == 1:
        words += ["--device", "nowhere"]
    status, _, failed = run(*words, kind="ddp")
    assert status == 2
    assert rank or ("--device nowhere: this torch cannot use it" in failed and "(process 1)" in failed)


def cache(rank: int, size: int) -> None:
    """One process prepares the text, and the others find it prepared."""
    words = ["--cache-dir", str(folder() / "another"), "--out", str(folder() / "cached")]
    with mock.patch.object(corpus, "build", wraps=corpus.build) as build:
        status, _, failed = run(*words, kind="ddp")
    assert status == 0, failed
    assert bool(build.call_count) == (rank == 0)
