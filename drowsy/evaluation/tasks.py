"""Which task a network is for: asked for by name, or found by what it puts out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from drowsy.evaluation.anything import OUTPUTS, custom
from drowsy.evaluation.classification import CLASSIFICATION
from drowsy.evaluation.detection import detection, is_list_of_boxes, is_pair_of_boxes
from drowsy.evaluation.metrics import Task
from drowsy.evaluation.outputs import described, main
from drowsy.evaluation.restoration import find_peak, restoration
from drowsy.evaluation.segmentation import segmentation

NAMES = ("auto", "classification", "segmentation", "restoration", "detection", "outputs")


def find_task(metric: Any, images: Tensor, targets: Any, example: Callable[[], Any]) -> Task:
    """A task as it is, by its name, of a callable, or by the network's outputs.

    Args:
        metric: a ``Task``; one of ``NAMES``; or ``metric(outputs, awake_outputs, targets)``, which
            gives a number of each image, higher is better.
        images: ``[N, C, H, W]``.
        targets: what the outputs should be, or None.
        example: the network's outputs awake for some of the images (``outputs.taken``), computed
            where they are looked at: for ``auto``, and for the range of images that are restored.

    Raises:
        TypeError, ValueError: a metric that is none of these.
    """
    if isinstance(metric, Task):
        return metric
    if not isinstance(metric, str):
        if not callable(metric):
            raise TypeError(
                f"metric: got {metric!r}, allowed: {', '.join(NAMES)}, or a function of outputs, "
                "awake outputs and targets"
            )
        return custom(metric)
    if metric not in NAMES:
        raise ValueError(f"metric: got {metric!r}, allowed: {', '.join(NAMES)}, or a function")
    if metric != "auto":
        return _named(metric, targets, example)
    outputs = example()
    name = guess(outputs, images, targets)
    why = f"outputs {described(outputs)}" + ("" if targets is None else ", with targets")
    return replace(_named(name, targets, lambda: outputs), why=why)


def guess(outputs: Any, images: Tensor, targets: Any) -> str:
    """The name of the task whose networks put out what has this form.

    Two axes and several columns are logits. Of maps, those with integer targets or of more than
    three channels are logits of pixels, and those of one or three channels, as large as the images
    or a whole number of times as large, are images. Boxes are told by their form
    (``drowsy.evaluation.detection``). Anything else is compared with what it is awake.
    """
    if is_list_of_boxes(outputs) or is_pair_of_boxes(outputs):
        return "detection"
    found = main(outputs)
    if found is None or not found.is_floating_point():
        return "outputs"
    if found.dim() == 2 and found.shape[1] > 1:
        return "classification"
    if found.dim() != 4:
        return "outputs"
    channels, height, width = found.shape[1:]
    classes = isinstance(targets, Tensor) and not targets.is_floating_point()
    if channels > 3 or (classes and channels > 1):
        return "segmentation"
    times, rest = divmod(height, images.shape[2])
    scaled = times and not rest and width == times * images.shape[3]
    return "restoration" if channels != 2 and scaled else "outputs"


def _named(name: str, targets: Any, example: Callable[[], Any]) -> Task:
    match name:
        case "classification":
            return CLASSIFICATION
        case "segmentation":
            return segmentation()
        case "detection":
            return detection()
        case "restoration":
            known = targets if isinstance(targets, Tensor) and targets.is_floating_point() else None
            pictures = main(example()) if known is None else known
            if pictures is None:
                raise ValueError("metric: got restoration for outputs that are no images")
            return restoration(find_peak(pictures.float()))
        case _:
            return OUTPUTS
