"""The ``drowsy`` command."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drowsy import _distribution, models
from drowsy.atomic import write_json
from drowsy.calibrate import Calibration, Corrected, calibrate
from drowsy.compare import SAVINGS, SEEDS, check_splits, compare, table
from drowsy.convert import convert
from drowsy.cost import cost_table, layer_costs, layer_shares
from drowsy.data import ImageSet, load_images
from drowsy.energy import Meter, NoMeter, Profile, profile, profile_table
from drowsy.engine import Engine, InProcess
from drowsy.frontier import COSTS, OBJECTIVES, Frontier
from drowsy.inspect import inspect, inspect_kernels
from drowsy.models import MODELS, ModelInfo, Preprocess
from drowsy.models.checkpoint import load_weights
from drowsy.net import DrowsyNet
from drowsy.ray_engine import RayEngine
from drowsy.recipes import RECIPES, SETS
from drowsy.record import provenance
from drowsy.rivals import INTERPOLATIONS
from drowsy.search import METHODS, Measurer, check_method
from drowsy.sleep import FILLS
from drowsy.stages import align, explain, find_stages
from drowsy.stencil import calibrate_stencils, load_stencils, save_stencils
from drowsy.store import Store
from drowsy.study import Study

# What a user can mend is told in a line; anything else keeps its traceback.
_USER_ERRORS = (ValueError, TypeError, LookupError, OSError, ImportError, RuntimeError)


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; returns the exit code (2 for bad input)."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except _USER_ERRORS as error:
        print(f"drowsy {args.command}: {error}", file=sys.stderr)
        return 2
    return 0


# --- subcommands ---------------------------------------------------------------------------------


def _inspect(args: argparse.Namespace) -> None:
    net, info = _network(args, trained=False)
    image = _image_shape(info)
    if args.kernels:
        dtype = getattr(torch, args.dtype)
        print(inspect_kernels(net, image, batch=args.batch, dtype=dtype, gpu=args.gpu))
    elif args.stages:
        print(explain(find_stages(net, torch.zeros(1, *image))))
    else:
        print(inspect(net, layer_shares(layer_costs(net, image))))


def _cost(args: argparse.Namespace) -> None:
    info = _info(args)
    with torch.device("meta"):
        model = info.build(num_classes=info.num_classes).eval()
    print(cost_table(layer_costs(model, _image_shape(info))))


def _sensitivity(args: argparse.Namespace) -> None:
    with _study(args) as study:
        study.savings()
        study.sensitivity()
        print(f"wrote {study.out}")


def _uniform(args: argparse.Namespace) -> None:
    with _study(args) as study:
        study.uniform()
        print(f"wrote {study.out}")


def _search(args: argparse.Namespace) -> None:
    check_method(args.method, args.budget)
    with _study(args) as study:
        _show(study.nonuniform(study.uniform(), args.method, args.budget, args.race), study)


def _run_study(args: argparse.Namespace) -> None:
    check_method(args.method, args.budget)
    with _study(args) as study:
        _show(study.run(args.method, args.budget, args.race), study)


def _compare(args: argparse.Namespace) -> None:
    model, info = _model(args)
    dtype = getattr(torch, args.dtype)
    names = ("search", "report", "calibration")
    splits = {name: span for name in names if (span := getattr(args, name)) is not None}
    args.images = range(max(span.stop for span in splits.values()))
    check_splits(splits, len(args.images))
    data = _data(args, info)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with Store(args.store or out / "points.sqlite") as store:
        rows = compare(
            model,
            data.images,
            data.labels,
            **splits,
            savings=args.savings,
            seeds=args.seeds,
            recipes=[
                recipe for name in args.recipes for recipe in SETS.get(name) or (RECIPES[name],)
            ],
            budget=args.budget,
            interpolation=args.interpolation,
            store=store,
            batch=args.batch,
            dtype=dtype,
            device=_device(args),
            progress=sys.stderr.isatty(),
            each=lambda row: print(f"{row['saving']:.0%} {row['method']}", file=sys.stderr),
            out=out,
            title=f"{info.name}, {len(args.report):,} images",
            about={"model": args.model, "dtype": args.dtype},
        )
    print(table(rows))
    print(f"\nwrote {out}: compare.csv (the table), compare.json (its record), compare.png")


def _energy(args: argparse.Namespace) -> None:
    frontier = Frontier.load(args.frontier)
    net, info = _network(args)
    if args.batch < 1:
        raise ValueError(f"batch: got {args.batch}, allowed: 1 or more")
    images = _place(net, args, _data(args, info).images[: args.batch])
    images = images.contiguous(memory_format=torch.channels_last)
    if args.calibration:
        net.calibration = Calibration.load(args.calibration)
    meter, told = None, []
    try:
        meter = Meter(args.device)
        meter.measure_idle(args.seconds)
    except NoMeter as error:
        told.append(f"no joules, latency only: {error}")
    done: list[Profile] = []
    found = profile(net, images, frontier, meter=meter, seconds=args.seconds, each=done.append)
    found.save(args.out)
    samples = Path(args.out).with_suffix(".samples.json")
    write_json(
        samples,
        {
            **provenance(),
            "model": args.model,
            "images": list(images.shape),
            "dtype": args.dtype,
            "profiles": [one.to_dict() for one in done],
        },
    )
    print(profile_table(done, len(images)))
    for one in done:
        told += one.measurement.warnings if one.measurement is not None else ()
    for line in dict.fromkeys(told):
        print(line)
    print(f"wrote {args.out} (the frontier) and {samples} (what was read, raw)")


def _calibrate(args: argparse.Namespace) -> None:
    frontier, out = Frontier.load(args.frontier), Path(args.out)
    if args.measure is not None:
        _check_apart(args, "measure", "those to measure")
        if out.with_suffix(".json") in (out, Path(args.frontier)):
            raise ValueError(
                f"out: got {out}, allowed: another name, as the frontier that is measured goes to "
                f"{out.with_suffix('.json')}"
            )
    net, info = _network(args)
    images = _place(net, args, _data(args, info).images)
    calibration = calibrate(
        net,
        images,
        frontier,
        reconstruct=args.reconstruct,
        batch=args.batch,
        progress=sys.stderr.isatty(),
    )
    calibration.save(out)
    print(f"wrote {out}: corrections of {len(calibration.points)} points, {len(images)} images")
    if args.measure is not None:
        data = _data(args, info, args.measure)
        measurer = Measurer(
            net, _place(net, args, data.images), data.labels, seeds=args.seeds, batch=args.batch
        )
        corrected = _corrected(frontier, measurer)
        corrected.save(out.with_suffix(".json"))
        print(f"wrote {out.with_suffix('.json')}: the frontier, measured on {len(data)} images")
        print(corrected.table())


def _corrected(frontier: Frontier, measurer: Measurer) -> Frontier:
    """A frontier with the accuracies that its points have with their corrections in force."""
    net, points = measurer.net, []
    # Once for all points.
    measurer.work = replace(measurer.work, baseline=measurer.work.evaluator(0).logits())
    given = frontier.points
    if frontier.reference is not None and frontier.reference not in given:
        given = [frontier.reference, *given]
    for point in given:
        net.set(point)
        setting = tuple(net.control.settings)
        found = measurer.measure([setting], "corrected")[setting]
        names = (*OBJECTIVES, "divergence", "spread", "images", "seeds")
        points.append(replace(point, **{name: getattr(found, name) for name in names}))
    return Frontier(points, frontier.objective, frontier.cost)


def _stencils(args: argparse.Namespace) -> None:
    net, info = _network(args)
    images = _place(net, args, _data(args, info).images)
    calibrate_stencils(net, images, batch=args.batch)
    save_stencils(net, args.out)
    print(f"wrote {args.out}: weights of {len(net.layers)} layers from {len(images)} images")


def _demo(args: argparse.Namespace) -> None:
    from drowsy.demo import demo

    demo(Path(args.out))


def _show(frontiers: dict[str, Frontier], study: Study) -> None:
    for name, frontier in frontiers.items():
        print(f"\nPareto-optimal settings by {name}\n{frontier.table()}")
    print(f"\nwrote {study.out}: tables (csv), records (json), pictures (png), frontiers (json)")


# --- what they share -----------------------------------------------------------------------------


@contextmanager
def _study(args: argparse.Namespace) -> Iterator[Study]:
    _check_correct(args)
    net, info = _network(args)
    data = _data(args, info)
    if getattr(args, "race", False):
        data = data.shuffled()
    images = _place(net, args, data.images)
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
        return nullcontext(Corrected(_place(net, args, _data(args, info, args.correct).images)))
    return RayEngine(args.address) if args.engine == "ray" else nullcontext(InProcess())


def _check_correct(args: argparse.Namespace) -> None:
    """Raise ValueError unless the images that correct are apart from those that are measured."""
    if args.correct is None:
        return
    if args.engine != "inprocess":
        raise ValueError(
            f"correct: got engine {args.engine}, allowed: inprocess, where settings are corrected"
        )
    _check_apart(args, "correct", "those that correct")


def _check_apart(args: argparse.Namespace, name: str, others: str) -> None:
    """Raise ValueError unless the images of ``--images`` are apart from those of ``--NAME``."""
    if args.images is None:
        raise ValueError(f"images: got all, allowed: FIRST:LAST, apart from {others}")
    splits = {"images": args.images, name: getattr(args, name)}
    check_splits(splits, max(span.stop for span in splits.values()))


def _place(net: DrowsyNet, args: argparse.Namespace, images: Tensor) -> Tensor:
    """Move the network to its device and dtype, and return the images there."""
    dtype, device = getattr(torch, args.dtype), _device(args)
    # Batch norms stay folded as they were in the file's precision: folding again would round twice.
    net.to(device=device, dtype=dtype)
    return images.to(device=device, dtype=dtype)


def _device(args: argparse.Namespace) -> torch.device:
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device: got cuda, but torch finds no CUDA device here")
    return device


def _network(args: argparse.Namespace, trained: bool = True) -> tuple[DrowsyNet, ModelInfo]:
    """The network, converted."""
    model, info = _model(args, trained)
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
        align(net, torch.zeros(1, *_image_shape(info)), grain=None, step=step)
    return net, info


def _model(args: argparse.Namespace, trained: bool = True) -> tuple[nn.Module, ModelInfo]:
    """The network; not ``trained``, random weights will do where none are given."""
    info = _info(args)
    model: nn.Module
    if info.name in MODELS and (trained or args.weights):
        model = models.load(info.name, args.weights)
    else:
        model = info.build().eval()
        if args.weights:
            load_weights(model, Path(args.weights))
    return model, info


def _info(args: argparse.Namespace) -> ModelInfo:
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


def _data(args: argparse.Namespace, info: ModelInfo, indices: range | None = None) -> ImageSet:
    """Images of ``--images``, or others."""
    return load_images(
        args.data,
        info.preprocess,
        labels=args.labels,
        classes=info.num_classes,
        indices=args.images if indices is None else indices,
        progress=sys.stderr.isatty(),
    )


def _image_shape(info: ModelInfo) -> tuple[int, int, int]:
    return (3, info.preprocess.crop, info.preprocess.crop)


def _range(text: str) -> range:
    first, _, last = text.partition(":")
    try:
        return range(int(first or 0), int(last))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: FIRST:LAST, as 0:2500") from error


# --- arguments -----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="drowsy", description=(__doc__ or "").strip())
    parser.add_argument("--version", action="version", version=f"drowsy {_distribution.VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> Any:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    demo = command("demo", _demo, "the main job on a network and images that pip delivers")
    demo.add_argument("--out", default="drowsy-demo", help="folder for the results")
    sub = command("inspect", _inspect, "what conversion does with a network, and why")
    _add_network(sub)
    _add_sleep(sub)
    sub.add_argument(
        "--stages", action="store_true", help="layers that could share a position map (align)"
    )
    _add_kernels(sub)
    _add_network(command("cost", _cost, "neurons and multiplications by layer (Table I)"))
    for name, run, text in (
        ("sensitivity", _sensitivity, "each layer alone (Figs. 4 and 5)"),
        ("uniform", _uniform, "one rate for all layers (Fig. 6)"),
        ("search", _search, "non-uniform rates (Fig. 7) and their frontier"),
        ("study", _run_study, "the paper's whole study (Figs. 4 to 7)"),
    ):
        sub = command(name, run, text)
        _add_network(sub)
        _add_sleep(sub)
        _add_images(sub)
        _add_run(sub)
        _add_study(sub)
        if name in ("search", "study"):
            sub.add_argument(
                "--method", choices=METHODS, default="auto", help="how to search (default: auto)"
            )
            sub.add_argument("--budget", type=int, help="settings to measure at most")
            sub.add_argument(
                "--cost",
                choices=COSTS,
                default="macs",
                help="what accuracy is traded for: multiplications (default), or latency or joules "
                "of a batch, measured here",
            )
            sub.add_argument(
                "--race",
                action="store_true",
                help="measure on few images first (in a shuffled order), on all only what may be "
                "optimal",
            )
    sub = command("stencils", _stencils, "weights of fill stencil, from images without labels")
    _add_network(sub)
    _add_sleep(sub)
    _add_images(sub)
    _add_run(sub)
    sub.add_argument("--out", required=True, help="safetensors file to write")
    sub = command("calibrate", _calibrate, "corrections of a frontier's points, without labels")
    _add_network(sub)
    _add_sleep(sub)
    _add_images(sub)
    _add_run(sub)
    calibration = sub.add_argument_group("calibration")
    calibration.add_argument("--frontier", required=True, help="frontier file of search or study")
    calibration.add_argument("--out", required=True, help="safetensors file to write")
    calibration.add_argument(
        "--reconstruct", action="store_true", help="also change weights, by least squares"
    )
    calibration.add_argument(
        "--measure",
        type=_range,
        help="FIRST:LAST of other images: measure the corrected points on them, into a frontier "
        "file beside --out (.json)",
    )
    calibration.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of the sleep maps that are measured"
    )
    sub = command("compare", _compare, "ways to save multiplications, side by side")
    _add_network(sub)
    _add_data(sub)
    _add_run(sub)
    _add_comparison(sub)
    sub = command("energy", _energy, "latency and joules of a frontier's points, measured here")
    _add_network(sub)
    _add_sleep(sub)
    _add_images(sub)
    _add_run(sub)
    energy = sub.add_argument_group("energy")
    energy.add_argument("--frontier", required=True, help="frontier file of search or study")
    energy.add_argument("--seconds", type=float, default=5.0, help="for each point (default: 5)")
    energy.add_argument("--calibration", help="corrections of its points (safetensors file)")
    energy.add_argument("--out", required=True, help="frontier file to write")
    return parser


def _add_network(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("network")
    group.add_argument(
        "--model", required=True, help=f"{', '.join(MODELS)}, or MODULE:FUNCTION that makes yours"
    )
    group.add_argument("--weights", help="safetensors file (names as in state_dict)")
    group.add_argument("--classes", type=int, help="number of classes (yours only)")
    group.add_argument("--resize", type=int, help="shortest side to scale larger images to")
    group.add_argument("--crop", type=int, help="side of the centre crop")
    group.add_argument("--mean", type=float, nargs=3, help="of RGB, on the scale 0 to 1")
    group.add_argument("--std", type=float, nargs=3, help="of RGB, on the scale 0 to 1")


def _add_sleep(sub: argparse.ArgumentParser) -> None:
    sleep = sub.add_argument_group("sleep")
    sleep.add_argument("--source", default="bernoulli", help="how maps are drawn")
    sleep.add_argument("--grain", default="neuron", help="which neurons share a bit")
    sleep.add_argument(
        "--streams",
        choices=("layer", "stage", "shifted"),
        default="layer",
        help="maps of each layer's own, shared by the layers of a stage, or complementary from "
        "a layer of a stage to the next (default: layer)",
    )
    sleep.add_argument("--k", type=int, default=8, help="rates are multiples of 1/k")
    sleep.add_argument(
        "--fill", default="auto", help=f"auto (by source and grain), {', '.join(FILLS)}"
    )
    sleep.add_argument("--stencils", help="weights of fill stencil (safetensors file)")
    sleep.add_argument(
        "--skip", nargs="*", default=[], help="layers to leave awake (or re:PATTERN)"
    )


def _add_kernels(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("kernels (the others go with --kernels)")
    group.add_argument(
        "--kernels", action="store_true", help="what would run each layer at each grain, and why"
    )
    group.add_argument("--gpu", help="one with a tuning table, or sm_90 (default: this machine's)")
    group.add_argument("--batch", type=int, default=32, help="images per inference")
    group.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")


def _add_data(sub: argparse.ArgumentParser) -> Any:
    group = sub.add_argument_group("images")
    group.add_argument("--data", required=True, help="folder: class subfolders, or a labels CSV")
    group.add_argument("--labels", help="a labels CSV (file,label) elsewhere")
    return group


def _add_images(sub: argparse.ArgumentParser) -> None:
    group = _add_data(sub)
    group.add_argument("--images", type=_range, help="FIRST:LAST by sorted name (default: all)")


def _add_run(sub: argparse.ArgumentParser) -> None:
    run = sub.add_argument_group("run")
    run.add_argument("--batch", type=int, default=50, help="images per forward pass")
    run.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    run.add_argument("--device", default="cpu", help="cpu or cuda")


def _add_study(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("study")
    group.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the sleep maps")
    _add_results(group, "drowsy-study")
    group.add_argument(
        "--correct",
        type=_range,
        help="FIRST:LAST of other images (a few dozen): correct the network with them at every "
        "setting, so that a search goes by what is left after `drowsy calibrate`",
    )
    group.add_argument(
        "--engine",
        choices=("inprocess", "ray"),
        default="inprocess",
        help="where settings are evaluated: here (default), or by the workers of a Ray cluster",
    )
    group.add_argument(
        "--address", default="auto", help="of the Ray cluster: auto (default), local or HOST:PORT"
    )


def _add_comparison(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("comparison (images by sorted name, disjoint)")
    group.add_argument(
        "--search", type=_range, required=True, help="FIRST:LAST that operations are chosen on"
    )
    group.add_argument(
        "--report", type=_range, required=True, help="FIRST:LAST that they are reported on"
    )
    group.add_argument("--calibration", type=_range, help="FIRST:LAST for recipes that calibrate")
    group.add_argument(
        "--savings",
        type=float,
        nargs="+",
        default=SAVINGS,
        help="of the network's multiplications (default: 0.25 0.5 0.75)",
    )
    group.add_argument(
        "--seeds", type=int, nargs="+", default=SEEDS, help="of the sleep maps (default: 0 1 2)"
    )
    group.add_argument(
        "--recipes",
        nargs="+",
        choices=[*SETS, *RECIPES],
        default=["methods"],
        metavar="RECIPE",
        help=f"a set of recipes ({', '.join(SETS)}; default: methods) or any of "
        f"{', '.join(RECIPES)}",
    )
    group.add_argument("--budget", type=int, help="settings that each search measures at most")
    group.add_argument(
        "--interpolation",
        choices=INTERPOLATIONS,
        default=INTERPOLATIONS[0],
        help=f"how images are scaled (default: {INTERPOLATIONS[0]})",
    )
    _add_results(group, "drowsy-compare")


def _add_results(group: Any, out: str) -> None:
    group.add_argument("--out", default=out, help=f"folder for the results (default: {out})")
    group.add_argument("--store", help="SQLite file of evaluated points (default: in --out)")


if __name__ == "__main__":
    sys.exit(main())
