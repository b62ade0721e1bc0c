"""The model: Hugging Face's Llama from a configuration, with random weights. Nothing is downloaded."""

from __future__ import annotations

import os

import torch
from torch import nn

from .errors import UsageError

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def build_model(
    *,
    vocab_size: int,
    hidden: int,
    layers: int,
    heads: int,
    ffn: int,
    seq_len: int,
    tied: bool,
    seed: int,
    attention: str = "sdpa",
) -> nn.Module:
    """A ``LlamaForCausalLM`` in fp32. The same arguments give the same weights, whatever ran before.

    ``attention`` is transformers' ``attn_implementation``."""
    if hidden % heads or (hidden // heads) % 2:
        raise UsageError(
            f"--hidden {hidden} --heads {heads}: a head's width must be a whole even number; change one"
        )
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=seq_len,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation=attention,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def next_token_loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats a token, in fp32. ``batch``: ``[n, seq_len + 1]`` token ids."""
    logits = model(input_ids=batch[:, :-1]).logits
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
