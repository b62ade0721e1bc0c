"""What the report reads from the results: runs by what they are, and statistics over their seeds."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from lab import budget, questions, search, studies
from lab.contenders import contenders
from lab.plan import SEEDS
from lab.scales import Scale
from lab.store import Store

Result = dict[str, Any]


def select(
    store: Store, study: str, contender: str | None = None, stage: str | None = None, **variant: Any
) -> list[Result]:
    """The results of a study, of a contender and a stage ("search" stands for a grid's too), whose variant
    has these values; seeds in their order."""
    found = [
        result
        for result in store.results.values()
        if result["study"] == study
        and contender in (None, result["contender"])
        and (stage is None or result["stage"].partition("-")[0] == stage)
        and all(result["variant"].get(key) == value for key, value in variant.items())
    ]
    return sorted(found, key=lambda r: (r["variant"].get("seed", 0), r["variant"].get("k", 0), r["id"]))


def loss(result: Result) -> float:
    """Validation loss at the end, nats a token; infinite where the run diverged."""
    value = result["result"]["loss"]
    return math.inf if value is None else value


def perplexity(result: Result) -> float:
    return math.exp(loss(result))


def best(results: Sequence[Result]) -> Result | None:
    """The first of those with the smallest loss."""
    return min(results, key=loss, default=None)


def found(store: Store, contender: str) -> Result | None:
    """The best run of a contender's search."""
    return best(select(store, "main", contender, "search"))


def seeds(store: Store, contender: str) -> list[Result]:
    """The runs of study "main" that count."""
    return select(store, "main", contender, "seed")


def adamw_at_all_rates(store: Store) -> list[Result]:
    """AdamW at the best rates that any search has found for it in a role, all seeds: from study "budget"."""
    runs = select(store, "budget", budget.NAME, "seed", against="adamw")
    return runs if len(runs) >= len(SEEDS) else []


def adamw_level(store: Store) -> float:
    """The perplexity of the better AdamW, of its own search or at these rates; nan: not known."""
    both = [runs for runs in (seeds(store, "adamw"), adamw_at_all_rates(store)) if len(runs) >= len(SEEDS)]
    return min((mean(map(perplexity, runs)) for runs in both), default=math.nan)


def of_batch(store: Store, contender: str, multiple: int) -> list[Result]:
    """The runs of study "batch" at a multiple of the batch; at 1 the first seed of study "main"."""
    if multiple == 1:
        return select(store, "main", contender, "seed", seed=SEEDS[0])
    return select(store, "batch", contender, batch=multiple)


def ranked(store: Store) -> list[str]:
    """The contenders of study "main" with all seeds, the best first."""
    whole = [name for name in contenders() if len(seeds(store, name)) >= len(SEEDS)]
    return sorted(whole, key=lambda name: mean(map(perplexity, seeds(store, name))))


@dataclass(frozen=True)
class Estimate:
    """A mean of losses, or a difference of such means, in nats, with its standard error."""

    mean: float
    error: float

    def __sub__(self, other: Estimate) -> Estimate:
        if math.isinf(self.mean) and math.isinf(other.mean):
            return Estimate(math.nan, math.inf)
        return Estimate(self.mean - other.mean, math.hypot(self.error, other.error))


def estimate(results: Sequence[Result], spread: float | None = None) -> Estimate:
    """Of the mean loss over seeds. ``spread``: the standard deviation, where there is one run alone."""
    losses = [loss(result) for result in results]
    if not all(map(math.isfinite, losses)):
        return Estimate(math.inf, 0.0)
    deviation = stdev(losses) if spread is None else spread
    return Estimate(mean(losses), deviation / math.sqrt(len(losses)))


def spread_of(store: Store, contender: str) -> float | None:
    """Standard deviation of the loss over the seeds of study "main"; None: too few, or one diverged."""
    losses = [loss(result) for result in seeds(store, contender)]
    return stdev(losses) if len(losses) >= len(SEEDS) and all(map(math.isfinite, losses)) else None


def pooled_spread(store: Store) -> float | None:
    """The same over all contenders: the root of the mean of their variances."""
    all_of = [value for name in ranked(store) if (value := spread_of(store, name)) is not None]
    return math.sqrt(mean(value**2 for value in all_of)) if all_of else None


@functools.cache
def planned(study: str, scale: Scale) -> int:
    """How many runs a study has where every contender can run."""
    if study == "alias":
        return len(questions.alias(scale, contenders()))
    if study != "main":
        return len(studies.plan(study, scale))
    return sum(search.RUNS * contender.searched + len(SEEDS) for contender in contenders().values())


def average(results: Sequence[Result], key: str) -> float:
    """Mean of a number of the results; nan where a run has none."""
    values = [result["result"][key] for result in results]
    return mean(values) if values and None not in values else math.nan


def seconds(results: Sequence[Result], scale: Scale) -> float:
    """Of a run, mean over ``results``: the processor's where it does the work, else by the clock."""
    return average(results, "cpu_seconds" if scale.device == "cpu" else "wall_seconds")


def usual_processor(store: Store) -> str:
    """That of most runs that count. Times of another do not compare with its."""
    counts = Counter(map(_processor, select(store, "main", stage="seed")))
    return max(counts, key=counts.__getitem__, default="")


def other_processors(store: Store, results: Sequence[Result]) -> set[str]:
    return set(map(_processor, results)) - {usual_processor(store)}


USUAL_CAPABILITY = "AVX512"
"""Of the processors of all runs from before it was noted."""


def version(result: Result, name: str) -> str:
    """What a run says of a part of what it ran on; "none" of a package that was not there."""
    return result["versions"].get(name, USUAL_CAPABILITY if name == "cpu_capability" else "none")


def _processor(result: Result) -> str:
    name = result["versions"].get("processor", "another processor")
    # A name such as "AMD EPYC" is that of several generations.
    capability = version(result, "cpu_capability")
    return name if capability == USUAL_CAPABILITY else f"{name} with {capability}"


def state_per_parameter(result: Result) -> float:
    return result["result"]["state_bytes"] / result["result"]["parameters"]


# --------------------------------------------------------------------------------- how they are written


def with_spread(results: Sequence[Result]) -> str:
    """ "75.21 ± 0.13": mean and standard deviation of the perplexity."""
    values = [perplexity(result) for result in results]
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < len(values):
        return f"diverged ({len(values) - len(finite)} of {len(values)})"
    if not values:
        return ""
    return number(mean(values)) + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def number(value: float) -> str:
    return f"{value:,.2f}" if math.isfinite(value) else "diverged"


def percent(nats: float) -> str:
    """A difference of losses as one of perplexities."""
    if math.isnan(nats):
        return "both diverged"
    return "diverged" if math.isinf(nats) else f"{100 * math.expm1(nats):+.1f} %"


def percent_and_error(difference: Estimate) -> str:
    """The same, "+249.0 ± 7.3 %": with twice the standard error, in points of this very percentage.

    An error in nats is a share of the ratio of perplexities; at 3.49 times a perplexity, 2.1 % of it are 7.3
    points.
    """
    if not math.isfinite(difference.mean):
        return percent(difference.mean)
    points = 100 * math.exp(difference.mean) * 2 * difference.error
    return f"{100 * math.expm1(difference.mean):+.1f} ± {points:.1f} %"


def millions(count: float) -> str:
    return f"{count / 1e6:.2f} M" if count < 1e7 else f"{count / 1e6:,.0f} M"
