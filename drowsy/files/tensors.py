"""Tensors in safetensors files, with JSON about them in the header where a file has a format."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drowsy._optional import require
from drowsy.files.atomic import replacing
from drowsy.files.messages import legible
from drowsy.files.versioned import parse_json

# Where in the header, which is text by name, the JSON is.
_ENTRY = "drowsy"


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], about: Any = None
) -> None:
    """Write a safetensors file, whole or not at all; ``about`` is JSON-able, None for nothing.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: ``about`` holds NaN or infinity.
    """
    save_file = require("safetensors.torch", "models").save_file
    header = None if about is None else {_ENTRY: json.dumps(about, allow_nan=False)}
    with replacing(path) as temporary:
        save_file({n: each.cpu().contiguous() for n, each in tensors.items()}, temporary, header)


def read_tensors(path: str | os.PathLike[str], what: str = "weights") -> dict[str, Tensor]:
    """Read a safetensors file into memory, floating tensors of any width as float32.

    ``what`` names it in errors.

    Raises:
        TypeError: no path.
        FileNotFoundError, IsADirectoryError: no file there.
        ImportError: safetensors is not installed.
        ValueError: a file that is truncated or of another format, that has a name twice, or whose
            tensors are of a kind that torch cannot turn into float32 or copy.
    """
    return _read(_path(path, what), what, "safetensors")[0]


def read_described(path: str | os.PathLike[str], what: str) -> tuple[dict[str, Tensor], Any]:
    """As ``read_tensors``, with what the header tells about them; ``{}`` where it tells nothing.

    Raises, beyond those of ``read_tensors``:
        ValueError: a header that is no JSON.
    """
    tensors, header = _read(_path(path, what), what, what)
    return tensors, parse_json(header.get(_ENTRY, "{}"), f"{what}: {legible(path)}")


def _path(path: Any, what: str) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{what}: got {path!r}, allowed: the path of a file")
    return Path(path)


def _read(path: Path, what: str, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    safetensors = require("safetensors", "models")
    where = f"{what}: {legible(path)}"
    if path.is_dir():
        raise IsADirectoryError(f"{what}: {legible(path)} is a folder, allowed: a file")
    if not path.is_file():
        raise FileNotFoundError(f"{what}: no file {legible(path)}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: _in_memory(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{where} is not a whole {kind} file; it is truncated or of another format"
        ) from error
    except RuntimeError as error:  # a shape or a type that torch has no tensors of
        raise ValueError(f"{where} holds what torch cannot read ({legible(error)})") from error
    _check_header(path, where)
    return tensors, header


def _check_header(path: Path, where: str) -> None:
    """Raise ValueError where a header, known to be whole, has a name twice.

    The format forbids it, and what reads the format takes the last one.
    """
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        parse_json(file.read(size).decode("utf-8"), f"{where}: header")


def _in_memory(tensor: Tensor) -> Tensor:
    """A copy, since the tensors of a file are views of it."""
    return tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()
