"""Runs of accelerate and Lightning. ``python killed_run.py NAME FOLDER STEP`` kills itself in that step.

ALIAS and AdamW in one optimizer: bit planes, numbers of a group, moments and step counters."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import models
import torch
from models import TinyLanguageModel, loss_of

from sage_ext.optimizers import FusedHybrid

STEPS, SAVED = 6, 2
"""Steps of a run, and from one checkpoint to the next."""


def built() -> tuple[TinyLanguageModel, FusedHybrid, Any]:
    torch.manual_seed(5)
    model = TinyLanguageModel()
    optimizer = FusedHybrid(model, "alias", weight_decay=0.1)
    return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def accelerate(folder: Path, killed_in: int | None = None) -> list[torch.Tensor]:
    """Train from the last checkpoint in the folder, or from the beginning."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, schedule = built()
    prepared = accelerator.prepare(model, optimizer, schedule)
    saved = sorted(folder.glob("step-*"))
    if saved:
        accelerator.load_state(str(saved[-1]))
    first = int(saved[-1].name.removeprefix("step-")) if saved else 0
    for step in range(first, STEPS):
        prepared[1].zero_grad()
        loss = loss_of(prepared[0], int(torch.randint(1000, ())))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 0.5)
        if step == killed_in:
            die()
        prepared[1].step()
        prepared[2].step()
        if (step + 1) % SAVED == 0:
            accelerator.save_state(str(folder / f"step-{step + 1}"))
    return models.snapshot(optimizer)


def lightning(folder: Path, killed_in: int | None = None) -> list[torch.Tensor]:
    """The same with a Trainer."""
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.optimizer, self.schedule = built()

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            return loss_of(self.model, int(batch))

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.global_step == killed_in:
                die()

        def configure_optimizers(self) -> dict[str, Any]:
            return {
                "optimizer": self.optimizer,
                "lr_scheduler": {"scheduler": self.schedule, "interval": "step"},
            }

    saves = pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=SAVED, save_top_k=-1)
    module = Module()
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=STEPS, gradient_clip_val=0.5, callbacks=[saves], **quiet
    )
    saved = sorted(folder.glob("*.ckpt"))
    # An epoch ends with a checkpoint: Lightning goes on with the next one.
    trainer.fit(module, torch.utils.data.DataLoader(range(SAVED)), ckpt_path=saved[-1] if saved else None)
    return models.snapshot(module.optimizer)


RUNS = {"accelerate": accelerate, "lightning": lightning}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    RUNS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
