"""The command line. What is not given is absent from the namespace: ``Settings`` has the defaults."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from . import optim, parallel
from .errors import UsageError
from .settings import Settings

DEMO_COMPARE = ("adamw", "sage-hybrid", "sinkgd-scale", "scale")

OPTIMIZERS = """optimizers (NAME:KEY=VALUE:... changes settings, 0.9/0.95 is a pair; where there are
embedding_lr, head_lr and vector_lr, lr is the rate of all other matrices):"""

EXAMPLES = """examples:
  train_llama.py demo                                     the comparison that `make demo` runs, a few minutes
  train_llama.py --optimizer sage-hybrid --steps 2000     one optimizer, in runs/sage-hybrid
  train_llama.py --resume runs/sage-hybrid                go on after Ctrl-C
  train_llama.py --text ~/books --compare adamw:lr=2e-3,adamw:lr=4e-3,sinkgd-hybrid
  torchrun --nproc-per-node 2 examples/train_llama.py --parallel fsdp
"""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line. ``mode`` is always set; everything else only if it was given."""
    arguments = parser().parse_args(argv)
    given = vars(arguments)
    for shortcut in ("lr", "weight_decay"):
        if shortcut in given and (arguments.mode == "demo" or "compare" in given):
            raise UsageError(
                f"--{shortcut.replace('_', '-')}: there is more than one optimizer; give it to one of them, "
                f"as --compare adamw:{shortcut}={given[shortcut]:g},..."
            )
    if "optimizer" in given and (arguments.mode == "demo" or "compare" in given):
        raise UsageError("--optimizer: --compare and demo train several; name them all in --compare A,B,...")
    if "stop_at" in given and (arguments.mode == "demo" or "compare" in given):
        raise UsageError("--stop-at: works with one optimizer only; leave it out, or use --steps")
    return arguments


def settings(given: dict[str, Any], **over: Any) -> Settings:
    """The settings of a run from the arguments that were given."""
    names = {field.name for field in fields(Settings)}
    values = {name: value for name, value in given.items() if name in names}
    spec = values.get("optimizer", Settings.optimizer)
    for shortcut in ("lr", "weight_decay"):
        if shortcut in given:
            spec += f":{shortcut}={given[shortcut]:g}"
    values["optimizer"] = optim.parse(spec).spec
    values["text"] = tuple(given.get("text", ()))
    values["device"] = device(given.get("device", "auto"))
    values["threads"] = torch.get_num_threads()
    return Settings(**{**values, **over})


def compared(arguments: argparse.Namespace) -> list[str]:
    """The optimizers of a comparison, checked; empty if this is not one."""
    names = getattr(arguments, "compare", DEMO_COMPARE if arguments.mode == "demo" else ())
    specs = [optim.parse(name).spec for name in names]
    for spec in specs:
        if specs.count(spec) > 1:
            raise UsageError(f"--compare: {spec} is there twice; name each once, or give it other settings")
    return specs


def device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: this torch cannot use it ({reason}); use --device cpu") from error
    return name


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message} (--help lists all arguments)\n")


def whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {text!r}")
        return value

    return read


def number(least: float, most: float = math.inf, *, open_ends: bool = False) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = least < value < most if open_ends else least <= value <= most
        if not inside or math.isinf(value):
            above = "more than" if open_ends else "at least"
            ends = f"{above} {least:g}" if math.isinf(most) else f"between {least:g} and {most:g}"
            raise argparse.ArgumentTypeError(f"must be a number {ends}, not {text!r}")
        return value

    return read


def parser() -> argparse.ArgumentParser:
    top = _Parser(
        prog="train_llama.py",
        usage="train_llama.py [train | demo] [--ARGUMENT VALUE ...]",
        allow_abbrev=False,
        description="Trains a small Llama on real text with one optimizer, or compares several.",
        epilog=f"{OPTIMIZERS}\n{optim.table()}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    top.add_argument(
        "mode", nargs="?", choices=("train", "demo"), default="train",
        help="train: as the arguments say (default). demo: compare " + " and ".join(DEMO_COMPARE),
    )  # fmt: skip
    d = Settings()

    group = top.add_argument_group("optimizer")
    add = group.add_argument
    add("--optimizer", metavar="NAME", help=f"one of the names below (default: {d.optimizer})")
    add(
        "--compare",
        metavar="A,B,...",
        type=_names,
        help="train each in turn from the same weights on the same batches",
    )
    add("--lr", type=number(0, open_ends=True), metavar="X", help="shortcut for --optimizer NAME:lr=X")
    add("--weight-decay", type=number(0), metavar="X", help="shortcut for --optimizer NAME:weight_decay=X")
    add(
        "--backend",
        choices=("auto", "native", "reference"),
        help="of the library's optimizers (default: auto)",
    )

    group = top.add_argument_group("text")
    add = group.add_argument
    add(
        "--text",
        nargs="+",
        metavar="PATH",
        help="files or folders of UTF-8 text (default: Python's standard library)",
    )
    add(
        "--stdlib-tests",
        action="store_true",
        help="with the default text: the standard library's tests as well",
    )
    add("--vocab-size", type=whole(257), metavar="N", help=f"of the byte-level BPE (default: {d.vocab_size})")
    add(
        "--val-fraction", type=number(0, 0.5, open_ends=True), metavar="X",
        help=f"share of the text, in whole documents, for validation (default: {d.val_fraction:g})",
    )  # fmt: skip
    add(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="for tokenizer and tokens (default: ~/.cache/sage_ext/train_llama)",
    )

    group = top.add_argument_group("model (a Llama, random weights)")
    add = group.add_argument
    add("--hidden", type=whole(2), metavar="N", help=f"width (default: {d.hidden})")
    add("--layers", type=whole(1), metavar="N", help=f"(default: {d.layers})")
    add("--heads", type=whole(1), metavar="N", help=f"attention heads (default: {d.heads})")
    add("--ffn", type=whole(1), metavar="N", help="width of the feed-forward part (default: 8/3 of --hidden)")
    add(
        "--tied",
        action=argparse.BooleanOptionalAction,
        help="embedding and head share one matrix (default: no)",
    )

    group = top.add_argument_group("training")
    add = group.add_argument
    add("--steps", type=whole(1), metavar="N", help=f"optimizer steps (default: {d.steps})")
    add("--batch-size", type=whole(1), metavar="N", help=f"windows a batch (default: {d.batch_size})")
    add("--seq-len", type=whole(2), metavar="N", help=f"tokens a window (default: {d.seq_len})")
    add("--accumulate", type=whole(1), metavar="N", help=f"batches a step (default: {d.accumulate})")
    add(
        "--warmup",
        type=whole(0),
        metavar="N",
        help="steps of linear warm-up (default: a tenth of --steps)",
    )
    add(
        "--final-lr",
        type=number(0, 1),
        metavar="X",
        help=f"cosine goes down to this share (default: {d.final_lr:g})",
    )
    add("--clip", type=number(0), metavar="X", help=f"largest gradient norm, 0 for any (default: {d.clip:g})")
    add("--amp", choices=("none", "bf16"), help=f"automatic mixed precision (default: {d.amp})")
    add("--seed", type=whole(0), metavar="N", help=f"weights and order of the batches (default: {d.seed})")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cuda if there is one, else cpu)")
    add("--threads", type=whole(1), metavar="N", help="CPU threads (default: torch's choice)")

    add(
        "--parallel", choices=parallel.KINDS,
        help="how the processes that torchrun has started train one model: whole on each (ddp), cut into "
        "pieces (fsdp), or whole with a vote of signs (vote)",
    )  # fmt: skip

    group = top.add_argument_group("output")
    add = group.add_argument
    add("--out", type=Path, metavar="DIR", help="default: runs/NAME, runs/compare or, for demo, demo_out")
    add(
        "--eval-every",
        type=whole(0),
        metavar="N",
        help=f"steps, 0 for only at the end (default: {d.eval_every})",
    )
    add(
        "--val-windows",
        type=whole(1),
        metavar="N",
        help=f"validation windows, always the same (default: {d.val_windows})",
    )
    add("--checkpoint-every", type=whole(0), metavar="N", help="steps, 0 for only at the end (default: 100)")
    add(
        "--stop-at",
        type=whole(1),
        metavar="N",
        help="save and stop after this step, with the schedule of --steps",
    )
    add(
        "--resume", nargs="?", const="", metavar="DIR",
        help="go on bit for bit from the checkpoint in DIR (default: --out), with its settings",
    )  # fmt: skip
    add("--overwrite", action="store_true", help="replace the run that is already in --out")
    return top


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) < 2:
        raise argparse.ArgumentTypeError(f"needs two or more names with commas between, not {text!r}")
    return names
