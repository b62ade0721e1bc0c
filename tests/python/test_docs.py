"""README.md and docs/: measured parts say what benchmarks/results says, links lead on, examples run."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from models import TinyLanguageModel, batch
from torch import nn

import sage_ext
from sage_ext import distributed, optimizers
from sage_ext.optimizers.presets import PRESETS

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import docs_gpu_tables
import docs_pictures
import docs_report
import docs_tables
import update_docs

ROOT = update_docs.ROOT
README = ROOT / "README.md"
DOCS = ROOT / "docs"
INDEX = DOCS / "README.md"
# index.md is what Sphinx makes the first page of: README.md, and the order of the others.
PAGES = [README, *sorted(page for page in DOCS.rglob("*.md") if page != DOCS / "index.md")]
METHOD_PAGES = [page for page in update_docs.PARTS if "/methods/" in page]
METHODS = sorted((DOCS / "methods").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# --- measured parts ---


def test_measured_parts_are_up_to_date() -> None:
    assert [name_of(page) for page in update_docs.stale()] == [], "run python benchmarks/update_docs.py"


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the pages and of the results, which a test may change."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(README, tmp_path)
    # But of the training runs, which take long to read: those are as they are.
    shutil.copytree(docs_tables.RESULTS, tmp_path / "results", ignore=shutil.ignore_patterns("train"))
    (tmp_path / "results" / "train").symlink_to(docs_tables.RESULTS / "train")
    monkeypatch.setattr(docs_tables, "RESULTS", tmp_path / "results")
    return tmp_path


def stale_in(root: Path) -> list[str]:
    return [str(page.relative_to(root)) for page in update_docs.stale(root)]


@pytest.mark.parametrize("first", [0, 1])
def test_a_number_that_was_typed_is_noticed(first: int, copied: Path) -> None:
    """In the first part of every other page, and on no other."""
    pages = list(update_docs.PARTS)[first::2]
    for page in pages:
        text = (copied / page).read_text()
        start = text.index(f"<!-- {next(iter(update_docs.PARTS[page]))}:begin -->")
        (copied / page).write_text(text[:start] + re.sub(r"\d\d|No GPU", "7", text[start:], count=1))
    assert stale_in(copied) == pages


@pytest.mark.parametrize(
    ("result", "pages"),
    [
        ("memory.json", ["README.md", "docs/measurements.md", *METHOD_PAGES]),
        ("step_time.json", ["README.md", "docs/measurements.md", *METHOD_PAGES]),
        ("demo.json", ["docs/training.md"]),
        ("kernels.json", ["docs/gpu.md"]),
        ("l2_model.json", ["docs/gpu.md"]),
        ("lora.json", ["docs/trainers.md"]),
        ("scaling_model.json", ["docs/distributed.md"]),
        ("stable_abi.json", ["docs/install.md"]),
    ],
)
def test_another_result_makes_its_pages_stale(result: str, pages: list[str], copied: Path) -> None:
    path = copied / "results" / result
    path.write_text(json.dumps(twice(json.loads(path.read_text()))))
    assert stale_in(copied) == pages


def twice(value: Any) -> Any:
    """The same with every float doubled, and every large integer."""
    if isinstance(value, dict):
        return {key: twice(part) for key, part in value.items()}
    if isinstance(value, list):
        return [twice(part) for part in value]
    is_number = isinstance(value, float) or (isinstance(value, int) and value > 10_000)
    return 2 * value if is_number else value


def test_a_part_has_its_two_marks_once() -> None:
    marks = "<!-- a:begin -->", "<!-- a:end -->"
    assert update_docs.replace(f"x {marks[0]} old {marks[1]} y", "a", "new") == (
        f"x {marks[0]}\n\nnew\n\n{marks[1]} y"
    )
    for text in ("", marks[0], " ".join(marks * 2), " ".join(reversed(marks))):
        with pytest.raises(ValueError, match="expected <!-- a:begin --> once"):
            update_docs.replace(text, "a", "new")


# --- what is said about training ---


def run(label: str, perplexity: float | None, state: int, **settings: float) -> dict[str, Any]:
    return {
        "optimizer": label,
        "label": label,
        "validation_perplexity": perplexity,
        "state_bytes": state,
        "optimizer_settings": settings,
    }


@pytest.mark.parametrize(
    ("perplexity", "expected"),
    [
        (90.0, "`sage`, with 25.0% of `adamw`'s state, is ahead of `adamw`: perplexity 90.0 against 100.0."),
        (
            99.0,
            "`sage`, with 25.0% of `adamw`'s state, is level with `adamw`: perplexity 99.0 against 100.0.",
        ),
        (140.0, "`sage`, with 25.0% of `adamw`'s state, is behind `adamw`: perplexity 140.0 against 100.0."),
        (None, "`sage` diverged."),
    ],
)
def test_verdict(perplexity: float | None, expected: str) -> None:
    adamw = run("adamw", 100.0, 400, lr=1e-3, embedding_lr=2e-2)
    worse = run("adamw:lr=1", 150.0, 400, lr=1.0)
    said = docs_tables.verdict([worse, run("sage", perplexity, 100, lr=1.0), adamw])
    assert expected in said
    assert len(said) == 2
    assert "one learning rate" not in docs_tables.caution([adamw, worse])


def test_nobody_is_ahead_of_an_adamw_with_one_rate() -> None:
    results = [run("adamw", 100.0, 400, lr=1e-3), run("sinkgd", 50.0, 0, lr=1e-3)]
    assert docs_tables.verdict(results) == [
        "`sinkgd`, without state, ended at perplexity 50.0, `adamw` at 100.0."
    ]
    assert "`adamw` had one learning rate" in docs_tables.caution(results)


@pytest.mark.parametrize("ranked", [[], ["adamw"]])
def test_results_are_said_to_be_begun_until_something_is_ranked(
    ranked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docs_tables, "RESULTS", tmp_path)
    monkeypatch.setattr(docs_report.data, "ranked", lambda _: ranked)
    begun = "" if ranked else " (begun; nothing is ranked yet)"
    assert docs_report.link("there.md") == f"[results](there.md){begun}"


# --- what is said about GPUs ---


def step_on_gpu(optimizer: str, graph_ms: float | None) -> dict[str, Any]:
    return {
        "case": "53M",
        "dtype": "bf16",
        "optimizer": optimizer,
        "eager_ms": 2.0,
        "graph_ms": graph_ms,
        "copy_ms": 0.5,
        "state_bytes": 1 << 30,
        "peak_bytes": 3 << 20,
    }


def test_times_of_a_gpu_take_the_place_of_no_gpu(copied: Path) -> None:
    found = {
        "setting": {"gpu": "NVIDIA H100", "compute_capability": "9.0", "cuda": "13.0", "torch": "2.11"},
        "dry_run": False,
        "steps": [
            step_on_gpu("torch AdamW fused", 1.0),
            step_on_gpu("FusedLion", 0.8),
            step_on_gpu("eager", None),
        ],
        "left_out": [{"what": "7B fp32: FusedLion", "why": "the budget was used up"}],
        "errors": [],
    }
    file = copied / "results" / "on_gpu.json"
    whole = json.loads(file.read_text())
    found["steps"] += [row for row in whole["time"]["steps"] if row["case"] == "7B"]  # other pages have them
    whole["time"] |= found
    file.write_text(json.dumps(whole))
    text = docs_gpu_tables.timed()
    assert "NVIDIA H100" in text
    assert "| 53M bf16 | FusedLion | 2.000 | 0.800 | 0.80 | 0.62 | 1.00 | 3.0 |" in text.splitlines()
    assert "| 53M bf16 | eager | 2.000 |  |  |  | 1.00 | 3.0 |" in text.splitlines()
    assert "- 7B fp32: FusedLion: the budget was used up." in text.splitlines()
    assert stale_in(copied) == ["README.md", "docs/choose.md", "docs/gpu.md"]

    whole["time"]["dry_run"] = True
    file.write_text(json.dumps(whole))
    assert "No GPU has run this yet" in docs_gpu_tables.timed()
    assert "No GPU has run this yet" in docs_gpu_tables.in_short()


# --- pages ---


def test_readme_is_for_five_minutes() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    for command in ("make demo", "make test"):
        assert any(line.startswith(command) for _, code in FENCE.findall(text) for line in code.splitlines())


def anchor_of(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    words = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return words.strip().replace(" ", "-")


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {anchor_of(heading) for heading in headings}


def links_of(page: Path) -> list[str]:
    """The targets of the links that are not in code."""
    return LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text())))


def dead_links(page: Path) -> Iterator[str]:
    for target in links_of(page):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        if not path.exists() or (anchor and anchor not in anchors_of(path)):
            yield target


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    assert list(dead_links(page)) == []


def test_dead_links_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A page: of `code`\n\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md) [b](other.md#a-page-of-code) [c](#here) [d](https://x.org/none.md)\n"
        "`[e](no.md)`\n"
        "[1](none.md) [2](other.md#no-heading) [3](#there)\n"
    )
    assert list(dead_links(page)) == ["none.md", "other.md#no-heading", "#there"]


@pytest.mark.parametrize("page", PAGES[1:], ids=name_of)
def test_pages_link_to_each_other_only(page: Path) -> None:
    """So that Sphinx can take the folder as it is. README.md is no page there."""
    targets = [target.partition("#")[0] for target in links_of(page) if not re.match(r"\w+:", target)]
    places = [(page.parent / target).resolve() for target in targets if target]
    assert [str(place) for place in places if not place.is_relative_to(DOCS) or place == INDEX] == []


def test_every_page_is_listed() -> None:
    references = (DOCS / "api").glob("*.rst")
    pages = {str(page.relative_to(DOCS)) for page in (*PAGES[1:], *references) if page != INDEX}
    assert set(links_of(INDEX)) == pages
    # In Sphinx's menu too; make docs says so of pages that are not, and of names that are no pages.
    listed = re.findall(r"^[\w/]+$", (DOCS / "index.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.rpartition(".")[0] for page in pages)


# --- methods ---

# What all optimizers have, or what is said of processes elsewhere.
COMMON = {"params", "maximize", "state_dtype", "capturable", "backend", "process_group", "vote"}
COMMON |= {"self", "model_or_named_parameters_or_groups", "overrides"}
TABLE = re.compile(r"^\| `(Fused\w+)` \| default \| AdamW's \|.*\n\|[-|]+\n((?:\|.*\n)+)", re.MULTILINE)


def defaults(optimizer: type) -> dict[str, Any]:
    parameters = inspect.signature(optimizer.__init__).parameters.items()
    return {name: parameter.default for name, parameter in parameters if name not in COMMON}


@pytest.mark.parametrize("page", METHODS, ids=name_of)
def test_arguments_are_said_as_they_are(page: Path) -> None:
    """Each argument of a method has a row in the order of the constructor, with its default and AdamW's."""
    adamw = defaults(torch.optim.AdamW)
    tables = TABLE.findall(page.read_text())
    assert tables
    for name, body in tables:
        cells = [re.split(r"\s*\|\s*", row)[1:] for row in body.splitlines()]
        own = defaults(getattr(sage_ext, name))
        assert [row[0] for row in cells] == [f"`{argument}`" for argument in own]
        for (argument, default), row in zip(own.items(), cells, strict=True):
            assert ast.literal_eval(row[1]) == default, argument
            theirs = adamw.get(argument) if argument in ("lr", "betas", "eps", "weight_decay") else None
            assert (ast.literal_eval(row[2]) if row[2] else None) == theirs, argument


def said_of_rules(cell: str, rules: Iterable[str]) -> dict[str, float]:
    """What a cell says: "0 for all", or "SAGE 0.01; SinkGD 0"."""
    if for_all := re.fullmatch(r"(\S+) for all", cell):
        return dict.fromkeys(rules, float(for_all[1]))
    found = re.findall(r"([\w-]+) (\d[\d.e-]*)", cell)
    return {rule.lower().replace("-", "_"): float(value) for rule, value in found}


@pytest.mark.parametrize("preset", PRESETS)
def test_rates_and_weight_decay_of_a_preset_are_said_as_they_are(preset: str) -> None:
    text = (DOCS / "methods" / "hybrids.md").read_text()
    (row,) = re.findall(rf'^\| `"{preset}"` \|(.*)\|$', text, re.MULTILINE)
    rates, decays = (cell.strip() for cell in row.split("|")[-2:])
    optimizer = sage_ext.FusedHybrid(MyLlama(), preset)
    groups = {group["rule"]: group for group in optimizer.param_groups}
    with_own = [role for role, values in PRESETS[preset].roles.items() if "lr" in values]
    found = {
        group["role"] if group["role"] in with_own else group["rule"]: group["lr"]
        for group in optimizer.param_groups
        if group["rule"] != "alias"
    }
    assert said_of_rules(rates, found) == found
    assert said_of_rules(decays, groups) == {rule: group["weight_decay"] for rule, group in groups.items()}


@pytest.mark.parametrize("rule", ["sage", "sinkgd"])
def test_settings_of_a_preset_are_those_that_its_operators_are_called_with(rule: str) -> None:
    """docs/compile.md steps the preset "sage" by torch.ops.sage_ext."""
    code = next(code for code in examples_of(DOCS / "compile.md") if f"{rule}_(" in code)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    (call,) = (node for node in calls if ast.unparse(node.func) == f"torch.ops.sage_ext.{rule}_")
    said = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg != "lr"}
    optimizer = sage_ext.FusedHybrid(MyLlama(), "sage")
    group = next(group for group in optimizer.param_groups if group["rule"] == rule)
    own = {**group, **dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))}
    assert said == {name: own[name] for name in said}


def test_every_class_has_a_page() -> None:
    said = [name for page in METHODS for name, _ in TABLE.findall(page.read_text())]
    assert sorted(said) == sorted(name for name in sage_ext.__all__ if name.startswith("Fused"))


@pytest.mark.parametrize("page", METHODS, ids=name_of)
def test_every_method_says_the_same_things(page: Path) -> None:
    text = page.read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    for part in ("Arguments", "What the papers? reports?", "What we measured"):
        assert len([heading for heading in headings if re.fullmatch(part, heading)]) == 1
    assert "**Source**: " in text
    assert text.index("What we measured") < text.index("<!-- measured:begin -->")


def test_pictures_are_up_to_date() -> None:
    assert docs_pictures.stale() == [], "run python benchmarks/docs_pictures.py"


def test_a_picture_of_other_numbers_is_noticed(copied: Path) -> None:
    path = copied / "results" / "memory.json"
    path.write_text(json.dumps(twice(json.loads(path.read_text()))))
    assert docs_pictures.stale() == ["state.svg"]


def test_the_questions_are_those_of_the_picture() -> None:
    """Each question of the page leads to what the picture leads to."""
    answers = re.findall(r"^\d\. (.*(?:\n   .*)*)", (DOCS / "choose.md").read_text(), re.MULTILINE)
    assert len(answers) == len(docs_pictures.QUESTIONS) == 6
    for answer, (_, _, ends) in zip(answers, docs_pictures.QUESTIONS, strict=True):
        for name in re.findall(r"\w+$|\w+(?=[,(\n])|\"[\w-]+\"", ends, re.MULTILINE):
            assert name in answer
    for name in re.findall(r"\"[\w-]+\"", docs_pictures.LAST):
        assert name in answers[-1]


# --- examples ---


class Output(NamedTuple):
    loss: torch.Tensor


class MyLlama(nn.Module):
    """What the examples call a model: it returns its loss as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TinyLanguageModel()

    def forward(self, tokens: torch.Tensor) -> Output:
        logits = self.model(tokens)
        return Output(nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()))

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()


def examples_of(page: Path) -> list[str]:
    """The examples in Python, and what is to be written in the place of something else."""
    examples = []
    for language, code in FENCE.findall(page.read_text()):
        if language == "diff":
            code = "".join(re.findall(r"^\+(.*\n)", code, re.MULTILINE))
        if language == "python" or (language == "diff" and "import" in code):
            examples.append(code)
    return examples


@pytest.mark.parametrize("page", [page for page in PAGES if examples_of(page)], ids=name_of)
def test_examples_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The examples of a page, one after the other in one namespace."""
    namespace: dict[str, Any] = {"MyLlama": MyLlama, "batch": batch()}
    if page.name == "moving.md":
        namespace["model"] = MyLlama()
    for index, code in enumerate(examples_of(page)):
        exec(compile(code, f"{page.name}, example {index + 1}", "exec"), namespace)
    optimizer = namespace["optimizer"]
    for group in optimizer.param_groups:
        assert all(param.isfinite().all() for param in group["params"])


def test_the_first_pages_show_how_to_use_it() -> None:
    assert "FusedHybrid(model" in examples_of(README)[0]
    assert "FusedHybrid(model" in examples_of(INDEX)[0]
    # With Trainer as in the example, which other tests run.
    script = (ROOT / "examples" / "integrations" / "trainer.py").read_text()
    (shown,) = (code for language, code in FENCE.findall(INDEX.read_text()) if language == "py")
    lines = [line for line in shown.splitlines() if re.search(r"# [12]$", line)]
    assert len(lines) == 2
    for line in lines:
        assert line.partition("}")[0] in script


def test_a_file_of_lion_pytorch_loads() -> None:
    """As lion-pytorch 0.2.5 saves it, and docs/moving.md says."""
    weight = nn.Parameter(torch.zeros(3))
    moment = torch.tensor([1.0, -2.0, 3.0])
    group = {"lr": 0.5, "betas": (0.9, 0.99), "weight_decay": 0.1, "params": [0]}
    optimizer = sage_ext.FusedLion([weight])
    optimizer.load_state_dict({"state": {0: {"exp_avg": moment}}, "param_groups": [group]})
    weight.grad = torch.zeros(3)
    optimizer.step()
    assert torch.equal(weight, -0.5 * moment.sign())


PUBLIC = [sage_ext.plan, sage_ext.autoconfig, distributed.MajorityVote]
PUBLIC += [getattr(optimizers, name) for name in optimizers.__all__ if name.startswith("Fused")]


@pytest.mark.parametrize("found", PUBLIC, ids=lambda found: found.__name__)
def test_every_argument_is_documented(found: Any) -> None:
    text = inspect.getdoc(found) or ""
    for argument in inspect.signature(found).parameters:
        assert re.search(rf"^\s+(\*{{0,2}}\w+, )*\*{{0,2}}{argument}(, \w+)*:", text, re.MULTILINE), argument
