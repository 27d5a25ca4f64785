"""What arguments name: networks, images, stores, engines."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drowsy.cli.networks import about_weights, load_model, note
from drowsy.cli.options import check_correct, check_out_folder, check_store, find_device
from drowsy.correction.corrected import Corrected
from drowsy.correction.stencils import load_stencils
from drowsy.evaluation.arguments import costs_on
from drowsy.evaluation.engine import Engine, InProcess
from drowsy.evaluation.measurer import Measurer
from drowsy.evaluation.ray_engine import RayEngine
from drowsy.evaluation.store import Store
from drowsy.files.messages import counted
from drowsy.graph.convert import convert
from drowsy.graph.stages import align
from drowsy.images.folders import ImageSet, load_images
from drowsy.knob.costs import NetworkCost, network_cost
from drowsy.knob.frontier import Frontier
from drowsy.models import ModelInfo
from drowsy.network.net import DrowsyNet
from drowsy.sleep import DEFAULT_K, Grain, parse_source, source_text
from drowsy.study.figures import Study

# How layers sleep unless options or a frontier say otherwise.
SLEEP = {"source": "bernoulli", "grain": "neuron", "k": DEFAULT_K, "fill": "auto"}


@contextmanager
def open_study(args: argparse.Namespace) -> Iterator[Study]:
    check_correct(args)
    check_out_folder(args)
    check_store(args)
    net, info = load_network(args)
    data = load_data(args, info)
    if getattr(args, "race", False):
        data = data.shuffled()
    images = place(net, args, data.images)
    out = make_folder(args)
    about = {
        "model": args.model,
        "dtype": args.dtype,
        **about_weights(args),
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
        yield Study(measurer, out, f"{info.name}, {counted(len(data), 'image')}", about)


def _engine(
    args: argparse.Namespace, net: DrowsyNet, info: ModelInfo
) -> AbstractContextManager[Engine]:
    if args.correct is not None:
        return nullcontext(
            Corrected(place(net, args, load_data(args, info, args.correct, "correct").images))
        )
    return RayEngine(args.address or "auto") if args.engine == "ray" else nullcontext(InProcess())


def place(net: DrowsyNet, args: argparse.Namespace, images: Tensor) -> Tensor:
    """Move the network to its device and dtype, and return the images there.

    Raises:
        ValueError: images that the network does not take.
    """
    dtype, device = getattr(torch, args.dtype), find_device(args)
    # Batch norms stay folded as they were in the file's precision: folding again would round twice.
    net.to(device=device, dtype=dtype)
    costs_on(net, images)
    return images.to(device=device, dtype=dtype)


def load_network(
    args: argparse.Namespace, trained: bool = True, frontier: Frontier | None = None
) -> tuple[DrowsyNet, ModelInfo]:
    """The network, converted; for a frontier, to sleep as it does."""
    model, info = load_model(args, trained)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sleep = {name: getattr(args, name) for name in SLEEP}
    if frontier is not None:
        sleep = _as_measured(args, frontier)
    stencil = sleep["fill"] == "stencil"
    if stencil and not args.stencils:
        raise ValueError(
            "fill: got 'stencil' alone, allowed: with --stencils FILE (`drowsy stencils` writes it)"
        )
    net = convert(model, **sleep | ({"fill": "auto"} if stencil else {}), skip=args.skip)
    if args.stencils:
        load_stencils(net, args.stencils)
    if stencil:
        net.set(0, fill="stencil")
    if args.streams != "layer":
        step = 1 if args.streams == "shifted" else 0
        align(net, torch.zeros(1, *image_shape(info)), grain=None, step=step)
    if frontier is not None:
        _check_frontier(args, frontier, net)
    return net, info


def _as_measured(args: argparse.Namespace, frontier: Frontier) -> dict[str, Any]:
    """Source, grain, k and fill of a frontier; an option that says otherwise is refused."""
    schedules = [point.schedule for point in frontier.points]
    layers = [layer for schedule in schedules for layer in schedule.layers.values()]
    told: dict[str, set[Any]] = {
        "source": {frontier.source} - {None},
        "grain": {layer.grain for layer in layers},
        "k": {schedule.k for schedule in schedules},
        "fill": {layer.fill for layer in layers},
    }
    read: dict[str, Callable[[str], str]] = {
        "source": lambda text: source_text(parse_source(text)),
        "grain": lambda text: str(Grain.parse(text)),
    }
    found = {}
    for name, ours in SLEEP.items():
        given, known = getattr(args, name), told[name]
        asked = read[name](given) if given is not None and name in read else given
        if asked not in (None, "auto") and known and known != {asked}:
            raise ValueError(
                f"{name}: got {given}, allowed: none, as {args.frontier} was measured with "
                f"{', '.join(map(str, sorted(known)))}"
            )
        found[name] = asked or (min(known) if len(known) == 1 else ours)
    if frontier.source is None and args.source is None:
        note(
            args,
            f"{args.frontier} does not tell the source that it was measured with; "
            f"{found['source']} is taken (--source for another)",
        )
    shared = any(layer.stream is not None for layer in layers)
    if args.streams != "layer" and not shared:
        raise ValueError(
            f"streams: got {args.streams}, allowed: none, as {args.frontier} was measured with "
            "maps of each layer's own"
        )
    return found


def _check_frontier(args: argparse.Namespace, frontier: Frontier, net: DrowsyNet) -> None:
    """Raise ValueError for the frontier of a network that has other layers."""
    named = {name: None for point in frontier.points for name in point.schedule.layers}
    if missing := [name for name in named if name not in net.layers]:
        listed = ", ".join(missing[:4]) + (" ..." if len(missing) > 4 else "")
        raise ValueError(
            f"frontier: {args.frontier} is of another network, with layers {listed}, which "
            f"{args.model} has not or leaves awake"
        )


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


def load_data(
    args: argparse.Namespace,
    info: ModelInfo,
    indices: range | None = None,
    name: str = "images",
    given: range | None = None,
) -> ImageSet:
    """Images of ``--images``, or these: all that the option ``name`` needs, which was ``given``."""
    span = args.images if indices is None else indices
    try:
        return load_images(
            args.data,
            info.preprocess,
            labels=args.labels,
            classes=info.num_classes,
            indices=span,
            progress=sys.stderr.isatty(),
        )
    except ValueError as error:
        outside = re.fullmatch(r"indices: got .+ for (.+), allowed: 0 to (\d+)", str(error))
        if outside is None:
            raise
        told = given or span
        raise ValueError(
            f"{name}: got {told.start}:{told.stop}, allowed: a range within "
            f"0:{int(outside[2]) + 1}, the images of {outside[1]}"
        ) from error


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
