"""How a layer's sleep maps are drawn: ``SleepSpec``, and its text form."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field, replace

from torch import Tensor

from drowsy.files.messages import quoted
from drowsy.sleep.counters import MASK32
from drowsy.sleep.grain import Grain
from drowsy.sleep.independent import Bernoulli
from drowsy.sleep.rates import DEFAULT_K, MAX_K
from drowsy.sleep.source import (
    SOURCES,
    LayerMap,
    Source,
    check_options,
    parse_source,
    source_text,
)


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

    source: Source = field(default=Bernoulli())
    grain: Grain = field(default=Grain())
    k: int = DEFAULT_K
    stream: int = 0
    phase: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", parse_source(self.source))
        check_options(self.source)
        object.__setattr__(self, "grain", Grain.parse(self.grain))
        if self.source.single_positions and not self.grain.of_single_positions:
            raise ValueError(
                f"grain: got {self.grain} with source {self.source.name}, allowed: grains of "
                "single positions (neuron, position, position:G, tile:1xN)"
            )
        if type(self.k) is not int or not 2 <= self.k <= MAX_K:
            raise ValueError(f"k: got {quoted(self.k)}, allowed: an integer from 2 to {MAX_K}")
        for name, number in (("stream", self.stream), ("phase", self.phase)):
            if type(number) is not int or not 0 <= number <= MASK32:
                raise ValueError(
                    f"{name}: got {quoted(number)}, allowed: 0 to {MASK32}, an integer"
                )

    def layer_map(self, shape: tuple[int, int, int, int], detail: Tensor | None = None) -> LayerMap:
        """What a source is told of a layer whose output is ``(N, C, OH, OW)``.

        Args:
            detail: int32 ``[N, GH, GW]``, of the network's input (``detail_map``), without which
                maps of sources that see cannot be drawn.
        """
        _, channels, height, width = shape
        cell_p, cell_c = self.grain.cell(max(channels, 1), max(height * width, 1))
        cells = (-(-height * width // cell_p), -(-channels // cell_c))
        size = (height, width) if cell_p == 1 else None
        seen = detail if self.source.sees else None
        return LayerMap(self.k, self.stream, self.phase, cells, size, seen)

    def check_seen(self, images: int, detail: Tensor | None) -> None:
        """Raise ValueError where the source sees, and what it sees is not of so many images."""
        if self.source.sees and (detail is None or len(detail) != images):
            raise ValueError(
                f"source {self.source.name}: got {0 if detail is None else len(detail)} pictures "
                f"for the maps of {images} images, allowed: as many, from the network's input"
            )

    def __str__(self) -> str:
        phase = f";{self.phase}" if self.phase else ""
        return f"{source_text(self.source)};{self.grain};{self.k};{self.stream}{phase}"

    @staticmethod
    def parse(text: str) -> SleepSpec:
        """Read ``str(spec)`` back; the layer's operator carries its spec in this form.

        Raises:
            ValueError: a text of another form, or one that names what no specification can have.
        """
        # With the class, as a source may be defined anew.
        name = text.partition(";")[0].partition(":")[0]
        return _parsed(text, SOURCES.get(name))


@functools.lru_cache(maxsize=4096)
def _parsed(text: str, kind: type[Source] | None) -> SleepSpec:
    form = "([^;]*);([^;]*);([0-9]{1,3});([0-9]{1,10})(?:;([0-9]{1,10}))?"
    match = re.fullmatch(form, text)
    if match is None:
        raise ValueError(
            f"sleep: got {quoted(text)}, allowed: SOURCE;GRAIN;K;STREAM or "
            "SOURCE;GRAIN;K;STREAM;PHASE"
        )
    source, grain, k, stream, phase = match.groups(default="0")
    return SleepSpec(parse_source(source), Grain.parse(grain), int(k), int(stream), int(phase))


@functools.lru_cache(maxsize=4096)
def simplest(spec: SleepSpec, j: int) -> SleepSpec:
    """A specification of the same map at rate ``j/k``: ``lattice`` where that is ``fovea``'s."""
    return replace(spec, source=spec.source.simplest(spec.k, j))
