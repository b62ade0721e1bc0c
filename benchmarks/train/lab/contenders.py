"""Who competes: a row each, which rule every role of the model has and with what, all of it written out.

A contender with a search is a function of three rates (``search.py``). The 1-D parameters, less than a
thousandth of the model, have AdamW at one rate with all of these, so that the rest is what is compared.
Contenders that find their own rates have all parameters, 1-D ones too, and no search.

Betas, momenta and SinkGD's five iterations are the papers' own. Weight decay is 0 throughout: in runs of one
epoch it has little to do; study "ablation" looks at it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Group = dict[str, Any]
Make = Callable[[dict[str, float], int], list[Group]]

PRESET = "preset-"  # of the names of presets that run as they are
MATRICES = ("embedding", "matrix", "lm_head")
EVERYTHING = (*MATRICES, "vector")
VECTOR_RATE = 1e-3

# The hyperparameters of this library's rules, in full, so that no run depends on a default.
RULES: dict[str, Group] = {
    "adamw": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0},
    "sage": {
        "betas": [0.9, 0.99],
        "eps": 1e-8,
        "weight_decay": 0.0,
        "momentum_first": False,
        "instant_damper": True,
    },
    "lion": {"betas": [0.9, 0.99], "weight_decay": 0.0},
    "sign_sgd": {"momentum": 0.0, "weight_decay": 0.0},
    # With alpha 1 the update of the sqrt form has a root mean square of lr, as the other rules' have.
    "sinkgd": {"iterations": 5, "alpha": 1.0, "eps": 1e-8, "normalization": "sqrt", "weight_decay": 0.0},
    "scale": {"dim": 1, "momentum": 0.0, "normalization": "rms", "weight_decay": 0.0},
    "alias": {
        "memory_efficient": True,
        "gap": "descent",
        "d0": 1e-6,
        "lower_bound": 0.0,
        "eta0": 0.0,
        "max_step": 1e-3,
        "update_every": 1,
        "same_batch": False,
        "weight_decay": 0.0,
    },
    "alias_adam": {"betas": [0.9, 0.999], "eps": 1e-8, "d0": 1.0, "weight_decay": 0.0},
}


@dataclass(frozen=True)
class Contender:
    name: str
    about: str
    make: Make
    """(rates, steps) -> parameter groups. Rates are empty where there is no search."""
    tier: int
    """1 is run first."""
    searched: bool = True
    schedule: str = "cosine"
    """"cosine" with warm-up, or "constant" for what brings its own schedule."""
    package: str | None = None
    """What to install from PyPI, where it is not this library or torch."""
    module: str | None = None
    feature: tuple[str, str] | None = None
    """What this library has to have: (rule, hyperparameter) or ("preset", name)."""


def ours(rule: str, roles: tuple[str, ...] | str, lr: float, **changes: Any) -> Group:
    """A group of this library's ``FusedHybrid``."""
    roles = (roles,) if isinstance(roles, str) else roles
    unknown = set(changes) - set(RULES[rule]) - {"warmup_steps", "smoothness", "state_dtype"}
    assert not unknown, f"{rule} has no {unknown}"
    return {"by": "sage_ext", "roles": list(roles), "rule": rule, "lr": lr, **RULES[rule], **changes}


def by(optimizer: str, roles: tuple[str, ...] | str, lr: float, **settings: Any) -> Group:
    """A group of an optimizer from elsewhere; ``optimizer`` is a key of ``build.BUILDERS``."""
    roles = (roles,) if isinstance(roles, str) else roles
    return {"by": optimizer, "roles": list(roles), "lr": lr, **settings}


def vectors() -> Group:
    return ours("adamw", "vector", VECTOR_RATE)


def by_role(embedding: tuple[str, Group], matrix: tuple[str, Group], lm_head: tuple[str, Group]) -> Make:
    """Each role its rule of this library: (name, changes)."""
    rules = {"embedding": embedding, "matrix": matrix, "lm_head": lm_head}

    def make(rates: dict[str, float], steps: int) -> list[Group]:
        del steps
        groups = [ours(rule, role, rates[role], **changes) for role, (rule, changes) in rules.items()]
        return [*groups, vectors()]

    return make


def alone(rule: str, **changes: Any) -> Make:
    """One rule of this library for all matrices, each role at its own rate."""
    return by_role((rule, changes), (rule, changes), (rule, changes))


ADAMW: tuple[str, Group] = ("adamw", {})
SAGE: tuple[str, Group] = ("sage", {})
LION: tuple[str, Group] = ("lion", {})
SIGN_SGD: tuple[str, Group] = ("sign_sgd", {})
SINKGD: tuple[str, Group] = ("sinkgd", {})
ROWS: tuple[str, Group] = ("scale", {"dim": 1})  # an output unit of a matrix or of the head
COLUMNS: tuple[str, Group] = ("scale", {"dim": 0})  # a dimension of an embedding
MOMENTUM: tuple[str, Group] = ("scale", {"dim": 1, "momentum": 0.9})
MOMENTUM_BF16: tuple[str, Group] = ("scale", {"dim": 1, "momentum": 0.9, "state_dtype": "bfloat16"})


def stateless(lm_head: tuple[str, Group]) -> Make:
    """SCALE's normalisations and SinkGD, no momentum anywhere, and Sign-SGD on 1-D parameters."""

    def make(rates: dict[str, float], steps: int) -> list[Group]:
        made = by_role(COLUMNS, SINKGD, lm_head)(rates, steps)
        return [
            *(group for group in made if group["roles"] != ["vector"]),
            ours("sign_sgd", "vector", VECTOR_RATE),
        ]

    return make


def preset_row(name: str) -> Any:
    """The ``Preset`` of this name, with ``PRESET`` before it or not."""
    from sage_ext.optimizers.presets import PRESETS

    return PRESETS[name.removeprefix(PRESET)]


def preset(name: str) -> Make:
    """A preset of ``FusedHybrid`` as it is: its rules, their settings and rates, written out."""

    def make(rates: dict[str, float], steps: int) -> list[Group]:
        del rates, steps
        from sage_ext.optimizers import FusedHybrid

        row, groups = preset_row(name), []
        for role in EVERYTHING:
            rule = row.rule_for(role)
            dim = row.scale_dim(role, output_dim=1 if role == "embedding" else 0)
            values = {
                **FusedHybrid.rules[rule].defaults,
                **({"dim": dim} if rule == "scale" else {}),
                **row.hyperparameters.get(rule, {}),
                **row.roles.get(role, {}),
            }
            lr = values.pop("lr")
            known = {key: value for key, value in values.items() if key in RULES[rule]}
            groups.append(ours(rule, role, lr, **known))
        return json.loads(json.dumps(groups))

    return make


def widen(contender: Contender, groups: list[Group], width: int) -> None:
    """What a preset makes of its matrices' rate in a model of this width; in place."""
    if not contender.name.startswith(PRESET):
        return
    for group in groups:
        if group["rule"] == "sinkgd":
            group["alpha"] *= preset_row(contender.name).width_factor(width)


def adamw_of_torch(rates: dict[str, float], steps: int) -> list[Group]:
    del steps
    values = {**rates, "vector": VECTOR_RATE}
    return [by("torch.optim.AdamW", role, values[role], **RULES["adamw"]) for role in EVERYTHING]


def alias(**changes: Any) -> Make:
    """ALIAS on everything: one step size for all. A rate is for its warm-up alone, up to ``max_step``."""

    def make(rates: dict[str, float], steps: int) -> list[Group]:
        del rates
        group = ours("alias", EVERYTHING, RULES["alias"]["max_step"], warmup_steps=steps // 10, **changes)
        return [group]

    return make


def alias_but_head(**changes: Any) -> Make:
    """ALIAS on all but the head, which has AdamW: as in its authors' code."""

    def make(rates: dict[str, float], steps: int) -> list[Group]:
        (group,) = alias(**changes)(rates, steps)
        group["roles"] = ["embedding", "matrix", "vector"]
        return [group, ours("adamw", "lm_head", 1e-3)]

    return make


def alias_adam(rates: dict[str, float], steps: int) -> list[Group]:
    del rates, steps
    return [ours("alias_adam", EVERYTHING, 1e-3)]


_OURS = [
    Contender("adamw", "torch.optim.AdamW on everything", adamw_of_torch, 1),
    Contender(
        "adamw-sinkgd-scale",
        "AdamW on the embedding, SinkGD on matrices, SCALE with momentum on the head",
        by_role(ADAMW, SINKGD, MOMENTUM),
        1,
    ),
    Contender(
        "sage-hybrid",
        "SAGE on embedding and head, SinkGD on matrices (the paper's pairing)",
        by_role(SAGE, SINKGD, SAGE),
        1,
    ),
    Contender("lion", "Lion on everything", alone("lion"), 1),
    Contender("sign-sgd", "Sign-SGD on everything: no state", alone("sign_sgd"), 1),
    Contender(
        "scale",
        "SCALE: columns of the embedding, rows of matrices, rows with momentum of the head",
        by_role(COLUMNS, ROWS, MOMENTUM),
        1,
    ),
    Contender(
        "adamw-momentum",
        "AdamW on the embedding, SCALE by rows with momentum in bf16 on matrices and head",
        by_role(ADAMW, MOMENTUM_BF16, MOMENTUM_BF16),
        2,
    ),
    Contender(
        "adamw-momentum-adamw",
        "AdamW on embedding and head, SCALE by rows with momentum in bf16 on matrices",
        by_role(ADAMW, MOMENTUM_BF16, ADAMW),
        2,
    ),
    Contender(
        "scale-sinkgd-scale",
        "SCALE by columns on the embedding, SinkGD on matrices, SCALE with momentum on the head",
        by_role(COLUMNS, SINKGD, MOMENTUM),
        2,
    ),
    Contender(
        "sinkgd-hybrid",
        "AdamW on embedding and head, SinkGD on matrices",
        by_role(ADAMW, SINKGD, ADAMW),
        2,
    ),
    Contender("sinkgd", "SinkGD on every matrix, embedding and head too: no state", alone("sinkgd"), 2),
    Contender(
        "stateless",
        "SCALE by columns on the embedding, by rows on the head, SinkGD on matrices, Sign-SGD on 1-D",
        stateless(ROWS),
        2,
    ),
    Contender(
        "stateless-columns",
        "SCALE by columns on embedding and head, SinkGD on matrices, Sign-SGD on 1-D",
        stateless(COLUMNS),
        2,
    ),
    *(
        Contender(
            f"{PRESET}{name}",
            f'`FusedHybrid(model, "{name}")` as it is',
            preset(name),
            2,
            searched=False,
            feature=("preset", name),
        )
        for name in ("sinkgd-scale", "stateless", "scale", "sage", "sinkgd", "lion")
    ),
    Contender("sage", "SAGE on everything", alone("sage"), 2),
    Contender(
        "lion-hybrid",
        "Lion on embedding and head, SinkGD on matrices",
        by_role(LION, SINKGD, LION),
        2,
    ),
    Contender("signum", "Sign-SGD with momentum 0.9 on everything", alone("sign_sgd", momentum=0.9), 2),
    Contender("alias", "ALIAS, memory-efficient, gap by descent, on everything", alias(), 2, searched=False),
    Contender(
        "alias-lower-bound",
        "ALIAS, memory-efficient, gap from the loss's lower bound",
        alias(gap="lower_bound"),
        2,
        searched=False,
    ),
    Contender(
        "alias-base",
        "ALIAS in its base form, gap from the loss's lower bound",
        alias(memory_efficient=False, gap="lower_bound"),
        2,
        searched=False,
    ),
    Contender(
        "alias-base-descent",
        "ALIAS in its base form, gap by descent",
        alias(memory_efficient=False),
        2,
        searched=False,
    ),
    Contender(
        "alias-head-adamw",
        "ALIAS, memory-efficient, on all but the head, which has AdamW at 1e-3",
        alias_but_head(),
        2,
        searched=False,
    ),
    Contender(
        "alias-base-head-adamw",
        "ALIAS in its base form, gap from the loss's lower bound, on all but the head (AdamW at 1e-3)",
        alias_but_head(memory_efficient=False, gap="lower_bound"),
        2,
        searched=False,
    ),
    Contender(
        "alias-sum-head-adamw",
        "ALIAS with the sum of 1-norms, gap from the lower bound, on all but the head (AdamW at 1e-3)",
        alias_but_head(smoothness="sum", gap="lower_bound"),
        2,
        searched=False,
        feature=("alias", "smoothness"),
    ),
    Contender(
        "sign-sgd-adamw",
        "Sign-SGD on embedding and matrices, AdamW on the head",
        by_role(SIGN_SGD, SIGN_SGD, ADAMW),
        2,
    ),
    Contender(
        "alias-sum",
        "ALIAS with the sum of gradients' 1-norms for its smoothness, gap from the loss's lower bound",
        alias(smoothness="sum", gap="lower_bound"),
        2,
        searched=False,
        feature=("alias", "smoothness"),
    ),
    Contender(
        "alias-sum-descent",
        "ALIAS with the sum of gradients' 1-norms for its smoothness, gap by descent",
        alias(smoothness="sum"),
        2,
        searched=False,
        feature=("alias", "smoothness"),
    ),
    Contender("alias-adam", "ALIAS-Adam at its own rate, 1e-3", alias_adam, 2, searched=False),
    Contender(
        "sage-sinkgd-adamw",
        "SAGE on the embedding, SinkGD on matrices, AdamW on the head",
        by_role(SAGE, SINKGD, ADAMW),
        3,
    ),
    Contender(
        "lion-sinkgd-adamw",
        "Lion on the embedding, SinkGD on matrices, AdamW on the head",
        by_role(LION, SINKGD, ADAMW),
        3,
    ),
    Contender(
        "adamw-scale-scale",
        "AdamW on the embedding, SCALE on matrices, SCALE with momentum on the head",
        by_role(ADAMW, ROWS, MOMENTUM),
        3,
    ),
]


def contenders() -> dict[str, Contender]:
    """All of them, in the order in which they are run: by tier, then as listed."""
    from lab.packages import PACKAGES

    everyone = sorted([*_OURS, *PACKAGES], key=lambda contender: contender.tier)
    return {contender.name: contender for contender in everyone}
