"""Time of one optimizer step, against torch's fused AdamW, the plain-PyTorch reference and the memory floor.

All contenders live in one process and take turns, step by step, so that whatever else the machine does hits
them alike; medians are reported, and ratios to torch's fused AdamW. Caches are left as the step before found
them, or evicted with --flush.

    python benchmarks/step_time.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from contenders import (
    BASELINE,
    DTYPES,
    LLAMAS,
    Contender,
    builders,
    contender,
    hybrid_builders,
    llama_parameters,
    parameter,
    torch_builders,
    vector_builders,
)
from machine import processor

import sage_ext
from sage_ext import optimizers


@dataclass
class Row:
    """One contender on one set of tensors."""

    case: str
    optimizer: str
    median_ms: float
    ratio: float  # to torch's fused AdamW on the same tensors
    bytes_per_param: float  # that have to move; for SinkGD with the gradient read L + 1 times
    gbytes_per_s: float
    read_gbytes_per_s: float
    share_of_bandwidth: float  # of the bandwidth that torch.add(a, b, out=a) reached in the same run


def llama_contenders(dtype: torch.dtype, with_reference: bool) -> list[Contender]:
    named = llama_parameters(LLAMAS["53M"], dtype)
    found = [
        contender(BASELINE, torch_builders([param for _, param in named])[BASELINE]()),
        *(contender(name, build()) for name, build in builders(named).items()),
    ]
    if with_reference:
        found.append(
            contender("SAGE hybrid, reference", hybrid_builders(named, "reference")["SAGE hybrid"]())
        )
    return found


def small_contenders() -> list[Contender]:
    params = [parameter((256,), torch.float32) for _ in range(2000)]
    return [
        contender(BASELINE, torch_builders(params)[BASELINE]()),
        *(contender(name, build()) for name, build in vector_builders(params).items()),
    ]


def large_contenders() -> list[Contender]:
    params = [parameter((8192, 8192), torch.float32)]
    rules = vector_builders(params)
    rules.pop("FusedAdamW")
    return [
        contender(BASELINE, torch_builders(params)[BASELINE]()),
        contender("FusedSinkGD", optimizers.FusedSinkGD(params, backend="native")),
        contender("FusedSCALE", optimizers.FusedSCALE(params, backend="native")),
        contender("FusedSCALE (columns)", optimizers.FusedSCALE(params, dim=0, backend="native")),
        *(contender(name, build()) for name, build in rules.items()),
    ]


def bandwidth_contender() -> Contender:
    """Adds one array to another: two reads and a write, with nothing to compute."""
    a, b = torch.ones(1 << 25), torch.ones(1 << 25)
    size = a.numel() * a.element_size()
    return Contender("bandwidth", lambda: torch.add(a, b, out=a), lambda: (2 * size, size))


def run_case(case: str, contenders: list[Contender], rounds: int, flush: Callable[[], object]) -> list[Row]:
    contenders = [*contenders, bandwidth_contender()]
    times: dict[str, list[float]] = {c.name: [] for c in contenders}
    for round_index in range(rounds + 2):
        for c in contenders:
            # One reference step costs as much as a round of the others: a few of them will do.
            if "reference" in c.name and round_index % 4 != 0:
                continue
            flush()
            start = time.perf_counter()
            c.step()
            if round_index >= 2 or "reference" in c.name:
                times[c.name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    bandwidth = sum(contenders[-1].moves()) / seconds["bandwidth"]
    baseline = seconds[BASELINE]
    params = contenders[0].moves()[0] / 4  # bytes of parameters: AdamW reads four tensors of that size
    itemsize = 2 if case.endswith("bf16") else 4
    rows = []
    for c in contenders[:-1]:
        reads, writes = c.moves()
        moved = reads + writes
        rate = moved / seconds[c.name]
        rows.append(
            Row(
                case,
                c.name,
                seconds[c.name] * 1e3,
                seconds[c.name] / baseline,
                moved / (params / itemsize),
                rate / 1e9,
                reads / seconds[c.name] / 1e9,
                rate / bandwidth,
            )
        )
    return rows


def print_table(rows: list[Row]) -> None:
    print("| case | optimizer | ms | x AdamW | bytes/param | GB/s | read GB/s | of bandwidth |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for r in rows:
        print(
            f"| {r.case} | {r.optimizer} | {r.median_ms:.2f} | {r.ratio:.2f} | {r.bytes_per_param:.1f} "
            f"| {r.gbytes_per_s:.1f} | {r.read_gbytes_per_s:.1f} | {r.share_of_bandwidth:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=25, help="steps of each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="5 rounds and no reference")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own choice)")
    parser.add_argument("--flush", action="store_true", help="evict the caches before every step")
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rounds = 5 if args.quick else args.rounds
    evict = torch.ones(1 << 26) if args.flush else None
    flush: Callable[[], object] = evict.sum if evict is not None else (lambda: None)

    rows: list[Row] = []
    for name, dtype in DTYPES.items():
        rows += run_case(f"llama 53M {name}", llama_contenders(dtype, not args.quick), rounds, flush)
    rows += run_case("2000 x 256 fp32", small_contenders(), rounds, flush)
    rows += run_case("8192 x 8192 fp32", large_contenders(), rounds, flush)

    from sage_ext import _C

    setting = {
        "sage_ext": sage_ext.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": _C.cpu_capability(),
        "machine": platform.machine(),
        "processor": processor(),
        "rounds": rounds,
        "caches_evicted": args.flush,
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print_table(rows)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps({"setting": setting, "rows": [asdict(r) for r in rows]}, indent=1) + "\n"
        )
        print(f"written to {args.json}")


if __name__ == "__main__":
    main()
