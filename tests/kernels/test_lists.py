"""Lists of what is awake against ``nonzero`` on the unpacked map."""

from __future__ import annotations

import math
from typing import Any

import drowsy_kernels as kernels
import pytest
import torch
from drowsy_kernels import lists
from torch import Tensor

from drowsy.sleep import SleepSpec, levels, pack_bitmap
from tests.kernels.moving import moved

Shape = tuple[int, int, int, int]

# Odd sizes, more than one word of cells, cells that end inside the last word, several blocks.
CASES: list[tuple[Shape, tuple[int, int]]] = [
    ((2, 37, 5, 7), (1, 1)),
    ((3, 70, 4, 4), (1, 70)),
    ((5, 64, 30, 21), (1, 16)),
    ((3, 70, 4, 4), (16, 1)),
    ((3, 70, 4, 4), (20, 3)),
    ((2, 1100, 3, 3), (9, 1)),
    ((2, 40, 9, 9), (8, 16)),
    ((1, 1, 1, 1), (1, 1)),
    ((0, 4, 3, 3), (1, 1)),
    ((2, 0, 3, 3), (1, 1)),
    ((2, 4, 0, 3), (1, 1)),
]
BLOCKS = (1, 5, 16, 32, 64, 2000)


def map_of(
    shape: Shape, cell: tuple[int, int], generator: torch.Generator, rate: float = 0.6
) -> Tensor:
    """A random map ``[N, PC, CC]``, True sleeps."""
    n, channels, height, width = shape
    size = (n, math.ceil(height * width / cell[0]), math.ceil(channels / cell[1]))
    return torch.rand(size, generator=generator) < rate


def entries(indices: Tensor, counts: Tensor) -> list[list[int]]:
    """What the lists hold, each up to its count."""
    rows = indices if indices.dim() == 2 else indices[None]
    return [row[:count].tolist() for row, count in zip(rows, counts, strict=True)]


def awake(asleep: Tensor) -> list[list[int]]:
    """Where each row of a map is awake."""
    return [(~row).nonzero().flatten().tolist() for row in asleep]


def check_all(asleep: Tensor, shape: Shape, cell: tuple[int, int], device: torch.device) -> None:
    """Every kind of list that the cells allow."""
    bitmap = pack_bitmap(asleep).to(device)
    n, channels, height, width = shape
    made = kernels.awake_cells(bitmap, shape, cell)
    assert entries(made.indices, made.count) == awake(asleep.reshape(1, -1))
    if cell[0] == 1:
        rows = kernels.awake_rows(bitmap, shape, cell)
        assert rows.indices.shape == (asleep.shape[2], n * height * width)
        assert entries(rows.indices, rows.counts) == awake(asleep.flatten(0, 1).t())
    if cell[0] >= height * width > 0:
        spread = asleep[:, 0].repeat_interleave(cell[1], dim=1)[:, :channels]
        columns = kernels.awake_channels(bitmap, shape, cell)
        assert entries(columns.indices, columns.counts) == awake(spread)
        for block in BLOCKS:
            padded = torch.nn.functional.pad(spread, (0, -channels % block), value=True)
            found = kernels.awake_blocks(bitmap, shape, cell, block)
            assert found.block == block
            expected = awake(padded.view(n, -1, block).all(2))
            assert entries(found.indices, found.counts) == expected, block


@pytest.mark.parametrize(("shape", "cell"), CASES, ids=str)
def test_lists_hold_what_is_awake_in_order(
    shape: Shape, cell: tuple[int, int], generator: torch.Generator, triton_device: torch.device
) -> None:
    check_all(map_of(shape, cell, generator), shape, cell, triton_device)


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("cell", [(1, 1), (12, 1)], ids=str)
def test_everyone_awake_or_asleep(
    cell: tuple[int, int], rate: float, generator: torch.Generator, triton_device: torch.device
) -> None:
    shape = (2, 40, 3, 4)
    check_all(map_of(shape, cell, generator, rate), shape, cell, triton_device)


def test_many_blocks_of_the_longer_kind(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, triton_device: torch.device
) -> None:
    monkeypatch.setattr(lists, "_LONG", 2048)
    # Counts are then summed in several steps.
    monkeypatch.setattr(lists, "_COUNTS", 2)
    shape, cell = (5, 64, 60, 60), (1, 64)
    check_all(map_of(shape, cell, generator), shape, cell, triton_device)


@pytest.mark.parametrize(
    ("source", "shape", "grain"),
    [
        ("stratified", (3, 32, 24, 20), "position:16"),
        ("stratified", (3, 32, 24, 20), "position"),
        ("lattice", (3, 32, 20, 32), "position:16"),
    ],
)
def test_exact_maps_need_no_counting(
    source: str, shape: Shape, grain: str, triton_device: torch.device
) -> None:
    spec = SleepSpec(source, grain, 8)
    cell = spec.grain.cell(shape[1], shape[2] * shape[3])
    drawn = levels(spec, shape, torch.tensor([3, 5]))
    for j in (0, 3, 7):
        threshold = torch.tensor([j], dtype=torch.int32, device=triton_device)
        bitmap = pack_bitmap(drawn < j).to(triton_device)
        made, launches = kernels.plan_awake_rows(bitmap, shape, cell, exact=(8, threshold))
        assert len(launches) == 1
        launches[0].run(triton_device)
        assert entries(made.indices, made.counts) == awake((drawn < j).flatten(0, 1).t())
        assert (made.counts == shape[0] * shape[2] * shape[3] * (8 - j) // 8).all()


def test_lists_are_rebuilt_in_place(
    generator: torch.Generator, triton_device: torch.device
) -> None:
    shape, cell = (2, 37, 9, 7), (1, 1)
    first, second = (map_of(shape, cell, generator, rate) for rate in (0.3, 0.8))
    bitmap = pack_bitmap(first).to(triton_device)
    made = kernels.awake_rows(bitmap, shape, cell)
    bitmap.copy_(pack_bitmap(second))
    again = kernels.awake_rows(bitmap, shape, cell, made)
    assert again.indices.data_ptr() == made.indices.data_ptr()
    assert entries(made.indices, made.counts) == awake(second.flatten(0, 1).t())


def test_bitmaps_combine(generator: torch.Generator, triton_device: torch.device) -> None:
    first, second = (map_of((2, 70, 3, 3), (1, 1), generator) for _ in range(2))
    packed = [pack_bitmap(asleep).to(triton_device) for asleep in (first, second)]
    assert torch.equal(kernels.combine(*packed).cpu(), pack_bitmap(first | second))
    assert torch.equal(kernels.combine(*packed, rule="both").cpu(), pack_bitmap(first & second))
    kernels.combine(*packed, out=packed[0])
    assert torch.equal(packed[0].cpu(), pack_bitmap(first | second))


def _bitmap(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (kernels.awake_cells, {"shape": (1, 2, 3)}, "shape: got"),
        (kernels.awake_cells, {"cell": (0, 1)}, "cell: got"),
        (kernels.awake_cells, {"bitmap": _bitmap(2, 9, 2)}, "bitmap: got shape"),
        (kernels.awake_cells, {"bitmap": _bitmap(2, 9, 1).long()}, "bitmap: got torch.int64"),
        (kernels.awake_rows, {"cell": (3, 1), "bitmap": _bitmap(2, 3, 1)}, "cell: got .* one pos"),
        (kernels.awake_channels, {}, "cell: got .* all 9 positions"),
        (kernels.awake_blocks, {"block": 0}, "block: got 0"),
        (
            kernels.awake_rows,
            {"exact": (8, torch.zeros(1, dtype=torch.int32))},
            "exact: got runs of 8 in 9",
        ),
        (kernels.awake_rows, {"exact": (3, torch.zeros(1))}, "exact: got runs of 3"),
        (kernels.awake_rows, {"exact": (1, torch.zeros(1))}, "exact threshold: got torch.float32"),
        (
            kernels.awake_rows,
            {"out": kernels.AwakeRows(_bitmap(8, 18), _bitmap(7))},
            "out counts: got shape",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_named(
    function: Any, arguments: dict[str, Any], message: str, triton_device: torch.device
) -> None:
    given = {"bitmap": _bitmap(2, 9, 1), "shape": (2, 8, 3, 3), "cell": (1, 1)} | arguments
    given = {name: moved(value, triton_device) for name, value in given.items()}
    with pytest.raises((ValueError, TypeError), match=message):
        function(**given)


def test_bad_combinations_are_named() -> None:
    with pytest.raises(ValueError, match="rule: got 'neither', allowed: either, both"):
        kernels.combine(_bitmap(1, 2, 3), _bitmap(1, 2, 3), "neither")
    with pytest.raises(ValueError, match="second: got shape"):
        kernels.combine(_bitmap(1, 2, 3), _bitmap(1, 2, 4))


def test_too_many_items_are_refused() -> None:
    shape = (2**16, 32, 256, 128)
    bitmap = torch.empty((2**16, 2**15, 1), dtype=torch.int32, device="meta")
    with pytest.raises(ValueError, match=r"shape: got .* fewer than 2\*\*31"):
        kernels.plan_awake_cells(bitmap, shape, (1, 1))
