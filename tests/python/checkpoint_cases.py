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
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
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


def _train(preset: str, size: int) -> tuple[nn.Module, Any]:
    torch.manual_seed(3)
    model = TinyLanguageModel()
    fsdp(model, size)
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
