"""The ``drowsy`` command from end to end, on images that the test draws."""

from __future__ import annotations

import csv
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import drowsy
from drowsy import models
from drowsy.cli.arguments import parse
from drowsy.cli.main import main
from drowsy.cli.networks import current_folder_importable
from drowsy.evaluation.measurer import Measurer
from drowsy.graph.inspection import inspect
from drowsy.images.folders import load_images
from drowsy.study.demo import _read_arrays
from drowsy.study.figures import Study

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

STUDY = ["study", "--model", "caffenet_cifar", "--k", "3"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four random images of each of the first three of ten classes."""
    rng = np.random.default_rng(0)
    for label in range(10):
        (tmp_path / "data" / f"class{label}").mkdir(parents=True)
    for label in range(3):
        for i in range(4):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / f"class{label}" / f"{i}.png")
    return tmp_path / "data"


def test_study_writes_every_figure_as_table_record_and_picture(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [*STUDY, "--data", str(folder), "--out", str(out), "--seeds", "0", "1"]
    assert main(arguments) == 0
    for name in ("sensitivity", "savings", "uniform", "nonuniform"):
        assert (out / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        record = json.loads((out / f"{name}.json").read_text())
        assert record["images"] == 12
        assert record["versions"]["torch"]
    with open(out / "nonuniform.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3**5
    assert len({row["setting"] for row in rows}) == 3**5
    frontier = drowsy.Frontier.load(out / "frontier_top1.json")
    best = max(float(row["top1"]) for row in rows if float(row["saving"]) >= 0.3)
    assert frontier.at(saving=0.3).top1 == pytest.approx(best, abs=1e-6)
    assert "Pareto-optimal settings by top1" in capsys.readouterr().out


def test_a_study_leaves_awake_what_rests(tmp_path: Path) -> None:
    """The first layer rests, whose rate is not the one of the others."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 10, 3),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    )  # fmt: skip
    net = drowsy.convert(model.eval(), k=3)
    images = torch.randn(6, 3, 12, 12)
    net.settle(images)
    net.resting = {"0": "as told"}
    study = Study(Measurer(net, images), tmp_path, "a study")
    assert {row["layer"] for row in study.savings()} == {"1", "2"}
    alone = [(row["layer"], row["rate"], row["setting"]) for row in study.sensitivity()]
    assert alone == [
        ("1", 0, "0 0 0"), ("1", 1 / 3, "0 1 0"), ("1", 2 / 3, "0 2 0"),
        ("2", 0, "0 0 0"), ("2", 1 / 3, "0 0 1"), ("2", 2 / 3, "0 0 2"),
    ]  # fmt: skip
    uniform = study.uniform()
    assert {(row["rate"], row["setting"]) for row in uniform} == {
        (0, "0 0 0"), (1 / 3, "0 1 1"), (2 / 3, "0 2 2"),
    }  # fmt: skip
    study.nonuniform(uniform)
    with open(tmp_path / "nonuniform.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3**2


def test_a_search_that_races_shuffles_and_tells_what_it_took(folder: Path, tmp_path: Path) -> None:
    arguments = ["search", *STUDY[1:], "--data", str(folder), "--out", str(tmp_path), "--race"]
    assert main([*arguments, "--method", "greedy", "--budget", "20"]) == 0
    record = json.loads((tmp_path / "nonuniform.json").read_text())
    # Twelve images are one rung.
    assert record["image_evaluations"] == 20 * 12
    assert record["first"].split("/")[0] != "class0" or record["last"].split("/")[0] != "class2"


def test_a_search_goes_by_settings_as_other_images_correct_them(
    folder: Path, tmp_path: Path
) -> None:
    sleep = ["--source", "lattice", "--grain", "position", "--fill", "interpolate"]
    split = ["--images", "5:12", "--correct", "0:5", "--method", "additive", "--budget", "8"]
    arguments = ["search", *STUDY[1:], *sleep, "--data", str(folder), *split]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "nonuniform.json").read_text())
    assert record["correct"] == [0, 5]
    with open(tmp_path / "uniform.csv", newline="") as file:
        rows = {(row["fill"], row["setting"]): row for row in csv.DictReader(file)}

    data = load_images(folder, models.MODELS["caffenet_cifar"].preprocess, classes=10)
    net = drowsy.convert(
        models.load("caffenet_cifar"), source="lattice", grain="position", k=3, fill="interpolate"
    )
    setting = (1,) * 5
    net.set(net.schedule_of(setting))
    plain = drowsy.Evaluator(net, data.images[5:], data.labels[5:]).evaluate(setting)
    drowsy.calibrate(net, data.images[:5])
    counts = drowsy.Evaluator(net, data.images[5:], data.labels[5:]).evaluate(setting)
    found = float(rows["interpolate", "1 1 1 1 1"]["divergence"])
    assert found == pytest.approx(counts.divergence / 7, rel=1e-3)
    assert found != pytest.approx(plain.divergence / 7, rel=1e-2)


def test_calibrate_corrects_a_frontier_and_measures_it_on_other_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = ["--model", "caffenet_cifar", "--source", "lattice", "--grain", "position"]
    network += ["--fill", "nearest", "--data", str(folder), "--batch", "5"]
    net = drowsy.convert(
        models.load("caffenet_cifar"), source="lattice", grain="position", fill="nearest"
    )
    schedules = [net.schedule_of((j,) * 5) for j in (0, 2, 4)]
    given = drowsy.Frontier(
        [
            drowsy.OperatingPoint(s, saving=i / 4, top1=0.5 - i / 8, latency_ms=3.0 - i)
            for i, s in enumerate(schedules)
        ]
    )
    given.save(tmp_path / "frontier.json")
    files = ["--frontier", str(tmp_path / "frontier.json"), "--out", str(tmp_path / "c.tensors")]
    split = ["--images", "0:7", "--measure", "7:12", "--seeds", "2", "5"]
    assert main(["calibrate", *network, *files, *split, "--reconstruct"]) == 0
    told = capsys.readouterr().out
    assert "corrections of 2 points, 7 images" in told
    assert "measured on 5 images" in told

    data = load_images(folder, models.MODELS["caffenet_cifar"].preprocess, classes=10)
    calibration = drowsy.Calibration.load(tmp_path / "c.tensors")
    by_hand = drowsy.calibrate(net, data.images[:7], schedules, reconstruct=True, batch=5)
    for setting, corrections in by_hand.points.items():
        for name, each in corrections.items():
            found = calibration.points[setting][name]
            torch.testing.assert_close(found.delta, each.delta, rtol=1e-3, atol=1e-6)
    found = drowsy.Frontier.load(tmp_path / "c.json")
    assert found.reference.saving == 0
    for point in (found.reference, *found.points):
        net.set(point)
        setting = tuple(net.control.settings)
        counts = [
            drowsy.Evaluator(net, data.images[7:], data.labels[7:], seed=seed).evaluate(setting)
            for seed in (2, 5)
        ]
        assert point.top1 == pytest.approx(sum(each.top1 for each in counts) / 10)
        divergence = sum(each.divergence for each in counts) / 10
        assert point.divergence == pytest.approx(divergence, rel=1e-3, abs=1e-9)
        assert (point.images, point.seeds) == (5, (2, 5))
        # What does not depend on the images stays.
        assert point.latency_ms == 3.0 - 4 * point.saving
    assert main(["calibrate", *network, *files]) == 0
    assert "corrections of 2 points, 12 images" in capsys.readouterr().out


def test_a_network_of_ones_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),\n"
        "                         nn.Flatten(), nn.Linear(4, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["uniform", "--model", "mynets:build", "--data", str(folder), "--crop", "32"]
    assert main([*arguments, "--classes", "10", "--out", "mine", "--fill", "interpolate"]) == 0
    with open(tmp_path / "mine" / "uniform.csv", newline="") as file:
        assert {row["fill"] for row in csv.DictReader(file)} == {"rescale", "zero", "interpolate"}


def test_only_a_network_of_ones_own_is_looked_for_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it imports when it is made is found too; afterwards the path is as it was."""
    (tmp_path / "their_layers.py").write_text("WIDTH = 4\n")
    (tmp_path / "their_net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    from their_layers import WIDTH\n"
        "    return nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.Flatten())\n"
        "def broken():\n"
        "    raise ValueError('broken')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    before = list(sys.path)
    for command in ("cost", "inspect"):
        assert main([command, "--model", "their_net:build", "--crop", "32"]) == 0
        assert sys.path == before
    assert "4 x 30 x 30" in capsys.readouterr().out
    assert main(["cost", "--model", "their_net:broken"]) == 2
    assert sys.path == before
    with current_folder_importable():
        assert sys.path == ["", *before]
        sys.path.append("theirs")
    assert sys.path == [*before, "theirs"]


def test_no_command_changes_its_arguments() -> None:
    args = parse(["cost", "--model", "caffenet_cifar"])
    given = dict(vars(args))
    with pytest.raises(AttributeError, match="images: the arguments of a command stay"):
        args.images = range(3)
    with pytest.raises(AttributeError, match="model: the arguments"):
        args.model = "caffenet"
    args.run(args)
    assert vars(args) == given


def test_inspect_lists_the_stages_of_a_network_without_weights(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["inspect", "--model", "cifar_resnet20", "--stages"]) == 0
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["stage", "size", "layers", "reads", "filled", "in", "for"]
    assert [line.split()[1] for line in lines] == ["32x32", "16x16", "8x8"]
    assert "conv1 .. layer1.2.conv2 (7)" in lines[0]


def test_inspect_shows_streams_where_layers_share_them(capsys: pytest.CaptureFixture[str]) -> None:
    def streams(*options: str) -> list[str]:
        assert main(["inspect", "--model", "caffenet_cifar", *options]) == 0
        table, _ = capsys.readouterr().out.split("\n\n")
        header, _, *lines = table.splitlines()
        start = header.index("stream")
        return [line[start:].split("  ")[0] for line in lines]

    assert streams("--streams", "stage", "--source", "bluenoise") == ["0", "1", "2", "2", "2"]
    shifted = streams("--streams", "shifted", "--grain", "position")
    assert shifted == ["0", "1", "2", "2 + 1", "2 + 2"]
    assert main(["inspect", "--model", "caffenet_cifar"]) == 0
    assert "stream" not in capsys.readouterr().out


def test_inspect_says_which_kernels_run_and_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["inspect", "--model", "caffenet_cifar", "--kernels"]
    assert main([*arguments, "--gpu", "sm_90", "--batch", "8", "--dtype", "bfloat16"]) == 0
    title, _, _, *lines = capsys.readouterr().out.splitlines()
    assert title == "sm_90, batch 8, bf16"
    # Five ways to sleep for each of five layers.
    assert len(lines) == 25
    assert [line.split()[0] for line in lines[::5]] == [f"conv{i}" for i in range(1, 6)]
    assert "cudnn" in lines[0]
    assert all("heuristic" in line for line in lines)
    # Strided and grouped layers have no boxes; conv3 is neither.
    assert [i for i, line in enumerate(lines) if " box " in line] == [11]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(arguments) == 0
    assert "no CUDA device here" in capsys.readouterr().out


GATES = """
from torch import nn

class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8)
        self.gate = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.norm(self.conv(x))
        if %s:
            x = x * self.gate(x.mean((2, 3), keepdim=True))
        return self.head(x.mean((2, 3)))
"""


@pytest.mark.parametrize(
    ("condition", "graph"),
    [
        ("True", "graph   traced, agrees with the model"),
        ("x.mean() < 100", "graph   none: torch.fx cannot trace Gated"),
    ],
)
def test_inspect_runs_a_network_and_says_what_rests_and_which_way_it_took(
    condition: str,
    graph: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / f"gates_{len(graph)}.py").write_text(GATES % condition)
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "--model", f"gates_{len(graph)}:Gated", "--crop", "16"]) == 0
    table, summary = capsys.readouterr().out.split("\n\n")
    header, _, conv, gate = table.splitlines()
    assert header.split() == ["layer", "convolution", "share", "then", "fill", "why"]
    # 216 multiplications at each of 49 positions, 64 in the gate, 80 in the linear layer.
    assert conv.split()[:5] == ["conv", "3->8", "3x3", "/2", f"{10584 / 10728:.1%}"]
    assert conv.split()[5] == "norm"
    assert gate.split()[:5] == ["gate.0", "8->8", "1x1", f"{64 / 10728:.1%}", "sigmoid"]
    assert gate.endswith("rests: its output is one position")
    assert max(map(len, [*table.splitlines(), *summary.splitlines()])) <= 100
    assert "drowsy  2 of 2 convolutions\nresting 1 of them" in summary
    assert graph in summary
    assert summary.endswith(f"convolutions are {10648 / 10728:.1%}\n")


def test_inspect_says_where_a_network_was_not_run() -> None:
    net = drowsy.convert(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).eval())
    told = inspect(net)
    assert "resting known once the network has run" in told
    assert "graph   traced, not compared with the model yet" in told
    net.settle(torch.randn(1, 3, 8, 8))
    assert "resting none\ngraph   traced, agrees with the model" in inspect(net)


def test_inspect_and_cost_print_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--model", "caffenet_cifar"]) == 0
    assert "feeds max-pooling (pool1)" in capsys.readouterr().out
    assert main(["cost", "--model", "caffenet"]) == 0
    told = capsys.readouterr().out
    assert "665.8 M" in told
    assert told.splitlines()[0].endswith("of the network")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "--model", "lenet"], "model: got 'lenet', allowed: caffenet"),
        (["uniform", "--model", "resnet18", "--data", "."], "weights: resnet18 ships without"),
        (["inspect", "--model", "caffenet_cifar", "--source", "dice"], "source: got 'dice'"),
        (["inspect", "--model", "caffenet_cifar", "--grain", "row"], "grain: got 'row'"),
        (["inspect", "--model", "caffenet_cifar", "--k", "1"], "k: got 1, allowed"),
        (
            ["inspect", "--model", "caffenet_cifar", "--source", "bluenoise", "--grain", "channel"],
            "grain: got channel with source bluenoise, allowed",
        ),
        (["inspect", "--model", "caffenet_cifar", "--skip", "conv9"], "'conv9' names no conv"),
        ([*STUDY, "--data", "nowhere", "--budget", "0"], "budget: got 0, allowed: 1 or more"),
        ([*STUDY, "--data", "nowhere"], "data: no folder nowhere"),
        (
            [*STUDY, "--data", "{data}", "--images", "0:13"],
            "images: got 0:13, allowed: a range within 0:12",
        ),
        ([*STUDY, "--data", "{data}", "--correct", "0:4"], "images: got all, allowed: FIRST:LAST"),
        (
            [*STUDY, "--data", "{data}", "--correct", "0:4", "--images", "3:12"],
            "which overlaps correct 0:4",
        ),
        (
            [*STUDY, "--data", "{data}", "--correct", "0:4", "--engine", "ray"],
            "correct: got engine ray, allowed: inprocess",
        ),
        ([*STUDY, "--data", "{data}", "--device", "cuda"], "finds no CUDA device"),
    ],
)
def test_bad_input_is_told_in_a_line(
    arguments: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert main([a.format(data=folder) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_demo_reads_arrays_and_refuses_code(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.pkl", tmp_path / "bad.pkl"
    good.write_bytes(pickle.dumps({"a": [np.arange(3.0)]}))
    bad.write_bytes(pickle.dumps({"a": subprocess.Popen}))
    np.testing.assert_array_equal(_read_arrays(good)["a"][0], np.arange(3.0))
    with pytest.raises(pickle.UnpicklingError, match=r"subprocess.Popen is not allowed"):
        _read_arrays(bad)


def test_import_needs_no_extra_and_no_driver() -> None:
    """Core imports only: optional packages and Triton itself are not touched."""
    blocked = ("matplotlib", "PIL", "tqdm", "safetensors", "optuna", "ray", "pynvml", "triton")
    script = (
        "import sys\n"
        f"for name in {blocked}: sys.modules[name] = None\n"
        "import drowsy, torch\n"
        "layer = drowsy.DrowsyConv2d(3, 4, 3, rate=0.5)\n"
        "with torch.inference_mode(): print(tuple(layer(torch.ones(1, 3, 5, 5)).shape))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout == "(1, 4, 3, 3)\n", run.stderr


def test_kernels_do_not_know_drowsy() -> None:
    script = (
        "import sys, drowsy_kernels\n"
        "assert not any(m == 'drowsy' or m.startswith('drowsy.') for m in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# --- a frontier's own options ---------------------------------------------------------------------


def searched(folder: Path, out: Path, *options: str) -> Path:
    """A frontier of ``drowsy search``."""
    arguments = ["search", *STUDY[1:], "--data", str(folder), "--out", str(out)]
    assert main([*arguments, "--method", "greedy", "--budget", "12", *options]) == 0
    return out / "frontier_top1.json"


def test_a_frontier_tells_how_it_was_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source, grain, fill and k are followed, and survive what commands write."""
    sleep = ["--source", "lattice", "--grain", "position", "--fill", "nearest"]
    frontier = searched(folder, tmp_path / "search", *sleep)
    assert drowsy.Frontier.load(frontier).source == "lattice"
    seen = []
    calibrate = drowsy.calibrate
    monkeypatch.setattr(
        "drowsy.cli.commands.calibrate",
        lambda net, *args, **options: seen.append(net.schedule) or calibrate(net, *args, **options),
    )
    files = ["--frontier", str(frontier), "--out", str(tmp_path / "c.safetensors")]
    arguments = ["calibrate", *STUDY[1:3], "--data", str(folder), *files]
    assert main([*arguments, "--images", "0:6", "--measure", "6:12"]) == 0
    (schedule,) = seen
    assert schedule.k == 3
    assert {layer.grain for layer in schedule.layers.values()} == {"position"}
    calibration = drowsy.Calibration.load(tmp_path / "c.safetensors")
    told = {text for sleeps in calibration.sleeps.values() for text in sleeps}
    assert {(text.split(";")[0], text.split(", ")[-1]) for text in told} == {("lattice", "nearest")}
    assert drowsy.Frontier.load(tmp_path / "c.json").source == "lattice"
    # What it tells may be said again.
    assert main([*arguments, "--images", "0:6", *sleep, "--k", "3"]) == 0


def test_a_frontier_that_tells_no_source_is_told_of(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frontier = searched(folder, tmp_path / "search", "--source", "stratified", "--fill", "zero")
    data = json.loads(frontier.read_text())
    assert data.pop("source") == "stratified"
    frontier.write_text(json.dumps(data))
    files = ["--frontier", str(frontier), "--out", str(tmp_path / "c.safetensors")]
    arguments = ["calibrate", *STUDY[1:3], "--data", str(folder), *files]
    capsys.readouterr()
    assert main(arguments) == 0
    told = capsys.readouterr().err
    assert "frontier_top1.json does not tell the source that it was measured with; bernoul" in told
    assert main([*arguments, "--source", "stratified"]) == 0
    assert "does not tell" not in capsys.readouterr().err


# --- weights, errors, pipes -----------------------------------------------------------------------

NETWORKS = """
import torch
from torch import nn
def build():
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), pool, nn.Flatten(), nn.Linear(4, 10))
class Faulty(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)
    def forward(self, x):
        return self.fc(fault(self.conv(x)).mean((2, 3)))
def fault(x):
    return x + {}["fault"]
torch.fx.wrap("fault")
"""


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options for networks of one's own."""
    (tmp_path / "its_nets.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "its_nets", raising=False)
    return ["--crop", "32", "--classes", "10", "--out", str(tmp_path / "out")]


def test_weights_that_a_function_makes_are_told_of(
    folder: Path, tmp_path: Path, networks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["uniform", "--model", "its_nets:build", "--data", str(folder), *networks]
    assert main(arguments) == 0
    told = capsys.readouterr().err
    assert "drowsy uniform: its_nets:build has the weights that its function gave it" in told
    record = json.loads((tmp_path / "out" / "uniform.json").read_text())
    assert record["weights"] == "as the function made them"
    tensors = pytest.importorskip("safetensors.torch")
    made = torch.nn.Sequential(*[torch.nn.Conv2d(3, 4, 3), *[torch.nn.Identity()] * 2])
    made.append(torch.nn.Linear(4, 10))
    tensors.save_file(made.state_dict(), tmp_path / "w.safetensors")
    assert main([*arguments, "--weights", "w.safetensors"]) == 0
    assert "function gave it" not in capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "uniform.json").read_text())
    assert record["weights"] == "w.safetensors"


def test_what_nobody_refused_keeps_its_traceback(folder: Path, networks: list[str]) -> None:
    """A fault of the network is not told as if an option was wrong."""
    with pytest.raises(KeyError, match="fault"):
        main(["uniform", "--model", "its_nets:Faulty", "--data", str(folder), *networks])


@pytest.mark.parametrize("kind", [ValueError, TypeError, KeyError, RuntimeError])
def test_a_fault_of_drowsys_keeps_its_traceback(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = {
        ValueError: lambda *_: int("x"),
        TypeError: lambda *_: 1 + "",  # type: ignore[operator]
        KeyError: lambda *_: {}["x"],
        RuntimeError: lambda *_: torch.zeros(2) @ torch.zeros(3),
    }
    monkeypatch.setattr("drowsy.cli.commands.cost_table", faults[kind])
    with pytest.raises(kind):
        main(["cost", "--model", "caffenet_cifar"])


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "drowsy cost: interrupted"),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nThe rest."),
            2,
            "drowsy cost: CUDA out of memory. (--batch takes a smaller number)",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. can't allocate memory: 9"),
            2,
            "drowsy cost: the memory does not suffice (--batch takes a smaller number",
        ),
        (OSError(2, "No such file", "x.drowsy"), 2, "drowsy cost: x.drowsy: No such file"),
        (OSError(28, "No space left on device"), 2, "drowsy cost: [Errno 28] No space left on dev"),
    ],
    ids=["interrupted", "memory", "host", "missing", "disk"],
)
def test_what_can_happen_to_anybody_is_told_in_a_line(
    error: BaseException, code: int, told: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(_: object) -> str:
        raise error

    monkeypatch.setattr("drowsy.cli.commands.cost_table", fail)
    assert main(["cost", "--model", "caffenet_cifar"]) == code
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert printed[0].startswith(told)


@pytest.mark.parametrize(
    ("arguments", "code"), [(["cost", "--model", "caffenet_cifar"], 141), (["--help"], 0)]
)
def test_a_reader_that_leaves_early_ends_a_command_quietly(arguments: list[str], code: int) -> None:
    """As ``| head`` does; the pipe is closed before anything is written."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "drowsy", *arguments], stdout=pipe, stderr=subprocess.PIPE
        )
    assert done.stderr == b""
    assert done.returncode == code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_an_output_that_cannot_be_written_is_told() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "drowsy", "cost", "--model", "caffenet_cifar"],
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert line.startswith("drowsy")
    assert "No space left on device" in line
    assert done.returncode == 2
