"""The tables of docs/gpu.md: what is counted, what nvcc made, what is predicted and what was timed on a GPU.

Each function returns Markdown, made from a file in benchmarks/results. update_docs.py says where it goes.
"""

from __future__ import annotations

from typing import Any

import docs_tables
from contenders import ITERATIONS, ONE_ITERATION, SINKGD
from counted import BANDWIDTH
from docs_markdown import prose, table
from docs_tables import ADAMW, MIB, OF_PAPER, load, size


def span(values: list[float], percent: bool = False) -> str:
    low, high = (round(100 * value) if percent else value for value in values)
    return (f"{low:g}" if low == high else f"{low:g} to {high:g}") + ("%" if percent else "")


def traffic() -> str:
    found = load("kernels.json")["traffic"]
    gpus = list(found[0]["predicted_7b_ms"])
    columns = ["rule", "W, g", "state", "launches", "bytes a parameter", "floor", "scratch at 7B"]
    rows = [
        [
            r["rule"],
            r["dtype"],
            r["state_dtype"],
            f"{r['launches']}",
            f"{r['bytes_per_param']:.2f}",
            f"{r['floor']:g}",
            f"{r['scratch_7b']:.2f}",
            *(f"{r['predicted_7b_ms'][gpu]:.1f}" for gpu in gpus),
        ]
        for r in found
    ]
    return table([*columns, *(f"ms on an {gpu}" for gpu in gpus)], rows, left=3)


def machine_code() -> str:
    found = load("kernels.json")["machine_code"]
    by_kernel: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        by_kernel.setdefault(row["kernel"], []).append(row)
    archs = ", ".join(sorted({row["arch"] for row in found}, key=float))
    columns = ["kernel", "variants", "registers", "threads a block", "occupancy", "stack, spills"]
    lines = map(of_kernel, by_kernel, by_kernel.values())
    return f"Compute capabilities {archs}:\n\n{table(columns, lines)}"


def of_kernel(kernel: str, rows: list[dict[str, Any]]) -> list[str]:
    """One line of the table on machine code, over a kernel's architectures."""

    def most(key: str) -> list[float]:
        return [min(row[key][0] for row in rows), max(row[key][1] for row in rows)]

    return [
        f"`{kernel}`",
        f"{rows[0]['variants']}",
        span(most("registers")),
        span(most("threads")),
        span(most("occupancy"), percent=True),
        f"{most('stack_bytes')[1] + most('local_accesses')[1]:g}",
    ]


def l2() -> str:
    found = load("l2_model.json")
    gpu = found["gpu"]
    rows = []
    for r in found["results"]:
        limit = r["break_even_s"] if r["order"] == "waves" else None
        numbers = [f"{r['bytes_per_param']:.2f}", f"{r['launches']:g}", f"{r['predicted_ms']:.2f}"]
        rows.append([r["matrices"], r["order"], *numbers, "" if limit is None else f"{limit * 1e6:.1f} us"])
    columns = ["bytes a parameter from memory", "launches", "predicted ms", "waves win below"]
    text = prose(
        f"bf16, {gpu['name']}, {gpu['memory'] / 1e12:.2f} TB/s, {gpu['l2_bytes'] / 1e6:.0f} MB of L2",
        f"at an assumed {gpu['l2'] / 1e12:.1f} TB/s, an assumed {gpu['drain'] * 1e6:.0f} us between",
        "dependent launches:",
    )
    return f"{text}\n\n{table(['matrices', 'order', *columns], rows, left=2)}"


# ------------------------------------------------------------------------------------------------ on a GPU


def timing() -> dict[str, Any] | None:
    """What gpu_time.py wrote as a part of on_gpu.json; None where no GPU has run it."""
    if not (docs_tables.RESULTS / "on_gpu.json").is_file():
        return None
    found = load("on_gpu.json")
    places = [found, *(part for part in found.values() if isinstance(part, dict))]
    place = next((part for part in places if "steps" in part), None)
    if place is None:
        raise ValueError("on_gpu.json: holds no list of steps, which benchmarks/gpu_time.py writes")
    return None if place["dry_run"] else place


# A row's tensors and dtype, and in which call it was measured.
Case = tuple[str, str, int | None]
# README's presets, by the rows of the benchmarks.
PRESETS = {label.split('"')[1]: name for label, name in docs_tables.IN_SHORT.items() if '"' in label}
# The Llamas of README's sentences.
LARGEST, SMALLER = "7B", ("1.3B", "53M")


def case_of(row: dict[str, Any]) -> Case:
    return row["case"], row["dtype"], row.get("call")


def baselines(found: dict[str, Any]) -> dict[Case, dict[str, Any]]:
    """The rows of torch's fused AdamW: a ratio is to that of the same call."""
    first = [{**row, "call": 1} for row in load("on_gpu.first.json")["time"]["steps"]]
    return {case_of(row): row for row in (*first, *found["steps"]) if row["optimizer"] == ADAMW}


def in_short(page: str = "docs/gpu.md") -> str:
    """The sentences on GPUs, with a link to ``page``."""
    found = timing()
    if found is None:
        return prose(
            "**No GPU has run this yet.** The CUDA kernels are tested on an emulator, built for real",
            f"architectures, and their machine code is audited: [GPUs]({page}).",
        )
    rows = {(r["case"], r["dtype"], r["optimizer"]): r for r in found["steps"] if r["graph_ms"]}
    base = rows.get((LARGEST, "bf16", ADAMW))
    if base is None:
        return prose(f"On a GPU ({found['setting']['gpu']}): [GPUs]({page}).")

    bases = baselines(found)

    def ratio(case: str, dtype: str, name: str) -> float:
        row = rows[case, dtype, name]
        return row["graph_ms"] / bases[case_of(row)]["graph_ms"]

    labels = {f"`{preset}`": name for preset, name in PRESETS.items()}
    # Timed with its paper's iterations of SinkGD and not with one, with which its matrices were.
    of_paper = {f"{label} with {ITERATIONS} iterations": name + OF_PAPER for label, name in labels.items()}
    timed = {label: name for label, name in {**labels, **of_paper}.items() if (LARGEST, "bf16", name) in rows}
    has_paper = not of_paper.keys().isdisjoint(timed)
    names = [*timed.values(), *([ONE_ITERATION] if has_paper else [])]
    smaller = [case for case in SMALLER if all((case, "bf16", name) in rows for name in names)]

    def said(name: str) -> str:
        others = ", ".join(f"{ratio(case, 'bf16', name):.2f}" for case in smaller)
        return f"{ratio(LARGEST, 'bf16', name):.2f}" + (f" ({others})" if others else "")

    times = ", ".join(f"{label} {said(name)}" for label, name in timed.items())
    if has_paper:
        times += f"; with one, as it is now, not timed whole, its matrices {said(ONE_ITERATION)}"
    wide = sorted(ratio(LARGEST, "fp32", name) for name in timed.values() if (LARGEST, "fp32", name) in rows)
    brackets = f", in brackets at {' and '.join(smaller)}" if smaller else ""
    return prose(
        f"**On a GPU** ({found['setting']['gpu']}, bf16, in a CUDA graph) torch's fused AdamW takes",
        f"{base['graph_ms']:.1f} ms for a Llama of {LARGEST} and keeps {size(base['state_bytes'])} GiB.",
        f"Of its time{brackets}: {times}.",
        *([f"In fp32, at {LARGEST}, {wide[0]:.2f} to {wide[-1]:.2f}."] if wide else []),
        f"All tests that ran pass: [GPUs]({page}).",
    )


def timed() -> str:
    """What benchmarks/on_gpu.sh found, or that nobody has run it."""
    found = timing()
    if found is None:
        return "**No GPU has run this yet.** The numbers on this page are counted or computed, not timed."
    setting = found["setting"]
    text = prose(
        f"**Timed** on an {setting['gpu']} (compute capability {setting['compute_capability']}, CUDA",
        f"{setting['cuda']}, torch {setting['torch']}), caches flushed, by `benchmarks/on_gpu.sh`. Eager:",
        "called by the host; graph: a replayed CUDA graph. `x AdamW`, and the share of a copy that reads and",
        "writes as many bytes, are of the graph. Transient: the most that a step allocated.",
        *filter(None, [found.get("note")]),
    )
    columns = ["eager ms", "graph ms", "x AdamW", "share of a copy", "state, GiB", "transient, MiB"]
    bases = baselines(found)
    rows = [of_step(row, bases.get(case_of(row))) for row in found["steps"]]
    parts = [text, table(["tensors", "optimizer", *columns], rows, left=2)]
    missing = [f"- {entry['what']}: {entry['why']}." for entry in found["left_out"]]
    missing += [f"- {entry['what']}: {entry['error']}" for entry in found["errors"]]
    if missing:
        parts += ["Not timed:", "\n".join(missing)]
    return "\n\n".join(parts)


def checked() -> str:
    """What the tests and compute-sanitizer found on a GPU, in each call, and what became of it."""
    tools = ("memcheck", "racecheck", "initcheck", "synccheck")
    rows = []
    for call in ("on_gpu.first.json", "on_gpu.json"):
        found = load(call)
        runs = found["tests"]["runs"]
        done = [sum(run[key] for run in runs) for key in ("passed", "failed", "error", "skipped")]
        errors = {tool["tool"]: tool["errors"] for tool in found["sanitizer"]["tools"]}
        counts = [
            f"{done[0]:,}",
            f"{done[1] + done[2]}",
            f"{sum(run['selected'] for run in runs) - sum(done):,}",
        ]
        rows.append(
            [f"`{call}`", *counts, *("no time" if errors.get(t) is None else f"{errors[t]}" for t in tools)]
        )
    tests = load("on_gpu.json")["tests"]
    text = prose(
        f"Of the {tests['failed_before']} that had failed, {len(tests['failed_before_and_passed'])} passed",
        f"in the second call; {tests['passed_in_any_call']:,} tests have passed in one or the other.",
    )
    columns = ["call", "passed", "failed", "no time for", *(f"{tool}: errors" for tool in tools)]
    return f"{table(columns, rows)}\n\n{text}"


def waves() -> str:
    """SinkGD's two orders on a GPU."""
    rows = [
        [f"Llama {r['matrices']}", f"{r['waves']}", f"{r['serpentine_ms']:.2f}", f"{r['waves_ms']:.2f}"]
        for r in load("on_gpu.json")["time"]["waves"]
    ]
    return table(["matrices, bf16", "waves", "serpentine ms", "waves ms"], rows)


def against_plan() -> str:
    """How far a GPU's time was from the bytes at the published bandwidth, by which sage_ext.plan predicts."""
    rows = {
        r["optimizer"]: r
        for r in load("on_gpu.json")["time"]["steps"]
        if (r["case"], r["dtype"]) == ("7B", "bf16")
    }

    def times_as_long(name: str) -> float:
        return rows[name]["graph_ms"] / 1e3 * BANDWIDTH["H200"] / (rows[name]["reads"] + rows[name]["writes"])

    ours = sorted(times_as_long(name) for name in PRESETS.values() if name in rows)
    return prose(
        f"**Timed**: on an H200 a step of a 7B Llama in bf16 took {ours[0]:.2f} to {ours[-1]:.2f} times as",
        "long as its bytes at the published bandwidth, over the presets of README that it has run;",
        "torch's fused AdamW",
        f"{times_as_long(ADAMW):.2f} times: [GPUs](gpu.md).",
    )


def iterations() -> str:
    """What each iteration of SinkGD after the first takes on a GPU, and the rest of the step."""
    found = load("on_gpu.json")["time"]
    rows = {(r["case"], r["dtype"], r["optimizer"]): r for r in found["steps"]}
    bandwidth, lines = found["launch"]["memory_bytes_per_s"], []
    for (case, dtype, name), many in rows.items():
        if name != SINKGD:
            continue
        one, more = rows[case, dtype, ONE_ITERATION], ITERATIONS - 1
        milliseconds = (many["graph_ms"] - one["graph_ms"]) / more
        share = (many["reads"] - one["reads"]) / more / (milliseconds / 1e3) / bandwidth
        lines.append(
            [f"Llama {case}", dtype, f"{one['graph_ms']:.2f}", f"{milliseconds:.2f}", f"{share:.2f}"]
        )
    columns = ["step with one ms", "each more ms", "its bytes a second, of a copy's"]
    return table(["matrices", "dtype", *columns], lines, left=2)


def of_step(row: dict[str, Any], base: dict[str, Any] | None) -> list[str]:
    """One line of the table of times; what was not measured is left empty."""
    graph = row["graph_ms"]
    cells = [f"{row['case']} {row['dtype']}", row["optimizer"], f"{row['eager_ms']:.3f}"]
    cells.append(f"{graph:.3f}" if graph else "")
    cells.append(f"{graph / base['graph_ms']:.2f}" if graph and base and base["graph_ms"] else "")
    cells.append(f"{row['copy_ms'] / graph:.2f}" if graph else "")
    peak = row["peak_bytes"]
    return [*cells, size(row["state_bytes"]), "" if peak is None else f"{peak / MIB:.1f}"]
