"""Writes the README's measured section from the files in benchmarks/results: nobody types numbers there.

python benchmarks/update_readme.py
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
GIB = 1 << 30
MIB = 1 << 20


def load(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def step_time() -> str:
    found = load("step_time.json")
    setting = found["setting"]
    lines = [
        f"**Time of a step** on {setting['threads']} cores ({setting['cpu_capability']}, torch "
        f"{setting['torch']}; medians of {setting['rounds']} steps, contenders taking turns in one process; "
        "`make benchmark`). Bytes are those that the rule has to move, every pass over a tensor counted.",
        "",
        "| tensors | optimizer | ms | x AdamW | bytes a parameter | GB/s | read GB/s | share of bandwidth |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['case']} | {r['optimizer']} | {r['median_ms']:.1f} | {r['ratio']:.2f} "
        f"| {r['bytes_per_param']:.1f} | {r['gbytes_per_s']:.1f} | {r['read_gbytes_per_s']:.1f} "
        f"| {r['share_of_bandwidth']:.2f} |"
        for r in found["rows"]
    ]
    return "\n".join(lines)


def memory() -> str:
    found = load("memory.json")
    names = list(found["rows"][0]["state_bytes"])
    lines = [
        f"**Optimizer state** of a Llama with {found['config']['num_hidden_layers']} layers of "
        f"{found['config']['hidden_size']} and a vocabulary of {found['vocabulary']:,}; in GiB, from "
        "the tensors that the optimizers make (`benchmarks/memory.py`). The SAGE paper: 9.8 GB for AdamW "
        "and 0.9 GB for its hybrid at 1.3 B parameters.",
        "",
        "| parameters | dtype | head | " + " | ".join(names) + " |",
        "|---:|---|---|" + "---:|" * len(names),
    ]
    for row in found["rows"]:
        cells = " | ".join(f"{row['state_bytes'][name] / GIB:.2f}" for name in names)
        head = "tied" if row["tied"] else "own"
        lines.append(f"| {row['parameters'] / 1e9:.2f} B | {row['dtype']} | {head} | {cells} |")
    return "\n".join(lines)


def demo() -> str:
    found = load("demo.json")
    settings = found["settings"]
    lines = [
        f"**Training** a Llama for {settings['steps']} steps on the source of Python's standard library "
        "(`make demo`; settings are the best of six runs for each, see `examples/README.md`):",
        "",
        "| optimizer | validation perplexity | optimizer state (MiB) | optimizer step (ms) | tokens/s |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['label']} | {r['validation_perplexity']:.1f} | {r['state_bytes'] / MIB:.2f} "
        f"| {r['optimizer_ms']:.2f} | {r['tokens_per_second']:,.0f} |"
        for r in found["results"]
    ]
    return "\n".join(lines)


def main() -> None:
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    _, after = rest.split(END)
    section = "\n\n".join([demo(), memory(), step_time()])
    readme.write_text(f"{before}{BEGIN}\n\n{section}\n\n{END}{after}")
    print(f"{readme}: measured section written")


if __name__ == "__main__":
    main()
