"""What ``train_llama.py`` does with its arguments: one run, or a comparison."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import checkpoint, cli, corpus, figures, parallel, report
from .errors import UsageError
from .loop import Interrupt, Trainer
from .parallel import Alone
from .settings import Settings, flag, millions

CHECKPOINT_EVERY = 100
# May be changed, at the price of other bits.
FREE_ON_RESUME = frozenset({"device", "threads", "eval_every", "parallel"})


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 for a run that diverged, 2 for a wrong argument, 128 + n for signal n."""
    is_first = os.environ.get("RANK", "0") == "0"
    with contextlib.ExitStack() as stack:
        if not is_first:  # all say the same, and one says it
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            arguments = cli.parse(argv)
            if "threads" in arguments:
                torch.set_num_threads(arguments.threads)
            specs = cli.compared(arguments)
            processes = parallel.started(vars(arguments))
            if specs:
                return compare(arguments, specs, argv)
            stack.callback(processes.close)
            return train(arguments, processes)
        except UsageError as error:
            print(f"train_llama.py: error: {error}", file=sys.stderr)
            return 2


def train(arguments: argparse.Namespace, processes: Alone) -> int:
    """One run: new or resumed."""
    given = vars(arguments)
    state, failure = None, None
    try:
        if "device" in given or processes.size > 1:
            given["device"] = processes.device(cli.device(given.get("device", "auto")))
        if "resume" in given:
            folder = Path(given["resume"] or _folder(given))
            path = checkpoint.find(folder)
            state, folder = checkpoint.load(path), path.parent
            settings = _resumed_settings(given, state, path, processes)
            torch.set_num_threads(settings.threads)
        else:
            folder = _folder(given)
            settings = cli.settings(given)
            _refuse_to_overwrite(folder, given)
        processes.check(settings, given)
    except UsageError as error:
        failure = error
    processes.agree(failure)
    text = processes.in_turn(lambda: _corpus(settings, given))
    trainer = _trainer(settings, text, folder, state, processes)
    print(f"{trainer.choice.label}: {trainer.choice.row.about}\n{_describe(trainer)}")
    if state:
        print(f"Continuing after step {trainer.step} of {settings.steps}.")
    with Interrupt() as interrupt:
        _run(trainer, given, interrupt)
    if trainer.diverged:
        _tell_divergence(trainer)
        return 1
    if trainer.finished:
        print(report.summary(trainer.result()))
        print(f"Checkpoint: {folder / checkpoint.NAME}")
        return 0
    again = shlex.join([*_program(processes), "--resume", str(folder)])
    print(f"Stopped after step {trainer.step} of {settings.steps}; saved. To go on:\n  {again}")
    return 128 + interrupt.signal if interrupt.signal else 0


def compare(arguments: argparse.Namespace, specs: list[str], argv: Sequence[str] | None) -> int:
    """Every optimizer in turn, then table, JSON and pictures."""
    given = vars(arguments)
    if given.get("resume"):
        raise UsageError(
            "--resume: in a comparison it takes no folder; name the comparison's folder with --out"
        )
    out = given.get("out", Path("demo_out" if arguments.mode == "demo" else "runs/compare"))
    folders = {spec: out / "runs" / _slug(spec) for spec in specs}
    if "resume" not in given:
        for folder in folders.values():
            if arguments.mode != "demo":
                _refuse_to_overwrite(folder, given)
            # A later --resume would take what is left there for a run of this comparison.
            (folder / checkpoint.NAME).unlink(missing_ok=True)
    text = _corpus(cli.settings(given), given)
    results = []
    with Interrupt() as interrupt:
        for number, (spec, folder) in enumerate(folders.items(), start=1):
            settings = cli.settings(given, optimizer=spec)
            state = None
            if (folder / checkpoint.NAME).is_file():
                state = checkpoint.load(folder / checkpoint.NAME)
                _refuse_other_settings(settings, Settings.from_dict(state["settings"]), folder)
            trainer = _trainer(settings, text, folder, state)
            if number == 1:
                print(_describe(trainer))
            print(f"\n[{number}/{len(specs)}] {trainer.choice.label}: {trainer.choice.row.about}")
            _run(trainer, given, interrupt)
            if trainer.diverged:
                _tell_divergence(trainer)
            elif not trainer.finished:
                words = sys.argv[1:] if argv is None else argv
                words = [word for word in words if word not in ("--resume", "--overwrite")]
                again = shlex.join([*_program(), *words, "--resume"])
                print(f"Stopped {spec} after step {trainer.step}; saved. To go on:\n  {again}")
                return 128 + interrupt.signal
            results.append(trainer.result())
            seconds = [result["history"]["seconds"] for result in results]
            if number < len(specs):
                left = sum(seconds) / number * (len(specs) - number)
                print(
                    f"{number} of {len(specs)} after {_minutes(sum(seconds))}; about {_minutes(left)} to go."
                )
    files = report.write(out, results, settings, text)
    print("\n" + report.table(results) + "\n\n" + "\n".join(report.verdict(results, settings)))
    print(f"\nThe runs took {_minutes(sum(seconds))}. Written:")
    for file in files:
        print(f"  {file}")
    if not figures.can_draw():
        print("No pictures: they need matplotlib (pip install matplotlib).")
    return 0


def _run(trainer: Trainer, given: dict[str, Any], interrupt: Interrupt) -> None:
    trainer.run(
        stop_at=given.get("stop_at"),
        checkpoint_every=given.get("checkpoint_every", CHECKPOINT_EVERY),
        interrupt=interrupt,
        say=tqdm.write,
    )


def _trainer(
    settings: Settings,
    text: corpus.Corpus,
    folder: Path,
    state: dict[str, Any] | None,
    processes: Alone | None = None,
) -> Trainer:
    trainer = Trainer(settings, text, folder, processes)
    if state:
        trainer.restore(state)
    return trainer


def _corpus(settings: Settings, given: dict[str, Any]) -> corpus.Corpus:
    return corpus.prepare(
        list(settings.text),
        vocab_size=settings.vocab_size,
        val_fraction=settings.val_fraction,
        with_tests=settings.stdlib_tests,
        cache_dir=given.get("cache_dir"),
    )


def _folder(given: dict[str, Any]) -> Path:
    return given.get("out", Path("runs") / _slug(cli.settings(given).optimizer))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} minutes"


def _slug(spec: str) -> str:
    return spec.replace(":", "_").replace("/", "-")


def _program(processes: Alone | None = None) -> list[str]:
    """How this script was started, as one would type it (``.venv/bin/python`` if that was it)."""
    if processes is not None and processes.kind != "none":
        launch = ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"]]
        return [*launch, sys.argv[0], "--parallel", processes.kind]
    python, here = Path(sys.executable), Path.cwd()
    return [str(python.relative_to(here)) if python.is_relative_to(here) else "python", sys.argv[0]]


def _refuse_to_overwrite(folder: Path, given: dict[str, Any]) -> None:
    if (folder / checkpoint.NAME).exists() and "overwrite" not in given:
        raise UsageError(
            f"--out: there is a run in {folder} already; go on with it (--resume), replace it (--overwrite) "
            "or name another folder"
        )


def _resumed_settings(given: dict[str, Any], state: dict[str, Any], path: Path, processes: Alone) -> Settings:
    """The settings of the checkpoint. An argument that says otherwise is an error, not silently dropped."""
    saved = Settings.from_dict(state["settings"])
    asked = {name: value for name, value in given.items() if name in saved.to_dict()}
    if {"optimizer", "lr", "weight_decay"} & given.keys():
        asked["optimizer"] = cli.settings({"optimizer": saved.optimizer, **given}).optimizer
    for name, value in asked.items():
        old = saved.to_dict()[name]
        if name not in FREE_ON_RESUME and value != old:
            raise UsageError(
                f"--resume: {path} was started with {flag(name)} {old}, and cannot go on with {value}; "
                f"leave {flag(name)} out, or start a new run with another --out"
            )
    if "vote" in (saved.parallel, processes.kind) and saved.parallel != processes.kind:
        raise UsageError(
            f"--resume: {path} was started with --parallel {saved.parallel}, and a vote is another algorithm "
            "than a mean; go on as it was started, or start a new run with another --out"
        )
    free = {name: given[name] for name in FREE_ON_RESUME & given.keys()}
    free["parallel"] = processes.kind
    if "device" in free:
        free["device"] = cli.device(free["device"])
    return replace(saved, **free)


def _refuse_other_settings(wanted: Settings, saved: Settings, folder: Path) -> None:
    for name, value in wanted.to_dict().items():
        old = saved.to_dict()[name]
        if name not in FREE_ON_RESUME and value != old:
            raise UsageError(
                f"--resume: the run in {folder} was started with {flag(name)} {old}, not {value}; "
                "use that, or leave --resume out"
            )


def _describe(trainer: Trainer) -> str:
    s, text, count = trainer.settings, trainer.corpus, sum(p.numel() for p in trainer.model.parameters())
    return (
        f"Llama of {millions(count)} parameters ({s.layers} layers, width {s.hidden}, vocabulary "
        f"{text.vocab_size:,}, {'tied' if s.tied else 'untied'}); "
        f"{s.steps} steps of {s.tokens_per_step:,} tokens on {s.device}"
        f"{', bf16' if s.amp == 'bf16' else ''}.\n"
        f"Text: {text.source}, {len(text.train):,} training tokens."
    )


def _tell_divergence(trainer: Trainer) -> None:
    print(
        f"{trainer.choice.label}: the loss was no longer finite at step {trainer.step}; use a smaller lr "
        f"(--optimizer {trainer.choice.name}:lr=...). The last checkpoint before that is kept.",
        file=sys.stderr,
    )
