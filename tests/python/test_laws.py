"""Laws that hold for every input: what a rule promises, whatever the numbers."""

from __future__ import annotations

from types import ModuleType

import hypothesis.strategies as st
import pytest
import support
import torch
from hypothesis import HealthCheck, given, settings
from support import FP32, Tensors
from torch import Tensor

pytestmark = pytest.mark.usefixtures("device")

# The fixtures only choose a module and a device, so that they are not renewed between examples does no harm.
laws = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**31)
powers = st.integers(-60, 60)


def matrix(rows: int, columns: int, seed: int) -> Tensor:
    """Random entries, some of them zero, but no row or column of zeros."""
    generator = torch.Generator().manual_seed(seed)
    result = torch.randn(rows, columns, generator=generator, device="cpu")
    result[torch.rand(rows, columns, generator=generator, device="cpu") < 0.2] = 0
    result[:, 0] += (result[:, 0] == 0).float()
    result[0] += (result[0] == 0).float()
    return result.to(torch.get_default_device())


def permutations(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """An order of the rows and one of the columns."""
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randperm(count, generator=generator, device="cpu") for count in (rows, columns))
    return p.to(torch.get_default_device()), q.to(torch.get_default_device())


def direction(rules: ModuleType, grad: Tensor, **changes: object) -> Tensor:
    """SinkGD's X for a gradient."""
    w = torch.zeros_like(grad)
    arguments = {"lr": 1.0, "alpha": 1.0, "eps": 0.0, "weight_decay": 0.0, **changes}
    rules.sinkgd_([w], [grad], **support.hyper("sinkgd", **arguments))
    return -w


def sage_step(rules: ModuleType, tensors: Tensors, **changes: object) -> list[Tensor]:
    before = [param.clone() for param in tensors.params]
    support.call(rules, "sage", tensors, weight_decay=0.0, **changes)
    return [new - old for new, old in zip(tensors.params, before, strict=True)]


@laws
@given(rows=sizes, columns=sizes, seed=seeds)
def test_sinkgd_columns_have_their_norm(rules: ModuleType, rows: int, columns: int, seed: int) -> None:
    """After the last half-iteration every column has norm sqrt(m), or 1 in unit form."""
    grad = matrix(rows, columns, seed)
    norms = direction(rules, grad).norm(dim=0)
    torch.testing.assert_close(norms, torch.full((columns,), rows**0.5), rtol=1e-5, atol=0)
    norms = direction(rules, grad, normalization="unit").norm(dim=0)
    torch.testing.assert_close(norms, torch.ones(columns), rtol=1e-5, atol=0)


@laws
@given(rows=st.integers(2, 30), columns=st.integers(2, 30), seed=seeds)
def test_sinkgd_rows_converge_to_their_norm(rules: ModuleType, rows: int, columns: int, seed: int) -> None:
    """For entries that are bounded away from zero, the alternation converges to both norms at once."""
    grad = matrix(rows, columns, seed)
    grad = torch.where(grad < 0, -1.0, 1.0) * (0.5 + grad.abs())
    norms = direction(rules, grad, iterations=60).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((rows,), columns**0.5), rtol=1e-4, atol=0)


@laws
@given(rows=sizes, columns=sizes, seed=seeds, power=powers)
def test_sinkgd_does_not_see_the_scale(
    rules: ModuleType, rows: int, columns: int, seed: int, power: int
) -> None:
    grad = matrix(rows, columns, seed)
    torch.testing.assert_close(
        direction(rules, grad * 2.0**power), direction(rules, grad), rtol=2e-5, atol=1e-6
    )


@laws
@given(rows=sizes, columns=sizes, seed=seeds)
def test_sinkgd_does_not_see_row_scales(rules: ModuleType, rows: int, columns: int, seed: int) -> None:
    """The first half-iteration takes the size of each row out."""
    grad = matrix(rows, columns, seed)
    scales = torch.logspace(-3, 3, rows)[:, None]
    torch.testing.assert_close(direction(rules, grad * scales), direction(rules, grad), rtol=1e-4, atol=1e-5)


@laws
@given(rows=sizes, columns=sizes, seed=seeds)
def test_sinkgd_commutes_with_permutations(rules: ModuleType, rows: int, columns: int, seed: int) -> None:
    p, q = permutations(rows, columns, seed)
    grad = matrix(rows, columns, seed)
    expected = direction(rules, grad)[p][:, q]
    torch.testing.assert_close(direction(rules, grad[p][:, q].contiguous()), expected, rtol=2e-5, atol=1e-6)


@laws
@given(rows=sizes, columns=sizes, seed=seeds)
def test_sinkgd_is_odd_and_keeps_signs(rules: ModuleType, rows: int, columns: int, seed: int) -> None:
    grad = matrix(rows, columns, seed)
    x = direction(rules, grad)
    assert torch.equal(direction(rules, -grad), -x)
    assert torch.equal(x.sign(), grad.sign())


@laws
@given(rows=sizes, columns=sizes, seed=seeds, power=st.integers(-30, 30), steps=st.integers(1, 4))
def test_sage_never_moves_further_than_lr(
    rules: ModuleType, rows: int, columns: int, seed: int, power: int, steps: int
) -> None:
    """H <= 1, so no element moves by more than lr (a rounding of W apart)."""
    tensors = support.make("sage", [(rows, columns), (columns,)], seed=seed % 2**16, scale=2.0**power)
    for step in range(steps):
        for update, param in zip(sage_step(rules, tensors, lr=0.125), tensors.params, strict=True):
            assert (update.abs() <= 0.125 + 2 * support.UNIT * param.abs()).all()
        tensors.grads = support.new_grads(tensors, FP32, scale=2.0**power, seed=step)


@laws
@given(rows=sizes, columns=sizes, seed=seeds, power=powers)
def test_sage_without_eps_does_not_see_the_scale(
    rules: ModuleType, rows: int, columns: int, seed: int, power: int
) -> None:
    first = support.make("sage", [(rows, columns)], seed=seed % 2**16)
    second = first.clone()
    second.grads = [grad * 2.0**power for grad in first.grads]
    for a, b in zip(sage_step(rules, first, eps=0.0), sage_step(rules, second, eps=0.0), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@laws
@given(rows=sizes, seed=seeds, steps=st.integers(1, 4))
def test_sage_with_even_columns_is_lion(rules: ModuleType, rows: int, seed: int, steps: int) -> None:
    """Where all columns have the same mean of |g| nothing is damped (H = 1), and SAGE is Lion."""
    sage = support.make("sage", [(rows, 1)], seed=seed % 2**16)
    lion = Tensors([sage.params[0].clone()], sage.grads, {"exp_avg": [torch.zeros(rows, 1)]})
    arguments = {"lr": 0.25, "betas": (0.9, 0.99), "weight_decay": 0.5}
    for step in range(steps):
        support.call(rules, "sage", sage, eps=0.0, **arguments)
        support.call(rules, "lion", lion, **arguments)
        sage.grads = lion.grads = support.new_grads(sage, FP32, seed=step)
    torch.testing.assert_close(sage.params[0], lion.params[0], rtol=1e-6, atol=1e-6)
    support.assert_same_bits(sage.states["exp_avg"], lion.states["exp_avg"])


@laws
@given(rows=sizes, columns=sizes, seed=seeds)
def test_sage_commutes_with_permutations(rules: ModuleType, rows: int, columns: int, seed: int) -> None:
    p, q = permutations(rows, columns, seed)
    first = support.make("sage", [(rows, columns)], seed=seed % 2**16)
    second = first.clone()
    second.params = [second.params[0][p][:, q].contiguous()]
    second.grads = [second.grads[0][p][:, q].contiguous()]
    support.call(rules, "sage", first)
    support.call(rules, "sage", second)
    torch.testing.assert_close(second.params[0], first.params[0][p][:, q], rtol=1e-5, atol=1e-6)


@laws
@given(count=st.integers(1, 300), seed=seeds, power=powers)
def test_lion_moves_by_exactly_lr_or_not_at_all(rules: ModuleType, count: int, seed: int, power: int) -> None:
    tensors = support.make("lion", [(count,)], seed=seed % 2**16, scale=2.0**power)
    tensors.params[0].zero_()
    tensors.grads[0][::3] = 0
    support.call(rules, "lion", tensors, lr=0.25)
    assert torch.equal(tensors.params[0], -0.25 * tensors.grads[0].sign())


@laws
@given(count=st.integers(1, 300), seed=seeds, power=powers, momentum=st.sampled_from([0.0, 0.5, 0.9]))
def test_sign_sgd_moves_by_exactly_lr_or_not_at_all(
    rules: ModuleType, count: int, seed: int, power: int, momentum: float
) -> None:
    """|dW| is lr where the gradient (or the momentum) has a sign, and 0 elsewhere."""
    rule = "signum" if momentum else "sign_sgd"
    tensors = support.make(rule, [(count,)], seed=seed % 2**16, scale=2.0**power)
    tensors.params[0].zero_()
    tensors.grads[0][::3] = 0
    support.call(rules, rule, tensors, lr=0.25, momentum=momentum)
    assert torch.equal(tensors.params[0], -0.25 * tensors.grads[0].sign())


@laws
@given(count=st.integers(1, 300), seed=seeds, steps=st.integers(1, 6))
def test_signum_follows_its_momentum(rules: ModuleType, count: int, seed: int, steps: int) -> None:
    """Each step goes by lr against the sign of the momentum that it leaves behind."""
    tensors = support.make("signum", [(count,)], seed=seed % 2**16)
    for step in range(steps):
        tensors.params[0].zero_()
        support.call(rules, "signum", tensors, lr=0.25)
        assert torch.equal(tensors.params[0], -0.25 * tensors.states["exp_avg"][0].sign())
        tensors.grads = support.new_grads(tensors, FP32, seed=step)


@laws
@given(
    rows=sizes,
    columns=sizes,
    seed=seeds,
    power=powers,
    dim=st.sampled_from([0, 1]),
    momentum=st.sampled_from([0.0, 0.5]),
    normalization=st.sampled_from(["rms", "l2"]),
)
def test_scale_updates_have_norm_one(
    rules: ModuleType,
    rows: int,
    columns: int,
    seed: int,
    power: int,
    dim: int,
    momentum: float,
    normalization: str,
) -> None:
    """The rms (or norm) of each row (or column) of update / lr is 1, unless it is all zero."""
    tensors = support.make("scale_momentum" if momentum else "scale", [(rows, columns)], seed=seed % 2**16)
    tensors.params[0].zero_()
    grad = matrix(rows, columns, seed) * 2.0**power
    grad[1::4], grad[:, 2::5] = 0, 0
    tensors.grads = [grad]
    settings = {"lr": 0.25, "dim": dim, "momentum": momentum, "eps": 0.0, "normalization": normalization}
    support.call(rules, "scale", tensors, **settings)
    squares = (tensors.params[0].double() / 0.25).square()
    norms = (squares.mean(dim) if normalization == "rms" else squares.sum(dim)).sqrt()
    expected = (grad != 0).any(dim).double()
    torch.testing.assert_close(norms, expected, rtol=1e-5, atol=0)
    assert torch.equal(tensors.params[0].sign(), -grad.sign())


@laws
@given(rows=sizes, columns=sizes, seed=seeds)
def test_scale_over_columns_is_that_over_rows_transposed(
    rules: ModuleType, rows: int, columns: int, seed: int
) -> None:
    first = support.make("scale", [(rows, columns)], seed=seed % 2**16)
    second = first.clone()
    second.params = [second.params[0].t().contiguous()]
    second.grads = [second.grads[0].t().contiguous()]
    support.call(rules, "scale", first, dim=1)
    support.call(rules, "scale", second, dim=0)
    torch.testing.assert_close(second.params[0], first.params[0].t(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", support.ALL)
@laws
@given(rows=sizes, columns=sizes, seed=seeds)
def test_all_zero_stays_put(rules: ModuleType, rule: str, rows: int, columns: int, seed: int) -> None:
    """A tensor that never had a gradient does not move and never makes a NaN, with eps = 0 too."""
    tensors = support.make(rule, [(rows, columns)], seed=seed % 2**16)
    tensors.grads[0].zero_()
    before = tensors.params[0].clone()
    changes = {"eps": 0.0} if "eps" in support.defaults_of(rule) else {}
    for _ in range(3):
        support.call(rules, rule, tensors, weight_decay=0.0, **changes)
    support.assert_same_bits([before], tensors.params)
