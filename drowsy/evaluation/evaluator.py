"""Measure accuracy at settings.

A network with a graph is walked as a tree (``drowsy.evaluation.tree``): settings share what they
have in common. One without is run as a whole at every setting (``drowsy.evaluation.whole``). Both
count the same.

Sleep maps come from ``drowsy.sleep`` (the torch backend) with the image's place in the data set as
its index, so that results do not depend on the split into batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from drowsy.evaluation import outputs as forms
from drowsy.evaluation.classification import CLASSIFICATION
from drowsy.evaluation.metrics import Counts, Task
from drowsy.evaluation.tasks import find_task
from drowsy.evaluation.tree import Tree
from drowsy.evaluation.whole import Whole
from drowsy.images.checks import check_batch, check_images
from drowsy.knob.control import check_seed
from drowsy.knob.schedule import Setting
from drowsy.network.net import DrowsyNet, check_network

MAP_CACHE = 6 << 30  # bytes
# Images whose outputs tell what a network is for.
_EXAMPLES = 4


class Evaluator:
    """A network, images, and one seed of sleep maps.

    Args:
        net: a converted network; its own rates do not matter and are not changed. A correction in
            force (``drowsy.calibrate``) holds at every setting but rate 0.
        images: float ``[N, C, H, W]``, finite.
        labels: int64 ``[N]``, or what else the outputs of the task should be; None to compare with
            the baseline alone.
        seed: of the sleep maps.
        batch: images per forward pass; does not change results beyond rounding, unless the network
            calls layers on other batches than its input's (crops side by side).
        first: the first image's index, from which its sleep maps follow.
        baseline: outputs that agreement, divergence and error compare with, in the form that
            ``outputs`` gives them; None for the network's own at rate 0.
        task: what outputs and labels are and how metrics are counted, as for ``find_task``.
        map_cache: bytes of level maps to keep; maps beyond that are drawn again when needed. A
            network without a graph draws them anew at every setting.

    Raises:
        TypeError, ValueError: an argument outside of what is listed here.
    """

    def __init__(
        self,
        net: DrowsyNet,
        images: Tensor,
        labels: Any = None,
        *,
        seed: int = 0,
        batch: int = 50,
        first: int = 0,
        baseline: Any = None,
        map_cache: int = MAP_CACHE,
        task: Task | str | Callable[[Any, Any, Any], Any] = CLASSIFICATION,
    ) -> None:
        check_network(net)
        check_images(images)
        check_batch(batch)
        check_seed("seed", seed)
        check_seed("first", first)
        self.task = task_of(net, images, labels, task)
        self.labels = None if labels is None else self.task.check(labels, images)
        if baseline is not None and forms.count_of(baseline) != len(images):
            shape = tuple(baseline.shape) if isinstance(baseline, Tensor) else len(baseline)
            raise ValueError(
                f"baseline: got shape {shape} for {len(images)} images, "
                f"allowed: ({len(images)}, classes), or other outputs of as many"
            )
        self.net, self.images, self.seed = net, images, seed
        chunks = [(first + i * batch, part) for i, part in enumerate(images.split(batch))]
        net.settle(images[:1])
        self._way: Tree | Whole = (
            Whole(net, chunks, seed, self.task.take)
            if net.graph is None
            else Tree(net, chunks, seed, map_cache, self.task.take)
        )
        self._baseline = baseline

    def evaluate(self, setting: Setting) -> Counts:
        """Counts at one setting."""
        return next(iter(self.walk([setting])))[1]

    @torch.inference_mode(False)
    @torch.no_grad()
    def outputs(self) -> Any:
        """What the network puts out with every neuron awake and nothing corrected.

        Of a classifier, logits: float32 ``[N, classes]``.
        """
        with self.net.uncorrected():
            ((_, outputs),) = self._way.walk([(0,) * len(self.net.layers)])
        return outputs

    # What they are of classifiers.
    logits = outputs

    @torch.inference_mode(False)
    @torch.no_grad()
    def walk(self, settings: Sequence[Setting]) -> Iterator[tuple[Setting, Counts]]:
        """Evaluate settings, each once; yields each as soon as it is known.

        Raises:
            ValueError: a setting of another network, or outputs that are none of the task's: for
                classification, not ``[N, classes]``.
            TypeError: outputs that are no tensor.
        """
        count, k = len(self.net.layers), self.net.k
        for setting in settings:
            if len(setting) != count or not all(0 <= j < k for j in setting):
                raise ValueError(f"setting: got {setting}, allowed: {count} integers 0 to {k - 1}")
        todo = sorted(set(settings))
        if todo and not any(todo[0]) and self.net.corrected:
            yield todo[0], self._count(todo.pop(0), self.outputs())
        if not todo:
            return
        if self._baseline is None and any(any(setting) for setting in todo):
            self._baseline = self.outputs()
        for setting, outputs in self._way.walk(todo):
            yield setting, self._count(setting, outputs)

    def _count(self, setting: Setting, outputs: Any) -> Counts:
        if self._baseline is None:
            self._baseline = outputs
        return self.task.count(outputs, self._baseline, self.labels)


def task_of(
    net: DrowsyNet,
    images: Tensor,
    labels: Any,
    task: Task | str | Callable[[Any, Any, Any], Any],
) -> Task:
    """The task that is meant for a network on images; see ``find_task``."""

    def example() -> Any:
        return Evaluator(net, images[:_EXAMPLES], task="outputs", batch=_EXAMPLES).outputs()

    return find_task(task, images, labels, example)
