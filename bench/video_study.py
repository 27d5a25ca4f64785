"""Remembering against its rivals on real clips, as a table and a picture.

    python -m bench.video_study --clips FOLDER --weights FOLDER [--networks resnet18 resnet50]

Of every clip the middle frames are taken. Writes ``docs/study/video/NETWORK.csv`` (means over
clips), ``NETWORK_clips.csv``, ``NETWORK.json`` (where it comes from, and frames after a cut until
steady) and ``NETWORK.png``.
"""

from __future__ import annotations

import argparse
import itertools
from fractions import Fraction
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from drowsy import models
from drowsy.files.atomic import write_json, write_text
from drowsy.files.pictures import label_axes, new_figure, save_figure
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row, align, csv_text
from drowsy.images.folders import normalise
from drowsy.images.frames import read_frames
from drowsy.network.net import DrowsyNet
from drowsy.video.trial import compare_clips, settling_after_cut, with_features

FOLDER = Path(__file__).parents[1] / "docs" / "study" / "video"
RATES = (Fraction(1, 2), Fraction(3, 4))
LONGEST = 400
PANELS = (
    ("divergence", "divergence (nats)"),
    ("worst_divergence", "worst of four frames (nats)"),
    ("moving_error", "feature error where it moves"),
)


def middle(path: Path, network: str, count: int) -> Tensor:
    """The middle frames of a clip ``[T, 3, S, S]``, as the network takes them."""
    preprocess = models.MODELS[network].preprocess
    frames = list(read_frames(path, preprocess, most=LONGEST))
    first = max((len(frames) - count) // 2, 0)
    return normalise(torch.stack(frames[first : first + count]), preprocess)


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


def draw(table: list[Row], network: str, path: Path) -> None:
    """Bars of every way at every saving."""
    figure, axes = new_figure(len(PANELS))
    for axis, (column, title) in zip(axes, PANELS, strict=True):
        rows = [row for row in table if row["way"] not in ("spatial fill", "scaled down")]
        names = [f"{row['way']}, {row['saving']}" for row in rows]
        colours = ["tab:blue" if row["peak"] < 1 else "tab:orange" for row in rows]
        places = range(len(rows))
        axis.barh(places, [r[column] for r in rows], color=colours)
        errors = [row[f"{column}_se"] for row in rows]
        axis.errorbar([r[column] for r in rows], places, xerr=errors, fmt="none", color="0.3")
        label_axes(axis, title, "")
        axis.set_yticks(places, names if axis is axes[0] else [""] * len(rows))
        axis.set_ylim(len(rows) - 0.4, -0.6)
    save_figure(
        figure,
        path,
        f"{network}: way and saving; orange: full work in some frames",
    )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--frames", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for network in args.networks:
        paths = sorted(path for path in args.clips.iterdir() if path.is_file())
        clips = {path.stem: middle(path, network, args.frames) for path in paths}
        model = models.load(network, args.weights / f"{network}.safetensors")
        net = with_features(model, next(iter(clips.values()))[:1])
        table, rows = compare_clips(net, clips, RATES)
        write_text(FOLDER / f"{network}.csv", csv_text(table))
        write_text(FOLDER / f"{network}_clips.csv", csv_text(rows))
        draw(table, network, FOLDER / f"{network}.png")
        shown = {"saving": "saving", "way": "way"} | {name: name for name, _ in PANELS}
        cells = [[_text(row[name]) for name in shown] for row in table]
        print(align([list(shown), *cells]), flush=True)
        told = {name: list(clip.shape) for name, clip in clips.items()}
        write_json(
            FOLDER / f"{network}.json",
            {**provenance(), "clips": told, "after_a_cut": cuts(net, clips)},
        )


def _text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
