"""Time of a step on a GPU: CUDA events, caches flushed. benchmarks/kernels.py prints the result."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from step_time import DTYPES, Contender, llama_contenders

ROUNDS = 25
WARM_UP = 3
FLUSH_BYTES = 256 * 2**20  # more than any second-level cache


def bandwidth_contender(device: str) -> Contender:
    """Copies one large array to another."""
    source = torch.ones(2**28, device=device)
    target = torch.empty_like(source)
    size = source.numel() * source.element_size()
    return Contender("bandwidth", lambda: target.copy_(source), size, size)


def run_case(contenders: list[Contender], device: str) -> dict[str, float]:
    """Return the median milliseconds of each; they take turns, and every step starts with cold caches."""
    evict = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    times: dict[str, list[float]] = {c.name: [] for c in contenders}
    for index in range(ROUNDS + WARM_UP):
        for c in contenders:
            evict.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            c.step()
            end.record()
            end.synchronize()
            if index >= WARM_UP:
                times[c.name].append(start.elapsed_time(end))
    return {name: statistics.median(values) for name, values in times.items()}


def timings(device: str = "cuda") -> list[dict[str, Any]]:
    """Time every optimizer on the Llama of step_time.py, against torch's fused AdamW and the reference."""
    rows = []
    for name, dtype in DTYPES.items():
        contenders = [*llama_contenders(dtype, True, device), bandwidth_contender(device)]
        medians = run_case(contenders, device)
        rates = {c.name: (c.reads + c.writes) / medians[c.name] / 1e6 for c in contenders}
        rows += [
            {
                "case": f"llama 53M {name}",
                "optimizer": c.name,
                "median_ms": medians[c.name],
                "ratio": medians[c.name] / medians["torch AdamW fused"],
                "gbytes_per_s": rates[c.name],
                "share_of_bandwidth": rates[c.name] / rates["bandwidth"],
            }
            for c in contenders
        ]
    return rows
