"""A model of cost: messages, bytes and predicted time of an optimizer step for Llamas on 8 to 4,096 GPUs.

    python benchmarks/scaling_model.py [--json FILE] [--picture FILE]

The messages and their bytes are those of ``sage_ext.planning``, which the tests compare with what is counted
on gloo. The times are predictions, from published bandwidths and latencies: nothing here was timed.

- What a step moves in a GPU's memory is what the fused kernels move (``sage_ext.planning.traffic``), at the
  memory's bandwidth: bf16 weights, gradients and momenta, AdamW's moments in fp32.
- A message takes what NCCL's own model of cost says of the better of its ring and its tree, in the better of
  its protocols LL and Simple; nothing overlaps. The links are taken to reach their bandwidth.
- Launches of kernels and the host's time are left out, as are forward and backward pass, whose own messages
  are the same for all optimizers.

Layouts: ``fsdp``: rows cut over all GPUs. ``hsdp``: over as few, 8 or 8 times as many and so on, as can hold
the model with AdamW in four fifths of their memory, and repeated beyond. ``tp``: tensor parallelism over the
8 GPUs of a node, rows cut over the nodes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from contenders import LLAMAS, Llama

from sage_ext.optimizers.hybrid import RULES
from sage_ext.optimizers.presets import PRESETS
from sage_ext.planning.exchanges import Spread, messages, spread
from sage_ext.planning.hardware import H100, Cluster, lines_of, on_the_wire, seconds
from sage_ext.planning.traffic import moved_of_piece, streams

COUNTS = (8, 64, 512, 4096)
LAYOUTS = ("fsdp", "hsdp", "tp")
MODELS = {
    "1.3B": LLAMAS["1.3B"],
    "7B": LLAMAS["7B"],
    "13B": Llama(vocabulary=32000, hidden=5120, ffn=13824, layers=40, tied=False),
    "70B": Llama(vocabulary=32000, hidden=8192, ffn=28672, layers=80, tied=False, kv=1024),
    "405B": Llama(vocabulary=128256, hidden=16384, ffn=53248, layers=126, tied=False, kv=1024),
}
SINGLE = ("adamw", "lion", "sign_sgd", "sage", "alias", "alias_adam")
"""Rules that take tensors of any shape, and so a whole model."""
CONTENDERS = (*SINGLE, *(f"{preset} hybrid" for preset in PRESETS))

Group = tuple[str, Mapping[str, Any], list[str]]
"""Rule, hyperparameters, names of its parameters."""


def groups_of(contender: str, shapes: Mapping[str, Sequence[int]]) -> list[Group]:
    """Return which rule each tensor gets, as ``FusedHybrid`` has it from its presets."""
    if contender in SINGLE:
        return [(contender, RULES[contender].defaults, list(shapes))]
    preset = PRESETS[contender.removesuffix(" hybrid")]
    roles: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        roles.setdefault(_role(name, shape), []).append(name)
    found: dict[Any, Group] = {}
    for role, names in roles.items():
        rule = preset.rule_for(role)
        changes = {**preset.hyperparameters.get(rule, {}), **preset.roles.get(role, {})}
        if rule == "scale":
            changes["dim"] = preset.scale_dim(role, output_dim=1 if role == "embedding" else 0)
        key = rule if rule in preset.joint else role
        known = found.get(key, (rule, {**RULES[rule].defaults, **changes}, []))
        found[key] = (*known[:2], [*known[2], *names])
    return list(found.values())


def _role(name: str, shape: Sequence[int]) -> str:
    if len(shape) < 2:
        return "vector"
    return "embedding" if "embed" in name else "lm_head" if "lm_head" in name else "matrix"


def mesh_of(layout: str, count: int, shards: int, cluster: Cluster = H100) -> tuple[int, ...]:
    """Return how many GPUs there are along each dimension of the mesh, neighbours along the last one."""
    if layout == "fsdp":
        return (count,)
    return (count // shards, shards) if layout == "hsdp" else (count // cluster.node, cluster.node)


def cuts_of(layout: str, name: str, shape: Sequence[int]) -> tuple[int | None, ...]:
    """Return which dimension of a tensor each mesh dimension cuts."""
    if layout == "fsdp":
        return (0,)
    if layout == "hsdp":
        return (None, 0)
    if len(shape) < 2:
        return (0, None)
    # Row-wise parallel are those that bring the sum back.
    return (0, 1) if "o_proj" in name or "down_proj" in name else (0, 0)


def width(rule: str, key: str) -> float:
    """Return the bytes of an element: bf16, and Adam's moments in fp32."""
    return 4.0 if key.startswith("exp_avg") and "adam" in rule else 2.0


def memory(rule: str, group: Mapping[str, Any], params: Sequence[Spread]) -> tuple[float, float]:
    """Return the bytes that a step of a GPU's pieces moves in its memory, and those of their state."""
    moved = held = 0.0
    for param in params:
        size = prod(param.local)
        moved += size * moved_of_piece(rule, group, param, partial(width, rule))
        for key in streams(rule, group):
            if key == "signs":  # of cut tensors a byte
                held += size * (1 if any(dim is not None for dim in param.cuts) else 0.25)
            elif key not in ("param", "grad"):
                held += size * width(rule, key)
    return moved, held


def shards_of(model: Llama, cluster: Cluster = H100) -> int:
    """Return over how many GPUs HSDP cuts a model: bf16 weights and gradients, AdamW's moments in fp32."""
    shards = cluster.node
    numbers = sum(prod(shape) for shape in model.shapes().values())
    while (2 + 2 + 8) * numbers / shards > 0.8 * cluster.memory_bytes:
        shards *= cluster.node
    return shards


def step(
    model: Llama, contender: str, layout: str, count: int, cluster: Cluster = H100
) -> dict[str, Any] | None:
    """Return the cost of a step; None where the layout is another's with so few GPUs."""
    shards = shards_of(model, cluster)
    if layout == "hsdp" and count <= shards:
        return None
    shapes = model.shapes()
    mesh = mesh_of(layout, count, shards, cluster)
    lines = lines_of(mesh, cluster)
    groups = [
        (rule, group, [spread(shapes[name], mesh, cuts_of(layout, name, shapes[name])) for name in names])
        for rule, group, names in groups_of(contender, shapes)
    ]
    sent = messages(groups)
    numbers = [memory(*group) for group in groups]
    local = sum(prod(param.local) for _, _, params in groups for param in params)
    held = 4 * local + sum(state for _, state in numbers)
    return {
        "messages": len(sent),
        "bytes": sum(message.nbytes for message in sent),
        "bytes_on_the_wire": round(sum(on_the_wire(m, lines[m.mesh_dim]) for m in sent)),
        "exchange_us": round(1e6 * sum(seconds(m, lines[m.mesh_dim], cluster) for m in sent), 1),
        "memory_us": round(1e6 * sum(moved for moved, _ in numbers) / cluster.memory, 1),
        "fits": held <= cluster.memory_bytes,
    }


def rows(cluster: Cluster = H100) -> list[dict[str, Any]]:
    """Return the cost of every model, number of GPUs, layout and contender."""
    found = []
    for name, model in MODELS.items():
        for count in COUNTS:
            for layout in LAYOUTS:
                for contender in CONTENDERS:
                    cost = step(model, contender, layout, count, cluster)
                    if cost is not None:
                        place = {"model": name, "gpus": count, "layout": layout, "optimizer": contender}
                        found.append({**place, **cost})
    return found


def of_sinkgd(model: Llama) -> int:
    """Return the bytes that an iteration of SinkGD exchanges where rows are cut: column sums, in float32."""
    shapes = [shape for name, shape in model.shapes().items() if _role(name, shape) == "matrix"]
    cut = [spread(shape, (2,), (0,)) for shape in shapes]
    settings = RULES["sinkgd"].defaults
    once, twice = (
        sum(m.nbytes for m in messages([("sinkgd", {**settings, "iterations": n}, cut)])) for n in (1, 2)
    )
    return twice - once


def table(found: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"{'model':6}{'GPUs':>6}  {'layout':7}{'optimizer':16}{'messages':>9}{'MB':>9}{'sent MB':>9}"
        f"{'exchange ms':>13}{'memory ms':>11}{'step ms':>9}"
    ]
    for row in found:
        total = row["exchange_us"] + row["memory_us"]
        lines.append(
            f"{row['model']:6}{row['gpus']:>6}  {row['layout']:7}{row['optimizer']:16}{row['messages']:>9}"
            f"{row['bytes'] / 1e6:>9.2f}{row['bytes_on_the_wire'] / 1e6:>9.2f}"
            f"{row['exchange_us'] / 1e3:>13.3f}{row['memory_us'] / 1e3:>11.3f}{total / 1e3:>9.3f}"
            f"{'' if row['fits'] else '  (does not fit)'}"
        )
    return "\n".join(lines)


def draw(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Draw the time of a step against the number of GPUs, rows cut over all of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    styles = {
        "adamw": ("#000000", "o"),
        "sage hybrid": ("#0072B2", "s"),
        "sinkgd hybrid": ("#E69F00", "P"),
        "scale hybrid": ("#009E73", "D"),
        "alias hybrid": ("#56B4E9", "X"),
    }
    figure, places = pyplot.subplots(1, len(MODELS), figsize=(15, 4.2), layout="constrained", sharey=True)
    for axes, model in zip(places, MODELS, strict=True):
        for contender, (color, marker) in styles.items():
            points = [
                (row["gpus"], (row["exchange_us"] + row["memory_us"]) / 1e3)
                for row in found
                if (row["model"], row["layout"], row["optimizer"]) == (model, "fsdp", contender)
                and row["fits"]
            ]
            line = ":" if contender == "sinkgd hybrid" else "-"  # which lies on another
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle=line, label=contender)
        axes.set(xscale="log", yscale="log", title=f"Llama {model}", xlabel="GPUs")
        axes.set_xticks(COUNTS, [f"{count:,}" for count in COUNTS])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(alpha=0.3)
    places[0].set_ylabel("optimizer step (ms, predicted)")
    places[0].legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    parser.add_argument("--picture", type=Path, help="draw the time of a step into this file")
    args = parser.parse_args()
    found = rows()
    print(f"{H100.name}. Predicted, not timed.\n\n{table(found)}")
    print(f"\nSinkGD, Llama 7B, rows cut: {of_sinkgd(MODELS['7B']) / 1e6:.2f} MB an iteration.")
    if args.json is not None:
        shards = {name: shards_of(model) for name, model in MODELS.items()}
        numbers = sum(prod(shape) for shape in MODELS["7B"].shapes().values())
        facts = {
            "cluster": H100._asdict(),
            "hsdp_shards": shards,
            "sinkgd_7b": of_sinkgd(MODELS["7B"]),
            # Weights are gathered forwards and backwards and gradients scattered, all in bf16.
            "fsdp_bytes_7b": 3 * 2 * numbers,
        }
        lines = ",\n".join("  " + json.dumps(row) for row in found)
        head = json.dumps(facts, indent=1)[:-2]
        args.json.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n')
    if args.picture is not None:
        draw(args.picture, found)


if __name__ == "__main__":
    main()
