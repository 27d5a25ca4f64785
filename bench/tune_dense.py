"""What ``tune`` makes of networks whose outputs cover the picture, beside what is simple.

    python -m bench.tune_dense --root ROOT --out docs/study/tune [NETWORK ...]

Super-resolution, segmentation and boxes of faces (``bench.dense_networks``), at 25 and 50% of the
multiplications, by ``tune`` with its defaults. Up to ten images are calibrated on, up to ten
searched on, and the others are reported on: few, so that intervals are wide and told. Where no
image has targets, the parts that they are split into change places, so that each is reported on
once.

Rivals are a smaller picture, and for what restores pictures the bicubically enlarged picture where
it is flattest (``enlarged_where_flat``), with the network only elsewhere. Of this one no more is
counted than the share of the tiles, though a tile's pixels need those around it: it is a bound.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import drowsy
from bench.dense_networks import NETWORKS, VOID, Dense, enlarged_where_flat, load
from bench.tune_study import operation_at, stop_the_clock
from drowsy.evaluation.intervals import interval, paired
from drowsy.evaluation.store import Store
from drowsy.files.atomic import write_json, write_text
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row, csv_text
from drowsy.images.scaling import Size
from drowsy.images.view import View
from drowsy.knob.costs import network_cost
from drowsy.tuning.conditions import Conditions
from drowsy.tuning.knob import Knob
from drowsy.tuning.resolution import resolution_for
from drowsy.tuning.workbench import Workbench

SAVINGS = (0.25, 0.5)
# Images to calibrate on and to search on, at most, and of those with targets half at most.
MOST = 10

Values = Mapping[str, np.ndarray]


class Found(NamedTuple):
    """What a method does at a saving: how, and every metric of every image reported on."""

    saving: float
    method: str
    setting: str
    values: Values


class Part(NamedTuple):
    """Images that a knob is tuned and reported on."""

    images: Tensor
    labels: Tensor | None
    splits: dict[str, range]

    def labels_of(self, split: str) -> Tensor | None:
        """The labels of a split; None where there are none."""
        span = self.splits[split]
        return None if self.labels is None else self.labels[span.start : span.stop]


def study(name: str, root: Path, minutes: float, folder: Path, seeds: tuple[int, ...]) -> list[Row]:
    """Rows of one network; results go to ``folder``, where a run resumes."""
    network = load(name, root)
    awake: list[Values] = []
    found: dict[tuple[float, str], list[Found]] = {}
    for turn, part in enumerate(_parts(network)):
        store = folder / f"{name}-{turn}.sqlite"
        knob = drowsy.tune(
            network.model, part.images, part.labels, metric=network.metric, cost="macs",
            minutes=minutes, splits=part.splits, seeds=seeds, store=store,
        )  # fmt: skip
        knob.save(folder / f"{name}-{turn}.drowsy")
        print(knob)
        with Store(store) as opened:
            conditions = Conditions(seeds=seeds, mirrored=True, store=opened)
            bench = Workbench(
                network.model, part.images, part.labels, part.splits, conditions,
                task=network.metric,
            )  # fmt: skip
            own, each = _measured(network, part, bench, knob)
        awake.append(own)
        for one in each:
            found.setdefault((one.saving, one.method), []).append(one)
    rows = []
    for metric in network.metric.objectives(network.targets is not None):
        for (saving, method), parts in found.items():
            # What only some parts allow is no figure of all images.
            if len(parts) < len(awake):
                continue
            reference, values = (
                np.concatenate([each[metric] for each in these])
                for these in (awake, [one.values for one in parts])
            )
            lost = paired(reference, values)
            rows.append({
                "network": name, "metric": metric, "images": len(reference),
                "awake": interval(reference).mean, "saving": saving, "method": method,
                "setting": " / ".join(dict.fromkeys(one.setting for one in parts)),
                "figure": interval(values).mean,
                "lost": lost.mean, "low": lost.low, "high": lost.high,
            })  # fmt: skip
    return rows


def _parts(network: Dense) -> Iterator[Part]:
    first, count = min(len(network.calibration), MOST), len(network.images)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    # Spread over all of them, as neighbours are of one photograph or street.
    spread = torch.linspace(0, len(network.calibration) - 1, first).long()
    images = torch.cat([network.calibration[spread], network.images[order]])
    last = first + min((count + 1) // 2, MOST)
    splits = {
        "calibration": range(first),
        "search": range(first, last),
        "report": range(last, len(images)),
    }
    labels = _after(first, network.targets, order)
    yield Part(images, labels, splits)
    if network.targets is None:
        for turn in (1, 2):
            yield Part(images.roll(turn * first, 0), None, splits)


def _after(count: int, targets: Tensor | None, order: Tensor) -> Tensor | None:
    """Targets behind those of the images to calibrate on, which do not count."""
    if targets is None:
        return None
    void = 0 if targets.is_floating_point() else VOID
    return torch.cat([torch.full_like(targets[:1], void).expand(count, *targets.shape[1:]),
                      targets[order]])  # fmt: skip


def _measured(
    network: Dense, part: Part, bench: Workbench, knob: Knob
) -> tuple[Values, list[Found]]:
    """Of the images to report on: what the network awake does, and the knob and its rivals."""
    metrics = network.metric.objectives(bench.labelled)

    def values_of(operation: Any) -> Values:
        return {name: bench.values(operation, metric=name) for name in metrics}

    found = []
    for saving in SAVINGS:
        operation = operation_at(bench, knob, saving)
        if operation is not None:
            share = bench.asleep(operation.net, operation.view.size, operation.setting)
            told = (str(operation.view),) if not operation.view.is_whole else ()
            told = (*told, f"{share:.0%} asleep") if share else told
            found.append(Found(saving, "tune", ", ".join(told), values_of(operation)))
        smaller = _smaller(network, bench, saving)
        if smaller is not None:
            found.append(smaller)
        elif (size := bench.resolution_for(saving)) is not None:
            view = bench.scaled(size)
            values = values_of(bench.awake_at(view))
            found.append(Found(saving, "resolution", str(view), values))
        if network.metric.name == "restoration":
            found.append(_bicubic(network, part, saving, metrics))
    return values_of(bench.awake_at(View.whole(bench.full))), found


@torch.inference_mode()
def _smaller(network: Dense, bench: Workbench, saving: float) -> Found | None:
    """A smaller picture for a network that has to be made for its size; None for others."""
    made = network.at
    if made is None:
        return None

    def multiplies(size: Size) -> int:
        net = drowsy.convert(made(size))
        return network_cost(net, (bench.image[0], *size)).convolutions.multiplies

    size = resolution_for(saving, multiplies, bench.full)
    assert size is not None
    view, images, task = bench.scaled(size), bench.images("report"), network.metric
    awake = task.take(network.model(images), images)
    read = task.read(task.take(made(size)(view(images)), images), awake, None)
    metrics = task.objectives(bench.labelled)
    values = {name: task.counting[name](read).numpy() for name in metrics}
    return Found(saving, "resolution", str(view), values)


@torch.inference_mode()
def _bicubic(network: Dense, part: Part, saving: float, metrics: list[str]) -> Found:
    """The network but where the picture is flattest, which is enlarged bicubically there."""
    span = part.splits["report"]
    images = part.images[span.start : span.stop]
    awake = network.model(images)
    outputs = enlarged_where_flat(images, awake, saving)
    counts = network.metric.count(outputs, awake, part.labels_of("report"))
    values = {name: counts.values[name] for name in metrics}
    return Found(saving, "bicubic", f"{saving:.0%} of the tiles", values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("tune_study"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=3, help="how many, of sleep maps reported on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    stop_the_clock()
    for name in args.networks:
        seeds = tuple(range(args.seeds))
        rows = study(name, args.root, args.minutes, args.work, seeds)
        write_text(args.out / f"{name}.csv", csv_text(rows))
        about = {"network": name, "minutes": args.minutes, "seeds": seeds, **provenance()}
        write_json(args.out / f"{name}.json", about)
        print(csv_text(rows))


if __name__ == "__main__":
    main()
