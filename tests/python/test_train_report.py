"""The page of ``benchmarks/train``'s report, and its command, on made-up results."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "train"))

from lab import runner, search, store, studies
from lab.contenders import contenders
from lab.report import claims, command, data, names, page, pictures, standings
from lab.report.rules import NOT_RUN
from lab.report.sections import SECTIONS
from lab.scales import SCALES
from lab.store import Store
from train_results import CPU, TINY, a_store, seeds, whole_store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return whole_store(tmp_path_factory.mktemp("results"))


def row_of(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_a_row_says_what_its_runs_say_and_which_command_runs_it_again(tmp_path: Path) -> None:
    kept = a_store(
        tmp_path,
        seeds(4.1, 4.2, 4.3, contender="adamw"),
        seeds(4.0, 4.1, 4.2, contender="alias"),
        seeds(3.0, 3.1, contender="dog"),
    )
    text = page.text(kept, CPU)
    adamw = [math.exp(loss) for loss in (4.1, 4.2, 4.3)]
    mean = sum(adamw) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in adamw) / 2)
    assert row_of(text, "| 1 |")[1] == "`alias`"
    assert row_of(text, "| 2 |")[1:4] == ["**`adamw`**", f"{mean:.2f} ± {deviation:.2f}", "1.000"]
    assert row_of(text, "| 1 |")[3] == f"{math.exp(-0.1):.3f}"
    for rank, run in ((1, "main.alias..seed.1"), (2, "main.adamw..seed.1")):
        assert row_of(text, f"| {rank} |")[-1] == f"`{run}`"
    assert "`python benchmarks/train/run.py --rerun ID`" in text
    # Two seeds rank nothing, however good they are.
    assert "| 3 | `" not in text
    assert row_of(text[text.index("**Not ranked**") :], "| `dog` |")[4] == "2 of 3"
    assert "Not begun: `adamw-sinkgd-scale`" in text


def test_times_of_another_processor_are_called_so_and_not_drawn(tmp_path: Path) -> None:
    away = seeds(3.9, 4.0, 4.1, contender="lion")
    for run in away.values():
        run["versions"]["processor"] = "another"
    away |= seeds(3.9, 4.0, 4.1, contender="scale")
    for name, run in away.items():
        if "scale" in name:
            run["versions"].update(processor="made up", cpu_capability="AVX2")
    kept = a_store(
        tmp_path,
        seeds(4.0, 4.1, 4.2, contender="adamw"),
        seeds(5.0, 5.1, 5.2, contender="sage"),
        away,
    )
    rows = {
        line.split("`")[1]: line for line in standings.table_of_ranked(kept, CPU).splitlines() if "`" in line
    }
    assert "10 (another)" in rows["lion"]
    assert "10 (made up with AVX2)" in rows["scale"]
    assert "another" not in rows["adamw"]
    assert "AVX2" not in rows["adamw"]
    drawn = pictures.PICTURES["seconds"].data(kept, CPU)
    assert [point["name"] for point in drawn["points"]] == ["adamw", "sage"]


def test_without_results_the_page_says_what_runs_them(tmp_path: Path) -> None:
    text = page.text(a_store(tmp_path), CPU)
    for study in studies.STUDIES:
        assert f"`python benchmarks/train/run.py --study {study}`" in text
        assert study == "main" or f"Study `{study}` has not run yet" in text
    assert "![" not in text
    assert "nothing is ranked" in text
    assert {claim.judge(a_store(tmp_path)).word for claim in claims.CLAIMS} == {NOT_RUN}


def test_a_whole_page_has_every_section_and_every_picture(whole: Store) -> None:
    text = page.text(whole, TINY)
    assert "has not run yet" not in text
    assert "Not finished" not in text
    for picture in pictures.PICTURES.values():
        assert f"![{picture.alt}](results/{picture.name}.svg)" in text
    for heading in ("What is fixed", "Spread", "What was not shown"):
        assert f"## {heading}" in text
    assert "c0ffee" in text
    commands = [line for line in text.splitlines() if "run.py --" in line]
    assert len(commands) >= 4
    assert all("run.py --scale test --" in line for line in commands)
    assert "my-text; 3 documents" in text
    assert "/some/where" not in text  # a path of somebody's machine
    for rows in text.split("\n\n"):  # a table's rows have as many cells as its head
        if rows.startswith("| "):
            assert len({row.count(" | ") for row in rows.splitlines() if row[1] != "-"}) == 1, rows


def tables(text: str) -> list[list[list[str]]]:
    """Of a page: tables of rows of cells, the head first."""
    found = []
    for part in text.split("\n\n"):
        if part.startswith("| "):
            rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in part.splitlines()]
            found.append([rows[0], *rows[2:]])
    return found


def test_a_row_has_its_run_in_an_id_and_the_pattern_of_the_command_is_said(whole: Store) -> None:
    text = page.text(whole, TINY)
    with_ids = [rows for rows in tables(text) if rows[0][-1] == "`--rerun`"]
    assert len(with_ids) >= len(SECTIONS)
    for head, *rows in with_ids:
        for row in rows:
            assert row[-1].strip("`") in whole.results, (head, row)
    assert not any("run.py --" in cell for rows in tables(text) for row in rows for cell in row)
    opening = text[: text.index("## Where it stands")]
    assert "`python benchmarks/train/run.py --scale test --rerun ID`" in opening
    (of_claims,) = [rows for rows in tables(text) if rows[0][-1] == "`run.py`"]
    assert of_claims[1][-1] == "`--study main --only sinkgd sinkgd-hybrid`"
    assert any(row[-1].count("` and `--study one-rate") for row in of_claims)
    assert "--study STUDY --only NAMES`" in text


def test_the_searches_can_be_compared(whole: Store) -> None:
    """Of what is ranked and what is not, in columns of the same name: the best of the search."""
    part = Store(whole.folder)
    part.results = {run: of for run, of in whole.results.items() if not run.startswith("main.stateless.seed")}
    shown = {}
    for head, *rows in tables(page.text(part, TINY)):
        if "contender" in head and any(column.startswith("search's best, at 0.") for column in head):
            at = next(i for i, column in enumerate(head) if column.startswith("search's best"))
            shown |= {row[head.index("contender")].strip("*`"): row[at] for row in rows}
    searched = [name for name, contender in contenders().items() if contender.searched]
    for name in searched:
        best = min(map(data.perplexity, data.select(part, "main", name, "search")))
        assert shown[name] == f"{best:,.2f}"
    assert "stateless" in searched
    assert shown["preset-scale"] == "-"
    run = next(run for run in part.results if run.startswith("main.scale.search"))
    del part.results[run]
    assert f"({search.RUNS - 1} of {search.RUNS} runs)" in standings.table_of_ranked(part, TINY)


def test_names_are_told_apart_before_they_are_ranked(whole: Store) -> None:
    text = page.text(whole, TINY)
    assert text.index("## What the names mean") < text.index("## Perplexity at the same budget")
    part = text[text.index("## What the names mean") : text.index("## Perplexity at the same budget")]
    for _, line in names.LOOK_ALIKES:
        assert line in part
    assert row_of(part, "| `stateless` |")[3] == "SCALE rows"
    assert row_of(part, "| `stateless-columns` |")[3] == "SCALE columns"
    assert row_of(part, "| `preset-sinkgd` |") == [
        *("`preset-sinkgd`", "AdamW", "SinkGD x 1", "AdamW", "AdamW", "the preset's")
    ]
    assert len([line for line in part.splitlines() if line.startswith("| `")]) == len(contenders())


def test_what_is_said_of_names_is_what_the_contenders_are() -> None:
    rates = dict.fromkeys(search.RANGES, 1e-3)
    rules = {name: names.rules_of(of.make(rates, 10)) for name, of in contenders().items()}

    def but_iterations(name: str) -> dict[str, str]:
        return {role: rule.replace("x 1", "x 5") for role, rule in rules[name].items()}

    for preset, contender in (
        ("preset-stateless", "stateless-columns"),
        ("preset-scale", "scale"),
        ("preset-sinkgd", "sinkgd-hybrid"),
        ("preset-sinkgd-scale", "adamw-sinkgd-scale"),
    ):
        assert but_iterations(preset) == rules[contender]
    for name in ("sage", "lion"):
        rule = names.WORDS[name]
        assert {rules[name][role] for role in search.RANGES} == {rule}
        assert but_iterations(f"preset-{name}") == {**rules[f"{name}-hybrid"], "vector": rule}
    assert rules["preset-scale"] == rules["scale"]
    assert rules["stateless"] == {**rules["stateless-columns"], "lm_head": "SCALE rows"}
    assert {rules["sinkgd"][role] for role in search.RANGES} == {"SinkGD x 5"}
    assert rules["adamw-momentum"]["embedding"] == "AdamW"
    assert rules["adamw-momentum"]["matrix"] == rules["adamw-momentum"]["lm_head"] == "SCALE rows, m bf16"
    assert rules["adamw-momentum-adamw"]["lm_head"] == rules["sign-sgd-adamw"]["lm_head"] == "AdamW"
    for name, of in rules.items():
        assert not name.endswith("-head-adamw") or (of["lm_head"], of["matrix"][:5]) == ("AdamW", "ALIAS")
    told = {name for together, _ in names.LOOK_ALIKES for name in together}
    assert told <= set(rules)
    assert {name for name in rules if name.startswith("preset-")} <= told


def test_a_page_of_other_results_does_not_name_the_usual_folder(tmp_path: Path) -> None:
    kept = a_store(tmp_path, seeds(4.1, 4.2, 4.3, contender="adamw"))
    elsewhere = page.text(kept, CPU, elsewhere=True)
    assert "benchmarks/results" not in elsewhere
    assert str(tmp_path) not in elsewhere
    assert '`make report REPORT="--results FOLDER"`' in " ".join(elsewhere.split())
    assert elsewhere.count("run.py --results FOLDER --study") > 4
    assert "run.py --results FOLDER --rerun ID`" in elsewhere
    assert "run.py --study" not in elsewhere
    gpu = " ".join(page.text(a_store(tmp_path), SCALES["gpu"]).split())
    assert "in `benchmarks/results/train/gpu`" in gpu
    assert '`make report REPORT="--scale gpu"`' in gpu
    usual = page.text(kept, CPU)
    assert "each a JSON in `benchmarks/results/train`" in usual
    assert "FOLDER" not in usual


def test_a_study_that_is_under_way_is_said_to_be(whole: Store, tmp_path: Path) -> None:
    part = a_store(tmp_path, dict(whole.results))
    for run in [run for run in part.results if run.startswith("iterations") and ".seed-iterations1." in run]:
        del part.results[run]
    text = page.text(part, TINY)
    assert "**Not finished**: 57 of 60 runs." in text
    assert row_of(text, "| 1 | -")[:3] == ["1", "-", "-"]


# -------------------------------------------------------------------------------------------------- command


def test_the_command_runs_all_studies_writes_and_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, each in seeds(4.1, 4.2, 4.3, contender="adamw").items():
        store.write(tmp_path / "results" / f"{run}.json", each)
    asked: list[list[str]] = []
    monkeypatch.setattr(runner, "main", lambda words: asked.append(words) or 0)
    monkeypatch.setattr(pictures, "write", lambda *_, **__: [])  # drawn above
    monkeypatch.setattr(pictures, "stale", lambda *_: [])
    where = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "docs")]
    assert command.main([*where, "--check"]) == 1
    assert command.main([*where, "--jobs", "2"]) == 0
    assert [words[1] for words in asked] == list(studies.STUDIES)
    assert all(words[2:4] == ["--jobs", "2"] for words in asked)
    assert command.main([*where, "--check"]) == 0
    assert command.main([*where, "--no-run"]) == 0
    assert len(asked) == len(studies.STUDIES)

    written = tmp_path / "docs" / "results.md"
    assert "benchmarks/results" not in written.read_text()
    kept = written.read_text().replace("# Which", "# By hand: which")
    written.write_text(kept.replace("± ", "± 1"))
    assert command.main([*where, "--check"]) == 1
    assert "results.md: out of date" in capsys.readouterr().err
    assert command.main([*where, "--no-run"]) == 0
    assert written.read_text() == kept  # what stands outside of the marks stays

    monkeypatch.setattr(runner, "main", lambda words: 2)
    assert command.main(where) == 2
    assert "--no-run" in capsys.readouterr().err
