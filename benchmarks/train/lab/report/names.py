"""The part of the report on what the contenders' names mean: the rule of each role, and which look alike."""

from __future__ import annotations

from typing import Any

from docs_markdown import prose, table

from lab.contenders import PRESET, contenders
from lab.report import data
from lab.report.style import CONTENDERS
from lab.store import Store

ROLES = {"embedding": "embedding", "matrix": "matrices", "lm_head": "head", "vector": "1-D"}
WORDS = {"adamw": "AdamW", "sage": "SAGE", "lion": "Lion", "sign_sgd": "Sign-SGD", "sinkgd": "SinkGD"}
WORDS |= {"scale": "SCALE", "alias": "ALIAS", "alias_adam": "ALIAS-Adam"}

# Names that would be taken for one another, and what tells them apart. Shown when the first has run.
LOOK_ALIKES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("stateless", "stateless-columns", "preset-stateless"),
        '`stateless` is **not** the preset `"stateless"`: it has SCALE by rows on the head. The form of the '
        "preset, by columns, is `stateless-columns`, at rates of the search and with five iterations; "
        "`preset-stateless` is the preset itself.",
    ),
    (
        ("scale", "preset-scale"),
        "`scale` and `preset-scale` have the same rules, at rates of the search and at those of the preset.",
    ),
    (
        ("sinkgd", "sinkgd-hybrid", "preset-sinkgd"),
        "`sinkgd` is SinkGD on embedding and head too. `sinkgd-hybrid` leaves those to AdamW, as does the "
        'preset `"sinkgd"`, which is `preset-sinkgd`, with one iteration and rates of its own.',
    ),
    (
        ("adamw-sinkgd-scale", "preset-sinkgd-scale"),
        '`adamw-sinkgd-scale` has the rules of the preset `"sinkgd-scale"`, at rates of its own search and '
        "with five iterations; `preset-sinkgd-scale` is the preset itself.",
    ),
    (
        ("sage", "sage-hybrid", "preset-sage"),
        "`sage` is SAGE alone. `sage-hybrid` has SinkGD on matrices, the pairing of the paper; so has "
        "`preset-sage`, with one iteration, rates of its own, and SAGE on 1-D parameters too.",
    ),
    (
        ("lion", "lion-hybrid", "preset-lion"),
        "`lion`, `lion-hybrid` and `preset-lion` are the same three with Lion in the place of SAGE.",
    ),
    (
        ("adamw-momentum", "adamw-momentum-adamw"),
        "`adamw-momentum` and `adamw-momentum-adamw` are mostly SCALE: AdamW has the embedding alone, or "
        "embedding and head.",
    ),
    (
        ("sign-sgd", "sign-sgd-adamw"),
        "`sign-sgd` is Sign-SGD on the head too, `sign-sgd-adamw` has AdamW there. So have those ALIAS with "
        "`head-adamw` in their name, at 1e-3.",
    ),
)


def meanings(store: Store) -> str:
    """A row a contender that has begun, by family; then those that look alike."""
    runs = {name: run for name in contenders() if (run := _a_run(store, name))}
    families = list(dict.fromkeys(style.color for style in CONTENDERS.values()))
    order = {name: (families.index(style.color), i) for i, (name, style) in enumerate(CONTENDERS.items())}
    rows = []
    for name in sorted(runs, key=order.__getitem__):
        rules = rules_of(runs[name]["config"]["groups"])
        rows.append([f"`{name}`", *(rules.get(role, "") for role in ROLES), whose_rates(name)])
    if not rows:
        return "No contender has begun yet."
    text = prose(
        f"Names with `{PRESET}` are presets of this library, `FusedHybrid(model, NAME)` as it is. All others",
        "are this benchmark's own, even where a preset has the name: each role's rule as below, at rates",
        "that the search has found, or that the rule finds itself. SinkGD x 5 has five iterations, as in its",
        "paper, and x 1 one. SCALE is by columns or rows; m: with momentum, bf16: which is kept so. ALIAS is",
        "memory-efficient, but for its base form; it takes the gap by descent or from the loss's lower",
        "bound; sum: with the sum of the gradients' 1-norms.",
    )
    parts = [text, table(["contender", *ROLES.values(), "rates"], rows, left=len(ROLES) + 2)]
    if told := [f"- {line}" for names, line in LOOK_ALIKES if names[0] in runs]:
        parts += ["These look alike, and are not the same:", "\n".join(told)]
    return "\n\n".join(parts)


def _a_run(store: Store, name: str) -> data.Result | None:
    every = data.seeds(store, name) or data.select(store, "main", name)
    return every[0] if every else None


def whose_rates(name: str) -> str:
    if name.startswith(PRESET):
        return "the preset's"
    return "of the search" if contenders()[name].searched else "its own"


def rules_of(groups: list[dict[str, Any]]) -> dict[str, str]:
    """Role -> its rule in few words."""
    return {role: _rule(group) for group in groups for role in group["roles"]}


def _rule(group: dict[str, Any]) -> str:
    rule = group.get("rule")
    if rule is None:  # of a package: the last part of its name
        return group["by"].rpartition(".")[2]
    word = WORDS[rule]
    if rule == "sinkgd":
        return f"{word} x {group['iterations']}"
    if rule == "alias":
        form = "" if group["memory_efficient"] else " base"
        form += " sum" if group.get("smoothness") == "sum" else ""
        return f"{word}{form}, {'descent' if group['gap'] == 'descent' else 'bound'}"
    if rule == "scale":
        word += " columns" if group["dim"] == 0 else " rows"
    if group.get("momentum"):
        word += ", m" + (" bf16" if group.get("state_dtype") == "bfloat16" else "")
    return word
