"""What viewers share: one network with its knob, and how its answers are told and compared."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from drowsy.evaluation.metrics import Task
from drowsy.evaluation.outputs import taken
from drowsy.evaluation.tasks import find_task
from drowsy.files.messages import legible
from drowsy.files.versioned import read_text
from drowsy.graph.convert import convert
from drowsy.images.folders import normalise
from drowsy.images.preprocess import Preprocess
from drowsy.knob.costs import network_cost
from drowsy.knob.metrics import METRICS, Metric
from drowsy.live.rates import Rate, measured
from drowsy.network.net import DrowsyNet
from drowsy.tuning.evaluate import task_named
from drowsy.tuning.knob import Knob

# Answers of a picture.
_BEST = 3
# In which what a frame takes at the rates of a stream is measured.
_SECONDS = 4.0
_SYNSET = re.compile(r"n\d{8} ")


class Network:
    """A knob that several viewers use, one inference after the other.

    Args:
        model: the knob's.
        knob: nobody else turns it or calls it.
        preprocess: what the network expects of a picture.
        names: of its classes; None for numbers.

    Attributes:
        lock: held around whatever runs the network.
        multiplies: multiplications of a picture, awake.
        metric: what tells how near a setting is to the network awake.
    """

    def __init__(
        self,
        model: nn.Module,
        knob: Knob,
        preprocess: Preprocess,
        names: Sequence[str] | None = None,
    ) -> None:
        self.knob, self.names = knob, names
        self.lock = threading.Lock()
        self.multiplies = network_cost(model, knob.contents.image).multiplies
        self._model, self._preprocess = model, preprocess
        self._rates: dict[str, list[Rate]] = {}
        self._like = next(model.parameters())
        frame = self.frame(torch.zeros(preprocess.crop, preprocess.crop, 3, dtype=torch.uint8))
        self._warm(frame)
        self._task = self._find_task(frame)
        self.metric: Metric = METRICS[self._task.quality(labelled=False)]

    def frame(self, pixels: Tensor) -> Tensor:
        """Pixels ``[S, S, 3]`` as the network takes them, ``[1, 3, S, S]``."""
        return normalise(pixels[None], self._preprocess).to(self._like)

    def awake(self, frame: Tensor) -> Any:
        """What the network puts out with nobody asleep."""
        with self.knob.at(self.knob.awake):
            return self.knob(frame)

    @cached_property
    def converted(self) -> DrowsyNet:
        """The network without its knob, as streams take it; its weights are the model's."""
        return convert(self._model)

    def rates(self, refresh: str, seconds: float = _SECONDS) -> list[Rate]:
        """Rates of a stream, with what a frame takes at each; measured where they were not yet.

        Raises:
            ValueError: a network that a stream cannot run.
        """
        if refresh not in self._rates:
            with self.lock:
                like = self.frame(torch.zeros(*[self._preprocess.crop] * 2, 3, dtype=torch.uint8))
                self._rates[refresh] = measured(self.converted, like, refresh, seconds)
        return self._rates[refresh]

    def likeness(self, output: Any, awake: Any, frame: Tensor) -> float:
        """How near an output is to the one awake, by ``metric``; 1 where that is a fraction."""
        mine, theirs = (self._task.take(each, frame) for each in (output, awake))
        return float(self._task.count(mine, theirs, None).values[self.metric.name][0])

    def answers(self, output: Any, frame: Tensor) -> list[tuple[str, float]]:
        """The best classes with their probability, or of maps with their share of the pixels."""
        if self._task.name not in ("classification", "segmentation"):
            return []
        scores = self._task.take(output, frame)[0].float()
        if scores.dim() == 1:
            shares = scores.softmax(0)
        else:
            counts = scores.argmax(0).flatten().bincount(minlength=len(scores))
            shares = counts / counts.sum()
        best = shares.topk(min(_BEST, len(shares)))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(self._named(place), share) for place, share in found if share > 0]

    @property
    def task(self) -> str:
        """What the network is for, by name."""
        return self._task.name

    def _named(self, place: int) -> str:
        return f"class {place}" if self.names is None else self.names[place]

    def _find_task(self, frame: Tensor) -> Task:
        try:
            named = task_named(self.knob.contents.made)
        except ValueError:  # it was a function, which no file holds
            named = "auto"
        return find_task(named, frame, None, lambda: taken(self.knob(frame), len(frame)))

    def _warm(self, frame: Tensor) -> None:
        """The first call of a setting allocates and compiles, which is no latency of its own."""
        for point in (self.knob.awake, *self.knob.points):
            with self.knob.at(point):
                self.knob(frame)


def read_names(path: str, classes: int) -> list[str]:
    """Names of classes, a line each; ImageNet's ``n01440764 tench, Tinca tinca`` is ``tench``.

    Raises:
        OSError: the file cannot be read.
        ValueError: not a line for each class.
    """
    lines = [line.strip() for line in read_text(path, "text").splitlines() if line.strip()]
    if len(lines) != classes:
        raise ValueError(
            f"names: {legible(path)} holds {len(lines)} lines, allowed: {classes}, one a class"
        )
    return [_SYNSET.sub("", line).split(",")[0] if _SYNSET.match(line) else line for line in lines]
