"""Safetensors files of strangers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch

from drowsy.files.tensors import read_described, read_tensors, write_tensors

pytest.importorskip("safetensors", reason="needs safetensors")


def write(path: Path, header: str, data: int) -> Path:
    """A file of this header, and so many bytes of 0."""
    text = header.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


def entry(kind: str, shape: list[int], size: int) -> str:
    return json.dumps({"dtype": kind, "shape": shape, "data_offsets": [0, size]})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3).half(), "b": torch.arange(3)}
    write_tensors(tmp_path / "a", tensors, {"k": [8]})
    found, about = read_described(tmp_path / "a", "weights")
    assert about == {"k": [8]}
    torch.testing.assert_close(found["a"], tensors["a"].float(), rtol=0, atol=0)
    assert torch.equal(found["b"], tensors["b"])


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        (
            f'{{"a\\n": {entry("F32", [1], 4)}, "a\\n": {entry("F32", [1], 4)}}}',
            4,
            r"weights: \S*x: header: 'a\\n': given more than once",
        ),
        (
            f'{{"__metadata__": {{"a": "1", "a": "2"}}, "b": {entry("F32", [1], 4)}}}',
            4,
            r"weights: \S*x: header: a: given more than once",
        ),
        (f'{{"a": {entry("F4", [8], 4)}}}', 4, r"weights: \S*x (holds what|is not a whole)"),
        (
            f'{{"a": {entry("F32", [0, 2**63 - 1, 2], 0)}}}',
            0,
            r"weights: \S*x holds what torch cannot read",
        ),
        (f'{{"a": {entry("F32", [2], 4)}}}', 4, r"weights: \S*x is not a whole safetensors file"),
        ("[" * 5000, 0, r"weights: \S*x is not a whole safetensors file"),
        ("", 0, r"weights: \S*x is not a whole safetensors file; .* of another format$"),
    ],
)
def test_a_bad_header_is_told(tmp_path: Path, header: str, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_tensors(write(tmp_path / "x", header, size))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="weights: no file "):
        read_tensors(tmp_path / "none")
    with pytest.raises(IsADirectoryError, match=r"weights: .* is a folder, allowed: a file"):
        read_tensors(tmp_path)
