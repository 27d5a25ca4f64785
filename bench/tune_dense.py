"""What ``tune`` makes of networks whose outputs cover the picture, beside a smaller picture.

    python -m bench.tune_dense --root ROOT --out docs/study/tune [NETWORK ...]

Super-resolution, segmentation and boxes of faces (``bench.dense_networks``), at 25 and 50% of the
multiplications, by ``tune`` with its defaults. Half of the images are searched on and the others
are reported on: few, so that intervals are wide and told.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import drowsy
from bench.dense_networks import NETWORKS, VOID, load
from drowsy.evaluation.intervals import interval, paired
from drowsy.evaluation.store import Store
from drowsy.files.atomic import write_json, write_text
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row, csv_text
from drowsy.images.view import View
from drowsy.tuning.conditions import Conditions
from drowsy.tuning.workbench import Workbench

SAVINGS = (0.25, 0.5)
SEEDS = (0, 1, 2)


def study(name: str, root: Path, minutes: float, folder: Path) -> list[Row]:
    """Rows of one network; results go to ``folder``, where a run resumes."""
    network = load(name, root)
    first = len(network.calibration)
    order = torch.randperm(len(network.images), generator=torch.Generator().manual_seed(0))
    images = torch.cat([network.calibration, network.images[order]])
    half = first + (len(network.images) + 1) // 2
    splits = {
        "calibration": range(first),
        "search": range(first, half),
        "report": range(half, len(images)),
    }
    labels = _after(first, network.targets, order)
    store = folder / f"{name}.sqlite"
    knob = drowsy.tune(
        network.model, images, labels, metric=network.metric, cost="macs", minutes=minutes,
        splits=splits, seeds=SEEDS, store=store,
    )  # fmt: skip
    knob.save(folder / f"{name}.drowsy")
    print(knob)
    rows = []
    with Store(store) as opened:
        conditions = Conditions(seeds=SEEDS, store=opened)
        bench = Workbench(network.model, images, labels, splits, conditions, task=network.metric)
        awake = bench.values(bench.awake_at(View.whole(bench.full)))
        metric = knob.objective
        base: Row = {"network": name, "metric": metric, "awake": interval(awake).mean}
        for saving in SAVINGS:
            reach = [p for p in knob.contents.points if p.saving >= saving - 1e-9]
            point = min(reach, key=lambda each: each.saving, default=None)
            if point is not None and point.loss is not None and point.interval is not None:
                rows.append(base | {
                    "saving": saving, "method": "tune", "setting": knob.describe(point),
                    "figure": point.figure(metric), "lost": point.loss,
                    "low": point.interval[0], "high": point.interval[1],
                })  # fmt: skip
            size = bench.resolution_for(saving)
            if size is not None:
                values = bench.values(bench.awake_at(bench.scaled(size)))
                lost = paired(awake, values)
                rows.append(base | {
                    "saving": saving, "method": "resolution", "setting": str(bench.scaled(size)),
                    "figure": interval(values).mean, "lost": lost.mean,
                    "low": lost.low, "high": lost.high,
                })  # fmt: skip
    return rows


def _after(count: int, targets: Tensor | None, order: Tensor) -> Tensor | None:
    """Targets behind those of the images to calibrate on, which do not count."""
    if targets is None:
        return None
    void = 0 if targets.is_floating_point() else VOID
    return torch.cat([torch.full_like(targets[:1], void).expand(count, *targets.shape[1:]),
                      targets[order]])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("tune_study"))
    parser.add_argument("--minutes", type=float, default=10.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.networks:
        rows = study(name, args.root, args.minutes, args.work)
        write_text(args.out / f"{name}.csv", csv_text(rows))
        about = {"network": name, "minutes": args.minutes, "seeds": SEEDS, **provenance()}
        write_json(args.out / f"{name}.json", about)
        print(csv_text(rows))


if __name__ == "__main__":
    main()
