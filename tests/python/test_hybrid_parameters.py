"""Hybrids: which parameters get which group, those that come later, and what each costs."""

from __future__ import annotations

import models
import pytest
import torch
from models import TinyLanguageModel
from torch import nn

from sage_ext.optimizers import FusedAdamW, FusedHybrid, FusedSAGE


class TestNoDecay:
    NAMES = ("up.bias", "norm.weight", "norm.bias")

    def decay(self, optimizer: FusedHybrid) -> dict[str, float]:
        return {
            name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]
        }

    @pytest.mark.parametrize("preset", ["sage", "lion", "sinkgd"])
    def test_named_parameters_have_none(self, preset: str) -> None:
        model = TinyLanguageModel()
        optimizer = FusedHybrid(model, preset, weight_decay=0.1, no_decay=self.NAMES)
        expected = {name: 0.0 if name in self.NAMES else 0.1 for name, _ in model.named_parameters()}
        assert self.decay(optimizer) == expected
        # It goes before what is said to a rule.
        rule = optimizer.param_groups[-1]["rule"]
        optimizer = FusedHybrid(model, preset, no_decay="up.bias", **{rule: {"weight_decay": 0.3}})
        assert self.decay(optimizer)["up.bias"] == 0.0
        assert self.decay(optimizer)["down.bias"] == 0.3

    def test_no_group_more_where_nothing_decays(self) -> None:
        model = TinyLanguageModel()
        plain, named = (
            FusedHybrid(model, "lion", weight_decay=0.0, no_decay=names) for names in ((), self.NAMES)
        )
        assert len(plain.param_groups) == len(named.param_groups)

    def test_by_any_name_of_a_tied_parameter(self) -> None:
        model = TinyLanguageModel(tied=True)
        optimizer = FusedHybrid(model, "sage", weight_decay=0.1, no_decay=["head.weight"])
        assert self.decay(optimizer)["embed.weight"] == 0.0

    def test_of_added_layers(self) -> None:
        model = TinyLanguageModel()
        model.up.requires_grad_(False)
        optimizer = FusedHybrid(model, "sage", weight_decay=0.1)
        model.up.requires_grad_(True)
        optimizer.add_parameters(model, no_decay=["up.bias"])
        assert (self.decay(optimizer)["up.weight"], self.decay(optimizer)["up.bias"]) == (0.1, 0.0)

    def test_errors(self) -> None:
        model = TinyLanguageModel()
        with pytest.raises(
            ValueError, match=r"^no_decay: there is no parameter named 'up.bais'; close .*'up.bias'"
        ):
            FusedHybrid(model, no_decay=["up.bais"])
        with pytest.raises(ValueError, match=r"^no_decay: got \['up.bias'\], but group dicts"):
            FusedHybrid([{"params": [model.up.weight], "rule": "sage"}], no_decay=["up.bias"])
        with pytest.raises(ValueError, match=r'^no_decay: up.bias .*one weight decay; pass alias=\{"weight'):
            FusedHybrid(model, "alias", weight_decay=0.1, no_decay=["up.bias"])
        FusedHybrid(model, "alias", weight_decay=0.1, no_decay=["up.bias"], alias={"weight_decay": 0.0})


class TestConv1D:
    """Hugging Face's GPT-2 stores its matrices as [in, out]: the update is that of the same layer as
    nn.Linear, of SinkGD where it has converged: an iteration ends with the columns that are stored."""

    def layers(self, conv1d: bool, rows: int, cols: int) -> nn.Module:
        torch.manual_seed(3)
        linear = nn.Linear(cols, rows)
        if not conv1d:
            return linear
        layer = pytest.importorskip("transformers.pytorch_utils").Conv1D(rows, cols)
        with torch.no_grad():
            layer.weight.copy_(linear.weight.t())
            layer.bias.copy_(linear.bias)
        return layer

    @pytest.mark.parametrize("preset", ["scale", "sage", "lion", "sinkgd"])
    @pytest.mark.parametrize("shape", [(10, 6), (6, 10)])
    def test_update(self, preset: str, shape: tuple[int, int], backend: str) -> None:
        updates = []
        for conv1d in (False, True):
            layer = self.layers(conv1d, *shape)
            before = layer.weight.detach().clone()
            settings = {"sinkgd": {"iterations": 60}} if preset != "scale" else {}
            optimizer = FusedHybrid(layer, preset, backend=backend, **settings)
            layer(torch.linspace(-1, 1, 5 * shape[1]).reshape(5, -1).sin()).pow(3).sum().backward()
            optimizer.step()
            update = layer.weight.detach() - before
            updates.append(update.t() if conv1d else update)
        difference = (updates[0] - updates[1]).norm() / updates[0].norm()
        assert float(difference) < 1e-3

    @pytest.mark.parametrize("preset", ["sage", "sinkgd", "sinkgd-scale", "stateless"])
    def test_size_of_an_update_by_few_iterations(self, preset: str, backend: str) -> None:
        """As the presets are, with one."""
        sizes = []
        for conv1d in (False, True):
            layer = self.layers(conv1d, 30, 20)
            before = layer.weight.detach().clone()
            optimizer = FusedHybrid(layer, preset, backend=backend)
            layer(torch.randn(7, 20, generator=torch.Generator().manual_seed(0))).pow(3).sum().backward()
            optimizer.step()
            sizes.append((layer.weight.detach() - before).norm())
        assert float(sizes[1]) == pytest.approx(float(sizes[0]), rel=1e-3)

    def test_groups_and_description(self) -> None:
        model = nn.Sequential(self.layers(True, 10, 6), nn.Linear(10, 10), nn.Embedding(4, 4))
        optimizer = FusedHybrid(model, "scale")
        dims = {name: g["dim"] for g in optimizer.param_groups if "dim" in g for name in g["param_names"]}
        assert dims == {"0.weight": 0, "1.weight": 1, "2.weight": 0}
        rows = {row.name: str(row.rule) for row in optimizer.describe().rows}
        assert rows["0.weight"] == "scale"
        assert "scale (matrix): lr 0.001, momentum 0, dim 0" in str(optimizer.describe())
        assert {
            g["dim"] for g in FusedHybrid(model, "scale", scale={"dim": 1}).param_groups if "dim" in g
        } == {1}


def test_added_groups_and_unfrozen_layers(backend: str) -> None:
    model = TinyLanguageModel()
    model.up.requires_grad_(False)
    model.embed.requires_grad_(False)
    optimizer = FusedHybrid(model, "sinkgd", backend=backend, sinkgd={"alpha": 0.5})
    models.train(model, optimizer, [0])
    with pytest.raises(ValueError, match="every trainable parameter is in the optimizer already"):
        optimizer.add_parameters(model)
    model.up.requires_grad_(True)
    optimizer.add_parameters(model)
    assert [(g["role"], g["rule"], g["param_names"]) for g in optimizer.param_groups[3:]] == [
        ("matrix", "sinkgd", ["up.weight"]),
        ("vector", "adamw", ["up.bias"]),
    ]
    assert optimizer.param_groups[3]["alpha"] == 0.5
    model.embed.requires_grad_(True)
    optimizer.add_param_group({"params": [("embed.weight", model.embed.weight)], "rule": "sage", "lr": 0.25})
    before = model.embed.weight.detach().clone()
    models.train(model, optimizer, [1])
    assert 0.1 < float((before - model.embed.weight.detach()).abs().max()) <= 0.26
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_unfreezing_by_a_group_names_the_cure_that_works(backend: str) -> None:
    model = TinyLanguageModel()
    model.up.requires_grad_(False)
    model.embed.requires_grad_(False)
    optimizer = FusedHybrid(model, "lion", backend=backend)
    before = optimizer.state_dict()
    model.requires_grad_(True)
    cures = r'call optimizer.add_parameters\(model\), or give it pairs: \{"params": \[\("name", param\)\]\}'
    with pytest.raises(
        ValueError, match=rf"^params: group \d is without names, and those before .*; {cures}$"
    ):
        optimizer.add_param_group({"params": [model.up.weight], "rule": "sinkgd"})
    for params in ([model.up.weight], [("up.weight", model.up.weight)]):
        with pytest.raises(ValueError, match=r"^rule: .* names none; optimizer.add_parameters\(model\) adds"):
            optimizer.add_param_group({"params": params})
    assert optimizer.state_dict() == before
    optimizer.add_param_group({"params": [("embed.weight", model.embed.weight)], "rule": "lion"})
    optimizer.add_parameters(model)
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_groups_some_of_which_have_names() -> None:
    """Where there is no model that could be passed again, the cure is another."""
    named, bare = ({"params": params, "rule": "lion"} for params in ([("a", torch.ones(2))], [torch.ones(2)]))
    with pytest.raises(ValueError, match=r"^params: group 1 is without names, .*; give it pairs: "):
        FusedHybrid([dict(named), dict(bare)])
    with pytest.raises(ValueError, match=r"^params: group 1 is with names, .*; leave the names out of it"):
        FusedHybrid([dict(bare), dict(named)])


def test_failed_addition_changes_nothing() -> None:
    model = TinyLanguageModel()
    optimizer = FusedHybrid(model, backend="native")
    extra = nn.ModuleList([nn.Embedding(4, 4), nn.Linear(4, 4)])
    extra[1].weight.data = extra[1].weight.data.t()
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"1.weight \(param 0 of group 5.*contiguous"):
        optimizer.add_parameters(extra)
    assert optimizer.state_dict() == before


def test_unnamed_groups_can_be_extended_by_a_module(backend: str) -> None:
    optimizer = FusedHybrid([{"params": [nn.Parameter(torch.ones(2, 2))], "rule": "sage"}], backend=backend)
    optimizer.add_parameters(nn.Linear(3, 3))
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1, 1]


class TestDescribe:
    def test_rows_and_totals_are_what_the_state_holds(self, backend: str) -> None:
        model = TinyLanguageModel().to(torch.bfloat16)
        optimizer = FusedHybrid(model, "sinkgd", backend=backend, state_dtype=torch.float32)
        before = optimizer.describe()
        models.train(model, optimizer, [0])
        after = optimizer.describe()
        held = sum(t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values())
        assert before.state_bytes == after.state_bytes == held
        assert before.rows == after.rows
        assert before.totals["sinkgd"].state_bytes == 0
        assert before.totals["adamw"].state_bytes == held
        assert before.total.numel == sum(p.numel() for p in model.parameters())
        row = next(row for row in before.rows if row.name == "embed.weight")
        assert (row.rule, row.shape, row.dtype) == ("adamw", (29, 8), torch.bfloat16)
        assert row.state_bytes == 2 * 4 * 29 * 8 + 4

    def test_frozen_parameters_cost_nothing(self, backend: str) -> None:
        """As with LoRA, where an optimizer of all parameters steps few of them."""
        model = TinyLanguageModel()
        model.requires_grad_(False)
        model.up.requires_grad_(True)
        optimizer = FusedAdamW(model.named_parameters(), backend=backend)
        before = optimizer.describe()
        models.train(model, optimizer, [0])
        held = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
        assert before == optimizer.describe()
        assert before.state_bytes == held > 0
        frozen = {row.name for row in before.rows if row.is_frozen}
        assert frozen == {name for name, param in model.named_parameters() if not param.requires_grad}
        numel = sum(param.numel() for param in model.parameters() if not param.requires_grad)
        assert f"\n6 tensors with {numel} parameters are frozen (requires_grad=False): no state" in str(
            before
        )
        model.down.requires_grad_(True)
        assert not any(row.is_frozen for row in optimizer.describe().rows if row.name.startswith("down"))
        model.up.requires_grad_(False)  # what it has kept stays
        models.train(model, optimizer, [1])
        held = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
        assert optimizer.describe().state_bytes == held

    def test_table(self, backend: str) -> None:
        text = str(FusedHybrid(TinyLanguageModel(), backend=backend).describe())
        assert "embed.weight  29x8   float32  sage" in text
        assert f"backend: {backend}" in text
        assert all(line == line.rstrip() for line in text.splitlines())

    def test_sage_costs_one_moment_and_one_row(self) -> None:
        matrix, vector, scalar = (
            nn.Parameter(torch.zeros(10, 7)),
            nn.Parameter(torch.zeros(5)),
            nn.Parameter(torch.zeros(())),
        )
        rows = FusedSAGE([matrix, vector, scalar]).describe().rows
        assert [row.state_bytes for row in rows] == [4 * (70 + 7) + 4, 4 * (5 + 5) + 4, 4 * 2 + 4]

    def test_billion_parameters_on_the_meta_device(self) -> None:
        """Nothing is allocated. For a Llama of the 1.3B shape the hybrid's state is less than a tenth of
        AdamW's."""
        vocabulary, hidden, feed_forward, layers = 32_000, 2048, 5461, 24
        with torch.device("meta"):
            model = nn.ModuleDict({"embed": nn.Embedding(vocabulary, hidden)})
            for layer in range(layers):
                shapes = [(hidden, hidden)] * 4 + [(hidden, feed_forward)] * 2 + [(feed_forward, hidden)]
                model[f"layer{layer}"] = nn.ModuleList([nn.Linear(*shape, bias=False) for shape in shapes])
            model["head"] = nn.Linear(hidden, vocabulary, bias=False)
        hybrid = FusedHybrid(model, lm_head="head.weight").describe()
        adamw = FusedAdamW(model.parameters()).describe()
        assert 1.3e9 < adamw.total.numel < 1.4e9
        assert adamw.state_bytes == pytest.approx(8 * adamw.total.numel, rel=1e-6)
        assert hybrid.state_bytes == 2 * (4 * vocabulary * hidden + 4) + 4 * hidden * 2
        assert hybrid.state_bytes < adamw.state_bytes / 10
