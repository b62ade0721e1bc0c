"""Writes ``sage_ext/_C.pyi`` from what the built module says of itself. For ``make stub``."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

STUB = Path(__file__).resolve().parent.parent / "sage_ext" / "_C.pyi"

HEAD = '''"""The native module: everything here changes tensors in place; sage_ext.reference has the formulas.

All tensors of a call are on one device, the step counters too; ``lr`` (if a tensor), ``grad_scale`` and
``found_inf`` are one floating element each, on any device. On a CUDA device a call enqueues kernels on the
current stream and the host reads no value from the device: it never waits, and a CUDA graph can capture the
call. Where a rule has a ``momentum``, ``exp_avgs`` is empty if that is 0. ALIAS takes one tensor of scalars
for all of a call's, and empty lists for what its form does not keep (see sage_ext.reference.alias_).

Written by tools/stub.py from csrc/ops/rules.h and functions.h, where they are declared: ``make stub`` writes
it anew.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

__version__: str

def build_info() -> dict[str, Any]: ...
def cpu_capability() -> str: ...
def signatures() -> dict[str, tuple[str, list[Parameter], list[Parameter]]]:
    """For every rule what its function says of itself, its lists of tensors, and its keyword arguments."""

def functions() -> dict[str, tuple[str, list[Parameter]]]:
    """For every function that is no rule what it says of itself, and its arguments."""

# Name, type, and default, which is None where there is none.
Parameter = tuple[str, str, str | None]

class Stages:
    """A step on pieces of tensors, for SAGE, SinkGD and SCALE."""

    def proceed(self) -> tuple[str, list[Tensor]] | None:
        """Go on to the next exchange: what was summed over (``"rows"`` or ``"columns"``), and a buffer for
        each parameter, which has to hold the sum over all pieces by the next call. None when it is done."""

class StateItems:
    """The items of ``optimizer.state``, for ``Gathered``; valid until that changes."""

    def __init__(self, state: Mapping[Tensor, dict[str, Any]]) -> None: ...

class GroupTensors:
    """The tensors of one step of a parameter group. A step takes them out of it."""

class Gathered:
    """Where the last step has found the tensors of a parameter group. It keeps none of them alive.

    ``keys`` are a rule's names in the states, ``kept`` says which of them are there, and ``shared`` is what
    the group's parameters share.
    """

    is_valid: bool
    """Whether steps can begin with it."""
    has_grads: bool
    """Whether any parameter had a gradient."""

    def __init__(
        self,
        params: list[Tensor],
        state: StateItems,
        keys: Sequence[str],
        kept: Sequence[bool],
        shared: list[Tensor],
    ) -> None: ...
    def look(self, params: list[Tensor], state: StateItems, shared: list[Tensor]) -> GroupTensors | None:
        """The tensors for a step, if all of them are in their places and as they were."""

class Step:
    """Plans of several groups: each method checks its arguments and changes nothing, run() runs them all.

    On a CUDA device the methods and run() have to be called on one stream.
    """

    def __init__(self) -> None: ...
    def run(self) -> None: ...
    def stages(self, *, shapes: Sequence[Sequence[int]], rows: bool, columns: bool) -> Stages:
        """Begin the only plan in stages: its parameters are pieces of tensors of these shapes, and ``rows``
        and ``columns`` say what other processes have the rest of."""
'''


def render(module: ModuleType) -> str:
    """Return the stub of ``module``, which is ``sage_ext._C``."""
    rules = module.signatures()
    methods = [_function(name, rules[name], method=True) for name in rules]
    methods += [_function(f"again_{name}", _again(rules[name]), method=True) for name in rules]
    functions = (_function(f"{name}_", rules[name], method=False) for name in rules)
    plain = (_function(name, (*each, []), method=False) for name, each in module.functions().items())
    return "".join([HEAD, *methods, *(f"\n{function}" for function in (*functions, *plain))])


def _again(signature: tuple) -> tuple:
    """The signature of a step with lists that have been checked."""
    doc, _, keywords = signature
    return doc, [("tensors", "GroupTensors", None)], [item for item in keywords if item[0] != "describe"]


def _function(name: str, signature: tuple, *, method: bool) -> str:
    """One function, an argument a line; of a class that is indented by four."""
    doc, lists, keywords = signature
    arguments = ["self"] if method else []
    arguments += [f"{argument}: {kind}" for argument, kind, _ in lists]
    arguments += ["*"] if keywords else []
    arguments += [
        f"{argument}: {kind}" + (f" = {default}" if default is not None else "")
        for argument, kind, default in keywords
    ]
    lines = [
        f"def {name}(",
        *(f"    {argument}," for argument in arguments),
        ") -> None:",
        f'    """{doc}"""',
    ]
    return "".join(f"{'    ' if method else ''}{line}\n" for line in lines)


if __name__ == "__main__":
    from sage_ext import _loader

    STUB.write_text(render(_loader.load()))
    print(f"wrote {STUB}")
