"""Warnings: said once, to the caller, and only where something is rarely meant."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import models
import pytest
import torch
from models import TinyLanguageModel
from torch import nn
from torch.optim import lr_scheduler, swa_utils

from sage_ext.optimizers import FusedALIAS, FusedHybrid, FusedLion, FusedSCALE

ONE_RATE = r"learning rates of rules lion, sinkgd differed and are now all"


@pytest.fixture(autouse=True)
def nothing_else() -> Any:
    """What a test does not expect is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def hybrid() -> tuple[TinyLanguageModel, FusedHybrid]:
    model = TinyLanguageModel()
    return model, FusedHybrid(model, "lion")


class TestOneRate:
    def test_scalar_max_lr(self) -> None:
        model, optimizer = hybrid()
        scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=10, cycle_momentum=False)
        with pytest.warns(UserWarning, match=ONE_RATE) as found:
            models.train(model, optimizer, [0])
        assert found[0].filename.endswith("models.py"), "in the name of the caller"
        scheduler.step()
        models.train(model, optimizer, [1])  # not a second time

    def test_its_cure(self) -> None:
        model, optimizer = hybrid()
        rates = [group["lr"] for group in optimizer.param_groups]
        scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=10, cycle_momentum=False)
        for seed in range(3):
            models.train(model, optimizer, [seed])
            scheduler.step()

    def test_swalr(self) -> None:
        model, optimizer = hybrid()
        scheduler = swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=1)
        models.train(model, optimizer, [0])
        scheduler.step()
        with pytest.warns(UserWarning, match=ONE_RATE):
            models.train(model, optimizer, [1])

    def test_after_loading_and_unpickling(self) -> None:
        for how in ("load", "pickle"):
            model, optimizer = hybrid()
            if how == "load":
                optimizer.load_state_dict(optimizer.state_dict())
            else:
                model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            with pytest.warns(UserWarning, match=ONE_RATE):
                models.train(model, optimizer, [0])

    def test_warm_up_from_zero_says_nothing(self) -> None:
        model, optimizer = hybrid()
        scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 3))
        for seed in range(4):
            models.train(model, optimizer, [seed])
            scheduler.step()

    def test_rates_that_were_the_same_say_nothing(self) -> None:
        model = TinyLanguageModel()
        models.train(model, FusedHybrid(model, "sage"), [0])
        with pytest.warns(UserWarning, match="is the rate of every group now"):
            optimizer = FusedHybrid(model, "lion", lr=1e-3)
        models.train(model, optimizer, [0])

    def test_one_number_for_a_preset_with_several(self) -> None:
        """Lion's size of step is a two hundredth of SinkGD's rate."""
        model = TinyLanguageModel()
        own = r"lr=\{'lion': 0.0001, 'sinkgd': 0.02\}"
        with pytest.warns(UserWarning, match=rf"lr=0.001 is .* preset 'lion' .* {own}") as found:
            FusedHybrid(model, "lion", lr=1e-3)
        assert found[0].filename == __file__
        FusedHybrid(model, "sage", lr=1e-3)
        FusedHybrid(model, "alias", lr=1e-3)
        FusedHybrid(model, "lion", lr={"lion": 1e-3, "sinkgd": 0.1})
        FusedHybrid(model, "lion", lr=1e-3, sinkgd={"lr": 0.1})
        FusedHybrid([{"params": list(model.parameters()), "rule": "lion"}], preset="lion", lr=1e-3)

    def test_of_one_rule_says_nothing(self) -> None:
        groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in (0.1, 0.2)]
        optimizer = FusedLion(groups)
        for group in optimizer.param_groups:
            group["lr"] = 0.3
            group["params"][0].grad = torch.ones(2)
        optimizer.step()

    def test_alias_has_no_rate(self) -> None:
        model = TinyLanguageModel()
        optimizer = FusedHybrid(model, "alias")
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        models.train(model, optimizer, [0])


IDLE = r"learning rate of group 0 went from 0.001 to \S+, which changes nothing there: .* group\['max_step'\]"


class TestRatesThatAreIdle:
    """ALIAS finds its own step: nothing goes by its learning rate but the warm-up."""

    def test_a_schedule_is_said_to_change_nothing_once(self) -> None:
        model = TinyLanguageModel()
        optimizer = FusedALIAS(model.parameters())
        scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / 10)
        models.train(model, optimizer, [0])
        scheduler.step()
        with pytest.warns(UserWarning, match=IDLE):
            models.train(model, optimizer, [1])
        assert optimizer.step_size(0) > 0
        scheduler.step()
        models.train(model, optimizer, [2])

    def test_in_the_warm_up_it_is_what_the_step_is(self) -> None:
        model = TinyLanguageModel()
        optimizer = FusedALIAS(model.parameters(), lr=1e-3, warmup_steps=3)
        scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
        for seed in range(3):
            models.train(model, optimizer, [seed])
            assert optimizer.step_size(0) == pytest.approx(1e-3 * (seed + 1) / 4)
            scheduler.step()
        for seed in range(3, 6):  # at the rate that the warm-up ended with
            models.train(model, optimizer, [seed])
            scheduler.step()

    def test_its_cure(self) -> None:
        model = TinyLanguageModel()
        optimizer = FusedALIAS(model.parameters())
        for seed in range(3):
            optimizer.param_groups[0]["max_step"] = 1e-3 / (seed + 1)
            models.train(model, optimizer, [seed])
            assert optimizer.step_size(0) <= 1e-3 / (seed + 1)

    @pytest.mark.parametrize("make", [FusedALIAS, lambda model, lr: FusedHybrid(model, "alias", lr=lr)])
    def test_one_that_was_chosen_is_named(self, make: Any) -> None:
        model = TinyLanguageModel()
        given: Any = list(model.parameters()) if make is FusedALIAS else model
        with pytest.warns(UserWarning, match=r"lr=0.01 is idle for rule 'alias', .* up to max_step=0.001"):
            optimizer = make(given, lr=1e-2)
        pickle.loads(pickle.dumps(optimizer))  # not a second time
        FusedALIAS(model.parameters(), lr=1e-2, warmup_steps=5)
        FusedALIAS(model.parameters(), lr=torch.tensor(1e-2))
        FusedHybrid(model, "alias", lr={"adamw": 1e-2})


class TestMisspeltKeys:
    """torch lets a group have any keys: one that is nearly a hyperparameter changes nothing, and says so."""

    def params(self) -> list[nn.Parameter]:
        return [nn.Parameter(torch.ones(2, 2))]

    @pytest.mark.parametrize(
        ("key", "meant"),
        [("weight_deacy", "weight_decay"), ("weightdecay", "weight_decay"), ("beta", "betas"), ("LR", "lr")],
    )
    def test_are_named_once(self, key: str, meant: str) -> None:
        group = {"params": self.params(), key: 0.1}
        with pytest.warns(
            UserWarning, match=rf"group 1: '{key}' is no hyper.* 'lion' .*mean '{meant}'\?"
        ) as found:
            optimizer = FusedLion([{"params": self.params()}, group, {"params": self.params(), key: 0.1}])
        assert len(found) == 1
        assert found[0].filename == __file__
        assert optimizer.param_groups[1][key] == 0.1
        optimizer.add_param_group({"params": self.params(), key: 0.1})

    def test_go_by_the_groups_own_rule(self) -> None:
        group = {"params": self.params(), "rule": "sinkgd", "iteration": 5, "weightdecay": 0.1}
        with pytest.warns(UserWarning, match="is no hyperparameter of rule 'sinkgd'") as found:
            FusedHybrid([group])
        assert [str(one.message).partition(";")[2] for one in found] == [
            " did you mean 'iterations'?",
            " did you mean 'weight_decay'?",
        ]

    def test_as_an_error_it_leaves_the_optimizer_as_it_was(self) -> None:
        optimizer = FusedLion(self.params())
        with pytest.raises(UserWarning, match="weight_deacy"):
            optimizer.add_param_group({"params": self.params(), "weight_deacy": 0.1})
        assert len(optimizer.param_groups) == 1

    def test_what_trainers_and_schedulers_keep_there_says_nothing(self) -> None:
        kept = (
            "initial_lr name lr_mult lr_scale max_lr min_lr base_momentum max_momentum layer_id swa_lr fused"
        )
        for optimizer_class in (FusedLion, FusedSCALE, FusedALIAS):
            optimizer = optimizer_class([{"params": self.params(), **dict.fromkeys(kept.split(), 1.0)}])
            twin = pickle.loads(pickle.dumps(optimizer))
            twin.add_param_group({"params": self.params(), "initial_lr": 1.0})


class TestNoGradient:
    def test_parameters_that_will_not_move(self) -> None:
        model = TinyLanguageModel()
        optimizer = FusedLion(model.named_parameters())
        models.backward(model, optimizer)
        model.up.weight.grad = None
        with pytest.warns(UserWarning, match=r"without a gradient in the first step.*: up.weight\. If"):
            optimizer.step()
        optimizer.step()  # once is enough

    def test_many_are_counted(self) -> None:
        params = [nn.Parameter(torch.ones(1)) for _ in range(9)]
        params[0].grad = torch.ones(1)
        with pytest.warns(UserWarning, match=r"param 1 of group 0, .*param 5 of group 0 and 3 more\. If"):
            FusedALIAS(params).step()

    def test_frozen_ones_and_steps_without_any_say_nothing(self) -> None:
        model = TinyLanguageModel()
        optimizer = FusedLion(model.parameters())
        optimizer.step()
        model.up.requires_grad_(False)
        models.train(model, optimizer, [0])


def test_an_optimizer_none_of_whose_parameters_has_a_gradient_says_so_once() -> None:
    """A wrapper that puts other parameters into the model leaves it with those that nobody trains."""
    model = torch.nn.Linear(3, 2)
    optimizer = FusedLion(model.parameters())
    optimizer.step()
    with pytest.warns(UserWarning, match=r"no parameter of this optimizer.*wrap the model first"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
