"""Sign-SGD with majority vote under DDP, ALIAS on top of it, and DDP's replicas of every optimizer.

Processes are started once for each size, and run all cases of ``vote_cases.py``; each case is a test here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import processes
import pytest
import torch
import torch.distributed as dist
import vote_cases
from torch.nn.parallel import DistributedDataParallel

from sage_ext.distributed import MajorityVote
from sage_ext.optimizers import FusedALIAS

pytestmark = pytest.mark.processes
TIMEOUT = 300
"""Seconds for all cases of a size, on a machine that does much else."""
SIZES = (2, 3)
ALL = [(size, name) for size in SIZES for name in vote_cases.cases(size)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[str | None]]]:
    found = {}
    for size in SIZES:
        folder: Path = tmp_path_factory.mktemp(f"{size}_processes")
        checkpoints: Path = tmp_path_factory.mktemp(f"{size}_checkpoints")
        found[size] = processes.run("vote_cases", size, folder, checkpoints, TIMEOUT)
    return found


@pytest.mark.parametrize(("size", "name"), ALL, ids=[f"{size}-{name}" for size, name in ALL])
def test_case(results: dict[int, dict[str, list[str | None]]], size: int, name: str) -> None:
    outcomes = results[size].get(name, [])
    errors = [error for error in outcomes if error is not None]
    assert not errors, "\n".join(errors)
    assert len(outcomes) == size, f"{size - len(outcomes)} processes were killed before they had finished"


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("gap", ["descent", "lower_bound"])
def test_alias_by_the_vote_of_one_process_is_alias(one_process: None, gap: Any) -> None:
    start = models.TinyLanguageModel()
    settings: dict[str, Any] = {"gap": gap, "eta0": 1.0, "d0": 1e-4, "max_step": 100.0, "weight_decay": 0.1}
    plain = copy.deepcopy(start)
    optimizer = FusedALIAS(plain.parameters(), **settings)
    wrapped = DistributedDataParallel(copy.deepcopy(start))
    voting = FusedALIAS(wrapped.parameters(), vote=MajorityVote().register(wrapped), **settings)
    for step in range(5):
        for model, each in ((plain, optimizer), (wrapped, voting)):
            each.zero_grad()
            loss = models.loss_of(model, step)
            loss.backward()
            each.step(loss=loss.detach())
        for a, b in zip(models.snapshot(voting), models.snapshot(optimizer), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert optimizer.step_size() < 100.0


@pytest.mark.filterwarnings("ignore:parameters without a gradient in the first step")
@pytest.mark.parametrize("as_view", [False, True])
@pytest.mark.parametrize("set_to_none", [False, True])
def test_alias_leaves_out_what_was_not_used(one_process: None, set_to_none: bool, as_view: bool) -> None:
    """As without a vote: a parameter that has no gradient has no say, and zeros have one."""
    start = vote_cases.Branches()
    settings: dict[str, Any] = {"eta0": 1.0, "d0": 1e-4, "max_step": 100.0}
    runs = []
    for votes in (False, True):
        model = copy.deepcopy(start)
        ddp = DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=as_view)
        vote = MajorityVote().register(ddp) if votes else None
        optimizer = FusedALIAS(model.parameters(), vote=vote, **settings)
        for which in (0, 0, 1, 0, 1, 1):
            optimizer.zero_grad(set_to_none=set_to_none)
            x = torch.randn(4, 5, generator=torch.Generator().manual_seed(which)).abs() + 1
            ddp(x, which).exp().sum().backward()  # no gradient of a branch that was used is 0, or below
            optimizer.step()
        runs.append([*model.parameters(), optimizer.param_groups[0]["scalars"]])
        assert optimizer.step_size() < 100.0
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_bytes_of_eight_processes() -> None:
    """Where a bfloat16 all-reduce sends 3.5 bytes a parameter."""
    assert vote_cases.words_at_eight(25 * 2**20 // 4) == 0.4375
    assert vote_cases.words_at_eight(7_000_001) == pytest.approx(0.4375, rel=1e-3)
