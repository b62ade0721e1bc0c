"""Hybrids: presets, overrides, and groups that are given."""

from __future__ import annotations

import math
import pickle
from typing import Any

import models
import numpy as np
import pytest
import support
import torch
from models import TinyLanguageModel
from torch import nn

from sage_ext.optimizers import FusedHybrid, FusedSAGE, FusedSinkGD
from sage_ext.optimizers.hybrid import RULES
from sage_ext.optimizers.presets import PRESETS

RULES_OF = {
    "sage": {"embedding": "sage", "lm_head": "sage", "matrix": "sinkgd", "vector": "sage"},
    "lion": {"embedding": "lion", "lm_head": "lion", "matrix": "sinkgd", "vector": "lion"},
    "sinkgd": {"embedding": "adamw", "lm_head": "adamw", "matrix": "sinkgd", "vector": "adamw"},
    "scale": {"embedding": "scale", "lm_head": "scale", "matrix": "scale", "vector": "adamw"},
    "alias": {"embedding+matrix+vector": "alias", "lm_head": "adamw"},
    "sinkgd-scale": {"embedding": "adamw", "lm_head": "scale", "matrix": "sinkgd", "vector": "adamw"},
    "stateless": {"embedding": "scale", "lm_head": "scale", "matrix": "sinkgd", "vector": "sign_sgd"},
}


def by_role(optimizer: FusedHybrid) -> dict[str, dict[str, Any]]:
    return {group["role"]: group for group in optimizer.param_groups}


@pytest.mark.parametrize("preset", RULES_OF)
def test_presets(preset: str, backend: str) -> None:
    optimizer = FusedHybrid(TinyLanguageModel(), preset, backend=backend)
    assert {role: group["rule"] for role, group in by_role(optimizer).items()} == RULES_OF[preset]


def test_tied_models_have_no_head_group(backend: str) -> None:
    optimizer = FusedHybrid(TinyLanguageModel(tied=True), backend=backend)
    assert set(by_role(optimizer)) == {"embedding", "matrix", "vector"}


def test_learning_rates_of_the_presets() -> None:
    model = TinyLanguageModel()
    sage = by_role(FusedHybrid(model, "sage"))
    assert {group["lr"] for group in sage.values()} == {2e-3}
    assert (sage["matrix"]["alpha"], sage["matrix"]["normalization"]) == (10.0, "unit")
    lion = by_role(FusedHybrid(model, "lion"))
    assert lion["embedding"]["lr"] == 1e-4
    sinkgd = by_role(FusedHybrid(model, "sinkgd"))
    assert sinkgd["embedding"]["lr"] == 1e-3
    for matrix in (lion["matrix"], sinkgd["matrix"]):
        assert (matrix["lr"], matrix["alpha"], matrix["normalization"]) == (0.02, 0.05, "sqrt")


def test_scale_is_its_papers_method(backend: str) -> None:
    model = TinyLanguageModel()
    optimizer = FusedHybrid(model, "scale", backend=backend)
    groups = by_role(optimizer)
    settings = {role: (groups[role]["dim"], groups[role]["momentum"]) for role in groups if role != "vector"}
    assert settings == {"embedding": (0, 0.0), "matrix": (1, 0.0), "lm_head": (1, 0.9)}
    assert groups["vector"]["betas"] == (0.9, 0.999)
    assert {(group["lr"], group["weight_decay"]) for group in groups.values()} == {(1e-3, 0.0)}
    models.train(model, optimizer, range(2))
    assert "exp_avg" in optimizer.state[model.head.weight]
    assert not optimizer.state.get(model.up.weight)
    assert not optimizer.state.get(model.embed.weight)


def test_overrides_of_scale_go_to_all_roles() -> None:
    groups = by_role(FusedHybrid(TinyLanguageModel(), "scale", scale={"momentum": 0.5, "weight_decay": 0.1}))
    matrices = [groups[role] for role in ("embedding", "matrix", "lm_head")]
    assert {(group["momentum"], group["weight_decay"]) for group in matrices} == {(0.5, 0.1)}
    assert [group["dim"] for group in matrices] == [0, 1, 1]


def test_scale_asks_what_a_tied_head_is(backend: str) -> None:
    class Unnamed(TinyLanguageModel):
        get_output_embeddings = None

    for model in (TinyLanguageModel(tied=True), Unnamed(tied=True)):
        with pytest.raises(
            ValueError, match=r'^embed.weight: .*one tied parameter.*tied="embedding" or tied="l'
        ):
            FusedHybrid(model, "scale", backend=backend)
        embedding = FusedHybrid(model, "scale", tied="embedding", backend=backend)
        assert by_role(embedding)["embedding"]["dim"] == 0
        assert "lm_head" not in by_role(embedding)
        head = by_role(FusedHybrid(model, "scale", tied="lm_head", backend=backend))
        assert (head["lm_head"]["dim"], head["lm_head"]["momentum"]) == (1, 0.9)
        assert "embedding" not in head
        assert "embedding" in by_role(FusedHybrid(model, "scale", lm_head=[], backend=backend))
    pairs = list(TinyLanguageModel(tied=True).named_parameters())
    names = {"embeddings": "embed.weight", "lm_head": "embed.weight"}
    with pytest.raises(ValueError, match="one tied parameter"):
        FusedHybrid(pairs, "scale", backend=backend, **names)
    FusedHybrid(pairs, "scale", tied="lm_head", backend=backend, **names)
    groups = [{"params": [pairs[0][1]], "rule": "scale", "dim": 0, "momentum": 0.9}]
    FusedHybrid(groups, "scale", backend=backend)
    with pytest.raises(ValueError, match=r"^tied: got 'both'"):
        FusedHybrid(pairs, "scale", tied="both", backend=backend, **names)


def test_added_layers_of_scale_get_their_roles_settings(backend: str) -> None:
    model = TinyLanguageModel()
    model.embed.requires_grad_(False)
    model.head.requires_grad_(False)
    optimizer = pickle.loads(pickle.dumps(FusedHybrid(model, "scale", backend=backend)))
    model.embed.requires_grad_(True)
    model.head.requires_grad_(True)
    optimizer.add_parameters(nn.ModuleDict({"e": model.embed, "h": model.head}), lm_head="h.weight")
    assert [(g["role"], g["dim"], g["momentum"]) for g in optimizer.param_groups[2:]] == [
        ("embedding", 0, 0.0),
        ("lm_head", 1, 0.9),
    ]


def test_lr_for_all_for_some_and_as_tensor() -> None:
    model = TinyLanguageModel()
    assert {group["lr"] for group in FusedHybrid(model, lr=0.5).param_groups} == {0.5}
    some = by_role(FusedHybrid(model, lr={"sinkgd": 0.5}))
    assert (some["matrix"]["lr"], some["embedding"]["lr"]) == (0.5, 2e-3)
    lr = torch.tensor(0.5)
    assert all(group["lr"] is lr for group in FusedHybrid(model, lr=lr).param_groups)


class TestLearningRatesByRole:
    def rates(self, preset: str = "sinkgd-scale", **arguments: Any) -> dict[str, Any]:
        groups = by_role(FusedHybrid(TinyLanguageModel(), preset, **arguments))
        return {role: group["lr"] for role, group in groups.items()}

    def test_of_the_preset(self) -> None:
        own = {"embedding": 1e-2, "matrix": 1e-3, "lm_head": 1e-3, "vector": 1e-3}
        assert self.rates() == own

    def test_go_before_their_rules(self) -> None:
        own = self.rates()
        assert self.rates(lr={"embedding": 0.5}) == {**own, "embedding": 0.5}
        assert self.rates(lr={"adamw": 0.5}) == {**own, "embedding": 0.5, "vector": 0.5}
        assert self.rates(lr={"adamw": 0.5, "embedding": 0.25}) == {**own, "embedding": 0.25, "vector": 0.5}
        assert self.rates(adamw={"lr": 0.5}) == {**own, "embedding": 0.5, "vector": 0.5}
        assert self.rates(adamw={"lr": 0.5}, lr={"vector": 0.25}) == {**own, "embedding": 0.5, "vector": 0.25}
        lr = torch.tensor(0.5)
        assert self.rates(lr={"lm_head": lr})["lm_head"] is lr

    def test_one_number_is_for_all_and_warns_by_role(self) -> None:
        own = r"'embedding': 0.01, 'lm_head': 0.001, 'matrix': 0.001, 'vector': 0.001"
        with pytest.warns(UserWarning, match=own):
            assert set(self.rates(lr=0.5).values()) == {0.5}

    def test_of_added_layers(self) -> None:
        model = TinyLanguageModel()
        model.embed.requires_grad_(False)
        with pytest.warns(UserWarning, match="no parameter has role 'embedding'"):
            optimizer = FusedHybrid(model, "sinkgd-scale", lr={"embedding": 0.5})
        optimizer = pickle.loads(pickle.dumps(optimizer))
        model.embed.requires_grad_(True)
        optimizer.add_parameters(model.embed)
        assert by_role(optimizer)["embedding"]["lr"] == 0.5

    def test_numbers_of_other_kinds_warn_too(self) -> None:
        for lr in (torch.tensor(0.5), np.float32(0.5)):
            with pytest.warns(UserWarning, match="is the rate of every group now"):
                assert {float(rate) for rate in self.rates(lr=lr).values()} == {0.5}

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match=r"lr: 'head' is not known, expected a role .*'lm_head'"):
            self.rates(lr={"head": 0.1})
        with pytest.raises(ValueError, match=r"lr: got -1\.0 for role 'embedding'"):
            self.rates(lr={"embedding": -1.0})
        with pytest.raises(ValueError, match=r"lr: 'matrix' is in one group .* lr=\{'alias': \.\.\.\}"):
            self.rates("alias", lr={"matrix": 0.1})
        with pytest.raises(ValueError, match=r"lr: got 'matrix', but group dicts say their own"):
            FusedHybrid([{"params": [torch.ones(2, 2)], "rule": "sinkgd"}], lr={"matrix": 0.1})


def test_a_stateless_hybrid_keeps_nothing(backend: str) -> None:
    model = TinyLanguageModel()
    optimizer = FusedHybrid(model, "stateless", backend=backend)
    before = [p.detach().clone() for p in model.parameters()]
    models.train(model, optimizer, range(2))
    assert not any(optimizer.state.values())
    groups = by_role(optimizer)
    assert (groups["embedding"]["dim"], groups["lm_head"]["dim"]) == (0, 0)
    assert optimizer.describe().state_bytes == 0
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_overrides_go_to_their_rule() -> None:
    groups = by_role(
        FusedHybrid(
            TinyLanguageModel(),
            maximize=True,
            state_dtype=torch.bfloat16,
            sinkgd={"alpha": 0.05, "normalization": "sqrt", "lr": 0.02},
            sage={"betas": (0.8, 0.9), "momentum_first": True},
        )
    )
    assert (groups["matrix"]["alpha"], groups["matrix"]["lr"]) == (0.05, 0.02)
    assert groups["vector"]["betas"] == (0.8, 0.9)
    assert groups["lm_head"]["momentum_first"]
    assert all(group["maximize"] for group in groups.values())
    assert groups["embedding"]["state_dtype"] == torch.bfloat16
    assert "state_dtype" not in groups["matrix"]


def test_same_numbers_as_the_rules_on_their_own(backend: str) -> None:
    torch.manual_seed(3)
    model = TinyLanguageModel()
    torch.manual_seed(3)
    twin = TinyLanguageModel()
    hybrid = FusedHybrid(model, backend=backend)
    matrices = [twin.up.weight, twin.down.weight]
    others = [p for p in twin.parameters() if not any(p is m for m in matrices)]
    apart = [
        FusedSAGE(others, lr=2e-3, backend=backend),
        FusedSinkGD(matrices, lr=2e-3, iterations=1, alpha=10.0, normalization="unit", backend=backend),
    ]
    for seed in range(4):
        models.train(model, hybrid, [seed])
        models.backward(twin, apart[0], seed)
        for optimizer in apart:
            optimizer.step()
    support.assert_same_bits(
        [p.detach() for p in model.parameters()], [p.detach() for p in twin.parameters()]
    )


@pytest.mark.parametrize("preset", [name for name, row in PRESETS.items() if row.matrix == "sinkgd"])
def test_sinkgd_has_one_iteration_in_presets_and_as_many_as_are_said(preset: str, backend: str) -> None:
    for said, expected in ({}, 1), ({"sinkgd": {"iterations": 5}}, 5):
        groups = by_role(FusedHybrid(TinyLanguageModel(), preset, backend=backend, **said))
        assert groups["matrix"]["iterations"] == expected


def test_group_dicts_are_taken_as_they_are(backend: str) -> None:
    a, b = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    groups = [{"params": [a], "rule": "adamw", "lr": 0.5}, {"params": [b], "rule": "sinkgd"}]
    optimizer = FusedHybrid(groups, backend=backend)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.02]
    a.grad, b.grad = torch.ones(4, 4), torch.ones(4, 4)
    optimizer.step()
    torch.testing.assert_close(a.detach(), torch.full((4, 4), 0.5 - 0.005))
    torch.testing.assert_close(b.detach(), torch.full((4, 4), 1 - 0.02 * 0.05))
    assert set(optimizer.state[a]) == {"exp_avg", "exp_avg_sq", "step"}
    assert optimizer.state[b] == {}


class TestGroupDicts:
    """What a group leaves out has its rule's own default; a preset's, where one is named."""

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [nn.Parameter(torch.ones(4, 4))], "rule": "sinkgd"}]

    def test_own_defaults(self, backend: str) -> None:
        group = FusedHybrid(self.groups(), backend=backend).param_groups[0]
        alone = FusedSinkGD([nn.Parameter(torch.ones(4, 4))]).param_groups[0]
        assert {name: group[name] for name in RULES["sinkgd"].defaults} == {
            name: alone[name] for name in RULES["sinkgd"].defaults
        }

    def test_of_a_named_preset(self) -> None:
        group = FusedHybrid(self.groups(), "sage").param_groups[0]
        assert (group["normalization"], group["alpha"], group["lr"]) == ("unit", 10.0, 2e-3)

    def test_may_come_from_a_generator(self) -> None:
        assert len(FusedHybrid(iter([*self.groups(), *self.groups()])).param_groups) == 2

    def test_are_described(self) -> None:
        description = FusedHybrid(self.groups()).describe()
        assert description.groups[0].rule == "sinkgd"
        assert description.groups[0].hyperparameters["normalization"] == "sqrt"
        assert "group 0: sinkgd: lr 0.02, iterations 5, alpha 0.05" in str(description)


class TestWhatTrainersPass:
    """betas, eps and weight_decay go to the rules that have them."""

    def test_spread(self) -> None:
        model = TinyLanguageModel()
        groups = by_role(
            FusedHybrid(
                model, "sinkgd", weight_decay=0.5, betas=[0.5, 0.75], eps=1e-5, sinkgd={"weight_decay": 0.25}
            )
        )
        assert groups["embedding"]["betas"] == (0.5, 0.75)
        assert groups["embedding"]["eps"] == groups["matrix"]["eps"] == 1e-5
        assert (groups["vector"]["weight_decay"], groups["matrix"]["weight_decay"]) == (0.5, 0.25)
        assert "betas" not in groups["matrix"]
        with pytest.raises(ValueError, match=r"^weight_decay: got -1 for rule"):
            FusedHybrid(model, weight_decay=-1)

    def test_and_to_group_dicts_that_say_nothing(self) -> None:
        groups = [
            {"params": [nn.Parameter(torch.ones(2))], "rule": "adamw", "weight_decay": 0.0},
            {"params": [nn.Parameter(torch.ones(2))], "rule": "lion"},
        ]
        optimizer = FusedHybrid(groups, weight_decay=0.5)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.5]

    def test_decay_and_no_decay_groups_without_rules(self) -> None:
        model = TinyLanguageModel()
        groups = [
            {"params": [model.up.weight], "weight_decay": 0.1},
            {"params": [model.up.bias], "weight_decay": 0},
        ]
        with pytest.raises(
            ValueError, match=r'^rule: param group 0 names none; pass the model itself.*"rule" in each'
        ):
            FusedHybrid(groups)


def test_named_parameters(backend: str) -> None:
    model = TinyLanguageModel()
    names = {"embeddings": ["embed.weight"], "lm_head": "head.weight"}
    optimizer = FusedHybrid(model.named_parameters(), backend=backend, **names)
    assert {role: group["rule"] for role, group in by_role(optimizer).items()} == RULES_OF["sage"]


def test_errors() -> None:
    model = TinyLanguageModel()
    with pytest.raises(ValueError, match=r"preset: got 'adam', expected one of 'sage', 'lion', 'sinkgd'"):
        FusedHybrid(model, "adam")
    with pytest.raises(
        ValueError, match=r"argument 'sgd' is not known.*'sage', 'sinkgd', 'lion', 'sign_sgd'"
    ):
        FusedHybrid(model, sgd={"lr": 1.0})
    with pytest.raises(
        ValueError, match=r"sinkgd: unknown hyperparameter 'betas', expected one of lr, iterations"
    ):
        FusedHybrid(model, sinkgd={"betas": (0.9, 0.9)})
    with pytest.raises(TypeError, match=r"^sinkgd: got 1, expected a dict of hyperparameters"):
        FusedHybrid(model, sinkgd=1)
    for head in (model.head, [model.head.weight], model.head.weight):
        with pytest.raises(TypeError, match=r"^lm_head: got (Linear|Parameter), expected a parameter's name"):
            FusedHybrid(model, lm_head=head)
    with pytest.warns(UserWarning, match=r"lr=0.002 is the rate of every group but those of 'scale' now"):
        FusedHybrid(model, "stateless", lr=2e-3, scale={"lr": 1e-3})
    with pytest.raises(ValueError, match=r"betas: got \(0.9, 2\) for rule 'sage'"):
        FusedHybrid(model, sage={"betas": (0.9, 2)})
    with pytest.raises(ValueError, match=r"lr: 'sgd' is not known"):
        FusedHybrid(model, lr={"sgd": 1.0})
    with pytest.raises(ValueError, match=r"lr: got -1 for rule"):
        FusedHybrid(model, lr=-1)
    with pytest.raises(ValueError, match=r"bare parameters"):
        FusedHybrid(model.parameters())
    with pytest.raises(ValueError, match=r"embeddings: .*pairs do not tell"):
        FusedHybrid(model.named_parameters())
    with pytest.raises(ValueError, match=r"^rule: param group 0 names none; pass the model itself.*'sage'"):
        FusedHybrid([{"params": list(model.parameters())}])
    with pytest.raises(ValueError, match=r"embeddings: got 'a'"):
        FusedHybrid([{"params": [model.up.weight], "rule": "sage"}], embeddings="a")
    with pytest.raises(ValueError, match=r"up.bias \(param 0 of group 0.*SAGE, Lion or AdamW"):
        FusedHybrid([{"params": [("up.bias", model.up.bias)], "rule": "sinkgd"}])


def test_a_generator_that_is_used_up() -> None:
    model = TinyLanguageModel()
    optimizer = FusedHybrid(nn.Linear(2, 2))
    for build in (FusedHybrid, optimizer.add_parameters):
        pairs = model.named_parameters()
        assert len(list(pairs)) == 8
        with pytest.raises(
            ValueError, match=r"^model_.*: there are no parameters in it; .* gone through before"
        ):
            build(pairs, embeddings=["embed.weight"], lm_head="head.weight")
        with pytest.raises(ValueError, match=r"^model_.*: there are no parameters in it"):
            build([])
        build(model.named_parameters(), embeddings=["embed.weight"], lm_head="head.weight")


def test_preset_rows_are_complete() -> None:
    for preset in PRESETS.values():
        for role in ("embedding", "lm_head", "matrix", "vector"):
            assert preset.rule_for(role)
        for values in preset.hyperparameters.values():
            assert all(math.isfinite(v) for v in values.values() if isinstance(v, float))
        assert set(preset.roles) <= {"embedding", "lm_head", "matrix", "vector"}
    with pytest.raises(ValueError, match="role: got 'bias'"):
        PRESETS["sage"].rule_for("bias")


def test_what_is_said_to_a_rule_that_nobody_has_is_refused() -> None:
    """An lr for AdamW in a preset without AdamW would change nothing, and nobody would know."""
    model = torch.nn.Linear(3, 2)
    for changes, words in (
        ({"lr": {"adamw": 1e-3}}, "lr: 'adamw' is no rule"),
        ({"lion": {"lr": 1.0}}, "'lion' is no"),
    ):
        with pytest.raises(ValueError, match=words):
            FusedHybrid(model, "sage", **changes)
    with pytest.raises(ValueError, match=r"'weight_decy' is not known, expected lr, betas.*weight_decay"):
        FusedHybrid(model, "sage", weight_decy=0.1)
