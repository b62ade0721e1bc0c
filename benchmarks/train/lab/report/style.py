"""An optimizer's colour and marker, the same in every picture here and, where the demo has it, there.

Colours are those of families, Okabe and Ito's, which the colour-blind tell apart, and two more dark ones; the
marker and the line tell the members of a family apart.
"""

from __future__ import annotations

from typing import NamedTuple

from llama.figures import OWN, STYLES

GREY, WINE = "#7F7F7F", "#882255"


class Style(NamedTuple):
    color: str
    marker: str
    line: str = "-"


def _demo(name: str) -> str:
    return STYLES[OWN[name]][0]


BLACK, BLUE, VERMILION = _demo("adamw"), _demo("sage-hybrid"), _demo("sinkgd-scale")
GREEN, PURPLE, ORANGE, SKY = _demo("scale"), _demo("lion-hybrid"), _demo("sinkgd-hybrid"), _demo("alias")

CONTENDERS: dict[str, Style] = {
    "adamw": Style(BLACK, "o"),
    "adamw-8bit": Style(BLACK, "v", "--"),
    "schedule-free": Style(BLACK, "X", ":"),
    "sage-hybrid": Style(BLUE, "s"),
    "sage": Style(BLUE, "o", "--"),
    "sage-sinkgd-adamw": Style(BLUE, "^", ":"),
    "adamw-sinkgd-scale": Style(VERMILION, "^"),
    "scale-sinkgd-scale": Style(VERMILION, "v", "--"),
    "stateless": Style(VERMILION, "X", ":"),
    "stateless-columns": Style(VERMILION, "P", ":"),
    "preset-sinkgd-scale": Style(VERMILION, "s", "-."),
    "preset-stateless": Style(VERMILION, "o", "-."),
    "preset-scale": Style(GREEN, "o", "-."),
    "preset-sage": Style(BLUE, "D", "-."),
    "preset-sinkgd": Style(ORANGE, "s", "-."),
    "preset-lion": Style(PURPLE, "D", "-."),
    "adamw-scale-scale": Style(GREEN, "s", "--"),
    "scale": Style(GREEN, "D"),
    "adamw-momentum": Style(GREEN, "^", "--"),
    "adamw-momentum-adamw": Style(GREEN, "P", "-."),
    "lion-hybrid": Style(PURPLE, "v"),
    "lion": Style(PURPLE, "o", "--"),
    "lion-sinkgd-adamw": Style(PURPLE, "^", ":"),
    "lion-pytorch": Style(PURPLE, "X", "-."),
    "sinkgd-hybrid": Style(ORANGE, "P"),
    "sinkgd": Style(ORANGE, "o", "--"),
    "sign-sgd": Style(GREY, "o"),
    "sign-sgd-adamw": Style(GREY, "^", "-."),
    "signum": Style(GREY, "s", "--"),
    "alias": Style(SKY, "X"),
    "alias-lower-bound": Style(SKY, "o", "--"),
    "alias-base": Style(SKY, "s", "-."),
    "alias-base-descent": Style(SKY, "^", ":"),
    "alias-head-adamw": Style(SKY, "D", "--"),
    "alias-base-head-adamw": Style(SKY, "h", ":"),
    "alias-sum-head-adamw": Style(SKY, "p", ":"),
    "alias-sum": Style(SKY, "P"),
    "alias-sum-descent": Style(SKY, "*", "-."),
    "alias-adam": Style(SKY, "v", "--"),
    "muon": Style(WINE, "o"),
    "prodigy": Style(WINE, "s", "--"),
    "dadapt-adam": Style(WINE, "^", "-."),
    "dog": Style(WINE, "v", ":"),
    "apollo": Style(WINE, "D", "--"),
    "galore": Style(WINE, "P", "-."),
}
