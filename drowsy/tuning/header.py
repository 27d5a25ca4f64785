"""What the headers of knobs' files have in common, of both kinds, and how it is checked.

Every file is data from a stranger.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from drowsy.evaluation.identity import fingerprint_state
from drowsy.files.messages import counted, legible, quoted
from drowsy.files.provenance import provenance
from drowsy.graph.convert import inside
from drowsy.knob.metrics import objectives
from drowsy.tuning.witness import Size, Witness

# Far above what any knob has; a file that asks for more would take memory or hours.
_SIDE, _NUMBERS, _POINTS, _SIZE = 1 << 15, 1 << 28, 1 << 10, 2.0**64


def check_field(about: Mapping[str, Any], name: str, good: bool, allowed: str, where: str) -> None:
    """Raise ValueError unless a field is good; ``where`` names the file."""
    if not good:
        raise ValueError(f"{where}: {name}: got {quoted(about[name])}, allowed: {allowed}")


def check_numbers(about: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for numbers that are too large, before anything computes with them."""
    for name, value in about.items():
        # JSON knows no NaN.
        if wide := [number for number in _numbers(value) if not abs(number) <= _SIZE]:
            raise ValueError(f"{where}: {name}: got {quoted(wide[0])}, allowed: up to 2**64")


def check_common(
    about: Mapping[str, Any], costs: Iterable[str], where: str
) -> tuple[int, int, int]:
    """Check what is no point of a knob; returns the ``(C, H, W)`` of its images."""

    def check(name: str, good: bool, allowed: str) -> None:
        check_field(about, name, good, allowed, where)

    image, levers = about["image"], about["levers"]
    check(
        "image",
        isinstance(image, list)
        and len(image) == 3
        and all(type(side) is int and 1 <= side <= _SIDE for side in image)
        and math.prod(image) <= _NUMBERS,
        f"three integers, 1 to {_SIDE}, that multiply to {_NUMBERS} at most",
    )
    for name, known in (("objective", objectives()), ("cost", tuple(costs))):
        check(name, isinstance(about[name], str) and about[name] in known, ", ".join(known))
    check("weights", isinstance(about["weights"], str), "a fingerprint")
    texts = isinstance(levers, dict) and all(isinstance(each, str) for each in levers.values())
    check("levers", texts, "texts by name")
    check("made", isinstance(about["made"], dict), "an object")
    return image[0], image[1], image[2]


def points_in(about: Mapping[str, Any], where: str) -> list[Any]:
    """What stands for points, as many as a knob may have."""
    given = about["points"]
    if not isinstance(given, list) or not 1 <= len(given) <= _POINTS:
        got = f"{len(given)} of them" if isinstance(given, list) else quoted(given)
        raise ValueError(f"{where}: points: got {got}, allowed: a list of 1 to {_POINTS} points")
    return given


def check_model(
    model: nn.Module,
    weights: str,
    witness: Witness,
    image: tuple[int, int, int],
    sizes: Iterable[Size],
    where: str,
) -> None:
    """Raise ValueError unless a model has the weights and computes what the knob's did."""
    found = fingerprint_state(inside(model).state_dict())
    if found != weights:
        raise ValueError(
            f"{where}: was tuned for other weights than this model's (SHA-256 {found[:12]}..., "
            f"wanted {legible(weights[:12])}...), allowed: the model that it was tuned for"
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


def made_here(made: Mapping[str, Any]) -> bool:
    """Whether what a file tells was measured on this machine."""
    return bool(made.get("machine") == provenance()["machine"])


def warn_of_another_machine(made: Mapping[str, Any], where: str) -> None:
    """Warn whoever called ``drowsy.load`` where milliseconds are of another machine."""
    if made_here(made):
        return
    told, here = made.get("machine"), provenance()["machine"]
    if isinstance(told, dict) and told | {"threads": here["threads"]} == here:
        known = counted(here["threads"], "thread")
        _warn(
            f"{where}: its milliseconds are of another number of threads on this machine "
            f"({legible(told.get('threads'))}, here {known}); knob.measure() measures here"
        )
        return
    name = "not known"
    if isinstance(told, dict):
        facts = (f"{name} {value}" for name, value in told.items() if value is not None)
        name = ", ".join(map(legible, facts))
    _warn(
        f"{where}: its milliseconds are of another machine ({name}); knob.measure() measures here"
    )


def _warn(told: str) -> None:
    # This, who knows of the machine, the reader of the file, each kind's load, drowsy.load.
    warnings.warn(told, stacklevel=6)


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a value of JSON."""
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _numbers(each)
    elif isinstance(value, (int, float)):
        yield value
