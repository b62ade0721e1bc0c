"""Where the names of points go: beside them, or further off with a line that leads there.

All of it is geometry in points (1/72 inch); what is drawn with it is in ``scatter``. Every name has some
places to choose from. From several beginnings each takes, in turns, the place that covers and crosses least
given where the others are, until none wants to move; the best of these ends is taken. The same points always
come out the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]  # x0, y0, x1, y1
Point = tuple[float, float]

AWAY = 7.0  # from the middle of a marker to a name that is beside it, across or up
DISTANCES = (0, 6, 12, 19, 27, 36, 46, 58, 72, 90)  # further off than that, with a line
STEPS = 16  # directions
KEPT = 64  # of these places, those that are best without the other names
PADDING = 1.5  # around a name
BEGINNINGS, ROUNDS = 60, 30

# What a place costs, beside its distance in points.
OUTSIDE, ON_NAME, ON_MARKER, LINE_ON_NAME, LINE_ON_MARKER, LINES_CROSS = 1e5, 1e4, 3e3, 600.0, 400.0, 300.0
NEARER_TO_ANOTHER, BY_ANOTHER, ON_OTHER, A_LINE = 500.0, 60.0, 9.0, 12.0


@dataclass(frozen=True)
class Place:
    box: Box
    """Of the name."""
    line: tuple[Point, Point] | None
    """From the point to the name; None: it is beside it."""


def place(
    points: Sequence[Point],
    sizes: Sequence[Point],
    taken: Sequence[Box],
    limits: Box,
    rather_not: Sequence[Box] = (),
) -> list[Place]:
    """A place for each name.

    Args:
        points: what is named.
        sizes: width and height of each name.
        taken: boxes that no name may cover: markers, bars of spread.
        limits: the box that all names stay in.
        rather_not: boxes that a name had better leave free too.
    """
    options, boxes, lines, alone = [], [], [], []
    for point, size in zip(points, sizes, strict=True):
        every = _options(*point, *size)
        box = np.array([option.box for option in every])
        line = np.array([option.line or (point, point) for option in every])
        cost = _alone(box, line, point, points, taken, limits)
        cost += sum(ON_OTHER * _cover(box, np.array(other), 0.0) for other in rather_not)
        kept = np.argsort(cost, kind="stable")[:KEPT]
        options.append([every[k] for k in kept])
        boxes.append(box[kept])
        lines.append(line[kept])
        alone.append(cost[kept])
    beside = {}  # of two names: a cost for each place of the one (rows) and of the other
    for i in range(len(points)):
        for j in range(i):
            beside[i, j] = _beside(boxes[i][:, None], lines[i][:, None], boxes[j][None], lines[j][None])
            beside[j, i] = beside[i, j].T
    draw = random.Random(0)
    order = sorted(range(len(points)), key=lambda i: -float(alone[i][:8].sum()))  # hard ones first
    ends = []
    for _ in range(BEGINNINGS):
        ends.append(_settle(order, alone, beside))
        order = draw.sample(order, len(order))
    _, chosen = min(ends, key=lambda end: end[0])
    return [options[i][chosen[i]] for i in range(len(points))]


def _settle(
    order: Sequence[int], alone: Sequence[np.ndarray], beside: dict[tuple[int, int], np.ndarray]
) -> tuple[float, dict[int, int]]:
    """What all cost together, and the place of each, when none gains by another alone."""
    chosen: dict[int, int] = {}
    for _ in range(ROUNDS):
        before = dict(chosen)
        for i in order:
            cost = alone[i] + sum(beside[i, j][:, k] for j, k in chosen.items() if j != i)
            chosen[i] = int(cost.argmin())
        if chosen == before:
            break
    pairs = sum(beside[i, j][chosen[i], chosen[j]] for i in chosen for j in range(i))
    return float(sum(alone[i][k] for i, k in chosen.items()) + pairs), chosen


def _options(x: float, y: float, width: float, height: float) -> list[Place]:
    found = []
    for further in DISTANCES:
        for step in range(STEPS):
            across, up = math.cos(math.tau * step / STEPS), math.sin(math.tau * step / STEPS)
            largest = max(abs(across), abs(up))
            middle_x = x + across * (further + (AWAY + width / 2) / largest)
            middle_y = y + up * (further + (AWAY + height / 2) / largest)
            left, low = middle_x - width / 2, middle_y - height / 2
            box = (left, low, left + width, low + height)
            end = (min(max(x, left), left + width), min(max(y, low), low + height))
            found.append(Place(box, ((x, y), end) if further else None))
    return found


def _alone(
    boxes: np.ndarray,
    lines: np.ndarray,
    point: Point,
    points: Sequence[Point],
    taken: Sequence[Box],
    limits: Box,
) -> np.ndarray:
    """What each place costs, whatever the others' are."""
    step = np.arange(len(boxes))
    further = np.array(DISTANCES, float)[step // STEPS]
    # Beside a point, to its right is where people look first.
    cost = further + A_LINE * (further > 0) + 1.5 * (1 - np.cos(math.tau * (step % STEPS) / STEPS))
    inside = (boxes[:, :2] >= limits[:2]).all(1) & (boxes[:, 2:] <= limits[2:]).all(1)
    cost += OUTSIDE * ~inside
    for box in taken:
        cost += ON_MARKER * _cover(boxes, np.array(box), PADDING)
    for other in points:
        if math.dist(other, point) > 1e-6:
            cost += LINE_ON_MARKER * (_distance(lines, np.array(other)) < 5.0)
            theirs = _away(boxes, np.array(other))
            cost += NEARER_TO_ANOTHER * ((further == 0) & (theirs < _away(boxes, np.array(point)) + 2.0))
            cost += BY_ANOTHER * (theirs < AWAY + 4.0)
    return cost


# All below is for arrays of boxes [..., 4] and of lines [..., 2 ends, 2], of shapes that go together. A line
# whose ends are the same is none.


def _beside(boxes: np.ndarray, lines: np.ndarray, box: np.ndarray, line: np.ndarray) -> np.ndarray:
    """What two names and their lines cost beside one another."""
    return (
        ON_NAME * _cover(boxes, box, PADDING)
        + LINE_ON_NAME * _enters(line, boxes)
        + LINE_ON_NAME * _enters(lines, box)
        + LINES_CROSS * _cross(lines, line)
    )


def _cover(box: np.ndarray, other: np.ndarray, padding: float) -> np.ndarray:
    """Whether a box, and so much around it, covers some of another."""
    return (box[..., :2] - padding < other[..., 2:]).all(-1) & (other[..., :2] < box[..., 2:] + padding).all(
        -1
    )


def _away(box: np.ndarray, point: np.ndarray) -> np.ndarray:
    """From a point to a box."""
    nearest = np.clip(point, box[..., :2], box[..., 2:])
    return np.linalg.norm(nearest - point, axis=-1)


def _distance(line: np.ndarray, point: np.ndarray) -> np.ndarray:
    """From a point to a line; infinite without a line."""
    begin, way = line[..., 0, :], line[..., 1, :] - line[..., 0, :]
    length = (way**2).sum(-1)
    share = ((point - begin) * way).sum(-1) / np.where(length > 0, length, 1)
    nearest = begin + np.clip(share, 0, 1)[..., None] * way
    return np.where(length > 0, np.linalg.norm(nearest - point, axis=-1), math.inf)


def _enters(line: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Whether a line comes into a box."""
    begin, way = line[..., 0, :], line[..., 1, :] - line[..., 0, :]
    safe = np.where(np.abs(way) > 1e-9, way, 1e-9)
    first, second = (box[..., :2] - begin) / safe, (box[..., 2:] - begin) / safe
    enter, leave = np.minimum(first, second).max(-1), np.maximum(first, second).min(-1)
    return (way != 0).any(-1) & (enter < np.minimum(leave, 1)) & (leave > 0)


def _cross(line: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether a line crosses another."""

    def side(of: np.ndarray, point: np.ndarray) -> np.ndarray:
        way, to = of[..., 1, :] - of[..., 0, :], point - of[..., 0, :]
        return way[..., 0] * to[..., 1] - way[..., 1] * to[..., 0]

    return (side(line, other[..., 0, :]) * side(line, other[..., 1, :]) < 0) & (
        side(other, line[..., 0, :]) * side(other, line[..., 1, :]) < 0
    )
