"""Does what ``sage_ext.autoconfig`` picks train better than the hybrids, at their memory?

One run measures: AdamW trains for some hundred steps, candidates look on, and the JSON keeps what each would
cost and risk on every matrix. The others train with what a budget picks from that, as much state as a hybrid
has. 1-D parameters have what that hybrid has there, and are left out of the choice.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lab.contenders import RULES, Group, adamw_of_torch, contenders, ours
from lab.plan import SEEDS, Rates, Run, best_rates, run_id, search_ids
from lab.scales import Scale
from lab.store import Store

if TYPE_CHECKING:
    from lab.text import Text
    from sage_ext import AutoConfig
    from sage_ext.selection import Block

NAME = "autoconfig"
STEPS = 256
AGAINST = ("stateless-columns", "scale", "sage-hybrid", "adamw-sinkgd-scale", "adamw")
"""Contenders whose state is the budget. With that of AdamW it picks AdamW everywhere: what is left to tell
them apart are the rates, which come from all searches."""
SOURCES = (
    "adamw",
    "adamw-sinkgd-scale",
    "sage-hybrid",
    "scale",
    "stateless-columns",
    "lion",
    "sign-sgd",
    "sinkgd",
)
"""Contenders of study "main" from which rates are taken."""
ROOM = 1.001
"""How much more state than theirs is allowed: some rules count their steps, in 4 bytes a parameter tensor."""
DIGITS = 6
MEASURE = run_id("budget", NAME, "measure")
FEWER = (32, 128)
"""Steps of measurements that nothing is picked from: how many does it take?"""


@dataclass(frozen=True)
class Picked(Run):
    """A run whose groups are what a budget picks."""

    against: str = ""

    def config(self, store: Store) -> dict[str, Any]:
        groups = groups_of(store, self.against)
        return {**self.configure({}), "schedule": "cosine", "groups": groups}


def budget(scale: Scale) -> list[Run]:
    """What autoconfig picks at the state of hybrids: measured once, then three seeds at each budget."""
    everyone = contenders()
    adamw = search_ids(everyone["adamw"])

    def measuring(name: str, steps: int) -> Run:
        tokens = steps * scale.batch_size * scale.seq_len

        def measured(rates: Rates) -> dict[str, Any]:
            config = scale.config(tokens=tokens, seed=0)
            return {**config, "measure": NAME, "schedule": "warm-up", "groups": adamw_of_torch(rates, steps)}

        return Run(
            id=name,
            study="budget",
            contender=NAME,
            stage="measure",
            variant={"steps": steps, "seed": 0},
            needs=adamw,
            tokens=tokens,
            rates=lambda store: best_rates(store, adamw),
            configure=measured,
        )

    runs = [measuring(MEASURE, STEPS), *(measuring(f"{MEASURE}-{steps}", steps) for steps in FEWER)]
    needs = (MEASURE, *(run for name in SOURCES for run in search_ids(everyone[name])))
    for seed in SEEDS:
        for name in AGAINST:
            given = {"tokens": scale.final_tokens, "seed": seed}
            runs.append(
                Picked(
                    id=run_id("budget", NAME, f"as-{name}", "seed", seed),
                    study="budget",
                    contender=NAME,
                    stage="seed",
                    variant={"against": name, "seed": seed},
                    needs=needs,
                    tokens=scale.final_tokens,
                    rates=lambda store: {},
                    configure=lambda rates, given=given: scale.config(**given),
                    against=name,
                )
            )
    return runs


# --------------------------------------------------------------------------------------------- measuring


def execute(config: dict[str, Any], text: Text) -> dict[str, Any]:
    """Measures with ``config`` and returns the parts of its JSON; "loss" is that of AdamW's last steps."""
    import torch

    from lab.single import Run as Training
    from sage_ext import autoconfig, routing

    training = Training(config, text)
    for entry in routing.route(training.model):
        entry.param.requires_grad_(entry.role != "vector")
    losses: list[float] = []

    def loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        with training._autocast():
            value = training.loss(model, batch)
        losses.append(float(value.detach()))
        return value

    wall, cpu = time.perf_counter(), time.process_time()
    found = autoconfig(
        training.model,
        [training.batches.next().to(training.device) for _ in range(training.steps)],
        loss=loss,
        steps=training.steps,
        lr=config["rates"],
        max_grad_norm=config["clip"],
        **{rule: _given(rule) for rule in ("adamw", "sage", "lion", "sinkgd")},
    )
    last = sum(losses[len(losses) // 2 :]) / len(losses[len(losses) // 2 :])
    return {
        "result": {
            "loss": round(last, DIGITS),
            "perplexity": round(math.exp(last), DIGITS),
            "diverged": False,
            "steps": training.steps,
            "parameters": sum(p.numel() for p in training.model.parameters()),
            "state_bytes": found.adamw_bytes,
            "optimizer_ms": None,
            "wall_seconds": round(time.perf_counter() - wall, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
        },
        "optimizers": {},
        "curve": {
            "train_loss": [round(value, DIGITS) for value in losses],
            "step_size": [],
            "validation": [],
        },
        "measured": written(found),
    }


def _given(rule: str) -> dict[str, Any]:
    """The hyperparameters that the lab gives a rule, but for what follows from the rates."""
    values = {key: value for key, value in RULES[rule].items() if key != "weight_decay"}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def written(config: AutoConfig) -> dict[str, Any]:
    """What was measured, as JSON takes it: a parameter a key."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.{DIGITS}g}")
        return value if isinstance(value, (int, str, tuple, list)) else str(value).removeprefix("torch.")

    return {
        block.name: {
            "role": block.role,
            "shape": list(block.param.shape),
            "dtype": plain(block.param.dtype),
            "options": [
                {
                    **{key: plain(value) for key, value in asdict(option).items() if key != "settings"},
                    "settings": {key: plain(value) for key, value in option.settings.items()},
                    "risk": [plain(value) for value in option.risk],
                }
                for option in block.options
            ],
        }
        for block in config.blocks
    }


def restored(measured: dict[str, Any]) -> AutoConfig:
    """The configuration that was written, with parameters on the meta device, within no budget."""
    import torch

    from sage_ext.selection import AutoConfig, Block, Option, Risk

    total = sum(math.prod(of["shape"]) for of in measured.values())
    blocks = tuple(
        Block(
            name=name,
            param=torch.empty(of["shape"], dtype=getattr(torch, of["dtype"]), device="meta"),
            role=of["role"],
            share=math.prod(of["shape"]) / total,
            options=tuple(Option(**{**option, "risk": Risk(*option["risk"])}) for option in of["options"]),
        )
        for name, of in measured.items()
    )
    empty = AutoConfig(
        blocks,
        picks=(),
        state_budget=None,
        ms_budget=None,
        bandwidth=None,
        by_role=False,
        is_optimal=True,
        bound=0.0,
    )
    return empty.within()


# ------------------------------------------------------------------------------------------ what is picked


def _made(contender: str) -> list[Group]:
    """A contender's groups, whatever its rates."""
    return contenders()[contender].make({"embedding": 1.0, "matrix": 1.0, "lm_head": 1.0}, 10)


def state_of(config: AutoConfig, contender: str) -> int:
    """The bytes of state that a contender keeps for the parameters of a configuration."""
    groups = {role: group for group in _made(contender) for role in group["roles"]}

    def of(block: Block) -> int:
        group = groups[block.role]
        name = group.get("rule", "adamw")
        kept = {option.candidate: option.state_bytes for option in block.options}
        return 2 * kept["scale-momentum"] if group.get("momentum") else kept[name]  # which has it in bf16

    return sum(map(of, config.blocks))


def picked(store: Store, contender: str) -> AutoConfig:
    """What the state of a contender picks."""
    config = restored(store[MEASURE]["measured"])
    return config.within(state_bytes=int(ROOM * state_of(config, contender)))


def groups_of(store: Store, contender: str) -> list[Group]:
    """The groups of a run: each names its parameters."""
    config = picked(store, contender)
    made: dict[Any, Group] = {}
    for block, option in zip(config.blocks, config.chosen, strict=True):
        changes = {key: value for key, value in option.settings.items() if key in ("dim", "momentum")}
        rate = rate_of(store, option.rule, block.role, changes) or option.lr
        group = ours(option.rule, block.role, rate, **changes)
        if "state_dtype" in option.settings:
            group["state_dtype"] = option.settings["state_dtype"]
        group = made.setdefault((block.role, option.candidate, *changes.items()), {**group, "names": []})
        group["names"].append(block.name)
    return [*made.values(), *(group for group in _made(contender) if group["roles"] == ["vector"])]


def rate_of(store: Store, rule: str, role: str, settings: Group) -> float | None:
    """The rate of a rule in a role: that of the best run of all searches of study "main" that had it there.

    None where no contender in ``SOURCES`` has it there, with the same ``dim`` and ``momentum`` where they are
    among ``settings``: then autoconfig's own, matched to AdamW's, has to do.
    """
    best: tuple[float, float] | None = None
    wanted = {"momentum": 0.0, **settings}
    for name in SOURCES:
        for run in search_ids(contenders()[name]):
            for group in store[run]["config"]["groups"] if run in store else ():
                own = group.get("rule", "adamw" if group["by"] == "torch.optim.AdamW" else None)
                alike = all(group.get(key, 0.0) == value for key, value in wanted.items())
                if own == rule and role in group["roles"] and alike:
                    found = (store.loss(run), group["lr"])
                    best = found if best is None or found[0] < best[0] else best
    return None if best is None else best[1]
