"""An ``AutoConfig`` as text: what was chosen, and what each candidate would have cost and risked."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import TYPE_CHECKING

from sage_ext.planning.report import size
from sage_ext.routing import ROLES
from sage_ext.selection.candidates import CANDIDATES

if TYPE_CHECKING:
    from sage_ext.selection.config import AutoConfig, Block, Option

Pair = tuple["Block", "Option"]


def table(config: AutoConfig, *, merged: bool) -> str:
    """Return the table of :meth:`AutoConfig.table`."""
    pairs = list(zip(config.blocks, config.chosen, strict=True))
    if not merged:
        rows = [[block.name, block.role, *_cells([(block, option)])] for block, option in pairs]
        return _lines([["parameter", "role", *_HEAD], *rows], left=3)
    rows = []
    for role in ROLES:
        for candidate in CANDIDATES:
            of = [(b, o) for b, o in pairs if (b.role, o.candidate) == (role, candidate)]
            if of:
                rows.append([role, str(len(of)), *_cells(of)])
    return _lines([["role", "tensors", *_HEAD], *rows], left=1, also_left=(2,))


_HEAD = ("candidate", "lr", "parameters", "state", "risk", "weighted")


def _cells(pairs: Sequence[Pair]) -> list[str]:
    """Return candidate, rate, elements, state, risk and weighted risk, of parameters of one candidate."""
    share = fsum(block.share for block, _ in pairs)
    risk = fsum(block.share * option.risk.total for block, option in pairs)
    option = pairs[0][1]
    return [
        option.candidate,
        f"{option.lr:g}",
        f"{sum(block.param.numel() for block, _ in pairs):,}",
        size(sum(option.state_bytes for _, option in pairs)),
        _risk(risk / share if share else 0.0),
        _risk(risk),
    ]


def _risk(value: float) -> str:
    """Return four decimals, or one digit of what they would hide."""
    return f"{value:.0e}" if 0 < value < 5e-5 else f"{value:.4f}"


def risks(config: AutoConfig) -> str:
    """Return what each candidate would risk in each role, and the state that it would keep there."""
    rows = [["candidate", *(role for role in ROLES if any(b.role == role for b in config.blocks))]]
    for candidate in CANDIDATES:
        cells = []
        for role in rows[0][1:]:
            members = [block for block in config.blocks if block.role == role]
            pairs = [(b, o) for b in members for o in b.options if o.candidate == candidate]
            if len(pairs) < len(members):
                cells.append("-")
                continue
            share = fsum(block.share for block, _ in pairs)
            risk = fsum(b.share * o.risk.total for b, o in pairs) / share if share else 0.0
            cells.append(f"{_risk(risk)}, {size(sum(o.state_bytes for _, o in pairs))}")
        if set(cells) != {"-"}:
            rows.append([candidate, *cells])
    return _lines(rows, left=1)


def summary(config: AutoConfig) -> str:
    """Return all of it."""
    state, whole = config.state_bytes, config.adamw_bytes
    lines = [
        table(config, merged=True),
        "",
        f"state: {size(state)}, {100 * state / whole if whole else 0:.1f} % of AdamW's {size(whole)}"
        + ("" if config.state_budget is None else f"; allowed: {size(config.state_budget)}"),
        f"risk: {_risk(config.risk)} (AdamW: 0)",
    ]
    if config.ms is not None:
        allowed = "" if config.ms_budget is None else f"; allowed: {config.ms_budget:g} ms"
        lines.append(f"step: {config.ms:.4g} ms, predicted at {config.bandwidth:.4g} bytes a second{allowed}")
    if config.bound < 0.999 * config.risk:
        lines.append(
            "the search had to leave choices out: the least risk within the budget may be lower, but not "
            f"below {config.bound:.4f}"
        )
    lines += ["", "risk and state of each candidate, if all parameters of a role had it:", "", risks(config)]
    return "\n".join(lines)


def _lines(rows: Sequence[Sequence[str]], *, left: int, also_left: tuple[int, ...] = ()) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    head, *body = rows
    written = [head, ["-" * width for width in widths], *body]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left or column in also_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in written
    )
