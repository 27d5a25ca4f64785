"""Tables of the compact form against plain torch: index, taps and expansion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from drowsy_kernels import tables
from drowsy_kernels.tables import Geometry
from torch import Tensor

from drowsy.neuron import activate
from drowsy.sleep import pack_bitmap
from tests.kernels.slopes import slopes_of

SIZES = ((7, 5), (1, 9), (12, 12))
GEOMETRIES = (
    Geometry((7, 5), (3, 3), padding=(1, 1, 1, 1)),
    Geometry((9, 12), (3, 3), (2, 2), (1, 1, 1, 1)),
    Geometry((7, 5), (1, 1), (2, 2)),
    Geometry((8, 9), (5, 2), (1, 3), (0, 2, 1, 0), (2, 1)),
    Geometry((6, 6), (1, 1)),
)


@dataclass(frozen=True)
class Rows:
    """The awake rows of a map that all channels share."""

    indices: Tensor
    counts: Tensor


def make_map(
    images: int, positions: int, rate: float, device: torch.device
) -> tuple[Tensor, Tensor, Rows]:
    """``(asleep [N, P], bitmap, rows)`` with poison past the count."""
    asleep = torch.rand(images, positions) < rate
    awake = (~asleep).flatten().nonzero()[:, 0].to(torch.int32)
    indices = torch.full((1, images * positions), 2**31 - 1, dtype=torch.int32)
    indices[0, : len(awake)] = awake
    counts = torch.tensor([len(awake)], dtype=torch.int32)
    bitmap = pack_bitmap(asleep[:, :, None])
    return asleep, bitmap.to(device), Rows(indices.to(device), counts.to(device))


def expected_index(asleep: Tensor, size: tuple[int, int], fill: str) -> Tensor:
    """``row_index`` position by position."""
    own = (~asleep).flatten().cumsum(0) - 1
    own = own.masked_fill(asleep.flatten(), -1).view(-1, *size)
    if fill != "nearest":
        return own.flatten().to(torch.int32)
    window = sorted(
        ((dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)),
        key=lambda at: (at[0] ** 2 + at[1] ** 2, *at),
    )
    found = torch.full_like(own, -1)
    for n, y, x in torch.cartesian_prod(*map(torch.arange, own.shape)).tolist():
        for dy, dx in window:
            inside = 0 <= y + dy < size[0] and 0 <= x + dx < size[1]
            if inside and own[n, y + dy, x + dx] >= 0:
                found[n, y, x] = own[n, y + dy, x + dx]
                break
    return found.flatten().to(torch.int32)


def expected_table(geometry: Geometry, images: int, index: Tensor | None) -> Tensor:
    """Taps of every output position, ``[KH * KW, N * P]``: an unfold of the index map."""
    height, width = geometry.size
    if index is None:
        index = torch.arange(images * height * width)
    left, right, top, bottom = geometry.padding
    # Rows are shifted by one so that the padding's zeros come out as -1.
    padded = torch.nn.functional.pad(
        index.view(images, 1, height, width).double() + 1, (left, right, top, bottom)
    )
    taps = torch.nn.functional.unfold(
        padded, geometry.kernel_size, geometry.dilation, stride=geometry.stride
    )
    return (taps.permute(1, 0, 2).flatten(1) - 1).to(torch.int32)


@pytest.mark.parametrize("fill", tables.INDEX_FILLS)
@pytest.mark.parametrize("rate", [0, 0.3, 0.9, 1])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_row_index(
    size: tuple[int, int], rate: float, fill: str, triton_device: torch.device
) -> None:
    asleep, bitmap, rows = make_map(3, math.prod(size), rate, triton_device)
    out = torch.full((asleep.numel(),), 77, dtype=torch.int32, device=triton_device)
    index = tables.row_index(bitmap, rows, size, fill, out=out)
    assert index is out
    assert torch.equal(index.cpu(), expected_index(asleep, size, fill))


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("rate", [0, 0.5, 1])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_tap_table(
    geometry: Geometry, rate: float, compact: bool, triton_device: torch.device
) -> None:
    positions = math.prod(geometry.size_out)
    asleep, _, rows = make_map(2, positions, rate, triton_device)
    index = None
    if compact:
        asleep_in = torch.rand(2, math.prod(geometry.size)) < 0.5
        index = expected_index(asleep_in, geometry.size, "zero")
    on_device = None if index is None else index.to(triton_device)
    table = tables.tap_table(rows, 2, geometry, on_device)
    count = int(rows.counts)
    expected = expected_table(geometry, 2, index)[:, ~asleep.flatten()]
    assert torch.equal(table[:, :count].cpu(), expected)


@pytest.mark.parametrize("post", [None, "relu", "prelu"])
@pytest.mark.parametrize("channels", [1, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_expand_rows(
    dtype: torch.dtype, channels: int, post: str | None, triton_device: torch.device
) -> None:
    _, bitmap, rows = make_map(2, 35, 0.7, triton_device)
    index = tables.row_index(bitmap, rows, (7, 5), "nearest")
    data = torch.full((70, channels), math.nan)
    data[: int(rows.counts)] = torch.randn(int(rows.counts), channels)
    data = data.to(triton_device, dtype)
    shape = (2, channels, 7, 5)
    options: dict[str, Any] = {}
    taken = torch.where((index >= 0)[:, None], data[index.clamp(min=0).long()], 0)
    expected = taken.view(2, 7, 5, channels).permute(0, 3, 1, 2)
    if post is not None:
        residual = torch.randn(shape).to(triton_device, dtype)
        residual = residual.contiguous(memory_format=torch.channels_last)
        slopes = slopes_of(post, channels, data)
        options = {"residual": residual, "post_activation": post, "post_slopes": slopes}
        wide = None if slopes is None else slopes.float()
        expected = activate(expected.float() + residual.float(), post, wide).to(dtype)
    out = torch.full_like(expected, math.nan)
    y = tables.expand_rows(data, index, shape, out=out, **options)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("count", [0, 1, 70, 100])
def test_join_rows(count: int, triton_device: torch.device) -> None:
    parts = [torch.randn(100, channels).to(triton_device) for channels in (3, 70, 1)]
    out = torch.full((100, 74), math.nan, device=triton_device)
    counts = torch.tensor([count], dtype=torch.int32, device=triton_device)
    joined = tables.join_rows(parts, counts, out=out)
    assert torch.equal(joined[:count], torch.cat(parts, 1)[:count])
    assert joined[count:].isnan().all()


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(
    ("channels", "activation", "post"),
    [(3, "relu", "tanh"), (70, "prelu", "tanh"), (5, "tanh", "prelu")],
)
def test_fill_unread(
    channels: int, activation: str, post: str, with_residual: bool, triton_device: torch.device
) -> None:
    asleep, bitmap, _ = make_map(2, 35, 0.3, triton_device)
    empty, zeros, _ = make_map(2, 35, 0.5, triton_device)
    shape = (2, channels, 7, 5)
    y = torch.randn(shape).to(triton_device).contiguous(memory_format=torch.channels_last)
    bias, scale = torch.randn(channels).to(triton_device), torch.tensor([1.5], device=triton_device)
    residual = torch.randn(shape).to(triton_device) if with_residual else torch.zeros_like(y)
    residual = residual.contiguous(memory_format=torch.channels_last)
    here, slept = (m.view(2, 1, 7, 5).to(triton_device) for m in (empty | asleep, asleep))
    slopes, post_slopes = (slopes_of(name, channels, y) for name in (activation, post))
    awake = activate(bias.view(1, -1, 1, 1).clone(), activation, slopes) * 1.5
    unread = activate(torch.where(slept, 0, awake) + residual, post, post_slopes)
    expected = torch.where(here, unread, y)
    tables.fill_unread(
        y,
        bitmap,
        zeros,
        bias,
        activation=activation,
        slopes=slopes,
        scale=scale,
        residual=residual if with_residual else None,
        post_activation=post,
        post_slopes=post_slopes,
    )
    torch.testing.assert_close(y, expected)
    assert torch.equal(y[~here.expand(shape)], expected[~here.expand(shape)])


def test_empty_batch(triton_device: torch.device) -> None:
    _, bitmap, rows = make_map(0, 35, 0.5, triton_device)
    index = tables.row_index(bitmap, rows, (7, 5), "nearest")
    assert index.shape == (0,)
    assert tables.tap_table(rows, 0, GEOMETRIES[0], index).shape == (9, 0)
    data = torch.empty(0, 4, device=triton_device)
    assert tables.expand_rows(data, index, (0, 4, 7, 5)).shape == (0, 4, 7, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fill": "interpolate"}, "fill: got 'interpolate'"),
        ({"size": (5, 5)}, "bitmap: got shape"),
        ({"out": torch.zeros(3, dtype=torch.int32)}, "out: got shape"),
        ({"out": torch.zeros(70)}, "out: got torch.float32"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_index_arguments_are_named(
    change: dict[str, Any], message: str, triton_device: torch.device
) -> None:
    _, bitmap, rows = make_map(2, 35, 0.5, triton_device)
    arguments: dict[str, Any] = {"size": (7, 5), "fill": "zero", **change}
    with pytest.raises((ValueError, TypeError), match=message):
        tables.row_index(bitmap, rows, **arguments)


def test_bad_table_and_rows_are_named(triton_device: torch.device) -> None:
    _, bitmap, rows = make_map(2, 35, 0.5, triton_device)
    index = tables.row_index(bitmap, rows, (7, 5))
    with pytest.raises(ValueError, match="index: got shape"):
        tables.tap_table(rows, 2, GEOMETRIES[0], index[1:])
    with pytest.raises(ValueError, match=r"rows\.indices: got shape"):
        tables.tap_table(rows, 3, GEOMETRIES[0])
    data = torch.zeros(70, 4, device=triton_device)
    with pytest.raises(ValueError, match="rows: got shape"):
        tables.expand_rows(data, index, (2, 5, 7, 5))
    with pytest.raises(ValueError, match="residual"):
        tables.expand_rows(data, index, (2, 4, 7, 5), residual=torch.zeros(2, 4, 7, 5))
    with pytest.raises(ValueError, match="parts: got none"):
        tables.join_rows([], rows.counts)
    with pytest.raises(ValueError, match="parts: got shape"):
        tables.join_rows([data, data[1:]], rows.counts)
    full = torch.zeros(2, 4, 7, 5, device=triton_device).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="zeros: got shape"):
        tables.fill_unread(full, bitmap, bitmap[1:])
    with pytest.raises(ValueError, match="activation: got 'mish'"):
        tables.expand_rows(data, index, (2, 4, 7, 5), post_activation="mish")
