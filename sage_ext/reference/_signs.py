"""The signs of a tensor's elements as two bit planes: what ALIAS keeps of the last gradient.

The planes are int32 of shape ``(2, ceil(numel / 32))``: first that of x > 0, then that of x < 0. Element i,
in row-major order, is bit ``i % 32`` of word ``i // 32`` in both; bits behind the last element are 0. 0 and
NaN have neither bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_BITS = 32


def sign_words(numel: int) -> int:
    """Return how many 32-bit words a plane has."""
    return -(-numel // _BITS)


def pack_signs(values: Tensor) -> Tensor:
    """Return the bit planes of ``values`` (any shape and floating dtype)."""
    words = sign_words(values.numel())
    bits = torch.zeros(2, words * _BITS, dtype=torch.int64, device=values.device)
    flat = values.reshape(-1)
    bits[0, : flat.numel()] = flat > 0
    bits[1, : flat.numel()] = flat < 0
    # In 64 bits; the conversion takes the lower 32, whose highest is the sign.
    return (bits.reshape(2, words, _BITS) << _places(values)).sum(-1).to(torch.int32)


def unpack_signs(planes: Tensor, like: Tensor) -> Tensor:
    """Return 1, 0 and -1 with the shape, dtype and device of ``like``, whose signs ``planes`` has."""
    bits = (planes.unsqueeze(-1).to(torch.int64) >> _places(like)) & 1
    positive, negative = bits.reshape(2, -1)[:, : like.numel()].to(like.dtype)
    signs: Tensor = positive - negative
    return signs.reshape(like.shape)


def write_signs(kept: Tensor, values: Tensor, store: Callable[[Tensor, Tensor], object]) -> None:
    """Keep the signs of ``values``: as bit planes or, of a piece of a sharded tensor, as int8, which can be
    cut anywhere."""
    is_packed = kept.dtype != torch.int8
    store(
        kept, pack_signs(values) if is_packed else (values > 0).to(torch.int8) - (values < 0).to(torch.int8)
    )


def read_signs(kept: Tensor, like: Tensor) -> Tensor:
    """Return 1, 0 and -1 with the shape and dtype of ``like``, from what ``write_signs`` has kept."""
    return kept.to(like.dtype) if kept.dtype == torch.int8 else unpack_signs(kept, like)


def _places(tensor: Tensor) -> Tensor:
    return torch.arange(_BITS, device=tensor.device)
