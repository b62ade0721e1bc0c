"""The model of cost. Its messages and bytes are compared with those of gloo in ``distributed_cases.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import docs_tables
import scaling_model
from contenders import HYBRIDS, Llama, hybrid_builders, llama_parameters, step_of, traffic
from scaling_model import CONTENDERS, COUNTS, LAYOUTS, MODELS

from sage_ext.optimizers.presets import PRESETS
from sage_ext.planning import exchanges, hardware
from sage_ext.planning.exchanges import GATHER, SUM, Message
from sage_ext.planning.hardware import H100, Line

SMALL = Llama(vocabulary=64, hidden=16, ffn=40, layers=2, tied=False, kv=8)


def test_an_iteration_of_sinkgd_exchanges_4_6_megabytes_for_7b() -> None:
    assert f"{scaling_model.of_sinkgd(MODELS['7B']) / 1e6:.1f}" == "4.6"
    columns = 32 * (4 * 4096 + 2 * 4096 + 11008)
    assert scaling_model.of_sinkgd(MODELS["7B"]) == 4 * columns


@pytest.mark.parametrize(
    ("name", "billions"), [("1.3B", 1.34), ("7B", 6.74), ("13B", 13.02), ("70B", 68.98), ("405B", 405.85)]
)
def test_models_have_the_parameters_that_they_are_called_after(name: str, billions: float) -> None:
    numbers = sum(torch.Size(shape).numel() for shape in MODELS[name].shapes().values())
    assert numbers / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize("preset", PRESETS)
def test_groups_are_those_of_the_hybrids(preset: str) -> None:
    named = llama_parameters(SMALL, torch.bfloat16)
    optimizer = hybrid_builders(named, "reference")[_label(preset)]()
    names = {id(param): name for name, param in named}
    expected = {
        name: (group["rule"], {key: group[key] for key in ("iterations", "dim", "momentum") if key in group})
        for group in optimizer.param_groups
        for name in (names[id(param)] for param in group["params"])
    }
    found = {
        name: (rule, {key: group[key] for key in ("iterations", "dim", "momentum") if key in group})
        for rule, group, members in scaling_model.groups_of(f"{preset} hybrid", SMALL.shapes())
        for name in members
    }
    assert found == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_memory_is_what_the_kernels_move(preset: str) -> None:
    """On one GPU, where nothing is cut."""
    optimizer = hybrid_builders(llama_parameters(SMALL, torch.bfloat16), "reference")[_label(preset)]()
    step_of(optimizer)()
    shapes = SMALL.shapes()
    moved = 0.0
    for rule, group, names in scaling_model.groups_of(f"{preset} hybrid", shapes):
        whole = [exchanges.spread(shapes[name], (), ()) for name in names]
        moved += scaling_model.memory(rule, group, whole)[0]
    # The signs of small tensors fill whole words.
    assert sum(traffic(optimizer)) == pytest.approx(moved, rel=1e-2 if preset == "alias" else 1e-9)


def _label(preset: str) -> str:
    return f"{HYBRIDS[preset]} hybrid"


def test_a_message_costs_latency_when_small_and_bandwidth_when_large() -> None:
    node, cluster, one_each = Line(8, 8), Line(512, 8), Line(64, 1)
    small, large = Message(0, SUM, 8), Message(0, SUM, 10**9)
    assert hardware.seconds(small, node) == pytest.approx((6.6 + 14 * 0.6) * 1e-6, rel=0.1)
    assert hardware.seconds(small, node) < hardware.seconds(small, cluster)
    assert hardware.seconds(large, node) == pytest.approx(2 * 7 / 8 * 1e9 / 450e9, rel=0.02)
    assert hardware.seconds(large, cluster) == pytest.approx(2 * 1e9 / 400e9, rel=0.2)
    assert hardware.seconds(large, one_each) == pytest.approx(2 * 1e9 / 50e9, rel=0.2)
    gathered = Message(0, GATHER, 10**6)
    assert hardware.on_the_wire(gathered, cluster) == 511e6
    assert hardware.seconds(gathered, cluster) > 511e6 / 400e9


def test_lines_know_who_is_in_a_node() -> None:
    assert hardware.lines_of((512,)) == [Line(512, 8)]
    assert hardware.lines_of((64, 8)) == [Line(64, 1), Line(8, 8)]
    assert hardware.lines_of((8, 64)) == [Line(8, 1), Line(64, 8)]
    assert hardware.lines_of((1, 8)) == [Line(1, 1), Line(8, 8)]


def test_every_place_has_a_cost_that_makes_sense() -> None:
    found = {
        (row["model"], row["gpus"], row["layout"], row["optimizer"]): row
        for row in docs_tables.load("scaling_model.json")["rows"]
    }
    for (model, count, layout, name), row in found.items():
        where = (model, count, layout, name)
        elementwise = name in ("adamw", "lion", "sign_sgd")
        assert (row["messages"] == 0) == elementwise, where
        assert (row["exchange_us"] == 0) == elementwise, where
        assert row["bytes_on_the_wire"] >= row["bytes"], where
    for model in MODELS:
        for name in CONTENDERS:
            cells = [found[model, count, "fsdp", name] for count in COUNTS]
            memory = [row["memory_us"] for row in cells]
            assert memory == sorted(memory, reverse=True)
            assert len({row["messages"] for row in cells}) == 1
            assert cells[-1]["fits"]
    assert {layout for _, _, layout, _ in found} == set(LAYOUTS)


def test_the_results_are_what_the_model_says() -> None:
    stored = {
        (row["gpus"], row["layout"], row["optimizer"]): row
        for row in docs_tables.load("scaling_model.json")["rows"]
        if row["model"] == "1.3B"
    }
    for (count, layout, name), row in stored.items():
        now = scaling_model.step(MODELS["1.3B"], name, layout, count)
        assert {key: row[key] for key in now} == now
    assert H100._asdict().keys() == docs_tables.load("scaling_model.json")["cluster"].keys()


def test_table_and_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = docs_tables.load("scaling_model.json")["rows"]
    lines = scaling_model.table(rows).splitlines()
    assert len(lines) == len(rows) + 1
    assert "(does not fit)" in scaling_model.table(rows)
    scaling_model.draw(tmp_path / "step.png", rows)
    assert (tmp_path / "step.png").stat().st_size > 10_000


def test_a_plain_parameter_sends_nothing() -> None:
    assert isinstance(nn.Parameter(torch.ones(2)), torch.Tensor)
    plain = exchanges.spread((8, 4), (2,), (None,))
    for rule in ("sage", "sinkgd", "scale", "alias", "alias_adam", "adamw"):
        settings = {"iterations": 2, "dim": 1, "instant_damper": True}
        assert exchanges.messages([(rule, settings, [plain])]) == []
