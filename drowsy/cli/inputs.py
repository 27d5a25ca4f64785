"""What arguments name: networks, images, stores, engines."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from drowsy import models
from drowsy.correction.corrected import Corrected
from drowsy.correction.stencils import load_stencils
from drowsy.evaluation.engine import Engine, InProcess
from drowsy.evaluation.measurer import Measurer
from drowsy.evaluation.ray_engine import RayEngine
from drowsy.evaluation.store import Store
from drowsy.graph.convert import convert
from drowsy.graph.stages import align
from drowsy.images.checks import check_splits
from drowsy.images.folders import ImageSet, load_images
from drowsy.models import MODELS, ModelInfo, Preprocess
from drowsy.models.checkpoint import load_weights
from drowsy.network.net import DrowsyNet
from drowsy.study.figures import Study


@contextmanager
def open_study(args: argparse.Namespace) -> Iterator[Study]:
    _check_correct(args)
    net, info = load_network(args)
    data = load_data(args, info)
    if getattr(args, "race", False):
        data = data.shuffled()
    images = place(net, args, data.images)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "model": args.model,
        "dtype": args.dtype,
        "first": data.names[0],
        "last": data.names[-1],
        **({"stencils": args.stencils} if args.stencils else {}),
        **({"correct": [args.correct.start, args.correct.stop]} if args.correct else {}),
    }
    with (
        Store(args.store or out / "points.sqlite") as store,
        _engine(args, net, info) as engine,
    ):
        measurer = Measurer(
            net,
            images,
            data.labels,
            seeds=args.seeds,
            store=store,
            batch=args.batch,
            engine=engine,
            cost=getattr(args, "cost", "macs"),
            progress=sys.stderr.isatty(),
        )
        yield Study(measurer, out, f"{info.name}, {len(data):,} images", about)


def _engine(
    args: argparse.Namespace, net: DrowsyNet, info: ModelInfo
) -> AbstractContextManager[Engine]:
    if args.correct is not None:
        return nullcontext(Corrected(place(net, args, load_data(args, info, args.correct).images)))
    return RayEngine(args.address) if args.engine == "ray" else nullcontext(InProcess())


def _check_correct(args: argparse.Namespace) -> None:
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


def place(net: DrowsyNet, args: argparse.Namespace, images: Tensor) -> Tensor:
    """Move the network to its device and dtype, and return the images there."""
    dtype, device = getattr(torch, args.dtype), find_device(args)
    # Batch norms stay folded as they were in the file's precision: folding again would round twice.
    net.to(device=device, dtype=dtype)
    return images.to(device=device, dtype=dtype)


def find_device(args: argparse.Namespace) -> torch.device:
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device: got cuda, but torch finds no CUDA device here")
    return device


def load_network(args: argparse.Namespace, trained: bool = True) -> tuple[DrowsyNet, ModelInfo]:
    """The network, converted."""
    model, info = load_model(args, trained)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stencil = args.fill == "stencil"
    if stencil and not args.stencils:
        raise ValueError(
            "fill: got 'stencil' alone, allowed: with --stencils FILE (`drowsy stencils` writes it)"
        )
    fill = "auto" if stencil else args.fill
    net = convert(model, source=args.source, grain=args.grain, k=args.k, fill=fill, skip=args.skip)
    if args.stencils:
        load_stencils(net, args.stencils)
    if stencil:
        net.set(0, fill="stencil")
    if args.streams != "layer":
        step = 1 if args.streams == "shifted" else 0
        align(net, torch.zeros(1, *image_shape(info)), grain=None, step=step)
    return net, info


def load_model(args: argparse.Namespace, trained: bool = True) -> tuple[nn.Module, ModelInfo]:
    """The network; not ``trained``, random weights will do where none are given."""
    info = model_info(args)
    model: nn.Module
    if info.name in MODELS and (trained or args.weights):
        model = models.load(info.name, args.weights)
    else:
        model = info.build().eval()
        if args.weights:
            load_weights(model, Path(args.weights))
    return model, info


def model_info(args: argparse.Namespace) -> ModelInfo:
    """A network of the registry, or ``module:function`` of the user's."""
    if args.model in MODELS:
        info = MODELS[args.model]
    else:
        module, _, function = args.model.partition(":")
        if not function:
            raise ValueError(
                f"model: got {args.model!r}, allowed: {', '.join(MODELS)}, "
                "or MODULE:FUNCTION for a function of yours that makes the network"
            )
        sys.path.insert(0, "")
        build: Callable[..., nn.Module] = getattr(importlib.import_module(module), function)
        default = MODELS["resnet18"].preprocess
        info = ModelInfo(args.model, build, default, args.classes or 1000)
    p = info.preprocess
    preprocess = Preprocess(
        args.resize if args.resize is not None else p.resize,
        args.crop or p.crop,
        tuple(args.mean) if args.mean else p.mean,
        tuple(args.std) if args.std else p.std,
    )
    return ModelInfo(
        info.name, info.build, preprocess, args.classes or info.num_classes, info.weights
    )


def load_data(args: argparse.Namespace, info: ModelInfo, indices: range | None = None) -> ImageSet:
    """Images of ``--images``, or others."""
    return load_images(
        args.data,
        info.preprocess,
        labels=args.labels,
        classes=info.num_classes,
        indices=args.images if indices is None else indices,
        progress=sys.stderr.isatty(),
    )


def image_shape(info: ModelInfo) -> tuple[int, int, int]:
    return (3, info.preprocess.crop, info.preprocess.crop)
