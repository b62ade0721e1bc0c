"""What a user of ALIAS touches: the loss, the closure, the shared scalars, and files that keep them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import models
import pytest
import support
import torch
from models import TinyLanguageModel
from torch import Tensor, nn
from torch.optim import lr_scheduler

from sage_ext.optimizers import FusedAdamW, FusedALIAS, FusedALIASAdam, FusedHybrid
from sage_ext.reference.alias import ALIAS_SCALARS

LOSSES: dict[str, Callable[[float], Any]] = {
    "float": float,
    "0-dim": torch.tensor,
    "one element": lambda value: torch.tensor([value]),
    "float64": lambda value: torch.tensor(value, dtype=torch.float64),
    "part of a graph": lambda value: torch.tensor(value, requires_grad=True) * 1.0,
}


def filled(*values: float) -> nn.Parameter:
    param = nn.Parameter(torch.zeros(len(values)))
    param.grad = torch.tensor(values)
    return param


def scalar(optimizer: FusedALIAS, name: str, group: int = 0) -> float:
    return float(optimizer.param_groups[group]["scalars"][ALIAS_SCALARS.index(name)])


def refuse(optimizer: Any, match: str, *args: Any, **kwargs: Any) -> None:
    before = models.snapshot(optimizer)
    with pytest.raises(ValueError, match=match):
        optimizer.step(*args, **kwargs)
    support.assert_same_bits(before, models.snapshot(optimizer))


class TestLoss:
    @pytest.mark.parametrize("kind", LOSSES)
    def test_any_kind_of_number(self, backend: str, kind: str) -> None:
        optimizer = FusedALIAS([filled(1.0, -2.0)], gap="lower_bound", lower_bound=0.5, backend=backend)
        optimizer.step(loss=LOSSES[kind](2.0))
        assert scalar(optimizer, "d") == 1.5
        optimizer.step()  # needs no more
        optimizer.step(loss=LOSSES[kind](-7.0))  # nor does anyone look at another
        assert scalar(optimizer, "d") == 1.5
        assert scalar(optimizer, "step") == 3

    @pytest.mark.parametrize("kind", LOSSES)
    def test_from_the_closure(self, backend: str, kind: str) -> None:
        optimizer = FusedALIAS([filled(1.0, -2.0)], gap="lower_bound", backend=backend)
        optimizer.step(lambda: LOSSES[kind](3.0))
        assert scalar(optimizer, "d") == 3.0

    def test_missing_in_the_first_step(self, backend: str) -> None:
        optimizer = FusedALIAS([filled(1.0)], gap="lower_bound", backend=backend)
        match = (
            r"^loss: got None in param group 0, but the first step .*step\(closure\) or step\(loss=\.\.\.\)"
        )
        refuse(optimizer, match)
        refuse(optimizer, match, lambda: None)
        assert optimizer.param_groups[0]["scalars"] is None
        optimizer.step(loss=1.0)

    def test_of_no_use_to_others(self, backend: str) -> None:
        optimizer = FusedALIAS([filled(1.0)], backend=backend)
        optimizer.step(loss=math.nan)
        assert scalar(optimizer, "d") == 1e-6
        FusedAdamW([filled(1.0)], backend=backend).step(loss=1.0)

    @pytest.mark.parametrize("loss", [0.5, 0.25, math.nan, math.inf, -math.inf, torch.tensor(0.5)])
    def test_not_above_the_bound(self, backend: str, loss: Any) -> None:
        optimizer = FusedALIAS([filled(1.0)], gap="lower_bound", lower_bound=0.5, backend=backend)
        refuse(
            optimizer,
            r"^loss: got .* in param group 0, expected a finite .* above .* which is 0.5",
            loss=loss,
        )
        assert optimizer.param_groups[0]["scalars"] is None

    @pytest.mark.parametrize("loss", ["1.0", True, torch.ones(2), torch.tensor(1)])
    def test_not_a_number(self, backend: str, loss: Any) -> None:
        optimizer = FusedALIAS([filled(1.0)], gap="lower_bound", backend=backend)
        refuse(
            optimizer, r"^loss: got .* in param group 0, expected a number or a floating tensor", loss=loss
        )

    def test_a_whole_model_output_is_not_printed(self, backend: str) -> None:
        optimizer = FusedALIAS([filled(1.0)], gap="lower_bound", backend=backend)
        output = {"logits": torch.zeros(100, 100)}
        refuse(optimizer, r"^loss: got something of type dict in param group 0, expected", lambda: output)

    def test_and_a_closure_that_returns_none(self, backend: str) -> None:
        """Lightning always passes a closure, and it may return None."""
        optimizer = FusedALIAS([filled(1.0)], gap="lower_bound", backend=backend)
        calls: list[int] = []
        refuse(optimizer, "^loss: got None", lambda: calls.append(1))
        assert optimizer.step(lambda: calls.append(1), loss=2.0) is None
        assert len(calls) == 2
        assert scalar(optimizer, "d") == 2.0

    def test_goes_before_what_the_closure_returns(self, backend: str) -> None:
        optimizer = FusedALIAS([filled(1.0)], gap="lower_bound", backend=backend)
        assert optimizer.step(lambda: 5.0, loss=2.0) == 5.0
        assert scalar(optimizer, "d") == 2.0

    def test_set_before_someone_else_calls_step(self, backend: str) -> None:
        optimizer = FusedALIAS([filled(1.0)], gap="lower_bound", backend=backend)
        with pytest.raises(ValueError, match=r"^loss: got a tensor of shape \(2,\)"):
            optimizer.set_loss(torch.ones(2))
        optimizer.set_loss(torch.tensor(9.0))
        optimizer.set_loss(None)
        refuse(optimizer, r"^loss: got None.*set_loss\(\.\.\.\) before someone else")
        optimizer.set_loss(torch.tensor(2.0, requires_grad=True))
        optimizer.step()
        assert scalar(optimizer, "d") == 2.0
        other = FusedALIAS([filled(1.0)], gap="lower_bound", backend=backend)
        optimizer.set_loss(7.0)
        assert other._next_loss is None, "a loss is of one optimizer"

    def test_of_a_skipped_first_step_is_kept(self, backend: str) -> None:
        """A GradScaler's first steps usually are skipped. The next is the first one then."""
        for hand_over in (lambda o: o.step(loss=8.0), lambda o: o.step(lambda: 8.0)):
            optimizer = FusedALIAS([filled(1.0)], gap="lower_bound", backend=backend)
            optimizer.found_inf = torch.tensor(1.0)
            hand_over(optimizer)
            del optimizer.found_inf
            assert math.isnan(optimizer.step_size())
            optimizer.step()
            assert scalar(optimizer, "d") == 8.0

    def test_of_a_skipped_step_is_kept_only_if_one_can_begin_with_it(self, backend: str) -> None:
        """What made the gradients overflow may have made the loss, too."""
        optimizer = FusedALIAS([filled(1.0)], gap="lower_bound", backend=backend)
        skip = torch.tensor(1.0)
        optimizer.found_inf = skip
        optimizer.step(loss=math.inf)
        del optimizer.found_inf
        refuse(optimizer, "^loss: got None")
        for loss in (8.0, math.nan, -1.0):
            optimizer.found_inf = skip
            optimizer.step(loss=loss)
        del optimizer.found_inf
        refuse(optimizer, r"^loss: got -1\.0 .*above lower_bound", loss=-1.0)
        optimizer.step()
        assert scalar(optimizer, "d") == 8.0

    def test_of_a_step_that_was_refused_is_not_taken(self, backend: str) -> None:
        good, bad = filled(1.0), filled(1.0)
        groups = [{"params": [good]}, {"params": [bad]}]
        optimizer = FusedALIAS(groups, gap="lower_bound", backend=backend)
        bad.grad = torch.ones(1).to_sparse()
        refuse(optimizer, "sparse", loss=8.0)
        bad.grad = torch.ones(1)
        optimizer.step(loss=2.0)
        assert [scalar(optimizer, "d", group) for group in range(2)] == [2.0, 2.0]

    def test_after_loading_what_only_a_gpu_knew_was_skipped(self, backend: str) -> None:
        """There are scalars then, but there was no first step."""
        optimizer = FusedALIAS([filled(1.0)], gap="lower_bound", backend=backend)
        saved = optimizer.state_dict()
        saved["param_groups"][0]["scalars"] = torch.zeros(9, dtype=torch.float64)
        optimizer.load_state_dict(saved)
        assert math.isnan(optimizer.step_size())
        refuse(optimizer, "^loss: got None")
        optimizer.step(loss=2.0)
        assert scalar(optimizer, "d") == 2.0

    def test_goes_by_the_group_and_not_by_its_place(self, backend: str) -> None:
        optimizer = FusedALIAS([filled(1.0)], gap="lower_bound", backend=backend)
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step(loss=100.0)
        del optimizer.found_inf
        optimizer.step()
        optimizer.param_groups.clear()
        optimizer.state.clear()
        optimizer.add_param_group({"params": [filled(1.0)]})
        refuse(optimizer, "^loss: got None in param group 0")
        optimizer.add_param_group({"params": [filled(1.0)]})
        optimizer.param_groups[0]["params"][0].grad = None
        optimizer.step(loss=2.0)
        assert scalar(optimizer, "d", 1) == 2.0
        del optimizer.param_groups[0]
        optimizer.step()  # which has begun
        assert scalar(optimizer, "step") == 2

    def test_of_a_skipped_step_with_an_empty_group(self, backend: str) -> None:
        groups = [{"params": [filled(1.0)]}, {"params": []}]
        optimizer = FusedALIAS(groups, gap="lower_bound", backend=backend)
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step(loss=3.0)
        del optimizer.found_inf
        optimizer.step()
        assert scalar(optimizer, "d") == 3.0

    def test_of_a_group_added_later(self, backend: str) -> None:
        """It begins then, with the loss as it is then."""
        optimizer = FusedALIAS([filled(1.0)], gap="lower_bound", backend=backend)
        optimizer.step(loss=4.0)
        optimizer.add_param_group({"params": [filled(1.0)]})
        refuse(optimizer, "^loss: got None in param group 1")
        optimizer.step(loss=2.0)
        assert [scalar(optimizer, "d", group) for group in range(2)] == [4.0, 2.0]
        assert [scalar(optimizer, "step", group) for group in range(2)] == [2.0, 1.0]


class TestSameBatch:
    """f = |x|_2^2 / 2, at x = 4: by hand, in the base form, d from the lower bound of 0: d = 8."""

    def run(self, backend: str, **changes: Any) -> tuple[FusedALIAS, nn.Parameter, list[float]]:
        x = nn.Parameter(torch.tensor([4.0]))
        settings = {"memory_efficient": False, "gap": "lower_bound", "max_step": 1.0, **changes}
        optimizer = FusedALIAS([x], same_batch=True, backend=backend, **settings)
        seen: list[float] = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            seen.append(float(x.detach()))
            loss = x.square().sum() / 2
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        return optimizer, x, seen

    def test_by_hand(self, backend: str) -> None:
        """Every difference of gradients over its displacement is 1: eta is the number of steps before."""
        optimizer, x, seen = self.run(backend)
        steps = [1.0, 1.0, 1.0]  # sqrt(8 / eta) is above max_step
        assert seen == [4.0, 3.0, 3.0, 2.0, 2.0, 1.0]
        assert float(x.detach()) == 4.0 - sum(steps)
        assert scalar(optimizer, "eta") == pytest.approx(3.0, rel=1e-6)
        optimizer, x, seen = self.run(backend, max_step=2.5)  # 2.5, then sqrt(8 / 1) and sqrt(8 / 2)
        assert seen == pytest.approx([4.0, 1.5, 1.5, -1.0, -1.0, 1.0])
        assert scalar(optimizer, "step_size") == pytest.approx(2.0, rel=1e-6)

    def test_descent_by_hand(self, backend: str) -> None:
        """dt = 1 * <3, 1>, and so on: the products of each step with the gradient at its end."""
        optimizer, x, _ = self.run(backend, gap="descent", d0=1e-3, memory_efficient=True)
        # gamma: 1 (eta is 0); then d = 3, eta = 1 and sqrt(3) is too much; then d = 5, eta = 2.
        assert float(x.detach()) == 1.0
        assert [scalar(optimizer, name) for name in ("d", "gap", "eta")] == pytest.approx([6.0, 6.0, 3.0])

    def test_needs_a_closure(self, backend: str) -> None:
        optimizer = FusedALIAS([filled(1.0)], same_batch=True, backend=backend)
        refuse(optimizer, r"^closure: got None, but param group 0 has same_batch=True.*step\(closure\)")
        refuse(optimizer, r"^closure: got None", loss=1.0)

    def test_excludes_update_every(self, backend: str) -> None:
        with pytest.raises(ValueError, match=r"^update_every: got 2, expected 1 with same_batch=True"):
            FusedALIAS([filled(1.0)], same_batch=True, update_every=2, backend=backend)

    def test_only_its_group_is_evaluated_twice(self, backend: str) -> None:
        first, second = filled(1.0), filled(1.0)
        groups = [{"params": [first], "same_batch": True}, {"params": [second]}]
        optimizer = FusedALIAS(groups, max_step=0.5, backend=backend)
        calls: list[int] = []
        optimizer.step(lambda: calls.append(1))
        assert len(calls) == 2
        assert first.item() == second.item() == -0.5
        assert [scalar(optimizer, "eta", group) for group in range(2)] == [0.0, 0.0]
        assert [scalar(optimizer, "gap", group) for group in range(2)] == [0.5, 0.0]

    def test_skipped_step_evaluates_once(self, backend: str) -> None:
        optimizer = FusedALIAS([filled(1.0)], same_batch=True, backend=backend)
        optimizer.found_inf = torch.tensor(1.0)
        calls: list[int] = []
        optimizer.step(lambda: calls.append(1))
        assert len(calls) == 1
        assert optimizer.param_groups[0]["scalars"] is None


class TestStepSize:
    def test_before_and_after_the_first_step(self, backend: str) -> None:
        optimizer = FusedALIAS([filled(3.0)], max_step=0.25, backend=backend)
        assert math.isnan(optimizer.step_size())
        optimizer.step()
        assert optimizer.step_size() == 0.25  # eta is 0
        optimizer.param_groups[0]["max_step"] = 0.125
        optimizer.step()
        assert optimizer.step_size(0) == 0.125
        with pytest.raises(IndexError, match=r"^group: got 1, and the optimizer has 1"):
            optimizer.step_size(1)

    def test_of_a_group_itself(self, backend: str) -> None:
        optimizer = FusedHybrid(TinyLanguageModel(), "sinkgd", backend=backend)
        assert [optimizer.step_size(group) for group in optimizer.param_groups] == [
            optimizer.step_size(index) for index in range(len(optimizer.param_groups))
        ]
        first = optimizer.param_groups[0]
        optimizer.load_state_dict(optimizer.state_dict())
        with pytest.raises(ValueError, match=r"^group: this one is not in optimizer.param_groups.*its index"):
            optimizer.step_size(first)
        with pytest.raises(TypeError, match=r"^group: got str, expected the index"):
            optimizer.step_size("embedding")

    def test_of_other_rules_is_the_learning_rate(self, backend: str) -> None:
        optimizer = FusedHybrid(TinyLanguageModel(), "alias", backend=backend)
        roles = [group["role"] for group in optimizer.param_groups]
        assert optimizer.step_size(roles.index("lm_head")) == 1e-3
        assert FusedALIASAdam([filled(1.0)], lr=torch.tensor(0.5), backend=backend).step_size() == 0.5

    @pytest.mark.parametrize("as_tensor", [False, True])
    def test_schedulers_matter_in_warmup_alone(self, backend: str, as_tensor: bool) -> None:
        """The cap holds in warm-up too. Behind it a schedule leaves no trace; within it, it does."""
        ends = []
        for factors in (
            (1.0, 0.5, 0.25, 0.125, 1.0),
            (1.0, 0.5, 0.25, 0.5, 0.5),
            (1.0, 0.5, 0.5, 0.125, 1.0),
        ):
            param = nn.Parameter(torch.ones(3))
            lr = torch.tensor(0.5) if as_tensor else 0.5
            optimizer = FusedALIAS([param], lr=lr, warmup_steps=3, max_step=0.375, backend=backend)
            scheduler = lr_scheduler.LambdaLR(optimizer, factors.__getitem__)
            found = []
            for step, _ in enumerate(factors):
                param.grad = torch.tensor([3.0, -1.0, 0.5]) * (-1) ** step
                optimizer.step()
                found.append(optimizer.step_size())
                if step + 1 < len(factors):
                    scheduler.step()
            ends.append(found)
        assert ends[0][:3] == [0.375, 0.25, 0.125]
        assert ends[0] == ends[1]
        assert ends[2][2] == 0.25
        assert ends[2][3:] != ends[0][3:]


class TestGroups:
    def test_have_scalars_of_their_own(self, backend: str) -> None:
        """Two groups are as two optimizers; a late one begins when it comes."""
        params = [filled(1.0, -2.0), filled(0.25)]
        optimizer = FusedALIAS(params[:1], max_step=0.5, backend=backend)
        twins = [filled(1.0, -2.0), filled(0.25)]
        others = [FusedALIAS([twin], max_step=0.5, backend=backend) for twin in twins]
        for step in range(4):
            if step == 2:
                optimizer.add_param_group({"params": params[1:]})
            for param in (*params, *twins):
                param.grad.mul_(1.5)
            optimizer.step()
            for other in others[: 1 + (step >= 2)]:
                other.step()
        for group, other in enumerate(others):
            mine = optimizer.param_groups[group]["scalars"]
            support.assert_same_bits([mine], [other.param_groups[0]["scalars"]])
        support.assert_same_bits([p.detach() for p in params], [p.detach() for p in twins])

    def test_copied_from_another_begin_anew(self, backend: str) -> None:
        optimizer = FusedALIAS([filled(1.0)], backend=backend)
        optimizer.step()
        optimizer.add_param_group({**optimizer.param_groups[0], "params": [filled(2.0)]})
        assert optimizer.param_groups[1]["scalars"] is None
        optimizer.step()
        assert [scalar(optimizer, "step", group) for group in range(2)] == [2.0, 1.0]

    def test_tensors_of_a_group_share_theirs(self, backend: str) -> None:
        """One tensor or its pieces: the same steps."""
        whole = nn.Parameter(torch.ones(6))
        pieces = [nn.Parameter(torch.ones(n)) for n in (1, 2, 3)]
        for memory_efficient in (True, False):
            optimizers = [
                FusedALIAS(params, memory_efficient=memory_efficient, backend=backend, max_step=0.5)
                for params in ([whole], pieces)
            ]
            for step in range(4):
                grad = support.normal((6,), torch.Generator().manual_seed(step))
                whole.grad = grad
                for piece, part in zip(pieces, grad.split([1, 2, 3]), strict=True):
                    piece.grad = part.clone()
                for optimizer in optimizers:
                    optimizer.step()
            sizes = [optimizer.step_size() for optimizer in optimizers]
            assert sizes[0] == pytest.approx(sizes[1], rel=1e-6)
            torch.testing.assert_close(torch.cat([p.detach() for p in pieces]), whole.detach())

    def test_parameter_without_a_gradient_is_left_out(self, backend: str) -> None:
        """It does not move, and its last gradient stays what it was."""
        first, second = filled(1.0, -1.0), filled(2.0, 0.0)
        for optimizer in (
            FusedALIAS([first, second], backend=backend),
            FusedALIAS([first, second], memory_efficient=False, backend=backend),
        ):
            for param in (first, second):
                param.grad = torch.tensor([2.0, 0.0])
            optimizer.step()
            held = {key: value.clone() for key, value in optimizer.state[second].items()}
            place, second.grad = second.detach().clone(), None
            first.grad = torch.tensor([-1.0, 1.0])
            optimizer.step()
            assert torch.equal(place, second)
            support.assert_same_bits(list(held.values()), list(optimizer.state[second].values()))
            assert scalar(optimizer, "step") == 2
            second.grad = torch.tensor([1.0, 1.0])
            optimizer.step()
            assert optimizer.state[second].keys() == held.keys()
            assert not torch.equal(place, second)

    def test_maximize(self, backend: str) -> None:
        up, down = TinyLanguageModel(), TinyLanguageModel()
        down.load_state_dict(up.state_dict())
        pair = [models.alias(up, maximize=True, backend=backend), models.alias(down, backend=backend)]
        for seed in range(3):
            for model, optimizer, sign in zip((up, down), pair, (-1, 1), strict=True):
                for i, param in enumerate(model.parameters()):
                    generator = torch.Generator().manual_seed(100 * seed + i)
                    param.grad = sign * support.normal(param.shape, generator)
                optimizer.step()
        assert [scalar(o, "grad_factor") for o in pair] == [-1.0, 1.0]
        for optimizer in pair:
            optimizer.param_groups[0]["scalars"][-1] = 1.0
        support.assert_same_bits(*map(models.snapshot, pair))
        with pytest.raises(ValueError, match=r"^gap: got 'lower_bound', expected 'descent' with maximize"):
            FusedALIAS([filled(1.0)], maximize=True, gap="lower_bound", backend=backend)
