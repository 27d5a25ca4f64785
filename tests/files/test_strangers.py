"""Whatever bytes a file holds, its reader gives a sound object or an error that names the file.

Valid files of every kind are damaged at random (seeded; a failure tells which damage): bytes, and
values of the JSON and CSV in them. No other exception, no hang, nothing half read.
"""

from __future__ import annotations

import io
import json
import random
import struct
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import drowsy
from drowsy.files.tensors import write_tensors
from drowsy.images.folders import load_images
from drowsy.images.preprocess import Preprocess
from drowsy.models.checkpoint import load_weights

pytest.importorskip("safetensors", reason="needs safetensors")
Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

BEFORE = Path(__file__).parent / "before"
MADE: dict[str, Any] = run_path(str(BEFORE / "write.py"))
DAMAGES = 150
# Of one file of a few kilobytes; what takes this long would take forever with a larger one.
SECONDS = 10.0
# Errors tell what they found in short.
LONGEST = 6000


@dataclass(frozen=True)
class Kind:
    """A kind of file: valid bytes, how they are damaged, and a reader that checks what it gives."""

    name: str
    good: Callable[[], bytes]
    damage: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]


# --- damages -------------------------------------------------------------------------------------

# What JSON can hold in place of something else; texts in @ stand for what Python would not write.
RAW = {
    "@deep@": "[" * 5000 + "]" * 5000,
    "@deep objects@": '{"a":' * 2000 + "1" + "}" * 2000,
    "@nested@": "[" * 40 + "]" * 40,
    "@digits@": "9" * 5000,
    "@overflow@": "1e999",
    "@twice@": '{"a": 1, "a": 2}',
    "@half a pair@": '"\\ud800"',
}
VALUES: list[Any] = [
    *RAW, None, True, False, 0, -1, 1, 2**31, 2**32, 2**63, 2**64, 10**400, 0.5, -0.5, -0.0, 1e308,
    5e-324, float("nan"), float("inf"), float("-inf"), "", "0", "1e100000000", "1/0", "1_0",
    "\x1b[2J", "a\nb", "\u202e", "\uff11", "a" * 5000, "neuron", "tile:99999999999x1", [], [None],
    [[]], [0] * 99, {}, {"": None}, {"format": "drowsy.schedule"},
]  # fmt: skip


def damaged_bytes(good: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, left out, added or moved."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 64))
        match rng.randrange(5):
            case 0:
                data[at : at + length] = rng.randbytes(min(length, len(data) - at))
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = rng.randbytes(length)
            case 3:
                start = rng.randrange(len(data) + 1)
                data[at:at] = data[start : start + length]
            case 4:
                del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


def damaged_value(value: Any, rng: random.Random) -> Any:
    """The same with one value or name, at any depth, exchanged, left out or added."""
    places = list(places_in(value))
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1:
            other, name = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[name]))
        case 2 if isinstance(holder, dict):
            holder[rng.choice([v for v in VALUES if isinstance(v, str) and v not in RAW])] = 1
        case 3 if isinstance(holder, dict):
            holder[key + "\x1b[2J"] = holder.pop(key)
        case _:
            holder[key] = rng.choice(VALUES)
    return value


def places_in(value: Any) -> Any:
    """``(holder, key)`` of every value within lists and objects."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places_in(value[key])


def damaged_json(good: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return damaged_bytes(good, rng)
    text = json.dumps(damaged_value(json.loads(good), rng))
    for placeholder, raw in RAW.items():
        text = text.replace(f'"{placeholder}"', raw)
    return text.encode()


def damaged_tensors(good: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose bytes, header or JSON in the header are damaged."""
    (size,) = struct.unpack("<Q", good[:8])
    header, rest = good[8 : 8 + size], good[8 + size :]
    about = json.loads(header).get("__metadata__", {}).get("drowsy")
    choice = rng.randrange(4)
    if choice == 0:
        return damaged_bytes(good, rng)
    if choice == 1:
        # Numbers that are none, and all others.
        words = np.frombuffer(rest[: len(rest) // 4 * 4], np.uint32).copy()
        for _ in range(3):
            words[rng.randrange(len(words))] = rng.choice((0x7FC00000, 0x7F800000, 0xFF7FFFFF, 1))
        return good[: 8 + size] + words.tobytes()
    if choice == 2 and about is not None:
        whole = json.loads(header)
        whole["__metadata__"]["drowsy"] = damaged_json(about.encode(), rng).decode(
            "utf-8", "replace"
        )
        header = json.dumps(whole).encode()
    else:
        header = damaged_json(header, rng)
    return struct.pack("<Q", len(header)) + header + rest


def damaged_table(good: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return damaged_bytes(good, rng)
    rows = [line.split(",") for line in good.decode().splitlines()]
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = rng.choice(
        [
            "",
            "-1",
            "1.5",
            "1e3",
            "9" * 5000,
            "\uff11",
            "../a.png",
            "/",
            ".",
            "\x00",
            '"',
            "a\nb",
            "\x1b[2J",
        ]
    )
    return "\n".join(map(",".join, rows)).encode()


# --- readers -------------------------------------------------------------------------------------


def read_schedule(path: Path) -> None:
    schedule = drowsy.Schedule.load(path)
    assert drowsy.Schedule.from_json(schedule.to_json()) == schedule
    assert all(0 <= j < schedule.k for j in schedule.thresholds().values())


def read_frontier(path: Path) -> None:
    frontier = drowsy.Frontier.load(path)
    again = path.with_name("again.json")
    frontier.save(again)
    assert drowsy.Frontier.load(again).points == frontier.points
    assert frontier.table()
    assert 0 <= frontier.hypervolume() <= 1
    assert frontier.at(max_loss=1.0) in frontier.points


def read_calibration(path: Path) -> None:
    found = drowsy.Calibration.load(path)
    assert all(0 <= j < found.k for setting in found.points for j in setting)
    assert found.sleeps.keys() == found.points.keys()
    for corrections in found.points.values():
        assert corrections.keys() <= {*found.layers}
        for each in corrections.values():
            assert all(t.isfinite().all() for t in vars(each).values() if t is not None)
    _, distance = found.nearest((0,) * len(found.layers))
    assert distance == 0
    again = path.with_name("again.safetensors")
    found.save(again)
    assert drowsy.Calibration.load(again).points.keys() == found.points.keys()


def read_stencils(path: Path) -> None:
    net = drowsy.convert(MADE["small_model"]())
    try:
        drowsy.load_stencils(net, path)
    except BaseException:
        assert net.layers["0"].stencil is None
        raise
    table = net.layers["0"].stencil
    assert table.shape == (256, 9, 1)
    assert table.isfinite().all()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def read_weights(path: Path) -> None:
    model = MADE["model"]()
    before = state_of(model)
    try:
        load_weights(model, path)
    except BaseException:
        now = state_of(model)
        assert now.keys() == before.keys()
        assert all(torch.equal(now[name], before[name]) for name in before)
        raise
    assert all(tensor.isfinite().all() for tensor in state_of(model).values())


def read_folder(path: Path) -> None:
    found = load_images(path.parent, Preprocess(None, 4, (0.0,) * 3, (1.0,) * 3), classes=10)
    assert len(found.images) == len(found.names) >= 1
    assert found.images.isfinite().all()
    assert 0 <= found.images.min() <= found.images.max() <= 1
    if found.labels is not None:
        assert found.labels.shape == (len(found),)
        assert 0 <= found.labels.min() <= found.labels.max() < 10


def read_table(path: Path) -> None:
    for name in "abc":
        Image.new("RGB", (4, 4)).save(path.with_name(f"{name}.png"))
    read_folder(path)


def read_cifar(path: Path) -> None:
    Image.new("RGB", (32 * 32, 3)).save(path.with_name("test_batch.png"))
    found = load_images(path.parent, Preprocess(None, 32, (0.0,) * 3, (1.0,) * 3), classes=10)
    assert found.labels is not None
    assert found.labels.dtype == torch.int64
    assert 0 <= found.labels.min() <= found.labels.max() < 10


def bytes_of(write: Callable[[Path], object], folder: Path) -> bytes:
    write(folder / "made")
    return (folder / "made").read_bytes()


def picture(form: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


def weights() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        state = MADE["model"]().state_dict()
        return bytes_of(lambda path: write_tensors(path, state), Path(folder))


def stored(name: str) -> Callable[[], bytes]:
    return (BEFORE / name).read_bytes


KINDS = [
    Kind("schedule.json", stored("schedule.json"), damaged_json, read_schedule),
    Kind("frontier.json", stored("frontier.json"), damaged_json, read_frontier),
    Kind("c.safetensors", stored("calibration.safetensors"), damaged_tensors, read_calibration),
    Kind("s.safetensors", stored("stencils.safetensors"), damaged_tensors, read_stencils),
    Kind("w.safetensors", weights, damaged_tensors, read_weights),
    Kind(
        "labels.csv", lambda: b"file,label\na.png,1\nb.png,2\nc.png,9\n", damaged_table, read_table
    ),
    Kind("labels.json", lambda: b"[1, 2, 9]", damaged_json, read_cifar),
    *(
        Kind(f"a.{form.lower()}", lambda form=form: picture(form), damaged_bytes, read_folder)
        for form in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM")
    ),
]


def refusal(kind: Kind, path: Path, data: bytes) -> Exception | None:
    """What the reader says of these bytes in time; None where it takes them."""
    path.write_bytes(data)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of what it reads all the same
            kind.read(path)
    except Exception as error:
        return error
    finally:
        assert time.perf_counter() - start < SECONDS
    return None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_damaged_file_is_read_whole_or_refused_by_name(tmp_path: Path, kind: Kind) -> None:
    path, good = tmp_path / kind.name, kind.good()
    assert refusal(kind, path, good) is None
    refused = 0
    for number in range(DAMAGES):
        error = refusal(kind, path, kind.damage(good, random.Random(f"{kind.name} {number}")))
        if error is not None:
            refused += 1
            # Not one of their kinds, as a UnicodeDecodeError is, which tells of no file.
            assert type(error) in (ValueError, FileNotFoundError), (number, error)
            message = str(error)
            assert str(tmp_path) in message, (number, message)
            assert message.replace("\n", "").isprintable(), (number, message)
            assert len(message) < LONGEST, (number, message)
    # Else the damages would be none.
    assert refused > DAMAGES // 10
