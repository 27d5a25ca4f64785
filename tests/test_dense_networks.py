"""The dense networks do awake what was published of them, and stay measurable asleep."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import drowsy
from bench.dense_networks import (
    NETWORKS,
    VOID,
    CarnM,
    UltraFace,
    enlarged_where_flat,
    halved,
    load,
)
from drowsy.evaluation.detection import Detections
from drowsy.evaluation.restoration import restoration
from drowsy.evaluation.tasks import find_task
from drowsy.models.checkpoint import load_weights

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

# CARN-M's on Set14, luma, in the paper's table (Ahn et al., ECCV 2018), and bicubic scaling's.
PUBLISHED_DB, BICUBIC_DB = 33.26, 30.24


@torch.inference_mode()
def test_decibels_on_set14(data_root: Path) -> None:
    model = CarnM().eval()
    load_weights(model, data_root / "weights" / "carn_m_x2.safetensors")
    wholes, halves, scaled = [], [], []
    for path in sorted((data_root / "data" / "sr_set14").glob("*.png")):
        # The middle stands for the whole, which takes a minute.
        picture = Image.open(path).convert("RGB")
        left, top = ((size - 192) // 2 for size in picture.size)
        middle = picture.crop((left, top, left + 192, top + 192))
        whole, half = halved(middle)
        again = middle.resize((96, 96), Image.Resampling.BICUBIC)
        wholes.append(whole)
        halves.append(half)
        scaled.append(halved(again.resize((192, 192), Image.Resampling.BICUBIC))[0])
    whole, half, plain = map(torch.stack, (wholes, halves, scaled))
    task = restoration(1, luma=True, border=2)
    ours, theirs = (
        task.count(output, output, whole).rates()["psnr"] or 0.0
        for output in (model(half).clamp(0, 1), plain)
    )
    assert len(whole) == 14
    assert ours == pytest.approx(PUBLISHED_DB, abs=0.15)
    assert theirs == pytest.approx(BICUBIC_DB, abs=0.05)


@torch.inference_mode()
def test_overlap_on_streets(data_root: Path) -> None:
    network = load("espnet", data_root)
    table = torch.zeros(12, 12)
    assert network.targets is not None
    for image, labels in zip(network.images, network.targets, strict=True):
        found = network.model(image[None])[0].argmax(0)
        counting = labels != VOID
        cells = labels[counting] * 12 + found[counting]
        table += torch.bincount(cells, minlength=144).view(12, 12)
    right = table.diagonal()[:VOID]
    overlap = right / (table.sum(0)[:VOID] + table.sum(1)[:VOID] - right)
    # Of the whole set at once, as it is published: .587 on every 6th image of CamVid's test set, of
    # which these are every 10th.
    assert float(overlap.mean()) == pytest.approx(0.587, abs=0.01)


def test_flat_tiles_are_enlarged_without_the_network() -> None:
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    # Another tile of each picture is flat.
    images[0, :, :8, 8:16] = 0.25
    images[1, :, 8:, 16:] = 0.75
    found = enlarged_where_flat(images, torch.zeros(2, 3, 32, 48), 1 / 6)
    right = torch.zeros(2, 32, 48, dtype=torch.bool)
    right[0, :16, 16:32] = right[1, 16:, 32:] = True
    assert torch.equal(found.abs().amax(1) > 0, right)
    # Away from its edges what is flat stays as it is.
    assert found[0, :, 4:12, 20:28] == pytest.approx(0.25, abs=1e-5)
    # Of six tiles at least this many.
    assert (enlarged_where_flat(images, torch.zeros(2, 3, 32, 48), 0.2) != 0).float().mean() > 0.3


@torch.inference_mode()
def test_faces(data_root: Path) -> None:
    network = load("ultraface", data_root)
    images = torch.cat([network.calibration, network.images])
    outputs = network.metric.take(network.model(images), images)
    found = [len(boxes) for boxes in Detections(outputs, outputs, None, 0.6).found]
    made = UltraFace(120, 160).eval()
    # For another size anchors lie as densely by its pixels.
    assert made(images[:1, :, ::2, ::2])[0].shape == (1, 3 * 300 + 2 * 80 + 2 * 20 + 3 * 6, 2)
    # As counted by eye on the photographs with few, where none is missed and none is made up.
    assert [found[i] for i in (0, 1, 2, 3, 4, 7, 8, 9)] == [5, 14, 8, 19, 5, 5, 10, 2]


@pytest.mark.parametrize("name", NETWORKS)
def test_each_converts_and_is_measured_by_its_task(name: str, data_root: Path) -> None:
    network = load(name, data_root)
    net = drowsy.convert(network.model)
    images = network.images[:2, :, :48, :64] if name != "ultraface" else network.images[:2]
    net.settle(images[:1])
    assert net.graph is not None
    awake = (0,) * len(net.layers)
    one = tuple(2 if layer == "entry" else 0 for layer in net.layers)
    first = (2, *awake[1:]) if one == awake else one
    evaluator = drowsy.Evaluator(net, images, task=network.metric)
    counts = dict(evaluator.walk([awake, first]))
    damage = network.metric.damage
    assert counts[awake].rates()[damage] == pytest.approx(0, abs=1e-6)
    assert counts[first].rates()[damage] > 1e-4
    found = find_task("auto", images, network.targets, evaluator.outputs)
    assert found.name == network.metric.name
