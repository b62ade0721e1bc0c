"""torch.ops.sage_ext.*: the rules behind PyTorch's dispatcher."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import support
import torch
from support import RULES
from torch.utils._python_dispatch import TorchDispatchMode

from sage_ext import _loader, reference

OVERLOADS = {"default": 0.1, "tensor_lr": torch.tensor(0.1)}


def overload_of(rule: str, overload: str) -> Any:
    _loader.load()
    return getattr(getattr(torch.ops.sage_ext, f"{support.rule_of(rule)}_"), overload)


def arguments(rule: str, overload: str) -> tuple[support.Tensors, dict[str, Any]]:
    tensors = support.make(rule, [(4, 6), (3, 5)])
    settings = support.hyper(rule, lr=OVERLOADS[overload])
    if settings.get("loss") is not None:
        settings["loss"] = torch.tensor(settings["loss"])
    return tensors, settings


@pytest.mark.parametrize("overload", OVERLOADS)
@pytest.mark.parametrize("rule", support.ALL)
def test_what_torch_asks_of_an_operator(rule: str, overload: str) -> None:
    """opcheck: what the schema says is written and nothing else is, autograd, fake tensors, compile backends.

    The last hand the arguments on by name to functions of their own: an argument called "mode" would collide
    with one of theirs.
    """
    tensors, settings = arguments(rule, overload)
    lists = (tensors.params, tensors.grads, *tensors.lists)
    checks = torch.library.opcheck(overload_of(rule, overload), lists, settings)
    assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize("overload", OVERLOADS)
@pytest.mark.parametrize("rule", RULES)
def test_meta_tensors(rule: str, overload: str) -> None:
    """Taken as they are; lists that do not go together are refused where nothing is computed, too."""
    operator, (tensors, settings) = overload_of(rule, overload), arguments(rule, overload)
    settings = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
    lists = [[t.to("meta") for t in tensors] for tensors in (tensors.params, tensors.grads, *tensors.lists)]
    operator(*lists, **settings)
    with pytest.raises(ValueError, match=r"^grads has 1 tensors for 2 params; give one"):
        operator(lists[0], lists[1][:1], *lists[2:], **settings)
    with pytest.raises(ValueError, match=r"^grads\[0\], shape \[3, 5\]: its shape is not .* \[4, 6\]"):
        operator(lists[0], lists[1][::-1], *lists[2:], **settings)
    if overload == "tensor_lr":
        with pytest.raises(ValueError, match=r"^lr must be a number or a .* with one element"):
            operator(*lists, **{**settings, "lr": torch.ones(2, device="meta")})


@pytest.mark.parametrize("overload", OVERLOADS)
@pytest.mark.parametrize("rule", RULES)
def test_schema(rule: str, overload: str) -> None:
    """The reference's arguments, by name, in order and with its defaults; only gradients are not written."""
    schema = overload_of(rule, overload)._schema
    parameters = inspect.signature(getattr(reference, f"{rule}_")).parameters.values()
    assert len(schema.returns) == 0
    for argument, parameter in zip(schema.arguments, parameters, strict=True):
        assert argument.name == parameter.name
        assert argument.kwarg_only == (parameter.kind is parameter.KEYWORD_ONLY)
        assert argument.is_write == (not argument.kwarg_only and argument.name != "grads")
        assert argument.has_default_value() == (parameter.default is not parameter.empty)
        if argument.has_default_value():
            assert argument.default_value == parameter.default
        if argument.name == "lr":
            assert str(argument.type) == ("number" if overload == "default" else "Tensor")


@pytest.mark.parametrize("rule", RULES)
def test_a_tensor_is_not_read_as_a_number(rule: str) -> None:
    """Under a compiler that would be a constant, on a GPU a wait."""
    called: list[Any] = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(function)
            return function(*args, **(kwargs or {}))

    tensors, settings = arguments(rule, "tensor_lr")
    with Seen():
        getattr(torch.ops.sage_ext, f"{rule}_")(tensors.params, tensors.grads, *tensors.lists, **settings)
    assert called == [overload_of(rule, "tensor_lr")]


class TestCompiled:
    """A train step as a whole: forward, backward, and every rule for a matrix of its own.

    Its arithmetic is matrix products and signs of numbers, which no compiler does otherwise, so that
    the weights are those of the step without it, bit for bit.
    """

    RATES = (0.1, 0.05, 0.02, 0.3)

    @staticmethod
    def train(compiled: Callable[..., Any], rates: Sequence[Any], rules: Sequence[str]) -> list[torch.Tensor]:
        model = {rule: support.make(rule, [(6, 6)], seed=seed) for seed, rule in enumerate(rules)}
        for seed, lr in enumerate(rates):
            generator = torch.Generator().manual_seed(seed)
            batch, target = torch.randn(2, 5, 6, generator=generator)
            compiled(
                {rule: tensors.params[0] for rule, tensors in model.items()},
                {rule: tensors.lists for rule, tensors in model.items()},
                batch,
                target,
                lr,
            )
        return [tensor for tensors in model.values() for tensor in tensors.flat()]

    @staticmethod
    def step(params: dict[str, torch.Tensor], states: Any, batch: Any, target: Any, lr: Any) -> torch.Tensor:
        def loss(params: dict[str, torch.Tensor]) -> torch.Tensor:
            hidden = batch
            for param in params.values():
                hidden = (hidden @ param).clamp(-1, 1)
            return (hidden * target).sum()

        grads, value = torch.func.grad_and_value(loss)(params)
        for rule in params:
            settings = {**support.hyper(rule), **({"loss": value} if rule == "alias" else {}), "lr": lr}
            getattr(torch.ops.sage_ext, f"{rule}_")([params[rule]], [grads[rule]], *states[rule], **settings)
        return value

    def compare(
        self, backend: str, kind: Any, graphs: int, rules: Sequence[str] = tuple(RULES), **options: Any
    ) -> None:
        import torch._dynamo
        from torch._dynamo.utils import counters

        _loader.load()
        torch._dynamo.reset()
        counters.clear()
        rates = [kind(rate) for rate in self.RATES]
        step = torch.compile(self.step, fullgraph=True, backend=backend, **options)
        support.assert_same_bits(self.train(self.step, rates, rules), self.train(step, rates, rules))
        assert counters["stats"]["unique_graphs"] == graphs
        assert not counters["graph_break"]

    def test_a_tensor_serves_all_rates(self) -> None:
        self.compare("aot_eager", torch.tensor, 1)

    def test_numbers_serve_all_rates(self) -> None:
        """torch.compile itself takes the first one for a constant..."""
        self.compare("aot_eager", float, 2)

    def test_numbers_from_the_first_one_on(self) -> None:
        """...unless it is told that it is none."""
        self.compare("aot_eager", float, 1, ["lion", "alias"], dynamic=True)

    def test_inductor(self) -> None:
        self.compare("inductor", torch.tensor, 1)
