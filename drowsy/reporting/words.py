"""Figures and sentences of a page: what was measured, how, and what does not follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from drowsy.files.messages import quoted
from drowsy.knob.frontier import SAVES
from drowsy.knob.metrics import METRICS
from drowsy.knob.point import OperatingPoint
from drowsy.sleep import parse_source
from drowsy.tuning.clips.knob import VideoKnob
from drowsy.tuning.clips.point import VideoPoint
from drowsy.tuning.knob import Knob

AnyKnob: TypeAlias = Knob | VideoKnob
AnyPoint: TypeAlias = OperatingPoint | VideoPoint

# Fewer report images than this are few, and the page says so.
_FEW = 500


def number(value: float) -> str:
    """Three significant digits, no exponent; a minus is one."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        decimals = next((d for d, least in enumerate((100, 10, 1, 0.1)) if abs(value) >= least), 4)
        text = f"{value:,.{decimals}f}"
        if "." in text:
            text = text.rstrip("0").rstrip(".")
    else:
        text = f"{value:.2e}"
    return "0" if text in ("-0", "") else text.replace("-", "\u2212")


def percent(value: float | None) -> str:
    """A fraction in whole per cent; nothing for None."""
    return "" if value is None else f"{value:.0%}".replace("-", "\u2212")


@dataclass(frozen=True)
class Losses:
    """How losses of an objective are written."""

    objective: str

    @property
    def scale(self) -> float:
        return 100.0 if METRICS[self.objective].is_fraction else 1.0

    @property
    def unit(self) -> str:
        return METRICS[self.objective].loss_unit

    def written(self, loss: float | None) -> str:
        if loss is None:
            return ""
        value = round(loss * self.scale, 1 if self.scale > 1 else 3) + 0.0
        return f"{value:.{1 if self.scale > 1 else 3}f}".replace("-", "\u2212")

    def between(self, interval: tuple[float, float] | None) -> str:
        return "" if interval is None else " to ".join(map(self.written, interval))


def machine_told(made: Mapping[str, Any]) -> str:
    """The machine that milliseconds are of, in a line."""
    machine = made.get("machine")
    if not isinstance(machine, dict):
        return "a machine that the file does not tell"
    told = [machine.get("gpu"), machine.get("processor")]
    told += [
        f"{machine[name]} {name if machine[name] != 1 else name.removesuffix('s')}"
        for name in ("cores", "threads")
        if machine.get(name) is not None
    ]
    return ", ".join(plain(each) for each in told if each) or "a machine without a name"


def how_measured(knob: Knob) -> list[tuple[str, str]]:
    """What was done to get the figures, a line each: what it is about, and how it is."""
    contents, made = knob.contents, knob.contents.made
    told = judged(knob, "image by image on the same images")
    images = made.get("images")
    if isinstance(images, dict):
        purposes = {
            "calibration": "to calibrate",
            "search": "to choose points by",
            "report": "to report on",
        }
        parts = [
            f"{plain(images[name])} {purpose}"
            for name, purpose in purposes.items()
            if name in images
        ]
        told.append(("Images", ", ".join(parts) + "; disjoint"))
    told.append(
        (
            "Intervals",
            "95%, bootstrapped over the report images' paired differences, each point by itself"
            f"; sleep maps of {_seeds(contents.points)}",
        )
    )
    told.append(
        (
            "Milliseconds",
            f"for a batch of {knob.batch} on {machine_told(made)}; all settings took turns, and "
            "each is the median of its ratio to the network awake",
        )
    )
    return [*told, metered(knob, "an image"), *made_by(made)]


def judged(knob: AnyKnob, how: str) -> list[tuple[str, str]]:
    """The task, and what losses are, ``how`` they are compared."""
    made = knob.contents.made
    told = f"{METRICS[knob.objective].title}, against the network awake, {how}"
    if made.get("labelled") is False or (knob.objective == "agreement"):
        told += "; there were no labels, so the awake network's own answers count as right"
    return [("Task", plain(made.get("task", "not told"))), ("Loss", told)]


def metered(knob: AnyKnob, each: str) -> tuple[str, str]:
    """Whether joules were."""
    known = any(point.joules is not None for point in knob.contents.points)
    return "Joules", f"{each}, metered while it ran" if known else "not metered: no meter there"


def made_by(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What else is told of how a knob was made."""
    told = []
    names = (("minutes", "Minutes allowed"), ("data", "Tuned on (SHA-256)"))
    told += [(title, plain(made[name])) for name, title in names if made.get(name) is not None]
    versions = made.get("versions")
    if isinstance(versions, dict):
        line = ", ".join(f"{n} {plain(v)}" for n, v in versions.items() if v is not None)
        told.append(("Versions", line))
    names = (("commit", "Commit"), ("command", "Command"))
    told += [(title, plain(made[name])) for name, title in names if made.get(name) is not None]
    return told


def not_said(knob: Knob) -> list[str]:
    """What a reader might take the figures to say, and they do not."""
    contents = knob.contents
    points = [point for point in knob.points if not point.is_awake]
    told = []
    crops = any(point.view is not None and not point.view.covers for point in points)
    gazes = _bets_on_the_middle(contents.recipe.source) and any(
        not point.nobody_sleeps for point in points
    )
    if crops or gazes:
        doing = " and ".join(
            text
            for text, does in (
                ("leave out the border", crops),
                ("sleep more towards the border", gazes),
            )
            if does
        )
        told.append(
            f"Some points {doing}. They bet on what matters being in the middle, as it was in the "
            "images given. On pictures that are framed otherwise they may lose more."
        )
    few = min((point.images for point in contents.points), default=0)
    if few < _FEW:
        told.append(
            f"Losses are of {few} images, which are few: read the intervals, not the means. With "
            "four times as many they are about half as wide."
        )
    told.append(
        "Other images can lose more or less than these; an interval tells of pictures of the same "
        "kind, and of each point alone, not of all points at once."
    )
    return told + not_said_of_any(knob, f"a batch of {knob.batch}", "batches")


def not_said_of_any(knob: AnyKnob, timed: str, others: str) -> list[str]:
    """What figures of either kind of knob do not say: of gains, other machines, time and energy.

    Args:
        timed: what milliseconds are for.
        others: in what other uses differ from that.
    """
    contents, told = knob.contents, []
    here = "" if contents.measured_here else ", which is not the one that this page was written on"
    if any(point.loss is not None and point.loss < 0 for point in knob.points):
        told.append(
            "A loss below 0 is a gain on these images. Where its interval holds 0, take it as none."
        )
    told.append(
        f"Milliseconds are of {machine_told(contents.made)}{here}, for {timed}. Other machines, "
        f"{others}, versions and loads order points otherwise: knob.measure() measures them there."
    )
    points: Sequence[AnyPoint] = knob.points
    slow = [str(n) for n, point in enumerate(points) if slower(knob, point)]
    if slow:
        told.append(
            f"Multiplications saved are no time saved. {listed(slow)} took longer than the "
            "network awake on this machine."
        )
    if all(point.joules is None for point in contents.points):
        told.append("Nothing is said of energy: no joules were metered.")
    return told


def slower(knob: AnyKnob, point: AnyPoint) -> bool:
    """Whether a point took longer than the network awake."""
    took, awake = point.latency_ms, knob.awake.latency_ms
    return took is not None and awake is not None and took > awake


def saves(cost: str) -> str:
    """What a cost is of, in a word."""
    return SAVES[cost]


def _bets_on_the_middle(source: str) -> bool:
    return parse_source(source).name == "fovea"


def _seeds(points: Sequence[OperatingPoint]) -> str:
    seeds = sorted({seed for point in points for seed in point.seeds})
    if not seeds:
        return "no seed"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def listed(names: Sequence[str]) -> str:
    """Points by their names."""
    if len(names) == 1:
        return f"Point {names[0]}"
    return f"Points {', '.join(names[:-1])} and {names[-1]}"


def plain(value: Any) -> str:
    """A value of a file as text."""
    return value if isinstance(value, str) else quoted(value)
