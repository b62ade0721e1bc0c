"""The part of the report on what ``sage_ext.autoconfig`` picks (``lab/budget.py``)."""

from __future__ import annotations

from docs_markdown import prose, table

from lab import budget
from lab.plan import SEEDS
from lab.report import claims, data
from lab.report.data import millions, with_spread
from lab.report.tables import AGAIN, again
from lab.scales import Scale
from lab.store import Store


def section(store: Store, scale: Scale) -> str:
    rows = []
    for name in budget.AGAINST:
        runs = data.select(store, "budget", budget.NAME, "seed", against=name)
        theirs = data.seeds(store, name)
        if not runs:
            continue
        whole = min(len(runs), len(theirs)) >= len(SEEDS)
        difference = data.estimate(runs) - data.estimate(theirs) if whole else None
        verdict = "-" if difference is None else f"{claims.written(difference)}: {claims.better(difference)}"
        states = [f"{data.state_per_parameter(of[0]):.2f}" if of else "-" for of in (theirs, runs)]
        rows.append(
            [
                f"`{name}`",
                *states,
                with_spread(theirs) or "-",
                with_spread(runs),
                verdict,
                _rules(runs[0]),
                again(runs),
            ]
        )
    if not rows:
        return prose("Measured, but nothing has been trained with what was picked yet.")
    columns = [
        "the state of",
        "bytes a parameter",
        "and of the pick",
        "its perplexity",
        "the pick's",
        "difference; is the pick better?",
        "the pick",
        AGAIN,
    ]
    text = prose(
        f"During {budget.STEPS} steps of AdamW `sage_ext.autoconfig` measures how far each rule is from it",
        "on each matrix; then it picks one rule a matrix within the state of a hybrid (and",
        f"{100 * (budget.ROOM - 1):.1f} % for counters of steps). Rates are those of the best run of study",
        "`main` that had the rule in this role, or where none had, matched to AdamW's. Three seeds,",
        f"{millions(scale.final_tokens)} tokens. The pick may have AdamW with states in bf16, which none of",
        "the hybrids has.",
    )
    return f"{text}\n\n{table(columns, rows, text_last=True)}"


def _rules(run: data.Result) -> str:
    """The rules of a run by role: "embedding: adamw in bf16; matrix: 4 adamw in bf16, 17 sinkgd"."""
    of_role: dict[str, list[str]] = {}
    for group in run["config"]["groups"]:
        if "names" in group:
            kind = f"{group['rule']} in bf16" if group.get("state_dtype") == "bfloat16" else group["rule"]
            count = f"{len(group['names'])} " if len(group["names"]) > 1 else ""
            of_role.setdefault(group["roles"][0], []).append(f"{count}{kind}")
    return "; ".join(f"{role}: {', '.join(kinds)}" for role, kinds in of_role.items())
