"""Which of a LoRA's matrices SinkGD may have: losses of a small fine-tuning, at ranks 1, 4 and 16.

python benchmarks/lora.py --json benchmarks/results/lora.json

Runs in a few minutes on a CPU. docs/trainers.md has its table.

A model that has learned one language learns another in which half of the words have other successors: only
the two matrices A [rank, in] and B [out, rank] that PEFT gives to each linear layer are trained. Each row has
its own best learning rate, from a grid wide enough to have the best inside.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from sage_ext.optimizers import FusedHybrid
from sage_ext.optimizers.presets import PRESETS

VOCABULARY, WIDTH, RANKS, SEEDS = 64, 64, (1, 4, 16), (0, 1, 2)
BEFORE, STEPS, LAST = 1000, 400, 50
"""Steps before fine-tuning, steps of it, and how many of these the loss is the mean of."""
RATES = {
    "sinkgd": tuple(1e-2 * 2.0**power for power in range(1, 9)),
    # A step of SinkGD is alpha = 0.05 times a matrix of entries around 1.
    "sign_sgd": tuple(5e-4 * 2.0**power for power in range(1, 9)),
    # In this form, 10 / sqrt(rows) times that.
    "sinkgd_unit": tuple(2.5e-4 * 2.0**power for power in range(9)),
    "adamw": tuple(1e-3 * 2.0**power for power in range(1, 8)),
}
# Which rule A and B get.
ROWS: dict[str, tuple[str, str]] = {
    "AdamW on both": ("adamw", "adamw"),
    "SinkGD on both": ("sinkgd", "sinkgd"),
    'SinkGD on both, as in "sage"': ("sinkgd_unit", "sinkgd_unit"),
    "SinkGD on A, AdamW on B": ("sinkgd", "adamw"),
    "AdamW on A, SinkGD on B": ("adamw", "sinkgd"),
    "Sign-SGD on both": ("sign_sgd", "sign_sgd"),
}


def table(seed: int) -> tuple[Tensor, Tensor]:
    """The likely successors of every token, before fine-tuning and in it."""
    generator = torch.Generator().manual_seed(seed)
    before, other = torch.randint(VOCABULARY, (2, VOCABULARY, 4), generator=generator)
    changed = (torch.rand(VOCABULARY, 1, generator=generator) < 0.5).expand(-1, 4)
    return before, torch.where(changed, other, before)


def batch(successors: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (128,), generator=generator)
    choice = (4 * torch.rand(128, generator=generator) ** 2).long()
    return tokens, successors[tokens, choice]


class Model(nn.Module):
    """An embedding, two linear layers around a nonlinearity with a residual, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.norm(x + self.down(nn.functional.gelu(self.up(x)))))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, successors: Tensor, steps: int) -> float:
    """Train, and return the mean loss of the last steps. The rate falls to zero in a straight line."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    for step in range(steps):
        tokens, targets = batch(successors, step)
        loss = nn.functional.cross_entropy(model(tokens), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[-LAST:]) / LAST


def base(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = Model()
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-2), table(seed)[0], BEFORE)
    return model.state_dict()


def fine_tune(weights: dict[str, Tensor], rank: int, seed: int, rules: tuple[str, str], lr: dict) -> float:
    model = Model()
    model.load_state_dict(weights)
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["up", "down"])
    model = get_peft_model(model, config)
    found = dict(model.named_parameters())
    preset = {"rule": "sinkgd", **PRESETS["sage"].hyperparameters["sinkgd"]}
    groups = [
        {
            "params": [(n, p) for n, p in found.items() if kind in n],
            "weight_decay": 0.0,
            **(preset if rule == "sinkgd_unit" else {"rule": rule}),
            "lr": lr[rule],
        }
        for kind, rule in zip(("lora_A", "lora_B"), rules, strict=True)
    ]
    return train(model, FusedHybrid(groups), table(seed)[1], STEPS)


def best(rates: tuple[float, ...], loss_at: Callable[[float], float]) -> tuple[float, float]:
    """Return the lowest loss and its rate."""
    return min((loss_at(rate), rate) for rate in rates)


def rows() -> list[dict[str, Any]]:
    weights = {seed: base(seed) for seed in SEEDS}
    result = []
    for rank in RANKS:
        adamw = None
        for name, rules in ROWS.items():

            def loss_at(rate: float, rules: Any = rules, rank: int = rank, adamw: Any = adamw) -> float:
                # Beside SinkGD, AdamW has the rate that is best where it is alone.
                lr = {**dict.fromkeys(RATES, rate), "adamw": adamw or rate}
                losses = [fine_tune(weights[seed], rank, seed, rules, lr) for seed in SEEDS]
                return sum(losses) / len(losses)

            rates = RATES[next((rule for rule in rules if rule != "adamw"), "adamw")]
            loss, rate = best(rates, loss_at)
            adamw = adamw or rate
            inside = rates[0] < rate < rates[-1]
            result.append({"rank": rank, "row": name, "loss": loss, "lr": rate, "inside": inside})
            print(f"rank {rank:2}  {name:24} loss {loss:.4f} at lr {rate:.4g}{'' if inside else ' (edge)'}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the results there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = {"seeds": len(SEEDS), "steps": STEPS, "width": WIDTH, "torch": torch.__version__}
    result = {"setting": setting, "rows": rows()}
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
