"""A model that is trained for a while, and then as it was to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put back weights, buffers, gradients, each module's mode and torch's random state, whatever happens.

    Inside, all modules are in training mode, parameters have no gradients, and gradients are on.
    """
    modes = [(module, module.training) for module in model.modules()]
    params = list(model.parameters())
    grads = [(param, param.grad) for param in params]
    weights = [(param, param.detach().clone()) for param in params if param.requires_grad]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    others = {tensor.device for tensor in [*params, *(b for _, _, b, _ in buffers)]} - {torch.device("cpu")}
    kinds = {device.type for device in others} - {"meta"}
    with _same_random_numbers(sorted(kinds), others), torch.enable_grad():
        try:
            model.train()
            for param in params:
                param.grad = None
            yield
        finally:
            with torch.no_grad():
                for param, kept in weights:
                    param.copy_(kept)
                for module, name, buffer, kept in buffers:
                    buffer.copy_(kept)
                    module._buffers[name] = buffer
            for param, grad in grads:
                param.grad = grad
            for module, mode in modes:
                module.training = mode


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
