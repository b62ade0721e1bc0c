"""Parameters that are pieces of tensors: a rule that has to see rows, columns or the whole refuses them."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import support
import torch
import torch.distributed as dist
from models import BUILDERS, NAMES, TinyLanguageModel, loss_of
from torch import nn

from sage_ext.optimizers import (
    FusedAdamW,
    FusedALIAS,
    FusedALIASAdam,
    FusedHybrid,
    FusedLion,
    FusedSAGE,
    FusedSignSGD,
)
from sage_ext.optimizers.presets import PRESETS

ELEMENTWISE = (FusedLion, FusedSignSGD, FusedAdamW)
OTHERS = (FusedSAGE, FusedALIAS, FusedALIASAdam)
REFUSED = r"^w \(param 0 of group 0.*flat piece that FullyShardedDataParallel.*FSDP2.*FusedLion"


def flat_piece() -> nn.Parameter:
    """What FSDP1 hands over, by the mark that torch gives it."""
    param = nn.Parameter(torch.ones(6))
    param._fsdp_flattened = True
    return param


@pytest.fixture
def one_process(tmp_path: Any) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("optimizer_class", OTHERS)
def test_refused_when_built(optimizer_class: Any, backend: str) -> None:
    with pytest.raises(ValueError, match=REFUSED):
        optimizer_class([("w", flat_piece())], backend=backend)


@pytest.mark.parametrize("optimizer_class", ELEMENTWISE)
def test_element_wise_rules_take_them(optimizer_class: Any, backend: str) -> None:
    piece, plain = flat_piece(), nn.Parameter(torch.ones(6))
    for param in (piece, plain):
        param.grad = torch.linspace(-1, 1, 6)
        optimizer_class([param], backend=backend).step()
    support.assert_same_bits([piece.detach()], [plain.detach()])


@pytest.mark.parametrize("optimizer_class", OTHERS)
def test_refused_when_swapped_in_later(optimizer_class: Any, backend: str) -> None:
    """accelerate puts other parameters into ``param_group["params"]`` after construction."""
    whole = nn.Parameter(torch.ones(6))
    optimizer = optimizer_class([("w", whole)], backend=backend)
    whole.grad = torch.ones(6)
    for _ in range(2):
        optimizer.step()
    piece = flat_piece()
    piece.grad = torch.ones(6)
    optimizer.param_groups[0]["params"][0] = piece
    with pytest.raises(ValueError, match=REFUSED):
        optimizer.step()
    assert (piece == 1).all()
    assert piece not in optimizer.state


def test_refused_when_marked_between_construction_and_first_step(backend: str) -> None:
    """FSDP1 with use_orig_params makes pieces of the very parameters that the optimizer has."""
    param = nn.Parameter(torch.ones(6))
    optimizer = FusedALIAS([("w", param)], gap="lower_bound", backend=backend)
    param._fsdp_flattened = True
    param.grad = torch.ones(6)
    with pytest.raises(ValueError, match=REFUSED):
        optimizer.step(loss=1.0)
    assert (param == 1).all()
    assert optimizer.param_groups[0]["scalars"] is None


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_real_fsdp(one_process: None, use_orig_params: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FSDP1 is deprecated, and says so
        model = FullyShardedDataParallel(
            TinyLanguageModel(), use_orig_params=use_orig_params, device_id=torch.device("cpu")
        )
        for build in (
            *(lambda m, p=preset: FusedHybrid(m, p) for preset in PRESETS),
            lambda m: FusedSAGE(m.parameters()),
        ):
            with pytest.raises(ValueError, match="flat piece"):
                build(model)
        optimizer = FusedLion(model.parameters())
        loss_of(model).backward()
        optimizer.step()


def test_vectors_for_rules_of_matrices_name_flat_partitions(backend: str) -> None:
    for build, name in zip(BUILDERS, NAMES, strict=True):
        if name in ("sinkgd", "scale"):
            optimizer_class = type(build(TinyLanguageModel()))
            with pytest.raises(ValueError, match=r"DeepSpeed ZeRO, Megatron.*FusedLion.*FSDP2 or DDP"):
                optimizer_class([nn.Parameter(torch.ones(8))], backend=backend)


def test_hybrid_without_a_matrix_warns() -> None:
    """DeepSpeed's ZeRO and Megatron hand over one flat partition, without a mark."""
    flat = [("flat", nn.Parameter(torch.ones(100)))]
    with pytest.warns(UserWarning, match="not one of the parameters has two dimensions.*flat partition"):
        FusedHybrid(flat, embeddings=[])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FusedHybrid(TinyLanguageModel())


class TestDTensors:
    """With one process; with several: test_distributed.py."""

    @pytest.mark.parametrize("name", NAMES)
    def test_steps_are_those_of_plain_tensors(self, one_process: None, name: str, backend: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        mesh = init_device_mesh("cpu", (1,))
        plain, cut = (TinyLanguageModel() for _ in range(2))
        cut.load_state_dict(plain.state_dict())
        for module in cut.modules():
            for key, param in list(module.named_parameters(recurse=False)):
                setattr(module, key, nn.Parameter(distribute_tensor(param.detach(), mesh, [Shard(0)])))
        build = BUILDERS[NAMES.index(name)]
        optimizers = [build(model, backend=backend) for model in (plain, cut)]
        for seed in range(3):
            loss = loss_of(plain, seed)
            plain.zero_grad()
            loss.backward()
            for ours, theirs in zip(cut.parameters(), plain.parameters(), strict=True):
                ours.grad = distribute_tensor(theirs.grad.clone(), mesh, [Shard(0)])
            for optimizer in optimizers:
                optimizer.step(loss=loss)
        for ours, theirs in zip(cut.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("optimizer_class", [*ELEMENTWISE, *OTHERS])
    def test_sums_that_are_not_done_are_refused(
        self, one_process: None, optimizer_class: Any, backend: str
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Partial

        mesh = init_device_mesh("cpu", (1,))
        pending = nn.Parameter(DTensor.from_local(torch.ones(4, 4), mesh, [Partial()]))
        refused = r"^w \(param 0.*placement Partial\(sum\).*expected Shard or Replicate.*redistribute"
        with pytest.raises(ValueError, match=refused):
            optimizer_class([("w", pending)], backend=backend)
        plain = nn.Parameter(torch.ones(4, 4))
        optimizer = optimizer_class([("w", plain)], backend=backend)
        pending.grad = DTensor.from_local(torch.ones(4, 4), mesh, [Partial()])
        optimizer.param_groups[0]["params"][0] = pending
        with pytest.raises(ValueError, match=refused):
            optimizer.step()
        assert (pending.to_local() == 1).all()


def test_plain_tensors_do_not_import_what_is_for_dtensors() -> None:
    """In a process of its own, since other tests import them."""
    code = """
import sys, torch
from sage_ext.optimizers import FusedHybrid
param = torch.nn.Parameter(torch.ones(4, 4))
param.grad = torch.ones(4, 4)
optimizer = FusedHybrid([("w", param)], embeddings=[])
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
str(optimizer.describe())
assert "sage_ext.distributed" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
