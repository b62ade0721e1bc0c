"""Made-up results of ``benchmarks/train``, as ``run.py`` keeps them, for the tests of its report."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "train"))

from lab import packages, search, store, studies
from lab.plan import SEEDS
from lab.scales import SCALES
from lab.store import Store

TINY, CPU = SCALES["test"], SCALES["cpu"]
DOCS = Path(__file__).resolve().parents[2] / "docs"


def option(candidate: str, state_bytes: int, risk: float, **settings: Any) -> dict[str, Any]:
    rest = {"lr": 1e-3, "weight_decay": 0.0, "moved_bytes": 0, "risk": [risk, 0.0, 0.0]}
    rule = candidate.partition("-")[0]
    return {"candidate": candidate, "rule": rule, "state_bytes": state_bytes, **rest, "settings": settings}


# Of three matrices, what study "budget" measures.
MEASURED = {
    f"the.{role}": {
        "role": role,
        "shape": [8, 4],
        "dtype": "float32",
        "options": [
            option("adamw", 260, 0.0),
            option("adamw-bf16", 132, 0.001, state_dtype="bfloat16"),
            option("sage", 148, 0.3),
            option("sinkgd", 0, 0.7),
            option("scale", 0, 0.8, dim=0),
            option("scale-momentum", 64, 0.2, dim=1, momentum=0.9, state_dtype="bfloat16"),
            option("sign_sgd", 0, 0.9),
        ],
    }
    for role in ("embedding", "matrix", "lm_head")
}


def result(run: str, loss: float | None, config: dict[str, Any], **about: Any) -> dict[str, Any]:
    """A result as ``run.py`` keeps it, with made-up numbers."""
    of_scale = "" if config["scale"] == "cpu" else f"--scale {config['scale']} "
    points = [{"tokens": config["tokens"] * k / 2, "loss": loss} for k in (1, 2)]
    return {
        "format": store.FORMAT,
        "id": run,
        **about,
        "command": f"python benchmarks/train/run.py {of_scale}--rerun {run}",
        "text": {
            "sha256": "c0ffee",
            "tokens": {"train": 1000, "validation-text": 100},
            "kinds": {"text": {"documents": 3, "bytes": 4000, "from": ["/some/where/my-text"]}},
        },
        "config": config,
        "versions": {"python": "3", "processor": "made up", "torch": "2"},
        "result": {
            "loss": loss,
            "perplexity": None if loss is None else math.exp(loss),
            "parameters": 1000,
            "state_bytes": 100 * (len(run) % 9),
            "optimizer_ms": None if loss is None else 1.5,
            "cpu_seconds": 10.0,
            "wall_seconds": 30.0,
        },
        "curve": {
            "train_loss": [loss] * 8 if loss else [6.0],
            "step_size": [[1e-6 * 2**i for i in range(8)] if loss else []],
            "validation": points if loss else [],
        },
    }


def whole_store(folder: Path) -> Store:
    """All runs of all studies at scale "test"; the highest rate of the sweep diverges."""
    draw = random.Random(0)
    kept = Store(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "missing", lambda contender: None)
        patch.setattr(search, "propose", lambda done: search.rates([draw.random() for _ in range(3)]))
        for study in studies.STUDIES:
            for run in studies.plan(study, TINY):
                loss = 4 + 0.01 * (len(run.contender) % 9) + draw.gauss(0, 0.004)
                lost = study == "sweep" and run.variant["rate"] > 0.03
                about = {
                    "study": study,
                    "contender": run.contender,
                    "stage": run.stage,
                    "variant": run.variant,
                }
                kept.results[run.id] = result(run.id, None if lost else loss, run.config(kept), **about)
                if run.stage == "measure":
                    kept.results[run.id]["measured"] = MEASURED
    return kept


def seeds(*losses: float | None, contender: str, study: str = "main", **variant: Any) -> dict[str, Any]:
    """Results of one contender: a seed a loss, at scale "cpu"."""
    found = {}
    for seed, loss in zip(SEEDS, losses, strict=False):
        run = f"{study}.{contender}.{'-'.join(map(str, variant.values()))}.seed.{seed}"
        config = {**CPU.config(tokens=CPU.final_tokens, seed=seed), "groups": []}
        about = {"contender": contender, "stage": "seed", "variant": {**variant, "seed": seed}}
        found[run] = result(run, loss, config, study=study, **about)
    return found


def a_store(tmp_path: Path, *results: dict[str, Any]) -> Store:
    kept = Store(tmp_path)
    for each in results:
        kept.results.update(each)
    return kept
