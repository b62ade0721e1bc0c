"""What the papers claim, each as a rule over the results: yes, no, not shown at this size, or not run.

A rule looks at an estimate of a difference of validation losses, ``left - right``, and twice its standard
error (``data.Estimate``), so that below zero is better for ``left``. Nothing here is typed but the rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lab.plan import SEEDS
from lab.questions import BATCH_FACTORS, SWEEP_RATES
from lab.report import data
from lab.report.data import Estimate
from lab.store import Store

YES, NO, NOT_SHOWN, NOT_RUN = "yes", "no", "not shown at this size", "not run"
NEAR = 0.05  # what "near", "little" and "a few percent" are, and what it takes to "fail", of the perplexity
ONE_RATE = "one-rate"  # of a contender with one rate for all roles; and the study
BEARS = 0.10  # a rate is borne if the perplexity is at most so much above that of the best rate


def better(difference: Estimate) -> str:
    """Yes: below zero by more than twice the standard error. No: above by as much."""
    if math.isnan(difference.mean):
        return NOT_SHOWN
    if difference.mean < -2 * difference.error:
        return YES
    return NO if difference.mean > 2 * difference.error else NOT_SHOWN


def near(difference: Estimate) -> str:
    """Yes: with twice the standard error still at most 5 % worse. No: more than that without."""
    if math.isnan(difference.mean):
        return NOT_SHOWN
    margin = math.log1p(NEAR)
    if difference.mean + 2 * difference.error <= margin:
        return YES
    return NO if difference.mean - 2 * difference.error > margin else NOT_SHOWN


def fails(difference: Estimate) -> str:
    """The contrary of ``near``."""
    return {YES: NO, NO: YES}.get(near(difference), NOT_SHOWN)


def matters(difference: Estimate) -> str:
    """Yes: away from zero by more than twice the standard error. No: with it within 1 %, either way."""
    if math.isnan(difference.mean):
        return NOT_SHOWN
    if abs(difference.mean) > 2 * difference.error:
        return YES
    return NO if abs(difference.mean) + 2 * difference.error < math.log1p(0.01) else NOT_SHOWN


RULES: dict[Callable[[Estimate], str], str] = {
    better: "better by more than twice the standard error of the difference; no: worse by as much",
    near: "with twice the standard error at most 5 % worse in perplexity; no: more than 5 % without it",
    fails: "more than 5 % worse in perplexity by more than twice the standard error; no: at most 5 % with it",
    matters: "different by more than twice the standard error; no: with it less than 1 % apart",
}


@dataclass(frozen=True)
class Verdict:
    word: str
    numbers: str
    command: str


@dataclass(frozen=True)
class Claim:
    """``left`` against ``right`` by a rule: contenders of study "main", or "NAME:CHANGE" of "ablation", or
    "NAME:one-rate" of study "one-rate"."""

    whose: str
    text: str
    left: str
    right: str
    rule: Callable[[Estimate], str]

    def judge(self, store: Store) -> Verdict:
        sides = [_runs(store, name) for name in (self.left, self.right)]
        numbers = "; ".join(
            f"`{name}` {data.with_spread(runs) if len(runs) >= len(SEEDS) else _so_far(runs)}"
            for name, runs in zip((self.left, self.right), sides, strict=True)
        )
        command = _command(self.left, self.right)
        if min(map(len, sides)) < len(SEEDS):
            return Verdict(NOT_RUN, numbers, command)
        difference = data.estimate(sides[0]) - data.estimate(sides[1])
        return Verdict(self.rule(difference), f"{numbers}: {data.percent_and_error(difference)}", command)


def _runs(store: Store, name: str) -> list[data.Result]:
    contender, _, change = name.partition(":")
    if change == ONE_RATE:
        return data.select(store, ONE_RATE, contender, "seed")
    return (
        data.select(store, "ablation", contender, change=change) if change else data.seeds(store, contender)
    )


def _so_far(runs: list[data.Result]) -> str:
    return f"({len(runs)} of {len(SEEDS)} seeds)"


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
    best. One seed: the grid's step, a factor of two, is what can be told apart."""

    whose: str
    text: str
    left: str
    right: str

    def judge(self, store: Store) -> Verdict:
        command = f"python benchmarks/train/run.py --study sweep --only {self.left} {self.right}"
        sides = [data.select(store, "sweep", name) for name in (self.left, self.right)]
        counts = [len(runs) for runs in sides]
        if min(counts) < len(SWEEP_RATES):
            so_far = f"{counts[0]} and {counts[1]} of {len(SWEEP_RATES)} rates"
            return Verdict(NOT_RUN, so_far, command)
        highest = [highest_borne(runs) for runs in sides]
        numbers = "; ".join(
            f"`{name}` up to {rate:g}" if rate else f"`{name}` none"
            for name, rate in zip((self.left, self.right), highest, strict=True)
        )
        return Verdict(bears_more(*highest), numbers, command)


def highest_borne(runs: list[data.Result]) -> float:
    """The highest rate within 10 % of the best perplexity; 0 where all diverged."""
    smallest = min(map(data.loss, runs))
    borne = [run["variant"]["rate"] for run in runs if data.loss(run) <= smallest + math.log1p(BEARS)]
    return max(borne) if math.isfinite(smallest) else 0.0


def bears_more(left: float, right: float) -> str:
    """Yes: the left's is higher. No: lower. The same step of the grid shows nothing."""
    return YES if left > right else NO if left < right else NOT_SHOWN


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
