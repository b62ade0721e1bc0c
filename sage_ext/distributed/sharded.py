"""The step of parameters that are DTensors: on what this process has of them, with exchanges where needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sage_ext import checks, pieces
from sage_ext.distributed import native
from sage_ext.distributed.exchange import Lines, Presence, Work, run
from sage_ext.distributed.native import Part
from sage_ext.distributed.native_alias import alias_adam_work, alias_work
from sage_ext.distributed.placements import check_placements, cuts, describe, placements_of
from sage_ext.optimizers.rule import Rule
from sage_ext.optimizers.step import Call
from sage_ext.reference._stages import Stages
from sage_ext.reference.alias import alias_adam_stages, alias_stages
from sage_ext.reference.sage import sage_stages
from sage_ext.reference.scale import scale_stages
from sage_ext.reference.sinkgd_stages import sinkgd_stages

_STAGES: Mapping[str, Callable[..., Stages]] = {
    "sage": sage_stages,
    "sinkgd": sinkgd_stages,
    "scale": scale_stages,
    "alias_adam": alias_adam_stages,
}
"""Rule -> stages of one tensor. Those of ALIAS are of a whole group."""


_WORKS: Mapping[str, Callable[..., Work]] = {"alias": alias_work, "alias_adam": alias_adam_work}
"""Rule -> what runs a call in kernels that have no stages, with scalars of all processes between them."""


def localized(call: Call, label: Callable[[Tensor], str]) -> Call:
    """Return a call with what this process has of its DTensors: an element-wise rule needs no more.

    Raises:
        ValueError: a gradient or a state lies elsewhere than its parameter.
    """
    check_call(call, label)
    return call._replace(
        params=[pieces.local(param) for param in call.params],
        grads=[pieces.local(grad) for grad in call.grads],
        states=[[pieces.local(value) for value in values] for values in call.states],
        owners=call.params,
    )


def check_call(call: Call, label: Callable[[Tensor], str]) -> None:
    """Raise ValueError unless gradients and states lie where their parameters do."""
    for param, grad in zip(call.params, call.grads, strict=True):
        if pieces.is_piece(param):
            check_placements(param, label(param))
        if grad is not None:
            _check_gradient(param, grad, label)


def _check_gradient(param: Any, grad: Any, label: Callable[[Tensor], str]) -> None:
    if not pieces.is_piece(param):
        if pieces.is_piece(grad):
            raise ValueError(
                f"{label(param)}: its gradient is a DTensor, and the parameter is none; distribute the model "
                "as a whole (distribute_module, parallelize_module, fully_shard)"
            )
        return
    if not pieces.is_piece(grad):
        raise ValueError(
            f"{label(param)}: its gradient is a plain tensor, and the parameter a DTensor with placements "
            f"{describe(param)}; wrap it: DTensor.from_local(grad, param.device_mesh, param.placements)"
        )
    check_placements(grad, label(param), "its gradient has ")
    if grad.device_mesh != param.device_mesh or tuple(grad.placements) != tuple(param.placements):
        raise ValueError(
            f"{label(param)}: its gradient has placements {describe(grad)}, expected the parameter's, "
            f"{describe(param)}, on the same mesh; "
            "param.grad = param.grad.redistribute(placements=param.placements)"
        )


def check_staged(call: Call, group: Mapping[str, Any], label: Callable[[Tensor], str]) -> None:
    """Raise ValueError unless the stages can run on the call. Reads no value and changes nothing.

    Raises:
        ValueError: a gradient or a state cannot be used, or does not lie where its parameter does.
    """
    check_call(call, label)
    for position, (param, grad) in enumerate(zip(call.params, call.grads, strict=True)):
        layout = call.rule.state_layout(param, group)
        states = dict(zip(call.rule.state_keys, call.states, strict=True))
        for key, spec in layout.items():
            _check_state(param, key, states[key][position], spec, label)
        own = pieces.local(param)
        if grad is not None and states.get("prev_grad") and grad.dtype != param.dtype:
            raise ValueError(
                f"{label(param)}: its gradient has dtype {grad.dtype}; on several processes the base form of "
                "ALIAS, which keeps the gradient, takes those of the parameter's dtype alone, as a process "
                "without a gradient has to keep one of the same; memory_efficient=True keeps none"
            )
        if grad is None:
            grad = own  # the parameter alone is looked at

        def describe(_: int, param: Tensor = param) -> str:
            return label(param)

        # States have been checked above, of the whole tensor.
        checks.check_step([own], [pieces.local(grad)], {}, lambda _: {}, describe)


def _check_state(param: Any, key: str, value: Any, spec: Any, label: Callable[[Tensor], str]) -> None:
    follows = spec.follows_param or spec.dims is not None
    fits = tuple(value.shape) == spec.shape and (
        value.dtype == spec.dtype or (spec.follows_param and value.dtype in checks.REFERENCE_DTYPES)
    )
    if fits and pieces.is_piece(param) and follows:
        fits = pieces.is_piece(value) and tuple(value.placements) == placements_of(spec, param)
    if not fits:
        where = describe(value) if pieces.is_piece(value) else "no placements"
        raise ValueError(
            f"{label(param)}: state {key!r} has shape {tuple(value.shape)}, {value.dtype} and {where}, which "
            "does not go with the parameter; optimizer.load_state_dict(optimizer.state_dict()) makes it fit; "
            "if the parameter was replaced, begin its state anew with del optimizer.state[param]"
        )


class Planned(NamedTuple):
    """A call that has been checked."""

    call: Call
    parts: list[Part]
    """What native kernels run of it."""
    rest: Sequence[int]
    """Positions of what PyTorch runs."""


def plan_staged(
    calls: Sequence[Call],
    lines: Lines,
    scaling: tuple[Any, Tensor | None],
    describer: Callable[[Call], Callable[[int], str]],
) -> list[Planned]:
    """Check the calls once more, as native kernels do, and return what runs them. Nothing changes.

    Raises:
        ValueError: a tensor or a hyperparameter cannot be used.
    """
    planned = []
    for call in calls:
        if call.in_stages:
            planned.append(Planned(call, [], range(len(call.params))))
        elif call.rule.name in _WORKS:
            planned.append(Planned(call, [], ()))
        else:
            planned.append(Planned(call, *native.plan(call, lines, scaling, describer(call))))
    return planned


def run_staged(planned: Sequence[Planned], lines: Lines, scaling: tuple[Any, Tensor | None]) -> None:
    """Run the stages of all calls together. Everything has been checked, and all processes do the same."""
    grad_scale, found_inf = scaling
    works: list[Work] = []
    for call, parts, rest in planned:
        arguments = {**call.arguments, "grad_scale": grad_scale}
        if not call.in_stages and call.rule.name in _WORKS:
            works.append(_WORKS[call.rule.name](call, lines, scaling))
        elif call.rule.shared_keys:
            works += _works_of_alias(call, lines, arguments, found_inf)
        else:
            works += [part.work(lines) for part in parts]
            works += _works(call, rest, lines, arguments, found_inf)
    run(works)


def _works(
    call: Call,
    positions: Sequence[int],
    lines: Lines,
    arguments: Mapping[str, Any],
    found_inf: Tensor | None,
) -> list[Work]:
    works = []
    for position in positions:
        param, grad = call.params[position], call.grads[position]
        own_lines = [lines.of(param, mesh_dim) for mesh_dim, _ in cuts(param)]
        presence = Presence(grad is not None, own_lines, found_inf)
        states = [pieces.local(values[position]) if values else None for values in call.states]
        stages = _STAGES[call.rule.name](
            pieces.local(param),
            pieces.local_grad(param, grad),
            *states,
            shape=param.shape,
            store=presence.store,
            **arguments,
        )
        works.append(Work(stages, [param], lines, [presence]))
    return works


def _works_of_alias(
    call: Call, lines: Lines, arguments: Mapping[str, Any], found_inf: Tensor | None
) -> list[Work]:
    if found_inf is not None and bool(found_inf):  # its scalars are worked out on the host as they are
        return []
    (scalars,) = call.shared.values()
    signs, prev_grads = ([pieces.local(value) for value in values] for values in call.states)
    stages = alias_stages(
        [pieces.local(param) for param in call.params],
        [pieces.local_grad(*pair) for pair in zip(call.params, call.grads, strict=True)],
        signs,
        prev_grads,
        scalars,
        present=[grad is not None for grad in call.grads],
        **{"loss": None, **arguments},
    )
    return [Work(stages, call.params, lines)]


def state_bytes(param: Tensor, rule: Rule, group: Mapping[str, Any]) -> int:
    """Return how many bytes of state a DTensor costs this process."""
    local = pieces.local(param).shape
    return sum(spec.nbytes_of_piece(local) for spec in rule.state_layout(param, group).values())
