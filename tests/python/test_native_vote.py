"""The native functions of the majority vote against those in plain PyTorch, bit for bit; what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import support
import torch
from torch import Tensor

from sage_ext import _loader
from sage_ext.reference import vote as reference

SIZES = (0, 1, 31, 32, 777, 4097, 65535, 65536, 65537)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def native() -> Any:
    return _loader.load()


def numbers(numel: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Normal numbers, a tenth of them zeros of either sign, and a few that are not finite."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(numel, generator=draw, device="cpu")
    kind = torch.randint(40, (numel,), generator=draw, device="cpu")
    for place, value in enumerate((0.0, -0.0, 0.0, -0.0, torch.nan, torch.inf, -torch.inf)):
        values[kind == place] = value
    return values.to(torch.get_default_device(), dtype)


def room(numel: int, voters: int) -> Tensor:
    return torch.full((voters, 2, reference.vote_words(numel, voters)), 0x55AA, dtype=torch.int32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", SIZES)
@pytest.mark.parametrize("voters", [1, 2, 9])
def test_packs(native: Any, device: torch.device, numel: int, voters: int, dtype: torch.dtype) -> None:
    grad = numbers(numel, dtype)
    ours, theirs = room(numel, voters), room(numel, voters)
    native.pack_votes(grad, None, ours, 0.0)
    reference.pack_votes(grad, None, theirs, 0.0)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numel", [1, 777, 65537])
def test_packs_momentum(
    native: Any, device: torch.device, numel: int, state_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    moments = [numbers(numel, state_dtype, 9).nan_to_num(1.0, 1.0, 1.0)]
    moments.append(moments[0].clone())
    for seed in range(3):
        grad = numbers(numel, dtype, seed)
        packed = [room(numel, 3), room(numel, 3)]
        native.pack_votes(grad, moments[0], packed[0], 0.9)
        reference.pack_votes(grad, moments[1], packed[1], 0.9)
        assert torch.equal(*packed)
        assert torch.equal(*moments)
    assert moments[0].isfinite().all()


@pytest.mark.parametrize("voters", [*range(1, 10), 16, 200])
def test_counts(native: Any, device: torch.device, voters: int) -> None:
    words = reference.vote_words(8000, 1)
    packed = []
    for voter in range(voters):
        packed.append(room(8000, 1))
        reference.pack_votes(numbers(8000, torch.float32, voter), None, packed[-1], 0.0)
    received = torch.cat(packed)
    ours, theirs = torch.empty(2, words, dtype=torch.int32), torch.empty(2, words, dtype=torch.int32)
    native.count_votes(received, ours)
    reference.count_votes(received, theirs)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", SIZES)
@pytest.mark.parametrize("voters", [1, 2, 9])
def test_unpacks(native: Any, device: torch.device, numel: int, voters: int, dtype: torch.dtype) -> None:
    packed = room(numel, voters)
    values = numbers(numel, dtype)
    reference.pack_votes(values, None, packed, 0.0)
    ours, theirs = torch.full((numel,), 3.0, dtype=dtype), torch.full((numel,), 3.0, dtype=dtype)
    native.unpack_votes(packed, ours)
    reference.unpack_votes(packed, theirs)
    support.assert_same_numbers([ours], [theirs])
    expected = torch.where(values.isfinite(), torch.sign(values), torch.nan)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


def test_a_vote_in_float64_is_the_reference_s(native: Any) -> None:
    values = torch.tensor([1e-300, -1e-300, 0.0, torch.nan], dtype=torch.float64)
    packed, got = room(4, 2), torch.empty(4, dtype=torch.float64)
    reference.pack_votes(values, None, packed, 0.0)
    reference.unpack_votes(packed, got)
    assert got[:3].tolist() == [1.0, -1.0, 0.0]
    assert got[3].isnan()


def test_autograd_hears_of_what_is_written(native: Any) -> None:
    grad, exp_avg, packed = torch.ones(5), torch.zeros(5), room(5, 1)
    native.pack_votes(grad, exp_avg, packed, 0.5)
    native.count_votes(packed, packed[0].clone())
    native.unpack_votes(packed, grad)
    assert (grad._version, exp_avg._version, packed._version) == (1, 1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"grad": torch.ones(5, 1)},
            r"^grad: got shape \[5, 1\].*one dimension, float32, bfloat16 or float16",
        ),
        ({"grad": torch.ones(10)[::2]}, r"^grad: got shape \[5\].*not contiguous; expected"),
        ({"grad": torch.ones(5).double()}, "^grad: got .*dtype double"),
        ({"grad": torch.ones(5, device="meta")}, "^grad: got .*device meta"),
        ({"exp_avg": torch.ones(4)}, "^exp_avg: got .*expected the gradient's length and device"),
        (
            {"packed": room(5, 2).long()},
            r"^packed: got .*expected contiguous int32 of shape \[voters, 2, words\]",
        ),
        ({"packed": room(5, 2)[0]}, "^packed: got "),
        ({"packed": room(500, 2)}, "^packed: got .*expected 4 words for 5 coordinates and 2 voters"),
        ({"packed": torch.zeros(2 * 8 + 1, dtype=torch.int32)[1:].view(2, 2, 4)}, "16-byte boundary"),
        ({"momentum": 1.0}, "^momentum is 1.000000; it must be in"),
    ],
)
def test_refuses_to_pack(native: Any, changes: dict[str, Any], message: str) -> None:
    arguments = {"grad": torch.ones(5), "exp_avg": torch.zeros(5), "packed": room(5, 2), "momentum": 0.5}
    arguments.update(changes)
    with pytest.raises(ValueError, match=message):
        native.pack_votes(**arguments)
    assert (arguments["exp_avg"][:4] == changes.get("exp_avg", torch.zeros(5))[:4]).all()


def test_refuses_to_count_and_to_unpack(native: Any) -> None:
    with pytest.raises(ValueError, match=r"^result: got shape \[2, 8\].*expected the words of a piece, 4"):
        native.count_votes(room(5, 3), torch.zeros(2, 8, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"^received: got shape \[0, 2, 4\]"):
        native.count_votes(room(5, 3)[:0], torch.zeros(2, 4, dtype=torch.int32))
    grad = torch.ones(5)
    with pytest.raises(ValueError, match=r"^packed: got .*expected 4 words"):
        native.unpack_votes(room(500, 1), grad)
    assert (grad == 1).all()
