"""What it costs that sleep acts on convolutions' own outputs and not on neurons.

    python -m bench.bare_outputs --model resnet18 --weights FILE --data FOLDER --out docs/study/bare

A neuron sleeps behind its batch norm and activation. Where ``convert`` cannot find out what follows
a convolution, layers sleep on what they can compute, and the model's own code applies the rest to
that. Here both are known and layers are made to do without: all of them sleep at one rate on

- ``neuron``: outputs of the activation, as ``convert`` has it;
- ``normed``: outputs of the norm;
- ``convolution``: outputs of the convolution.

Writes a table (CSV, ``MODEL.csv``) and its record (JSON). A cell is a mean over seeds. Its interval
(95%) is for the choice of the images: Wilson's, for as many draws as there are images; of a cost,
the normal one for the differences image by image.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import drowsy
from drowsy import models
from drowsy.evaluation.classification import rank
from drowsy.files.atomic import write_json, write_text
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row, align, csv_text
from drowsy.images.folders import load_images
from drowsy.network.known import KnownGraph
from drowsy.network.norms import norm_at_heart

# The paper's sleepers with both of its fills, and what the README recommends.
SLEEPS = (
    ("bernoulli", "neuron", "zero"),
    ("bernoulli", "neuron", "rescale"),
    ("fovea", "position", "interpolate"),
)
RATES = (1 / 4, 1 / 2)
WAYS = ("neuron", "normed", "convolution")
METRICS = ("top1", "top5", "agreement")
_BATCH = 50
# Of the normal distribution, two-sided 95%.
_Z = 1.959964


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=models.MODELS, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()

    info = models.MODELS[args.model]
    model = models.load(args.model, args.weights)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = load_images(
        args.data, info.preprocess, classes=info.num_classes, indices=range(args.images)
    )
    assert data.labels is not None
    rows = measured(model, data.images, data.labels, args.seeds)
    path = args.out / f"{args.model}.csv"
    write_text(path, csv_text(rows))
    facts = {"model": args.model, "images": args.images, "seeds": args.seeds}
    write_json(path.with_suffix(".json"), {**facts, **provenance()})
    print(align([list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]))


def measured(model: nn.Module, images: Tensor, labels: Tensor, seeds: Sequence[int]) -> list[Row]:
    """A row for the network awake, then one for every sleep, rate and way.

    Raises:
        ValueError: a layer whose norm and activation are one module.
        AssertionError: at rate 0 the network is changed by what its layers are made to do without.
    """
    awake = logits_of(model, images)
    rows = [_row(("none", "none", "none"), 0.0, "neuron", Answers.of([awake], awake, labels), None)]
    for source, grain, fill in SLEEPS:
        found = {}
        for way in WAYS:
            net = drowsy.convert(model, images[:1], source=source, grain=grain, fill=fill)
            act_on(net, way)
            torch.testing.assert_close(logits_of(net, images[:1]), awake[:1], rtol=1e-3, atol=1e-3)
            for rate in RATES:
                net.set(rate)
                asleep = []
                for seed in seeds:
                    net.reseed(seed)
                    asleep.append(logits_of(net, images))
                found[rate, way] = Answers.of(asleep, awake, labels)
        for (rate, way), answers in found.items():
            rows.append(_row((source, grain, fill), rate, way, answers, found[rate, "neuron"]))
    return rows


def act_on(net: drowsy.DrowsyNet, way: str) -> None:
    """Let sleep act on these outputs, one of ``WAYS``; the model's own code computes the rest.

    Args:
        net: as ``convert`` made it, compared with its model.
        way: one of ``WAYS``.

    Raises:
        ValueError: ``normed`` for a layer whose norm applies its activation itself.
    """
    if way == "neuron":
        return
    for name, layer in net.layers.items():
        norm = layer.norm if way == "normed" else None
        if norm is None:
            layer.absorb(None, "none", None)
            continue
        heart = norm_at_heart(norm)
        assert heart is not None
        assert layer.tail is not None
        if heart.activation != "none":
            raise ValueError(f"net: {name} has a norm that applies {heart.activation} itself")
        # Of a tail the norm is the first.
        layer.absorb(norm, "none", (layer.tail[0], None))
    # Its nodes tell of no norms and activations, which layers were to compute.
    net.known = KnownGraph(net.model, None, f"layers are made to sleep on outputs of the {way}")


@torch.inference_mode()
def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """``[N, C, H, W]`` -> ``[N, classes]``."""
    return torch.cat([network(batch) for batch in images.split(_BATCH)])


@dataclass(frozen=True)
class Answers:
    """Of each image, in how many of the seeds it was classified so: ``[N]`` each, from 0 to 1."""

    top1: Tensor
    top5: Tensor
    agreement: Tensor

    @classmethod
    def of(cls, asleep: Sequence[Tensor], awake: Tensor, labels: Tensor) -> Answers:
        """By the logits of each seed, and those of the network awake."""
        places = torch.stack([rank(logits, labels) for logits in asleep])
        theirs = torch.stack([rank(logits, awake.argmax(1)) for logits in asleep])
        return cls(*(each.double().mean(0) for each in (places < 1, places < 5, theirs < 1)))


def wilson(share: float, draws: int) -> tuple[float, float]:
    """Wilson's 95% interval of a probability by a share of so many draws."""
    middle = (share + _Z**2 / (2 * draws)) / (1 + _Z**2 / draws)
    spread = math.sqrt(share * (1 - share) / draws + (_Z / (2 * draws)) ** 2)
    half = _Z * spread / (1 + _Z**2 / draws)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _row(
    sleep: tuple[str, str, str], rate: float, way: str, answers: Answers, neuron: Answers | None
) -> Row:
    """Shares with intervals, and costs (what sleep on neurons has more) with half-widths, in %."""
    row: Row = dict(zip(("source", "grain", "fill"), sleep, strict=True))
    row |= {"rate": rate, "acts_on": way}
    for metric in METRICS:
        mine: Tensor = getattr(answers, metric)
        share = mine.mean().item()
        low, high = wilson(share, len(mine))
        lost = None if neuron is None else getattr(neuron, metric) - mine
        row |= {
            metric: 100 * share,
            f"{metric}_low": 100 * low,
            f"{metric}_high": 100 * high,
            f"{metric}_cost": None if lost is None else 100 * lost.mean().item(),
            f"{metric}_cost_error": None
            if lost is None
            else 100 * _Z * lost.std().item() / math.sqrt(len(lost)),
        }
    return row


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
