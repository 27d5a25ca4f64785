"""What commands do with clips: ``drowsy video``, ``compare --video``, and reading them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from drowsy.cli.networks import load_model
from drowsy.cli.options import check_out_file, check_out_folder, find_device
from drowsy.comparison.clips import CLIP_SAVINGS, clips_table, compare_clips, write_clips
from drowsy.files.messages import counted
from drowsy.graph.convert import convert
from drowsy.images.folders import normalise
from drowsy.images.frames import read_frames
from drowsy.models import Preprocess
from drowsy.video.command import watch

# Of a clip, unless more are asked for.
FRAMES = 250


def run_video(args: argparse.Namespace) -> None:
    if args.out is not None:
        check_out_file(args)
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


def compare_video(args: argparse.Namespace) -> None:
    """What ``drowsy compare`` does with clips."""
    out = check_out_folder(args)
    model, info = load_model(args)
    dtype, device = getattr(torch, args.dtype), find_device(args)
    clips = {
        name: clip.to(device, dtype)
        for name, clip in read_clips(args.video, info.preprocess, args).items()
    }
    table, by_clip = compare_clips(
        model.to(device, dtype),
        clips,
        savings=[
            Fraction(saving).limit_denominator(1000) for saving in args.savings or CLIP_SAVINGS
        ],
        each=lambda done: print(done, file=sys.stderr),
    )
    title = f"{info.name}, {counted(len(clips), 'clip')}"
    frames = {name: len(clip) for name, clip in clips.items()}
    about = {"model": args.model, "dtype": args.dtype, "frames": frames}
    paths = write_clips(table, by_clip, out / "compare", title, about)
    print(clips_table(table))
    print(f"\nwrote {', '.join(map(str, paths))}")


def read_clips(
    paths: Sequence[str], preprocess: Preprocess, args: argparse.Namespace
) -> dict[str, Tensor]:
    """The first frames of clips ``[T, 3, S, S]``, as a network takes them, by the files' names."""
    found: dict[str, Tensor] = {}
    for path in paths:
        frames = read_frames(path, preprocess, most=args.frames or FRAMES, every=args.every or 1)
        name = Path(path).stem
        if name in found:
            raise ValueError(f"clips: got two that are called {name}, allowed: each name once")
        found[name] = normalise(torch.stack(list(frames)), preprocess)
    return found
