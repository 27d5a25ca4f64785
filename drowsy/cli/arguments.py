"""What the command line takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from drowsy import _distribution
from drowsy.cli.commands import (
    run_calibrate,
    run_compare,
    run_cost,
    run_demo,
    run_energy,
    run_inspect,
    run_search,
    run_sensitivity,
    run_stencils,
    run_study,
    run_uniform,
)
from drowsy.cli.inputs import SLEEP
from drowsy.cli.knobs import run_bench, run_evaluate, run_report, run_tune
from drowsy.cli.live import run_live
from drowsy.cli.networks import NAMES
from drowsy.cli.video import FRAMES, run_video
from drowsy.comparison.recipes import RECIPES, SETS
from drowsy.evaluation.tasks import NAMES as TASKS
from drowsy.images.scaling import INTERPOLATIONS
from drowsy.knob.frontier import COSTS
from drowsy.searches.methods import METHODS
from drowsy.sleep import FILLS
from drowsy.tuning.clips.point import COSTS as VIDEO_COSTS
from drowsy.tuning.clips.tune import VIDEO_LEVERS
from drowsy.tuning.levers import LEVERS
from drowsy.tuning.tune import BATCH, MINUTES
from drowsy.video.areas import REFRESH


class Arguments(argparse.Namespace):
    """What was given; commands read it, and nothing changes it."""

    _frozen = False

    def __setattr__(self, name: str, value: Any) -> None:
        if self._frozen:
            raise AttributeError(f"{name}: the arguments of a command stay as they were given")
        super().__setattr__(name, value)


def parse(argv: Sequence[str] | None = None) -> Arguments:
    """The arguments of a command, frozen; ``run`` is the function that works it."""
    args = make_parser().parse_args(argv, namespace=Arguments())
    args._frozen = True
    return args


def read_fraction(text: str) -> Fraction:
    """``1/2`` or ``0.5``."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: a fraction, as 1/2") from error


def read_range(text: str) -> range:
    first, _, last = text.partition(":")
    try:
        span = range(int(first or 0), int(last))
    except ValueError:
        span = range(0)
    if not span or span.start < 0:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, allowed: FIRST:LAST with FIRST below LAST, as 0:2500"
        )
    return span


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="drowsy",
        description="A power-accuracy knob for pretrained CNNs that turns while they run.",
    )
    parser.add_argument("--version", action="version", version=f"drowsy {_distribution.VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> Any:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = command("tune", run_tune, "give a network a knob: every lever, measured here, in a file")
    sub.add_argument("model", metavar="MODEL", help=f"{NAMES} that makes yours")
    sub.add_argument(
        "data",
        metavar="DATA",
        nargs="+",
        help="folder: class subfolders, or a labels CSV; with --video clips",
    )
    _add_tuning(sub)
    _add_details(sub.add_argument_group("network"))
    sub = command("evaluate", run_evaluate, "whether a knob holds on other images, or clips")
    _add_knob(sub)
    group = sub.add_argument_group("images, or clips")
    group.add_argument(
        "--data",
        nargs="+",
        required=True,
        help="folder: class subfolders, or a labels CSV; of a knob for video clips",
    )
    group.add_argument("--labels", help="a labels CSV (file,label) elsewhere")
    group.add_argument("--images", type=read_range, help="FIRST:LAST by sorted name (default: all)")
    _add_frames(group, "of clips")
    sub.add_argument("--batch", type=int, help="images per forward pass (default: 50)")
    sub = command("bench", run_bench, "milliseconds of every setting of a knob, here, in a minute")
    _add_knob(sub)
    sub.add_argument("--batch", type=int, help="images a batch (default: as it was tuned for)")
    sub.add_argument(
        "--seconds", type=float, default=30.0, help="for all settings together (default: 30)"
    )
    sub.add_argument("--out", help="write the knob with what was measured here")
    sub = command("report", run_report, "a knob as one page to send, which needs nothing else")
    _add_knob(sub)
    group = sub.add_argument_group("images, to show views and sleep maps on, or a clip")
    group.add_argument(
        "--data",
        help="folder: class subfolders, a labels CSV, or images alone; of a knob for video a clip",
    )
    group.add_argument("--labels", help="a labels CSV (file,label) elsewhere")
    group.add_argument(
        "--images",
        type=read_range,
        help="FIRST:LAST by sorted name, up to 8 (default: 0:3); of a clip its frames (default: "
        "0:8)",
    )
    group.add_argument("--every", type=int, help="of a clip one frame of so many (default: 1)")
    group.add_argument("--names", metavar="FILE", help="of a clip's classes, a line each")
    sub.add_argument("--out", required=True, help="HTML file")
    sub = command("live", run_live, "a page in the browser on which a knob is turned")
    _add_knob(sub)
    _add_page(sub)
    sub = command("video", run_video, "a network that remembers, on a clip, against its rivals")
    sub.add_argument("clip", metavar="CLIP", help="a file, or a camera such as /dev/video0")
    _add_network(sub)
    sub.add_argument(
        "--refresh", choices=list(REFRESH), default="bands", help="what is awake (default: bands)"
    )
    sub.add_argument(
        "--rate", type=read_fraction, default="1/2", help="what sleeps of a frame (default: 1/2)"
    )
    sub.add_argument("--frames", type=int, help="how many to look at (default: all)")
    sub.add_argument(
        "--every",
        type=int,
        default=1,
        help="answer one frame of so many, and leave the others out (default: 1)",
    )
    sub.add_argument("--out", help="clip to write (.mp4): what sleeps darkened, answers, work, ms")
    sub.add_argument("--device", default="cpu", help="where to run (default: cpu)")
    demo = command("demo", run_demo, "the main job on a network and images that pip delivers")
    demo.add_argument("--out", default="drowsy-demo", help="folder for the results")
    sub = command("inspect", run_inspect, "what conversion does with a network, and why")
    _add_network(sub)
    _add_sleep(sub)
    sub.add_argument(
        "--stages", action="store_true", help="layers that could share a position map (align)"
    )
    _add_kernels(sub)
    _add_network(command("cost", run_cost, "neurons and multiplications by layer (Table I)"))
    for name, run, text in (
        ("sensitivity", run_sensitivity, "each layer alone (Figs. 4 and 5)"),
        ("uniform", run_uniform, "one rate for all layers (Fig. 6)"),
        ("search", run_search, "non-uniform rates (Fig. 7) and their frontier"),
        ("study", run_study, "the paper's whole study (Figs. 4 to 7)"),
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
    sub = command("stencils", run_stencils, "weights of fill stencil, from images without labels")
    _add_network(sub)
    _add_sleep(sub)
    _add_images(sub)
    _add_run(sub)
    sub.add_argument("--out", required=True, help="safetensors file to write")
    sub = command("calibrate", run_calibrate, "corrections of a frontier's points, without labels")
    _add_network(sub)
    _add_sleep(sub, of_frontier=True)
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
        type=read_range,
        help="FIRST:LAST of other images: measure the corrected points on them, into a frontier "
        "file beside --out (.json)",
    )
    calibration.add_argument(
        "--seeds", type=int, nargs="+", help="of the sleep maps that are measured (default: 0)"
    )
    sub = command("compare", run_compare, "ways to save multiplications, side by side")
    _add_network(sub)
    _add_data(sub, required=False)
    _add_run(sub)
    sub.set_defaults(batch=None)
    group = sub.add_argument_group("clips, in place of images")
    group.add_argument(
        "--video", nargs="+", metavar="CLIP", help="files: ways to spend less on their frames"
    )
    _add_frames(group)
    _add_comparison(sub)
    sub = command("energy", run_energy, "latency and joules of a frontier's points, measured here")
    _add_network(sub)
    _add_sleep(sub, of_frontier=True)
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
    group.add_argument("--model", required=True, help=f"{NAMES} that makes yours")
    _add_details(group)


def _add_details(group: Any) -> None:
    """What names a network besides ``model``: ``drowsy.cli.networks.DETAILS``."""
    group.add_argument("--weights", help="safetensors file (names as in state_dict)")
    group.add_argument(
        "--classes", type=int, help="number of classes (of networks with weights of yours)"
    )
    group.add_argument("--resize", type=int, help="shortest side to scale larger images to")
    group.add_argument("--crop", type=int, help="side of the centre crop")
    group.add_argument("--mean", type=float, nargs=3, help="of RGB, on the scale 0 to 1")
    group.add_argument("--std", type=float, nargs=3, help="of RGB, on the scale 0 to 1")


def _add_tuning(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", required=True, help="knob file; table, record and picture go beside")
    sub.add_argument("--labels", help="a labels CSV (file,label) elsewhere")
    sub.add_argument("--images", type=read_range, help="FIRST:LAST by sorted name (default: all)")
    sub.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"to take, about (default: {MINUTES:g})"
    )
    sub.add_argument(
        "--cost",
        choices=list(dict.fromkeys([*COSTS, *VIDEO_COSTS])),
        default="latency",
        help="what is saved (default: latency, here; slowest, of frames, is for --video)",
    )
    sub.add_argument(
        "--levers",
        nargs="+",
        choices=[*LEVERS, *VIDEO_LEVERS],
        metavar="LEVER",
        help=f"some of {', '.join(LEVERS)}, for --video of {', '.join(VIDEO_LEVERS)} (default: all "
        "that save here)",
    )
    sub.add_argument("--batch", type=int, help=f"images a batch (default: {BATCH})")
    sub.add_argument(
        "--video", action="store_true", help="DATA are clips: a knob for the frames of a camera"
    )
    _add_frames(sub)
    sub.add_argument(
        "--metric", choices=TASKS, default="auto", help="task (default: auto, by the outputs)"
    )
    sub.add_argument("--store", help="SQLite file by which a run that was stopped goes on")
    sub.add_argument("--device", default="cpu", help="cpu or cuda")


def _add_frames(group: Any, when: str = "with --video") -> None:
    """How much of clips is read."""
    group.add_argument("--frames", type=int, help=f"{when}, of each at most (default: {FRAMES})")
    group.add_argument("--every", type=int, help=f"{when}, one frame of so many (default: 1)")


def _add_knob(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("knob", metavar="F", help="file that `drowsy tune` or Knob.save wrote")
    sub.add_argument("--device", default="cpu", help="cpu or cuda")
    group = sub.add_argument_group("network (default: as the file tells)")
    group.add_argument("--model", help=f"{NAMES} that makes yours")
    _add_details(group)


def _add_page(sub: argparse.ArgumentParser) -> None:
    shown = sub.add_mutually_exclusive_group(required=True)
    shown.add_argument("--data", help="folder of images: class subfolders, or images alone")
    shown.add_argument("--video", metavar="CLIP", help="a file, shown again and again")
    shown.add_argument("--camera", type=int, metavar="N", help="of this machine: 0, 1, ...")
    sub.add_argument("--names", metavar="FILE", help="names of the classes, a line each")
    sub.add_argument(
        "--refresh",
        choices=list(REFRESH),
        help="let areas of the picture sleep and remember, instead of turning the knob",
    )
    sub.add_argument(
        "--host",
        default="127.0.0.1",
        help="where to listen; any but this machine's own takes a token (default: 127.0.0.1)",
    )
    sub.add_argument("--port", type=int, default=8321, help="(default: 8321)")


def _add_sleep(sub: argparse.ArgumentParser, of_frontier: bool = False) -> None:
    """Options of sleep, which commands that take a frontier read from it."""

    def add(name: str, text: str, kind: Callable[[str], Any] = str) -> None:
        ours = SLEEP[name]
        shown = "the frontier's" if of_frontier else ours
        text = f"{text} (default: {shown})"
        default = None if of_frontier else ours
        sleep.add_argument(f"--{name}", type=kind, default=default, help=text)

    sleep = sub.add_argument_group("sleep")
    add("source", "how maps are drawn")
    add("grain", "which neurons share a bit")
    sleep.add_argument(
        "--streams",
        choices=("layer", "stage", "shifted"),
        default="layer",
        help="maps of each layer's own, shared by the layers of a stage, or complementary from "
        "a layer of a stage to the next (default: layer)",
    )
    add("k", "rates are multiples of 1/k", int)
    add("fill", f"auto (by source and grain), {', '.join(FILLS)}")
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
    group.add_argument("--batch", type=int, help="images per inference (default: 32)")
    group.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), help="(default: float16)"
    )


def _add_data(sub: argparse.ArgumentParser, required: bool = True) -> Any:
    group = sub.add_argument_group("images")
    group.add_argument(
        "--data", required=required, help="folder: class subfolders, or a labels CSV"
    )
    group.add_argument("--labels", help="a labels CSV (file,label) elsewhere")
    return group


def _add_images(sub: argparse.ArgumentParser) -> None:
    group = _add_data(sub)
    group.add_argument("--images", type=read_range, help="FIRST:LAST by sorted name (default: all)")


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
        type=read_range,
        help="FIRST:LAST of other images (a few dozen): correct the network with them at every "
        "setting, so that a search goes by what is left after `drowsy calibrate`",
    )
    group.add_argument(
        "--engine",
        choices=("inprocess", "ray"),
        default="inprocess",
        help="where settings are evaluated: here (default), or by the workers of a Ray cluster",
    )
    group.add_argument("--address", help="of the Ray cluster: auto (default), local or HOST:PORT")


def _add_comparison(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("comparison (images by sorted name, disjoint)")
    group.add_argument("--search", type=read_range, help="FIRST:LAST that operations are chosen on")
    group.add_argument("--report", type=read_range, help="FIRST:LAST that they are reported on")
    group.add_argument(
        "--calibration", type=read_range, help="FIRST:LAST for recipes that calibrate"
    )
    group.add_argument(
        "--savings",
        type=float,
        nargs="+",
        help="of the network's multiplications (default: 0.25 0.5 0.75; of clips 0.5 0.75)",
    )
    group.add_argument("--seeds", type=int, nargs="+", help="of the sleep maps (default: 0 1 2)")
    group.add_argument(
        "--recipes",
        nargs="+",
        choices=[*SETS, *RECIPES],
        metavar="RECIPE",
        help=f"a set of recipes ({', '.join(SETS)}; default: methods) or any of "
        f"{', '.join(RECIPES)}",
    )
    group.add_argument("--budget", type=int, help="settings that each search measures at most")
    group.add_argument(
        "--interpolation",
        choices=INTERPOLATIONS,
        help=f"how images are scaled (default: {INTERPOLATIONS[0]})",
    )
    _add_results(group, "drowsy-compare")


def _add_results(group: Any, out: str) -> None:
    group.add_argument("--out", default=out, help=f"folder for the results (default: {out})")
    group.add_argument("--store", help="SQLite file of evaluated points (default: in --out)")
