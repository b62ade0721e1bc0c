"""What ``test_vote.py`` runs on several processes of steps that ALIAS cannot take, and of a GradScaler."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
import torch.distributed as dist
from models import TinyLanguageModel, loss_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from vote_alias_cases import SETTINGS, assert_replicas, voting

from sage_ext.distributed import MajorityVote
from sage_ext.optimizers import FusedALIAS, FusedHybrid
from sage_ext.reference.alias import ALIAS_SCALARS

ELSEWHERE = "another process"


def cases(size: int) -> dict[str, Callable[[int, int], None]]:
    if size != 2:
        return {}
    return {
        "alias-unscaled": unscaled,
        "alias-unscaled_by_another": unscaled_by_another,
        "alias-join": uneven_inputs,
        "alias-error": error_of_one_process,
        "alias-error-loss": error_before_the_first_loss,
        "alias-copied": copied,
        "alias-not_voted": not_voted,
        "alias-momentum": momentum_later,
        "alias-no_vote": no_vote,
        "loss-error": error_beside_a_loss,
    }


def train(ddp: nn.Module, optimizer: Any, rank: int, steps: int, scaler: Any = None, **how: bool) -> None:
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    for step in range(steps):
        optimizer.zero_grad()
        scaler.scale(loss_of(ddp, 10 * step + rank)).backward()
        if how.get("unscale"):
            scaler.unscale_(optimizer)
        if how.get("clip"):
            nn.utils.clip_grad_norm_(ddp.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()


def result(optimizer: FusedALIAS) -> list[Tensor]:
    """Parameters and scalars, but for what the gradients are multiplied by."""
    scalars = optimizer.param_groups[0]["scalars"].clone()
    scalars[ALIAS_SCALARS.index("grad_factor")] = 1.0
    return [*(param.detach() for param in optimizer.param_groups[0]["params"]), scalars]


class Wrapper:
    """Hides from a GradScaler that the optimizer divides."""

    def __init__(self, inner: FusedALIAS) -> None:
        self.param_groups, self.step, self.zero_grad = inner.param_groups, inner.step, inner.zero_grad


def unscaled(rank: int, size: int) -> None:
    """The scale of a GradScaler makes no difference, whoever divides by it, and neither does clipping."""
    runs = []
    for amp_scaling, unscale, clip, scale in (
        (True, False, False, None),
        (True, False, True, None),
        (True, False, False, 1024.0),
        (True, True, False, 1024.0),
        (True, True, True, 4.0),
        (False, True, True, 3.0),
        (False, False, False, 1024.0),
    ):
        for wrap in (False, True) if amp_scaling else (False,):
            torch.manual_seed(1)
            ddp, optimizer = voting(TinyLanguageModel())
            optimizer.amp_scaling = amp_scaling
            scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
            train(ddp, Wrapper(optimizer) if wrap else optimizer, rank, 3, scaler, unscale=unscale, clip=clip)
            runs.append(result(optimizer))
            assert optimizer.step_size() < SETTINGS["max_step"]
    for run in runs[1:]:
        for a, b in zip(run, runs[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def unscaled_by_another(rank: int, size: int) -> None:
    """Where no GradScaler calls the step, the votes tell by what they were divided."""
    runs = []
    for scale in (1.0, 64.0):
        torch.manual_seed(1)
        ddp, optimizer = voting(TinyLanguageModel())
        for step in range(3):
            optimizer.zero_grad()
            (scale * loss_of(ddp, 10 * step + rank)).backward()
            for param in ddp.parameters():
                param.grad /= scale
            optimizer.step()
        runs.append(result(optimizer))
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def uneven_inputs(rank: int, size: int) -> None:
    """Where one process may leave before the others, all raise, and nobody waits."""
    ddp, optimizer = voting(TinyLanguageModel())
    with pytest.raises(RuntimeError, match=r"ddp\.join\(\).*throw_on_early_termination=True"), ddp.join():
        train(ddp, optimizer, rank, 1 + rank)
    ddp, optimizer = voting(TinyLanguageModel())
    joining = ddp.join(throw_on_early_termination=True)
    with pytest.raises(RuntimeError, match="exhausted"), joining:
        train(ddp, optimizer, rank, 2 + rank)
    assert optimizer.param_groups[0]["scalars"][ALIAS_SCALARS.index("step")] == 2


def error_of_one_process(rank: int, size: int) -> None:
    """All raise, nothing has changed anywhere, and the same step goes on when what was wrong is mended."""
    runs = []
    for breaks in (False, True):
        torch.manual_seed(1)
        ddp, optimizer = voting(TinyLanguageModel())
        for step in range(3):
            optimizer.zero_grad()
            loss_of(ddp, 10 * step + rank).backward()
            before = models.snapshot(optimizer)
            for key, value in (("max_step", -1.0), ("memory_efficient", False)) if breaks else ():
                group = optimizer.param_groups[0]
                right = group[key]
                group[key] = value if rank == 1 else right
                with pytest.raises((ValueError, RuntimeError), match=key if rank == 1 else ELSEWHERE):
                    optimizer.step()
                group[key] = right
                for a, b in zip(models.snapshot(optimizer), before, strict=True):
                    assert torch.equal(a, b)
            optimizer.step()
        runs.append(result(optimizer))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def error_before_the_first_loss(rank: int, size: int) -> None:
    """The others wait for a loss then, and not for what was seen."""
    ddp, optimizer = voting(TinyLanguageModel(), gap="lower_bound")
    loss_of(ddp, rank).backward()
    for key, value in (("max_step", -1.0), ("gap", "none")):
        right = optimizer.param_groups[0][key]
        optimizer.param_groups[0][key] = value if rank == 1 else right
        with pytest.raises((ValueError, RuntimeError), match=key if rank == 1 else ELSEWHERE):
            optimizer.step(loss=2.0 + rank)
        optimizer.param_groups[0][key] = right
    assert not optimizer.state
    optimizer.step(loss=2.0 + rank)
    assert optimizer.param_groups[0]["scalars"][ALIAS_SCALARS.index("d")] == 2.5


def error_beside_a_loss(rank: int, size: int) -> None:
    """Before the losses are averaged or behind that, without a vote, alone and in a hybrid."""
    world = dist.group.WORLD
    for build in (
        lambda m: FusedALIAS(m.parameters(), gap="lower_bound", process_group=world),
        lambda m: FusedHybrid(m, "alias", alias={"gap": "lower_bound"}, process_group=world),
    ):
        model = TinyLanguageModel()
        optimizer = build(model)
        alias = next(group for group in optimizer.param_groups if group["rule"] == "alias")
        before = [param.detach().clone() for param in model.parameters()]

        def closure(model: nn.Module = model) -> Tensor:
            loss_of(model).backward()
            return torch.tensor(1.0 + rank)

        def spoiled(
            model: nn.Module = model, params: list[Tensor] = optimizer.param_groups[-1]["params"]
        ) -> Tensor:
            loss = closure(model)
            if rank == 1:
                params[-1].grad = params[-1].grad.to_sparse()  # which kernels refuse, behind the loss
            return loss

        for step, max_step in ((closure, -1.0), (spoiled, 1e-3)):
            model.zero_grad()
            alias["max_step"] = max_step if rank == 1 else 1e-3
            with pytest.raises((ValueError, RuntimeError)) as raised:
                optimizer.step(step)
            assert (ELSEWHERE in str(raised.value)) == (rank != 1), raised.value
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
        model.zero_grad()
        optimizer.step(closure)
        assert alias["scalars"][ALIAS_SCALARS.index("d")] == 1.5


def copied(rank: int, size: int) -> None:
    """Both cures: the vote that the model has, or a new one of a model that was wrapped anew."""
    ddp, optimizer = voting(TinyLanguageModel())
    train(ddp, optimizer, rank, 1)
    refusal = r"copied or unpickled.*set optimizer.vote to the vote that the model has.*wrapped anew"
    second = copy.copy(optimizer)
    model, third = pickle.loads(pickle.dumps((ddp.module, optimizer)))
    with pytest.raises(RuntimeError, match=refusal):
        second.step()
    second.vote = optimizer.vote
    train(ddp, second, rank, 1)
    again = DistributedDataParallel(model)
    third.vote = MajorityVote().register(again)
    train(again, third, rank, 1)
    for a, b in zip(result(second), result(third), strict=True):
        assert torch.equal(a, b)


def not_voted(rank: int, size: int) -> None:
    """What DDP does not reduce is not voted on: what it ignores, and what was frozen."""
    model = TinyLanguageModel()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["norm.bias"])
    ddp = DistributedDataParallel(model)
    vote = MajorityVote().register(ddp)
    with pytest.raises(ValueError, match=r"is norm\.bias, which DDP has been told to ignore.*without it"):
        FusedALIAS(model.parameters(), vote=vote)
    voted = [param for name, param in model.named_parameters() if name != "norm.bias"]
    optimizer = FusedALIAS(voted, vote=vote, **SETTINGS)
    train(ddp, optimizer, rank, 2)
    assert_replicas(*result(optimizer))
    for is_late in (False, True):
        model = TinyLanguageModel()
        model.norm.bias.requires_grad_(False)
        ddp = DistributedDataParallel(model)
        model.norm.bias.requires_grad_(is_late)
        optimizer = FusedALIAS(model.parameters(), vote=MajorityVote().register(ddp), **SETTINGS)
        model.norm.bias.requires_grad_(True)
        with pytest.raises(ValueError, match=r"is norm\.bias, which was frozen.*wrap the model in a new"):
            train(ddp, optimizer, rank, 1)
        again = DistributedDataParallel(model)
        optimizer.vote = MajorityVote().register(again)
        train(again, optimizer, rank, 2)
        assert_replicas(*result(optimizer))


def momentum_later(rank: int, size: int) -> None:
    ddp, optimizer = voting(TinyLanguageModel())
    vote = optimizer.vote
    assert vote is not None
    with pytest.raises(ValueError, match=r"^momentum: got 0\.9 in state_dict, expected 0 where FusedALIAS"):
        vote.load_state_dict({"momentum": 0.9, "exp_avg": {}})
    vote.load_state_dict({"momentum": 0.0, "exp_avg": {}})
    vote.momentum = 0.9
    with pytest.raises(ValueError, match=r"MajorityVote\(momentum=0\.9\)"):
        train(ddp, optimizer, rank, 1)


def no_vote(rank: int, size: int) -> None:
    ddp, optimizer = voting(TinyLanguageModel())
    vote: Any
    for vote in (None, True):
        with pytest.raises(
            TypeError, match=rf"^vote: got {vote}, expected a sage_ext\.distributed\.Majority"
        ):
            optimizer.vote = vote
    with pytest.raises(TypeError, match=r"^vote: got True"):
        FusedALIAS(ddp.parameters(), vote=vote)
    train(ddp, optimizer, rank, 1)  # as it was
