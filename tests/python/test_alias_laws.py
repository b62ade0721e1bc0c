"""ALIAS and ALIAS-Adam by hand, sign planes, and the laws that hold whatever the numbers."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import alias_bounds
import hypothesis.strategies as st
import pytest
import support
import torch
from hypothesis import HealthCheck, given, settings
from support import BF16, FP16, FP32, FP64

from sage_ext import reference
from sage_ext.reference._signs import pack_signs, sign_words, unpack_signs

laws = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**16)
powers = st.integers(-60, 60)
FORMS = [name for name, (rule, _) in support.VARIANTS.items() if rule == "alias"]
every_form = pytest.mark.parametrize("form", FORMS)


def scalars_of(tensors: support.Tensors) -> dict[str, float]:
    return alias_bounds.named(tensors.shared["scalars"][0])


# ------------------------------------------------------------------------------------------------ sign planes


@laws
@given(
    values=st.lists(
        st.one_of(
            st.floats(width=32, allow_nan=True), st.sampled_from([0.0, -0.0, math.nan, 2.0**-149, math.inf])
        ),
        max_size=130,
    ),
    dtype=st.sampled_from([FP32, FP64]),
)
def test_signs_survive_packing(values: list[float], dtype: torch.dtype) -> None:
    """0, -0 and NaN have neither sign, anything else has its own, and bits behind the last are 0."""
    tensor = torch.tensor(values, dtype=dtype)
    planes = pack_signs(tensor)
    assert planes.dtype == torch.int32
    assert planes.shape == (2, -(-len(values) // 32))
    expected = [float((value > 0) - (value < 0)) for value in values]
    assert unpack_signs(planes, tensor).tolist() == expected
    bits = [[(int(word) >> place) & 1 for word in plane for place in range(32)] for plane in planes.tolist()]
    for plane, sign in zip(bits, (1.0, -1.0), strict=True):
        padding = [0] * (len(plane) - len(values))
        assert plane == [int(value == sign) for value in expected] + padding


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16, FP64])
@pytest.mark.parametrize("shape", [(), (1,), (31,), (32,), (33,), (3, 5, 7), (0, 4), (4, 100)])
def test_planes_of_any_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.randn(shape).to(dtype)
    odd = tensor.t() if tensor.ndim == 2 else tensor
    for values in (tensor, odd):
        planes = pack_signs(values)
        assert planes.numel() == 2 * sign_words(values.numel())
        assert torch.equal(unpack_signs(planes, values), values.sign())
        assert unpack_signs(planes, values).dtype == dtype


# ------------------------------------------------------------------------------------------------ by hand


class ByHand:
    """ALIAS in Python floats, one number at a time, written from the paper's formulas."""

    def __init__(self, x: list[float], group: dict[str, Any]) -> None:
        self.x, self.group, self.t = x, group, 0
        self.eta, self.dt = group["eta0"], 0.0
        self.d, self.gamma = group["d0"], 0.0
        self.g: list[float] = []
        self.moved: list[float] = []
        self.compared: tuple[list[float], ...] = ()

    def step(self, g: list[float], loss: float) -> None:
        group, self.t = self.group, self.t + 1
        if self.t == 1 and group["gap"] == "lower_bound":
            self.d = loss - group["lower_bound"]
        every = group["update_every"]
        if self.t >= 2 and (self.t - 2) % every == 0:
            p = self.g
            if any(self.moved):
                if group["smoothness"] == "sum":
                    self.eta += sum(abs(a) + abs(b) for a, b in zip(g, p, strict=True)) / max(self.moved)
                elif group["memory_efficient"]:
                    change = max(abs(max(g) - min(p)), abs(max(p) - min(g)))
                    self.eta += change / sum(self.moved)
                else:
                    self.eta += sum(abs(a - b) for a, b in zip(g, p, strict=True)) / max(self.moved)
            if group["gap"] == "descent":
                self.dt += self.gamma * sum(a * ((b > 0) - (b < 0)) for a, b in zip(g, p, strict=True))
                self.d = max(self.d, self.dt)
        self.g = g
        if self.t <= group["warmup_steps"]:
            self.gamma = group["lr"]
        else:
            self.gamma = math.sqrt(self.d / self.eta) if self.eta else math.inf
        self.gamma = min(self.gamma, group["max_step"])
        signs = [(value > 0) - (value < 0) for value in g]
        decay = 1 - self.gamma * group["weight_decay"]
        new = [w * decay - self.gamma * s for w, s in zip(self.x, signs, strict=True)]
        self.moved = [abs(a - b) for a, b in zip(self.x, new, strict=True)]
        self.x = new


@every_form
@pytest.mark.parametrize("update_every", [1, 2, 3])
@pytest.mark.parametrize("warmup_steps", [0, 3])
@pytest.mark.parametrize("eta0", [0.0, 0.5])
def test_against_scalars(form: str, update_every: int, warmup_steps: int, eta0: float) -> None:
    changes = {
        "update_every": update_every,
        "warmup_steps": warmup_steps,
        "eta0": eta0,
        "lr": 0.01,
        "max_step": 3.0,
        "weight_decay": 0.1,
        "d0": 1e-3,
        "lower_bound": -0.01,
    }
    group = {**support.defaults_of(form), **changes}
    tensors = support.make(form, [(4, 3), (5,)], (FP64, FP64, FP64))
    tensors.shared["scalars"] = list(support.RULES["alias"].init_shared(group).values())
    by_hand = ByHand(torch.cat([p.flatten() for p in tensors.params]).tolist(), group)
    found = []
    for step in range(9):
        generator = torch.Generator().manual_seed(step)
        tensors.grads = [
            p + 0.1 * torch.randn(p.shape, generator=generator, dtype=FP64) for p in tensors.params
        ]
        tensors.grads[0][step % 4] = 0.0
        by_hand.step(torch.cat([g.flatten() for g in tensors.grads]).tolist(), 0.05)
        support.call(reference, form, tensors, loss=0.05, **changes)
        seen = scalars_of(tensors)
        for name, value in (("eta", by_hand.eta), ("d", by_hand.d), ("step_size", by_hand.gamma)):
            assert seen[name] == pytest.approx(value, rel=1e-12), (step, name)
        found.append(by_hand.gamma)
    torch.testing.assert_close(
        torch.cat([p.flatten() for p in tensors.params]),
        torch.tensor(by_hand.x, dtype=FP64),
        rtol=1e-12,
        atol=1e-14,
    )
    assert len(set(found)) > 2, "gamma was the cap or the warm-up's all the time"


def test_alias_adam_by_hand() -> None:
    """beta2 = 0.25, so that its root is 0.5; d rises twice, and signs of 0 count for nothing."""
    w = torch.zeros(3, dtype=FP64)
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    planes, scalars = torch.zeros(2, 1, dtype=torch.int32), torch.tensor([0.0, 0.5], dtype=FP64)
    arguments = {"lr": 0.1, "beta1": 0.5, "beta2": 0.25, "eps": 0.1, "weight_decay": 0.5}
    x, mm, vv, r, d, signs = [0.0] * 3, [0.0] * 3, [0.0] * 3, 0.0, 0.5, [0] * 3
    seen = []
    for g in ([1.0, 2.0, 3.0], [2.0, 3.0, -1.0], [0.0, 0.0, 0.0], [-4.0, 1.0, 0.0], [-9.0, 9.0, 1.0]):
        r = 0.5 * r + 0.5 * d * sum(a * s for a, s in zip(g, signs, strict=True))
        d = max(d, r)
        signs = [(a > 0) - (a < 0) for a in g]
        mm = [0.5 * a + 0.5 * d * b for a, b in zip(mm, g, strict=True)]
        vv = [0.25 * a + 0.75 * (d * b) ** 2 for a, b in zip(vv, g, strict=True)]
        x = [a * 0.95 - 0.1 * d * b / (math.sqrt(c) + 0.1) for a, b, c in zip(x, mm, vv, strict=True)]
        reference.alias_adam_([w], [torch.tensor(g, dtype=FP64)], [m], [v], [planes], [scalars], **arguments)
        torch.testing.assert_close(scalars, torch.tensor([r, d], dtype=FP64), rtol=1e-14, atol=0)
        for got, expected in ((w, x), (m, mm), (v, vv)):
            torch.testing.assert_close(got, torch.tensor(expected, dtype=FP64), rtol=1e-13, atol=1e-15)
        seen.append(d)
    # <(2, 3, -1), (1, 1, 1)> = 4, so r = 0.5 * 0.5 * 4; the last, <(-9, 9, 1), (-1, 1, 0)>, is 18.
    assert seen == [0.5, 1.0, 1.0, 1.0, 0.5 * 0.25 + 0.5 * 18]


# ------------------------------------------------------------------------------------------------ laws


@every_form
@laws
@given(seed=seeds, power=st.integers(-20, 20), steps=st.integers(2, 8), update_every=st.integers(1, 3))
def test_eta_and_d_never_fall_and_gamma_keeps_its_bound(
    rules: ModuleType, form: str, seed: int, power: int, steps: int, update_every: int
) -> None:
    """With a warm-up whose learning rate is above max_step."""
    tensors = support.make(form, [(7, 9), (40,)], seed=seed, scale=2.0**power)
    changes = {"max_step": 0.125, "warmup_steps": seed % 4, "lr": 0.5, "update_every": update_every}
    tensors.shared["scalars"][0][1] = 0.0
    before = scalars_of(tensors)
    for step in range(steps):
        support.call(rules, form, tensors, **changes)
        after = scalars_of(tensors)
        assert after["eta"] >= before["eta"]
        assert after["d"] >= before["d"]
        assert 0 <= after["step_size"] <= 0.125
        if step < changes["warmup_steps"]:
            assert after["step_size"] == 0.125
        assert after["step"] == step + 1
        before = after
        tensors.grads = support.new_grads(tensors, FP32, scale=2.0**power, seed=seed + step)


@laws
@given(seed=seeds, power=powers, other=powers, count=st.integers(1, 100))
def test_the_bound_is_never_under_the_difference(
    rules: ModuleType, seed: int, power: int, other: int, count: int
) -> None:
    """B_t >= ||g_t - g_{t-1}||_inf: worked out from how much eta grew (to a few roundings)."""
    tensors = support.make("alias", [(count,), (3, 5)], seed=seed, scale=2.0**power)
    tensors.shared["scalars"][0][1] = 0.0
    support.call(rules, "alias", tensors, max_step=0.5)
    first, moved = [grad.double() for grad in tensors.grads], scalars_of(tensors)["displacement"]
    tensors.grads = support.new_grads(tensors, FP32, scale=2.0**other, seed=seed + 1)
    difference = max(float((g.double() - p).abs().max()) for g, p in zip(tensors.grads, first, strict=True))
    support.call(rules, "alias", tensors, max_step=0.5)
    assert scalars_of(tensors)["eta"] * moved >= difference * (1 - 1e-12)


@laws
@given(seed=seeds, power=powers, likeness=st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]))
def test_the_sum_is_never_under_the_base_form(
    rules: ModuleType, seed: int, power: int, likeness: float
) -> None:
    """eta, of the same gradients and steps, to what float32 sums may lose; it is the same where the gradient
    turns round in every step, and the base form's is 0 where it stays."""
    first = support.make("alias_sum", [(7, 9), (40,)], seed=seed, scale=2.0**power)
    second = support.make("alias_base", [(7, 9), (40,)], seed=seed, scale=2.0**power)
    for tensors in (first, second):
        tensors.shared["scalars"][0][1] = 0.0
    etas = [0.0, 0.0]
    for step in range(4):
        for i, (form, tensors) in enumerate((("alias_sum", first), ("alias_base", second))):
            support.call(rules, form, tensors, warmup_steps=9, lr=0.25)
            etas[i] = scalars_of(tensors)["eta"]
        assert etas[0] >= etas[1] * (1 - 2 * alias_bounds.SUM)
        new = support.new_grads(first, FP32, scale=2.0**power * (1 - abs(likeness)), seed=seed + 1 + step)
        first.grads = second.grads = [likeness * p + g for p, g in zip(first.grads, new, strict=True)]
    if likeness == -1:
        assert etas[0] == pytest.approx(etas[1], rel=2 * alias_bounds.SUM)
    elif likeness == 1:
        assert etas[0] > etas[1] == 0


def test_gamma_in_noise() -> None:
    """The sum's is 1 / sqrt(2) of the base form's in the end, and the extrema's still the largest allowed."""
    found = {}
    for form in ("alias_sum_lower_bound", "alias_base_lower_bound", "alias_lower_bound"):
        tensors = support.make(form, [(2000,)], (FP64, FP64, FP64))
        tensors.shared["scalars"][0][1] = 0.0
        for step in range(100):
            tensors.grads = support.new_grads(tensors, FP64, seed=step)
            support.call(reference, form, tensors, max_step=0.01)
        found[form] = scalars_of(tensors)["step_size"]
    ratio = found["alias_sum_lower_bound"] / found["alias_base_lower_bound"]
    assert ratio == pytest.approx(2**-0.5, rel=0.03)
    assert found["alias_base_lower_bound"] < 0.01 == found["alias_lower_bound"]


@laws
@given(
    seed=seeds, scale=st.integers(-8, 8), steps=st.integers(1, 6), beta2=st.sampled_from([0.0, 0.5, 0.999])
)
def test_d_of_alias_adam_never_falls(
    rules: ModuleType, seed: int, scale: int, steps: int, beta2: float
) -> None:
    tensors = support.make("alias_adam", [(7, 9), (40,)], seed=seed, scale=2.0**scale)
    for step in range(steps):
        before = [scalars.clone() for scalars in tensors.states["scalars"]]
        support.call(rules, "alias_adam", tensors, betas=(0.9, beta2))
        for old, new in zip(before, tensors.states["scalars"], strict=True):
            assert float(new[1]) == max(float(old[1]), float(new[0]))
        tensors.grads = support.new_grads(tensors, FP32, scale=2.0**scale, seed=seed + step // 2)


@every_form
@laws
@given(seed=seeds, power=st.integers(-12, 12))
def test_a_rescaled_loss_gives_the_same_steps(rules: ModuleType, form: str, seed: int, power: int) -> None:
    """d and eta both scale with the loss, so that gamma does not: exactly, for powers of two."""
    first = support.make(form, [(7, 9), (40,)], seed=seed)
    second = first.clone()
    for tensors, factor in ((first, 1.0), (second, 2.0**power)):
        tensors.shared["scalars"][0][1:3] *= factor
        for step in range(5):
            tensors.grads = [g * factor for g in support.new_grads(tensors, FP32, seed=seed + step)]
            support.call(rules, form, tensors, loss=2.5 * factor)
    support.assert_same_bits(first.params, second.params)
    assert scalars_of(first)["step_size"] == scalars_of(second)["step_size"]
