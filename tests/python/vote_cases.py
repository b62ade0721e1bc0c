"""What ``test_vote.py`` runs on several processes: majority votes under DDP, ALIAS on top, replicas."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import torch.distributed as dist
import vote_agreement_cases
import vote_alias_cases
from models import TinyLanguageModel, loss_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sage_ext.distributed import MajorityVote
from sage_ext.optimizers import FusedSignSGD
from sage_ext.reference.vote import vote_words

Case = Callable[[int, int], None]
SMALL_BUCKETS = 200 / 2**20
"""Megabytes. DDP's first bucket is large all the same, until it makes others after the first iteration."""


def cases(size: int) -> dict[str, Case]:
    """All cases for ``size`` processes, by name."""
    found: dict[str, Case] = {}
    dtypes = (torch.float32, torch.bfloat16, torch.float16) if size == 2 else (torch.float32,)
    for dtype in dtypes:
        name = str(dtype).split(".")[1]
        found[f"equal-{name}"] = partial(equal, dtype=dtype)
        found[f"momentum-{name}"] = partial(momentum, dtype=dtype)
    found["bytes"] = message_bytes
    if size == 2:
        found |= {
            "equal-views": partial(equal, gradient_as_bucket_view=True),
            "equal-one_bucket": partial(equal, bucket_cap_mb=25),
            "equal-reference": partial(equal, backend="reference"),
            "equal-float64": partial(equal, dtype=torch.float64, backend="reference"),
            "momentum-views": partial(momentum, gradient_as_bucket_view=True),
            "no_sync": no_sync,
            "unused": unused,
            "join": uneven_inputs,
            "not_finite": not_finite,
            "not_finite-momentum": not_finite_momentum,
            "grad_scaler": grad_scaler,
            "resumed": resumed,
            "channels_last": channels_last,
            "refused": refused,
            "error": error_in_the_queue,
            "trains": trains,
        }
        for build in models.BUILDERS:
            found[f"replicas-{build.__name__}"] = partial(replicas, build)
    return found | vote_alias_cases.cases(size) | vote_agreement_cases.cases(size)


def wrapped(
    model: nn.Module, vote: MajorityVote | None = None, **changes: Any
) -> tuple[DistributedDataParallel, MajorityVote]:
    ddp = DistributedDataParallel(model, **{"bucket_cap_mb": SMALL_BUCKETS, **changes})
    return ddp, (vote or MajorityVote()).register(ddp)


def local_grads(model: nn.Module, seed: int) -> list[Tensor]:
    """What this process alone has, without DDP."""
    alone = copy.deepcopy(model)
    alone.zero_grad()
    loss_of(alone, seed).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in alone.parameters()]


def voted(values: Sequence[Tensor]) -> list[Tensor]:
    """sign(all_reduce(sign(x))), by all-reduces of float64."""
    result = []
    for value in values:
        total = torch.sign(value).double()
        dist.all_reduce(total)
        result.append(torch.sign(total).to(value.dtype))
    return result


def assert_same(got: Sequence[Tensor | None], expected: Sequence[Tensor]) -> None:
    for index, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a is not None, index
        assert a.dtype == b.dtype
        assert torch.equal(a, b), f"{index}: {int((a != b).sum())} of {a.numel()} differ"


def grads_of(model: nn.Module) -> list[Tensor | None]:
    return [param.grad for param in model.parameters()]


def equal(
    rank: int, size: int, *, dtype: torch.dtype = torch.float32, backend: str = "auto", **changes: Any
) -> None:
    """Before and after DDP has made other buckets, of many and of few parameters."""
    model = TinyLanguageModel().to(dtype)
    ddp, _ = wrapped(model, MajorityVote(backend=backend), **changes)
    for step in range(3):
        expected = voted(local_grads(model, 10 * step + rank))
        ddp.zero_grad()
        loss_of(ddp, 10 * step + rank).backward()
        assert_same(grads_of(model), expected)
        assert any((grad == 0).any() for grad in expected), "rows of the embedding that nobody has seen"
        with torch.no_grad():
            for param in model.parameters():
                param -= 0.01 * param.grad


@contextmanager
def counted() -> Iterator[list[tuple[str, int]]]:
    """Collects (kind, bytes that this process sends to others) of every message of a vote."""
    sent: list[tuple[str, int]] = []
    exchange = dist.all_to_all_single
    gathers = {
        name: getattr(dist, name)
        for name in ("all_gather_single", "all_gather_into_tensor")
        if hasattr(dist, name)
    }

    def counting_exchange(output: Tensor, tensor: Tensor, *, group: Any) -> Any:
        size = dist.get_world_size(group)
        sent.append(("exchange", tensor.nbytes // size * (size - 1)))
        return exchange(output, tensor, group=group)

    def counting_gather(output: Tensor, tensor: Tensor, *, group: Any, of: Any) -> Any:
        sent.append(("gather", tensor.nbytes * (dist.get_world_size(group) - 1)))
        return of(output, tensor, group=group)

    dist.all_to_all_single = counting_exchange
    for name, gather in gathers.items():
        setattr(dist, name, partial(counting_gather, of=gather))
    try:
        yield sent
    finally:
        dist.all_to_all_single = exchange
        for name, gather in gathers.items():
            setattr(dist, name, gather)


def message_bytes(rank: int, size: int) -> None:
    """Two messages a bucket, of a quarter byte a parameter each, less what stays here."""
    model = nn.Linear(256, 64 * size, bias=False)
    ddp, _ = wrapped(model, bucket_cap_mb=25)
    with counted() as sent:
        ddp(torch.randn(2, 256)).sum().backward()
    kinds = [kind for kind, _ in sent]
    assert kinds == ["exchange", "gather"]
    numel = model.weight.numel()
    assert sum(each for _, each in sent) / numel == 2 * (size - 1) / size * 0.25


def momentum(rank: int, size: int, *, dtype: torch.dtype = torch.float32, **changes: Any) -> None:
    """The signs of each process's own momentum, which is kept by name through other buckets."""
    beta = 0.8
    model = TinyLanguageModel().to(dtype)
    ddp, vote = wrapped(model, MajorityVote(beta), **changes)
    moments = [torch.zeros_like(p, dtype=torch.float32) for p in model.parameters()]
    for step in range(4):
        own = local_grads(model, 10 * step + rank)
        moments = [beta * m + (1 - beta) * g.float() for m, g in zip(moments, own, strict=True)]
        ddp.zero_grad()
        loss_of(ddp, 10 * step + rank).backward()
        assert_same(grads_of(model), [v.to(dtype) for v in voted(moments)])
        kept = vote.state_dict()["exp_avg"]
        names = [name for name, _ in model.named_parameters()]
        assert sorted(kept) == sorted(names)
        assert_same([kept[name] for name in names], moments)
        with torch.no_grad():
            for param in model.parameters():
                param -= 0.01 * param.grad


def no_sync(rank: int, size: int) -> None:
    """What is voted on is the sum over the micro-batches."""
    model = TinyLanguageModel()
    ddp, _ = wrapped(model)
    for step in range(3):
        seeds = [100 * step + 10 * part + rank for part in range(3)]
        alone = copy.deepcopy(model)
        alone.zero_grad()
        for seed in seeds:
            loss_of(alone, seed).backward()
        expected = voted([param.grad for param in alone.parameters()])
        ddp.zero_grad()
        with ddp.no_sync():
            for seed in seeds[:-1]:
                loss_of(ddp, seed).backward()
        loss_of(ddp, seeds[-1]).backward()
        assert_same(grads_of(model), expected)


class Branches(nn.Module):
    """Of three branches a batch takes one; the last is never taken."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(5, 3) for _ in range(3))

    def forward(self, x: Tensor, which: int) -> Tensor:
        return self.branches[which](x)


def unused(rank: int, size: int) -> None:
    """What one process has not used votes for neither side there; what nobody has used gets nothing."""
    model = Branches()
    ddp, _ = wrapped(model, find_unused_parameters=True)
    for step in range(3):
        which = (step + rank) % 2
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(10 * step + rank))
        alone = copy.deepcopy(model)
        alone.zero_grad()
        alone(x, which).square().sum().backward()
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in alone.parameters()]
        expected = voted(own)
        ddp.zero_grad()
        ddp(x, which).square().sum().backward()
        assert_same(grads_of(model)[:4], expected[:4])
        assert grads_of(model)[4:] == [None, None]


def uneven_inputs(rank: int, size: int) -> None:
    """A process that has run out of batches votes for neither side."""
    model = TinyLanguageModel()
    ddp, _ = wrapped(model)
    steps = 2 + rank
    with ddp.join():
        for step in range(steps):
            own = local_grads(model, 10 * step + rank)
            expected = voted(own) if step < 2 else [torch.sign(grad) for grad in own]
            ddp.zero_grad()
            loss_of(ddp, 10 * step + rank).backward()
            assert_same(grads_of(model), expected)


def poisoned(model: nn.Module, rank: int, value: float) -> Callable[[], None]:
    """Let process 1 find ``value`` in one element of a gradient, until what is returned is called."""

    def hook(grad: Tensor) -> Tensor:
        grad = grad.clone()
        if rank == 1:
            grad.view(-1)[7] = value
        return grad

    return model.up.weight.register_hook(hook).remove


def not_finite(rank: int, size: int) -> None:
    """A NaN or an infinity of one process is a NaN of all, there and nowhere else."""
    for value in (float("nan"), float("inf"), float("-inf")):
        model = TinyLanguageModel()
        ddp, _ = wrapped(model)
        expected = voted(local_grads(model, rank))
        poisoned(model, rank, value)
        loss_of(ddp, rank).backward()
        for param, clean in zip(model.parameters(), expected, strict=True):
            assert param.grad is not None
            is_hit = torch.zeros(param.numel(), dtype=torch.bool)
            is_hit[7:8] = param is model.up.weight
            is_hit = is_hit.view(param.shape)
            assert torch.equal(param.grad.isnan(), is_hit)
            assert torch.equal(param.grad[~is_hit], clean[~is_hit])


def not_finite_momentum(rank: int, size: int) -> None:
    """The momentum is what it was where the gradient was not finite, and the next vote is a vote again."""
    model = TinyLanguageModel()
    ddp, vote = wrapped(model, MajorityVote(0.9))
    loss_of(ddp, rank).backward()
    before = vote.state_dict()["exp_avg"]["up.weight"].view(-1)
    heal = poisoned(model, rank, float("inf"))
    ddp.zero_grad()
    loss_of(ddp, 10 + rank).backward()
    assert model.up.weight.grad.view(-1)[7].isnan()
    after = vote.state_dict()["exp_avg"]["up.weight"].view(-1)
    assert (after[7] == before[7]) == (rank == 1)
    assert after.isfinite().all()
    assert not torch.equal(after, before)
    heal()
    ddp.zero_grad()
    loss_of(ddp, 20 + rank).backward()
    assert model.up.weight.grad.isfinite().all()


def grad_scaler(rank: int, size: int) -> None:
    """An overflow of one process makes all of them skip the step; elsewhere scaling changes no sign."""
    model = TinyLanguageModel()
    ddp, _ = wrapped(model)
    optimizer = FusedSignSGD(ddp.named_parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    heal = poisoned(model, rank, float("inf"))
    for is_skipped in (True, False):
        before = [param.detach().clone() for param in model.parameters()]
        optimizer.zero_grad()
        scaler.scale(loss_of(ddp, rank)).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert moved == [not is_skipped] * len(moved)
        heal()


def resumed(rank: int, size: int) -> None:
    """Saved by each process, loaded into other buckets: the run goes on bit for bit."""
    folder = Path(os.environ["CHECKPOINTS"])

    def train(ddp: nn.Module, optimizer: Any, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            loss_of(ddp, 10 * step + rank).backward()
            optimizer.step()

    model = TinyLanguageModel()
    ddp, vote = wrapped(model, MajorityVote(0.9))
    optimizer = FusedSignSGD(ddp.named_parameters(), lr=0.01)
    train(ddp, optimizer, range(3))
    saved = {"vote": vote.state_dict(), "model": model.state_dict()}
    torch.save(saved, folder / f"vote{rank}.pt")
    assert (folder / f"vote{rank}.pt").stat().st_size < 40_000, (
        "of flat buckets no more than the parameters' parts"
    )
    train(ddp, optimizer, range(3, 6))

    loaded = torch.load(folder / f"vote{rank}.pt", weights_only=True)
    other = TinyLanguageModel()
    other.load_state_dict(loaded["model"])
    ddp, vote = wrapped(other, MajorityVote(), bucket_cap_mb=25)
    wrong = {name: value for name, value in loaded["vote"]["exp_avg"].items() if name != "norm.bias"}
    for broken, message in (
        ({**wrong}, "lacks momentum for norm.bias"),
        ({**loaded["vote"]["exp_avg"], "nobody": torch.zeros(1)}, "has momentum for nobody"),
        ({**loaded["vote"]["exp_avg"], "norm.bias": torch.zeros(2)}, r"norm.bias has shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            vote.load_state_dict({**loaded["vote"], "exp_avg": broken})
    assert vote.momentum == 0
    vote.load_state_dict(loaded["vote"])
    optimizer = FusedSignSGD(ddp.named_parameters(), lr=0.01)
    train(ddp, optimizer, range(3, 6))
    assert_same(list(other.parameters()), list(model.parameters()))


def channels_last(rank: int, size: int) -> None:
    """A momentum goes by the gradient's strides in the bucket, and is saved by its shape."""
    model = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
    ddp, vote = wrapped(model, MajorityVote(0.5))
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(rank))
    alone = copy.deepcopy(model)
    moment = torch.zeros_like(alone.weight)
    for _ in range(2):
        alone.zero_grad()
        alone(x).square().sum().backward()
        moment = 0.5 * moment + 0.5 * alone.weight.grad
        ddp.zero_grad()
        ddp(x).square().sum().backward()
        assert_same([model.weight.grad], voted([moment]))
        assert_same([vote.state_dict()["exp_avg"]["weight"]], [moment])


def refused(rank: int, size: int) -> None:
    for arguments, message in (
        ({"momentum": 1.0}, r"^momentum: got 1.0, expected a number in \[0, 1\)"),
        ({"state_dtype": torch.float16}, "^state_dtype: got torch.float16, expected torch.float32 or"),
        ({"backend": "cuda"}, "^backend: got 'cuda'"),
    ):
        with pytest.raises(ValueError, match=message):
            MajorityVote(**arguments)
    with pytest.raises(TypeError, match=r"ddp: got Linear.*wrap the model"):
        MajorityVote().register(nn.Linear(2, 2))
    vote = MajorityVote()
    with pytest.raises(RuntimeError, match=r"call vote.register\(ddp\) first"):
        vote.load_state_dict({"momentum": 0.0, "exp_avg": {}})
    wide = DistributedDataParallel(nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match=r'got torch.float64 as the dtype of weight.*backend="reference"'):
        vote.register(wide)
    _, vote = wrapped(nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="belongs to a model already"):
        vote.register(wide)
    for broken, message in (({}, "lacks 'momentum'"), ({"momentum": 0.5}, "lacks 'exp_avg'")):
        with pytest.raises(ValueError, match=f"^state_dict: {message}, expected what state_dict"):
            vote.load_state_dict(broken)
    taken, _ = wrapped(nn.Linear(2, 2))
    vote = MajorityVote()
    with pytest.raises(
        RuntimeError, match=r"^ddp: the model has a communication hook already.*wrap the model"
    ):
        vote.register(taken)
    late = DistributedDataParallel(TinyLanguageModel())
    loss_of(late, rank).backward()
    vote.register(late)  # after the refusal, and after a backward()
    expected = voted(local_grads(late.module, 7 + rank))
    late.zero_grad()
    loss_of(late, 7 + rank).backward()
    assert_same(grads_of(late.module), expected)
    ddp, _ = wrapped(nn.Embedding(7, 3, sparse=True))
    with pytest.raises(RuntimeError, match=r"weight has a sparse gradient.*sparse=False"):
        ddp(torch.tensor([1, 2])).sum().backward()


def error_in_the_queue(rank: int, size: int) -> None:
    """What goes wrong while messages are under way is raised by backward()."""
    ddp, vote = wrapped(nn.Linear(2, 2))

    class Broken:
        def __getattr__(self, name: str) -> Any:
            if name == "count_votes":
                raise OSError("the line is dead")
            return getattr(functions, name)

    functions, vote._functions = vote._functions, Broken()
    with pytest.raises(Exception, match="the line is dead"):
        ddp(torch.ones(1, 2)).sum().backward()


def trains(rank: int, size: int) -> None:
    """Sign-SGD by votes learns, and replicas stay what they are to each other: the same bits."""
    for vote in (MajorityVote(), MajorityVote(0.9)):
        torch.manual_seed(3)
        model = TinyLanguageModel()
        ddp, _ = wrapped(model, vote)
        optimizer = FusedSignSGD(ddp.named_parameters(), lr=0.03)
        losses = []
        for step in range(12):
            optimizer.zero_grad()
            loss = loss_of(ddp, 10 * (step % 3) + rank)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0], losses
        assert_replicas(model)


def assert_replicas(model: nn.Module, *others: Tensor) -> None:
    """Every process has the same bits."""
    held = [*(param.detach() for param in model.parameters()), *others]
    own = [value.contiguous().numpy().tobytes() for value in held]
    everybody: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, own)
    assert all(other == own for other in everybody)


def replicas(build: Callable[..., Any], rank: int, size: int) -> None:
    """Under DDP with its own all-reduce, and batches of their own: parameters, states and scalars."""
    torch.manual_seed(5)
    model = TinyLanguageModel()
    ddp = DistributedDataParallel(model)
    takes_group = build.__name__ in ("alias_lower_bound",)
    optimizer = build(model, **({"process_group": ddp.process_group} if takes_group else {}))
    start = [param.detach().clone() for param in model.parameters()]
    for step in range(3):
        optimizer.zero_grad()
        loss = loss_of(ddp, 10 * step + rank)
        loss.backward()
        models.step(optimizer, loss.detach())
    assert any(not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))
    assert_replicas(model, *models.snapshot(optimizer))


def words_at_eight(numel: int) -> float:
    """Return how many bytes a parameter one of eight processes sends."""
    voters = 8
    piece = 2 * vote_words(numel, voters) * 4
    return 2 * (voters - 1) * piece / numel
