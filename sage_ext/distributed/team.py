"""How the processes that share an optimizer's parameters agree before a step.

All of them take part in all exchanges of a step or none does, so that nobody waits for another in vain. What
one process alone may know is therefore said first, in one message of a few numbers to everybody (the maximum
is taken): that its checks have failed, that ``found_inf`` is set, that its gradients are not all zero. A CPU
says so in every step that has exchanges. On a GPU the host would have to wait for the answer, so there errors
are asked for only when something is new (the first step, other parameters): a step like the one before finds
no other errors. Optimizers whose rules exchange nothing do not agree on errors either: nobody waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sage_ext import pieces
from sage_ext.distributed import sharded
from sage_ext.distributed.exchange import Item, Line, Lines, send
from sage_ext.distributed.messages import refused_elsewhere
from sage_ext.distributed.placements import cuts, pending_sums, wrap
from sage_ext.optimizers.rule import Rule, StateSpec
from sage_ext.optimizers.step import Call, is_known_zero

Groups = Sequence[Mapping[str, Any]]


class Team:
    """The processes that share the parameters of an optimizer, as long as these stay what they are."""

    def __init__(self, groups: Groups, rules: Mapping[str, Rule]) -> None:
        self._params = [tuple(group["params"]) for group in groups]
        self._rules = [group["rule"] for group in groups]
        self.lines = Lines()
        self.sharded: set[int] = set()
        """Indices of the groups that have a DTensor."""
        self.staged: dict[int, list[Tensor]] = {}
        """Index of a group -> its parameters whose rule runs in stages."""
        self.is_new = True
        self._begun: set[int] = set()
        for index, group in enumerate(groups):
            params = group["params"]
            if not pieces.has_pieces(params):
                continue
            self.sharded.add(index)
            self.staged[index] = staged(params, rules[group["rule"]])
            for param in filter(pieces.is_piece, params):
                for mesh_dim in range(param.device_mesh.ndim):
                    self.lines.along(param.device_mesh, mesh_dim)
        self._everybody = _covering(self.lines)
        self.has_exchanges = any(
            cuts(param) for params in self.staged.values() for param in params if pieces.is_piece(param)
        )
        params = [param for group in groups for param in group["params"]]
        self.on_cpu = all(param.device.type == "cpu" for param in params)

    def fits(self, groups: Groups) -> bool:
        """Whether the groups still hold what they held."""
        return len(groups) == len(self._params) and all(
            group["rule"] == rule
            and len(group["params"]) == len(params)
            and all(a is b for a, b in zip(group["params"], params, strict=True))
            for group, params, rule in zip(groups, self._params, self._rules, strict=True)
        )

    def add_up(self, groups: Groups) -> None:
        """Do the sums that gradients of replicated parameters still wait for, as torch's own optimizers do.

        Sequence parallelism leaves the gradients of its norms so, on all processes alike. It comes before all
        checks, so that no process has left by then. What else lies otherwise than its parameter is refused
        later.
        """
        waiting, items = [], []
        for index in sorted(self.sharded):
            for param in groups[index]["params"]:
                if param.grad is not None and (dims := pending_sums(param, param.grad)):
                    lines = [self.lines.of(param, dim) for dim in dims]
                    waiting.append(param)
                    items.append(Item(pieces.local(param.grad), False, lines))
        while any(item.left for item in items):
            send(items)
        for param, item in zip(waiting, items, strict=True):
            param.grad = wrap(item.value, param, StateSpec(tuple(param.shape), item.value.dtype, True))

    def inert(self, groups: Groups, rules: Mapping[str, Rule], state: Mapping[Any, Any]) -> dict[int, bool]:
        """Return for each group with a DTensor whether its step must change nothing: lr is 0 and every
        gradient zero, on all processes. Only then is a message needed, and in a group's first step alone, but
        for rules whose steps do not go by lr."""
        result, asked, seen = {}, [], []
        for index in sorted(self.sharded):
            group = groups[index]
            rule = rules[group["rule"]]
            result[index] = False
            if is_known_zero(group["lr"]) and not (rule.lr_is_step and index in self._begun):
                asked.append(index)
                seen.append(float(_moves(group["params"], rule, state)))
            self._begun.add(index)
        if asked:
            answers = self._maximum(seen)
            result.update((index, not answer) for index, answer in zip(asked, answers.tolist(), strict=True))
        return result

    def agreement(self, scaling: tuple[Any, Any]) -> Agreement:
        """Return the agreement on a step with this (grad_scale, found_inf)."""
        return Agreement(self, *scaling)

    def gather(
        self,
        index: int,
        group: Mapping[str, Any],
        found: Callable[..., Call],
        label: Callable[[Tensor], str],
        *,
        native: bool,
    ) -> tuple[Call | None, Call | None]:
        """Return what the step of a group works on: whole tensors and those of element-wise rules, as this
        process has them, and what is stepped in stages, whether or not it has a gradient here."""
        staged = self.staged[index]
        apart = {id(param) for param in staged}
        params = [p for p in group["params"] if p.grad is not None and id(p) not in apart]
        whole = sharded.localized(found(params, [p.grad for p in params]), label) if params else None
        if not staged:
            return whole, None
        cut = found(staged, [param.grad for param in staged])
        sharded.check_staged(cut, group, label)
        return whole, cut._replace(in_stages=not native or cut.rule.reevaluates(group))

    def plan(
        self,
        staged: Sequence[Call],
        scaling: tuple[Any, Tensor | None],
        describer: Callable[[Call], Callable[[int], str]],
    ) -> list[sharded.Planned]:
        """Return what runs the stages of these calls, which have been checked then."""
        return sharded.plan_staged(staged, self.lines, scaling, describer)

    def run(self, planned: Sequence[sharded.Planned], scaling: tuple[Any, Tensor | None]) -> None:
        """Run the stages of these calls together."""
        sharded.run_staged(planned, self.lines, scaling)

    def flag(self, found_inf: Any) -> Tensor | None:
        """Return what the kernels take as ``found_inf``: None on a CPU, which does not start such a step."""
        if found_inf is None or self.on_cpu:
            return None
        value = found_inf if isinstance(found_inf, Tensor) else torch.tensor(float(found_inf))
        return value.detach().reshape(()).to(self._device, torch.float32, copy=True)

    def agree(self, found_inf: Any, flag: Tensor | None, failure: BaseException | None = None) -> bool:
        """Tell the others whether this process can take the step, and hear whether they can.

        Args:
            found_inf: of this process.
            flag: what ``flag`` made of it. Becomes that of all processes.
            failure: what keeps this process from taking the step. The caller raises it afterwards.

        Returns:
            Whether a CPU has heard that ``found_inf`` of some process is set.

        Raises:
            RuntimeError: another process cannot.
        """
        asks = self.has_exchanges and (self.on_cpu or self.is_new)
        if not (asks or found_inf is not None):
            return False
        if self.on_cpu:
            is_found = found_inf is not None and bool(found_inf)
            failed, found = self._maximum([float(failure is not None), float(is_found)]).tolist()
        else:
            own = torch.zeros((), device=self._device) if flag is None else flag
            both = self._spread(torch.stack([torch.full_like(own, float(failure is not None)), own]))
            if flag is not None:
                flag.copy_(both[1])
            failed, found = (float(both[0]) if asks else 0.0), 0.0
        if failed and failure is None:
            raise refused_elsewhere()
        self.is_new = bool(failed)
        return bool(found)

    def mean(self, value: float | Tensor) -> float | Tensor:
        """Return the mean over all processes, as what came."""
        total = torch.as_tensor(pieces.local(value) if isinstance(value, Tensor) else value)
        total = total.detach().reshape(()).to(self._device, torch.float64, copy=True)
        count = 1
        for line in self._everybody:
            dist.all_reduce(total, group=line.group)
            count *= dist.get_world_size(line.group)
        total /= count
        return total if isinstance(value, Tensor) else float(total)

    @property
    def _device(self) -> torch.device:
        return torch.device(self.lines.meshes[0].device_type)

    def _maximum(self, values: Sequence[float]) -> Tensor:
        return self._spread(torch.tensor(values, dtype=torch.float32, device=self._device))

    def _spread(self, numbers: Tensor) -> Tensor:
        """Return the largest that any process has of each number."""
        for line in self._everybody:
            dist.all_reduce(numbers, dist.ReduceOp.MAX, group=line.group)
        return numbers


class Agreement:
    """A context in which one step is checked, agreed on with ``reach``, and taken.

    An error before ``reach`` is told to the others, who raise one, too. ``is_skipped`` says afterwards that
    ``found_inf`` of some process has kept all from taking the step.
    """

    def __init__(self, team: Team, grad_scale: Any, found_inf: Any) -> None:
        self._team = team
        self._found_inf = found_inf
        self._is_reached = False
        self.is_skipped = False
        self.scaling = (grad_scale, team.flag(found_inf))

    def __enter__(self) -> Agreement:
        return self

    def reach(self, staged: Sequence[Call], losses: Mapping[int, Any]) -> None:
        """Agree, and average the losses that begin something: each process has that of its own batch.

        Raises:
            RuntimeError: another process cannot take the step.
        """
        self._is_reached = True
        if self._team.agree(self._found_inf, self.scaling[1]):
            raise _Skip
        for call in staged:
            if call.group not in losses and (loss := call.arguments.get("loss")) is not None:
                call.arguments["loss"] = self._team.mean(loss)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        self.is_skipped = isinstance(error, _Skip)
        if isinstance(error, Exception) and not self._is_reached:
            self._team.agree(self._found_inf, self.scaling[1], error)
        return self.is_skipped


class _Skip(Exception):
    """Ends a step that ``found_inf`` forbids."""


def staged(params: Sequence[Tensor], rule: Rule) -> list[Tensor]:
    """Return the parameters whose steps are taken in stages: where a rule looks beyond single elements and a
    tensor is cut, or keeps signs of a DTensor, or a DTensor does not lie in order, of which stages take a
    copy; with scalars that a group shares, all or none of it."""
    if rule.is_elementwise:
        return []
    found = [
        p
        for p in params
        if pieces.is_piece(p) and (cuts(p) or "signs" in rule.state_keys or _is_out_of_order(p))
    ]
    return list(params) if found and rule.shared_keys else found


def _is_out_of_order(param: Tensor) -> bool:
    return not pieces.local(param).is_contiguous()


def _moves(params: Sequence[Tensor], rule: Rule, state: Mapping[Any, Any]) -> bool:
    if rule.lr_is_step and any(state.get(param) for param in params):
        return True
    grads = (pieces.local(param.grad) for param in params if param.grad is not None)
    return any(grad.layout != torch.strided or bool(grad.any()) for grad in grads)


def _covering(lines: Lines) -> list[Line]:
    """Return the lines along which a message reaches everybody: those of the largest meshes."""
    chosen: list[Any] = []
    everybody: set[int] = set()
    for mesh in sorted(lines.meshes, key=lambda mesh: -mesh.size()):
        ranks = set(mesh.mesh.flatten().tolist())
        if not ranks <= everybody:
            chosen.append(mesh)
            everybody |= ranks
    found = {
        (line := lines.along(mesh, mesh_dim)).place: line
        for mesh in chosen
        for mesh_dim in range(mesh.ndim)
        if mesh.size(mesh_dim) > 1
    }
    return [found[place] for place in sorted(found)]
