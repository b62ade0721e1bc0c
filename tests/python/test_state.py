"""Saving, loading, copying and pickling: training goes on as if nothing had happened."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import models
import pytest
import support
import torch
from models import BUILDERS, NAMES, TinyLanguageModel
from torch import nn

from sage_ext.optimizers import FusedAdamW, FusedHybrid, FusedLion, FusedSAGE
from sage_ext.optimizers.hybrid import RULES

pytestmark = pytest.mark.usefixtures("device")

Builder = Callable[..., Any]
every_optimizer = pytest.mark.parametrize("build", BUILDERS, ids=NAMES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def model_of(dtype: torch.dtype) -> TinyLanguageModel:
    torch.manual_seed(11)
    return TinyLanguageModel().to(dtype)


@every_optimizer
@dtypes
def test_resume_is_bit_exact(build: Builder, backend: str, dtype: torch.dtype) -> None:
    straight = model_of(dtype)
    optimizer = build(straight, backend=backend)
    models.train(straight, optimizer, range(6))

    first = model_of(dtype)
    interrupted = build(first, backend=backend)
    models.train(first, interrupted, range(3))
    saved = through_a_file({"model": first.state_dict(), "optimizer": interrupted.state_dict()})
    second = model_of(dtype)
    resumed = build(second, backend=backend, lr=123.0)
    second.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    models.train(second, resumed, range(3, 6))

    support.assert_same_bits(models.snapshot(optimizer), models.snapshot(resumed))
    assert [g["lr"] for g in resumed.param_groups] == [g["lr"] for g in optimizer.param_groups]


@dtypes
def test_every_dtype_survives(backend: str, dtype: torch.dtype) -> None:
    """torch casts state to the parameter's dtype on loading. s_range and float32 moments must not be
    rounded."""
    model = model_of(dtype)
    optimizer = models.sage(model, backend=backend, state_dtype=torch.float32)
    models.train(model, optimizer, range(2))
    twin = model_of(dtype)
    other = models.sage(twin, backend=backend)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    for a, b in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert (b["exp_avg"].dtype, b["s_range"].dtype, b["step"].dtype) == (torch.float32,) * 3
        assert list(a) == list(b)
        support.assert_same_bits(list(a.values()), list(b.values()))
    assert other.param_groups[0]["state_dtype"] == torch.float32


def test_moments_keep_their_dtype_beside_a_parameter_of_another(backend: str) -> None:
    """A checkpoint of a bfloat16 model loads into a float32 one as it is, and training goes on."""
    model, twin = model_of(torch.bfloat16), model_of(torch.float32)
    optimizer, other = models.sage(model, backend=backend), models.sage(twin, backend=backend)
    models.train(model, optimizer, [0])
    other.load_state_dict(optimizer.state_dict())
    for a, b in zip(optimizer.state.values(), other.state.values(), strict=True):
        support.assert_same_bits(list(a.values()), list(b.values()))
    models.train(twin, other, [1])
    assert {state["exp_avg"].dtype for state in other.state.values()} == {torch.bfloat16}


@every_optimizer
def test_deep_copy_and_pickle(build: Builder, backend: str) -> None:
    model = model_of(torch.float32)
    optimizer = build(model, backend=backend)
    models.train(model, optimizer, range(2))
    copies = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    models.train(model, optimizer, range(2, 4))
    for twin, other in copies:
        assert other.backend == backend
        models.train(twin, other, range(2, 4))
        support.assert_same_bits(models.snapshot(optimizer), models.snapshot(other))
        assert str(other.describe()) == str(optimizer.describe())


def test_pickle_from_before_a_hyperparameter_existed(backend: str) -> None:
    model = model_of(torch.float32)
    optimizer = models.sage(model, backend=backend)
    del optimizer.param_groups[0]["instant_damper"], optimizer.param_groups[0]["rule"]
    twin, other = pickle.loads(pickle.dumps((model, optimizer)))
    assert other.param_groups[0]["instant_damper"] is True
    models.train(twin, other, [0])


def test_loaded_state_does_not_share_memory_with_the_dict(backend: str) -> None:
    model = model_of(torch.float32)
    optimizer = models.lion(model, backend=backend)
    models.train(model, optimizer, [0])
    twin = model_of(torch.float32)
    other = models.lion(twin, backend=backend)
    other.load_state_dict(optimizer.state_dict())
    before = models.snapshot(optimizer)
    models.train(twin, other, [1])
    support.assert_same_bits(before, models.snapshot(optimizer))


def test_hooks_see_what_they_should(backend: str) -> None:
    model = model_of(torch.bfloat16)
    optimizer = models.sage(model, backend=backend)
    models.train(model, optimizer, [0])
    saved = optimizer.state_dict()
    other = models.sage(model_of(torch.bfloat16), backend=backend)
    seen: list[Any] = []

    def before(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        seen.append(len(state_dict["state"]))
        for state in state_dict["state"].values():
            state["step"] = torch.tensor(41.0)
        return state_dict

    def after(loaded: torch.optim.Optimizer) -> None:
        seen.extend({state["s_range"].dtype for state in loaded.state.values()})
        seen.extend({float(state["step"]) for state in loaded.state.values()})

    other.register_load_state_dict_pre_hook(before)
    other.register_load_state_dict_post_hook(after)
    other.load_state_dict(copy.deepcopy(saved))
    assert seen == [len(list(model.parameters())), torch.float32, 41.0]
    other.load_state_dict(copy.deepcopy(saved))
    assert len(seen) == 6
    hooks = other._optimizer_load_state_dict_pre_hooks, other._optimizer_load_state_dict_post_hooks
    assert [len(held) for held in hooks] == [1, 1], "the optimizer's own hooks must not pile up"


def test_strides_follow_the_parameter(backend: str) -> None:
    """A checkpoint of a contiguous model loads into one whose parameter is transposed in memory."""
    plain = nn.Parameter(torch.randn(4, 6))
    odd = nn.Parameter(plain.detach().t().contiguous().t())
    optimizers = [FusedLion([param], backend=backend) for param in (plain, odd)]
    plain.grad = torch.randn(4, 6)
    optimizers[0].step()
    with torch.no_grad():
        odd.copy_(plain)
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    odd.grad = plain.grad = torch.randn(4, 6)
    for optimizer in optimizers:
        optimizer.step()
    assert odd.stride() == optimizers[1].state[odd]["exp_avg"].stride() == (1, 4)
    support.assert_same_bits([plain.detach()], [odd.detach()])


def test_checkpoint_of_torch_adamw_loads(backend: str) -> None:
    """On a GPU with counters there, made by torch's default device; test_cuda.py has it without one."""
    model, twin = model_of(torch.float32), model_of(torch.float32)
    theirs = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    models.train(model, theirs, range(3))
    ours = FusedAdamW(twin.parameters(), backend=backend)
    twin.load_state_dict(model.state_dict())
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    assert ours.param_groups[0]["lr"] == 1e-2
    assert ours.param_groups[0]["rule"] == "adamw"
    models.train(model, theirs, range(3, 6))
    models.train(twin, ours, range(3, 6))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_step_saved_as_a_number_loads(backend: str) -> None:
    model = model_of(torch.float32)
    optimizer = models.adamw(model, backend=backend)
    models.train(model, optimizer, [0])
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = 1
    optimizer.load_state_dict(saved)
    assert all(float(state["step"]) == 1.0 for state in optimizer.state.values())
    models.train(model, optimizer, [1])


class TestRefused:
    """A state dict that does not fit: an error that says why, and nothing has changed."""

    def refuse(self, optimizer: Any, saved: dict[str, Any], match: str) -> None:
        before, groups = models.snapshot(optimizer), copy.deepcopy(optimizer.state_dict()["param_groups"])
        state = dict(optimizer.state)
        with pytest.raises(ValueError, match=match):
            optimizer.load_state_dict(saved)
        support.assert_same_bits(before, models.snapshot(optimizer))
        assert optimizer.state_dict()["param_groups"] == groups
        assert all(optimizer.state[param] is held for param, held in state.items())

    def trained(self, build: Builder, backend: str) -> Any:
        model = model_of(torch.float32)
        optimizer = build(model, backend=backend)
        models.train(model, optimizer, [0])
        return optimizer

    def test_another_shape(self, backend: str) -> None:
        optimizer = self.trained(models.sage, backend)
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][3]["s_range"] = torch.zeros(5)
        self.refuse(optimizer, saved, r"param 3 of group 0.*'s_range' has shape \(5,\), expected \(16,\)")

    def test_another_rule(self, backend: str) -> None:
        optimizer = self.trained(models.lion, backend)
        saved = self.trained(models.adamw, backend).state_dict()
        self.refuse(optimizer, saved, "group 0 was saved with rule 'adamw'.*'lion'")

    def test_other_presets(self, backend: str) -> None:
        optimizer = self.trained(models.hybrid("sage"), backend)
        saved = self.trained(models.hybrid("lion"), backend).state_dict()
        self.refuse(optimizer, saved, "group 0 was saved with rule 'lion'.*'sage'")

    def test_missing_state(self, backend: str) -> None:
        optimizer = self.trained(models.adamw, backend)
        saved = copy.deepcopy(optimizer.state_dict())
        del saved["state"][2]["exp_avg_sq"]
        self.refuse(optimizer, saved, "param 2 of group 0.*has exp_avg, step; rule 'adamw' keeps")

    def test_amsgrad(self, backend: str) -> None:
        model = model_of(torch.float32)
        theirs = torch.optim.AdamW(model.parameters(), amsgrad=True)
        models.train(model, theirs, [0])
        self.refuse(self.trained(models.adamw, backend), theirs.state_dict(), "max_exp_avg_sq")

    def test_amsgrad_that_has_not_stepped(self, backend: str) -> None:
        theirs = torch.optim.AdamW(model_of(torch.float32).parameters(), amsgrad=True)
        self.refuse(self.trained(models.adamw, backend), theirs.state_dict(), "group 0 has amsgrad=True")

    def test_weight_decay_of_adam(self, backend: str) -> None:
        """An L2 penalty would become decoupled decay. Without it, and by either cure, the file loads."""
        model = model_of(torch.float32)
        theirs = torch.optim.Adam(model.parameters(), weight_decay=0.1)
        models.train(model, theirs, [0])
        ours = self.trained(models.adamw, backend)
        message = (
            "weight_decay of 0.1 is an L2 penalty there.*weight_decay to 0, or decoupled_weight_decay to"
        )
        self.refuse(ours, theirs.state_dict(), message)
        for cure in ({"weight_decay": 0}, {"decoupled_weight_decay": True}):
            saved = copy.deepcopy(theirs.state_dict())
            saved["param_groups"][0].update(cure)
            ours.load_state_dict(saved)
            for a, b in zip(theirs.state.values(), ours.state.values(), strict=True):
                support.assert_same_bits([a["exp_avg"]], [b["exp_avg"]])

    def test_bias_that_is_not_corrected(self, backend: str) -> None:
        """By apex and DeepSpeed, or by older transformers."""
        for key in ("bias_correction", "correct_bias"):
            saved = copy.deepcopy(self.trained(models.adamw, backend).state_dict())
            del saved["param_groups"][0]["rule"]
            saved["param_groups"][0][key] = True
            self.trained(models.adamw, backend).load_state_dict(copy.deepcopy(saved))
            saved["param_groups"][0][key] = False
            self.refuse(self.trained(models.adamw, backend), saved, f"{key}=False, and rule 'adamw' corrects")

    def test_a_whole_checkpoint(self, backend: str) -> None:
        optimizer = self.trained(models.lion, backend)
        own = optimizer.state_dict()
        wrong: dict[str, dict[str, Any]] = {
            r"it has 'model', 'optim', .*whole checkpoint; pass state_dict\['optim'\]$": {
                "model": {"weight": torch.ones(2)},
                "optim": own,
                "epoch": 3,
            },
            r"whole checkpoint; pass state_dict\['optimizer_states'\]\[0\]$": {"optimizer_states": [own]},
            r"'embed.weight', .*looks like a model's; pass what optimizer": model_of(
                torch.float32
            ).state_dict(),
            r"flattened; load it with its set_optimizer_state_dict": {"param_groups.embed.weight.lr": 0.1},
            r"it has nothing in it, and no 'param_groups'; pass what": {},
            r"it has 'last_epoch', and no 'param_groups'; pass what": {"last_epoch": 3},
        }
        for message, saved in wrong.items():
            self.refuse(optimizer, saved, f"^state_dict: .*{message}")
        for value in (None, "optimizer.pt", model_of(torch.float32)):
            with pytest.raises(TypeError, match=r"^state_dict: got .*, expected what optimizer.state_dict"):
                optimizer.load_state_dict(value)  # type: ignore[arg-type]

    def test_another_optimizers_groups(self, backend: str) -> None:
        model = model_of(torch.float32)
        theirs = torch.optim.AdamW(model.parameters())
        message = (
            r"state_dict: it has 1 group of \d+ parameters, and this optimizer has 4 groups of 1 \(sage\), "
            r".*; it names no rule, so another optimizer has saved it \(torch.optim's\?\): begin "
            "with new state"
        )
        self.refuse(self.trained(models.hybrid("sage"), backend), theirs.state_dict(), message)

    @pytest.mark.parametrize("build", [models.adamw, models.hybrid("sinkgd")])
    def test_state_of_bitsandbytes(self, build: Any, backend: str) -> None:
        """Its file has other names for everything; the same groups are no reason to begin anew without a
        word."""
        optimizer = self.trained(build, backend)
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"] = {
            index: {"step": 3, "state1": torch.zeros(4, dtype=torch.uint8), "absmax1": torch.ones(1)}
            for group in saved["param_groups"]
            for index in group["params"]
        }
        self.refuse(optimizer, saved, "the saved state has absmax1, state1, step; rule '.*' keeps")
        for index, state in saved["state"].items():  # as 0.50 writes it
            saved["state"][index] = {"__bnb_optimizer_quant_state__": state}
        self.refuse(optimizer, saved, "the saved state has __bnb_optimizer_quant_state__; rule '.*' keeps")

    def test_another_number_of_parameters(self, backend: str) -> None:
        optimizer = self.trained(models.sage, backend)
        saved = FusedSAGE([nn.Parameter(torch.zeros(3))], backend=backend).state_dict()
        self.refuse(
            optimizer,
            saved,
            r"state_dict: it has 1 group of 1 \(sage\) parameters, and this optimizer has .*; build the",
        )

    def test_hyperparameters_out_of_range(self, backend: str) -> None:
        optimizer = self.trained(models.sage, backend)
        saved = copy.deepcopy(optimizer.state_dict())
        saved["param_groups"][0]["betas"] = (0.9, 1.5)
        self.refuse(optimizer, saved, r"betas: got \(0.9, 1.5\) in group 0 of the state dict")

    def test_integer_moments(self, backend: str) -> None:
        optimizer = self.trained(models.lion, backend)
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"].to(torch.int8)
        self.refuse(optimizer, saved, "'exp_avg' has dtype torch.int8")


OTHERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1),
    "RAdam": torch.optim.RAdam,
    "NAdam": torch.optim.NAdam,
    "Adamax": torch.optim.Adamax,
    "RMSprop": torch.optim.RMSprop,
    "Rprop": torch.optim.Rprop,
    "Adagrad": torch.optim.Adagrad,
    "Adadelta": torch.optim.Adadelta,
    "Adafactor": torch.optim.Adafactor,
    "ASGD": torch.optim.ASGD,
    "LBFGS": torch.optim.LBFGS,
    "Muon": torch.optim.Muon,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
}


def group_of(rule: str) -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(4, 4))], "rule": rule}]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("steps", [0, 1])
def test_files_of_torchs_other_optimizers(name: str, steps: int) -> None:
    """Their hyperparameters have the names of ours, and where there is no state nothing else tells them
    apart: a rate of SGD would go on as Sign-SGD's."""
    weight = nn.Parameter(torch.ones(4, 4))
    theirs = OTHERS[name]([weight])
    for _ in range(steps):
        weight.grad = torch.ones(4, 4)
        theirs.step(lambda: torch.zeros(()))  # type: ignore[arg-type]
    for rule in RULES:
        ours = FusedHybrid(group_of(rule))
        before = copy.deepcopy(ours.state_dict())
        if rule == "adamw" and name in ("Adam", "AdamW"):
            ours.load_state_dict(theirs.state_dict())
            assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
            continue
        message = rf"^state_dict: group 0 looks like one of .*{name}\b.*'{rule}'.*; begin with new state"
        with pytest.raises(ValueError, match=message):
            ours.load_state_dict(theirs.state_dict())
        assert ours.state_dict() == before


@pytest.mark.parametrize("saved", RULES)
def test_hyperparameters_of_another_rule_in_a_file_that_names_none(saved: str) -> None:
    """As lion-pytorch and others save them. What has the same hyperparameters cannot be told apart."""
    told = {"betas", "eps", "momentum"}
    own = RULES[saved].defaults
    group = {"lr": 0.1, "weight_decay": 0.0, "params": [0], **{key: own[key] for key in told & set(own)}}
    for rule in RULES:
        ours = FusedHybrid(group_of(rule))
        has, wants = told & set(own), told & set(RULES[rule].defaults)
        if has <= wants and not (has == {"betas"} and "eps" in wants):
            ours.load_state_dict({"state": {}, "param_groups": [group]})
            assert ours.param_groups[0]["lr"] == 0.1
        else:
            with pytest.raises(
                ValueError, match=r"^state_dict: group 0 (names no rule and has '|looks like)"
            ):
                ours.load_state_dict({"state": {}, "param_groups": [group]})
            assert ours.param_groups[0]["lr"] != 0.1


def test_marks_of_other_libraries() -> None:
    """What was in their files in September 2026."""
    for name, keys in {
        "Prodigy": ("d", "d0", "d_coef"),
        "D-Adaptation": ("d", "numerator_weighted"),
        "a schedule-free optimizer": ("r", "k", "train_mode"),
        "GaLore": ("rank", "update_proj_gap", "correct_bias"),
        "transformers.Adafactor": ("clip_threshold", "decay_rate"),
    }.items():
        group = {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8, "params": [0], **dict.fromkeys(keys, 1.0)}
        ours = FusedAdamW([nn.Parameter(torch.ones(2))])
        with pytest.raises(ValueError, match=f"^state_dict: group 0 looks like one of {name}"):
            ours.load_state_dict({"state": {}, "param_groups": [group]})
