"""Sleep of fixed maps, in plain operations: what ``sleep`` computes."""

from __future__ import annotations

import pytest
import torch

from drowsy.neuron import FixedSleep, sleep
from drowsy.sleep import FILLS, NEIGHBOUR_FILLS, Grain, SleepSpec, levels

GRAINS = ("neuron", "position", "tile:1x4", "position:8", "channel", "channel:4", "tile:8x2")


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("j", [1, 5, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fixed_sleep_is_sleep(fill: str, grain: str, j: int, dtype: torch.dtype) -> None:
    spec = SleepSpec("bernoulli", grain, stream=2)
    if fill in NEIGHBOUR_FILLS and not spec.grain.of_single_positions:
        pytest.skip("fills from neighbours need single positions")
    shape = (2, 6, 7, 5)
    y = torch.randn(shape).to(dtype)
    drawn = levels(spec, shape, torch.tensor([1, 2]))
    table = torch.randn(256, 9, 6).to(dtype)
    scale = 8 / (8 - j) if fill == "rescale" else 1.0
    expected = sleep(y, drawn, j, scale, spec.grain, fill, table)
    before = y.clone()
    found = FixedSleep(drawn, j, scale, shape, dtype, spec.grain, fill)(y, table)
    assert torch.equal(y, before)
    if fill in ("interpolate", "stencil"):
        error = torch.finfo(dtype).eps * 8
        torch.testing.assert_close(found, expected, rtol=error, atol=error)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("fill", FILLS)
def test_what_a_sleeper_held_leaves_no_trace(fill: str) -> None:
    shape, grain = (2, 6, 7, 5), Grain.parse("neuron")
    drawn = levels(SleepSpec(), shape, torch.tensor([1, 2]))
    asleep = (drawn < 4).view(2, 7, 5, 6).permute(0, 3, 1, 2)
    y, table = torch.randn(shape), torch.randn(256, 9, 6)
    fixed = FixedSleep(drawn, 4, 1.0, shape, y.dtype, grain, fill)
    expected = fixed(y, table)
    for poison in (float("nan"), float("inf")):
        assert torch.equal(fixed(y.masked_fill(asleep, poison), table), expected)
