"""How far fills are from what their sleepers would have put out, layer by layer.

    python -m bench.fill_errors --data FOLDER --weights FILE --out docs/study/fills

FOLDER holds ImageNet's validation images, FILE ResNet-18's weights. Every layer sleeps alone, on
dense inputs. An error is the mean squared one, over the variance of the channel's outputs: at 1 a
fill tells no more than the channel's mean. The weights of ``stencil`` come from other images.
Writes a table (CSV) and its record (JSON).
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
from pathlib import Path

import torch
from torch import Tensor

import drowsy
from drowsy import models
from drowsy.files.atomic import write_json, write_text
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row, align
from drowsy.images.folders import load_images
from drowsy.neuron import sleep
from drowsy.sleep import NEIGHBOUR_FILLS, Grain, SleepSpec, expand_cells, levels, parse_source

SOURCES = ("lattice", "stratified")
# Of k = 8.
THRESHOLDS = (2, 4, 6)
GRAIN = Grain("position")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=16, help="measured on")
    parser.add_argument("--calibration", type=int, nargs="+", default=[8, 64], help="images")
    args = parser.parse_args()

    info, last = models.MODELS["resnet18"], torch.channels_last
    model = models.load(info.name, args.weights)
    model.to(memory_format=last)  # type: ignore[call-overload]
    net = drowsy.convert(model, grain=GRAIN)
    taken = range(max(args.calibration) + args.images)
    pixels = load_images(args.data, info.preprocess, classes=1000, indices=taken).images
    seen = pixels[-args.images :].contiguous(memory_format=last)
    outputs = awake_outputs(net, seen)
    rows = []
    for count in args.calibration:
        drowsy.calibrate_stencils(net, pixels[:count].contiguous(memory_format=last), batch=16)
        for name, y in outputs.items():
            rows += errors(name, y, net.layers[name].stencil, count, count == args.calibration[0])
    write(rows, args)


def awake_outputs(net: drowsy.DrowsyNet, images: Tensor) -> dict[str, Tensor]:
    """Every layer's outputs."""
    found: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, y, name=name: found.update({name: y.clone()}))
        for name, layer in net.layers.items()
    ]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    return found


def errors(name: str, y: Tensor, table: Tensor | None, count: int, every: bool) -> list[Row]:
    """Rows of one layer: fills that need no calibration too where ``every`` is asked for."""
    n, channels, height, width = y.shape
    shape = (n, channels, height, width)
    apart = (y - y.mean((0, 2, 3), keepdim=True)).double()
    rows: list[Row] = []
    for source in SOURCES:
        drawn = levels(SleepSpec(parse_source(source), GRAIN), shape, torch.tensor([0, 0]))
        for j in THRESHOLDS:
            asleep = expand_cells(drawn < j, shape, GRAIN)
            for fill in NEIGHBOUR_FILLS if every else ("stencil",):
                slept = sleep(y, drawn, j, 1.0, GRAIN, fill, table)
                wrong = (slept - y).double()[asleep].square().sum()
                rows.append(
                    {
                        "layer": name,
                        "source": source,
                        "rate": j / 8,
                        "fill": f"stencil, {count} images" if fill == "stencil" else fill,
                        "error": (wrong / apart[asleep].square().sum()).item(),
                    }
                )
    return rows


def write(rows: list[Row], args: argparse.Namespace) -> None:
    """Write the table and its record; print means over the layers."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "error": f"{row['error']:.4f}"} for row in rows)
    write_text(args.out.with_suffix(".csv"), text.getvalue())
    record = {"images": args.images, "calibration_images": args.calibration, **provenance()}
    write_json(args.out.with_suffix(".json"), record)
    fills = list(dict.fromkeys(row["fill"] for row in rows))
    lines = []
    for source in SOURCES:
        for j in THRESHOLDS:
            line = [source, f"{j}/8"]
            for fill in fills:
                key = (source, j / 8, fill)
                mine = [r["error"] for r in rows if (r["source"], r["rate"], r["fill"]) == key]
                line.append(f"{statistics.fmean(mine):.3f}")
            lines.append(line)
    print(align([["source", "rate", *map(str, fills)], *lines]))


if __name__ == "__main__":
    main()
