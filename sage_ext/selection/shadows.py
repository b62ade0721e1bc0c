"""The warm-up: AdamW trains, candidates look on. What each would have done is compared with what was done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import pvariance
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sage_ext import _loader, reference
from sage_ext.routing import Routed
from sage_ext.selection.candidates import REFERENCE, Candidate
from sage_ext.selection.preserve import preserved

Loss = Callable[[nn.Module, Any], Tensor]


COLUMNS = 256
"""Of so many columns of a matrix, drawn once, the updates are added up: each sum is memory."""


class Risk(NamedTuple):
    """How far a candidate is from AdamW on a parameter: three distances, each 0 for AdamW itself."""

    direction: float
    """``1 - cos`` of how far the two would have gone over the measured steps: 0 for the same direction, 1 for
    none in common, 2 for the opposite."""
    size: float
    """``1 - cos`` of the two lists of how far rows would have gone, and columns; mean of both."""
    variance: float
    """Over the steps, of the cosine of the two updates; and ``1 - cos`` of the two lists of their sizes."""

    @property
    def total(self) -> float:
        """The sum of the three."""
        return self.direction + self.size + self.variance


class Seen(NamedTuple):
    """A step of a candidate beside AdamW's, on one parameter."""

    product: float
    """<u, r> of the candidate's update u and AdamW's r."""
    squares: float
    """Sum of u squared."""
    reference_squares: float


class Gone(NamedTuple):
    """What the sums of their measured steps have in common, from 0 to 1: the cosines of the two sums, and of
    the norms of their lines."""

    direction: float
    rows: float
    columns: float


@dataclass
class Shadowed:
    """A parameter with its candidates."""

    entry: Routed
    candidates: Sequence[Candidate]
    states: list[dict[str, Tensor]] = field(default_factory=list)
    seen: list[list[Seen]] = field(default_factory=list)
    """For each candidate the measured steps."""
    gone: list[Gone] = field(default_factory=list)
    """For each candidate."""
    reference: list[float] = field(default_factory=list)
    """Sum of AdamW's update squared, a number a measured step."""
    columns: Tensor | None = None
    """Those whose updates are added up; None: all."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """While it is measured: candidate -> the sum of its updates in these columns; AdamW's always."""

    def risk(self, index: int) -> Risk:
        """Return the risk of a candidate; AdamW's own is 0, whatever rounding says."""
        if not self.seen or self.candidates[index].name == REFERENCE:
            return Risk(0.0, 0.0, 0.0)
        steps, gone = self.seen[index], self.gone[index]
        cosines = [_cosine(s.product, s.squares, s.reference_squares) for s in steps]
        lengths = [math.sqrt(s.squares) for s in steps], [math.sqrt(s.reference_squares) for s in steps]
        over_steps = _cosine(
            sum(a * b for a, b in zip(*lengths, strict=True)),
            sum(s.squares for s in steps),
            sum(s.reference_squares for s in steps),
        )
        # Rounding may lead out of [-1, 1] by a little.
        return Risk(
            max(1 - gone.direction, 0.0),
            max(1 - (gone.rows + gone.columns) / 2, 0.0),
            pvariance(cosines) + max(1 - over_steps, 0.0),
        )


def _cosine(product: float, squares: float, others: float) -> float:
    """Of two vectors; 1 where both are zero, 0 where one is."""
    if squares == 0 or others == 0:
        return float(squares == others)
    return product / math.sqrt(squares) / math.sqrt(others)


class Rate(NamedTuple):
    """Of AdamW, in a role, at the end of its rise."""

    lr: float
    weight_decay: float


def watch(
    model: nn.Module,
    batches: Iterable[Any],
    shadowed: Sequence[Shadowed],
    adamw: Sequence[Candidate],
    rates: Sequence[Rate],
    *,
    loss: Loss,
    steps: int,
    max_grad_norm: float | None,
    native: bool,
) -> None:
    """Train for ``steps`` steps and fill what the candidates have been ``seen`` to do. The model is as before
    in the end.

    The rate rises linearly to that of ``rates``. The first half of the steps fills the moments, and is not
    measured: in its first step AdamW is Sign-SGD.
    """
    params = [of.entry.param for of in shadowed]
    states = [own.new_state(param) for own, param in zip(adamw, params, strict=True)]
    for of in shadowed:
        of.states = [
            {} if candidate.name == REFERENCE else candidate.new_state(of.entry.param)
            for candidate in of.candidates
        ]
        of.seen, of.gone, of.sums = [[] for _ in of.candidates], [], {}
        of.columns = _drawn(of.entry.param)
    with preserved(model):
        for step, batch in enumerate(_so_many(batches, steps)):
            _fill_gradients(model, params, batch, loss, step)
            for of in shadowed:
                _check_gradient(of)
            if max_grad_norm is not None:
                nn.utils.clip_grad_norm_([p for p in params if p.grad is not None], max_grad_norm)
            sums: list[tuple[Shadowed, list[Tensor]]] = []
            with torch.no_grad():
                for of, own, state, rate in zip(shadowed, adamw, states, rates, strict=True):
                    if (grad := of.entry.param.grad) is None:
                        continue
                    made = _update(own, of.entry.param, grad, state, native)
                    found = _look(of, grad, made, native, is_measured=step >= steps // 2)
                    if found:
                        sums.append((of, found))
                    _move(of.entry.param, made, rate, (step + 1) / steps)
            _keep(sums)
            for param in params:
                param.grad = None
    for of in shadowed:
        of.states = []
        if not any(of.reference) and (of.entry.param.numel() or not of.reference):
            raise ValueError(
                f"model: {of.entry.name} had no gradient, or zeros alone, so nothing is known of it; "
                "freeze it with requires_grad_(False) if nothing trains it, or have batches that reach it, "
                "or more steps"
            )
    _add_up(shadowed)


def _so_many(batches: Iterable[Any], steps: int) -> Iterator[Any]:
    """Yield ``steps`` batches, from the beginning again where there are fewer."""
    done = 0
    while done < steps:
        before = done
        for batch in batches:
            yield batch
            done += 1
            if done == steps:
                return
        if done == before:
            if done == 0:
                raise ValueError("batches: there is none; give a list of batches or a DataLoader")
            raise ValueError(
                f"batches: an iterator that ended after {done} of {steps} steps; give a list or a "
                "DataLoader, which begin again" + (f", or steps={done}" if done > 1 else "")
            )


def _fill_gradients(model: nn.Module, params: Sequence[Tensor], batch: Any, loss: Loss, step: int) -> None:
    value = loss(model, batch)
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        shape = (
            f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        )
        raise ValueError(
            f"loss: got {shape}, expected a tensor of one element that depends on the parameters"
        )
    if not value.requires_grad:
        if torch.is_inference_mode_enabled():
            raise ValueError("loss: has no gradient; call autoconfig outside of torch.inference_mode()")
        raise ValueError(
            "loss: has no gradient; return what the model computed, without .detach() or torch.no_grad()"
        )
    if not bool(torch.isfinite(value.detach())):
        raise ValueError(
            f"loss: {value.item()} in step {step + 1}; look at that batch, or give a smaller lr, or "
            "max_grad_norm=1.0"
        )
    value.reshape(()).backward()  # type: ignore[no-untyped-call]
    if all(param.grad is None for param in params):
        raise ValueError(
            "loss: no parameter of the model has a gradient after loss.backward(); does it come from this "
            "model, and from parameters with requires_grad=True?"
        )


def _check_gradient(of: Shadowed) -> None:
    grad = of.entry.param.grad
    if grad is not None and grad.layout != torch.strided:
        raise ValueError(
            f"model: {of.entry.name} has a {grad.layout} gradient; build nn.Embedding with sparse=False"
        )


def _update(
    candidate: Candidate, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], native: bool
) -> Tensor:
    """Step the candidate and return minus its update: zeros that it has moved, at a rate of 1."""
    dtype = torch.promote_types(param.dtype, torch.float32)
    scratch = torch.zeros_like(param, dtype=dtype, requires_grad=False)
    if grad.stride() != param.stride():
        grad = torch.empty_like(param, dtype=grad.dtype, requires_grad=False).copy_(grad)
    rule = candidate.rule
    lists = [[state[key]] if key in state else [] for key in rule.state_keys]
    arguments = rule.arguments(candidate.settings)
    if native:
        plan = _loader.load().Step()
        getattr(plan, rule.name)([scratch], [grad], *lists, **arguments)
        plan.run()
    else:
        getattr(reference, f"{rule.name}_")([scratch], [grad], *lists, **arguments)
    return scratch


def _look(of: Shadowed, grad: Tensor, made: Tensor, native: bool, *, is_measured: bool) -> list[Tensor]:
    """Step every candidate; where it is measured, return AdamW's sum of squares and two numbers for each."""
    param = of.entry.param
    found: list[Tensor] = []
    if is_measured:
        found.append(made.square().sum(dtype=torch.float64))
        _add(of, REFERENCE, made)
    for candidate, state in zip(of.candidates, of.states, strict=True):
        is_same = candidate.name == REFERENCE
        update = made if is_same else _update(candidate, param, grad, state, native)
        if not is_measured:
            continue
        found += [(update * made).sum(dtype=torch.float64), update.square().sum(dtype=torch.float64)]
        if not is_same:
            _add(of, candidate.name, update)
    return found


def _drawn(param: Tensor) -> Tensor | None:
    """Return which columns of a matrix, or of a stack of them, stand for all; None: all do.

    They are drawn, as even spacing may meet a pattern of the model's; with the same outcome each time.
    """
    if param.ndim < 2 or param.shape[-1] <= COLUMNS:
        return None
    order = torch.randperm(param.shape[-1], generator=torch.Generator().manual_seed(0))
    return order[:COLUMNS].sort().values.to(param.device)


def _add(of: Shadowed, name: str, update: Tensor) -> None:
    """Add an update to its candidate's sum."""
    part = update if of.columns is None else update.index_select(-1, of.columns)
    if name in of.sums:
        of.sums[name] += part
    else:
        of.sums[name] = part.clone() if part is update else part


def _add_up(shadowed: Sequence[Shadowed]) -> None:
    """Compare the sums of all measured updates, and forget them."""
    for of in shadowed:
        made = of.sums[REFERENCE]
        lines = _norms(made)
        found = []
        for candidate in of.candidates:
            update = of.sums[candidate.name]
            pairs = [(update, made), *zip(_norms(update), lines, strict=True)]
            found += [
                (a * b).sum(dtype=torch.float64)
                for pair in pairs
                for a, b in (pair, (pair[0],) * 2, (pair[1],) * 2)
            ]
        of.sums = {}
        numbers = iter(torch.stack(found).tolist())
        of.gone = [
            Gone(*(_cosine(next(numbers), next(numbers), next(numbers)) for _ in Gone._fields))
            for _ in of.candidates
        ]


def _norms(total: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norms of rows and of columns, of all trailing matrices; of a vector its sizes, twice."""
    if total.ndim < 2:
        return total.abs(), total.abs()
    return torch.linalg.vector_norm(total, dim=-1), torch.linalg.vector_norm(total, dim=-2)


def _keep(sums: Sequence[tuple[Shadowed, list[Tensor]]]) -> None:
    """Read what one step has found: one wait for each device, not one for each number."""
    by_device: dict[torch.device, list[tuple[Shadowed, list[Tensor]]]] = {}
    for of, tensors in sums:
        by_device.setdefault(tensors[0].device, []).append((of, tensors))
    for found in by_device.values():
        numbers = iter(torch.stack([tensor for _, tensors in found for tensor in tensors]).tolist())
        for of, _ in found:
            squares = next(numbers)
            of.reference.append(squares)
            for seen in of.seen:
                product, own = next(numbers), next(numbers)
                seen.append(Seen(product, own, squares))
                if not math.isfinite(product + own + squares):
                    raise ValueError(
                        f"model: the gradient of {of.entry.name} is not finite, or its squares leave "
                        "float32; give max_grad_norm=1.0, or a smaller lr"
                    )


def _move(param: Tensor, made: Tensor, rate: Rate, share: float) -> None:
    lr = rate.lr * share
    kept = param.to(made.dtype) * (1 - lr * rate.weight_decay)
    param.copy_(kept.add_(made, alpha=lr))
