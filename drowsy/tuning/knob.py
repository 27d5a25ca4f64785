"""``Knob``: a network, its operating points, and which of them is in force."""

from __future__ import annotations

import contextvars
import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drowsy.energy import Meter
from drowsy.energy.meter import check_seconds
from drowsy.files.messages import legible, listed, quoted
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row
from drowsy.graph.convert import check_model, inside
from drowsy.images.checks import check_images
from drowsy.knob.costs import layer_shares, network_cost, saving
from drowsy.knob.frontier import SAVES, Frontier, NoSuchPoint
from drowsy.knob.keywords import names_keywords
from drowsy.knob.point import OperatingPoint
from drowsy.tuning.evaluate import losses
from drowsy.tuning.knobfile import Contents, read_knob, write_knob
from drowsy.tuning.machine import Machine
from drowsy.tuning.measuring import measured
from drowsy.tuning.requests import point_asked_for, refuse_pickling, the_request
from drowsy.tuning.table import described, points_table
from drowsy.tuning.waiting import Waiting, noted, warn_if_busy

# Points held by ``at`` in this thread or task, by the knob's key.
_HELD: contextvars.ContextVar[Mapping[object, OperatingPoint]] = contextvars.ContextVar(
    "drowsy_held", default=MappingProxyType({})
)
_SECONDS = 20.0


class Knob:
    """A network with a knob over everything that trades accuracy for work.

        knob = drowsy.tune(model, images, labels)
        print(knob)                        # every point: what it does, ms, loss
        knob.set(saving=0.5)               # or max_loss=0.01, latency_ms=8, joules=0.2
        logits = knob(batch)
        knob.save("resnet18.drowsy")       # drowsy.load("resnet18.drowsy", model)

    Made by ``drowsy.tune`` and ``drowsy.load``. Calls run in inference mode. Threads may share it:
    each inference runs at one point, whole.

    Attributes:
        points: the points worth having, the costliest first; none is slower than a better one.
        awake: the network as it is; losses and savings count from it.
        point: what is in force here.
        objective: what points lose, a metric's name (``drowsy.knob.metrics``).
        cost: what they save: ``latency``, ``joules`` or ``macs``.
        batch: images a batch, to which milliseconds belong.
        contents: all that ``save`` writes.
    """

    def __init__(
        self,
        model: nn.Module,
        contents: Contents,
        images: Tensor | None = None,
        seconds: float = _SECONDS,
    ) -> None:
        """With ``images``, a batch, every point is first measured on it; see ``measure``."""
        self.contents = contents
        like = next(model.parameters())
        # Any image tells what rests, and whether the networks are the model.
        example = torch.rand(1, *contents.image, generator=torch.Generator().manual_seed(0))
        self._machine = Machine(
            model,
            example.to(like.device, like.dtype),
            contents.recipe,
            {point.number_format for point in contents.points},
            contents.stencils,
            contents.calibrations,
            contents.restores,
        )
        self._machine.check(contents.points)
        self.objective, self.cost, self.batch = contents.objective, contents.cost, contents.batch
        points = contents.points
        if images is not None:
            points = self._measured(images, seconds)
        self._take(points)
        self._point, self._key = self.awake, object()

    def _measured(self, images: Tensor, seconds: float) -> tuple[OperatingPoint, ...]:
        """Every point, as measured now; whether on a busy machine is noted in ``contents``."""
        waiting = Waiting()
        points = self.contents.points
        found = measured(self._machine, points, images, seconds, waiting, self.cost)
        made = noted(self.contents.made, measuring=waiting.share)
        self.contents = replace(self.contents, made=made)
        return tuple(found)

    def _take(self, points: Sequence[OperatingPoint]) -> None:
        """These are the points, as measured."""
        self.contents = replace(self.contents, points=tuple(points))
        self._frontier = Frontier(points, self.objective, self.cost)
        assert self._frontier.reference is not None, "a knob has a point awake"
        self.awake = self._frontier.reference
        self.points = tuple(self._frontier.points)

    def __copy__(self) -> Knob:
        """Another knob over the same networks, set to the point that is in force here."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self), _point=self.point, _key=object())
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Knob:
        """A knob with networks and clocks of its own, set to the point that is in force here."""
        twin = memo[id(self)] = self.__copy__()
        twin._machine = copy.deepcopy(self._machine, memo)
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        refuse_pickling(self)

    # --- running --------------------------------------------------------------------------------

    @property
    def point(self) -> OperatingPoint:
        """What is in force here."""
        return _HELD.get().get(self._key, self._point)

    def __call__(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the network puts out for ``images``, ``[N, C, H, W]``, at the point in force.

        In the dtype of the images, and computed in the point's number format, under
        ``torch.autocast`` too: that is what the point's figures are of. At a point of fewer pixels
        maps ``[N, C, h, w]`` and boxes are scaled to what all pixels would give; for that, one
        image of every new size runs awake (64 sizes are remembered). Further arguments go to the
        network as they are.

        Raises:
            TypeError: images that are no tensor of floating point.
            ValueError: images of other channels, or of a size that the network does not take.
        """
        check_batch_of(images, self.contents.image)
        return self._machine.run(self.point, images, *args, **kwargs)

    @names_keywords
    def set(
        self,
        point: OperatingPoint | int | None = None,
        *,
        saving: float | None = None,
        max_loss: float | None = None,
        latency_ms: float | None = None,
        joules: float | None = None,
    ) -> OperatingPoint:
        """Turn the knob for all threads; takes effect at the next call. Returns the point.

        What the point saves of the knob's cost is ``saved(point)``; ``repr`` of the knob tells it.

        Args:
            point: its place among ``points`` (0 is not always ``awake``), or any point that was
                measured, of those in ``contents`` that are worth less too.
            saving: the most accurate point that saves at least this fraction of the cost; 0 is
                awake.
            max_loss: the point that saves most of those that lose no more than this of the
                objective: 0.01 is a point of accuracy, of which more than 1 is refused.
            latency_ms: the most accurate point that takes no longer for a batch.
            joules: the most accurate point that takes no more for an image.

        Raises:
            NoSuchPoint: no point satisfies the request; names the nearest ones.
            ValueError, TypeError: not exactly one request, or one that is none. The knob is then
                where it was.
        """
        self._point = self._find("set", point, saving, max_loss, latency_ms, joules)
        return self._point

    @names_keywords
    @contextmanager
    def at(
        self,
        point: OperatingPoint | int | None = None,
        *,
        saving: float | None = None,
        max_loss: float | None = None,
        latency_ms: float | None = None,
        joules: float | None = None,
    ) -> Iterator[OperatingPoint]:
        """Run a block at a point, in this thread or task only; arguments as for ``set``."""
        found = self._find("at", point, saving, max_loss, latency_ms, joules)
        token = _HELD.set(MappingProxyType({**_HELD.get(), self._key: found}))
        try:
            yield found
        finally:
            _HELD.reset(token)

    def _find(
        self,
        method: str,
        point: OperatingPoint | int | None,
        saving: float | None,
        max_loss: float | None,
        latency_ms: float | None,
        joules: float | None,
    ) -> OperatingPoint:
        wishes = {
            "saving": saving,
            "max_loss": max_loss,
            "latency_ms": latency_ms,
            "joules": joules,
        }
        name, value = the_request(method, point, wishes)
        if name == "point":
            return self._given(value)
        if name != "saving":
            return self._frontier.at(**{name: value})
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise ValueError(f"saving: got {value!r}, allowed: 0 or more and below 1")
        if value == 0:
            return self.awake
        return self._frontier.at_saved(value)

    def _given(self, point: OperatingPoint | int) -> OperatingPoint:
        return point_asked_for(point, self.points, self.contents.points)

    def reseed(self, seed: int, image: int = 0) -> None:
        """Draw the next batch's sleep maps for images ``image, ...`` of this seed."""
        self._machine.reseed(seed, image)

    # --- measuring ------------------------------------------------------------------------------

    def measure(self, images: Tensor | None = None, *, seconds: float = _SECONDS) -> None:
        """Measure milliseconds, and joules where a meter is, of every point here and now.

        Points that are slower here than a better one leave ``points``; they are kept in the file,
        for other machines. Warns (``RuntimeWarning``) where other programs took the cores
        meanwhile.

        Args:
            images: a batch ``[N, C, H, W]``; None for noise of the batch that is recorded.
            seconds: for the milliseconds of all points together; joules take five more each.

        Raises:
            NoMeter: joules are what the knob saves, and nothing here meters them.
            TypeError, ValueError: other images than the network takes, or seconds that are no
                number above 0, up to a million. The knob is then as it was, in all of these cases.
        """
        if images is None:
            noise = torch.Generator().manual_seed(0)
            images = torch.randn(self.batch, *self.contents.image, generator=noise)
            like = next(self._machine.nets[None].parameters())
            images = images.to(like.device, like.dtype)
        check_seconds(seconds)
        check_images(images)
        check_batch_of(images, self.contents.image)
        if self.cost == "joules":
            Meter(str(images.device))
        # What is in force outside of a block, too; nothing changes unless all is measured.
        kept, points = self._point, self._measured(images, seconds)
        self.batch = len(images)
        self.contents = replace(
            self.contents, batch=self.batch, measured_here=True, made=self._made_here()
        )
        self._take(points)
        # The same setting, as it is now measured.
        self._point = next((p for p in (*self.points, self.awake) if _same(p, kept)), self.awake)
        warn_if_busy(self.contents.made, "measuring", stacklevel=2)

    def _made_here(self) -> dict[str, Any]:
        return {**self.contents.made, "machine": provenance()["machine"]}

    def evaluate(
        self, images: Any, labels: Any = None, *, metric: Any = None, batch: int = 50
    ) -> list[Row]:
        """What every point loses on other images: whether the knob holds there.

        Losses are against the network awake, image by image, in the objective that the knob was
        tuned for. Where that is another thing here, since there are labels and were none or the
        other way round, they are in the task's own, and nothing is said of whether points hold.

        Args:
            images: ``[N, C, H, W]``, a loader or a data set, that points were not chosen on.
            labels: as for ``drowsy.tune``; None compares with the network awake.
            metric: as for ``drowsy.tune``; None for the task that the knob was tuned for.
            batch: images per forward pass.

        Returns:
            a row a point, awake first: ``setting``, every metric that was measured, ``loss`` and
            its 95% interval ``loss_low`` to ``loss_high``, ``sold_loss``, ``sold_low`` and
            ``sold_high``; ``holds``, whether the loss is at most ``sold_high``; ``surely``, whether
            all of its interval lies on that side; ``objective``, what is lost.

        Raises:
            TypeError, ValueError: images or labels that the network or the task does not take, or
                no metric where the knob was tuned by a function.
        """
        points = [self.awake, *(p for p in self.points if p is not self.awake)]
        rows = losses(self._machine, self.contents, points, images, labels, metric, batch)
        names = map(self.describe, points)
        return [{"setting": name, **row} for name, row in zip(names, rows, strict=True)]

    # --- what it says ---------------------------------------------------------------------------

    def describe(self, point: OperatingPoint) -> str:
        """What a point does, in words: ``158 px of the middle 0.82, 38% asleep``."""
        return ", ".join(self.turned(point).values()) or "awake"

    def turned(self, point: OperatingPoint) -> dict[str, str]:
        """What each lever does at a point, in words: ``view``, ``format`` and ``sleep``, if any."""
        found = {}
        if point.view is not None and not point.view.is_whole:
            found["view"] = str(point.view)
        if point.number_format is not None:
            found["format"] = point.number_format
        if share := self.share_asleep(point):
            found["sleep"] = f"{share:.0%} asleep"
        return found

    def share_asleep(self, point: OperatingPoint) -> float:
        """Fraction of the multiplications of what a point shows that sleeps."""
        if point.nobody_sleeps:
            return 0.0
        rates = {name: layer.rate for name, layer in point.schedule.layers.items()}
        return saving(rates, self._shares)

    @cached_property
    def _shares(self) -> Mapping[str, float]:
        # Counting runs the network, which would move its clock: it runs a copy.
        net = copy.deepcopy(self._machine.nets[None])
        return layer_shares(network_cost(net, self.contents.image))

    def sleep_map(
        self,
        images: Tensor,
        point: OperatingPoint | int | None = None,
        *,
        layer: str | None = None,
        first: int = 0,
    ) -> Tensor:
        """Where the work sleeps that a point, or the one in force, spends on these images.

        Maps are those of seed 0; the knob stays as it is, its clock too.

        Args:
            images: ``[N, C, H, W]``, whole pictures.
            point: as for ``set``.
            layer: the only one to look at, by its name in schedules; None for all.
            first: which images of the seed they are, as after ``reseed(0, first)``.

        Returns:
            float32 ``[N, h, w]`` over what the point shows of a picture: of the multiplications
            made for each place the fraction that sleeps.
        """
        check_batch_of(images, self.contents.image)
        layers = self.awake.schedule.layers
        if layer is not None and layer not in layers:
            raise ValueError(f"layer: got {quoted(layer)}, allowed: {listed(layers)}, or None")
        found = self.point if point is None else self._given(point)
        return self._machine.sleep_map(found, images, layer, first)

    def saved(self, point: OperatingPoint) -> float:
        """Fraction of the awake network's cost that a point saves."""
        return self._frontier.saved(point)

    def rows(self) -> list[Row]:
        """A row a point, awake first: what it does and what was measured, None for what was not.

        Columns: ``setting``, ``saved`` (of the cost), ``multiplications_saved``, ``latency_ms``,
        ``images_per_s``, ``joules``, the objective, ``loss`` and its 95% interval ``loss_low`` to
        ``loss_high``, ``in_force``.
        """
        return [
            {
                "setting": self.describe(point),
                "saved": self.saved(point),
                "multiplications_saved": point.saving,
                "latency_ms": point.latency_ms,
                "images_per_s": point.latency_ms and 1e3 * self.batch / point.latency_ms,
                "joules": point.joules,
                self.objective: point.figure(self.objective),
                "loss": point.loss,
                "loss_low": point.interval and point.interval[0],
                "loss_high": point.interval and point.interval[1],
                "in_force": point is self.point,
            }
            for point in (self.awake, *(p for p in self.points if p is not self.awake))
        ]

    def table(self) -> str:
        """The rows as aligned text."""
        return points_table(self.rows(), self.objective, self.batch)

    def __str__(self) -> str:
        made, levers = self.contents.made, self.contents.levers
        return described(self.table(), self.cost, made, levers)

    def __repr__(self) -> str:
        at = f"at {self.describe(self.point)}: saves {self.saved(self.point):.1%}"
        return f"Knob({len(self.points)} points, {at} of the {SAVES[self.cost]})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file with all but the model's weights, whole or not at all."""
        write_knob(path, self.contents)


def load(path: str | os.PathLike[str], model: nn.Module) -> Knob:
    """The knob in a file, for the model that it was tuned for.

    The model is known by its weights, and by what it computes: it runs on three images that are
    always the same, and on one of each size that points are shown, in float64, and what each of its
    convolutions and itself put out must be within 1e-5 of what the file holds (relative, in the
    2-norm of an image). So another activation, stride, epsilon, way of padding or forward is
    refused, as far as it makes a difference above that, and the same network is known on every
    machine, device and version of torch and Python, whose rounding stays far below. Integers, truth
    values and where infinities are may differ in 1 of 100 elements. Of what has no entry for each
    image, as a detector's lists of boxes, counts and quantiles of every tensor must be within 5%.
    A model that does not run in float64 is compared in its own format, within 5%.

    Not compared is what does not repeat on images that are a rounding away (noise); integers,
    infinities and lists of a model that does not run in float64; numbers that are no tensors; which
    box has which number, in a list; other sizes; and outputs at sizes that the model takes once
    the knob has fitted it to them alone.

    Warns where its milliseconds and joules are of another machine: ``knob.measure()`` measures
    here.

    Args:
        path: as ``Knob.save`` wrote it. A file is data from a stranger: all of it is checked.
        model: in eval mode; shares nothing with the knob.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file.
        ImportError: safetensors is not installed.
        TypeError: no path, or no model.
        ValueError: not a whole knob file of this version, one that holds what no knob can, or
            another model.
    """
    check_model(inside(model))
    contents = read_knob(path, model)
    try:
        return Knob(model, contents)
    except ValueError as error:
        raise ValueError(f"knob: {legible(path)}: {error}") from error


def check_batch_of(images: Any, image: tuple[int, int, int]) -> None:
    """Raise unless these are images ``[N, C, H, W]`` of as many channels."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        hint = ", as torch.from_numpy makes of an array" if isinstance(images, np.ndarray) else ""
        raise TypeError(f"images: got {kind}, allowed: a floating-point tensor{hint}")
    if images.dim() != 4 or images.shape[1] != image[0]:
        raise ValueError(f"images: got shape {tuple(images.shape)}, allowed: [N, {image[0]}, H, W]")


def _same(one: OperatingPoint, other: OperatingPoint) -> bool:
    """Whether two points are one setting."""
    return all(
        getattr(one, name) == getattr(other, name) for name in ("schedule", "view", "number_format")
    )


__all__ = ["Knob", "NoSuchPoint", "load"]
