"""The training loop: one run of one optimizer, resumable bit for bit."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from . import checkpoint, optim, products
from .corpus import Corpus
from .data import Batches, validation_batches
from .errors import UsageError
from .model import build_model, next_token_loss
from .parallel import Alone
from .settings import Settings

LOG_EVERY = 10  # steps, on a GPU
SMOOTHING = 0.95  # of the loss that the progress bar shows


@dataclass
class History:
    """What a run measured: index ``i`` is step ``i + 1``; others hold ``[step, value]`` pairs.

    ``step_size`` has a list for each role or rule of the optimizer, ``sent_bytes`` what each process sent in
    the step, where that is counted. Losses are means over the processes, times the first one's. ``seconds``
    and ``cpu_seconds`` are of the whole run, validation included; the second does not grow with what else
    the machine has to do.
    """

    loss: list[float] = field(default_factory=list)
    optimizer_ms: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    validation: list[list[float]] = field(default_factory=list)
    step_size: dict[str, list[list[float]]] = field(default_factory=dict)
    sent_bytes: list[list[Any]] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class Interrupt:
    """Turns the first Ctrl-C (or SIGTERM) into a flag, read between steps; a second one ends the process."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> Interrupt:
        self._previous = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def _note(self, number: int, _frame) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
        print(
            "\nStopping after this step (again to stop at once, without saving) ...",
            file=sys.stderr,
            flush=True,
        )

    def __exit__(self, *_exc) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def lr_factor(step: int, *, steps: int, warmup: int, final: float) -> float:
    """The factor on the learning rate of a step (from 0): linear warm-up, then cosine to ``final``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


Callback = Callable[["Trainer"], None]


def record_step_size(trainer: Trainer) -> None:
    """The callback that keeps how far each logged step went: ALIAS finds its own schedule, and this shows
    it."""
    for rule, size in optim.step_sizes(trainer.optimizer).items():
        trainer.history.step_size.setdefault(rule, []).append([trainer.step, size])


class Trainer:
    """A model, its optimizer and its place in the data; ``save`` and ``restore`` are exact.

    ``model`` has the parameters; ``runner`` is called, and is the model or what several processes put around
    it. All of them come to every call here.
    """

    def __init__(
        self,
        settings: Settings,
        corpus: Corpus,
        folder: Path | None = None,
        processes: Alone | None = None,
    ) -> None:
        s = self.settings = settings
        self.corpus, self.folder = corpus, folder
        self.processes = processes or Alone()
        self.device = torch.device(s.device)
        self.batches = Batches(corpus.train, batch_size=s.batch_size, seq_len=s.seq_len, seed=s.seed)
        self.validation = validation_batches(
            corpus.validation, count=s.val_windows, batch_size=s.batch_size, seq_len=s.seq_len
        )
        self._products = products.where_needed(self.device, s.amp)
        self.model = build_model(
            vocab_size=corpus.vocab_size,
            hidden=s.hidden,
            layers=s.layers,
            heads=s.heads,
            ffn=s.ffn,
            seq_len=s.seq_len,
            tied=s.tied,
            seed=s.seed,
        ).to(self.device)
        self.runner = self.processes.wrap(self.model, s)
        self.choice = optim.parse(s.optimizer)
        self.optimizer = self.processes.build(self.choice, self.model, s.backend)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: lr_factor(step, steps=s.steps, warmup=s.warmup, final=s.final_lr)
        )
        # Called after every logged step, before the scheduler moves on.
        self.callbacks: list[Callback] = [record_step_size]
        self.history = History()
        self.step = 0
        self._takes_loss = optim.is_ours(self.optimizer)
        self._unread: list[torch.Tensor] = []  # losses still on the device
        self._sent: list[list[int]] = []  # by this process, not yet told to the first
        self._told_to_stop = False

    @property
    def finished(self) -> bool:
        return self.step >= self.settings.steps

    @property
    def diverged(self) -> bool:
        return bool(self.history.loss) and not math.isfinite(self.history.loss[-1])

    @property
    def evaluates(self) -> bool:
        """Whether validation follows the step just taken."""
        s = self.settings
        return self.step == s.steps or bool(s.eval_every and self.step % s.eval_every == 0)

    @property
    def is_logged(self) -> bool:
        """Whether the numbers of the step just taken are read: on a GPU that waits, so not of every one."""
        return self.evaluates or self.device.type == "cpu" or self.step % LOG_EVERY == 0

    def train_step(self, stop: bool = False) -> None:
        """Forward and backward over ``accumulate`` batches, clip, optimizer, scheduler.

        ``stop``: whether this process has been told to stop, which the others hear here.
        """
        s = self.settings
        started, sent = time.perf_counter(), self.processes.sent()
        total = torch.zeros((), device=self.device)
        for index in range(s.accumulate):
            batch = self.processes.share(self.batches.next()).to(self.device)
            with self._products(), self.processes.gathering(self.runner, index == s.accumulate - 1):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=s.amp == "bf16"):
                    loss = next_token_loss(self.runner, batch) / s.accumulate
                loss.backward()
            total += loss.detach()
        total, stops = self.processes.mean(torch.stack([total, torch.full_like(total, float(stop))]))
        if s.clip and self.processes.kind != "vote":  # scaled gradients have the same signs
            nn.utils.clip_grad_norm_(self.model.parameters(), s.clip)
        self._synchronize()
        before = time.perf_counter()
        # The loss as it is, also where gradients are clipped: ALIAS with a lower bound takes the first one.
        self.optimizer.step(**({"loss": total} if self._takes_loss else {}))
        self._synchronize()
        after = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.is_logged:
            for callback in self.callbacks:
                callback(self)
        self.scheduler.step()
        self._unread.append(total)
        if self.is_logged:
            self._told_to_stop = bool(stops)
        if sent is not None:
            self._sent.append([self.step, self.processes.sent() - sent])
        self.history.optimizer_ms.append((after - before) * 1e3)
        self.history.step_seconds.append(after - started)

    def read_losses(self) -> None:
        if self._unread:
            self.history.loss += torch.stack(self._unread).tolist()
            self._unread.clear()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss in nats a token over the fixed validation windows."""
        self.model.eval()
        total, count, first, step = 0.0, 0, self.processes.rank, self.processes.size
        for batch in self.validation:
            part = batch[first::step]
            # Pieces of a model take all processes to a forward pass: one without windows takes any.
            with (
                self._products(),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.amp == "bf16"),
            ):
                loss = next_token_loss(self.runner, (part if len(part) else batch[:1]).to(self.device))
            total += loss.item() * len(part)
            count += len(part)
        self.model.train()
        sums = torch.tensor([total, count], dtype=torch.float64)
        total, count = self.processes.mean(sums).tolist()
        return total / count

    def run(
        self,
        *,
        stop_at: int | None = None,
        checkpoint_every: int = 0,
        interrupt: Interrupt | None = None,
        say=None,
    ):
        """Trains to the last step, ``stop_at``, an interrupt or a loss that is not finite; then saves."""
        s = self.settings
        say = say or tqdm.write
        several = self.processes.size > 1

        def stops() -> bool:  # what all processes say alike, so that they leave together
            return self._told_to_stop if several else bool(interrupt and interrupt.signal)

        last = min(s.steps, stop_at or s.steps)
        smooth, first = None, self.step
        self._clock = time.perf_counter(), time.process_time()
        self.model.train()
        # disable=None: no bar where stderr is not a terminal, so that a log holds only the lines said.
        with tqdm(
            total=s.steps,
            initial=self.step,
            desc=self.choice.label,
            unit="step",
            disable=None if self.processes.is_first else True,
            dynamic_ncols=True,
        ) as bar:
            while self.step < last and not stops() and not self.diverged:
                self.train_step(bool(interrupt and interrupt.signal))
                if self.is_logged:
                    self.read_losses()
                    loss = self.history.loss[-1]
                    smooth = loss if smooth is None else SMOOTHING * smooth + (1 - SMOOTHING) * loss
                    rate = s.tokens_per_step * (self.step - first) / sum(self.history.step_seconds[first:])
                    bar.set_postfix_str(f"loss {smooth:.3f}, {rate:,.0f} tokens/s", refresh=False)
                if self.evaluates and not self.diverged:
                    value = self.evaluate()
                    self.history.validation.append([self.step, value])
                    say(
                        f"{self.choice.label}  step {self.step:>{len(str(s.steps))}}/{s.steps}  train loss "
                        f"{smooth:.3f}  validation loss {value:.3f}, perplexity {math.exp(value):.1f}"
                    )
                if checkpoint_every and self.step % checkpoint_every == 0 and self.step < last:
                    self._count_time()
                    self.save()
                bar.update()
        self.read_losses()
        self._count_time()
        stopped = self.step > first or stops()
        if self.folder and stopped and not self.diverged:
            self.save()

    def _count_time(self) -> None:
        (wall, cpu), self._clock = self._clock, (time.perf_counter(), time.process_time())
        self.history.seconds += self._clock[0] - wall
        self.history.cpu_seconds += self._clock[1] - cpu

    def result(self) -> dict[str, Any]:
        """The numbers of the report. Perplexity is infinite after divergence."""
        history, steps = self.history, self.settings.tokens_per_step
        value = math.inf if self.diverged or not history.validation else history.validation[-1][1]
        return {
            "optimizer": self.settings.optimizer,
            "label": self.choice.label,
            "about": self.choice.row.about,
            "optimizer_settings": self.choice.settings,
            "backend": getattr(self.optimizer, "backend", "torch"),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "steps_done": self.step,
            "validation_loss": value,
            "validation_perplexity": math.exp(value) if value < 700 else math.inf,
            "state_bytes": optim.state_bytes(self.optimizer),
            "optimizer_ms": median(history.optimizer_ms) if history.optimizer_ms else math.nan,
            "tokens_per_second": steps / median(history.step_seconds) if history.step_seconds else math.nan,
            "history": asdict(history),
        }

    def save(self) -> Path:
        """Writes the checkpoint of this step into the run's folder."""
        assert self.folder is not None
        self.read_losses()
        self._tell_sent()
        state = {
            "settings": self.settings.to_dict(),
            "tokens_digest": self.corpus.tokens_digest,
            "model": self.processes.whole(self.model.state_dict()),
            "optimizer": self.processes.whole(self.optimizer.state_dict()),
            "state_bytes": self.processes.everybody(optim.state_bytes(self.optimizer)),
            "votes": self.processes.votes(),
            "scheduler": self.scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            "step": self.step,
            "position": self.batches.position,
            "history": asdict(self.history),
        }
        return checkpoint.save(self.folder, state) if self.processes.is_first else self.folder

    def restore(self, state: dict[str, Any]) -> None:
        """Continues where ``state`` (of ``checkpoint.load``) was saved."""
        if state["tokens_digest"] != self.corpus.tokens_digest:
            raise UsageError(
                "--resume: the text has changed since the checkpoint was written, so the run cannot go "
                "on exactly; put the old text back, or start a new run with another --out"
            )
        self.processes.load(self.model, self.optimizer, state, ours=self._takes_loss)
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.step, self.batches.position = state["step"], state["position"]
        self.history = History(**state["history"])

    def _tell_sent(self) -> None:
        """Put what every process has sent into the history."""
        everybody = self.processes.everybody(self._sent)
        self._sent = []
        for rows in zip(*everybody, strict=True):
            self.history.sent_bytes.append([rows[0][0], [count for _, count in rows]])

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
