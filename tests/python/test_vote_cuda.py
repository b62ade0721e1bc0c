"""The majority vote on a GPU: enqueued on a stream of its own, over NCCL, here by a single process."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from models import TinyLanguageModel, loss_of
from torch.nn.parallel import DistributedDataParallel

from sage_ext.distributed import MajorityVote
from sage_ext.optimizers import FusedALIAS

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def one_process(tmp_path: Path) -> Iterator[None]:
    with torch.device("cuda"):
        dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_signs(momentum: float, dtype: torch.dtype) -> None:
    model = TinyLanguageModel().to(dtype)
    ddp = DistributedDataParallel(model, bucket_cap_mb=200 / 2**20)
    MajorityVote(momentum).register(ddp)
    moments = [torch.zeros_like(param, dtype=torch.float32) for param in model.parameters()]
    for step in range(4):
        alone = copy.deepcopy(model)
        alone.zero_grad()
        loss_of(alone, step).backward()
        for moment, param in zip(moments, alone.parameters(), strict=True):
            moment.copy_(momentum * moment + (1 - momentum) * param.grad.float())
        ddp.zero_grad()
        loss_of(ddp, step).backward()
        for param, moment in zip(model.parameters(), moments, strict=True):
            assert torch.equal(param.grad, torch.sign(moment).to(dtype))


def test_alias_by_the_vote_of_one_process_is_alias() -> None:
    plain = TinyLanguageModel()
    settings = {"eta0": 1.0, "d0": 1e-4, "max_step": 100.0}
    optimizer = FusedALIAS(plain.parameters(), **settings)
    ddp = DistributedDataParallel(copy.deepcopy(plain))
    voting = FusedALIAS(ddp.parameters(), vote=MajorityVote().register(ddp), **settings)
    for step in range(4):
        for model, each in ((plain, optimizer), (ddp, voting)):
            each.zero_grad()
            loss_of(model, step).backward()
            each.step()
        ours, theirs = (each.param_groups[0]["scalars"] for each in (voting, optimizer))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
