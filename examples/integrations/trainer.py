"""Hugging Face's Trainer: the two lines that differ from a script with AdamW end in a number."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from sage_ext.integrations.transformers import HybridFactory  # 1

config = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=32,
)
rows = [{"input_ids": row, "labels": row} for row in torch.arange(32 * 16).reshape(32, 16) % 61]

trainer = Trainer(
    LlamaForCausalLM(config),
    TrainingArguments("runs/trainer", max_steps=20, save_steps=10, report_to=[], use_cpu=True),
    train_dataset=rows,
    optimizer_cls_and_kwargs=(HybridFactory, {"preset": "sage", "lr": 2e-3, "weight_decay": 0.1}),  # 2
)
trainer.train()
