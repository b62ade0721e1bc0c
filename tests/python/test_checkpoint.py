"""torch.distributed.checkpoint's state-dict helpers, in every form that they have, on one process."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import pytest
import support
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from models import BUILDERS, NAMES, TinyLanguageModel
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from sage_ext.optimizers import FusedALIAS, FusedHybrid

# As FusedSinkGD and FusedSCALE of models.py own the matrices only, the helpers, which want the whole model,
# do not take them alone.
WHOLE = [pair for pair in zip(BUILDERS, NAMES, strict=True) if not pair[1].startswith(("sinkgd", "scale"))]
every_optimizer = pytest.mark.parametrize(
    "build", [pair[0] for pair in WHOLE], ids=[pair[1] for pair in WHOLE]
)
OPTIONS: dict[str, dict[str, Any]] = {
    "nested": {},
    "flattened": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True},
    "full-cpu": {"full_state_dict": True, "cpu_offload": True},
    "not-strict": {"strict": False},
}
every_form = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture(autouse=True)
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(build: Any) -> tuple[TinyLanguageModel, Any]:
    torch.manual_seed(11)
    model = TinyLanguageModel()
    optimizer = build(model)
    models.train(model, optimizer, range(3))
    optimizer.zero_grad()
    return model, optimizer


def is_beyond_torch(build: Any, options: dict[str, Any]) -> bool:
    """Whether there is no state at all, which torch's helpers cannot load in the full form: its own SGD
    neither."""
    return build is models.sign_sgd and "full_state_dict" in options


def test_what_is_beyond_torch() -> None:
    options = StateDictOptions(**OPTIONS["full"])
    for build in (lambda model: torch.optim.SGD(model.parameters(), lr=0.1), models.sign_sgd):
        model, optimizer = trained(build)
        saved = get_optimizer_state_dict(model, optimizer, options=options)
        with pytest.raises(AssertionError, match="Expected device to be set"):
            set_optimizer_state_dict(model, optimizer, saved, options=options)


def go_on(model: TinyLanguageModel, optimizer: Any) -> list[torch.Tensor]:
    """Three more steps, for which nobody hands over a loss."""
    for seed in range(3, 6):
        models.backward(model, optimizer, seed)
        optimizer.step()
    return models.snapshot(optimizer)


@every_optimizer
@every_form
def test_in_memory(build: Any, options: dict[str, Any]) -> None:
    if is_beyond_torch(build, options):
        return
    model, optimizer = trained(build)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=StateDictOptions(**options)))
    twin = copy.deepcopy(model)
    other = build(twin)
    set_optimizer_state_dict(twin, other, saved, options=StateDictOptions(**options))
    support.assert_same_bits(go_on(model, optimizer), go_on(twin, other))


@every_optimizer
@pytest.mark.parametrize("form", ["nested", "flattened", "full-cpu"])
@pytest.mark.parametrize("how", ["save", "async_save"])
def test_through_files(build: Any, form: str, how: str, tmp_path: Path) -> None:
    if is_beyond_torch(build, OPTIONS[form]):
        return
    options = StateDictOptions(**OPTIONS[form])
    model, optimizer = trained(build)
    weights, state = get_state_dict(model, optimizer, options=options)
    written = {"model": weights, "optimizer": state}
    if how == "save":
        dcp.save(written, checkpoint_id=tmp_path / "file")
    else:
        dcp.async_save(written, checkpoint_id=tmp_path / "file").result()
    torch.manual_seed(12)
    twin = TinyLanguageModel()
    other = build(twin)
    weights, state = get_state_dict(twin, other, options=options)
    read = {"model": weights, "optimizer": state}
    dcp.load(read, checkpoint_id=tmp_path / "file")
    set_state_dict(
        twin, other, model_state_dict=read["model"], optim_state_dict=read["optimizer"], options=options
    )
    support.assert_same_bits(go_on(model, optimizer), go_on(twin, other))


def test_older_files_without_empty_entries(tmp_path: Path) -> None:
    """Before a parameter without state had an empty entry: their files load, and their dicts in the other
    forms."""
    build = models.hybrid("sage")
    model, optimizer = trained(build)
    for options, strict in (({}, False), ({"flatten_optimizer_state_dict": True}, True)):
        saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=StateDictOptions(**options)))
        if "state" in saved:
            saved["state"] = {name: held for name, held in saved["state"].items() if held}
            dcp.save({"optimizer": saved}, checkpoint_id=tmp_path / "file")
        twin = copy.deepcopy(model)
        other = build(twin)
        set_optimizer_state_dict(twin, other, saved, options=StateDictOptions(strict=strict, **options))
        support.assert_same_bits(go_on(*copy.deepcopy((model, optimizer))), go_on(twin, other))
    twin = copy.deepcopy(model)
    other = build(twin)
    read = {"optimizer": get_optimizer_state_dict(twin, other)}
    dcp.load(read, checkpoint_id=tmp_path / "file")
    set_optimizer_state_dict(twin, other, read["optimizer"])
    support.assert_same_bits(go_on(model, optimizer), go_on(twin, other))


@every_optimizer
def test_asking_a_fresh_optimizer_changes_nothing(build: Any) -> None:
    """The helpers have missing state made by a step with zero gradients at lr 0."""
    model = TinyLanguageModel()
    before = [param.detach().clone() for param in model.parameters()]
    optimizer = build(model, weight_decay=0.1)
    get_optimizer_state_dict(model, optimizer)
    support.assert_same_bits(before, [param.detach() for param in model.parameters()])
    twin = copy.deepcopy(model)
    other = build(twin, weight_decay=0.1)
    ends = []
    for a, b in ((model, optimizer), (twin, other)):
        models.train(a, b, range(3))
        ends.append(models.snapshot(b))
    support.assert_same_bits(*ends)


class TestInertSteps:
    """lr 0 and no gradient that is not zero: ALIAS's step size does not come from lr, and yet nothing may
    move."""

    def make(self, backend: str, **changes: Any) -> tuple[FusedALIAS, nn.Parameter]:
        param = nn.Parameter(torch.ones(4, 4))
        param.grad = torch.zeros(4, 4)
        return FusedALIAS([param], weight_decay=0.5, backend=backend, **changes), param

    @pytest.mark.parametrize(
        "changes", [{}, {"gap": "lower_bound"}, {"same_batch": True}, {"memory_efficient": False}]
    )
    @pytest.mark.parametrize("lr", [0, 0.0, torch.tensor(0.0)])
    def test_of_alias(self, changes: dict[str, Any], lr: Any, backend: str) -> None:
        optimizer, param = self.make(backend, lr=lr, **changes)
        for _ in range(2):
            optimizer.step()
        assert (param == 1).all()
        assert float(optimizer.param_groups[0]["scalars"][0]) == 0, "no step was counted"
        assert param in optimizer.state

    def test_in_the_middle_of_training(self, backend: str) -> None:
        optimizer, param = self.make(backend)
        param.grad = torch.ones(4, 4)
        optimizer.step()
        before = models.snapshot(optimizer)
        rate, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], 0.0
        param.grad = torch.zeros(4, 4)
        optimizer.step()
        support.assert_same_bits(before, models.snapshot(optimizer))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        assert float(optimizer.param_groups[0]["scalars"][0]) == 2

    def test_a_rate_or_a_gradient_is_a_step(self, backend: str) -> None:
        for lr, size in ((1e-3, 0.0), (0.0, 1e-30), (0.0, float("nan"))):
            optimizer, param = self.make(backend, lr=lr)
            param.grad.fill_(size)
            optimizer.step()
            assert float(optimizer.param_groups[0]["scalars"][0]) == 1, (lr, size)

    def test_first_loss_is_still_needed_afterwards(self, backend: str) -> None:
        optimizer, param = self.make(backend, gap="lower_bound", lr=0.0)
        optimizer.step()
        param.grad.fill_(1.0)
        with pytest.raises(ValueError, match=r"^loss: got None"):
            optimizer.step()
        optimizer.step(loss=2.0)
        assert float(optimizer.param_groups[0]["scalars"][2]) == 2.0

    def test_other_rules_count_when_they_have_a_state(self, backend: str) -> None:
        """As torch's own: the moments decay. Only what is made in such a step stays as it is made."""
        model = nn.Linear(3, 3)
        optimizer = FusedHybrid(model, "sinkgd", lr=0.0, backend=backend)
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        optimizer.step()
        assert float(optimizer.state[model.bias]["step"]) == 0
        model.bias.grad.fill_(1.0)
        optimizer.step()
        model.bias.grad.zero_()
        optimizer.step()
        assert float(optimizer.state[model.bias]["step"]) == 2
