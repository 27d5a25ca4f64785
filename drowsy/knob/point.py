"""Operating points: a setting of the knob, and what was measured at it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from drowsy.files.messages import quoted
from drowsy.files.versioned import check_keys, is_number
from drowsy.images.view import View
from drowsy.knob.metrics import METRICS
from drowsy.knob.schedule import Schedule

_MEASURED = ("latency_ms", "joules")
# Number formats that a point may run in; None is the network's own.
NUMBER_FORMATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, repr=False)
class OperatingPoint:
    """A schedule and what was measured at it. None: not measured.

    Attributes:
        schedule: the setting.
        saving: fraction of the network's multiplications saved, 0 to 1.
        top1, top5: accuracy, 0 to 1; means over ``seeds``.
        agreement: fraction of images whose first choice is that of rate 0.
        divergence: mean KL divergence of the class probabilities from rate 0's, in nats.
        latency_ms: per batch, in milliseconds.
        joules: per image.
        spread: standard deviation over the seeds, by the names above.
        images: how many images were measured.
        seeds: of the sleep maps.
        others: figures of any other metric (``drowsy.knob.metrics``), by name.
        view: what the network is shown of a picture; None for all of it.
        number_format: ``bfloat16``, say; None for the network's own.
        loss: how much less of a knob's objective than awake, in its unit, on the same images.
        interval: of that, from where to where 95% of such measurements would have it lie.
    """

    schedule: Schedule
    saving: float
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    divergence: float | None = None
    latency_ms: float | None = None
    joules: float | None = None
    spread: Mapping[str, float] | None = None
    images: int = 0
    seeds: tuple[int, ...] = ()
    others: Mapping[str, float] | None = None
    view: View | None = None
    number_format: str | None = None
    loss: float | None = None
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.saving <= 1:
            raise ValueError(f"saving: got {self.saving}, allowed: 0 to 1")
        if unknown := [name for name in self.others or () if name not in METRICS.keys() - _FIELDS]:
            raise ValueError(
                f"others: got {', '.join(unknown)}, allowed: metrics that are no field of a point"
            )
        for name, figure in self.figures.items():
            METRICS[name].check(figure)
        for name in _MEASURED:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}: got {value}, allowed: a finite number, 0 or more")
        if self.number_format not in (None, *NUMBER_FORMATS):
            raise ValueError(
                f"number_format: got {quoted(self.number_format)}, "
                f"allowed: {', '.join(NUMBER_FORMATS)}, or None"
            )
        told = [] if self.interval is None else list(self.interval)
        if self.loss is not None:
            told.append(self.loss)
        if not all(map(math.isfinite, told)) or len(told) not in (0, 1, 3):
            raise ValueError(
                f"loss, interval: got {self.loss}, {self.interval}, allowed: a finite number and "
                "two, or none"
            )
        for name, value in (self.spread or {}).items():
            if name not in METRICS.keys() | _MEASURED or not 0 <= value < math.inf:
                raise ValueError(
                    f"spread: got {quoted(name)}: {quoted(value)}, allowed: of "
                    f"{', '.join([*METRICS, *_MEASURED])} finite numbers, 0 or more"
                )

    def __repr__(self) -> str:
        """The setting, how many layers sleep, of maybe hundreds; then what was measured."""
        layers = self.schedule.thresholds().values()
        asleep = f"{sum(map(bool, layers))} of {len(layers)} layers asleep, k={self.schedule.k}"
        setting = [str(each) for each in (self.view, self.number_format) if each is not None]
        # Not called a saving: a knob is set by that of its own cost, which may be time.
        measured = self.figures | {name: getattr(self, name) for name in _MEASURED}
        measured["multiplications_saved"] = self.saving
        told = [f"{name}={value:.4g}" for name, value in measured.items() if value is not None]
        return f"OperatingPoint({', '.join([*setting, asleep, *told])})"

    @property
    def is_awake(self) -> bool:
        """Whether it is the network as it is: nobody sleeps, and it sees all in its own format."""
        whole = self.view is None or self.view.is_whole
        return whole and self.number_format is None and self.nobody_sleeps

    @cached_property
    def nobody_sleeps(self) -> bool:
        """Whether all rates of its schedule are 0."""
        return not any(self.schedule.thresholds().values())

    @property
    def figures(self) -> dict[str, float]:
        """What was measured, by metric."""
        found = ((name, self.figure(name)) for name in METRICS)
        return {name: figure for name, figure in found if figure is not None}

    def figure(self, metric: str) -> Any:
        """What was measured by one metric, a number; None if it was not."""
        return getattr(self, metric) if metric in _FIELDS else (self.others or {}).get(metric)

    def with_figures(self, figures: Mapping[str, float]) -> OperatingPoint:
        """The same point with these figures, by metric, in place of its own."""
        own = {name: figures.get(name) for name in METRICS if name in _FIELDS}
        others = {name: figure for name, figure in figures.items() if name not in own}
        return replace(self, **own, others=others or None)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; a metric that is no field of a point is there where it was measured."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= values.pop("others") or {}
        # Files of searches, which turn one lever, tell nothing of the others.
        values = {n: each for n, each in values.items() if n not in _LATER or each is not None}
        if self.view is not None:
            values["view"] = self.view.to_dict()
        if self.interval is not None:
            values["interval"] = list(self.interval)
        values["schedule"] = self.schedule.to_dict()
        values["spread"] = None if self.spread is None else dict(self.spread)
        values["seeds"] = list(self.seeds)
        return values

    @classmethod
    def from_dict(cls, data: Any, where: str = "point") -> OperatingPoint:
        """Read the JSON form; ``where`` names it in errors."""
        given = data.keys() if isinstance(data, dict) else ()
        names = _FIELDS - {"others"} - {name for name in _LATER if name not in given}
        further = [name for name in METRICS if name not in _FIELDS and name in given]
        check_keys(data, {*names, *further}, where)
        schedule = Schedule.from_dict(data["schedule"], f"{where}: schedule")
        own = [name for name in METRICS if name in _FIELDS]
        for name in ("saving", *own, *further, *_MEASURED):
            value = data[name]
            if not is_number(value) and (value is not None or name in ("saving", *further)):
                raise ValueError(f"{where}: {name}: got {quoted(value)}, allowed: a number")
        images, seeds, spread = data["images"], data["seeds"], data["spread"]
        if type(images) is not int or images < 0:
            raise ValueError(
                f"{where}: images: got {quoted(images)}, allowed: an integer, 0 or more"
            )
        if not isinstance(seeds, list) or any(type(seed) is not int for seed in seeds):
            raise ValueError(f"{where}: seeds: got {quoted(seeds)}, allowed: a list of integers")
        if spread is not None and not (
            isinstance(spread, dict) and all(map(is_number, spread.values()))
        ):
            raise ValueError(f"{where}: spread: got {quoted(spread)}, allowed: names with numbers")
        interval = data.get("interval")
        if "interval" in given and not (
            isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval))
        ):
            raise ValueError(f"{where}: interval: got {quoted(interval)}, allowed: two numbers")
        if "loss" in given and not is_number(data["loss"]):
            raise ValueError(f"{where}: loss: got {quoted(data['loss'])}, allowed: a number")
        try:
            values = {name: data[name] for name in names}
            values |= {"schedule": schedule, "seeds": tuple(seeds)}
            if "view" in given:
                values["view"] = View.from_dict(data["view"], "view")
            if "interval" in given:
                values["interval"] = tuple(data["interval"])
            return cls(**values, others={name: data[name] for name in further} or None)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


_FIELDS = frozenset(field.name for field in fields(OperatingPoint))
# Told in files only where they are not None.
_LATER = ("view", "number_format", "loss", "interval")
