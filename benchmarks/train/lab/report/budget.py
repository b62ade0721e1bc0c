"""The part of the report on what ``sage_ext.autoconfig`` picks (``lab/budget.py``)."""

from __future__ import annotations

from docs_markdown import prose, table

from lab import budget
from lab.plan import SEEDS
from lab.report import data, rules
from lab.report.data import millions, with_spread
from lab.report.tables import AGAIN, again
from lab.scales import Scale
from lab.store import Store

WITHOUT_STATE = ("sinkgd", "sign_sgd", "scale")


def section(store: Store, scale: Scale) -> str:
    rows = []
    for name in budget.AGAINST:
        runs = data.select(store, "budget", budget.NAME, "seed", against=name)
        if not runs:
            continue
        rival = best_within(store, name)
        theirs = data.seeds(store, rival) if rival else []
        difference = ahead(runs, theirs)
        verdict = (
            "-" if difference is None else f"{data.percent_and_error(difference)}: {rules.better(difference)}"
        )
        rows.append(
            [
                f"`{name}`",
                f"{data.state_per_parameter(runs[0]):.2f}",
                _rules(runs[0]),
                with_spread(runs),
                f"`{rival}` {with_spread(theirs)}" if rival else "-",
                verdict,
                again(runs),
            ]
        )
    if not rows:
        return prose("Measured, but nothing has been trained with what was picked yet.")
    columns = [
        "the state of",
        "bytes a parameter",
        "the pick",
        "its perplexity",
        "best ranked with no more state",
        "difference; is the pick better?",
        AGAIN,
    ]
    text = prose(
        f"During {budget.STEPS} steps of AdamW `sage_ext.autoconfig` measures how far from it each rule",
        "leads on each matrix; then it picks one rule a matrix within the state of a hybrid (and",
        f"{100 * (budget.ROOM - 1):.1f} % for counters of steps). Rates are those of the best run of study",
        "`main` that had the rule in this role, or where none had, matched to AdamW's. Three seeds,",
        f"{millions(scale.final_tokens)} tokens. The pick may have AdamW with states in bf16, which none of",
        "the hybrids has. Beside it stands what ranks best above with no more state.",
        *(
            [
                "At AdamW's own state the pick is AdamW: that row shows what rates from all searches are",
                "worth beside those of AdamW's own.",
            ]
            if data.select(store, "budget", budget.NAME, "seed", against="adamw")
            else []
        ),
    )
    return "\n\n".join([text, table(columns, rows, text_last=True), *_by_steps(store)])


def ahead(runs: list[data.Result], theirs: list[data.Result]) -> data.Estimate | None:
    """How far a pick is from a rival; None: not all seeds of both are there."""
    whole = min(len(runs), len(theirs)) >= len(SEEDS)
    return data.estimate(runs) - data.estimate(theirs) if whole else None


def best_within(store: Store, contender: str) -> str | None:
    """The best of the ranked that keep no more than a contender does; None: that has not run yet."""
    theirs = data.seeds(store, contender)
    if not theirs:
        return None
    most = budget.ROOM * data.state_per_parameter(theirs[0])
    names = data.ranked(store)
    return next((n for n in names if data.state_per_parameter(data.seeds(store, n)[0]) <= most), None)


def _by_steps(store: Store) -> list[str]:
    """What rules without momentum risk on embedding and head, by the number of steps that are looked at."""
    runs = sorted(
        data.select(store, "budget", budget.NAME, "measure"), key=lambda run: run["variant"]["steps"]
    )
    if len(runs) < 2:
        return []
    rows, least = [], {}
    for run in runs:
        risks = {
            (of["role"], option["candidate"]): sum(option["risk"])
            for of in run["measured"].values()
            for option in of["options"]
            if of["role"] != "matrix"
        }
        steps = run["variant"]["steps"]
        cells = [f"{risks[role, rule]:.2f}" for role in ("embedding", "lm_head") for rule in WITHOUT_STATE]
        rows.append([str(steps), *cells, again([run])])
        least[steps] = min(WITHOUT_STATE, key=lambda rule, risks=risks: risks["lm_head", rule])
    names = [f"{role}: {rule}" for role in ("embedding", "head") for rule in WITHOUT_STATE]
    found = ", ".join(f"at {steps} steps for `{rule}`" for steps, rule in least.items())
    text = prose(
        "How many steps does it take? Below are the risks of rules that keep nothing (SCALE by columns), by",
        f"the number of steps looked at. On the head they are least {found}. What claims and ranks above say",
        "of SinkGD and Sign-SGD on a head, the first steps do not show.",
    )
    return [text, table(["steps", *names, AGAIN], rows, text_last=True)]


def _rules(run: data.Result) -> str:
    """The rules of a run by role: "embedding: adamw in bf16; matrix: 4 adamw in bf16, 17 sinkgd"."""
    of_role: dict[str, list[str]] = {}
    for group in run["config"]["groups"]:
        if "names" in group:
            kind = group["rule"] + (" with momentum" if group.get("momentum") else "")
            kind += " in bf16" if group.get("state_dtype") == "bfloat16" else ""
            count = f"{len(group['names'])} " if len(group["names"]) > 1 else ""
            of_role.setdefault(group["roles"][0], []).append(f"{count}{kind}")
    return "; ".join(f"{role}: {', '.join(kinds)}" for role, kinds in of_role.items())
