"""The file of a knob for video: versioned JSON, as it has points and no tensors."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from drowsy.evaluation.identity import fingerprint_state
from drowsy.files.atomic import write_text
from drowsy.files.messages import legible, quoted
from drowsy.files.provenance import provenance
from drowsy.files.versioned import check_header, check_keys, read_json
from drowsy.graph.convert import inside
from drowsy.knob.metrics import METRICS
from drowsy.tuning.clips.point import COSTS, VideoPoint
from drowsy.tuning.witness import Witness

FORMAT, VERSION = "drowsy.video-knob", 1


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
    write_text(path, json.dumps(about, indent=1, allow_nan=False) + "\n")


def read_video_knob(path: str | os.PathLike[str], model: nn.Module) -> VideoContents:
    """Read a knob's file; see ``drowsy.load``."""
    about, where = read_json(path), f"knob: {legible(path)}"
    check_header(about, FORMAT, VERSION, where)
    own = {each.name for each in fields(VideoContents)} - {"measured_here"}
    check_keys(about, {"format", "version", *own}, where)

    def check(name: str, good: bool, allowed: str) -> None:
        if not good:
            raise ValueError(f"{where}: {name}: got {quoted(about[name])}, allowed: {allowed}")

    image, points, levers, made = (about[name] for name in ("image", "points", "levers", "made"))
    sides = isinstance(image, list) and len(image) == 3
    good = sides and all(type(side) is int and side >= 1 for side in image)
    check("image", good, "three integers, 1 or more")
    check("points", isinstance(points, list) and bool(points), "a list of points")
    check("objective", about["objective"] in tuple(METRICS), ", ".join(METRICS))
    check("cost", about["cost"] in tuple(COSTS), ", ".join(COSTS))
    texts = isinstance(levers, dict) and all(isinstance(each, str) for each in levers.values())
    check("levers", texts, "texts by name")
    check("made", isinstance(made, dict), "an object")
    read = [VideoPoint.from_dict(p, f"{where}: point {n}") for n, p in enumerate(points)]
    needed = (about["objective"], COSTS[about["cost"]])
    for n, point in enumerate(read):
        if needed[0] not in point.figures or getattr(point, needed[1]) is None:
            raise ValueError(f"{where}: point {n}: has not {' and '.join(needed)}, allowed: both")
    if not any(point.is_awake for point in read):
        raise ValueError(f"{where}: points: got none awake, allowed: one of them awake")
    image = (image[0], image[1], image[2])
    witness = _witness(about["witness"], f"{where}: witness")
    sizes = [point.way.size for point in read if point.way.size is not None]
    _check_model(model, about["weights"], witness, image, sizes, where)
    here = made.get("machine") == provenance()["machine"]
    if not here:
        warnings.warn(
            f"{where}: its milliseconds are of another machine; knob.measure() measures here",
            stacklevel=3,
        )
    return VideoContents(
        weights=about["weights"],
        witness=witness,
        image=image,
        points=tuple(read),
        objective=about["objective"],
        cost=about["cost"],
        levers=levers,
        made=made,
        measured_here=here,
    )


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
    return Witness(data["exact"], found)


def _check_model(
    model: nn.Module,
    weights: Any,
    witness: Witness,
    image: tuple[int, int, int],
    sizes: Sequence[tuple[int, int]],
    where: str,
) -> None:
    """Raise ValueError unless a model has the weights and computes what the knob's did."""
    found = fingerprint_state(inside(model).state_dict())
    if found != weights:
        raise ValueError(
            f"{where}: was tuned for other weights than this model's (SHA-256 {found[:12]}..., "
            f"wanted {quoted(weights)[1:13]}...), allowed: the model that it was tuned for"
        )
    try:
        other = witness.contradiction(model, image, sizes)
    except RuntimeError as error:
        raise ValueError(
            f"{where}: image: got {image}, allowed: a size that the model takes ({legible(error)})"
        ) from error
    if other is not None:
        raise ValueError(
            f"{where}: was tuned for another network that has this model's weights: "
            f"{legible(other)}, allowed: the same activations, strides, padding, epsilons, forward"
        )
