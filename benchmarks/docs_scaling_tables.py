"""The tables of docs/distributed.md: what a step on several processes costs, as scaling_model.py predicts it.

Each function returns Markdown, made from a file in benchmarks/results. update_docs.py says where it goes.
"""

from __future__ import annotations

from typing import Any

from docs_markdown import prose, table
from docs_tables import load

LAYOUTS = {"fsdp": "FSDP2", "hsdp": "HSDP", "tp": "with TP"}
NAMES = {
    "adamw": "AdamW",
    "lion": "Lion",
    "sign_sgd": "Sign-SGD",
    "sage": "SAGE",
    "alias": "ALIAS",
    "alias_adam": "ALIAS-Adam",
    "sage hybrid": 'preset `"sage"`',
    "lion hybrid": 'preset `"lion"`',
    "sinkgd hybrid": 'preset `"sinkgd"`',
    "scale hybrid": 'preset `"scale"`',
    "alias hybrid": 'preset `"alias"`',
    "sinkgd-scale hybrid": 'preset `"sinkgd-scale"`',
    "stateless hybrid": 'preset `"stateless"`',
}
MODEL, GPUS = "7B", 512
TIMED = ("adamw", "sage hybrid", "scale hybrid", "alias hybrid")


def megabytes(count: float) -> str:
    return "0" if not count else f"{count / 1e6:.1f}" if count >= 5e4 else "< 0.1"


def milliseconds(row: dict[str, Any]) -> str:
    """The time of a step, to two digits."""
    value = (row["exchange_us"] + row["memory_us"]) / 1e3
    digits = 0 if value >= 10 else 1 if value >= 1 else 2 if value >= 0.1 else 3
    return f"{value:.{digits}f}"


def assumptions() -> str:
    found = load("scaling_model.json")
    cluster, shards = found["cluster"], found["hsdp_shards"]
    each = ", ".join(f"{count} for {name}" for name, count in shards.items())
    return prose(
        f"`benchmarks/scaling_model.py` predicts what a step costs on {cluster['name']}:",
        f"{cluster['memory'] / 1e12:.2f} TB/s of memory, {cluster['nvlink'] / 1e9:.0f} GB/s over NVLink and",
        f"{cluster['network'] / 1e9:.0f} GB/s over the network in one direction (NVIDIA's data sheets), and",
        "the latencies of NCCL's own model of cost. Messages and bytes are counted on gloo in the tests;",
        "**the times are predictions**: nothing was timed, links are taken to reach their bandwidth, the",
        "arithmetic to move what the fused kernels move, and launches and the host are left out.",
        "bf16 weights and gradients. HSDP cuts rows over as many GPUs as AdamW needs",
        f"({each}) and repeats that; TP is over the {cluster['node']} GPUs of a node, with rows cut over the",
        "nodes.",
    )


def exchanged() -> str:
    """Messages and bytes of each optimizer in each layout."""
    found = load("scaling_model.json")
    rows = {
        (row["optimizer"], row["layout"]): row
        for row in found["rows"]
        if (row["model"], row["gpus"]) == (MODEL, GPUS)
    }
    lines = []
    for name, label in NAMES.items():
        cells = [label]
        for layout in LAYOUTS:
            row = rows[name, layout]
            cells += [f"{row['messages']}", megabytes(row["bytes"]), megabytes(row["bytes_on_the_wire"])]
        lines.append(cells)
    columns = [f"{label}: {what}" for label in LAYOUTS.values() for what in ("messages", "MB", "sent MB")]
    text = prose(
        f"Llama {MODEL} on {GPUS} GPUs: messages a step, what each GPU puts into them, and what it then",
        f"sends by ring. An iteration of SinkGD exchanges {found['sinkgd_7b'] / 1e6:.1f} MB in row shards.",
        f"For comparison: FSDP2 itself sends {found['fsdp_bytes_7b'] / 1e9:.0f} GB a step, whatever the",
        "optimizer.",
    )
    return f"{text}\n\n{table(['optimizer', *columns], lines)}"


def predicted() -> str:
    """Time of a step against the number of GPUs, rows cut over all of them."""
    found = load("scaling_model.json")
    rows = {
        (row["model"], row["gpus"], row["optimizer"]): row for row in found["rows"] if row["layout"] == "fsdp"
    }
    counts = sorted({count for _, count, _ in rows})
    lines = []
    for model in found["hsdp_shards"]:
        for name in TIMED:
            cells = [rows[model, count, name] for count in counts]
            lines.append(
                [model, NAMES[name], *(milliseconds(row) if row["fits"] else "too large" for row in cells)]
            )
    text = "FSDP2: milliseconds of an optimizer step, exchanges included."
    columns = ["Llama", "optimizer", *(f"{count:,} GPUs" for count in counts)]
    return f"{text}\n\n{table(columns, lines, left=2)}\n\n{conclusion(rows, counts)}"


def conclusion(rows: dict[tuple[str, int, str], dict[str, Any]], counts: list[int]) -> str:
    """What does not shrink with the number of GPUs."""

    def total(name: str, count: int) -> float:
        row = rows[MODEL, count, name]
        return row["exchange_us"] + row["memory_us"]

    most, slower = counts[-1], [n for n in counts if total("sage hybrid", n) > total("adamw", n)]
    late = rows[MODEL, most, "alias hybrid"]
    return prose(
        "Latencies and column sums do not shrink with the number of GPUs.",
        f'For {MODEL} the preset `"sage"` is behind AdamW from {slower[0]:,} GPUs on, by',
        f"{(total('sage hybrid', most) - total('adamw', most)) / 1e3:.1f} ms on {most:,}: little, beside a",
        "forward and a backward pass. ALIAS gathers numbers of every tensor from everybody, which grows with",
        f"the number of GPUs: {late['bytes_on_the_wire'] / 1e6:.0f} MB on {most:,}.",
    )
