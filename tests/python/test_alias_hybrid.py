"""ALIAS and ALIAS-Adam among other rules: the preset and custom mixes."""

from __future__ import annotations

from typing import Any

import models
import pytest
import support
from models import TinyLanguageModel

from sage_ext.optimizers import FusedAdamW, FusedALIAS, FusedHybrid


def by_role(optimizer: FusedHybrid) -> dict[str, dict[str, Any]]:
    return {group["role"]: group for group in optimizer.param_groups}


def test_alias_has_one_group_with_one_step_size(backend: str) -> None:
    """All that is not the head: its scalars are shared, whatever a parameter's role."""
    model = TinyLanguageModel()
    optimizer = FusedHybrid(model, "alias", backend=backend)
    groups = by_role(optimizer)
    joint, head = groups["embedding+matrix+vector"], groups["lm_head"]
    assert head["param_names"] == ["head.weight"]
    assert set(joint["param_names"]) == {name for name, _ in model.named_parameters()} - {"head.weight"}
    assert (head["lr"], head["weight_decay"], joint["max_step"]) == (1e-3, 0.0, 1e-3)
    assert (joint["memory_efficient"], joint["gap"]) == (True, "descent")
    assert "scalars" not in head
    models.train(model, optimizer, range(3))
    assert joint["scalars"].shape == (9,)
    assert set(optimizer.state[model.embed.weight]) == {"signs"}
    assert set(optimizer.state[model.head.weight]) == {"step", "exp_avg", "exp_avg_sq"}
    numel = {name: param.numel() for name, param in model.named_parameters()}
    expected = 72 + sum(8 * -(-numel[name] // 32) for name in joint["param_names"])
    assert optimizer.describe().totals["alias"].state_bytes == expected


@pytest.mark.parametrize("form", [{"memory_efficient": False}, {"smoothness": "sum"}])
def test_alias_hybrid_has_the_same_numbers_as_its_rules(backend: str, form: dict[str, Any]) -> None:
    model, twin = TinyLanguageModel(), TinyLanguageModel()
    twin.load_state_dict(model.state_dict())
    changes = {**form, "gap": "lower_bound", "max_step": 0.5}
    hybrid = FusedHybrid(model, "alias", backend=backend, alias=changes, adamw={"lr": 0.25})
    others = [param for param in twin.parameters() if param is not twin.head.weight]
    apart = [
        FusedALIAS(others, backend=backend, **changes),
        FusedAdamW([twin.head.weight], lr=0.25, weight_decay=0.0, backend=backend),
    ]
    for seed in range(4):
        hybrid.step(loss=models.backward(model, hybrid, seed))
        loss = models.backward(twin, apart[0], seed)
        for optimizer in apart:
            optimizer.step(loss=loss)
    support.assert_same_bits(
        [p.detach() for p in model.parameters()], [p.detach() for p in twin.parameters()]
    )
    assert hybrid.step_size() == apart[0].step_size()


def test_tied_head_is_an_embedding_in_alias(backend: str) -> None:
    optimizer = FusedHybrid(TinyLanguageModel(tied=True), "alias", backend=backend)
    assert [group["role"] for group in optimizer.param_groups] == ["embedding+matrix+vector"]


def test_layers_added_to_alias_have_scalars_of_their_own(backend: str) -> None:
    model = TinyLanguageModel()
    model.up.requires_grad_(False)
    optimizer = FusedHybrid(model, "alias", backend=backend)
    models.train(model, optimizer, range(2))
    model.up.requires_grad_(True)
    optimizer.add_parameters(model)
    assert optimizer.param_groups[-1]["role"] == "matrix+vector"
    models.train(model, optimizer, [2])
    steps = [float(group["scalars"][0]) for group in optimizer.param_groups if group["rule"] == "alias"]
    assert steps == [3.0, 1.0]


def test_alias_adam_in_a_custom_mix(backend: str) -> None:
    model = TinyLanguageModel()
    groups = [
        {"params": list(model.up.parameters()), "rule": "alias_adam", "d0": 0.5},
        {"params": list(model.down.parameters()), "rule": "alias", "memory_efficient": False},
        {"params": list(model.embed.parameters()), "rule": "sign_sgd"},
    ]
    optimizer = FusedHybrid(groups, backend=backend)
    models.train(model, optimizer, range(2))
    assert float(optimizer.state[model.up.weight]["scalars"][1]) == 0.5
    assert set(optimizer.state[model.down.weight]) == {"prev_grad"}
    assert optimizer.describe().totals["alias"].state_bytes == 72 + 4 * sum(
        param.numel() for param in model.down.parameters()
    )
