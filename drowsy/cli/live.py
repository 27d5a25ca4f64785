"""``drowsy live``: a knob on a page in the browser."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

from drowsy.cli.knobs import in_lines, load_knob, look_into
from drowsy.cli.networks import model_info, note
from drowsy.cli.options import find_device
from drowsy.files.messages import counted, legible
from drowsy.images.listing import class_names
from drowsy.live.feed import Feed, of_camera, of_clip, of_folder
from drowsy.live.network import Network, read_names
from drowsy.live.sensing import Sensing
from drowsy.live.server import Show, check_serving, serve
from drowsy.models import ModelInfo
from drowsy.tuning.knob import Knob

# In which the milliseconds of all points are measured, where they are of another batch or machine.
_SECONDS = 4.0


def run_live(args: argparse.Namespace) -> None:
    check_serving(args.host, args.port)
    named, video = look_into(args)
    if video:
        raise ValueError(f"knob: {legible(args.knob)} is for video, allowed: one for images")
    info = model_info(named)
    feed, names = _feed(args, info), _names(args, info)
    knob, model, info = load_knob(named, measured=True)
    assert isinstance(knob, Knob), "its file is one for images"
    with in_lines(args):
        _measure(args, knob, model)
    network = Network(model, knob, info.preprocess, names)
    if args.refresh is not None:
        note(args, "measuring what a frame takes at every rate of the areas")
        network.rates(args.refresh)
    show = Show(info.name, network, feed, Sensing(find_device(named)), args.refresh)
    serve(show, args.host, args.port, lambda line: print(line, file=sys.stderr, flush=True))


def _names(args: argparse.Namespace, info: ModelInfo) -> list[str] | None:
    """Of the classes: from a file, else as the folders of the data are called."""
    if args.names is not None:
        return read_names(args.names, info.num_classes)
    return None if args.data is None else class_names(Path(args.data), info.num_classes)


def _measure(args: argparse.Namespace, knob: Knob, model: nn.Module) -> None:
    """See to it that points tell what a single picture takes on this machine."""
    if knob.batch == 1 and knob.contents.measured_here:
        return
    joules = ", and then the joules of each if something meters them"
    note(args, f"measuring {counted(len(knob.points), 'point')}, a picture at a time{joules}")
    like = next(model.parameters())
    picture = torch.rand(1, *knob.contents.image).to(like.device, like.dtype)
    knob.measure(picture, seconds=_SECONDS)


def _feed(args: argparse.Namespace, info: ModelInfo) -> Feed:
    if args.data is not None:
        return of_folder(args.data, info.preprocess, info.num_classes)
    if args.video is not None:
        return of_clip(args.video, info.preprocess)
    return of_camera(args.camera, info.preprocess)
