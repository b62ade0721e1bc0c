"""What a launch costs on this GPU, and from it whether SinkGD's matrices should go in waves through the L2.

``l2_model.py`` predicts that from numbers of the GPU. Here they are measured, and waves are also tried: all
iterations of as many matrices as fit the cache, then the next ones, which an optimizer for each wave does.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import l2_model
import torch
from contenders import ITERATIONS, parameter, step_of
from stopwatch import Copier, Step, Stopwatch

CHAIN = 100  # launches, each of which needs the result of the one before


def launches(watch: Stopwatch, copier: Copier) -> dict[str, Any]:
    """Return microseconds of a launch that waits for the one before, and the bandwidths that go with them.

    ``us_by_bytes``: of ``x.add_(1)``, by the bytes that it moves, all of which the L2 holds. A line through
    those that fill the GPU has the L2's bandwidth for its slope; where it begins, at no bytes, is what one
    launch waits for another (``drain_us``). ``sinkgd_us``: of SinkGD's own launches, on a matrix so small
    that they do nothing else. Without a GPU: of what a CPU can run, which says nothing.
    """
    copied = 2 * copier.bytes
    result: dict[str, Any] = {
        "memory_bytes_per_s": copied / watch_one(watch, copier.step(copied)) * 1e3,
        "eager_us": watch_one(watch, chain_of(torch.zeros(1, device=watch.device)), idle=True) / CHAIN * 1e3,
    }
    # A quarter: each half of an H100's cache may have its own copy.
    most = torch.cuda.get_device_properties(watch.device).L2_cache_size // 4 if watch.on_gpu else 2**16
    sizes = [4, *(most >> shift for shift in (8, 6, 4, 3, 2, 1, 0))]
    by_bytes = {}
    for size in sizes:
        x = torch.zeros(size // 4, device=watch.device)
        # Twice the array's bytes: read and written.
        by_bytes[2 * x.nbytes] = watch_one(watch, graph_of(watch, chain_of(x))) / CHAIN * 1e3
    slope, start = line_through(list(by_bytes.items())[-4:])
    return {
        **result,
        "us_by_bytes": [[size, us] for size, us in by_bytes.items()],
        "drain_us": start,
        "l2_bytes_per_s": 1e6 / slope if slope > 0 else None,
        "sinkgd_us": sinkgd_launch(watch),
    }


def watch_one(watch: Stopwatch, step: Step, *, idle: bool = False) -> float:
    """Median milliseconds of one step, after one that is not timed."""
    step()
    return watch.medians({"": step}, idle=idle)[""].ms


def graph_of(watch: Stopwatch, step: Step) -> Step:
    """The step as a CUDA graph, where there is one."""
    step()
    return watch.captured(step) or step


def chain_of(x: torch.Tensor) -> Step:
    def chain() -> None:
        for _ in range(CHAIN):
            x.add_(1)

    return chain


def line_through(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Slope and start of the line with the least squares of errors."""
    n = len(points)
    x_mean, y_mean = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    slope = sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)
    return slope, y_mean - slope * x_mean


def sinkgd_launch(watch: Stopwatch) -> float:
    """Microseconds of a launch of SinkGD: two more for each iteration more."""
    from sage_ext import optimizers

    few, many = 1, 41
    matrix = parameter((128, 128), torch.bfloat16, watch.device)
    times = []
    for iterations in (few, many):
        optimizer = optimizers.FusedSinkGD([matrix], iterations=iterations, backend="native")
        times.append(watch_one(watch, graph_of(watch, step_of(optimizer))))
    return (times[1] - times[0]) * 1e3 / (2 * (many - few))


def waves(
    watch: Stopwatch, name: str, matrices: list[tuple[int, int]], measured: dict[str, Any]
) -> dict[str, Any]:
    """Time SinkGD over all matrices at once and in waves, in bf16, and predict both from what was measured.

    Args:
        watch: of the device.
        name: of the matrices, in the result.
        matrices: their (rows, columns).
        measured: what :func:`launches` returned.
    """
    from sage_ext import optimizers

    l2_bytes = torch.cuda.get_device_properties(watch.device).L2_cache_size if watch.on_gpu else 2**14
    gpu = l2_model.Gpu(
        "measured",
        measured["memory_bytes_per_s"],
        measured["l2_bytes_per_s"] or measured["memory_bytes_per_s"],
        l2_bytes,
        measured["sinkgd_us"] / 1e6,
    )
    predicted = {order: l2_model.simulate(matrices, gpu, order) for order in ("serpentine", "waves")}
    params = [parameter(shape, torch.bfloat16, watch.device) for shape in matrices]
    sizes = [len(wave) for wave in l2_model.waves_of(matrices, l2_model.usable(gpu))]
    parts = [params[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]

    def sinkgd(group: list[torch.nn.Parameter]) -> Step:
        return step_of(optimizers.FusedSinkGD(group, iterations=ITERATIONS, backend="native"))

    in_waves = [sinkgd(part) for part in parts]
    orders = {
        "serpentine": graph_of(watch, sinkgd(params)),
        "waves": graph_of(watch, lambda: [step() for step in in_waves]),
    }
    times = watch.medians(orders, idle=False)
    limit = l2_model.break_even(predicted)
    return {
        "matrices": name,
        "waves": len(parts),
        "serpentine_ms": times["serpentine"].ms,
        "waves_ms": times["waves"].ms,
        "waves_win": times["waves"].ms < times["serpentine"].ms,
        "predicted": {order: result["predicted_ms"] for order, result in predicted.items()},
        "waves_win_below_us": None if limit is None else limit * 1e6,
    }
