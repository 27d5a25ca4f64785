"""What each subcommand does."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from drowsy.cli.inputs import (
    cost_of,
    image_shape,
    load_data,
    load_frontier,
    load_network,
    make_folder,
    open_study,
    place,
)
from drowsy.cli.networks import build_model, load_model, model_info
from drowsy.cli.options import (
    check_apart,
    check_out_file,
    check_out_folder,
    check_store,
    find_device,
)
from drowsy.cli.video import compare_video
from drowsy.comparison.compare import compare, table
from drowsy.comparison.recipes import RECIPES, SETS
from drowsy.correction.calibrate import calibrate
from drowsy.correction.stencils import calibrate_stencils, save_stencils
from drowsy.energy import Meter, NoMeter, Profile, profile, profile_table
from drowsy.evaluation.evaluator import Evaluator
from drowsy.evaluation.identity import fingerprint_data, fingerprint_network
from drowsy.evaluation.measurer import Measurer, Reference
from drowsy.evaluation.store import Store
from drowsy.files.atomic import write_json
from drowsy.files.messages import counted
from drowsy.files.provenance import provenance
from drowsy.graph.inspection import inspect, inspect_kernels
from drowsy.graph.stages import explain, find_stages
from drowsy.images.checks import check_splits
from drowsy.images.scaling import INTERPOLATIONS
from drowsy.knob.costs import cost_table, layer_shares
from drowsy.knob.frontier import Frontier
from drowsy.network.calibration import Calibration
from drowsy.searches.methods import check_method
from drowsy.study.figures import Study
from drowsy.tuning.conditions import SAVINGS, SEEDS


def run_inspect(args: argparse.Namespace) -> None:
    net, info = load_network(args, trained=False)
    image = image_shape(info)
    if args.kernels:
        dtype = getattr(torch, args.dtype or "float16")
        print(inspect_kernels(net, image, batch=args.batch or 32, dtype=dtype, gpu=args.gpu))
    elif args.stages:
        print(explain(find_stages(net, torch.zeros(1, *image))))
    else:
        shares = layer_shares(cost_of(net, info))
        # Any image tells what rests and whether the graph is the model's.
        net.settle(torch.rand(1, *image, generator=torch.Generator().manual_seed(0)))
        print(inspect(net, shares))


def run_cost(args: argparse.Namespace) -> None:
    info = model_info(args)
    with torch.device("meta"):
        model = build_model(info)
    print(cost_table(cost_of(model, info)))


def run_sensitivity(args: argparse.Namespace) -> None:
    with open_study(args) as study:
        study.savings()
        study.sensitivity()
        print(f"wrote {study.out}")


def run_uniform(args: argparse.Namespace) -> None:
    with open_study(args) as study:
        study.uniform()
        print(f"wrote {study.out}")


def run_search(args: argparse.Namespace) -> None:
    check_method(args.method, args.budget)
    with open_study(args) as study:
        _check_size(args, study)
        _show(study.nonuniform(study.uniform(), args.method, args.budget, args.race), study)


def run_study(args: argparse.Namespace) -> None:
    check_method(args.method, args.budget)
    with open_study(args) as study:
        _check_size(args, study)
        _show(study.run(args.method, args.budget, args.race), study)


def run_compare(args: argparse.Namespace) -> None:
    if args.video is not None:
        compare_video(args)
        return
    check_out_folder(args)
    check_store(args)
    model, info = load_model(args)
    dtype = getattr(torch, args.dtype)
    names = ("search", "report", "calibration")
    splits = {name: span for name in names if (span := getattr(args, name)) is not None}
    furthest, span = max(splits.items(), key=lambda split: split[1].stop)
    check_splits(splits, span.stop)
    data = load_data(args, info, range(span.stop), furthest, span)
    out = make_folder(args)
    with Store(args.store or out / "points.sqlite") as store:
        rows = compare(
            model,
            data.images,
            data.labels,
            **splits,
            savings=args.savings or SAVINGS,
            seeds=args.seeds or SEEDS,
            recipes=[
                recipe
                for name in args.recipes or ["methods"]
                for recipe in SETS.get(name) or (RECIPES[name],)
            ],
            budget=args.budget,
            interpolation=args.interpolation or INTERPOLATIONS[0],
            store=store,
            batch=args.batch or 50,
            dtype=dtype,
            device=find_device(args),
            progress=sys.stderr.isatty(),
            each=lambda row: print(f"{row['saving']:.0%} {row['method']}", file=sys.stderr),
            out=out,
            title=f"{info.name}, {counted(len(args.report), 'image')}",
            about={"model": args.model, "dtype": args.dtype},
        )
    print(table(rows))
    print(f"\nwrote {out}: compare.csv (the table), compare.json (its record), compare.png")


def run_energy(args: argparse.Namespace) -> None:
    frontier = load_frontier(args)
    check_out_file(args)
    net, info = load_network(args, frontier=frontier)
    images = place(net, args, load_data(args, info).images[: args.batch])
    images = images.contiguous(memory_format=torch.channels_last)
    if args.calibration:
        net.calibration = Calibration.load(args.calibration)
    meter, told = None, []
    if len(images) < args.batch:
        told.append(
            f"batch: got {args.batch}, measured with {counted(len(images), 'image')}, all there are"
        )
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


def run_calibrate(args: argparse.Namespace) -> None:
    frontier, out = load_frontier(args), check_out_file(args)
    if args.measure is not None:
        check_apart(args, "measure", "those to measure")
        if out.with_suffix(".json") in (out, Path(args.frontier)):
            raise ValueError(
                f"out: got {out}, allowed: another name, as the frontier that is measured goes to "
                f"{out.with_suffix('.json')}"
            )
    net, info = load_network(args, frontier=frontier)
    images = place(net, args, load_data(args, info).images)
    calibration = calibrate(
        net,
        images,
        frontier,
        reconstruct=args.reconstruct,
        batch=args.batch,
        progress=sys.stderr.isatty(),
    )
    calibration.save(out)
    print(
        f"wrote {out}: corrections of {counted(len(calibration.points), 'point')}, "
        f"{counted(len(images), 'image')}"
    )
    if args.measure is not None:
        data = load_data(args, info, args.measure, "measure")
        others = place(net, args, data.images)
        awake = Reference(
            fingerprint_network(net),
            fingerprint_data(others, data.labels),
            # Once for all points.
            Evaluator(net, others, batch=args.batch).logits,
        )
        measurer = Measurer(
            net, others, data.labels, seeds=args.seeds or [0], batch=args.batch, reference=awake
        )
        corrected = _corrected(frontier, measurer)
        corrected.save(out.with_suffix(".json"))
        images_told = counted(len(data), "image")
        print(f"wrote {out.with_suffix('.json')}: the frontier, measured on {images_told}")
        print(corrected.table())


def _corrected(frontier: Frontier, measurer: Measurer) -> Frontier:
    """A frontier with the accuracies that its points have with their corrections in force."""
    net, points = measurer.net, []
    given = frontier.points
    if frontier.reference is not None and frontier.reference not in given:
        given = [frontier.reference, *given]
    for point in given:
        net.set(point)
        setting = tuple(net.control.settings)
        found = measurer.measure([setting], "corrected")[setting]
        point = replace(point, spread=found.spread, images=found.images, seeds=found.seeds)
        points.append(point.with_figures(found.figures))
    return Frontier(points, frontier.objective, frontier.cost, source=frontier.source)


def run_stencils(args: argparse.Namespace) -> None:
    check_out_file(args)
    net, info = load_network(args)
    images = place(net, args, load_data(args, info).images)
    calibrate_stencils(net, images, batch=args.batch)
    save_stencils(net, args.out)
    layers = counted(len(net.layers), "layer")
    print(f"wrote {args.out}: weights of {layers} from {counted(len(images), 'image')}")


def run_demo(args: argparse.Namespace) -> None:
    from drowsy.study.demo import demo

    demo(Path(args.out))


def _check_size(args: argparse.Namespace, study: Study) -> None:
    """Raise before anything is measured where a search could not end."""
    measurer = study.measurer
    check_method(args.method, args.budget, measurer.net.k ** len(measurer.free))


def _show(frontiers: dict[str, Frontier], study: Study) -> None:
    for name, frontier in frontiers.items():
        print(f"\nPareto-optimal settings by {name}\n{frontier.table()}")
    print(f"\nwrote {study.out}: tables (csv), records (json), pictures (png), frontiers (json)")
