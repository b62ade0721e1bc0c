"""``sage_ext.autoconfig``: laws of the choice, what is measured, and a model that nothing has happened to."""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TinyLanguageModel, loss_of
from torch import Tensor, nn

from sage_ext import AutoConfig, FusedHybrid, autoconfig
from sage_ext.routing import Routed
from sage_ext.selection import CANDIDATES, knapsack
from sage_ext.selection.candidates import candidates_of
from sage_ext.selection.knapsack import Cost

STEPS = 6
BATCHES = [0, 1, 2, 3]  # seeds of ``models.batch``
STATELESS = {"sinkgd", "scale", "sign_sgd"}


def measure(model: nn.Module, **given: Any) -> AutoConfig:
    return autoconfig(model, BATCHES, **{"loss": loss_of, "steps": STEPS, "bandwidth": 1e9, **given})


@pytest.fixture(scope="module")
def measured() -> AutoConfig:
    torch.manual_seed(0)
    return measure(TinyLanguageModel())


def stepped(config: AutoConfig, model: nn.Module) -> FusedHybrid:
    optimizer = FusedHybrid(config.groups)
    loss_of(model).backward()
    optimizer.step()
    return optimizer


def allocated(optimizer: torch.optim.Optimizer) -> int:
    return sum(tensor.nbytes for state in optimizer.state.values() for tensor in state.values())


# ------------------------------------------------------------------------------------------- the knapsack

costs = st.builds(Cost, st.floats(0, 1, width=16), st.tuples(st.integers(0, 9), st.integers(0, 9)))
problems = st.lists(st.lists(costs, min_size=1, max_size=4), min_size=1, max_size=5)
limit = st.none() | st.integers(0, 30)


def best_of_all(items: list[list[Cost]], limits: tuple[int | None, ...]) -> float | None:
    """The least risk within the limits, by looking at every choice; None: there is no choice."""
    risks = [
        sum(cost.risk for cost in choice)
        for choice in itertools.product(*items)
        if all(most is None or sum(cost.uses[k] for cost in choice) <= most for k, most in enumerate(limits))
    ]
    return min(risks, default=None)


@given(problems, limit, limit)
@settings(max_examples=80, deadline=None)
def test_the_choice_is_the_best_of_all(
    items: list[list[Cost]], first: int | None, second: int | None
) -> None:
    limits = (first, second)
    expected = best_of_all(items, limits)
    if expected is None:
        with pytest.raises(knapsack.TooLittleError) as error:
            knapsack.choose(items, limits)
        # What it names is the smallest that this limit could be: with the other, where that can be kept.
        named, least = error.value.resource, error.value.least
        others = tuple(None if k == named else most for k, most in enumerate(limits))
        assert error.value.beside_others == (best_of_all(items, others) is not None)
        if not error.value.beside_others:
            others = (None, None)
        for most, is_enough in ((least, True), (least - 1, False)):
            limits = tuple(most if k == named else other for k, other in enumerate(others))
            assert (best_of_all(items, limits) is not None) == is_enough
        return
    chosen = knapsack.choose(items, limits)
    picked = [item[pick] for item, pick in zip(items, chosen.picks, strict=True)]
    assert sum(cost.risk for cost in picked) == pytest.approx(expected, abs=1e-9)
    assert chosen.is_optimal
    for k, most in enumerate(limits):
        assert most is None or sum(cost.uses[k] for cost in picked) <= most


@given(problems)
@settings(max_examples=40, deadline=None)
def test_every_point_of_the_front_is_the_best_at_its_use(items: list[list[Cost]]) -> None:
    points = knapsack.front(items)
    uses = [sum(item[p].uses[0] for item, p in zip(items, picks, strict=True)) for picks in points]
    risks = [sum(item[p].risk for item, p in zip(items, picks, strict=True)) for picks in points]
    assert uses == sorted(set(uses))
    assert risks == sorted(risks, reverse=True)
    for use, risk in zip(uses, risks, strict=True):
        assert risk == pytest.approx(best_of_all(items, (use, None)), abs=1e-9)
    assert risks[-1] == pytest.approx(sum(min(cost.risk for cost in item) for item in items))


def test_where_it_has_to_leave_choices_out_it_stays_within_the_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hundreds of parameters and two limits; the bound says how far from the optimum it can be."""
    monkeypatch.setattr(knapsack, "WORK", (1, 1, 1))
    draw = torch.Generator().manual_seed(0)

    def one() -> list[Cost]:
        sizes = torch.randint(1, 1000, (3, 2), generator=draw).tolist()
        return [Cost(1.0 / sum(uses), tuple(uses)) for uses in sizes]

    items = [one() for _ in range(60)]
    limits = (25_000, 24_000)
    chosen = knapsack.choose(items, limits)
    picked = [item[pick] for item, pick in zip(items, chosen.picks, strict=True)]
    for k in range(2):
        assert sum(cost.uses[k] for cost in picked) <= limits[k]
    risk = sum(cost.risk for cost in picked)
    assert 0.97 * risk < chosen.bound <= risk


# -------------------------------------------------------------------------------------------- the budget


def test_more_budget_is_never_more_risk_and_no_budget_is_exceeded(measured: AutoConfig) -> None:
    last = math.inf
    for state_bytes in range(0, measured.adamw_bytes + 200, 200):
        config = measured.within(state_bytes=state_bytes)
        assert config.state_bytes <= state_bytes
        assert config.risk <= last + 1e-12
        last = config.risk
    assert last == 0.0
    assert measured.within().risk == 0.0
    fastest = measured.within(state_bytes=0).ms
    for share in (1.0, 1.2, 1.5, 2.0):
        config = measured.within(state_bytes=2000, ms=fastest * share)
        assert config.state_bytes <= 2000
        assert config.ms <= fastest * share
        assert config.risk >= measured.within(state_bytes=2000).risk - 1e-12


def test_a_budget_that_nothing_fits_names_the_smallest_that_does(measured: AutoConfig) -> None:
    config = measure(TinyLanguageModel(), candidates=["adamw", "lion"])
    least = config.within(state_bytes=config.adamw_bytes // 2).state_bytes
    with pytest.raises(ValueError, match=rf"state_bytes: .*the smallest possible is {least:,}\..*'sign_sgd'"):
        config.within(state_bytes=least - 1)
    assert config.within(state_bytes=least).rules == dict.fromkeys(config.rules, "lion")
    never = pytest.fail
    with pytest.raises(ValueError, match=r"state_bytes: 10 is too little"):  # before anything is trained
        autoconfig(TinyLanguageModel(), BATCHES, loss=never, state_bytes=10, candidates=["adamw"])
    with pytest.raises(ValueError, match=r"ms: 1e-06 is too little; the smallest possible is 0\.0"):
        measured.within(ms=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.7])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "tied", "role"])
def test_state_is_what_the_optimizer_allocates_to_the_byte(kind: str, share: float) -> None:
    torch.manual_seed(0)
    model = TinyLanguageModel(tied=kind == "tied").to(torch.bfloat16 if kind == "bf16" else torch.float32)
    state_bytes = int(share * 8 * sum(p.numel() for p in model.parameters()))
    config = measure(model, state_bytes=state_bytes, blocks="role" if kind == "role" else "tensor", steps=2)
    optimizer = stepped(config, model)
    assert config.state_bytes == allocated(optimizer) == optimizer.describe().state_bytes
    assert len(config.rules) == len(list(model.parameters()))
    if kind == "role":
        by_role = {
            (block.role, rule) for block, rule in zip(config.blocks, config.rules.values(), strict=True)
        }
        assert len(by_role) == len({role for role, _ in by_role})
    if share == 0.0:
        assert set(config.rules.values()) <= STATELESS


# ----------------------------------------------------------------------------------------- what is measured


def test_a_risk_by_hand() -> None:
    """Sign-SGD beside AdamW on one matrix: the formulas of the docstring, in float64 and torch's AdamW."""
    draw = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(STEPS, 7, 3, generator=draw), torch.randn(STEPS, 7, 4, generator=draw)
    model = nn.Linear(3, 4, bias=False)

    def loss(module: nn.Module, t: int) -> Tensor:
        dtype = next(module.parameters()).dtype
        return (module(inputs[t].to(dtype)) - targets[t].to(dtype)).square().mean()

    config = autoconfig(model, range(STEPS), loss=loss, steps=STEPS, lr=0.05, candidates=["sign_sgd"])

    twin = nn.Linear(3, 4, bias=False).double()
    twin.weight.data.copy_(model.weight.data)
    adamw = torch.optim.AdamW(twin.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    updates, signs = [], []
    for t in range(STEPS):
        rate = adamw.param_groups[0]["lr"] = 0.05 * (t + 1) / STEPS
        adamw.zero_grad()
        loss(twin, t).backward()
        before = twin.weight.detach().clone()
        adamw.step()
        updates.append((before - twin.weight.detach()) / rate)
        signs.append(twin.weight.grad.sign())
    updates, signs = updates[STEPS // 2 :], signs[STEPS // 2 :]

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a.flatten() @ b.flatten() / a.norm() / b.norm())

    cosines = [cosine(r, u) for r, u in zip(updates, signs, strict=True)]
    gone, went = sum(updates), sum(signs)
    profile = (cosine(gone.norm(dim=0), went.norm(dim=0)) + cosine(gone.norm(dim=1), went.norm(dim=1))) / 2
    sizes = [torch.tensor([of.norm() for of in each]) for each in (updates, signs)]
    (option,) = config.chosen
    assert option.risk.direction == pytest.approx(1 - cosine(gone, went), abs=1e-5)
    assert option.risk.size == pytest.approx(1 - profile, abs=1e-5)
    mean = sum(cosines) / len(cosines)
    spread = sum((value - mean) ** 2 for value in cosines) / len(cosines)
    assert option.risk.variance == pytest.approx(spread + 1 - cosine(*sizes), abs=1e-5)
    rms = torch.stack(updates).square().mean().sqrt() / torch.stack(signs).square().mean().sqrt()
    assert option.lr == pytest.approx(0.05 * float(rms), rel=1e-3)


@pytest.mark.parametrize("shape", [(2, 300, 9), (6, 256, 3, 3), (4, 600)])
def test_sums_of_any_shape_see_all_of_it(shape: tuple[int, ...]) -> None:
    """Features and kernel taps that nothing reaches do not stand for the others."""
    draw = torch.Generator().manual_seed(0)
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(shape))
    alive = torch.rand(shape, generator=draw)
    alive[..., 0] = 0
    gradients = [alive * torch.randn(shape, generator=draw) for _ in range(8)]
    config = autoconfig(model, gradients, loss=lambda m, g: (m.weight * g).sum(), steps=8)
    risks = {option.candidate: option.risk for option in config.blocks[0].options}
    for name in ("sinkgd", "scale", "sign_sgd", "lion"):
        assert risks[name].direction > 0.01, name
    assert risks["adamw-bf16"].total < 1e-3


def test_tiny_updates_are_compared_as_well() -> None:
    """Beside AdamW's eps gradients of 1e-20 make updates whose squares' products leave float32."""
    model = nn.Linear(3, 4, bias=False)
    inputs = [torch.randn(5, 3) for _ in range(6)]

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        return 1e-20 * module(x).square().sum()

    config = autoconfig(model, inputs, loss=loss, steps=6)
    risks = {option.candidate: option.risk for option in config.blocks[0].options}
    assert risks["adamw-bf16"].total < 1e-3


def test_the_reference_has_no_risk_and_its_states_in_bf16_nearly_none(measured: AutoConfig) -> None:
    for block in measured.blocks:
        risks = {option.candidate: option.risk.total for option in block.options}
        assert risks.pop("adamw") == 0.0
        assert 0 < risks.pop("adamw-bf16") < 1e-3
        assert min(risks.values()) > 1e-2


def test_a_rule_applies_to_a_shape_and_goes_by_the_layout(measured: AutoConfig) -> None:
    options = {block.name: {o.candidate: o.settings for o in block.options} for block in measured.blocks}
    assert set(options["norm.bias"]) == set(CANDIDATES) - {"sinkgd", "scale", "scale-momentum"}
    assert set(options["up.weight"]) == set(CANDIDATES)
    assert options["embed.weight"]["scale"] == {"dim": 0}
    assert options["up.weight"]["scale"] == {"dim": 1}
    assert options["head.weight"]["scale"] == {"dim": 0}
    kept = {"momentum": 0.9, "state_dtype": torch.bfloat16}
    for name in ("embed.weight", "up.weight", "head.weight"):
        assert options[name]["scale-momentum"] == {"dim": 1, **kept}
    by_columns = TinyLanguageModel()
    by_columns.up.weight = nn.Parameter(by_columns.up.weight.detach().t().contiguous().t())
    config = measure(by_columns, steps=2, state_bytes=0)
    (up,) = [block for block in config.blocks if block.name == "up.weight"]
    assert {option.candidate for option in up.options} == {"adamw", "adamw-bf16", "lion", "sign_sgd"}
    stepped(config, by_columns)


def test_conv1d_has_its_outputs_in_the_columns() -> None:
    entry = Routed("c_attn.weight", nn.Parameter(torch.zeros(3, 4)), "matrix", output_dim=1)
    (scale,) = candidates_of(entry, ["scale"], {}, native=True)
    assert scale.given == {"dim": 0}


def test_a_tied_weight_counts_once_and_what_is_frozen_not_at_all() -> None:
    model = TinyLanguageModel(tied=True)
    model.up.requires_grad_(False)
    config = measure(model, steps=2)
    assert [block.name for block in config.blocks] == [
        "embed.weight", "down.weight", "down.bias", "norm.weight", "norm.bias"
    ]  # fmt: skip
    assert config.blocks[0].role == "embedding"
    assert measure(model, steps=2, tied="lm_head").blocks[0].role == "lm_head"


def test_the_same_inputs_give_the_same_groups() -> None:
    def found() -> Any:
        torch.manual_seed(3)
        config = measure(TinyLanguageModel(), state_bytes=1800)
        groups = [{k: v for k, v in group.items() if k != "params"} for group in config.groups]
        names = [[name for name, _ in group["params"]] for group in config.groups]
        return groups, names, [[o.risk for o in block.options] for block in config.blocks]

    assert found() == found()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_double_takes_the_reference_and_both_backends_agree(backend: str, measured: AutoConfig) -> None:
    torch.manual_seed(0)
    model = TinyLanguageModel()
    if backend == "reference":
        model = model.double()
    config = measure(model, backend=backend)
    for block, other in zip(config.blocks, measured.blocks, strict=True):
        for option, same in zip(block.options, other.options, strict=True):
            assert option.candidate == same.candidate
            assert option.risk.total == pytest.approx(same.risk.total, abs=0.02)


def test_rates_and_decay_follow_from_adamws() -> None:
    model = TinyLanguageModel()
    config = measure(
        model,
        lr={"embedding": 1e-2, "matrix": 1e-3, "lm_head": 1e-3, "vector": 1e-3},
        weight_decay=0.1,
        no_decay=["norm.weight"],
        state_bytes=0,
        sinkgd={"iterations": 2},
    )
    for block, option in zip(config.blocks, config.chosen, strict=True):
        adamw = 1e-2 if block.role == "embedding" else 1e-3
        assert 0.05 * adamw < option.lr < 5 * adamw
        decay = 0.0 if block.name == "norm.weight" else 0.1 * adamw
        assert option.lr * option.weight_decay == pytest.approx(decay, rel=1e-3)
    sinkgd = [o for block in config.blocks for o in block.options if o.candidate == "sinkgd"]
    assert {option.settings["iterations"] for option in sinkgd} == {2}
    optimizer = FusedHybrid(config.groups)
    decays = {
        name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]
    }
    assert decays["norm.weight"] == 0.0 < decays["norm.bias"]


def test_bf16_states_are_left_out_where_they_cannot_decay() -> None:
    config = measure(TinyLanguageModel(), steps=2, adamw={"betas": (0.9, 0.999)})
    assert all(option.candidate != "adamw-bf16" for block in config.blocks for option in block.options)


def test_groups_are_new_each_time_and_train() -> None:
    torch.manual_seed(0)
    model = TinyLanguageModel()
    config = measure(model, state_bytes=1500, lr=3e-2, max_grad_norm=1.0)
    first = FusedHybrid(config.groups)
    optimizer = FusedHybrid(config.groups)
    assert first.param_groups[0] is not optimizer.param_groups[0]
    before = float(loss_of(model).detach())
    for seed in range(20):
        optimizer.zero_grad()
        loss_of(model, seed).backward()
        optimizer.step()
    assert float(loss_of(model).detach()) < before - 0.5


# ------------------------------------------------------------------------------------ tables and pictures


def test_tables_add_up(measured: AutoConfig) -> None:
    config = measured.within(state_bytes=1500)
    rows = [line.split() for line in config.table(merged=False).splitlines()[2:]]
    assert [row[0] for row in rows] == [block.name for block in config.blocks]
    assert [row[2] for row in rows] == list(config.rules.values())
    assert sum(float(row[-1]) for row in rows) == pytest.approx(config.risk, abs=1e-3)
    merged = [line.split() for line in config.table().splitlines()[2:]]
    assert sum(int(row[1]) for row in merged) == len(config.blocks)
    text = str(config)
    assert config.table() in text
    assert f"risk: {config.risk:.4f} (AdamW: 0)" in text
    assert "allowed: 1.46 KiB" in text
    assert len(config.front) > 5
    assert config.alone("sinkgd") is None
    assert config.alone("adamw") == measured.front[-1]


def test_picture(measured: AutoConfig, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "front.svg"
    measured.within(state_bytes=1500).picture(path)
    assert path.read_text().count("<path") > 20


def test_without_matplotlib_there_is_a_cure(
    measured: AutoConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        measured.picture(tmp_path / "front.png")


def test_few_steps_are_said_to_be_few_for_a_head() -> None:
    with pytest.warns(
        UserWarning, match=r"steps=2 are few to choose for an output head by: .* some 256 steps"
    ):
        measure(TinyLanguageModel(), steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(TinyLanguageModel(), steps=2, lm_head=[])
