"""What only a GPU has: streams, CUDA graphs, a host that must not wait, and state that moves between devices.

That the kernels compute the right numbers there is in the suites that run on every device.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import models
import pytest
import support
import torch
from models import BUILDERS, NAMES, TinyLanguageModel
from torch import nn

import sage_ext
from sage_ext import _loader
from sage_ext.optimizers import (
    FusedAdamW,
    FusedALIAS,
    FusedALIASAdam,
    FusedHybrid,
    FusedLion,
    FusedSAGE,
    FusedSCALE,
    FusedSignSGD,
    FusedSinkGD,
)
from sage_ext.optimizers.hybrid import RULES

pytestmark = pytest.mark.gpu

Builder = Callable[..., Any]
every_optimizer = pytest.mark.parametrize("build", BUILDERS, ids=NAMES)
every_rule = pytest.mark.parametrize("rule", support.ALL)
GPU = torch.device("cuda", 0)
LONG = 500_000_000
"""Cycles that keep a GPU busy for a quarter of a second, a hundred times as long as a step takes the host."""


def model_on(device: torch.device | str) -> TinyLanguageModel:
    """The same weights on every device."""
    torch.manual_seed(5)
    return TinyLanguageModel().to(device)


def fill_grads(optimizer: torch.optim.Optimizer, seed: int) -> None:
    """The same gradients on every device, in the memory of the last ones, where a CUDA graph reads them."""
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for param in group["params"]:
            grad = torch.randn(param.shape, generator=generator).to(param)
            if param.grad is None:
                param.grad = grad
            else:
                param.grad.copy_(grad)


def take_steps(optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        fill_grads(optimizer, seed)
        models.step(optimizer)


def through_a_file(value: Any, map_location: str | None) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True, map_location=map_location)


@every_optimizer
def test_agrees_with_the_cpu(build: Builder) -> None:
    ends = []
    for device in ("cpu", GPU):
        optimizer = build(model_on(device), backend="native", lr=1e-3)
        take_steps(optimizer, range(5))
        ends.append([tensor.cpu() for tensor in models.snapshot(optimizer)])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@every_optimizer
def test_states_are_on_the_gpu(build: Builder) -> None:
    """All of those that the rules keep: some keep none, of which then no parameter has any."""
    kept = []
    for device in ("cpu", GPU):
        optimizer = build(model_on(device))
        assert optimizer.backend == "native"
        take_steps(optimizer, range(1))
        kept.append([set(optimizer.state[p]) for group in optimizer.param_groups for p in group["params"]])
    assert kept[0] == kept[1]
    for state in optimizer.state.values():
        assert all(value.device == GPU for value in state.values())
    for group in optimizer.param_groups:
        assert group.get("scalars", torch.ones((), device=GPU)).device == GPU


@every_rule
def test_dispatcher(rule: str) -> None:
    first = support.make(rule, [(33, 65), (4, 7)]).to(GPU)
    second = first.clone()
    support.call(_loader.load(), rule, first)
    settings = support.hyper(rule)
    if settings.get("loss") is not None:  # the schema takes a loss as a tensor alone
        settings["loss"] = torch.tensor(settings["loss"], device=GPU)
    function = getattr(torch.ops.sage_ext, f"{support.rule_of(rule)}_")
    function(second.params, second.grads, *second.lists, **settings)
    support.assert_same_bits(first.flat(), second.flat())


class TestScalars:
    """Learning rate, scale and flag: wherever they are, whatever their dtype."""

    @every_rule
    @pytest.mark.parametrize("device", ["cpu", GPU], ids=["cpu", "cuda"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_any_dtype_on_any_device(self, rule: str, device: Any, dtype: torch.dtype) -> None:
        native = _loader.load()
        first = support.make(rule, [(33, 65)]).to(GPU)
        second = first.clone()

        def scalar(value: float) -> torch.Tensor:
            return torch.tensor(value, dtype=dtype, device=device)

        first.grads = [grad / 8 for grad in first.grads]
        support.call(native, rule, first, **support.at_rate(rule, 0.125))
        settings = support.at_rate(rule, scalar(0.125))
        support.call(native, rule, second, grad_scale=scalar(8.0), found_inf=scalar(0.0), **settings)
        support.assert_same_bits(first.params, second.params)
        before = second.clone()
        support.call(native, rule, second, found_inf=scalar(1.0), **settings)
        support.assert_same_bits(before.flat(), second.flat())

    def test_a_new_learning_rate_is_not_seen_by_steps_before_it(self) -> None:
        param = nn.Parameter(torch.zeros(3, device=GPU))
        lr = torch.tensor(0.5, device=GPU)
        optimizer = FusedLion([param], lr=lr, weight_decay=0.0)
        param.grad = torch.ones(3, device=GPU)
        for value in (0.5, 0.25, 0.125):
            lr.fill_(value)
            optimizer.step()
        assert torch.equal(param, torch.full((3,), -0.875, device=GPU))


class TestFirstLoss:
    """That it is missing only the optimizer can say: kernels make NaN of it (test_native_alias.py)."""

    def build(self) -> tuple[FusedALIAS, nn.Parameter]:
        param = nn.Parameter(torch.ones(3, device=GPU))
        param.grad = torch.ones(3, device=GPU)
        return FusedALIAS([param], gap="lower_bound", eta0=1.0), param

    def refuse(self, optimizer: FusedALIAS, param: nn.Parameter) -> None:
        with pytest.raises(ValueError, match=r"^loss: got None in param group 0, but the first step"):
            optimizer.step()
        assert torch.equal(param, torch.ones(3, device=GPU))

    def test_missing(self) -> None:
        optimizer, param = self.build()
        self.refuse(optimizer, param)
        optimizer.step(loss=2.0)
        optimizer.step()
        assert optimizer.param_groups[0]["scalars"][:3:2].tolist() == [2.0, 2.0]  # steps, d

    @pytest.mark.parametrize("loss", [0.0, -1.0, float("nan"), float("inf")])
    def test_not_above_the_bound(self, loss: float) -> None:
        """The host waits for it: d would be 0 or infinite, without a word."""
        optimizer, param = self.build()
        with pytest.raises(ValueError, match=r"^loss: got .* in param group 0, expected a finite .* above"):
            optimizer.step(loss=torch.tensor(loss, device=GPU))
        assert torch.equal(param, torch.ones(3, device=GPU))
        assert optimizer.param_groups[0]["scalars"] is None
        optimizer.found_inf = torch.ones((), device=GPU)
        optimizer.step(loss=torch.tensor(loss, device=GPU))
        assert torch.equal(param, torch.ones(3, device=GPU))
        optimizer.found_inf = torch.zeros((), device=GPU)
        self.refuse(optimizer, param)
        optimizer.step(loss=torch.tensor(2.0, device=GPU))
        assert optimizer.param_groups[0]["scalars"][:3:2].tolist() == [1.0, 2.0]

    def test_of_a_skipped_step(self) -> None:
        """It is kept; but a file does not have it, and says that the first step is to come."""
        optimizer, param = self.build()
        optimizer.found_inf = torch.ones((), device=GPU)
        optimizer.step(loss=torch.tensor(2.0, device=GPU))
        resumed, other = self.build()
        resumed.load_state_dict(through_a_file(optimizer.state_dict(), None))
        self.refuse(resumed, other)
        optimizer.found_inf = None
        optimizer.step()
        assert optimizer.param_groups[0]["scalars"][:3:2].tolist() == [1.0, 2.0]
        assert param.isfinite().all()


class TestWrongDevices:
    def test_one_list_on_two_devices(self) -> None:
        tensors = support.make("lion", [(4, 5), (4, 5)])
        tensors.params[0] = tensors.params[0].to(GPU)
        with pytest.raises(
            ValueError, match=r"^params\[1\].*device cpu: it is on another device than params"
        ):
            support.call(_loader.load(), "lion", tensors)

    @pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "step"])
    def test_state_left_on_the_cpu(self, key: str) -> None:
        tensors = support.make("adamw", [(4, 5)]).to(GPU)
        tensors.states[key] = [value.cpu() for value in tensors.states[key]]
        with pytest.raises(ValueError, match=rf"^{key}s\[0\].*its parameter's device"):
            support.call(_loader.load(), "adamw", tensors)

    def test_model_moved_after_the_first_step(self) -> None:
        model = model_on("cpu")
        optimizer = models.adamw(model)
        take_steps(optimizer, range(1))
        model.to(GPU)
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        with pytest.raises(ValueError, match="its parameter's device"):
            optimizer.step()


class TestHostDoesNotWait:
    @every_optimizer
    @pytest.mark.parametrize("scalars", ["cpu", GPU], ids=["cpu", "cuda"])
    def test_torch_sees_no_synchronisation(self, build: Builder, scalars: Any) -> None:
        lr = torch.tensor(1e-3, dtype=torch.float64, device=scalars)
        optimizer = build(model_on(GPU), lr=lr)
        optimizer.grad_scale = torch.tensor(2.0, device=scalars)
        optimizer.found_inf = torch.tensor(0.0, device=scalars)
        fill_grads(optimizer, 0)
        loss = torch.tensor(1.0, device=scalars)
        if build is models.alias_lower_bound:
            models.step(optimizer, loss)  # it looks at its first loss
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(2):  # the first one makes the states
                models.step(optimizer, loss)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.exclusive
    @every_optimizer
    def test_step_returns_while_the_gpu_is_busy(self, build: Builder) -> None:
        optimizer = build(model_on(GPU), lr=torch.tensor(1e-3, device=GPU))
        optimizer.found_inf = torch.tensor(0.0, device=GPU)
        take_steps(optimizer, range(2))  # loads kernels and reserves memory
        torch.cuda.synchronize()
        torch.cuda._sleep(LONG)
        optimizer.step()
        end = torch.cuda.Event()
        end.record()
        assert not end.query()
        torch.cuda.synchronize()


class TestStreams:
    @pytest.mark.exclusive
    @every_optimizer
    def test_side_stream(self, build: Builder) -> None:
        """The same result, and not held up by what the default stream does."""
        optimizer, other = build(model_on(GPU)), build(model_on(GPU))
        take_steps(optimizer, range(3))
        take_steps(other, range(1))
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            take_steps(other, range(1, 2))  # reserves memory for this stream
        stream.synchronize()
        fill_grads(other, 2)
        torch.cuda.synchronize()
        torch.cuda._sleep(LONG)
        busy = torch.cuda.Event()
        busy.record()
        with torch.cuda.stream(stream):
            other.step()
        stream.synchronize()
        assert not busy.query()
        torch.cuda.synchronize()
        support.assert_same_bits(models.snapshot(optimizer), models.snapshot(other))

    def test_groups_on_the_cpu_and_on_the_gpu(self) -> None:
        self.compare_devices([torch.device("cpu"), GPU])

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
    def test_groups_on_two_gpus(self) -> None:
        self.compare_devices([GPU, torch.device("cuda", 1)])

    def compare_devices(self, devices: list[torch.device]) -> None:
        """An optimizer with a group on each device does what one optimizer for each device does."""
        both = [nn.Parameter(torch.ones(40, 30, device=device)) for device in devices]
        apart = [nn.Parameter(torch.ones(40, 30, device=device)) for device in devices]
        together = FusedSAGE([{"params": [param]} for param in both], lr=torch.tensor(0.5, device=GPU))
        alone = [FusedSAGE([param], lr=0.5) for param in apart]
        for seed in range(3):
            grad = torch.randn(40, 30, generator=torch.Generator().manual_seed(seed))
            for param in (*both, *apart):
                param.grad = grad.to(param.device)
            together.step()
            for optimizer in alone:
                optimizer.step()
        assert torch.cuda.current_device() == 0
        for first, second in zip(both, apart, strict=True):
            support.assert_same_bits([first.detach()], [second.detach()])


class TestGraphs:
    """A captured step, replayed, is a step."""

    def capture(self, optimizer: torch.optim.Optimizer) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        return graph

    def pair(self, build: Builder) -> list[Any]:
        """Two equal optimizers after one step; one is to be captured, the other goes on as it is."""
        pair = [build(model_on(GPU), lr=torch.tensor(1e-2, device=GPU)) for _ in range(2)]
        for optimizer in pair:
            take_steps(optimizer, range(1))
        return pair

    @every_optimizer
    def test_replays_are_steps(self, build: Builder) -> None:
        captured, eager = self.pair(build)
        graph = self.capture(captured)
        support.assert_same_bits(models.snapshot(captured), models.snapshot(eager))  # capturing runs nothing
        for seed in range(1, 5):
            fill_grads(captured, seed)
            graph.replay()
            take_steps(eager, range(seed, seed + 1))
        support.assert_same_bits(models.snapshot(captured), models.snapshot(eager))

    @every_optimizer
    def test_learning_rate_may_change_between_replays(self, build: Builder) -> None:
        captured, eager = self.pair(build)
        graph = self.capture(captured)
        for seed, lr in enumerate((1e-2, 0.25, 1e-3), start=1):
            for optimizer in (captured, eager):
                optimizer.param_groups[0]["lr"].fill_(lr)  # all groups have this one tensor
                fill_grads(optimizer, seed)
            graph.replay()
            eager.step()
            support.assert_same_bits(models.snapshot(captured), models.snapshot(eager))

    @every_optimizer
    def test_found_inf_between_replays_skips(self, build: Builder) -> None:
        captured, eager = self.pair(build)
        captured.found_inf = torch.tensor(0.0, device=GPU)
        captured.grad_scale = eager.grad_scale = torch.tensor(4.0, device=GPU)
        graph = self.capture(captured)
        for seed, is_skipped in enumerate((False, True, False), start=1):
            captured.found_inf.fill_(float(is_skipped))
            fill_grads(captured, seed)
            graph.replay()
            if not is_skipped:
                take_steps(eager, range(seed, seed + 1))
            support.assert_same_bits(models.snapshot(captured), models.snapshot(eager))

    def test_states_are_not_made_inside(self) -> None:
        optimizer = FusedHybrid(model_on(GPU))
        fill_grads(optimizer, 0)
        before = models.snapshot(optimizer)
        with pytest.raises(RuntimeError, match=r"no optimizer state yet.*before capturing"):
            self.capture(optimizer)
        assert len(optimizer.state) == 0
        support.assert_same_bits(before, models.snapshot(optimizer))


@pytest.mark.exclusive
@pytest.mark.parametrize("rule", RULES)
def test_memory_of_a_step(rule: str) -> None:
    """A step needs some scratch, but nothing of a gradient's size."""
    optimizers = {
        "sage": FusedSAGE,
        "sinkgd": FusedSinkGD,
        "lion": FusedLion,
        "sign_sgd": FusedSignSGD,
        "scale": FusedSCALE,
        "alias": FusedALIAS,
        "alias_adam": FusedALIASAdam,
        "adamw": FusedAdamW,
    }
    params = [nn.Parameter(torch.ones(2048, 2048, device=GPU, dtype=torch.bfloat16)) for _ in range(4)]
    optimizer = optimizers[rule](params)
    fill_grads(optimizer, 0)
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    requested = torch.cuda.memory_stats()["requested_bytes.all.current"]
    optimizer.step()
    rise = torch.cuda.memory_stats()["requested_bytes.all.peak"] - requested
    planned = sage_ext.plan(nn.ParameterList(params), optimizer).chosen.transient_bytes
    assert rise <= planned + 4096, "the plan promises less"
    # SinkGD writes the sums of a column over no fewer than 16 rows, in float32: an eighth of a bfloat16
    # gradient, and the scales of rows and columns.
    assert planned < 0.15 * sum(param.grad.nbytes for param in params)
    assert torch.cuda.memory_allocated() == before


@every_optimizer
def test_checkpoint_goes_to_the_cpu_and_back(build: Builder) -> None:
    """Bit for bit, with bfloat16 parameters, and training goes on as if nothing had happened."""
    straight = build(model_on(GPU).to(torch.bfloat16))
    take_steps(straight, range(3))
    weights = [param.detach().cpu() for group in straight.param_groups for param in group["params"]]
    saved = through_a_file(straight.state_dict(), "cpu")
    for device in ("cpu", GPU):
        optimizer = build(model_on(device).to(torch.bfloat16))
        optimizer.load_state_dict(saved)
        params = [param for group in optimizer.param_groups for param in group["params"]]
        with torch.no_grad():
            for param, weight in zip(params, weights, strict=True):
                param.copy_(weight)
        for state in filter(None, optimizer.state.values()):
            assert {value.device for value in state.values()} == {torch.device(device)}
        ours, theirs = models.snapshot(optimizer), models.snapshot(straight)
        support.assert_same_bits([t.cpu() for t in ours], [t.cpu() for t in theirs])
        saved = through_a_file(optimizer.state_dict(), "cpu")
    take_steps(straight, range(3, 6))
    take_steps(optimizer, range(3, 6))
    support.assert_same_bits(models.snapshot(straight), models.snapshot(optimizer))


def test_learning_rate_of_a_checkpoint_follows_the_optimizers() -> None:
    optimizer = models.lion(model_on(GPU), lr=torch.tensor(0.5, device=GPU))
    saved = through_a_file(optimizer.state_dict(), "cpu")
    saved["param_groups"][0]["lr"].fill_(0.25)
    optimizer.load_state_dict(saved)
    lr = optimizer.param_groups[0]["lr"]
    assert lr.device == GPU
    assert float(lr) == 0.25


def test_checkpoint_of_torch_adamw() -> None:
    """Which keeps its step counters on the CPU, beside moments on the GPU."""
    theirs = torch.optim.AdamW(model_on(GPU).parameters(), lr=1e-2, weight_decay=0.1)
    take_steps(theirs, range(3))
    model = model_on(GPU)
    ours = FusedAdamW(model.parameters())
    with torch.no_grad():
        for param, weight in zip(model.parameters(), theirs.param_groups[0]["params"], strict=True):
            param.copy_(weight)
    ours.load_state_dict(through_a_file(theirs.state_dict(), None))
    assert {state["step"].device for state in ours.state.values()} == {GPU}
    assert {float(state["step"]) for state in ours.state.values()} == {3.0}
    take_steps(theirs, range(3, 6))
    take_steps(ours, range(3, 6))
    for a, b in zip(theirs.param_groups[0]["params"], model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_training_with_autocast_and_a_scaler() -> None:
    with GPU:
        model = TinyLanguageModel()
        optimizer = FusedHybrid(model)
        scaler = torch.amp.GradScaler("cuda")
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16):
                loss = models.loss_of(model)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
