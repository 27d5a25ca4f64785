"""Which way a sleeping layer runs on the CPU: where skipping beats computing and clearing.

``crossover.json`` names the fastest way for each layer shape, source, grain and rate that ``python
-m bench.cpu_crossover`` has timed, and its time over that of the layer awake. For anything else
both are estimated: an estimate counts what a way multiplies, moves and calls, in multiplications of
the dense convolution, so that it holds on machines that differ in speed more than in their
proportions.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from drowsy.neuron import ConvSize, ConvSpec
from drowsy.sleep import Phased, SleepSpec, lattice_levels, lattice_tables, simplest, source_text
from drowsy.sleep.memory import remembered

TABLE = Path(__file__).with_name("crossover.json")
VERSION = 2
WAYS = ("mask", "rows", "sublattices", "channels")
# Rates of the table are multiples of 1 / TABLE_K.
TABLE_K = 8

# In multiplications of the dense float32 convolution, of which a core (Zen 4) does 57 a nanosecond.
# They choose the fastest way of the recorded layers, or one within 5% of it, 94 times of 100.
_PRODUCT = 1.1  # a multiplication in a product of gathered rows
_MOVE = 18.0  # to copy an element
_CALL = 3.5e6  # to call a convolution or a product, with what Python does around it
# To draw a cell of a map that is not known by its phase, and what a map takes in calls.
_DRAW = {"bernoulli": 190.0, "stratified": 2800.0, "detail": 100.0}
_DRAW_OTHER = 700.0
_DRAW_CALLS = {"detail": 9}
_DRAW_CALLS_OTHER = 3
# How often an element of a sleeper is moved by a fill.
_FILL = {"zero": 0.0, "nearest": 1.5, "interpolate": 2.5, "stencil": 6.0}
# How many multiplications a core does in bfloat16 while it does one in float32, by what it has.
_BFLOAT16 = {"amx_tile": 8.0, "avx512_bf16": 2.0, "none": 0.5}
# A way that skips is taken where its estimate is below this much of that of ``mask``.
_MARGIN = 0.9

# Windows are gathered so many inputs at a time: they are then in the cache when they are
# multiplied. Wide windows come by the thousand all the same: products of few rows are slow.
_CHUNK_INPUTS, _CHUNK_ROWS = 1 << 19, 1 << 10


@dataclass(frozen=True)
class Layer(ConvSize):
    """A convolution as this backend sees it: its sizes, and their layout.

    Its input is as ``neuron.padded`` leaves it.

    Args:
        channels_last: whether the dense convolution returns channels_last.
    """

    channels_last: bool

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, spec: ConvSpec) -> Layer:
        """The convolution of ``x`` ``[N, IC, H, W]`` with this weight."""
        last = _is_channels_last(x) or _is_channels_last(weight)
        return _layer(x.shape, weight.shape, spec, last)

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.input, self.weight, self.spec, self.channels_last))

    @property
    def chunk(self) -> int:
        """Windows gathered at a time."""
        return max(_CHUNK_ROWS, _CHUNK_INPUTS // self.window)

    @property
    def name(self) -> str:
        """Its shape without the batch, as the table has it."""
        _, ic, height, width = self.input
        spec = self.spec
        return (
            f"{ic}x{height}x{width} -> {self.output[1]}, kernel {_by(self.kernel)}, "
            f"stride {_by(spec.stride)}, padding {_by(spec.padding)}, dilation {_by(spec.dilation)}"
        )


@functools.lru_cache(maxsize=4096)
def _layer(x: torch.Size, weight: torch.Size, spec: ConvSpec, channels_last: bool) -> Layer:
    """The same object for the same layer, which is then found fast in what is kept of it."""
    return Layer(tuple(x), tuple(weight), spec, channels_last)  # type: ignore[arg-type]


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def columns(layer: Layer, sleep: SleepSpec) -> list[slice]:
    """The channels of each channel cell."""
    channels = layer.output[1]
    _, size = sleep.grain.cell(channels, layer.positions)
    return [slice(c, min(c + size, channels)) for c in range(0, channels, size)]


@remembered
def grids(k: int, j: int) -> dict[int, Tensor]:
    """The regular grids that a lattice's awake positions at rate ``j/k`` are, in phase 0.

    Returns:
        spacing in rows and columns -> int64 ``[grids, 2]``, row and column where each grid starts;
        as few grids as can be, densest first.
    """
    left = lattice_tables(k)[0] >= j
    found: dict[int, Tensor] = {}
    for spacing in (s for s in range(1, len(left) + 1) if len(left) % s == 0):
        # Grids of one spacing have no position in common.
        awake = left.unflatten(0, (-1, spacing)).unflatten(2, (-1, spacing)).all(2).all(0)
        if awake.any():
            found[spacing] = awake.nonzero()
            left &= ~awake.tile(len(left) // spacing, len(left) // spacing)
    return found


@functools.lru_cache(maxsize=256)
def _channel_patterns(k: int, j: int) -> int:
    """How many sets of awake channels a lattice of channel cells has, over its phases."""
    levels = lattice_levels(k, (1, k), None, torch.arange(k))
    return len((levels >= j).unique(dim=0))


def candidates(layer: Layer, sleep: SleepSpec) -> tuple[str, ...]:
    """The ways that can run this layer, ``mask`` first.

    The others take channels_last tensors and one group, and need cells of more than one channel or
    of all positions.
    """
    n, channels, *_ = layer.output
    if not layer.channels_last or layer.spec.groups > 1 or n == 0:
        return ("mask",)
    cell_p, cell_c = sleep.grain.cell(channels, layer.positions)
    if cell_p >= layer.positions:
        return ("mask", "channels")
    if cell_c == 1:
        return ("mask",)
    if cell_p == 1 and sleep.source.is_lattice:
        return ("mask", "rows", "sublattices")
    return ("mask", "rows")


def fastest(layer: Layer, sleep: SleepSpec, j: int, dtype: torch.dtype) -> str:
    """The way that this layer should run at rate ``j/k``: recorded, or estimated."""
    return _choose(layer, sleep, j, dtype, torch.get_num_threads())[0]


def expected(
    layer: Layer, sleep: SleepSpec, j: int, dtype: torch.dtype, fill: str = "zero"
) -> float:
    """Time of this layer at rate ``j/k`` over that of the layer awake, as far as is known.

    Below 1 sleep saves time. For as many threads as torch has now.

    Args:
        layer: the convolution.
        sleep: how its map is drawn.
        j: 0 to ``k - 1``.
        dtype: of its tensors.
        fill: one of ``drowsy.sleep.FILLS``.
    """
    if j == 0:
        return 1.0
    threads = torch.get_num_threads()
    ratio = _choose(layer, simplest(sleep, j), j, dtype, threads)[1]
    outputs = math.prod(layer.output)
    filled = _FILL.get(fill, 0.0) * _MOVE * outputs * j / sleep.k
    return ratio + filled * _weight_of_moves(dtype) / max(awake_cost(layer, dtype, threads), 1.0)


@functools.lru_cache(maxsize=4096)
def _choose(
    layer: Layer, sleep: SleepSpec, j: int, dtype: torch.dtype, threads: int
) -> tuple[str, float]:
    """The way of this layer at rate ``j/k``, and its time over that of the layer awake."""
    ways = candidates(layer, sleep)
    recorded = _recorded(layer, sleep, j, dtype, threads)
    if recorded is not None and recorded[0] in ways:
        return recorded
    if dtype not in (torch.float32, torch.bfloat16):
        ways = ("mask",)
    costs = {way: estimate(way, layer, sleep, j, dtype, threads) for way in ways}
    best = min(ways, key=costs.__getitem__)
    way = best if costs[best] < _MARGIN * costs["mask"] else "mask"
    return way, costs[way] / max(awake_cost(layer, dtype, threads), 1.0)


def awake_cost(layer: Layer, dtype: torch.dtype, threads: int) -> float:
    """What the layer costs awake, in multiplications of the dense convolution."""
    return math.prod(layer.output) * layer.window + _CALL * _speed(dtype) * threads


def _speed(dtype: torch.dtype) -> float:
    """Multiplications of the dense convolution in the time of one in float32."""
    return _BFLOAT16[unit(dtype)] if dtype == torch.bfloat16 else 1.0


def _weight_of_moves(dtype: torch.dtype) -> float:
    return _speed(dtype) * dtype.itemsize / 4


def unit(dtype: torch.dtype) -> str:
    """What the CPU has for this dtype beyond what it has for float32: what is timed with one CPU's
    instructions says nothing of another's."""
    if dtype != torch.bfloat16:
        return "none"
    for name in ("amx_tile", "avx512_bf16"):
        if getattr(torch.cpu, f"_is_{name}_supported", lambda: False)():
            return name
    return "none"


def estimate(
    way: str,
    layer: Layer,
    sleep: SleepSpec,
    j: int,
    dtype: torch.dtype = torch.float32,
    threads: int = 1,
) -> float:
    """What a way costs at rate ``j/k``, in multiplications of the dense convolution."""
    n, channels, height, width = layer.output
    inputs = n * layer.input[1] * layer.input[2] * layer.input[3]
    outputs = n * channels * layer.positions
    weights = channels * layer.window
    awake = 1 - j / sleep.k
    cells = len(columns(layer, sleep))
    move = _MOVE * _weight_of_moves(dtype)
    call = _CALL * _speed(dtype) * threads
    draw = _drawing(layer, sleep) * _speed(dtype) * threads
    if way == "mask":
        # Clearing a map that all channels share costs a fifth of a copy.
        cleared = outputs * move * (0.2 if cells == 1 else 1.0)
        return outputs * layer.window + cleared + 1.5 * call + draw
    if way == "rows":
        rows = awake * n * layer.positions
        padded = 0 if layer.window == layer.input[1] else inputs
        gathered = cells * rows * layer.window
        products = cells * math.ceil(rows / layer.chunk)
        product = _PRODUCT * awake * outputs * layer.window
        return product + move * (padded + gathered + outputs) + (products + 1) * call + draw
    if way == "sublattices":
        spacings = grids(sleep.k, j)
        crops = sum(len(starts) * inputs for starts in spacings.values())
        computed = sum(
            n * len(starts) * -(-height // spacing) * -(-width // spacing)
            for spacing, starts in spacings.items()
        )
        calls = cells * len(spacings) + 1
        moved = cells * crops + outputs + computed * channels + calls * weights
        return computed * weights + move * moved + calls * call
    # channels: images with the same awake channels are run together.
    patterns = n
    if sleep.source.is_lattice:
        patterns = min(n, _channel_patterns(sleep.k, j))
    moved = inputs + 3 * outputs + patterns * weights
    return awake * outputs * layer.window + move * moved + patterns * call + draw


def _drawing(layer: Layer, sleep: SleepSpec) -> float:
    """What a map costs to draw, in multiplications of the dense float32 convolution."""
    if isinstance(sleep.source, Phased):
        return 0.0
    n, channels, *_ = layer.output
    cell_p, cell_c = sleep.grain.cell(max(channels, 1), max(layer.positions, 1))
    cells = n * -(-layer.positions // cell_p) * -(-channels // cell_c)
    name = sleep.source.name
    calls = _DRAW_CALLS.get(name, _DRAW_CALLS_OTHER)
    return calls * _CALL + _DRAW.get(name, _DRAW_OTHER) * cells


def _recorded(
    layer: Layer, sleep: SleepSpec, j: int, dtype: torch.dtype, threads: int
) -> tuple[str, float] | None:
    """The table's answer, from at least half and at most twice as many images and threads."""
    if sleep.k != TABLE_K or not layer.channels_last:
        return None
    key = (layer.name, _name(dtype), unit(dtype), source_text(sleep.source), str(sleep.grain))
    found = {
        max(_apart(batch, layer.input[0]), _apart(count, threads)): answers
        for (batch, count), answers in _table().get(key, {}).items()
    }
    nearest = min(found, default=3.0)
    return found[nearest][j - 1] if nearest <= 2 else None


def _apart(a: int, b: int) -> float:
    return max(a, b) / max(min(a, b), 1e-9)


@functools.cache
def _table() -> dict[tuple[str, ...], dict[tuple[int, int], list[tuple[str, float]]]]:
    record = json.loads(TABLE.read_text(encoding="utf-8"))
    if record["version"] != VERSION:
        raise ValueError(f"{TABLE}: got version {record['version']}, allowed: {VERSION}")
    table: dict[tuple[str, ...], dict[tuple[int, int], list[tuple[str, float]]]] = {}
    for entry in record["entries"]:
        key = tuple(entry[name] for name in ("layer", "dtype", "unit", "source", "grain"))
        answers = list(zip(entry["ways"].split(), entry["ratios"], strict=True))
        table.setdefault(key, {})[entry["batch"], entry["threads"]] = answers
    return table


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
