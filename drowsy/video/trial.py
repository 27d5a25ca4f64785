"""Remembering against its rivals on a clip: how far from the awake network's answers.

A clip needs no labels: every rival is compared with the awake network on the same frame, by its
task's damage (the divergence of classes, of a label or of every pixel's, say) and by the relative
error of its last feature map.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fractions import Fraction
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from drowsy.evaluation.metrics import Task
from drowsy.files.tables import Row
from drowsy.graph.convert import convert
from drowsy.network.net import DrowsyNet
from drowsy.video.cuts import DEFAULT_CUT
from drowsy.video.rivals import Told, awake_answers, played
from drowsy.video.ways import Way

# A place moves where the picture changes from one frame to the next by more than this share of
# what it changes by where it changes most.
_MOVES = 0.25
_WINDOW = 4


def with_features(model: nn.Module, example: Tensor) -> DrowsyNet:
    """A drowsy network that puts out ``(what the model does, last feature map)``.

    Args:
        model: one that ``torch.fx`` can trace.
        example: a frame ``[1, C, H, W]``.

    Raises:
        ValueError: a network that cannot be traced, or without maps.
    """
    try:
        traced = fx.symbolic_trace(copy.deepcopy(model).eval())
    except Exception as error:  # whatever the model's own code raises at what is no tensor
        raise ValueError(
            f"model: {type(model).__name__} cannot be traced ({error}), allowed: a network that "
            "torch.fx traces, as only such are computed in part"
        ) from error
    with torch.no_grad():
        ShapeProp(traced).propagate(example)
    maps = [node for node in traced.graph.nodes if _is_map(node)]
    if not maps:
        raise ValueError(f"model: {type(model).__name__} has no feature map of more than one place")
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    output.update_arg(0, (output.args[0], maps[-1]))
    traced.recompile()
    return convert(traced.eval(), example, source="lattice", grain="position")


def _is_map(node: fx.Node) -> bool:
    shape: Sequence[int] = getattr(node.meta.get("tensor_meta"), "shape", ())
    return node.op not in ("placeholder", "output") and len(shape) == 4 and shape[2] * shape[3] > 1


def score(told: Told, awake: Sequence[Any], clip: Tensor, task: Task, lead: int = 0) -> Row:
    """Compare what was said of a clip with the awake network's answers.

    Args:
        told, awake: outputs ``(what the task takes, last feature map)``.
        clip: frames ``[T, C, H, W]``.
        task: what outputs are, and how they are judged.
        lead: so many frames are of another clip, which was cut to this one; they do not count.

    Returns:
        means over the clip's frames after its first, which is dense, or, after a lead, over those
        after its first four, which the cut may trouble: of the task's damage and of what is good,
        by the metrics' names, and of ``feature_error``, relative. ``worst_...`` of the damage and
        of the error: of four consecutive frames the worst, averaged; ``moving_error``: relative
        error where the picture moves most, None where nothing moves; ``after_cut``: the damage in
        the first four frames, None without a lead; ``work`` and ``peak``: mean and largest share of
        the multiplications.
    """
    first = lead + _WINDOW if lead else 1
    pairs = list(zip(told.answers, awake, strict=True))
    judged = [_judged(*pair, frame, task) for pair, frame in zip(pairs, clip.split(1), strict=True)]
    damage = [each[task.damage] for each in judged]
    qualities = [name for name in task.objectives(labelled=False) if name in judged[0]]
    errors = [_error(mine[1], theirs[1]) for mine, theirs in pairs[first:]]
    moving = []
    for (mine, theirs), before, now in zip(
        pairs[first:], clip[first - 1 : -1], clip[first:], strict=True
    ):
        moves = _moves(before, now, (theirs[1].shape[2], theirs[1].shape[3]))
        if moves.any():
            moving.append(_error(mine[1][:, :, moves], theirs[1][:, :, moves]))
    return {
        task.damage: mean(damage[first:]),
        f"worst_{task.damage}": _worst(damage[first:]),
        "after_cut": mean(damage[lead : lead + _WINDOW]) if lead else None,
        **{name: mean(each[name] for each in judged[first:]) for name in qualities},
        "feature_error": mean(errors),
        "worst_feature_error": _worst(errors),
        "moving_error": mean(moving) if moving else None,
        "work": mean(told.work[first:]),
        "peak": max(told.work[first:]),
    }


def _judged(mine: Any, theirs: Any, frame: Tensor, task: Task) -> dict[str, float]:
    """Every metric of one frame."""
    one, other = (task.take(each[0], frame) for each in (mine, theirs))
    return {name: float(each[0]) for name, each in task.count(one, other, None).values.items()}


def _error(mine: Tensor, theirs: Tensor) -> float:
    size = theirs.double().norm()
    return float((mine.double() - theirs.double()).norm() / size) if size else 0.0


def _moves(before: Tensor, now: Tensor, size: tuple[int, int]) -> Tensor:
    """Which places of a map of ``size`` see the picture change, bool ``[h, w]``."""
    change = F.adaptive_avg_pool2d((now - before).abs().mean(0)[None], size)[0]
    return change > _MOVES * change.max()


def _worst(figures: Sequence[float]) -> float:
    spans = range(max(len(figures) - _WINDOW + 1, 1))
    return mean(max(figures[i : i + _WINDOW]) for i in spans)


def settling_after_cut(
    net: DrowsyNet, before: Tensor, after: Tensor, refresh: str, rate: Fraction, *, detect: bool
) -> int:
    """Frames after a cut until a stream errs no more than it does in the end.

    Args:
        net: of ``with_features``.
        before, after: frames ``[T, C, H, W]`` of two clips, the second cut to the first's end.
        refresh, rate: of the stream.
        detect: whether it looks for cuts.

    Returns:
        how many frames err more than half as much again as the mean of the last half.
    """
    clip = torch.cat([before, after])
    with torch.inference_mode():
        awake = awake_answers(net, clip)
        cut = DEFAULT_CUT if detect else None
        told = played(Way(refresh=refresh, rate=rate), cut)(net, clip, awake)
    pairs = list(zip(told.answers, awake, strict=True))[len(before) :]
    errors = [_error(mine[1], theirs[1]) for mine, theirs in pairs]
    steady = 1.5 * mean(errors[len(errors) // 2 :])
    return next((i for i, error in enumerate(errors) if error <= steady), len(errors))
