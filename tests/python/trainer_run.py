"""A run of Hugging Face's Trainer. ``python trainer_run.py FOLDER STEP`` kills itself in that step."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from sage_ext.integrations.transformers import HybridFactory

STEPS, SAVED = 6, 2
ARGUMENTS = {"preset": "sinkgd", "lr": {"adamw": 1e-2, "sinkgd": 2e-2}, "weight_decay": 0.1}


def model_of(vocabulary: int = 29) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        attention_bias=True,
    )
    torch.manual_seed(5)
    return transformers.LlamaForCausalLM(config)


def trainer_of(folder: Path, model: nn.Module, kwargs: dict[str, Any], **arguments: Any) -> Any:
    rows = [{"input_ids": row, "labels": row} for row in torch.arange(256).reshape(64, 4) * 7 % 29]
    settings = {
        "max_steps": STEPS, "save_steps": SAVED, "use_cpu": True, "report_to": [], "disable_tqdm": True,
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "warmup_steps": 2, "seed": 3,
        "lr_scheduler_type": "cosine", "max_grad_norm": 0.5, "logging_strategy": "no",
    }  # fmt: skip
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(str(folder), **{**settings, **arguments}),
        train_dataset=rows,
        optimizer_cls_and_kwargs=(HybridFactory, kwargs),
    )


class KillAt(transformers.TrainerCallback):
    """Kills the process behind a step's last forward pass, before the optimizer makes it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    trainer = trainer_of(Path(sys.argv[1]), model_of(), ARGUMENTS)
    trainer.add_callback(KillAt(int(sys.argv[2])))
    trainer.train()
