"""Sleep maps: drawn as specified, bit for bit, and with the statistics that they promise."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from drowsy.layer import DrowsyConv2d
from drowsy.sleep import (
    MAX_K,
    Bernoulli,
    BlueNoise,
    Fovea,
    Grain,
    Lattice,
    Lfsr,
    SleepSpec,
    Stratified,
    expand_cells,
    lattice_tables,
    levels,
    lfsr_rates,
    pack_bitmap,
    parse_source,
    philox,
    scale,
    simplest,
    source_text,
    threshold,
    unpack_bitmap,
)
from drowsy.sleep.bluenoise import rank_map

SOURCES = (
    "bernoulli",
    "stratified",
    "lattice",
    "fovea",
    "bluenoise",
    "lfsr",
    "lfsr:width=5,taps=5.3,engines=3",
)
GRAINS = ("neuron", "position", "position:3", "channel", "channel:3", "tile:4x2", "tile:7x64")
MAPS = [
    (source, grain)
    for source in SOURCES
    for grain in GRAINS
    if source not in ("fovea", "bluenoise") or Grain.parse(grain).of_single_positions
]
SIGMAS = 5
MASK32 = 0xFFFFFFFF


def clock(seed: int = 0, image: int = 0) -> Tensor:
    return torch.tensor([seed, image])


def draw(
    source: str = "bernoulli",
    grain: str = "neuron",
    k: int = 8,
    *,
    shape: tuple[int, int, int, int],
    seed: int = 0,
    image: int = 0,
    stream: int = 0,
) -> Tensor:
    return levels(SleepSpec(source, grain, k, stream), shape, clock(seed, image))


def assert_binomial(hits: Tensor | int, trials: int, p: float) -> None:
    """Each count lies within five standard deviations of its expectation, on either side."""
    deviation = (torch.as_tensor(hits, dtype=torch.float64) - trials * p).abs().max().item()
    assert deviation <= SIGMAS * math.sqrt(trials * p * (1 - p)), (deviation, trials, p)


def chi_square_sigmas(counts: Tensor) -> float:
    """How unlike a uniform table these counts are, in standard deviations (Wilson-Hilferty)."""
    expected = counts.sum().item() / counts.numel()
    assert expected >= 5, "too few draws for a chi-square test"
    freedom = counts.numel() - 1
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def pair_table(first: Tensor, second: Tensor, k: int) -> Tensor:
    """How often each pair of levels occurs."""
    pairs = first.flatten().long() * k + second.flatten().long()
    return torch.bincount(pairs, minlength=k * k).double()


# --- Philox --------------------------------------------------------------------------------------


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


def philox_in_python(c0: int, c1: int, c2: int, c3: int, seed: int) -> list[int]:
    """Philox-4x32-10 as the paper writes it, one counter at a time."""
    key0, key1 = seed & MASK32, seed >> 32
    for _ in range(10):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (right >> 32) ^ c1 ^ key0,
            right & MASK32,
            (left >> 32) ^ c3 ^ key1,
            left & MASK32,
        )
        key0, key1 = (key0 + 0x9E3779B9) & MASK32, (key1 + 0xBB67AE85) & MASK32
    return [c0, c1, c2, c3]


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


def shift(state: int, register: Lfsr) -> int:
    """One step of a Fibonacci register: XOR the taps, shift left, feed the XOR in on the right."""
    feedback = 0
    for tap in register.taps:
        feedback ^= state >> (tap - 1) & 1
    return (state << 1 | feedback) & (1 << register.width) - 1


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


# --- maps of any source and grain ----------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 8, 255, 256])
@pytest.mark.parametrize(("source", "grain"), MAPS)
def test_map_has_one_level_for_every_cell(source: str, grain: str, k: int) -> None:
    n, channels, height, width = shape = (2, 10, 6, 7)
    drawn = draw(source, grain, k, shape=shape)
    cell_p, cell_c = {
        "neuron": (1, 1),
        "position": (1, 10),
        "position:3": (1, 3),
        "channel": (42, 1),
        "channel:3": (42, 3),
        "tile:4x2": (4, 2),
        "tile:7x64": (7, 64),
    }[grain]
    assert drawn.dtype == torch.uint8
    assert drawn.shape == (n, math.ceil(height * width / cell_p), math.ceil(channels / cell_c))
    assert int(drawn.max()) < k

    neurons = expand_cells(drawn, shape, Grain.parse(grain))
    assert neurons.shape == shape
    for p, c in itertools.product(range(height * width), range(channels)):
        y, x = divmod(p, width)
        assert torch.equal(neurons[:, c, y, x], drawn[:, p // cell_p, c // cell_c])


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3), (2, 0, 3, 3)])
@pytest.mark.parametrize("source", SOURCES)
def test_empty_output_has_an_empty_map(source: str, shape: tuple[int, int, int, int]) -> None:
    n, channels, height, width = shape
    assert draw(source, shape=shape).shape == (n, height * width, channels)


@pytest.mark.parametrize(("source", "grain"), MAPS)
def test_split_into_batches_does_not_matter(source: str, grain: str) -> None:
    whole = draw(source, grain, shape=(7, 10, 6, 7), image=100)
    for sizes in ([1] * 7, [3, 4], [6, 1]):
        starts = itertools.accumulate([100, *sizes[:-1]])
        parts = [
            draw(source, grain, shape=(size, 10, 6, 7), image=start)
            for start, size in zip(starts, sizes, strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("source", SOURCES)
def test_large_batch_is_drawn_as_its_images_are(source: str) -> None:
    # 5 x 40 x 60 x 60 cells are more than are drawn at a time.
    whole = draw(source, shape=(5, 40, 60, 60))
    assert torch.equal(whole[4:], draw(source, shape=(1, 40, 60, 60), image=4))


@pytest.mark.parametrize("source", SOURCES)
def test_image_index_wraps_at_32_bits(source: str) -> None:
    across = draw(source, shape=(4, 6, 5, 5), image=2**32 - 2)
    assert torch.equal(across[2:], draw(source, shape=(2, 6, 5, 5), image=0))
    assert not torch.equal(across[:2], across[2:])


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_last_images_of_a_clock_sleep_as_any(source: str, rate: float) -> None:
    layer = DrowsyConv2d(16, 16, 1, sleep=SleepSpec(source, "position"), rate=rate)
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(5, 16, 8, 8).to(memory_format=torch.channels_last)
    for image in (2**63 - 3, 2**63 - 1, 2**32 - 3):
        layer.control.reseed(1, image)
        drawn = draw(source, "position", shape=(5, 16, 8, 8), seed=1, image=image)
        with torch.inference_mode():
            y, awake = layer(x), layer.awake(x)
        asleep = (drawn < rate * 8).view(5, 1, 8, 8)
        torch.testing.assert_close(y, awake.masked_fill(asleep, 0))
        assert torch.equal(
            drawn, draw(source, "position", shape=(5, 16, 8, 8), seed=1, image=image % 2**32)
        )


@pytest.mark.parametrize("source", ["bernoulli", "stratified", "bluenoise"])
def test_image_seed_and_stream_all_change_the_map(source: str) -> None:
    shape = (1, 8, 8, 8)
    settings = [
        {"seed": seed, "image": image, "stream": stream}
        for seed in (0, 1, 2**32, 2**63 - 1)
        for image in (0, 1, 2**31)
        for stream in (0, 1, 2**31)
    ]
    maps = {bytes(draw(source, shape=shape, **setting).flatten().tolist()) for setting in settings}
    assert len(maps) == len(settings)
    assert torch.equal(draw(source, shape=shape, seed=5), draw(source, shape=shape, seed=5))


@pytest.mark.parametrize(("source", "grain"), MAPS)
def test_higher_rate_only_adds_sleepers(source: str, grain: str) -> None:
    layer = DrowsyConv2d(2, 10, 1, sleep=SleepSpec(source, grain))
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.ones_(layer.bias)
    before = torch.zeros(3, 10, 6, 7, dtype=torch.bool)
    for j in range(8):
        layer.set(rate=Fraction(j, 8))
        layer.control.reseed(3)
        with torch.inference_mode():
            asleep = layer(torch.randn(3, 2, 6, 7)) == 0
        assert not (before & ~asleep).any()
        before = asleep
    assert before.any()
    assert not before.all()


# --- bernoulli -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [3, 5, 8, 10])
def test_bernoulli_sleeps_at_the_rate_asked_for(k: int) -> None:
    drawn = draw(k=k, shape=(40, 40, 16, 16), seed=9)
    for j in range(1, k):
        # 16 random bits: exact for k = 8, within 2**-16 of j / k for the others.
        p = math.ceil(j * 65536 / k) / 65536
        assert p == pytest.approx(j / k, abs=2**-16)
        assert_binomial(int((drawn < j).sum()), drawn.numel(), p)


@pytest.mark.parametrize("grain", ["position", "channel", "tile:4x2"])
def test_bernoulli_cells_of_any_grain_sleep_at_the_rate_asked_for(grain: str) -> None:
    drawn = draw(grain=grain, shape=(800, 32, 8, 8), seed=9)
    for j in range(1, 8):
        assert_binomial(int((drawn < j).sum()), drawn.numel(), j / 8)


def test_bernoulli_rate_is_even_over_channels_positions_and_images() -> None:
    drawn = draw(shape=(64, 64, 8, 8), seed=1) < 3
    for dim in range(3):
        others = [d for d in range(3) if d != dim]
        assert_binomial(drawn.sum(others), drawn.numel() // drawn.shape[dim], 3 / 8)


def _neighbours() -> dict[str, tuple[Tensor, Tensor]]:
    drawn = draw(shape=(60, 40, 8, 8), seed=4)
    square = drawn.view(60, 8, 8, 40)
    # Lags 1 and 8 cross the lanes of one Philox word and of one call.
    pairs = {f"channel+{lag}": (drawn[..., lag:], drawn[..., :-lag]) for lag in (1, 2, 3, 8, 16)}
    pairs |= {
        "right": (square[:, :, 1:], square[:, :, :-1]),
        "below": (square[:, 1:], square[:, :-1]),
        "next image": (drawn[1:], drawn[:-1]),
        "image + 2**16": (drawn, draw(shape=(60, 40, 8, 8), seed=4, image=2**16)),
        "next seed": (drawn, draw(shape=(60, 40, 8, 8), seed=5)),
        "seed + 2**32": (drawn, draw(shape=(60, 40, 8, 8), seed=4 + 2**32)),
        "next stream": (drawn, draw(shape=(60, 40, 8, 8), seed=4, stream=1)),
        "stream as image": (
            draw(shape=(1, 40, 32, 32), image=1),
            draw(shape=(1, 40, 32, 32), stream=1),
        ),
    }
    return pairs


@pytest.mark.parametrize("pair", _neighbours().items(), ids=lambda pair: pair[0])
def test_bernoulli_neighbours_are_independent(pair: tuple[str, tuple[Tensor, Tensor]]) -> None:
    first, second = pair[1]
    assert abs(chi_square_sigmas(pair_table(first, second, 8))) < SIGMAS
    for j in (1, 4, 7):
        bits = torch.stack([(first < j).flatten(), (second < j).flatten()]).double()
        assert abs(torch.corrcoef(bits)[0, 1]) * math.sqrt(bits.shape[1]) < SIGMAS


def test_chi_square_notices_dependence() -> None:
    drawn = draw(shape=(60, 40, 8, 8))
    assert chi_square_sigmas(pair_table(drawn, drawn, 8)) > 100
    rigged = torch.where(
        draw(shape=(60, 40, 8, 8), seed=1) == 0, drawn, draw(shape=(60, 40, 8, 8), seed=2)
    )
    assert chi_square_sigmas(pair_table(drawn, rigged, 8)) > SIGMAS


# --- stratified ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grain", "shape"),
    [
        ("neuron", (5, 6, 7, 13)),
        ("position", (5, 6, 7, 13)),
        ("tile:2x4", (5, 16, 4, 23)),
        ("channel", (5, 47, 7, 13)),
        ("channel:3", (5, 47 * 3, 7, 13)),
        ("neuron", (5, 47, 1, 1)),
    ],
)
@pytest.mark.parametrize("k", [3, 8, 10])
def test_stratified_has_exactly_j_sleepers_in_every_full_run(
    grain: str, shape: tuple[int, int, int, int], k: int
) -> None:
    drawn = draw("stratified", grain, k, shape=shape)
    runs = drawn if drawn.shape[1] > 1 else drawn.transpose(1, 2)
    whole = runs.shape[1] // k * k
    assert whole < runs.shape[1], "the shape also tests a last run that is cut short"
    full = runs[:, :whole].unflatten(1, (-1, k))
    for j in range(k):
        assert ((full < j).sum(2) == j).all()
    # A run that is cut short still has no level twice.
    rest = runs[:, whole:].sort(dim=1).values
    assert (rest[:, 1:] > rest[:, :-1]).all()


@pytest.mark.parametrize(
    ("grain", "shape"), [("neuron", (40, 8, 16, 16)), ("channel", (4000, 32, 2, 2))]
)
def test_stratified_places_every_level_everywhere_equally_often(
    grain: str, shape: tuple[int, int, int, int]
) -> None:
    drawn = draw("stratified", grain, shape=shape, seed=2)
    runs = drawn if drawn.shape[1] > 1 else drawn.transpose(1, 2)
    places = runs.unflatten(1, (-1, 8)).transpose(1, 2).transpose(0, 1).flatten(1)
    for level in range(8):
        assert_binomial((places == level).sum(1), places.shape[1], 1 / 8)


def test_stratified_orders_of_a_run_are_equally_likely() -> None:
    drawn = draw("stratified", k=3, shape=(50, 8, 9, 9), seed=2).unflatten(1, (27, 3)).long()
    code = drawn[:, :, 0] * 3 + drawn[:, :, 1]
    counts = torch.bincount(code.flatten(), minlength=9)
    assert counts[[0, 4, 8]].sum() == 0
    assert abs(chi_square_sigmas(counts[counts > 0].double())) < SIGMAS


@pytest.mark.parametrize("neighbour", ["run", "channel", "image", "seed", "stream"])
def test_stratified_runs_are_independent(neighbour: str) -> None:
    shape = (40, 8, 32, 32)
    drawn = draw("stratified", shape=shape, seed=2).unflatten(1, (128, 8))
    first, second = {
        "run": (drawn[:, 1:], drawn[:, :-1]),
        "channel": (drawn[..., 1:], drawn[..., :-1]),
        "image": (drawn[1:], drawn[:-1]),
        "seed": (drawn, draw("stratified", shape=shape, seed=3).unflatten(1, (128, 8))),
        "stream": (drawn, draw("stratified", shape=shape, seed=2, stream=1).unflatten(1, (128, 8))),
    }[neighbour]
    for place, other in ((0, 0), (0, 7), (3, 4)):
        table = pair_table(first[:, :, place], second[:, :, other], 8)
        assert abs(chi_square_sigmas(table)) < SIGMAS


# --- lattice -------------------------------------------------------------------------------------


def test_lattice_of_half_rate_is_a_checkerboard() -> None:
    drawn = draw("lattice", "position", shape=(20, 12, 6, 10))
    assert drawn.shape == (20, 60, 1)
    asleep = (drawn < 4).view(20, 6, 10)
    y, x = torch.meshgrid(torch.arange(6), torch.arange(10), indexing="ij")
    black = (x + y) % 2 == 0
    starts = [bool(image[0, 0]) for image in asleep]
    assert set(starts) == {True, False}
    for image, start in zip(asleep, starts, strict=True):
        assert torch.equal(image, black if start else ~black)


def test_lattice_of_a_quarter_is_every_fourth_diagonal() -> None:
    asleep = (draw("lattice", "position", shape=(20, 12, 8, 8)) < 2).view(20, 8, 8)
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    for image in asleep:
        assert len(set(((x + y) % 4)[image].tolist())) == 1
        assert image.sum() == 16


def test_lattice_of_three_quarters_is_awake_in_every_second_row_and_column() -> None:
    drawn = draw("lattice", "position", shape=(60, 12, 8, 8)).view(60, 8, 8)
    starts = set()
    for awake in drawn >= 6:
        y, x = awake.nonzero()[0].tolist()
        assert awake[y::2, x::2].all()
        assert awake.sum() == 16
        starts.add((y, x))
    assert starts == {(0, 0), (0, 1), (1, 0), (1, 1)}


def nearest_awake(awake: Tensor) -> Tensor:
    """Squared distance from every position of a periodic map to its nearest awake one."""
    reach = range(-4, 5)
    nearest = torch.full(awake.shape, 99)
    for down, across in itertools.product(reach, reach):
        there = awake.roll((-down, -across), (0, 1))
        nearest = torch.where(there, nearest.clamp(max=down**2 + across**2), nearest)
    return nearest


def shortest(points: Tensor) -> int:
    """Squared distance between the nearest two of a periodic map's points."""
    reach = range(-5, 6)
    return min(
        down**2 + across**2
        for down, across in itertools.product(reach, reach)
        if (down, across) != (0, 0) and (points & points.roll((down, across), (0, 1))).any()
    )


def test_lattice_of_k_8_is_as_good_as_any_nested_lattice() -> None:
    """Of the 15 lattices that every eighth position can form, with any nested order of levels.

    The mean squared distance from a sleeper to its nearest awake neighbour, given that 1/2 is a
    checkerboard, is the least possible up to rate 3/4; the awake lie as far apart as they can.
    """
    level = draw("lattice", "position", shape=(1, 1, 8, 8)).view(8, 8)
    far = [nearest_awake(level >= j)[level < j].double().mean().item() for j in range(1, 8)]
    assert far == pytest.approx([1, 1, 1, 1, 6 / 5, 4 / 3, 12 / 7])
    assert [shortest(level < j) for j in (1, 2, 4)] == [8, 2, 2]
    assert [shortest(level >= j) for j in (4, 6, 7)] == [2, 4, 8]
    best = [math.inf] * 8
    for rows in (1, 2, 4, 8):
        for skew in range(8 // rows):
            y, x = torch.arange(8)[:, None], torch.arange(8)
            coset = y % rows * (8 // rows) + (x - skew * (y // rows)) % (8 // rows)
            for j in (4, 5, 6):
                for awake in itertools.combinations(range(8), 8 - j):
                    left = torch.isin(coset, torch.tensor(awake))
                    if j == 4 or left[(y + x) % 2 == 0].sum() in (0, left.sum()):
                        mean = nearest_awake(left)[~left].double().mean().item()
                        best[j] = min(best[j], mean)
    assert far[3:6] == pytest.approx(best[4:7])


@pytest.mark.parametrize("k", [2, 3, 4, 5, 8, 10, 16])
@pytest.mark.parametrize("grain", ["neuron", "position", "channel", "tile:2x2"])
def test_lattice_meets_every_level_once_in_k_steps(grain: str, k: int) -> None:
    channels, height, width = 2 * k, 2 * k, 2 * k
    drawn = draw("lattice", grain, k, shape=(3, channels, height, width)).long()
    lines = [drawn]  # along the channels
    if grain in ("neuron", "position"):
        square = drawn.unflatten(1, (height, width))
        if k in (3, 5, 10):
            lines += [square.movedim(1, 3), square.movedim(2, 3)]
        period = len(lattice_tables(k)[0])
        for block in square.unfold(1, period, period).unfold(2, period, period).unbind(1):
            counts = torch.stack([(block == level).sum((-1, -2)) for level in range(k)])
            assert (counts * k == period**2).all()
    elif grain == "tile:2x2":
        lines += [drawn.transpose(1, 2)]
    for line in lines:
        length = line.shape[-1] // k * k
        runs = line[..., :length].unflatten(-1, (-1, k)).sort(dim=-1).values
        assert (runs == torch.arange(k)).all()
    whole = drawn[:, : drawn.shape[1] // k * k] if drawn.shape[1] > 1 else drawn
    if whole.shape[1] * whole.shape[2] % k == 0:
        for j in range(k):
            assert ((whole < j).sum((1, 2)) * k == j * whole[0].numel()).all()


@pytest.mark.parametrize("k", [3, 8, 10])
def test_lattice_phase_is_uniform_over_images_seeds_and_streams(k: int) -> None:
    images = draw("lattice", k=k, shape=(4000, 1, 1, 1)).flatten().long()
    seeds = torch.stack([draw("lattice", k=k, shape=(1, 1, 1, 1), seed=s) for s in range(1000)])
    streams = torch.stack([draw("lattice", k=k, shape=(1, 1, 1, 1), stream=s) for s in range(1000)])
    for drawn in (images, seeds.flatten().long(), streams.flatten().long()):
        assert abs(chi_square_sigmas(torch.bincount(drawn, minlength=k).double())) < SIGMAS
    assert abs(chi_square_sigmas(pair_table(images[1:], images[:-1], k))) < SIGMAS


@pytest.mark.parametrize("k", [8, 10])
def test_lattice_is_one_pattern_shifted_by_a_phase(k: int) -> None:
    drawn = draw("lattice", k=k, shape=(50, k, 2 * k, 2 * k)).unflatten(1, (2 * k, 2 * k))
    for image in drawn:
        # The channels of one position meet all phases.
        start = int((drawn[0, 0, 0] == image[0, 0, 0]).nonzero()[0])
        assert torch.equal(image, drawn[0].roll(-start, 2))
        down, across = (image[..., 0] == drawn[0, 0, 0, 0]).nonzero()[0].tolist()
        assert torch.equal(image[..., 0], drawn[0, ..., 0].roll((down, across), (0, 1)))


@pytest.mark.parametrize("k", [*range(2, 34), 255, 256])
def test_lattice_phases_meet_every_level_at_every_position(k: int) -> None:
    tile, shifts = lattice_tables(k)
    period = len(tile)
    assert tile.shape == (period, period)
    counts = torch.bincount(tile.flatten().long(), minlength=k)
    assert (counts * k == period**2).all()
    met = torch.stack([tile.roll((-down, -across), (0, 1)) for down, across in shifts.tolist()])
    assert torch.equal(met.sort(dim=0).values, torch.arange(k)[:, None, None].expand_as(met))


def spread_in_python(k: int) -> list[int]:
    """Phases in the order of their levels: each the farthest from those before it."""
    chosen = [0]
    while len(chosen) < k:

        def crowding(phase: int) -> tuple[int, float, int]:
            gaps = [min((phase - other) % k, (other - phase) % k) for other in chosen]
            near = 0.0
            for gap in gaps:
                near += 1 / gap**2
            return -min(gaps), near, phase

        chosen.append(min(set(range(k)).difference(chosen), key=crowding))
    return chosen


def slope_in_python(k: int) -> int:
    """Of ``x + slope * y``, with the points of a level as far apart as can be; the least such."""

    def spacing(slope: int) -> int:
        return min(
            x * x + y * y
            for y, x in itertools.product(range(k), range(-k, k + 1))
            if (x + slope * y) % k == 0 and (x, y) != (0, 0)
        )

    coprime = [slope for slope in range(1, k) if math.gcd(slope, k) == 1]
    return max(coprime, key=lambda slope: (spacing(slope), -slope))


@pytest.mark.parametrize("k", [*range(2, 25), 36, 49])
def test_lattice_tables_follow_their_definition(k: int) -> None:
    tile, shifts = lattice_tables(k)
    order = spread_in_python(k)
    # The phases meet, at the first position, the levels in this order.
    assert [int(tile[y, x]) for y, x in shifts.tolist()] == [order.index(p) for p in range(k)]
    for level, place in zip(tile[shifts[:, 0].long(), shifts[:, 1].long()], shifts, strict=True):
        first = (tile == level).nonzero()[0]
        assert torch.equal(place.long(), first)
    if k & (k - 1):
        slope = slope_in_python(k)
        for y, x in itertools.product(range(k), range(k)):
            assert int(tile[y, x]) == order.index((x + slope * y) % k)


def test_lattice_tables_of_every_k_stay_as_they_are() -> None:
    digest = hashlib.sha256()
    for k in range(2, MAX_K + 1):
        for table in lattice_tables(k):
            digest.update(table.numpy().tobytes())
    expected = "47943ee4a9a1453a12728d9828ec73a88b3674b657d59ba1a7aafdd064c920ce"
    assert digest.hexdigest() == expected


# --- fovea ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (12, 20)])
def test_fovea_is_the_lattice_where_half_of_what_is_left_sleeps(size: tuple[int, int]) -> None:
    one = {"shape": (20, 3, *size), "stream": 4, "seed": 5}
    fovea, lattice = draw("fovea", **one), draw("lattice", **one)
    for j in (4, 6, 7):
        assert torch.equal(fovea < j, lattice < j)
    assert not torch.equal(fovea, lattice)


@pytest.mark.parametrize(("k", "halves"), [(8, {4, 6, 7}), (10, {5, 8, 9}), (3, {2}), (2, {1})])
def test_the_simplest_specification_draws_the_same_map(k: int, halves: set[int]) -> None:
    shape = (5, 6, 7, 10)
    for j in range(1, k):
        spec = SleepSpec("fovea", "position:2", k, stream=3, phase=1)
        plain = simplest(spec, j)
        assert plain.source.name == ("lattice" if j in halves else "fovea")
        assert torch.equal(levels(plain, shape, clock(9)) < j, levels(spec, shape, clock(9)) < j)
    assert simplest(SleepSpec("bluenoise"), 4) == SleepSpec("bluenoise")


@pytest.mark.parametrize("j", [1, 2, 3, 5])
def test_fovea_sleeps_from_the_border_inwards(j: int) -> None:
    height, width = 16, 24
    drawn = draw("fovea", "position", shape=(8, 4, height, width))[..., 0]
    assert ((drawn < j).sum(1) == height * width * j // 8).all()
    y = (torch.arange(height).double() - (height - 1) / 2) / height
    x = (torch.arange(width).double() - (width - 1) / 2) / width
    distance = (y[:, None] ** 2 + x**2).flatten()
    first, last = (0, 4) if j < 4 else (4, 6)
    for levels_of_image in drawn:
        members = (first <= levels_of_image) & (levels_of_image < last)
        asleep = members & (levels_of_image < j)
        assert distance[asleep].min() >= distance[members & ~asleep].max() - 1e-12


# --- blue noise ----------------------------------------------------------------------------------


def test_rank_map_is_the_same_everywhere() -> None:
    ranks = rank_map()
    assert sorted(ranks.ravel().tolist()) == list(range(64 * 64))
    digest = hashlib.sha256(ranks.astype("<i8").tobytes()).hexdigest()
    assert digest == "e2ff598a2bfe6aedd7e8652de4925997dd73beb080ee124c3d7fa13ad877e378"
    assert (rank_map(1) != ranks).mean() > 0.99


@pytest.mark.parametrize("k", [2, 8, 16, 256])
@pytest.mark.parametrize("grain", ["neuron", "position", "tile:1x3"])
def test_blue_noise_has_every_level_equally_often_in_a_period(grain: str, k: int) -> None:
    # Any 64 x 64 positions, also beside and across the tile's edges.
    drawn = draw("bluenoise", grain, k, shape=(2, 5, 64, 100)).unflatten(1, (64, 100))
    for window in (drawn[:, :, :64], drawn[:, :, 36:], drawn[:, :, 17:81]):
        for j in range(k):
            assert ((window < j).sum((1, 2)) == j * 64 * 64 // k).all()


@pytest.mark.parametrize("k", [3, 10, 255])
def test_blue_noise_of_other_k_is_within_one_of_exact(k: int) -> None:
    drawn = draw("bluenoise", "position", k, shape=(1, 1, 64, 64))
    for j in range(k):
        assert 0 <= int((drawn < j).sum()) - j * 64 * 64 / k < 1


def test_blue_noise_is_one_tile_shifted_anew_for_each_image_and_channel() -> None:
    drawn = draw("bluenoise", k=256, shape=(6, 20, 64, 64)).unflatten(1, (64, 64))
    tile = drawn[0, ..., 0]
    starts = set()
    spectrum = torch.fft.rfft2(tile.double())
    for image, channel in itertools.product(range(6), range(20)):
        shifted = drawn[image, ..., channel]
        match = torch.fft.irfft2(torch.fft.rfft2(shifted.double()) * spectrum.conj())
        y, x = divmod(int(match.argmax()), 64)
        assert torch.equal(shifted, tile.roll((y, x), (0, 1)))
        starts.add((y, x))
    assert len(starts) >= 115


def test_blue_noise_shift_is_uniform_over_images_channels_and_streams() -> None:
    one = {"k": 8, "shape": (4000, 16, 1, 1)}
    images = draw("bluenoise", **one)
    for stream in (0, 1):
        drawn = draw("bluenoise", stream=stream, **one)
        assert abs(chi_square_sigmas(torch.bincount(drawn.flatten().long()).double())) < SIGMAS
    for first, second in (
        (images[1:], images[:-1]),
        (images[..., 1:], images[..., :-1]),
        (images, draw("bluenoise", stream=1, **one)),
        (images, draw("bluenoise", seed=1, **one)),
    ):
        assert abs(chi_square_sigmas(pair_table(first, second, 8))) < SIGMAS


def test_blue_noise_spreads_both_sleepers_and_awake() -> None:
    ranks = torch.from_numpy(rank_map())
    for asleep in (ranks < 512, ranks >= 4096 - 512):
        # No two sleepers of an eighth touch, not even at a corner.
        for step in ((0, 1), (1, 0), (1, 1), (1, -1)):
            assert not (asleep & asleep.roll(step, (0, 1))).any()
    # No sleeper is far from those that are left awake: mean and most, squared.
    for j, mean, most in ((4, 1, 1), (5, 1.03, 2), (6, 1.13, 2), (7, 1.69, 5)):
        far = nearest_awake(ranks * 8 // 4096 >= j)
        assert far[ranks * 8 // 4096 < j].double().mean() <= mean
        assert far.max() <= most


@pytest.mark.parametrize(("size", "spread"), [(7, 1.2), (14, 1.8), (28, 2.9), (56, 3.6)])
def test_blue_noise_of_small_maps_varies_little_in_its_work(size: int, spread: float) -> None:
    drawn = draw("bluenoise", "position", shape=(400, 1, size, size))
    for j in range(1, 8):
        counts = (drawn < j).sum((1, 2)).double()
        expected = size * size * j / 8
        assert abs(counts.mean() - expected) < SIGMAS * counts.std() / 20
        # Independent bits spread by 3.5, 7, 14 and 28 at rate 1/2.
        assert counts.std() < spread


# --- phases --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 4, 8, 16])
@pytest.mark.parametrize(("source", "grain"), MAPS)
def test_odd_phases_complement_even_ones(source: str, grain: str, k: int) -> None:
    shape = (3, 20, 8, 8)
    even, odd = (
        levels(SleepSpec(source, grain, k, 5, phase), shape, clock(7, 2)) for phase in (2, 3)
    )
    for j in range(k):
        both = (even < j) & (odd < j)
        either = (even < j) | (odd < j)
        if 2 * j <= k:
            assert not both.any()
        elif not source.startswith("lfsr"):
            assert either.all()
        else:
            # The register's middle state is its own complement.
            assert either.sum() >= either.numel() * (1 - 2 / 2**3)


@pytest.mark.parametrize(("source", "grain"), MAPS)
def test_phases_of_a_parity_share_a_map_except_of_lattices(source: str, grain: str) -> None:
    shape = (3, 20, 8, 8)
    first, third, ninth = (
        levels(SleepSpec(source, grain, 8, 5, phase), shape, clock()) for phase in (1, 3, 9)
    )
    assert torch.equal(first, ninth)
    assert torch.equal(first, third) == (source not in ("lattice", "fovea"))


@pytest.mark.parametrize("k", [3, 8])
@pytest.mark.parametrize("source", SOURCES)
def test_phases_sleep_at_the_same_rate(source: str, k: int) -> None:
    shape, many = (7, 64, 63, 64), clock(3)
    counts = [
        torch.bincount(
            levels(SleepSpec(source, "neuron", k, 1, phase), shape, many).flatten().long(),
            minlength=k,
        )
        for phase in (0, 1)
    ]
    # Upside down, states of the register and ranks of the tile, not levels, change places.
    tolerance = 0.002 if source == "bernoulli" else 0.0005
    torch.testing.assert_close(
        counts[1] / sum(counts[1]), counts[0] / sum(counts[0]), rtol=0, atol=tolerance
    )


# --- lfsr ----------------------------------------------------------------------------------------


def test_three_bit_register_has_period_seven_and_never_holds_zero() -> None:
    drawn = draw("lfsr:engines=1", shape=(1, 1, 1, 70)).flatten()
    assert sorted(drawn[:7].tolist()) == [1, 2, 3, 4, 5, 6, 7]
    assert torch.equal(drawn[7:], drawn[:-7])


def test_three_bit_register_gives_rates_of_its_own() -> None:
    expected = [0, 0, *(Fraction(j, 7) for j in range(1, 7))]
    assert lfsr_rates(Lfsr()) == pytest.approx([float(rate) for rate in expected], abs=1e-7)
    drawn = draw("lfsr", shape=(7, 64, 7, 7))
    for j, rate in enumerate(expected):
        assert int((drawn < j).sum()) == rate * drawn.numel()


@pytest.mark.parametrize("engines", [1, 3, 8, 64])
def test_engines_step_on_as_registers_on_a_chip_do(engines: int) -> None:
    register = Lfsr(width=3, taps=(3, 2), engines=engines)
    images, channels, positions = 4, 10, 12
    drawn = draw(source_text(register), shape=(images, channels, 3, 4), seed=6, image=9)
    rounds = math.ceil(channels / engines)
    for engine in range(min(engines, channels)):
        state = None
        # The engine computes its channels in raster order, image after image, and never stops;
        # it also steps in a last round that has no channel for it.
        for image, turn, position in itertools.product(
            range(images), range(rounds), range(positions)
        ):
            channel = turn * engines + engine
            state = None if state is None else shift(state, register)
            if channel < channels:
                level = int(drawn[image, position, channel])
                assert state in (None, level)
                state = level


def test_engines_start_where_seeding_says() -> None:
    register = "lfsr:width=4,taps=4.3,engines=3,seeding=1.7.12"
    drawn = draw(register, k=16, shape=(1, 3, 1, 2))
    assert drawn[0, 0].tolist() == [1, 7, 12]
    assert drawn[0, 1].tolist() == [
        shift(state, Lfsr(4, (4, 3), 3, (1, 7, 12))) for state in (1, 7, 12)
    ]
    together = draw("lfsr:width=4,taps=4.3,engines=3,seeding=5", k=16, shape=(1, 3, 1, 2))
    assert together[0, 0].tolist() == [5, 5, 5]


def test_engines_are_seeded_apart_by_default() -> None:
    drawn = draw("lfsr:width=16,taps=16.15.13.4,engines=64", k=256, shape=(1, 64, 1, 1))
    assert drawn.unique().numel() > 40
    assert not torch.equal(
        drawn, draw("lfsr:width=16,taps=16.15.13.4", k=256, shape=(1, 64, 1, 1), seed=1)
    )
    assert not torch.equal(
        drawn, draw("lfsr:width=16,taps=16.15.13.4", k=256, shape=(1, 64, 1, 1), stream=1)
    )


def test_wider_register_comes_closer_to_the_rate_asked_for() -> None:
    wide = Lfsr(width=16, taps=(16, 15, 13, 4), engines=1)
    asked = torch.arange(8) / 8
    narrow_error = (torch.tensor(lfsr_rates(Lfsr())) - asked).abs().max()
    wide_error = (torch.tensor(lfsr_rates(wide)) - asked).abs().max()
    assert narrow_error == pytest.approx(1 / 8)
    assert wide_error < 1 / 2**16
    drawn = draw(source_text(wide), shape=(1, 1, 255, 257))  # 65535 positions, a whole period
    for j in range(1, 8):
        assert int((drawn < j).sum()) == j * 2**13 - 1


@pytest.mark.parametrize("taps", [(3,), (4, 2), (4,), (4, 3, 2, 1)])
def test_register_that_is_not_of_maximal_length_is_refused(taps: tuple[int, ...]) -> None:
    width = max(*taps, 3)
    with pytest.raises(ValueError, match=r"lfsr taps: .* maximal register"):
        Lfsr(width=width, taps=taps)


@pytest.mark.parametrize(
    ("width", "taps"), [(2, (2, 1)), (4, (4, 3)), (8, (8, 6, 5, 4)), (16, (16, 15, 13, 4))]
)
def test_register_of_maximal_length_is_accepted(width: int, taps: tuple[int, ...]) -> None:
    state, states = 1, set()
    while state not in states:
        states.add(state)
        state = shift(state, Lfsr(width, taps))
    assert states == set(range(1, 2**width))


# --- the flavours --------------------------------------------------------------------------------


def _mean_over_maps(source: str, fill: str, j: int, images: int) -> tuple[Tensor, Tensor]:
    """Awake output of one image, and the mean of its slept outputs over many maps."""
    layer = DrowsyConv2d(
        3, 6, 3, padding=1, activation="relu", sleep=SleepSpec(source), rate=j / 8, fill=fill
    )
    x = torch.randn(1, 3, 5, 5)
    with torch.inference_mode():
        awake = layer.awake(x)[0].double()
        mean = layer(x.expand(images, -1, -1, -1)).double().mean(0)
    assert (awake > 0).sum() > 30
    return awake, mean


@pytest.mark.parametrize("j", [1, 4, 7])
@pytest.mark.parametrize("source", ["bernoulli", "stratified", "lattice"])
def test_rescale_keeps_the_expected_value(source: str, j: int) -> None:
    images = 2000
    awake, mean = _mean_over_maps(source, "rescale", j, images)
    sigma = awake * math.sqrt(j / (8 - j) / images)
    assert ((mean - awake).abs() <= SIGMAS * sigma + 1e-6 * awake).all()


@pytest.mark.parametrize("j", [1, 4, 7])
@pytest.mark.parametrize("source", ["bernoulli", "stratified", "lattice"])
def test_zero_lowers_the_expected_value_by_the_rate(source: str, j: int) -> None:
    images = 2000
    awake, mean = _mean_over_maps(source, "zero", j, images)
    sigma = awake * math.sqrt(j * (8 - j) / 64 / images)
    assert ((mean - awake * (1 - j / 8)).abs() <= SIGMAS * sigma + 1e-6 * awake).all()
    assert ((mean - awake).abs() > SIGMAS * sigma)[awake > 0].all()


def test_scale_is_one_over_the_awake_fraction() -> None:
    assert [scale(j, 8, "rescale") for j in (0, 2, 4, 7)] == [1, 8 / 6, 2, 8]
    assert {scale(j, 8, "zero") for j in range(8)} == {1.0}


# --- rates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3, 7, 8, 10, 100, MAX_K])
def test_every_multiple_of_a_step_is_a_rate(k: int) -> None:
    for j in range(k):
        assert threshold(j / k, k) == j
        assert threshold(Fraction(j, k), k) == j


@pytest.mark.parametrize("rate", [1.0, -0.125, 2, 0.1, 1 / 3, 0.124, math.nan, math.inf])
def test_other_numbers_are_not_rates(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate: got .*allowed: multiples of 1/8 from 0 to 7/8"):
        threshold(rate, 8)


# --- bitmaps -------------------------------------------------------------------------------------


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


# --- text forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["neuron", "position", "position:64", "channel", "channel:64", "tile:16x32"]
)
def test_grain_reads_its_text_back(text: str) -> None:
    assert str(Grain.parse(text)) == text
    assert Grain.parse(Grain.parse(text)) == Grain.parse(text)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Bernoulli(), "bernoulli"),
        (Stratified(), "stratified"),
        (Lattice(), "lattice"),
        (Fovea(), "fovea"),
        (BlueNoise(), "bluenoise"),
        (Lfsr(), "lfsr"),
        (Lfsr(8, (8, 6, 5, 4)), "lfsr:width=8,taps=8.6.5.4"),
        (Lfsr(engines=2, seeding=(1, 7)), "lfsr:engines=2,seeding=1.7"),
    ],
)
def test_source_reads_its_text_back(source: Bernoulli | Lfsr, text: str) -> None:
    assert source_text(source) == text
    assert parse_source(text) == source
    assert parse_source(source) is source


@pytest.mark.parametrize(("source", "grain"), MAPS)
def test_spec_reads_its_text_back(source: str, grain: str) -> None:
    for spec in (SleepSpec(source, grain, 12, 2**32 - 1), SleepSpec(source, grain, 12, 3, 7)):
        assert SleepSpec.parse(str(spec)) == spec
