"""``VideoKnob``: a network on video, the ways to answer its frames, and which is in force."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drowsy.energy.meter import check_seconds
from drowsy.evaluation.arguments import check_count
from drowsy.files.messages import legible, quoted
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row
from drowsy.files.versioned import is_number
from drowsy.graph.convert import convert
from drowsy.images.checks import check_clips
from drowsy.knob.costs import ROUNDING
from drowsy.knob.frontier import SAVES, NoSuchPoint, none_saves, unmeasured
from drowsy.knob.keywords import names_keywords
from drowsy.knob.metrics import METRICS
from drowsy.knob.tradeoffs import undominated
from drowsy.network.net import DrowsyNet
from drowsy.tuning.clips.evaluate import losses
from drowsy.tuning.clips.file import VideoContents, read_video_knob, write_video_knob
from drowsy.tuning.clips.pace import joules_a_frame, pace
from drowsy.tuning.clips.point import VideoPoint, spent
from drowsy.tuning.requests import point_asked_for, refuse_pickling, the_request
from drowsy.tuning.resolution import fit_flatten
from drowsy.tuning.table import clips_table, described
from drowsy.tuning.waiting import Waiting, noted, warn_if_busy
from drowsy.video.cuts import DEFAULT_CUT
from drowsy.video.motions import moved
from drowsy.video.stream import Look
from drowsy.video.ways import Player

_SECONDS = 20.0
# Frames that are shown where no clip is given.
_FRAMES = 8


class VideoKnob:
    """A network with a knob over the ways to answer the frames of cameras.

        knob = drowsy.tune(model, clips, video=True)
        print(knob)                          # every way: ms, work and loss of a frame
        knob.set(max_loss=0.01)              # or saving=, latency_ms=, slowest_ms=, joules=
        for frame in frames:                 # [1, C, H, W]
            answer = knob(frame)
        knob.save("resnet18.drowsy")         # drowsy.load("resnet18.drowsy", model)

    Made by ``drowsy.tune`` and ``drowsy.load``. It remembers what cameras showed: one thread at a
    time may call it. ``drowsy.Governor`` takes it as it takes a ``Knob``.

    Args:
        model: in eval mode; shares nothing with the knob.
        contents: all that ``save`` writes.
        streams: cameras, each with a slot of its own.
        cut: as for ``drowsy.Stream``: a frame this different from the one before is computed
            whole; None looks for no cuts.

    Attributes:
        points: the points worth having, the costliest first; none costs more than a better one.
            ``contents`` has others that are worth their slowest frame.
        awake: the network as it is, on every frame; losses and savings count from it.
        point: what is in force.
        objective: what points lose, a metric's name (``drowsy.knob.metrics``).
        cost: what they save: ``latency``, ``slowest`` or ``macs``.
    """

    def __init__(
        self,
        model: nn.Module,
        contents: VideoContents,
        *,
        streams: int = 1,
        cut: float | None = DEFAULT_CUT,
    ) -> None:
        check_count("streams", streams)
        self.contents = contents
        self.objective, self.cost = contents.objective, contents.cost
        self._streams, self._cut = streams, cut
        like = next(model.parameters())
        noise = torch.rand(1, *contents.image, generator=torch.Generator().manual_seed(0))
        self._net = network_for(model, noise.to(like.device, like.dtype))
        self._take(contents.points)
        self.point = self.awake
        self._player = self._playing(self.awake)

    def _take(self, points: Sequence[VideoPoint]) -> None:
        """These are the points, as measured."""
        self.contents = replace(self.contents, points=tuple(points))
        self.awake = next(point for point in points if point.is_awake)
        self.points = worth_having(points, self.objective, self.cost)

    def __copy__(self) -> VideoKnob:
        """Another knob over the same network, at the same point, that has not seen a frame yet."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        twin._player = twin._playing(twin.point)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> VideoKnob:
        """A knob with a network of its own, at the same point, that has not seen a frame yet."""
        twin = memo[id(self)] = self.__copy__()
        twin._net = copy.deepcopy(self._net, memo)
        # Anew: weights in the order that a device's library wants cannot be copied.
        twin._player = twin._playing(twin.point)
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        refuse_pickling(self)

    def _playing(self, point: VideoPoint) -> Player:
        return Player(self._net, point.way, self._streams, cut=self._cut)

    # --- running --------------------------------------------------------------------------------

    def __call__(self, frames: Tensor, slots: Sequence[int] | None = None) -> Any:
        """What the network says of one frame of each camera, at the point in force.

        In the network's own dtype, under ``torch.autocast`` too: that is what the points' figures
        are of.

        Frames are not looked through for NaN and infinity, which would wait for the device. At
        packed points and those that remember, an activation may turn NaN into a number, so that
        answers to such a frame are finite and mean nothing; what remembers, remembers them.

        Args:
            frames: ``[N, C, H, W]``, as the network takes them, one a slot; as large as the clips
                that it was tuned on, in the dtype and on the device of the network.
            slots: whose frames they are, by default of all slots in order.

        Raises:
            TypeError: no tensor, or one of another dtype.
            ValueError: frames of another shape or elsewhere, or slots that do not fit.
        """
        like = next(self._net.parameters())
        if not isinstance(frames, Tensor) or frames.dtype != like.dtype:
            kind = frames.dtype if isinstance(frames, Tensor) else type(frames).__name__
            raise TypeError(f"frames: got {kind}, allowed: {like.dtype}, as the network has")
        if frames.dim() != 4 or frames.shape[1:] != self.contents.image:
            allowed = ", ".join(map(str, self.contents.image))
            raise ValueError(f"frames: got {tuple(frames.shape)}, allowed: [N, {allowed}]")
        if frames.device != like.device:
            raise ValueError(
                f"frames: lie on {frames.device}, the network on {like.device}, allowed: one device"
            )
        with torch.autocast(like.device.type, enabled=False):
            return self._player(frames, slots)

    def reset(self, slot: int | None = None) -> None:
        """Forget what a slot remembers, or all slots: its next frame is computed whole."""
        self._player.reset(slot)

    @property
    def looks(self) -> tuple[Look | None, ...]:
        """What was done with each slot's last frame; None before its first at this point."""
        return self._player.looks

    @names_keywords
    def set(
        self,
        point: VideoPoint | int | None = None,
        *,
        saving: float | None = None,
        max_loss: float | None = None,
        latency_ms: float | None = None,
        slowest_ms: float | None = None,
        joules: float | None = None,
    ) -> VideoPoint:
        """Turn the knob; takes effect at the next frame. Returns the point.

        From one rate of a refresh to another what is remembered stays. Elsewhere it is given back,
        and the next frame of each slot is computed whole.

        Args:
            point: its place among ``points`` (0 is not always ``awake``), or any that was measured.
            saving: the best point that saves at least this fraction of the cost; 0 is awake.
            max_loss: the point that saves most of those that lose no more than this of the
                objective: 0.01 is a point of agreement, and more than 1 is refused.
            latency_ms: the best point that takes no longer for a frame, in the mean.
            slowest_ms: the best point of which no frame takes longer, but the first and those after
                a cut.
            joules: the best point that takes no more for a frame, in the mean.

        Raises:
            NoSuchPoint: no point satisfies the request.
            ValueError, TypeError: not exactly one request, or one that is none. The knob is then
                where it was.
        """
        wishes = {
            "saving": saving,
            "max_loss": max_loss,
            "latency_ms": latency_ms,
            "slowest_ms": slowest_ms,
            "joules": joules,
        }
        name, value = the_request("set", point, wishes)
        if name == "point":
            self._turn(point_asked_for(value, self.points, self.contents.points))
        else:
            self._turn(self._wished(name, value))
        return self.point

    def _turn(self, point: VideoPoint) -> None:
        one, other = self.point.way, point.way
        if one.refresh is not None and (one.size, one.refresh) == (other.size, other.refresh):
            self._player.set(other.rate)
        elif one != other:
            self._player = self._playing(point)
        self.point = point

    def _wished(self, name: str, value: float) -> VideoPoint:
        if not is_number(value) or (name == "saving" and not 0 <= value < 1):
            allowed = "0 or more and below 1" if name == "saving" else "a finite number"
            raise ValueError(f"{name}: got {quoted(value)}, allowed: {allowed}")
        if name == "saving" and not value:
            return self.awake
        if name == "max_loss":
            METRICS[self.objective].check_loss(name, value)
        # Of all that were measured: what is not worth its mean may be worth its slowest frame.
        pool = self.contents.points if name == "slowest_ms" else self.points
        measured = {
            "saving": lambda p: -self.saved(p),
            "max_loss": lambda p: p.loss,
            "latency_ms": lambda p: p.latency_ms,
            "slowest_ms": lambda p: p.slowest_ms,
            "joules": lambda p: p.joules,
        }[name]
        most = (-value if name == "saving" else value) + ROUNDING
        known = [p for p in pool if measured(p) is not None]
        if not known:
            raise unmeasured(name)
        fitting = [p for p in known if measured(p) <= most]
        if not fitting:
            if name == "saving":
                raise none_saves(value, self.cost, max(map(self.saved, known)))
            near = min((abs(measured(p)) for p in known), key=lambda x: abs(x - value))
            raise NoSuchPoint(f"no point with {name} {value}; the nearest has {near:.4g}")
        if name == "max_loss":
            return max(fitting, key=self.saved)
        return max(fitting, key=lambda p: (p.figures[self.objective], self.saved(p)))

    # --- measuring ------------------------------------------------------------------------------

    def measure(self, clip: Tensor | None = None, *, seconds: float = _SECONDS) -> None:
        """Measure milliseconds, and joules where a meter is, of every point here and now.

        The knob stays where it is. Points that cost more here than a better one leave ``points``;
        they are kept in the file, for other machines. Warns (``RuntimeWarning``) where other
        programs took the cores meanwhile.

        Args:
            clip: frames ``[T, C, H, W]``, shown forth and back; None for noise that moves.
            seconds: for the milliseconds of all points together; joules take five more each.

        Raises:
            TypeError, ValueError: another clip than the network takes, one that is not finite, or
                seconds that are no number above 0, up to a million.
        """
        check_seconds(seconds)
        like = next(self._net.parameters())
        if clip is None:
            noise = torch.rand(self.contents.image, generator=torch.Generator().manual_seed(0))
            clip = moved(noise, "pan", _FRAMES).to(like.device)
        check_clips({"clip": clip}, 2)
        if clip.shape[1:] != self.contents.image:
            raise ValueError(
                f"clip: got frames of {tuple(clip.shape[1:])}, allowed: {self.contents.image}"
            )
        if clip.device != like.device:
            raise ValueError(
                f"clip: lies on {clip.device}, the network on {like.device}, allowed: one device"
            )
        points = self.contents.points
        each = seconds / len(points)
        waiting = Waiting()
        with torch.autocast(like.device.type, enabled=False):
            with waiting.watched():
                found = [pace(self._net, point.way, clip.to(like.dtype), each) for point in points]
            metered = joules_a_frame(self._net, [p.way for p in points], clip.to(like.dtype))
        awake_ms = float(np.median([one.awake_ms for one in found]))
        made = {**self.contents.made, "machine": provenance()["machine"]}
        made = noted(made, measuring=waiting.share)
        self.contents = replace(self.contents, measured_here=True, made=made)
        before = points.index(self.point)
        self._take(
            [
                replace(
                    p,
                    latency_ms=one.mean * awake_ms,
                    slowest_ms=one.slowest * awake_ms,
                    joules=spent_joules,
                )
                for p, one, spent_joules in zip(points, found, metered, strict=True)
            ]
        )
        self.point = self.contents.points[before]
        warn_if_busy(made, "measuring", stacklevel=2)

    def evaluate(self, clips: Any, labels: Any = None, *, metric: Any = None) -> list[Row]:
        """What every point loses on other clips: whether the knob holds there.

        Losses are against the network awake, frame by frame, in the objective that the knob was
        tuned for. Where that is another thing here, since there are labels and were none or the
        other way round, they are in the task's own, and nothing is said of whether points hold.

        Args:
            clips: as for ``drowsy.tune``, with ``video=True``, that points were not chosen on. All
                frames count but the first of each clip.
            labels: as for ``drowsy.tune``; None compares with the network awake.
            metric: as for ``drowsy.tune``; None for the task that the knob was tuned for.

        Returns:
            rows as of ``Knob.evaluate``, with ``work`` and ``peak`` too: a row a point, awake
            first. Intervals are of clips drawn again, and of blocks of frames in a row in each;
            None of too few frames, of which nothing is said for sure (``surely`` is False).

        Raises:
            TypeError, ValueError: clips or labels that the network or the task does not take, or
                no metric where the knob was tuned by a function.
        """
        like = next(self._net.parameters())
        points = [self.awake, *(p for p in self.points if p is not self.awake)]
        with torch.autocast(like.device.type, enabled=False):
            return losses(self._net, self.contents, points, clips, labels, metric)

    def saved(self, point: VideoPoint) -> float:
        """Fraction of the awake network's cost that a point saves."""
        return 1 - spent(point, self.cost) / spent(self.awake, self.cost)

    # --- what it says ---------------------------------------------------------------------------

    def turned(self, point: VideoPoint) -> dict[str, str]:
        """What each lever does at a point, in words: ``size``, ``skip``, ``remember``, ``packed``.

        Only those that do something.
        """
        return point.way.turned

    def rows(self) -> list[Row]:
        """A row a point, awake first: what it does and what was measured.

        Columns: ``setting``, ``saved`` (of the cost), ``latency_ms`` and ``slowest_ms`` of a frame,
        ``joules`` a frame, ``work`` and ``peak`` (mean and largest share of the multiplications),
        the objective, ``loss`` and its 95% interval ``loss_low`` to ``loss_high`` (None of too few
        frames), ``in_force``. None: not measured.
        """
        return [
            {
                "setting": str(point.way),
                "saved": self.saved(point),
                "latency_ms": point.latency_ms,
                "slowest_ms": point.slowest_ms,
                "joules": point.joules,
                "work": point.work,
                "peak": point.peak,
                self.objective: point.figures[self.objective],
                "loss": point.loss,
                "loss_low": point.interval and point.interval[0],
                "loss_high": point.interval and point.interval[1],
                "in_force": point is self.point,
            }
            for point in (self.awake, *(p for p in self.points if p is not self.awake))
        ]

    def table(self) -> str:
        """The rows as aligned text."""
        return clips_table(self.rows(), self.objective)

    def __str__(self) -> str:
        made, levers = self.contents.made, self.contents.levers
        return described(self.table(), self.cost, made, levers)

    def __repr__(self) -> str:
        at = f"at {self.point.way}: saves {self.saved(self.point):.1%}"
        return f"VideoKnob({len(self.points)} points, {at} of the {SAVES[self.cost]})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON file with all but the model's weights, whole or not at all."""
        write_video_knob(path, self.contents)


def load(path: str | os.PathLike[str], model: nn.Module) -> VideoKnob:
    """The knob in a file, for the model that it was tuned for, which is known as by ``Knob``s.

    Each way of the file has answered a frame when this returns.

    Raises:
        ValueError: as ``drowsy.load``; also a way that the network cannot go.
    """
    knob = VideoKnob(model, read_video_knob(path, model))
    like = next(model.parameters())
    frame = torch.zeros(1, *knob.contents.image, dtype=like.dtype, device=like.device)
    tried = set()
    for n, point in enumerate(knob.contents.points):
        # What a frame is computed by; how often, and how much of it later, refuses nothing.
        one = replace(point.way, every=1)
        kind = (one.size, one.refresh, one.packed)
        if kind in tried:
            continue
        tried.add(kind)
        try:
            with torch.autocast(like.device.type, enabled=False):
                Player(knob._net, one)(frame)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"knob: {legible(path)}: point {n}: way: got {point.way}, allowed: what the "
                f"network takes ({legible(error)})"
            ) from error
    return knob


def network_for(model: nn.Module, example: Tensor) -> DrowsyNet:
    """The network that ways run on: a copy, which takes smaller frames where it can be made to."""
    net = convert(copy.deepcopy(model), example)
    fit_flatten(net, example.shape[1:])
    return net


def worth_having(points: Sequence[VideoPoint], objective: str, cost: str) -> tuple[VideoPoint, ...]:
    """The points that none matches in cost and objective and beats in one, the costliest first."""
    saved = np.array([-spent(point, cost) for point in points])
    harm = np.array([-point.figures[objective] for point in points])
    return tuple(points[n] for n in undominated(saved, harm))
