"""What ``test_vote.py`` runs on several processes of ALIAS: by a vote, under DDP, and in ZeRO."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import models
import pytest
import torch
import torch.distributed as dist
from models import TinyLanguageModel, loss_of
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from sage_ext.distributed import MajorityVote
from sage_ext.optimizers import FusedALIAS, FusedALIASAdam, FusedHybrid, FusedSAGE
from sage_ext.reference.alias import ALIAS_SCALARS

FORMS: dict[str, dict[str, Any]] = {
    "descent": {"weight_decay": 0.1},
    "lower_bound": {"gap": "lower_bound"},
    "sum": {"smoothness": "sum", "maximize": True, "update_every": 2},
    "sum_lower_bound": {"smoothness": "sum", "gap": "lower_bound"},
    "seldom": {"update_every": 2},
    "warm": {"warmup_steps": 2, "lr": 3e-3},
    "maximize": {"maximize": True},
    "reference": {"backend": "reference"},
}
SETTINGS: dict[str, Any] = {"eta0": 1.0, "d0": 1e-4, "max_step": 100.0}


def cases(size: int) -> dict[str, Callable[[int, int], None]]:
    found: dict[str, Callable[[int, int], None]] = {
        f"alias-{name}": partial(as_said, changes)
        for name, changes in FORMS.items()
        if size == 2 or name == "descent"
    }
    if size == 2:
        found |= {
            "alias-groups": groups,
            "alias-skipped": skipped,
            "alias-resumed": resumed,
            "alias-refused": refused,
            "alias-inert": inert,
            "loss-mean": mean_of_losses,
            "loss-missing": missing_loss,
            "loss-skipped": skipped_loss,
            "loss-warned": warned,
            "zero": zero_redundancy,
        }
    return found


def voting(
    model: nn.Module, make: Callable[..., FusedALIAS] | None = None, **changes: Any
) -> tuple[DistributedDataParallel, FusedALIAS]:
    ddp = DistributedDataParallel(model, bucket_cap_mb=200 / 2**20)
    vote = MajorityVote().register(ddp)
    return ddp, (make or FusedALIAS)(ddp.parameters(), vote=vote, **{**SETTINGS, **changes})


class Oracle:
    """The formulas of ALIAS by a vote, in float64, with every process's gradients at hand."""

    def __init__(self, model: nn.Module, changes: dict[str, Any]) -> None:
        self.settings = {"weight_decay": 0.0, "update_every": 1, "warmup_steps": 0, "maximize": False}
        self.settings.update({**SETTINGS, **changes})
        self.params = [p.detach().double().clone() for p in model.parameters()]
        self.signs = [torch.zeros_like(p) for p in self.params]
        self.eta, self.d, self.gap = self.settings["eta0"], self.settings["d0"], 0.0
        self.gamma = self.displacement = self.largest = self.smallest = 0.0
        self.steps = 0

    def step(self, everybody: list[list[Tensor]], losses: list[float]) -> None:
        s = self.settings
        if s["maximize"]:
            everybody = [[-g for g in own] for own in everybody]
        elements = torch.cat([g.double().flatten() for own in everybody for g in own])
        adds_up = s.get("smoothness") == "sum"
        if adds_up:
            largest, smallest = elements.abs().sum().item() / len(everybody), 0.0
        else:
            largest, smallest = elements.max().item(), elements.min().item()
        descends = s.get("gap", "descent") == "descent"
        self.steps += 1
        if self.steps == 1 and not descends:
            self.d = sum(losses) / len(losses)
        if self.steps >= 2 and (self.steps - 2) % s["update_every"] == 0:
            change = max(abs(largest - self.smallest), abs(self.largest - smallest))
            if adds_up:
                change = largest + self.largest
            self.eta += change / self.displacement
            if descends:
                inner = [
                    sum((g.double() * v).sum().item() for g, v in zip(own, self.signs, strict=True))
                    for own in everybody
                ]
                self.gap += self.gamma * sum(inner) / len(inner)
                self.d = max(self.d, self.gap)
        if (self.steps - 1) % s["update_every"] == 0:  # before a step that brings eta up to date
            self.largest, self.smallest = largest, smallest
        size = s["lr"] if self.steps <= s["warmup_steps"] else math.sqrt(self.d / self.eta)
        self.gamma = min(size, s["max_step"])
        self.signs = [
            torch.sign(sum(torch.sign(g).double() for g in each)) for each in zip(*everybody, strict=True)
        ]
        self.displacement = 0.0
        for param, sign in zip(self.params, self.signs, strict=True):
            new = (param * (1 - self.gamma * s["weight_decay"]) - self.gamma * sign).float().double()
            moved = (new - param).abs()
            far = moved.max().item()
            self.displacement = (
                max(self.displacement, far) if adds_up else self.displacement + moved.sum().item()
            )
            param.copy_(new)

    def compare(self, scalars: Tensor) -> None:
        got = dict(zip(ALIAS_SCALARS, scalars.tolist(), strict=True))
        expected = {
            "step": self.steps,
            "eta": self.eta,
            "d": self.d,
            "step_size": self.gamma,
            "grad_max": self.largest,
            "grad_min": self.smallest,
            "displacement": self.displacement,
        }
        for name, value in expected.items():
            assert math.isclose(got[name], value, rel_tol=2e-5, abs_tol=1e-12), (name, got[name], value)


def gathered(own: list[Tensor], size: int) -> list[list[Tensor]]:
    everybody: list[Any] = [None] * size
    dist.all_gather_object(everybody, own)
    return everybody


def local_grads(model: nn.Module, seed: int) -> tuple[list[Tensor], float]:
    alone = copy.deepcopy(model)
    alone.zero_grad()
    loss = loss_of(alone, seed)
    loss.backward()
    return [param.grad for param in alone.parameters()], loss.item()


def assert_replicas(*values: Tensor) -> None:
    own = [value.detach().contiguous().numpy().tobytes() for value in values]
    assert all(other == own for other in gathered(own, dist.get_world_size()))


def as_said(changes: dict[str, Any], rank: int, size: int) -> None:
    """Every scalar and every step, and the same bits on all processes."""
    model = TinyLanguageModel()
    oracle = Oracle(model, changes)
    ddp, optimizer = voting(model, **changes)
    sizes = set()
    for step in range(6):
        own, loss = local_grads(model, 10 * step + rank)
        losses = [each[0].item() for each in gathered([torch.tensor(loss)], size)]
        oracle.step(gathered(own, size), losses)
        optimizer.zero_grad()
        loss_of(ddp, 10 * step + rank).backward()
        optimizer.step(loss=loss)
        scalars = optimizer.param_groups[0]["scalars"]
        oracle.compare(scalars)
        for got, expected in zip(model.parameters(), oracle.params, strict=True):
            torch.testing.assert_close(got.detach().double(), expected, rtol=1e-5, atol=1e-6)
        # Later gradients are those of both at the same place.
        with torch.no_grad():
            for got, expected in zip(oracle.params, model.parameters(), strict=True):
                got.copy_(expected)
        assert_replicas(scalars, *model.parameters())
        sizes.add(optimizer.step_size())
    assert len(sizes) > 2, sizes
    assert oracle.d > 2 * SETTINGS["d0"]


def groups(rank: int, size: int) -> None:
    """Each group has scalars of its own, and one message a step carries those of all."""
    import vote_cases

    model = TinyLanguageModel()
    halves = [list(model.parameters())[:3], list(model.parameters())[3:]]
    oracles = [Oracle(nn.ParameterList(half), {}) for half in halves]

    def build(_: Any, **changes: Any) -> FusedALIAS:
        return FusedALIAS([{"params": half} for half in halves], **changes)

    ddp, optimizer = voting(model, build)
    for step in range(4):
        everybody = gathered(local_grads(model, 10 * step + rank)[0], size)
        oracles[0].step([own[:3] for own in everybody], [])
        oracles[1].step([own[3:] for own in everybody], [])
        optimizer.zero_grad()
        loss_of(ddp, 10 * step + rank).backward()
        with vote_cases.counted() as sent:
            optimizer.step()
        assert sent == [("gather", (2 * 4 + 1) * 8 * (size - 1))], "four numbers a group, and a flag"
        for group, half, oracle in zip(optimizer.param_groups, halves, oracles, strict=True):
            oracle.compare(group["scalars"])
            for place, param in zip(oracle.params, half, strict=True):
                place.copy_(param.detach())
    assert optimizer.step_size(0) != optimizer.step_size(1)


def skipped(rank: int, size: int) -> None:
    """An overflow of one process skips the step of all, and nothing changes; a scale makes no difference."""
    runs = []
    for scale in (1.0, 64.0):
        torch.manual_seed(1)
        model = TinyLanguageModel()
        ddp, optimizer = voting(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000, backoff_factor=0.5)
        for step in range(4):
            optimizer.zero_grad()
            loss = scaler.scale(loss_of(ddp, 10 * step + rank))
            if step == 2 and scale > 1:
                before = models.snapshot(optimizer)
                heal = model.up.weight.register_hook(lambda g: g * (torch.inf if rank == 1 else 1.0))
                loss.backward()
                scaler.step(optimizer)
                scaler.update()
                heal.remove()
                for a, b in zip(models.snapshot(optimizer), before, strict=True):
                    assert torch.equal(a, b)
                assert scaler.get_scale() == scale / 2
                optimizer.zero_grad()
                loss = scaler.scale(loss_of(ddp, 10 * step + rank))
            loss.backward()
            scaler.step(optimizer)
            scaler.update()
        runs.append(models.snapshot(optimizer))
    grad_factor = ALIAS_SCALARS.index("grad_factor")
    for values in runs:
        values[0][grad_factor] = 0.0
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def resumed(rank: int, size: int) -> None:
    """All of its state is in the optimizer, and the same on all processes: one file goes on bit for bit."""

    def train(ddp: nn.Module, optimizer: FusedALIAS, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            loss_of(ddp, 10 * step + rank).backward()
            optimizer.step()

    model = TinyLanguageModel()
    ddp, optimizer = voting(model)
    train(ddp, optimizer, range(3))
    files: list[Any] = [copy.deepcopy((model.state_dict(), optimizer.state_dict()))]
    dist.broadcast_object_list(files, 0)
    train(ddp, optimizer, range(3, 6))

    other = TinyLanguageModel()
    other.load_state_dict(files[0][0])
    again, second = voting(other)
    second.load_state_dict(files[0][1])
    train(again, second, range(3, 6))
    for a, b in zip(models.snapshot(second), models.snapshot(optimizer), strict=True):
        assert torch.equal(a, b)


def refused(rank: int, size: int) -> None:
    model = TinyLanguageModel()
    ddp = DistributedDataParallel(model)
    with pytest.raises(RuntimeError, match=r"call vote.register\(ddp\) first"):
        FusedALIAS(model.parameters(), vote=MajorityVote())
    vote = MajorityVote().register(ddp)
    for arguments, message in (
        (
            {"memory_efficient": False},
            "^memory_efficient: got False in param group 0, expected True with vote",
        ),
        ({"same_batch": True}, "^same_batch: got True in param group 0, expected False with vote"),
        ({"process_group": "world"}, "^process_group: got 'world', expected None or a process group"),
    ):
        with pytest.raises(ValueError, match=message):
            FusedALIAS(model.parameters(), vote=vote, **arguments)
    with pytest.raises(ValueError, match="parameter 1 of the optimizer is not one of the model"):
        FusedALIAS([model.up.weight, nn.Parameter(torch.ones(2))], vote=vote)
    optimizer = FusedALIAS(model.parameters(), vote=vote, **SETTINGS)
    loss_of(ddp, rank).backward()
    optimizer.step()
    before = models.snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"no gradient has been voted on.*outside of no_sync"):
        optimizer.step()
    loss_of(ddp, rank).backward()
    optimizer.param_groups[0]["weight_decay"] = -1.0
    with pytest.raises(ValueError, match=r"weight_decay: got -1\.0"):
        optimizer.step()
    for a, b in zip(models.snapshot(optimizer), before, strict=True):
        assert torch.equal(a, b)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with pytest.raises(ValueError, match="parameter 0 of the optimizer is not one of the model"):
        optimizer.step()
    second = pickle.loads(pickle.dumps(optimizer))
    with pytest.raises(RuntimeError, match=r"copied or unpickled.*set optimizer.vote to"):
        second.step()
    other = DistributedDataParallel(TinyLanguageModel())
    momentum = MajorityVote(0.9).register(other)
    with pytest.raises(ValueError, match=r"vote: got 'MajorityVote\(momentum=0.9\)', expected one without"):
        FusedALIAS(other.parameters(), vote=momentum)


def inert(rank: int, size: int) -> None:
    """torch's checkpoint helpers have the state made by a step without a backward(): it does not count."""
    curves = []
    for asks in (False, True):
        torch.manual_seed(2)
        model = TinyLanguageModel()
        ddp, optimizer = voting(model)
        if asks:
            assert get_optimizer_state_dict(ddp, optimizer)["state"]
        for step in range(2):
            optimizer.zero_grad()
            loss_of(ddp, 10 * step + rank).backward()
            optimizer.step()
        curves.append(models.snapshot(optimizer))
    for a, b in zip(*curves, strict=True):
        assert torch.equal(a, b)


def mean_of_losses(rank: int, size: int) -> None:
    """Each process hands over the loss of its own batch; all begin with the mean, alone or in a hybrid."""
    group = dist.group.WORLD
    for build in (
        partial(models.alias_lower_bound, process_group=group),
        lambda m: FusedHybrid(m, "alias", alias={"gap": "lower_bound"}, process_group=group),
    ):
        for kind in (float, torch.tensor):
            model = TinyLanguageModel()
            optimizer = build(model)
            loss_of(model).backward()
            optimizer.step(loss=kind(1.0 + rank))
            scalars = next(g["scalars"] for g in optimizer.param_groups if g["rule"] == "alias")
            assert scalars[ALIAS_SCALARS.index("d")] == 1.0 + (size - 1) / 2
            optimizer.step(loss=7.0 + rank)
            assert_replicas(scalars)
            assert pickle.loads(pickle.dumps(optimizer))._process_group is None


def missing_loss(rank: int, size: int) -> None:
    """A process without a loss raises, and so do the others: nobody waits, and nothing has changed."""
    model = TinyLanguageModel()
    optimizer = models.alias_lower_bound(model, process_group=dist.group.WORLD)
    loss_of(model).backward()
    before = [param.detach().clone() for param in model.parameters()]
    with pytest.raises((ValueError, RuntimeError)) as raised:
        optimizer.step(loss=None if rank == 1 else 2.0)
    assert ("loss: got None" if rank == 1 else "another process of process_group has no loss") in str(
        raised.value
    )
    with pytest.raises(ValueError, match=r"loss: got -0\.5 in param group 0, expected a finite number above"):
        optimizer.step(loss=-2.0 if rank == 1 else 1.0)  # the mean is below the bound
    assert not optimizer.state
    for a, b in zip(model.parameters(), before, strict=True):
        assert torch.equal(a, b)
    optimizer.step(loss=1.0)


def skipped_loss(rank: int, size: int) -> None:
    """A step that all skip sends nothing, whoever has a loss; what was kept goes into the next one's mean."""
    model = TinyLanguageModel()
    optimizer = models.alias_lower_bound(model, process_group=dist.group.WORLD)
    loss_of(model).backward()
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step(loss=2.0 if rank == 0 else None)
    dist.barrier()
    optimizer.found_inf = torch.tensor(0.0)
    with pytest.raises((ValueError, RuntimeError), match="loss: got None" if rank else "another process"):
        optimizer.step()
    optimizer.step(loss=None if rank == 0 else 4.0)
    assert optimizer.param_groups[0]["scalars"][ALIAS_SCALARS.index("d")] == 3.0


def warned(rank: int, size: int) -> None:
    """Where there are several processes and each has its own loss, one warning says what comes of it."""
    model = TinyLanguageModel()
    loss_of(model).backward()
    optimizer = models.alias_lower_bound(model)
    with pytest.warns(UserWarning, match=r"loss of this process alone, one of 2\..*process_group="):
        optimizer.step(loss=1.0 + rank)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(loss=1.0 + rank)
        models.alias(model).step()
        models.alias_lower_bound(model, process_group=dist.group.WORLD).step(loss=1.0)


def zero_redundancy(rank: int, size: int) -> None:
    """ZeRO gives each process some whole parameters: no matter, except where they share scalars."""
    torch.manual_seed(4)
    model = TinyLanguageModel()
    refusal = r"param group 0: rule 'alias' has one step size.*FusedALIAS under DDP.*FSDP2.*FusedALIASAdam"
    with pytest.raises(ValueError, match=refusal):
        ZeroRedundancyOptimizer(model.parameters(), FusedALIAS, max_step=1e-2)
    for optimizer_class in (FusedSAGE, FusedALIASAdam):
        alone = copy.deepcopy(model)
        ddp = DistributedDataParallel(copy.deepcopy(model))
        plain = optimizer_class(alone.parameters(), lr=0.01)
        sharded = ZeroRedundancyOptimizer(ddp.parameters(), optimizer_class, lr=0.01)
        for step in range(2):
            for m, optimizer in ((alone, plain), (ddp, sharded)):
                optimizer.zero_grad()
                loss_of(m, step).backward()
                optimizer.step()
        for a, b in zip(alone.parameters(), ddp.parameters(), strict=True):
            assert torch.equal(a, b)
    FusedALIAS(model.parameters())  # nobody's ZeRO
