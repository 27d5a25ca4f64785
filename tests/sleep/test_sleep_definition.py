"""Sleep maps: drawn as specified, bit for bit."""

from __future__ import annotations

import functools
import itertools
import math
from fractions import Fraction

import pytest
import torch
from drawing import MAPS, MASK32, clock, philox_in_python, shift

from drowsy.sleep import (
    Bernoulli,
    BlueNoise,
    Fovea,
    Lattice,
    SleepSpec,
    Stratified,
    lattice_tables,
    levels,
    philox,
)
from drowsy.sleep.bluenoise import rank_map


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        pytest.param(
            (0, 0, 0, 0),
            (0, 0),
            (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
            id="zeros",
        ),
        pytest.param(
            (MASK32,) * 4,
            (MASK32,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
            id="ones",
        ),
        pytest.param(
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
            id="pi",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    seed = key[1] << 32 | key[0]
    signed = torch.tensor(seed - 2**64 if seed >= 2**63 else seed)
    words = philox(torch.tensor(counter[0]), torch.tensor(counter[1]), *counter[2:], signed)
    assert tuple(word.item() for word in words) == expected


@functools.lru_cache
def fovea_in_python(k: int, height: int, width: int, phase: int) -> list[int]:
    """Every half of what is left of a lattice's levels, shared out from the border inwards."""
    tile, shifts = lattice_tables(k)
    down, across = shifts[phase].tolist()
    places = [divmod(p, width) for p in range(height * width)]
    lattice = [int(tile[(y + down) % len(tile), (x + across) % len(tile)]) for y, x in places]

    def closeness(p: int) -> Fraction:
        y, x = places[p]
        up, left = Fraction(2 * y + 1 - height, height), Fraction(2 * x + 1 - width, width)
        return -(up * up + left * left)

    found, first = [-1] * len(places), 0
    while first < k:
        last = k - (k - first) // 2
        half = [p for p in range(len(places)) if first <= lattice[p] < last]
        for rank, p in enumerate(sorted(half, key=closeness)):
            found[p] = first + (last - first) * rank // len(half)
        first = last
    return found


def level_in_python(
    spec: SleepSpec, cells: tuple[int, int], row: int, seed: int, image: int, pc: int, cc: int
) -> int:
    """The level of one cell, straight from the definition of its source."""
    k, (positions, channels) = spec.k, cells
    image &= MASK32
    if isinstance(spec.source, Bernoulli):
        block, lane = pc * math.ceil(channels / 8) + cc // 8, cc % 8
        word = philox_in_python(block, image, spec.stream, 0, seed)[lane // 2]
        return ((word >> (16 * (lane % 2)) & 0xFFFF) * k) >> 16
    if isinstance(spec.source, Stratified):
        along = pc if positions > 1 else cc
        run = (pc // k) * channels + cc if positions > 1 else cc // k
        counter = run * math.ceil(k / 4)
        keys = [
            philox_in_python(counter + t // 4, image, spec.stream, 1, seed)[t % 4] for t in range(k)
        ]
        return sorted(range(k), key=lambda t: (keys[t], t)).index(along % k)
    if isinstance(spec.source, Lattice):
        phase = ((philox_in_python(0, image, spec.stream, 2, seed)[0] >> 16) * k) >> 16
        tile, shifts = lattice_tables(k)
        down, across = shifts[(phase + cc + (0 if row else pc)) % k].tolist()
        y, x = divmod(pc, row) if row else (0, 0)
        return int(tile[(y + down) % len(tile), (x + across) % len(tile)])
    if isinstance(spec.source, Fovea):
        phase = ((philox_in_python(0, image, spec.stream, 2, seed)[0] >> 16) * k) >> 16
        return fovea_in_python(k, positions // row, row, (phase + cc) % k)[pc]
    if isinstance(spec.source, BlueNoise):
        word = philox_in_python(cc // 8, image, spec.stream, 4, seed)[cc % 8 // 2]
        down, across = word >> (16 * (cc % 2)) + 8 & 0xFF, word >> (16 * (cc % 2)) & 0xFF
        y, x = divmod(pc, row)
        return int(rank_map()[(y + down) % 64, (x + across) % 64]) * k // 4096
    source = spec.source
    period = 2**source.width - 1
    engine, rounds = cc % source.engines, math.ceil(channels / source.engines)
    start = philox_in_python(engine, 0, spec.stream, 3, seed)[0] % period
    steps = start + (image * rounds + cc // source.engines) * positions + pc
    state = 1
    for _ in range(steps % period):
        state = shift(state, source)
    return state * k >> source.width


@pytest.mark.parametrize(("source", "grain"), MAPS)
def test_every_level_follows_its_definition(source: str, grain: str) -> None:
    shape, seed, image = (2, 19, 3, 5), 0x1234_5678_9ABC, 41
    for k in (3, 8, 13):
        spec = SleepSpec(source, grain, k, stream=7)
        drawn = levels(spec, shape, clock(seed, image))
        cells, row = tuple(drawn.shape[1:]), 5 if spec.grain.cell(19, 15)[0] == 1 else 0
        expected = [
            level_in_python(spec, cells, row, seed, image + n, pc, cc)
            for n, pc, cc in itertools.product(*map(range, drawn.shape))
        ]
        assert drawn.flatten().tolist() == expected
