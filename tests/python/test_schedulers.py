"""Every learning rate scheduler of torch drives these optimizers as it drives torch's own."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import models
import pytest
import support
import torch
from models import TinyLanguageModel
from torch.optim import lr_scheduler

from sage_ext.optimizers import FusedHybrid, FusedSAGE

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.25, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-4, 1e-2, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, 6, cycle_momentum=False),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}
STEPS = 5


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_scheduler(name: str, as_tensor: bool, backend: str) -> None:
    """The same learning rates as on torch's AdamW, and the updates follow them: SAGE moves by at most lr."""
    lr = torch.tensor(1e-2) if as_tensor else 1e-2
    model = TinyLanguageModel()
    optimizer = FusedSAGE(model.parameters(), lr=lr, weight_decay=0.0, backend=backend)
    other = torch.optim.AdamW(
        [torch.nn.Parameter(torch.zeros(2))], lr=lr.clone() if as_tensor else lr, foreach=False
    )
    schedulers = SCHEDULERS[name](optimizer), SCHEDULERS[name](other)
    for seed in range(STEPS):
        models.backward(model, optimizer, seed)
        before = [param.detach().clone() for param in model.parameters()]
        now = float(optimizer.param_groups[0]["lr"])
        optimizer.step()
        other.step()
        parameters = [param.detach() for param in model.parameters()]
        moved = max(float((a - b).abs().max()) for a, b in zip(before, parameters, strict=True))
        assert moved <= now + 1e-6
        assert moved >= 0.5 * now
        for scheduler in schedulers:
            scheduler.step()
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(
            float(other.param_groups[0]["lr"]), rel=1e-6
        )


def test_reduce_on_plateau(backend: str) -> None:
    optimizer = models.sage(TinyLanguageModel(), backend=backend, lr=0.5)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    for loss in (1.0, 1.0, 1.0):
        scheduler.step(loss)
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_every_group_of_a_hybrid_is_scheduled(backend: str) -> None:
    model = TinyLanguageModel()
    optimizer = FusedHybrid(model, "sinkgd", backend=backend)
    before = [group["lr"] for group in optimizer.param_groups]
    scheduler = lr_scheduler.LinearLR(optimizer, 0.5, total_iters=10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5 * lr for lr in before]
    models.train(model, optimizer, [0])
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.55 * lr for lr in before])


@pytest.mark.parametrize("build", [models.sage, models.lion, models.adamw])
def test_one_cycle_moves_beta1(build: Callable[..., Any], backend: str) -> None:
    model = TinyLanguageModel()
    optimizer = build(model, backend=backend)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 1e-2, 6)
    betas = []
    for seed in range(STEPS):
        models.train(model, optimizer, [seed])
        scheduler.step()
        betas.append(optimizer.param_groups[0]["betas"][0])
    assert len(set(betas)) > 2


CYCLES: dict[str, Callable[..., Any]] = {
    "OneCycleLR": lambda o, **more: lr_scheduler.OneCycleLR(o, 1e-2, 6, **more),
    "CyclicLR": lambda o, **more: lr_scheduler.CyclicLR(o, 1e-4, 1e-2, 2, **more),
}


@pytest.mark.parametrize("name", CYCLES)
class TestCycledMomentum:
    """Sign-SGD and SCALE without momentum would become other optimizers, with a state."""

    MESSAGE = (
        r"^momentum: got 0\.\d+ in param group 0, expected 0, as it was .* cycle_momentum=False, or the op"
    )

    def refuse(self, model: TinyLanguageModel, optimizer: Any) -> None:
        models.backward(model, optimizer)
        before = models.snapshot(optimizer)
        with pytest.raises(ValueError, match=self.MESSAGE):
            optimizer.step()
        support.assert_same_bits(before, models.snapshot(optimizer))
        assert not any(optimizer.state.values())

    @pytest.mark.parametrize("build", [models.sign_sgd, models.scale])
    @pytest.mark.parametrize("steps", [0, 3])
    def test_of_groups_without_is_refused(self, name: str, build: Any, steps: int, backend: str) -> None:
        model = TinyLanguageModel()
        optimizer = build(model, backend=backend)
        models.train(model, optimizer, range(steps))
        CYCLES[name](optimizer)
        self.refuse(model, optimizer)
        self.refuse(*pickle.loads(pickle.dumps((model, optimizer))))

    @pytest.mark.parametrize("build", [models.sign_sgd, models.scale])
    def test_and_its_cures_work(self, name: str, build: Any, backend: str) -> None:
        for settings, more in (({}, {"cycle_momentum": False}), ({"momentum": 0.9}, {})):
            model = TinyLanguageModel()
            optimizer = build(model, backend=backend, **settings)
            scheduler = CYCLES[name](optimizer, **more)
            for seed in range(4):
                models.train(model, optimizer, [seed])
                scheduler.step()
            assert any(optimizer.state.values()) is bool(settings)

    @pytest.mark.parametrize("build", [models.signum, models.scale_with_momentum])
    def test_of_a_file(self, name: str, build: Any, backend: str) -> None:
        """Its momentum wins, whatever the optimizer was built with; and so does none."""
        model, twin = TinyLanguageModel(), TinyLanguageModel()
        optimizer = build(model, backend=backend)
        scheduler = CYCLES[name](optimizer)
        models.train(model, optimizer, [0])
        other = build(twin, backend=backend, momentum=0.0)
        its = CYCLES[name](other)
        other.load_state_dict(optimizer.state_dict())
        for each, schedule, net in ((optimizer, scheduler, model), (other, its, twin)):
            schedule.step()
            models.train(net, each, [1])
        assert optimizer.param_groups[0]["momentum"] == other.param_groups[0]["momentum"] > 0
        without = build(model, backend=backend, momentum=0.0)
        optimizer = build(model, backend=backend)
        optimizer.load_state_dict(without.state_dict())
        CYCLES[name](optimizer)
        self.refuse(model, optimizer)

    def test_of_a_file_that_comes_after_the_scheduler(self, name: str, backend: str) -> None:
        model = TinyLanguageModel()
        saved = models.sign_sgd(model, backend=backend).state_dict()
        optimizer = models.sign_sgd(model, backend=backend)
        scheduler = CYCLES[name](optimizer)
        optimizer.load_state_dict(saved)
        models.train(model, optimizer, [0])
        scheduler.step()
        self.refuse(model, optimizer)

    def test_a_momentum_set_by_hand_is_meant(self, name: str, backend: str) -> None:
        model = TinyLanguageModel()
        optimizer = models.sign_sgd(model, backend=backend)
        optimizer.param_groups[0]["momentum"] = 0.5
        models.train(model, optimizer, [0])
        CYCLES[name](optimizer)
        models.train(model, optimizer, [1])

    def test_sinkgd_and_hybrids_are_refused_by_torch(self, name: str) -> None:
        for build in (models.sinkgd, models.hybrid("scale"), models.hybrid("stateless")):
            with pytest.raises(ValueError, match="cycle_momentum"):
                CYCLES[name](build(TinyLanguageModel()))


def test_averaged_models(backend: str) -> None:
    """Stochastic weight averaging sits between model and optimizer."""
    model = TinyLanguageModel()
    optimizer = models.sage(model, backend=backend)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    scheduler = torch.optim.swa_utils.SWALR(optimizer, swa_lr=1e-3, anneal_epochs=2)
    for seed in range(STEPS):
        models.train(model, optimizer, [seed])
        averaged.update_parameters(model)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
