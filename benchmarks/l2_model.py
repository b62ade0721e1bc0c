"""What the second-level cache can do for SinkGD on a GPU: bytes from memory and predicted time, on paper.

SinkGD reads the gradient L + 1 times. Three orders of work are compared, over an LRU cache that holds whole
blocks of rows:

- ``forward``: every launch goes through the matrices in the same order;
- ``serpentine``: every launch goes the other way than the one before, so that it starts with what is still
  cached. This is what ``csrc/cuda/sinkgd.cu`` does: it costs nothing;
- ``waves``: all iterations of as many matrices as fit the cache, then the next ones. That takes all launches
  of a step for each wave, and each has to wait for the one before to drain.

The numbers of the GPU are assumptions, printed with the result: nothing here was timed.
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sage_ext.planning import workspaces

ORDERS = ("forward", "serpentine", "waves")
ITERATIONS = 5
GRAD_BYTES = 2  # bf16
PARAM_BYTES = 2 * 2  # read and written


class Gpu(NamedTuple):
    name: str
    memory: float  # bytes a second
    l2: float  # bytes a second, from the cache
    l2_bytes: int
    drain: (
        float  # seconds between two dependent launches: the last blocks end, the next ones fill the machine
    )


H100 = Gpu("H100 SXM", 3.35e12, 5.5e12, 50 * 10**6, 3e-6)

# Layers and the (rows, cols) of the matrices that SinkGD gets in each.
MODELS: dict[str, tuple[int, list[tuple[int, int]]]] = {
    "Llama 7B": (32, [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]),
    "Llama 1.3B": (24, [(2048, 2048)] * 4 + [(5461, 2048)] * 2 + [(2048, 5461)]),
    "Llama 130M": (12, [(768, 768)] * 4 + [(2048, 768)] * 2 + [(768, 2048)]),
    "one 4096 x 4096": (1, [(4096, 4096)]),
    "one 2048 x 2048": (1, [(2048, 2048)]),
}


class Cache:
    """An LRU cache of blocks."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self.blocks: OrderedDict[tuple[int, int], int] = OrderedDict()
        self.misses = 0  # bytes

    def read(self, block: tuple[int, int], size: int) -> None:
        if block in self.blocks:
            self.blocks.move_to_end(block)
            return
        self.misses += size
        self.blocks[block] = size
        self.used += size
        while self.used > self.capacity:
            self.used -= self.blocks.popitem(last=False)[1]


def blocks_of(matrices: Sequence[tuple[int, int]], first: int) -> list[tuple[tuple[int, int], int]]:
    """Return (name, bytes of gradient) of the blocks of 256 rows of each matrix."""
    return [
        ((first + i, row), min(256, rows - row) * cols * GRAD_BYTES)
        for i, (rows, cols) in enumerate(matrices)
        for row in range(0, rows, 256)
    ]


def waves_of(matrices: Sequence[tuple[int, int]], capacity: int) -> Iterator[list[tuple[int, int]]]:
    """Yield runs of matrices whose gradients fit ``capacity``; one that does not fit is a wave of its own."""
    wave: list[tuple[int, int]] = []
    for rows, cols in matrices:
        size = sum(r * c for r, c in wave) * GRAD_BYTES
        if wave and size + rows * cols * GRAD_BYTES > capacity:
            yield wave
            wave = []
        wave.append((rows, cols))
    yield wave


def usable(gpu: Gpu) -> int:
    """Bytes of the cache that the gradient gets: parameters and scratch pass through it as well."""
    return gpu.l2_bytes * 3 // 4


def kinds_of_rows(matrices: Sequence[tuple[int, int]]) -> int:
    """How many launches go through the rows: csrc/cuda/sinkgd_rows.cu has one for each kind."""
    vec = workspaces.VEC_BYTES // GRAD_BYTES
    cut = [(-(-cols // vec), cols % vec == 0, cols) for _, cols in matrices]
    threads = max(workspaces.sinkhorn_threads(cols, vec, aligned) for _, aligned, cols in cut)
    return len({(aligned, workspaces.held_vectors(vectors, threads) > 4) for vectors, aligned, _ in cut})


def simulate(matrices: Sequence[tuple[int, int]], gpu: Gpu, order: str) -> dict[str, float]:
    """Return bytes a parameter from memory, launches, and the predicted milliseconds of a step."""
    capacity = usable(gpu)
    waves = list(waves_of(matrices, capacity)) if order == "waves" else [list(matrices)]
    params = sum(rows * cols for rows, cols in matrices)
    cache = Cache(capacity)
    first = 0
    for wave in waves:
        blocks = blocks_of(wave, first)
        first += len(wave)
        for i in range(ITERATIONS + 1):
            for name, size in reversed(blocks) if order != "forward" and i % 2 else blocks:
                cache.read(name, size)
    launches = sum(ITERATIONS * (kinds_of_rows(wave) + 1) + 1 for wave in waves)
    read = params * GRAD_BYTES * (ITERATIONS + 1)
    moved = cache.misses + params * PARAM_BYTES
    seconds = moved / gpu.memory + (read - cache.misses) / gpu.l2
    return {
        "bytes_per_param": moved / params,
        "launches": launches,
        "predicted_ms": (seconds + launches * gpu.drain) * 1e3,
        "without_drains_ms": seconds * 1e3,
    }


def break_even(by_order: dict[str, dict[str, float]]) -> float | None:
    """Return the drain in seconds below which waves would win, or None where they need no more launches."""
    shipped, waves = by_order["serpentine"], by_order["waves"]
    more = waves["launches"] - shipped["launches"]
    return (shipped["without_drains_ms"] - waves["without_drains_ms"]) / 1e3 / more if more else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    args = parser.parse_args()
    gpu = H100
    print(
        f"Assumed: {gpu.name}, memory {gpu.memory / 1e12:.2f} TB/s, L2 {gpu.l2_bytes / 1e6:.0f} MB at "
        f"{gpu.l2 / 1e12:.1f} TB/s, {gpu.drain * 1e6:.0f} us between dependent launches; bf16, "
        f"L = {ITERATIONS}\n"
    )
    print("| matrices | order | bytes/param from memory | launches | predicted ms | waves win below |")
    print("|---|---|---:|---:|---:|---:|")
    results = []
    for name, (layers, shapes) in MODELS.items():
        by_order = {order: simulate(shapes * layers, gpu, order) for order in ORDERS}
        limit = break_even(by_order)
        for order, result in by_order.items():
            results.append({"matrices": name, "order": order, "break_even_s": limit, **result})
            shown = f"{limit * 1e6:.1f} us" if limit is not None and order == "waves" else ""
            print(
                f"| {name} | {order} | {result['bytes_per_param']:.2f} | {result['launches']:.0f} "
                f"| {result['predicted_ms']:.3f} | {shown} |"
            )
    if args.json is not None:
        args.json.write_text(json.dumps({"gpu": gpu._asdict(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
