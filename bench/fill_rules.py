"""Which fill suits what reads the sleepers: max-pooling, normalisation, a concatenation, a sum, ...

    python -m bench.fill_rules --model resnet18 --weights FILE --data FOLDER --out docs/study/fills

Layers are sorted by what follows them (behind their activation); all layers of one kind sleep at
half their neurons while the others are awake, with every fill, with and without the affine
correction (``drowsy.calibrate``). Writes a table (CSV, ``rules_MODEL.csv``) and its record (JSON).
"""

from __future__ import annotations

import argparse
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import drowsy
from drowsy import models
from drowsy.correction.corrected import Corrected
from drowsy.evaluation.measurer import Measurer
from drowsy.files.atomic import write_json, write_text
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row, csv_text
from drowsy.files.tables import align as align_columns
from drowsy.graph.nodes import activation_name, readers
from drowsy.images.folders import load_images
from drowsy.sleep import FILLS

# The paper's sleepers, and those that buy time.
SLEEPS = (("bernoulli", "neuron"), ("lattice", "position"))
RATE = 1 / 2
_KINDS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("max-pooling", (nn.MaxPool2d, F.max_pool2d, torch.max_pool2d)),
    ("average pooling", (nn.AvgPool2d, nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d, torch.mean)),
    ("normalisation", (nn.LocalResponseNorm, nn.BatchNorm2d)),
    ("concatenation", (torch.cat,)),
    ("addition", (operator.add, operator.iadd, torch.add)),
    ("convolution", (drowsy.DrowsyConv2d, nn.Conv2d)),
    ("linear layer", (nn.Linear,)),
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=models.MODELS, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=300, help="measured on")
    parser.add_argument("--calibration", type=int, default=128, help="other images, before those")
    args = parser.parse_args()

    info = models.MODELS[args.model]
    taken = range(args.calibration + args.images)
    data = load_images(args.data, info.preprocess, classes=info.num_classes, indices=taken)
    images = data.images.contiguous(memory_format=torch.channels_last)
    assert data.labels is not None
    rows: list[Row] = []
    for source, grain in SLEEPS:
        model = models.load(args.model, args.weights)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        net = drowsy.convert(model, source=source, grain=grain)
        rows += measured(net, images, data.labels, args.calibration)
    path = args.out / f"rules_{args.model}.csv"
    write_text(path, csv_text(rows))
    facts = {"model": args.model, "images": args.images, "calibration_images": args.calibration}
    write_json(path.with_suffix(".json"), {**facts, "rate": RATE, **provenance()})
    shown = ["source", "follows", "layers", "fill", "correction", "top1_lost", "divergence"]
    print(align_columns([shown, *([_text(row[key]) for key in shown] for row in rows)]))


def measured(net: drowsy.DrowsyNet, images: Tensor, labels: Tensor, calibration: int) -> list[Row]:
    """A row for every kind of reader, fill and correction; the first images calibrate."""
    seen, images, labels = images[:calibration], images[calibration:], labels[calibration:]
    sleep = next(iter(net.layers.values())).sleep
    kinds = followers(net)
    drowsy.calibrate_stencils(net, seen)
    rows: list[Row] = []
    for correction, engine in (("none", None), ("affine", Corrected(seen))):
        for fill in FILLS:
            net.set(0, fill=fill)
            measurer = Measurer(net, images, labels, engine=engine)
            dense = measurer.measure([(0,) * len(kinds)]).popitem()[1]
            assert dense.top1 is not None
            for kind in dict.fromkeys(kinds.values()):
                setting = tuple(round(RATE * net.k) * (each == kind) for each in kinds.values())
                point = measurer.measure([setting])[setting]
                assert point.top1 is not None
                rows.append(
                    {
                        "source": str(sleep.source.name),
                        "grain": str(sleep.grain),
                        "follows": kind,
                        "layers": sum(map(bool, setting)),
                        "saving": point.saving,
                        "fill": fill,
                        "correction": correction,
                        "top1_lost": 100 * (dense.top1 - point.top1),
                        "divergence": point.divergence,
                    }
                )
    return rows


def followers(net: drowsy.DrowsyNet) -> dict[str, str]:
    """What follows each layer, behind activations; where several do, all of them."""
    modules = net.parts

    def behind(node: fx.Node) -> list[fx.Node]:
        return readers(node, lambda user: activation_name(user, modules))

    found: dict[str, dict[str, None]] = {name: {} for name in net.layers}
    for node in net.need_graph("a fill rule").nodes:
        for user in behind(node) if node.target in found else ():
            kind = _kind(user, modules)
            if kind == "max-pooling" and any(
                _kind(then, modules) == "normalisation" for then in behind(user)
            ):
                kind += " then normalisation"
            found[str(node.target)][kind] = None
    return {name: ", ".join(sorted(kinds)) for name, kinds in found.items()}


def _kind(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    module = modules[str(node.target)] if node.op == "call_module" else None
    for name, types in _KINDS:
        if node.target in types or type(module) in types:
            return name
    return "other"


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
