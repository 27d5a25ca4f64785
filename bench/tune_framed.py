"""What views ``tune`` chooses by photographs that are framed tightly, by multiplications.

    python -m bench.tune_framed --data DATA --weights WEIGHTS --out docs/study/tune [NETWORK ...]

Of ``framed_500`` every second photograph is calibrated and searched on, and the others are reported
on, at 25, 50 and 75% saved, beside a smaller image and the view that was tuned on ImageNet's
validation images (as recorded by ``bench.tune_study``). Differences from awake are image by image.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

import torch

import drowsy
from bench.tune_study import NETWORKS, SAVINGS, chosen_at, stop_the_clock
from drowsy import models
from drowsy.evaluation.intervals import paired
from drowsy.files.atomic import write_json, write_text
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row, csv_text
from drowsy.images.folders import load_images
from drowsy.images.view import View
from drowsy.tuning.conditions import Conditions
from drowsy.tuning.workbench import Operation, Workbench

PHOTOGRAPHS = 500
SPLITS = {"calibration": range(50), "search": range(50, 250), "report": range(250, 500)}
ON_IMAGENET = [name for name, (data, _) in NETWORKS.items() if data == "imagenet_val_1300"]


def study(name: str, data: Path, weights: Path, recorded: Path) -> list[Row]:
    """Rows of one network."""
    info = models.MODELS[name]
    model = models.load(name, weights / f"{name}.safetensors")
    found = load_images(data / "framed_500", info.preprocess, classes=info.num_classes)
    assert found.labels is not None
    # Neighbours are of one class.
    order = torch.cat([torch.arange(n, PHOTOGRAPHS, 2) for n in range(2)])
    images, labels = found.images[order], found.labels[order]
    knob = drowsy.tune(model, images, labels, levers="view", cost="macs", splits=SPLITS)
    bench = Workbench(model, images, labels, SPLITS, Conditions())
    awake = bench.values(bench.awake_at(View.whole(bench.full)))
    rows: list[Row] = []
    for saving in SAVINGS:
        operations: dict[str, Operation] = {}
        point = chosen_at(knob, saving)
        if point is not None:
            operations["tuned here"] = bench.awake_at(point.view or View.whole(bench.full))
        size = bench.resolution_for(saving)
        if size is not None:
            operations["resolution"] = bench.awake_at(bench.scaled(size))
        operations["tuned on ImageNet"] = bench.awake_at(_recorded(bench, recorded / name, saving))
        for method, operation in operations.items():
            lost = paired(awake, bench.values(operation))
            rows.append(
                {
                    "network": name,
                    "saving": saving,
                    "method": method,
                    "saving_reached": operation.saving,
                    "setting": str(operation.view),
                    "top1_lost": 100 * lost.mean,
                    "low": 100 * lost.low,
                    "high": 100 * lost.high,
                }
            )
    return rows


def _recorded(bench: Workbench, stem: Path, saving: float) -> View:
    """The view that ``bench.tune_study`` recorded for a saving."""
    with stem.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["method"] == "view"]
    told = next(row["setting"] for row in rows if float(row["saving"]) == saving)
    parts = re.fullmatch(r"(\d+) px(?: of the middle ([\d.]+))?", told)
    assert parts is not None, told
    size = int(parts[1])
    return View.of(bench.full, (size, size), float(parts[2] or 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=ON_IMAGENET)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    stop_the_clock()
    rows = [row for name in args.networks for row in study(name, args.data, args.weights, args.out)]
    write_text(args.out / "framed_tuned.csv", csv_text(rows))
    write_json(args.out / "framed_tuned.json", {"networks": args.networks, **provenance()})
    print(csv_text(rows))


if __name__ == "__main__":
    main()
