"""The optimizers that the benchmarks compare, on the tensors of Llamas, and the bytes that a step moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# Of these is the SAGE hybrid's step made: docs_tables.py puts them side by side.
EMBEDDING = "FusedSAGE (embedding)"
SINKGD = "FusedSinkGD (matrices)"
ONE_ITERATION = "FusedSinkGD (matrices), 1 iteration"
ITERATIONS = 5  # of SINKGD
BASELINE = "torch AdamW fused"
LOSS = 10.0  # above the lower bound of ALIAS
# Preset -> what the tables call its hybrid.
HYBRIDS = {
    "sage": "SAGE",
    "lion": "Lion",
    "sinkgd": "SinkGD",
    "scale": "SCALE",
    "alias": "ALIAS",
    "sinkgd-scale": "SinkGD-SCALE",
    "stateless": "Stateless",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Named = list[tuple[str, nn.Parameter]]
Build = Callable[[], torch.optim.Optimizer]


@dataclass(frozen=True)
class Llama:
    """The sizes of a Llama. ``tied``: its head is its embedding; ``kv``: width of keys and values, if not
    ``hidden``."""

    vocabulary: int
    hidden: int
    ffn: int
    layers: int
    tied: bool
    kv: int | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors by name: embedding, attention, gated feed-forward, norms, and the head if it is one."""
        hidden = self.hidden
        shapes: dict[str, tuple[int, ...]] = {
            "embed_tokens.weight": (self.vocabulary, hidden),
            "norm.weight": (hidden,),
        }
        for layer in range(self.layers):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                rows = self.kv or hidden if name in ("k_proj", "v_proj") else hidden
                shapes[f"layers.{layer}.self_attn.{name}.weight"] = (rows, hidden)
            shapes[f"layers.{layer}.mlp.gate_proj.weight"] = (self.ffn, hidden)
            shapes[f"layers.{layer}.mlp.up_proj.weight"] = (self.ffn, hidden)
            shapes[f"layers.{layer}.mlp.down_proj.weight"] = (hidden, self.ffn)
            shapes[f"layers.{layer}.input_layernorm.weight"] = (hidden,)
            shapes[f"layers.{layer}.post_attention_layernorm.weight"] = (hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocabulary, hidden)
        return shapes


LLAMAS = {
    "53M": Llama(vocabulary=32000, hidden=768, ffn=2048, layers=4, tied=True),
    "1.3B": Llama(vocabulary=32000, hidden=2048, ffn=5461, layers=24, tied=False),
    "7B": Llama(vocabulary=32000, hidden=4096, ffn=11008, layers=32, tied=False),
    # For trying a benchmark, and for looking at every memory access: sizes that no vector divides.
    "tiny": Llama(vocabulary=67, hidden=24, ffn=41, layers=1, tied=True),
    "tiny untied": Llama(vocabulary=67, hidden=24, ffn=41, layers=1, tied=False),
}


def llama_parameters(llama: Llama, dtype: torch.dtype, device: str | torch.device = "cpu") -> Named:
    """A Llama's parameters by name, with gradients."""
    return [(name, parameter(shape, dtype, device)) for name, shape in llama.shapes().items()]


def parameter(shape: tuple[int, ...], dtype: torch.dtype, device: str | torch.device = "cpu") -> nn.Parameter:
    param = nn.Parameter(torch.randn(shape, device=device).mul_(0.02).to(dtype))
    param.grad = torch.randn(shape, device=device).mul_(1e-3).to(dtype)
    return param


def passes_of(group: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """How often a step reads and writes the tensors of a group's parameters."""
    if "rule" not in group:  # torch's AdamW, which can be timed where ours could not be built
        return {"grad": (1, 0), **dict.fromkeys(("param", "exp_avg", "exp_avg_sq"), (1, 1))}
    from sage_ext.planning.traffic import streams

    return streams(group["rule"], group)


def traffic(optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Bytes that a step reads and writes. The optimizer has made a step: its states are what they are."""
    reads = writes = 0
    for group in optimizer.param_groups:
        passes = passes_of(group)
        for param in group["params"]:
            tensors = {"param": param, "grad": param.grad, **optimizer.state.get(param, {})}
            for key, (read, written) in passes.items():
                reads += read * tensors[key].nbytes
                writes += written * tensors[key].nbytes
    return reads, writes


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all state tensors, those that a group shares included."""
    held = [value for state in optimizer.state.values() for value in state.values()]
    held += [group["scalars"] for group in optimizer.param_groups if group.get("scalars") is not None]
    return sum(value.nbytes for value in held if isinstance(value, Tensor))


def step_of(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """What makes one step. Of ours, ALIAS with a lower bound needs the loss of the first."""
    ours = hasattr(optimizer, "step_size")
    return partial(optimizer.step, loss=LOSS) if ours else optimizer.step


@dataclass
class Contender:
    """Something whose time is taken. ``moves`` tells the bytes read and written, after the first step."""

    name: str
    step: Callable[[], object]
    moves: Callable[[], tuple[int, int]]


def contender(name: str, optimizer: torch.optim.Optimizer) -> Contender:
    return Contender(name, step_of(optimizer), lambda: traffic(optimizer))


def matrices_of(named: Named) -> list[nn.Parameter]:
    """The matrices that are neither embedding nor head."""
    return [p for name, p in named if p.ndim == 2 and "embed" not in name and "lm_head" not in name]


def torch_builders(params: list[nn.Parameter], capturable: bool = False) -> dict[str, Build]:
    """Torch's AdamW; ``capturable``: as a CUDA graph can take it."""
    adamw = partial(torch.optim.AdamW, params, lr=1e-3, capturable=capturable)
    return {BASELINE: partial(adamw, fused=True), "torch AdamW foreach": partial(adamw, foreach=True)}


def vector_builders(params: list[nn.Parameter], backend: str = "native") -> dict[str, Build]:
    """The rules that take tensors of any shape."""
    # Not before it is needed: torch's optimizers can be timed where ours could not be built.
    from sage_ext import optimizers

    return {
        name: partial(build, params, backend=backend, **form)
        for name, build, form in (
            ("FusedSAGE", optimizers.FusedSAGE, {}),
            ("FusedLion", optimizers.FusedLion, {}),
            ("FusedSignSGD", optimizers.FusedSignSGD, {}),
            ("FusedALIAS", optimizers.FusedALIAS, {}),
            ("FusedALIAS (lower bound)", optimizers.FusedALIAS, {"gap": "lower_bound"}),
            ("FusedALIAS (base)", optimizers.FusedALIAS, {"memory_efficient": False}),
            ("FusedALIASAdam", optimizers.FusedALIASAdam, {}),
            ("FusedAdamW", optimizers.FusedAdamW, {}),
        )
    }


def matrix_builders(params: list[nn.Parameter], backend: str = "native") -> dict[str, Build]:
    """The rules that take matrices only."""
    from sage_ext import optimizers

    sinkgd = partial(optimizers.FusedSinkGD, params, backend=backend)
    return {
        "FusedSCALE (matrices)": partial(optimizers.FusedSCALE, params, backend=backend),
        SINKGD: partial(sinkgd, iterations=ITERATIONS),
        ONE_ITERATION: partial(sinkgd, iterations=1),
    }


def hybrid_builders(named: Named, backend: str = "native") -> dict[str, Build]:
    """The hybrids, by preset."""
    from sage_ext import optimizers

    is_tied = all("lm_head" not in name for name, _ in named)
    names: dict[str, Any] = {"embeddings": ["embed_tokens.weight"]}
    if not is_tied:
        names["lm_head"] = ["lm_head.weight"]
    # A tied weight counts as the head, which has momentum in SCALE and AdamW in ALIAS: the dearer of the two
    # choices.
    as_head = {**names, "lm_head": ["embed_tokens.weight"], "tied": "lm_head"} if is_tied else names
    return {
        f"{label} hybrid": partial(
            optimizers.FusedHybrid,
            named,
            preset,
            backend=backend,
            **(as_head if preset in ("scale", "alias") else names),
        )
        for preset, label in HYBRIDS.items()
    }


def builders(named: Named, backend: str = "native") -> dict[str, Build]:
    """Every rule and every hybrid of ours, on a Llama's parameters, the most telling first."""
    params = [param for _, param in named]
    embedding = [param for name, param in named if "embed" in name]
    rules = vector_builders(params, backend)
    return {
        **hybrid_builders(named, backend),
        **rules,
        **matrix_builders(matrices_of(named), backend),
        EMBEDDING: vector_builders(embedding, backend)["FusedSAGE"],
    }
