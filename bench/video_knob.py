"""What ``tune`` makes of ResNet-18 on real clips: every way that it kept, and whether that holds.

    python -m bench.video_knob ROOT [--minutes 2.5] [--threads 2]

``ROOT`` has ``data/clips`` and ``weights``, as told in ``bench.dense_networks``. Points are chosen
on two clips, a fixed camera and a moving one, reported on two others, again one of each, and then
evaluated on a fifth, which has cuts. Of each the middle frames are taken. Writes
``docs/study/video/knob.json`` and the knob's page, ``docs/live/resnet18_video.html``, and prints
the table of ``docs/video.md``. Times want a machine that does nothing else, which what follows
them does not: a run that is stopped goes on from its store in ``--work``, or from the knob there.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import drowsy
from bench.video_study import FOLDER, middle
from drowsy import models
from drowsy.files.atomic import write_json
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row
from drowsy.images.folders import normalise
from drowsy.tuning.clips.knob import VideoKnob
from drowsy.tuning.clips.point import VideoPoint

NETWORK = "resnet18"
CHOSEN_ON, REPORTED_ON, OTHERS = (
    ("book", "sk_carphone_pristine"),
    ("car", "road"),
    ("sk_bikes",),
)
FRAMES = 100
PAGE = FOLDER.parents[1] / "live" / f"{NETWORK}_video.html"
# On the page: a clip that is reported on, and some of its frames.
SHOWN = ("road", range(40, 48))


def clips(root: Path) -> dict[str, Tensor]:
    """Every clip's middle frames, as the network takes them."""
    preprocess = models.MODELS[NETWORK].preprocess
    paths = {path.stem: path for path in (root / "data" / "clips").iterdir()}
    wanted = (*CHOSEN_ON, *REPORTED_ON, *OTHERS)
    return {name: normalise(middle(paths[name], preprocess, FRAMES), preprocess) for name in wanted}


def rows_of(knobs: dict[str, VideoKnob], others: list[Tensor]) -> list[Row]:
    """A row a way: what it takes, what it loses, by which costs it is worth having, and elsewhere.

    Args:
        knobs: the same points, saving each of two costs.
        others: clips that nothing was tuned on.
    """
    (any_knob, *_) = knobs.values()
    elsewhere = {row["setting"]: row for knob in knobs.values() for row in knob.evaluate(others)}
    awake, rows = any_knob.awake, []
    for point in any_knob.contents.points:
        here, there = _lost(point), elsewhere.get(str(point.way), {})
        rows.append(
            {
                "setting": str(point.way),
                "latency_ms": point.latency_ms,
                "slowest_ms": point.slowest_ms,
                "mean": _share(point.latency_ms, awake.latency_ms),
                "slowest": _share(point.slowest_ms, awake.slowest_ms),
                "work": point.work,
                "peak": point.peak,
                **here,
                "worth": [cost for cost, knob in knobs.items() if point in knob.points],
                **{f"other_{name}": there.get(name) for name in here},
                "holds": there.get("holds"),
                "surely": there.get("surely"),
            }
        )
    return rows


def _lost(point: VideoPoint) -> Row:
    low, high = point.interval or (None, None)
    return {"loss": point.loss, "loss_low": low, "loss_high": high}


def _share(took: float | None, awake: float | None) -> float | None:
    return took / awake if took and awake else None


def markdown(rows: list[Row]) -> str:
    """The table of the page of video."""
    heads = ["way", "ms a frame", "slowest", "work", "peak", "lost (points)", "95% interval"]
    heads += ["worth it by", "lost on another clip"]
    lines = [heads, ["---"] * len(heads)]
    names = {"latency": "mean", "slowest": "slowest"}
    for row in sorted(rows, key=lambda row: -row["latency_ms"]):

        def points(name: str, row: Row = row) -> str:
            return "" if row[name] is None else f"{100 * row[name] + 0.0:.1f}"

        def between(start: str, points: Any = points) -> str:
            return f"{points(f'{start}_low')} to {points(f'{start}_high')}"

        told = points("other_loss")
        if told and row["holds"] is not None:
            told += f" ({between('other_loss')})" + ("" if row["holds"] else ", **more than sold**")
        cells = [row["setting"], *(f"{row[name]:.1f}" for name in ("latency_ms", "slowest_ms"))]
        cells += [f"{row[name]:.2f}" for name in ("work", "peak")]
        cells += [points("loss"), between("loss")]
        worth = ", ".join(names[cost] for cost in row["worth"])
        # What is worth having by no cost is no point of a knob, and not evaluated.
        cells += [worth or "neither", told or "not evaluated"]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(knob: VideoKnob, found: dict[str, Tensor], root: Path) -> None:
    """Write the knob's page."""
    name, frames = SHOWN
    shown = found[name][frames.start : frames.stop]
    words = root / "data" / "imagenet_val_1300" / "synset_words.txt"
    classes = [line.split(" ", 1)[1].split(",")[0] for line in words.read_text().splitlines()]
    prepared = models.MODELS[NETWORK].preprocess
    drowsy.write_report(
        knob,
        PAGE,
        shown,
        name="ResNet-18 on video",
        mean=prepared.mean,
        std=prepared.std,
        classes=classes,
    )


def main() -> None:
    """Tune, evaluate, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("--minutes", type=float, default=2.5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("video_knob"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    model = models.load(NETWORK, args.root / "weights" / f"{NETWORK}.safetensors")
    found = clips(args.root)
    # Every second one is reported on.
    order = [name for pair in zip(CHOSEN_ON, REPORTED_ON, strict=True) for name in pair]
    path = args.work / f"{NETWORK}.drowsy"
    if not path.exists():
        drowsy.tune(
            model,
            [found[name] for name in order],
            cost="slowest",
            minutes=args.minutes,
            store=args.work / f"{NETWORK}.sqlite",
            video=True,
        ).save(path)
    knob = drowsy.load(path, model)
    assert isinstance(knob, VideoKnob), "it is one for video"
    knobs = {
        cost: VideoKnob(model, replace(knob.contents, cost=cost)) for cost in ("latency", "slowest")
    }
    rows = rows_of(knobs, [found[name] for name in OTHERS])
    about: dict[str, Any] = {
        "network": NETWORK,
        "chosen_on": CHOSEN_ON,
        "reported_on": REPORTED_ON,
        "others": OTHERS,
        "tuned": dict(knob.contents.made),
        "levers": dict(knob.contents.levers),
    }
    write_json(FOLDER / "knob.json", {**about, **provenance(), "rows": rows})
    page(knob, found, args.root)
    print(knob, markdown(rows), sep="\n\n")


if __name__ == "__main__":
    main()
