"""What ``test_plan_memory.py`` runs with ``counted_memory.c`` preloaded: steps, counted, beside the plan.

python plan_cases.py models|kernels|pieces    prints a list of JSON objects, one a case
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import sage_ext
from sage_ext import optimizers
from sage_ext.optimizers.presets import PRESETS

counted = ctypes.CDLL(None)
for name in ("counted_live", "counted_most"):
    getattr(counted, name).restype = ctypes.c_longlong

THREADS = 3
VOCABULARY = 6000
PROCESSES = 8
TORCH = "torch"
Make = Callable[[nn.Module], torch.optim.Optimizer]
Shape = tuple[int, ...]


def llama(dtype: torch.dtype) -> nn.Module:
    """A real Llama of 6 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads)).to(dtype)


def backward(model: nn.Module) -> None:
    tokens = torch.randint(0, VOCABULARY, (1, 16))
    model(tokens, labels=tokens).loss.backward()


def options_of(preset: str) -> dict[str, Any]:
    return {"tied": "lm_head"} if preset == "scale" else {}


def optimizer_of(preset: str, model: nn.Module) -> torch.optim.Optimizer:
    if preset == TORCH:
        return torch.optim.AdamW(model.parameters(), fused=True)
    if preset in PRESETS:
        return sage_ext.FusedHybrid(model, preset, backend="native", **options_of(preset))
    return getattr(optimizers, preset)(model.named_parameters(), backend="native")


def live() -> int:
    gc.collect()
    return counted.counted_live()


def most_of(run: Callable[[], object]) -> int:
    """Return the most that is held at a time while ``run`` runs."""
    gc.collect()
    counted.counted_reset()
    run()
    return counted.counted_most()


def models() -> list[dict[str, Any]]:
    """A whole training step of a real model: what is held before it, what its optimizer adds."""
    found = []
    cases = [(preset, torch.float32) for preset in ("sage", "sinkgd", "scale", "alias", TORCH)]
    cases += [(preset, torch.bfloat16) for preset in ("sage", "lion", "FusedSAGE")]
    for dtype in (torch.float32, torch.bfloat16):  # what libraries make once
        model = llama(dtype)
        backward(model)
        optimizer_of("sage", model).step()
        del model
    for preset, dtype in cases:
        empty = live()
        model = llama(dtype)
        backward(model)
        before = live()
        optimizer = optimizer_of(preset, model)
        most = most_of(optimizer.step)
        with torch.device("meta"):
            twin = llama(dtype)
        name = "sage" if preset == TORCH else preset
        plan = sage_ext.plan(twin, name, hardware="cpu", threads=THREADS, **options_of(name))
        budget = plan.adamw if preset == TORCH else plan.chosen
        found.append(
            {
                "case": f"{preset} {dtype}",
                "measured": {"peak": most - empty, "step": most - before},
                "planned": {"peak": budget.peak_bytes, "step": budget.state_bytes + budget.transient_bytes},
            }
        )
        del model, optimizer
    return found


def tensors(shapes: Sequence[Shape], dtype: torch.dtype) -> nn.Module:
    """A module of parameters with gradients."""
    module = nn.Module()
    for index, shape in enumerate(shapes):
        param = nn.Parameter(torch.full(shape, 0.5, dtype=dtype))
        param.grad = torch.full(shape, 0.25, dtype=dtype)
        module.register_parameter(f"w{index}", param)
    return module


KERNELS: list[tuple[str, list[Shape], int, dict[str, Any]]] = [
    ("FusedSinkGD", [(512, 1024)] * 24, 1, {}),  # a matrix a thread
    ("FusedSinkGD", [(512, 1024)] * 24, THREADS, {}),
    ("FusedSinkGD", [(2048, 1536)] * 3, THREADS, {}),  # all threads on each, in waves
    ("FusedSinkGD", [(8, 512, 640)], 1, {}),
    ("FusedSAGE", [(4096, 512), (3000, 37), (9, 9000), (100_000,)], THREADS, {}),
    ("FusedSCALE", [(4096, 512), (3000, 37), (7, 64, 300)], THREADS, {"dim": 0}),
]


def kernels() -> list[dict[str, Any]]:
    """What the kernels alone allocate in a step whose states are there."""
    found = []
    for preset, shapes, threads, options in [KERNELS[0], *KERNELS]:
        torch.set_num_threads(threads)
        model = tensors(shapes, torch.bfloat16)
        optimizer = getattr(optimizers, preset)(model.named_parameters(), backend="native", **options)
        optimizer.step()
        optimizer.step()
        before = live()
        transient = most_of(optimizer.step) - before
        plan = sage_ext.plan(model, optimizer, hardware="cpu")
        found.append(
            {
                "case": f"{preset} {shapes} on {threads} threads",
                "threads": threads,
                "a_thread_each": len(shapes) > 20,
                "measured": {"transient": transient},
                "planned": {"transient": plan.chosen.transient_bytes},
            }
        )
    return found[1:]


PIECES: list[tuple[str, list[Shape], dict[str, Any]]] = [
    ("FusedSinkGD", [(8 * 1024, 2048)] * 2, {}),
    ("FusedSAGE", [(8 * 2048, 1024), (8 * 40_000,)], {}),
    ("FusedSCALE", [(8 * 2048, 1024)], {"dim": 0}),
    ("FusedSCALE", [(8 * 64, 32)], {"dim": 1}),
    ("FusedALIAS", [(8 * 500, 1024), (8 * 700, 512)], {}),
    ("FusedALIASAdam", [(8 * 500, 1024), (8 * 700, 512)], {}),
]


def pieces() -> list[dict[str, Any]]:
    """Pieces of one process of several, whose messages reach nobody but are counted on the way."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    sent: list[list[Any]] = []
    all_reduce = dist.all_reduce
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    all_gather = getattr(dist, name)

    def reduce(tensor: torch.Tensor, *args: Any, **named: Any) -> Any:
        sent.append(["sum", tensor.nbytes])
        return all_reduce(tensor, *args, **named)

    def gather(result: torch.Tensor, tensor: torch.Tensor, *args: Any, **named: Any) -> Any:
        sent.append(["gather", tensor.nbytes])
        return all_gather(result, tensor, *args, **named)

    dist.all_reduce = reduce
    setattr(dist, name, gather)

    def case(whole: nn.Module, preset: str, options: dict[str, Any]) -> dict[str, Any]:
        arguments: dict[str, Any] = {"hardware": "cpu", "threads": THREADS, **options}
        planned = sage_ext.plan(whole, preset, devices=PROCESSES, **arguments).chosen
        model = fully_shard(whole, mesh=mesh)
        for param in model.parameters():
            param.grad = torch.full_like(param, 0.25)
        if preset in PRESETS:
            optimizer: Any = sage_ext.FusedHybrid(model, preset, backend="native", **options)
        else:
            optimizer = getattr(optimizers, preset)(model.named_parameters(), backend="native", **options)
        optimizer.step()
        optimizer.step()
        before = live()
        sent.clear()
        transient = most_of(optimizer.step) - before
        as_it_lies = sage_ext.plan(model, preset, **arguments).chosen
        return {
            "case": preset,
            "tensors": len(list(model.parameters())),
            "measured": {
                "transient": transient,
                "state": optimizer.describe().state_bytes,
                "messages": len(sent) - 1,  # but for the agreement
                "sent": sum(nbytes for _, nbytes in sent[1:]),
            },
            **{
                key: {
                    "transient": budget.transient_bytes,
                    "state": budget.state_bytes,
                    "messages": budget.messages,
                    "sent": budget.message_bytes,
                }
                for key, budget in (("planned", planned), ("as_it_lies", as_it_lies))
            },
        }

    presets = ("sage", "sage", "alias")  # the first for what libraries make once
    found = [case(llama(torch.float32), preset, options_of(preset)) for preset in presets][1:]
    return [*found, *(case(tensors(shapes, torch.bfloat16), name, forms) for name, shapes, forms in PIECES)]


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    print(json.dumps({"models": models, "kernels": kernels, "pieces": pieces}[sys.argv[1]]()))
