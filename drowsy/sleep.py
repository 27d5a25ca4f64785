"""Sleep maps: which neurons sleep in an inference, drawn exactly the same on every backend.

A *source* draws a **level map**, not a bitmap: an integer in ``0 .. k-1`` for every grain cell. A
cell sleeps at rate ``j/k`` when its level is below ``j``. Levels do not depend on the rate, so the
maps of one layer are nested (a higher rate only adds sleepers), a change of rate never redraws
anything, and a study of ``k`` rates draws once.

Everything random comes from Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011) evaluated at a counter made of (cell, image, layer stream). Nothing depends on
the order of evaluation, so eager and Triton, CPU and GPU, and any split into batches agree bit for
bit.

Shapes: a convolution's output is ``N x C x OH x OW`` with positions ``p = y * OW + x``. A grain
groups neurons into cells of ``cell_p`` positions by ``cell_c`` channels; a level map is a uint8
tensor ``[N, PC, CC]`` with ``PC = ceil(OH * OW / cell_p)`` and ``CC = ceil(C / cell_c)``.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from drowsy import bluenoise

MAX_K = 256
DEFAULT_K = 8

_MASK32 = 0xFFFFFFFF
_CPU = torch.device("cpu")
_PHILOX_ROUNDS = 10
# Elements of one Philox call on the CPU: its dozen int64 temporaries then stay in the L2 cache.
_CPU_CHUNK = 1 << 14

_TAG_BERNOULLI, _TAG_STRATIFIED, _TAG_LATTICE, _TAG_LFSR, _TAG_BLUENOISE = range(5)


# --- grain -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grain:
    """The block of neurons that share one bit of the sleep map.

    Args:
        kind: ``"neuron"``, ``"position"``, ``"channel"`` or ``"tile"``.
        positions: positions per cell (``tile`` only).
        channels: channels per cell (``position``, where 0 means all channels; ``channel``, where 0
            means one; and ``tile``).

    ``Grain.parse`` reads the text form that schedules use: ``neuron``, ``position`` (all channels
    share a bit), ``position:64``, ``channel``, ``channel:16``, ``tile:64x32`` (positions x
    channels).
    """

    kind: str = "neuron"
    positions: int = 0
    channels: int = 0

    _FORMS: ClassVar[str] = "neuron, position, position:G, channel, channel:G, tile:MxN"

    def __post_init__(self) -> None:
        needs = {
            "neuron": self.positions == 0 and self.channels == 0,
            "channel": self.positions == 0 and self.channels >= 0,
            "position": self.positions == 0 and self.channels >= 0,
            "tile": self.positions > 0 and self.channels > 0,
        }
        if not needs.get(self.kind, False):
            raise ValueError(
                f"grain: got kind={self.kind!r}, positions={self.positions}, "
                f"channels={self.channels}; allowed: {self._FORMS} with positive G, M, N"
            )

    @classmethod
    def parse(cls, text: str | Grain) -> Grain:
        """Read a grain's text form; a ``Grain`` passes through."""
        if isinstance(text, Grain):
            return text
        if not isinstance(text, str):
            raise TypeError(f"grain: got {text!r}, allowed: {cls._FORMS}")
        match = re.fullmatch(
            r"(neuron|channel|position)|(channel|position):([1-9]\d*)|tile:([1-9]\d*)x([1-9]\d*)",
            text,
        )
        if match is None:
            raise ValueError(f"grain: got {text!r}, allowed: {cls._FORMS}")
        plain, grouped, group, rows, columns = match.groups()
        if plain:
            return cls(plain)
        if grouped:
            return cls(grouped, channels=int(group))
        return cls("tile", int(rows), int(columns))

    def __str__(self) -> str:
        if self.kind == "tile":
            return f"tile:{self.positions}x{self.channels}"
        return f"{self.kind}:{self.channels}" if self.channels else self.kind

    @property
    def of_single_positions(self) -> bool:
        """Whether a cell is one position, so that a sleeper can have awake neighbours."""
        return self.kind in ("neuron", "position") or self.positions == 1

    def cell(self, channels: int, positions: int) -> tuple[int, int]:
        """``(cell_p, cell_c)`` for an output of this many channels and positions (each >= 1)."""
        if self.kind == "neuron":
            return 1, 1
        if self.kind == "position":
            return 1, min(self.channels or channels, channels)
        if self.kind == "channel":
            return positions, min(self.channels or 1, channels)
        return self.positions, self.channels


# --- sources -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bernoulli:
    """Independent bits, fresh for every image: the random variable SLEEP of the paper (III-A).

    A level takes 16 random bits; its probabilities are exact when ``k`` divides 65536 and within
    ``2**-16`` of ``1/k`` otherwise.
    """

    name: ClassVar[str] = "bernoulli"


@dataclass(frozen=True)
class Stratified:
    """Exactly ``j`` sleepers in every full run of ``k`` neighbours, placed at random.

    Runs lie along the positions of one channel cell, or along the channels where a cell covers
    every position. The work at a given rate is thus known before the launch.
    """

    name: ClassVar[str] = "stratified"


@dataclass(frozen=True)
class Lattice:
    """A regular pattern with a random phase per image.

    A phase shifts the pattern; channel cells are a phase apart from each other. Where ``k`` is a
    power of two the pattern is one of nested lattices (Bayer's ordered dither). With ``k = 8``: at
    rate 1/4 every fourth diagonal sleeps, at 1/2 a checkerboard; at 3/4 every second position of
    every second row, at 7/8 every second of those, are all that is awake. For other ``k``, levels
    follow ``x + a*y``. Cells of more than one position lie in a line, each a phase from the last.

    Exactly ``j`` of any ``k`` channel cells that follow each other sleep, at every position; and
    exactly ``j/k`` of the positions of a channel cell, where both sides of the map are multiples
    of the pattern's period (4 for ``k = 8``).
    """

    name: ClassVar[str] = "lattice"
    # Of the maps: stored results of other ones are not taken for results of these.
    revision: ClassVar[int] = 2


@dataclass(frozen=True)
class Fovea:
    """A lattice that falls asleep from the border inwards: images are looked at in the middle.

    Levels of ``lattice`` are taken by halves: those below ``k/2``, the next quarter, the next
    eighth and so on. The positions of each are put in order by their distance from the centre, as a
    fraction of the map's height and width, and shared out among its levels, the farthest first. So
    at rates 1/2, 3/4, 7/8 ... the map is that of ``lattice``, with its phase; between two of these,
    cells pass from the sparser lattice to the denser one from the border inwards, and sleepers have
    as many awake neighbours as in the denser one.

    What a channel cell's map holds at ``j/k`` is exact to within one position of what its halves
    hold, and the same for any two images of one phase. Grains of single positions only.
    """

    name: ClassVar[str] = "fovea"


@dataclass(frozen=True)
class BlueNoise:
    """Sleepers spread as evenly as a pattern without directions can be: void-and-cluster.

    The rank map of ``drowsy.bluenoise``, a tile of 64 x 64 positions, is repeated over the layer;
    the level is the rank scaled to ``k``, so that a rate is a length of the ranks' prefix. The tile
    is shifted at random, anew for every image and channel cell.

    Over any 64 x 64 positions each level occurs ``4096 / k`` times, exactly where ``k`` divides
    4096 and within 1 otherwise. Maps of other sizes are cut out of the tile, so the number of
    sleepers varies between images: at rate 1/2 by a standard deviation of 1.0 at 7 x 7, 1.5 at
    14 x 14, 2.7 at 28 x 28 and 3.1 at 56 x 56, a third to a ninth of what independent bits give.
    Grains of single positions only.
    """

    name: ClassVar[str] = "bluenoise"


@dataclass(frozen=True)
class Lfsr:
    """The paper's hardware: one linear feedback shift register per processing engine (III-B).

    Fibonacci registers that never stop: engine ``e`` computes channel cells ``e, e + engines, ...``
    in raster order and steps once a cell, from one image to the next. The comparator puts a cell
    to sleep while the register's state, scaled to ``k`` levels, is below ``j``.

    Args:
        width: bits of the register, 2 to 20.
        taps: bit positions (1 = first) that are XORed; the register must be of maximal length.
        engines: number of processing engines.
        seeding: initial states, one for each engine or one for all; empty = a hash of
            (seed, layer, engine).

    A register never reaches 0, so its rates are not quite ``j/k``: see ``lfsr_rates``.
    """

    name: ClassVar[str] = "lfsr"
    width: int = 3
    taps: tuple[int, ...] = (3, 2)
    engines: int = 64
    seeding: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.width <= 20:
            raise ValueError(f"lfsr width: got {self.width}, allowed: 2 to 20 bits")
        if self.engines < 1:
            raise ValueError(f"lfsr engines: got {self.engines}, allowed: 1 or more")
        if not self.taps or any(not 1 <= tap <= self.width for tap in self.taps):
            raise ValueError(f"lfsr taps: got {self.taps}, allowed: positions 1 to {self.width}")
        if len(_lfsr_cycle(self.width, self.taps)) != 2**self.width - 1:
            raise ValueError(
                f"lfsr taps: {self.taps} visit {len(_lfsr_cycle(self.width, self.taps))} states, "
                f"a maximal register of {self.width} bits visits {2**self.width - 1}"
            )
        if len(self.seeding) not in (0, 1, self.engines):
            raise ValueError(
                f"lfsr seeding: got {len(self.seeding)} states, allowed: none, 1 or {self.engines}"
            )
        if any(not 1 <= state < 2**self.width for state in self.seeding):
            raise ValueError(
                f"lfsr seeding: got {self.seeding}, allowed: states 1 to {2**self.width - 1}"
            )


Source = Bernoulli | Stratified | Lattice | Fovea | BlueNoise | Lfsr
SOURCES: dict[str, type[Source]] = {
    kind.name: kind for kind in (Bernoulli, Stratified, Lattice, Fovea, BlueNoise, Lfsr)
}


def parse_source(text: str | Source) -> Source:
    """Read a source's text form, such as ``bernoulli`` or ``lfsr:width=8,taps=8.6.5.4``."""
    if isinstance(text, Source):
        return text
    name, _, options = str(text).partition(":")
    if name not in SOURCES:
        raise ValueError(f"source: got {text!r}, allowed: {', '.join(SOURCES)}")
    kind = SOURCES[name]
    allowed = [field.name for field in fields(kind)]
    values: dict[str, int | tuple[int, ...]] = {}
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        if key not in allowed or not re.fullmatch(r"\d+(\.\d+)*", value):
            raise ValueError(
                f"source {name}: got option {option!r}, allowed: "
                f"{', '.join(allowed) or 'none'}, each with dot-separated integers"
            )
        numbers = tuple(int(number) for number in value.split("."))
        values[key] = numbers if key in ("taps", "seeding") else numbers[0]
    return kind(**values)  # type: ignore[arg-type]


def source_text(source: Source) -> str:
    """The text form of a source; ``parse_source`` reads it back."""
    options = []
    for field in fields(source):
        value = getattr(source, field.name)
        if value != field.default:
            text = ".".join(map(str, value)) if isinstance(value, tuple) else str(value)
            options.append(f"{field.name}={text}")
    return source.name + (":" + ",".join(options) if options else "")


def stored_text(source: Source) -> str:
    """The text form that stores know a source by: with its revision, where it had earlier maps."""
    revision = getattr(source, "revision", 1)
    return source_text(source) + (f", revision {revision}" if revision > 1 else "")


@dataclass(frozen=True)
class SleepSpec:
    """How a layer's sleep map is drawn; everything but the rate, the seed and the image.

    Args:
        source: a source or its text form.
        grain: a ``Grain`` or its text form.
        k: number of rate steps; rates are multiples of ``1/k``. 2 to 256.
        stream: which random stream the layer draws from. Layers with equal streams and phases (and
            equal shapes) share their maps.
        phase: which of its stream's maps: even ones and odd ones complement each other. Up to rate
            1/2 no cell sleeps in two maps of one stream whose phases differ by an odd number; at
            higher rates as few as can be. ``lattice`` and ``fovea`` shift their pattern by so many
            phases (and keep the promise where ``k`` is a power of two); of other sources an odd
            phase turns the draw upside down.
    """

    source: Source = Bernoulli()
    grain: Grain = Grain()
    k: int = DEFAULT_K
    stream: int = 0
    phase: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", parse_source(self.source))
        object.__setattr__(self, "grain", Grain.parse(self.grain))
        if isinstance(self.source, (Fovea, BlueNoise)) and not self.grain.of_single_positions:
            raise ValueError(
                f"grain: got {self.grain} with source {self.source.name}, allowed: grains of "
                "single positions (neuron, position, position:G, tile:1xN)"
            )
        if not isinstance(self.k, int) or not 2 <= self.k <= MAX_K:
            raise ValueError(f"k: got {self.k!r}, allowed: an integer from 2 to {MAX_K}")
        for name, number in (("stream", self.stream), ("phase", self.phase)):
            if not 0 <= number <= _MASK32:
                raise ValueError(f"{name}: got {number}, allowed: 0 to {_MASK32}")

    @property
    def upside_down(self) -> bool:
        """Whether sources other than ``lattice`` and ``fovea`` turn their draws upside down."""
        return self.phase % 2 == 1

    def __str__(self) -> str:
        phase = f";{self.phase}" if self.phase else ""
        return f"{source_text(self.source)};{self.grain};{self.k};{self.stream}{phase}"

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def parse(text: str) -> SleepSpec:
        """Read ``str(spec)`` back; the layer's operator carries its spec in this form."""
        source, grain, *numbers = text.split(";")
        return SleepSpec(parse_source(source), Grain.parse(grain), *map(int, numbers))


# --- rates -------------------------------------------------------------------------------------


def threshold(rate: float | Fraction, k: int = DEFAULT_K) -> int:
    """The integer ``j`` with ``rate == j / k``.

    Raises:
        ValueError: rate outside [0, 1), or not a multiple of ``1/k`` (within 1e-9).
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, float, Fraction)):
        raise TypeError(f"rate: got {rate!r}, allowed: a number in [0, 1)")
    j = round(rate * k) if math.isfinite(rate) else -1
    if not 0 <= rate < 1 or j >= k or abs(float(rate) - j / k) > 1e-9:
        raise ValueError(f"rate: got {rate}, allowed: multiples of 1/{k} from 0 to {k - 1}/{k}")
    return j


NEIGHBOUR_FILLS = ("nearest", "interpolate", "stencil")
FILLS = ("zero", "rescale", *NEIGHBOUR_FILLS)


def check_fill(fill: str, grain: Grain) -> str:
    """Return the name of a fill.

    Raises:
        ValueError: not one of ``FILLS``, or one that takes its values from awake neighbours where
            the grain's cells are larger than a position.
    """
    if fill not in FILLS:
        raise ValueError(f"fill: got {fill!r}, allowed: {', '.join(FILLS)}")
    if fill in NEIGHBOUR_FILLS and not grain.of_single_positions:
        raise ValueError(
            f"fill: got {fill!r} with grain {grain}, allowed: "
            f"{', '.join(name for name in FILLS if name not in NEIGHBOUR_FILLS)}; "
            f"{', '.join(NEIGHBOUR_FILLS)} need a grain of single positions "
            "(neuron, position, position:G, tile:1xN)"
        )
    return fill


def scale(j: int, k: int, fill: str) -> float:
    """Factor on awake outputs: ``k / (k - j)`` for ``rescale`` (paper, III-A), 1 for the others."""
    return k / (k - j) if fill == "rescale" else 1.0


def lfsr_rates(source: Lfsr, k: int = DEFAULT_K) -> list[float]:
    """Fraction of a register's period that sleeps at thresholds ``0 .. k-1``.

    A three-bit register with ``k = 8`` gives 0, 0, 1/7, 2/7, ... 6/7 where 0, 1/8, ... 7/8 were
    asked for, because a shift register never holds 0.
    """
    table = _lfsr_table(source, k)
    return [(table < j).float().mean().item() for j in range(k)]


# --- Philox ------------------------------------------------------------------------------------


def philox(c0: Tensor, c1: Tensor, c2: int, c3: int, seed: Tensor) -> tuple[Tensor, ...]:
    """Philox-4x32-10 at counters ``(c0, c1, c2, c3)`` with the 64-bit key ``seed``.

    Args:
        c0, c1: int64 tensors that broadcast together, values in [0, 2**32).
        c2, c3: integers in [0, 2**32).
        seed: int64 tensor of one element.

    Returns:
        four int64 tensors of the broadcast shape, values in [0, 2**32).
    """
    shape = torch.broadcast_shapes(c0.shape, c1.shape)
    x0, x1 = c0.expand(shape), c1.expand(shape)
    x2 = torch.full(shape, c2, dtype=torch.int64, device=c0.device)
    x3 = torch.full_like(x2, c3)
    key0, key1 = seed & _MASK32, (seed >> 32) & _MASK32
    for _ in range(_PHILOX_ROUNDS):
        # Products exceed 63 bits and wrap; masking after the arithmetic shift undoes the sign.
        product0, product1 = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        x0 = (product1 >> 32).bitwise_and_(_MASK32).bitwise_xor_(x1).bitwise_xor_(key0)
        x2 = (product0 >> 32).bitwise_and_(_MASK32).bitwise_xor_(x3).bitwise_xor_(key1)
        x1, x3 = product1.bitwise_and_(_MASK32), product0.bitwise_and_(_MASK32)
        key0, key1 = (key0 + 0x9E3779B9) & _MASK32, (key1 + 0xBB67AE85) & _MASK32
    return x0, x1, x2, x3


# --- level maps --------------------------------------------------------------------------------


def levels(spec: SleepSpec, shape: tuple[int, int, int, int], clock: Tensor) -> Tensor:
    """Draw the level map of a layer.

    Args:
        spec: how to draw.
        shape: ``(N, C, OH, OW)`` of the layer's output.
        clock: int64 tensor ``(seed, image)``: the seed, and the running index of the batch's
            first image. Its device is where the map is drawn.

    Returns:
        uint8 tensor ``[N, PC, CC]`` with values in ``0 .. k-1``; a cell sleeps at rate ``j/k``
        when its level is below ``j``.
    """
    n, channels, height, width = shape
    cell_p, cell_c = spec.grain.cell(max(channels, 1), max(height * width, 1))
    cells = (-(-height * width // cell_p), -(-channels // cell_c))
    out = torch.empty((n, *cells), dtype=torch.uint8, device=clock.device)
    if out.numel() == 0:
        return out
    images = (clock[1] + torch.arange(n, device=clock.device)) & _MASK32
    row = width if cell_p == 1 else None
    for part in _image_chunks(n, cells, clock.device):
        out[part] = _draw(spec, cells, row, images[part], clock[0])
    return out


def _image_chunks(n: int, cells: tuple[int, int], device: torch.device) -> list[slice]:
    step = n if device.type != "cpu" else max(1, _CPU_CHUNK * 8 // (cells[0] * cells[1]))
    return [slice(start, start + step) for start in range(0, n, max(step, 1))]


def _draw(
    spec: SleepSpec, cells: tuple[int, int], row: int | None, images: Tensor, seed: Tensor
) -> Tensor:
    """Level map of a few images; ``row`` is the map's width where cells are single positions."""
    if isinstance(spec.source, (Bernoulli, Stratified)):
        draw = _draw_bernoulli if isinstance(spec.source, Bernoulli) else _draw_stratified
        drawn = draw(spec, cells, images, seed)
        return spec.k - 1 - drawn if spec.upside_down else drawn
    if isinstance(spec.source, Lattice):
        return _draw_lattice(spec, cells, row, images, seed)
    if isinstance(spec.source, Fovea):
        assert row is not None
        return _draw_fovea(spec, cells, row, images, seed)
    if isinstance(spec.source, BlueNoise):
        assert row is not None
        return _draw_bluenoise(spec, cells, row, images, seed)
    return _draw_lfsr(spec, spec.source, cells, images, seed)


def _draw_bernoulli(
    spec: SleepSpec, cells: tuple[int, int], images: Tensor, seed: Tensor
) -> Tensor:
    positions, channels = cells
    blocks = -(-channels // 8)
    counter = torch.arange(positions * blocks, device=images.device)
    words = philox(counter, images[:, None], spec.stream, _TAG_BERNOULLI, seed)
    drawn = torch.empty((*words[0].shape, 8), dtype=torch.uint8, device=images.device)
    for lane, half in enumerate(_halves(words)):
        drawn[..., lane] = half.mul_(spec.k).bitwise_right_shift_(16)
    return drawn.view(len(images), positions, blocks * 8)[:, :, :channels]


def _halves(words: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """The eight 16-bit halves of Philox's four words, the lower half of each first."""
    for word in words:
        yield word & 0xFFFF
        yield word >> 16


def _draw_stratified(
    spec: SleepSpec, cells: tuple[int, int], images: Tensor, seed: Tensor
) -> Tensor:
    positions, channels = cells
    k = spec.k
    length = positions if positions > 1 else channels
    runs, lanes = -(-length // k), -(-k // 4)
    across = channels if positions > 1 else 1
    counter = torch.arange(runs * across * lanes, device=images.device)
    words = torch.stack(
        philox(counter, images[:, None], spec.stream, _TAG_STRATIFIED, seed), dim=-1
    )
    keys = words.view(len(images), runs, across, lanes * 4)[..., :k]
    # The rank of a key among its run: a uniformly random permutation of the levels.
    ranks = keys.argsort(dim=-1, stable=True).argsort(dim=-1).to(torch.uint8)
    drawn = ranks.transpose(2, 3).reshape(len(images), runs * k, across)[:, :length]
    return drawn if positions > 1 else drawn.transpose(1, 2)


def _draw_lattice(
    spec: SleepSpec, cells: tuple[int, int], row: int | None, images: Tensor, seed: Tensor
) -> Tensor:
    return lattice_levels(spec.k, cells, row, lattice_phases(spec, images, seed))


def lattice_phases(spec: SleepSpec, images: Tensor, seed: Tensor) -> Tensor:
    """The lattice's phase, ``0 .. k-1``, in these images (int64, modulo ``2**32``)."""
    drawn = philox(images * 0, images, spec.stream, _TAG_LATTICE, seed)[0]
    return (((drawn >> 16) * spec.k >> 16) + spec.phase) % spec.k


def lattice_levels(k: int, cells: tuple[int, int], row: int | None, phases: Tensor) -> Tensor:
    """A lattice's level maps at these phases: uint8 ``[phases, PC, CC]``.

    Args:
        cells: ``(PC, CC)``.
        row: the map's width where cells are single positions.
        phases: int64, each ``0 .. k-1``.
    """
    tile, shifts = lattice_tables(k, phases.device)
    p = torch.arange(cells[0], device=phases.device)[:, None]
    step = torch.arange(cells[1], device=phases.device) + phases[:, None, None]
    y, x = (p // row, p % row) if row else (0, 0)
    down, across = shifts[(step if row else step + p) % k].long().unbind(-1)
    return tile[(y + down) % len(tile), (x + across) % len(tile)]


@functools.lru_cache(maxsize=4 * MAX_K)
def lattice_tables(k: int, device: torch.device = _CPU, phase: int = 0) -> tuple[Tensor, Tensor]:
    """``(tile, shifts)`` of the lattice source, made on ``device`` once.

    (A captured graph cannot hold a copy from the host.)

    Returns:
        uint8 ``[T, T]``, levels in one period of the pattern; uint8 ``[k, 2]``, by how many rows
        and columns each phase shifts it, from phase ``phase`` on. At any position the ``k`` phases
        meet the ``k`` levels, in an order in which every prefix of levels is spread evenly round
        the circle of phases.
    """
    order = _spread_order(k)
    tile = _nested_tile(k) if k & (k - 1) == 0 else _diagonal_tile(k, order)
    shifts = torch.stack([(tile == level).nonzero()[0] for level in order])
    shifts = shifts.roll(-phase, 0)
    return tile.to(torch.uint8).to(device), shifts.to(torch.uint8).to(device)


def _nested_tile(k: int) -> Tensor:
    """Levels of nested lattices, for ``k`` a power of two.

    The bits of a level, highest first, split the positions into the two colours of a checkerboard,
    a colour into every second row and column or the rest of it, and so on in that half. Where
    sleepers are few the second split is by diagonals instead: ``interpolate`` errs less where two
    of the four at a sleeper's corners sleep too than where it averages all eight round it.
    """
    period, count = 1 << (k.bit_length() // 2), k.bit_length() - 1
    y, x = torch.arange(period)[:, None].expand(period, period), torch.arange(period)
    bits: list[Tensor] = []
    while len(bits) < count:
        colour, row = (x + y) % 2, y % 2
        bits += [colour, row]
        x, y = (x - colour - row) // 2, (y - row) // 2
    if count >= 3:
        few = bits[0] == 0
        diagonal = bits[1] ^ bits[2]
        bits[1:3] = torch.where(few, diagonal, bits[1]), torch.where(few, bits[1], bits[2])
    return sum((bit << count - 1 - i for i, bit in enumerate(bits[:count])), torch.zeros(()).long())


def _diagonal_tile(k: int, order: Tensor) -> Tensor:
    """Levels that follow ``x + a*y``, for any ``k``.

    ``a`` is coprime to ``k`` (every row and column meets every level) and keeps the points of one
    level as far apart as it can.
    """

    def spacing(slope: int) -> int:
        """Squared length of the shortest vector between two cells of the same level."""
        return min(
            x * x + y * y
            for y in range(0, k)
            for x in ((-slope * y) % k, (-slope * y) % k - k)
            if (x, y) != (0, 0)
        )

    coprime = [slope for slope in range(1, k) if math.gcd(slope, k) == 1]
    slope = max(coprime, key=lambda candidate: (spacing(candidate), -candidate))
    return order[(torch.arange(k) + slope * torch.arange(k)[:, None]) % k]


def _spread_order(k: int) -> Tensor:
    """Levels ``0 .. k-1`` round a circle, every prefix spread evenly: int64 ``[k]``."""
    chosen: list[int] = [0]

    def crowding(phase: int) -> tuple[float, float, int]:
        """Nearest chosen phase first, then how near all of them are, then the lower phase."""
        gaps = [min((phase - other) % k, (other - phase) % k) for other in chosen]
        return -min(gaps), sum(1 / gap**2 for gap in gaps), phase

    while len(chosen) < k:
        chosen.append(min(set(range(k)).difference(chosen), key=crowding))
    order = torch.empty(k, dtype=torch.int64)
    order[chosen] = torch.arange(k)
    return order


def _draw_fovea(
    spec: SleepSpec, cells: tuple[int, int], row: int, images: Tensor, seed: Tensor
) -> Tensor:
    positions, channels = cells
    table = fovea_table(spec.k, positions // row, row, images.device)
    channel = torch.arange(channels, device=images.device)
    phases = lattice_phases(spec, images, seed)
    return table[(phases[:, None] + channel) % spec.k].transpose(1, 2)


@functools.lru_cache(maxsize=256)
def fovea_table(
    k: int, height: int, width: int, device: torch.device = _CPU, phase: int = 0
) -> Tensor:
    """Levels of a whole map at each of the lattice's phases, from ``phase`` on.

    (Made on ``device`` once: a captured graph cannot hold a copy from the host.)

    Returns:
        uint8 ``[k, height * width]``.
    """
    y, x = torch.arange(height)[:, None], torch.arange(width)
    # Twice the distances from the centre as fractions of the sides, all of it times both sides.
    distance = ((2 * y + 1 - height) * width) ** 2 + ((2 * x + 1 - width) * height) ** 2
    inwards = distance.flatten().argsort(descending=True, stable=True)
    pattern = lattice_levels(k, (height * width, 1), width, torch.arange(k))[..., 0][:, inwards]
    for first, last in _halves_of(k):
        for levels_of_phase in pattern:
            members = ((first <= levels_of_phase) & (levels_of_phase < last)).nonzero()[:, 0]
            rank = torch.arange(len(members))
            shared = first + rank * (last - first) // max(len(members), 1)
            levels_of_phase[members] = shared.to(torch.uint8)
    table = torch.empty_like(pattern)
    table[:, inwards] = pattern
    return table.roll(-phase, 0).to(device)


def _halves_of(k: int) -> list[tuple[int, int]]:
    """Levels ``0 .. k-1`` as ranges, each the lower half of what is left."""
    halves, first = [], 0
    while first < k:
        last = k - (k - first) // 2
        halves.append((first, last))
        first = last
    return halves


@functools.lru_cache(maxsize=4096)
def simplest(spec: SleepSpec, j: int) -> SleepSpec:
    """A specification of the same map at rate ``j/k``: ``lattice`` where that is ``fovea``'s."""
    if isinstance(spec.source, Fovea) and any(j == last for _, last in _halves_of(spec.k)):
        return replace(spec, source=Lattice())
    return spec


def _draw_bluenoise(
    spec: SleepSpec, cells: tuple[int, int], row: int, images: Tensor, seed: Tensor
) -> Tensor:
    positions, channels = cells
    device, side = images.device, bluenoise.SIDE
    blocks = torch.arange(-(-channels // 8), device=device)
    words = philox(blocks, images[:, None], spec.stream, _TAG_BLUENOISE, seed)
    shift = torch.stack(list(_halves(words)), dim=-1).flatten(1)[:, None, :channels]
    p = torch.arange(positions, device=device)[:, None]
    y, x = p // row + (shift >> 8), p % row + shift
    return bluenoise_table(spec.k, spec.upside_down, device)[y % side, x % side]


@functools.lru_cache(maxsize=MAX_K)
def bluenoise_table(k: int, upside_down: bool = False, device: torch.device = _CPU) -> Tensor:
    """The level of every position of the blue-noise tile: uint8 ``[64, 64]``, made once."""
    ranks, count = torch.from_numpy(bluenoise.rank_map()), bluenoise.SIDE**2
    if upside_down:
        ranks = count - 1 - ranks
    return (ranks * k // count).to(torch.uint8).to(device)


def _draw_lfsr(
    spec: SleepSpec, source: Lfsr, cells: tuple[int, int], images: Tensor, seed: Tensor
) -> Tensor:
    positions, channels = cells
    device = images.device
    table, phases = lfsr_tables(source, spec.k, spec.stream, seed, spec.upside_down)
    cell = torch.arange(channels, device=device)
    rounds = -(-channels // source.engines)
    # Steps since the register's start; images come in steps of a whole layer.
    within = (cell // source.engines) * positions + torch.arange(positions, device=device)[:, None]
    since = images[:, None, None] * (rounds * positions) + within
    return table[(phases[cell % source.engines] + since) % len(table)]


def lfsr_tables(
    source: Lfsr, k: int, stream: int, seed: Tensor, upside_down: bool = False
) -> tuple[Tensor, Tensor]:
    """``(table, phases)``: uint8 levels along the register's cycle, int64 start of each engine.

    Both lie on the device of ``seed`` (an int64 tensor of one element).
    """
    table = _lfsr_table(source, k, upside_down, seed.device)
    return table, lfsr_phases(source, stream, seed)


def lfsr_phases(source: Lfsr, stream: int, seed: Tensor) -> Tensor:
    """Where on its cycle each engine starts: int64 ``[engines]``, on the device of ``seed``.

    Without a ``seeding`` nothing is copied from the host, so that a CUDA graph can hold it.
    """
    cycle = _lfsr_cycle(source.width, source.taps)
    if source.seeding:
        starts = [cycle.index(state) for state in source.seeding]
        return torch.tensor(starts, device=seed.device).expand(source.engines).contiguous()
    engine = torch.arange(source.engines, device=seed.device)
    return philox(engine, engine * 0, stream, _TAG_LFSR, seed)[0] % len(cycle)


@functools.lru_cache(maxsize=64)
def _lfsr_table(
    source: Lfsr, k: int, upside_down: bool = False, device: torch.device = _CPU
) -> Tensor:
    states = torch.tensor(_lfsr_cycle(source.width, source.taps))
    if upside_down:
        states = 2**source.width - states
    return (states * k >> source.width).to(torch.uint8).to(device)


@functools.lru_cache(maxsize=64)
def _lfsr_cycle(width: int, taps: tuple[int, ...]) -> list[int]:
    """States that a Fibonacci register visits from state 1 until it meets one again."""
    state, seen, cycle = 1, set(), []
    while state not in seen:
        seen.add(state)
        cycle.append(state)
        feedback = 0
        for tap in taps:
            feedback ^= state >> (tap - 1)
        state = (state << 1 | feedback & 1) & (2**width - 1)
    return cycle


# --- bitmaps -----------------------------------------------------------------------------------


def pack_bitmap(asleep: Tensor) -> Tensor:
    """Pack a boolean map ``[N, PC, CC]`` to int32 words ``[N, PC, ceil(CC / 32)]``.

    Bit ``b`` of word ``w`` is cell ``32 * w + b``; 1 sleeps; unused bits are 0.
    """
    n, positions, channels = asleep.shape
    words = -(-channels // 32)
    padded = torch.zeros((n, positions, words * 32), dtype=torch.int64, device=asleep.device)
    padded[:, :, :channels] = asleep
    weights = torch.ones((), dtype=torch.int64, device=asleep.device) << torch.arange(
        32, device=asleep.device
    )
    packed = (padded.view(n, positions, words, 32) * weights).sum(dim=-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def unpack_bitmap(bitmap: Tensor, channels: int) -> Tensor:
    """Inverse of ``pack_bitmap``: boolean ``[N, PC, channels]`` with ``channels`` cells a row."""
    if bitmap.dtype != torch.int32 or bitmap.dim() != 3 or channels > bitmap.shape[2] * 32:
        raise ValueError(
            f"bitmap: got {bitmap.dtype} {tuple(bitmap.shape)} for {channels} cells, "
            f"allowed: int32 [N, PC, ceil({channels} / 32)]"
        )
    bits = bitmap[..., None] >> torch.arange(32, device=bitmap.device, dtype=torch.int32) & 1
    return bits.flatten(2)[:, :, :channels].bool()


def expand_cells(cells: Tensor, shape: tuple[int, int, int, int], grain: Grain) -> Tensor:
    """Spread a map over cells ``[N, PC, CC]`` to its neurons ``[N, C, OH, OW]``, channels last.

    One cell for all positions or channels is expanded, not copied.
    """
    n, channels, height, width = shape
    cell_p, cell_c = grain.cell(max(channels, 1), max(height * width, 1))
    if cells.shape[1] == 1:
        cells = cells.expand(-1, height * width, -1)
    elif cell_p > 1:
        cells = cells.repeat_interleave(cell_p, dim=1)[:, : height * width]
    if cells.shape[2] == 1:
        cells = cells.expand(-1, -1, channels)
    elif cell_c > 1:
        cells = cells.repeat_interleave(cell_c, dim=2)[:, :, :channels]
    return cells.reshape(n, height, width, channels).permute(0, 3, 1, 2)
