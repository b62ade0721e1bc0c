"""A model that is trained for a while, and then as it was to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sage_ext import memory


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put back parameters, buffers, gradients, each module's mode and torch's random state, whatever happens.

    Frozen parameters too: a forward may move them, as that of a teacher that follows does. Inside, all
    modules are in training mode, parameters have no gradients, and gradients are on.
    """
    modes = [(module, module.training) for module in model.modules()]
    params = list(model.parameters())
    before = [(param, param.grad, param.requires_grad) for param in params]
    tables = [
        (module, dict(module._buffers), set(module._non_persistent_buffers_set)) for module in model.modules()
    ]
    buffers = {id(b): b for _, table, _ in tables for b in table.values() if b is not None}
    kept = [(tensor, tensor.detach().clone()) for tensor in [*params, *buffers.values()]]
    others = {tensor.device for tensor, _ in kept} - {torch.device("cpu")}
    kinds = {device.type for device in others} - {"meta"}
    with _same_random_numbers(sorted(kinds), others), torch.enable_grad():
        try:
            model.train()
            for param in params:
                param.grad = None
            yield
        finally:
            # What cannot fail first.
            for module, mode in modes:
                module.training = mode
            for module, table, not_persistent in tables:
                module._buffers.clear()
                module._buffers.update(table)
                module._non_persistent_buffers_set = not_persistent
            for param, grad, requires_grad in before:
                param.grad = grad
                param.requires_grad_(requires_grad)
            _put_back(kept)


def _put_back(kept: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Write what tensors held before into them: all that can be, before one that cannot is told of."""
    failed: list[RuntimeError] = []
    with torch.no_grad():
        for tensor, content in kept:
            # Nobody can have written to these either: no content, or several elements in one place.
            if tensor.is_meta or (tensor.layout == torch.strided and memory.overlaps_itself(tensor)):
                continue
            try:
                tensor.copy_(content)
            except RuntimeError as error:
                failed.append(error)
    if failed:
        raise failed[0]


@contextmanager
def _same_random_numbers(kinds: list[str], devices: set[torch.device]) -> Iterator[None]:
    """Leave the generators of the CPU and of these devices as they are found."""
    if not kinds:
        with torch.random.fork_rng(devices=[]):
            yield
        return
    kind, *rest = kinds
    own = [device for device in devices if device.type == kind]
    with torch.random.fork_rng(devices=own, device_type=kind), _same_random_numbers(rest, devices):
        yield
