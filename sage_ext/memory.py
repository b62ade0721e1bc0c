"""Which bytes a strided tensor occupies: what an in-place update must know about its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Extent(NamedTuple):
    """The half-open byte range between the first and the last element of a tensor."""

    device: str
    begin: int
    end: int
    owner: int


def extent(tensor: Tensor, owner: int) -> Extent | None:
    """Return the range that ``tensor`` spans, or None if it holds no memory (empty or a meta tensor)."""
    if tensor.numel() == 0 or tensor.device.type == "meta" or tensor.layout != torch.strided:
        return None
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = tensor.data_ptr()
    return Extent(str(tensor.device), begin, begin + (last + 1) * tensor.element_size(), owner)


def is_freed(tensor: Tensor) -> bool:
    """Whether the storage is smaller than what the shape takes: a wrapper has freed it (``resize_(0)``)."""
    if tensor.numel() == 0 or tensor.device.type == "meta" or hasattr(tensor, "__tensor_flatten__"):
        return False
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.untyped_storage().nbytes() < (tensor.storage_offset() + last + 1) * tensor.element_size()


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two indices may reach the same element, as in an expanded tensor."""
    if tensor.numel() == 0:
        return False
    covered = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= covered:
                return True
            covered += (size - 1) * stride
    return False


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their range without gaps, in some order of the dimensions."""
    if tensor.numel() == 0:
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def find_overlap(tensors: Sequence[Tensor]) -> tuple[int, int] | None:
    """Return the indices of two tensors that share memory, or None. Sorting makes it cheap for thousands."""
    extents = sorted(filter(None, (extent(tensor, index) for index, tensor in enumerate(tensors))))
    open_extents: list[Extent] = []  # those that reach beyond where the current one begins
    for current in extents:
        open_extents = [e for e in open_extents if e.device == current.device and e.end > current.begin]
        for other in open_extents:
            if _share_elements(tensors[other.owner], tensors[current.owner], other, current):
                return min(other.owner, current.owner), max(other.owner, current.owner)
        open_extents.append(current)
    return None


def _share_elements(first: Tensor, second: Tensor, a: Extent, b: Extent) -> bool:
    """Whether two tensors with overlapping ranges share a byte. Two column slices of a matrix do not."""
    if is_dense(first) and is_dense(second):
        return True
    size = first.element_size()
    if size != second.element_size() or (b.begin - a.begin) % size:
        return True  # views of different element sizes: assume the worst
    touched = torch.zeros((max(a.end, b.end) - a.begin) // size, dtype=torch.bool)
    touched.as_strided(first.shape, first.stride()).fill_(True)
    return bool(touched.as_strided(second.shape, second.stride(), (b.begin - a.begin) // size).any())
