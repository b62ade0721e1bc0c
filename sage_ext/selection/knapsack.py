"""One option for each item, at the least risk, within limits: a multiple-choice knapsack, solved exactly.

Multipliers of the limits (Lagrange) give a bound, and with it a search over partial choices drops what cannot
end well: what is left is small, unless there are hundreds of items and two limits. Then the search keeps the
most promising choices alone, and what it returns is within the limits, but may miss the optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import fsum, inf
from typing import NamedTuple

import torch
from torch import Tensor

WORK = (1 << 8, 1 << 18, 1 << 16)
"""Partial choices that the search keeps, in all items together, by the number of limits."""
PAIRWISE = 1 << 10
"""Partial choices up to which each is compared with each where there are two limits."""
RIVALS = 1 << 7
"""Of more than that, with how many of the most promising each is compared."""
DOUBLINGS, HALVINGS, ROUNDS = 200, 50, 4


class Cost(NamedTuple):
    """What an option costs."""

    risk: float
    uses: tuple[int, ...]
    """Of each resource, the same number for all options."""


class TooLittleError(Exception):
    """No choice is within the limits."""

    def __init__(self, resource: int, least: int, *, beside_others: bool = True) -> None:
        super().__init__(f"resource {resource} needs {least}")
        self.resource, self.least, self.beside_others = resource, least, beside_others


@dataclass(frozen=True)
class Chosen:
    """An option for each item."""

    picks: tuple[int, ...]
    is_optimal: bool
    """Whether nothing better can be within the limits, up to rounding."""
    bound: float
    """No choice within the limits has less risk."""


def choose(items: Sequence[Sequence[Cost]], limits: Sequence[int | None]) -> Chosen:
    """Return the option of each item, so that the sum of risks is least and no sum of uses is over its limit.

    Of equals it is the same each time. ``limits``: None for a resource that has none.

    Raises:
        TooLittleError: nothing is within the limits. It names one of them, and the least that this one would
            have to be with the others as they are; where no number would do, with none.
    """
    kept = [index for index, limit in enumerate(limits) if limit is not None]
    problem = _Problem(items, kept, [limit for limit in limits if limit is not None])
    for place, resource in enumerate(kept):
        if (least := int(problem.least_uses[:, place].sum())) > problem.limits[place]:
            beside = _least_beside(items, limits, resource)
            raise TooLittleError(
                resource, least if beside is None else beside, beside_others=beside is not None
            )
    if len(kept) == 2:
        # Often one of them keeps the other too, and one is solved much sooner.
        for resource in kept:
            alone = choose(items, [limit if k == resource else None for k, limit in enumerate(limits)])
            if all(_sum(items, alone.picks, k) <= (limits[k] or 0) for k in kept):
                return alone
    found = problem.solve()
    if found is None:
        # Each limit could be kept alone, so it is the first that is too little beside the others.
        picks = _least_use(items, limits, kept[0])
        total = _sum(items, picks, kept[0])
        if total <= problem.limits[0]:
            return Chosen(picks, False, problem.bound(problem.prices))
        raise TooLittleError(kept[0], total)
    return found


def _least_beside(items: Sequence[Sequence[Cost]], limits: Sequence[int | None], resource: int) -> int | None:
    """Return the least use of a resource within the limits of the others; None where those are too little."""
    try:
        return _sum(items, _least_use(items, limits, resource), resource)
    except TooLittleError:
        return None


def _least_use(
    items: Sequence[Sequence[Cost]], limits: Sequence[int | None], resource: int
) -> tuple[int, ...]:
    others = [None if index == resource else limit for index, limit in enumerate(limits)]
    as_risk = [[Cost(float(cost.uses[resource]), cost.uses) for cost in item] for item in items]
    return choose(as_risk, others).picks


def _sum(items: Sequence[Sequence[Cost]], picks: Sequence[int], resource: int) -> int:
    return sum(item[pick].uses[resource] for item, pick in zip(items, picks, strict=True))


class _Problem:
    """The costs as tensors on the CPU, ``[items, options]``; an item of fewer options has infinite risks."""

    def __init__(
        self, items: Sequence[Sequence[Cost]], resources: Sequence[int], limits: Sequence[int]
    ) -> None:
        self.items = items
        widest = max(map(len, items), default=0)
        self.limits = torch.tensor(list(limits), dtype=torch.int64, device="cpu")
        self.risk = torch.full((len(items), widest), inf, dtype=torch.float64, device="cpu")
        self.uses = torch.zeros(len(items), widest, len(limits), dtype=torch.int64, device="cpu")
        for row, item in enumerate(items):
            for column, cost in enumerate(item):
                self.risk[row, column] = cost.risk
                self.uses[row, column] = torch.tensor(
                    [cost.uses[k] for k in resources], dtype=torch.int64, device="cpu"
                )
        far = torch.iinfo(torch.int64).max // max(len(items), 1)
        absent = self.risk.isinf().unsqueeze(-1)
        self.least_uses = self.uses.masked_fill(absent, far).amin(dim=1) if items else self.uses.sum(dim=1)
        self.prices = torch.zeros(len(limits), dtype=torch.float64, device="cpu")
        self.best_risk = inf
        self.best_picks: list[int] | None = None

    def solve(self) -> Chosen | None:
        self.prices = self._multipliers()
        self._improve()
        is_whole = self._search(self.prices)
        if self.best_picks is None:
            return None
        bound = self.best_risk if is_whole else min(self.bound(self.prices), self.best_risk)
        return Chosen(tuple(self.best_picks), is_whole, bound)

    def bound(self, prices: Tensor) -> float:
        """Return what no choice within the limits can go below, by these prices."""
        dual = self._relaxed(prices).amin(dim=1).sum() - (self.limits.double() * prices).sum()
        return max(float(dual), 0.0)

    def _relaxed(self, multipliers: Tensor) -> Tensor:
        """Return what each option costs where a use has its price."""
        return self.risk + (self.uses.double() * multipliers).sum(dim=-1)

    def _try(self, multipliers: Tensor) -> Tensor:
        """Choose for each item by itself, keep it if it is the best yet, and return its uses."""
        picks = self._relaxed(multipliers).argmin(dim=1)
        uses = self.uses[torch.arange(len(picks), device="cpu"), picks].sum(dim=0)
        if bool((uses <= self.limits).all()):
            self._keep(picks.tolist())
        return uses

    def _keep(self, picks: list[int]) -> None:
        risk = fsum(item[pick].risk for item, pick in zip(self.items, picks, strict=True))
        if risk < self.best_risk:
            self.best_risk, self.best_picks = risk, picks

    def _multipliers(self) -> Tensor:
        """Return prices at which the limits are about kept: each by bisection, in turn."""
        prices = torch.zeros(len(self.limits), dtype=torch.float64, device="cpu")
        uses = self._try(prices)
        if bool((uses <= self.limits).all()):
            return prices
        for _ in range(ROUNDS if len(self.limits) > 1 else 1):
            for k in range(len(self.limits)):
                low, high = 0.0, 1.0 / max(int(self.least_uses[:, k].sum()), int(self.limits[k]), 1)
                prices[k] = 0.0
                if self._try(prices)[k] <= self.limits[k]:
                    continue
                for _ in range(DOUBLINGS):
                    prices[k] = high
                    if self._try(prices)[k] <= self.limits[k]:
                        break
                    low, high = high, 2 * high
                for _ in range(HALVINGS):
                    prices[k] = middle = (low + high) / 2
                    if self._try(prices)[k] <= self.limits[k]:
                        high = middle
                    else:
                        low = middle
                prices[k] = high
        return prices

    def _improve(self) -> None:
        """Change one item at a time, the one that gains most, while that stays within the limits."""
        if self.best_picks is None:
            return
        picks = torch.tensor(self.best_picks, dtype=torch.int64, device="cpu")
        rows = torch.arange(len(picks), device="cpu")
        while len(picks):
            own = self.uses[rows, picks]
            room = self.limits - own.sum(dim=0)
            fits = (self.uses - own.unsqueeze(1) <= room).all(dim=-1)
            gain = (self.risk[rows, picks].unsqueeze(1) - self.risk).masked_fill(~fits, -inf)
            best = int(gain.argmax())
            row, column = divmod(best, gain.shape[1])
            if not float(gain[row, column]) > 0:
                break
            picks[row] = column
        self._keep(picks.tolist())

    def _search(self, prices: Tensor) -> bool:
        """Look for a better choice, item by item; return whether nothing was left out that might be one."""
        count = len(self.risk)
        order = sorted(range(count), key=lambda row: -int(self.uses[row].sum()))
        relaxed = self._relaxed(prices).amin(dim=1)
        rest_bound = [0.0] * (count + 1)
        rest_uses = [torch.zeros_like(self.limits)] * (count + 1)
        for place in range(count - 1, -1, -1):
            rest_bound[place] = rest_bound[place + 1] + float(relaxed[order[place]])
            rest_uses[place] = rest_uses[place + 1] + self.least_uses[order[place]]
        risk = torch.zeros(1, dtype=torch.float64, device="cpu")
        uses = torch.zeros(1, len(self.limits), dtype=torch.int64, device="cpu")
        history: list[tuple[Tensor, Tensor]] = []
        is_whole = True
        width = max(WORK[len(self.limits)] // max(count, 1), 1 << 8)
        # What rounding adds up to must not pass for an improvement.
        worth_it = self.best_risk * (1 - 1e-12)
        for place, row in enumerate(order):
            options = self.risk[row].isfinite().nonzero().flatten()
            new_risk = (risk.unsqueeze(1) + self.risk[row, options]).flatten()
            new_uses = (uses.unsqueeze(1) + self.uses[row, options]).flatten(0, 1)
            bound = new_risk + rest_bound[place + 1]
            bound = bound + ((new_uses - self.limits).double() * prices).sum(dim=-1)
            fits = (new_uses + rest_uses[place + 1] <= self.limits).all(dim=-1)
            keep = (fits & (bound < worth_it)).nonzero().flatten()
            keep = keep[_undominated(new_risk[keep], new_uses[keep], bound[keep])]
            if len(keep) > width:
                is_whole = False
                keep = keep[bound[keep].argsort(stable=True)[:width].sort().values]
            if len(keep) == 0:
                return is_whole
            parents = torch.div(keep, len(options), rounding_mode="floor")
            history.append((parents, options[keep % len(options)]))
            risk, uses = new_risk[keep], new_uses[keep]
        place = int(risk.argmin()) if count else 0
        picks = [0] * count
        for row, (parents, columns) in zip(reversed(order), reversed(history), strict=True):
            picks[row] = int(columns[place])
            place = int(parents[place])
        self._keep(picks)
        return is_whole


def _undominated(risk: Tensor, uses: Tensor, bound: Tensor) -> Tensor:
    """Return the places of partial choices than which no other has less or the same of everything.

    With two limits and very many of them each is compared with those of the least bounds alone.
    """
    if len(risk) == 0:
        return torch.zeros(0, dtype=torch.int64, device="cpu")
    order = risk.argsort(stable=True)
    if uses.shape[1] == 0:
        return order[:1]
    for k in range(uses.shape[1] - 1, -1, -1):
        order = order[uses[order, k].argsort(stable=True)]
    risk, uses = risk[order], uses[order]
    if uses.shape[1] == 1:
        least = risk.cummin(dim=0).values
        keep = torch.ones(len(risk), dtype=torch.bool, device="cpu")
        keep[1:] = risk[1:] < least[:-1]
        return order[keep]
    keep = torch.ones(len(risk), dtype=torch.bool, device="cpu")
    keep[1:] = (uses[1:] != uses[:-1]).any(dim=-1)
    order, risk, uses = order[keep], risk[keep], uses[keep]
    rivals = torch.arange(len(order), device="cpu")
    if len(order) > PAIRWISE:
        rivals = bound[order].argsort(stable=True)[:RIVALS]
    no_more = (uses[rivals].unsqueeze(0) <= uses.unsqueeze(1)).all(dim=-1)
    beaten = no_more & (risk[rivals].unsqueeze(0) <= risk.unsqueeze(1))
    beaten[rivals, torch.arange(len(rivals), device="cpu")] = False  # by itself
    return order[~beaten.any(dim=1)]


def front(items: Sequence[Sequence[Cost]], resource: int = 0) -> list[tuple[int, ...]]:
    """Return choices of growing use of one resource and falling risk, each the best within its own use.

    They are those on the convex hull of all such choices. Between two of them there may be others.
    """
    steps: list[tuple[float, int, int]] = []  # gain for a unit, item, option that it goes to
    picks = []
    for row, item in enumerate(items):
        hull: list[int] = []
        order = sorted(range(len(item)), key=lambda column: (item[column].uses[resource], item[column].risk))
        for column in order:
            if hull and item[column].risk >= item[hull[-1]].risk:
                continue
            while len(hull) > 1 and _slope(item, hull[-2], hull[-1], resource) <= _slope(
                item, hull[-1], column, resource
            ):
                hull.pop()
            if hull and item[column].uses[resource] == item[hull[-1]].uses[resource]:
                continue
            hull.append(column)
        picks.append(hull[0])
        steps += [(_slope(item, before, after, resource), row, after) for before, after in pairwise(hull)]
    points = [tuple(picks)]
    for _, row, column in sorted(steps, key=lambda step: -step[0]):
        picks[row] = column
        points.append(tuple(picks))
    return points


def _slope(item: Sequence[Cost], before: int, after: int, resource: int) -> float:
    """Return how much risk goes for a unit of the resource."""
    more = item[after].uses[resource] - item[before].uses[resource]
    return (item[before].risk - item[after].risk) / more if more else inf
