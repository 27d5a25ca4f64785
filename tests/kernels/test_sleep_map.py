"""Sleep bitmaps from Triton against ``drowsy.sleep``, bit for bit."""

from __future__ import annotations

import math
from typing import Any

import drowsy_kernels as kernels
import pytest
import torch
from torch import Tensor

from drowsy.backends.triton import map_options
from drowsy.sleep import Grain, SleepSpec, detail_map, levels, pack_bitmap

SOURCES = (
    "bernoulli",
    "stratified",
    "lattice",
    "fovea",
    "bluenoise",
    "detail",
    "lfsr",
    "lfsr:width=8,taps=8.6.5.4,engines=3",
    "lfsr:engines=5,seeding=6",
)
OF_POSITIONS = ("fovea", "bluenoise", "detail")
GRAINS = ("neuron", "position", "position:3", "channel", "channel:3", "tile:5x4")
MAPS = [
    (source, grain)
    for source in SOURCES
    for grain in GRAINS
    if source not in OF_POSITIONS or Grain.parse(grain).of_single_positions
]
# Odd sizes, more than one word of channels, and single cells.
SHAPES = ((2, 37, 5, 7), (3, 8, 1, 9), (1, 70, 4, 4), (1, 1, 1, 1))


def clock(device: torch.device, seed: int = 2**45 + 12_345, image: int = 2**33 + 77) -> Tensor:
    """Seed and image index beyond 32 bits, where truncation would show."""
    return torch.tensor([seed, image], device=device)


def seen(at: Tensor, images: int) -> Tensor:
    """What sources see of the images from this time of a clock on."""
    image = (at[1] + torch.arange(images, device=at.device)) % 2**32
    pixel = torch.arange(3 * 20 * 24, device=at.device)
    pictures = (image[:, None] * 7919 + pixel * pixel * 104_729) % 251
    return detail_map(pictures.view(images, 3, 20, 24))


def draw(
    spec: SleepSpec, shape: tuple[int, int, int, int], j: int, at: Tensor, **options: Any
) -> Tensor:
    """``kernels.sleep_map`` with a poisoned output buffer and the tables that its source needs."""
    n, channels, height, width = shape
    cell = spec.grain.cell(max(channels, 1), max(height * width, 1))
    rows, cells = math.ceil(height * width / cell[0]), math.ceil(channels / cell[1])
    return kernels.sleep_map(
        spec.source.name,
        shape,
        cell=cell,
        k=spec.k,
        stream=spec.stream,
        threshold=torch.tensor([j], dtype=torch.int32, device=at.device),
        clock=at,
        out=torch.full((n, rows, math.ceil(cells / 32)), -1, dtype=torch.int32, device=at.device),
        **map_options(spec, shape, at, seen(at, n)),
        **options,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize(("source", "grain"), MAPS)
def test_agrees_with_the_oracle(
    source: str, grain: str, shape: tuple[int, int, int, int], triton_device: torch.device
) -> None:
    at = clock(triton_device)
    spec = SleepSpec(source, grain, 8, stream=2**31 + 5)
    drawn = levels(spec, shape, at, seen(at, shape[0]))
    for j in (1, 4, 7):
        assert torch.equal(draw(spec, shape, j, at), pack_bitmap(drawn < j)), f"threshold {j}"


@pytest.mark.parametrize("k", [2, 3, 5, 16, 17, 256])
@pytest.mark.parametrize(
    "source", ["bernoulli", "stratified", "lattice", "fovea", "bluenoise", "detail", "lfsr"]
)
def test_any_number_of_levels(source: str, k: int, triton_device: torch.device) -> None:
    at = clock(triton_device)
    # 17 and 256 take the kernel for long runs; 3 channels keep its interpretation short.
    for grain, shape in (("neuron", (1, 3, 5, 4)), ("channel", (2, 21, 2, 2))):
        if source in OF_POSITIONS and grain == "channel":
            continue
        spec = SleepSpec(source, grain, k, stream=1)
        drawn = levels(spec, shape, at, seen(at, shape[0]))
        j = max(k // 2, 1)
        assert torch.equal(draw(spec, shape, j, at), pack_bitmap(drawn < j)), grain


@pytest.mark.parametrize(("source", "grain"), MAPS)
def test_threshold_zero_wakes_everyone(
    source: str, grain: str, triton_device: torch.device
) -> None:
    bitmap = draw(SleepSpec(source, grain), (2, 37, 5, 7), 0, clock(triton_device))
    assert not bitmap.any()


@pytest.mark.parametrize("source", SOURCES)
def test_batches_split_anywhere(source: str, triton_device: torch.device) -> None:
    spec = SleepSpec(source)
    # The image counter passes 2**32 inside the batch.
    whole = draw(spec, (5, 11, 3, 4), 4, clock(triton_device, image=2**32 - 2))
    parts = [
        draw(spec, (n, 11, 3, 4), 4, clock(triton_device, image=2**32 - 2 + first))
        for first, n in ((0, 1), (1, 3), (4, 1))
    ]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("source", SOURCES)
def test_last_images_of_a_clock(source: str, triton_device: torch.device) -> None:
    spec = SleepSpec(source)
    # The image counter passes 2**63 inside the batch.
    last = draw(spec, (5, 11, 3, 4), 4, clock(triton_device, image=2**63 - 3))
    assert torch.equal(last, draw(spec, (5, 11, 3, 4), 4, clock(triton_device, image=2**32 - 3)))


def test_seed_and_stream_matter(triton_device: torch.device) -> None:
    spec, shape = SleepSpec(), (1, 16, 4, 4)
    first = draw(spec, shape, 4, clock(triton_device))
    assert not torch.equal(first, draw(spec, shape, 4, clock(triton_device, seed=2**45)))
    assert not torch.equal(first, draw(SleepSpec(stream=1), shape, 4, clock(triton_device)))


def test_blue_noise_beyond_its_tile(triton_device: torch.device) -> None:
    at, spec, shape = clock(triton_device), SleepSpec("bluenoise", "position:2"), (2, 5, 67, 3)
    assert torch.equal(
        draw(spec, shape, 3, at), pack_bitmap(levels(spec, shape, at, seen(at, shape[0])) < 3)
    )
    assert torch.equal(
        draw(spec, (1, 2, 2, 133), 3, at), pack_bitmap(levels(spec, (1, 2, 2, 133), at) < 3)
    )


@pytest.mark.parametrize("k", [8, 17])
@pytest.mark.parametrize("source", SOURCES)
def test_phases_agree_with_the_oracle(source: str, k: int, triton_device: torch.device) -> None:
    at, shape = clock(triton_device), (2, 9, 3, 5)
    for phase in (1, 2, 2**32 - 1):
        spec = SleepSpec(source, "neuron", k, stream=3, phase=phase)
        drawn = levels(spec, shape, at, seen(at, shape[0]))
        assert torch.equal(draw(spec, shape, 3, at), pack_bitmap(drawn < 3)), phase


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3), (2, 0, 3, 3)])
@pytest.mark.parametrize("source", ["bernoulli", "stratified", "fovea", "bluenoise", "detail"])
def test_empty_maps(
    source: str, shape: tuple[int, int, int, int], triton_device: torch.device
) -> None:
    assert draw(SleepSpec(source), shape, 4, clock(triton_device)).numel() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "uniform"}, "source"),
        ({"k": 257}, "k: got 257"),
        ({"stream": -1}, "stream"),
        ({"cell": (0, 1)}, "cell"),
        ({"shape": (1, 2, 3)}, "shape"),
        ({"source": "lattice"}, "lattice"),
        ({"source": "fovea"}, "fovea: its table goes with"),
        ({"source": "fovea", "fovea": torch.zeros(8, 8, dtype=torch.uint8)}, "fovea"),
        (
            {"source": "fovea", "fovea": torch.zeros(8, 9, dtype=torch.uint8), "cell": (3, 1)},
            "cell: .*one position",
        ),
        ({"source": "bluenoise"}, "bluenoise: its table goes with"),
        ({"source": "lfsr", "upside_down": True}, "upside_down: goes with .*got source 'lfsr'"),
        ({"source": "bluenoise", "bluenoise": torch.zeros(8, 8, dtype=torch.uint8)}, "bluenoise"),
        (
            {
                "source": "bluenoise",
                "bluenoise": torch.zeros(64, 64, dtype=torch.uint8),
                "cell": (9, 1),
            },
            "cell: .*one position",
        ),
        ({"source": "detail"}, "detail: its table goes with"),
        (
            {"source": "detail", "detail": torch.zeros(1, 7, 9, dtype=torch.uint8)},
            r"detail: got shape \(1, 7, 9\) .*allowed: contiguous \(1, 8, 9\)",
        ),
        (
            {
                "source": "detail",
                "detail": torch.zeros(1, 8, 3, dtype=torch.uint8),
                "cell": (3, 1),
            },
            "cell: .*one position",
        ),
        ({"threshold": torch.zeros(1, dtype=torch.int64)}, "threshold"),
        ({"clock": torch.zeros(3, dtype=torch.int64)}, "clock"),
        ({"out": torch.zeros(1, 9, 2, dtype=torch.int32)}, "out"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(
    change: dict[str, Any], message: str, triton_device: torch.device
) -> None:
    arguments: dict[str, Any] = {
        "source": "bernoulli",
        "shape": (1, 8, 3, 3),
        "cell": (1, 1),
        "k": 8,
        "stream": 0,
        "threshold": torch.zeros(1, dtype=torch.int32),
        "clock": torch.zeros(2, dtype=torch.int64),
    } | change
    arguments = {
        name: value.to(triton_device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    with pytest.raises((ValueError, TypeError), match=message):
        kernels.sleep_map(**arguments)
