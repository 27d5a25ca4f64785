"""What a source of sleep is, and the text forms by which sources are known."""

from __future__ import annotations

import abc
import re
from dataclasses import astuple, dataclass, field, fields
from typing import ClassVar

from torch import Tensor

from drowsy.files.messages import quoted


@dataclass(frozen=True)
class LayerMap:
    """What a source is told of a layer: what its level maps have in common, whatever the image.

    Args:
        k, stream, phase: as for ``SleepSpec``.
        cells: ``(PC, CC)``, position cells and channel cells.
        size: ``(height, width)`` of the map where cells are single positions, so that
            ``PC = height * width``; None where they are larger.
        detail: of the batch's pictures, as ``detail_map`` tells it, for sources that see them; None
            for the others.
    """

    k: int
    stream: int
    phase: int
    cells: tuple[int, int]
    size: tuple[int, int] | None
    detail: Tensor | None = field(default=None, compare=False)

    @property
    def upside_down(self) -> bool:
        """Whether level ``l`` becomes ``k - 1 - l``, for sources that know no other phases."""
        return self.phase % 2 == 1


SOURCES: dict[str, type[Source]] = {}
"""Sources by name, in the order in which they were defined."""


@dataclass(frozen=True)
class Source(abc.ABC):
    """How level maps are drawn.

    A new source is one subclass: a frozen dataclass with a ``name``, ``draw``, and what of the rest
    differs from the defaults here. Its options are fields with defaults, integers or tuples of
    integers. From its definition on it is known by its name: in text forms, to ``drowsy.convert``
    and on the command line. The torch backend then runs it; a Triton kernel for it stands in
    ``drowsy_kernels.sleep_map`` under the same name.

    Attributes:
        name: lower-case letters, digits and ``_``.
        revision: of the maps: stored results of other ones are not taken for results of these.
        spreads: whether sleepers are spread over the map, so that they have awake neighbours.
        single_positions: whether cells must be single positions.
        is_lattice: whether maps are ``lattice_levels`` at phases of ``lattice_phases``: backends
            then skip whole regular grids.
        sees: whether maps depend on the network's input: ``LayerMap.detail`` is given.
        follows_seed: whether some of ``tables`` depend on the seed, or on what the source sees.
    """

    name: ClassVar[str]
    revision: ClassVar[int] = 1
    spreads: ClassVar[bool] = False
    single_positions: ClassVar[bool] = False
    is_lattice: ClassVar[bool] = False
    sees: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in cls.__dict__:  # a base of sources
            return
        if not re.fullmatch(r"[a-z][a-z0-9_]*", cls.name):
            raise ValueError(
                f"source: got the name {cls.name!r}, allowed: lower-case letters, digits and _"
            )
        known = SOURCES.get(cls.name)
        # Defined anew, by a notebook's cell that runs twice or by a decorator: the last one counts.
        anew = known and (known.__module__, known.__name__) == (cls.__module__, cls.__name__)
        if known and not anew:
            raise ValueError(f"source: {cls.name!r} is the name of {known!r}")
        if cls.draw is Source.draw:
            raise TypeError(f"source {cls.name!r}: has no draw")
        SOURCES[cls.name] = cls

    @abc.abstractmethod
    def draw(self, layer: LayerMap, images: Tensor, seed: Tensor) -> Tensor:
        """The level maps of these images.

        Args:
            layer: with at least one cell.
            images: int64 ``[N]``, values in [0, 2**32): the images' indices modulo ``2**32``.
            seed: int64 tensor of one element, on the same device.

        Returns:
            integers ``[N, PC, CC]`` in ``0 .. k-1``; a function of an image's index, or of what the
            source sees of it, whatever other images are asked for.
        """

    def sleepers(self, layer: LayerMap, images: Tensor, seed: Tensor, j: int) -> Tensor | None:
        """``draw(layer, images, seed) < j``, where that can be had for less than the levels.

        Args:
            layer, images, seed: as for ``draw``.
            j: 1 to ``k - 1``.

        Returns:
            boolean ``[N, PC, CC]``, or None: there is no shorter way.
        """
        return None

    def tables(self, layer: LayerMap, seed: Tensor) -> tuple[Tensor, ...]:
        """What the source's kernel reads, on the device of ``seed``; none by default.

        Without a copy from the host where it was called before: a captured graph can hold no such
        copy.
        """
        return ()

    @property
    def follows_seed(self) -> bool:
        return False

    def reseed(self, tables: tuple[Tensor, ...], layer: LayerMap, seed: Tensor) -> None:
        """Write what of ``tables`` follows the seed or ``layer.detail``, without a copy from the
        host."""
        assert not self.follows_seed, f"source {self.name} does not say how to reseed its tables"

    def exact_run(self, layer: LayerMap) -> int | None:
        """How long runs of position cells are of which exactly ``j/k`` sleep, in any channel cell.

        Runs follow each other from the first cell on, and from one image to the next. None where no
        such run is known, or where it does not divide the position cells.
        """
        return None

    def simplest(self, k: int, j: int) -> Source:
        """The simplest source with the same maps at rate ``j/k``."""
        return self


def parse_source(text: str | Source) -> Source:
    """Read a source's text form, such as ``bernoulli`` or ``lfsr:width=8,taps=8.6.5.4``."""
    if isinstance(text, Source):
        return text
    name, _, options = str(text).partition(":")
    if name not in SOURCES:
        raise ValueError(f"source: got {quoted(text)}, allowed: {', '.join(SOURCES)}")
    kind = SOURCES[name]
    defaults = {field.name: field.default for field in fields(kind)}
    values: dict[str, int | tuple[int, ...]] = {}
    for option in filter(None, options.split(",")):
        key, given, value = option.partition("=")
        numbers = _numbers(value) if given else None
        several = isinstance(defaults.get(key), tuple)
        again = key in values
        if key not in defaults or again or numbers is None or not (several or len(numbers) == 1):
            raise ValueError(
                f"source {name}: got option {quoted(option)}, allowed: "
                f"{', '.join(defaults) or 'none'}, each once, with dot-separated integers"
            )
        values[key] = numbers if several else numbers[0]
    return kind(**values)


def _numbers(text: str) -> tuple[int, ...] | None:
    """Dot-separated integers of a text, which may be none; None where it holds something else."""
    parts = text.split(".") if text else []
    if not all(re.fullmatch("-?[0-9]{1,18}", part) for part in parts):
        return None
    return tuple(map(int, parts))


def check_options(source: Source) -> None:
    """Raise ValueError unless ``parse_source`` reads the source's text form back."""
    try:
        readable = astuple(parse_source(source_text(source))) == astuple(source)
    except ValueError:
        readable = False
    if not readable:
        raise ValueError(
            f"source: got {quoted(source)}, allowed: options that are integers of up to 18 digits, "
            "or tuples of such, as the field's default is"
        )


def source_text(source: Source) -> str:
    """The text form of a source; ``parse_source`` reads it back."""
    options = []
    for option in fields(source):
        value = getattr(source, option.name)
        if value != option.default:
            text = ".".join(map(str, value)) if isinstance(value, tuple) else str(value)
            options.append(f"{option.name}={text}")
    return source.name + (":" + ",".join(options) if options else "")


def stored_text(source: Source) -> str:
    """The text form that stores know a source by: with its revision, where it had earlier maps."""
    revision = f", revision {source.revision}" if source.revision > 1 else ""
    return source_text(source) + revision
