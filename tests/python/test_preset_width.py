"""Beyond width 192 the matrices' rate of the presets "sinkgd-scale" and "stateless" goes as 1 / width."""

from __future__ import annotations

import ast
import math
import warnings

import pytest
import torch
from torch import nn

from sage_ext import FusedHybrid
from sage_ext.optimizers.presets import PRESETS

WIDE = ("sinkgd-scale", "stateless")


class Model(nn.Module):
    """Blocks of two matrices from the model's width and one to it, as in a Llama."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, width)
        self.up = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)
        self.head = nn.Linear(width, 32, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def hybrid(model: nn.Module, preset: str, **given: object) -> FusedHybrid:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one rate for all
        return FusedHybrid(model, preset, **given)  # type: ignore[arg-type]


def size_of_a_step(optimizer: FusedHybrid) -> float:
    (group,) = [group for group in optimizer.param_groups if group["role"] == "matrix"]
    return float(group["lr"] * group["alpha"])


@pytest.mark.parametrize("preset", WIDE)
@pytest.mark.parametrize("width", [64, 192, 193, 384, 512])
def test_the_rate_stays_up_to_the_presets_width_and_falls_beyond(preset: str, width: int) -> None:
    row = PRESETS[preset]
    assert row.width == 192
    rate = row.hyperparameters["sinkgd"]["lr"]
    assert size_of_a_step(hybrid(Model(width), preset)) == pytest.approx(rate * min(1.0, 192 / width))


def test_the_update_has_that_size(backend: str) -> None:
    model = Model(384)
    optimizer = FusedHybrid(model, "sinkgd-scale", backend=backend)  # type: ignore[arg-type]
    before = model.down.weight.detach().clone()
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()
    rms = (model.down.weight.detach() - before).square().mean().sqrt()
    assert float(rms) == pytest.approx(1e-3 * 192 / 384, rel=0.02)


def test_of_the_inputs_of_most_matrices() -> None:
    model = nn.ModuleDict({str(k): nn.Linear(size, 8) for k, size in enumerate((768, 384, 384))})
    assert size_of_a_step(hybrid(model, "stateless", lm_head=[])) == pytest.approx(2.5e-4 / 2)
    equals = nn.ModuleDict({str(k): nn.Linear(size, 8) for k, size in enumerate((8, 768))})
    assert size_of_a_step(hybrid(equals, "stateless", lm_head=[])) == pytest.approx(2.5e-4 / 4)


def test_conv1d_has_its_inputs_in_its_rows() -> None:
    transformers = pytest.importorskip("transformers")
    model = nn.ModuleList([transformers.pytorch_utils.Conv1D(8, 384) for _ in range(2)])
    assert size_of_a_step(hybrid(model, "stateless", lm_head=[])) == pytest.approx(2.5e-4 / 2)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"lr": 1e-2}, 1e-2),
        ({"lr": {"matrix": 1e-2}}, 1e-2),
        ({"lr": {"sinkgd": 1e-2}}, 1e-2),
        ({"sinkgd": {"lr": 1e-2}}, 1e-2),
        ({"sinkgd": {"alpha": 0.5}}, 5e-4),
        ({"lr": {"embedding": 1e-2}}, 5e-4),
        ({"sinkgd": {"weight_decay": 0.1}}, 5e-4),
    ],
)
def test_what_the_caller_says_is_taken_as_it_is(given: dict[str, object], size: float) -> None:
    assert size_of_a_step(hybrid(Model(384), "sinkgd-scale", **given)) == pytest.approx(size)


def test_the_papers_presets_do_not_look_at_the_width() -> None:
    for preset in set(PRESETS) - set(WIDE):
        if PRESETS[preset].matrix == "sinkgd":
            assert size_of_a_step(hybrid(Model(512), preset)) == size_of_a_step(hybrid(Model(64), preset))


def test_the_warning_of_one_rate_for_all_names_rates_that_do_the_same() -> None:
    with pytest.warns(UserWarning, match=r"rates of their own; to keep them apart: lr=(\{.*\})") as told:
        FusedHybrid(Model(384), "sinkgd-scale", lr=1e-3)
    rates = ast.literal_eval(str(told[0].message).partition("apart: lr=")[2])
    apart, own = hybrid(Model(384), "sinkgd-scale", lr=rates), hybrid(Model(384), "sinkgd-scale")
    assert size_of_a_step(apart) == pytest.approx(size_of_a_step(own))
    for left, right in zip(apart.param_groups, own.param_groups, strict=True):
        if left["role"] != "matrix":
            assert left["lr"] == right["lr"]


def test_layers_that_thaw_later_have_the_first_ones_rate() -> None:
    model = Model(384)
    model.down.requires_grad_(False)
    optimizer = hybrid(model, "sinkgd-scale")
    model.down.requires_grad_(True)
    optimizer.add_parameters(model)
    sizes = [g["lr"] * g["alpha"] for g in optimizer.param_groups if g["rule"] == "sinkgd"]
    assert len(sizes) == 2
    assert math.isclose(*sizes)
