"""Sign-SGD with majority vote: each process sends the signs of its gradients, and gets what most say."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from sage_ext import _loader
from sage_ext import backend as backends
from sage_ext.distributed.messages import gather_equal
from sage_ext.optimizers import validate
from sage_ext.reference import vote as reference_vote

Bucket = Any
"""A ``dist.GradBucket``: parameters whose gradients lie one after the other."""

STATE_DTYPES = (torch.float32, torch.bfloat16)
_NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SHOWN = 3


class Observer(Protocol):
    """Looks at the gradients of this process before the vote takes their place."""

    def see(self, bucket: Bucket) -> None: ...


class MajorityVote:
    """A communication hook of DistributedDataParallel: gradients become what most processes' signs are.

    After ``backward()`` every process finds ``sign(sum over processes of sign(g))`` in its gradients, as -1,
    0 and 1: what Sign-SGD steps by (Bernstein et al., arXiv 1810.05291)::

        ddp = DistributedDataParallel(model)
        vote = MajorityVote().register(ddp)
        optimizer = FusedSignSGD(ddp.named_parameters(), lr=1e-4)

    A process sends two bits a coordinate. Zeros vote for neither side, and a tie is 0. The coordinates are
    cut into pieces, one for each process: it gets everybody's votes on its piece, counts, and sends the
    result to all. Of N processes each sends 2 * (N-1)/N * 0.25 byte a parameter: 0.44 at N = 8, where an
    all-reduce of bfloat16 gradients sends 3.5.

    Where a gradient is not finite on some process, the vote on that coordinate is NaN on all: GradScaler,
    ``clip_grad_norm_`` and loggers see it as they would after an all-reduce. A NaN never counts as a sign.

    With ``momentum`` each process votes by the sign of a momentum of its own gradients. That is a state of
    this process alone: each has to save its own ``state_dict()``. A gradient that is not finite leaves its
    element of the momentum as it was; one that is missing counts as zero.

    On a CPU the messages go over a process group of their own, in the order of DDP's buckets, while
    ``backward()`` goes on. On a GPU they are enqueued on a stream of their own, and the host waits for
    nothing.

    Args:
        momentum: 0 for the signs of the gradients; else m <- momentum*m + (1-momentum)*g, in [0, 1).
        state_dtype: of the momentum: float32 or bfloat16.
        backend: ``"auto"``, ``"native"`` or ``"reference"``, of packing and counting.

    Raises:
        ValueError: an argument cannot be used.
    """

    def __init__(
        self,
        momentum: float = 0.0,
        *,
        state_dtype: torch.dtype = torch.float32,
        backend: backends.Backend = "auto",
    ) -> None:
        validate.fraction(momentum, "momentum", "")
        if state_dtype not in STATE_DTYPES:
            validate.fail("state_dtype", state_dtype, "torch.float32 or torch.bfloat16", "")
        backends.validate(backend)
        self.momentum = momentum
        self.group: Any = None
        """The processes that vote, once the hook is registered."""
        self._backend: backends.Backend = backend
        self._state_dtype = state_dtype
        self._ddp: Callable[[], DistributedDataParallel | None] = lambda: None
        self._names: dict[Tensor, str] = {}
        """Of the parameters whose gradients DDP reduces."""
        self._moments = _Moments(state_dtype)
        self._observers: list[Observer] = []
        self._queue: ThreadPoolExecutor | None = None
        self._streams: dict[torch.device, Any] = {}

    def register(self, ddp: DistributedDataParallel) -> MajorityVote:
        """Make this the communication hook of a model. On all processes, before the same ``backward()``.

        Args:
            ddp: the model, wrapped; all of its processes vote.

        Returns:
            This vote.

        Raises:
            TypeError: ``ddp`` is no DistributedDataParallel.
            ValueError: a parameter has a dtype or a device that cannot be voted on.
            RuntimeError: the vote belongs to a model already, or the model has a hook. Nothing has changed
                then.
        """
        if not isinstance(ddp, DistributedDataParallel):
            raise TypeError(
                f"ddp: got {type(ddp).__name__}, expected a torch.nn.parallel.DistributedDataParallel; wrap "
                "the model in it first"
            )
        if self.group is not None:
            raise RuntimeError("ddp: this vote belongs to a model already; make a MajorityVote for each")
        names = {
            param: name
            for name, param in ddp.module.named_parameters()
            if param.requires_grad and not _is_ignored(ddp, name)
        }
        native = backends.resolve(self._backend, (param.device for param in names)) == "native"
        for param, name in names.items():
            if native and param.dtype not in _NATIVE_DTYPES:
                validate.fail(
                    "ddp",
                    param.dtype,
                    'a float32, bfloat16 or float16 parameter, or MajorityVote(backend="reference")',
                    f" as the dtype of {name}",
                )
        on_cpu = any(param.device.type == "cpu" for param in names)

        def majority_vote(_, bucket):  # type: ignore[no-untyped-def]  # DDP wants no annotation, or its own
            return self._hook(bucket)

        try:
            ddp.register_comm_hook(None, majority_vote)
        except RuntimeError as error:
            if "called once" not in str(error):
                raise
            raise RuntimeError(
                "ddp: the model has a communication hook already, and DDP takes one; go on with the vote "
                "that it has, or wrap the model in a new DistributedDataParallel and register this one there"
            ) from error
        self.group = _group_apart(ddp.process_group) if on_cpu else ddp.process_group
        self._functions: Any = _loader.load() if native else reference_vote
        self._queue = ThreadPoolExecutor(1, "sage_ext-vote") if on_cpu else None
        self._ddp = weakref.ref(ddp)
        self._names = names
        return self

    # ----------------------------------------------------------------------------------------------- the hook

    def _hook(self, bucket: Bucket) -> Any:
        buffer: Tensor = bucket.buffer()
        if buffer.layout != torch.strided:
            name = self._name(bucket.parameters()[0])
            raise RuntimeError(
                f"{name} has a sparse gradient, which cannot be voted on; build its nn.Embedding with "
                "sparse=False"
            )
        if self._queue is not None:
            packed = self._pack(bucket, buffer)
            future: Future[Tensor] = Future()
            self._queue.submit(self._finish, packed, buffer, future)
        elif buffer.device.type == "cuda":
            stream = self._streams.get(buffer.device)
            if stream is None:
                stream = self._streams[buffer.device] = torch.cuda.Stream(buffer.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(buffer.device))
            with torch.cuda.stream(stream):
                buffer.record_stream(stream)
                future = Future(devices=[buffer.device])
                self._finish(self._pack(bucket, buffer), buffer, future)
        else:
            future = Future()
            self._finish(self._pack(bucket, buffer), buffer, future)
        return future

    @torch.no_grad()
    def _pack(self, bucket: Bucket, buffer: Tensor) -> Tensor:
        """Return this process's votes on a bucket, a piece for each process."""
        for observer in self._observers:
            observer.see(bucket)
        voters = dist.get_world_size(self.group)
        shape = (voters, 2, reference_vote.vote_words(buffer.numel(), voters))
        packed = torch.empty(shape, dtype=torch.int32, device=buffer.device)
        moments = None if not self.momentum else self._moments.of(bucket, buffer)
        self._functions.pack_votes(buffer, moments, packed, self.momentum)
        return packed

    @torch.no_grad()
    def _finish(self, packed: Tensor, buffer: Tensor, future: Any) -> None:
        """Send, count, send the result, and leave it in the bucket."""
        try:
            received = torch.empty_like(packed)
            dist.all_to_all_single(received, packed, group=self.group)
            result = torch.empty_like(packed[0])
            self._functions.count_votes(received, result)
            gather_equal(packed, result, self.group)
            self._functions.unpack_votes(packed, buffer)
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(buffer)

    def _name(self, param: Tensor) -> str:
        return self._names.get(param, "a parameter")

    # ---------------------------------------------------------------------------------------------- observers

    def attach(self, observer: Observer, params: Sequence[Tensor]) -> None:
        """Show an observer the gradients of every ``backward()``.

        Raises:
            RuntimeError: the vote has no model yet.
            ValueError: one of ``params`` is not voted on, or the vote has momentum.
        """
        self._check_registered()
        self.check_owns(params)
        self.check_can_be_seen()
        self._observers.append(observer)

    def check_can_be_seen(self) -> None:
        """Raise ValueError if gradients do not say what is voted on."""
        if self.momentum:
            validate.fail("vote", f"MajorityVote(momentum={self.momentum})", "one without momentum", "")

    def check_owns(self, params: Sequence[Tensor]) -> None:
        """Raise ValueError if one of ``params`` is not voted on."""
        for index, param in enumerate(params):
            if param.requires_grad and param not in self._names:
                self.refuse(index, param)

    def refuse(self, index: int, param: Tensor) -> None:
        """Raise ValueError: parameter ``index`` of the optimizer is not voted on."""
        ddp = self._ddp()
        names = {} if ddp is None else {own: name for name, own in ddp.module.named_parameters()}
        name = names.get(param)
        if ddp is None or name is None:
            reason = (
                "not one of the model that the vote is registered for; build the optimizer of the parameters "
                "of that model"
            )
        elif _is_ignored(ddp, name):
            reason = (
                f"{name}, which DDP has been told to ignore: its gradient stays that of this process; build "
                "the optimizer without it"
            )
        else:
            reason = (
                f"{name}, which was frozen when the model was wrapped or the vote registered; wrap the model "
                "in a new DistributedDataParallel and set optimizer.vote = MajorityVote().register(ddp)"
            )
        raise ValueError(f"vote: parameter {index} of the optimizer is {reason}")

    @property
    def is_joining(self) -> bool:
        """Whether the model is in ``ddp.join()``, or was: processes may leave it before others."""
        config: Any = getattr(self._ddp(), "_join_config", None)
        return getattr(config, "enable", False) and not config.throw_on_early_termination

    def detach(self, observer: Observer) -> None:
        """Show an observer no more."""
        self._observers.remove(observer)

    # -------------------------------------------------------------------------------------------------- files

    def state_dict(self) -> dict[str, Any]:
        """Return the momentum of this process, by the names that parameters have in the model.

        Returns:
            ``{"momentum": float, "exp_avg": {name: tensor shaped as the parameter}}``; without momentum, or
            before the first ``backward()``, ``exp_avg`` is empty.
        """
        exp_avg = {
            self._name(param): part.clone(memory_format=torch.contiguous_format)
            for param, part in self._moments.by_param.items()
        }
        return {"momentum": self.momentum, "exp_avg": exp_avg}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` has returned, also with other buckets.

        Args:
            state_dict: of this process, or of any other one.

        Raises:
            RuntimeError: the vote has no model yet.
            ValueError: names or shapes are not the model's, or there is a momentum where FusedALIAS steps by
                this vote. Nothing has changed then.
        """
        self._check_registered()
        if missing := [key for key in ("momentum", "exp_avg") if key not in state_dict]:
            raise ValueError(
                f"state_dict: lacks {missing[0]!r}, expected what state_dict() of a MajorityVote has returned"
            )
        momentum, exp_avgs = state_dict["momentum"], state_dict["exp_avg"]
        validate.fraction(momentum, "momentum", " in state_dict")
        if momentum and self._observers:
            validate.fail("momentum", momentum, "0 where FusedALIAS steps by the vote", " in state_dict")
        by_name = {name: param for param, name in self._names.items()}
        _check_names("state_dict has", exp_avgs, by_name)
        if exp_avgs:
            _check_names("state_dict lacks", by_name, exp_avgs)
        for name, value in exp_avgs.items():
            if value.shape != by_name[name].shape:
                raise ValueError(
                    f"state_dict: the momentum of {name} has shape {tuple(value.shape)}, expected "
                    f"{tuple(by_name[name].shape)}"
                )
        self.momentum = momentum
        self._moments = _Moments(self._state_dtype)
        for name, value in exp_avgs.items():
            param = by_name[name]
            self._moments.by_param[param] = value.detach().to(param.device, self._state_dtype, copy=True)

    def _check_registered(self) -> None:
        if self.group is None:
            raise RuntimeError("vote: it has no model yet; call vote.register(ddp) first")


class _Moments:
    """The momentum of each parameter, and a flat one for each of DDP's buckets that theirs are parts of.

    DDP makes other buckets after the first iteration; what parameters have then moves to flat tensors that
    go with those.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._flat: dict[int, tuple[list[Tensor], Tensor]] = {}
        self.by_param: dict[Tensor, Tensor] = {}

    def of(self, bucket: Bucket, buffer: Tensor) -> Tensor:
        """Return the flat momentum of a bucket: element by element that of the gradients in its buffer."""
        index, params = bucket.index(), bucket.parameters()
        known, flat = self._flat.get(index, ((), None))
        if flat is not None and len(known) == len(params) and all(map(operator.is_, known, params)):
            return flat
        flat = torch.zeros(buffer.numel(), dtype=self._dtype, device=buffer.device)
        for param, part in zip(params, parts_of(flat, params), strict=True):
            if (held := self.by_param.get(param)) is not None:
                part.copy_(held)
            self.by_param[param] = part
        self._flat[index] = (params, flat)
        return flat


def parts_of(flat: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """Return what each parameter has of a flat tensor that is laid out as DDP's bucket of them: one after the
    other, each with its own strides where these are dense. (``bucket.gradients()`` does not know of strides.)
    """
    parts = []
    for param, part in zip(params, torch.split(flat, [param.numel() for param in params]), strict=True):
        is_dense = torch.empty_like(param, device="meta").stride() == param.stride()
        stride = param.stride() if is_dense else torch.empty(param.shape, device="meta").stride()
        parts.append(part.as_strided(param.shape, stride))
    return parts


def _group_apart(group: Any) -> Any:
    """Return the same processes as a group of their own: on a CPU the messages of a group must keep their
    order, and DDP sends others over its own while buckets are under way."""
    options = getattr(group._get_backend(torch.device("cpu")), "options", None)
    timeout = getattr(options, "_timeout", None)
    ranks = dist.get_process_group_ranks(group)
    return dist.new_group(ranks, timeout=timeout, backend="gloo", use_local_synchronization=True)


def _is_ignored(ddp: DistributedDataParallel, name: str) -> bool:
    """Whether DDP has been told not to reduce a parameter. It looks for a dot in every name."""
    return (name if "." in name else f".{name}") in ddp.parameters_to_ignore


def _check_names(what: str, names: Any, known: Any) -> None:
    if others := [name for name in names if name not in known]:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise ValueError(
            f"{what} momentum for {', '.join(others[:_SHOWN])}{more}, expected it for the trainable "
            "parameters of the model that the vote is registered for"
        )
