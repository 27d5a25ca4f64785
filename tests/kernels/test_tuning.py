"""Tuning tables and the choice of a method: recorded where recorded, a rule of thumb elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from drowsy_kernels import tuning
from drowsy_kernels.tuning import Candidate, Choice, ConvShape, Entry, TuningTable, choose

SHAPE = ConvShape(64, 64, (56, 56), (3, 3), padding=(1, 1, 1, 1))
CELL = (128, 64)
CONFIG = "128x64x64-w4-s4"
HALF = Fraction(1, 2)


def table(*candidates: Candidate) -> TuningTable:
    entry = Entry(SHAPE, 32, "bf16", CELL, candidates)
    return TuningTable("NVIDIA Test", (9, 0), {"torch": "2.11.0"}, "0" * 40, (entry,))


RECORDED = table(
    Candidate("cudnn", None, {Fraction(0): 0.40}),
    Candidate("pointer", CONFIG, {Fraction(0): 0.44, HALF: 0.30}),
    Candidate("cells", "64x64x64-w4-s4", {Fraction(0): 0.46, HALF: 0.24}),
)


def chosen(**changes: Any) -> Choice:
    arguments: dict[str, Any] = {"images": 32, "number": "bf16", "cell": CELL, "table": RECORDED}
    return choose(SHAPE, **arguments | changes)


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conv",
    [
        torch.nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(2, 3), dilation=(2, 1), groups=2),
        torch.nn.Conv2d(3, 4, 7, stride=3),
        torch.nn.Conv2d(5, 5, 3, padding=1, groups=5),
    ],
)
def test_shape_agrees_with_torch(conv: torch.nn.Conv2d) -> None:
    top, left = conv.padding  # type: ignore[misc]
    shape = ConvShape(
        conv.in_channels,
        conv.out_channels,
        (17, 23),
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        (left, left, top, top),  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
    )
    y = conv(torch.zeros(1, conv.in_channels, 17, 23))
    assert shape.out_size == y.shape[2:]
    assert shape.multiplies == y.numel() * conv.weight[0].numel()
    per_image = 17 * 23 * conv.in_channels + y.numel()
    assert shape.elements(3) == 3 * per_image + conv.weight.numel()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels: got 0, allowed: an integer from 1"),
        ({"size": (5,)}, r"size: got \(5,\), allowed: 2 integers from 1"),
        ({"padding": (1, 1, 1, -1)}, "padding: got .* 4 integers from 0"),
        ({"groups": 3}, "groups: got 3, allowed: divisors of 64 and 64 channels"),
        ({"stride": (1, True)}, "stride: got"),
        ({"kernel_size": (9, 9), "size": (4, 4)}, r"size: got \(4, 4\).* extent of a kernel"),
    ],
)
def test_bad_shapes(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"channels": 64, "out_channels": 64, "size": (8, 8)}
    with pytest.raises(ValueError, match=message):
        ConvShape(**arguments | changes)


def test_number_formats() -> None:
    assert tuning.number_format(torch.float32) == "fp32"
    assert tuning.number_format(torch.float32, "tf32") == "tf32"
    assert tuning.number_format(torch.bfloat16, "tf32") == "bf16"
    with pytest.raises(TypeError, match=r"dtype: got torch.float64"):
        tuning.number_format(torch.float64)


# --- the choice ----------------------------------------------------------------------------------


def test_recorded_winner_and_its_reason() -> None:
    asleep = chosen(rate=0.5)
    assert (asleep.method, str(asleep.config)) == ("cells", "64x64x64-w4-s4")
    times = f"cells 64x64x64-w4-s4 0.24 ms, pointer {CONFIG} 0.3 ms"
    assert asleep.reason == f"recorded on NVIDIA Test at rate 1/2: {times}"
    # The nearest recorded rate speaks for those between.
    assert chosen(rate=0.375) == asleep
    assert chosen(rate=0.875) == asleep


def test_cudnn_only_where_the_rate_stays_0() -> None:
    assert chosen(fixed_rate=True).method == "cudnn"
    assert chosen(fixed_rate=True).config is None
    assert chosen(rate=0.5, fixed_rate=True).method == "cells"
    follows = chosen()
    assert follows.method == "pointer"
    assert follows.reason.endswith("cuDNN cannot follow a rate that changes")
    only = table(Candidate("cudnn", None, {Fraction(0): 0.4}))
    assert "heuristic" in chosen(table=only).reason


def test_split_k_is_part_of_a_configuration() -> None:
    config = tuning.parse_config(f"{CONFIG}-k4")
    assert config.split_k == 4
    assert str(config) == f"{CONFIG}-k4"
    with pytest.raises(ValueError, match=r"config: got '1x1x1-w4-s4'"):
        tuning.parse_config("1x1x1-w4-s4")


@pytest.mark.parametrize(
    ("changes", "capability", "method"),
    [
        ({}, (9, 0), "cells"),
        ({"cell": (1, 1)}, (9, 0), "box"),
        ({"cell": (1, 1)}, (8, 0), "pointer"),
        ({"cell": (1, 64)}, (9, 0), "rows"),
        ({"cell": (1, 3)}, (9, 0), "box"),
        ({"cell": (56 * 56, 1)}, (9, 0), "channels"),
        ({"fixed_rate": True}, (9, 0), "cudnn"),
        ({"fixed_rate": True, "rate": 0.5}, (9, 0), "cells"),
    ],
)
def test_heuristic(changes: dict[str, Any], capability: tuple[int, int], method: str) -> None:
    choice = chosen(table=None, capability=capability, **changes)
    assert choice.method == method
    assert choice.reason.startswith("heuristic (no table): ")


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        (ConvShape(64, 64, (9, 9), (3, 3), (2, 2)), "strided and grouped"),
        (ConvShape(64, 64, (9, 9), (3, 3), groups=2), "strided and grouped"),
        (ConvShape(3, 64, (9, 9), (3, 3)), "multiples of 8 channels"),
        (ConvShape(64, 64, (9, 9), (3, 3), groups=64), "depthwise"),
    ],
)
def test_heuristic_knows_what_boxes_cannot_do(shape: ConvShape, why: str) -> None:
    choice = choose(shape, images=1, number="fp16", cell=(1, 1), capability=(9, 0))
    assert choice.method == "pointer"
    assert why in choice.reason


def test_unseen_shapes_fall_back() -> None:
    assert "64x56x56-o64-k3x3 x 33 bf16 is not in its table" in chosen(images=33).reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"number": "int8"}, "number: got 'int8', allowed: fp16, bf16, tf32, fp32"),
        ({"rate": 1.0}, r"rate: got 1.0, allowed: a number in \[0, 1\)"),
        ({"cell": (0, 1)}, r"cell: got \(0, 1\)"),
    ],
)
def test_bad_choices(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen(**changes)


# --- the file ------------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(RECORDED.to_dict()))
    assert tuning.load_table(path) == RECORDED


def test_a_gpu_without_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    tuning.table_for.cache_clear()
    assert tuning.table_for("NVIDIA Test") is None
    assert tuning.recorded_gpus() == []
    path = tuning.table_path("NVIDIA Test")
    assert path == tmp_path / "nvidia-test.json"
    path.write_text(json.dumps(RECORDED.to_dict()))
    tuning.table_for.cache_clear()
    assert tuning.table_for("NVIDIA Test") == RECORDED
    assert tuning.recorded_gpus() == ["NVIDIA Test"]
    tuning.table_for.cache_clear()


def test_shipped_tables_are_valid() -> None:
    for path in tuning.FOLDER.glob("*.json"):
        table = tuning.load_table(path)
        assert path == tuning.table_path(table.gpu)


def _set(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


FIRST = ("entries", 0, "candidates")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("gpu"), "missing gpu, unknown nothing; allowed: capability"),
        (_set("extra", to=1), "unknown extra"),
        (_set("version", to=2), "got format 'drowsy.tuning' version 2, allowed: .* version 1"),
        (_set("capability", to="9.0"), "capability: got '9.0'"),
        (_set("entries", to={}), "entries: got {}, allowed: a list"),
        (_set("entries", 0, "images", to=0), r"entries\[0\]: images: got 0"),
        (_set("entries", 0, "number", to="int8"), "number: got 'int8'"),
        (_set("entries", 0, "cell", to=[1]), r"cell: got \[1\]"),
        (_set("entries", 0, "shape", "groups", to=5), r"entries\[0\]: shape: groups: got 5"),
        (_set("entries", 0, "candidates", to=[]), r"candidates: got \[\], allowed: one or more"),
        (_set(*FIRST, 1, "method", to="magic"), r"candidates\[1\]: method: got 'magic'"),
        (_set(*FIRST, 1, "config", to=None), "config: got None for pointer"),
        (_set(*FIRST, 1, "config", to="8x8x8-w1-s1"), "write the table anew with python -m bench"),
        (_set(*FIRST, 0, "config", to=CONFIG), "config: got .* for cudnn"),
        (_set(*FIRST, 0, "ms", to={"1/2": 1.0}), "got rate '1/2', allowed: 0 for cudnn"),
        (_set(*FIRST, 1, "ms", to={"9/8": 1.0}), r"got rate '9/8', allowed: fractions in \[0, 1\)"),
        (_set(*FIRST, 1, "ms", to={"x": 1.0}), "got rate 'x'"),
        (_set(*FIRST, 1, "ms", "0", to=-1), "ms: got -1 at rate 0, allowed: a positive number"),
        (_set(*FIRST, 1, "ms", to={}), "ms: got {}, allowed: times by rate"),
        (lambda data: data["entries"].append(data["entries"][0]), "given more than once"),
    ],
)
def test_bad_tables(change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    data = json.loads(json.dumps(RECORDED.to_dict()))
    change(data)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message) as error:
        tuning.load_table(path)
    assert str(error.value).startswith(str(path))


def test_truncated_table(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(RECORDED.to_dict())[:100])
    with pytest.raises(ValueError, match=r"bad.json: not valid JSON .* truncated"):
        tuning.load_table(path)


def test_tuning_imports_no_network_code() -> None:
    code = (
        "import sys; import drowsy_kernels.tuning; assert not any(m == 'drowsy' or "
        "m.startswith('drowsy.') for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
