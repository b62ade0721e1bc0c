"""The reference under torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor


@contextmanager
def compiled_reference(backend: str = "inductor") -> Iterator[None]:
    """Within it, optimizers with ``backend="reference"`` run compiled rules.

    A tensor at a time, so that there is one graph for each shape and not one for a model's list, which takes
    minutes to compile. ALIAS stays as it is: its tensors share scalars, which its reference reads on the
    host.
    """
    from sage_ext import reference
    from sage_ext.optimizers.hybrid import RULES

    # More shapes and dtypes than torch's limit for one function.
    with ExitStack() as stack, torch._dynamo.config.patch(cache_size_limit=64):
        for rule in RULES.values():
            if not rule.shared_keys:
                function = torch.compile(getattr(reference, f"{rule.name}_"), backend=backend, dynamic=False)
                stack.enter_context(mock.patch.object(reference, f"{rule.name}_", one_by_one(function)))
        yield


def one_by_one(function: Callable[..., Any]) -> Callable[..., None]:
    """Call a rule's function for each parameter by itself."""

    def call(
        params: Sequence[Tensor], grads: Sequence[Tensor], *states: Sequence[Tensor], **rest: Any
    ) -> None:
        for index in range(len(params)):
            of_it = ([state[index]] if state else [] for state in states)
            function([params[index]], [grads[index]], *of_it, **rest)

    return call
