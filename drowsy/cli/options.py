"""Which options are allowed, alone and beside each other."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterable
from pathlib import Path

import torch

from drowsy.energy.meter import check_seconds
from drowsy.evaluation.arguments import check_count
from drowsy.evaluation.store import Store
from drowsy.files.messages import legible
from drowsy.images.checks import check_splits
from drowsy.images.folders import LAYOUTS, check_folder
from drowsy.images.frames import is_clip
from drowsy.knob.frontier import COSTS
from drowsy.models import MODELS
from drowsy.tuning.clips.point import COSTS as VIDEO_COSTS
from drowsy.tuning.clips.tune import VIDEO_LEVERS
from drowsy.tuning.clock import check_minutes
from drowsy.tuning.knobfile import MOST_BATCH
from drowsy.tuning.levers import LEVERS

# Least values of options, where a command has them.
LEAST = {"batch": 1, "classes": 1, "resize": 1, "crop": 1, "camera": 0, "frames": 1, "every": 1}
# Of options that are refused before memory is asked for.
_MOST = {"batch": MOST_BATCH}
# Files that are read.
_FILES = ("weights", "stencils", "calibration")


def check_options(args: argparse.Namespace) -> None:
    """Raise for an option that is not allowed, or that would be ignored beside the others."""
    if hasattr(args, "device"):
        find_device(args)
    for name, least in LEAST.items():
        value = getattr(args, name, None)
        if value is not None and value < least:
            raise ValueError(f"{name}: got {value}, allowed: {least} or more")
        if value is not None and value > _MOST.get(name, math.inf):
            raise ValueError(f"{name}: got {value}, allowed: {least} to {_MOST[name]}")
    for name, allowed, fits in (
        ("mean", "finite numbers", math.isfinite),
        ("std", "finite numbers above 0", lambda value: 0 < value < math.inf),
    ):
        values = getattr(args, name, None)
        if values is not None and not all(map(fits, values)):
            raise ValueError(f"{name}: got {values}, allowed: {allowed}")
    if getattr(args, "seconds", None) is not None:
        check_seconds(args.seconds)
    for name in _FILES:
        value = getattr(args, name, None)
        if isinstance(value, str) and Path(value).is_dir():
            raise ValueError(f"{name}: {value} is a folder, allowed: a safetensors file")
    _check_company(args)
    _check_data(args)


def _check_company(args: argparse.Namespace) -> None:
    """Raise for options that others do not go with, since they would be ignored."""

    def needs(name: str, there: bool, company: str) -> None:
        if getattr(args, name, None) not in (None, False) and not there:
            given = getattr(args, name)
            shown = " ".join(map(str, given)) if isinstance(given, list) else given
            raise ValueError(f"{name}: got {shown}, allowed: {company}")

    if hasattr(args, "video") and not args.video:
        _refuse_clips(args, "clips: --video")
    if hasattr(args, "data") and hasattr(args, "source"):
        _refuse_clips(args, "clips: drowsy compare --video")
    if args.command == "inspect":
        for name in ("gpu", "batch", "dtype"):
            needs(name, args.kernels, "with --kernels")
        needs("stages", not args.kernels, "without --kernels")
    if args.command == "calibrate":
        needs("seeds", args.measure is not None, "with --measure, as nothing is measured")
    if args.command == "compare":
        _check_comparison(args)
    if args.command in ("compare", "tune"):
        for name in ("frames", "every"):
            needs(name, bool(args.video), "with --video, of whose clips it is")
    if args.command == "tune":
        for name in ("labels", "images", "batch"):
            needs(name, not args.video, "without --video, as it is of images")
    if args.command == "tune":
        _check_tuning(args)
    if args.command == "report":
        for name in ("images", "labels", "every", "names"):
            needs(name, args.data is not None, "with --data, as nothing else is shown")
    if args.command == "live":
        needs("refresh", args.data is None, "with --video or --camera, whose pictures go on")
        if not 1 <= args.port <= 65535:
            raise ValueError(f"port: got {args.port}, allowed: 1 to 65535")
    needs("address", getattr(args, "engine", None) == "ray", "with --engine ray")
    own = getattr(args, "model", None) not in MODELS
    company = (
        "with MODULE:FUNCTION or a library's, as the networks that come with drowsy have theirs"
    )
    needs("classes", own, company)
    if not hasattr(args, "frontier"):
        needs("stencils", getattr(args, "fill", None) == "stencil", "with --fill stencil")
    if getattr(args, "budget", None) is not None:
        check_count("budget", args.budget, "1 or more evaluations")


def _check_data(args: argparse.Namespace) -> None:
    """Raise where folders or clips are not there."""
    if args.command == "video":
        check_clips([args.clip])
    elif args.command in ("compare", "tune") and args.video:
        check_clips(args.data if args.command == "tune" else args.video)
    elif hasattr(args, "data") and (hasattr(args, "video") or hasattr(args, "source")):
        _check_there(args)


def _check_tuning(args: argparse.Namespace) -> None:
    """Raise for what ``tune`` would refuse once the network and its images are there."""
    if not args.video and len(args.data) > 1:
        raise ValueError(f"data: got {len(args.data)} folders, allowed: one; clips: --video")
    check_minutes(args.minutes)
    kind = "with --video" if args.video else "of images"
    allowed = {"levers": LEVERS, "cost": tuple(COSTS)}
    if args.video:
        allowed = {"levers": VIDEO_LEVERS, "cost": tuple(VIDEO_COSTS)}
    for name, known in allowed.items():
        given = getattr(args, name) or []
        for value in [given] if isinstance(given, str) else given:
            if value not in known:
                raise ValueError(f"{name}: got {value}, allowed {kind}: {', '.join(known)}")


def check_folders(args: argparse.Namespace, clips: str) -> None:
    """Raise where ``data`` name no folders; ``clips`` says where clips go."""
    _refuse_clips(args, clips)
    _check_there(args)


def _refuse_clips(args: argparse.Namespace, clips: str) -> None:
    for path in _data(args):
        if is_clip(path):
            raise ValueError(f"data: {legible(path)} is a clip, allowed: a folder; {clips}")


def _check_there(args: argparse.Namespace) -> None:
    # The page takes folders of its own kinds, which it looks at first.
    for path in _data(args) if args.command != "live" else ():
        check_folder(Path(path), LAYOUTS)


def _data(args: argparse.Namespace) -> list[str]:
    return [args.data] if isinstance(args.data, str) else args.data or []


def check_clips(paths: Iterable[str]) -> None:
    """Raise ValueError for a clip that is not there."""
    for path in paths:
        if not Path(path).exists():
            raise ValueError(f"clip: {legible(path)} cannot be read as a video (no such file)")


def _check_comparison(args: argparse.Namespace) -> None:
    """Raise unless there are images with splits, or clips, and nothing of the other."""
    if args.video is None:
        for name in ("data", "search", "report"):
            if getattr(args, name) is None:
                raise ValueError(f"{name}: got none, allowed: --{name}, or clips with --video")
        return
    others = ("data", "labels", "search", "report", "calibration", "seeds", "recipes", "budget")
    for name in (*others, "interpolation", "batch", "store"):
        if getattr(args, name) is not None:
            raise ValueError(f"{name}: got some, allowed: none with --video, as it is of images")


def check_correct(args: argparse.Namespace) -> None:
    """Raise ValueError unless the images that correct are apart from those that are measured."""
    if args.correct is None:
        return
    if args.engine != "inprocess":
        raise ValueError(
            f"correct: got engine {args.engine}, allowed: inprocess, where settings are corrected"
        )
    check_apart(args, "correct", "those that correct")


def check_apart(args: argparse.Namespace, name: str, others: str) -> None:
    """Raise ValueError unless the images of ``--images`` are apart from those of ``--NAME``."""
    if args.images is None:
        raise ValueError(f"images: got all, allowed: FIRST:LAST, apart from {others}")
    splits = {"images": args.images, name: getattr(args, name)}
    check_splits(splits, max(span.stop for span in splits.values()))


def check_out_file(args: argparse.Namespace) -> Path:
    """The file of ``--out``; ValueError where none can be written, before anything is computed."""
    out = Path(args.out)
    if out.is_dir():
        raise ValueError(f"out: {out} is a folder, allowed: a file")
    _check_writable(out)
    return out


def check_out_folder(args: argparse.Namespace) -> Path:
    """The folder of ``--out``; ValueError where none can be made, before anything is computed."""
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: got {out}, allowed: a folder, or a name for a new one")
    _check_writable(out / "file")
    return out


def check_store(args: argparse.Namespace) -> None:
    """Raise ValueError where the file of ``--store`` is no store, before anything is computed."""
    if args.store is not None:
        with Store(args.store):
            pass


def _check_writable(path: Path) -> None:
    """Raise ValueError unless a file can lie there; folders that are missing will be made."""
    parent = next(each for each in path.absolute().parents if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(
            f"out: got {path}, and {parent} is no folder that can be written to, allowed: one in "
            "which files can be made"
        )


def find_device(args: argparse.Namespace) -> torch.device:
    """The device of ``--device``, which is here."""
    try:
        device = torch.device(args.device)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: got {args.device!r}, allowed: cpu, cuda or cuda:NUMBER")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(f"device: got {args.device}, but torch finds no CUDA device here")
        if (device.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise ValueError(f"device: got {args.device}, allowed: cuda:0 to cuda:{count - 1}")
    return device
