"""What pictures of plans and of choices share: a colour for each rule, and a figure to draw into."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's colours, which the colour-blind tell apart, black, grey and a darker sky. An optimizer has
# the same ones in the pictures of the example and of benchmarks/train.
RULES = {
    "adamw": "#000000",
    "sage": "#0072B2",
    "sinkgd": "#E69F00",
    "scale": "#009E73",
    "alias": "#56B4E9",
    "alias_adam": "#2F6D91",
    "lion": "#CC79A7",
    "sign_sgd": "#7F7F7F",
}


def new_figure(size: tuple[float, float], what: str, instead: str) -> Any:
    """Return a figure that can be saved, of a size in inches, whatever backend a program uses.

    Raises:
        ImportError: there is no matplotlib; the message names ``what`` needs it and what to do ``instead``.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{what}: a picture needs matplotlib ({error}); pip install matplotlib, or {instead}"
        ) from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
