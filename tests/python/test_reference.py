"""The oracle itself: against numbers worked out by hand, formulas written out in Python floats, and
torch.optim."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import support
import torch
from support import BF16, FP32, FP64

from sage_ext import reference

Matrix = list[list[float]]


def doubles(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=FP64)


def close(value: torch.Tensor, expected: object) -> None:
    torch.testing.assert_close(value, doubles(expected), rtol=1e-13, atol=1e-15)


class SageByHand:
    """SAGE on one matrix in Python floats, written from the paper's formulas one scalar at a time."""

    def __init__(
        self, w: Matrix, lr: float, betas: tuple[float, float], eps: float, wd: float, first: bool
    ) -> None:
        self.w, self.lr, self.betas, self.eps, self.wd, self.first = w, lr, betas, eps, wd, first
        self.m = [[0.0] * len(row) for row in w]
        self.s_range = [0.0] * len(w[0])
        self.t = 0

    def step(self, g: Matrix) -> None:
        b1, b2 = self.betas
        rows, columns = len(g), len(g[0])
        self.t += 1
        s = [sum(abs(g[i][j]) for i in range(rows)) / rows for j in range(columns)]
        self.s_range = [b2 * old + (1 - b2) * new for old, new in zip(self.s_range, s, strict=True)]
        s_hat = [value / (1 - b2**self.t) for value in self.s_range]
        rms, rms_hat = (math.sqrt(sum(x * x for x in xs) / columns) for xs in (s, s_hat))
        for i in range(rows):
            for j in range(columns):
                damper = min(rms_hat / (s_hat[j] + self.eps), rms / (s[j] + self.eps), 1.0)
                updated = b2 * self.m[i][j] + (1 - b2) * g[i][j]
                used = updated if self.first else self.m[i][j]
                direction = b1 * used + (1 - b1) * g[i][j]
                sign = (direction > 0) - (direction < 0)
                self.w[i][j] = self.w[i][j] * (1 - self.lr * self.wd) - self.lr * damper * sign
                self.m[i][j] = updated


@pytest.mark.parametrize("momentum_first", [False, True])
def test_sage_against_scalars(momentum_first: bool) -> None:
    tensors = support.make("sage", [(4, 3)], (FP64, FP64, FP64))
    by_hand = SageByHand(tensors.params[0].tolist(), 0.1, (0.8, 0.9), 1e-3, 0.2, momentum_first)
    changes = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.2}
    for step in range(6):
        by_hand.step(tensors.grads[0].tolist())
        support.call(reference, "sage", tensors, momentum_first=momentum_first, **changes)
        tensors.grads = support.new_grads(tensors, FP64, seed=step)
    close(tensors.params[0], by_hand.w)
    close(tensors.states["exp_avg"][0], by_hand.m)
    close(tensors.states["s_range"][0], by_hand.s_range)
    assert float(tensors.states["step"][0]) == 6


def test_sage_vector_by_hand() -> None:
    """|g| = (0.5, 0.1) has rms sqrt(0.13), so the first element is damped by 0.7211 and the second not at
    all."""
    w, g, m, s, step = (
        doubles([1.0, -2.0]),
        doubles([0.5, -0.1]),
        doubles([0.0, 0.0]),
        doubles([0.0, 0.0]),
        torch.zeros(()),
    )
    reference.sage_([w], [g], [m], [s], [step], lr=0.1, beta1=0.9, beta2=0.99, eps=0.0, weight_decay=0.1)
    close(w, [0.99 - 0.1 * math.sqrt(0.13) / 0.5, -1.98 + 0.1])
    close(m, [0.005, -0.001])
    close(s, [0.005, 0.001])


def test_sage_matrix_by_hand() -> None:
    """Column means (2, 0): the first is damped by rms(s)/2 = 1/sqrt(2), and a zero column stays put."""
    w, g = doubles([[1.0, 1.0], [1.0, 1.0]]), doubles([[1.0, 0.0], [-3.0, 0.0]])
    m, s, step = torch.zeros_like(w), doubles([0.0, 0.0]), torch.zeros(())
    reference.sage_([w], [g], [m], [s], [step], lr=1.0, beta1=0.9, beta2=0.99, eps=0.0, weight_decay=0.0)
    close(w, [[1 - math.sqrt(0.5), 1.0], [1 + math.sqrt(0.5), 1.0]])


def test_sage_without_instant_damper_takes_the_average_alone() -> None:
    """After a long quiet time the average is even; a sudden uneven gradient is damped only by the instant
    term."""
    w, g = doubles([[0.0, 0.0]]), doubles([[9.0, 1.0]])
    m, s, step = torch.zeros_like(w), doubles([1.0, 1.0]), torch.tensor(10_000.0)
    arguments = {"lr": 1.0, "beta1": 0.9, "beta2": 0.9999, "eps": 0.0, "weight_decay": 0.0}
    reference.sage_([w], [g], [m], [s], [step], **arguments, instant_damper=False)
    assert abs(w[0, 0]) > 0.99
    w, s, step = torch.zeros_like(w), doubles([1.0, 1.0]), torch.tensor(10_000.0)
    reference.sage_([w], [g], [m], [s], [step], **arguments)
    close(w, [[-math.sqrt(41) / 9, -1.0]])
    assert abs(w[0, 0]) < 0.72


@pytest.mark.parametrize("scale", [1.0, 1e-3, 40.0])
def test_sinkgd_of_rank_one_is_its_sign(scale: float) -> None:
    """diag(u) 1 diag(v) is normalised to sign(u) sign(v)^T, whatever u and v are: the closed form of rank
    one."""
    u, v = doubles([1.0, -2.0, 0.5]), doubles([3.0, -0.1, 7.0, 2.0])
    for normalization, size in (("sqrt", 1.0), ("unit", 1 / math.sqrt(3))):
        w = torch.zeros(3, 4, dtype=FP64)
        arguments = {"lr": 2.0, "iterations": 5, "alpha": 0.5, "eps": 0.0, "weight_decay": 0.3}
        reference.sinkgd_([w], [scale * torch.outer(u, v)], **arguments, normalization=normalization)
        close(w, (-size * torch.outer(u.sign(), v.sign())).tolist())


def test_sinkgd_one_iteration_by_hand() -> None:
    """Rows of (3, 4) and (0, 5) become sqrt(2) (0.6, 0.8) and sqrt(2) (0, 1); then the columns are
    normalised."""
    w = doubles([[1.0, 1.0], [1.0, 1.0]])
    g = doubles([[3.0, 4.0], [0.0, 5.0]])
    reference.sinkgd_([w], [g], lr=0.1, iterations=1, alpha=0.5, eps=0.0, weight_decay=0.5)
    norm = math.sqrt(0.8**2 + 1.0)
    x = [[math.sqrt(2), math.sqrt(2) * 0.8 / norm], [0.0, math.sqrt(2) / norm]]
    close(w, [[0.95 - 0.05 * value for value in row] for row in x])


def test_sinkgd_adds_eps_to_each_norm() -> None:
    w, g = torch.zeros(1, 1, dtype=FP64), doubles([[3.0]])
    reference.sinkgd_([w], [g], lr=1.0, iterations=1, alpha=1.0, eps=1.0, weight_decay=0.0)
    close(w, [[-(3 / 4) / (3 / 4 + 1)]])


def test_sinkgd_unit_is_sqrt_over_the_root_of_rows() -> None:
    g = torch.randn(6, 10, dtype=FP64)
    ends = {}
    for normalization in ("sqrt", "unit"):
        w = torch.zeros(6, 10, dtype=FP64)
        arguments = {"lr": 1.0, "iterations": 5, "alpha": 1.0, "eps": 0.0, "weight_decay": 0.0}
        reference.sinkgd_([w], [g], **arguments, normalization=normalization)
        ends[normalization] = w
    torch.testing.assert_close(ends["unit"] * math.sqrt(6), ends["sqrt"], rtol=1e-12, atol=0)


def test_sinkgd_refuses_vectors_before_it_changes_anything() -> None:
    w = [torch.ones(2, 2), torch.ones(3)]
    with pytest.raises(ValueError, match=r"params\[1\].*shape \(3,\).*SAGE"):
        reference.sinkgd_(w, [torch.ones(2, 2), torch.ones(3)], **support.hyper("sinkgd"))
    assert (w[0] == 1).all()


def test_lion_by_hand() -> None:
    """First the sign of 0.1 g; then momentum 0.01 g_1 against a small gradient of the other sign."""
    w, m = doubles([1.0, 1.0]), doubles([0.0, 0.0])
    arguments = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.5}
    reference.lion_([w], [doubles([2.0, 0.0])], [m], **arguments)
    close(w, [0.95 - 0.1, 0.95])
    close(m, [0.02, 0.0])
    reference.lion_([w], [doubles([-0.1, -0.1])], [m], **arguments)  # 0.9*0.02 - 0.1*0.1 is positive
    close(w, [0.85 * 0.95 - 0.1, 0.95 * 0.95 + 0.1])


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_adamw_against_torch(maximize: bool, weight_decay: float) -> None:
    ours = support.make("adamw", [(5, 7), (11,), ()], (FP64, FP64, FP64))
    theirs = [torch.nn.Parameter(param.clone()) for param in ours.params]
    settings = {
        "lr": 0.03,
        "betas": (0.8, 0.95),
        "eps": 1e-6,
        "weight_decay": weight_decay,
        "maximize": maximize,
    }
    optimizer = torch.optim.AdamW(theirs, foreach=False, **settings)
    for step in range(12):
        for param, grad in zip(theirs, ours.grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        support.call(reference, "adamw", ours, **settings)
        ours.grads = support.new_grads(ours, FP64, seed=step)
    for a, b in zip(ours.params, theirs, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", support.ALL)
class TestEveryRule:
    def test_float32_and_bfloat16_round_once(self, rule: str) -> None:
        """In a storage dtype the result is that of float64 arithmetic but for float32 and one rounding."""
        for mix in ((FP32, FP32, FP32), (BF16, BF16, BF16), (BF16, FP32, FP32)):
            tensors = support.make(rule, support.shapes_of(rule), mix)
            for step in range(2):
                support.step_and_compare(reference, rule, tensors, weight_decay=0.1)
                tensors.grads = support.new_grads(tensors, mix[1], seed=step)

    def test_weight_decay_is_decoupled(self, rule: str) -> None:
        """W' - W (1 - lr*wd) does not depend on W."""
        updates = []
        for start in (0.0, 3.0):
            tensors = support.make(rule, [(4, 6)], (FP64, FP64, FP64))
            tensors.params[0].fill_(start)
            support.call(reference, rule, tensors, weight_decay=0.5, **support.at_rate(rule, 0.1))
            updates.append(tensors.params[0] - start * 0.95)
        torch.testing.assert_close(updates[0], updates[1], rtol=1e-12, atol=1e-14)

    def test_maximize_is_a_negated_gradient(self, rule: str) -> None:
        first, second = (support.make(rule, [(4, 6)]) for _ in range(2))
        second.grads = [-grad for grad in second.grads]
        support.call(reference, rule, first, maximize=True)
        support.call(reference, rule, second)
        support.assert_same_bits(first.params, second.params)

    def test_grad_scale_divides(self, rule: str) -> None:
        """With an eps that makes every rule but the sign family see the size of the gradient; a momentum sees
        it."""
        first, second = (support.make(rule, [(4, 6)]) for _ in range(2))
        second.grads = [grad * 64 for grad in second.grads]
        eps = {"eps": 0.5} if "eps" in support.defaults_of(rule) else {}
        support.call(reference, rule, first, **eps)
        support.call(reference, rule, second, grad_scale=torch.tensor(64.0), **eps)
        second.grads = first.grads
        for scalars in second.shared.values():  # ALIAS records the gradient as it came, and its factor
            assert scalars[0][-1] == 1 / 64
            scalars[0][-1] = 1.0
            for prev_grad in second.states["prev_grad"]:
                prev_grad.div_(64)
        support.assert_same_bits(first.flat(), second.flat())

    def test_found_inf_changes_nothing(self, rule: str) -> None:
        tensors = support.make(rule, [(4, 6)])
        before = tensors.clone()
        support.call(reference, rule, tensors, found_inf=torch.tensor(1.0))
        support.assert_same_bits(before.flat(), tensors.flat())

    def test_any_strides(self, rule: str) -> None:
        plain = support.make(rule, [(4, 6)])
        odd = plain.clone()
        odd.params = [torch.empty(4, 12)[:, ::2].copy_(plain.params[0])]
        support.call(reference, rule, plain)
        support.call(reference, rule, odd)
        support.assert_same_bits(plain.params, odd.params)

    def test_lists_of_different_lengths(self, rule: str) -> None:
        tensors = support.make(rule, [(4, 6)] * 2)
        tensors.grads.pop()
        with pytest.raises(ValueError, match="grads: got 1 tensors"):
            support.call(reference, rule, tensors)

    def test_same_signature_as_native(self, rule: str) -> None:
        """A function of the reference can stand in for its native counterpart, argument by argument."""
        import ast
        import inspect

        from sage_ext import _loader

        _, lists, keywords = _loader.load().signatures()[support.rule_of(rule)]
        native = [(name, False, inspect.Parameter.empty) for name, *_ in lists]
        for name, _, default in keywords:
            value = inspect.Parameter.empty if default is None else ast.literal_eval(default)
            native.append((name, True, value))
        found = inspect.signature(getattr(reference, f"{support.rule_of(rule)}_")).parameters.values()
        assert native.pop() == ("describe", True, None)
        assert native == [(p.name, p.kind is p.KEYWORD_ONLY, p.default) for p in found]

    def test_stub_has_the_signature_of_the_native_functions(self, rule: str) -> None:
        """By name, in order, and with a default where there is one, as _C.pyi says it of both forms."""
        import ast
        import re

        from sage_ext import _loader

        native, name = _loader.load(), support.rule_of(rule)
        stub = ast.parse(Path(_loader.__file__).with_name("_C.pyi").read_text())
        step = next(node for node in stub.body if isinstance(node, ast.ClassDef) and node.name == "Step")
        nodes = {node.name: node for node in (*stub.body, *step.body) if isinstance(node, ast.FunctionDef)}
        for owner, function in ((native, f"{name}_"), (native.Step, name)):
            text = getattr(owner, function).__doc__.split(" -> ")[0]
            parameters = re.findall(r"(?:^\w+\(|, )(\w+): [^=]*?(= ?[^,)]+)?(?=, (?:\w+:|\*)|\)$)", text)
            arguments = nodes[function].args
            stubbed = [(a.arg, False) for a in arguments.args] + [
                (a.arg, default is not None)
                for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
            ]
            assert [(n, bool(d)) for n, d in parameters] == stubbed
