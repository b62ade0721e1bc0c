"""The scratch memory of the kernels in bytes, from shapes: what csrc plans, written down once more.

``tests/python/test_plan_memory.py`` compares every plan here with the one that csrc makes of a shape, and
the sums with what steps allocate. Constants have the names that they have there: csrc/core/launch_plan.cpp,
csrc/cpu/sinkgd.cpp, csrc/cuda. A shape is what this process has of a parameter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import gcd, prod

Shape = Sequence[int]

FLOAT, DOUBLE = 4, 8
MIN_WIDTH = 256
REDUCE_BLOCK = 1 << 16
MAX_ROW_BLOCKS = 256
COLUMN_TILE = 4096
SINKHORN_BLOCK = 49152
SINKHORN_ROWS = 64
MAX_SINKHORN_ROWS = 256
SOLO_MATRIX = 1 << 17
# Of the CUDA kernels:
GPU_BLOCKS = 2048
MIN_GPU_ROWS = 16
MIN_PANEL_ROWS, MAX_PANEL_ROWS = 32, 128
COLUMN_BLOCKS = 1024
COLUMN_THREADS = 256
SINKHORN_THREADS, WIDE_SINKHORN_THREADS = 256, 512
SINKHORN_VECTORS = 8
HELD_VECTORS = (1, 2, 3, 4, 6)  # and 8
MIN_SINKHORN_TEAM = 8
VEC_BYTES = 16
LINE = 128
MAP_CHUNK = 16384
MAX_SLOTS = 8192


def _div(a: int, b: int) -> int:
    return -(-a // b)


def _up(value: int, multiple: int) -> int:
    return _div(value, multiple) * multiple


def _bit_ceil(value: int) -> int:
    return 1 << max(value - 1, 0).bit_length()


def _clamp(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def sage_matrix(shape: Shape) -> tuple[int, int]:
    """Return rows and columns as SAGE sees them: a tensor of fewer than two dimensions is one row."""
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))


def trailing_matrices(shape: Shape) -> tuple[int, int, int]:
    """Return how many matrices SinkGD and SCALE see, their rows and their columns."""
    return prod(shape[:-2]), shape[-2], shape[-1]


# ------------------------------------------------------------------------------------------------ CPU


def tile_columns(rows: int, cols: int) -> tuple[int, int]:
    """Return row blocks and width of a column reduction: ``tile_columns`` of csrc/core/launch_plan.cpp."""
    if rows * cols == 0:
        return 0, 0
    fold = 1 if cols >= MIN_WIDTH else min(rows, _div(MIN_WIDTH, cols))
    width = cols * fold
    panel_rows = _div(rows * cols, width)
    rows_per_block = max(_div(REDUCE_BLOCK, width), _div(panel_rows, MAX_ROW_BLOCKS))
    return _div(panel_rows, rows_per_block), width


def row_blocks(rows: int, cols: int) -> int:
    """Return how many blocks a row-and-column pass has: ``plan_row_blocks`` of csrc/core/launch_plan.cpp."""
    if rows * cols == 0:
        return 0
    amortised = min(SINKHORN_ROWS, _div(rows, 16))
    wanted = max(_div(SINKHORN_BLOCK, cols), amortised)
    return _div(rows, _up(min(wanted, MAX_SINKHORN_ROWS), 4))


def sage_cpu(shapes: Sequence[Shape]) -> int:
    """Column sums in slots of blocks of rows, and two sums of squares a tile (csrc/cpu/sage.cpp)."""
    total = 0
    for shape in shapes:
        rows, cols = sage_matrix(shape)
        blocks, width = tile_columns(rows, cols)
        total += FLOAT * max(blocks * width, cols) + 2 * DOUBLE * _div(cols, COLUMN_TILE)
    return total


def scale_cpu(shapes: Sequence[Shape], dim: int) -> int:
    """Sums of squares by column, in slots (csrc/cpu/scale.cpp). Rows need none."""
    if dim != 0:
        return 0
    total = 0
    for shape in shapes:
        matrices, rows, cols = trailing_matrices(shape)
        blocks, width = tile_columns(rows, cols)
        total += matrices * FLOAT * max(blocks * width, cols)
    return total


def _sinkgd_matrix(rows: int, cols: int) -> int:
    """Scales of rows in fp64, scales of columns, and the columns' slots."""
    return DOUBLE * rows + FLOAT * cols * (1 + row_blocks(rows, cols))


def sinkgd_cpu(shapes: Sequence[Shape], itemsize: int, threads: int, cache: int | None = None) -> int:
    """The most that a step has at a time (csrc/cpu/sinkgd.cpp).

    Matrices that are a small share of all are one thread's each: as many at once as there are threads, taken
    here to be the largest. The others go in waves, which share the scratch of the largest wave.

    Args:
        itemsize: of the gradients, in bytes.
        cache: bytes of a core's second-level cache; None asks this machine.
    """
    matrices = []
    for shape in shapes:
        count, rows, cols = trailing_matrices(shape)
        matrices += [(rows, cols)] * (count if rows * cols else 0)
    limit = max(SOLO_MATRIX, sum(rows * cols for rows, cols in matrices) // (4 * threads))
    solo = [matrix for matrix in matrices if matrix[0] * matrix[1] <= limit]
    shared = [matrix for matrix in matrices if matrix[0] * matrix[1] > limit]
    at_once = sum(sorted((_sinkgd_matrix(*matrix) for matrix in solo), reverse=True)[:threads])
    budget = (cache_budget() if cache is None else cache * 5 // 8) * threads
    waves: list[tuple[int, int, int]] = []  # gradient bytes, doubles and floats of each
    for rows, cols in shared:
        size = rows * cols * itemsize
        if not waves or waves[-1][0] + size > budget:
            waves.append((0, 0, 0))
        held, doubles, floats = waves[-1]
        waves[-1] = (held + size, doubles + rows, floats + cols * (1 + row_blocks(rows, cols)))
    together = DOUBLE * max((wave[1] for wave in waves), default=0)
    together += FLOAT * max((wave[2] for wave in waves), default=0)
    return max(at_once, together)


def cache_budget() -> int:
    """Return what SinkGD takes of a core's second-level cache, in bytes."""
    try:
        size = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this system
        size = 0
    return size * 5 // 8 if size > 0 else 1 << 20


def sinkgd_stages_cpu(shapes: Sequence[Shape]) -> int:
    """That of pieces, which go through all stages together (csrc/cpu/sinkgd_stages.cpp)."""
    found = (trailing_matrices(shape) for shape in shapes)
    return sum(count * _sinkgd_matrix(rows, cols) for count, rows, cols in found if rows * cols)


# ------------------------------------------------------------------------------------------------ CUDA


def _take(count: int, size: int) -> int:
    """Every piece of a workspace begins on a line of the caches (csrc/cuda/common/workspace.h)."""
    return _up(count * size, LINE)


def column_blocks(rows: int, cols: int, vec: int) -> tuple[int, int]:
    """Return slots a column and columns a block of the second stage: ``plan_column_blocks``."""
    if rows * cols == 0:
        return 0, 0
    step = vec // gcd(cols, vec)
    fold = min(max(COLUMN_THREADS * vec // cols // step * step, step), rows)
    panel_rows = _div(rows, fold)
    vecs = _div(cols * fold, vec)
    tile = _up(_div(vecs, _div(vecs, COLUMN_THREADS)), 32)
    tiles = _div(vecs, tile)
    wanted = _div(panel_rows * tiles, COLUMN_BLOCKS)
    blocks = _div(panel_rows, _up(_clamp(wanted, MIN_PANEL_ROWS, MAX_PANEL_ROWS), 4))
    slots = blocks if fold > 1 and tiles == 1 else blocks * fold
    narrow = min(32, _bit_ceil(cols))
    average = 4 * COLUMN_THREADS if slots <= 2 else COLUMN_THREADS if slots < 16 else narrow
    return slots, average


def sage_cuda(shapes: Sequence[Shape], itemsize: int, *, is_cut: bool = False) -> int:
    """``sage_workspace_bytes`` of csrc/cuda/sage.cu; ``itemsize`` of the gradients, in bytes."""
    blocks = total = 0
    for shape in shapes:
        rows, cols = sage_matrix(shape)
        slots, average = column_blocks(rows, cols, VEC_BYTES // itemsize)
        if is_cut or slots:
            blocks += max(_div(cols, 4 * COLUMN_THREADS if is_cut else average), 1)
        else:
            blocks += 1
        total += _take(slots * cols, FLOAT)
    return _take(len(shapes), 4) + _take(blocks, 2 * DOUBLE) + total


def scale_cuda(shapes: Sequence[Shape], dim: int, itemsize: int) -> int:
    """``scale_workspace_bytes`` of csrc/cuda/scale.cu; ``itemsize`` of the wider of gradient and momentum."""
    total = 0
    for shape in shapes:
        matrices, rows, cols = trailing_matrices(shape)
        if matrices * rows * cols == 0:
            continue
        slots, _ = column_blocks(rows, cols, VEC_BYTES // itemsize)
        total += _take(matrices * (rows if dim != 0 else slots * cols), FLOAT)
    return total


def max_sinkhorn_vectors(vec: int, aligned: bool) -> int:
    """Return how many vectors of a row a thread can hold: the function of launch_plan.h."""
    return SINKHORN_VECTORS if aligned else 32 // vec


def held_vectors(vectors: int, threads: int) -> int:
    """Return how many vectors of a row a thread of a block holds: the function of launch_plan.cpp."""
    return next((held for held in HELD_VECTORS if vectors <= held * threads), SINKHORN_VECTORS)


def sinkhorn_blocks(rows: int, cols: int, vec: int, aligned: bool, threads: int, total: int) -> int:
    """Return how many blocks of rows a matrix has: ``plan_sinkhorn`` of csrc/core/launch_plan.cpp."""
    most = max_sinkhorn_vectors(vec, aligned)
    fits = cols <= threads * most * vec
    vectors = _div(cols, vec)
    team = _clamp(_bit_ceil(vectors), MIN_SINKHORN_TEAM, threads)
    group = threads // team * (most // held_vectors(vectors, threads) if fits else 1)
    per_block = _up(_clamp(total // GPU_BLOCKS // cols, MIN_GPU_ROWS, MAX_SINKHORN_ROWS), group)
    return _div(rows, per_block)


def sinkhorn_threads(cols: int, vec: int, aligned: bool) -> int:
    """Return the threads of a block that so many columns need: ``sinkhorn_threads`` of launch_plan.cpp."""
    most = max_sinkhorn_vectors(vec, aligned)
    return WIDE_SINKHORN_THREADS if cols > SINKHORN_THREADS * most * vec else SINKHORN_THREADS


def sinkgd_cuda(shapes: Sequence[Shape], itemsize: int) -> int:
    """``sinkgd_workspace_bytes`` of csrc/cuda/sinkgd.cu, of gradients whose memory begins on 16 bytes."""
    vec = VEC_BYTES // itemsize
    found = [trailing_matrices(shape) for shape in shapes]
    elements = sum(count * rows * cols for count, rows, cols in found)
    threads = max(
        (sinkhorn_threads(cols, vec, cols % vec == 0) for _, _, cols in found), default=SINKHORN_THREADS
    )
    total = 0
    for count, rows, cols in found:
        if count * rows * cols == 0:
            continue
        blocks = sinkhorn_blocks(rows, cols, vec, cols % vec == 0, threads, elements)
        total += _take(count * rows, FLOAT) + _take(count * cols, FLOAT) + _take(count * blocks * cols, FLOAT)
    return total


def alias_cuda(numels: Sequence[int], slot_bytes: Sequence[int], counters: int) -> int:
    """Slots of the blocks that look at gradients and move parameters (csrc/cuda/alias.cu, alias_adam.cu).

    Args:
        slot_bytes: of a block's slots.
        counters: how many of the launches count their blocks.
    """
    chunk = MAP_CHUNK * max(_div(sum(numels), MAP_CHUNK * MAX_SLOTS), 1)
    blocks = sum(_div(numel, chunk) for numel in numels)
    return counters * _take(1, 4) + sum(_take(blocks, size) for size in slot_bytes)
