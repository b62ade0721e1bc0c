"""ALIAS, Sign-SGD without a learning rate to tune, and ALIAS-Adam (arXiv 2506.03725)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sage_ext import pieces
from sage_ext.backend import Backend
from sage_ext.optimizers import validate
from sage_ext.optimizers.base import FusedOptimizer, hyperparameters, of_rule
from sage_ext.optimizers.replicated import ReplicatedOptimizer
from sage_ext.optimizers.rule import Group, Rule, StateSpec, adam_moment
from sage_ext.optimizers.step import is_known_skip, with_gradient
from sage_ext.reference._signs import sign_words
from sage_ext.reference.alias import ALIAS_SCALARS

if TYPE_CHECKING:
    from sage_ext.distributed import MajorityVote
    from sage_ext.distributed.alias_vote import Observations


def sign_planes(param: Tensor) -> StateSpec:
    """The layout of the signs of a parameter's gradient: packed, 0.25 byte an element.

    Of a DTensor's they take a byte each: packed bits could not be cut where another number of processes cuts
    the parameter.
    """
    if pieces.is_piece(param):
        return signs_of_pieces(param.shape)
    return StateSpec((2, sign_words(param.numel())), torch.int32, False)


def signs_of_pieces(shape: Sequence[int]) -> StateSpec:
    """The layout of the signs of a DTensor's gradient, a byte each."""
    return StateSpec(tuple(shape), torch.int8, False, tuple(range(len(shape))))


class AliasRule(Rule):
    name = "alias"
    checks: ClassVar[Mapping[str, validate.Check]] = {
        "gap": validate.one_of("descent", "lower_bound"),
        "d0": validate.non_negative,
        "eta0": validate.non_negative,
        "lower_bound": validate.finite,
        "max_step": validate.positive,
        "warmup_steps": validate.non_negative_int,
        "update_every": validate.positive_int,
        "memory_efficient": validate.flag,
        "smoothness": validate.one_of("extrema", "sum"),
        "same_batch": validate.flag,
    }
    not_passed = ("capturable", "d0", "eta0", "same_batch")
    lr_is_step = False
    state_keys = ("signs", "prev_grad")
    shared_keys = ("scalars",)
    form = ("memory_efficient", "smoothness", "gap")
    needs_contiguous = True  # the sign planes go by the row-major order

    def validate(self, group: Group, where: str) -> None:
        super().validate(group, where)
        if group["same_batch"] and group["update_every"] != 1:
            validate.fail(
                "update_every",
                group["update_every"],
                "1 with same_batch=True, which takes the gradient anew in every step",
                where,
            )
        if group["smoothness"] == "sum" and not group["memory_efficient"]:
            validate.fail(
                "smoothness",
                "sum",
                "'extrema' with memory_efficient=False, which has the difference of the gradients itself",
                where,
            )
        if group["maximize"] and group["gap"] == "lower_bound":
            validate.fail(
                "gap", "lower_bound", "'descent' with maximize=True: a bound from below says nothing", where
            )

    def kept_keys(self, group: Group) -> tuple[str, ...]:
        if not group["memory_efficient"]:
            return ("prev_grad",)
        return ("signs",) if group["gap"] == "descent" else ()

    def state_layout(self, param: Tensor, group: Group) -> dict[str, StateSpec]:
        dtype = param.dtype if param.grad is None else param.grad.dtype
        layouts = {"signs": sign_planes(param), "prev_grad": StateSpec(tuple(param.shape), dtype, True)}
        return {key: layouts[key] for key in self.kept_keys(group)}

    def shared_layout(self, group: Group) -> dict[str, StateSpec]:
        return {"scalars": StateSpec((len(ALIAS_SCALARS),), torch.float64, False)}

    def init_shared(self, group: Group) -> dict[str, Tensor]:
        start = {"eta": group["eta0"], "d": group["d0"] if group["gap"] == "descent" else 0.0}
        values = [float(start.get(name, 0.0)) for name in ALIAS_SCALARS]
        return {"scalars": torch.tensor(values, dtype=torch.float64, device="cpu")}

    def takes_loss(self, group: Group) -> bool:
        return bool(group["gap"] == "lower_bound")

    def has_begun(self, group: Group) -> bool:
        # Where only a GPU knew that the first step was to be skipped, there are scalars: new ones.
        scalars = group["scalars"]
        return scalars is not None and float(scalars[ALIAS_SCALARS.index("step")]) > 0

    def check_first_loss(self, loss: float, group: Group, where: str) -> None:
        if not group["lower_bound"] < loss < math.inf:
            validate.fail(
                "loss", loss, f"a finite number above lower_bound, which is {group['lower_bound']}", where
            )

    def reevaluates(self, group: Group) -> bool:
        return group["same_batch"] is True  # anything else true is for validate() to refuse

    def step_size(self, group: Group) -> float:
        if group["scalars"] is None:
            return math.nan
        values = group["scalars"].tolist()  # both in one wait
        return values[ALIAS_SCALARS.index("step_size")] if values[ALIAS_SCALARS.index("step")] else math.nan

    def arguments(self, group: Group, *, again: bool = False) -> dict[str, Any]:
        phase = "refresh" if again else "move" if group["same_batch"] else "step"
        return {**super().arguments(group), "phase": phase}


ALIAS = AliasRule()


@of_rule(ALIAS)
class FusedALIAS(ReplicatedOptimizer):
    """ALIAS: Sign-SGD that finds its own step size gamma (Medyakov et al., arXiv 2506.03725, ICLR 2026).

    ``gamma = min(sqrt(d / eta), max_step) ; W <- W (1 - gamma*wd) - gamma*sign(g)``, where eta estimates the
    smoothness from how the gradient changes over a step, and d the distance of the loss to its minimum::

        base              eta <- eta + ||g_t - g_{t-1}||_1 / ||x_t - x_{t-1}||_inf
        memory-efficient  eta <- eta + B_t / ||x_t - x_{t-1}||_1
                          B_t = max(|max g_t - min g_{t-1}|, |max g_{t-1} - min g_t|)
        smoothness="sum"  eta <- eta + (||g_t||_1 + ||g_{t-1}||_1) / ||x_t - x_{t-1}||_inf
        "descent"         dt <- dt + gamma_{t-1} <g_t, sign(g_{t-1})> ;  d <- max(d, dt)
        "lower_bound"     d = f(x_0) - lower_bound

    eta, d and gamma are one set of numbers for all tensors of a parameter group, in float64 and on their
    device: a step never reads them on the host, ``step_size()`` does when asked. There is no learning rate
    to tune, and a scheduler's matters during warm-up alone.

    ``smoothness="sum"`` is ours and not the paper's: a memory-efficient form that finds a step on large
    models too. At the same gamma its terms are never under the base form's, and so eta is not. Where
    successive gradients are noise they are sqrt(2) times those, and gamma comes to about 0.7 of the base
    form's; where the gradients are much alike, to a smaller part of it.

    A group's state is ``scalars`` (72 bytes, in the group itself; names in
    ``sage_ext.reference.alias.ALIAS_SCALARS``). A parameter's is, in the memory-efficient form with the
    descent gap, ``signs``: two bit planes, 0.25 byte an element; in the base form ``prev_grad``, the last
    gradient as it came; with the lower bound in the memory-efficient form, nothing. A parameter without a
    gradient is left out of a step, and its last gradient stays what it was.

    Native kernels sum some hundred elements in float32 before they go on in float64. Gradients (over
    ``grad_scale``) may therefore be as large as 6e35. With larger ones a sum may be infinite: then eta of the
    base form and of ``smoothness="sum"`` is, and gamma 0 from there on, and d of the descent gap is infinite
    or does not grow any more.

    Args:
        params: parameters, named parameters or groups. float32, bfloat16 or float16 in any mix; float64 with
            ``backend="reference"``. Native kernels need contiguous parameters.
        memory_efficient: keep signs, or nothing, of the last gradient; False keeps all of it.
        smoothness: what eta comes from in the memory-efficient form: ``"extrema"``, as in the paper, or
            ``"sum"``. The state has the same size.
        gap: ``"descent"`` or ``"lower_bound"``; with the latter the first step needs the loss, from
            ``step(closure)`` or ``step(loss=...)``, and the host waits for it.
        d0: what d begins with, for ``"descent"``.
        lower_bound: of the loss, for ``"lower_bound"``.
        eta0: what eta begins with. While eta is 0, gamma is ``max_step``.
        max_step: gamma is never more, not even in warm-up. 1e-3 in the authors' code. With the extrema of the
            memory-efficient form it decides more, the larger the model is: eta falls with the number of
            elements, as it is the change of one element over the distance that all have gone.
        warmup_steps: gamma is ``lr`` in so many first steps; eta and d are measured all the same.
        update_every: eta, d and gamma are brought up to date in step 2 and every so many steps from there,
            from that step and the one before it; the authors' code compares with the step of the last update.
            The steps between cost no more than Sign-SGD's.
        same_batch: evaluate the closure a second time in every step, at the new parameters and on the old
            batch, for the difference of the gradients. By default that is between consecutive batches, as in
            the authors' experiments. An error in that evaluation comes when the parameters have moved.
        weight_decay: decoupled, with gamma in the learning rate's place.
        lr: gamma during warm-up: a number or a one-element tensor. One on the parameter's GPU is read by the
            kernels alone; any other is read on the host at each step.
        maximize: ascend instead of descend; only with the descent gap.
        capturable: accepted for parity with torch, without effect: a step can be captured in a CUDA graph
            either way.
        backend: ``"auto"``, ``"native"`` or ``"reference"``; ``optimizer.backend`` says what was chosen.
        process_group: of ``torch.distributed``: the processes that train replicas, each on batches of its own
            (DDP). With ``gap="lower_bound"`` all begin with the mean of their losses, for which the host
            waits in the first step. Nothing else needs it, and it is not saved.
        vote: a :class:`sage_ext.distributed.MajorityVote` without momentum that is registered for the model
            that has these parameters: steps go by the vote, eta and d by what the gradients of all processes
            were before it, with one message a step, in which processes also hear of each other's errors. Only
            for the memory-efficient form, and not in ``ddp.join()``. With a GradScaler ``amp_scaling`` is
            True by default; ``unscale_`` and clipping are taken into account.

    Raises:
        ValueError: an argument or a parameter cannot be used; the message names it, and the cure.
        NativeUnavailableError: native kernels were asked for, or are needed on a GPU, and cannot be used.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        memory_efficient: bool = True,
        smoothness: Literal["extrema", "sum"] = "extrema",
        gap: Literal["descent", "lower_bound"] = "descent",
        d0: float = 1e-6,
        lower_bound: float = 0.0,
        eta0: float = 0.0,
        max_step: float = 1e-3,
        warmup_steps: int = 0,
        update_every: int = 1,
        same_batch: bool = False,
        weight_decay: float = 0.0,
        lr: float | Tensor = 1e-3,
        maximize: bool = False,
        capturable: bool = False,
        backend: Backend = "auto",
        process_group: Any = None,
        vote: MajorityVote | None = None,
    ) -> None:
        validate.process_group(process_group, "process_group", "")
        self._process_group = process_group
        super().__init__(params, hyperparameters(locals()), backend=backend)
        self._observations: Observations | None = None
        self._needs_vote = False
        if vote is not None:
            self.vote = vote

    @property
    def vote(self) -> MajorityVote | None:
        """The vote that the steps go by. A copy or an unpickled optimizer has to be given one anew."""
        return None if self._observations is None else self._observations.vote

    @vote.setter
    def vote(self, vote: MajorityVote) -> None:
        from sage_ext.distributed import MajorityVote
        from sage_ext.distributed.alias_vote import Observations

        if not isinstance(vote, MajorityVote):
            raise TypeError(
                f"vote: got {vote!r}, expected a sage_ext.distributed.MajorityVote that is registered for "
                "the model; to step without votes, build a FusedALIAS without vote, of a model without its "
                "hook"
            )
        self._check_votes()
        old, self._observations = self._observations, Observations(vote, self)
        if old is not None:
            old.vote.detach(old)
            if self._process_group is old.vote.group:
                self._process_group = None
        next_loss = self._next_loss
        self._forget()  # a step like the last one would know nothing of votes
        self._next_loss = next_loss
        self._needs_vote = True
        if self._process_group is None:
            self._process_group = vote.group
        if self._amp_scaling is None:
            self.amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: float | Tensor | None = None) -> Any:
        if not self._needs_vote:
            return super().step(closure, loss=loss)
        evaluated = None
        if closure is not None:
            with torch.enable_grad():
                evaluated = closure()
        observations = self._observations
        if observations is None:
            raise RuntimeError(
                "vote: the optimizer was copied or unpickled, and votes are not; before backward(), set "
                "optimizer.vote to the vote that the model has, or where that was wrapped anew, to "
                "MajorityVote().register(ddp)"
            )
        loss = next((given for given in (loss, self._next_loss, evaluated) if given is not None), None)
        if is_known_skip(getattr(self, "found_inf", None)):
            FusedOptimizer.step(self, loss=loss)
            observations.forget()
        elif observations.is_empty and self._is_all_inert():
            FusedOptimizer.step(self, loss=loss)  # torch's checkpoint helpers want the state
        else:
            from sage_ext.distributed.alias_vote import VoteStep

            together = VoteStep(self, observations)
            self._step_together(together, None, loss)
            together.finish()
        return evaluated

    def _check_votes(self) -> None:
        """Raise ValueError unless all groups can step by votes."""
        for index, group in enumerate(self.param_groups):
            where = f" in param group {index}"
            if not group["memory_efficient"]:
                validate.fail(
                    "memory_efficient",
                    False,
                    "True with vote, as no process has the others' gradients",
                    where,
                )
            if group["same_batch"]:
                validate.fail("same_batch", True, "False with vote", where)

    def _is_all_inert(self) -> bool:
        return all(
            self._is_inert(index, ALIAS, *with_gradient(group["params"]))
            for index, group in enumerate(self.param_groups)
        )

    step.__doc__ = FusedOptimizer.step.__doc__

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_needs_vote": self._needs_vote}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # also where a state dict is loaded: then the vote stays
        self.__dict__.setdefault("_observations", None)
        self.__dict__.setdefault("_needs_vote", False)


class AliasAdamRule(Rule):
    name = "alias_adam"
    checks: ClassVar[Mapping[str, validate.Check]] = {"d0": validate.positive}
    not_passed = ("state_dtype", "capturable", "d0")
    state_keys = ("exp_avg", "exp_avg_sq", "signs", "scalars")
    needs_contiguous = True  # the sign planes go by the row-major order

    def state_layout(self, param: Tensor, group: Group) -> dict[str, StateSpec]:
        return {
            "exp_avg": adam_moment(param, group),
            "exp_avg_sq": adam_moment(param, group),
            "signs": sign_planes(param),
            "scalars": StateSpec((2,), torch.float64, False),
        }

    def init_state(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        state = super().init_state(param, group)
        state["scalars"][1:].fill_(group["d0"])  # r is 0
        return state


ALIAS_ADAM = AliasAdamRule()


@of_rule(ALIAS_ADAM)
class FusedALIASAdam(FusedOptimizer):
    """ALIAS-Adam: Adam on d*g, with an ALIAS-like d for each tensor (code of the authors of arXiv
    2506.03725)::

        r <- sqrt(b2)*r + (1-sqrt(b2))*d*<g_t, sign(g_{t-1})> ;  d <- max(d, r)
        m <- b1*m + (1-b1)*d*g ;  v <- b2*v + (1-b2)*d^2*g^2
        W <- W (1 - lr*wd) - lr*d*m/(sqrt(v) + eps)            no bias correction

    A parameter's state is ``exp_avg`` (m), ``exp_avg_sq`` (v), ``signs`` of the last gradient (two bit
    planes, 0.25 byte an element) and ``scalars`` (r and d, float64).

    Args:
        params: parameters, named parameters or groups. float32, bfloat16 or float16 in any mix; float64 with
            ``backend="reference"``. Native kernels need contiguous parameters.
        lr: a number or a one-element tensor. One on the parameter's GPU is read by the kernels alone, so a
            captured CUDA graph follows its value; any other is read on the host at each step.
        betas: (b1, b2), each in [0, 1).
        eps: added to the denominator.
        d0: what d begins with: 1 in the authors' LLaMA runs, 1e-8 in their ViT code.
        weight_decay: decoupled.
        maximize: ascend instead of descend.
        state_dtype: dtype of both moments; None takes float32, also beside bfloat16 and float16 parameters
            (float64 beside float64): in 16 bits ``exp_avg_sq`` vanishes or cannot decay.
        capturable: accepted for parity with torch, without effect: a step can be captured in a CUDA graph
            either way.
        backend: ``"auto"``, ``"native"`` or ``"reference"``; ``optimizer.backend`` says what was chosen.

    Raises:
        ValueError: an argument or a parameter cannot be used; the message names it, and the cure.
        NativeUnavailableError: native kernels were asked for, or are needed on a GPU, and cannot be used.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        d0: float = 1.0,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
        capturable: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(params, hyperparameters(locals()), backend=backend)
