"""``drowsy video``: a network that remembers, on a clip or camera."""

from __future__ import annotations

import argparse
import sys

from drowsy.cli.networks import load_model
from drowsy.cli.options import find_device
from drowsy.graph.convert import convert
from drowsy.video.command import watch


def run_video(args: argparse.Namespace) -> None:
    model, info = load_model(args)
    net = convert(model.to(find_device(args)))
    table = watch(
        net,
        info.preprocess,
        args.clip,
        refresh=args.refresh,
        rate=args.rate,
        most=args.frames,
        every=args.every,
        out=args.out,
        show=(lambda line: print(line, file=sys.stderr)) if sys.stderr.isatty() else None,
    )
    print(table)
    if args.out:
        print(f"\nwrote {args.out}")
