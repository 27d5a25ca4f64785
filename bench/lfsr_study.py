"""The paper's shift registers against independent bits: rates really given, and accuracy.

    python -m bench.lfsr_study --data FOLDER --out docs/study/lfsr

FOLDER holds CIFAR-10's test images. Writes a table (CSV) and its record (JSON).
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import torch

import drowsy
from drowsy import models
from drowsy.evaluation.measurer import Measurer
from drowsy.files.atomic import write_json, write_text
from drowsy.files.provenance import provenance
from drowsy.files.tables import align
from drowsy.images.folders import load_images
from drowsy.searches.settings import uniform_settings
from drowsy.sleep import SleepSpec, levels, parse_source

SOURCES = {
    "independent bits": "bernoulli",
    "3 bits, 64 engines": "lfsr",
    "3 bits, 1 engine": "lfsr:engines=1",
    "3 bits, 64 engines, one start": "lfsr:seeding=1",
    "8 bits, 64 engines": "lfsr:width=8,taps=8.6.5.4",
    "16 bits, 64 engines": "lfsr:width=16,taps=16.15.13.4",
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()

    info = models.MODELS["caffenet_cifar"]
    data = load_images(args.data, info.preprocess, classes=10, indices=range(args.images))
    rows = []
    for label, source in SOURCES.items():
        net = drowsy.convert(models.load(info.name), source=source)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        measurer = Measurer(net, data.images, data.labels, seeds=args.seeds, batch=100)
        points = measurer.measure(uniform_settings(5, 8))
        drawn = levels(SleepSpec(parse_source(source)), (64, 96, 16, 16), torch.tensor([0, 0]))
        for setting, point in points.items():
            rows.append(
                {
                    "source": label,
                    "asked": setting[0] / 8,
                    "slept": (drawn < setting[0]).float().mean().item(),
                    "top1": point.top1,
                    "top1_std": (point.spread or {}).get("top1"),
                }
            )
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
    )
    write_text(args.out.with_suffix(".csv"), text.getvalue())
    record = {"images": args.images, "seeds": args.seeds, "sources": SOURCES, **provenance()}
    write_json(args.out.with_suffix(".json"), record)
    print(align([tuple(rows[0]), *(tuple(map(_short, row.values())) for row in rows)]))


def _short(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
