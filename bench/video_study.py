"""Remembering against its rivals on clips, as tables and pictures.

    python -m bench.video_study ROOT [--networks resnet18 espnet] [--frames 24]

``ROOT`` has ``data`` and ``weights``, as told in ``bench.dense_networks``. Of every clip the middle
frames are taken. Writes ``docs/study/video/NETWORK.csv`` (means over clips), ``NETWORK_clips.csv``,
``NETWORK.json`` (where it comes from; of classifiers also frames after a cut until steady) and
``NETWORK.png``.

ESPNet, which gives every pixel of a street a class, is shown the two clips that have streets in
them, and, as ``espnet_made``, clips made of four of CamVid's test images: a camera that shakes,
pans or zooms over one, or a piece of it that crosses it.
"""

from __future__ import annotations

import argparse
import itertools
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from bench import dense_networks
from drowsy import models
from drowsy.comparison.clips import clips_table, compare_clips, write_clips
from drowsy.evaluation.metrics import Task
from drowsy.files.tables import Row
from drowsy.images.folders import normalise
from drowsy.images.frames import read_frames
from drowsy.images.preprocess import Preprocess
from drowsy.images.scaling import crop_images
from drowsy.network.net import DrowsyNet
from drowsy.video.motions import moved
from drowsy.video.trial import settling_after_cut, with_features

FOLDER = Path(__file__).parents[1] / "docs" / "study" / "video"
RATES = (Fraction(1, 2), Fraction(3, 4))
LONGEST = 400
STREETS = ("car", "road")
# Pixels of the square that ESPNet is shown, which is as high as CamVid's images.
STREET = 360
# Shares of a side a frame.
SPEED = 0.01
MOTIONS = ("shake", "pan", "zoom", "thing")


def middle(path: Path, preprocess: Preprocess, count: int) -> Tensor:
    """The middle frames of a clip, uint8 ``[T, S, S, 3]``."""
    frames = list(read_frames(path, preprocess, most=LONGEST))
    first = max((len(frames) - count) // 2, 0)
    return torch.stack(frames[first : first + count])


def cuts(net: DrowsyNet, clips: dict[str, Tensor]) -> list[Row]:
    """Frames until steady after cuts from each clip to the next: the median and the most."""
    rows: list[Row] = []
    pairs = list(itertools.pairwise(clips.values()))
    for detect in (True, False):
        for refresh, rate in (("bands", RATES[0]), ("quads", RATES[1]), ("change", RATES[0])):
            frames = [
                settling_after_cut(net, a[-4:], b[:16], refresh, rate, detect=detect)
                for a, b in pairs
            ]
            rows.append(
                {"refresh": refresh, "saving": str(rate), "detector": detect}
                | {"median_frames": median(frames), "most_frames": max(frames)}
            )
    return rows


def classifier(name: str, root: Path, count: int) -> None:
    """The study of a network of the registry."""
    preprocess = models.MODELS[name].preprocess
    paths = sorted(path for path in (root / "data" / "clips").iterdir() if path.is_file())
    clips = {path.stem: normalise(middle(path, preprocess, count), preprocess) for path in paths}
    model = models.load(name, root / "weights" / f"{name}.safetensors")
    net = with_features(model, next(iter(clips.values()))[:1])
    study(name, model, clips, "auto", {"after_a_cut": cuts(net, clips)})


def espnet(root: Path, count: int) -> None:
    """The study of a network that gives every pixel a class, on clips."""
    found = dense_networks.load("espnet", root)
    preprocess = Preprocess(None, STREET, (0.0,) * 3, (1.0,) * 3)
    clips = {}
    for path in sorted((root / "data" / "clips").iterdir()):
        if path.stem in STREETS:
            pixels = middle(path, preprocess, count).permute(0, 3, 1, 2).float()
            clips[path.stem] = torch.stack([dense_networks.street(frame) for frame in pixels])
    study("espnet", found.model, clips, found.metric, {})


def espnet_made(root: Path, count: int) -> None:
    """The same on clips made of images, from all over the set."""
    found = dense_networks.load("espnet", root)
    stills = crop_images(found.images, (STREET, STREET))
    chosen = stills[:: len(stills) // len(MOTIONS)][: len(MOTIONS)]
    clips = {
        motion: moved(image, motion, count, SPEED)
        for image, motion in zip(chosen, MOTIONS, strict=True)
    }
    study("espnet_made", found.model, clips, found.metric, {"speed": SPEED})


STREET_STUDIES = {"espnet": espnet, "espnet_made": espnet_made}


def study(
    name: str, model: nn.Module, clips: dict[str, Tensor], metric: Task | str, about: dict[str, Any]
) -> None:
    """Compare, print and write."""
    table, rows = compare_clips(model, clips, savings=RATES, metric=metric)
    frames = {name: list(clip.shape) for name, clip in clips.items()}
    told = {"frames": frames, **about}
    write_clips(table, rows, FOLDER / name, f"{name}, {len(clips)} clips", told)
    print(clips_table(table), flush=True)


def main() -> None:
    """Every network that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("root", type=Path)
    names = ["resnet18", "resnet50", *STREET_STUDIES]
    parser.add_argument("--networks", nargs="+", default=names)
    parser.add_argument("--frames", type=int, default=24)
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in args.networks:
        if name in STREET_STUDIES:
            STREET_STUDIES[name](args.root, args.frames)
        else:
            classifier(name, args.root, args.frames)


if __name__ == "__main__":
    main()
