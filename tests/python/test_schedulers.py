"""Every learning rate scheduler of torch drives these optimizers as it drives torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import pytest
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
