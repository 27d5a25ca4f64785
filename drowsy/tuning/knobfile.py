"""The file of a knob: one safetensors file, its points and provenance in the header.

It holds everything but the model's weights, which it knows by their fingerprint. A checksum over
all of it makes a file of which a byte has changed be refused, or read as it was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from drowsy.evaluation.identity import fingerprint_state
from drowsy.files.messages import legible, quoted
from drowsy.files.provenance import provenance
from drowsy.files.tensors import read_described, write_tensors
from drowsy.files.versioned import check_header, check_keys
from drowsy.knob.frontier import COSTS
from drowsy.knob.metrics import METRICS
from drowsy.knob.point import NUMBER_FORMATS, OperatingPoint
from drowsy.network.calibration import Calibration
from drowsy.tuning.recipe import Sleep

FORMAT, VERSION = "drowsy.knob", 1
_OWN = "own"


@dataclass(frozen=True)
class Contents:
    """All that makes a knob of a model.

    Args:
        weights: SHA-256 of the model's ``state_dict`` (``fingerprint_state``).
        image: ``(C, H, W)`` at full resolution.
        recipe: how its networks sleep.
        points: every point that was measured; what is worth having follows from them.
        objective: the metric that points lose.
        cost: what they save.
        batch: images a batch, to which milliseconds belong.
        restores: whether outputs for fewer pixels are scaled up.
        stencils: tables of the fill ``stencil`` by layer.
        calibrations: corrections by number format; None is the model's own.
        levers: of each, what came of it, in words.
        made: where the figures come from.
        measured_here: whether milliseconds are of this machine; not in the file.
    """

    weights: str
    image: tuple[int, int, int]
    recipe: Sleep
    points: tuple[OperatingPoint, ...]
    objective: str
    cost: str
    batch: int
    restores: bool
    stencils: Mapping[str, Tensor] = field(default_factory=dict)
    calibrations: Mapping[str | None, Calibration] = field(default_factory=dict)
    levers: Mapping[str, str] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)
    measured_here: bool = True


def write_knob(path: str | os.PathLike[str], contents: Contents) -> None:
    """Write a knob's file, whole or not at all.

    Raises:
        ImportError: safetensors is not installed.
    """
    tensors = {f"stencil/{name}": table for name, table in contents.stencils.items()}
    calibrations = {}
    for number_format, calibration in contents.calibrations.items():
        named = number_format or _OWN
        parts, calibrations[named] = calibration.described()
        tensors |= {f"calibration/{named}/{name}": each for name, each in parts.items()}
    about = {
        "format": FORMAT,
        "version": VERSION,
        "weights": contents.weights,
        "image": list(contents.image),
        "recipe": asdict(contents.recipe),
        "points": [point.to_dict() for point in contents.points],
        "objective": contents.objective,
        "cost": contents.cost,
        "batch": contents.batch,
        "restores": contents.restores,
        "calibrations": calibrations,
        "levers": dict(contents.levers),
        "made": dict(contents.made),
    }
    # As they are read back, which the checksum is of.
    tensors = {name: tensor.detach().cpu().float() for name, tensor in tensors.items()}
    about["checksum"] = _checksum(json.loads(json.dumps(about)), tensors)
    write_tensors(path, tensors, about)


def read_knob(path: str | os.PathLike[str], model: nn.Module) -> Contents:
    """Read a knob's file; see ``drowsy.load``."""
    tensors, about = read_described(path, "knob")
    where = f"knob: {legible(path)}"
    check_header(about, FORMAT, VERSION, where)
    own = {each.name for each in fields(Contents)} - {"stencils", "measured_here"}
    check_keys(about, {"format", "version", "checksum", *own}, where)
    told = {name: about[name] for name in about if name != "checksum"}
    if about["checksum"] != _checksum(told, tensors):
        raise ValueError(f"{where}: is not as it was written; its checksum differs")
    contents = _contents(about, tensors, where)
    found = fingerprint_state(model.state_dict())
    if found != contents.weights:
        raise ValueError(
            f"{where}: was tuned for other weights than this model's (SHA-256 {found[:12]}..., "
            f"wanted {contents.weights[:12]}...), allowed: the model that it was tuned for"
        )
    if not contents.measured_here:
        warnings.warn(
            f"{where}: its milliseconds are of another machine "
            f"({_machine_told(contents.made)}); knob.measure() measures here",
            stacklevel=3,
        )
    return contents


def _contents(about: Any, tensors: Mapping[str, Tensor], where: str) -> Contents:
    """What a header and its tensors tell, checked."""

    def check(name: str, good: bool, allowed: str) -> None:
        if not good:
            raise ValueError(f"{where}: {name}: got {quoted(about[name])}, allowed: {allowed}")

    image, points = about["image"], about["points"]
    check(
        "image",
        isinstance(image, list)
        and len(image) == 3
        and all(type(side) is int and side >= 1 for side in image),
        "three integers, 1 or more",
    )
    check("objective", about["objective"] in METRICS, ", ".join(METRICS))
    check("cost", about["cost"] in tuple(COSTS), ", ".join(COSTS))
    check("batch", type(about["batch"]) is int and about["batch"] >= 1, "an integer, 1 or more")
    check("restores", type(about["restores"]) is bool, "true or false")
    check("weights", isinstance(about["weights"], str), "a fingerprint")
    check("levers", _are_texts(about["levers"]), "texts by name")
    check("made", isinstance(about["made"], dict), "an object")
    check("points", isinstance(points, list) and bool(points), "a list of points")
    check("calibrations", isinstance(about["calibrations"], dict), "an object")
    try:
        recipe = Sleep(**_tuples(about["recipe"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: recipe: {error}") from error
    calibrations: dict[str | None, Calibration] = {}
    for named, told in about["calibrations"].items():
        if named not in (_OWN, *NUMBER_FORMATS):
            raise ValueError(
                f"{where}: calibrations: got {quoted(named)}, allowed: {_OWN}, or "
                f"{', '.join(NUMBER_FORMATS)}"
            )
        start = f"calibration/{named}/"
        parts = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
        place = f"{where}: calibration {named}"
        calibrations[None if named == _OWN else named] = Calibration.of_described(
            parts, told, place
        )
    read = [OperatingPoint.from_dict(p, f"{where}: point {n}") for n, p in enumerate(points)]
    if not any(point.is_awake for point in read):
        raise ValueError(f"{where}: points: got none awake, allowed: one of them awake")
    if about["restores"] and any(point.view and not point.view.covers for point in read):
        raise ValueError(
            f"{where}: points: got a view of part of the picture, allowed: of all of it, where "
            "outputs are scaled up to it"
        )
    height, width = image[1:]
    return Contents(
        weights=about["weights"],
        image=(image[0], height, width),
        recipe=recipe,
        points=tuple(read),
        objective=about["objective"],
        cost=about["cost"],
        batch=about["batch"],
        restores=about["restores"],
        stencils={
            n.removeprefix("stencil/"): t for n, t in tensors.items() if n.startswith("stencil/")
        },
        calibrations=calibrations,
        levers=about["levers"],
        made=about["made"],
        measured_here=about["made"].get("machine") == provenance()["machine"],
    )


def _checksum(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    text = json.dumps(about, sort_keys=True)
    return hashlib.sha256((text + fingerprint_state(tensors)).encode()).hexdigest()


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def _tuples(recipe: Any) -> Any:
    if not isinstance(recipe, dict):
        raise TypeError(f"got {quoted(recipe)}, allowed: an object")
    return {name: tuple(v) if isinstance(v, list) else v for name, v in recipe.items()}


def _machine_told(made: Mapping[str, Any]) -> str:
    machine = made.get("machine")
    if not isinstance(machine, dict):
        return "not known"
    return ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None)
