"""Which rule each parameter shall have, chosen within a budget: ``sage_ext.autoconfig``.

    config = sage_ext.autoconfig(model, batches, state_bytes=500 * 2**20)
    optimizer = FusedHybrid(config.groups)

After the idea of BAOC (arXiv 2605.04711), whose formulas are not public: those here are this library's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sage_ext import _torch as _torch
from sage_ext import backend as backends
from sage_ext import checks, pieces, routing
from sage_ext.backend import Backend
from sage_ext.optimizers import validate
from sage_ext.optimizers.advice import tell
from sage_ext.planning.hardware import CLUSTERS, Cluster
from sage_ext.selection import candidates as rules
from sage_ext.selection.candidates import CANDIDATES
from sage_ext.selection.config import AutoConfig, Block, Option, Point, check_budget, first_choice
from sage_ext.selection.shadows import Loss, Rate, Risk, Shadowed, watch

__all__ = ["CANDIDATES", "AutoConfig", "Block", "Option", "Point", "Risk", "autoconfig"]

_MANY_STEPS = 256
"""With fewer, what a head cannot bear may look best on it: in docs/results.md after 32 and 128 steps."""


def autoconfig(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    state_bytes: int | None = None,
    ms: float | None = None,
    loss: Loss | None = None,
    steps: int = 256,
    lr: float | Mapping[str, float] = 1e-3,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
    candidates: Iterable[str] = tuple(CANDIDATES),
    blocks: Literal["tensor", "role"] = "tensor",
    embeddings: str | Sequence[str] | None = None,
    lm_head: str | Sequence[str] | None = None,
    tied: Literal["embedding", "lm_head"] = "embedding",
    no_decay: str | Sequence[str] = (),
    hardware: str | Cluster | None = None,
    bandwidth: float | None = None,
    backend: Backend = "auto",
    **overrides: Mapping[str, Any],
) -> AutoConfig:
    """Return which rule each parameter shall have, so that optimizer state and step stay within a budget.

    AdamW trains the model for some steps, with a rate that rises from 0. Meanwhile the candidates look on:
    each gets the same gradients, keeps its own state, and moves nothing. In the second half of the steps
    their updates u are compared with AdamW's r, and a candidate's risk on a parameter is the sum of

    - *direction*: ``1 - cos(U, R)`` of the sums of all measured u and r: of how far each would have gone. In
      a single step a rule without momentum is far from AdamW for the noise alone, which does not add up;
    - *size*: the same of the norms of the sums' rows, and of their columns. A rate is a free parameter, so
      the size as a whole is nothing to hold against a candidate, but one that moves some rows more than
      others cannot be put right by a rate. For lists that differ little, ``1 - cos`` is half the variance of
      the logarithm of their ratio, weighted by size; unlike a logarithm it bears rows that do not move;
    - *variance*: over the steps, of ``cos(u, r)``, and ``1 - cos`` of the two lists of sizes, since one rate
      serves all steps.

    The choice is the one with the least sum of risks, each weighted by the parameter's share of all
    parameters, that is within the budget. AdamW itself has risk 0. All of this is this library's own, after
    the idea of BAOC (arXiv 2605.04711), whose formulas are not public. A small risk says that so many
    steps of a candidate led where AdamW's did. That it trains as well is not known from that.

    Each group gets the rate at which its rule moves parameters of this role as far (in root mean square) as
    AdamW at ``lr`` did in the measured steps, and the weight decay that shrinks them as much in a step.

    In the end the model is as it was to the bit, also where an error is raised: parameters, frozen ones too,
    buffers, gradients, modes, and the state of torch's random generators. It takes the memory of one more
    copy of parameters and buffers, of all candidates' states at once (22 bytes a parameter in float32, 18 in
    bfloat16, AdamW's own among them; 1-D ones two more), of the sums of updates (32 bytes a parameter, of a
    matrix with more than 256 columns 8 KiB a row; of 256 columns drawn once), and of some updates of the
    largest parameter; and the time of so many training steps, each with a step of every candidate and its
    comparison.

    With several processes the model has to be in DistributedDataParallel, so that all see the same gradients.

    Args:
        model: with its parameters whole on their devices. Parameters with ``requires_grad=False`` are left
            out, and a tied parameter counts once.
        batches: what ``loss`` takes, one a step. A list or a DataLoader begins again where it is shorter than
            ``steps``.
        state_bytes: the most that all optimizer state may take; None: as much as it will.
        ms: the most milliseconds that a step may take, as ``sage_ext.plan`` predicts them: bytes that the
            fused kernels move, over the bandwidth of the memory; None: as many as it will.
        loss: a function of (model, batch) that returns a scalar tensor. None calls ``model(**batch)`` for a
            dict, ``model(*batch)`` for a tuple or list, else ``model(batch)``, with tensors moved to the
            model's device, and takes the result's ``loss`` (Hugging Face models have one where a batch has
            ``labels``), or the result where it is a tensor of one element.
        steps: of the warm-up, 2 or more. With a few dozen, rules that a head cannot bear look best on it:
            they move rare tokens' rows as AdamW does in its first steps alone.
        lr: AdamW's learning rate, or a dict of one for each role that the model has (see
            :data:`sage_ext.routing.ROLES`). The embedding's is worth being larger.
        weight_decay: of AdamW.
        max_grad_norm: the norm to which all gradients together are clipped, in the warm-up; None does not.
        candidates: names, of :data:`~sage_ext.selection.CANDIDATES`. "adamw" has both moments in float32,
            "adamw-bf16" in bfloat16; with a beta2 of 0.998 or more it is left out. "scale" keeps nothing,
            "scale-momentum" a momentum in bfloat16.
        blocks: ``"tensor"`` chooses for each parameter by itself, ``"role"`` one candidate for all parameters
            of a role.
        embeddings, lm_head, tied, no_decay: as :func:`sage_ext.routing.route` has them.
        hardware: ``"a100"``, ``"h100"``, ``"h200"``, ``"b200"`` or a :class:`~sage_ext.planning.Cluster`, for
            its published bandwidth.
        bandwidth: of the memory, in bytes a second. With ``ms`` and without ``hardware`` it is measured by a
            copy, and may be a little different each time: give it, and the same inputs give the same groups.
        backend: ``"auto"``, ``"native"`` or ``"reference"``, as the optimizers have it.
        overrides: for a rule's name a dict of hyperparameters other than the candidates' own, such as
            ``sinkgd={"iterations": 2}`` or ``adamw={"betas": (0.9, 0.999)}``, which is the reference's too.
            The candidates have their optimizers' defaults, but betas (0.9, 0.95) for AdamW, and for SinkGD
            alpha 1 and one iteration. SCALE's ``dim`` follows from role and layout: "scale" has the rows of a
            matrix and the columns of embedding and head, "scale-momentum" the rows of all three, and momentum
            0.9 unless ``scale=`` has another.

    Returns:
        An :class:`AutoConfig`: ``FusedHybrid(config.groups)`` is the optimizer, with the same ``backend=``.
        ``print`` it for a table.

    Raises:
        TypeError, ValueError: an argument cannot be used, or nothing is within the budget; the message names
            it, and the cure or the smallest budget. The model is unchanged.
        NativeUnavailableError: native kernels were asked for, or are needed on a GPU, and cannot be used.
    """
    _check_processes(model, ms, hardware, bandwidth)
    names = _check(
        model, batches, state_bytes, ms, loss, steps, weight_decay, max_grad_norm, candidates, blocks, backend
    )
    rules.check_overrides(overrides)
    if tied not in ("embedding", "lm_head"):
        raise ValueError(f"tied: got {tied!r}, expected 'embedding' or 'lm_head'")
    published = _published(hardware, bandwidth)
    routed = routing.route(model, embeddings=embeddings, lm_head=lm_head, tied=tied, no_decay=no_decay)
    for entry in routed:
        _check_param(entry)
    checks.check_distinct([entry.param for entry in routed], lambda i: f"model: {routed[i].name}")
    if lm_head is None and (advice := routing.head_advice(routed)):
        tell(advice)
    rates = _rates(lr, routed)
    kind = backends.resolve(backend, [entry.param.device for entry in routed])
    native = kind == "native"
    for entry in routed:
        checks.check_param(entry.param, f"model: {entry.name}", native=native, needs_contiguous=False)
    shadowed = [
        Shadowed(entry, rules.candidates_of(entry, names, overrides, native=native)) for entry in routed
    ]
    for of in shadowed:
        if not of.candidates:
            raise ValueError(
                f"candidates: none of {', '.join(names)} applies to {of.entry.name}, of shape "
                f"{tuple(of.entry.param.shape)} ('adamw-bf16' only with a beta2 below 0.998, SinkGD and "
                "SCALE only to contiguous matrices); add 'adamw', or 'sign_sgd', which keeps nothing"
            )
    adamw = [rules.candidates_of(e, [rules.REFERENCE], overrides, native=native)[0] for e in routed]
    decays = [weight_decay if entry.decays else 0.0 for entry in routed]
    if published is None and ms is not None:
        published = measured_bandwidth(routed[0].param.device)

    def choice() -> AutoConfig:
        return first_choice(
            shadowed,
            rates,
            weight_decay,
            by_role=blocks == "role",
            bandwidth=published,
            state_bytes=state_bytes,
            ms=ms,
        )

    choice()  # a budget that is too small is told before anything is trained
    if steps < _MANY_STEPS and any(e.role == "lm_head" for e in routed):
        tell(
            f"steps={steps} are few to choose for an output head by: what makes rules bad for it shows after "
            f"some {_MANY_STEPS} steps (docs/autoconfig.md)"
        )
    watch(
        model,
        batches,
        shadowed,
        adamw,
        [Rate(rates[entry.role], decay) for entry, decay in zip(routed, decays, strict=True)],
        loss=loss or default_loss,
        steps=steps,
        max_grad_norm=max_grad_norm,
        native=native,
    )
    return choice()


def _check_processes(model: Any, ms: Any, hardware: Any, bandwidth: Any) -> None:
    """Raise ValueError where each process would choose by what it alone has seen."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    if torch.distributed.get_world_size() == 1:
        return
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "model: there are several processes, and each would choose by gradients of its own; wrap it in "
            "DistributedDataParallel first, which averages them, or call autoconfig in a program of one "
            "process, keep the result with torch.save, and use config.groups_for(model) in all of them"
        )
    if ms is not None and hardware is None and bandwidth is None:
        raise ValueError("ms: each of several processes would measure its own bandwidth; give bandwidth=")


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss that a model computes by itself, as Hugging Face's do."""
    device = next(param for param in model.parameters() if param.requires_grad).device

    def here(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, Mapping):
        result = model(**{key: here(value) for key, value in batch.items()})
    elif isinstance(batch, (tuple, list)):
        result = model(*map(here, batch))
    else:
        result = model(here(batch))
    found = result.get("loss") if isinstance(result, Mapping) else getattr(result, "loss", None)
    if isinstance(found, Tensor):
        return found
    if isinstance(result, Tensor) and result.numel() == 1:
        return result
    raise ValueError(
        f"loss: the model returned {type(result).__name__} without a loss; give loss=, a function of (model, "
        "batch) that returns a scalar tensor. Hugging Face models compute one where a batch has labels"
    )


def measured_bandwidth(device: torch.device) -> float:
    """Return the bytes a second that the best of some copies of 64 MiB reads and writes on a device."""
    import time

    source = torch.zeros(1 << 24, dtype=torch.float32, device=device)
    target = torch.empty_like(source)

    def wait() -> None:
        if device.type != "cpu":
            target[-1].item()

    best = float("inf")
    for _ in range(6):
        wait()
        begun = time.perf_counter()
        target.copy_(source)
        wait()
        best = min(best, time.perf_counter() - begun)
    return 2 * source.nbytes / best


def _check(
    model: Any,
    batches: Any,
    state_bytes: Any,
    ms: Any,
    loss: Any,
    steps: Any,
    weight_decay: Any,
    max_grad_norm: Any,
    candidates: Any,
    blocks: Any,
    backend: Any,
) -> list[str]:
    """Raise for an argument that cannot be used; return the candidates' names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected an nn.Module, which tells what is what")
    check_budget(state_bytes, ms)
    if isinstance(batches, (Mapping, Tensor)) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches: got {type(batches).__name__}, expected a list or another iterable of batches; of a "
            "single one, [batch]"
        )
    if loss is not None and not callable(loss):
        raise TypeError(f"loss: got {type(loss).__name__}, expected a function of (model, batch)")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 2:
        raise ValueError(f"steps: got {steps!r}, expected an integer >= 2; some hundred are usual")
    validate.non_negative(weight_decay, "weight_decay", "")
    if max_grad_norm is not None:
        validate.positive(max_grad_norm, "max_grad_norm", "")
    if blocks not in ("tensor", "role"):
        raise ValueError(f"blocks: got {blocks!r}, expected 'tensor' or 'role'")
    backends.validate(backend)
    return rules.check_names(candidates)


def _check_param(entry: routing.Routed) -> None:
    """Raise ValueError for a parameter that is not whole, or has no content."""
    param = entry.param
    if (
        pieces.is_piece(param)
        or getattr(param, "_fsdp_flattened", False)
        or getattr(param, "_is_flat_param", False)
    ):
        raise ValueError(
            f"model: {entry.name} is a piece of a sharded parameter, and a choice needs whole ones; call "
            "autoconfig before fully_shard, FSDP or parallelize_module, on the model itself or on a narrower "
            "one of the same names, and then FusedHybrid(config.groups_for(model))"
        )
    if param.device.type == "meta":
        raise ValueError(f"model: {entry.name} is on the meta device; candidates need its gradients")


def _rates(lr: Any, routed: Sequence[routing.Routed]) -> dict[str, float]:
    """Return AdamW's rate for each role that there is."""
    roles = [role for role in routing.ROLES if any(entry.role == role for entry in routed)]
    if not isinstance(lr, Mapping):
        validate.positive(lr, "lr", "")
        return dict.fromkeys(roles, float(lr))
    for role, value in lr.items():
        if role not in routing.ROLES:
            options = ", ".join(map(repr, routing.ROLES))
            raise ValueError(f"lr: {role!r} is not known, expected a number or some of {options}")
        validate.positive(value, "lr", f" for role {role!r}")
    for role in roles:
        if role not in lr:
            raise ValueError(f"lr: names no rate for role {role!r}, which the model has")
    return {role: float(lr[role]) for role in roles}


def _published(hardware: Any, bandwidth: Any) -> float | None:
    if bandwidth is not None:
        validate.positive(bandwidth, "bandwidth", " bytes a second")
        return float(bandwidth)
    if hardware is None:
        return None
    if isinstance(hardware, Cluster):
        return hardware.memory
    if isinstance(hardware, str) and hardware in CLUSTERS:
        return CLUSTERS[hardware].memory
    raise ValueError(
        f"hardware: got {hardware!r}, expected {', '.join(map(repr, CLUSTERS))} or a "
        "sage_ext.planning.Cluster; of other memory give bandwidth=, in bytes a second"
    )
