"""The search for rates: the same ranges, the same number of runs and the same first five points for everyone.

A contender has three rates: the embedding's, the matrices' and the head's, each about the size (root mean
square) that an update of an element has before the schedule, whatever the rule. They are looked for as points
of a cube, on a logarithmic scale. The first five points are the cube's centre and four corners of a smaller
cube; each further one is where a Gaussian process over the runs so far expects the largest improvement. All
is deterministic: the same results give the same next point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RANGES = {"embedding": (5e-4, 5e-2), "matrix": (1e-4, 1e-2), "lm_head": (1e-4, 1e-2)}
RUNS = 9  # of each contender that has rates to find
DIGITS = 3  # of a rate: what is run is what is written down
_LOW, _HIGH = 0.2, 0.8
FIRST = (  # a half fraction of the corners: each rate is low twice and high twice, in balance with the others
    (0.5, 0.5, 0.5),
    (_LOW, _LOW, _HIGH),
    (_LOW, _HIGH, _LOW),
    (_HIGH, _LOW, _LOW),
    (_HIGH, _HIGH, _HIGH),
)
WORST = 1.0  # nats above the best: a run that is worse, or diverged, tells no more than that it is bad
LENGTHS = (0.3, 0.5, 0.8, 1.3)  # of the process, in cubes; the likeliest is taken
NOISE = 1e-2  # its variance, of the runs' own
CANDIDATES = 4096

Rates = dict[str, float]


def rates(point: Sequence[float]) -> Rates:
    """The rates at a point of the cube."""
    result = {}
    for (name, (low, high)), x in zip(RANGES.items(), point, strict=True):
        result[name] = float(f"{low * (high / low) ** x:.{DIGITS}g}")
    return result


def point(values: Rates) -> list[float]:
    """The point of the cube where ``values`` lie."""
    return [math.log(values[name] / low) / math.log(high / low) for name, (low, high) in RANGES.items()]


def at_edge(values: Rates, margin: float = 0.03) -> list[str]:
    """The rates that lie at an end of their range: the best may be beyond."""
    return [name for name, x in zip(RANGES, point(values), strict=True) if not margin <= x <= 1 - margin]


def propose(done: Sequence[tuple[Rates, float]]) -> Rates:
    """The rates of the next run, from the rates and validation losses (nats; inf: diverged) of those done."""
    if len(done) < len(FIRST):
        return rates(FIRST[len(done)])
    x = np.array([point(values) for values, _ in done])
    losses = np.array([loss for _, loss in done])
    finite = losses[np.isfinite(losses)]
    cap = (finite.min() if len(finite) else 0.0) + WORST
    y = np.minimum(np.where(np.isfinite(losses), losses, cap), cap)
    y = (y - y.mean()) / (y.std() or 1.0)
    length = max(LENGTHS, key=lambda value: _likelihood(x, y, value))
    draw = np.random.default_rng(len(done))
    best = x[y.argmin()]
    near = np.clip(best + draw.normal(scale=0.1, size=(CANDIDATES // 2, x.shape[1])), 0, 1)
    candidates = np.concatenate([draw.random((CANDIDATES // 2, x.shape[1])), near])
    mean, deviation = _posterior(x, y, candidates, length)
    return rates(candidates[_improvement(y.min(), mean, deviation).argmax()])


def _kernel(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    return np.exp(-0.5 * ((a[:, None] - b[None]) ** 2).sum(-1) / length**2)


def _likelihood(x: np.ndarray, y: np.ndarray, length: float) -> float:
    """Log marginal likelihood of the standardised losses, up to a constant."""
    matrix = _kernel(x, x, length) + NOISE * np.eye(len(x))
    _, logdet = np.linalg.slogdet(matrix)
    return float(-0.5 * y @ np.linalg.solve(matrix, y) - 0.5 * logdet)


def _posterior(x: np.ndarray, y: np.ndarray, at: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    matrix = _kernel(x, x, length) + NOISE * np.eye(len(x))
    cross = _kernel(at, x, length)
    mean = cross @ np.linalg.solve(matrix, y)
    variance = 1 - (cross * np.linalg.solve(matrix, cross.T).T).sum(1)
    return mean, np.sqrt(np.maximum(variance, 1e-12))


def _improvement(best: float, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Expected improvement below ``best``."""
    z = (best - mean) / deviation
    below = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    return (best - mean) * below + deviation * np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
