"""Ways to spend less on video, side by side: one network, clips, equal savings.

Every frame is compared with the awake network on that frame, so that clips need no labels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from drowsy.comparison.plot import plot_clips
from drowsy.evaluation.intervals import interval
from drowsy.evaluation.tasks import find_task
from drowsy.files.atomic import write_json, write_text
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row, align, csv_text
from drowsy.images.checks import check_clips
from drowsy.images.scaling import Size
from drowsy.knob.costs import network_cost
from drowsy.knob.metrics import METRICS
from drowsy.network.net import DrowsyNet
from drowsy.tuning.resolution import fit_flatten, resolution_for, shadow
from drowsy.video.rivals import awake_answers, rivals
from drowsy.video.trial import score, with_features

CLIP_SAVINGS = (Fraction(1, 2), Fraction(3, 4))
# Frames of the clip before that are shown first, so that a clip begins with a cut: of each cut
# another number, so that it falls now here and now there between frames that are not skipped.
_LEADS = (5, 6, 7, 4)
# Frames of a clip that tell anything: four in a row after those that a cut may trouble.
_FEWEST = 8
_SHOWN = ("work", "peak")


def compare_clips(
    model: nn.Module,
    clips: Mapping[str, Tensor],
    *,
    savings: Sequence[Fraction] = CLIP_SAVINGS,
    metric: Any = "auto",
    each: Callable[[str], None] = lambda done: None,
) -> tuple[list[Row], list[Row]]:
    """What every way to spend less errs by at every saving, on clips.

    Scaled frames, frames skipped, their work spread over several, neurons filled from their
    neighbours, and neurons that remember by every refresh. Clips are shown in their order, each cut
    to the last frames of the one before.

    Args:
        model: a network in eval mode that ``torch.fx`` traces; stays as it was.
        clips: frames ``[T, C, H, W]`` by name, as the network takes them, of one size; ``T`` of 8
            or more.
        savings: shares of the multiplications: of 1/2 and 3/4 one or both.
        metric: what outputs are, as for ``drowsy.tune``.
        each: called with each clip's name, saving and way, as they are done.

    Returns:
        ``(table, by_clip)``. A row of ``by_clip`` is a clip, a ``saving`` and a ``way``, with the
        figures of ``drowsy.video.trial.score``; one of ``table`` has their means over clips, and
        from two clips on 95% intervals bootstrapped over them, ``..._low`` and ``..._high``.

    Raises:
        TypeError, ValueError: clips, savings or a metric outside of what is listed here, or a
            network that cannot be traced or has no maps.
    """
    if not isinstance(clips, Mapping):
        raise TypeError(f"clips: got {type(clips).__name__}, allowed: tensors by name")
    check_clips(clips, _FEWEST)
    for saving in savings:
        if saving not in CLIP_SAVINGS:
            allowed = " and ".join(map(str, CLIP_SAVINGS))
            raise ValueError(f"savings: got {saving}, allowed: {allowed}")
    first = next(iter(clips.values()))
    net = with_features(model, first[:1])
    fit_flatten(net, first.shape[1:])
    with torch.inference_mode():
        task = find_task(metric, first[:1], None, lambda: net(first[:1])[0])
        sizes = {saving: size_for(net, first, saving) for saving in savings}
        rows: list[Row] = []
        lead = first[:0]
        for n, (name, clip) in enumerate(clips.items()):
            shown = torch.cat([lead, clip])
            awake = awake_answers(net, shown)
            for saving in savings:
                for way, run in rivals(saving, sizes[saving]).items():
                    found = score(run(net, shown, awake), awake, shown, task, len(lead))
                    rows.append({"clip": name, "saving": str(saving), "way": way, **found})
                    each(f"{name}, {saving} saved: {way}")
            lead = clip[-_LEADS[n % len(_LEADS)] :]
    keys = dict.fromkeys((row["saving"], row["way"]) for row in rows)
    return [_summary(rows, *key) for key in keys], rows


def size_for(net: DrowsyNet, clip: Tensor, saving: Fraction) -> Size | None:
    """The largest size of frames that saves so much; None where the network takes none."""
    channels, height, width = clip.shape[1:]
    told = shadow(net, (channels, height, width))

    def multiplies(size: Size) -> int:
        return network_cost(told, (channels, *size)).multiplies

    return resolution_for(float(saving), multiplies, (height, width))


def _summary(rows: Sequence[Row], saving: str, way: str) -> Row:
    mine = [row for row in rows if (row["saving"], row["way"]) == (saving, way)]
    made: Row = {"saving": saving, "way": way}
    for column in list(mine[0])[3:]:
        figures = [row[column] for row in mine if row[column] is not None]
        made[column] = mean(figures) if figures else None
        if column not in _SHOWN:
            sure = interval(figures) if len(figures) > 1 else None
            made |= {f"{column}_low": sure and sure.low, f"{column}_high": sure and sure.high}
    return made


def clips_table(table: Sequence[Row]) -> str:
    """The means as aligned text, with the intervals of the damage."""
    damage = _damage(table)
    names = {
        damage: METRICS[damage].axis,
        f"worst_{damage}": "worst of four",
        "after_cut": "after a cut",
        **{name: name for name in table[0] if name in METRICS and METRICS[name].higher_is_better},
        "feature_error": "feature error",
        "moving_error": "where it moves",
        **{name: name for name in _SHOWN},
    }
    lines = [["saved", "way", *names.values()]]
    for row in table:
        cells = ["-" if row[name] is None else f"{row[name]:.3f}" for name in names]
        if row[f"{damage}_low"] is not None:
            cells[0] += f" ({row[f'{damage}_low']:.3f} to {row[f'{damage}_high']:.3f})"
        lines.append([row["saving"], row["way"], *cells])
    return align(lines)


def write_clips(
    table: Sequence[Row],
    by_clip: Sequence[Row],
    stem: str | os.PathLike[str],
    title: str,
    about: Mapping[str, Any],
) -> list[Path]:
    """Write the table (``.csv``), every clip's figures (``_clips.csv``), where they come from
    (``.json``) and a picture (``.png``).

    Args:
        table, by_clip: of ``compare_clips``.
        stem: path without an ending.
        title: of the picture.
        about: further facts for the record.
    """
    base = os.fspath(stem)
    paths = [Path(base + ending) for ending in (".csv", "_clips.csv", ".json", ".png")]
    write_text(paths[0], csv_text(table))
    write_text(paths[1], csv_text(by_clip))
    facts = {"clips": list(dict.fromkeys(row["clip"] for row in by_clip)), **about}
    write_json(paths[2], {"title": title, **facts, **provenance()})
    plot_clips(table, _damage(table), paths[3], title)
    return paths


def _damage(table: Sequence[Row]) -> str:
    """The metric by which frames are told to differ from awake: the first column of figures."""
    return list(table[0])[2]
