"""The presets of :class:`FusedHybrid`: one row each, which rule a role gets and with what hyperparameters.

A rule's own defaults hold where a row says nothing. SinkGD has one iteration in all of them, in place of its
paper's five: in the runs of docs/results.md one trains as well as ten, and each reads the gradient once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sage_ext.routing import ROLES


@dataclass(frozen=True)
class Preset:
    """Role -> rule, and the hyperparameters in which the preset differs from the rules' defaults."""

    embedding: str
    matrix: str
    lm_head: str
    vector: str
    hyperparameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of a rule, in all roles."""
    roles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of a role's rule, in this role alone."""
    tied: str | None = "embedding"
    """The role of a weight that is both embedding and head; None leaves that to the caller."""
    by_input_unit: tuple[str, ...] = ()
    """Roles in which SCALE normalises what goes to each input unit, instead of to each output unit."""
    width: int | None = None
    """Of the model that SinkGD's rate is from: in a wider one the matrices have that rate times this over its
    width."""
    joint: tuple[str, ...] = ()
    """Rules that get one group for all of their roles: its parameters share state."""

    def rule_for(self, role: str) -> str:
        """Return the name of the rule that parameters of ``role`` (one of ``routing.ROLES``) get."""
        if role not in ROLES:
            raise ValueError(f"role: got {role!r}, expected one of {', '.join(map(repr, ROLES))}")
        rule: str = getattr(self, role)
        return rule

    def scale_dim(self, role: str, output_dim: int) -> int:
        """Return SCALE's ``dim`` for a matrix of ``role`` whose output units lie along ``output_dim``."""
        return output_dim if role in self.by_input_unit else 1 - output_dim

    def width_factor(self, width: int | None) -> float:
        """Return what the matrices' own rate is multiplied by in a model of this width; None: not known."""
        return 1.0 if self.width is None or width is None else min(1.0, self.width / width)


ONE_ITERATION: Mapping[str, int] = MappingProxyType({"iterations": 1})

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        # The pairing in the released code of SAGE's authors, at one learning rate for everything.
        "sage": Preset(
            embedding="sage",
            matrix="sinkgd",
            lm_head="sage",
            vector="sage",
            hyperparameters={
                "sage": {"lr": 2e-3},
                "sinkgd": {"lr": 2e-3, "alpha": 10.0, "normalization": "unit", **ONE_ITERATION},
            },
        ),
        # The two below take SinkGD at its paper's own rate and form (lr 0.02, alpha 0.05, sqrt).
        "lion": Preset(
            embedding="lion",
            matrix="sinkgd",
            lm_head="lion",
            vector="lion",
            hyperparameters={"sinkgd": ONE_ITERATION},
        ),
        "sinkgd": Preset(
            embedding="adamw",
            matrix="sinkgd",
            lm_head="adamw",
            vector="adamw",
            hyperparameters={"sinkgd": ONE_ITERATION},
        ),
        # The code of SCALE's authors: no weight decay, one learning rate for everything.
        "scale": Preset(
            embedding="scale",
            matrix="scale",
            lm_head="scale",
            vector="adamw",
            hyperparameters={"scale": {"lr": 1e-3}, "adamw": {"lr": 1e-3, "weight_decay": 0.0}},
            roles={"lm_head": {"momentum": 0.9}},
            tied=None,
        ),
        # Ours: what did best with little state, and with none, in the runs of docs/results.md, at the rates
        # of those. SinkGD's alpha is 1, so that every rate is the root mean square of an update, in a model
        # as wide as theirs: in wider ones the best rate went as 1 / width.
        "sinkgd-scale": Preset(
            embedding="adamw",
            matrix="sinkgd",
            lm_head="scale",
            vector="adamw",
            hyperparameters={
                "adamw": {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.0},
                "sinkgd": {"lr": 1e-3, "alpha": 1.0, **ONE_ITERATION},
                "scale": {"lr": 1e-3, "momentum": 0.9},
            },
            roles={"embedding": {"lr": 1e-2}},
            width=192,
        ),
        "stateless": Preset(
            embedding="scale",
            matrix="sinkgd",
            lm_head="scale",
            vector="sign_sgd",
            hyperparameters={
                "scale": {"lr": 5e-3},
                "sinkgd": {"lr": 2.5e-4, "alpha": 1.0, **ONE_ITERATION},
                "sign_sgd": {"lr": 1e-3},
            },
            roles={"lm_head": {"lr": 4e-3}},
            # By output unit, a rare token's row moves as far as a frequent one's, on noise, which only a
            # momentum mends.
            by_input_unit=("lm_head",),
            width=192,
        ),
        # ALIAS has no learning rate to tune; the head is on AdamW in the LLaMA runs of its authors.
        "alias": Preset(
            embedding="alias",
            matrix="alias",
            lm_head="adamw",
            vector="alias",
            hyperparameters={"adamw": {"lr": 1e-3, "weight_decay": 0.0}},
            joint=("alias",),
        ),
    }
)
