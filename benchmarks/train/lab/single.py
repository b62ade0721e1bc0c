"""One run: train a model with a configuration, and return what the JSON keeps of it."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from llama import products
from llama.data import Batches, validation_batches
from llama.loop import lr_factor
from llama.model import build_model, next_token_loss
from torch import nn

from lab import build
from lab.text import Text

CURVE_POINTS = 32  # the training loss is kept as so many means over equal parts of the run


class Run:
    """A model, its optimizers and its data, for one configuration (see ``scales.Scale.config``)."""

    def __init__(self, config: dict[str, Any], text: Text) -> None:
        self.config = config
        self.device = torch.device(config["device"])
        torch.set_num_threads(config["threads"])
        sizes, seed = config["model"], config["seed"]
        attention = config["attention"]
        self.model = build_model(**sizes, seq_len=config["seq_len"], seed=seed, attention=attention).to(
            self.device
        )
        self.optimizers = build.optimizers(self.model, config["groups"])
        self.base = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        shape = {"batch_size": config["batch_size"], "seq_len": config["seq_len"]}
        self.batches = Batches(text.train, **shape, seed=seed)
        # The windows are the same whatever the batch of a run.
        self.validation = {
            kind: validation_batches(
                tokens, count=config["validation_windows"], batch_size=8, seq_len=config["seq_len"]
            )
            for kind, tokens in text.validation.items()
        }
        self.steps = config["tokens"] // (config["batch_size"] * config["seq_len"])
        self.warmup = max(round(config["warmup"] * self.steps), 1)
        self.averager = _averager(self.model, config["groups"])
        backend = config["compile"]
        uncompiled = products.where_needed(self.device, config["amp"])
        if uncompiled is products.Mended:
            products.mend_compiled()
        # Of the optimizers Muon alone multiplies in bf16; the others need not bear what looking costs.
        self.of_step = uncompiled if _has(config["groups"], "torch.optim.Muon") else nullcontext
        self.of_model = nullcontext if backend else uncompiled
        self.loss = (
            torch.compile(next_token_loss, backend=backend, dynamic=False) if backend else next_token_loss
        )

    def train(self) -> dict[str, Any]:
        """All steps, or as many as there are before the loss is not finite."""
        evaluate_at = {
            round(self.steps * (i + 1) / self.config["evaluations"])
            for i in range(self.config["evaluations"])
        }
        losses: list[float] = []
        sizes: list[list[float]] = []
        validation: list[dict[str, float]] = []
        optimizer_ms: list[float] = []
        settings = build.settings(self.optimizers)
        wall, cpu = time.perf_counter(), time.process_time()
        self._mode("train")
        for step in range(self.steps):
            self._set_rates(step)
            loss = self._gradients()
            losses.append(loss)
            if not math.isfinite(loss):
                break
            started = self._now()
            with self.of_step():
                for optimizer in self.optimizers:
                    # Ours take the loss, which ALIAS with a lower bound needs in its first step.
                    optimizer.step(**({"loss": loss} if hasattr(optimizer, "step_size") else {}))
            self._synchronize()
            optimizer_ms.append((self._now() - started) * 1e3)
            if self.averager:
                self.averager.step()
            self.model.zero_grad(set_to_none=True)
            sizes.append([_step_size(optimizer) for optimizer in self.optimizers])
            if step + 1 in evaluate_at:
                validation.append({"tokens": (step + 1) * self._tokens_per_step, **self.evaluate()})
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        finished = len(losses) == self.steps and math.isfinite(losses[-1])
        last = validation[-1]["loss"] if finished else math.inf
        diverged = not math.isfinite(last)
        return {
            "result": {
                # JSON has no infinity: null is a run that diverged.
                "loss": None if diverged else _short(last),
                "perplexity": None if diverged else _short(math.exp(last)),
                **({} if diverged else {f"loss_{kind}": validation[-1][kind] for kind in self.validation}),
                "diverged": diverged,
                "steps": len(optimizer_ms),
                "parameters": sum(p.numel() for p in self.model.parameters()),
                "state_bytes": build.state_bytes(self.optimizers) + self._average_bytes(),
                "optimizer_ms": _short(median(optimizer_ms)) if optimizer_ms else None,
                "wall_seconds": round(wall, 1),
                "cpu_seconds": round(cpu, 1),
            },
            "optimizers": settings,
            "curve": {
                "train_loss": _thin(losses, self.steps),
                "step_size": [_thin(list(each), self.steps) for each in zip(*sizes, strict=True)],
                "validation": [{key: _short(value) for key, value in point.items()} for point in validation],
            },
        }

    def _average_bytes(self) -> int:
        average = self.averager.averaged_model.parameters() if self.averager else ()
        return sum(p.numel() * p.element_size() for p in average)

    @property
    def _tokens_per_step(self) -> int:
        return self.config["batch_size"] * self.config["seq_len"]

    def _set_rates(self, step: int) -> None:
        if self.config["schedule"] == "constant":
            return
        factor = lr_factor(step, steps=self.steps, warmup=self.warmup, final=self.config["final_factor"])
        for optimizer, rates in zip(self.optimizers, self.base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    def _gradients(self) -> float:
        batch = self.batches.next().to(self.device)
        total = 0.0
        pieces = batch.split(self.config["micro_batch"])
        for piece in pieces:
            with self.of_model():
                with self._autocast():
                    loss = self.loss(self.model, piece) * (len(piece) / len(batch))
                loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config["clip"])
        return total

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean loss in nats a token: over all windows, and of each kind of text."""
        self._mode("eval")
        model = self.averager.averaged_model if self.averager else self.model
        model.eval()
        means = {}
        for kind, batches in self.validation.items():
            total = count = 0.0
            for batch in batches:
                with self.of_model(), self._autocast():
                    loss = self.loss(model, batch.to(self.device))
                total += float(loss) * len(batch)
                count += len(batch)
            means[kind] = total / count
        self._mode("train")
        mean = sum(means.values()) / len(means)
        return {"loss": _short(mean), **{kind: _short(value) for kind, value in means.items()}}

    def _mode(self, mode: str) -> None:
        """Training or evaluation, of the model and of optimizers that keep an average beside the weights."""
        getattr(self.model, mode)()
        for optimizer in self.optimizers:
            if hasattr(optimizer, "train") and hasattr(optimizer, "eval"):
                getattr(optimizer, mode)()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config["amp"] == "bf16")

    def _now(self) -> float:
        """Seconds, of the processor where it does the work: others may share it."""
        return time.process_time() if self.device.type == "cpu" else time.perf_counter()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def execute(config: dict[str, Any], text: Text) -> dict[str, Any]:
    """Trains with ``config`` and returns the parts "result", "optimizers" and "curve" of its JSON."""
    return Run(config, text).train()


def _has(groups: list[dict[str, Any]], optimizer: str) -> bool:
    return any(group["by"].startswith(optimizer) for group in groups)


def _averager(model: nn.Module, groups: list[dict[str, Any]]):
    """DoG's own average of the iterates, without which it has no schedule to end with."""
    if not _has(groups, "dog."):
        return None
    from dog import PolynomialDecayAverager

    return PolynomialDecayAverager(model)


def _step_size(optimizer: torch.optim.Optimizer) -> float:
    """How far the first group went: gamma of ALIAS, d * lr of what else finds its rate, else the rate."""
    if hasattr(optimizer, "step_size"):
        return optimizer.step_size(0)
    group = optimizer.param_groups[0]
    return float(group["lr"]) * float(group.get("d", 1.0))


def _thin(values: list[float], steps: int) -> list[float | None]:
    """Means of ``CURVE_POINTS`` equal parts of the run; a part that was not reached is left out."""
    points = min(CURVE_POINTS, steps)
    edges = [round(steps * i / points) for i in range(points + 1)]
    means = []
    for low, high in pairwise(edges):
        part = values[low:high]
        if part:
            mean = sum(part) / len(part)
            means.append(_short(mean) if math.isfinite(mean) else None)
    return means


def _short(value: float) -> float:
    return float(f"{value:.6g}")
