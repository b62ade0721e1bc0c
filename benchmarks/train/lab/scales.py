"""What is fixed for every run of a scale: model, token budgets, schedule, batch and precision.

Nothing here is searched for. A contender differs from another in its parameter groups alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Model:
    """The sizes of a Llama; ``tied`` is off everywhere, so that embedding and head can have rules of their
    own."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    tied: bool = False


@dataclass(frozen=True)
class Scale:
    """A size of everything. Budgets are in training tokens; schedules end with them."""

    name: str
    model: Model
    confirm: Model
    """The larger model on which the best are run again."""
    widths: tuple[Model, ...]
    """For the question whether the best rate stays where it is as the width grows."""
    vocab_size: int
    seq_len: int
    batch_size: int
    search_tokens: int
    """Budget of a run that looks for rates."""
    final_tokens: int
    """Budget of a run that counts: three seeds at the best rates."""
    long_tokens: int
    """Budget of study "long"."""
    device: str = "cpu"
    amp: str = "bf16"
    threads: int = 1
    warmup: float = 0.1  # share of the steps in which the rate rises linearly
    final_factor: float = 0.0  # cosine from there to this share of the rate at the last step
    clip: float = 1.0  # largest norm of the whole gradient
    compile: str | None = "inductor"  # backend of torch.compile for the model; None: eager
    attention: str = "sdpa"  # transformers' attn_implementation
    micro_batch: int = 16  # windows that go through the model at once; changes memory, not the batch
    validation_windows: int = 64  # of each kind of text
    evaluations: int = 4  # evenly spread, the last one at the end

    def config(self, *, tokens: int, seed: int, model: Model | None = None, batch: int = 1) -> dict[str, Any]:
        """Everything of a run's configuration but its parameter groups. ``batch`` multiplies the batch."""
        return {
            "scale": self.name,
            "model": {**asdict(model or self.model), "vocab_size": self.vocab_size},
            "tokens": tokens,
            "batch_size": self.batch_size * batch,
            "micro_batch": min(self.micro_batch, self.batch_size * batch),
            "seq_len": self.seq_len,
            "warmup": self.warmup,
            "final_factor": self.final_factor,
            "clip": self.clip,
            "amp": self.amp,
            "compile": self.compile,
            "attention": self.attention,
            "device": self.device,
            "threads": self.threads,
            "validation_windows": self.validation_windows,
            "evaluations": self.evaluations,
            "seed": seed,
        }


def _width(hidden: int) -> Model:
    return Model(hidden, layers=3, heads=hidden // 64, ffn=-(-hidden * 8 // 3 // 16) * 16)


SCALES = {
    scale.name: scale
    for scale in (
        # Two cores and an afternoon: 2.1 M and 7.5 M parameters.
        Scale(
            "cpu",
            model=Model(192, layers=3, heads=3, ffn=512),
            confirm=Model(320, layers=5, heads=5, ffn=864),
            widths=tuple(map(_width, (64, 128, 256, 512))),
            vocab_size=2048,
            seq_len=256,
            batch_size=4,
            search_tokens=1 << 19,
            final_tokens=1 << 21,
            long_tokens=1 << 22,
            attention="eager",  # compiled, it takes half the time of torch's kernel for processors
        ),
        # The papers' 60 M and 130 M, some 20 tokens a parameter: bring text of that size with --text.
        Scale(
            "gpu",
            model=Model(512, layers=8, heads=8, ffn=1376),
            confirm=Model(768, layers=12, heads=12, ffn=2048),
            widths=tuple(map(_width, (256, 512, 1024, 2048))),
            vocab_size=32_000,
            seq_len=256,
            batch_size=128,
            search_tokens=1 << 27,
            final_tokens=1 << 30,
            long_tokens=1 << 31,
            micro_batch=64,
            device="cuda",
            evaluations=16,
            validation_windows=1024,
        ),
        # Seconds a run, for the tests of the runner: its numbers say nothing.
        Scale(
            "test",
            model=Model(16, layers=1, heads=2, ffn=32),
            confirm=Model(32, layers=1, heads=2, ffn=64),
            widths=(Model(16, layers=1, heads=2, ffn=32), Model(32, layers=1, heads=2, ffn=64)),
            vocab_size=300,
            seq_len=16,
            batch_size=2,
            search_tokens=64,
            final_tokens=128,
            long_tokens=256,
            validation_windows=4,
            evaluations=2,
            compile=None,
        ),
    )
}
