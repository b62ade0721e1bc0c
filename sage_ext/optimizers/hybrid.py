"""Hybrids: each parameter gets the rule that suits its role in the model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sage_ext import checks, routing
from sage_ext.backend import Backend
from sage_ext.optimizers import keywords, validate
from sage_ext.optimizers.adamw import ADAMW
from sage_ext.optimizers.advice import tell
from sage_ext.optimizers.alias import ALIAS, ALIAS_ADAM
from sage_ext.optimizers.presets import PRESETS
from sage_ext.optimizers.replicated import ReplicatedOptimizer
from sage_ext.optimizers.rule import Rule
from sage_ext.optimizers.sage import SAGE
from sage_ext.optimizers.scale import SCALE
from sage_ext.optimizers.sign import LION, SIGN_SGD
from sage_ext.optimizers.sinkgd import SINKGD

RULES: Mapping[str, Rule] = MappingProxyType(
    {rule.name: rule for rule in (SAGE, SINKGD, LION, SIGN_SGD, SCALE, ALIAS, ALIAS_ADAM, ADAMW)}
)


_COMMON = (
    "lr",
    "betas",
    "eps",
    "weight_decay",
    "embeddings",
    "lm_head",
    "tied",
    "no_decay",
    "maximize",
    "state_dtype",
)
"""Keyword arguments that are no rules, for messages."""
_SCALED = ("alpha",)
"""What depends on a matrix's layout by a factor, which an override does not do away with."""


class FusedHybrid(ReplicatedOptimizer):
    """Several rules in one optimizer: one parameter group for each role that the model has, with its rule.

    ============== ============ ======================== ============ ========
    preset         embeddings   other matrices           lm_head      1-D
    ============== ============ ======================== ============ ========
    "sage"         SAGE         SinkGD, "unit", alpha 10 SAGE         SAGE
    "lion"         Lion         SinkGD                   Lion         Lion
    "sinkgd"       AdamW        SinkGD                   AdamW        AdamW
    "scale"        SCALE, dim 0 SCALE, dim 1             SCALE, dim 1 AdamW
    "alias"        ALIAS        ALIAS                    AdamW        ALIAS
    "sinkgd-scale" AdamW        SinkGD                   SCALE, dim 1 AdamW
    "stateless"    SCALE, dim 0 SinkGD                   SCALE, dim 0 Sign-SGD
    ============== ============ ======================== ============ ========

    The last two are this library's own, with the rates and for the reasons of ``docs/results.md``; the others
    are their papers', but for SinkGD's iterations: one in all presets, which trained as well as the papers'
    five there (``sinkgd={"iterations": 5}``). In "scale" and "sinkgd-scale" the head has momentum 0.9; SCALE
    has none elsewhere. ``dim`` is the one across which an output unit lies, so 0 for transformers'
    ``Conv1D``, too; of the head in "stateless" an input unit. In "alias" all that is not the head is one
    group, with one step size. In our two SinkGD's rate is that of a model of width 192: in a wider one its
    alpha is 192 / width instead of 1, as ``docs/results.md`` found, where the width is the number of inputs
    that most matrices have. A rate or an alpha that you give them is taken as it is, and so are group dicts.

    A head that is tied to the embedding is the same parameter and counts as an embedding, but not in "scale":
    there it has to be said with ``tied``. ``describe()`` shows which parameter got which rule. Groups carry
    ``"role"`` beside ``"rule"``, so a single one is easily found and changed.

    Args:
        model_or_named_parameters_or_groups: a module; (name, parameter) pairs together with ``embeddings``;
            or dicts with ``"params"`` and ``"rule"``, taken as they are: what they leave out has its rule's
            own default, or the preset's if one is named. Frozen parameters of a module or of pairs are left
            out.
        preset: a name of the table; None is "sage" for a module or pairs, and none at all for dicts.
        lr: None takes the preset's own learning rate for each rule ("sage": 2e-3 for all; "lion": Lion 1e-4,
            SinkGD 0.02; "sinkgd": AdamW 1e-3, SinkGD 0.02; "scale": 1e-3 for all; "alias": AdamW 1e-3, and
            ALIAS finds its own; ours: one for each role, see ``describe()``); a number or one-element tensor
            goes to every group; a dict maps rules or roles ("embedding", "matrix", "lm_head", "vector") to
            learning rates, a role's going before its rule's, and a rule's being for all of its roles. What a
            dict leaves out keeps the preset's.
        embeddings, lm_head: names of parameters with that role; see :func:`sage_ext.routing.route`.
        tied: ``"embedding"`` or ``"lm_head"``, the role of a weight that is both. None takes the preset's
            choice; "scale" has none, because the paper's last layer is not an embedding as well.
        betas, eps, weight_decay: as trainers pass them: they go to every rule that has an argument of this
            name. None leaves the preset's.
        no_decay: names of parameters without weight decay, whatever the others have (usually norms and
            biases). They get groups of their own where their rule decays at all.
        maximize: ascend instead of descend.
        state_dtype: dtype of the moments; None takes each rule's default.
        capturable: as in the single-rule optimizers.
        backend: ``"auto"``, ``"native"`` or ``"reference"``; ``optimizer.backend`` says what was chosen.
        process_group: of ALIAS, as in :class:`FusedALIAS`.
        overrides: for a rule's name, a dict of hyperparameters in which all of its groups differ from the
            preset, e.g. ``sinkgd={"alpha": 0.05, "normalization": "sqrt"}``. Goes before betas, eps,
            weight_decay and an lr that is not a role's.

    Raises:
        ValueError: an argument, a name or a parameter cannot be used; the message names it, and the cure.
        NativeUnavailableError: native kernels were asked for, or are needed on a GPU, and cannot be used.
    """

    rules = RULES
    _adds_by_role = True

    def __init__(
        self,
        model_or_named_parameters_or_groups: nn.Module
        | Iterable[tuple[str, Tensor]]
        | Iterable[dict[str, Any]],
        preset: str | None = None,
        lr: float | Tensor | Mapping[str, float | Tensor] | None = None,
        *,
        embeddings: str | Sequence[str] | None = None,
        lm_head: str | Sequence[str] | None = None,
        tied: Literal["embedding", "lm_head"] | None = None,
        betas: Sequence[float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        no_decay: str | Sequence[str] = (),
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
        capturable: bool = False,
        backend: Backend = "auto",
        process_group: Any = None,
        **overrides: Mapping[str, Any],
    ) -> None:
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"preset: got {preset!r}, expected one of {', '.join(map(repr, PRESETS))}")
        if tied not in (None, "embedding", "lm_head"):
            raise ValueError(f"tied: got {tied!r}, expected None, 'embedding' or 'lm_head'")
        source: Any = model_or_named_parameters_or_groups
        if not isinstance(source, (nn.Module, Tensor, str)) and isinstance(source, Iterable):
            source = list(source)
        groups = _group_dicts(source, {"embeddings": embeddings, "lm_head": lm_head, "no_decay": no_decay})
        base = preset if groups else preset or "sage"
        validate.process_group(process_group, "process_group", "")
        self._process_group = process_group
        self._preset = preset or "sage"
        self._tied = tied or PRESETS[self._preset].tied
        self._width: int | None = None
        common: dict[str, Any] = {"maximize": maximize, "state_dtype": state_dtype, "capturable": capturable}
        spread = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        common.update((name, value) for name, value in spread.items() if value is not None)
        role_rates: dict[str, Any] = {}
        if isinstance(lr, Mapping):
            role_rates = {role: lr[role] for role in routing.ROLES if role in lr}
            lr = {name: value for name, value in lr.items() if name not in role_rates}
        self._rule_defaults = _rule_defaults(base, lr, common, overrides)
        self._role_rates = _role_rates(self._preset, role_rates, groups)
        self._overridden = _overridden(lr, overrides)
        if groups is None:
            _check_rules_of(self._preset, overrides, "argument ")
            if isinstance(lr, Mapping):
                _check_rules_of(self._preset, lr, "lr: ")
            routed = routing.route(
                source, embeddings=embeddings, lm_head=lm_head, tied=self._tied, no_decay=no_decay
            )
            groups = self._by_role(routed)
            if lm_head is None and (advice := routing.head_advice(routed)):
                tell(advice)
            if absent := set(self._role_rates) - {entry.role for entry in routed}:
                tell(
                    f"lr: no parameter has role {' or '.join(map(repr, sorted(absent)))}, whose rate is idle"
                )
            if rates := _rates_replaced(self._preset, lr, overrides, self._width):
                own = ", ".join(f"{name!r}: {rate:g}" for name, rate in rates.items())
                said = "lr" if isinstance(lr, Tensor) else f"lr={lr:g}"
                apart = [rule for rule, values in overrides.items() if "lr" in values]
                but = f" but those of {', '.join(map(repr, apart))}" if apart else ""
                tell(
                    f"{said} is the rate of every group{but} now. In preset {self._preset!r} they have rates "
                    f"of their own; to keep them apart: lr={{{own}}}"
                )
        # Of torch's defaults only lr is of use to others (loggers, schedulers); groups take theirs from
        # _rule_defaults.
        matrix = PRESETS[self._preset].rule_for("matrix")
        super().__init__(groups, {"lr": self._rule_defaults[matrix]["lr"]}, backend=backend)
        if all(param.ndim < 2 for group in self.param_groups for param in group["params"]):
            tell(
                "not one of the parameters has two dimensions, so a hybrid does nothing here that its rule "
                "for vectors would not do alone. If a wrapper has made one flat partition of them (DeepSpeed "
                "ZeRO, Megatron's distributed optimizer), only FusedLion, FusedSignSGD and FusedAdamW are "
                "right on it"
            )

    def add_parameters(
        self,
        model_or_named_parameters: nn.Module | Iterable[tuple[str, Tensor]],
        *,
        embeddings: str | Sequence[str] | None = None,
        lm_head: str | Sequence[str] | None = None,
        no_decay: str | Sequence[str] = (),
    ) -> None:
        """Route parameters as the constructor does and add a group for each role that has new ones.

        Parameters that the optimizer owns already are left alone, so after unfreezing layers the whole model
        can be passed again. To an optimizer of group dicts they come with the rules of "sage", and what the
        rules' own defaults are where no preset was named. For parameters whose rule is known,
        ``add_param_group`` with ``"rule"`` does.

        Args:
            model_or_named_parameters: a module, or (name, parameter) pairs.
            embeddings, lm_head, no_decay: names of parameters, as the constructor takes them.

        Raises:
            ValueError: nothing new to add, or a parameter or name cannot be used. The optimizer is unchanged
                then.
        """
        routed = routing.route(
            model_or_named_parameters,
            embeddings=embeddings,
            lm_head=lm_head,
            tied=self._tied,
            no_decay=no_decay,
        )
        owned = {id(param) for group in self.param_groups for param in group["params"]}
        fresh = [entry for entry in routed if id(entry.param) not in owned]
        if not fresh:
            raise ValueError(
                "model_or_named_parameters: every trainable parameter is in the optimizer already"
            )
        before = len(self.param_groups)
        named = "param_names" in self.param_groups[0]
        try:
            for group in self._by_role(fresh):
                if not named:
                    group["params"] = [param for _, param in group["params"]]
                self.add_param_group(group)
        except Exception:
            del self.param_groups[before:]
            raise

    def _by_role(self, routed: Sequence[routing.Routed]) -> list[dict[str, Any]]:
        """Return the groups of routed parameters: one for each role, or more where its rule goes by the
        layout."""
        preset = PRESETS[self._preset]
        if self._width is None:
            self._width = _width(routed)
        by_place: dict[Any, list[routing.Routed]] = {}
        for role in routing.ROLES:
            rule = preset.rule_for(role)
            for entry in routed:
                if entry.role == role:
                    place: Any = (role, *self._of_layout(rule, entry).items(), self._decays(rule, entry))
                    if rule in preset.joint:
                        if not self._decays(rule, entry):
                            raise ValueError(
                                f"no_decay: {entry.name} is in one group with all other parameters of rule "
                                f'{rule!r}, which have one weight decay; pass {rule}={{"weight_decay": 0.0}} '
                                "to have none, or no_decay=() to have it on all"
                            )
                        place = rule
                    by_place.setdefault(place, []).append(entry)
        groups = []
        for entries in by_place.values():
            roles = list(dict.fromkeys(entry.role for entry in entries))
            # In the model's order, also where several roles have one group.
            members = {id(entry.param) for entry in entries}
            params = [(entry.name, entry.param) for entry in routed if id(entry.param) in members]
            role, rule = "+".join(roles), preset.rule_for(roles[0])
            own = {**preset.roles.get(role, {}), **self._of_layout(rule, entries[0])}
            own = {k: v for k, v in own.items() if k not in self._overridden.get(rule, ()) or k in _SCALED}
            if role in self._role_rates:
                own["lr"] = self._role_rates[role]
            if not self._decays(rule, entries[0]):
                own["weight_decay"] = 0.0
            groups.append({"params": params, "role": role, "rule": rule, **own})
        return groups

    def _decays(self, rule: str, entry: routing.Routed) -> bool:
        """Return whether an entry is in a group with weight decay, or in one that has none anyway."""
        return entry.decays or self._rule_defaults[rule]["weight_decay"] == 0

    def _of_layout(self, rule: str, entry: routing.Routed) -> dict[str, Any]:
        """Return the hyperparameters of a matrix that depend on where it has its output units."""
        if rule == SCALE.name:
            return {"dim": PRESETS[self._preset].scale_dim(entry.role, entry.output_dim)}
        if rule == SINKGD.name:
            factor = self._alpha_factor(entry)
            return {"alpha": self._rule_defaults[rule]["alpha"] * factor} if factor != 1.0 else {}
        return {}

    def _alpha_factor(self, entry: routing.Routed) -> float:
        """Return what SinkGD's alpha is multiplied by for a matrix."""
        if self._rule_defaults[SINKGD.name]["normalization"] == "unit":
            # The unit form divides by sqrt(rows), which are the outputs in nn.Linear.
            rows, cols = entry.param.shape[-2:]
            return math.sqrt(rows / cols) if entry.output_dim == 1 and rows and cols else 1.0
        own = self._overridden[SINKGD.name]
        if "alpha" in own or "lr" in own or entry.role in self._role_rates:
            return 1.0  # the caller's numbers are taken as they are
        return PRESETS[self._preset].width_factor(self._width)

    def _group_defaults(self, rule: str) -> Mapping[str, Any]:
        return self._rule_defaults[rule]

    def __getstate__(self) -> dict[str, Any]:
        own = ("_preset", "_tied", "_width", "_rule_defaults", "_role_rates", "_overridden")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}


def _width(routed: Sequence[routing.Routed]) -> int | None:
    """Return a model's width: the number of inputs that most of its matrices have, the largest of equals."""
    inputs = Counter(
        entry.param.shape[-1 if entry.output_dim == 0 else -2] for entry in routed if entry.role == "matrix"
    )
    return max(inputs, key=lambda size: (inputs[size], size), default=None) or None


def _group_dicts(source: Any, named: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the group dicts if ``source`` is some, else None. ``named``: arguments that name parameters."""
    if not isinstance(source, list) or not source or not all(isinstance(item, dict) for item in source):
        return None
    for name, value in named.items():
        if value not in (None, ()):
            raise ValueError(f"{name}: got {value!r}, but group dicts say themselves what is in them")
    return source


def _rule_defaults(
    preset: str | None, lr: Any, common: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return rule -> hyperparameters of a new group: from the rule, preset, common, lr, overrides, in
    turn."""
    _check_rule_names(overrides, "argument ", f"{', '.join(_COMMON)}, or ")
    if isinstance(lr, Mapping):
        _check_rule_names(lr, "lr: ", f"a role ({', '.join(map(repr, routing.ROLES))}) or ")
    result = {}
    for name, rule in RULES.items():
        values = {**rule.defaults, **(PRESETS[preset].hyperparameters.get(name, {}) if preset else {})}
        values.update((key, value) for key, value in common.items() if key in values)
        if isinstance(lr, Mapping):
            values["lr"] = lr.get(name, values["lr"])
        elif lr is not None:
            values["lr"] = lr
        own = overrides.get(name, {})
        if not isinstance(own, Mapping):
            raise TypeError(f"{name}: got {checks.brief(own)}, expected a dict of hyperparameters")
        for key, value in own.items():
            if key not in rule.defaults:
                raise ValueError(
                    f"{name}: unknown hyperparameter {key!r}, expected one of {', '.join(rule.defaults)}"
                )
            values[key] = value
        values = {key: validate.plain(value) for key, value in values.items()}
        rule.validate(values, f" for rule {name!r}")
        result[name] = values
    return result


def _role_rates(preset: str, rates: Mapping[str, Any], groups: object) -> dict[str, Any]:
    """Return role -> learning rate, checked."""
    if rates and groups is not None:
        raise ValueError(f'lr: got {", ".join(map(repr, rates))}, but group dicts say their own "lr"')
    result = {}
    for role, value in rates.items():
        rule = PRESETS[preset].rule_for(role)
        if rule in PRESETS[preset].joint:
            raise ValueError(
                f"lr: {role!r} is in one group with all other parameters of rule {rule!r}, which have one "
                f"learning rate; pass lr={{{rule!r}: ...}}"
            )
        value = validate.plain(value)
        RULES[rule].validate({**RULES[rule].defaults, "lr": value}, f" for role {role!r}")
        result[role] = value
    return result


def _overridden(lr: Any, overrides: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Return rule -> the hyperparameters in which the caller's word goes before what a preset's role has."""
    of_all = lr is not None and not isinstance(lr, Mapping)
    of_rule = lr if isinstance(lr, Mapping) else {}
    return {
        name: (*overrides.get(name, {}), *(("lr",) if of_all or name in of_rule else ())) for name in RULES
    }


def _rates_replaced(
    preset: str, lr: Any, overrides: Mapping[str, Mapping[str, Any]], width: int | None
) -> dict[str, float]:
    """Return the preset's own rates where one number takes the place of several: by rule, or by role where a
    rule has several."""
    if lr is None or isinstance(lr, Mapping) or (not isinstance(lr, Tensor) and lr == 0):
        return {}
    chosen = PRESETS[preset]
    own = _rule_defaults(preset, None, {}, {})
    rules = {role: chosen.rule_for(role) for role in routing.ROLES}
    rates = {
        role: chosen.roles.get(role, {}).get("lr", own[rule]["lr"])
        for role, rule in rules.items()
        if RULES[rule].lr_is_step and "lr" not in overrides.get(rule, {})
    }
    if "matrix" in rates and "alpha" not in overrides.get(SINKGD.name, {}):
        rates["matrix"] *= chosen.width_factor(width)  # a rate of the caller's is taken as it is
    by_rule = {rules[role]: rate for role, rate in rates.items()}
    if len(set(rates.values())) < 2:
        return {}
    return by_rule if all(by_rule[rules[role]] == rate for role, rate in rates.items()) else rates


def _check_rule_names(given: Mapping[str, Any], where: str, others: str = "") -> None:
    for name in given:
        if name not in RULES:
            if name in keywords.OF_TORCH:
                raise ValueError(f"{where}{name!r} is not known; {keywords.OF_TORCH[name]}")
            options = ", ".join(map(repr, RULES))
            raise ValueError(f"{where}{name!r} is not known, expected {others}the name of a rule: {options}")


def _check_rules_of(preset: str, given: Mapping[str, Any], where: str) -> None:
    """Raise ValueError if something is said to a rule that no parameter can have."""
    rules = list(dict.fromkeys(map(PRESETS[preset].rule_for, routing.ROLES)))
    for name in given:
        if name not in rules:
            raise ValueError(
                f"{where}{name!r} is no rule of preset {preset!r}, which has {', '.join(map(repr, rules))}"
            )
