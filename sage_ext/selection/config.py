"""What ``sage_ext.autoconfig`` returns: what was measured, what was chosen, and other choices of the same."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import fsum
from typing import Any

from torch import Tensor, nn

from sage_ext.optimizers import validate
from sage_ext.routing import ROLES
from sage_ext.selection import knapsack, report
from sage_ext.selection.candidates import CANDIDATES, REFERENCE, Candidate
from sage_ext.selection.knapsack import Cost
from sage_ext.selection.shadows import Risk, Shadowed

DIGITS = 4
"""Of a rate."""
WRAPPERS = ("module.", "_orig_mod.")
"""What DDP and torch.compile put in front of all names."""


@dataclass(frozen=True)
class Option:
    """A candidate for one parameter."""

    candidate: str
    """One of :data:`~sage_ext.selection.CANDIDATES`."""
    rule: str
    """What a group of :class:`~sage_ext.FusedHybrid` names."""
    lr: float
    """At which it moves parameters of this role as far as AdamW did."""
    weight_decay: float
    """With which it shrinks them as much in a step."""
    settings: Mapping[str, Any]
    """The other hyperparameters in which it differs from the rule's defaults."""
    state_bytes: int
    """Of optimizer state."""
    moved_bytes: int
    """That a step reads and writes in memory."""
    risk: Risk
    """How far it was from AdamW; not weighted."""


@dataclass(frozen=True, eq=False)
class Block:
    """A parameter, and what it may have."""

    name: str
    """In the model."""
    param: Tensor = field(repr=False)
    """The parameter itself."""
    role: str
    """One of :data:`sage_ext.routing.ROLES`."""
    share: float
    """Of the elements of all parameters."""
    options: tuple[Option, ...]
    """In the order of :data:`~sage_ext.selection.CANDIDATES`."""


@dataclass(frozen=True)
class Point:
    """A choice that has the least risk at its state."""

    state_bytes: int
    """Of all optimizer state."""
    risk: float
    """Of all parameters, weighted by their shares."""
    ms: float | None
    """Predicted time of a step; None where no bandwidth is known."""
    shares: Mapping[str, float]
    """Candidate -> share of the elements that have it."""


@dataclass(frozen=True, eq=False)
class AutoConfig:
    """Which rule each parameter shall have. ``print`` it; ``FusedHybrid(config.groups)`` is the optimizer."""

    blocks: tuple[Block, ...]
    """All parameters that are trained, in the model's order."""
    picks: tuple[int, ...]
    """For each of them the place of its option."""
    state_budget: int | None
    """Bytes that were allowed."""
    ms_budget: float | None
    """Milliseconds that were allowed."""
    bandwidth: float | None
    """Of the memory, in bytes a second. Time is predicted by it; with None it is not."""
    by_role: bool
    """Whether all parameters of a role have one candidate."""
    is_optimal: bool
    """Whether no choice within the budget has less risk. With both budgets and many parameters the search may
    have had to leave some out."""
    bound: float
    """No choice within the budget has less risk than this."""

    def within(self, *, state_bytes: int | None = None, ms: float | None = None) -> AutoConfig:
        """Return the choice within another budget, from what was measured.

        Args:
            state_bytes, ms: as :func:`sage_ext.autoconfig` has them.

        Raises:
            ValueError: nothing is within the budget, or ``ms`` is given and no bandwidth is known.
        """
        state_bytes = check_budget(state_bytes, ms)
        names, items = self._items()
        most = [sum(max(cost.uses[i] for cost in costs) for costs in items) for i in (0, 1)]
        limits = [
            None if limit is None else min(limit, of)
            for limit, of in zip((state_bytes, self._moved_within(ms, most[1])), most, strict=True)
        ]
        try:
            chosen = knapsack.choose(items, (limits[0], limits[1]))
        except knapsack.TooLittleError as error:
            raise ValueError(self._too_little(error, state_bytes, ms)) from None
        return replace(
            self,
            picks=self._picks(names, chosen.picks),
            state_budget=state_bytes,
            ms_budget=ms,
            is_optimal=chosen.is_optimal,
            bound=chosen.bound,
        )

    # ------------------------------------------------------------------------------------- what was chosen

    @property
    def chosen(self) -> tuple[Option, ...]:
        """The option of each parameter."""
        return tuple(block.options[pick] for block, pick in zip(self.blocks, self.picks, strict=True))

    @property
    def rules(self) -> dict[str, str]:
        """Name of a parameter -> its candidate."""
        return {block.name: option.candidate for block, option in zip(self.blocks, self.chosen, strict=True)}

    @property
    def state_bytes(self) -> int:
        """Of all optimizer state, as ``FusedHybrid(config.groups)`` allocates it."""
        return sum(option.state_bytes for option in self.chosen)

    @property
    def moved_bytes(self) -> int:
        """That a step reads and writes in memory."""
        return sum(option.moved_bytes for option in self.chosen)

    @property
    def ms(self) -> float | None:
        """Predicted time of a step; None where no bandwidth is known."""
        return None if self.bandwidth is None else _ms(self.moved_bytes, self.bandwidth)

    @property
    def risk(self) -> float:
        """Of all parameters, weighted by their shares; 0 for AdamW on all."""
        return self._point(self.picks).risk

    @property
    def adamw_bytes(self) -> int:
        """Of AdamW's state with moments in float32, for all parameters."""
        return sum(2 * block.param.numel() * max(block.param.element_size(), 4) + 4 for block in self.blocks)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for :class:`~sage_ext.FusedHybrid`, made anew each time: names and parameters,
        ``"role"``, ``"rule"``, ``"lr"``, ``"weight_decay"``, and what differs from the rule's defaults."""
        return self._groups({block.name: (block.name, block.param) for block in self.blocks})

    def groups_for(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the same groups with the parameters of another model: one that has been sharded or loaded
        since, or is larger, and has the same names.

        Args:
            model: has to have a parameter of each name, and no other that is trained. ``module.`` or
                ``_orig_mod.`` in front of all names, as DDP and torch.compile have it, does not matter.

        Raises:
            ValueError: a name is missing, or has no rule.
        """
        own = _without_wrappers({n: (n, p) for n, p in model.named_parameters() if p.requires_grad})
        names = _without_wrappers({block.name: block.name for block in self.blocks})
        for name in names:
            if name not in own:
                raise ValueError(f"model: has no trained parameter {name!r}, which this configuration names")
        for name in own:
            if name not in names:
                raise ValueError(
                    f"model: {name!r} has no rule in this configuration; freeze it, or call autoconfig on a "
                    "model that has it"
                )
        return self._groups({names[name]: pair for name, pair in own.items()})

    def _groups(self, params: Mapping[str, tuple[str, Tensor]]) -> list[dict[str, Any]]:
        made: dict[Any, dict[str, Any]] = {}
        for role in ROLES:
            for candidate in CANDIDATES:
                for block, option in zip(self.blocks, self.chosen, strict=True):
                    if (block.role, option.candidate) != (role, candidate):
                        continue
                    own = {"lr": option.lr, "weight_decay": option.weight_decay, **option.settings}
                    key = (role, candidate, *sorted((name, str(value)) for name, value in own.items()))
                    group = made.setdefault(key, {"params": [], "role": role, "rule": option.rule, **own})
                    group["params"].append(params[block.name])
        return list(made.values())

    # ------------------------------------------------------------------------------------------ the others

    @cached_property
    def front(self) -> tuple[Point, ...]:
        """Choices of growing state and falling risk, each the best within its own state, whatever the time.

        They are those on the convex hull of all choices; between two of them there may be others.
        """
        names, items = self._items()
        return tuple(self._point(self._picks(names, picks)) for picks in knapsack.front(items))

    def alone(self, candidate: str) -> Point | None:
        """Return what one candidate costs for all parameters; None if it does not apply to all.

        Args:
            candidate: one of :data:`~sage_ext.selection.CANDIDATES`.
        """
        picks = [
            index
            for block in self.blocks
            for index, option in enumerate(block.options)
            if option.candidate == candidate
        ]
        return self._point(picks) if len(picks) == len(self.blocks) else None

    def table(self, *, merged: bool = True) -> str:
        """Return memory against risk as text.

        Args:
            merged: a line for each role and candidate that was chosen; else a line for each parameter.
        """
        return report.table(self, merged=merged)

    def __str__(self) -> str:
        return report.summary(self)

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draw the front, and which rules are on it, into a file.

        Args:
            path: of a kind that matplotlib writes, such as .png or .svg.

        Raises:
            ImportError: there is no matplotlib (``pip install matplotlib``).
        """
        from sage_ext.selection.picture import draw

        draw(self, path)

    # ------------------------------------------------------------------------------------------- knapsack

    def _items(self) -> tuple[list[list[str]], list[list[Cost]]]:
        """Return candidates and costs of what is chosen for: parameters, or the roles of all of them."""
        names, items = [], []
        for members in self._members():
            common = [
                name
                for name in CANDIDATES
                if all(any(option.candidate == name for option in block.options) for block in members)
            ]
            if not common:
                raise ValueError(
                    f"candidates: none applies to all parameters of role {members[0].role!r}; give more, or "
                    "blocks='tensor'"
                )
            costs = []
            for name in common:
                pairs = [(b, next(o for o in b.options if o.candidate == name)) for b in members]
                risk = fsum(block.share * option.risk.total for block, option in pairs)
                uses = (sum(o.state_bytes for _, o in pairs), sum(o.moved_bytes for _, o in pairs))
                costs.append(Cost(risk, uses))
            names.append(common)
            items.append(costs)
        return names, items

    def _members(self) -> list[list[Block]]:
        if not self.by_role:
            return [[block] for block in self.blocks]
        found = ([block for block in self.blocks if block.role == role] for role in ROLES)
        return [members for members in found if members]

    def _picks(self, names: Sequence[Sequence[str]], picks: Iterable[int]) -> tuple[int, ...]:
        """Return the place of each parameter's option."""
        chosen = {
            id(block): of[pick]
            for members, of, pick in zip(self._members(), names, picks, strict=True)
            for block in members
        }
        return tuple(
            [option.candidate for option in block.options].index(chosen[id(block)]) for block in self.blocks
        )

    def _point(self, picks: Sequence[int]) -> Point:
        pairs = [(block, block.options[pick]) for block, pick in zip(self.blocks, picks, strict=True)]
        moved = sum(option.moved_bytes for _, option in pairs)
        shares = {name: fsum(b.share for b, o in pairs if o.candidate == name) for name in CANDIDATES}
        return Point(
            state_bytes=sum(option.state_bytes for _, option in pairs),
            risk=fsum(block.share * option.risk.total for block, option in pairs),
            ms=None if self.bandwidth is None else _ms(moved, self.bandwidth),
            shares={name: share for name, share in shares.items() if share},
        )

    def _moved_within(self, ms: float | None, most: int) -> int | None:
        """Return the bytes that a step may move, of ``most`` that it can."""
        if ms is None:
            return None
        if self.bandwidth is None:
            raise ValueError("ms: no bandwidth is known; give bandwidth= or hardware= to autoconfig")
        if _ms(most, self.bandwidth) <= ms:
            return most
        moved = math.floor(ms * 1e-3 * self.bandwidth)
        while moved and _ms(moved, self.bandwidth) > ms:
            moved -= 1
        return moved

    def _too_little(self, error: knapsack.TooLittleError, state_bytes: int | None, ms: float | None) -> str:
        if error.resource == 0:
            beside = "" if ms is None or not error.beside_others else f" with ms={ms:g} beside it"
            return (
                f"state_bytes: {state_bytes:,} is too little{beside}; the smallest possible is "
                f"{error.least:,}. 'sign_sgd' without momentum, 'sinkgd' and 'scale' keep nothing: have "
                "them in candidates="
            )
        least = _ms(error.least, self.bandwidth or math.nan)
        beside = ""
        if state_bytes is not None and error.beside_others:
            beside = f" with state_bytes={state_bytes:,} beside it"
        return (
            f"ms: {ms:g} is too little{beside}; the smallest possible is "
            f"{math.ceil(least * 1e6) / 1e6:g}, at {self.bandwidth:.4g} bytes a second. 'sign_sgd' moves "
            "least: have it in candidates="
        )


def first_choice(
    shadowed: Sequence[Shadowed],
    rates: Mapping[str, float],
    weight_decay: float,
    *,
    by_role: bool,
    bandwidth: float | None,
    state_bytes: int | None,
    ms: float | None,
) -> AutoConfig:
    """Return the choice within a budget, of candidates that have been watched; without risks before that.

    Args:
        shadowed: the parameters with what was seen of their candidates.
        rates: role -> AdamW's rate.
        weight_decay: AdamW's.
        by_role: one candidate for each role.
        bandwidth: of the memory, in bytes a second.
        state_bytes, ms: the budget.

    Raises:
        ValueError: nothing is within the budget.
    """
    total = max(sum(of.entry.param.numel() for of in shadowed), 1)
    matched = _matched(shadowed)
    blocks = []
    for of in shadowed:
        role, decay = of.entry.role, weight_decay if of.entry.decays else 0.0
        options = []
        for index, candidate in enumerate(of.candidates):
            lr, own_decay = rates[role], decay
            if candidate.rule.name != REFERENCE:
                lr = _rounded(lr * matched[role, candidate.name])
                own_decay = _rounded(decay * rates[role] / lr)
            options.append(_option(candidate, lr, own_decay, of.risk(index)))
        share = of.entry.param.numel() / total
        blocks.append(Block(of.entry.name, of.entry.param, role, share, tuple(options)))
    empty = AutoConfig(tuple(blocks), (), None, None, bandwidth, by_role, True, 0.0)
    return empty.within(state_bytes=state_bytes, ms=ms)


def _without_wrappers(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return what has names, by the names without what stands in front of all of them."""
    plain = dict(named)
    while plain and (front := next((w for w in WRAPPERS if all(n.startswith(w) for n in plain)), None)):
        plain = {name.removeprefix(front): value for name, value in plain.items()}
    return plain


def check_budget(state_bytes: Any, ms: Any) -> int | None:
    """Return the bytes; raise ValueError for a budget that cannot be one."""
    whole: int | None = None
    if state_bytes is not None:
        if not isinstance(state_bytes, bool) and isinstance(state_bytes, (numbers.Integral, float)):
            is_whole = math.isfinite(state_bytes) and state_bytes == int(state_bytes)
            whole = int(state_bytes) if is_whole else None
        if whole is None or whole < 0:
            raise ValueError(
                f"state_bytes: got {state_bytes!r}, expected a whole number of bytes >= 0, such as "
                "500 * 2**20, or None for no limit"
            )
    if ms is not None:
        validate.positive(ms, "ms", " milliseconds")
    return whole


def _option(candidate: Candidate, lr: float, weight_decay: float, risk: Risk) -> Option:
    return Option(
        candidate=candidate.name,
        rule=candidate.rule.name,
        lr=lr,
        weight_decay=weight_decay,
        settings=candidate.given,
        state_bytes=candidate.state_bytes,
        moved_bytes=candidate.moved_bytes,
        risk=risk,
    )


def _matched(shadowed: Sequence[Shadowed]) -> dict[tuple[str, str], float]:
    """Return, for a role and a candidate, AdamW's size (rms) over the candidate's, of all its parameters and
    measured steps together; 1 where the candidate did not move."""
    sums: dict[tuple[str, str], tuple[float, float]] = {}
    for of in shadowed:
        for candidate, seen in zip(of.candidates, of.seen or [[] for _ in of.candidates], strict=True):
            key = (of.entry.role, candidate.name)
            reference, own = sums.get(key, (0.0, 0.0))
            reference += fsum(step.reference_squares for step in seen)
            sums[key] = (reference, own + fsum(step.squares for step in seen))
    return {
        key: math.sqrt(reference / own) if reference and own else 1.0
        for key, (reference, own) in sums.items()
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _ms(moved_bytes: int, bandwidth: float) -> float:
    return moved_bytes / bandwidth * 1e3
