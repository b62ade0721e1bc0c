"""Loading a state dict without a change of dtype, and refusing one that does not fit.

``torch.optim.Optimizer.load_state_dict`` casts floating state to the parameter's dtype, which would round a
float32 ``s_range`` beside bfloat16 parameters. Here each tensor keeps the dtype it was saved with, bit for
bit; only its device, its strides and, of a DTensor, its placements follow the parameter. The step counter is
on the parameter's device too, wherever torch.optim kept it.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sage_ext import checks, pieces
from sage_ext.optimizers import origins, validate
from sage_ext.optimizers.rule import ALL_STATE_KEYS, Rule, StateSpec, allocate
from sage_ext.reference._signs import pack_signs, sign_words, unpack_signs

_FOREIGN_KEYS = frozenset(
    {
        *("max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "exp_inf", "acc_delta", "sum"),
        *("state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2", "max1", "max2"),
        "__bnb_optimizer_quant_state__",
    }
)
"""What the rules of torch and of bitsandbytes keep and none of ours does: their state is no wrapper's, and
means another rule."""
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What DistributedDataParallel, torch.compile and others put into the names of parameters."""
_SHOWN = 3
_GROUPS_SHOWN = 8


def plan(
    state_dict: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    rules: Mapping[str, Rule],
    label: Callable[[int, int], str],
    *,
    native: bool,
) -> tuple[dict[str, Any], defaultdict[Any, Any]]:
    """Check ``state_dict`` against an optimizer and build the new state beside the old one. Changes nothing.

    Args:
        state_dict: to be loaded.
        groups: of the optimizer.
        rules: that it may have, by their names.
        label: (index of a group, index in it) -> what messages call the parameter.
        native: whether native kernels will run.

    Returns:
        The state dict for torch to load, with each group completed by what the optimizer's own group has and
        without state; and the state to install afterwards.

    Raises:
        ValueError: it is no optimizer's, or there are other groups, or a group has another rule (or is of
            another optimizer), or other names, or the state of a parameter has other keys, shapes or dtypes
            than the rule keeps for it.
    """
    saved_groups = _groups_of(state_dict)
    _check_groups(saved_groups, groups)
    for index, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        origins.check(index, saved, rules[group["rule"]])
    completed = [_complete(index, *pair) for index, pair in enumerate(zip(saved_groups, groups, strict=True))]
    for index, group in enumerate(completed):
        rule = rules[group["rule"]]
        group.update((key, validate.plain(group[key])) for key in rule.defaults)
        rule.validate(group, f" in group {index} of the state dict")
        for key, spec in rule.shared_layout(group).items():
            group[key] = _restore_shared(index, key, group[key], spec, groups[index]["params"])

    owners = _owners(saved_groups, groups)
    state: defaultdict[Any, Any] = defaultdict(dict)
    # torch's checkpoint helpers leave the key out where no parameter has any state.
    for key, saved in state_dict.get("state", {}).items():
        if key not in owners:
            state[key] = saved  # not a parameter's: kept as it is, as torch does
            continue
        number, index = owners[key]
        param = groups[number]["params"][index]
        rule = rules[completed[number]["rule"]]
        own = {
            name: value for name, value in saved.items() if name in ALL_STATE_KEYS or name in _FOREIGN_KEYS
        }
        state[param] = {name: _on_device(value, param) for name, value in saved.items() if name not in own}
        if own:
            layout = rule.state_layout(param, completed[number])
            state[param].update(_restore(own, param, rule, layout, label(number, index), native))
    return {**state_dict, "param_groups": completed, "state": {}}, state


def places(groups: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Return (index of the group, index in the group) of every parameter, in the order of a state dict."""
    return [(g, i) for g, group in enumerate(groups) for i in range(len(group["params"]))]


def _groups_of(state_dict: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the saved groups, or raise ValueError saying what it may be that has none."""
    if "param_groups" in state_dict:
        groups: Sequence[Mapping[str, Any]] = state_dict["param_groups"]
        return groups
    inside = [f"state_dict[{key!r}]" for key, value in state_dict.items() if _has_groups(value)]
    inside += [
        f"state_dict[{key!r}][0]"
        for key, value in state_dict.items()
        if isinstance(value, (list, tuple)) and value and _has_groups(value[0])
    ]
    if inside:
        what = f"it looks like a whole checkpoint; pass {' or '.join(inside)}"
    elif any(str(key).startswith("param_groups.") for key in state_dict):
        what = (
            "it looks like one that torch.distributed.checkpoint has flattened; load it with its "
            "set_optimizer_state_dict and StateDictOptions(flatten_optimizer_state_dict=True)"
        )
    elif any(isinstance(value, Tensor) for value in state_dict.values()):
        what = "it looks like a model's; pass what optimizer.state_dict() has returned"
    else:
        what = "pass what optimizer.state_dict() has returned"
    found = _some(list(map(str, state_dict))) if state_dict else "nothing in it"
    raise ValueError(f"state_dict: it has {found}, and no 'param_groups'; {what}")


def _has_groups(value: object) -> bool:
    return isinstance(value, Mapping) and "param_groups" in value


def _check_groups(saved_groups: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError unless there are as many groups, with as many parameters."""
    if [len(group["params"]) for group in saved_groups] == [len(group["params"]) for group in groups]:
        return
    cure = (
        "build the optimizer as the one that was saved: with its preset, embeddings, lm_head, no_decay and "
        "groups"
        if any("rule" in group for group in saved_groups)
        else "it names no rule, so another optimizer has saved it (torch.optim's?): begin with new state, or "
        "build this optimizer with the groups of that one"
    )
    raise ValueError(
        f"state_dict: it has {_sizes(saved_groups)}, and this optimizer has {_sizes(groups)}; {cure}"
    )


def _sizes(groups: Sequence[Mapping[str, Any]]) -> str:
    """Return what a message says of groups."""
    each = [
        f"{len(group['params'])}" + (f" ({group['rule']})" if "rule" in group else "")
        for group in groups[:_GROUPS_SHOWN]
    ]
    each += ["..."] * (len(groups) > _GROUPS_SHOWN)
    return f"{len(groups)} group{'s' * (len(groups) != 1)} of {', '.join(each)} parameters"


def _owners(
    saved_groups: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> dict[Any, tuple[int, int]]:
    """Return which parameter, as (group, index in it), each key of the saved state belongs to.

    By name where both sides of a group have names, and by position elsewhere.
    """
    owners: dict[Any, tuple[int, int]] = {}
    for index, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        order: Sequence[int] = range(len(group["params"]))
        if (theirs := checks.names_of(saved)) and (names := checks.names_of(group)):
            order = _matching(index, theirs, names)
        owners.update((key, (index, place)) for key, place in zip(saved["params"], order, strict=True))
    return owners


def _matching(index: int, saved: Sequence[str], own: Sequence[str]) -> list[int]:
    """Return for each saved name its place among the group's own names."""
    saved, own = _without_wrappers(saved), _without_wrappers(own)
    places_of = {name: place for place, name in enumerate(own)}
    unknown = [name for name in saved if name not in places_of]
    if unknown or len(set(saved)) != len(own):
        missing = sorted(set(own) - set(saved))
        raise ValueError(
            f"state_dict: group {index} was saved with other parameters: it has {_some(unknown)}, which this "
            f"optimizer's group does not, and not {_some(missing)}; build the optimizer with the parameters "
            "of the one "
            'that was saved, or delete "param_names" from the saved groups to load by position'
        )
    return [places_of[name] for name in saved]


def _without_wrappers(names: Sequence[str]) -> list[str]:
    """Return the names as they are in the bare model; as they are if two of them would become the same."""
    bare = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names]
    return bare if len(set(bare)) == len(bare) else list(names)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(map(repr, names[:_SHOWN])) or "no other") + more


def _on_device(value: Any, param: Tensor) -> Any:
    """Return what a wrapper has saved: a copy on the parameter's device, in the dtype that it had."""
    return value.to(param.device, copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)


def _complete(index: int, saved: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved group, completed by the optimizer's: a checkpoint of torch.optim names no rule."""
    if saved.get("rule", group["rule"]) != group["rule"]:
        raise ValueError(
            f"state_dict: group {index} was saved with rule {saved['rule']!r} and this optimizer's group has "
            f"rule {group['rule']!r}; build the optimizer with the groups and rules of the one that was saved"
        )
    own = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    completed = {**own, **saved}
    if "param_names" in group:  # in its own order, and as its own model calls them
        completed["param_names"] = group["param_names"]
    if isinstance(own["lr"], Tensor) and isinstance(completed["lr"], Tensor):
        completed["lr"] = completed["lr"].to(own["lr"].device)  # where the host must not have to read it
    return completed


def _restore_shared(
    index: int, key: str, saved: Any, spec: StateSpec, params: Sequence[Tensor]
) -> Tensor | None:
    """Return what the parameters of a group share; None if it was saved before the first step."""
    if saved is None:
        return None
    if not isinstance(saved, Tensor) or tuple(saved.shape) != spec.shape or saved.dtype != spec.dtype:
        got = (tuple(saved.shape), saved.dtype) if isinstance(saved, Tensor) else type(saved).__name__
        raise ValueError(
            f"state_dict: group {index}: the saved {key!r} is {got}, expected a tensor of shape {spec.shape} "
            f"and {spec.dtype}"
        )
    return saved.to(params[0].device, copy=True) if params else saved.clone()


def _restore(
    saved: Mapping[str, Any],
    param: Tensor,
    rule: Rule,
    layout: Mapping[str, StateSpec],
    where: str,
    native: bool,
) -> dict[str, Tensor]:
    # Saved after the hyperparameters had changed and before the next step: what they do without is left out.
    saved = {key: value for key, value in saved.items() if key in layout or key not in rule.state_keys}
    if set(saved) != set(layout):
        raise ValueError(
            f"state_dict: {where}: the saved state has {_names(saved)}; rule {rule.name!r} keeps "
            f"{_names(layout)}"
        )
    restored = {}
    for key, spec in layout.items():
        value = saved[key]
        if not isinstance(value, Tensor):  # old checkpoints of torch.optim keep the step as a number
            value = torch.as_tensor(value, dtype=spec.dtype)
        if key == "signs":
            value = _as_kept(value, spec, param)
        shape = tuple(value.shape)
        if shape != spec.shape:
            raise ValueError(
                f"state_dict: {where}: the saved {key!r} has shape {shape}, expected {spec.shape}"
            )
        if spec.follows_param:
            allowed = checks.NATIVE_DTYPES if native else checks.REFERENCE_DTYPES
            if value.dtype not in allowed:
                raise ValueError(
                    f"state_dict: {where}: the saved {key!r} has dtype {value.dtype}, expected one of "
                    f"{', '.join(map(str, allowed))}"
                )
            spec = spec._replace(dtype=value.dtype)
        elif not spec.dtype.is_floating_point and value.dtype != spec.dtype:
            raise ValueError(
                f"state_dict: {where}: the saved {key!r} has dtype {value.dtype}, expected {spec.dtype}"
            )
        target = allocate(spec, param)
        if pieces.is_piece(param) or pieces.is_piece(value):
            from sage_ext.distributed import resharding

            restored[key] = resharding.fill(target, value)
        else:
            restored[key] = target.copy_(value)
    return restored


def _as_kept(value: Tensor, spec: StateSpec, param: Tensor) -> Tensor:
    """Return saved signs as this parameter keeps them: packed, or a byte each where it is a DTensor."""
    if value.dtype == spec.dtype or value.dtype not in (torch.int8, torch.int32):
        return value
    if pieces.is_piece(value):
        from sage_ext.distributed import resharding

        value = resharding.whole(value)
    if spec.dtype == torch.int32:
        return pack_signs(value.float()) if value.shape == param.shape else value
    if tuple(value.shape) != (2, sign_words(param.numel())):
        return value
    return unpack_signs(value, torch.empty(param.shape, dtype=torch.float32, device=value.device)).to(
        torch.int8
    )


def _names(keys: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, keys))) or "nothing"
