"""Draws the pictures of docs/: python benchmarks/docs_pictures.py

``state.svg`` is made of benchmarks/results/memory.json, ``choose.svg`` of docs/choose.md's six questions,
``autoconfig.svg`` of what study "budget" of benchmarks/train has measured.
Each has in its metadata a digest of what it was made of, so that a test sees whether it still is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docs_autoconfig
from docs_tables import ADAMW, GIB, load, size

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
# Of Okabe and Ito's colours, which colour-blind people can tell apart.
BLUE, ORANGE, GREY, BLACK = "#0072B2", "#D55E00", "#555555", "#000000"

QUESTIONS = [
    ("1  A LoRA?", "yes", "FusedAdamW"),
    ("2  Flat pieces?\nZeRO, Megatron, FSDP1", "yes", "FusedLion, FusedSignSGD\nFusedAdamW"),
    ("3  Is it the state\nthat does not fit?", "no", "FusedAdamW"),
    ("4  Can you tune\na learning rate?", "no", 'FusedHybrid(model, "sage")\nor "sinkgd-scale", as it is'),
    (
        "5  Fine-tuning fp32 weights,\nwhere Lion or AdamW worked?",
        "yes",
        'FusedLion\nFusedHybrid(model, "lion"), tuned',
    ),
    (
        "6  May embeddings\nand head keep state?",
        "yes",
        'FusedHybrid(model, "sinkgd-scale")\nFusedHybrid(model, "sage")',
    ),
]
LAST = 'FusedHybrid(model, "stateless")\nhead alone: "scale"'


def state_of() -> dict[str, Any]:
    """What the picture of states shows: bytes by optimizer."""
    row = next(row for row in load("memory.json")["rows"] if row["dtype"] == "bf16" and not row["tied"])
    return {"parameters": row["parameters"], "bytes": row["state_bytes"]}


def draw_state(axes: Any) -> None:
    found = state_of()
    held = sorted(found["bytes"].items(), key=lambda item: -item[1])
    sizes = [count / GIB for _, count in held]
    colours = [BLACK if name == ADAMW else BLUE for name, _ in held]
    bars = axes.barh([name for name, _ in held], sizes, color=colours, height=0.7)
    axes.bar_label(bars, [size(count) for _, count in held], padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(sizes))
    axes.set_xlabel(f"GiB of state for {found['parameters'] / 1e9:.2f} billion parameters in bf16")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_questions(axes: Any) -> None:
    axes.set_xlim(0, 10)
    axes.set_ylim(-2 * len(QUESTIONS) - 1.4, 0)
    axes.axis("off")

    def box(x: float, y: float, text: str, colour: str) -> None:
        style = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": colour, "linewidth": 1.6}
        axes.text(x, y, text, ha="center", va="center", fontsize=10, bbox=style)

    def arrow(start: tuple[float, float], end: tuple[float, float], text: str) -> None:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 1.2})
        middle = (start[0] + end[0]) / 2 + (0.15 if start[0] == end[0] else 0), (start[1] + end[1]) / 2 + 0.12
        axes.text(*middle, text, color=GREY, fontsize=9, ha="left" if start[0] == end[0] else "center")

    for index, (question, answer, optimizer) in enumerate(QUESTIONS):
        y = -1 - 2 * index
        box(2.2, y, question, ORANGE)
        box(7.6, y, optimizer, BLUE)
        arrow((4.0, y), (5.6, y), answer)
        arrow((2.2, y - 0.55), (2.2, y - 1.4), "no" if answer == "yes" else "yes")
    box(2.2, -2 * len(QUESTIONS) - 0.8, LAST, BLUE)


def draw_autoconfig(axes: Any) -> None:
    from sage_ext.selection.picture import fill

    axes.figure.clear()
    fill(axes.figure, docs_autoconfig.configuration())


# File -> what it is made of, what draws it, and its size in inches.
ALL: dict[str, tuple[Callable[[], Any], Callable[[Any], None], tuple[float, float]]] = {
    "state.svg": (state_of, draw_state, (7.5, 4.4)),
    "choose.svg": (lambda: [QUESTIONS, LAST], draw_questions, (7.5, 7.8)),
    "autoconfig.svg": (lambda: docs_autoconfig.result()["measured"], draw_autoconfig, (7.6, 6.4)),
}


def digest(made_of: Any) -> str:
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def stale(folder: Path = PICTURES) -> list[str]:
    """Return the pictures that were made of something else."""
    return [
        name
        for name, (made_of, _, _) in ALL.items()
        if re.findall(r"made of ([0-9a-f]{16})", (folder / name).read_text()) != [digest(made_of())]
    ]


def main() -> None:
    import matplotlib

    matplotlib.use("svg")
    # The same bytes each time; text as text, in whatever of these fonts a reader has.
    fonts = {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"]}
    matplotlib.rcParams.update({"svg.hashsalt": "sage_ext", "svg.fonttype": "none", **fonts})
    from matplotlib import pyplot

    for name, (made_of, draw, inches) in ALL.items():
        figure, axes = pyplot.subplots(figsize=inches, layout="constrained")
        draw(axes)
        metadata = {"Date": None, "Creator": None, "Description": f"made of {digest(made_of())}"}
        figure.savefig(PICTURES / name, metadata=metadata)
        pyplot.close(figure)


if __name__ == "__main__":
    main()
