"""Checkpoints on several processes: files of one process, and torch.distributed.checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from models import TinyLanguageModel, loss_of
from sharded_models import BUILDS, Layout, Pair
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    _init_optim_state,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from wrapper_cases import PRESETS, _whole, fsdp

from sage_ext.optimizers import FusedALIASAdam, FusedHybrid

SIZES = (4, 2, 1)
"""In the order in which they run: the first saves for all."""
FORMS = {
    "nested": StateDictOptions(),
    "flattened": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True, cpu_offload=True),
}


def cases(size: int) -> dict[str, Callable[[int, int], None]]:
    found: dict[str, Callable[[int, int], None]] = {}
    for preset in (*PRESETS, "alias_adam"):
        if size == SIZES[0]:
            found[f"save-{preset}"] = partial(save, preset)
        found[f"load-{preset}"] = partial(load, preset)
        if size == SIZES[0]:
            found[f"onto_hsdp-{preset}"] = partial(hsdp_and_back, preset)
        if size > 1:
            found[f"async-{preset}"] = partial(saved_asynchronously, preset)
            found[f"fresh-{preset}"] = partial(fresh, preset)
    return found


def plain_file(name: str, layout: Layout, rank: int, size: int) -> None:
    """The state dict of one process loads into pieces, and that of pieces into one process."""
    pair = Pair(BUILDS[name], layout)
    for seed in (1, 2):
        pair.set_grads(seed)
        pair.oracle.step()
    for (_, cut), (label, whole) in zip(pair.cut, pair.whole, strict=True):
        cut.detach().copy_(layout_of(layout, label, whole))
    pair.optimizer.load_state_dict(pair.oracle.state_dict())
    pair.compare(0.0)
    pair.set_grads(3)
    pair.optimizer.step()
    pair.oracle.step()
    pair.compare()
    back = Pair(BUILDS[name], layout)
    back.oracle.load_state_dict(pair.optimizer.state_dict())
    back.optimizer.load_state_dict(back.oracle.state_dict())
    for params in (back.cut, back.whole):
        for (_, param), (_, other) in zip(
            params, pair.cut if params is back.cut else pair.whole, strict=True
        ):
            param.detach().copy_(other.detach())
    back.compare()


def layout_of(layout: Layout, label: str, value: torch.Tensor) -> torch.Tensor:
    return layout.distribute(label, value.detach())


def hsdp(model: nn.Module, size: int) -> None:
    """Rows cut over two processes, and that repeated."""
    mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("repeated", "cut"))
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _train(preset: str, size: int, wrap: Callable[[nn.Module, int], None] = fsdp) -> tuple[nn.Module, Any]:
    torch.manual_seed(3)
    model = TinyLanguageModel()
    wrap(model, size)
    if preset == "alias_adam":
        return model, FusedALIASAdam(model.named_parameters(), lr=0.01)
    return model, FusedHybrid(model, preset, lr=0.01)


def _steps(model: nn.Module, optimizer: Any, seeds: range) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        loss_of(model, seed).backward()
        optimizer.step()
    optimizer.zero_grad()


def _folder(preset: str) -> Path:
    return Path(os.environ["CHECKPOINTS"]) / preset


def save(preset: str, rank: int, size: int) -> None:
    model, optimizer = _train(preset, size)
    _steps(model, optimizer, range(2))
    for form, options in FORMS.items():
        state, held = get_state_dict(model, optimizer, options=options)
        if form == "full":
            if rank == 0:
                torch.save({"model": state, "optimizer": held}, _folder(preset) / "full.pt")
        else:
            dcp.save({"model": state, "optimizer": held}, checkpoint_id=_folder(preset) / form)
    _steps(model, optimizer, range(2, 4))
    after = {name: _whole(param) for name, param in model.named_parameters()}
    if rank == 0:
        torch.save(after, _folder(preset) / "after.pt")
    dist.barrier()


def load(preset: str, rank: int, size: int) -> None:
    """What was saved on four processes goes on here, and comes to where it would have come there."""
    expected = torch.load(_folder(preset) / "after.pt")
    for form, options in FORMS.items():
        model, optimizer = _train(preset, size)
        if form == "full":
            whole = torch.load(_folder(preset) / "full.pt")
            state, held = whole["model"], whole["optimizer"]
        else:
            state, held = get_state_dict(model, optimizer, options=options)
            dcp.load({"model": state, "optimizer": held}, checkpoint_id=_folder(preset) / form)
        set_state_dict(model, optimizer, model_state_dict=state, optim_state_dict=held, options=options)
        _steps(model, optimizer, range(2, 4))
        for name, param in model.named_parameters():
            if size == SIZES[0]:
                assert torch.equal(_whole(param), expected[name]), (form, name)
            else:
                torch.testing.assert_close(_whole(param), expected[name], rtol=1e-4, atol=1e-5)


def _put_in(model: nn.Module, optimizer: Any, form: str, folder: Path) -> None:
    """Load what ``dcp`` has saved in a form."""
    options = FORMS[form]
    state, held = get_state_dict(model, optimizer, options=options)
    dcp.load({"model": state, "optimizer": held}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state, optim_state_dict=held, options=options)


def hsdp_and_back(preset: str, rank: int, size: int) -> None:
    """Saved on four by rows (``save``), loaded on a 2 x 2 mesh of HSDP, saved there and loaded by rows."""
    expected = torch.load(_folder(preset) / "after.pt")
    for form in ("nested", "flattened"):
        model, optimizer = _train(preset, size, hsdp)
        _put_in(model, optimizer, form, _folder(preset) / form)
        assert all(str(p.placements) == "(Replicate(), Shard(dim=0))" for p in model.parameters())
        kept = [value for state in optimizer.state.values() for value in state.values()]
        for value in kept:
            if hasattr(value, "placements"):
                assert value.placements[0].is_replicate()
        back = _folder(preset) / f"{form}-hsdp"
        state, held = get_state_dict(model, optimizer, options=FORMS[form])
        dcp.save({"model": state, "optimizer": held}, checkpoint_id=back)
        _steps(model, optimizer, range(2, 4))
        for name, param in model.named_parameters():
            torch.testing.assert_close(_whole(param), expected[name], rtol=1e-4, atol=1e-5)

        model, optimizer = _train(preset, size)
        _put_in(model, optimizer, form, back)
        _steps(model, optimizer, range(2, 4))
        for name, param in model.named_parameters():
            assert torch.equal(_whole(param), expected[name]), (form, name)


def saved_asynchronously(preset: str, rank: int, size: int) -> None:
    """``dcp.async_save`` keeps what there was when it was called, while training goes on."""
    for form in ("nested", "flattened"):
        model, optimizer = _train(preset, size)
        _steps(model, optimizer, range(2))
        folder = _folder(preset) / f"{form}-async-{size}"
        state, held = get_state_dict(model, optimizer, options=FORMS[form])
        # Its messages go while those of the steps do, so they need a group of their own.
        group = dist.new_group()
        saving = dcp.async_save(
            {"model": state, "optimizer": held}, checkpoint_id=folder, process_group=group
        )
        _steps(model, optimizer, range(2, 4))
        saving.result()
        resumed, its_optimizer = _train(preset, size)
        _put_in(resumed, its_optimizer, form, folder)
        _steps(resumed, its_optimizer, range(2, 4))
        for (name, param), other in zip(model.named_parameters(), resumed.parameters(), strict=True):
            assert torch.equal(_whole(param), _whole(other)), (form, name)


def fresh(preset: str, rank: int, size: int) -> None:
    """The step with which DCP, and torchtitan after it, has missing state made leaves an optimizer as it was:
    the first real step is that of one which has never seen it."""
    model, optimizer = _train(preset, size)
    other, untouched = _train(preset, size)
    before = [_whole(param).clone() for param in model.parameters()]
    settings = [_plain(group) for group in optimizer.param_groups]
    _init_optim_state(optimizer)
    assert optimizer.state or preset == "sign_sgd"
    for param, old in zip(model.parameters(), before, strict=True):
        assert param.grad is None
        assert torch.equal(_whole(param), old)
    for group, old in zip(optimizer.param_groups, settings, strict=True):
        assert _plain(group) == old
    for state in optimizer.state.values():
        for key, value in state.items():
            if key != "scalars":
                assert not _whole(value).any(), key
    _steps(model, optimizer, range(3))
    _steps(other, untouched, range(3))
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(_whole(ours), _whole(theirs))


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "scalars")}
