"""The knob that ``drowsy.tune`` finds for a network, beside its rivals, on images it never saw.

    python -m bench.tuned --model resnet18 --weights FILE --data FOLDER --tune 0:556 \\
        --report 556:1300 --other FOLDER

Writes MODEL.csv, MODEL.json, MODEL.png into ``--out``: points of the knob and their rivals on the
images of ``--report``, with milliseconds that took turns in one process, on one thread. ``--other``
is a folder of another kind of images, on which nothing is tuned: MODEL_other.csv says whether the
points hold there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import drowsy
from drowsy import models
from drowsy.files.atomic import write_text
from drowsy.files.tables import csv_text
from drowsy.images.folders import load_images
from drowsy.study.knobs import knob_rows, record, rival_rows, table
from drowsy.tuning.evaluate import table as evaluation_table


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=models.MODELS, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tune", type=_range, required=True, help="FIRST:LAST by sorted name")
    parser.add_argument("--report", type=_range, required=True, help="FIRST:LAST, apart from those")
    parser.add_argument("--other", type=Path, help="a folder of another kind of images")
    parser.add_argument("--minutes", type=float, default=8.0, help="that tuning may take, about")
    parser.add_argument("--out", type=Path, default=Path("docs/tune"))
    parser.add_argument("--store", type=Path, help="by which a run that was stopped goes on")
    args = parser.parse_args()

    torch.set_num_threads(1)
    info = models.MODELS[args.model]
    model = models.load(args.model, args.weights)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tuned, reported = (
        load_images(args.data, info.preprocess, classes=info.num_classes, indices=span)
        for span in (args.tune, args.report)
    )
    knob = drowsy.tune(
        model, tuned.images, tuned.labels, minutes=args.minutes, store=args.store, progress=True
    )
    print(knob, flush=True)
    rivals = rival_rows(knob, model, reported.images, reported.labels, asleep=(1, 2, 4))
    rows = [*knob_rows(knob, reported.images, reported.labels), *rivals]
    about = {"model": args.model, "data": args.data.name, "reported": len(reported)}
    title = f"{args.model}, {len(reported):,} images that it was not tuned on"
    record(knob, rows, args.out / args.model, title, about)
    print(table(rows, knob.objective, knob.batch, rule="|"), flush=True)
    if args.other is not None:
        other = load_images(args.other, info.preprocess, classes=info.num_classes)
        held = knob.evaluate(other.images, other.labels)
        write_text(args.out / f"{args.model}_other.csv", csv_text(held))
        print(f"\n{args.other.name}, {len(other)} images\n{evaluation_table(held, knob.objective)}")


def _range(text: str) -> range:
    first, last = map(int, text.split(":"))
    return range(first, last)


if __name__ == "__main__":
    main()
