"""The bytes that a step of the fused kernels moves in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sage_ext.planning.exchanges import Spread
from sage_ext.reference.alias import adds_distances

SIGN = 0.25
"""Bytes of an element's packed signs."""
PACKING = 11.75
"""Bytes an element that packing a DTensor's signs for the kernels moves, and unpacking them: int8 to bfloat16
to bit planes, which are copied, and back."""


def streams(rule: str, group: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """How often a step reads and writes each tensor of a parameter: ``"param"``, ``"grad"``, states by key.

    Every pass over a tensor counts, also where a cache may serve it. Small states are left out.
    """
    moved = {"param": (1, 1), "grad": (1, 0)}
    one_moment = {**moved, "exp_avg": (1, 1)}
    two_moments = {**one_moment, "exp_avg_sq": (1, 1)}
    twice = {"grad": (2, 0)}
    if rule == "alias":
        if not group["memory_efficient"]:
            return {**moved, **twice, "prev_grad": (1, 1)}  # g takes the place of the last one
        if group["gap"] == "lower_bound":
            return {**moved, **twice}
        # g once: what moves W are the signs that were packed while looking at it.
        return {**moved, "signs": (2, 1)}
    if rule == "scale":
        # With momentum g and exp_avg, then exp_avg and W.
        return {**moved, "exp_avg": (2, 1)} if group["momentum"] else {**moved, **twice}
    if rule == "sinkgd":
        return {**moved, "grad": (group["iterations"] + 1, 0)}  # in every iteration, and in the update
    return {
        "adamw": two_moments,
        "lion": one_moment,
        "sign_sgd": one_moment if group.get("momentum") else moved,
        "sage": {**one_moment, **twice},
        "alias_adam": {**two_moments, **twice, "signs": (1, 1)},
    }[rule]


def streams_of_piece(rule: str, group: Mapping[str, Any], piece: Spread) -> dict[str, tuple[int, int]]:
    """The same of what one process has of a parameter that may be cut.

    SinkGD reads the gradient twice an iteration where columns are cut, as their sums wait for the norms of
    rows. ALIAS and ALIAS-Adam look at it once more for what all processes have to know first.
    """
    found = dict(streams(rule, group))
    cut = {dim for dim in piece.cuts if dim is not None}
    if rule == "sinkgd" and len(piece.shape) - 1 in cut:
        found["grad"] = (2 * group["iterations"] + 1, 0)
    if rule in ("alias", "alias_adam") and cut:
        reads = found["grad"][0] + 1
        # The extrema of a gradient are a pass of their own, beside the inner product.
        looks_again = rule == "alias" and "signs" in found and adds_distances(group)
        found["grad"] = (reads + looks_again, 0)
        for key in ("signs", "prev_grad"):
            if key in found:
                found[key] = (found[key][0] + 1, found[key][1])
    return found


def moved_of_piece(
    rule: str,
    group: Mapping[str, Any],
    piece: Spread,
    width: Callable[[str], float],
    *,
    is_packed: bool | None = None,
) -> float:
    """Return the bytes an element that a step reads and writes of what one process has of a parameter.

    Args:
        width: what an element of each tensor takes, in bytes, by the keys of ``streams``; not asked of signs.
        is_packed: whether signs lie packed in the state; None: unless the parameter is cut.
    """
    packed = is_packed if is_packed is not None else all(dim is None for dim in piece.cuts)
    total = 0.0
    for key, (reads, writes) in streams_of_piece(rule, group, piece).items():
        if key == "signs":
            total += (reads + writes) * SIGN + (0.0 if packed else PACKING)
        else:
            total += (reads + writes) * width(key)
    return total
