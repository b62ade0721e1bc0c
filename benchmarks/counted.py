"""What the CUDA kernels move, counted on the emulator, and how long that takes at a GPU's bandwidth.

benchmarks/kernels.py prints the result. Nothing here is timed.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build" / "cpp" / "tests" / "cpp" / "cuda" / "sage_ext_count_traffic"
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}  # bytes a second, from the SXM parts' data sheets
# Accesses that move less than this share of their sectors' bytes are worth a look.
LEAST_EFFICIENCY = 0.7
# Launches of less than this share of a step's bytes only add up what others left: they do not matter.
LEAST_SHARE = 0.01


def summarize(case: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    params, large = case["parameters"], case["llama_7b"]
    kernels = [launch for launch in case["launches"] if launch["kernel"] != "cudaMemsetAsync"]
    streamed = sum(map(bytes_of, case["launches"]))
    bytes_7b = (case["floor_bytes_per_parameter"] + large["scratch_traffic_per_parameter"]) * large[
        "parameters"
    ]
    return {
        "rule": case["rule"],
        "dtype": case["dtype"],
        "state_dtype": case["state_dtype"],
        "launches": len(kernels),
        "bytes_per_param": streamed / params,
        "cached_bytes_per_param": sum(launch["uniform_bytes"] for launch in kernels) / params,
        "floor": case["floor_bytes_per_parameter"],
        "scratch_7b": large["scratch_traffic_per_parameter"],
        "sector_efficiency": min(
            efficiency(kernel) for kernel in kernels if bytes_of(kernel) > LEAST_SHARE * streamed
        ),
        "predicted_7b_ms": {name: bytes_7b / rate * 1e3 for name, rate in BANDWIDTH.items()},
    }


def bytes_of(launch: dict[str, Any]) -> int:
    """Bytes that a launch asked for."""
    return int(launch["bytes_read"] + launch["bytes_written"])


def efficiency(launch: dict[str, Any]) -> float:
    """Bytes that a launch asked for, per byte of the 32-byte sectors that it touched."""
    return bytes_of(launch) / (32 * (launch["sectors_read"] + launch["sectors_written"]))


def count(program: Path = PROGRAM) -> list[dict[str, Any]]:
    """Run the counting program and return one summary for each rule and dtype.

    Raises:
        FileNotFoundError: it has not been built.
    """
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return [summarize(case) for case in json.loads(output)["cases"]]


def problems_of(summary: dict[str, Any]) -> list[str]:
    """What must not be: accesses that are not coalesced."""
    if summary["sector_efficiency"] >= LEAST_EFFICIENCY:
        return []
    return [
        f"{summary['rule']} in {summary['dtype']}: sector efficiency {summary['sector_efficiency']:.2f}, "
        f"expected at least {LEAST_EFFICIENCY}"
    ]
