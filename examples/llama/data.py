"""Batches out of a token file. The position is one number, which makes resuming exact."""

from __future__ import annotations

import numpy as np
import torch

from .errors import UsageError


class Batches:
    """Windows of ``seq_len + 1`` tokens (the last only a target), each seen once an epoch in a random order.

    The order of an epoch comes from ``(seed, epoch)`` alone, so ``position``, the count of windows handed
    out so far, is the whole state.
    """

    def __init__(self, tokens: np.ndarray, *, batch_size: int, seq_len: int, seed: int) -> None:
        self.tokens, self.batch_size, self.seq_len, self.seed = tokens, batch_size, seq_len, seed
        self.windows = (len(tokens) - 1) // seq_len
        if self.windows < batch_size:
            raise UsageError(
                f"--text: {len(tokens):,} training tokens are too few for one batch of {batch_size} "
                f"windows of {seq_len}; give more text, or a smaller --seq-len or --batch-size"
            )
        self.position = 0
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def next(self) -> torch.Tensor:
        """The next batch: ``[batch_size, seq_len + 1]`` int64."""
        starts = np.array([self._window(self.position + i) * self.seq_len for i in range(self.batch_size)])
        self.position += self.batch_size
        return _gather(self.tokens, starts, self.seq_len)

    def _window(self, position: int) -> int:
        epoch, index = divmod(position, self.windows)
        if epoch != self._epoch:
            self._epoch, self._order = (
                epoch,
                np.random.default_rng((self.seed, epoch)).permutation(self.windows),
            )
        return int(self._order[index])


def validation_batches(
    tokens: np.ndarray, *, count: int, batch_size: int, seq_len: int
) -> list[torch.Tensor]:
    """The same ``count`` windows every time, spread evenly over the tokens (all if there are fewer)."""
    windows = (len(tokens) - 1) // seq_len
    if windows < 1:
        raise UsageError(
            f"--text: the validation part has {len(tokens):,} tokens, too few for one window of {seq_len}; "
            "give more text, a larger --val-fraction or a smaller --seq-len"
        )
    count = min(count, windows)
    starts = np.arange(count) * windows // count * seq_len
    return [_gather(tokens, starts[i : i + batch_size], seq_len) for i in range(0, count, batch_size)]


def _gather(tokens: np.ndarray, starts: np.ndarray, seq_len: int) -> torch.Tensor:
    return torch.from_numpy(tokens[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64))
