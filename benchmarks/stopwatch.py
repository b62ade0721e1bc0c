"""Takes the time of steps: CUDA events on a GPU, the host's clock elsewhere; caches flushed, medians."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

Step = Callable[[], object]
ROUNDS = 25  # at most
LEAST_ROUNDS = 5
SMALL_FLUSH = 1 << 20  # bytes, where nothing is measured


class Reading(NamedTuple):
    """Medians of some rounds."""

    ms: float
    host_ms: float
    """Until the call returned."""
    rounds: int


class Stopwatch:
    """Times steps on one device. Before each, a buffer of four times the second-level cache is read.

    Read and not written: what is written there would have to leave the cache during the step.

    Args:
        device: of the tensors that the steps work on.
        seconds: that a measurement may take, if it has had its least number of rounds by then.
    """

    def __init__(self, device: torch.device | str, seconds: float = 0.25) -> None:
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.seconds = seconds
        size = 4 * torch.cuda.get_device_properties(self.device).L2_cache_size if self.on_gpu else SMALL_FLUSH
        self._buffer = torch.ones(size // 4, device=self.device)

    def medians(self, steps: Mapping[str, Step], *, idle: bool = True) -> dict[str, Reading]:
        """Time several steps, which take turns.

        Args:
            steps: by name.
            idle: whether the GPU has nothing to do when a step is called, so that its time is that of the
                host where the host is slower. If not, flushing hides what calling costs.
        """
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        begin = time.perf_counter()
        for index in range(ROUNDS):
            if index >= LEAST_ROUNDS and time.perf_counter() - begin > self.seconds:
                break
            for name, step in steps.items():
                times[name].append(self._once(step, idle))
        return {
            name: Reading(
                statistics.median(ms for ms, _ in values),
                statistics.median(host for _, host in values),
                len(values),
            )
            for name, values in times.items()
        }

    def _once(self, step: Step, idle: bool) -> tuple[float, float]:
        """Milliseconds of the step, and until its call returned."""
        self._buffer.sum()
        if not self.on_gpu:
            begin = time.perf_counter()
            step()
            return (passed := (time.perf_counter() - begin) * 1e3), passed
        if idle:
            torch.cuda.synchronize(self.device)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        begin = time.perf_counter()
        step()
        host = time.perf_counter() - begin
        end.record()
        end.synchronize()
        return start.elapsed_time(end), host * 1e3

    def captured(self, step: Step) -> Step | None:
        """What replays the step as a CUDA graph, or None where there is no GPU. Capturing runs nothing."""
        if not self.on_gpu:
            return None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def peak(self, step: Step) -> int | None:
        """Run a step; how many bytes more than before were allocated in it at most. None without a GPU."""
        if not self.on_gpu:
            step()
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        step()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def release(self) -> bool:
        """Give memory back that nothing holds any more. Return whether the device still works."""
        gc.collect()
        if not self.on_gpu:
            return True
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        except RuntimeError:
            return False
        return True


class Copier:
    """Copies so many bytes as a step moves: half are read and half written.

    Args:
        buffer: bytes of the largest array; more bytes are copied by going through it several times.
    """

    def __init__(self, device: torch.device | str, buffer: int) -> None:
        self.bytes = buffer
        self._source = torch.ones(buffer, dtype=torch.uint8, device=device)
        self._target = torch.empty_like(self._source)

    def step(self, moved: int) -> Step:
        """What copies, for ``moved`` bytes read and written."""
        whole, rest = divmod(max(moved // 2, 1), self.bytes)
        source, target = self._source[:rest], self._target[:rest]

        def copy() -> None:
            for _ in range(whole):
                self._target.copy_(self._source)
            if rest:
                target.copy_(source)

        return copy
