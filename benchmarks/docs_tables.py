"""The tables and sentences of README.md and docs/ about memory, time on a CPU and training.

Each function returns Markdown, made from a file in benchmarks/results. update_docs.py says where it goes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contenders import EMBEDDING, HYBRIDS, ITERATIONS, ONE_ITERATION, SINKGD
from docs_markdown import prose, table

from sage_ext.optimizers.presets import PRESETS

RESULTS = Path(__file__).resolve().parent / "results"
GIB, MIB = 1 << 30, 1 << 20

ADAMW, HYBRID, LITTLE = "torch AdamW fused", "SAGE hybrid", "SinkGD-SCALE hybrid"
# The README's rows: how it calls them, and how the benchmarks do.
IN_SHORT = {
    "`torch.optim.AdamW(fused=True)`": ADAMW,
    '`FusedHybrid(model, "sage")`': HYBRID,
    '`FusedHybrid(model, "sinkgd-scale")`': LITTLE,
    '`FusedHybrid(model, "scale")`': "SCALE hybrid",
    '`FusedHybrid(model, "stateless")`': "Stateless hybrid",
    '`FusedHybrid(model, "alias")`': "ALIAS hybrid",
    "`FusedLion`": "FusedLion",
    "`FusedSignSGD`": "FusedSignSGD",
    "`FusedAdamW`": "FusedAdamW",
}
# benchmarks/step_time.py on two cores of other processors.
OTHER_MACHINES = {"Zen 3": "step_time.avx2.json", "Xeon": "step_time.xeon.json"}
# How a row is called that was measured when the preset had its papers' iterations of SinkGD, and not yet one.
OF_PAPER = f", {ITERATIONS} iterations"
# A row of benchmarks/stable_abi.py.
STEP = "optimizer.step()"

# Perplexities closer than this share are not called different: one seed tells no more.
NEAR = 0.02


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def size(count: int) -> str:
    """Gibibytes; where these would round to nothing, bytes."""
    return "0" if count == 0 else f"{count / GIB:.2f}" if count >= 0.005 * GIB else f"{count} B"


# ------------------------------------------------------------------------------------------------ costs


def ratios(file: str) -> dict[tuple[str, str], float]:
    """Times of a step as a multiple of torch's fused AdamW's, by tensors and optimizer."""
    return {(row["case"], row["optimizer"]): row["ratio"] for row in load(file)["rows"]}


def spread(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def costs() -> str:
    """The README's table: state and time of a step, side by side."""
    memory, times = load("memory.json"), load("step_time.json")
    own = {row["dtype"]: row for row in memory["rows"] if not row["tied"]}
    found = {(row["case"], row["optimizer"]): row for row in times["rows"]}

    def step(name: str, dtype: str) -> str:
        row = found[f"llama 53M {dtype}", name]
        return f"{row['median_ms']:.1f} ms ({row['ratio']:.2f})"

    rows = [
        [label, *(size(own[d]["state_bytes"][name]) for d in own), *(step(name, d) for d in own)]
        for label, name in IN_SHORT.items()
    ]
    columns = ["optimizer", *(f"state in {d}, GiB" for d in own), *(f"step in {d}" for d in own)]
    state, setting = own["bf16"]["state_bytes"], times["setting"]
    elsewhere = [ratios(file) for file in OTHER_MACHINES.values()]
    other = [
        spread([each[f"llama 53M {dtype}", "FusedLion"] for each in elsewhere]) for dtype in ("fp32", "bf16")
    ]
    text = prose(
        f"For a Llama with {own['bf16']['parameters'] / 1e9:.2f} billion parameters in bf16, torch's AdamW",
        f"keeps {size(state[ADAMW])} GiB of state (moments in bf16), the preset `sinkgd-scale` one part in",
        f"{state[ADAMW] / state[LITTLE]:.0f}, `sage` one in {state[ADAMW] / state[HYBRID]:.0f}. Step times",
        f"are of a Llama with 53 million parameters on {setting['threads']} cores of an",
        f"{setting['processor']}, in brackets the ratio to torch's fused AdamW: they change with the machine",
        "([others](docs/measurements.md#on-other-machines) give Lion",
        f"{other[0]} in fp32, {other[1]} in bf16) and with its load. All tables, and how to read them:",
        "[measurements](docs/measurements.md).",
    )
    return f"{text}\n\n{table(columns, rows)}"


def memory() -> str:
    found = load("memory.json")
    config, rows = found["config"], found["rows"]
    heads = [
        f"{row['parameters'] / 1e9:.2f} B {row['dtype']}, {'tied' if row['tied'] else 'own'} head"
        for row in rows
    ]
    names = rows[0]["state_bytes"]
    text = prose(
        f"Of a Llama with {config['num_hidden_layers']} layers of {config['hidden_size']} and a vocabulary",
        f"of {found['vocabulary']:,}; in GiB unless it says bytes (B). Weights, gradients and moments have",
        "the dtype of the column.",
    )
    lines = ([name, *(size(row["state_bytes"][name]) for row in rows)] for name in names)
    return f"{text}\n\n{table(['optimizer', *heads], lines)}"


def step_time() -> str:
    found = load("step_time.json")
    setting = found["setting"]
    formats = {
        "ms": "{median_ms:.1f}",
        "x AdamW": "{ratio:.2f}",
        "bytes a parameter": "{bytes_per_param:.1f}",
        "GB/s": "{gbytes_per_s:.1f}",
        "read GB/s": "{read_gbytes_per_s:.1f}",
        "share of bandwidth": "{share_of_bandwidth:.2f}",
    }
    rows = [
        [row["case"], row["optimizer"], *(cell.format(**row) for cell in formats.values())]
        for row in found["rows"]
    ]
    caches = "evicted before each step" if setting["caches_evicted"] else "as the step before left them"
    text = prose(
        f"On {setting['threads']} cores of an {setting['processor']} ({setting['cpu_capability']}, torch",
        f"{setting['torch']}); medians of {setting['rounds']} steps, caches {caches}.",
    )
    return f"{text}\n\n{table(['tensors', 'optimizer', *formats], rows, left=2)}"


def other_machines() -> str:
    """The ratios of README's rows on other processors, and there of SinkGD's presets as in their papers."""
    files = {"Zen 4": "step_time.json", **OTHER_MACHINES}
    machines = {cpu: ratios(file) for cpu, file in files.items()}
    cases = ("llama 53M fp32", "llama 53M bf16")
    rows = []
    for label, name in IN_SHORT.items():
        measured = {
            cpu: name if (cases[0], name) in found else name + OF_PAPER for cpu, found in machines.items()
        }
        cells = [f"{found[case, measured[cpu]]:.2f}" for case in cases for cpu, found in machines.items()]
        others = [f", {cpu}: {row[len(name) + 2 :]}" for cpu, row in measured.items() if row != name]
        rows.append([label + "".join(others), *cells])
    shares = {
        case: [
            row["share_of_bandwidth"]
            for row in load(OTHER_MACHINES["Zen 3"])["rows"]
            if row["case"] == case and row["optimizer"] in IN_SHORT.values()
        ]
        for case in cases
    }
    text = prose(
        f"With AVX2 these steps go at {spread(shares[cases[0]])} of what `torch.add` reaches there in fp32,",
        f"and at {spread(shares[cases[1]])} in bf16: to widen and to round 16-bit numbers takes the",
        "processor longer than to fetch them, in torch's AdamW as well.",
    )
    found = table(["optimizer", *(f"{case[6:]}, {cpu}" for case in cases for cpu in machines)], rows)
    return f"{found}\n\n{text}"


def hybrid_profile() -> str:
    """What the SAGE hybrid's step is made of, by parts that step_time.py takes the time of."""
    rows = load("step_time.json")["rows"]
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows if "llama" in row["case"]):
        found = {row["optimizer"]: row for row in rows if row["case"] == case}
        one, every = found[ONE_ITERATION], found[SINKGD]
        more_ms = every["median_ms"] - one["median_ms"]
        # GB/s times ms is MB.
        more_mb = every["gbytes_per_s"] * every["median_ms"] - one["gbytes_per_s"] * one["median_ms"]
        times = [found[name]["median_ms"] for name in (ADAMW, HYBRID, EMBEDDING, ONE_ITERATION)]
        times.append(more_ms / (ITERATIONS - 1))
        lines.append([case, *(f"{ms:.1f}" for ms in times), f"{more_mb / more_ms:.1f}"])
    parts = ["embedding", "SinkGD, its iteration and the update", "each further iteration"]
    return table(["tensors", "torch AdamW", "SAGE hybrid", *parts, "GB/s in it"], lines)


def reading() -> str:
    """What the table of step times says in bf16, on one large matrix, and where shares exceed 1."""
    rows = {(row["case"], row["optimizer"]): row for row in load("step_time.json")["rows"]}
    narrow, large = "llama 53M bf16", "8192 x 8192 fp32"
    hybrids = sorted(rows[narrow, f"{label} hybrid"]["ratio"] for label in HYBRIDS.values())
    sinkgd, by_row, by_column = (
        rows[large, name]["ratio"] for name in ("FusedSinkGD", "FusedSCALE", "FusedSCALE (columns)")
    )
    most = max(row["share_of_bandwidth"] for row in rows.values())
    times = prose(
        f"In bf16 torch's AdamW reaches {rows[narrow, ADAMW]['share_of_bandwidth']:.2f} of the bandwidth,",
        f"and the presets take {hybrids[0]:.2f} to {hybrids[-1]:.2f} of its time. On one matrix of",
        f"8192 x 8192, which fits no cache, SinkGD takes {sinkgd:.2f} of AdamW's time, with the five",
        f"iterations that it has by itself, SCALE {by_row:.2f} by rows and {by_column:.2f} by columns.",
    )
    shares = prose(
        f"**Shares above 1** (up to {most:.2f}) have two causes. The bandwidth is what `torch.add` reaches,",
        "which reads two arrays and writes one of them, and not what the memory could do: a rule that reads",
        "more arrays, as AdamW's, or several places of each, may reach more. And every pass counts, also one",
        "that a cache serves: SCALE by rows counts two over the gradient, of which the second finds its row",
        "in the cache, and each of SinkGD's begins where the one before it ended.",
    )
    return f"{times}\n\n{shares}"


# ------------------------------------------------------------------------------------------------ training


def perplexity(result: dict[str, Any]) -> float:
    """Infinite where the run diverged: JSON has null there."""
    value = result["validation_perplexity"]
    return math.inf if value is None or math.isnan(value) else value


def baseline(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """AdamW at its best, of the runs that there are."""
    return min((r for r in results if r["optimizer"].startswith("adamw")), key=perplexity)


def has_one_rate(result: dict[str, Any]) -> bool:
    """Whether embedding, head and matrices shared one learning rate."""
    return sum("lr" in name for name in result["optimizer_settings"]) <= 1


def verdict(results: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence for each other contender beside AdamW at its best, from the numbers alone.

    Against an AdamW that has one learning rate for everything nobody is called ahead.
    """
    base = baseline(results)
    name, theirs = f"`{base['label']}`", perplexity(base)
    lines = []
    for result in sorted((r for r in results if r is not base), key=perplexity):
        label, ours = f"`{result['label']}`", perplexity(result)
        if not math.isfinite(ours):
            lines.append(f"{label} diverged.")
            continue
        share = result["state_bytes"] / base["state_bytes"]
        text = f"{label}, with {share:.1%} of {name}'s state, " if share else f"{label}, without state, "
        if has_one_rate(base):
            lines.append(f"{text}ended at perplexity {ours:.1f}, {name} at {theirs:.1f}.")
            continue
        change = ours / theirs - 1
        how = "level with" if abs(change) < NEAR else "ahead of" if change < 0 else "behind"
        lines.append(f"{text}is {how} {name}: perplexity {ours:.1f} against {theirs:.1f}.")
    return lines


def caution(results: Sequence[dict[str, Any]]) -> str:
    """What must be said beside the verdict."""
    text = "One seed and a small model: this shows that they train. It ranks nobody."
    if has_one_rate(base := baseline(results)):
        text += (
            f" `{base['label']}` had one learning rate for all tensors here, and does better when the "
            "embedding has a rate of its own."
        )
    return text


def tokens_a_step(settings: dict[str, Any]) -> int:
    return settings["batch_size"] * settings["seq_len"] * settings["accumulate"]


def shown(value: Any) -> str:
    return "/".join(map(shown, value)) if isinstance(value, (list, tuple)) else str(value)


def training() -> str:
    found = load("demo.json")
    settings, machine, results = found["settings"], found["machine"], found["results"]
    setting = prose(
        f"{results[0]['parameters'] / 1e6:.1f} million parameters, {settings['steps']} steps of",
        f"{tokens_a_step(settings):,} tokens, {settings['warmup']} of them warm-up; text:",
        f"{found['corpus']['source']}; seed {settings['seed']}, mixed precision: {settings['amp']};",
        f"{machine['cpu']}, {settings['threads']} threads, torch {machine['torch']}.",
    )
    rows = [
        [
            f"`{r['label']}`",
            r["about"],
            f"{perplexity(r):.1f}" if math.isfinite(perplexity(r)) else "diverged",
            f"{r['state_bytes'] / MIB:.2f}",
            f"{r['optimizer_ms']:.2f}",
            f"{r['tokens_per_second']:,.0f}",
        ]
        for r in results
    ]
    columns = ["optimizer", "what it is", "validation perplexity", "state (MiB)", "step (ms)", "tokens/s"]
    used = []
    for r in results:
        pairs = ", ".join(f"{name} {shown(value)}" for name, value in r["optimizer_settings"].items())
        used.append(f"- `{r['label']}`: {pairs}")
    sentences = [f"- {line}" for line in verdict(results)]
    parts = [setting, table(columns, rows, left=2), "\n".join(sentences), prose(caution(results))]
    return "\n\n".join([*parts, "Settings:", "\n".join(used)])


# ------------------------------------------------------------------------------------------------ 16 bits


def second_moment() -> str:
    """What AdamW's state does in 16 bits, one effect at a time."""
    cases = {"small": "400 gradients of 1e-3", "shrinking": "500 of 1, then 3,000 of 0.1"}
    rows = [
        (
            row["weights"],
            row["state"],
            cases[row["case"]],
            f"{row['exp_avg_sq_over_exact']:.2f}",
            f"{row['step_over_lr']:.2f}",
        )
        for row in load("low_precision.json")["second_moment"]
    ]
    columns = ("weights", "state", "gradients", "`exp_avg_sq`, over the exact one", "step, over `lr`")
    return table(columns, rows, left=3)


def low_precision_in_short() -> str:
    """What low-precision weights and state cost, in the README's words."""
    found = load("low_precision.json")
    losses = {(row["rule"], row["weights"], row["state"]): row for row in found["losses"]}
    narrow, wide = losses["Lion", "bfloat16", "default"], losses["Lion", "float32", "float32"]
    return prose(
        "**Low precision.** A step smaller than half the last digit of a bf16 weight is lost:",
        f"{100 * narrow['never_moved']:.0f} % of a small model's bf16 weights never moved under Lion's "
        "default rate (loss",
        f"{narrow['loss']:.2f}, {wide['loss']:.2f} with fp32 weights). What low-precision state costs:",
        "[numerics](docs/numerics.md).",
    )


def low_precision_to_choose() -> str:
    """What bf16 weights mean for the choice of an optimizer, in docs/choose.md."""
    rows = load("low_precision.json")["losses"]
    found = {(row["rule"], row["state"]): row for row in rows if row["weights"] == "bfloat16"}
    lion, hybrid = (100 * found[rule, "default"]["never_moved"] for rule in ("Lion", "SAGE hybrid"))
    return prose(
        "**Are your weights bf16?** A step of a small rate is lost in their rounding. Of a small model's",
        f"bf16 weights {lion:.0f} % never moved under Lion's default rate, and {hybrid:.0f} % under the",
        "SAGE hybrid ([low precision](numerics.md#measured)).",
    )


def low_precision_losses() -> str:
    """A small model in each dtype: loss and weights that never moved."""
    found = load("low_precision.json")
    setting = found["setting"]
    intro = prose(
        f"A model of two small layers between an embedding and a head, {setting['steps']} steps, mean of "
        f"{setting['seeds']} seeds: the loss of the last fifty steps, and which share of the weights never "
        "changed (`python benchmarks/low_precision.py`)."
    )
    rows = [
        (
            row["rule"],
            row["weights"],
            row["state"],
            "not finite" if row["loss"] is None else f"{row['loss']:.3f}",
            f"{100 * row['never_moved']:.0f} %",
        )
        for row in found["losses"]
    ]
    return f"{intro}\n\n{table(('optimizer', 'weights', 'state', 'loss', 'never moved'), rows, left=3)}"


# ------------------------------------------------------------------------------------------------ LoRA


def lora() -> str:
    """A small fine-tuning: the loss of each choice of rules for A and B, by rank."""
    found = load("lora.json")
    setting, rows = found["setting"], found["rows"]
    ranks = sorted({row["rank"] for row in rows})
    losses = {(row["row"], row["rank"]): row for row in rows}
    names = list(dict.fromkeys(row["row"] for row in rows))
    base, both = names[:2]
    as_preset = 'SinkGD on both, as in "sage"'

    def gaps(name: str) -> str:
        found = [100 * (losses[name, rank]["loss"] / losses[base, rank]["loss"] - 1) for rank in ranks]
        return f"between {min(found):+.1f} % and {max(found):+.1f} %"

    intro = prose(
        f"Measured in a toy: a model of two linear layers of width {setting['width']} learns another made-up",
        f"language through LoRAs of them, in {setting['steps']} steps; the loss of the last fifty, mean of",
        f"{setting['seeds']} seeds, each row at the best of its own learning rates",
        "(`python benchmarks/lora.py`).",
    )
    cells = [
        [name, *(f"{losses[name, rank]['loss']:.3f} ({losses[name, rank]['lr']:.3g})" for rank in ranks)]
        for name in names
    ]
    columns = ["rule of A and B", *(f"rank {rank}: loss (lr)" for rank in ranks)]
    default = PRESETS["sage"].hyperparameters["sinkgd"]["lr"]
    wanted = [f"{losses[as_preset, rank]['lr']:.3g} at rank {rank}" for rank in ranks]
    outro = prose(
        f'SinkGD on both ends {gaps(both)} of AdamW\'s loss, as in "sage" {gaps(as_preset)}.',
        f'The preset "sage" begins with a rate of {default:g}. The best here were {", ".join(wanted)}.',
    )
    return f"{intro}\n\n{table(columns, cells)}\n\n{outro}"


# ------------------------------------------------------------------------------------------- stable ABI


def stable_abi() -> str:
    """What one module for many torches would cost, and why it is not built."""
    found = load("stable_abi.json")
    like_last, bumped = "like the last step", "versions bumped from Python"

    def of(rule: str, name: str) -> tuple[float, float]:
        """Processor time and instructions."""
        row = found["results"][rule][name]
        return row["cpu_us"], row["instructions"] / 1e6

    def times_as_much(rule: str, part: str, *further: str) -> list[float]:
        """What a step would take if a part of it went through the stable ABI, over what it takes."""
        pinned, stable, step = (of(rule, name) for name in (f"pinned: {part}", f"stable: {part}", STEP))
        extra = [of(rule, name) for name in further]
        return [
            1 + (stable[unit] - pinned[unit] + sum(more[unit] for more in extra)) / step[unit]
            for unit in range(2)
        ]

    lion, sinkgd = (times_as_much(rule, like_last, bumped) for rule in ("lion", "sinkgd"))
    text = prose(
        f"A step of {found['tensors']:,} tensors of 64 numbers (torch {found['torch']}, one thread): Lion's",
        f"would take {lion[0]:.1f} times the processor time and {lion[1]:.1f} times the instructions,",
        f"SinkGD's {sinkgd[0]:.1f} and {sinkgd[1]:.1f} times.",
        "A tenth more was the limit, so there is no such build. Every tensor from Python is an object on the",
        "heap there, and every question to it a call. Gradients come by Python's attribute only:",
        "to find them, and no more, makes Lion's step",
        f"{times_as_much('lion', 'gradients found')[0]:.1f} times as long.",
    )
    shown = {
        "`optimizer.step()`, as it is": STEP,
        "of that in C++": f"pinned: {like_last}",
        "in C++ through the stable ABI": f"stable: {like_last}",
        "and autograd's versions, which it leaves to Python": bumped,
    }
    rows = []
    for what, name in shown.items():
        measured = [of(rule, name) for rule in ("lion", "sinkgd")]
        rows.append([what, *(text for time, count in measured for text in (f"{time:,.0f}", f"{count:.1f}"))])
    columns = ["a step", "Lion, µs", "million instructions", "SinkGD, µs", "million instructions"]
    uses = found["missing"]
    port = prose(
        f"{sum(uses.values())} places in `csrc` would need another way:",
        ", ".join(f"`{name}` ({count})" for name, count in uses.items()) + ".",
        "All else that it uses has a counterpart there, or takes a few lines.",
    )
    return "\n\n".join([text, table(columns, rows), port])
