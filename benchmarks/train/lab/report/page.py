"""The page: its parts in their order, a sentence where a study has not run yet."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from docs_markdown import prose, table

from lab import studies
from lab.plan import SEEDS
from lab.questions import ITERATED
from lab.report import data, names, pictures, standings
from lab.report.sections import SECTIONS
from lab.report.tables import RUN, at_home, home, run_py
from lab.scales import Scale
from lab.store import Store

BEGIN, END = "<!-- report:begin -->", "<!-- report:end -->"
ANY_RUN = re.compile(RUN.replace(" ", r"\s") + r"(\s)--")
HEAD = "# Which optimizer, at what cost"


def text(store: Store, scale: Scale, folder: str = "results", *, elsewhere: bool = False) -> str:
    """All of the page between its marks. ``folder``: where its pictures are, from the page. ``elsewhere``:
    the results are not where those of the scale usually are."""

    def shown(*names: str) -> list[str]:
        return [
            f"![{picture.alt}]({folder}/{picture.name}.svg)"
            for picture in map(pictures.PICTURES.__getitem__, names)
            if picture.data(store, scale) is not None
        ]

    parts: list[str | None] = [
        opening(store, scale, elsewhere),
        "## Where it stands",
        table_of_studies(store, scale),
        "## What the names mean",
        names.meanings(store),
        "## Perplexity at the same budget",
        standings.table_of_ranked(store, scale),
        standings.table_of_others(store, scale),
        "## What the papers claim",
        standings.table_of_claims(store),
    ]
    for heading, shown_here, missing in (
        ("Against tokens", ("tokens",), "No contender has all its seeds yet."),
        ("Against state", ("front",), "No contender has all its seeds yet."),
        ("Against time", ("seconds",), "No contender has all its seeds yet."),
        ("How much the rates matter", ("rates",), "No search has begun yet."),
        ("Steps that are found", ("alias-steps",), "No run of an optimizer that finds its step counts yet."),
    ):
        parts += [f"## {heading}", *(shown(*shown_here) or [f"{missing} `{RUN} --study main` runs them."])]
    for study, (heading, section, shown_here) in SECTIONS.items():
        parts.append(f"## {heading}")
        if data.select(store, study):
            parts += [partly(store, scale, study), section(store, scale), *shown(*shown_here)]
        else:
            parts.append(f"Study `{study}` has not run yet: `{RUN} --study {study}`.")
    parts += [
        "## What is fixed",
        fixed(store),
        "## Spread",
        spread(store),
        "## To run it again",
        again(scale, elsewhere),
        "## What was not shown",
        not_shown(store, scale),
    ]
    whole = "\n\n".join(part for part in parts if part)
    # Commands of other scales and folders name theirs, wherever a line of a paragraph ends.
    command = run_py(store, scale, elsewhere)
    return whole if command == RUN else ANY_RUN.sub(lambda found: f"{command}{found[1]}--", whole)


def make_report(scale: Scale, elsewhere: bool, *more: str) -> str:
    words = [] if at_home(scale) else [f"--scale {scale.name}"]
    words += ["--results FOLDER"] if elsewhere else []
    given = " ".join([*words, *more])
    return "make report" + (f' REPORT="{given}"' if " " in given else f" REPORT={given}" if given else "")


def opening(store: Store, scale: Scale, elsewhere: bool) -> str:
    folder = "`FOLDER`, which `--results` has named" if elsewhere else f"`{home(scale)}`"
    return "\n\n".join(
        [
            prose(
                f"{len(store.results):,} runs of small Llamas on real text, each a JSON in {folder}. All",
                f"below is made from them by `{make_report(scale, elsewhere)}`, which runs what is missing",
                "first. Embedding, matrices and head have rates of their own for every contender, AdamW",
                "too, found by the same search: in as many runs, once it is finished.",
            ),
            prose(
                f"**To run a row again**: `{RUN} --rerun ID`, with the id in its last column. It prints the",
                "result beside the one that was kept. A row of several seeds has the first one's.",
            ),
        ]
    )


def table_of_studies(store: Store, scale: Scale) -> str:
    rows = []
    for study, function in studies.STUDIES.items():
        question = (function.__doc__ or "").strip().split("\n")[0]
        done = len(data.select(store, study))
        rows.append([f"`{study}`", question, f"{done} of {data.planned(study, scale)}"])
    text = prose(f"`{RUN} --study STUDY` runs what is left of one.")
    return f"{text}\n\n{table(['study', 'what it is', 'runs'], rows, left=2)}"


def partly(store: Store, scale: Scale, study: str) -> str | None:
    done, all_of = len(data.select(store, study)), data.planned(study, scale)
    if done >= all_of:
        return None
    return f"**Not finished**: {done} of {all_of} runs. `{RUN} --study {study}` runs the rest."


# ------------------------------------------------------------------------------------------ what is fixed

VARIED = frozenset({"groups", "rates", "seed", "tokens", "schedule"})


def fixed(store: Store) -> str:
    runs = data.select(store, "main")
    if not runs:
        return "Nothing has run yet."
    keys = dict.fromkeys(key for run in runs for key in run["config"] if key not in VARIED)
    rows = [[f"`{key}`", _values([run["config"].get(key) for run in runs])] for key in keys]
    rows.append(["parameters", _values([run["result"]["parameters"] for run in runs])])
    about = runs[0]["text"]
    for kind, of in about["kinds"].items():
        held = about["tokens"].get(f"validation-{kind}", 0)
        rows.append(
            [
                f"text: {kind}",
                f"{_origin(of['from'])}; {of['documents']} documents, {of['bytes'] / 1e6:.1f} MB, "
                f"{held:,} tokens held out",
            ]
        )
    rows.append(["training tokens there are", f"{about['tokens']['train']:,}"])
    rows.append(["SHA-256 of the tokens", _values([run["text"]["sha256"] for run in runs])])
    names = dict.fromkeys(name for run in runs for name in run["versions"] if name != "commit")
    rows += [[name, _values([data.version(run, name) for run in runs])] for name in names]
    note = prose(
        "The same for all runs of study `main`, read from their JSONs; several values where runs",
        "differ. A JSON also has the commit that it was made at, every hyperparameter, and a thinned",
        "curve.",
    )
    return f"{note}\n\n{table(['what', 'value'], rows, left=2)}"


def _origin(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else ", ".join(Path(path).name for path in value)


def _values(values: Sequence[object]) -> str:
    """The different ones; of a model its sizes."""
    written = [
        ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
        if isinstance(value, dict)
        else _plain(value)
        for value in values
    ]
    return " or ".join(dict.fromkeys(written))


def _plain(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)


# ----------------------------------------------------------------------------------------------- the rest


def spread(store: Store) -> str:
    found = data.pooled_spread(store)
    if found is None:
        return "Not known before a contender has all its seeds."
    names = [name for name in data.ranked(store) if data.spread_of(store, name) is not None]
    level = mean(map(data.perplexity, data.seeds(store, names[0])))
    return prose(
        "A seed is that of the weights and of the order of the text. Over the seeds of a contender the loss",
        f"has a standard deviation (of n - 1) of {found:.4f} nats, pooled over {len(names)} contenders:",
        f"{100 * found:.1f} % of a perplexity, or {level * found:.2f} at the best one's {level:.1f}.",
        "Contenders whose means are nearer than twice that times the root of two thirds,",
        f"{100 * 2 * found * (2 / len(SEEDS)) ** 0.5:.1f} %, are not told apart, whatever their ranks.",
        *of_the_search(store),
    )


def of_the_search(store: Store) -> list[str]:
    """What the search has left on the table, where another study has gone on from it."""
    runs = data.select(store, "iterations", ITERATED, "seed", iterations=5, case="")
    before = data.seeds(store, ITERATED)
    if min(len(runs), len(before)) < len(SEEDS):
        return []
    ratio = runs[0]["config"]["rates"]["matrix"] / before[0]["config"]["rates"]["matrix"]
    values = [mean(map(data.perplexity, of)) for of in (before, runs)]
    return [
        "That is the spread at the rates found. Nine runs do not find the best ones, for nobody: with the",
        f"matrices' rate times {ratio:g}, which study `iterations` found, `{ITERATED}` has {values[1]:.2f}",
        f"in place of {values[0]:.2f}.",
    ]


def again(scale: Scale, elsewhere: bool) -> str:
    commands = {
        make_report(scale, elsewhere): "all that is missing, then this page",
        make_report(scale, elsewhere, "--no-run"): "this page alone, from the JSONs there are",
        f"{RUN} --rerun main.adamw.seed.1": "one run, beside what was kept",
    }
    width = max(map(len, commands))
    lines = [f"{command.ljust(width)}  # {what}" for command, what in commands.items()]
    block = "\n".join(["```", *lines, "```"])
    text = prose(
        "On the same processor and versions a run gives the same number again. On others, or with other",
        "threads, sums come in another order, and a run is like one with another seed: expect the",
        "spread above. `benchmarks/train/README.md` has the rest.",
    )
    return f"{block}\n\n{text}"


def not_shown(store: Store, scale: Scale) -> str:
    sizes = {run["result"]["parameters"] for run in store.results.values()}
    devices = sorted({run["config"]["device"] for run in store.results.values()})
    largest = max((run["config"]["tokens"] for run in store.results.values()), default=0)
    unfinished = [
        f"`{study}`"
        for study in studies.STUDIES
        if len(data.select(store, study)) < data.planned(study, scale)
    ]
    lines = []
    if sizes:
        size, length = data.millions(max(sizes)), data.millions(largest)
        larger = " The papers' models are 60 M and larger: `--scale gpu` is for these."
        lines.append(
            f"- Anything beyond {size} parameters and {length} tokens. {larger if at_home(scale) else ''}"
        )
    if devices == ["cpu"]:
        lines.append("- Anything on a GPU: all runs are on a CPU. Times say nothing about one.")
    lines.append(
        "- Other text, another vocabulary, longer context, fine-tuning, several epochs, other "
        "models than a Llama."
    )
    lines.append(
        "- Settings beside the rates: betas, momenta and iterations are the papers', but where a study "
        "varies them."
    )
    lines.append(f"- More than {len(SEEDS)} seeds, and rates from a longer search than the budget's.")
    if unfinished:
        lines.append(f"- What these studies still have to run: {', '.join(unfinished)}.")
    return "\n".join(lines)


def put(page: Path, part: str) -> bool:
    """Writes ``part`` between the page's marks, or a page around it; returns whether anything changed."""
    old = page.read_text() if page.is_file() else f"{HEAD}\n\n{BEGIN}\n{END}\n"
    before, _, rest = old.partition(BEGIN)
    new = f"{before}{BEGIN}\n\n{part}\n\n{END}{rest.partition(END)[2]}"
    if page.is_file() and new == old:
        return False
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(new)
    return True
