"""The majority vote over signs of ``sage_ext.distributed.MajorityVote``: packing, counting, unpacking.

The votes on ``numel`` coordinates are cut into ``voters`` pieces, for each voter one to count: int32 of shape
``(voters, 2, words)``, in each piece a bit plane of votes for +1 and one of votes for -1, 32 coordinates a
word. Both bits are set where a number is not finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sage_ext.reference._common import compute_dtype
from sage_ext.reference._signs import pack_signs, sign_words, unpack_signs

_WORDS = 4
"""Words come in 16 bytes."""


def vote_words(numel: int, voters: int) -> int:
    """Return how many words a plane has in a piece."""
    in_fours = voters * _WORDS
    return (sign_words(numel) + in_fours - 1) // in_fours * _WORDS


@torch.no_grad()
def pack_votes(grad: Tensor, exp_avg: Tensor | None, packed: Tensor, momentum: float) -> None:
    """Write ``packed``: the signs of a gradient, or of its momentum, as votes.

    Source: Bernstein et al., "signSGD with Majority Vote is Communication Efficient And Fault Tolerant"
    (arXiv 1810.05291), Algorithm 1: ``m <- momentum*m + (1-momentum)*g``, and the sign of the new m is sent.
    Ours: what is not finite is voted as such, and leaves its element of m as it was.

    Args:
        grad: flat, any floating dtype.
        exp_avg: m, flat; None for the signs of the gradient itself.
        packed: int32 of shape ``(voters, 2, vote_words(numel, voters))``.
        momentum: in [0, 1).
    """
    values = grad.to(compute_dtype(grad))
    if exp_avg is not None:
        dtype = compute_dtype(grad, exp_avg)
        values = momentum * exp_avg.to(dtype) + (1 - momentum) * grad.to(dtype)
        exp_avg.copy_(torch.where(values.isfinite(), values.to(exp_avg.dtype), exp_avg))
    ups = torch.where(values.isfinite(), values, 1)
    downs = torch.where(values.isfinite(), values, -1)
    voters, _, words = packed.shape
    planes = torch.stack([pack_signs(ups)[0], pack_signs(downs)[1]])
    whole = planes.new_zeros(2, voters * words)
    whole[:, : planes.shape[1]] = planes
    packed.copy_(whole.view(2, voters, words).transpose(0, 1))


@torch.no_grad()
def count_votes(received: Tensor, result: Tensor) -> None:
    """Write ``result``: what most votes on the coordinates of a piece are, of all voters' in ``received``.

    Args:
        received: int32 of shape ``(voters, 2, words)``, the same piece of each voter.
        result: int32 of shape ``(2, words)``: the signs of the sums of signs, and both bits where a voter has
            both.
    """
    like = torch.empty(32 * received.shape[2], dtype=torch.int32, device=received.device)
    total = torch.zeros_like(like)
    for planes in received:
        total += unpack_signs(planes, like)
    mark = torch.zeros_like(result[0])
    for up, down in received:
        mark |= up & down
    result.copy_(pack_signs(total) | mark)


@torch.no_grad()
def unpack_votes(packed: Tensor, grad: Tensor) -> None:
    """Write ``grad``: -1, 0 and 1, and NaN where a voter's number was not finite.

    Args:
        packed: int32 of shape ``(voters, 2, vote_words(numel, voters))``.
        grad: flat, any floating dtype.
    """
    planes = packed.transpose(0, 1).reshape(2, -1)
    grad.copy_(unpack_signs(planes, grad))
    both = planes[:1] & planes[1:]
    is_marked = unpack_signs(torch.cat([both, torch.zeros_like(both)]), grad)
    grad.masked_fill_(is_marked != 0, torch.nan)
