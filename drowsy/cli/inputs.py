"""What arguments name: networks, images, stores, engines."""

from __future__ import annotations

import argparse
import importlib
import math
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
from drowsy.knob.costs import NetworkCost, network_cost
from drowsy.knob.frontier import Frontier
from drowsy.models import MODELS, ModelInfo, Preprocess
from drowsy.models.checkpoint import load_weights
from drowsy.network.net import DrowsyNet
from drowsy.study.figures import Study

# Least values of options, where a command has them.
LEAST = {"batch": 1, "classes": 1, "resize": 1, "crop": 1}


def check_options(args: argparse.Namespace) -> None:
    """Raise unless sizes are 1 or more, colours finite and spread, and the device is here."""
    if hasattr(args, "device"):
        find_device(args)
    for name, least in LEAST.items():
        value = getattr(args, name, None)
        if value is not None and value < least:
            raise ValueError(f"{name}: got {value}, allowed: {least} or more")
    for name, allowed, fits in (
        ("mean", "finite numbers", math.isfinite),
        ("std", "finite numbers above 0", lambda value: 0 < value < math.inf),
    ):
        values = getattr(args, name, None)
        if values is not None and not all(map(fits, values)):
            raise ValueError(f"{name}: got {values}, allowed: {allowed}")


@contextmanager
def open_study(args: argparse.Namespace) -> Iterator[Study]:
    _check_correct(args)
    net, info = load_network(args)
    data = load_data(args, info)
    if getattr(args, "race", False):
        data = data.shuffled()
    images = place(net, args, data.images)
    out = make_folder(args)
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
        model = build_model(info)
        if args.weights:
            load_weights(model, Path(args.weights))
    return model, info


def build_model(info: ModelInfo) -> nn.Module:
    """A network with random weights, in eval mode."""
    model = info.build()
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: got {info.name}, which makes a {type(model).__name__}, "
            "allowed: a function that makes a torch.nn.Module"
        )
    return model.eval()


def model_info(args: argparse.Namespace) -> ModelInfo:
    """A network of the registry, or ``module:function`` of the user's."""
    if args.model in MODELS:
        info = MODELS[args.model]
    else:
        build = _find_function(args.model)
        info = ModelInfo(args.model, build, MODELS["resnet18"].preprocess, args.classes or 1000)
    p = info.preprocess
    preprocess = Preprocess(
        p.resize if args.resize is None else args.resize,
        p.crop if args.crop is None else args.crop,
        tuple(args.mean) if args.mean else p.mean,
        tuple(args.std) if args.std else p.std,
    )
    return ModelInfo(
        info.name, info.build, preprocess, args.classes or info.num_classes, info.weights
    )


def _find_function(given: str) -> Callable[[], nn.Module]:
    """The function ``MODULE:FUNCTION``, which may import from the current folder when it runs."""
    module, _, name = given.partition(":")
    if not module or not name:
        raise ValueError(
            f"model: got {given!r}, allowed: {', '.join(MODELS)}, "
            "or MODULE:FUNCTION for a function of yours that makes the network"
        )
    try:
        with current_folder_importable():
            found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ImportError(
            f"model: got {given!r}, which cannot be imported ({error}), "
            "allowed: MODULE:FUNCTION with a module in this folder or on Python's path"
        ) from error
    if not callable(found):
        raise ValueError(
            f"model: got {given!r}, but {module} has no function {name}, "
            "allowed: MODULE:FUNCTION for a function that makes the network"
        )

    def build() -> nn.Module:
        with current_folder_importable():
            return found()

    return build


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """The current folder first among the places to import from, for as long as this lasts."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        # Whatever was imported meanwhile may have changed the path, or removed this.
        if "" in sys.path:
            sys.path.remove("")


def make_folder(args: argparse.Namespace) -> Path:
    """The folder of ``--out``, made if missing."""
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"out: got {out} ({error.strerror}), allowed: a folder, or a name for a new one"
        ) from error
    return out


def load_frontier(args: argparse.Namespace) -> Frontier:
    """The frontier of ``--frontier``."""
    try:
        return Frontier.load(args.frontier)
    except OSError as error:
        raise ValueError(
            f"frontier: {args.frontier} cannot be read ({error.strerror}), "
            "allowed: a frontier file of search or study"
        ) from error


def load_data(args: argparse.Namespace, info: ModelInfo, indices: range | None = None) -> ImageSet:
    """Images of ``--images``, or these."""
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


def cost_of(model: nn.Module, info: ModelInfo) -> NetworkCost:
    """What a network costs for an image of its size."""
    try:
        return network_cost(model, image_shape(info))
    except RuntimeError as error:
        raise ValueError(
            f"crop: got {info.preprocess.crop}, allowed: a size that the network takes ({error})"
        ) from error
