"""The file of a knob: one safetensors file, its points and provenance in the header.

It holds everything but the model's weights, which it knows by their fingerprint; what else the
model is, it knows by what it computes (``drowsy.tuning.witness``). A checksum over all of it makes
a file of which a byte has changed be refused, or read as it was written. It is no seal: a file is
data from a stranger, and what it tells is checked here and, as far as it takes the networks, in
``drowsy.tuning.machine``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from drowsy.evaluation.identity import fingerprint_state
from drowsy.files.messages import legible, listed, quoted
from drowsy.files.tensors import read_described, write_tensors
from drowsy.files.versioned import check_header, check_keys, is_number
from drowsy.knob.frontier import COSTS
from drowsy.knob.point import NUMBER_FORMATS, OperatingPoint
from drowsy.network.calibration import Calibration
from drowsy.sleep import SleepSpec, check_fill
from drowsy.tuning.header import (
    check_common,
    check_field,
    check_model,
    check_numbers,
    made_here,
    points_in,
    warn_of_another_machine,
)
from drowsy.tuning.recipe import Sleep
from drowsy.tuning.witness import Witness, sizes_of

FORMAT, VERSION = "drowsy.knob", 2
_OWN = "own"
# Images a batch, far above what any knob has.
MOST_BATCH = 1 << 20


@dataclass(frozen=True)
class Contents:
    """All that makes a knob of a model.

    Args:
        weights: SHA-256 of the model's ``state_dict`` (``fingerprint_state``).
        witness: what the model computes.
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
    witness: Witness
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
    tensors |= {f"witness/{name}": each for name, each in contents.witness.found.items()}
    calibrations = {}
    for number_format, calibration in contents.calibrations.items():
        named = number_format or _OWN
        parts, calibrations[named] = calibration.described()
        tensors |= {f"calibration/{named}/{name}": each for name, each in parts.items()}
    about = {
        "format": FORMAT,
        "version": VERSION,
        "weights": contents.weights,
        "exact": contents.witness.exact,
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
    own = {each.name for each in fields(Contents)} - {"witness", "stencils", "measured_here"}
    check_keys(about, {"format", "version", "checksum", "exact", *own}, where)
    told = {name: about[name] for name in about if name != "checksum"}
    if about["checksum"] != _checksum(told, tensors):
        raise ValueError(f"{where}: is not as it was written; its checksum differs")
    contents = _contents(about, tensors, where)
    sizes = sizes_of(contents.points)
    check_model(model, contents.weights, contents.witness, contents.image, sizes, where)
    warn_of_another_machine(contents.made, where)
    return contents


def _contents(about: Any, tensors: Mapping[str, Tensor], where: str) -> Contents:
    """What a header and its tensors tell, checked."""

    check_numbers(about, where)
    image, batch = check_common(about, COSTS, where), about["batch"]
    good = type(batch) is int and 1 <= batch <= MOST_BATCH
    check_field(about, "batch", good, f"an integer, 1 to {MOST_BATCH}", where)
    for name in ("restores", "exact"):
        check_field(about, name, type(about[name]) is bool, "true or false", where)
    good = isinstance(about["calibrations"], dict)
    check_field(about, "calibrations", good, "an object", where)
    recipe = _recipe(about["recipe"], f"{where}: recipe")
    points = _points(about, where)
    calibrations = _calibrations(about["calibrations"], tensors, where)
    if idle := calibrations.keys() - {point.number_format for point in points}:
        raise ValueError(
            f"{where}: calibrations: got one of {listed(each or _OWN for each in idle)}, allowed: "
            "of formats that points are in"
        )
    parts = {kind: _named(tensors, kind) for kind in ("witness/", "stencil/")}
    known = {f"{kind}{name}" for kind, found in parts.items() for name in found}
    if others := [n for n in tensors if n not in known and not n.startswith("calibration/")]:
        raise ValueError(
            f"{where}: got a tensor {quoted(others[0])}, allowed: those of witness, stencil and "
            "calibration"
        )
    for name, tensor in parts["witness/"].items():
        if tensor.dim() < 2 or not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(
                f"{where}: witness {legible(name)}: got {tensor.dtype} {tuple(tensor.shape)}, "
                "allowed: finite numbers of each image"
            )
    return Contents(
        weights=about["weights"],
        witness=Witness(about["exact"], parts["witness/"]),
        image=image,
        recipe=recipe,
        points=points,
        objective=about["objective"],
        cost=about["cost"],
        batch=batch,
        restores=about["restores"],
        stencils=parts["stencil/"],
        calibrations=calibrations,
        levers=about["levers"],
        made=about["made"],
        measured_here=made_here(about["made"]),
    )


def _points(about: Any, where: str) -> tuple[OperatingPoint, ...]:
    """The points of a header, whose objective, cost and image are checked already."""
    points = []
    for n, each in enumerate(points_in(about, where)):
        place = f"{where}: point {n}"
        point = OperatingPoint.from_dict(each, place)
        for name, value in (
            (about["objective"], point.figure(about["objective"])),
            (COSTS[about["cost"]], getattr(point, COSTS[about["cost"]])),
        ):
            if value is None or (name in ("latency_ms", "joules") and not value > 0):
                raise ValueError(f"{place}: {name}: got {value}, allowed: what was measured")
        if point.interval is not None and point.interval[0] > point.interval[1]:
            raise ValueError(f"{place}: interval: got {point.interval}, allowed: ascending numbers")
        view = point.view
        if view is not None and list(view.full) != about["image"][1:]:
            raise ValueError(
                f"{place}: view: got one of {view.full}, allowed: of {tuple(about['image'][1:])}, "
                "the images' size"
            )
        if view is not None and about["restores"] and not view.covers:
            raise ValueError(
                f"{where}: points: got a view of part of the picture, allowed: of all of it, where "
                "outputs are scaled up to it"
            )
        points.append(point)
    if len({(p.schedule, p.view, p.number_format) for p in points}) < len(points):
        raise ValueError(f"{where}: points: got one setting twice, allowed: once")
    awake = sum(point.is_awake for point in points)
    if awake != 1:
        raise ValueError(
            f"{where}: points: got {awake or 'none'} awake, allowed: one of them awake"
        )
    return tuple(points)


def _recipe(told: Any, where: str) -> Sleep:
    """A recipe as a header tells it."""
    names = {each.name for each in fields(Sleep)}
    check_keys(told, names, where)
    values: dict[str, Any]
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in told.items()}
    kinds = {"k": int, "aligned": bool, "cropped": bool, "skip": tuple, "scaling": tuple}
    for name, value in values.items():
        good = type(value) is kinds.get(name, str)
        if good and name == "skip":
            # Names alone: a pattern of a stranger may take hours to match.
            good = all(isinstance(each, str) and not each.startswith("re:") for each in value)
        if good and name == "scaling":
            good = all(map(is_number, value))
        if not good:
            raise ValueError(f"{where}: {name}: got {quoted(told[name])}, allowed: as in Sleep")
    try:
        recipe = Sleep(**values)
        spec = SleepSpec(recipe.source, recipe.grain, recipe.k)  # type: ignore[arg-type]
        if recipe.fill != "auto":
            check_fill(recipe.fill, spec.grain)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    return recipe


def _calibrations(
    told: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> dict[str | None, Calibration]:
    """Calibrations by number format; every tensor of one is in it."""
    found: dict[str | None, Calibration] = {}
    for named, about in told.items():
        if named not in (_OWN, *NUMBER_FORMATS):
            raise ValueError(
                f"{where}: calibrations: got {quoted(named)}, allowed: {_OWN}, or "
                f"{', '.join(NUMBER_FORMATS)}"
            )
        found[None if named == _OWN else named] = Calibration.of_described(
            _named(tensors, f"calibration/{named}/"), about, f"{where}: calibration {named}"
        )
    starts = tuple(f"calibration/{named}/" for named in told)
    for name in _named(tensors, "calibration/"):
        if not f"calibration/{name}".startswith(starts):
            raise ValueError(
                f"{where}: got a tensor {quoted(name)} of a calibration, allowed: of "
                f"{listed(told) or 'none, as there is none'}"
            )
    return found


def _named(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """The tensors whose names start so, by the rest of their names."""
    return {n.removeprefix(start): each for n, each in tensors.items() if n.startswith(start)}


def _checksum(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    text = json.dumps(about, sort_keys=True)
    return hashlib.sha256((text + fingerprint_state(tensors)).encode()).hexdigest()
