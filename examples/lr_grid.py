#!/usr/bin/env python3
"""How the demo's learning rates were found, and the grids of ALIAS: the demo's run, over rates and more.

    python examples/lr_grid.py --search 10 --amp bf16            the demo's contenders, 10 runs each
    python examples/lr_grid.py --search 10 --contenders adamw    one of them
    python examples/lr_grid.py --only alias --warmup 75          the runs of ALIAS in README.md

A search moves the rates one after the other by a factor of two while that helps.
Every contender gets as many runs. Finished runs are read back from
``results.jsonl`` in the folder, so the script can be stopped at any time and started again, and several can
work beside each other.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

from llama import cli, corpus, optim, report
from llama.errors import UsageError
from llama.loop import Trainer
from llama.rows import RATES, ROWS
from llama.settings import Settings

# No learning rate but that of the preset's head; what there is to choose is the largest step.
GRIDS: dict[str, list[str]] = {
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
# Where a search begins: the rates that are good for 300 steps, half of them warm-up.
STARTS = {
    "adamw": (2e-2, 1e-3, 1e-3, 1e-3),
    "sage-hybrid": (4e-3, 2e-2, 5e-4, 1e-3),
    "sinkgd-scale": (2e-2, 2e-2, 3e-4, 1e-3),
    "scale": (4e-3, 3e-4, 3e-4, 1e-3),
}
FACTOR, LEAST_FACTOR = 2.0, 1.05


def search(
    loss_of: Callable[[dict[str, float]], float], start: dict[str, float], runs: int
) -> dict[str, float]:
    """The best of ``runs`` different choices of rates, from ``start`` on, one rate after the other.

    A rate goes up by a factor while that helps, else down while that helps. When no rate wants to move, the
    factor becomes its root, down to ``LEAST_FACTOR``. ``loss_of`` may be infinite or NaN.
    """
    seen: dict[tuple[float, ...], float] = {}

    def loss(rates: dict[str, float]) -> float:
        key = tuple(rates.values())
        if key not in seen:
            value = loss_of(rates)
            seen[key] = math.inf if math.isnan(value) else value
        return seen[key]

    best, lowest, factor = dict(start), loss(start), FACTOR
    while len(seen) < runs and factor >= LEAST_FACTOR:
        before = best
        for name in start:
            for by in (factor, 1 / factor):
                here = best[name]
                while len(seen) < runs:
                    tried = {**best, name: float(f"{best[name] * by:.2g}")}
                    if loss(tried) >= lowest:
                        break
                    best, lowest = tried, loss(tried)
                if best[name] != here:
                    break
        if best == before:
            factor = math.sqrt(factor)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("grid_out"), help="folder for results.jsonl (default: %(default)s)"
    )
    parser.add_argument("--search", type=int, metavar="N", help="look for the rates by role, N runs each")
    parser.add_argument("--contenders", help="of a search (default: those of the demo)")
    parser.add_argument("--only", help=f"a grid: {', '.join(GRIDS)}")
    parser.add_argument("--specs", help="these runs, as for train_llama.py --compare")
    parser.add_argument(
        "--json", type=Path, help="write all runs in the folder, and how to repeat them, here"
    )
    parser.add_argument("--amp", choices=("none", "bf16"), default="none")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--warmup", type=int, default=-1, help="steps (default: a tenth)")
    parser.add_argument("--final-lr", type=float, default=Settings.final_lr)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    arguments = parser.parse_args()
    import torch  # after llama, which says how its threads wait

    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    shared = {
        "amp": arguments.amp,
        "steps": arguments.steps,
        "seed": arguments.seed,
        "tied": arguments.tied,
        "warmup": Settings(steps=arguments.steps, warmup=arguments.warmup).warmup,
        "final_lr": arguments.final_lr,
        "eval_every": 0,
    }
    path = arguments.out / "results.jsonl"
    try:
        if arguments.search:
            names = arguments.contenders.split(",") if arguments.contenders else list(cli.DEMO_COMPARE)
            rows = [row for name in names for row in searched(path, name, arguments.search, shared)]
        elif arguments.specs or arguments.only in GRIDS:
            specs = arguments.specs.split(",") if arguments.specs else GRIDS[arguments.only]
            rows = [run(path, spec, shared) for spec in specs]
        else:
            parser.error(f"say what to run: --search N, --specs A,B,... or --only {', '.join(GRIDS)}")
    except UsageError as error:
        parser.error(str(error))
    if arguments.json:
        record(arguments.json, rows, shared, arguments.search)
    print(table(rows))
    return 0


def searched(path: Path, name: str, runs: int, shared: dict) -> list[dict]:
    """The runs of a search for the rates of ``name``, in order; the best has ``"best": true``."""
    if name not in ROWS or not set(RATES.values()) <= set(ROWS[name].defaults):
        able = [n for n, row in ROWS.items() if set(RATES.values()) <= set(row.defaults)]
        raise UsageError(f"--contenders {name}: has no rates by role; choose from {', '.join(able)}")
    rows: list[dict] = []

    def loss_of(rates: dict[str, float]) -> float:
        spec = ":".join([name, *(f"{key}={value:g}" for key, value in rates.items())])
        rows.append(run(path, spec, shared))
        loss = rows[-1]["validation_loss"]
        return math.inf if loss is None else loss

    start = {key: ROWS[name].defaults[key] for key in RATES.values()}
    start.update(zip(start, STARTS.get(name, ()), strict=False))
    best = search(loss_of, start, runs)
    return [{**row, "best": all(row["optimizer_settings"][k] == v for k, v in best.items())} for row in rows]


def run(path: Path, spec: str, shared: dict) -> dict:
    """One run, or what ``path`` says about it."""
    settings = cli.settings({**shared, "optimizer": spec})
    choice = optim.parse(settings.optimizer)
    wanted = {
        "optimizer": settings.optimizer,
        **shared,
        # The defaults of a row may have changed since.
        "optimizer_settings": json.loads(json.dumps(choice.settings)),
    }
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        if {name: row.get(name) for name in wanted} == wanted:
            return row
    text = corpus.prepare(None, vocab_size=settings.vocab_size, val_fraction=settings.val_fraction)
    trainer = Trainer(settings, text)
    trainer.run(say=lambda line: None)
    result = trainer.result()
    row = {
        **wanted,
        "validation_loss": result["validation_loss"] if math.isfinite(result["validation_loss"]) else None,
        "state_bytes": result["state_bytes"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(report.summary(result), spec, file=sys.stderr, flush=True)
    return row


def record(path: Path, rows: list[dict], shared: dict, runs_each: int | None) -> None:
    """Writes the runs and the command that repeats them."""
    words = " ".join(sys.argv[1:])
    # What has no say in the numbers is left out.
    words = re.sub(r" ?--(threads|out|json)[ =]\S+", "", words).strip()
    facts = {
        "command": f"python examples/lr_grid.py {words}",
        "settings": shared,
        "runs_each": runs_each,
        "machine": report.machine(),
        "runs": [{k: v for k, v in row.items() if k not in shared} for row in rows],
    }
    path.write_text(json.dumps(facts, indent=1) + "\n")


def table(rows: list[dict]) -> str:
    lines = ["| optimizer | settings | validation perplexity |", "|---|---|---:|"]
    for row in rows:
        name, _, changed = row["optimizer"].partition(":")
        loss = row["validation_loss"]
        value = "diverged" if loss is None else f"{math.exp(loss):.1f}"
        value = f"**{value}**" if row.get("best") else value
        lines.append(f"| {name} | {changed.replace(':', ', ') or 'defaults'} | {value} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
