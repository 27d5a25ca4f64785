"""Which way a sleeping layer runs on the CPU: where skipping beats computing and clearing.

``crossover.json`` names the fastest way for each layer shape, source, grain and rate that ``python
-m bench.cpu_crossover`` has timed. For anything else it is estimated: an estimate counts what a way
multiplies, moves and calls, in multiplications of the dense convolution, so that it holds on
machines that differ in speed more than in its proportions.
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
from drowsy.sleep import SleepSpec, lattice_levels, lattice_tables, source_text
from drowsy.sleep.memory import remembered

TABLE = Path(__file__).with_name("crossover.json")
VERSION = 1
WAYS = ("mask", "rows", "sublattices", "channels")
# Rates of the table are multiples of 1 / TABLE_K.
TABLE_K = 8

# In multiplications of the dense convolution, of which two cores (Zen 4) do 114 a nanosecond. They
# choose the fastest way of the recorded layers, or one within 5% of it, 94 times of 100.
_PRODUCT = 1.1  # a multiplication in a product of gathered rows
_MOVE = 18.0  # to copy an element
_CALL = 7e6  # to call a convolution or a product, with what Python does around it
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
        return cls(tuple(x.shape), tuple(weight.shape), spec, last)  # type: ignore[arg-type]

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


@functools.lru_cache(maxsize=4096)
def fastest(layer: Layer, sleep: SleepSpec, j: int, dtype: torch.dtype) -> str:
    """The way that this layer should run at rate ``j/k``: recorded, or estimated."""
    ways = candidates(layer, sleep)
    if len(ways) == 1 or dtype not in (torch.float32, torch.bfloat16):
        return "mask"
    recorded = _recorded(layer, sleep, j, dtype)
    if recorded in ways:
        return recorded
    costs = {way: estimate(way, layer, sleep, j) for way in ways}
    best = min(ways, key=costs.__getitem__)
    return best if costs[best] < _MARGIN * costs["mask"] else "mask"


def estimate(way: str, layer: Layer, sleep: SleepSpec, j: int) -> float:
    """What a way costs at rate ``j/k``, in multiplications of the dense convolution."""
    n, channels, height, width = layer.output
    inputs = n * layer.input[1] * layer.input[2] * layer.input[3]
    outputs = n * channels * layer.positions
    weights = channels * layer.window
    awake = 1 - j / sleep.k
    cells = len(columns(layer, sleep))
    if way == "mask":
        return outputs * (layer.window + _MOVE) + _CALL
    if way == "rows":
        rows = awake * n * layer.positions
        padded = 0 if layer.window == layer.input[1] else inputs
        gathered = cells * rows * layer.window
        products = cells * math.ceil(rows / layer.chunk)
        product = _PRODUCT * awake * outputs * layer.window
        return product + _MOVE * (padded + gathered + outputs) + products * _CALL
    if way == "sublattices":
        spacings = grids(sleep.k, j)
        crops = sum(len(starts) * inputs for starts in spacings.values())
        computed = sum(
            n * len(starts) * -(-height // spacing) * -(-width // spacing)
            for spacing, starts in spacings.items()
        )
        calls = cells * len(spacings)
        moved = cells * crops + outputs + computed * channels + calls * weights
        return computed * weights + _MOVE * moved + calls * _CALL
    # channels: images with the same awake channels are run together.
    patterns = n
    if sleep.source.is_lattice:
        patterns = min(n, _channel_patterns(sleep.k, j))
    moved = inputs + 3 * outputs + patterns * weights
    return awake * outputs * layer.window + _MOVE * moved + patterns * _CALL


def _recorded(layer: Layer, sleep: SleepSpec, j: int, dtype: torch.dtype) -> str | None:
    """The table's answer, from a batch of at least half and at most twice this one."""
    if sleep.k != TABLE_K:
        return None
    key = (layer.name, _name(dtype), source_text(sleep.source), str(sleep.grain))
    batches = {
        max(batch, layer.input[0]) / min(batch, layer.input[0]): ways
        for batch, ways in _table().get(key, {}).items()
    }
    nearest = min(batches, default=3.0)
    return batches[nearest][j - 1] if nearest <= 2 else None


@functools.cache
def _table() -> dict[tuple[str, str, str, str], dict[int, list[str]]]:
    record = json.loads(TABLE.read_text(encoding="utf-8"))
    if record["version"] != VERSION:
        raise ValueError(f"{TABLE}: got version {record['version']}, allowed: {VERSION}")
    table: dict[tuple[str, str, str, str], dict[int, list[str]]] = {}
    for entry in record["entries"]:
        key = (entry["layer"], entry["dtype"], entry["source"], entry["grain"])
        table.setdefault(key, {})[entry["batch"]] = entry["ways"].split()
    return table


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
