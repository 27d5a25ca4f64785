"""The file of a knob for video: versioned JSON, as it has points and no tensors.

As in a knob's file for images, a checksum over all of it makes a file of which a byte has changed
be refused, or read as it was written. It is no seal: what a file tells is checked all the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from drowsy.files.atomic import write_text
from drowsy.files.messages import legible, quoted
from drowsy.files.versioned import check_header, check_keys, read_json
from drowsy.tuning.clips.point import COSTS, VideoPoint
from drowsy.tuning.header import (
    check_common,
    check_model,
    check_numbers,
    made_here,
    points_in,
    warn_of_another_machine,
)
from drowsy.tuning.witness import Witness

FORMAT, VERSION = "drowsy.video-knob", 3
# Far above what any knob has.
_EVERY = 1 << 10


@dataclass(frozen=True)
class VideoContents:
    """All that makes a knob for video of a model.

    Args:
        weights: SHA-256 of the model's ``state_dict`` (``fingerprint_state``).
        witness: what the model computes.
        image: ``(C, H, W)`` of frames.
        points: every point that was measured; what is worth having follows from them.
        objective: the metric that points lose.
        cost: what they save (``COSTS``).
        levers: of each, what came of it, in words.
        made: where the figures come from.
        measured_here: whether milliseconds are of this machine; not in the file.
    """

    weights: str
    witness: Witness
    image: tuple[int, int, int]
    points: tuple[VideoPoint, ...]
    objective: str
    cost: str
    levers: Mapping[str, str] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)
    measured_here: bool = True


def write_video_knob(path: str | os.PathLike[str], contents: VideoContents) -> None:
    """Write a knob's file, whole or not at all."""
    about = {
        "format": FORMAT,
        "version": VERSION,
        "weights": contents.weights,
        "witness": {
            "exact": contents.witness.exact,
            "found": {name: each.tolist() for name, each in contents.witness.found.items()},
        },
        "image": list(contents.image),
        "points": [point.to_dict() for point in contents.points],
        "objective": contents.objective,
        "cost": contents.cost,
        "levers": dict(contents.levers),
        "made": dict(contents.made),
    }
    # As it is read back, which the checksum is of.
    about = json.loads(json.dumps(about, allow_nan=False))
    about["checksum"] = _checksum(about)
    write_text(path, json.dumps(about, indent=1) + "\n")


def read_video_knob(path: str | os.PathLike[str], model: nn.Module) -> VideoContents:
    """Read a knob's file; see ``drowsy.load``."""
    about, where = read_json(path), f"knob: {legible(path)}"
    check_header(about, FORMAT, VERSION, where)
    own = {each.name for each in fields(VideoContents)} - {"measured_here"}
    check_keys(about, {"format", "version", "checksum", *own}, where)
    if about["checksum"] != _checksum(about):
        raise ValueError(f"{where}: is not as it was written; its checksum differs")

    check_numbers({name: about[name] for name in about.keys() - {"witness"}}, where)
    image, made = check_common(about, COSTS, where), about["made"]
    points = _points(about, image, where)
    witness = _witness(about["witness"], f"{where}: witness")
    sizes = [point.way.size for point in points if point.way.size is not None]
    check_model(model, about["weights"], witness, image, sizes, where)
    # Only where nothing that a network puts out repeats is there nothing to tell it by.
    if not witness.found and Witness.of(model, image, sizes).found:
        raise ValueError(f"{where}: witness: got none, allowed: what the network puts out")
    warn_of_another_machine(made, where)
    return VideoContents(
        weights=about["weights"],
        witness=witness,
        image=image,
        points=points,
        objective=about["objective"],
        cost=about["cost"],
        levers=about["levers"],
        made=made,
        measured_here=made_here(made),
    )


def _points(
    about: Mapping[str, Any], image: tuple[int, int, int], where: str
) -> tuple[VideoPoint, ...]:
    """The points of a file, whose objective, cost and image are checked already."""
    points = []
    for n, each in enumerate(points_in(about, where)):
        place = f"{where}: point {n}"
        point = VideoPoint.from_dict(each, place)
        needed = (about["objective"], COSTS[about["cost"]])
        if needed[0] not in point.figures or getattr(point, needed[1]) is None:
            raise ValueError(f"{place}: has not {' and '.join(needed)}, allowed: both")
        if point.is_awake and not point.work > 0:
            raise ValueError(f"{place}: work: got {point.work} awake, allowed: above 0")
        size, full = point.way.size, image[1:]
        if size is not None and not (size[0] <= full[0] and size[1] <= full[1]):
            raise ValueError(f"{place}: way: size: got {size}, allowed: up to {full}, the frames'")
        if point.way.every > _EVERY:
            raise ValueError(f"{place}: way: every: got {point.way.every}, allowed: up to {_EVERY}")
        points.append(point)
    if len({point.way for point in points}) < len(points):
        raise ValueError(f"{where}: points: got one way twice, allowed: once")
    if not any(point.is_awake for point in points):
        raise ValueError(f"{where}: points: got none awake, allowed: one of them awake")
    return tuple(points)


def _witness(data: Any, where: str) -> Witness:
    check_keys(data, {"exact", "found"}, where)
    if type(data["exact"]) is not bool or not isinstance(data["found"], dict):
        raise ValueError(
            f"{where}: got {quoted(data)}, allowed: true or false, and numbers by name"
        )
    try:
        found = {name: torch.tensor(each).float() for name, each in data["found"].items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{where}: found: {legible(error)}, allowed: numbers") from error
    for name, each in found.items():
        if each.dim() < 2 or not each.isfinite().all():
            raise ValueError(
                f"{where}: found: {legible(name)}: got shape {tuple(each.shape)}, allowed: finite "
                "numbers of each image"
            )
    return Witness(data["exact"], found)


def _checksum(about: Mapping[str, Any]) -> str:
    """SHA-256 of all of a file but itself."""
    told = {name: value for name, value in about.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
