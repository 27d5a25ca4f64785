"""The commands of a whole knob: tune, evaluate, bench, report."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from drowsy.cli.inputs import load_data
from drowsy.cli.networks import as_recorded, load_model, note, recorded
from drowsy.cli.options import check_out_file, find_device
from drowsy.cli.video import read_clips
from drowsy.files.messages import legible
from drowsy.files.tensors import read_described
from drowsy.models import ModelInfo
from drowsy.reporting import write_report
from drowsy.study.knobs import knob_rows, record
from drowsy.tuning.evaluate import table, verdict
from drowsy.tuning.knob import Knob, load
from drowsy.tuning.loading import is_video_knob
from drowsy.tuning.tune import tune

# Of what is written beside a knob's file.
_BESIDE = (".csv", ".json", ".png")
# Images that a report shows where none are asked for by number.
_SHOWN = range(3)


def run_tune(args: argparse.Namespace) -> None:
    out = check_out_file(args)
    if args.video:
        _tune_video(args, out)
        return
    if out.suffix in _BESIDE:
        raise ValueError(
            f"out: got {out}, allowed: another ending, as {', '.join(_BESIDE)} are written beside"
        )
    model, info = load_model(args)
    device = find_device(args)
    data = load_data(argparse.Namespace(**{**vars(args), "data": args.data[0]}), info)
    with _in_lines(args):
        knob = tune(
            model.to(device),
            data.images.to(device),
            data.labels if data.labels is None else data.labels.to(device),
            metric=args.metric,
            levers=args.levers or "auto",
            cost=args.cost,
            minutes=args.minutes,
            batch=args.batch,
            store=args.store,
            progress=sys.stderr.isatty(),
        )
    # So that `evaluate` and `bench` find the model again.
    made = {**knob.contents.made, "network": recorded(args)}
    knob.contents = replace(knob.contents, made=made)
    knob.save(out)
    reported = made["images"]["report"]
    beside = record(knob, knob_rows(knob), out.with_suffix(""), f"{info.name}, {reported:,} images")
    print(knob)
    print(f"\nwrote {out} (the knob), {', '.join(map(str, beside))}")


def _tune_video(args: argparse.Namespace, out: Path) -> None:
    model, info = load_model(args)
    device = find_device(args)
    clips = read_clips(args.data, info.preprocess, args)
    with _in_lines(args):
        knob = tune(
            model.to(device),
            [clip.to(device) for clip in clips.values()],
            metric=args.metric,
            levers=args.levers or "auto",
            cost=args.cost,
            minutes=args.minutes,
            progress=sys.stderr.isatty(),
            video=True,
        )
    made = {**knob.contents.made, "network": recorded(args)}
    knob.contents = replace(knob.contents, made=made)
    knob.save(out)
    print(knob)
    print(f"\nwrote {out} (the knob)")


def run_evaluate(args: argparse.Namespace) -> None:
    args, knob, _, info = load_knob(args)
    device = find_device(args)
    data = load_data(args, info)
    labels = data.labels if data.labels is None else data.labels.to(device)
    with _in_lines(args):
        rows = knob.evaluate(data.images.to(device), labels, batch=args.batch)
    objective = rows[0]["objective"]
    print(table(rows, objective))
    if rows[0]["holds"] is None:
        told = "tuned with labels" if knob.contents.made.get("labelled") else "tuned without labels"
        note(args, f"{told}, by {knob.objective}: what points were sold with says nothing of this")
    for row in rows:
        if row["holds"] is False:
            note(
                args,
                f"{row['setting']}: loses {row['loss']:.4g} of {objective} here "
                f"({row['loss_low']:.4g} to {row['loss_high']:.4g}), sold with "
                f"{row['sold_low']:.4g} to {row['sold_high']:.4g}: {verdict(row)}",
            )


def run_bench(args: argparse.Namespace) -> None:
    if args.out is not None:
        check_out_file(args)
    args, knob, model, _ = load_knob(args, measured=True)
    images = None
    if args.batch is not None:
        like = next(model.parameters())
        images = torch.randn(args.batch, *knob.contents.image).to(like.device, like.dtype)
    knob.measure(images, seconds=args.seconds)
    print(knob)
    if args.out is not None:
        knob.save(args.out)
        print(f"\nwrote {args.out}")


def run_report(args: argparse.Namespace) -> None:
    out = check_out_file(args)
    args, knob, _, info = load_knob(args)
    images = None
    if args.data is not None:
        images = load_data(args, info, args.images or _SHOWN, "images").images
        images = images.to(find_device(args))
    mean, std = info.preprocess.mean, info.preprocess.std
    write_report(knob, out, images, name=info.name, mean=mean, std=std)
    held = "no images" if images is None else f"{len(images)} of the images"
    print(f"wrote {out}: one page to send, which holds {held}")


def load_knob(
    args: argparse.Namespace, measured: bool = False
) -> tuple[argparse.Namespace, Knob, nn.Module, ModelInfo]:
    """The knob of a file on its model, which the file names where the arguments do not.

    ``measured``: whether its milliseconds will be, so that those of another machine do not matter.
    """
    if is_video_knob(args.knob):
        raise ValueError(
            f"knob: {legible(args.knob)} is for video, allowed: one for images; in a program "
            "drowsy.load reads it, and VideoKnob.measure measures it"
        )
    _, about = read_described(args.knob, "knob")
    made = about.get("made") if isinstance(about, dict) else None
    args = as_recorded(args, made if isinstance(made, dict) else {})
    model, info = load_model(args)
    model.to(find_device(args))
    with _in_lines(args, "its milliseconds are of another machine" if measured else None):
        return args, load(args.knob, model), model, info


@contextmanager
def _in_lines(args: argparse.Namespace, but: str | None = None) -> Iterator[None]:
    """Tell the warnings of a block in a line each, without where in the code they arose."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            yield
        finally:
            for text in dict.fromkeys(str(each.message) for each in caught):
                if but is None or but not in text:
                    note(args, text)
