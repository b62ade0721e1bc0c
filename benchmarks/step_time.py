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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sage_ext
from sage_ext import optimizers

HIDDEN, LAYERS, FFN, VOCABULARY = 768, 4, 2048, 32000
# Of these is the SAGE hybrid's step made: docs_tables.py puts them side by side.
EMBEDDING = "FusedSAGE (embedding)"
SINKGD = "FusedSinkGD (matrices)"
ONE_ITERATION = "FusedSinkGD (matrices), 1 iteration"
ITERATIONS = 5  # of SINKGD
LOSS = 10.0  # above the lower bound of ALIAS
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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


def llama_parameters(dtype: torch.dtype, device: str = "cpu") -> list[tuple[str, nn.Parameter]]:
    """A Llama's tensors by name: tied embedding, attention, gated feed-forward, norms; 53 million numbers."""
    shapes = {"embed_tokens.weight": (VOCABULARY, HIDDEN), "norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"layers.{layer}.self_attn.{name}.weight"] = (HIDDEN, HIDDEN)
        shapes[f"layers.{layer}.mlp.gate_proj.weight"] = (FFN, HIDDEN)
        shapes[f"layers.{layer}.mlp.up_proj.weight"] = (FFN, HIDDEN)
        shapes[f"layers.{layer}.mlp.down_proj.weight"] = (HIDDEN, FFN)
        shapes[f"layers.{layer}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"layers.{layer}.post_attention_layernorm.weight"] = (HIDDEN,)
    return [(name, parameter(shape, dtype, device)) for name, shape in shapes.items()]


def parameter(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> nn.Parameter:
    param = nn.Parameter(torch.randn(shape, device=device).mul_(0.02).to(dtype))
    param.grad = torch.randn(shape, device=device).mul_(1e-3).to(dtype)
    return param


def traffic(rule: str, param: Tensor, group: dict) -> tuple[int, int]:
    """Bytes that a step has to read and to write for one parameter; state in the parameter's dtype.

    Every pass over a tensor counts, also where a cache may serve it.
    """
    size = param.numel() * param.element_size()
    planes = 2 * 4 * -(-param.numel() // 32)  # two bits an element, in 32-bit words
    if rule == "alias":
        if not group["memory_efficient"]:
            return 4 * size, 2 * size  # g and the last gradient, whose place it takes; then g and W
        if group["gap"] == "lower_bound":
            return 3 * size, size  # g; then g and W
        # g once: what moves W are the signs that were packed while looking at it.
        return 2 * size + 2 * planes, size + planes
    if rule == "alias_adam":
        return 5 * size + planes, 3 * size + planes  # g; then g, W, exp_avg, exp_avg_sq
    momentum = group.get("momentum", 0.0)
    reads, writes = {
        "adamw": (4, 3),  # W, g, exp_avg, exp_avg_sq
        "lion": (3, 2),  # W, g, exp_avg
        "sign_sgd": (3, 2) if momentum else (2, 1),  # W, g, and with momentum exp_avg
        "sage": (4, 2),  # g twice
        # g twice and W; with momentum g and exp_avg, then exp_avg and W
        "scale": (4, 2) if momentum else (3, 1),
        "sinkgd": (group.get("iterations", 0) + 2, 1),  # g in every iteration and in the update
    }[rule]
    return reads * size, writes * size


@dataclass
class Contender:
    name: str
    step: Callable[[], object]
    reads: int
    writes: int


def contender(
    name: str, optimizer: torch.optim.Optimizer, rule_of: Callable[[Tensor, dict], str]
) -> Contender:
    reads = writes = 0
    for group in optimizer.param_groups:
        for param in group["params"]:
            read, written = traffic(rule_of(param, group), param, group)
            reads, writes = reads + read, writes + written
    # torch's optimizers take no loss; of ours, ALIAS with a lower bound needs it in the first step.
    ours = hasattr(optimizer, "step_size")
    return Contender(name, partial(optimizer.step, loss=LOSS) if ours else optimizer.step, reads, writes)


def by_group(param: Tensor, group: dict) -> str:
    return group["rule"]


def adamw(param: Tensor, group: dict) -> str:
    return "adamw"


def alias_contenders(params: list[nn.Parameter]) -> list[Contender]:
    """ALIAS in all its forms, and ALIAS-Adam."""

    def make(name: str, **form: Any) -> Contender:
        return contender(name, optimizers.FusedALIAS(params, backend="native", **form), by_group)

    return [
        make("FusedALIAS"),
        make("FusedALIAS (lower bound)", gap="lower_bound"),
        make("FusedALIAS (base)", memory_efficient=False),
        contender("FusedALIASAdam", optimizers.FusedALIASAdam(params, backend="native"), by_group),
    ]


def llama_contenders(dtype: torch.dtype, with_reference: bool, device: str = "cpu") -> list[Contender]:
    named = llama_parameters(dtype, device)
    params = [param for _, param in named]
    matrices = [param for name, param in named if param.ndim == 2 and "embed" not in name]
    embedding = [param for name, param in named if "embed" in name]

    def hybrid(preset: str, backend: str, **changes: str) -> optimizers.FusedHybrid:
        names = {"embeddings": ["embed_tokens.weight"], **changes}
        return optimizers.FusedHybrid(named, preset, backend=backend, **names)

    tied_head = {"lm_head": "embed_tokens.weight", "tied": "lm_head"}
    found = [
        contender("torch AdamW fused", torch.optim.AdamW(params, lr=1e-3, fused=True), adamw),
        contender("SAGE hybrid", hybrid("sage", "native"), by_group),
        contender("Lion hybrid", hybrid("lion", "native"), by_group),
        contender("SinkGD hybrid", hybrid("sinkgd", "native"), by_group),
        # The tied weight counts as the head, which has momentum in the one and AdamW in the other: the dearer
        # of the two choices.
        contender("SCALE hybrid", hybrid("scale", "native", **tied_head), by_group),
        contender("ALIAS hybrid", hybrid("alias", "native", **tied_head), by_group),
        contender("FusedSAGE", optimizers.FusedSAGE(params, backend="native"), by_group),
        contender("FusedLion", optimizers.FusedLion(params, backend="native"), by_group),
        contender("FusedSignSGD", optimizers.FusedSignSGD(params, backend="native"), by_group),
        *alias_contenders(params),
        contender("FusedAdamW", optimizers.FusedAdamW(params, backend="native"), by_group),
        contender("FusedSCALE (matrices)", optimizers.FusedSCALE(matrices, backend="native"), by_group),
        *(
            contender(name, optimizers.FusedSinkGD(matrices, iterations=n, backend="native"), by_group)
            for name, n in ((SINKGD, ITERATIONS), (ONE_ITERATION, 1))
        ),
        contender(EMBEDDING, optimizers.FusedSAGE(embedding, backend="native"), by_group),
    ]
    if with_reference:
        found.append(contender("SAGE hybrid, reference", hybrid("sage", "reference"), by_group))
    return found


def small_contenders() -> list[Contender]:
    params = [parameter((256,), torch.float32) for _ in range(2000)]
    return [
        contender("torch AdamW fused", torch.optim.AdamW(params, lr=1e-3, fused=True), adamw),
        contender("FusedSAGE", optimizers.FusedSAGE(params, backend="native"), by_group),
        contender("FusedLion", optimizers.FusedLion(params, backend="native"), by_group),
        contender("FusedSignSGD", optimizers.FusedSignSGD(params, backend="native"), by_group),
        *alias_contenders(params),
        contender("FusedAdamW", optimizers.FusedAdamW(params, backend="native"), by_group),
    ]


def large_contenders() -> list[Contender]:
    params = [parameter((8192, 8192), torch.float32)]
    return [
        contender("torch AdamW fused", torch.optim.AdamW(params, lr=1e-3, fused=True), adamw),
        contender("FusedSinkGD", optimizers.FusedSinkGD(params, backend="native"), by_group),
        contender("FusedSCALE", optimizers.FusedSCALE(params, backend="native"), by_group),
        contender("FusedSCALE (columns)", optimizers.FusedSCALE(params, dim=0, backend="native"), by_group),
        contender("FusedSignSGD", optimizers.FusedSignSGD(params, backend="native"), by_group),
        contender("FusedSAGE", optimizers.FusedSAGE(params, backend="native"), by_group),
        contender("FusedLion", optimizers.FusedLion(params, backend="native"), by_group),
        *alias_contenders(params),
    ]


def bandwidth_contender() -> Contender:
    """Adds one array to another: two reads and a write, with nothing to compute."""
    a, b = torch.ones(1 << 25), torch.ones(1 << 25)
    size = a.numel() * a.element_size()
    return Contender("bandwidth", lambda: torch.add(a, b, out=a), 2 * size, size)


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
    bandwidth = (contenders[-1].reads + contenders[-1].writes) / seconds["bandwidth"]
    baseline = seconds["torch AdamW fused"]
    params = contenders[0].reads / 4  # bytes of parameters: AdamW reads four tensors of that size
    itemsize = 2 if case.endswith("bf16") else 4
    rows = []
    for c in contenders[:-1]:
        moved = c.reads + c.writes
        rate = moved / seconds[c.name]
        rows.append(
            Row(
                case,
                c.name,
                seconds[c.name] * 1e3,
                seconds[c.name] / baseline,
                moved / (params / itemsize),
                rate / 1e9,
                c.reads / seconds[c.name] / 1e9,
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
