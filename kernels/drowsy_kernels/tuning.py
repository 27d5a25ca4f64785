"""Which way a convolution takes: recorded measurements where there are any, a heuristic elsewhere.

A tuning table is a JSON file of one GPU (``tuned/NAME.json``, written by ``python -m bench.tune``).
It holds, for every shape, batch size, number format and cell of the sleep map that was measured,
the time of the best configuration of each method at a few rates. ``choose`` reads it and says why.
Where nothing was recorded for the GPU or the shape, it follows rules of thumb and says so.

Methods:
    cudnn: torch's own convolution, then bias and activation; nobody may sleep.
    box: ``conv2d_box``, activations and weights by tensor descriptors; tiles that sleep exit early.
    pointer: ``conv2d`` without a list; tiles that sleep exit early.
    cells, rows, channels: ``conv2d`` over a list of what is awake.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from drowsy_kernels.conv2d import output_size
from drowsy_kernels.conv2d_box import BOX_CONFIGS
from drowsy_kernels.heuristics import SHIPPED_CONFIGS, ConvConfig

FORMAT, VERSION = "drowsy.tuning", 1
METHODS = ("cudnn", "box", "pointer", "cells", "rows", "channels")
# Number formats that are measured apart; float32 operands may be rounded to TF32.
NUMBERS = ("fp16", "bf16", "tf32", "fp32")
FOLDER = Path(__file__).with_name("tuned")

_SHIPPED = {
    str(config): config
    for shipped in (SHIPPED_CONFIGS, BOX_CONFIGS)
    for group in shipped.values()
    for config in group
}
# The narrowest and shortest tile of tensor-core work; smaller cells cannot be skipped one by one.
_MIN_CELL_CHANNELS, _MIN_CELL_POSITIONS = 16, 64


@dataclass(frozen=True)
class ConvShape:
    """A convolution of one image, activation and data aside.

    Args:
        channels, out_channels: of input and output, all groups.
        size: ``(H, W)`` of the input.
        kernel_size, stride, dilation: ``(vertical, horizontal)``.
        padding: zeros added ``(left, right, top, bottom)``.
        groups: number of groups.

    Raises:
        ValueError: a number that is no positive integer (padding: from 0), groups that do not
            divide the channels, or a kernel larger than the padded input.
    """

    channels: int
    out_channels: int
    size: tuple[int, int]
    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            least = 0 if item.name == "padding" else 1
            length = {"padding": 4}.get(item.name, 2)
            if item.name in ("channels", "out_channels", "groups"):
                numbers, allowed = [value], f"an integer from {least}"
            else:
                numbers = list(value) if isinstance(value, (tuple, list)) else []
                allowed = f"{length} integers from {least}"
                object.__setattr__(self, item.name, tuple(numbers))
                if len(numbers) != length:
                    numbers = [None]
            if any(type(number) is not int or number < least for number in numbers):
                raise ValueError(f"{item.name}: got {value!r}, allowed: {allowed}")
        if self.channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"groups: got {self.groups}, allowed: divisors of {self.channels} and "
                f"{self.out_channels} channels"
            )
        try:
            _ = self.out_size
        except ValueError as error:
            raise ValueError(
                f"size: got {self.size} with padding {self.padding}, allowed: at least the extent "
                f"of a kernel {self.kernel_size} with dilation {self.dilation}"
            ) from error

    @property
    def out_size(self) -> tuple[int, int]:
        """``(OH, OW)``."""
        return output_size(self.size, self.kernel_size, self.stride, self.padding, self.dilation)

    @property
    def positions(self) -> int:
        """Output positions of an image."""
        return self.out_size[0] * self.out_size[1]

    @property
    def depth(self) -> int:
        """Multiplications of a neuron."""
        return self.channels // self.groups * math.prod(self.kernel_size)

    @property
    def multiplies(self) -> int:
        """Multiplications of an image when nobody sleeps."""
        return self.positions * self.out_channels * self.depth

    @property
    def depthwise(self) -> bool:
        """Whether every group has a single input channel."""
        return self.groups > 1 and self.channels == self.groups

    def elements(self, images: int) -> int:
        """Elements of input, weight and output: what must be moved at least once."""
        per_image = self.channels * math.prod(self.size) + self.positions * self.out_channels
        return images * per_image + self.out_channels * self.depth

    def __str__(self) -> str:
        """``64x56x56-o64-k3x3``: with half a kernel of padding; what differs is appended."""
        text = f"{self.channels}x{self.size[0]}x{self.size[1]}-o{self.out_channels}"
        text += f"-k{self.kernel_size[0]}x{self.kernel_size[1]}"
        high, wide = (
            (k - 1) * d // 2 for k, d in zip(self.kernel_size, self.dilation, strict=True)
        )
        if self.padding != (wide, wide, high, high):
            text += "-p" + ".".join(map(str, self.padding))
        if self.stride != (1, 1):
            text += f"-s{self.stride[0]}x{self.stride[1]}"
        if self.dilation != (1, 1):
            text += f"-d{self.dilation[0]}x{self.dilation[1]}"
        return text + (f"-g{self.groups}" if self.groups > 1 else "")


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """The best configuration of a method for one shape.

    Args:
        method: one of ``METHODS``.
        config: text form of a shipped configuration; None for cuDNN, which has none of ours.
        ms: rate -> time in milliseconds.
    """

    method: str
    config: str | None
    ms: Mapping[Fraction, float]

    def __str__(self) -> str:
        return "cuDNN" if self.method == "cudnn" else f"{self.method} {self.config}"


@dataclass(frozen=True)
class Entry:
    """What was measured for a shape: its candidates, the fastest of each method.

    Args:
        shape: the convolution.
        images: batch size.
        number: one of ``NUMBERS``.
        cell: ``(positions, channels)`` of a sleep cell.
        candidates: at least one; all that can sleep have the same rates.
    """

    shape: ConvShape
    images: int
    number: str
    cell: tuple[int, int]
    candidates: tuple[Candidate, ...]

    def config(self, method: str) -> ConvConfig | None:
        """The best block shape of a method; None where it was not measured."""
        for candidate in self.candidates:
            if candidate.method == method and candidate.config is not None:
                return parse_config(candidate.config)
        return None


@dataclass(frozen=True)
class TuningTable:
    """Measurements of one GPU; ``load_table`` reads one.

    Args:
        gpu: its name, as ``torch.cuda.get_device_name`` gives it.
        capability: its compute capability, ``(9, 0)``.
        versions: of torch, triton, cuDNN and the driver, as recorded.
        commit: of the repository, or None.
        entries: what was measured.
    """

    gpu: str
    capability: tuple[int, int]
    versions: Mapping[str, str | None]
    commit: str | None
    entries: tuple[Entry, ...]
    _index: dict[tuple[ConvShape, int, str, tuple[int, int]], Entry] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        for entry in self.entries:
            key = (entry.shape, entry.images, entry.number, entry.cell)
            if key in self._index:
                raise ValueError(f"entries: {_place(entry)} given more than once")
            self._index[key] = entry

    def find(
        self, shape: ConvShape, images: int, number: str, cell: tuple[int, int]
    ) -> Entry | None:
        """The entry of exactly this shape, batch size, number format and cell."""
        return self._index.get((shape, images, number, cell))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "gpu": self.gpu,
            "capability": list(self.capability),
            "versions": dict(self.versions),
            "commit": self.commit,
            "entries": [
                {
                    "shape": {
                        item.name: _as_list(getattr(entry.shape, item.name))
                        for item in fields(ConvShape)
                    },
                    "images": entry.images,
                    "number": entry.number,
                    "cell": list(entry.cell),
                    "candidates": [
                        {
                            "method": candidate.method,
                            "config": candidate.config,
                            "ms": {str(rate): time for rate, time in candidate.ms.items()},
                        }
                        for candidate in entry.candidates
                    ],
                }
                for entry in self.entries
            ],
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "table") -> TuningTable:
        """Read the JSON form; ``where`` names it in errors.

        Raises:
            ValueError: another format or version, a missing or unknown field, or a value that is
                not allowed; names the place.
        """
        _check_keys(
            data,
            {"format", "version", "gpu", "capability", "versions", "commit", "entries"},
            where,
        )
        if (data["format"], data["version"]) != (FORMAT, VERSION):
            raise ValueError(
                f"{where}: got format {data['format']!r} version {data['version']!r}, allowed: "
                f"{FORMAT!r} version {VERSION}; write it anew with python -m bench.tune"
            )
        capability = data["capability"]
        if not _integers(capability, 2, 0):
            raise ValueError(f"{where}: capability: got {capability!r}, allowed: [major, minor]")
        if not isinstance(data["gpu"], str) or not data["gpu"]:
            raise ValueError(f"{where}: gpu: got {data['gpu']!r}, allowed: a name")
        for name, kind in (("versions", dict), ("entries", list)):
            if not isinstance(data[name], kind):
                raise ValueError(f"{where}: {name}: got {data[name]!r}, allowed: a {kind.__name__}")
        entries = tuple(
            _read_entry(entry, f"{where}: entries[{i}]") for i, entry in enumerate(data["entries"])
        )
        try:
            return cls(
                data["gpu"],
                (capability[0], capability[1]),
                data["versions"],
                data["commit"],
                entries,
            )
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def load_table(path: str | Path) -> TuningTable:
    """Read a table.

    Raises:
        OSError: the file cannot be read.
        ValueError: not JSON, or as ``TuningTable.from_dict``; names the file.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); is the file truncated?") from error
    return TuningTable.from_dict(data, str(path))


@functools.lru_cache(maxsize=16)
def table_for(gpu: str) -> TuningTable | None:
    """The table that ships for a GPU of this name; None where there is none."""
    path = table_path(gpu)
    return load_table(path) if path.exists() else None


def table_path(gpu: str) -> Path:
    """Where the table of a GPU lies: ``tuned/nvidia-h200.json``."""
    return FOLDER / (re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json")


def recorded_gpus() -> list[str]:
    """Names of the GPUs that have a table."""
    return sorted(load_table(path).gpu for path in FOLDER.glob("*.json"))


def number_format(dtype: torch.dtype, precision: str = "ieee") -> str:
    """One of ``NUMBERS``; ``precision`` (``ieee`` or ``tf32``) matters for float32."""
    names = {torch.float16: "fp16", torch.bfloat16: "bf16"}
    if dtype == torch.float32:
        return "tf32" if precision == "tf32" else "fp32"
    if dtype not in names:
        raise TypeError(f"dtype: got {dtype}, allowed: float32, float16, bfloat16")
    return names[dtype]


def parse_config(text: str) -> ConvConfig:
    """The configuration whose text this is: one that ships, perhaps with K split (``-k2``)."""
    match = re.fullmatch(r"(\w+-w\d+-s\d+)(?:-k([248]))?", text) if isinstance(text, str) else None
    if match is None or match[1] not in _SHIPPED:
        raise ValueError(
            f"config: got {text!r}, allowed: one that ships, perhaps with -k2, -k4, -k8"
        )
    config = _SHIPPED[match[1]]
    return replace(config, split_k=int(match[2])) if match[2] else config


# --- the choice ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """How to run a convolution.

    Args:
        method: one of ``METHODS``.
        config: the block shape to run it with; None leaves it to the launcher's own heuristic.
        reason: one sentence.
    """

    method: str
    config: ConvConfig | None
    reason: str


def choose(
    shape: ConvShape,
    *,
    images: int,
    number: str,
    cell: tuple[int, int],
    rate: float | Fraction = 0,
    fixed_rate: bool = False,
    table: TuningTable | None = None,
    capability: tuple[int, int] | None = None,
) -> Choice:
    """The way that a convolution takes, and why.

    Args:
        shape: the convolution.
        images: batch size.
        number: number format, from ``number_format``.
        cell: ``(positions, channels)`` of a sleep cell.
        rate: fraction that sleeps, or the one to expect where it may change.
        fixed_rate: whether the rate will not change while the choice stands. Only then, and at
            rate 0, may cuDNN be chosen: in a captured CUDA graph the rate changes, the kernels do
            not.
        table: measurements of the GPU, from ``table_for``; None where there are none.
        capability: compute capability of the GPU, for the heuristic; by default the table's.
    """
    if number not in NUMBERS:
        raise ValueError(f"number: got {number!r}, allowed: {', '.join(NUMBERS)}")
    if type(images) is not int or images < 1:
        raise ValueError(f"images: got {images!r}, allowed: an integer from 1")
    if not 0 <= rate < 1:
        raise ValueError(f"rate: got {rate}, allowed: a number in [0, 1)")
    if len(cell) != 2 or min(cell) < 1:
        raise ValueError(f"cell: got {cell}, allowed: (positions, channels), each 1 or more")
    if table is not None:
        entry = table.find(shape, images, number, cell)
        if entry is not None:
            recorded = _recorded(entry, Fraction(rate), fixed_rate, table.gpu)
            if recorded is not None:
                return recorded
        capability = capability or table.capability
    where = "no table" if table is None else f"{shape} x {images} {number} is not in its table"
    method, why = _heuristic(shape, number, cell, rate == 0 and fixed_rate, capability)
    return Choice(method, None, f"heuristic ({where}): {why}")


def _recorded(entry: Entry, rate: Fraction, fixed_rate: bool, gpu: str) -> Choice | None:
    """The fastest candidate at the recorded rate that is nearest."""
    rates = {recorded for candidate in entry.candidates for recorded in candidate.ms}
    nearest = min(rates, key=lambda recorded: (abs(recorded - rate), recorded))
    timed = sorted(
        (candidate.ms[nearest], str(candidate), candidate)
        for candidate in entry.candidates
        if nearest in candidate.ms
    )
    allowed = [
        (ms, candidate)
        for ms, _, candidate in timed
        if candidate.method != "cudnn" or (fixed_rate and rate == 0)
    ]
    if not allowed:
        return None
    ms, best = allowed[0]
    others = [f"{name} {other:.3g} ms" for other, name, candidate in timed if candidate != best]
    reason = f"recorded on {gpu} at rate {nearest}: {', '.join([f'{best} {ms:.3g} ms', *others])}"
    if timed[0][2].method == "cudnn" and best.method != "cudnn":
        reason += "; cuDNN cannot follow a rate that changes"
    return Choice(best.method, parse_config(best.config) if best.config else None, reason)


def _heuristic(
    shape: ConvShape,
    number: str,
    cell: tuple[int, int],
    awake: bool,
    capability: tuple[int, int] | None,
) -> tuple[str, str]:
    """``(method, why)`` where nothing was measured."""
    if awake:
        return "cudnn", "nobody sleeps, and cuDNN is seldom slower than a Triton convolution"
    if shape.depthwise:
        return "pointer", "a depthwise layer is bound by memory, tiles that sleep exit early"
    cell_p, cell_c = cell
    dense, how = _dense(shape, number, capability)
    if cell_p >= shape.positions > 1 and shape.groups == 1:
        return "channels", "whole channels sleep: a list of those that are awake per image"
    if cell_p == 1 and (cell_c >= _MIN_CELL_CHANNELS or cell_c >= shape.out_channels):
        return "rows", "positions sleep in groups of channels: a list of awake rows per group"
    if cell_p >= _MIN_CELL_POSITIONS and cell_c >= _MIN_CELL_CHANNELS:
        return "cells", "cells are as large as tiles: a list of those that are awake"
    return (
        dense,
        f"cells of {cell_p} x {cell_c} are smaller than a tile: computed and masked, {how}",
    )


def _dense(shape: ConvShape, number: str, capability: tuple[int, int] | None) -> tuple[str, str]:
    """The method for a layer that computes everything."""
    if capability is None or capability < (9, 0):
        return "pointer", "tensor descriptors need compute capability 9.0"
    if shape.stride != (1, 1) or shape.groups > 1:
        return "pointer", "strided and grouped layers have no boxes"
    unit = 16 // (4 if number in ("tf32", "fp32") else 2)
    if shape.channels % unit or shape.out_channels % unit:
        return "pointer", f"the rows of a descriptor are multiples of {unit} channels"
    return "box", "stride 1: boxes by tensor descriptors"


# --- reading -------------------------------------------------------------------------------------


def _read_entry(data: Any, where: str) -> Entry:
    _check_keys(data, {"shape", "images", "number", "cell", "candidates"}, where)
    _check_keys(data["shape"], {item.name for item in fields(ConvShape)}, f"{where}: shape")
    try:
        shape = ConvShape(**data["shape"])
    except ValueError as error:
        raise ValueError(f"{where}: shape: {error}") from error
    if not _integers([data["images"]], 1, 1):
        raise ValueError(f"{where}: images: got {data['images']!r}, allowed: an integer from 1")
    if data["number"] not in NUMBERS:
        raise ValueError(f"{where}: number: got {data['number']!r}, allowed: {', '.join(NUMBERS)}")
    if not _integers(data["cell"], 2, 1):
        raise ValueError(f"{where}: cell: got {data['cell']!r}, allowed: [positions, channels]")
    if not isinstance(data["candidates"], list) or not data["candidates"]:
        raise ValueError(f"{where}: candidates: got {data['candidates']!r}, allowed: one or more")
    candidates = tuple(
        _read_candidate(candidate, f"{where}: candidates[{i}]")
        for i, candidate in enumerate(data["candidates"])
    )
    cell = (data["cell"][0], data["cell"][1])
    return Entry(shape, data["images"], data["number"], cell, candidates)


def _read_candidate(data: Any, where: str) -> Candidate:
    _check_keys(data, {"method", "config", "ms"}, where)
    method, config = data["method"], data["config"]
    if method not in METHODS:
        raise ValueError(f"{where}: method: got {method!r}, allowed: {', '.join(METHODS)}")
    if (config is None) != (method == "cudnn"):
        raise ValueError(
            f"{where}: config: got {config!r} for {method}, allowed: null for cudnn, and only there"
        )
    if config is not None:
        try:
            parse_config(config)
        except ValueError as error:
            raise ValueError(
                f"{where}: {error}; write the table anew with python -m bench.tune"
            ) from error
    if not isinstance(data["ms"], dict) or not data["ms"]:
        raise ValueError(f"{where}: ms: got {data['ms']!r}, allowed: times by rate")
    times = {}
    for text, ms in data["ms"].items():
        rate = Fraction(text) if re.fullmatch(r"\d+(/[1-9]\d*)?", text) else Fraction(1)
        if rate >= 1 or (method == "cudnn" and rate):
            raise ValueError(
                f"{where}: ms: got rate {text!r}, allowed: "
                + ("0 for cudnn" if method == "cudnn" else "fractions in [0, 1)")
            )
        if isinstance(ms, bool) or not isinstance(ms, (int, float)) or not 0 < ms < math.inf:
            raise ValueError(f"{where}: ms: got {ms!r} at rate {text}, allowed: a positive number")
        times[rate] = float(ms)
    return Candidate(method, config, times)


def _check_keys(data: Any, keys: set[str], where: str) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: got {type(data).__name__}, allowed: an object")
    missing, unknown = sorted(keys - data.keys()), sorted(data.keys() - keys)
    if missing or unknown:
        raise ValueError(
            f"{where}: missing {', '.join(missing) or 'nothing'}, unknown "
            f"{', '.join(unknown) or 'nothing'}; allowed: {', '.join(sorted(keys))}"
        )


def _integers(value: Any, length: int, least: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == length
        and all(type(number) is int and number >= least for number in value)
    )


def _as_list(value: int | tuple[int, ...]) -> int | list[int]:
    return list(value) if isinstance(value, tuple) else value


def _place(entry: Entry) -> str:
    return f"{entry.shape} x {entry.images} {entry.number} cell {entry.cell}"
