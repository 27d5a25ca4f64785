"""Areas: lists of positions from boxes, and kernels that write at listed positions alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import drowsy_kernels as kernels
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.video.areas import WHOLE, Box

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
IMAGES = 3
# Halves of odd sizes, blocks next to each other, nothing in one image, everything in another.
BOXES = [
    (0, Box((1, 2), (0, 1), (2, 1))),
    (2, Box((3, 5), (2, 7), (7, 7))),
    (2, Box((0, 3), (4, 5), (7, 7))),
]
MANY = [(i, Box((r, r + 1), (c, c + 1), (7, 7))) for i in (2, 0) for r in range(7) for c in (1, 4)]


def told(boxes: Sequence[tuple[int, Box]], device: torch.device) -> Tensor:
    """Boxes as ``list_areas`` takes them, behind them what must not be read."""
    fields = [[image, *box.rows, *box.columns, *box.grid] for image, box in boxes]
    head = [[len(boxes)] + [2**30] * (kernels.BOX_FIELDS - 1)]
    rest = [[2**30] * kernels.BOX_FIELDS] * 3
    return torch.tensor(head + fields + rest, dtype=torch.int32, device=device)


def within(boxes: Sequence[tuple[int, Box]], size: tuple[int, int]) -> list[int]:
    """Positions of boxes, by hand."""
    found = []
    for image, box in boxes:
        top, bottom, left, right = box.at(size)
        for row in range(top, bottom):
            found += [(image * size[0] + row) * size[1] + c for c in range(left, right)]
    return found


@pytest.mark.parametrize(
    "boxes",
    [[], BOXES, MANY, [(i, WHOLE) for i in range(IMAGES)]],
    ids=["no", "some", "many", "all"],
)
def test_lists_hold_the_positions_of_boxes_on_maps_of_any_size(
    boxes: list[tuple[int, Box]], triton_device: torch.device
) -> None:
    sizes = [(30, 23), (7, 7), (13, 5), (1, 1), (2, 3)]
    lists = kernels.area_lists(IMAGES, sizes, triton_device)
    lists.indices.fill_(-1)
    kernels.list_areas(told(boxes, triton_device), lists)
    for size in sizes:
        found = lists.of(size)
        count = int(found.counts)
        assert found.indices[0, :count].tolist() == within(boxes, size)
        # What lies behind is the list's own.
        assert found.indices[0, count:].eq(-1).all()


def listed(
    size: tuple[int, int], device: torch.device, boxes: Sequence[tuple[int, Box]] = BOXES
) -> tuple[kernels.AwakeRows, Tensor]:
    """A list of what is awake on maps of a size, and the same as a mask ``[N, 1, H, W]``."""
    lists = kernels.area_lists(IMAGES, [size], device)
    kernels.list_areas(told(boxes, device), lists)
    mask = torch.zeros(IMAGES * size[0] * size[1], dtype=torch.bool)
    mask[within(boxes, size)] = True
    return lists.of(size), mask.view(IMAGES, 1, *size).to(device)


def poisoned(channels: int, size: tuple[int, int], dtype: torch.dtype, device: Any) -> Tensor:
    """A map of NaN, which nothing turns into a number but writing."""
    return torch.full((IMAGES, *size, channels), math.nan, dtype=dtype, device=device).permute(
        0, 3, 1, 2
    )


def drawn(*shape: int, dtype: torch.dtype, device: Any) -> Tensor:
    """Random numbers, channels_last."""
    return torch.randn(shape).to(device, dtype).contiguous(memory_format=torch.channels_last)


def check(y: Tensor, mask: Tensor, exact: Tensor, eager: Tensor, depth: int = 1) -> None:
    """Right where awake, by the budget of the kernels' tests; not written elsewhere."""
    assert y[~mask.expand_as(y)].isnan().all()
    got, want, low = (each.double()[mask.expand_as(each)] for each in (y, exact, eager))
    error, budget = (got - want).abs().max(), (low - want).abs().max()
    eps = torch.finfo(y.dtype).eps
    assert error <= 2 * budget + eps * math.sqrt(depth) * want.abs().max(), (error, budget)


# Channels in and out, groups, kernel, stride, dilation, and how K is split.
LAYERS = {
    "3x3": (16, 24, 1, 3, 1, 1, None),
    "3x3, stride 2": (16, 24, 1, 3, 2, 1, None),
    "1x1": (20, 10, 1, 1, 1, 1, None),
    "1x1, stride 2": (20, 10, 1, 1, 2, 1, None),
    "first layer": (3, 16, 1, 7, 2, 1, None),
    "grouped": (12, 16, 4, 3, 2, 1, None),
    "wide groups": (64, 64, 2, 3, 1, 1, None),
    "depthwise": (40, 40, 40, 3, 1, 1, None),
    "depthwise, stride 2": (40, 40, 40, 3, 2, 1, None),
    "dilated": (16, 8, 1, 3, 1, 2, None),
    "split": (130, 24, 1, 3, 1, 1, kernels.ConvConfig(64, 16, 32, 4, 3, split_k=4)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_convolutions(name: str, dtype: str, triton_device: torch.device) -> None:
    channels, outputs, groups, kernel, stride, dilation, config = LAYERS[name]
    device, kind, size = triton_device, DTYPES[dtype], (7, 9)
    edge = dilation * (kernel // 2)
    given = drawn(
        IMAGES, channels, *(stride * (n - 1) + 1 for n in size), dtype=kind, device=device
    )
    depth = channels // groups * kernel**2
    weight = (torch.randn(outputs, channels // groups, kernel, kernel) / math.sqrt(depth)).to(given)
    bias = torch.randn(outputs).to(given)
    other = drawn(IMAGES, outputs, *size, dtype=kind, device=device)
    awake, mask = listed(size, device)
    y = poisoned(outputs, size, kind, device)
    kernels.conv2d(
        given,
        kernels.pack_weight(weight, groups),
        bias,
        stride=(stride, stride),
        padding=(edge,) * 4,
        dilation=(dilation, dilation),
        activation="silu",
        awake=awake,
        residual=other,
        post_activation="relu",
        out=y,
        config=config,
    )

    def by_torch(to: torch.dtype) -> Tensor:
        x, w, b, r = (each.to(to) for each in (given, weight, bias, other))
        return F.relu(F.silu(F.conv2d(x, w, b, stride, edge, dilation, groups)) + r)

    check(y, mask, by_torch(torch.float64), by_torch(kind), depth)


@pytest.mark.parametrize("name", ["3x3", "depthwise", "split"])
def test_slopes_of_a_channel(name: str, triton_device: torch.device) -> None:
    channels, outputs, groups, kernel, _, _, config = LAYERS[name]
    x = drawn(IMAGES, channels, 7, 9, dtype=torch.float32, device=triton_device)
    weight = torch.randn(outputs, channels // groups, kernel, kernel).to(x) / 12
    other = drawn(IMAGES, outputs, 7, 9, dtype=torch.float32, device=triton_device)
    slopes, post = torch.randn(outputs).to(x), torch.randn(1).to(x).expand(outputs)
    awake, mask = listed((7, 9), triton_device)
    y = poisoned(outputs, (7, 9), x.dtype, triton_device)
    kernels.conv2d(
        x,
        kernels.pack_weight(weight, groups),
        padding=(kernel // 2,) * 4,
        activation="prelu",
        slopes=slopes,
        awake=awake,
        residual=other,
        post_activation="prelu",
        post_slopes=post,
        out=y,
        config=config,
    )

    def by_torch(to: torch.dtype) -> Tensor:
        given, w, r, own, after = (each.to(to) for each in (x, weight, other, slopes, post))
        z = F.prelu(F.conv2d(given, w, None, 1, kernel // 2, 1, groups), own)
        return F.prelu(z + r, after)

    depth = channels // groups * kernel**2
    check(y, mask, by_torch(torch.float64), by_torch(x.dtype), depth)
    kernels.place_areas(other, awake, y, activation="prelu", slopes=slopes)
    assert torch.equal(torch.where(mask, y, 0), torch.where(mask, F.prelu(other, slopes), 0))


def test_nobody_awake_and_everybody(triton_device: torch.device) -> None:
    x = drawn(IMAGES, 16, 7, 9, dtype=torch.float32, device=triton_device)
    weight = torch.randn(24, 16, 3, 3, device=triton_device)
    packed = kernels.pack_weight(weight)
    y = poisoned(24, (7, 9), torch.float32, triton_device)
    nobody, _ = listed((7, 9), triton_device, [])
    kernels.conv2d(x, packed, padding=(1,) * 4, awake=nobody, out=y)
    assert y.isnan().all()
    everybody, _ = listed((7, 9), triton_device, [(i, WHOLE) for i in range(IMAGES)])
    kernels.conv2d(x, packed, padding=(1,) * 4, awake=everybody, out=y)
    torch.testing.assert_close(y, F.conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-4)


# Kernel, stride and padding of both kinds, and a maximum whose last windows reach over the edge.
POOLS = [
    (kind, *window, False)
    for kind in kernels.POOLS
    for window in ((3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 1, 2))
]
POOLS.append(("max", 3, 2, 0, True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "kernel", "stride", "edge", "ceil"), POOLS)
def test_pools(
    kind: str, kernel: int, stride: int, edge: int, ceil: bool, dtype: str, triton_device: Any
) -> None:
    x = drawn(IMAGES, 20, 14, 17, dtype=DTYPES[dtype], device=triton_device)
    function = F.max_pool2d if kind == "max" else F.avg_pool2d
    exact = function(x.double(), kernel, stride, edge, ceil_mode=ceil)
    eager = function(x, kernel, stride, edge, ceil_mode=ceil)
    size = (exact.shape[2], exact.shape[3])
    awake, mask = listed(size, triton_device)
    y = poisoned(20, size, x.dtype, triton_device)
    pair = (kernel, kernel), (stride, stride)
    kernels.pool_areas(x, awake, y, kind, pair[0], stride=pair[1], before=(edge, edge))
    check(y, mask, exact, eager)


def test_a_maximum_keeps_nan(triton_device: torch.device) -> None:
    x = drawn(IMAGES, 4, 7, 9, dtype=torch.float32, device=triton_device)
    x[:, :, 4, 4] = math.nan
    awake, mask = listed((7, 9), triton_device)
    y = torch.zeros_like(x)
    kernels.pool_areas(x, awake, y, "max", (3, 3), stride=(1, 1), before=(1, 1))
    want = torch.where(mask, F.max_pool2d(x, 3, 1, 1), 0)
    torch.testing.assert_close(y, want, rtol=0, atol=0, equal_nan=True)
    assert y.isnan().any()


@pytest.mark.parametrize(("channels", "first", "outputs"), [(20, 0, 20), (20, 13, 50), (1, 2, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_placing(
    channels: int, first: int, outputs: int, dtype: str, triton_device: torch.device
) -> None:
    """A sum's channels among others: a concatenation of maps is a call for each."""
    x, other = (
        drawn(IMAGES, channels, 7, 9, dtype=DTYPES[dtype], device=triton_device) for _ in range(2)
    )
    awake, mask = listed((7, 9), triton_device)
    y = poisoned(outputs, (7, 9), x.dtype, triton_device)
    kernels.place_areas(x, awake, y, first=first, residual=other, activation="hardswish")
    exact, eager = F.hardswish(x.double() + other.double()), F.hardswish(x + other)
    check(y[:, first : first + channels], mask, exact, eager)
    assert y[:, :first].isnan().all()
    assert y[:, first + channels :].isnan().all()


def test_clear_errors(triton_device: torch.device) -> None:
    device = triton_device
    awake, _ = listed((7, 9), device)
    x = drawn(IMAGES, 4, 7, 9, dtype=torch.float32, device=device)
    boxes = told(BOXES, device)
    with pytest.raises(ValueError, match="images: got 0, allowed: 1 or more"):
        kernels.area_lists(0, [(7, 9)], device)
    with pytest.raises(ValueError, match=r"sizes: got \[\(7, 0\)\], allowed: \(height, width\)"):
        kernels.area_lists(1, [(7, 0)], device)
    with pytest.raises(TypeError, match=r"boxes: got torch.int64, allowed: torch.int32"):
        kernels.list_areas(boxes.long(), kernels.area_lists(1, [(7, 9)], device))
    with pytest.raises(ValueError, match="kind: got 'median', allowed: max, average"):
        kernels.pool_areas(x, awake, x, "median", (3, 3), stride=(1, 1))
    with pytest.raises(ValueError, match=r"stride: got \(0, 1\), allowed: 2 integers from 1"):
        kernels.pool_areas(x, awake, x, "max", (3, 3), stride=(0, 1))
    with pytest.raises(ValueError, match="first: got 1, allowed: 0 to 0"):
        kernels.place_areas(x, awake, x, first=1)
    with pytest.raises(ValueError, match=r"x \(as N, H, W, C\): got shape .* strides"):
        kernels.place_areas(x.contiguous(), awake, x)
    with pytest.raises(TypeError, match=r"x: got torch.float64, allowed: torch.float32"):
        kernels.place_areas(x.double(), awake, x)
    with pytest.raises(ValueError, match=r"awake.indices: got shape .* allowed: contiguous"):
        kernels.place_areas(x, listed((7, 8), device)[0], x)
    weight = kernels.pack_weight(torch.randn(4, 4, 1, 1, device=device))
    two = kernels.AwakeRows(awake.indices.expand(2, -1).contiguous(), awake.counts.repeat(2))
    with pytest.raises(ValueError, match=r"awake.indices: got shape .* allowed: contiguous \(1, "):
        kernels.conv2d(x, weight, awake=two)
