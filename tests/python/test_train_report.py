"""The page of ``benchmarks/train``'s report, and its command, on made-up results."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "train"))

from lab import runner, store, studies
from lab.report import claims, command, page, pictures, standings
from lab.report.rules import NOT_RUN
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
        assert row_of(text, f"| {rank} |")[-1] == f"`python benchmarks/train/run.py --rerun {run}`"
    # Two seeds rank nothing, however good they are.
    assert "| 3 | `" not in text
    assert row_of(text, "| `dog` |")[4] == "2 of 3"
    assert "Not begun: `adamw-sinkgd-scale`" in text


def test_times_of_another_processor_are_called_so_and_not_drawn(tmp_path: Path) -> None:
    away = seeds(3.9, 4.0, 4.1, contender="lion")
    for run in away.values():
        run["versions"]["processor"] = "another"
    kept = a_store(
        tmp_path, seeds(4.0, 4.1, 4.2, contender="adamw"), seeds(5.0, 5.1, 5.2, contender="sage"), away
    )
    rows = {
        line.split("`")[1]: line for line in standings.table_of_ranked(kept, CPU).splitlines() if "`" in line
    }
    assert "10 (another)" in rows["lion"]
    assert "another" not in rows["adamw"]
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
    assert text.count("run.py --scale test --study") > len(claims.CLAIMS)
    assert "run.py --study" not in text
    assert "my-text; 3 documents" in text
    assert "/some/where" not in text  # a path of somebody's machine
    for rows in text.split("\n\n"):  # a table's rows have as many cells as its head
        if rows.startswith("| "):
            assert len({row.count(" | ") for row in rows.splitlines() if row[1] != "-"}) == 1, rows


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
    kept = written.read_text().replace("# Which", "# By hand: which")
    written.write_text(kept.replace("± ", "± 1"))
    assert command.main([*where, "--check"]) == 1
    assert "results.md: out of date" in capsys.readouterr().err
    assert command.main([*where, "--no-run"]) == 0
    assert written.read_text() == kept  # what stands outside of the marks stays

    monkeypatch.setattr(runner, "main", lambda words: 2)
    assert command.main(where) == 2
    assert "--no-run" in capsys.readouterr().err
