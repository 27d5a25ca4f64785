"""What ``tune`` makes of the five classifiers, beside each of its levers alone, by multiplications.

    python -m bench.tune_study --data DATA --weights WEIGHTS --out docs/study/tune [NETWORK ...]

At 25, 50 and 75% saved: the point of ``tune`` with all levers, with the view alone and with sleep
alone, and the two plain rivals, a smaller image and its middle at full resolution. All are chosen
on the same search images and reported on others, three seeds of sleep maps; differences are paired,
image by image, with 95% intervals. The same points then run on photographs that are framed tightly,
on which nothing was tuned.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import drowsy
from drowsy import models
from drowsy.evaluation.intervals import paired
from drowsy.evaluation.store import Store
from drowsy.files.atomic import write_json, write_text
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row, csv_text
from drowsy.images.folders import load_images
from drowsy.images.view import View
from drowsy.knob.point import OperatingPoint
from drowsy.tuning import clock
from drowsy.tuning.conditions import Conditions
from drowsy.tuning.knob import Knob
from drowsy.tuning.workbench import Operation, Workbench

SAVINGS = (0.25, 0.5, 0.75)
SEEDS = (0, 1, 2)
LEVERS: dict[str, Any] = {"tune": ("view", "sleep"), "view": ["view"], "sleep": ["sleep"]}
IMAGENET = {"calibration": range(256), "search": range(256, 556), "report": range(556, 1300)}
CIFAR = {**IMAGENET, "report": range(1000, 2000)}
NETWORKS = {
    "caffenet_cifar": ("cifar10_test", CIFAR),
    "cifar_resnet56": ("cifar10_test", CIFAR),
    "squeezenet1_1": ("imagenet_val_1300", IMAGENET),
    "resnet18": ("imagenet_val_1300", IMAGENET),
    "resnet50": ("imagenet_val_1300", IMAGENET),
}


def study(
    name: str, data: Path, weights: Path, minutes: float, folder: Path, kinds: Sequence[str]
) -> list[Row]:
    """Rows of one network; results go to ``folder``, where a run resumes."""
    dataset, splits = NETWORKS[name]
    info = models.MODELS[name]
    path = weights / f"{name}.safetensors"
    model = models.load(name, path) if path.exists() else models.load(name)
    last = max(span.stop for span in splits.values())
    found = load_images(data / dataset, info.preprocess, indices=range(last))
    store = folder / f"{name}.sqlite"
    knobs = {
        kind: drowsy.tune(
            model,
            found.images,
            found.labels,
            levers=levers,
            cost="macs",
            minutes=minutes,
            splits=splits,
            seeds=SEEDS,
            store=store,
        )
        for kind, levers in LEVERS.items()
        if kind in kinds
    }
    for kind, knob in knobs.items():
        knob.save(folder / f"{name}-{kind}.drowsy")
    with Store(store) as opened:
        conditions = Conditions(seeds=SEEDS, mirrored=True, store=opened)
        bench = Workbench(model, found.images, found.labels, splits, conditions)
        rows = list(_rows(bench, knobs))
    framed = data / "framed_500"
    if dataset == "imagenet_val_1300" and framed.exists():
        others = load_images(framed, info.preprocess)
        _add_framed(rows, model, knobs, bench, others.images, others.labels)
    return [{"network": name, **row} for row in rows]


def _rows(bench: Workbench, knobs: dict[str, Knob]) -> Iterator[Row]:
    awake = bench.awake_at(View.whole(bench.full))
    reference = bench.values(awake)
    for saving in SAVINGS:
        operations = {kind: operation_at(bench, knob, saving) for kind, knob in knobs.items()}
        size = bench.resolution_for(saving)
        if size is not None:
            operations["resolution"] = bench.awake_at(bench.scaled(size))
            operations["crop"] = bench.awake_at(bench.cropped(size))
        values = {kind: bench.values(each) for kind, each in operations.items() if each}
        top5 = bench.measure(awake).top5 or 0.0
        for kind, operation in operations.items():
            row: Row = {"saving": saving, "method": kind}
            if operation is None:
                yield row | dict.fromkeys(_COLUMNS)
                continue
            point = bench.measure(operation)
            lost = paired(reference, values[kind])
            against = paired(values["tune"], values[kind]) if "tune" in values else None
            yield row | {
                "saving_reached": operation.saving,
                "setting": _told(bench, operation),
                "top1_lost": 100 * lost.mean,
                "low": 100 * lost.low,
                "high": 100 * lost.high,
                "top5_lost": 100 * (top5 - (point.top5 or 0.0)),
                "tune_gains": against and 100 * against.mean,
                "tune_gains_low": against and 100 * against.low,
                "tune_gains_high": against and 100 * against.high,
            }


_COLUMNS = (
    "saving_reached", "setting", "top1_lost", "low", "high", "top5_lost",
    "tune_gains", "tune_gains_low", "tune_gains_high",
)  # fmt: skip


def chosen_at(knob: Knob, saving: float) -> OperatingPoint | None:
    """The point that the search found best at a saving: the first one that saves as much."""
    reach = [p for p in knob.contents.points if p.saving >= saving - 1e-9]
    return min(reach, key=lambda point: point.saving, default=None)


def operation_at(bench: Workbench, knob: Knob, saving: float) -> Operation | None:
    """What a knob's point is on a workbench that knows its results."""
    point = chosen_at(knob, saving)
    if point is None:
        return None
    view = point.view or View.whole(bench.full)
    thresholds = point.schedule.thresholds()
    if not any(thresholds.values()):
        return bench.awake_at(view)
    recipe, corrections = knob.contents.recipe, knob.contents.calibrations.get(None)
    net = bench.net(recipe)
    setting = tuple(thresholds[layer] for layer in net.layers)
    corrected = corrections is not None and corrections.points.get(setting)
    correction = recipe.correction if corrected else "none"
    return Operation(net, view, setting, point.saving, correction)


def _told(bench: Workbench, operation: Operation) -> str:
    share = bench.asleep(operation.net, operation.view.size, operation.setting)
    return f"{operation.view}" + (f", {share:.0%} asleep" if share else "")


def _add_framed(
    rows: list[Row],
    model: nn.Module,
    knobs: dict[str, Knob],
    bench: Workbench,
    images: Tensor,
    labels: Tensor | None,
) -> None:
    """The same points on other photographs, by the same seeds, which nothing was tuned on."""
    assert labels is not None

    def right(run: Any) -> Tensor:
        with torch.inference_mode():
            return torch.cat([
                (run(x).argmax(1) == y).double()
                for x, y in zip(images.split(50), labels.split(50), strict=True)
            ])  # fmt: skip

    reference = right(model)
    for row in rows:
        if row["method"] in knobs:
            knob = knobs[row["method"]]
            point = chosen_at(knob, row["saving"])
            if point is None:
                continue
            each = []
            with knob.at(point):
                for seed in SEEDS[:1] if point.nobody_sleeps else SEEDS:
                    knob.reseed(seed)
                    each.append(right(knob))
            values = torch.stack(each).mean(0)
        else:
            size = bench.resolution_for(row["saving"])
            assert size is not None
            view = bench.scaled(size) if row["method"] == "resolution" else bench.cropped(size)
            values = right(lambda x, view=view: bench.dense(view(x)))
        lost = paired(reference.numpy(), values.numpy())
        row |= {"framed_lost": 100 * lost.mean, "framed_low": 100 * lost.low}
        row |= {"framed_high": 100 * lost.high}


def stop_the_clock() -> None:
    """Minutes decide how much is searched; a slow machine leaves nothing out of a record."""
    clock.now = lambda: 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("tune_study"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kinds", nargs="+", choices=list(LEVERS), default=list(LEVERS))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    stop_the_clock()
    for name in args.networks:
        rows = study(name, args.data, args.weights, args.minutes, args.work, args.kinds)
        columns = dict.fromkeys(key for row in rows for key in row)
        rows = [{key: row.get(key) for key in columns} for row in rows]
        write_text(args.out / f"{name}.csv", csv_text(rows))
        about = {"network": name, "minutes": args.minutes, "seeds": SEEDS, **provenance()}
        write_json(args.out / f"{name}.json", about)
        print(csv_text(rows))


if __name__ == "__main__":
    main()
