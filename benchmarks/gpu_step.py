"""Two small steps of every rule in all of its forms, and of every hybrid: what compute-sanitizer looks at.

    python benchmarks/gpu_step.py [--device cuda|cpu] [--only PATTERN]

Tensors are as small as reaches every kind of kernel: vectors and odd tails, narrow rows, rows that take a
whole block, and rows too wide to be held. Fails where a step leaves a parameter as it was, or makes a NaN.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from functools import partial

import torch
from contenders import LLAMAS, Build, Named, builders, llama_parameters, parameter, step_of
from torch import nn

from sage_ext import optimizers

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# For the rules that look at rows and columns.
MATRICES = ((1, 1), (33, 65), (300, 8), (8, 2048), (5, 8193), (3, 24576), (3, 33000), (2, 17, 40))
VECTORS = ((1,), (777,), (4100,))
STEPS = 2  # from the second on there is a state, and a last gradient to compare with


def forms(params: list[nn.Parameter], matrices: list[nn.Parameter]) -> dict[str, Build]:
    """The forms that other hyperparameters than the defaults choose."""
    scale, alias = (
        partial(optimizers.FusedSCALE, matrices, backend="native"),
        partial(optimizers.FusedALIAS, params, backend="native"),
    )
    return {
        "SAGE, momentum first": partial(
            optimizers.FusedSAGE, params, momentum_first=True, instant_damper=False, backend="native"
        ),
        "Sign-SGD, momentum": partial(optimizers.FusedSignSGD, params, momentum=0.9, backend="native"),
        "SCALE, columns": partial(scale, dim=0),
        "SCALE, momentum": partial(scale, momentum=0.9),
        "SCALE, momentum, columns": partial(scale, dim=0, momentum=0.9),
        "SinkGD, unit": partial(optimizers.FusedSinkGD, matrices, normalization="unit", backend="native"),
        "ALIAS, base, lower bound": partial(alias, memory_efficient=False, gap="lower_bound"),
        "ALIAS, sum": partial(alias, smoothness="sum"),
        "ALIAS, sum, lower bound": partial(alias, smoothness="sum", gap="lower_bound"),
        "AdamW, float32 state": partial(
            optimizers.FusedAdamW, params, state_dtype=torch.float32, backend="native"
        ),
    }


def everything(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Build, list[nn.Parameter]]]:
    """Yield what to step: a name, what builds the optimizer, and its parameters."""
    for llama in ("tiny", "tiny untied"):
        named = llama_parameters(LLAMAS[llama], dtype, device)
        made = builders(named)
        # The rules by themselves get other shapes below.
        for name in [name for name in made if "hybrid" in name]:
            yield f"{name}, {llama}", made[name], [param for _, param in named]
    matrices = [parameter(shape, dtype, device) for shape in MATRICES]
    params = [*matrices, *(parameter(shape, dtype, device) for shape in VECTORS)]
    names: Named = [(f"layers.{index}.weight", param) for index, param in enumerate(params)]
    names[0] = ("embed_tokens.weight", params[0])
    for name, build in {**builders(names), **forms(params, matrices)}.items():
        if "hybrid" not in name:
            yield name, build, params


def check(name: str, build: Build, params: list[nn.Parameter]) -> None:
    """Step and look at what came out.

    From 0 every update moves a parameter, however small; a bfloat16 of 0.04 would round one of 1e-4 away, and
    among the parameters are some of one element. And each has a gradient that is not 0.

    Raises:
        AssertionError: nothing moved, or a number is not finite.
    """
    for param in params:
        nn.init.zeros_(param)
        param.grad.view(-1)[0] = 1e-3
    before = [param.detach().clone() for param in params]
    optimizer = build()
    step = step_of(optimizer)
    for _ in range(STEPS):
        step()
    owned = {id(param) for group in optimizer.param_groups for param in group["params"]}
    moved = [not torch.equal(a, b) for a, b in zip(before, params, strict=True) if id(b) in owned]
    assert all(moved), f"{name}: {len(moved) - sum(moved)} of {len(moved)} parameters did not move"
    assert all(bool(param.isfinite().all()) for param in params), f"{name}: a parameter is not finite"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--only", default="", metavar="PATTERN", help="of the names; a regular expression")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    failures = 0
    for dtype in DTYPES:
        for name, build, params in everything(dtype, device):
            if not re.search(arguments.only, name):
                continue
            try:
                check(f"{name}, {dtype}", build, params)
            except AssertionError as error:
                failures += 1
                print(f"FAILED {error}", flush=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
