"""The pictures of ``benchmarks/train``'s report, on made-up results."""

from __future__ import annotations

import json
import math
import sys
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "train"))

from lab import store
from lab.contenders import contenders
from lab.report import labels, pictures
from lab.report.style import CONTENDERS
from lab.store import Store
from train_results import CPU, DOCS, TINY, a_store, seeds, whole_store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return whole_store(tmp_path_factory.mktemp("results"))


def test_an_optimizer_has_one_look_and_the_demos_colour() -> None:
    from llama.figures import OWN, STYLES

    assert set(CONTENDERS) == set(contenders())
    looks = [(style.color, style.marker) for style in CONTENDERS.values()]
    assert len(set(looks)) == len(looks)
    for name in set(OWN) & set(CONTENDERS):
        assert CONTENDERS[name].color == STYLES[OWN[name]][0]


def test_curves_are_of_one_optimizer_a_colour_adamw_among_them() -> None:
    chosen = pictures.representatives(["schedule-free", "sage", "sage-hybrid", "adamw", "lion"])
    assert chosen == ["sage", "adamw", "lion"]


def overlap(a: labels.Box, b: labels.Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(box: labels.Box, limits: labels.Box) -> bool:
    return limits[0] <= box[0] and limits[1] <= box[1] and box[2] <= limits[2] and box[3] <= limits[3]


MARKERS = [style.marker for style in CONTENDERS.values()]


@pytest.mark.parametrize("name", ["front", "seconds"])
def test_every_point_is_at_its_value_and_every_name_where_it_covers_nothing(name: str) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    from lab.report import drawing
    from lab.report.frame import SETTINGS

    found = pictures.PICTURES[name].data(Store(store.RESULTS), CPU)
    with matplotlib.rc_context(SETTINGS):
        made = drawing.DRAWN[name](found)
        made.draw_without_rendering()
        extents = {
            text.get_text().split()[0]: (axes, text, tuple(text.get_window_extent().extents))
            for axes in made.axes
            for text in axes.texts
        }
    assert set(extents) == {point["name"] for point in found["points"]}
    for point in found["points"]:
        axes, text, box = extents[point["name"]]
        x, y = axes.transData.transform((point["x"], point["y"]))
        limits = tuple(axes.get_window_extent().extents)
        assert inside((x, y, x, y), limits), "a point lies outside"
        marked = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() in MARKERS]
        assert [[point["x"], point["y"]]] in marked
        assert inside(box, limits), "a name lies outside"
        over = found["beyond"] is not None and point["y"] > found["beyond"]
        assert text.get_text() == point["name"] + (f" {point['y']:,.0f}" if over else "")
        assert axes.get_title(loc="left").startswith("worse than") == over
        for other, (of, _, theirs) in extents.items():
            assert other == point["name"] or not overlap(box, theirs), f"{point['name']} and {other}"
            at = next(each for each in found["points"] if each["name"] == other)
            middle = of.transData.transform((at["x"], at["y"]))
            half = 3.5 * made.dpi / 72
            marker = (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half)
            assert not overlap(box, marker), f"{point['name']} covers the marker of {other}"
        away = math.dist((x, y), (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])))
        begins = [line.get_transform().transform(line.get_xydata())[0] for line in axes.lines]
        assert away * 72 / made.dpi < 12 or any(math.dist(begin, (x, y)) < 1 for begin in begins)


def test_what_is_far_worse_has_a_panel_of_its_own(tmp_path: Path) -> None:
    near = a_store(tmp_path, seeds(4.0, 4.1, 4.2, contender="adamw"), seeds(4.1, 4.2, 4.3, contender="sage"))
    assert pictures.PICTURES["front"].data(near, CPU)["beyond"] is None
    far = a_store(tmp_path, near.results, seeds(5.0, 5.1, 5.2, contender="sign-sgd"))
    assert pictures.PICTURES["front"].data(far, CPU)["beyond"] == 67.0  # sage has 66.8
    assert pictures.PICTURES["seconds"].data(far, CPU)["beyond"] == 67.0


def test_names_in_a_crowd_are_led_to() -> None:
    """Eight points at the same place: no two names in one, none outside; some are led to."""
    points, sizes = [(100.0, 100.0)] * 8, [(40.0, 8.0)] * 8
    taken = [(95.0, 95.0, 105.0, 105.0)]
    places = labels.place(points, sizes, taken, (0.0, 0.0, 200.0, 200.0))
    boxes = [place.box for place in places]
    assert not any(overlap(a, b) for a, b in combinations([*boxes, *taken], 2))
    assert all(box[0] >= 0 and box[1] >= 0 and box[2] <= 200 and box[3] <= 200 for box in boxes)
    lines = [place.line for place in places if place.line]
    assert lines
    assert all(begin == (100.0, 100.0) for begin, _ in lines)
    assert labels.place(points, sizes, taken, (0.0, 0.0, 200.0, 200.0)) == places


def test_pictures_are_drawn_once_and_anew_when_their_data_changes(whole: Store, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    kept = a_store(tmp_path / "results", dict(whole.results))
    folder = tmp_path / "pictures"
    assert pictures.stale(kept, TINY, folder) == list(pictures.PICTURES)
    assert [path.stem for path in pictures.write(kept, TINY, folder)] == list(pictures.PICTURES)
    assert pictures.stale(kept, TINY, folder) == []
    for name in pictures.PICTURES:
        file = folder / f"{name}.svg"
        words = " ".join(ElementTree.parse(file).getroot().itertext())
        assert ("step size" if name.startswith("alias") else "perplexity") in words, name
        assert file.stat().st_size < 150_000
    assert "0.000125" not in words  # the last is the sweep, which has a logarithmic axis
    assert "diverged at 0.032" in words

    run = "sweep.sage.0.001"
    kept.results[run] = json.loads(json.dumps(kept.results[run]))
    kept.results[run]["result"]["loss"] += 0.1
    assert pictures.stale(kept, TINY, folder) == ["sweep"]
    assert [path.stem for path in pictures.write(kept, TINY, folder)] == ["sweep"]
    for run in [run for run in kept.results if run.startswith("sweep")]:
        del kept.results[run]
    assert pictures.write(kept, TINY, folder) == []
    assert not (folder / "sweep.svg").exists()


def test_the_pictures_in_docs_are_what_the_results_say() -> None:
    assert pictures.stale(Store(store.RESULTS), CPU, DOCS / "results") == [], (
        "run make report REPORT=--no-run"
    )
