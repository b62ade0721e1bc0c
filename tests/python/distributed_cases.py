"""What ``test_distributed.py`` runs on several processes: placements, messages, agreement."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import checkpoint_cases
import pytest
import torch
import torch.distributed as dist
import wrapper_cases
from sharded_models import BUILDS, ELEMENTWISE, SHAPES, Layout, Pair, as_whole, layouts
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from sage_ext import pieces
from sage_ext.distributed.placements import cuts
from sage_ext.optimizers import FusedAdamW, FusedALIAS, FusedSAGE, FusedSCALE, FusedSinkGD
from sage_ext.planning import exchanges

Case = Callable[[int, int], None]
FEW = ("sage", "sinkgd", "scale_columns", "alias", "alias_adam", "hybrid_sage", "adamw")
"""For layouts that differ from others only in what they have in common."""


def cases(size: int) -> dict[str, Case]:
    """All cases for ``size`` processes, by name."""
    places = layouts(size)
    found: dict[str, Case] = {}
    full = {2: ("rows",), 4: ("both",)}.get(size, ())
    for place, layout in places.items():
        few = FEW if size == 2 or place not in ("rows", "columns", "middle", "mixed", "replicated") else ()
        for name in BUILDS if place in full else few:
            found[f"{place}-{name}"] = partial(same_as_one_process, name, layout)
    if size == 1:
        return found | checkpoint_cases.cases(size)
    last = places["both" if size == 4 else "rows"]
    for name in BUILDS:
        if size == 4:
            found[f"missing-{name}"] = partial(missing_gradients, name, last)
    for name in FEW:
        found[f"bfloat16-{name}"] = partial(same_in_bfloat16, name, last)
        found[f"bits-{name}"] = partial(same_bits, name, last)
        if size == 2:
            found[f"found_inf-{name}"] = partial(found_inf_of_one, name, last)
            found[f"masked-{name}"] = partial(found_inf_of_one, name, last, masks=True)
        found[f"plain_file-{name}"] = partial(checkpoint_cases.plain_file, name, last)
        if name not in ELEMENTWISE:
            found[f"error-{name}"] = partial(error_of_one, name, last)
    found |= {
        "messages": partial(messages, places),
        "bytes": partial(bytes_of_sinkgd, places["rows"]),
        "modelled": partial(modelled, places),
        "refused": refused,
        "early_error": partial(early_error_of_one, places["rows"]),
        "out_of_order": out_of_order,
        "kept_gradient": kept_gradient,
        "inert": partial(inert, places["rows"]),
        "inert_of_one": partial(inert_of_one, places["rows"]),
        "clipping": partial(clipping, last),
        "describe": partial(described, places["rows"]),
        "swapped": partial(swapped, places["rows"]),
        "lag": partial(lag, places["rows"]),
        "loss": partial(mean_of_losses, places["rows"]),
    }
    return found | wrapper_cases.cases(size) | checkpoint_cases.cases(size)


def same_as_one_process(name: str, layout: Layout, rank: int, size: int) -> None:
    pair = Pair(BUILDS[name], layout)
    start = [as_whole(param.detach()).clone() for _, param in pair.cut]
    pair.step()
    pair.compare()
    moved = [not torch.equal(a, as_whole(p.detach())) for a, (_, p) in zip(start, pair.cut, strict=True)]
    in_optimizer = {id(p) for group in pair.optimizer.param_groups for p in group["params"]}
    assert moved == [id(param) in in_optimizer for _, param in pair.cut]


def same_in_bfloat16(name: str, layout: Layout, rank: int, size: int) -> None:
    pair = Pair(BUILDS[name], layout, torch.bfloat16)
    pair.step(2)
    differing = pair.compare()
    # Where a float32 result is near the middle of two bfloat16 numbers, another order of sums may decide.
    assert differing <= 0.02 * sum(param.numel() for _, param in pair.whole), differing


def same_bits(name: str, layout: Layout, rank: int, size: int) -> None:
    """What a process holds in full has the same bits on all, and on every run."""
    runs = []
    for _ in range(2):
        pair = Pair(BUILDS[name], layout)
        pair.step()
        held = [as_whole(param.detach()) for _, param in pair.cut]
        for _, param in pair.cut:
            held += [as_whole(value) for value in pair.optimizer.state.get(param, {}).values()]
        held += [g["scalars"] for g in pair.optimizer.param_groups if g.get("scalars") is not None]
        runs.append([value.contiguous().numpy().tobytes() for value in held])
    everybody: list[Any] = [None] * size
    dist.all_gather_object(everybody, runs)
    assert all(other == everybody[0] for other in everybody)
    assert runs[0] == runs[1]


@contextmanager
def counted() -> Iterator[list[tuple[str, int]]]:
    """Collects (operation, bytes) of every message."""
    sent: list[tuple[str, int]] = []
    reduce, names = dist.all_reduce, ("all_gather_single", "all_gather_into_tensor")
    gathers = {name: getattr(dist, name) for name in names if hasattr(dist, name)}

    def counting_reduce(tensor: Tensor, op: Any = dist.ReduceOp.SUM, **changes: Any) -> Any:
        sent.append(("agree" if op == dist.ReduceOp.MAX else "sum", tensor.nbytes))
        return reduce(tensor, op, **changes)

    def counting_gather(output: Tensor, tensor: Tensor, *, of: Any, **changes: Any) -> Any:
        sent.append(("gather", tensor.nbytes))
        return of(output, tensor, **changes)

    dist.all_reduce = counting_reduce
    for name, gather in gathers.items():
        setattr(dist, name, partial(counting_gather, of=gather))
    try:
        yield sent
    finally:
        dist.all_reduce = reduce
        for name, gather in gathers.items():
            setattr(dist, name, gather)


MATRICES = ("embed", "up", "thin", "experts", "head")


def messages(places: dict[str, Layout], rank: int, size: int) -> None:
    """How many messages a step has, beside the one that agrees."""
    expected = {
        # One for the columns of matrices, one, in float64, for the rms of vectors.
        ("rows", "sage"): 2,
        ("rows", "sinkgd"): 5,
        ("columns", "sinkgd"): 5,
        ("rows", "sinkgd_unit"): 3,
        ("rows", "scale_rows"): 1,  # whether anybody has a gradient
        ("rows", "scale_columns"): 1,
        ("columns", "scale_rows"): 1,
        ("rows", "alias"): 2,
        ("rows", "alias_adam"): 1,
        ("rows", "hybrid_sage"): 1 + 1,  # SinkGD's iteration, and SAGE's vectors in float64
        ("replicated", "sage"): 0,
    }
    if size == 4:
        expected |= {("hsdp", "sinkgd"): 5, ("both", "sinkgd"): 10, ("both", "scale_columns"): 2}
    expected |= {(place, name): 0 for place in places for name in ELEMENTWISE}
    for (place, name), count in expected.items():
        pair = Pair(BUILDS[name], places[place])
        for seed in (1, 2):
            pair.set_grads(seed)
            with counted() as sent:
                pair.optimizer.step()
        kinds = [kind for kind, _ in sent]
        assert len(kinds) - kinds.count("agree") == count, (place, name, kinds)
        lines = len(places[place].mesh().shape)
        assert kinds.count("agree") == (0 if count == 0 else lines), (place, name, kinds)
        assert "agree" not in kinds[lines:], kinds


def bytes_of_sinkgd(layout: Layout, rank: int, size: int) -> None:
    """An iteration sends a float32 for each column of each matrix; the first one a float64, and a flag for
    each tensor."""
    pair = Pair(BUILDS["sinkgd"], layout)
    pair.set_grads(1)
    with counted() as sent:
        pair.optimizer.step()
    shapes = [SHAPES[name] for name in MATRICES]
    columns = 0
    for shape in shapes:  # of experts each has columns of its own, on the process that has the expert
        held = shape[:1] if len(shape) > 2 else ()
        if held:
            continue
        columns += shape[-1]
    cut = sum(len(shape) == 2 for shape in shapes)
    flags = len(shapes)
    assert [b for kind, b in sent if kind == "sum"][1:-1] == [4 * columns] * 3
    assert sum(b for kind, b in sent if kind == "sum") == 8 * (columns + flags) + 4 * 4 * columns, (sent, cut)


def modelled(places: dict[str, Layout], rank: int, size: int) -> None:
    """The model of cost says every message of a step, in its order and with its bytes."""
    for place, layout in places.items():
        for name in BUILDS if place in ("rows", "both") else FEW:
            pair = Pair(BUILDS[name], layout)
            for seed in (1, 2):  # in its first step ALIAS takes the mean of the losses
                pair.set_grads(seed)
                with counted() as sent:
                    pair.optimizer.step(loss=1.0)
            groups = [
                (group["rule"], group, [_spread(param) for param in group["params"]])
                for group in pair.optimizer.param_groups
            ]
            expected = [(message.how, message.nbytes) for message in exchanges.messages(groups)]
            counts = [message for message in sent if message[0] != "agree"]
            assert counts == expected, (place, name, counts, expected)


def _spread(param: Tensor) -> exchanges.Spread:
    local = pieces.local(param)
    lies = {} if local is param else dict(cuts(param))
    mesh = () if local is param else tuple(param.device_mesh.shape)
    along = tuple(lies.get(i) for i in range(len(mesh)))
    return exchanges.Spread(tuple(param.shape), tuple(local.shape), mesh, along)


def missing_gradients(name: str, layout: Layout, rank: int, size: int) -> None:
    """Where only some processes have a gradient, the others have zeros; where none has, nothing happens."""
    pair = Pair(BUILDS[name], layout)
    loss = torch.tensor(2.5)
    for seed in (1, 2):
        pair.set_grads(seed, without=["bias", "thin"])
        cut, whole = dict(pair.cut)["up"], dict(pair.whole)["up"]
        zeros = torch.zeros_like(cut.grad.to_local()) if rank == size - 1 else cut.grad.to_local()
        placed = {"run_check": False, "shape": cut.shape, "stride": cut.stride()}
        padded = DTensor.from_local(zeros, cut.device_mesh, cut.placements, **placed)
        whole.grad = padded.full_tensor()
        if rank == size - 1 and name not in ELEMENTWISE:
            cut.grad = None
        elif name in ELEMENTWISE:
            cut.grad = padded
        pair.optimizer.step(loss=loss)
        pair.oracle.step(loss=loss)
    for (label, cut), (_, whole) in zip(pair.cut, pair.whole, strict=True):
        full = as_whole(cut.detach())
        if label in ("bias", "thin"):
            assert torch.equal(full, whole.detach()), label
        elif not name.startswith(("hybrid", "scale_rows")) or label != "up":
            torch.testing.assert_close(full, whole.detach(), rtol=2e-6, atol=2e-6)


def found_inf_of_one(name: str, layout: Layout, rank: int, size: int, *, masks: bool = False) -> None:
    """One process has seen an overflow: no process takes the step, and the next one is as if it were the
    first.

    Args:
        masks: do as on a GPU, whose host does not look: what must not change is written as it was.
    """
    pair = Pair(BUILDS[name], layout)
    if masks:
        pair.optimizer._team().on_cpu = False
    pair.set_grads(1)
    before = [as_whole(param.detach()).clone() for _, param in pair.cut]
    pair.optimizer.found_inf = torch.tensor(float(rank == 1))
    pair.optimizer.step()
    for (label, param), old in zip(pair.cut, before, strict=True):
        assert torch.equal(as_whole(param.detach()), old), label
    pair.optimizer.found_inf = torch.tensor(0.0)
    pair.step(2)
    pair.compare()


def error_of_one(name: str, layout: Layout, rank: int, size: int) -> None:
    """An error of one process is told to the others before anything is exchanged."""
    pair = Pair(BUILDS[name], layout)
    for kind in ("gradient", "setting"):
        pair.set_grads(1)
        before = [as_whole(param.detach()).clone() for _, param in pair.cut]
        group = pair.optimizer.param_groups[0]
        rate = group["lr"]
        if rank == 1 and kind == "gradient":
            dict(pair.cut)["up"].grad = torch.ones(SHAPES["up"])
        elif rank == 1:
            group["lr"] = -1.0
        expected = "another process"
        if rank == 1:
            expected = "plain tensor" if kind == "gradient" else "lr: got -1.0"
        with pytest.raises((ValueError, RuntimeError), match=expected):
            pair.optimizer.step()
        group["lr"] = rate
        assert not pair.optimizer.state
        for (_, param), old in zip(pair.cut, before, strict=True):
            assert torch.equal(as_whole(param.detach()), old)
    pair.step(2)
    pair.compare()


def early_error_of_one(layout: Layout, rank: int, size: int) -> None:
    """What one process sees before it has looked at any tensor is told to the others, too."""
    for setting in ({"rule": "nonsense"}, {"same_batch": True}):
        pair = Pair(BUILDS["alias"], layout)
        pair.step(2)
        group = pair.optimizer.param_groups[0]
        before = dict(group)
        if rank == 1:
            group.update(setting)
        pair.set_grads(3)
        with pytest.raises(
            (ValueError, RuntimeError), match="rule|closure" if rank == 1 else "another process"
        ):
            pair.optimizer.step()
        group.update(before)
        pair.optimizer.step()
        pair.oracle.step()
        pair.compare()


def out_of_order(rank: int, size: int) -> None:
    """A DTensor that lies otherwise than in rows is stepped in a copy, also where it is whole."""
    mesh = layouts(size)["rows"].mesh()
    start, grad = torch.randn(4, 3), torch.randn(4, 3)
    plain = nn.Parameter(start.t().contiguous())
    plain.grad = grad.t().contiguous()
    param = nn.Parameter(DTensor.from_local(start.clone().t(), mesh, [Replicate()], run_check=False))
    param.grad = DTensor.from_local(grad.t(), mesh, [Replicate()], run_check=False)
    for build in (FusedSAGE, FusedSinkGD, FusedSCALE):
        optimizer = build([param], lr=0.1)
        optimizer.step()
        build([plain], lr=0.1).step()
        torch.testing.assert_close(param.to_local().detach(), plain.detach(), rtol=1e-6, atol=1e-6)


def kept_gradient(rank: int, size: int) -> None:
    """A kept gradient has one dtype on all processes, whoever has seen one."""
    mesh = layouts(size)["rows"].mesh()
    param = nn.Parameter(DTensor.from_local(torch.ones(2, 3).bfloat16(), mesh, [Shard(0)], run_check=False))
    optimizer = FusedALIAS([("w", param)], memory_efficient=False)
    param.grad_dtype = None
    param.grad = DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)], run_check=False) if rank else None
    with pytest.raises(
        (ValueError, RuntimeError), match=r"w .*float32.*memory_efficient" if rank else "another"
    ):
        optimizer.step()
    assert not optimizer.state


def refused(rank: int, size: int) -> None:
    mesh = layouts(size)["rows"].mesh()
    pending = nn.Parameter(DTensor.from_local(torch.ones(4, 4), mesh, [Partial()], run_check=False))
    for build in (FusedAdamW, FusedSAGE):
        _fails(lambda b=build: b([("w", pending)]), r"w (param 0 of group 0", "Partial", "expected Shard")
    for build in (FusedAdamW, FusedSAGE, FusedALIAS, FusedSinkGD, FusedSCALE):
        param = nn.Parameter(DTensor.from_local(torch.ones(4, 4), mesh, [Shard(0)], run_check=False))
        optimizer = build([("w", param)])
        for grad, words in (
            (DTensor.from_local(torch.ones(4, 4), mesh, [Shard(1)], run_check=False), "Shard(1)"),
            (DTensor.from_local(torch.ones(4 * size, 4), mesh, [Partial()], run_check=False), "Partial"),
            (DTensor.from_local(torch.ones(4 * size, 4), mesh, [Replicate()], run_check=False), "Replicate"),
        ):
            param.grad = None
            if tuple(grad.shape) != tuple(param.shape):
                grad = DTensor.from_local(
                    grad.to_local(), mesh, grad.placements, run_check=False, shape=param.shape, stride=(4, 1)
                )
            param.grad = grad
            _fails(optimizer.step, "w (param 0", "gradient", words)
            assert (param.to_local() == 1).all()


def _fails(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        call()


def inert(layout: Layout, rank: int, size: int) -> None:
    """The step with lr 0 and zero gradients that torch's helpers take makes the state and changes nothing."""
    from torch.distributed.checkpoint.state_dict import _init_optim_state

    for name in BUILDS:
        pair = Pair(BUILDS[name], layout)
        before = [as_whole(param.detach()).clone() for _, param in pair.cut]
        _init_optim_state(pair.optimizer)
        for (label, param), old in zip(pair.cut, before, strict=True):
            assert torch.equal(as_whole(param.detach()), old), (name, label)
        pair.step(2)
        pair.compare()


def inert_of_one(layout: Layout, rank: int, size: int) -> None:
    """A first step with lr 0 counts on all processes if the gradient of one is not zero."""
    pair = Pair(lambda params: FusedAdamW(params, lr=0.0), layout)
    pair.set_grads(1)
    if rank:
        for _, param in pair.cut:
            param.grad.to_local().zero_()
    pair.optimizer.step()
    assert all(pair.optimizer.state[param]["step"] == 1 for _, param in pair.cut)


def clipping(layout: Layout, rank: int, size: int) -> None:
    pair = Pair(BUILDS["hybrid_sage"], layout)
    for seed in (1, 2):
        pair.set_grads(seed)
        norms = [
            as_whole(torch.nn.utils.clip_grad_norm_([p for _, p in params], 0.5))
            for params in (pair.cut, pair.whole)
        ]
        torch.testing.assert_close(*norms)
        pair.optimizer.step()
        pair.oracle.step()
    pair.compare(1e-5)


def described(layout: Layout, rank: int, size: int) -> None:
    pair = Pair(BUILDS["hybrid_sage"], layout)
    before = pair.optimizer.describe()
    rows = {row.name: row for row in before.rows}
    assert rows["up"].placements == "Shard(0)"
    assert rows["up"].in_stages
    assert rows["up"].state_bytes == 0
    local = dict(pair.cut)["embed"].to_local()
    assert rows["embed"].state_bytes == local.nbytes + 4 * 6 + 4
    pair.set_grads(1)
    pair.optimizer.step()
    assert pair.optimizer.describe().rows == before.rows
    assert "placements" in str(before)
    assert "stepped with exchanges between processes" in str(before)


def swapped(layout: Layout, rank: int, size: int) -> None:
    """accelerate builds the optimizer first and puts sharded parameters into its groups later."""
    pair = Pair(BUILDS["hybrid_sage"], layout)
    cut = dict(pair.cut)
    optimizer = BUILDS["hybrid_sage"]([(n, nn.Parameter(p.detach().clone())) for n, p in pair.whole])
    for group in optimizer.param_groups:
        group["params"] = [cut[name] for name in group["param_names"]]
    pair.optimizer = optimizer
    pair.step()
    pair.compare()


def mean_of_losses(layout: Layout, rank: int, size: int) -> None:
    """Each process has the loss of its own batch: ALIAS begins with their mean."""
    pair = Pair(BUILDS["alias_lower_bound"], layout)
    for seed in (1, 2):
        pair.set_grads(seed)
        pair.optimizer.step(loss=1.0 + rank)
        pair.oracle.step(loss=1.0 + (size - 1) / 2)
    pair.compare()


def lag(layout: Layout, rank: int, size: int) -> None:
    """A process that comes late is waited for."""
    pair = Pair(BUILDS["hybrid_sage"], layout)
    time.sleep(0.5 * rank)
    pair.step(2)
    pair.compare()
