"""Optimizer state of a whole Llama, counted from the states that the optimizers really make.

The model is built from a Hugging Face config on the meta device, which has shapes and dtypes but no memory;
one step then makes every state tensor, and their bytes are added up.

    python benchmarks/memory.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from sage_ext import optimizers, reference

GIB = 1 << 30

# The 1.3B Llama that papers on optimizer memory share (GaLore's llama_1b).
CONFIG = {"hidden_size": 2048, "intermediate_size": 5461, "num_hidden_layers": 24, "num_attention_heads": 32}
VOCABULARY = 32000

LOSS = 10.0  # above the lower bound of ALIAS

Make = Callable[[nn.Module], torch.optim.Optimizer]
BASELINE = "torch AdamW fused"
# Under the names of step_time.py, so that a table can have both. torch's fused AdamW takes no meta tensors,
# and keeps what its other forms keep.
CONTENDERS: dict[str, Make] = {
    BASELINE: lambda model: torch.optim.AdamW(model.parameters(), foreach=False),
    "SAGE hybrid": lambda model: hybrid(model, "sage"),
    "Lion hybrid": lambda model: hybrid(model, "lion"),
    "SinkGD hybrid": lambda model: hybrid(model, "sinkgd"),
    "SCALE hybrid": lambda model: hybrid(model, "scale", tied="lm_head"),
    "ALIAS hybrid": lambda model: hybrid(model, "alias"),
    "SinkGD-SCALE hybrid": lambda model: hybrid(model, "sinkgd-scale"),
    "Stateless hybrid": lambda model: hybrid(model, "stateless"),
    "FusedSAGE": lambda model: optimizers.FusedSAGE(model.parameters(), backend="reference"),
    "FusedLion": lambda model: optimizers.FusedLion(model.parameters(), backend="reference"),
    "FusedSignSGD": lambda model: optimizers.FusedSignSGD(model.parameters(), backend="reference"),
    "FusedALIAS": lambda model: alias(model),
    "FusedALIAS (lower bound)": lambda model: alias(model, gap="lower_bound"),
    "FusedALIAS (base)": lambda model: alias(model, memory_efficient=False),
    "FusedALIASAdam": lambda model: optimizers.FusedALIASAdam(model.parameters(), backend="reference"),
    "FusedAdamW": lambda model: optimizers.FusedAdamW(model.parameters(), backend="reference"),
}


def hybrid(model: nn.Module, preset: str, **options: Any) -> optimizers.FusedHybrid:
    return optimizers.FusedHybrid(model, preset, backend="reference", **options)


def alias(model: nn.Module, **form: Any) -> optimizers.FusedALIAS:
    return optimizers.FusedALIAS(model.parameters(), backend="reference", **form)


def meta_llama(dtype: torch.dtype, tied: bool) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=tied, **CONFIG)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype)
    if tied:
        model.tie_weights()
    return model


def state_bytes(make: Make, model: nn.Module) -> int:
    for param in model.parameters():
        param.grad = torch.empty_like(param)
    optimizer = make(model)
    # The states are there before a rule runs. ALIAS's would ask for numbers, which meta tensors do not have.
    with mock.patch.object(reference, "alias_"):
        optimizer.step(**({"loss": LOSS} if hasattr(optimizer, "step_size") else {}))
    # What the parameters of a group share is in the group.
    shared = [
        {k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups
    ]
    states = (*optimizer.state.values(), *shared)
    tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    args = parser.parse_args()

    rows = []
    for label, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for tied in (False, True):
            model = meta_llama(dtype, tied)
            numbers = sum(p.numel() for p in model.parameters())
            sizes = {name: state_bytes(make, model) for name, make in CONTENDERS.items()}
            rows.append({"dtype": label, "tied": tied, "parameters": numbers, "state_bytes": sizes})

    print(f"Optimizer state in GiB, Llama {CONFIG}, vocabulary {VOCABULARY}")
    print("| parameters | dtype | head | " + " | ".join(CONTENDERS) + " |")
    print("|---:|---|---|" + "---:|" * len(CONTENDERS))
    for row in rows:
        cells = []
        for name in CONTENDERS:
            share = row["state_bytes"][name] / row["state_bytes"][BASELINE]
            cells.append(f"{row['state_bytes'][name] / GIB:.2f} ({share:.0%})")
        head = "tied" if row["tied"] else "own"
        print(f"| {row['parameters'] / 1e9:.2f} B | {row['dtype']} | {head} | " + " | ".join(cells) + " |")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps({"config": CONFIG, "vocabulary": VOCABULARY, "rows": rows}, indent=1) + "\n"
        )
        print(f"written to {args.json}")


if __name__ == "__main__":
    main()
