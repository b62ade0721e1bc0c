"""Contenders from torch and from other packages, at their own settings but for the rates.

None is needed: what is not installed is left out of the plan, and ``--status`` says what to install.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

from lab.contenders import (
    EVERYTHING,
    MATRICES,
    RULES,
    VECTOR_RATE,
    Contender,
    Group,
    by,
    contenders,
    ours,
    vectors,
)

RANK = 32  # of GaLore's and APOLLO's projections: a sixth of the width at scale "cpu"


def missing(contender: Contender) -> str | None:
    """What to install before this contender can run; None: nothing."""
    if contender.feature is not None and not _has(*contender.feature):
        return "a newer sage_ext"
    if contender.module is None or _installed(contender.module):
        return None
    return f"pip install {contender.package}"


@functools.cache
def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@functools.cache
def _has(what: str, name: str) -> bool:
    from sage_ext.optimizers import FusedHybrid
    from sage_ext.optimizers.presets import PRESETS

    return name in (PRESETS if what == "preset" else FusedHybrid.rules[what].defaults)


def muon(rates: dict[str, float], steps: int) -> list[Group]:
    """Muon on the matrices, AdamW on the rest. Its factor 0.2 is taken out: a rate is the update's size."""
    del steps
    settings = {"momentum": 0.95, "nesterov": True, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    return [
        by("torch.optim.Muon", "matrix", rates["matrix"] / 0.2, **settings),
        ours("adamw", "embedding", rates["embedding"]),
        ours("adamw", "lm_head", rates["lm_head"]),
        vectors(),
    ]


def on_matrices(optimizer: str, **settings: Any):
    """One foreign optimizer for embedding, matrices and head, each at its rate; AdamW on the rest."""

    def make(rates: dict[str, float], steps: int) -> list[Group]:
        del steps
        return [*(by(optimizer, role, rates[role], **settings) for role in MATRICES), vectors()]

    return make


def low_rank(optimizer: str, **projection: Any):
    """GaLore, APOLLO: Adam in a projection of the matrices' gradients, plain Adam elsewhere.

    Their factor ``scale`` is 1: the search finds the matrices' rate.
    """

    def make(rates: dict[str, float], steps: int) -> list[Group]:
        del steps
        values = {**rates, "vector": VECTOR_RATE}
        adam = {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0, "correct_bias": True}
        return [
            by(optimizer, role, values[role], **adam, **(projection if role == "matrix" else {}))
            for role in EVERYTHING
        ]

    return make


def by_itself(optimizer: str, lr: float, **settings: Any):
    """What finds its own rate: all parameters, one group, the authors' settings."""

    def make(rates: dict[str, float], steps: int) -> list[Group]:
        del rates, steps
        return [by(optimizer, EVERYTHING, lr, **settings)]

    return make


def schedule_free(rates: dict[str, float], steps: int) -> list[Group]:
    values = {**rates, "vector": VECTOR_RATE}
    return [
        by(
            "schedulefree.AdamWScheduleFree",
            role,
            values[role],
            betas=[0.9, 0.95],
            eps=1e-8,
            weight_decay=0.0,
            warmup_steps=steps // 10,
        )
        for role in EVERYTHING
    ]


PACKAGES = [
    Contender("muon", "torch.optim.Muon on matrices, AdamW on embedding and head", muon, 3),
    Contender(
        "prodigy",
        "prodigyopt's Prodigy: finds its rate",
        by_itself("prodigyopt.Prodigy", 1.0, betas=[0.9, 0.99], weight_decay=0.0, safeguard_warmup=True),
        3,
        searched=False,
        package="prodigyopt",
        module="prodigyopt",
    ),
    Contender(
        "dadapt-adam",
        "dadaptation's DAdaptAdam: finds its rate",
        by_itself("dadaptation.DAdaptAdam", 1.0, betas=[0.9, 0.99], weight_decay=0.0),
        3,
        searched=False,
        package="dadaptation",
        module="dadaptation",
    ),
    Contender(
        "dog",
        "dog-optimizer's layer-wise DoG: finds its rate, averages its iterates",
        by_itself("dog.LDoG", 1.0, reps_rel=1e-6, eps=1e-8, weight_decay=0.0),
        3,
        searched=False,
        schedule="constant",
        package="dog-optimizer",
        module="dog",
    ),
    Contender(
        "apollo",
        f"apollo-torch's APOLLO of rank {RANK} on matrices, AdamW elsewhere",
        low_rank(
            "apollo_torch.APOLLOAdamW",
            rank=RANK,
            proj="random",
            scale_type="channel",
            scale=1.0,
            update_proj_gap=200,
            proj_type="std",
        ),
        3,
        package="apollo-torch",
        module="apollo_torch",
    ),
    Contender(
        "galore",
        f"galore-torch's GaLore of rank {RANK} on matrices, AdamW elsewhere",
        low_rank("galore_torch.GaLoreAdamW", rank=RANK, update_proj_gap=200, scale=1.0, proj_type="std"),
        3,
        package="galore-torch",
        module="galore_torch",
    ),
    Contender(
        "lion-pytorch",
        "lion-pytorch's Lion: the same formula by another hand",
        on_matrices("lion_pytorch.Lion", betas=[0.9, 0.99], weight_decay=0.0),
        4,
        package="lion-pytorch",
        module="lion_pytorch",
    ),
    Contender(
        "schedule-free",
        "schedulefree's AdamW: no decay of the rate, averages its iterates",
        schedule_free,
        3,
        schedule="constant",
        package="schedulefree",
        module="schedulefree",
    ),
    Contender(
        "adamw-8bit",
        "bitsandbytes' AdamW with both moments in 8 bits",
        on_matrices("bitsandbytes.optim.AdamW8bit", **RULES["adamw"]),
        4,
        package="bitsandbytes",
        module="bitsandbytes",
    ),
]


def available() -> dict[str, Contender]:
    """The contenders whose packages are installed."""
    return {name: contender for name, contender in contenders().items() if missing(contender) is None}


def left_out() -> dict[str, str]:
    """Contender -> what to install for it."""
    return {name: package for name, contender in contenders().items() if (package := missing(contender))}
