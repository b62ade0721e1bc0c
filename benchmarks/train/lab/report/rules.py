"""What makes an answer yes, no, or not shown at this size: rules over a difference of validation losses.

A rule looks at an estimate of ``left - right`` and twice its standard error (``data.Estimate``), so that
below zero is better for ``left``. What is written of "near" takes its meaning from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lab.report.data import Estimate

YES, NO, NOT_SHOWN, NOT_RUN = "yes", "no", "not shown at this size", "not run"
NEAR = 0.05  # what "near", "little" and "a few percent" are, and what it takes to "fail", of the perplexity
BEARS = 0.10  # a rate is borne if the perplexity is at most so much above that of the best rate
MATTERS = 0.01  # within so much, with the error, nothing matters
FAR = 0.25  # what is so far behind the tuned form of its update has done badly: to be no worse says little


def better(difference: Estimate) -> str:
    """Yes: below zero by more than twice the standard error. No: above by as much."""
    if math.isnan(difference.mean):
        return NOT_SHOWN
    if difference.mean < -2 * difference.error:
        return YES
    return NO if difference.mean > 2 * difference.error else NOT_SHOWN


def near(difference: Estimate) -> str:
    """Yes: with twice the standard error still at most ``NEAR`` worse. No: more than that without."""
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
    """Yes: away from zero by more than twice the standard error. No: with it within ``MATTERS``."""
    if math.isnan(difference.mean):
        return NOT_SHOWN
    if abs(difference.mean) > 2 * difference.error:
        return YES
    return NO if abs(difference.mean) + 2 * difference.error < math.log1p(MATTERS) else NOT_SHOWN


def is_far(difference: Estimate) -> bool:
    """Whether it is more than ``FAR`` behind by more than twice the standard error."""
    return difference.mean - 2 * difference.error > math.log1p(FAR)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


MEANINGS: dict[Callable[[Estimate], str], str] = {
    better: "better by more than twice the standard error of the difference; no: worse by as much",
    near: f"with twice the standard error at most {_percent(NEAR)} worse in perplexity; no: more than "
    f"{_percent(NEAR)} without it",
    fails: f"more than {_percent(NEAR)} worse in perplexity by more than twice the standard error; no: at "
    f"most {_percent(NEAR)} with it",
    matters: "different by more than twice the standard error; no: with it less than "
    f"{_percent(MATTERS)} apart",
}
"""When each says yes, and when no."""
