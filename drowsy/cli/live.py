"""``drowsy live``: a knob on a page in the browser."""

from __future__ import annotations

import argparse
import sys

from drowsy.cli.knobs import load_knob
from drowsy.cli.options import find_device
from drowsy.live.feed import Feed, of_camera, of_clip, of_folder
from drowsy.live.network import Network, read_names
from drowsy.live.sensing import Sensing
from drowsy.live.server import Show, check_serving, serve
from drowsy.models import ModelInfo


def run_live(args: argparse.Namespace) -> None:
    check_serving(args.host, args.port)
    named, knob, model, info = load_knob(args)
    feed = _feed(args, info)
    names = None if args.names is None else read_names(args.names, info.num_classes)
    network = Network(model, knob, info.preprocess, names)
    show = Show(info.name, network, feed, Sensing(find_device(named)), args.refresh)
    serve(show, args.host, args.port, lambda line: print(line, file=sys.stderr, flush=True))


def _feed(args: argparse.Namespace, info: ModelInfo) -> Feed:
    if args.data is not None:
        return of_folder(args.data, info.preprocess, info.num_classes)
    if args.video is not None:
        return of_clip(args.video, info.preprocess)
    return of_camera(args.camera, info.preprocess)
