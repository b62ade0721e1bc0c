"""Everything that determines the numbers of a run, and so everything that a checkpoint must agree with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Settings:
    """One training run. The defaults are those of the demo."""

    # model
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    ffn: int = 0  # 0: 8/3 of hidden, rounded up to a multiple of 16
    tied: bool = False
    # text
    text: tuple[str, ...] = ()
    stdlib_tests: bool = False
    vocab_size: int = 8192
    val_fraction: float = 0.05
    # optimizer
    optimizer: str = "sage-hybrid"
    backend: str = "auto"
    # training
    steps: int = 150
    batch_size: int = 4
    seq_len: int = 256
    accumulate: int = 1
    warmup: int = -1  # less than 0: a tenth of steps
    final_lr: float = 0.1
    clip: float = 1.0
    amp: str = "none"
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    parallel: str = "none"
    eval_every: int = 50
    val_windows: int = 128

    def __post_init__(self) -> None:
        if self.warmup < 0:
            object.__setattr__(self, "warmup", self.steps // 10)
        if not self.ffn:
            object.__setattr__(self, "ffn", -(-self.hidden * 8 // 3 // 16) * 16)

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len * self.accumulate

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "text": list(self.text)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        known = {field.name for field in fields(cls)}
        return cls(**{**{k: v for k, v in values.items() if k in known}, "text": tuple(values["text"])})


def millions(count: int) -> str:
    """A number of parameters, for people."""
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")
