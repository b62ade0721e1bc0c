"""README.md and docs/: measured parts say what benchmarks/results says, links lead on, examples run."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import TinyLanguageModel, batch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import docs_gpu_tables
import docs_tables
import update_docs

ROOT = update_docs.ROOT
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
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
    shutil.copytree(docs_tables.RESULTS, tmp_path / "results")
    monkeypatch.setattr(docs_tables, "RESULTS", tmp_path / "results")
    return tmp_path


def stale_in(root: Path) -> list[str]:
    return [str(page.relative_to(root)) for page in update_docs.stale(root)]


@pytest.mark.parametrize("page", update_docs.PARTS)
def test_a_number_that_was_typed_is_noticed(page: str, copied: Path) -> None:
    assert stale_in(copied) == []
    text = (copied / page).read_text()
    part = next(iter(update_docs.PARTS[page]))
    start = text.index(f"<!-- {part}:begin -->")
    (copied / page).write_text(text[:start] + re.sub(r"\d\d|No GPU", "7", text[start:], count=1))
    assert stale_in(copied) == [page]


@pytest.mark.parametrize(
    ("result", "pages"),
    [
        ("memory.json", ["README.md", "docs/measurements.md"]),
        ("step_time.json", ["README.md", "docs/measurements.md"]),
        ("demo.json", ["README.md", "docs/training.md"]),
        ("kernels.json", ["docs/gpu.md"]),
        ("l2_model.json", ["docs/gpu.md"]),
        ("lora.json", ["docs/trainers.md"]),
        ("scaling_model.json", ["docs/distributed.md"]),
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
    (copied / "results" / "on_gpu.json").write_text(json.dumps({"build": {"rc": 0}, "time": found}))
    text = docs_gpu_tables.timed()
    assert "NVIDIA H100" in text
    assert "| 53M bf16 | FusedLion | 2.000 | 0.800 | 0.80 | 0.62 | 1.00 | 3.0 |" in text.splitlines()
    assert "| 53M bf16 | eager | 2.000 |  |  |  | 1.00 | 3.0 |" in text.splitlines()
    assert "- 7B fp32: FusedLion: the budget was used up." in text.splitlines()
    assert stale_in(copied) == ["README.md", "docs/gpu.md"]

    found["dry_run"] = True
    (copied / "results" / "on_gpu.json").write_text(json.dumps({"time": found}))
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
    """And to pictures beside them, so that a generator can take the folder as it is."""
    targets = [target for target in links_of(page) if not re.match(r"\w+:", target)]
    out = [target for target in targets if not (page.parent / target).resolve().is_relative_to(page.parent)]
    assert out == []
    assert [target for target in targets if "/" in target and not target.endswith(".svg")] == []


def test_every_page_is_listed() -> None:
    index = ROOT / "docs" / "README.md"
    assert set(links_of(index)) == {page.name for page in PAGES[1:] if page != index}


# --- examples ---


class MyLlama(nn.Module):
    """What the examples call a model: it returns its loss as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TinyLanguageModel()

    def forward(self, tokens: torch.Tensor) -> SimpleNamespace:
        logits = self.model(tokens)
        return SimpleNamespace(loss=nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()))

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()


def examples_of(page: Path) -> list[str]:
    return [code for language, code in FENCE.findall(page.read_text()) if language == "python"]


@pytest.mark.parametrize("page", [page for page in PAGES if examples_of(page)], ids=name_of)
def test_examples_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The examples of a page, one after the other in one namespace."""
    namespace: dict[str, Any] = {"MyLlama": MyLlama, "batch": batch()}
    for index, code in enumerate(examples_of(page)):
        exec(compile(code, f"{page.name}, example {index + 1}", "exec"), namespace)
    optimizer = namespace["optimizer"]
    for group in optimizer.param_groups:
        assert all(param.isfinite().all() for param in group["params"])


def test_the_readme_shows_how_to_use_it() -> None:
    assert "FusedHybrid(model" in examples_of(README)[0]
