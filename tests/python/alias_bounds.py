"""How far ALIAS and ALIAS-Adam in float32 may be from the reference in float64, worked out of the numbers.

Sums run in float32 over a bounded number of terms and then in float64, so that their error is relative to the
sum of magnitudes: an inner product that cancels is known to that and no better. What it enters (d, gamma, and
with them every parameter) is then bounded by what gamma becomes at either end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sage_ext.reference._signs import unpack_signs
from sage_ext.reference.alias import ALIAS_SCALARS, adds_distances

if TYPE_CHECKING:
    from support import Tensors

UNIT = 2.0**-24
SUM = 64 * UNIT
"""Relative to the sum of magnitudes, where the terms have errors of either sign."""
SUM_OF_LIKE_TERMS = 160 * UNIT
"""Where all terms are alike and every addition may err in the same way, over at most some hundred of them."""
EXACT = 1e-13
"""Of a few float64 operations."""


def named(scalars: Tensor) -> dict[str, float]:
    """The shared scalars of a group by name."""
    return dict(zip(ALIAS_SCALARS, scalars.tolist(), strict=True))


def loaded(grad: Tensor, settings: dict[str, Any]) -> Tensor:
    """A gradient in float64 as a kernel loads it: divided by the scale, negated to maximize."""
    factor = -1.0 if settings["maximize"] else 1.0
    if settings.get("grad_scale") is not None:
        factor /= float(settings["grad_scale"])
    return grad.double() * factor


def refreshes(step: float, settings: dict[str, Any]) -> bool:
    if settings["phase"] != "step":
        return settings["phase"] == "refresh"
    return step >= 2 and (step - 2) % settings["update_every"] == 0


def alias_scalars(
    before: Tensors, after: Tensors, settings: dict[str, Any], ran_on_gpu: bool
) -> dict[str, float]:
    """Bounds of the shared scalars, by name; without the displacement, which follows from what was stored."""
    old, new = (named(tensors.shared["scalars"][0]) for tensors in (before, after))
    grads = [loaded(grad, settings) for grad in before.grads]
    error = {name: EXACT * abs(value) for name, value in new.items()}
    adds_up = settings["smoothness"] == "sum"
    for name in ("grad_max", "grad_min"):
        error[name] = (SUM if adds_up else 2 * UNIT) * abs(new[name])
    if ran_on_gpu:
        # Every kernel loads gradients with a factor in float32. There the quotient is one from the start, and
        # is kept as such.
        error["grad_factor"] = UNIT * abs(new["grad_factor"])
    if refreshes(new["step"], settings):
        size = sum(float(g.abs().sum()) for g in grads)
        if adds_up:
            change = SUM * size
        elif settings["memory_efficient"]:
            extrema = [g.aminmax() for g in grads if g.numel()]
            change = 2 * UNIT * max((float(x.abs()) for pair in extrema for x in pair), default=0.0)
            change += 2 * UNIT * max(abs(old["grad_max"]), abs(old["grad_min"]))
        else:
            previous = sum(float(p.abs().sum()) for p in before.states["prev_grad"])
            change = SUM * (size + previous * abs(old["grad_factor"]))
        if old["displacement"] != 0:
            error["eta"] += change / old["displacement"]
        if settings["gap"] == "descent":
            error["gap"] += old["step_size"] * SUM * size
            error["d"] += error["gap"]
    error["step_size"] = _step_size_error(new, error, settings)
    return error


def _step_size_error(new: dict[str, float], error: dict[str, float], settings: dict[str, Any]) -> float:
    gamma = new["step_size"]
    if settings["phase"] == "refresh" or not math.isfinite(gamma):
        return 0.0
    result = EXACT * gamma
    if new["step"] > settings["warmup_steps"] and new["eta"] != 0:
        for side in (-1, 1):
            d, eta = max(new["d"] + side * error["d"], 0.0), new["eta"] - side * error["eta"]
            end = math.sqrt(d / eta) if eta > 0 else math.inf
            result = max(result, abs(min(end, settings["max_step"]) - gamma))
    return result if math.isfinite(result) else 0.0


def alias_param(
    before: Tensors, after: Tensors, index: int, settings: dict[str, Any], errors: dict[str, float]
) -> Tensor:
    """The bound of one parameter: rounding of the update, and gamma as a float32 that is itself off.

    ``errors`` are those of the scalars.
    """
    old, new = before.params[index], after.params[index]
    wd, gamma = settings["weight_decay"], named(after.shared["scalars"][0])["step_size"]
    off = errors["step_size"] + 2 * UNIT * gamma
    update = (new - old * (1 - gamma * wd)).abs()
    bound = 4 * UNIT * (old.abs() + update) + off * (1 + wd * old.abs())
    return bound.nan_to_num(0.0, 0.0, 0.0)


def displacement(old: Sequence[Tensor], new: Sequence[Tensor], settings: dict[str, Any]) -> float:
    """How far the parameters went as they were stored, in float64."""
    moved = [(b.double() - a.double()).abs() for a, b in zip(old, new, strict=True) if a.numel()]
    if adds_distances(settings):
        return sum(float(m.sum()) for m in moved)
    return float(torch.stack([m.max() for m in moved]).max()) if moved else 0.0


def check_alias_scalars(
    tensors: Tensors,
    before: Tensors,
    after: Tensors,
    settings: dict[str, Any],
    errors: dict[str, float],
    where: str,
) -> None:
    """Fail unless the shared scalars are those of the reference, and the displacement what was stored."""
    got, expected = (named(t.shared["scalars"][0]) for t in (tensors, after))
    error = dict(errors)
    if settings["phase"] != "refresh" and tensors.params:
        expected["displacement"] = displacement(before.params, tensors.params, settings)
        relative = SUM_OF_LIKE_TERMS if adds_distances(settings) else 2 * UNIT
        error["displacement"] = relative * abs(expected["displacement"])
    for name, value in expected.items():
        said = f"{where}: {name} is {got[name]:.17g}, expected {value:.17g} up to {error[name]:.3g}"
        if math.isfinite(value) and math.isfinite(error[name]):
            assert abs(got[name] - value) <= error[name], said
        else:
            assert got[name] == value or (math.isnan(got[name]) and math.isnan(value)), said


def alias_adam(
    before: Tensors, after: Tensors, index: int, settings: dict[str, Any]
) -> dict[str, Tensor | float]:
    """The bounds of one parameter and its state."""
    g = loaded(before.grads[index], settings)
    old, new = before.params[index], after.params[index]
    m, v = before.states["exp_avg"][index], after.states["exp_avg_sq"][index]
    lr, beta1, beta2 = float(settings["lr"]), settings["beta1"], settings["beta2"]
    (_, old_d), (r, d) = (t.states["scalars"][index].tolist() for t in (before, after))
    # The inner product, in r and in d; d is known as well as r or, where it did not move, exactly.
    r_error = EXACT * abs(r) + (1 - math.sqrt(beta2)) * old_d * SUM * float(g.abs().sum())
    d_error = EXACT * d + (r_error if r + r_error > old_d else 0.0)
    m_error = 6 * UNIT * ((beta1 * m).abs() + ((1 - beta1) * d * g).abs()) + (1 - beta1) * d_error * g.abs()
    v_error = 8 * UNIT * v + 2 * (1 - beta2) * d * d_error * g.square() + 2.0**-148
    root = v.sqrt()
    denominator = root + settings["eps"]
    update = (new - old * (1 - lr * settings["weight_decay"])).abs()
    spread = lr * (d * m_error + d_error * after.states["exp_avg"][index].abs()) / denominator
    spread = spread + update * torch.where(v > 0, v_error / (2 * root), 0.0) / denominator
    return {
        "param": 4 * UNIT * (old.abs() + update) + 8 * UNIT * update + spread.nan_to_num(0.0, 0.0, 0.0),
        "exp_avg": m_error,
        "exp_avg_sq": v_error,
        "scalars": torch.tensor([r_error, d_error], dtype=torch.float64, device=new.device),
    }


def check_planes(planes: Tensor, grad: Tensor, where: str) -> None:
    """Fail unless the planes say the sign of every element, one bit each, and are 0 behind the last."""
    signs = torch.where(grad > 0, 1.0, torch.where(grad < 0, -1.0, 0.0)).to(torch.float64)
    assert torch.equal(unpack_signs(planes, signs), signs), f"{where}: other signs"
    positive, negative = planes
    assert not (positive & negative).any(), f"{where}: an element has both signs"
    if tail := grad.numel() % 32:
        last = torch.stack([positive[-1], negative[-1]]).cpu().to(torch.int64) & 0xFFFFFFFF
        assert not (last >> tail).any(), f"{where}: bits behind the last element"
