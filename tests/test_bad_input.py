"""Bad input is refused with an error that names the argument, the value and what is allowed."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drowsy_kernels import tuning
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from drowsy import models
from drowsy.cli.main import main
from drowsy.comparison.compare import compare as run_compare
from drowsy.comparison.recipes import RECIPES, SETS, Sleep
from drowsy.correction.calibrate import calibrate
from drowsy.correction.stencils import calibrate_stencils, load_stencils, save_stencils
from drowsy.deployment.deploy import deploy
from drowsy.energy import Meter, NoMeter, profile
from drowsy.evaluation.anything import OUTPUTS
from drowsy.evaluation.detection import detection
from drowsy.evaluation.evaluator import Evaluator
from drowsy.evaluation.intervals import interval, paired
from drowsy.evaluation.measurer import Measurer
from drowsy.evaluation.metrics import Counts, Task
from drowsy.evaluation.outputs import taken
from drowsy.evaluation.ray_engine import RayEngine
from drowsy.evaluation.restoration import find_peak, restoration
from drowsy.evaluation.segmentation import segmentation
from drowsy.evaluation.store import Store
from drowsy.files.tensors import read_described
from drowsy.governor import Governor
from drowsy.graph.convert import convert, revert
from drowsy.graph.inspection import inspect_kernels
from drowsy.graph.stages import align
from drowsy.knob.control import Control
from drowsy.knob.frontier import Frontier, NoSuchPoint
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import LayerSetting, Schedule
from drowsy.network.calibration import Calibration
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.searches.methods import check_method, search
from drowsy.sleep import Grain, Lfsr, SleepSpec, levels, unpack_bitmap
from drowsy.video.stream import Stream

Call = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A call (which may write into a folder of its own), and the error that it must raise."""

    name: str
    call: Call
    error: type[Exception]
    message: str


# --- what the calls below share ------------------------------------------------------------------


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, 5)
    ).eval()


class Overwriting(nn.Module):
    """Overwrites a tensor of which a view is read later."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        rows = x.flatten(2)
        return x.relu_().sum((2, 3)) + rows.sum(2)


def hooked() -> nn.Module:
    found = nn.Sequential(nn.Conv2d(3, 4, 3))
    found[0].register_forward_hook(lambda *_: None)
    return found


def net(**options: Any) -> DrowsyNet:
    return convert(model(), **options)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8)


def evaluator(pixels: Tensor, labels: Tensor | None = None, **options: Any) -> Evaluator:
    return Evaluator(net(), pixels, labels, **options)


ONE = {"labels": torch.tensor([1]), "scores": torch.tensor([0.9])}


def maps(labels: object, task: Task) -> object:
    """A task of maps as large as the images, of 5 channels."""
    made = convert(nn.Sequential(nn.Conv2d(3, 5, 1)).eval())
    return Evaluator(made, images(), labels, task=task).evaluate((0,))


def detected(output: Any) -> Counts:
    task = detection()
    found = task.take(output, images(len(output)))
    return task.count(found, found, None)


def spoiled(value: float) -> Tensor:
    pixels = images()
    pixels[2, 0, 1, 1] = value
    return pixels


def stencil_file(folder: Path, **options: Any) -> Path:
    made = net(**options)
    calibrate_stencils(made, images())
    save_stencils(made, folder / "tables.safetensors")
    return folder / "tables.safetensors"


def calibration() -> Calibration:
    made = net()
    made.set(0.5)
    return calibrate(made, images())


def rewritten(folder: Path, **changes: Any) -> Calibration:
    """Load a calibration file in whose header something else was written."""
    path = folder / "c.safetensors"
    calibration().save(path)
    tensors, about = read_described(path, "calibration")
    header = {"drowsy": json.dumps(about | changes)}
    pytest.importorskip("safetensors.torch").save_file(tensors, path, header)
    return Calibration.load(path)


def wider() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1)).eval()


def overflowing(_: Path) -> object:
    made = net()
    made.set(0.5)
    with torch.no_grad():
        made.layers["2"].weight.mul_(1e38)
    return calibrate(made, 1e5 * images())


class Unasked:
    """An engine that must not be asked."""

    def evaluate(self, *_: object) -> Any:
        raise AssertionError("something was evaluated")


class Pictures(Dataset[Any]):
    """A data set whose items nobody made tensors of."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, place: int) -> tuple[object, int]:
        return object(), place


def deep(layers: int) -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    return nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(layers)), *head).eval()


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x).mean((2, 3))
        return y, -y


def schedule_file(folder: Path, **changes: Any) -> Schedule:
    """Load a schedule file in which keys are replaced, or dropped where the value is None."""
    data = Schedule(8, {"0": LayerSetting(Fraction(1, 2))}).to_dict() | changes
    path = folder / "schedule.json"
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    return Schedule.load(path)


def layer_entry(folder: Path, **changes: Any) -> Schedule:
    entry = {"rate": "1/2", "grain": "neuron", "fill": "zero"} | changes
    return schedule_file(folder, layers={"conv1": entry})


def truncated(folder: Path, what: Any, load: Callable[[Path], Any]) -> None:
    path = folder / "file.json"
    what.save(path)
    path.write_text(path.read_text()[:-20])
    load(path)


def frontier() -> Frontier:
    setting = Schedule(8, {"0": LayerSetting(Fraction(1, 2))})
    return Frontier([OperatingPoint(setting, saving=0.5, top1=0.9)])


def meter(folder: Path, device: Any = "cpu", **options: Any) -> Meter:
    """A meter of a CPU whose RAPL tree is in the folder, and of which no counter advances."""
    zone = folder / "intel-rapl:0"
    zone.mkdir()
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "9"), ("energy_uj", "0")):
        (zone / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drowsy.sensors.rapl.RAPL", folder)
        return Meter(device, **options)


def triton_on_the_cpu() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drowsy_kernels.launch.interpreted", lambda: False)
        layer = DrowsyConv2d(2, 3, 1, rate=0.5, backend="triton")
        with torch.no_grad():
            layer(torch.randn(1, 2, 4, 4))


def without_gradient(layer: DrowsyConv2d, x: Tensor) -> None:
    with torch.no_grad():
        layer(x)


class CommandFailed(Exception):
    """A ``drowsy`` command that exited with 2; its message is what it printed to stderr."""


def drowsy(*argv: object) -> None:
    """Run a command of ``drowsy``."""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            code = main([str(argument) for argument in argv])
        except SystemExit as stopped:  # argparse
            code = stopped.code
    printed = errors.getvalue()
    assert "Traceback" not in printed
    if code == 2:
        raise CommandFailed(printed)


def study(folder: Path, *options: object, model: str = "caffenet_cifar") -> None:
    """``drowsy uniform`` on the images in ``folder``."""
    drowsy("uniform", "--model", model, "--data", folder, "--out", folder / "out", *options)


def frontier_file(folder: Path, source: str | None = "lattice", **entry: Any) -> Path:
    """A frontier of a network that comes with drowsy."""
    entry = {"rate": Fraction(1, 2), "grain": "position", "fill": "nearest"} | entry
    setting = Schedule(8, {"conv1": LayerSetting(**entry)})
    point = OperatingPoint(setting, saving=0.5, top1=0.9)
    Frontier([point], source=source).save(folder / "frontier.json")
    return folder / "frontier.json"


def energy(folder: Path, *options: object) -> None:
    """``drowsy energy`` on images and a frontier that are in order."""
    frontier_file(folder)
    files = ("--data", with_images(folder), "--frontier", folder / "frontier.json")
    drowsy("energy", "--model", "caffenet_cifar", *files, "--out", folder / "out.json", *options)


def calibrate_command(folder: Path, *options: object) -> None:
    """``drowsy calibrate`` on images and a frontier that are in order."""
    frontier_file(folder)
    files = ("--data", with_images(folder), "--frontier", folder / "frontier.json")
    out = ("--out", folder / "c.safetensors")
    drowsy("calibrate", "--model", "caffenet_cifar", *files, *out, *options)


def spoiled_source(folder: Path) -> Path:
    data = json.loads(frontier_file(folder).read_text()) | {"source": 3}
    return with_file(folder / "spoiled.json", json.dumps(data))


def compare(**options: Any) -> None:
    """A comparison of a network that is in order on four images."""
    recipes = [recipe for recipe in SETS["methods"] if not getattr(recipe, "calibrates", False)]
    options = {"search": range(2), "report": range(2, 4), "recipes": recipes} | options
    run_compare(model(), images(), torch.zeros(4, dtype=torch.int64), **options)


def compare_command(folder: Path, *options: object) -> None:
    files = ("--data", with_images(folder), "--out", folder / "out")
    drowsy("compare", "--model", "caffenet_cifar", *files, *options)


def with_images(folder: Path, *, labels: str | None = None, size: int = 32) -> Path:
    """Put three images, and maybe a labels CSV, into a folder."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    for i in range(3):
        image.new("RGB", (size, size), (i, 0, 0)).save(folder / f"{i}.png")
    if labels is not None:
        (folder / "labels.csv").write_text(labels)
    return folder


def with_file(path: Path, content: str = "this is no such file") -> Path:
    path.write_text(content)
    return path


def without_cuda(call: Call) -> Call:
    def run(folder: Path) -> object:
        if torch.cuda.is_available():
            pytest.skip("CUDA is here")
        return call(folder)

    return run


def with_one_gpu(call: Call) -> Call:
    def run(folder: Path) -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("torch.cuda.is_available", lambda: True)
            patch.setattr("torch.cuda.device_count", lambda: 1)
            return call(folder)

    return run


def resnet20(folder: Path) -> Path:
    """A file of random weights."""
    tensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    state = models.create("cifar_resnet20").state_dict()
    tensors.save_file(state, folder / "resnet20.safetensors")
    return folder / "resnet20.safetensors"


# --- the table -----------------------------------------------------------------------------------

CASES = [
    # Rates.
    Case("rate of 1", lambda _: net().set(1.0), ValueError, r"rate: got 1\.0, .*0 to 7/8"),
    Case("rate below 0", lambda _: net().set(-0.125), ValueError, r"rate: got -0\.125, allowed"),
    Case("rate off the grid", lambda _: net().set(0.3), ValueError, r"0\.3, .*multiples of 1/8"),
    Case("rate off a grid of 5", lambda _: net(k=5).set(0.25), ValueError, "multiples of 1/5"),
    Case("rate NaN", lambda _: net().set(math.nan), ValueError, "rate: got nan, allowed"),
    Case("rate infinite", lambda _: net().set(math.inf), ValueError, "rate: got inf, allowed"),
    Case("rate a text", lambda _: net().set("half"), TypeError, "rate: got 'half', allowed"),
    Case("rate a bool", lambda _: net().set(True), TypeError, "rate: got True, allowed"),
    Case("rate of a layer", lambda _: DrowsyConv2d(2, 2, 1, rate=0.3), ValueError, r"got 0\.3"),
    Case(
        "frontier for a setting",
        lambda _: net().set(frontier()),
        TypeError,
        r"setting: got Frontier\(points=1, .*\), allowed: one of its points, as frontier\.at\(",
    ),
    Case("no setting", lambda _: net().set(None), TypeError, "rate: got None, allowed"),
    Case(
        "unknown layer",
        lambda _: net().set({"0": 0.5, "conv9": 0.5}),
        ValueError,
        r"layer: 'conv9' unknown; there are 0, 2",
    ),
    Case("k of 1", lambda _: net(k=1), ValueError, "k: got 1, .*2 to 256"),
    Case("k of 257", lambda _: net(k=257), ValueError, "k: got 257, .*2 to 256"),
    Case("k of 8.0", lambda _: net(k=8.0), ValueError, r"k: got 8\.0, allowed: an integer"),
    # Fill, grain, source, backend, seed.
    Case(
        "unknown fill",
        lambda _: net().set(0.5, fill="doze"),
        ValueError,
        "fill: got 'doze', allowed: auto, zero, rescale",
    ),
    Case("fill of convert", lambda _: net(fill="doze"), ValueError, "fill: got 'doze', allowed"),
    Case(
        "fill of a layer",
        lambda _: DrowsyConv2d(2, 2, 1, fill="auto"),
        ValueError,
        "fill: got 'auto', allowed: zero, rescale",
    ),
    Case(
        "fill from neighbours of a layer",
        lambda _: DrowsyConv2d(2, 2, 1, fill="nearest", sleep=SleepSpec(grain="channel:2")),
        ValueError,
        "fill: got 'nearest' with grain channel:2, allowed: zero, rescale; .*single positions",
    ),
    Case(
        "fill from neighbours of convert",
        lambda _: net(fill="interpolate", grain="tile:2x4"),
        ValueError,
        "fill: got 'interpolate' with grain tile:2x4, allowed: zero, rescale",
    ),
    Case(
        "fill from neighbours of a network",
        lambda _: net(grain="channel").set(0.5, fill="nearest"),
        ValueError,
        "layer 0: fill: got 'nearest' with grain channel, allowed: zero, rescale",
    ),
    Case(
        "grain of a network",
        lambda _: net(fill="nearest").set_grain("channel"),
        ValueError,
        "layer 0: fill: got 'nearest' with grain channel, allowed: zero, rescale",
    ),
    Case(
        "stencil without a table",
        lambda _: net().set(0.5, fill="stencil"),
        ValueError,
        "layer 0: fill: got 'stencil' for a layer without a table.*calibrate_stencils",
    ),
    Case(
        "stencil of convert",
        lambda _: net(fill="stencil"),
        ValueError,
        "fill: got 'stencil' for a layer without a table.*calibrate_stencils",
    ),
    Case(
        "table of another size",
        lambda _: DrowsyConv2d(3, 4, 1).set_stencil(torch.zeros(256, 9, 5)),
        ValueError,
        r"table: got shape \(256, 9, 5\), allowed: \(256, 9, 4\)",
    ),
    Case(
        "table of integers",
        lambda _: DrowsyConv2d(3, 4, 1).set_stencil(torch.zeros(256, 9, 4).int()),
        TypeError,
        "table: got torch.int32, allowed: a floating-point tensor",
    ),
    Case(
        "table that is no tensor",
        lambda _: DrowsyConv2d(3, 4, 1).set_stencil([1.0]),  # type: ignore[arg-type]
        TypeError,
        "table: got list, allowed: a floating-point tensor",
    ),
    Case(
        "stencils of a model",
        lambda _: calibrate_stencils(model(), images()),  # type: ignore[arg-type]
        TypeError,
        "net: got Sequential, allowed: a DrowsyNet",
    ),
    Case(
        "stencils of NaN",
        lambda _: calibrate_stencils(net(), spoiled(math.nan)),
        ValueError,
        "images: number 2 holds NaN",
    ),
    Case(
        "stencils of no batch",
        lambda _: calibrate_stencils(net(), images(), batch=0),
        ValueError,
        "batch: got 0, allowed: 1 or more",
    ),
    Case(
        "stencils of a grain without neighbours",
        lambda _: calibrate_stencils(net(grain="channel"), images()),
        ValueError,
        "net: got grain channel, allowed: .*single positions",
    ),
    Case(
        "saving no stencils",
        lambda path: save_stencils(net(), path / "tables.safetensors"),
        ValueError,
        "net: no layer has a table, allowed: after drowsy.calibrate_stencils",
    ),
    Case(
        "stencils of no file",
        lambda path: load_stencils(net(), path / "none"),
        FileNotFoundError,
        "stencils: no file .*none",
    ),
    Case(
        "stencils of another format",
        lambda path: load_stencils(net(), with_file(path / "none.safetensors")),
        ValueError,
        "stencils: .*not a whole safetensors file",
    ),
    Case(
        "stencils of another network",
        lambda path: load_stencils(net(), stencil_file(path, skip=["0"])),
        ValueError,
        "stencils: .* has no table for 0$",
    ),
    # Calibration.
    Case(
        "calibrating a model",
        lambda _: calibrate(model(), images()),  # type: ignore[arg-type]
        TypeError,
        "net: got Sequential, allowed: a DrowsyNet",
    ),
    Case(
        "calibrating on NaN",
        lambda _: calibrate(net(), spoiled(math.nan)),
        ValueError,
        "images: number 2 holds NaN",
    ),
    Case(
        "calibrating on no images",
        lambda _: calibrate(net(), []),
        ValueError,
        "images: got no batches of tensors, allowed: a tensor or a loader",
    ),
    Case(
        "calibrating on nothing",
        lambda _: calibrate(net(), None),  # type: ignore[arg-type]
        ValueError,
        "images: got no batches of tensors, allowed: a tensor or a loader",
    ),
    Case(
        "reconstructing from too few",
        lambda _: calibrate(net(), images(3), reconstruct=True),
        ValueError,
        "images: got 3, allowed: 4 or more to reconstruct from",
    ),
    Case(
        "calibrating in no batch",
        lambda _: calibrate(net(), images(), batch=0),
        ValueError,
        "batch: got 0, allowed: 1 or more",
    ),
    Case(
        "seed of a calibration",
        lambda _: calibrate(net(), images(), seed=-1),
        ValueError,
        "seed: got -1, allowed: 0 to",
    ),
    *(
        Case(
            f"calibrating at {name}",
            lambda _, points=points: calibrate(net(), images(), points),
            TypeError,
            f"points: got {told}, allowed: a Frontier, or Schedules, OperatingPoints or rates",
        )
        for name, points, told in (
            ("a text", "half", "'half'"),
            ("a mapping", {"0": 0.5}, r"\{'0': 0\.5\}"),
            ("mappings", [{"0": 0.5}], r"\{'0': 0\.5\}"),
            ("names", ["0", "2"], "'0'"),
            ("a truth", True, "True"),
            ("one nothing", [None], "None"),
        )
    ),
    Case(
        "calibrating at a rate off the grid",
        lambda _: calibrate(net(), images(), 0.3),
        ValueError,
        r"rate: got 0\.3, allowed: multiples of 1/8",
    ),
    Case(
        "calibrating another k",
        lambda _: calibrate(net(k=4), images(), frontier()),
        ValueError,
        "schedule: has k = 8, the network has k = 4",
    ),
    Case(
        "calibrating where outputs overflow",
        overflowing,
        ValueError,
        "layer 2: its outputs are not finite, allowed: images",
    ),
    Case(
        "calibration that is a path",
        lambda _: setattr(net(), "calibration", "c.safetensors"),
        TypeError,
        r"calibration: got str, allowed: a Calibration .*Calibration\.load",
    ),
    Case(
        "calibration of other layers",
        lambda _: setattr(net(skip=["0"]), "calibration", calibration()),
        ValueError,
        r"calibration: is of 2 layers with k = 8 \(0, 2 \.\.\.\), the network has 1 with",
    ),
    Case(
        "calibration of other shapes",
        lambda _: setattr(convert(wider()), "calibration", calibration()),
        ValueError,
        r"calibration: layer 2: scale: got shape \(4,\), the network's layer has \(6,\)",
    ),
    Case(
        "calibration of a layer that is not there",
        lambda _: setattr(
            net(), "calibration", Calibration(8, ("0", "2"), (1, 0), (1, 1), {(1, 1): {"1": None}})
        ),
        ValueError,
        r"calibration: its point \(1, 1\) is of other layers than it has",
    ),
    Case(
        "calibration of no file",
        lambda folder: Calibration.load(folder / "none"),
        FileNotFoundError,
        "calibration: no file .*none",
    ),
    Case(
        "calibration of another format",
        lambda folder: Calibration.load(with_file(folder / "c.safetensors")),
        ValueError,
        r"calibration: .*c\.safetensors is not a whole calibration file",
    ),
    Case(
        "calibration of a negative rate",
        lambda folder: rewritten(folder, settings=[[4, -1]]),
        ValueError,
        r"c\.safetensors: settings: got \[\[4, -1\]\], allowed: lists of 2 integers from 0 to 7",
    ),
    Case(
        "calibration of NaN",
        lambda folder: rewritten(folder, norms=[math.nan, 1.0]),
        ValueError,
        r"c\.safetensors: norms: got \[nan, 1\.0\], allowed: 2 finite numbers, 0 or more",
    ),
    Case(
        "calibration of stencils",
        lambda folder: Calibration.load(stencil_file(folder)),
        ValueError,
        "calibration: .*format: got None, allowed: 'drowsy.calibration'",
    ),
    Case("unknown grain", lambda _: net(grain="row"), ValueError, "grain: got 'row', .*tile:MxN"),
    Case("grain of no cells", lambda _: net(grain="position:0"), ValueError, "grain: .*position:0"),
    Case("half a tile", lambda _: net(grain="tile:4"), ValueError, "grain: got 'tile:4', allowed"),
    Case("grain a number", lambda _: net().set_grain(4), TypeError, "grain: got 4, allowed"),
    Case("impossible grain", lambda _: Grain("tile"), ValueError, "grain: .*positive G, M, N"),
    Case(
        "unknown source",
        lambda _: net(source="dice"),
        ValueError,
        "source: got 'dice', allowed: bernoulli, stratified, lattice, fovea, bluenoise, detail, "
        "lfsr",
    ),
    Case(
        "blue noise of channels",
        lambda _: net(source="bluenoise", grain="channel"),
        ValueError,
        "grain: got channel with source bluenoise, allowed: grains of single positions",
    ),
    Case(
        "blue noise made to tiles",
        lambda _: net(source="bluenoise").set_grain("tile:4x2"),
        ValueError,
        "layer 0: grain: got tile:4x2 with source bluenoise",
    ),
    Case(
        "detail of channels",
        lambda _: net(source="detail", grain="channel"),
        ValueError,
        "grain: got channel with source detail, allowed: grains of single positions",
    ),
    Case(
        "detail without pictures",
        lambda _: levels(SleepSpec("detail"), (2, 4, 8, 8), torch.tensor([0, 0])),
        ValueError,
        "source detail: got 0 pictures for the maps of 2 images, allowed: as many",
    ),
    Case(
        "detail of another batch",
        lambda _: levels(
            SleepSpec("detail"),
            (2, 4, 8, 8),
            torch.tensor([0, 0]),
            torch.zeros(3, 8, 8, dtype=torch.int32),
        ),
        ValueError,
        "source detail: got 3 pictures for the maps of 2 images, allowed: as many",
    ),
    Case(
        "unknown option of a source",
        lambda _: net(source="lfsr:length=3"),
        ValueError,
        "source lfsr: got option 'length=3', allowed: width, taps, engines, seeding",
    ),
    Case(
        "option of a source without options",
        lambda _: net(source="bernoulli:p=3"),
        ValueError,
        "source bernoulli: .*allowed: none",
    ),
    Case("lfsr of 1 bit", lambda _: Lfsr(width=1), ValueError, "lfsr width: got 1, .*2 to 20"),
    Case("lfsr of 21 bits", lambda _: Lfsr(width=21), ValueError, "lfsr width: got 21, .*2 to 20"),
    Case("lfsr tap outside", lambda _: Lfsr(taps=(4,)), ValueError, r"lfsr taps: .*1 to 3"),
    Case("lfsr without taps", lambda _: Lfsr(taps=()), ValueError, r"lfsr taps: got \(\)"),
    Case(
        "lfsr that is too short",
        lambda _: net(source="lfsr:width=4,taps=4.2"),
        ValueError,
        r"lfsr taps: \(4, 2\) visit \d+ states, a maximal register of 4 bits visits 15",
    ),
    Case("lfsr without engines", lambda _: Lfsr(engines=0), ValueError, "lfsr engines: got 0"),
    Case(
        "lfsr at state 0",
        lambda _: Lfsr(seeding=(0,)),
        ValueError,
        r"lfsr seeding: got \(0,\), allowed: states 1 to 7",
    ),
    Case(
        "lfsr with some states",
        lambda _: Lfsr(engines=4, seeding=(1, 2)),
        ValueError,
        "lfsr seeding: got 2 states, allowed: none, 1 or 4",
    ),
    *(
        Case(
            f"input of {dims} dimensions",
            lambda _, dims=dims: DrowsyConv2d(3, 4, 1, rate=0.5).requires_grad_(False)(
                torch.ones((3,) * dims)
            ),
            ValueError,
            r"input: got \(3, .*\), allowed: \[N, C, H, W\]",
        )
        for dims in (2, 5)
    ),
    Case(
        "activation a number",
        lambda _: DrowsyConv2d(3, 4, 1, activation=3),
        TypeError,
        "activation: got 3, allowed: none, relu",
    ),
    Case(
        "clock of 32 bits",
        lambda _: levels(SleepSpec(), (1, 2, 3, 3), torch.zeros(2, dtype=torch.int32)),
        ValueError,
        r"clock: got torch.int32 \(2,\), allowed: int64 \[2\]",
    ),
    Case("stream", lambda _: SleepSpec(stream=-1), ValueError, "stream: got -1, allowed: 0 to"),
    Case(
        "half a stream", lambda _: SleepSpec(stream=1.5), ValueError, r"stream: got 1\.5, .*integer"
    ),
    Case(
        "true stream", lambda _: SleepSpec(stream=True), ValueError, "stream: got True, .*integer"
    ),
    Case("half a phase", lambda _: SleepSpec(phase=0.5), ValueError, r"phase: got 0\.5, .*integer"),
    Case("true phase", lambda _: SleepSpec(phase=True), ValueError, "phase: got True, .*integer"),
    Case(
        "half tile",
        lambda _: Grain("tile", 1.5, 2),
        ValueError,
        r"grain: got kind=.tile., positions=1\.5, ",
    ),
    Case(
        "true grain",
        lambda _: Grain("channel", 0, True),
        ValueError,
        "grain: got kind=.*channels=True",
    ),
    Case(
        "lfsr of two widths",
        lambda _: net(source="lfsr:width=3.4"),
        ValueError,
        r"source lfsr: got option 'width=3\.4', allowed: width, taps, engines, seeding",
    ),
    Case(
        "lfsr with an option twice",
        lambda _: net(source="lfsr:width=3,width=4"),
        ValueError,
        "source lfsr: got option 'width=4', allowed: .*each once",
    ),
    Case(
        "unknown backend",
        lambda _: net(backend="cuda"),
        ValueError,
        "backend: got 'cuda', allowed: auto, torch, triton",
    ),
    Case("seed below 0", lambda _: net(seed=-1), ValueError, "seed: got -1, allowed: 0 to"),
    Case(
        "seed of 64 bits",
        lambda _: net().reseed(2**63),
        ValueError,
        "seed: got 9223372036854775808",
    ),
    Case("seed a float", lambda _: net().reseed(1.5), TypeError, r"seed: got 1\.5, .*an integer"),
    Case("seed a bool", lambda _: Control(1, True), TypeError, "seed: got True, .*an integer"),
    Case("image below 0", lambda _: net().reseed(0, -3), ValueError, "image: got -3, allowed"),
    Case(
        "unknown activation",
        lambda _: DrowsyConv2d(2, 2, 1, activation="swish"),
        ValueError,
        "activation: got 'swish', allowed: none, relu",
    ),
    Case(
        "bitmap of another type",
        lambda _: unpack_bitmap(torch.zeros(1, 1, 1), 8),
        ValueError,
        r"bitmap: got torch\.float32 .*allowed: int32",
    ),
    # Models.
    Case("no model", lambda _: convert("resnet18"), TypeError, "model: got str, .*nn.Module"),
    Case("training", lambda _: convert(model().train()), ValueError, r"model: .*model\.eval\(\)"),
    Case(
        "training in part",
        lambda _: convert(nn.Sequential(model(), nn.Dropout().train()).requires_grad_(False)),
        ValueError,
        "model: is in training mode",
    ),
    Case(
        "no convolution",
        lambda _: convert(nn.Sequential(nn.Linear(3, 3)).eval()),
        ValueError,
        "model: has no nn.Conv2d",
    ),
    Case(
        "hooked convolution alone",
        lambda _: convert(hooked().eval()),
        ValueError,
        "model: has no nn.Conv2d to convert; 0: it has hooks",
    ),
    Case(
        "deploy a network that overwrites a view",
        lambda _: deploy(convert(Overwriting().eval()), torch.zeros(1, 3, 4, 4)),
        ValueError,
        "net: relu_ overwrites memory that sum_2 reads through flatten",
    ),
    Case("revert a plain model", lambda _: revert(model()), TypeError, "net: got Sequential"),
    Case("evaluate a plain model", lambda _: Evaluator(model(), images()), TypeError, "net: got"),
    Case("search a plain model", lambda _: search(model(), images()), TypeError, "net: got"),
    Case(
        "too few labels in a list",
        lambda _: search(net(), images(), [0]),
        ValueError,
        r"labels: got shape \(1,\) for 4 images, allowed: \(4,\)",
    ),
    *(
        Case(
            f"labels of {name}",
            lambda _, labels=labels: search(net(), images(), labels),
            TypeError,
            f"labels: got {told}, allowed",
        )
        for name, labels, told in (
            ("text", ["cat"] * 4, "<U3 in a list"),
            ("fractions", [0.5] * 4, "float64 in a list"),
            ("truths", [True] * 4, "bool in a list"),
            ("a loader", DataLoader(torch.zeros(4, dtype=torch.int64)), "DataLoader"),
            ("a name", "labels.csv", "str"),
            ("a number", 3, "int"),
        )
    ),
    *(
        Case(
            f"metric {name}",
            lambda _, metric=metric: search(net(), images(), metric=metric),
            error,
            f"metric: got {told}, allowed: auto, classification, segmentation",
        )
        for name, metric, error, told in (
            ("unknown", "accuracy", ValueError, "'accuracy'"),
            ("a number", 3, TypeError, "3"),
        )
    ),
    Case(
        "a metric of one number",
        lambda _: search(net(), images(), metric=lambda outputs, awake, targets: 1.0),
        ValueError,
        "metric: gave float for 4 images, allowed: a number of each",
    ),
    Case(
        "a metric of too few numbers",
        lambda _: search(net(), images(), metric=lambda outputs, awake, targets: outputs[:3, 0]),
        ValueError,
        r"metric: gave shape \(3,\) for 4 images, allowed: a number of each",
    ),
    Case(
        "a metric that gives NaN",
        lambda _: search(net(), images(), metric=lambda outputs, *_: outputs[:, 0] * math.nan),
        ValueError,
        "metric: gave nan for image 0 of 4, whose outputs are finite, allowed: a finite number",
    ),
    Case(
        "a metric that no file could hold",
        lambda _: search(net(), images(), metric=lambda outputs, *_: outputs[:, 0] * 0 - 2.0**80),
        ValueError,
        r"metric: gave -1.2\d+e\+24 for image 0 of 4, .* a finite number of each, up to 2\*\*64",
    ),
    Case(
        "a task that stores would take for a classification",
        lambda _: replace(OUTPUTS, told=None),
        ValueError,
        "told: got None for outputs, allowed: what decides its results",
    ),
    Case(
        "objective of another task",
        lambda _: search(net(), images(), metric="outputs", objective="top1"),
        ValueError,
        "objective: got 'top1', allowed: score",
    ),
    Case(
        "labels of outputs that are only compared",
        lambda _: search(net(), images(), [0] * 4, metric="outputs"),
        ValueError,
        "labels: got some, allowed: none",
    ),
    Case(
        "too few targets of one's own",
        lambda _: search(net(), images(), [0] * 3, metric=lambda outputs, *_: outputs[:, 0]),
        ValueError,
        "labels: got 3 for 4 images, allowed: one of each",
    ),
    Case(
        "segmentation of logits of images",
        lambda _: search(net(), images(), metric="segmentation"),
        ValueError,
        r"model: its output has shape \(\d, 5\) for \d images, allowed: one tensor of logits",
    ),
    Case(
        "detection of logits",
        lambda _: search(net(), images(), metric="detection"),
        TypeError,
        "model: its output is Tensor, allowed: a list with boxes",
    ),
    *(
        Case(
            f"segmentation, labels {name}",
            lambda _, labels=labels: maps(labels, segmentation()),
            error,
            message,
        )
        for name, labels, error, message in (
            ("of one dimension", torch.zeros(4, dtype=torch.int64), ValueError, r"shape \(4,\)"),
            ("of fractions", torch.zeros(4, 8, 8), TypeError, r"labels: got torch\.float32"),
            ("a list", [0] * 4, TypeError, "labels: got list, allowed: a tensor of integers"),
            (
                "beyond the classes",
                torch.full((4, 8, 8), 7),
                ValueError,
                "labels: got 7, allowed: 0 to 4, the network's classes, or 255",
            ),
        )
    ),
    *(
        Case(
            f"restoration, targets {name}",
            lambda _, targets=targets: maps(targets, restoration(1.0)),
            error,
            message,
        )
        for name, targets, error, message in (
            ("of integers", torch.zeros(4, 5, 8, 8, dtype=torch.int64), TypeError, "torch.int64"),
            ("of three dimensions", torch.zeros(4, 8, 8), ValueError, r"shape \(4, 8, 8\) for 4"),
            ("that are NaN", torch.full((4, 5, 8, 8), math.nan), ValueError, "NaN or infinity"),
            (
                "of another size",
                torch.zeros(4, 5, 4, 4),
                ValueError,
                r"labels: got shape \(4, 5, 4, 4\) for outputs \(4, 5, 8, 8\), allowed",
            ),
        )
    ),
    Case(
        "restoration of images of an unknown range",
        lambda _: find_peak(torch.tensor([0.0, 40.0])),
        ValueError,
        "metric: images from 0 to 40, whose range is not known, allowed: 0 to 1",
    ),
    Case("peak of 0", lambda _: restoration(0), ValueError, "peak: got 0, allowed: a finite"),
    Case("peak in text", lambda _: restoration("1"), TypeError, "peak: got '1', allowed"),  # type: ignore[arg-type]
    Case("border of -1", lambda _: restoration(1, border=-1), ValueError, "border: got -1"),
    Case(
        "border as large as the image",
        lambda _: maps(None, restoration(1, border=4)),
        ValueError,
        r"border: got 4, allowed: less than half of the outputs' \(8, 8\) pixels",
    ),
    Case(
        "luma of five channels",
        lambda _: maps(None, restoration(1, luma=True)),
        ValueError,
        "luma: got outputs of 5 channels, allowed: 3",
    ),
    Case("ignored label of -1", lambda _: segmentation(-1), ValueError, "ignored: got -1"),
    Case("score of 2", lambda _: detection(2), ValueError, "score: got 2, allowed: 0 to 1"),
    Case("overlap in text", lambda _: detection(overlap="a"), TypeError, "overlap: got 'a'"),  # type: ignore[arg-type]
    *(
        Case(
            f"detection, {name}",
            lambda _, output=output: detected(output),
            error,
            message,
        )
        for name, output, error, message in (
            (
                "boxes of sizes",
                [{"boxes": torch.tensor([[5.0, 5, 2, 2]]), **ONE}],
                ValueError,
                r"boxes: got \[5.0, 5.0, 2.0, 2.0\], allowed: corners",
            ),
            (
                "scores of logits",
                [{"boxes": torch.zeros(1, 4), **ONE, "scores": torch.tensor([3.0])}],
                ValueError,
                "model: a box scores 3, allowed: 0 to 1",
            ),
            (
                "no scores",
                [{"boxes": torch.zeros(1, 4), "labels": ONE["labels"]}],
                TypeError,
                "model: its output: an image lacks scores",
            ),
            (
                "two boxes of one label",
                [{"boxes": torch.zeros(2, 4), **ONE}],
                ValueError,
                "model: its output: an image has shapes",
            ),
        )
    ),
    Case(
        "targets that are no boxes",
        lambda _: detection().check(torch.zeros(4), images()),
        TypeError,
        "labels: got Tensor, allowed: a list with boxes",
    ),
    Case(
        "outputs of another shape than awake",
        lambda _: OUTPUTS.count(torch.zeros(2, 3), torch.zeros(2, 4), None),
        ValueError,
        r"model: its floating-point outputs have shapes \[\(2, 3\)\], and \[\(2, 4\)\] awake",
    ),
    Case(
        "outputs without a row an image",
        lambda _: taken({"loss": torch.tensor(1.0)}, 4),
        ValueError,
        r"model: its output\['loss'\] has shape \(\) for 4 images, allowed: a row for each",
    ),
    Case(
        "outputs that are text",
        lambda _: taken(("a", "b"), 4),
        TypeError,
        r"model: its output\[0\] is str, allowed: tensors",
    ),
    *(
        Case(f"interval of {name}", call, ValueError, message)
        for name, call, message in (
            ("nothing", lambda _: interval([]), r"values: got shape \(0,\), allowed: \[images\]"),
            ("NaN", lambda _: interval([1, math.nan]), "values: got NaN or infinity, allowed"),
            ("three axes", lambda _: interval([[[1.0]]]), r"values: got shape \(1, 1, 1\)"),
            ("other images", lambda _: paired([1, 2], [1]), "others: got 1 images, allowed: 2"),
        )
    ),
    Case(
        "labels beside a loader's own",
        lambda _: search(net(), [(images(), torch.zeros(4))], [0] * 4),
        ValueError,
        "labels: got some beside those of images, allowed: one of both",
    ),
    Case(
        "images of an array of bytes",
        lambda _: search(net(), np.zeros((4, 3, 8, 8), np.uint8)),
        TypeError,
        "images: got an array of uint8, allowed: floating-point numbers",
    ),
    *(
        Case(
            f"images of {name}",
            lambda _, given=given: search(net(), given),
            TypeError,
            f"images: got {told}, allowed: a floating-point tensor",
        )
        for name, given, told in (
            ("a folder", "folder", "str"),
            ("nothing", None, "NoneType"),
            ("a number", 3, "int"),
            ("single pictures", [torch.zeros(3, 8, 8)] * 4, "list"),
            ("no batch", [], "list"),
            ("batches by name", [{"pixels": torch.zeros(4, 3, 8, 8)}], "list"),
            ("a data set without tensors", Pictures(), "Pictures"),
        )
    ),
    Case(
        "images that the network does not take",
        lambda _: search(net(), torch.zeros(4, 1, 8, 8)),
        ValueError,
        r"images: got shape \(4, 1, 8, 8\), allowed: what the network takes \(",
    ),
    Case(
        "images on another device",
        lambda _: search(net(), images().to("meta")),
        ValueError,
        "images: lie on meta, the network on cpu, allowed: one device",
    ),
    *(
        Case(
            f"seeds of {seeds!r}",
            lambda _, seeds=seeds: search(net(), images(), seeds=seeds),
            error,
            told,
        )
        for seeds, error, told in (
            (0, TypeError, "seeds: got 0, allowed: integers in a list, at least one, each once"),
            (None, TypeError, "seeds: got None, allowed: integers in a list"),
            ("12", TypeError, "seeds: got '12', allowed: integers in a list"),
            ((0.5,), TypeError, r"seeds: got \(0\.5,\), allowed: integers in a list"),
            ((True,), TypeError, "seeds: got True, allowed: an integer"),
            ((-1,), ValueError, "seeds: got -1, allowed: 0 to"),
            ((2**63,), ValueError, "seeds: got 9223372036854775808, allowed: 0 to"),
        )
    ),
    *(
        Case(
            f"{name} of {value!r}",
            lambda _, name=name, value=value: search(net(), images(), **{name: value}),
            TypeError,
            f"{name}: got {re.escape(repr(value))}, allowed: an integer, 1 or more",
        )
        for name in ("budget", "batch")
        for value in ("x", 2.5, True, [3])
    ),
    Case(
        "engine by name",
        lambda _: search(net(), images(), engine="ray"),
        TypeError,
        r"engine: got 'ray', allowed: an engine, as drowsy\.RayEngine\(\)",
    ),
    Case(
        "forward that is none",
        lambda _: search(net(), images(), forward=3),
        TypeError,
        "forward: got 3, allowed: a function of a batch",
    ),
    *(
        Case(
            f"store of {store!r}",
            lambda _, store=store: search(net(), images(), store=store),
            error,
            f"store: got {store!r}, allowed: a path, or ':memory:' for no file",
        )
        for store, error in ((3, TypeError), (b"points", TypeError), ("", ValueError))
    ),
    Case(
        "store that is a folder",
        lambda folder: search(net(), images(), store=folder),
        ValueError,
        r"store .*: cannot be opened \(it is a folder\)",
    ),
    Case(
        "store in no folder",
        lambda folder: search(net(), images(), store=folder / "none" / "s.sqlite"),
        ValueError,
        r"none/s\.sqlite: cannot be opened \(there is no folder .*none\)",
    ),
    Case(
        "objective of a search",
        lambda _: search(net(), images(), torch.zeros(4, dtype=torch.int64), objective="speed"),
        ValueError,
        "objective: got 'speed', allowed: top1, top5, agreement$",
    ),
    Case(
        "accuracy without labels",
        lambda _: search(net(), images(), objective="top1", engine=Unasked()),
        ValueError,
        "objective: got 'top1', allowed: agreement, as there are no labels",
    ),
    Case(
        "exhaustive search of 20 layers",
        lambda _: search(convert(deep(20)), images(), method="exhaustive"),
        ValueError,
        "method: got exhaustive for 1,152,921,504,606,846,976 settings, allowed: up to 1,000,000",
    ),
    Case(
        "exhaustive search without end",
        lambda _: check_method("exhaustive", None, 256**2000),
        ValueError,
        r"method: got exhaustive for 10\^4816 settings, allowed: up to 1,000,000",
    ),
    Case("all skipped", lambda _: net(skip=["re:."]), ValueError, "model: has no nn.Conv2d"),
    Case(
        "deployment of a model that is not converted",
        lambda _: deploy(model(), images()),  # type: ignore[arg-type]
        TypeError,
        r"net: got Sequential, allowed: a DrowsyNet \(drowsy\.convert\)",
    ),
    Case(
        "deployment for one image without a batch",
        lambda _: deploy(net(), images()[0]),
        ValueError,
        r"example: got shape \(3, 8, 8\), allowed: \[N, C, H, W\]",
    ),
    Case(
        "deployment in double precision",
        lambda _: deploy(net().double(), images().double()),
        TypeError,
        "example: got torch.float64, allowed: torch.float32",
    ),
    Case(
        "CUDA graph on the CPU",
        lambda _: deploy(net(), images(), graph=True),
        ValueError,
        "graph: got True for a CPU tensor, allowed: CUDA tensors",
    ),
    Case(
        "alignment by no image",
        lambda _: align(net(), images(0)),
        ValueError,
        r"example: got shape \(0, 3, 8, 8\)",
    ),
    Case(
        "alignment by a step back",
        lambda _: align(net(), images(), step=-1),
        ValueError,
        "step: got -1, allowed: an integer from 0",
    ),
    Case(
        "stream without a phase",
        lambda _: LayerSetting(stream=3),
        ValueError,
        "stream and phase: got 3 and None, allowed: two integers",
    ),
    Case(
        "stream that is no integer",
        lambda _: LayerSetting(stream=0.5, phase=0),  # type: ignore[arg-type]
        ValueError,
        "stream and phase: got 0.5 and 0, allowed: two integers",
    ),
    Case(
        "stream between", lambda _: SleepSpec(stream=1.5), ValueError, r"stream: got 1\.5, allowed"
    ),
    Case(
        "specification of another form",
        lambda _: SleepSpec.parse("bernoulli;neuron"),
        ValueError,
        "sleep: got 'bernoulli;neuron', allowed: SOURCE;GRAIN;K;STREAM",
    ),
    Case(
        "register of two widths",
        lambda _: net(source="lfsr:width=8.9"),
        ValueError,
        r"source lfsr: got option 'width=8\.9', allowed: width, taps, .*each once",
    ),
    Case(
        "frontier that is not there",
        lambda folder: Frontier.load(folder / "none.json"),
        FileNotFoundError,
        r"none\.json",
    ),
    Case("negative phase", lambda _: SleepSpec(phase=-1), ValueError, "phase: got -1, allowed: 0"),
    Case("already drowsy", lambda _: convert(net()), ValueError, "model: is already drowsy"),
    Case(
        "skip names nothing",
        lambda _: net(skip=["conv9"]),
        ValueError,
        "skip: 'conv9' names no convolution; there are 0, 2",
    ),
    Case(
        "skip matches nothing",
        lambda _: net(skip=["re:^x"]),
        ValueError,
        r"skip: 're:\^x' names",
    ),
    Case("skip a text", lambda _: net(skip="0"), TypeError, "skip: got the string '0', .*a list"),
    Case(
        "norm without statistics",
        lambda _: DrowsyConv2d.from_conv(
            nn.Conv2d(2, 2, 1), norm=nn.BatchNorm2d(2, track_running_stats=False)
        ),
        ValueError,
        "norm: .*without running statistics",
    ),
    Case(
        "norm in training mode",
        lambda _: DrowsyConv2d.from_conv(nn.Conv2d(2, 2, 1), norm=nn.BatchNorm2d(2)),
        ValueError,
        "norm: got BatchNorm2d in training mode, allowed: .*in eval mode",
    ),
    Case(
        "a model without a convolution",
        lambda _: DrowsyConv2d.from_conv(nn.Linear(2, 2)),  # type: ignore[arg-type]
        ValueError,
        "conv: got Linear, .*is not an nn.Conv2d",
    ),
    Case(
        "sleep a text",
        lambda _: DrowsyConv2d(2, 2, 1, sleep="stratified"),  # type: ignore[arg-type]
        TypeError,
        "sleep: got 'stratified', allowed: a drowsy.SleepSpec",
    ),
    # Inference.
    Case(
        "scripting",
        lambda _: torch.jit.script(DrowsyConv2d(2, 2, 1)),
        RuntimeError,
        r"torch\.jit\.script: use torch\.jit\.trace",
    ),
    Case(
        "vmap",
        lambda _: torch.vmap(DrowsyConv2d(2, 2, 1).requires_grad_(False))(torch.ones(1, 2, 3, 3)),
        RuntimeError,
        r"transforms of torch\.func .*revert",
    ),
    Case("gradient", lambda _: net()(images()), RuntimeError, r"inference.*torch\.inference_mode"),
    Case(
        "unsupported dtype",
        lambda _: without_gradient(DrowsyConv2d(2, 2, 1), torch.ones(1, 2, 3, 3).int()),
        TypeError,
        r"input: got torch\.int32, allowed: torch\.float32, ",
    ),
    Case(
        "float64 on Triton",
        lambda _: without_gradient(
            DrowsyConv2d(2, 2, 1, backend="triton", dtype=torch.float64),
            torch.ones(1, 2, 3, 3, dtype=torch.float64),
        ),
        TypeError,
        r"weight: got torch\.float64, allowed: torch\.float32",
    ),
    Case(
        "Triton on the CPU",
        lambda _: triton_on_the_cpu(),
        ValueError,
        "got a CPU tensor, .*TRITON_INTERPRET=1",
    ),
    # Evaluation.
    Case(
        "NaN image",
        lambda _: evaluator(spoiled(math.nan)),
        ValueError,
        "images: number 2 holds NaN",
    ),
    Case("infinite image", lambda _: evaluator(spoiled(math.inf)), ValueError, "images: number 2"),
    Case(
        "integer images",
        lambda _: evaluator(images().to(torch.uint8)),
        TypeError,
        r"images: got torch\.uint8, allowed: a floating-point tensor",
    ),
    Case("images a list", lambda _: evaluator([images()]), TypeError, "images: got list, allowed"),
    Case(
        "one image without a batch",
        lambda _: evaluator(images()[0]),
        ValueError,
        r"images: got shape \(3, 8, 8\), allowed: \[N, C, H, W\]",
    ),
    Case("no images", lambda _: evaluator(images(0)), ValueError, r"images: got shape \(0, 3"),
    Case(
        "too few labels",
        lambda _: evaluator(images(), torch.zeros(3, dtype=torch.int64)),
        ValueError,
        r"labels: got shape \(3,\) for 4 images, allowed: \(4,\)",
    ),
    Case(
        "labels of two dimensions",
        lambda _: evaluator(images(), torch.zeros(4, 5, dtype=torch.int64)),
        ValueError,
        r"labels: got shape \(4, 5\)",
    ),
    Case(
        "labels not integers",
        lambda _: evaluator(images(), torch.zeros(4)),
        TypeError,
        r"labels: got torch\.float32, allowed: int64",
    ),
    Case(
        "label beyond the classes",
        lambda _: evaluator(images(), torch.tensor([0, 5, 1, 1])).evaluate((0, 0)),
        ValueError,
        "labels: got 0 to 5, allowed: 0 to 4",
    ),
    Case(
        "label below 0",
        lambda _: evaluator(images(), torch.tensor([0, -1, 1, 1])).evaluate((0, 0)),
        ValueError,
        "labels: got -1 to 1, allowed: 0 to 4",
    ),
    Case("batch of 0", lambda _: evaluator(images(), batch=0), ValueError, "batch: got 0, allowed"),
    Case(
        "setting of another network",
        lambda _: evaluator(images()).evaluate((0, 0, 0)),
        ValueError,
        r"setting: got \(0, 0, 0\), allowed: 2 integers 0 to 7",
    ),
    Case("threshold of k", lambda _: evaluator(images()).evaluate((0, 8)), ValueError, "0 to 7"),
    Case(
        "two outputs",
        lambda _: Evaluator(convert(TwoOutputs().eval()), images()).evaluate((0,)),
        TypeError,
        r"model: its output is tuple, allowed: one tensor of logits \[N, classes\]",
    ),
    Case(
        "outputs of no classes",
        lambda _: Evaluator(convert(nn.Sequential(nn.Conv2d(3, 4, 1)).eval()), images()).evaluate(
            (0,)
        ),
        ValueError,
        r"model: its output has shape \(\d, 4, \d+, \d+\) for \d images, allowed: one tensor",
    ),
    Case(
        "negative seed of maps",
        lambda _: evaluator(images(), seed=-1),
        ValueError,
        "seed: got -1, allowed: 0 to",
    ),
    Case(
        "negative first image",
        lambda _: evaluator(images(), first=-1),
        ValueError,
        "first: got -1, allowed: 0 to",
    ),
    Case("no seeds", lambda _: Measurer(net(), images(), seeds=()), ValueError, r"seeds: got \(\)"),
    Case("seed twice", lambda _: Measurer(net(), images(), seeds=(1, 1)), ValueError, "each once"),
    Case(
        "method", lambda _: search(net(), images(), method="luck"), ValueError, "method: got 'luck'"
    ),
    Case("no budget", lambda _: search(net(), images(), budget=0), ValueError, "budget: got 0"),
    Case(
        "budget of an exhaustive search",
        lambda _: search(net(), images(), method="exhaustive", budget=9),
        ValueError,
        "budget: got 9, allowed: none, as exhaustive",
    ),
    Case(
        "cost",
        lambda _: search(net(), images(), cost="euros"),
        ValueError,
        "cost: got 'euros', allowed: macs, latency, joules",
    ),
    Case(
        "frontier by a latency that was not measured",
        lambda _: Frontier([OperatingPoint(Schedule(8), 0.0, top1=0.5)], cost="latency"),
        ValueError,
        "cost: latency_ms was not measured at every point",
    ),
    Case(
        "race on sorted images",
        lambda _: search(net(), images(), torch.tensor([0, 1, 2, 2]), racing=True),
        ValueError,
        "racing: the images are in the order of their classes, allowed: a random order",
    ),
    Case(
        "race by accuracy without labels",
        lambda _: search(net(), images(), racing=True, objective="top1"),
        ValueError,
        "objective: got 'top1', allowed: agreement",
    ),
    Case(
        "address without a port",
        lambda _: RayEngine("head"),
        ValueError,
        "address: got 'head', allowed: auto, local or HOST:PORT",
    ),
    Case("address a number", lambda _: RayEngine(6379), ValueError, "address: got 6379, allowed"),
    Case("no workers", lambda _: RayEngine(workers=0), ValueError, "workers: got 0, allowed: 1 or"),
    Case("half a worker", lambda _: RayEngine(workers=0.5), TypeError, r"workers: got 0\.5, allow"),
    Case("no threads", lambda _: RayEngine(threads=None), TypeError, "threads: got None, allowed"),
    # Schedules, frontiers, stores.
    Case(
        "schedule for another k",
        lambda _: net().set(Schedule(4)),
        ValueError,
        "schedule: has k = 4, the network has k = 8",
    ),
    Case(
        "another format",
        lambda folder: schedule_file(folder, format="drowsy.frontier"),
        ValueError,
        r"schedule\.json: format: got 'drowsy\.frontier', allowed: 'drowsy\.schedule'",
    ),
    Case(
        "a later version",
        lambda folder: schedule_file(folder, version=2),
        ValueError,
        r"schedule\.json: version: got 2, allowed: 1",
    ),
    Case(
        "schedule's unknown key",
        lambda folder: schedule_file(folder, seed=3),
        ValueError,
        r"schedule\.json: unknown seed; allowed: format, k, layers, version",
    ),
    Case(
        "schedule's missing key",
        lambda folder: schedule_file(folder, layers=None),
        ValueError,
        r"schedule\.json: missing layers",
    ),
    Case(
        "layers a list",
        lambda folder: schedule_file(folder, layers=["conv1"]),
        ValueError,
        r"layers: got \['conv1'\], allowed: an object",
    ),
    Case(
        "rate in a schedule",
        lambda folder: layer_entry(folder, rate="1/3"),
        ValueError,
        r"schedule\.json: .*conv1: .*multiples of 1/8",
    ),
    Case(
        "rate over 0",
        lambda folder: layer_entry(folder, rate="1/0"),
        ValueError,
        r"schedule\.json: .*conv1",
    ),
    Case(
        "fill in a schedule",
        lambda folder: layer_entry(folder, fill="doze"),
        ValueError,
        r"schedule\.json: layers: conv1: fill: got 'doze', allowed",
    ),
    Case(
        "fill from neighbours in a schedule",
        lambda folder: layer_entry(folder, fill="nearest", grain="channel"),
        ValueError,
        r"schedule\.json: layers: conv1: fill: got 'nearest' with grain channel, allowed",
    ),
    Case(
        "grain in a schedule",
        lambda folder: layer_entry(folder, grain="row"),
        ValueError,
        r"schedule\.json: layers: conv1: grain: got 'row', allowed",
    ),
    Case(
        "layer's unknown key",
        lambda folder: layer_entry(folder, seed=1),
        ValueError,
        "layers: conv1: unknown seed; allowed: fill, grain, rate",
    ),
    Case(
        "truncated schedule",
        lambda folder: truncated(folder, Schedule(8, {"0": LayerSetting()}), Schedule.load),
        ValueError,
        r"file\.json: not valid JSON .*truncated\?",
    ),
    Case(
        "truncated frontier",
        lambda folder: truncated(folder, frontier(), Frontier.load),
        ValueError,
        r"file\.json: not valid JSON .*truncated\?",
    ),
    Case(
        "schedule taken for a frontier",
        lambda folder: Schedule().save(folder / "a.json") or Frontier.load(folder / "a.json"),
        ValueError,
        r"a\.json: format: got 'drowsy\.schedule', allowed: 'drowsy\.frontier'",
    ),
    Case(
        "rate that takes minutes to write out",
        lambda folder: layer_entry(folder, rate="1e100000000"),
        ValueError,
        "layers: conv1: rate: got '1e100000000', allowed: a number in",
    ),
    Case(
        "rate of 400 digits",
        lambda folder: layer_entry(folder, rate=10**400),
        ValueError,
        "layer conv1: rate: got 10+, allowed: multiples of 1/8",
    ),
    Case(
        "deep frontier",
        lambda folder: Frontier.load(with_file(folder / "a.json", "[" * 5000 + "]" * 5000)),
        ValueError,
        r"a\.json: nested too deeply, allowed: a few levels",
    ),
    Case("no points", lambda _: Frontier([]), ValueError, "points: got none, allowed: one or more"),
    Case(
        "objective", lambda _: Frontier([], "speed"), ValueError, "objective: got 'speed', allowed"
    ),
    Case("saving too high", lambda _: frontier().at(saving=0.9), NoSuchPoint, r"0\.9"),
    Case(
        "store of another kind",
        lambda folder: Store(with_file(folder / "a.sqlite", "no database" * 100)),
        ValueError,
        r"store .*a\.sqlite: not an evaluation store",
    ),
    # Networks and their weights.
    Case(
        "network",
        lambda _: models.create("lenet"),
        ValueError,
        "model: got 'lenet', allowed: caffenet",
    ),
    Case(
        "no weights",
        lambda _: models.load("resnet18"),
        ValueError,
        "weights: resnet18 ships without",
    ),
    # The command: images and labels.
    Case(
        "no folder",
        lambda folder: study(folder / "none"),
        CommandFailed,
        r"drowsy uniform: data: no folder .*none; allowed: a folder with",
    ),
    Case("empty folder", lambda folder: study(folder), CommandFailed, "data: no image in"),
    Case(
        "unreadable image",
        lambda folder: with_file(folder / "a.png") and study(folder),
        CommandFailed,
        r"data: .*a\.png cannot be read as an image",
    ),
    Case(
        "image too small",
        lambda folder: study(with_images(folder, size=16)),
        CommandFailed,
        r"0\.png is 16 x 16, allowed: at least 32",
    ),
    Case(
        "label out of range",
        lambda folder: study(with_images(folder, labels="file,label\n0.png,1\n1.png,10\n")),
        CommandFailed,
        r"labels: got 10 for .*1\.png, allowed: 0 to 9",
    ),
    Case(
        "label not a number",
        lambda folder: study(with_images(folder, labels="file,label\n0.png,cat\n")),
        CommandFailed,
        r"labels\.csv gives 'cat' for 0\.png, allowed: an integer",
    ),
    Case(
        "label of no image",
        lambda folder: study(with_images(folder, labels="file,label\n9.png,1\n")),
        CommandFailed,
        r"labels\.csv names 9\.png",
    ),
    Case(
        "labels without a header",
        lambda folder: study(with_images(folder, labels="0.png,1\n")),
        CommandFailed,
        r"labels\.csv has columns .*allowed: file and label",
    ),
    Case(
        "no labels file",
        lambda folder: study(with_images(folder), "--labels", folder / "none.csv"),
        CommandFailed,
        r"labels: no file .*none\.csv",
    ),
    Case(
        "images beyond the last",
        lambda folder: study(with_images(folder), "--images", "2:9"),
        CommandFailed,
        r"drowsy uniform: images: got 2:9, allowed: a range within 0:3, the images of ",
    ),
    Case(
        "images to compare on beyond the last",
        lambda folder: compare_command(folder, "--search", "0:2", "--report", "2:5"),
        CommandFailed,
        r"drowsy compare: report: got 2:5, allowed: a range within 0:3, the images of ",
    ),
    Case(
        "images to measure beyond the last",
        lambda folder: calibrate_command(folder, "--images", "0:2", "--measure", "2:5"),
        CommandFailed,
        r"drowsy calibrate: measure: got 2:5, allowed: a range within 0:3, the images of ",
    ),
    *(
        Case(
            f"images {given}",
            lambda folder, given=given: study(folder, f"--images={given}"),
            CommandFailed,
            f"--images: got '{given}', allowed: FIRST:LAST with FIRST below LAST, as 0:2500",
        )
        for given in ("5:3", "2:2", "-1:2", "3", "1:", "")
    ),
    Case(
        "images no range",
        lambda folder: study(folder, "--images", "many"),
        CommandFailed,
        "--images: got 'many', allowed: FIRST:LAST",
    ),
    # Comparisons.
    Case(
        "splits that overlap",
        lambda _: compare(report=range(1, 4)),
        ValueError,
        "report: got 1:4, which overlaps search 0:2, allowed: disjoint ranges",
    ),
    Case(
        "calibration that overlaps",
        lambda _: compare(calibration=range(3, 4)),
        ValueError,
        "calibration: got 3:4, which overlaps report 2:4, allowed: disjoint ranges",
    ),
    Case(
        "split of nothing", lambda _: compare(search=range(0)), ValueError, "search: got 0:0, all"
    ),
    Case(
        "split beyond the last image",
        lambda _: compare(report=range(2, 5)),
        ValueError,
        "report: got 2:5, allowed: a range within 0:4",
    ),
    *(
        Case(
            f"saving of {saving}",
            lambda _, saving=saving: compare(savings=[0.5, saving]),
            ValueError,
            f"savings: got {saving}, allowed: above 0 and below 1",
        )
        for saving in (0.0, 1.0, math.nan)
    ),
    Case("no saving", lambda _: compare(savings=[]), ValueError, "savings: got none, allowed: one"),
    Case(
        "spread of one seed",
        lambda _: compare(seeds=[0]),
        ValueError,
        r"seeds: got \(0,\), allowed: two or more",
    ),
    Case(
        "recipes of one name",
        lambda _: compare(recipes=[RECIPES["ours"]] * 2),
        ValueError,
        r"recipes: got \['ours', 'ours'\], allowed: one or more, each name once",
    ),
    Case(
        "calibration without images",
        lambda _: compare(recipes=[Sleep("mine", correction="affine")]),
        ValueError,
        "calibration: got none, allowed: a range, as mine calibrates",
    ),
    Case(
        "stencils of a recipe without images",
        lambda _: compare(recipes=[Sleep("mine", grain="position", fill="stencil")]),
        ValueError,
        "calibration: got none, allowed: a range, as mine calibrates",
    ),
    Case(
        "correction of a recipe",
        lambda _: Sleep("mine", correction="perfect"),
        ValueError,
        "correction: got 'perfect', allowed: none, affine, reconstruct",
    ),
    Case(
        "interpolation",
        lambda _: compare(interpolation="nearest"),
        ValueError,
        "interpolation: got 'nearest', allowed: bicubic, bilinear",
    ),
    Case(
        "budget of a comparison", lambda _: compare(budget=0), ValueError, "budget: got 0, allowed"
    ),
    Case(
        "rates of a recipe",
        lambda _: Sleep("mine", rates="best"),
        ValueError,
        "rates: got 'best', allowed: uniform, search",
    ),
    Case(
        "scaling of a recipe",
        lambda _: Sleep("mine", scaling=(1.5,)),
        ValueError,
        r"scaling: got \(1\.5,\), allowed: parts from 0 to 1",
    ),
    Case(
        "baseline of other images",
        lambda _: evaluator(images(), baseline=torch.zeros(3, 5)),
        ValueError,
        r"baseline: got shape \(3, 5\) for 4 images, allowed: \(4, classes\)",
    ),
    Case(
        "splits of the command that overlap",
        lambda folder: compare_command(folder, "--search", "0:2", "--report", "1:3"),
        CommandFailed,
        "report: got 1:3, which overlaps search 0:2",
    ),
    Case(
        "unknown recipe",
        lambda folder: compare_command(
            folder, "--search", "0:1", "--report", "1:3", "--recipes", "magic"
        ),
        CommandFailed,
        "--recipes: invalid choice: 'magic'",
    ),
    # Energy.
    Case("meter of nothing", lambda _: Meter([]), ValueError, r"device: got \[\], allowed: one or"),
    *(
        Case(
            f"meter of {device!r}",
            lambda _, device=device: Meter(device),
            ValueError,
            f"device: got {re.escape(repr(device))}, allowed: auto, cpu, cuda",
        )
        for device in ("gpu", "meta", -1, 1.5, True, None)
    ),
    Case(
        "meter of a GPU that is not there",
        without_cuda(lambda _: Meter(0)),
        NoMeter,
        "cuda:0: torch finds no CUDA device here",
    ),
    Case("meter twice", lambda folder: meter(folder, ["cpu", "cpu"]), ValueError, "each once"),
    Case(
        "interval of 0",
        lambda _: Meter("cpu", interval=0),
        ValueError,
        r"interval: got 0, allowed: 0\.01 to 1",
    ),
    Case(
        "idle power below 0",
        lambda folder: meter(folder, idle_watts=-1),
        ValueError,
        "idle_watts: got -1, allowed: a finite number, 0 or more, for each of cpu:package-0",
    ),
    Case(
        "idle power of two devices",
        lambda folder: meter(folder, idle_watts=[1, 2]),
        ValueError,
        r"idle_watts: got \[1, 2\], .*for each of cpu:package-0",
    ),
    Case(
        "idle for no time",
        lambda folder: meter(folder).measure_idle(0),
        ValueError,
        "seconds: got 0, allowed: a number above 0, up to 1000000",
    ),
    Case(
        "measured for ever",
        lambda folder: meter(folder).measure(print, seconds=math.inf),
        ValueError,
        "seconds: got inf, allowed",
    ),
    Case(
        "idle for longer than any clock runs",
        lambda folder: meter(folder).measure_idle(1e300),
        ValueError,
        r"seconds: got 1e\+300, allowed: a number above 0, up to 1000000",
    ),
    Case(
        "warm-up of half a call",
        lambda folder: meter(folder).measure(print, warmup=0.5),
        ValueError,
        r"warmup: got 0\.5, allowed: an integer",
    ),
    Case(
        "no point to profile",
        lambda _: profile(net(), images(), [], meter=None),
        ValueError,
        "points: got none, allowed: one or more",
    ),
    Case(
        "profile of rates",
        lambda _: profile(net(), images(), [0.5], meter=None),
        TypeError,
        r"points: got 0\.5, allowed: a Frontier, or OperatingPoints or Schedules",
    ),
    Case(
        "profile of no images",
        lambda _: profile(net(), images(0), frontier(), meter=None),
        ValueError,
        r"images: got shape \(0, 3, 8, 8\)",
    ),
    Case(
        "profile of another k",
        lambda _: profile(net(k=4), images(), frontier(), meter=None),
        ValueError,
        "schedule: has k = 8, the network has k = 4",
    ),
    Case(
        "energy of no frontier",
        lambda folder: energy(folder, "--frontier", with_file(folder / "f.json")),
        CommandFailed,
        r"drowsy energy: .*f\.json",
    ),
    Case(
        "energy of no images",
        lambda folder: energy(folder, "--batch", "0"),
        CommandFailed,
        "drowsy energy: batch: got 0, allowed: 1 or more",
    ),
    Case(
        "energy for no time",
        lambda folder: energy(folder, "--seconds", "0"),
        CommandFailed,
        "drowsy energy: seconds: got 0.0, allowed",
    ),
    Case(
        "energy with a calibration of another kind",
        lambda folder: energy(folder, "--calibration", with_file(folder / "c.safetensors")),
        CommandFailed,
        r"drowsy energy: calibration: .*c\.safetensors is not a whole calibration file",
    ),
    Case(
        "calibrating no frontier",
        lambda folder: calibrate_command(folder, "--frontier", folder / "none.json"),
        CommandFailed,
        r"drowsy calibrate: .*none\.json",
    ),
    Case(
        "measuring what was calibrated on",
        lambda folder: calibrate_command(folder, "--images", "0:2", "--measure", "1:3"),
        CommandFailed,
        "drowsy calibrate: measure: got 1:3, which overlaps images 0:2, allowed: disjoint ranges",
    ),
    Case(
        "measuring after calibrating on all",
        lambda folder: calibrate_command(folder, "--measure", "1:3"),
        CommandFailed,
        "drowsy calibrate: images: got all, allowed: FIRST:LAST, apart from those to measure",
    ),
    Case(
        "measuring over the frontier",
        lambda folder: calibrate_command(
            folder, "--images", "0:1", "--measure", "1:3", "--out", folder / "frontier.tensors"
        ),
        CommandFailed,
        r"drowsy calibrate: out: got .*frontier\.tensors, allowed: another name, as the frontier",
    ),
    # The command: everything else.
    Case(
        "network of the command",
        lambda folder: drowsy("cost", "--model", "lenet"),
        CommandFailed,
        "model: got 'lenet', allowed: .*MODULE:FUNCTION",
    ),
    Case(
        "module that is not there",
        lambda folder: drowsy("cost", "--model", "no_such_module:build"),
        CommandFailed,
        "no_such_module",
    ),
    Case(
        "weights of another kind",
        lambda folder: study(folder, "--weights", with_file(folder / "a.safetensors")),
        CommandFailed,
        r"weights: .*a\.safetensors is not a whole safetensors file",
    ),
    Case(
        "weights of no file",
        lambda folder: study(folder, "--weights", folder / "none"),
        CommandFailed,
        "weights: no file .*none",
    ),
    Case(
        "options of the command",
        lambda folder: study(folder, "--source", "dice"),
        CommandFailed,
        "drowsy uniform: source: got 'dice', allowed: bernoulli",
    ),
    Case(
        "store of the command",
        lambda folder: study(with_images(folder), "--store", with_file(folder / "a.sqlite")),
        CommandFailed,
        r"store .*a\.sqlite: not an evaluation store",
    ),
    Case(
        "CUDA without CUDA",
        without_cuda(lambda folder: study(with_images(folder), "--device", "cuda")),
        CommandFailed,
        "device: got cuda, but torch finds no CUDA device here",
    ),
    Case(
        "unknown device",
        lambda folder: study(with_images(folder), "--device", "abacus"),
        CommandFailed,
        "device.*abacus",
    ),
    Case(
        "kernels of an unmeasured GPU",
        lambda _: drowsy("inspect", "--model", "caffenet_cifar", "--kernels", "--gpu", "abacus"),
        CommandFailed,
        "gpu: got 'abacus', allowed: one that has a tuning table .* or an architecture such as",
    ),
    Case(
        "kernels for no images",
        lambda _: inspect_kernels(net(), (3, 8, 8), batch=0, gpu="sm_90"),
        ValueError,
        "images: got 0, allowed: an integer from 1",
    ),
    Case(
        "kernels of the command for no images",
        lambda _: drowsy(
            "inspect", "--model", "caffenet_cifar", "--kernels", "--gpu", "sm_90", "--batch", 0
        ),
        CommandFailed,
        "drowsy inspect: batch: got 0, allowed: 1 or more",
    ),
    Case(
        "tuning table that is none",
        lambda folder: tuning.load_table(with_file(folder / "table.json")),
        ValueError,
        r"table\.json: not valid JSON",
    ),
    *(
        Case(
            f"option {name} of {value}",
            lambda folder, name=name, value=value: study(folder, f"--{name}", value),
            CommandFailed,
            f"drowsy uniform: {name}: got {value}, allowed: 1 or more",
        )
        for name, value in (("crop", -5), ("crop", 0), ("resize", 0), ("classes", -1), ("batch", 0))
    ),
    Case(
        "crop of a network whose costs are asked",
        lambda _: drowsy("cost", "--model", "caffenet", "--crop", -5),
        CommandFailed,
        "drowsy cost: crop: got -5, allowed: 1 or more",
    ),
    *(
        Case(
            f"crop too small to {command}",
            lambda _, command=command: drowsy(command, "--model", "caffenet", "--crop", 5),
            CommandFailed,
            f"drowsy {command}: crop: got 5, allowed: a size that the network takes",
        )
        for command in ("cost", "inspect")
    ),
    Case(
        "mean that is no number",
        lambda folder: study(folder, "--mean", 0.5, "nan", 0.5),
        CommandFailed,
        r"drowsy uniform: mean: got \[0\.5, nan, 0\.5\], allowed: finite numbers",
    ),
    Case(
        "standard deviation of 0",
        lambda folder: study(folder, "--std", 0.5, 0, 0.5),
        CommandFailed,
        r"drowsy uniform: std: got \[0\.5, 0\.0, 0\.5\], allowed: finite numbers above 0",
    ),
    *(
        Case(
            f"device {device}",
            lambda folder, device=device: study(folder, "--device", device),
            CommandFailed,
            f"drowsy uniform: device: got '{device}', allowed: cpu, cuda or cuda:NUMBER",
        )
        for device in ("tpu", "meta", "cuda:one", "")
    ),
    Case(
        "a GPU too many",
        with_one_gpu(lambda folder: study(folder, "--device", "cuda:1")),
        CommandFailed,
        "device: got cuda:1, allowed: cuda:0 to cuda:0",
    ),
    Case(
        "dtype of the command",
        lambda folder: study(folder, "--dtype", "float12"),
        CommandFailed,
        "--dtype: invalid choice: 'float12'",
    ),
    Case(
        "pattern of layers to skip",
        lambda _: net(skip=["re:["]),
        ValueError,
        r"skip: got 're:\[', allowed: a name, or re: and a regular expression \(unterminated",
    ),
    Case(
        "pattern of the command",
        lambda _: drowsy("inspect", "--model", "caffenet_cifar", "--skip", "re:["),
        CommandFailed,
        r"drowsy inspect: skip: got 're:\[', allowed: a name, or re: and a regular expression",
    ),
    *(
        Case(
            f"function {given}",
            lambda folder, given=given: drowsy("cost", "--model", given),
            CommandFailed,
            f"drowsy cost: model: got '{given}', {told}",
        )
        for given, told in (
            ("json:Nope", "but json has no function Nope, allowed: MODULE:FUNCTION"),
            ("json:__doc__", "but json has no function __doc__, allowed"),
            ("json:", "allowed: .*MODULE:FUNCTION"),
            (":build", "allowed: .*MODULE:FUNCTION"),
            ("no_such:build", r"which cannot be imported \(No module named 'no_such'\), allowed"),
        )
    ),
    Case(
        "function that makes no network",
        lambda _: drowsy("cost", "--model", "builtins:dict"),
        CommandFailed,
        "model: got builtins:dict, which makes a dict, allowed: .*torch.nn.Module",
    ),
    Case(
        "frontier that is a folder",
        lambda folder: energy(folder, "--frontier", folder),
        CommandFailed,
        "drowsy energy: frontier: .* cannot be read .*allowed: a frontier file",
    ),
    Case(
        "labels that are a folder",
        lambda folder: study(with_images(folder), "--labels", folder),
        CommandFailed,
        "labels: .* cannot be read as CSV",
    ),
    Case(
        "results in a file",
        lambda folder: study(with_images(folder), "--out", with_file(folder / "a.txt")),
        CommandFailed,
        r"drowsy uniform: out: got .*a\.txt, allowed: a folder",
    ),
    Case(
        "images without end",
        lambda folder: study(with_images(folder), "--images", "0:99999999999"),
        CommandFailed,
        "images: got 0:99999999999, allowed: a range within 0:3",
    ),
    Case(
        "exhaustive search of many layers",
        lambda folder: drowsy(
            "search",
            "--model",
            "cifar_resnet20",
            "--weights",
            resnet20(folder),
            "--data",
            with_images(folder),
            "--out",
            folder / "out",
            "--method",
            "exhaustive",
        ),
        CommandFailed,
        "drowsy search: method: got exhaustive for [0-9,]{20,} settings, allowed: up to 1,000,000",
    ),
    Case(
        "batch of a comparison", lambda _: compare(batch=0), ValueError, "batch: got 0, allowed: 1"
    ),
    *(
        Case(
            f"{name} that are a folder",
            lambda folder, name=name: energy(folder, f"--{name}", folder),
            CommandFailed,
            f"drowsy energy: {name}: .* is a folder, allowed: a safetensors file",
        )
        for name in ("weights", "calibration", "stencils")
    ),
    *(
        Case(
            f"{command} into a folder",
            lambda folder, run=run: run(folder, "--out", folder),
            CommandFailed,
            f"drowsy {command}: out: .* is a folder, allowed: a file",
        )
        for command, run in (("energy", energy), ("calibrate", calibrate_command))
    ),
    *(
        Case(
            f"{name} {value} other than the frontier's",
            lambda folder, name=name, value=value: energy(folder, f"--{name}", value),
            CommandFailed,
            f"drowsy energy: {name}: got {value}, allowed: none, as .*frontier.json was measured "
            f"with {told}$",
        )
        for name, value, told in (
            ("source", "bernoulli", "lattice"),
            ("source", "lfsr:width=8,taps=8.6.5.4", "lattice"),
            ("grain", "channel", "position"),
            ("fill", "zero", "nearest"),
            ("k", 4, "8"),
            ("streams", "stage", "maps of each layer's own"),
        )
    ),
    Case(
        "frontier of another network",
        lambda folder: drowsy(
            "calibrate",
            *("--model", "cifar_resnet20", "--weights", resnet20(folder)),
            *("--data", with_images(folder), "--frontier", frontier_file(folder)),
            *("--out", folder / "c.safetensors", "--skip", "conv1"),
        ),
        CommandFailed,
        r"drowsy calibrate: frontier: .*frontier\.json is of another network, with layers conv1, "
        "which cifar_resnet20 has not or leaves awake",
    ),
    Case(
        "frontier whose source is a number",
        lambda folder: energy(folder, "--frontier", spoiled_source(folder)),
        CommandFailed,
        r"spoiled\.json: source: got 3, allowed: text",
    ),
    *(
        Case(
            f"{option} without --kernels",
            lambda _, option=option, value=value: drowsy(
                "inspect", "--model", "caffenet_cifar", f"--{option}", value
            ),
            CommandFailed,
            f"drowsy inspect: {option}: got {value}, allowed: with --kernels",
        )
        for option, value in (("gpu", "sm_90"), ("batch", 8), ("dtype", "float32"))
    ),
    Case(
        "stages with kernels",
        lambda _: drowsy("inspect", "--model", "caffenet_cifar", "--kernels", "--stages"),
        CommandFailed,
        "drowsy inspect: stages: got True, allowed: without --kernels",
    ),
    Case(
        "address without Ray",
        lambda folder: study(folder, "--address", "local"),
        CommandFailed,
        "drowsy uniform: address: got local, allowed: with --engine ray",
    ),
    Case(
        "classes of a network that has its own",
        lambda folder: study(folder, "--classes", 5),
        CommandFailed,
        "drowsy uniform: classes: got 5, allowed: with MODULE:FUNCTION",
    ),
    Case(
        "stencils that nothing reads",
        lambda folder: study(folder, "--stencils", "file"),
        CommandFailed,
        "drowsy uniform: stencils: got file, allowed: with --fill stencil",
    ),
    Case(
        "seeds where nothing is measured",
        lambda folder: calibrate_command(folder, "--seeds", 0, 1),
        CommandFailed,
        "drowsy calibrate: seeds: got 0 1, allowed: with --measure",
    ),
    Case(
        "crop that the network does not take",
        lambda folder: study(with_images(folder), "--crop", 5),
        CommandFailed,
        r"drowsy uniform: images: got shape \(3, 3, 5, 5\), allowed: what the network takes",
    ),
    Case(
        "function that raises",
        lambda _: drowsy("cost", "--model", "operator:index"),
        CommandFailed,
        "drowsy cost: model: operator:index raised TypeError: .*line [0-9]+",
    ),
    # The governor.
    Case(
        "governor of nothing",
        lambda _: Governor(3, latency_ms=10),
        TypeError,
        "knob: got int, which lacks points",
    ),
    Case(
        "governor of a network without its frontier",
        lambda _: Governor(net(), latency_ms=10),
        TypeError,
        "frontier: got NoneType, allowed",
    ),
    Case(
        "governor without a budget",
        lambda _: Governor(net(), frontier=frontier()),
        ValueError,
        "budgets: got none, allowed: one or more of latency_ms",
    ),
    Case(
        "governor whose points lack what a budget needs",
        lambda _: Governor(net(), frontier=frontier(), watts=50),
        ValueError,
        "watts: 1 of 1 points have no joules .* measure it",
    ),
    Case(
        "a refresh that is none",
        lambda _: Stream(convert(model()), refresh="lattice"),
        ValueError,
        "refresh: got 'lattice', allowed: bands, quads, change",
    ),
    Case(
        "a rate that bands do not have",
        lambda _: Stream(convert(model()), rate=0.55),
        ValueError,
        r"rate: got 0.55, allowed: m/k in \[0, 1\) with k up to 8",
    ),
    Case(
        "a stream of an unconverted network",
        lambda _: Stream(model()),  # type: ignore[arg-type]
        TypeError,
        r"net: got Sequential, allowed: a DrowsyNet \(drowsy.convert\)",
    ),
    Case("no command", lambda _: drowsy("doze"), CommandFailed, "invalid choice: 'doze'"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(case.error, match=f"(?s){case.message}") as failed:
        case.call(tmp_path)
    if case.error is CommandFailed:
        lines = str(failed.value).splitlines()
        told = [line for line in lines if not line.startswith(("usage:", " "))]
        assert len(told) == 1, "a command tells it in one line"
        assert told[0].startswith("drowsy")


def test_cases_have_names_of_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 30
