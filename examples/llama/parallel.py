"""Several processes that train one model, as ``--parallel`` says; ``Alone`` is what one process does instead.

torchrun starts the processes. Each of them has its part of every batch, so that together they see what one
process would see, and the first one alone writes files and speaks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from . import optim, traffic, vote
from .errors import UsageError
from .optim import Choice

KINDS = ("ddp", "fsdp", "vote")
NOT_SHARDED = ("adafactor",)
COMMAND = "torchrun --nproc-per-node 2 examples/train_llama.py --parallel"
Value = TypeVar("Value")


class Alone:
    """One process, which has everything and need not agree with anybody."""

    kind, rank, size = "none", 0, 1
    is_first = True

    def check(self, settings: Any, given: dict[str, Any]) -> None:
        """Raise UsageError where the settings do not go with these processes."""

    def device(self, name: str) -> str:
        """The device of this process, of those that ``name`` means."""
        return name

    def agree(self, error: UsageError | None = None) -> None:
        """Raise UsageError on all processes if any has one."""
        if error:
            raise error

    def in_turn(self, make: Callable[[], Value]) -> Value:
        """What ``make`` returns, which the first process has done when the others begin."""
        return make()

    def wrap(self, model: nn.Module, settings: Any) -> nn.Module:
        """What is called for the forward pass. The model itself keeps its names, and gets its optimizer after
        this."""
        return model

    def build(self, choice: Choice, model: nn.Module, backend: str) -> Optimizer:
        """The optimizer of a model that ``wrap`` has seen."""
        return optim.build(choice, model, backend=backend)

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """The rows of a batch that are this process's to train on."""
        return batch

    def gathering(self, runner: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a backward pass: gradients are exchanged in the last one of a step alone."""
        return contextlib.nullcontext()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean of each number over all processes."""
        return values

    def everybody(self, value: Value) -> list[Value]:
        """What each process has, in their order."""
        return [value]

    def sent(self) -> int | None:
        """Bytes that this process has sent to others so far; None where nobody counts them."""
        return None

    def whole(self, state: Any) -> Any:
        """A state dict as one process would have it."""
        return state

    def votes(self) -> list[Any]:
        """What each process needs to vote as it has; empty where it needs nothing."""
        return []

    def load(self, model: nn.Module, optimizer: Optimizer, state: dict[str, Any], *, ours: bool) -> None:
        """Put the state of ``Trainer.save`` into model and optimizer."""
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    def close(self) -> None:
        """Leave the others."""


class Several(Alone):
    """This process among those that torchrun has started."""

    def __init__(self, kind: str, device: str) -> None:
        import torch.distributed as dist

        self.kind, self._dist = kind, dist
        self._ballot: vote.Ballot | None = None
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.is_first = self.rank == 0
        self.is_cuda = device.startswith("cuda")
        if self.is_cuda and (local := int(os.environ["LOCAL_RANK"])) < torch.cuda.device_count():
            torch.cuda.set_device(local)
        self._began_it = not dist.is_initialized()
        if self._began_it:
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.is_cuda else "gloo")

    def check(self, settings: Any, given: dict[str, Any]) -> None:
        where = f"--parallel {self.kind}"
        if settings.batch_size % self.size:
            raise UsageError(
                f"--batch-size {settings.batch_size}: {self.size} processes cannot have equal parts of it; "
                f"use a multiple of {self.size}, or another --nproc-per-node"
            )
        if self.kind == "vote":
            if given.get("clip"):
                raise UsageError(
                    f"{where} --clip: a sign has no norm that could be clipped; leave --clip out"
                )
            vote.check(optim.parse(settings.optimizer))
        elif self.kind == "fsdp" and settings.optimizer.split(":")[0] in NOT_SHARDED:
            raise UsageError(
                f"{where} --optimizer {settings.optimizer}: torch's Adafactor cannot take the pieces that "
                "FSDP makes of a matrix; use --parallel ddp, or another optimizer"
            )

    def device(self, name: str) -> str:
        if not name.startswith("cuda"):
            return name
        if name != "cuda":
            raise UsageError(
                f"--device {name}: each process takes a GPU of its own; use --device cuda, and "
                "CUDA_VISIBLE_DEVICES to choose some"
            )
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise UsageError(
                f"--device cuda: there are {there} GPUs for {os.environ['LOCAL_WORLD_SIZE']} processes; use "
                f"--nproc-per-node {there}, or --device cpu"
            )
        return f"cuda:{local}"

    def agree(self, error: UsageError | None = None) -> None:
        found = self.everybody(str(error) if error else None)
        for rank, message in enumerate(found):
            if message is not None:
                others = f" (process {rank})" if found.count(message) < self.size and rank else ""
                raise UsageError(message + others)

    def in_turn(self, make: Callable[[], Value]) -> Value:
        for first in (True, False):
            error = None
            if self.is_first is first:
                try:
                    value = make()
                except UsageError as raised:
                    error = raised
            self.agree(error)
        return value

    def wrap(self, model: nn.Module, settings: Any) -> nn.Module:
        if self.kind == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh("cuda" if self.is_cuda else "cpu", (self.size,))
            for layer in model.model.layers:
                fully_shard(layer, mesh=mesh)
            return fully_shard(model, mesh=mesh)
        wrapped = nn.parallel.DistributedDataParallel(model)
        if self.kind == "vote":
            self._ballot = vote.Ballot(wrapped, optim.parse(settings.optimizer))
        return wrapped

    def build(self, choice: Choice, model: nn.Module, backend: str) -> Optimizer:
        if self._ballot is None:
            return super().build(choice, model, backend)
        optimizer = super().build(self._ballot.of_stepper(choice), model, backend)
        self._ballot.tell(optimizer)
        return optimizer

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.chunk(self.size)[self.rank]

    @contextlib.contextmanager
    def gathering(self, runner: Any, last: bool) -> Iterator[None]:
        if self.kind == "fsdp":
            runner.set_requires_gradient_sync(last)
            yield
            return
        with contextlib.nullcontext() if last else runner.no_sync():
            yield

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        self._dist.all_reduce(values)
        return values / self.size

    def everybody(self, value: Value) -> list[Value]:
        found: list[Any] = [None] * self.size
        self._dist.all_gather_object(found, value)
        return found

    def sent(self) -> int | None:
        return None if self.is_cuda else traffic.sent(int(os.environ["MASTER_PORT"]))

    def whole(self, state: Any) -> Any:
        """All processes come to this; what the first one has afterwards is of one process, on the CPU."""
        if isinstance(state, dict):
            return {key: self.whole(value) for key, value in state.items()}
        if isinstance(state, list):
            return [self.whole(value) for value in state]
        if not hasattr(state, "full_tensor"):
            return state
        value = state.full_tensor()
        return value.cpu() if self.is_first else None  # the others need not keep it

    def votes(self) -> list[Any]:
        if self._ballot is None or not self._ballot.has_state:
            return []
        return self.everybody(self._ballot.state_dict())

    def load(self, model: nn.Module, optimizer: Optimizer, state: dict[str, Any], *, ours: bool) -> None:
        if self._ballot is not None and (votes := state["votes"]):
            vote.check_voters(votes, self.size)
            self._ballot.load_state_dict(votes[self.rank])
        held = model.state_dict()
        model.load_state_dict({name: _cut(value, held[name]) for name, value in state["model"].items()})
        saved = state["optimizer"]
        if not ours:  # torch.optim takes pieces only for pieces; this library's takes what there is
            params = [param for group in optimizer.param_groups for param in group["params"]]
            places = [place for group in saved["param_groups"] for place in group["params"]]
            owners = dict(zip(places, params, strict=True))
            states = {
                place: {key: _cut(value, owners[place]) for key, value in own.items()}
                for place, own in saved["state"].items()
            }
            saved = {**saved, "state": states}
        optimizer.load_state_dict(saved)

    def close(self) -> None:
        if self._began_it:
            self._dist.destroy_process_group()


def started(given: dict[str, Any]) -> Alone:
    """The processes that there are, which is to be called once.

    Raises:
        UsageError: ``--parallel`` without torchrun, or the other way round.
    """
    count = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 0
    kind = given.get("parallel", "none")
    if kind == "none":
        if count > 1:
            raise UsageError(
                f"--parallel: torchrun has started {count} processes; say how they train, with --parallel "
                f"{', '.join(KINDS)}, or start one process with python"
            )
        return Alone()
    if "compare" in given or given["mode"] == "demo":
        raise UsageError(
            f"--parallel {kind}: trains one optimizer; leave out demo and --compare, and name it with "
            "--optimizer (make demo-distributed compares DDP, FSDP and the vote)"
        )
    if not count:
        raise UsageError(f"--parallel {kind}: there is one process; start several, as {COMMAND} {kind}")
    if not torch.distributed.is_available():
        raise UsageError(f"--parallel {kind}: this torch has no torch.distributed; leave --parallel out")
    name = given.get("device", "auto")
    return Several(kind, "cuda" if name == "auto" and torch.cuda.is_available() else name)


def _cut(value: Any, like: Any) -> Any:
    """A whole tensor as its DTensor lies; what is of another shape than the DTensor stays as it is."""
    if not (isinstance(value, torch.Tensor) and hasattr(like, "full_tensor") and value.shape == like.shape):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
