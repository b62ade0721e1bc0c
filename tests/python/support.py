"""Inputs for the rules, and the comparison of a kernel with the reference in float64.

A comparison takes one step from the very same numbers on both sides: the kernel's tensors are copied to
float64, which is exact, and the reference steps the copy. What may differ is then known: the kernel computes
in float32 and rounds once, so the bound of an element is half a unit in the last place of its storage dtype
plus a few float32 roundings of the terms that it is the sum of.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import alias_bounds
import torch
from torch import Tensor

from sage_ext import reference
from sage_ext.optimizers.hybrid import RULES
from sage_ext.reference._common import scaled_norm

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
DTYPES = (FP32, BF16, FP16)
DTYPE_MIXES = list(itertools.product(DTYPES, repeat=3))
MIX_NAMES = [str.join("-", [str(dtype).removeprefix("torch.") for dtype in mix]) for mix in DTYPE_MIXES]

UNIT = 2.0**-24
"""Unit roundoff of float32: the relative error of one operation."""
SMALLEST = 2.0**-149
"""The smallest float32: results near it have an absolute error instead."""

# Lengths around vector, chunk and tile sizes; single rows and columns; more dimensions; nothing at all.
VECTOR_SHAPES = ((1,), (31,), (777,), (4097,), (65537,), ())
MATRIX_SHAPES = (
    (1, 1),
    (1, 777),
    (777, 1),
    (31, 33),
    (129, 1025),
    (4097, 3),
    (3, 4097),
    (2, 65, 129),
    (2, 3, 4, 5),
)
EMPTY_SHAPES = ((0, 5), (5, 0), (2, 0, 3))


_ALIAS = {"eta0": 1.0, "d0": 1e-4, "max_step": 100.0}
# Hyperparameters with which a rule runs other kernels and keeps other states, each under a name of its own.
# The functions below take such a name where they take a rule's.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "signum": ("sign_sgd", {"momentum": 0.9}),
    "scale_columns": ("scale", {"dim": 0}),
    "scale_momentum": ("scale", {"momentum": 0.9}),
    "scale_momentum_columns": ("scale", {"momentum": 0.9, "dim": 0}),
    # An eta0 and a max_step with which gamma is found and not the largest allowed.
    "alias": ("alias", {**_ALIAS, "gap": "descent"}),
    "alias_lower_bound": ("alias", {**_ALIAS, "gap": "lower_bound"}),
    "alias_sum": ("alias", {**_ALIAS, "smoothness": "sum"}),
    "alias_sum_lower_bound": ("alias", {**_ALIAS, "smoothness": "sum", "gap": "lower_bound"}),
    "alias_base": ("alias", {**_ALIAS, "memory_efficient": False}),
    "alias_base_lower_bound": ("alias", {**_ALIAS, "memory_efficient": False, "gap": "lower_bound"}),
}
ALL = tuple(dict.fromkeys((*RULES, *VARIANTS)))
LOSS = 2.5
"""Of the first step, for the variants that need one."""


def rule_of(name: str) -> str:
    """The name of the rule of a variant, or of a rule itself."""
    return VARIANTS[name][0] if name in VARIANTS else name


def defaults_of(name: str) -> dict[str, Any]:
    """The hyperparameters of a variant, or the defaults of a rule."""
    rule, changes = VARIANTS.get(name, (name, {}))
    return {**RULES[rule].defaults, **changes}


@dataclass
class Tensors:
    """The lists that a rule's function takes."""

    params: list[Tensor]
    grads: list[Tensor]
    states: dict[str, list[Tensor]]
    shared: dict[str, list[Tensor]] = field(default_factory=dict)
    """What all tensors of a call share: one tensor in each list."""

    @property
    def lists(self) -> list[list[Tensor]]:
        """What the function takes behind the gradients."""
        return [*self.states.values(), *self.shared.values()]

    def clone(self, dtype: torch.dtype | None = None) -> Tensors:
        """A copy; with ``dtype``, in that dtype (but for the step counters and sign planes)."""

        def copy(tensors: Sequence[Tensor], to: torch.dtype | None) -> list[Tensor]:
            return [tensor.detach().clone().to(to or tensor.dtype) for tensor in tensors]

        kept = ("step", "signs")
        states = {key: copy(value, None if key in kept else dtype) for key, value in self.states.items()}
        shared = {key: copy(value, None) for key, value in self.shared.items()}
        return Tensors(copy(self.params, dtype), copy(self.grads, dtype), states, shared)

    def to(self, device: torch.device | str) -> Tensors:
        """A copy on a device."""
        states = {key: copies_on(device, values) for key, values in self.states.items()}
        shared = {key: copies_on(device, values) for key, values in self.shared.items()}
        return Tensors(copies_on(device, self.params), copies_on(device, self.grads), states, shared)

    def flat(self) -> list[Tensor]:
        return [*self.params, *self.grads, *itertools.chain.from_iterable(self.lists)]


def copies_on(device: torch.device | str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous copies on a device.

    What goes to a GPU or comes from there goes together: the host waits for each copy, and thousands of
    tensors are thousands of them.
    """
    if all(tensor.device.type == torch.device(device).type == "cpu" for tensor in tensors):
        return [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]
    copies: dict[int, Tensor] = {}
    for kind in {(tensor.device, tensor.dtype) for tensor in tensors}:
        indices = [i for i, tensor in enumerate(tensors) if (tensor.device, tensor.dtype) == kind]
        whole = torch.cat([tensors[i].detach().reshape(-1) for i in indices]).to(device)
        parts = whole.split([tensors[i].numel() for i in indices])
        # Each in memory of its own, which begins on a boundary.
        copies |= {i: part.clone().view(tensors[i].shape) for i, part in zip(indices, parts, strict=True)}
    return [copies[i] for i in range(len(tensors))]


def shapes_of(rule: str) -> tuple[tuple[int, ...], ...]:
    """Every shape the rule takes, with empty tensors in the middle and at the end."""
    vectors = () if RULES[rule_of(rule)].min_ndim > 1 else VECTOR_SHAPES
    return (*vectors, EMPTY_SHAPES[0], *MATRIX_SHAPES, *EMPTY_SHAPES)


def make(
    rule: str,
    shapes: Sequence[Sequence[int]],
    mix: tuple[torch.dtype, torch.dtype, torch.dtype] = (FP32, FP32, FP32),
    *,
    scale: float = 1.0,
    seed: int = 0,
) -> Tensors:
    """Random parameters of order 1, gradients of order ``scale``, and a new state, in dtypes (W, g, state).

    They are on torch's default device, with the same numbers on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    params = [normal(shape, generator).to(mix[0]) for shape in shapes]
    group, rule_itself = {**defaults_of(rule), "state_dtype": mix[2]}, RULES[rule_of(rule)]
    held = [rule_itself.init_state(param, group) for param in params]
    kept = rule_itself.kept_keys(group)
    states = {key: [state[key] for state in held] if key in kept else [] for key in rule_itself.state_keys}
    if "prev_grad" in states:
        states["prev_grad"] = [value.to(mix[1]) for value in states["prev_grad"]]
    shared = {key: [value] for key, value in rule_itself.init_shared(group).items()}
    tensors = Tensors(params, [], states, shared)
    tensors.grads = new_grads(tensors, mix[1], scale=scale, seed=seed + 1)
    device = torch.get_default_device()
    return tensors if device.type == "cpu" else tensors.to(device)


def new_grads(tensors: Tensors, dtype: torch.dtype, *, scale: float = 1.0, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    grads = [(scale * normal(param.shape, generator)).to(dtype) for param in tensors.params]
    devices = {param.device for param in tensors.params}
    return grads if devices <= {torch.device("cpu")} else copies_on(devices.pop(), grads)


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Normal numbers on the CPU, from a generator there."""
    return torch.randn(tuple(shape), generator=generator, device="cpu")


def hyper(rule: str, **changes: Any) -> dict[str, Any]:
    """Keyword arguments of a rule's function: its defaults with ``changes`` (``betas`` included)."""
    extra = {key: changes.pop(key) for key in ("grad_scale", "found_inf", "loss", "phase") if key in changes}
    group = {**defaults_of(rule), **changes}
    if RULES[rule_of(rule)].takes_loss(group):
        extra.setdefault("loss", LOSS)
    return {**RULES[rule_of(rule)].arguments(group), **extra}


def at_rate(rule: str, lr: float | Tensor) -> dict[str, Any]:
    """Hyperparameters with which a rule's steps follow ``lr``: those of ALIAS do so during warm-up alone."""
    return {"lr": lr, **({"warmup_steps": 1_000_000} if rule_of(rule) == "alias" else {})}


def call(module: ModuleType, rule: str, tensors: Tensors, **changes: Any) -> None:
    """One step of the rule in place."""
    function = getattr(module, f"{rule_of(rule)}_")
    function(tensors.params, tensors.grads, *tensors.lists, **hyper(rule, **changes))


def step_and_compare(module: ModuleType, rule: str, tensors: Tensors, **changes: Any) -> None:
    """Step ``tensors`` with ``module`` and fail unless the float64 reference arrives at the same numbers.

    The reference steps a copy on the CPU, and there the two are compared: on a GPU each operation on each of
    thousands of small tensors would be a launch that is waited for.
    """
    ran_on_gpu = any(param.is_cuda for param in tensors.params)
    start = tensors.to("cpu") if ran_on_gpu else tensors.clone()
    before, oracle = start.clone(FP64), start.clone(FP64)
    call(module, rule, tensors, **changes)
    stepped = tensors.to("cpu") if ran_on_gpu else tensors
    changes = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in changes.items()}
    call(reference, rule, oracle, **changes)
    _compare(rule, stepped, before, oracle, start.grads, hyper(rule, **changes), ran_on_gpu)


def _compare(
    rule: str,
    tensors: Tensors,
    before: Tensors,
    oracle: Tensors,
    old_grads: Sequence[Tensor],
    settings: dict[str, Any],
    ran_on_gpu: bool,
) -> None:
    errors = alias_bounds.alias_scalars(before, oracle, settings, ran_on_gpu) if tensors.shared else {}
    for old, new in zip(old_grads, tensors.grads, strict=True):
        same = torch.equal(old, new) or torch.equal(old.nan_to_num(), new.nan_to_num())
        assert same, "a gradient was written"
    for index, param in enumerate(tensors.params):
        where = f"{rule}, tensor {index}, shape {tuple(param.shape)}, {param.dtype}"
        bounds = _bounds(rule, before, oracle, index, settings, errors)
        if rule_of(rule) == "scale" and settings["momentum"]:
            dtype = tensors.states["exp_avg"][index].dtype
            bounds["param"] = bounds["param"] + _rounded_momentum(before, oracle, index, settings, dtype)
        check(param, oracle.params[index], bounds["param"], f"{where}: parameter")
        for key, values in tensors.states.items():
            if not values:
                continue
            if key == "signs":
                assert_same_bits([values[index]], [oracle.states[key][index]])
                continue
            check(values[index], oracle.states[key][index], bounds[key], f"{where}: {key}")
    if tensors.shared:
        alias_bounds.check_alias_scalars(tensors, before, oracle, settings, errors, rule)


def check(value: Tensor, expected: Tensor, bound: Tensor | float, where: str) -> None:
    """Fail unless |value - expected| is within ``bound`` plus the rounding of the store; NaN and inf must
    match."""
    got = value.double()
    if bool(((got - expected).abs() < bound + half_ulp(expected, value.dtype)).all()):
        return  # nothing that is not finite, for of such a difference that is never so
    finite = expected.isfinite()
    assert torch.equal(got.isnan(), expected.isnan()), f"{where}: NaN in other places"
    assert torch.equal(got[~finite].nan_to_num(), expected[~finite].nan_to_num()), (
        f"{where}: other infinities"
    )
    excess = (got - expected).abs() - bound - half_ulp(expected, value.dtype)
    excess = excess[finite]
    if excess.numel():
        worst = int(excess.argmax())
        assert float(excess[worst]) <= 0, (
            f"{where}: element {worst} (of the finite ones) is {got[finite][worst]:.9g}, expected "
            f"{expected[finite][worst]:.9g}"
        )


def half_ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """An upper bound of what rounding ``value`` to ``dtype`` costs."""
    info = torch.finfo(dtype)
    return (value.abs() * (info.eps / 2)).clamp(min=info.smallest_normal * info.eps / 2)


def _bounds(
    rule: str,
    before: Tensors,
    after: Tensors,
    index: int,
    settings: dict[str, Any],
    errors: dict[str, float],
) -> dict[str, Tensor | float]:
    """How far float32 arithmetic may be from the float64 result, before the store rounds.

    ``errors`` are those of what the tensors share.
    """
    if rule_of(rule) == "alias":
        return {"param": alias_bounds.alias_param(before, after, index, settings, errors), "prev_grad": 0.0}
    if rule == "alias_adam":
        return alias_bounds.alias_adam(before, after, index, settings)
    old, new = before.params[index], after.params[index]
    lr = float(settings["lr"])
    g = before.grads[index] * (-1 if settings["maximize"] else 1)
    if settings.get("grad_scale") is not None:
        g = g / settings["grad_scale"].double()
    update = (new - old * (1 - lr * settings["weight_decay"])).abs()
    # Decay, scaling, subtraction: a few roundings of the terms.
    bound = 4 * UNIT * (old.abs() + update)
    result: dict[str, Tensor | float] = {"step": 0.0}
    if rule == "sinkgd":
        # Each normalisation adds a few roundings to every later one. Column sums run in float32 over a
        # bounded number of rows; where entries are alike, as in a single column, the additions may all err
        # alike.
        chain = min(old.shape[-2], 512) / 4
        result["param"] = bound + update * UNIT * (20 + 4 * settings["iterations"] + chain)
        return result
    if rule_of(rule) == "scale":
        # Sums run in float32 over at most a few hundred additions, then in float64.
        result["param"] = bound + update * UNIT * (24 + min(max(old.shape[-2:]), 512) / 4)
        if (momentum := settings["momentum"]) > 0:
            m = before.states["exp_avg"][index]
            result["exp_avg"] = 4 * UNIT * ((momentum * m).abs() + ((1 - momentum) * g).abs())
        return result
    if rule_of(rule) == "sign_sgd":
        result["param"] = bound + 8 * UNIT * update
        if (momentum := settings["momentum"]) > 0:
            m = before.states["exp_avg"][index]
            terms = (momentum * m).abs() + ((1 - momentum) * g).abs()
            result["exp_avg"] = 4 * UNIT * terms
            # A sign may differ only where its argument is within rounding of zero.
            is_open = ((momentum * m + (1 - momentum) * g).abs() <= 4 * UNIT * terms) & (terms > 0)
            result["param"] = result["param"] + torch.where(is_open, 2.0 * lr, 0.0)
        return result
    m = before.states["exp_avg"][index]
    beta1, beta2 = settings["beta1"], settings["beta2"]
    if rule == "adamw":
        m_error = 4 * UNIT * ((beta1 * m).abs() + ((1 - beta1) * g).abs())
        correction = 1 - beta1 ** float(after.states["step"][index])
        v = after.states["exp_avg_sq"][index]
        denominator = (v / (1 - beta2 ** float(after.states["step"][index]))).sqrt() + settings["eps"]
        spread = torch.where(denominator > 0, lr / correction * m_error / denominator, 0.0)
        result["param"] = bound + 8 * UNIT * update + spread
        result["exp_avg"] = m_error
        result["exp_avg_sq"] = 6 * UNIT * v + 2 * SMALLEST
        return result
    # A sign may differ only where its argument is within rounding of zero.
    keep = beta1 * beta2 if settings.get("momentum_first") else beta1
    terms = (keep * m).abs() + ((1 - keep) * g).abs()
    is_open = (keep * m + (1 - keep) * g).abs() <= 4 * UNIT * terms
    is_open &= terms > 0
    result["param"] = bound + 8 * UNIT * update + torch.where(is_open, 2.0 * lr, 0.0)
    result["exp_avg"] = 4 * UNIT * ((beta2 * m).abs() + ((1 - beta2) * g).abs())
    if rule == "sage":
        result["s_range"] = 8 * UNIT * after.states["s_range"][index].abs()
    return result


def _rounded_momentum(
    before: Tensors, after: Tensors, index: int, settings: dict[str, Any], dtype: torch.dtype
) -> Tensor:
    """How far SCALE's update may be off because it takes the momentum as it is stored, in ``dtype``."""
    old, m = before.states["exp_avg"][index], after.states["exp_avg"][index]
    if m.numel() == 0:
        return torch.zeros_like(m)
    dim = settings["dim"] - 2
    error = half_ulp(m, dtype) + 8 * UNIT * (m.abs() + old.abs())
    length = m.shape[dim] if settings["normalization"] == "rms" else 1
    norm = scaled_norm(m, dim) / length**0.5
    divisor = norm.clamp(min=settings["eps"])
    spread = error / divisor + m.abs() / divisor**2 * scaled_norm(error, dim) / length**0.5
    return (2 * float(settings["lr"]) * spread).nan_to_num(0.0, 0.0, 0.0)


def assert_same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    """Fail unless both lists hold the same dtypes, shapes and bits."""
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        assert a.dtype == b.dtype, index
        assert a.shape == b.shape, index
        view = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        assert torch.equal(a.contiguous().view(view), b.contiguous().view(view)), f"tensor {index} differs"


def assert_same_numbers(first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    """As ``assert_same_bits``, the signs of zeros included, but that a NaN is a NaN whatever its bits.

    Which bits one gets where a number is converted is up to the device, and to the instruction.
    """
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a.isnan(), b.isnan()), f"tensor {index} has NaN in other places"
    numbers = ([tensor.masked_fill(tensor.isnan(), 0) for tensor in side] for side in (first, second))
    assert_same_bits(*numbers)
