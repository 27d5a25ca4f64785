"""``fill_sleepers`` against the eager fills: copies bit for bit, sums within an error budget.

Sleepers hold NaN before they are filled, so that reading one shows. Budget of a sum: no further
from float64 than eager torch is, plus the rounding of a sum of 24 terms in another order.
"""

from __future__ import annotations

import math
from typing import Any

import drowsy_kernels as kernels
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.neuron import sleep
from drowsy.sleep import FILLS, NEIGHBOUR_FILLS, Grain, expand_cells, pack_bitmap
from tests.kernels.slopes import slopes_of

Shape = tuple[int, int, int, int]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Odd sizes with more than one word of channels, one row of positions, few channels.
SHAPES: tuple[Shape, ...] = ((2, 37, 5, 6), (1, 64, 1, 9), (1, 5, 7, 5))
SINGLE = ("neuron", "position", "position:3", "position:16", "tile:1x5")
COARSE = ("channel", "channel:3", "tile:5x4", "tile:16x16")


class Map:
    """Outputs with a random sleep map; ``poisoned`` has NaN where neurons sleep."""

    def __init__(self, shape: Shape, grain: str, dtype: torch.dtype, j: int) -> None:
        n, channels, height, width = shape
        self.grain, self.j = Grain.parse(grain), j
        self.cell = self.grain.cell(channels, height * width)
        size = (n, math.ceil(height * width / self.cell[0]), math.ceil(channels / self.cell[1]))
        self.levels = torch.randint(0, 8, size, dtype=torch.uint8)
        self.bitmap = pack_bitmap(self.levels < j)
        self.asleep = expand_cells(self.levels < j, shape, self.grain)
        self.awake = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
        self.poisoned = self.awake.clone().masked_fill_(self.asleep, math.nan)
        # Weights of neighbours that sleep are not read either.
        unread = torch.arange(256)[:, None] >> torch.arange(9) & 1 == 0
        unread[:, 8] = False
        self.table = torch.randn(256, 9, channels).masked_fill_(unread[:, :, None], math.nan)

    def eager(self, fill: str, dtype: torch.dtype | None = None) -> Tensor:
        y = self.awake if dtype is None else self.awake.to(dtype)
        return sleep(y, self.levels, self.j, 1.0, self.grain, fill, self.table)

    def run(self, fill: str, device: torch.device, **options: Any) -> Tensor:
        y = self.poisoned.to(device)
        if fill == "stencil":
            options.setdefault("table", self.table.to(device))
        filled = kernels.fill_sleepers(y, self.bitmap.to(device), self.cell, fill, **options)
        assert filled is y
        return filled.cpu()


def on(device: torch.device, tensor: Tensor) -> Tensor:
    return tensor.to(device).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("grain", SINGLE)
@pytest.mark.parametrize("fill", NEIGHBOUR_FILLS)
def test_sleepers_are_filled_from_awake_neighbours(
    fill: str, grain: str, triton_device: torch.device
) -> None:
    # At 7/8 some sleepers have nobody near, at 3/8 few look beyond their neighbours.
    for shape, j, dtype in zip(SHAPES, (7, 3, 5), DTYPES, strict=True):
        case = Map(shape, grain, dtype, j)
        filled = case.run(fill, triton_device)
        assert torch.equal(filled[~case.asleep], case.awake[~case.asleep])
        if fill == "nearest":
            assert torch.equal(filled, case.eager(fill))
            continue
        exact = case.eager(fill, torch.float64)
        budget = (case.eager(fill).double() - exact).abs().max()
        terms = case.awake.abs().max() * (
            case.table.nan_to_num().abs().max() if fill == "stencil" else 1
        )
        budget += torch.finfo(dtype).eps * math.sqrt(24) * terms
        assert (filled.double() - exact).abs().max() <= budget, (shape, dtype)


@pytest.mark.parametrize("grain", [*SINGLE, *COARSE])
def test_zero_is_written_over_every_sleeper(grain: str, triton_device: torch.device) -> None:
    for shape in SHAPES:
        case = Map(shape, grain, torch.float16, 4)
        for fill in ("zero", "rescale"):
            assert torch.equal(case.run(fill, triton_device), case.eager("zero"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grain", ["neuron", "position", "tile:16x16"])
def test_sleepers_get_the_residual_and_its_activation(
    grain: str, dtype: torch.dtype, triton_device: torch.device
) -> None:
    case = Map(SHAPES[0], grain, dtype, 4)
    residual = torch.randn(SHAPES[0]).to(dtype)
    filled = case.run(
        "rescale", triton_device, residual=on(triton_device, residual), post_activation="relu"
    )
    assert torch.equal(filled, torch.where(case.asleep, residual.relu(), case.awake))
    slopes = slopes_of("prelu", SHAPES[0][1], residual)
    assert slopes is not None
    filled = case.run(
        "zero",
        triton_device,
        residual=on(triton_device, residual),
        post_activation="prelu",
        post_slopes=slopes.to(triton_device),
    )
    exact = torch.where(case.asleep, F.prelu(residual.double(), slopes.double()), case.awake)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(filled.double(), exact.double(), rtol=eps, atol=0)
    alone = case.run("zero", triton_device, post_activation="sigmoid")
    half = torch.full((), 0.5, dtype=dtype)
    assert torch.equal(alone, torch.where(case.asleep, half, case.awake))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grain", ["neuron", "position"])
def test_table_may_have_any_precision(
    grain: str, dtype: torch.dtype, triton_device: torch.device
) -> None:
    case = Map((1, 19, 6, 5), grain, torch.float32, 4)
    case.table = case.table.to(dtype)
    filled = case.run("stencil", triton_device)
    torch.testing.assert_close(filled, case.eager("stencil"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("fill", NEIGHBOUR_FILLS)
def test_awake_nan_and_infinity_reach_who_takes_from_them(
    fill: str, value: float, triton_device: torch.device
) -> None:
    case = Map((1, 8, 7, 6), "neuron", torch.float32, 4)
    case.awake[0, :, 3, 3] = value
    case.poisoned = case.awake.clone().masked_fill_(case.asleep, math.nan)
    filled = case.run(fill, triton_device)
    torch.testing.assert_close(filled, case.eager(fill), equal_nan=True)
    assert filled.isfinite().any()


@pytest.mark.parametrize("fill", FILLS)
def test_nobody_awake_and_nobody_asleep(fill: str, triton_device: torch.device) -> None:
    everyone = Map((1, 20, 5, 4), "position", torch.float32, 8)
    alone = everyone.table[0, 8, :, None, None] if fill == "stencil" else torch.zeros(())
    assert torch.equal(everyone.run(fill, triton_device), alone.expand(1, 20, 5, 4))
    nobody = Map((1, 20, 5, 4), "position", torch.float32, 0)
    assert torch.equal(nobody.run(fill, triton_device), nobody.awake)


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)])
@pytest.mark.parametrize("fill", FILLS)
def test_empty_outputs(fill: str, shape: Shape, triton_device: torch.device) -> None:
    y = on(triton_device, torch.empty(shape))
    bitmap = torch.zeros(
        (shape[0], shape[2] * shape[3], 1), dtype=torch.int32, device=triton_device
    )
    table = torch.zeros(256, 9, shape[1], device=triton_device)
    assert kernels.fill_sleepers(y, bitmap, (1, 1), fill, table=table) is y


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fill": "doze"}, "fill: got 'doze', allowed: zero, rescale, nearest, interpolate"),
        ({"fill": "nearest", "cell": (9, 1)}, "cell: got .* with fill 'nearest', allowed: one pos"),
        (
            {"fill": "nearest", "residual": torch.zeros(1, 8, 3, 3)},
            "residual, post_activation: got",
        ),
        ({"fill": "interpolate", "post_activation": "relu"}, "residual, post_activation: got one"),
        ({"fill": "stencil"}, "table: got None with fill 'stencil', allowed: a tensor"),
        ({"fill": "stencil", "table": torch.zeros(256, 8, 8)}, "table: got shape"),
        ({"fill": "stencil", "table": torch.zeros(256, 9, 8).int()}, "table: got torch.int32"),
        ({"post_activation": "relu7"}, "activation: got 'relu7'"),
        ({"cell": (1,)}, "cell: got"),
        ({"y": torch.zeros(8, 3, 3)}, "y: got shape"),
        ({"y": torch.zeros(1, 8, 3, 3)}, r"y \(as N, OH, OW, C\): got shape"),
        ({"y": torch.zeros(1, 8, 3, 3).double()}, "y .*got torch.float64"),
        ({"residual": torch.zeros(1, 8, 3, 2)}, "residual .*got shape"),
        ({"residual": torch.zeros(1, 8, 3, 3).half()}, "residual .*got torch.float16"),
        ({"bitmap": torch.zeros(1, 9, 2, dtype=torch.int32)}, "bitmap: got shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_named(
    change: dict[str, Any], message: str, triton_device: torch.device
) -> None:
    arguments: dict[str, Any] = {
        "y": torch.zeros(1, 8, 3, 3).contiguous(memory_format=torch.channels_last),
        "bitmap": torch.zeros(1, 9, 1, dtype=torch.int32),
        "cell": (1, 1),
        "fill": "zero",
    } | change
    arguments = {
        name: value.to(triton_device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    with pytest.raises((ValueError, TypeError), match=message):
        kernels.fill_sleepers(**arguments)
