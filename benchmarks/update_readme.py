"""Writes the README's measured section from the files in benchmarks/results: nobody types numbers there.

python benchmarks/update_readme.py
"""

from __future__ import annotations

import json
from pathlib import Path

from step_time import EMBEDDING, ITERATIONS, ONE_ITERATION, SINKGD

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
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


def hybrid_profile() -> str:
    """What the SAGE hybrid's step is made of: the parts that step_time.py takes the time of."""
    rows = load("step_time.json")["rows"]
    lines = [
        "**Where the SAGE hybrid's time goes**, in ms, of the same run: the embedding's rule, SinkGD's first "
        "iteration with the update of W, and each of its other iterations, which reads the gradient of all "
        "matrices once more.",
        "",
        "| tensors | torch AdamW | SAGE hybrid | embedding | first iteration and update "
        "| each other iteration | GB/s in it |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    cases = [case for case in dict.fromkeys(r["case"] for r in rows) if "llama" in case]
    for case in cases:
        found = {r["optimizer"]: r for r in rows if r["case"] == case}
        one, all_of_them = found[ONE_ITERATION], found[SINKGD]
        more_ms = all_of_them["median_ms"] - one["median_ms"]
        # GB/s times ms is MB.
        more_mb = (
            all_of_them["gbytes_per_s"] * all_of_them["median_ms"] - one["gbytes_per_s"] * one["median_ms"]
        )
        times = [found["torch AdamW fused"], found["SAGE hybrid"], found[EMBEDDING], one]
        cells = " | ".join(f"{row['median_ms']:.1f}" for row in times)
        lines.append(f"| {case} | {cells} | {more_ms / (ITERATIONS - 1):.1f} | {more_mb / more_ms:.1f} |")
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
    runs = load("demo_rates.json")["runs_each"]
    lines = [
        f"**Training** a Llama for {settings['steps']} steps on the source of Python's standard library "
        f"(`make demo`; a learning rate for each role, the best of {runs} runs for each optimizer, see "
        "`examples/README.md`):",
        "",
        "| optimizer | validation perplexity | optimizer state (MiB) | optimizer step (ms) | tokens/s |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['label']} | {r['validation_perplexity']:.1f} | {r['state_bytes'] / MIB:.2f} "
        f"| {r['optimizer_ms']:.2f} | {r['tokens_per_second']:,.0f} |"
        for r in found["results"]
    ]
    lines += ["", *(f"- {line}" for line in found["verdict"])]
    return "\n".join(lines)


def span(values: list[float], percent: bool = False) -> str:
    low, high = (round(100 * value) if percent else value for value in values)
    return (f"{low:g}" if low == high else f"{low:g} to {high:g}") + ("%" if percent else "")


def machine_code(found: dict) -> str:
    lines = [
        "**Machine code** (`make test-cuda-build`; the least and the most of a kernel's variants over "
        f"{', '.join(sorted({row['arch'] for row in found['machine_code']}, key=float))}):",
        "",
        "| kernel | variants | registers | threads a block | occupancy | stack, spills |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    by_kernel: dict[str, list[dict]] = {}
    for row in found["machine_code"]:
        by_kernel.setdefault(row["kernel"], []).append(row)
    for kernel, rows in by_kernel.items():

        def most(key: str, rows: list[dict] = rows) -> list[float]:
            return [min(row[key][0] for row in rows), max(row[key][1] for row in rows)]

        local = most("stack_bytes")[1] + most("local_accesses")[1]
        lines.append(
            f"| `{kernel}` | {rows[0]['variants']} | {span(most('registers'))} | {span(most('threads'))} "
            f"| {span(most('occupancy'), percent=True)} | {local:g} |"
        )
    return "\n".join(lines)


def traffic(found: dict) -> str:
    gpus = list(found["traffic"][0]["predicted_7b_ms"])
    lines = [
        "**Bytes and launches of a step**, counted on the emulator for a Llama with 7 million parameters, "
        "against what has to move; predicted time for a 7B Llama: its bytes, the plans' scratch included, "
        "over the bandwidth in the data sheet. SinkGD gets all matrices, the others the norms as well.",
        "",
        "| rule | W, g | state | launches | bytes a parameter | floor | scratch at 7B | "
        + " | ".join(f"ms on an {gpu}" for gpu in gpus)
        + " |",
        "|---|---|---|---:|---:|---:|---:|" + "---:|" * len(gpus),
    ]
    for r in found["traffic"]:
        times = " | ".join(f"{r['predicted_7b_ms'][gpu]:.1f}" for gpu in gpus)
        lines.append(
            f"| {r['rule']} | {r['dtype']} | {r['state_dtype']} | {r['launches']} "
            f"| {r['bytes_per_param']:.2f} | {r['floor']:g} | {r['scratch_7b']:.2f} | {times} |"
        )
    return "\n".join(lines)


def l2() -> str:
    found = load("l2_model.json")
    gpu = found["gpu"]
    lines = [
        f"**SinkGD and the L2 cache**, on paper: bf16, {gpu['name']}, {gpu['memory'] / 1e12:.2f} TB/s, "
        f"{gpu['l2_bytes'] / 1e6:.0f} MB of L2 at an assumed {gpu['l2'] / 1e12:.1f} TB/s, an assumed "
        f"{gpu['drain'] * 1e6:.0f} us between dependent launches (`benchmarks/l2_model.py`). Ours is the "
        "serpentine order.",
        "",
        "| matrices | order | bytes a parameter from memory | launches | predicted ms | waves win below |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for r in found["results"]:
        limit = r["break_even_s"] if r["order"] == "waves" else None
        lines.append(
            f"| {r['matrices']} | {r['order']} | {r['bytes_per_param']:.2f} | {r['launches']:g} "
            f"| {r['predicted_ms']:.2f} | {'' if limit is None else f'{limit * 1e6:.1f} us'} |"
        )
    return "\n".join(lines)


def write(text: str, marker: str, sections: list[str]) -> str:
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    section = "\n\n".join(sections)
    return f"{before}{begin}\n\n{section}\n\n{end}{after}"


def main() -> None:
    readme = ROOT / "README.md"
    kernels = load("kernels.json")
    text = write(readme.read_text(), "measured", [demo(), memory(), step_time(), hybrid_profile()])
    text = write(text, "counted", [traffic(kernels), machine_code(kernels), l2()])
    readme.write_text(text)
    print(f"{readme}: measured and counted sections written")


if __name__ == "__main__":
    main()
