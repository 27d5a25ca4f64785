"""Bitmaps: one bit a cell."""

from __future__ import annotations

import math

import pytest
import torch
from drawing import MASK32

from drowsy.sleep import pack_bitmap, unpack_bitmap


@pytest.mark.parametrize("channels", [1, 8, 31, 32, 33, 64, 100])
def test_bitmap_holds_one_bit_a_cell(channels: int, generator: torch.Generator) -> None:
    asleep = torch.rand(3, 5, channels, generator=generator) < 0.5
    bitmap = pack_bitmap(asleep)
    assert bitmap.dtype == torch.int32
    assert bitmap.shape == (3, 5, math.ceil(channels / 32))
    assert torch.equal(unpack_bitmap(bitmap, channels), asleep)
    for cell in range(channels):
        word = bitmap[..., cell // 32].long() & MASK32
        assert torch.equal((word >> cell % 32 & 1).bool(), asleep[..., cell])
    padding = unpack_bitmap(bitmap, bitmap.shape[2] * 32)[..., channels:]
    assert not padding.any()


def test_bitmap_bytes_hold_eight_cells_each() -> None:
    asleep = torch.zeros(1, 1, 40, dtype=torch.bool)
    asleep[0, 0, [0, 9, 31, 39]] = True
    assert list(pack_bitmap(asleep).numpy().astype("<i4").tobytes()) == [1, 2, 0, 128, 128, 0, 0, 0]
