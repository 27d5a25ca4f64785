"""Points of a knob for video: a way to answer frames, and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drowsy.files.messages import quoted
from drowsy.files.versioned import check_keys, is_number
from drowsy.knob.metrics import METRICS
from drowsy.video.ways import Way

# What is saved, and where a point has it.
COSTS = {"latency": "latency_ms", "slowest": "slowest_ms", "macs": "work"}
_NUMBERS = ("work", "peak", "loss", "latency_ms", "slowest_ms", "joules")
_OPTIONAL = ("latency_ms", "slowest_ms", "joules")


@dataclass(frozen=True)
class VideoPoint:
    """A way to answer frames, and what was measured of it. None: not measured.

    Attributes:
        way: what is computed.
        work: share of the network's multiplications that a frame takes, the mean.
        peak: the largest share of any frame but the first and those after a cut, which are dense.
        figures: of every metric its mean over frames, by name.
        loss: how much less of the knob's objective than awake, in its unit, on the same frames.
        interval: of that, from where to where 95% of such measurements would have it lie;
            None where the frames are too few to tell.
        frames: how many were measured.
        latency_ms, slowest_ms: milliseconds a frame: the mean, and of the frame that takes longest.
        joules: a frame, the mean.
    """

    way: Way
    work: float
    peak: float
    figures: Mapping[str, float]
    loss: float
    interval: tuple[float, float] | None
    frames: int
    latency_ms: float | None = None
    slowest_ms: float | None = None
    joules: float | None = None

    @property
    def saving(self) -> float:
        """Fraction of the network's multiplications saved, the mean over frames."""
        return max(1 - self.work, 0.0)

    def figure(self, metric: str) -> Any:
        """What was measured by one metric, a number; None if it was not."""
        return self.figures.get(metric)

    @property
    def is_awake(self) -> bool:
        """Whether it is the network as it is, on every frame."""
        return self.way.is_awake

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        interval = None if self.interval is None else list(self.interval)
        plain = {**vars(self), "figures": dict(self.figures), "interval": interval}
        return {**plain, "way": self.way.to_dict()}

    @classmethod
    def from_dict(cls, data: Any, where: str) -> VideoPoint:
        """Read the JSON form; ``where`` names it in errors."""
        check_keys(data, set(cls.__dataclass_fields__), where)

        def check(name: str, good: bool, allowed: str) -> None:
            if not good:
                raise ValueError(f"{where}: {name}: got {quoted(data[name])}, allowed: {allowed}")

        for name in _NUMBERS:
            optional = name in _OPTIONAL and data[name] is None
            check(name, optional or is_number(data[name]), "a number")
            if name.endswith("_ms"):
                check(name, optional or data[name] > 0, "above 0, or null")
            check(name, optional or name == "loss" or data[name] >= 0, "0 or more")
        figures, interval = data["figures"], data["interval"]
        known = isinstance(figures, dict) and all(
            name in METRICS and is_number(value) for name, value in figures.items()
        )
        check("figures", known, "numbers by metric")
        for name, value in figures.items():
            try:
                METRICS[name].check(value)
            except ValueError as error:
                raise ValueError(f"{where}: figures: {error}") from error
        pair = isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval))
        ordered = interval is None or (pair and interval[0] <= interval[1])
        check("interval", ordered, "two numbers, ascending, or null")
        check("frames", type(data["frames"]) is int and data["frames"] >= 1, "1 or more")
        way = Way.from_dict(data["way"], f"{where}: way")
        return cls(**{**data, "way": way, "interval": interval and (interval[0], interval[1])})


def spent(point: VideoPoint, cost: str) -> float:
    """What a point costs."""
    value = getattr(point, COSTS[cost])
    assert value is not None, f"{cost} was measured"
    return float(value)
