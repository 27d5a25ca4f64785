"""Schedules: a full setting of the knob, as a value and as a versioned JSON file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from drowsy.files.atomic import write_text
from drowsy.files.messages import legible, quoted
from drowsy.files.versioned import check_header, check_keys, parse_json, read_json
from drowsy.sleep import DEFAULT_K, MAX_K, Grain, check_fill, threshold

FORMAT, VERSION = "drowsy.schedule", 1

Setting = tuple[int, ...]
"""Thresholds ``j`` of every layer, in order of execution; layer ``i`` sleeps at rate ``j/k``."""


@dataclass(frozen=True)
class LayerSetting:
    """One layer's rate (in [0, 1)), grain (text form) and fill (one of ``drowsy.sleep.FILLS``).

    The rate may also be given as a number or as text (``"3/8"``). A ``Schedule``, which knows
    ``k``, checks its range and makes it exact. ``stream`` and ``phase`` (of ``SleepSpec``) are told
    where layers share maps; None leaves the layer what it has.

    Raises:
        ValueError, TypeError: a rate that is no number, an unknown grain or fill, a fill that the
            grain does not allow, or a stream without a phase.
    """

    rate: Fraction = Fraction(0)
    grain: str = "neuron"
    fill: str = "zero"
    stream: int | None = None
    phase: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", _number(self.rate))
        grain = Grain.parse(self.grain)
        object.__setattr__(self, "grain", str(grain))
        check_fill(self.fill, grain)
        told = (self.stream, self.phase)
        if told != (None, None) and not all(type(n) is int and 0 <= n < 2**32 for n in told):
            raise ValueError(
                f"stream and phase: got {quoted(self.stream)} and {quoted(self.phase)}, allowed: "
                "two integers from 0 to 2**32 - 1, or none"
            )


@dataclass(frozen=True)
class Schedule:
    """Layer name -> setting, for rates that are multiples of ``1/k``.

    Schedules are equal when their ``k`` and settings are, whatever the order of the layers.

    Raises:
        ValueError: a rate outside [0, 1) or not a multiple of ``1/k`` (within 1e-9).
        TypeError: a name that is no text, or a setting that is no ``LayerSetting``.
    """

    k: int = DEFAULT_K
    layers: Mapping[str, LayerSetting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.k) is not int or not 2 <= self.k <= MAX_K:
            raise ValueError(f"k: got {quoted(self.k)}, allowed: an integer from 2 to {MAX_K}")
        for name, layer in self.layers.items():
            if not isinstance(name, str):
                raise TypeError(f"layers: got the name {quoted(name)}, allowed: text")
            if not isinstance(layer, LayerSetting):
                raise TypeError(
                    f"layer {legible(name)}: got {quoted(layer)}, allowed: a LayerSetting"
                )
        exact = {
            name: replace(layer, rate=Fraction(named(name, threshold, layer.rate, self.k), self.k))
            for name, layer in self.layers.items()
        }
        object.__setattr__(self, "layers", MappingProxyType(exact))

    def __hash__(self) -> int:
        return hash((self.k, frozenset(self.layers.items())))

    def __reduce__(self) -> tuple[Any, ...]:
        return Schedule, (self.k, dict(self.layers))

    def thresholds(self) -> dict[str, int]:
        """Layer name -> ``j`` of its rate ``j/k``."""
        return {name: int(layer.rate * self.k) for name, layer in self.layers.items()}

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "k": self.k,
            "layers": {
                name: {
                    "rate": f"{int(layer.rate * self.k)}/{self.k}",
                    "grain": layer.grain,
                    "fill": layer.fill,
                    **(
                        {}
                        if layer.stream is None
                        else {"stream": layer.stream, "phase": layer.phase}
                    ),
                }
                for name, layer in self.layers.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "schedule") -> Schedule:
        """Read the JSON form; ``where`` names it in errors."""
        check_header(data, FORMAT, VERSION, where)
        check_keys(data, {"format", "version", "k", "layers"}, where)
        if not isinstance(data["layers"], dict):
            raise ValueError(f"{where}: layers: got {quoted(data['layers'])}, allowed: an object")
        layers = {}
        for name, entry in data["layers"].items():
            place = f"{where}: layers: {legible(name)}"
            shared = isinstance(entry, dict) and entry.keys() & {"stream", "phase"}
            keys = {"rate", "grain", "fill"} | ({"stream", "phase"} if shared else set())
            check_keys(entry, keys, place)
            try:
                layers[name] = LayerSetting(**entry)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{place}: {error}") from error
        try:
            return cls(data["k"], layers)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def to_json(self) -> str:
        """The text of a schedule file."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        """Read the text of a schedule file; errors as for ``load``."""
        return cls.from_dict(parse_json(text, "schedule"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the schedule as JSON, whole or not at all."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Schedule:
        """Read a schedule file.

        Raises:
            OSError: the file cannot be opened: FileNotFoundError, IsADirectoryError and others.
            ValueError: not JSON, another format or version, or a setting that is not allowed; names
                the file, the field, what it holds and what is allowed.
        """
        return cls.from_dict(read_json(path), legible(path))


def _number(rate: Any) -> Fraction:
    """A rate as given: text, or a finite number."""
    # A fraction writes powers of ten out: "1e100000000" would take minutes and gigabytes.
    huge = isinstance(rate, str) and re.search(r"[eE][+-]?[\d_]{4}", rate)
    try:
        if isinstance(rate, (str, int, float, Fraction)) and type(rate) is not bool and not huge:
            return Fraction(rate)
    except (ValueError, OverflowError, ZeroDivisionError):
        pass
    raise ValueError(
        f'rate: got {quoted(rate)}, allowed: a number in [0, 1), or text such as "3/8"'
    )


def named(name: str, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call ``function``; its ValueError tells which layer it was about."""
    try:
        return function(*args, **kwargs)
    except (ValueError, TypeError) as error:
        raise ValueError(f"layer {legible(name)}: {error}") from error
