"""Combines what the parts of benchmarks/on_gpu.sh have left in a folder: on_gpu.json, and on_gpu.txt to read.

    python benchmarks/on_gpu_report.py OUT [--part NAME --exit-code N --began T --ended T --limit S] [--final]

Works with whatever is there, and is called after each part: ``--part`` adds how that one ended. ``--final``
prints the tables and fails if a part has.

on_gpu.json::

    parts      [{part, status, exit_code, seconds, limit_s}]; status: ok, failed, overran or left out
    build      build.json: python, cores, gpu, driver, needs, settings, diagnosis (gpu_check.py)
    tests      runs [{run, selected, stopped, passed, failed, error, skipped, unfinished}], failures [{test,
               outcome, message}], slowest [[test, seconds]] (of the lines in tests.jsonl, gpu_tests.py)
    sanitizer  sanitizer.json: tools [{tool, ok, errors, kernels, ...}], missing (gpu_sanitize.py)
    time       time.json: setting, dry_run, steps, launch, waves, errors, left_out (gpu_time.py)

A part that left nothing is null. ``tables(report)`` makes Markdown tables of it, by name, for the
documentation: ``tables(json.loads(Path("on_gpu.json").read_text()))["steps"]``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

BASELINE = "torch AdamW fused"
GIB, MIB = 1 << 30, 1 << 20
OVERRAN = (124, 137)  # what timeout(1) exits with, by the signal that it had to send
LEFT_OUT = 125  # for a part that was not begun


def write_json(path: Path, value: Any) -> None:
    """Write a file that is never there by half."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(beside, path)


def read_json(path: Path) -> Any:
    """What a file holds; None if there is none, or none that can be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of JSON in a file; one that was being written when its process ended is left out."""
    lines = path.read_text().splitlines() if path.is_file() else []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def tests_of(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Sum up the lines of gpu_tests.py."""
    if not entries:
        return None
    runs = []
    for run in dict.fromkeys(entry["run"] for entry in entries):
        own = [entry for entry in entries if entry["run"] == run]
        outcomes: dict[str, str] = {}
        for entry in own:
            if "test" in entry and outcomes.get(entry["test"]) not in ("failed", "error"):
                outcomes[entry["test"]] = entry["outcome"]
        counts = list(outcomes.values())
        started = dict.fromkeys(entry["started"] for entry in own if "started" in entry)
        runs.append(
            {
                "run": run,
                "selected": next((entry["selected"] for entry in own if "selected" in entry), None),
                # None: it did not come to its end.
                "stopped": next((entry["stopped"] or "" for entry in own if "stopped" in entry), None),
                **{outcome: counts.count(outcome) for outcome in ("passed", "failed", "error", "skipped")},
                "unfinished": [test for test in started if test not in outcomes],
            }
        )
    ended = [entry for entry in entries if "test" in entry]
    slowest = sorted(ended, key=lambda entry: -entry["seconds"])[:20]
    return {
        "runs": runs,
        "failures": [
            {key: entry[key] for key in ("test", "outcome", "message")}
            for entry in ended
            if entry["outcome"] in ("failed", "error")
        ],
        "slowest": [[entry["test"], entry["seconds"]] for entry in slowest],
    }


def combine(folder: Path) -> dict[str, Any]:
    """The whole report, of what is there."""
    before = read_json(folder / "on_gpu.json") or {}
    return {
        "parts": before.get("parts", []),
        "build": read_json(folder / "build.json"),
        "tests": tests_of(read_lines(folder / "tests.jsonl")),
        "sanitizer": read_json(folder / "sanitizer.json"),
        "time": read_json(folder / "time.json"),
    }


def status_of(exit_code: int) -> str:
    if exit_code in OVERRAN:
        return "overran"
    return {0: "ok", LEFT_OUT: "left out"}.get(exit_code, "failed")


# ------------------------------------------------------------------------------------------------ tables


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table, its columns aligned. The first is text, the others numbers, as far as they are."""
    cells = [list(head), *([text(value) for value in row] for row in rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(head))]
    numeric = [
        all(is_number(row[column]) for row in cells[1:]) and len(cells) > 1 for column in range(len(head))
    ]

    def line(row: list[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def text(value: Any) -> str:
    """A cell: numbers with three or four digits, nothing for None, and no sign that Markdown would take."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.4g}"
    return str(value).replace("|", "/").replace("\n", " ")


def is_number(cell: str) -> bool:
    try:
        float(cell or "0")
    except ValueError:
        return False
    return True


def ratio(value: float | None, to: float | None) -> float | None:
    return value / to if value is not None and to else None


def step_rows(time: dict[str, Any]) -> list[list[Any]]:
    """The rows of the table of steps."""
    rows = []
    for row in time["steps"]:
        own = [r for r in time["steps"] if (r["case"], r["dtype"]) == (row["case"], row["dtype"])]
        baseline = next((r for r in own if r["optimizer"] == BASELINE), {})
        # The GPU's own time, where there is one.
        best = "graph_ms" if row["graph_ms"] is not None else "eager_ms"
        moved = row["reads"] + row["writes"]
        rows.append(
            [
                row["case"],
                row["dtype"],
                row["optimizer"],
                row["graph_ms"],
                row["eager_ms"],
                row["host_ms"],
                ratio(row[best], baseline.get(best)),
                row["copy_ms"],
                ratio(row["copy_ms"], row[best]),
                moved / row["parameters"],
                moved / row[best] / 1e6,
                row["state_bytes"] / MIB,
                ratio(row["peak_bytes"], MIB),
            ]
        )
    return rows


STEP_HEAD = (
    "Llama",
    "dtype",
    "optimizer",
    "graph ms",
    "eager ms",
    "host ms",
    "x AdamW",
    "copy ms",
    "of copy",
    "B/param",
    "GB/s",
    "state MiB",
    "peak MiB",
)


def tables(report: dict[str, Any]) -> dict[str, str]:
    """Markdown tables by name, of the parts that are there.

    In ``steps``, "x AdamW" is the ratio to torch's fused AdamW and "of copy" the share of the speed of a copy
    of the same bytes, both of the graph's time (of the eager one where there is no graph); "peak" is what a
    step allocates beside what was there before it.
    """
    found: dict[str, str] = {}
    parts = [
        [part["part"], part["status"], part["exit_code"], part["seconds"], part["limit_s"]]
        for part in report["parts"]
    ]
    found["parts"] = table(("part", "status", "exit", "seconds", "limit"), parts)
    if build := report["build"]:
        needs = [
            [need["what"], need["found"] or "not found", need["wanted"], "yes" if need["ok"] else "NO"]
            for need in build.get("needs", [])
        ]
        found["needs"] = table(("what", "found", "wanted", "ok"), needs)
    if tests := report["tests"]:
        keys = ("run", "selected", "passed", "failed", "error", "skipped")
        runs = [
            [
                *(run[key] for key in keys),
                len(run["unfinished"]),
                "killed" if run["stopped"] is None else run["stopped"],
            ]
            for run in tests["runs"]
        ]
        found["tests"] = table((*keys, "unfinished", "stopped"), runs)
        failures = [[f["test"], last_line(f["message"])] for f in tests["failures"]]
        unfinished = [[test, "began and did not end"] for run in tests["runs"] for test in run["unfinished"]]
        if failures or unfinished:
            found["failures"] = table(("test", "why"), [*failures, *unfinished])
    if sanitizer := report["sanitizer"]:
        rows = [
            [
                tool["tool"],
                "yes" if tool["ok"] else "NO",
                tool["errors"],
                tool["seconds"],
                ", ".join(f"{name} {count}" for name, count in list(tool["kernels"].items())[:5])
                or ("" if tool["ok"] else last_line("\n".join(tool["last_lines"]))),
            ]
            for tool in sanitizer["tools"]
        ]
        rows += [[name, "NO", None, None, "not ended"] for name in sanitizer["missing"]]
        found["sanitizer"] = table(("tool", "ok", "errors", "seconds", "where"), rows)
    if time := report["time"]:
        found.update(time_tables(time))
    return found


def time_tables(time: dict[str, Any]) -> dict[str, str]:
    """Those of part 4."""
    found = {"steps": table(STEP_HEAD, step_rows(time))}
    if launch := time["launch"]:
        rate = launch["l2_bytes_per_s"]
        found["launch"] = table(
            ("what", "value"),
            [
                ["copy, GB/s", launch["memory_bytes_per_s"] / 1e9],
                ["L2, read and written, GB/s", rate / 1e9 if rate else None],
                ["a dependent launch in a graph, us", launch["drain_us"]],
                ["a dependent launch by the host, us", launch["eager_us"]],
                ["a launch of SinkGD in a graph, us", launch["sinkgd_us"]],
                *([f"x.add_(1) of {size} bytes, us", us] for size, us in launch["us_by_bytes"]),
            ],
        )
    if time["waves"]:
        found["waves"] = table(
            (
                "matrices of",
                "waves",
                "serpentine ms",
                "waves ms",
                "predicted",
                "predicted",
                "wins",
                "waves win below us",
            ),
            [
                [
                    wave["matrices"],
                    wave["waves"],
                    wave["serpentine_ms"],
                    wave["waves_ms"],
                    wave["predicted"]["serpentine"],
                    wave["predicted"]["waves"],
                    "waves" if wave["waves_win"] else "serpentine",
                    wave["waves_win_below_us"],
                ]
                for wave in time["waves"]
            ],
        )
    missing = [[entry["what"], entry["why"]] for entry in time["left_out"]]
    missing += [[entry["what"], entry["error"]] for entry in time["errors"]]
    if missing:
        found["not measured"] = table(("what", "why"), missing)
    return found


def last_line(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[-1][:200] if lines else ""


def summary(report: dict[str, Any]) -> str:
    """The text file: what was measured on, and all tables."""
    time, build = report["time"] or {}, report["build"] or {}
    setting = {
        **{key: build.get(key) for key in ("gpu", "driver", "python", "cores")},
        **time.get("setting", {}),
    }
    head = ", ".join(f"{key} {value}" for key, value in setting.items() if value is not None)
    if time.get("dry_run"):
        head += "\nA dry run on the CPU: the times mean nothing."
    sections = [f"## {name}\n\n{body}" for name, body in tables(report).items()]
    if diagnosis := build.get("diagnosis"):
        sections.append("## python -m sage_ext\n\n" + "\n".join(diagnosis["lines"]))
    return "\n\n".join([head, *sections]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the folder")
    parser.add_argument("--part", help="that has ended")
    parser.add_argument("--exit-code", type=int, default=0, help=f"of the part; {LEFT_OUT}: it was left out")
    parser.add_argument("--began", type=float, default=0.0, help="seconds of the clock")
    parser.add_argument("--ended", type=float, default=0.0, help="seconds of the clock")
    parser.add_argument("--limit", type=float, default=0.0, help="seconds that it had")
    parser.add_argument("--final", action="store_true", help="print the tables, and fail if a part has")
    arguments = parser.parse_args()

    report = combine(arguments.out)
    if arguments.part:
        report["parts"].append(
            {
                "part": arguments.part,
                "status": status_of(arguments.exit_code),
                "exit_code": arguments.exit_code,
                "seconds": round(arguments.ended - arguments.began, 1),
                "limit_s": arguments.limit,
            }
        )
    write_json(arguments.out / "on_gpu.json", report)
    words = summary(report)
    (arguments.out / "on_gpu.txt").write_text(words)
    if not arguments.final:
        return 0
    print(words)
    return 0 if all(part["status"] == "ok" for part in report["parts"]) else 1


if __name__ == "__main__":
    sys.exit(main())
