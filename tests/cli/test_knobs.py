"""``drowsy tune``, ``evaluate``, ``bench``, ``report``, and the names of networks they take."""

from __future__ import annotations

import csv
import json
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import drowsy
from drowsy.cli.libraries import find
from drowsy.cli.main import main
from drowsy.files.tensors import read_described
from drowsy.tuning.knobfile import read_knob, write_knob

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
pytest.importorskip("matplotlib", reason="needs matplotlib")

NETWORK = """
import torch
from torch import nn
class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)
    def forward(self, x):
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))
def build():
    torch.manual_seed(3)
    return Tiny()
def other():
    torch.manual_seed(4)
    return Tiny()
"""
SIZE = ["--crop", "24", "--resize", "24", "--classes", "3"]
# A file names no code to run.
OURS = ["--model", "nets.small:build"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is worked in: a module with networks, and 8 images of each of 3 classes."""
    rng = np.random.default_rng(0)
    for label in range(3):
        (tmp_path / "data" / f"class{label}").mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / f"class{label}" / f"{i}.png")
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "small.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    for name in ("nets", "nets.small"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.fixture
def tuned(folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A knob file that the command wrote."""
    arguments = ["tune", "nets.small:build", "data", *SIZE, "--out", "tiny.drowsy"]
    assert main([*arguments, "--levers", "view", "--minutes", "0.02", "--batch", "2"]) == 0
    return folder / "tiny.drowsy"


def model_of(folder: Path, name: str = "build") -> nn.Module:
    space: dict[str, Any] = {}
    exec(NETWORK, space)
    return space[name]().eval()


def test_tune_writes_the_knob_its_table_its_record_and_its_picture(
    tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tuned.parent
    told = capsys.readouterr()
    assert "view: " in told.out
    assert "sleep: not asked for" in told.out
    assert "wrote tiny.drowsy (the knob), tiny.csv, tiny.json, tiny.png" in told.out
    assert "has the weights that its function gave it" in told.err
    stages = re.findall(r"^\d+\.\d of 0\.02 min: (\w+)$", told.err, re.M)
    assert stages == ["preparing", "view", "choosing", "reporting", "measuring"]
    knob = drowsy.load(tuned, model_of(folder))
    assert knob.batch == 2
    assert knob.contents.image == (3, 24, 24)
    network = knob.contents.made["network"]
    assert network == {
        "model": "nets.small:build", "weights": None, "classes": 3, "resize": 24, "crop": 24,
        "mean": None, "std": None,
    }  # fmt: skip
    with open(folder / "tiny.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == [row["setting"] for row in knob.rows()]
    assert [float(row["latency_ms"]) for row in rows] == pytest.approx(
        [row["latency_ms"] for row in knob.rows()], rel=1e-5
    )
    record = json.loads((folder / "tiny.json").read_text())
    assert record["tuned"]["network"] == network
    assert record["objective"] == "top1"
    assert (folder / "tiny.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_evaluate_finds_the_network_in_the_file_and_compares_with_what_was_sold(
    tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(tuned.parent)
    contents = read_knob(tuned, model)
    # Sold with less than any loss can be.
    points = [replace(point, interval=(-2.0, -1.5)) for point in contents.points]
    write_knob(tuned, replace(contents, points=tuple(points)))
    capsys.readouterr()
    assert main(["evaluate", "tiny.drowsy", *OURS, "--data", "data", "--images", "4:20"]) == 0
    told = capsys.readouterr()
    knob = drowsy.load(tuned, model)
    header, _, *lines = told.out.splitlines()
    assert "lost (points) here" in header
    assert [line.split("  ")[0] for line in lines] == [row["setting"] for row in knob.rows()]
    assert all(line.endswith("  no") for line in lines)
    warned = [line for line in told.err.splitlines() if ": loses " in line]
    assert len(warned) == len(lines)
    assert "awake: loses 0 of top1 here (0 to 0), sold with -2 to -1.5: no" in warned[0]


def test_evaluate_says_nothing_of_points_that_hold(
    tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = read_knob(tuned, model_of(tuned.parent))
    points = [replace(point, interval=(-1.0, 1.0)) for point in contents.points]
    write_knob(tuned, replace(contents, points=tuple(points)))
    capsys.readouterr()
    assert main(["evaluate", "tiny.drowsy", *OURS, "--data", "data"]) == 0
    told = capsys.readouterr()
    assert all(line.endswith("yes") for line in told.out.splitlines()[2:])
    assert "loses" not in told.err
    line = ["evaluate", "tiny.drowsy", *OURS, "--data", "data"]
    for more, refused in (
        (["--frames", "3"], "frames: got 3, allowed: --frames for a knob for video"),
        (["--data", "data", "data"], "data: got 2 folders, allowed: one"),
    ):
        assert main([*line, *more]) == 2
        assert refused in capsys.readouterr().err


def test_bench_measures_every_setting_here_and_writes_where_it_is_asked_to(
    tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(tuned.parent)
    contents = read_knob(tuned, model)
    elsewhere = {**contents.made, "machine": {"processor": "another one"}}
    points = [replace(point, latency_ms=1e6 - n) for n, point in enumerate(contents.points)]
    write_knob(tuned, replace(contents, made=elsewhere, points=tuple(points)))
    before = tuned.read_bytes()
    capsys.readouterr()
    assert main(["bench", "tiny.drowsy", *OURS, "--seconds", "0.1", "--batch", "3"]) == 0
    told = capsys.readouterr()
    assert "ms/3" in told.out
    assert "tiny.drowsy is as it was: --out F keeps these figures" in told.out
    # Nobody is warned of milliseconds that are measured anew.
    assert "another machine" not in told.err
    assert tuned.read_bytes() == before
    assert main(["bench", "tiny.drowsy", *OURS, "--seconds", "0.1", "--out", "here.drowsy"]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        knob = drowsy.load("here.drowsy", model)
    assert knob.batch == 2
    assert all(0 < point.latency_ms < 1e5 for point in knob.contents.points)
    # The network is still known.
    assert main(["bench", "here.drowsy", *OURS, "--seconds", "0.1"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "tiny.drowsy", *OURS, "--data", "data"]) == 0
    assert "its milliseconds are of another machine" in capsys.readouterr().err


def test_another_network_is_refused_and_the_same_by_another_name_is_not(
    tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    other = ["--model", "nets.small:other", *SIZE]
    assert main(["bench", "tiny.drowsy", *other, "--seconds", "0.1"]) == 2
    assert "was tuned for other weights" in capsys.readouterr().err
    assert main(["bench", "tiny.drowsy", *OURS, "--seconds", "0.1"]) == 0
    # A file that a program wrote names no network.
    contents = read_knob(tuned, model_of(tuned.parent))
    made = {name: value for name, value in contents.made.items() if name != "network"}
    write_knob(tuned, replace(contents, made=made))
    capsys.readouterr()
    assert main(["bench", "tiny.drowsy", "--seconds", "0.1"]) == 2
    assert (
        "model: got none, which the file does not tell, allowed: caffe" in capsys.readouterr().err
    )
    assert main(["bench", "tiny.drowsy", *OURS, *SIZE, "--seconds", "0.1"]) == 0


@pytest.mark.parametrize("command", ["evaluate", "bench", "report", "live"])
def test_a_file_alone_runs_no_code(
    command: str, tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What names a module may come from a stranger, with the module beside it."""
    sys.modules.pop("nets.small")
    capsys.readouterr()
    more = {"bench": [], "report": ["--out", "page.html"]}.get(command, ["--data", "data"])
    assert main([command, "tiny.drowsy", *more]) == 2
    assert (
        "model: got none, and the file names 'nets.small:build', allowed: --model "
        "nets.small:build, as code runs by your word alone"
    ) in capsys.readouterr().err
    assert "nets.small" not in sys.modules


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 5),
        ("model", ["a"]),
        ("weights", True),
        ("classes", "3"),
        ("mean", 1.5),
        ("std", 2),
    ],
)
def test_a_network_that_a_file_tells_amiss_is_refused(
    name: str, value: Any, tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = read_knob(tuned, model_of(tuned.parent))
    network = {**contents.made["network"], name: value}
    write_knob(tuned, replace(contents, made={**contents.made, "network": network}))
    capsys.readouterr()
    assert main(["report", "tiny.drowsy", "--out", "page.html"]) == 2
    told = f"{name}: got {value!r} in the file, allowed: what the option --{name} takes"
    assert told in capsys.readouterr().err


def test_without_labels_what_was_sold_by_them_has_no_columns(
    tuned: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = folder / "plain"
    plain.mkdir()
    for n, path in enumerate((folder / "data" / "class0").iterdir()):
        path.rename(plain / f"{n}.png")
    capsys.readouterr()
    assert main(["evaluate", "tiny.drowsy", *OURS, "--data", "plain"]) == 0
    told = capsys.readouterr()
    assert "sold with" not in told.out
    assert "holds" not in told.out
    assert "what points were sold with says nothing of this" in told.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "F", "--data", "none"], "data: no folder none"),
        (["evaluate", "F", "--data", "a.mp4"], "data: a.mp4 is a clip"),
        (["evaluate", "F", "--data", "data", "--every", "2"], "every: got 2, allowed: --every for"),
        (["bench", "F", "--seconds", "0"], "seconds: got 0.0, allowed: a number above 0, up to"),
        (["bench", "F", "--seconds", "1e300"], "seconds: got 1e+300, allowed: a number above"),
        (["bench", "F", "--out", "F/a"], "is no folder that can be written to"),
        (["report", "F", "--data", "none", "--out", "p"], "data: no folder none"),
        (["report", "F", "--data", "data", "--names", "n", "--out", "p"], "names: got n, allowed:"),
        (["report", "F", "--data", "data", "--images", "0:9", "--out", "p"], "images: got 0:9"),
        (["report", "F", "--out", "F/p"], "is no folder that can be written to"),
        (["live", "F", "--data", "none"], "data: no folder none"),
        (["live", "F", "--data", "data", "--names", "none"], "none"),
        (["tune", "M", "data", "--out", "f", "--minutes", "0"], "minutes: got 0.0, allowed"),
        (["tune", "M", "data", "--out", "f", "--minutes", "1e7"], "got 10000000.0, allowed: a nu"),
        (["tune", "M", "data", "--out", "f", "--levers", "skip"], "levers: got skip, allowed of"),
        (["tune", "M", "data", "--out", "f", "--cost", "slowest"], "cost: got slowest, allowed of"),
        (["tune", "M", "data", "--out", "f", "--store", "data"], "store data: cannot be opened"),
        (["tune", "M", "none.mp4", "--video", "--out", "f"], "clip: none.mp4 cannot be read"),
        (["uniform", "--model", "M", "--data", "data", "--out", "F"], "out: got tiny.drowsy"),
        (["uniform", "--model", "M", "--data", "data", "--store", "F"], "not an evaluation store"),
        (["uniform", "--model", "M", "--data", "none", "--out", "o"], "data: no folder none"),
    ],
)
def test_what_is_cheap_to_see_is_refused_before_a_network_is_loaded(
    arguments: list[str],
    message: str,
    tuned: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load_model(*args: Any, **given: Any) -> Any:
        raise AssertionError("a network was loaded")

    for module in ("knobs", "inputs", "video", "commands"):
        monkeypatch.setattr(f"drowsy.cli.{module}.load_model", load_model)
    given = [each.replace("F", "tiny.drowsy") for each in arguments]
    given += OURS * (arguments[1] == "F")
    given = ["nets.small:build" if each == "M" else each for each in given]
    capsys.readouterr()
    assert main(given) == 2
    assert message in capsys.readouterr().err


def test_a_run_goes_on_from_its_store(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tune", "nets.small:build", "data", *SIZE, "--minutes", "0.02"]
    arguments += ["--levers", "view", "--cost", "macs", "--store", "s.sqlite"]
    assert main([*arguments, "--out", "one.drowsy"]) == 0
    assert main([*arguments, "--out", "two.drowsy"]) == 0
    one, two = (read_described(f"{name}.drowsy", "knob")[1]["points"] for name in ("one", "two"))
    for point in (*one, *two):
        del point["latency_ms"]
    assert one == two
    assert (folder / "s.sqlite.journal").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "lenet", "data", "--out", "f"], "model: got 'lenet', allowed: caffenet"),
        (
            ["tune", "nets.small:build", "data", "--out", "f.png"],
            "out: got f.png, allowed: another",
        ),
        (["tune", "nets.small:build", "data", "--out", "data"], "out: data is a folder"),
        (["tune", "nets.small:build", "none", "--out", "f"], "data: no folder none"),
        (
            ["tune", "nets.small:build", "data", *SIZE, "--out", "f", "--minutes", "0"],
            "minutes: got 0.0, allowed: a number above 0",
        ),
        (
            ["tune", "nets.small:build", "data", *SIZE, "--out", "f", "--images", "0:3"],
            "images: got 3, allowed: 6 or more",
        ),
        (["tune", "resnet18", "data", "--out", "f"], "weights: resnet18 ships without"),
        (["evaluate", "none.drowsy", "--data", "data"], "none.drowsy"),
        (["bench", "data", "--seconds", "1"], "data"),
        (["bench", "f", "--batch", "0"], "batch: got 0, allowed: 1 or more"),
        (["bench", "f", "--batch", f"{10**30}"], f"batch: got {10**30}, allowed: 1 to 1048576"),
    ],
)
def test_bad_input_is_told_in_a_line(
    arguments: list[str],
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"drowsy {arguments[0]}: ")
    assert message in last


# --- networks of other libraries -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "package"),
    [("timm:x", "timm"), ("torchvision:x", "torchvision"), ("hf:x", "transformers")],
)
def test_a_library_that_is_missing_is_named_with_what_installs_it(
    given: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["inspect", "--model", given]) == 2
    told = capsys.readouterr().err
    assert f"model: got '{given}', and {package} cannot be imported" in told
    assert f"install it with: pip install {package}" in told


def a_timm(made: list[Any]) -> ModuleType:
    """What of timm is asked for."""
    space: dict[str, Any] = {}
    exec(NETWORK, space)

    def create_model(name: str, pretrained: bool, **more: Any) -> nn.Module:
        made.append((name, pretrained, more))
        return space["build"]()

    config = {"input_size": (3, 24, 24), "crop_pct": 0.875, "mean": (0.5, 0.5, 0.5)}
    config |= {"std": (0.25, 0.5, 1.0), "interpolation": "bicubic", "crop_mode": "center"}
    timm = ModuleType("timm")
    timm.is_model = lambda name: name == "tiny"  # type: ignore[attr-defined]
    timm.get_pretrained_cfg = lambda name: SimpleNamespace(  # type: ignore[attr-defined]
        to_dict=lambda: {**config, "num_classes": 3}
    )
    timm.data = SimpleNamespace(  # type: ignore[attr-defined]
        resolve_data_config=lambda args, pretrained_cfg: pretrained_cfg
    )
    timm.create_model = create_model  # type: ignore[attr-defined]
    return timm


def test_a_network_of_a_library_brings_its_weights_and_how_it_sees_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Any] = []
    monkeypatch.setitem(sys.modules, "timm", a_timm(made))
    found = find("timm:tiny", None)
    assert found is not None
    assert found.preprocess == {
        "resize": 27, "crop": 24, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 1.0),
    }  # fmt: skip
    assert found.classes == 3
    arguments = ["tune", "timm:tiny", "data", "--levers", "view", "--minutes", "0.02"]
    assert main([*arguments, "--out", "t.drowsy"]) == 0
    told = capsys.readouterr().err
    assert "timm:tiny: its images are scaled by bicubic interpolation, here by bilinear" in told
    assert made[-1] == ("tiny", True, {})
    # Again by the file alone; nothing is fetched where weights do not matter.
    assert main(["bench", "t.drowsy", "--seconds", "0.1"]) == 0
    assert made[-1] == ("tiny", True, {})
    assert main(["inspect", "--model", "timm:tiny"]) == 0
    assert made[-1] == ("tiny", False, {})
    assert main(["tune", "timm:other", "data", "--out", "t.drowsy"]) == 2
    assert "model: got timm:other, allowed: a name of timm.list_models()" in capsys.readouterr().err
    assert main([*arguments, "--out", "t.drowsy", "--classes", "7"]) == 2
    told = capsys.readouterr().err
    assert "classes: got 7, allowed: with --weights, as timm:tiny has 3" in told


def test_names_of_no_library_are_left_to_functions() -> None:
    assert find("nets.small:build", None) is None
    assert find("resnet18", None) is None
    assert find("timm:", None) is None


@pytest.mark.parametrize(
    ("given", "crop", "classes"),
    [("timm:resnet18", 224, 1000), ("torchvision:resnet18", 224, 1000)],
)
def test_what_real_libraries_say(given: str, crop: int, classes: int) -> None:
    pytest.importorskip(given.partition(":")[0], reason="needs the library")
    found = find(given, None)
    assert found is not None
    assert (found.preprocess["crop"], found.classes) == (crop, classes)
    assert found.preprocess["mean"] == (0.485, 0.456, 0.406)
    with torch.device("meta"):
        assert isinstance(found.make(False), nn.Module)


def test_report_writes_a_page_with_the_first_images(
    tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["report", "tiny.drowsy", *OURS, "--out", "page.html"]) == 0
    assert "wrote page.html: one page to send, which holds no images" in capsys.readouterr().out
    plain = Path("page.html").read_text()
    assert "<h1>nets.small:build</h1>" in plain
    assert 'id="picture' not in plain
    for more, count in (([], 3), (["--images", "5:9"], 4)):
        shown = [*OURS, "--data", "data", *more]
        assert main(["report", "tiny.drowsy", *shown, "--out", "page.html"]) == 0
        assert f"holds {count} of the images" in capsys.readouterr().out
        assert Path("page.html").read_text().count('id="picture') == count


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--images", "0:2"], "images: got .*, allowed: with --data"),
        (["--labels", "l.csv"], "labels: got l.csv, allowed: with --data"),
        (["--data", "data", "--images", "0:9"], "images: got 0:9, allowed: 8 of them at most"),
        # Python tells no length of this range.
        (
            ["--data", "data", "--images", f"0:{10**30}"],
            f"images: got 0:{10**30}, allowed: 8 of them at most",
        ),
        (["--data", "data", "--images", "20:28"], "images: got 20:28, allowed: a range within"),
        (["--data", "nowhere"], "data: no folder nowhere"),
        (["--data", "a.mkv"], "data: a.mkv is a clip, allowed: a folder; clips: of a knob for vid"),
    ],
)
def test_report_refuses_what_it_would_ignore(
    tuned: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "tiny.drowsy", *OURS, "--out", "page.html", *more]) != 0
    assert re.search(message, capsys.readouterr().err)
    assert not Path("page.html").exists()


def test_video_shows_a_clip_against_its_rivals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    av = pytest.importorskip("av", reason="needs PyAV")
    clip, out = tmp_path / "clip.mp4", tmp_path / "out.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(clip), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for shift in range(6):
            picture = np.roll(rng.integers(0, 255, (64, 64, 3), np.uint8), shift, 1)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    line = ["video", str(clip), "--model", "caffenet_cifar", "--rate", "1/2", "--frames", "5"]
    assert main([*line, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert [row.split()[0] for row in told.splitlines()[2:5]] == ["awake", "bands", "quads"]
    with av.open(str(out)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 5
    assert main([*line[:-3], "0.55"]) == 2
    assert "rate: got 11/20" in capsys.readouterr().err
