"""Detection: outputs are boxes of each image, targets are the right ones.

Two forms are known. torchvision's: a list with ``boxes [B, 4]``, ``labels [B]`` and ``scores [B]``
of each image, of which those count that score enough. And a plain one, before overlapping boxes are
dropped: ``(scores [N, A, classes], boxes [N, A, 4])`` of all anchors, the first class the
background; here boxes that score enough are thinned by non-maximum suppression within their class.
Boxes are corners (x1, y1, x2, y2), scores probabilities.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drowsy.evaluation.errors import relative, squares
from drowsy.evaluation.metrics import Task
from drowsy.evaluation.outputs import Named, taken

# A box is found where one of its class overlaps it by this much.
FOUND = 0.5


@dataclass(frozen=True)
class Boxes:
    """Boxes ``[B, 4]`` of one image, their classes ``[B]`` and scores ``[B]``, the best first."""

    corners: Tensor
    classes: Tensor
    scores: Tensor

    @classmethod
    def of(cls, entry: Mapping[str, Tensor], least: float) -> Boxes:
        """Those of one image in torchvision's form that score at least this much.

        Targets, which have no scores, are all certain.
        """
        corners, classes = entry["boxes"].double(), entry["labels"]
        scores = entry.get("scores", torch.ones(len(classes), device=corners.device)).double()
        # What is no number never scores enough.
        enough = (scores >= least) & corners.isfinite().all(1)
        order = scores[enough].argsort(descending=True, stable=True)
        found = cls(corners[enough][order], classes[enough][order], scores[enough][order])
        _check_numbers(found)
        return found

    def __len__(self) -> int:
        return len(self.scores)


def _check_numbers(found: Boxes) -> None:
    """Raise ValueError for what are no probabilities and no corners."""
    if (found.scores > 1).any():
        raise ValueError(f"model: a box scores {float(found.scores.max()):.4g}, allowed: 0 to 1")
    backwards = found.corners[:, 2:] < found.corners[:, :2]
    if backwards.any():
        box = found.corners[backwards.any(1)][0].tolist()
        raise ValueError(f"boxes: got {box}, allowed: corners (x1, y1, x2, y2), x1 <= x2, y1 <= y2")


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes ``[A, 4]`` and ``[B, 4]``, as ``[A, B]``; 0 of no area."""
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    both = (high - low).clamp_min(0).prod(2)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (one, other)]
    either = areas[0][:, None] + areas[1] - both
    return torch.where(either > 0, both / either.clamp_min(torch.finfo(either.dtype).tiny), 0.0)


def thinned(found: Boxes, most: float) -> Boxes:
    """Non-maximum suppression: without boxes that overlap a better one of their class by more."""
    shared = overlaps(found.corners, found.corners) > most
    shared &= found.classes[:, None] == found.classes
    rows: list[list[bool]] = shared.tolist()
    kept: list[int] = []
    dropped: set[int] = set()
    for i in range(len(found)):
        if i not in dropped:
            kept.append(i)
            dropped.update(j for j, hit in enumerate(rows[i]) if hit)
    chosen = torch.tensor(kept, dtype=torch.int64, device=found.scores.device)
    return Boxes(found.corners[chosen], found.classes[chosen], found.scores[chosen])


def matches(found: Boxes, right: Boxes, least: float) -> list[tuple[int, int, float]]:
    """Pairs ``(found, right, overlap)``, each box in one at most; the best found choose first."""
    shared = overlaps(found.corners, right.corners)
    shared = shared.masked_fill_(found.classes[:, None] != right.classes, 0.0)
    pairs = []
    for i in range(len(found) if len(right) else 0):
        overlap, j = shared[i].max(0)
        if overlap > 0 and overlap >= least:
            pairs.append((i, int(j), float(overlap)))
            shared[:, j] = 0.0
    return pairs


class Detections:
    """Boxes that a network put out, those awake, and the right ones where these are known.

    Args:
        outputs, awake, targets: as ``take_boxes`` and ``check_boxes`` give them.
        score: what boxes must score to count.
        overlap: by how much a box may overlap a better one, in the plain form.
    """

    def __init__(
        self, outputs: Any, awake: Any, targets: Any, score: float = 0.5, overlap: float = 0.3
    ) -> None:
        self._outputs, self._awake, self._targets = outputs, awake, targets
        self._score, self._overlap = score, overlap

    @functools.cached_property
    def found(self) -> list[Boxes]:
        return self._boxes(self._outputs, self._score)

    @functools.cached_property
    def awake(self) -> list[Boxes]:
        return self._boxes(self._awake, self._score)

    def _boxes(self, outputs: Any, least: float) -> list[Boxes]:
        if isinstance(outputs, list):
            return [Boxes.of(entry, least) for entry in outputs]
        return [
            thinned(Boxes.of(_best(*e), least), self._overlap) for e in zip(*outputs, strict=True)
        ]

    def f1(self) -> Tensor:
        """float64 ``[N]``: twice the boxes found right over all that were found or right.

        1 where there are neither.
        """
        targets = self._targets
        device = (
            self._awake[0]["boxes"] if isinstance(self._awake, list) else self._awake[0]
        ).device
        right = (
            self.awake
            if targets is None
            else [
                Boxes.of({name: each.to(device) for name, each in entry.items()}, 0.0)
                for entry in targets
            ]
        )
        each = []
        for mine, theirs in zip(self.found, right, strict=True):
            count = len(mine) + len(theirs)
            each.append(2 * len(matches(mine, theirs, FOUND)) / count if count else 1.0)
        return torch.tensor(each, dtype=torch.float64)

    def error(self) -> Tensor:
        """float64 ``[N]``: relative squared error to the outputs awake, of what is in boxes.

        Of the plain form, the mean of the scores' and of the boxes', each counted as much as the
        network awake or now believes that it holds something. Of torchvision's, whose boxes have no
        fixed number: a box awake that scores ``s``, and overlaps one now that scores ``t`` by
        ``o``, is off by ``s - t o``; one that is gone by ``s``, a new one by ``t``.
        """
        if isinstance(self._outputs, list):
            lists = zip(self._boxes(self._outputs, 0.0), self._boxes(self._awake, 0.0), strict=True)
            return torch.tensor([_error_of_lists(*pair) for pair in lists], dtype=torch.float64)
        (mine, boxes), (theirs, others) = self._outputs, self._awake
        mine, theirs = mine[..., 1:].double(), theirs[..., 1:].double()
        scores = relative(squares(mine - theirs), squares(theirs))
        weights = torch.maximum(mine.amax(2), theirs.amax(2))[..., None].sqrt()
        off = squares(weights * (boxes.double() - others.double()))
        return (scores + relative(off, squares(weights * others.double()))) / 2


def _best(scores: Tensor, boxes: Tensor) -> Mapping[str, Tensor]:
    """One image's anchors ``[A, classes]`` and ``[A, 4]`` as boxes, each of its best class."""
    best, classes = scores[:, 1:].max(1)
    return {"boxes": boxes, "labels": classes + 1, "scores": best}


def _error_of_lists(found: Boxes, awake: Boxes) -> float:
    pairs = matches(found, awake, 0.0)
    mine, theirs = found.scores.tolist(), awake.scores.tolist()
    new, gone = dict(enumerate(mine)), dict(enumerate(theirs))
    off = 0.0
    for i, j, overlap in pairs:
        off += (gone.pop(j) - new.pop(i) * overlap) ** 2
    off += sum(each**2 for each in (*new.values(), *gone.values()))
    size = sum(each**2 for each in theirs)
    return off / size if size else float(off > 0)


def take_boxes(output: Any, images: Tensor) -> Any:
    """A network's boxes: a list, of each image ``Named``, or a pair of tensors, in float32.

    Raises:
        TypeError, ValueError: neither form.
    """
    allowed = (
        "a list with boxes [B, 4], labels [B] and scores [B] of each image, or a pair of scores "
        "[N, A, classes] and boxes [N, A, 4]"
    )
    if is_list_of_boxes(output) and len(output) == len(images):
        entries = taken(output, len(images))
        for entry in entries:
            _check_entry(entry, "model: its output", ("boxes", "labels", "scores"))
        return entries
    if not is_pair_of_boxes(output):
        raise TypeError(f"model: its output is {type(output).__name__}, allowed: {allowed}")
    scores, boxes = output
    if len(scores) != len(images):
        raise ValueError(
            f"model: its output has shape {tuple(scores.shape)} for {len(images)} images, "
            f"allowed: {allowed}"
        )
    return scores.float(), boxes.float()


def is_list_of_boxes(output: Any) -> bool:
    """Whether this is torchvision's form."""
    return (
        isinstance(output, Sequence)
        and not isinstance(output, (str, bytes))
        and len(output) > 0
        and all(isinstance(each, Mapping) and "boxes" in each for each in output)
    )


def is_pair_of_boxes(output: Any) -> bool:
    """Whether this is the plain form."""
    if not isinstance(output, Sequence) or len(output) != 2:
        return False
    if not all(isinstance(each, Tensor) and each.dim() == 3 for each in output):
        return False
    scores, boxes = output
    return scores.shape[:2] == boxes.shape[:2] and boxes.shape[2] == 4 and scores.shape[2] > 1


def _check_entry(entry: Any, where: str, names: Sequence[str]) -> None:
    missing = [name for name in names if not isinstance(entry.get(name), Tensor)]
    if missing:
        raise TypeError(f"{where}: an image lacks {', '.join(missing)}, allowed: tensors by name")
    shapes = {name: tuple(entry[name].shape) for name in names}
    count = len(entry["boxes"])
    if shapes != {name: (count, 4) if name == "boxes" else (count,) for name in names}:
        raise ValueError(f"{where}: an image has shapes {shapes}, allowed: [B, 4] and [B]")


def check_boxes(targets: Any, images: Tensor) -> list[Named]:
    """Targets, ``boxes`` and ``labels`` of each image; raises TypeError, ValueError for others."""
    allowed = "a list with boxes [B, 4] and labels [B] of each image"
    if not isinstance(targets, (list, tuple)) or not all(isinstance(e, Mapping) for e in targets):
        raise TypeError(f"labels: got {type(targets).__name__}, allowed: {allowed}")
    if len(targets) != len(images):
        raise ValueError(f"labels: got {len(targets)} for {len(images)} images, allowed: {allowed}")
    for entry in targets:
        _check_entry(entry, "labels", ("boxes", "labels"))
    return [Named(boxes=entry["boxes"], labels=entry["labels"]) for entry in targets]


def detection(score: float = 0.5, overlap: float = 0.3) -> Task:
    """The task of networks that find boxes.

    Args:
        score: what a box must score to count, 0 to 1.
        overlap: by how much a box may overlap a better one of its class, 0 to 1, in the plain form.
    """
    for name, value in (("score", score), ("overlap", overlap)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}: got {value!r}, allowed: a number, 0 to 1")
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: got {value}, allowed: 0 to 1")
    return Task(
        "detection",
        take_boxes,
        check_boxes,
        functools.partial(Detections, score=score, overlap=overlap),
        {"f1": Detections.f1, "error": Detections.error},
        principal=("f1", "f1"),
        told=["detection", float(score), float(overlap)],
    )
