"""DeepSpeed ZeRO: the two lines that differ from a script with AdamW end in a number.

deepspeed examples/integrations/zero.py
"""

import deepspeed
import torch
from torch import nn

from sage_ext import FusedLion
from sage_ext.integrations.deepspeed import configure  # 1

torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(64, 32), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 64))
optimizer = FusedLion(model.named_parameters(), lr=1e-3)
config = {"train_micro_batch_size_per_gpu": 8, "zero_optimization": {"stage": 2}}

engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=configure(config, optimizer))  # 2
for _ in range(10):
    tokens = torch.randint(64, (8, 16), device=engine.device)
    loss = nn.functional.cross_entropy(engine(tokens).flatten(0, 1), tokens.flatten())
    engine.backward(loss)
    engine.step()
print(f"loss {loss.item():.3f}")
