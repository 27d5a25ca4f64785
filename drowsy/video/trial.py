"""Remembering against its rivals on clips: how far from the awake network's answers.

A clip needs no labels: every way is compared with the awake network on the same frame, by the
divergence of its classes (KL, nats) and by the relative error of its last feature map.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from drowsy.files.tables import Row
from drowsy.graph.convert import convert
from drowsy.network.net import DrowsyNet
from drowsy.video.cuts import DEFAULT_CUT
from drowsy.video.rivals import Answer, Told, awake_answers, remembering, ways

# A place moves where the picture changes from one frame to the next by more than this share of
# what it changes by where it changes most.
_MOVES = 0.25
_WINDOW = 4


def with_features(model: nn.Module, example: Tensor) -> DrowsyNet:
    """A drowsy network that puts out ``(logits, last feature map)``.

    Args:
        model: a classifier that ``torch.fx`` can trace.
        example: a frame ``[1, C, H, W]``.

    Raises:
        ValueError: a network without maps.
    """
    traced = fx.symbolic_trace(copy.deepcopy(model).eval())
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
    return node.op != "placeholder" and len(shape) == 4 and shape[2] * shape[3] > 1


@dataclass(frozen=True)
class Score:
    """How far a way is from the awake network on one clip.

    Args:
        divergence, error: means over frames after the first: nats, and relative.
        worst_divergence, worst_error: of four consecutive frames the worst, averaged.
        moving_error: relative error where the picture moves most; None where nothing moves.
        work, peak: mean and largest share of the multiplications a frame after the first.
    """

    divergence: float
    error: float
    worst_divergence: float
    worst_error: float
    moving_error: float | None
    work: float
    peak: float


def score(told: Told, awake: Sequence[Answer], clip: Tensor) -> Score:
    """Compare what a way said of a clip ``[T, C, H, W]`` with the awake network's answers."""
    pairs = list(zip(told.answers, awake, strict=True))[1:]
    divergence = [_divergence(mine[0], theirs[0]) for mine, theirs in pairs]
    error = [_error(mine[1], theirs[1]) for mine, theirs in pairs]
    moving = []
    for (mine, theirs), before, now in zip(pairs, clip[:-1], clip[1:], strict=True):
        size = theirs[1].shape[1:]
        moves = _moves(before, now, (size[0], size[1]))
        if moves.any():
            moving.append(_error(mine[1][:, moves], theirs[1][:, moves]))
    return Score(
        *(mean(divergence), mean(error), _worst(divergence), _worst(error)),
        *(mean(moving) if moving else None, mean(told.work[1:]), max(told.work[1:])),
    )


def _divergence(mine: Tensor, theirs: Tensor) -> float:
    mine, theirs = F.log_softmax(mine.double(), 0), F.log_softmax(theirs.double(), 0)
    return float(F.kl_div(mine, theirs, reduction="sum", log_target=True))


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


COLUMNS = (
    *("divergence", "worst_divergence", "error", "worst_error", "moving_error", "work", "peak"),
)


def compare_clips(
    net: DrowsyNet, clips: Mapping[str, Tensor], rates: Sequence[Fraction]
) -> tuple[list[Row], list[Row]]:
    """Every way at every rate on every clip.

    Args:
        net: of ``with_features``.
        clips: frames ``[T, C, H, W]`` by name, ``T`` of at least 2.
        rates: shares of the multiplications to save.

    Returns:
        ``(table, by_clip)``: means over clips with their standard errors (0 of one clip), and every
        clip's own figures.
    """
    rows: list[Row] = []
    with torch.inference_mode():
        for name, clip in clips.items():
            awake = awake_answers(net, clip)
            for rate in rates:
                for way, run in ways(rate).items():
                    found = score(run(net, clip, awake), awake, clip)
                    rows.append({"clip": name, "saving": str(rate), "way": way, **vars(found)})
    return [
        _summary(rows, *key) for key in dict.fromkeys((r["saving"], r["way"]) for r in rows)
    ], rows


def _summary(rows: Sequence[Row], saving: str, way: str) -> Row:
    mine = [row for row in rows if (row["saving"], row["way"]) == (saving, way)]
    made: Row = {"saving": saving, "way": way}
    for column in COLUMNS:
        figures = [row[column] for row in mine if row[column] is not None]
        made[column] = mean(figures) if figures else None
        spread = stdev(figures) / len(figures) ** 0.5 if len(figures) > 1 else 0.0
        made[f"{column}_se"] = spread
    return made


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
        told = remembering(refresh, rate, cut)(net, clip, awake)
    pairs = list(zip(told.answers, awake, strict=True))[len(before) :]
    errors = [_error(mine[1], theirs[1]) for mine, theirs in pairs]
    steady = 1.5 * mean(errors[len(errors) // 2 :])
    return next((i for i, error in enumerate(errors) if error <= steady), len(errors))
