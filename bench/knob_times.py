"""Milliseconds of a knob's points beside the model and beside the same thing done by hand.

    python -m bench.knob_times --out bench/results/cpu/knob.json [NETWORK ...]

At 25, 50 and 75% of the multiplications a view, in float32 and in bfloat16: the model as it is, the
model in that format on images scaled by hand, and the knob at that point. The three of a point take
turns in one process; ratios are medians over the turns. Sleep is not among them: what it takes on a
CPU is in ``bench.test_cpu``.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import drowsy
from drowsy import models
from drowsy.evaluation.identity import fingerprint_state
from drowsy.files.atomic import write_json
from drowsy.files.provenance import provenance
from drowsy.files.tables import align
from drowsy.images.view import View
from drowsy.knob.point import OperatingPoint
from drowsy.tuning.conditions import Conditions
from drowsy.tuning.knob import Knob
from drowsy.tuning.knobfile import Contents
from drowsy.tuning.recipe import Sleep
from drowsy.tuning.timing import in_turns
from drowsy.tuning.witness import Witness
from drowsy.tuning.workbench import Workbench

SAVINGS = (0.0, 0.25, 0.5, 0.75)
FORMATS = {None: torch.float32, "bfloat16": torch.bfloat16}


def by_hand(model: nn.Module, size: tuple[int, int], dtype: torch.dtype, images: Tensor) -> Tensor:
    """What a user would write: scaled images through the model in a format."""
    if tuple(images.shape[-2:]) != size:
        images = F.interpolate(images, size, mode="bicubic", antialias=True)
    images = images.to(dtype).contiguous(memory_format=torch.channels_last)
    outputs: Tensor = model(images)
    return outputs.float()


def rows(name: str, batch: int, seconds: float) -> list[dict[str, Any]]:
    """One network at one batch, with the threads that torch has now."""
    model = models.create(name).eval()
    side = models.MODELS[name].preprocess.crop
    images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    knob = knob_of_views(model, images, SAVINGS, tuple(FORMATS))
    last: nn.Module = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    own = {None: last, "bfloat16": copy.deepcopy(last).bfloat16()}
    points, found = knob.contents.points, []
    for point in points:
        each = point.number_format
        size = (side, side) if point.view is None else point.view.size
        runs: dict[str, Callable[[], object]] = {
            "model": partial(model, images),
            "hand": partial(by_hand, own[each], size, FORMATS[each], images),
            "knob": partial(knob, images),
        }
        knob.set(point)
        taken = in_turns(runs, seconds / len(points))
        found.append({
            "network": name, "batch": batch, "threads": torch.get_num_threads(),
            "point": knob.describe(point), "saving": point.saving,
            "model_ms": statistics.median(taken["model"]),
            "knob_ms": statistics.median(taken["knob"]),
            "knob_over_model": _quartiles(taken["knob"], taken["model"]),
            "knob_over_hand": _quartiles(taken["knob"], taken["hand"]),
        })  # fmt: skip
    return found


def knob_of_views(
    model: nn.Module,
    images: Tensor,
    savings: Sequence[float],
    formats: Sequence[str | None] = (None,),
) -> Knob:
    """A knob whose points are smaller images, as ``tune`` would offer them; losses are made up.

    Args:
        images: a batch ``[N, C, H, W]`` at full resolution.
        savings: of multiplications, a point each in each of the formats; 0 first.
    """
    splits = {"search": range(1), "report": range(1, 2)}
    bench = Workbench(model, torch.cat([images, images])[:2], None, splits, Conditions())
    schedule, points = drowsy.convert(model).schedule, []
    for saving in savings:
        size = bench.resolution_for(saving) or bench.full
        loss = saving**2 / 5
        points += [
            OperatingPoint(
                schedule, saving, agreement=1 - loss, loss=loss, interval=(loss, loss),
                latency_ms=0.0, number_format=each,
                view=None if size == bench.full else View.of(bench.full, size),
            )
            for each in formats
        ]  # fmt: skip
    image = (images.shape[1], images.shape[2], images.shape[3])
    return Knob(model, Contents(
        fingerprint_state(model.state_dict()), Witness(), image, Sleep("none"),
        tuple(points), "agreement", "macs", len(images), False,
    ))  # fmt: skip


def _quartiles(these: list[float], those: list[float]) -> list[float]:
    return statistics.quantiles([a / b for a, b in zip(these, those, strict=True)], n=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["squeezenet1_1", "resnet18", "resnet50"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=12.0, help="a network, batch and threads")
    args = parser.parse_args()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name in args.networks:
            for batch in (1, 8):
                found += rows(name, batch, args.seconds)
                write_json(args.out, {"load": os.getloadavg()[0], "rows": found, **provenance()})
    table = [["network", "batch", "threads", "point", "ms", "over the model", "over by hand"]]
    table += [
        [
            row["network"], str(row["batch"]), str(row["threads"]), row["point"],
            f"{row['knob_ms']:.2f}", f"{row['knob_over_model'][1]:.3f}",
            f"{row['knob_over_hand'][1]:.3f}",
        ]
        for row in found
    ]  # fmt: skip
    print(align(table))


if __name__ == "__main__":
    main()
