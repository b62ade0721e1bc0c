"""What low-precision state and low-precision weights cost: losses of a small model, and three effects one by
one.

python benchmarks/low_precision.py --json benchmarks/results/low_precision.json

Runs in a minute or two on a CPU. docs/numerics.md has its tables.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sage_ext.optimizers import FusedAdamW, FusedALIASAdam, FusedHybrid, FusedLion, FusedSAGE

VOCABULARY, WIDTH, STEPS, SEEDS = 64, 64, 600, 3
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
FP32, BF16, FP16 = NAMES
RULES: dict[str, Any] = {
    "AdamW": lambda model, **kw: FusedAdamW(model.parameters(), lr=1e-3, **kw),
    "Lion": lambda model, **kw: FusedLion(model.parameters(), lr=1e-4, **kw),
    "SAGE": lambda model, **kw: FusedSAGE(model.parameters(), lr=1e-3, **kw),
    "SAGE hybrid": lambda model, **kw: FusedHybrid(model, "sage", **kw),
    "ALIAS-Adam": lambda model, **kw: FusedALIASAdam(model.parameters(), lr=1e-3, **kw),
}
# (weights, state); None is the default of the class.
DTYPES = ((FP32, FP32), (BF16, None), (BF16, FP32), (BF16, BF16), (FP16, None), (FP16, FP16))


def model_of(seed: int, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(seed)
    layers = [
        nn.Embedding(VOCABULARY, WIDTH),
        nn.Linear(WIDTH, 4 * WIDTH),
        nn.GELU(),
        nn.Linear(4 * WIDTH, WIDTH),
    ]
    return nn.Sequential(*layers, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)).to(dtype)


def batch(seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A token and the next one in a language whose every token has a few likely successors."""
    table = torch.randint(VOCABULARY, (VOCABULARY, 4), generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(1000 * seed + step)
    tokens = torch.randint(VOCABULARY, (128,), generator=generator)
    choice = (4 * torch.rand(128, generator=generator) ** 2).long()
    return tokens, table[tokens, choice]


def train(rule: str, weights: torch.dtype, state: torch.dtype | None, seed: int) -> dict[str, float]:
    """Return the mean loss of the last fifty steps, and which share of the weights has never changed."""
    model = model_of(seed, weights)
    optimizer = RULES[rule](model, **({} if state is None else {"state_dtype": state}))
    start = [param.detach().clone() for param in model.parameters()]
    moved = [torch.zeros_like(param, dtype=torch.bool) for param in start]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=weights == FP16)
    losses = []
    for step in range(STEPS):
        tokens, targets = batch(seed, step)
        loss = nn.functional.cross_entropy(model(tokens).float(), targets)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        for param, before, flags in zip(model.parameters(), start, moved, strict=True):
            flags |= param.detach() != before
    count = sum(flags.numel() for flags in moved)
    still = 1 - sum(int(flags.sum()) for flags in moved) / count
    return {"loss": sum(losses[-50:]) / 50, "never_moved": still}


def losses() -> list[dict[str, Any]]:
    rows = []
    for rule in RULES:
        for weights, state in DTYPES:
            runs = [train(rule, weights, state, seed) for seed in range(SEEDS)]
            found = [run["loss"] for run in runs]
            rows.append(
                {
                    "rule": rule,
                    "weights": NAMES[weights],
                    "state": "default" if state is None else NAMES[state],
                    "loss": None if math.isnan(sum(found)) else sum(found) / SEEDS,
                    "spread": max(found) - min(found),
                    "never_moved": sum(run["never_moved"] for run in runs) / SEEDS,
                }
            )
            print(rows[-1], flush=True)
    return rows


def second_moment() -> list[dict[str, Any]]:
    """AdamW's step, over its rate, after the gradients have become ten times smaller; and with small ones
    from the start."""
    rows = []
    for weights, state in ((FP32, FP32), (BF16, BF16), (BF16, None), (FP16, FP16), (FP16, None)):
        for case, sizes in (("shrinking", [1.0] * 500 + [0.1] * 3000), ("small", [1e-3] * 400)):
            param = nn.Parameter(torch.zeros(8, dtype=weights))
            optimizer = FusedAdamW(
                [param], lr=1e-3, weight_decay=0.0, **({} if state is None else {"state_dtype": state})
            )
            for size in sizes:
                param.data.zero_()
                param.grad = torch.full_like(param, size)
                optimizer.step()
            rows.append(
                {
                    "case": case,
                    "weights": NAMES[weights],
                    "state": "default" if state is None else NAMES[state],
                    "step_over_lr": float(param.detach().float().abs().max()) / 1e-3,
                    "exp_avg_sq_over_exact": float(optimizer.state[param]["exp_avg_sq"].float().max())
                    / exact_second_moment(sizes),
                }
            )
            print(rows[-1], flush=True)
    return rows


def exact_second_moment(sizes: list[float]) -> float:
    moment = 0.0
    for size in sizes:
        moment = 0.999 * moment + 0.001 * size**2
    return moment


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = {
        "torch": torch.__version__,
        "steps": STEPS,
        "seeds": SEEDS,
        "vocabulary": VOCABULARY,
        "width": WIDTH,
    }
    results = {"setting": setting, "second_moment": second_moment(), "losses": losses()}
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
