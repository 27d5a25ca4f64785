"""The commands of a whole knob: tune, evaluate, bench, report."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from drowsy.cli.inputs import load_data
from drowsy.cli.networks import as_recorded, load_model, model_info, note, recorded
from drowsy.cli.options import check_clips, check_folders, check_out_file, check_store, find_device
from drowsy.cli.video import read_clips
from drowsy.files.messages import counted, legible
from drowsy.files.tensors import read_described
from drowsy.files.versioned import read_json
from drowsy.live.network import read_names
from drowsy.models import ModelInfo
from drowsy.reporting import write_report
from drowsy.reporting.page import MOST_IMAGES
from drowsy.study.knobs import knob_rows, record
from drowsy.tuning.clips.knob import VideoKnob
from drowsy.tuning.evaluate import table, verdict
from drowsy.tuning.knob import Knob
from drowsy.tuning.loading import is_video_knob, load
from drowsy.tuning.tune import tune
from drowsy.tuning.waiting import SIGN

# Of what is written beside a knob's file.
_BESIDE = (".csv", ".json", ".png")
# Images that a report shows where none are asked for by number, and frames.
_SHOWN, _FRAMES = range(3), range(8)
# Where clips go.
_CLIPS = "clips: of a knob for video"
# Images per forward pass.
_BATCH = 50


def run_tune(args: argparse.Namespace) -> None:
    out = check_out_file(args)
    check_store(args)
    if args.video:
        _tune_video(args, out)
        return
    if out.suffix in _BESIDE:
        raise ValueError(
            f"out: got {out}, allowed: another ending, as {', '.join(_BESIDE)} are written beside"
        )
    model, info = load_model(args)
    device = find_device(args)
    data = load_data(_of_one(args), info)
    with in_lines(args, SIGN):
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
            progress=True,
        )
    # So that `evaluate` and `bench` find the model again.
    made = {**knob.contents.made, "network": recorded(args)}
    knob.contents = replace(knob.contents, made=made)
    knob.save(out)
    reported = made["images"]["report"]
    beside = record(
        knob, knob_rows(knob), out.with_suffix(""), f"{info.name}, {counted(reported, 'image')}"
    )
    print(knob)
    print(f"\nwrote {out} (the knob), {', '.join(map(str, beside))}")


def _tune_video(args: argparse.Namespace, out: Path) -> None:
    model, info = load_model(args)
    device = find_device(args)
    clips = read_clips(args.data, info.preprocess, args)
    with in_lines(args, SIGN):
        knob = tune(
            model.to(device),
            [clip.to(device) for clip in clips.values()],
            metric=args.metric,
            levers=args.levers or "auto",
            cost=args.cost,
            minutes=args.minutes,
            store=args.store,
            progress=True,
            video=True,
        )
    made = {**knob.contents.made, "network": recorded(args)}
    knob.contents = replace(knob.contents, made=made)
    knob.save(out)
    print(knob)
    print(f"\nwrote {out} (the knob)")


def run_evaluate(args: argparse.Namespace) -> None:
    args, video = look_into(args)
    if video:
        _refuse(args, ("labels", "images", "batch"), "images")
        check_clips(args.data)
    else:
        _refuse(args, ("frames", "every"), "video")
        check_folders(_of_one(args), _CLIPS)
    knob, _, info = load_knob(args)
    device = find_device(args)
    if isinstance(knob, VideoKnob):
        clips = read_clips(args.data, info.preprocess, args)
        with in_lines(args):
            rows = knob.evaluate([clip.to(device) for clip in clips.values()])
    else:
        data = load_data(_of_one(args), info)
        labels = data.labels if data.labels is None else data.labels.to(device)
        with in_lines(args):
            rows = knob.evaluate(data.images.to(device), labels, batch=args.batch or _BATCH)
    objective = rows[0]["objective"]
    print(table(rows, objective))
    if rows[0]["holds"] is None:
        told = "tuned with labels" if knob.contents.made.get("labelled") else "tuned without labels"
        note(args, f"{told}, by {knob.objective}: what points were sold with says nothing of this")
    for row in rows:
        if row["holds"] is False:
            between = (
                "too few frames for an interval"
                if row["loss_low"] is None
                else f"{row['loss_low']:.4g} to {row['loss_high']:.4g}"
            )
            note(
                args,
                f"{row['setting']}: loses {row['loss']:.4g} of {objective} here ({between}), sold "
                f"with {row['sold_low']:.4g} to {row['sold_high']:.4g}: {verdict(row)}",
            )


def run_bench(args: argparse.Namespace) -> None:
    if args.out is not None:
        check_out_file(args)
    args, video = look_into(args)
    if video:
        _refuse(args, ("batch",), "images")
    knob, model, _ = load_knob(args, measured=True)
    with in_lines(args, SIGN):
        if isinstance(knob, VideoKnob):
            knob.measure(seconds=args.seconds)
        else:
            images = None
            if args.batch is not None:
                like = next(model.parameters())
                images = torch.randn(args.batch, *knob.contents.image).to(like.device, like.dtype)
            knob.measure(images, seconds=args.seconds)
    print(knob)
    if args.out is not None:
        knob.save(args.out)
        print(f"\nwrote {args.out}")
    else:
        print(f"\n{legible(args.knob)} is as it was: --out F keeps these figures")


def run_report(args: argparse.Namespace) -> None:
    out = check_out_file(args)
    args, video = look_into(args)
    if video:
        _refuse(args, ("labels",), "images")
        check_clips([args.data] if args.data is not None else [])
    else:
        _refuse(args, ("every", "names"), "video")
        check_folders(args, _CLIPS)
    # Not its length, which Python tells of no range of 2**63 and more.
    if args.images is not None and args.images.stop - args.images.start > MOST_IMAGES:
        told = f"{args.images.start}:{args.images.stop}"
        raise ValueError(f"images: got {told}, allowed: {MOST_IMAGES} of them at most")
    info, images, classes = model_info(args), None, None
    if args.names is not None:
        classes = read_names(args.names, info.num_classes)
    knob, _, info = load_knob(args)
    if isinstance(knob, VideoKnob):
        if args.data is not None:
            images = _some_frames(args, info)
        what = "frames"
    else:
        if args.data is not None:
            images = load_data(args, info, args.images or _SHOWN, "images").images
        what = "images"
    if images is not None:
        images = images.to(find_device(args))
    mean, std = info.preprocess.mean, info.preprocess.std
    write_report(knob, out, images, name=info.name, mean=mean, std=std, classes=classes)
    held = f"no {what}" if images is None else f"{len(images)} of the {what}"
    print(f"wrote {out}: one page to send, which holds {held}")


def _some_frames(args: argparse.Namespace, info: ModelInfo) -> Tensor:
    """Frames in a row of the clip of ``--data``."""
    span = args.images or _FRAMES
    asked = argparse.Namespace(frames=span.stop, every=args.every)
    (clip,) = read_clips([args.data], info.preprocess, asked).values()
    if len(clip) < span.stop:
        raise ValueError(f"images: got {span.start}:{span.stop}, allowed: within 0:{len(clip)}")
    return clip[span.start :]


def _of_one(args: argparse.Namespace) -> argparse.Namespace:
    """Arguments of which ``data`` are some that should be one folder."""
    if len(args.data) > 1:
        raise ValueError(f"data: got {len(args.data)} folders, allowed: one")
    return argparse.Namespace(**{**vars(args), "data": args.data[0]})


def _refuse(args: argparse.Namespace, names: Iterable[str], of: str) -> None:
    """Raise for options of the other kind of knob, which would be ignored."""
    for name in names:
        if getattr(args, name, None) is not None:
            value = getattr(args, name)
            told = f"{value.start}:{value.stop}" if isinstance(value, range) else value
            raise ValueError(
                f"{name}: got {told}, allowed: --{name} for a knob for {of}; "
                f"{legible(args.knob)} is one for {'images' if of == 'video' else 'video'}"
            )


def look_into(args: argparse.Namespace) -> tuple[argparse.Namespace, bool]:
    """The arguments, with the network that a knob's file names where they name none.

    Also whether the knob is one for video, so that options can be checked before it is loaded.
    """
    video = is_video_knob(args.knob)
    if video:
        about = read_json(args.knob)
    else:
        _, about = read_described(args.knob, "knob")
    made = about.get("made") if isinstance(about, dict) else None
    return as_recorded(args, made if isinstance(made, dict) else {}), video


def load_knob(
    args: argparse.Namespace, measured: bool = False
) -> tuple[Knob | VideoKnob, nn.Module, ModelInfo]:
    """The knob of a file on its model, by the arguments of ``look_into``.

    ``measured``: whether its milliseconds will be, so that those of another machine do not matter.
    """
    model, info = load_model(args)
    model.to(find_device(args))
    with in_lines(args, "its milliseconds are of another" if measured else None):
        return load(args.knob, model), model, info


@contextmanager
def in_lines(args: argparse.Namespace, but: str | None = None) -> Iterator[None]:
    """Tell the warnings of a block in a line each, without where in the code they arose.

    ``but``: words of those that are not told, as what follows tells them.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            yield
        finally:
            for text in dict.fromkeys(str(each.message) for each in caught):
                if but is None or but not in text:
                    note(args, text)
