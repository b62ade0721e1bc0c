"""What the papers claim, each judged by one of ``rules``: yes, no, not shown at this size, or not run.

Nothing here is typed but which results a claim is about.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lab.plan import SEEDS
from lab.questions import BATCH_FACTORS, SWEEP_RATES
from lab.report import data
from lab.report.data import Estimate
from lab.report.rules import BEARS, NO, NOT_RUN, NOT_SHOWN, YES, better, fails, is_far, matters, near
from lab.store import Store

ONE_RATE = "one-rate"  # of a contender with one rate for all roles; and the study
# What finds its own rate -> the optimizer of the same update whose rates were searched for.
TUNED = {
    "alias-base": "sign-sgd",
    "alias-base-descent": "sign-sgd",
    "alias-base-head-adamw": "sign-sgd-adamw",
    "prodigy": "adamw",
}


@dataclass(frozen=True)
class Verdict:
    word: str
    numbers: str
    command: str


@dataclass(frozen=True)
class Claim:
    """``left`` against ``right`` by a rule: contenders of study "main", or "NAME:CHANGE" of "ablation", or
    "NAME:one-rate" of study "one-rate". No yes against what is itself far behind its ``TUNED`` form."""

    whose: str
    text: str
    left: str
    right: str
    rule: Callable[[Estimate], str]

    def judge(self, store: Store) -> Verdict:
        names = [self.left, self.right, *([TUNED[self.right]] if self.right in TUNED else [])]
        every = {name: _runs(store, name) for name in names}
        whole = min(map(len, every.values())) >= len(SEEDS)
        numbers = "; ".join(f"`{name}` {_so_far(every[name])}" for name in (names[:2] if whole else names))
        command = _command(*names)
        if not whole:
            return Verdict(NOT_RUN, numbers, command)
        left, right, *tuned = (data.estimate(every[name]) for name in names)
        word, numbers = self.rule(left - right), f"{numbers}: {data.percent_and_error(left - right)}"
        if word == YES and tuned and is_far(behind := right - tuned[0]):
            word = NOT_SHOWN
            numbers += (
                f". But `{self.right}` did badly here itself: {data.percent_and_error(behind)} from "
                f"`{names[2]}` {data.with_spread(every[names[2]])}. So this says little"
            )
        return Verdict(word, numbers, command)


def _runs(store: Store, name: str) -> list[data.Result]:
    contender, _, change = name.partition(":")
    if change == ONE_RATE:
        return data.select(store, ONE_RATE, contender, "seed")
    return (
        data.select(store, "ablation", contender, change=change) if change else data.seeds(store, contender)
    )


def _so_far(runs: list[data.Result]) -> str:
    return data.with_spread(runs) if len(runs) >= len(SEEDS) else f"({len(runs)} of {len(SEEDS)} seeds)"


def _command(*names: str) -> str:
    """What runs the seeds of both sides: of "ablation" and its contender's own those of "main" come first."""
    studies: dict[str, dict[str, None]] = {}
    changes = {name.partition(":")[2] for name in names}
    for name in names:
        contender, _, change = name.partition(":")
        study = change if change == ONE_RATE else "main" if changes <= {"", ONE_RATE} else "ablation"
        studies.setdefault(study, {})[contender] = None
    return " && ".join(
        f"python benchmarks/train/run.py --study {study} --only {' '.join(only)}"
        for study, only in studies.items()
    )


@dataclass(frozen=True)
class BearsMore:
    """``left`` bears a higher rate than ``right``: the highest of study "sweep" within 10 % of each one's own
    best. One seed: an answer counts that the spread between seeds, of study "main", would not change."""

    whose: str
    text: str
    left: str
    right: str

    def judge(self, store: Store) -> Verdict:
        command = f"python benchmarks/train/run.py --study sweep --only {self.left} {self.right}"
        sides = [data.select(store, "sweep", name) for name in (self.left, self.right)]
        counts, spread = [len(runs) for runs in sides], data.pooled_spread(store)
        if min(counts) < len(SWEEP_RATES):
            so_far = f"{counts[0]} and {counts[1]} of {len(SWEEP_RATES)} rates"
            return Verdict(NOT_RUN, so_far, command)
        if spread is None:
            return Verdict(NOT_RUN, "the spread between seeds is not known yet", command)
        numbers = "; ".join(
            f"`{name}` {up_to(runs, spread)}"
            for name, runs in zip((self.left, self.right), sides, strict=True)
        )
        return Verdict(bears_more(*(borne(runs, spread) for runs in sides)), numbers, command)


def up_to(runs: list[data.Result], spread: float | None) -> str:
    """ "up to 0.004", and what else it may be by the spread."""
    low, at, high = borne(runs, spread or 0.0)
    if low == high:
        return f"up to {at:g}" if at else "none"
    return f"up to {at:g} (by the spread {low:g} to {high:g})"


def borne(runs: list[data.Result], spread: float) -> tuple[float, float, float]:
    """The highest rate borne: at least, as measured, at most, if the distance of a loss from the smallest is
    off by twice its standard error. ``spread``: the standard deviation of one loss."""
    off = 2 * math.sqrt(2) * spread
    low, at, high = (highest_borne(runs, shift) for shift in (-off, 0.0, off))
    return low, at, high


def highest_borne(runs: list[data.Result], shift: float = 0.0) -> float:
    """The highest rate within 10 %, and ``shift`` nats, of the best perplexity; 0 where all diverged."""
    smallest = min(map(data.loss, runs))
    most = smallest + max(math.log1p(BEARS) + shift, 0.0)
    rates = [run["variant"]["rate"] for run in runs if data.loss(run) <= most]
    return max(rates) if math.isfinite(smallest) else 0.0


def bears_more(left: tuple[float, float, float], right: tuple[float, float, float]) -> str:
    """Yes: the left's is higher, whatever the spread may do. No: lower. Else nothing is shown."""
    return YES if left[0] > right[2] else NO if left[2] < right[0] else NOT_SHOWN


@dataclass(frozen=True)
class Batch:
    """The distance of ``left`` from AdamW at 16 times the batch, less that at 1: each the best of its
    factors, one seed; the spread is that of the same contender's seeds in study "main"."""

    whose: str
    text: str
    left: str
    rule: Callable[[Estimate], str]
    low: int = 1
    high: int = 16

    def judge(self, store: Store) -> Verdict:
        command = f"python benchmarks/train/run.py --study batch --only adamw {self.left}"
        distances = []
        for multiple in (self.low, self.high):
            sides = []
            for name in (self.left, "adamw"):
                runs = data.of_batch(store, name, multiple)
                spread = data.spread_of(store, name)
                factors = 1 if multiple == 1 else len(BATCH_FACTORS)
                if len(runs) < factors or spread is None:
                    so_far = f"`{name}` at {multiple} x: {len(runs)} of {factors} factors"
                    return Verdict(NOT_RUN, so_far, command)
                sides.append(data.estimate([min(runs, key=data.loss)], spread))
            distances.append(sides[0] - sides[1])
        change = distances[1] - distances[0]
        numbers = (
            f"`{self.left}` from `adamw`: {data.percent(distances[0].mean)} at {self.low} x, "
            f"{data.percent(distances[1].mean)} at {self.high} x: {data.percent_and_error(change)}"
        )
        return Verdict(self.rule(change), numbers, command)


AnyClaim = Claim | BearsMore | Batch

CLAIMS: tuple[AnyClaim, ...] = (
    Claim("SinkGD", "alone, on embedding and head too, it fails", "sinkgd", "sinkgd-hybrid", fails),
    Claim("SinkGD", "with AdamW on embedding and head it is near AdamW", "sinkgd-hybrid", "adamw", near),
    Claim(
        "SAGE",
        "on the embedding it beats AdamW (SinkGD on matrices, AdamW on the head)",
        "sage-sinkgd-adamw",
        "sinkgd-hybrid",
        better,
    ),
    Claim(
        "SAGE",
        "on the embedding it beats Lion (the same)",
        "sage-sinkgd-adamw",
        "lion-sinkgd-adamw",
        better,
    ),
    Claim("SAGE", "on embedding and head it beats AdamW", "sage-hybrid", "sinkgd-hybrid", better),
    Claim("SAGE", "on embedding and head it beats Lion", "sage-hybrid", "lion-hybrid", better),
    Claim("SAGE", "its hybrid beats AdamW on everything", "sage-hybrid", "adamw", better),
    BearsMore("SAGE", "on embedding and head it bears a higher rate than Lion", "sage-hybrid", "lion-hybrid"),
    BearsMore("SAGE", "alone it bears a higher rate than Lion", "sage", "lion"),
    Claim(
        "SAGE",
        "the instantaneous damper helps its hybrid",
        "sage-hybrid",
        "sage-hybrid:no-instant-damper",
        better,
    ),
    Claim("SAGE", "the instantaneous damper helps it alone", "sage", "sage:no-instant-damper", better),
    Claim(
        "SAGE",
        "the order of its momentum matters in its hybrid",
        "sage-hybrid:momentum-first",
        "sage-hybrid",
        matters,
    ),
    Claim("SAGE", "the order of its momentum matters alone", "sage:momentum-first", "sage", matters),
    Claim("SCALE", "it is near AdamW", "scale", "adamw", near),
    Claim("SCALE", "the head's momentum helps", "scale", "scale:no-momentum", better),
    *(
        Claim("ALIAS", f"without tuning{where} it is near a Sign-SGD {tuned}", name, rival + change, near)
        for where, name, rival in (
            (", AdamW on both's heads,", "alias-head-adamw", "sign-sgd-adamw"),
            (" (by descent), on everything,", "alias", "sign-sgd"),
            (" (by the lower bound), on everything,", "alias-lower-bound", "sign-sgd"),
        )
        for tuned, change in (("tuned by role", ""), ("tuned to one rate for all roles", f":{ONE_RATE}"))
    ),
    *(
        Claim("ALIAS", f"the memory-efficient form loses little{where}", name, base, near)
        for where, name, base in (
            (", AdamW on the head", "alias-head-adamw", "alias-base-head-adamw"),
            (" (by descent), on everything", "alias", "alias-base-descent"),
            (" (by the lower bound), on everything", "alias-lower-bound", "alias-base"),
        )
    ),
    Claim("ALIAS-Adam", "it beats Prodigy", "alias-adam", "prodigy", better),
    Batch("Sign-SGD", "a larger batch brings it nearer to AdamW", "sign-sgd", better),
    Batch("SAGE", "its hybrid loses little against AdamW by a larger batch", "sage-hybrid", near),
    Batch("SCALE", "it loses little against AdamW by a larger batch", "scale", near),
)
