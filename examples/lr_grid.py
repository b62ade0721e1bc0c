#!/usr/bin/env python3
"""The grids behind the demo's settings: its run for each optimizer, over learning rates and more.

    python examples/lr_grid.py --out grid_out                      all grids (hours on two cores)
    python examples/lr_grid.py --out grid_out --only sage-hybrid   one of them

Both optimizers of the demo get as many runs. Finished ones are read back from ``results.jsonl`` in the
folder, so the script can be stopped at any time and started again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from llama import cli, corpus, report
from llama.errors import UsageError
from llama.loop import Trainer
from llama.settings import Settings

# By factors of about two; six runs for each optimizer of the demo, three for its relatives. A hybrid has two
# rates to find: SinkGD moves an element by about lr * alpha in the sqrt form, by a 16th of that in the unit
# form at this size. examples/README.md says with how many steps ALIAS was run.
GRIDS: dict[str, list[str]] = {
    "adamw": [
        "adamw:lr=1e-3",
        "adamw:lr=2e-3",
        "adamw:lr=4e-3",
        "adamw:lr=3e-3",
        "adamw:lr=2e-3:betas=0.9/0.99",
        "adamw:lr=2e-3:weight_decay=0",
    ],
    "sage-hybrid": [
        "sage-hybrid:lr=5e-4:alpha=20",
        "sage-hybrid:lr=1e-3:alpha=10",
        "sage-hybrid:lr=2e-3:alpha=5",
        "sage-hybrid:lr=4e-3:alpha=2.5",
        "sage-hybrid:lr=1e-3:alpha=20",
        "sage-hybrid:lr=1e-3:alpha=5",
    ],
    "sage-hybrid-sqrt": [
        "sage-hybrid-sqrt:lr=1e-3:alpha=0.6",
        "sage-hybrid-sqrt:lr=2e-3:alpha=0.3",
        "sage-hybrid-sqrt:lr=1e-3:alpha=0.3",
    ],
    "sinkgd-hybrid": [
        "sinkgd-hybrid:lr=2e-2:alpha=0.015",
        "sinkgd-hybrid:lr=2e-2:alpha=0.03",
        "sinkgd-hybrid:lr=1e-2:alpha=0.03",
    ],
    # No learning rate but that of the preset's head; what there is to choose is the largest step.
    "alias": [
        "alias:max_step=1e-3",
        "alias-lower-bound:max_step=3e-4",
        "alias-lower-bound:max_step=1e-3",
        "alias-lower-bound:max_step=3e-3",
        "alias-base:gap=descent:d0=1e-6",
        "alias-base:gap=descent:d0=1",
        "alias-base:gap=lower_bound",
        "alias-adam:lr=1e-3",
        "alias-adam:lr=2e-3",
    ],
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("grid_out"), help="folder for results.jsonl (default: %(default)s)"
    )
    parser.add_argument("--only", help=f"of {', '.join(GRIDS)}, with commas between (default: all)")
    parser.add_argument("--specs", help="instead of the grids: these, as for train_llama.py --compare")
    parser.add_argument("--amp", choices=("none", "bf16"), default="none")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--warmup", type=int, default=Settings().warmup)
    parser.add_argument("--final-lr", type=float, default=Settings.final_lr)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    specs = arguments.specs.split(",") if arguments.specs else []
    for name in [] if specs else (arguments.only or ",".join(GRIDS)).split(","):
        if name not in GRIDS:
            parser.error(f"--only {name}: there is no such grid; choose from {', '.join(GRIDS)}")
        specs += GRIDS[name]
    shared = {
        "amp": arguments.amp,
        "steps": arguments.steps,
        "seed": arguments.seed,
        "tied": arguments.tied,
        "warmup": arguments.warmup,
        "final_lr": arguments.final_lr,
        "eval_every": 0,
    }
    try:
        rows = [run(arguments.out / "results.jsonl", spec, shared) for spec in specs]
    except UsageError as error:
        parser.error(str(error))
    print(table(rows))
    return 0


def run(path: Path, spec: str, shared: dict) -> dict:
    """One run, or what ``path`` says about it."""
    settings = cli.settings({**shared, "optimizer": spec})
    wanted = {"optimizer": settings.optimizer, **shared}
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        if {name: row[name] for name in wanted} == wanted:
            return row
    text = corpus.prepare(None, vocab_size=settings.vocab_size, val_fraction=settings.val_fraction)
    trainer = Trainer(settings, text)
    trainer.run(say=lambda line: None)
    result = trainer.result()
    row = {
        **wanted,
        "optimizer_settings": result["optimizer_settings"],
        "validation_loss": result["validation_loss"] if math.isfinite(result["validation_loss"]) else None,
        "state_bytes": result["state_bytes"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(report.summary(result), spec, file=sys.stderr, flush=True)
    return row


def table(rows: list[dict]) -> str:
    lines = ["| optimizer | settings | validation perplexity |", "|---|---|---:|"]
    for row in rows:
        name, _, changed = row["optimizer"].partition(":")
        loss = row["validation_loss"]
        value = "diverged" if loss is None else f"{math.exp(loss):.1f}"
        lines.append(f"| {name} | {changed.replace(':', ', ') or 'defaults'} | {value} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
