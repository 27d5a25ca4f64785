"""The commands that take clips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import drowsy
from drowsy import models
from drowsy.cli import main
from drowsy.images.frames import read_frames

av = pytest.importorskip("av", reason='needs PyAV: pip install -e ".[video]"')
NETWORK = ["--crop", "56"]


@pytest.fixture
def clips(tmp_path: Path) -> list[str]:
    """Two clips of 14 frames of noise, in which a square moves."""
    rng = np.random.default_rng(1)
    paths = []
    for name in ("one", "two"):
        still = rng.integers(0, 255, (60, 80, 3), np.uint8)
        path = tmp_path / f"{name}.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=10)
            stream.width, stream.height, stream.pix_fmt = 80, 60, "yuv444p"
            for time in range(14):
                pixels = still.copy()
                pixels[20:40, 4 * time : 20 + 4 * time] = 255
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        paths.append(str(path))
    return paths


@pytest.fixture
def weights(tmp_path: Path) -> str:
    from safetensors.torch import save_file

    torch.manual_seed(2)
    path = tmp_path / "squeezenet1_1.safetensors"
    save_file(models.create("squeezenet1_1").state_dict(), str(path))
    return str(path)


def test_a_knob_for_video_is_tuned(
    clips: list[str], weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "net.drowsy"
    command = ["tune", "squeezenet1_1", *clips, "--video", "--out", str(out), "--weights", weights]
    command += [*NETWORK, "--minutes", "0.05", "--levers", "skip", "size", "--cost", "macs"]
    assert main([*command, "--frames", "8"]) == 0
    told, err = capsys.readouterr()
    # No terminal: stages are lines.
    assert [line.split(": ")[-1] for line in err.splitlines() if " of 0.05 min: " in line] == [
        *("preparing", "choosing", "reporting", "measuring"),
    ]
    assert "peak" in told
    assert "remember: not asked for" in told
    assert "every second clip is chosen on" in told
    model = models.load("squeezenet1_1", weights)
    knob = drowsy.load(out, model)
    assert isinstance(knob, drowsy.VideoKnob)
    assert knob.contents.image == (3, 56, 56)
    assert knob.contents.made["network"]["model"] == "squeezenet1_1"
    assert main(["bench", str(out), "--seconds", "0.01"]) == 0
    assert "slowest" in capsys.readouterr().out
    assert main(["live", str(out), "--data", str(tmp_path)]) == 2
    assert "is for video, allowed: one for images" in capsys.readouterr().err


@pytest.fixture
def knob(clips: list[str], weights: str, tmp_path: Path) -> str:
    """The file of a knob that was sold without any loss."""
    out = tmp_path / "net.drowsy"
    model = models.load("squeezenet1_1", weights)
    frames = torch.rand(12, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    tuned = drowsy.tune(
        model, frames, levers="skip", cost="macs", minutes=0.02, video=True, progress=False
    )
    network = {"model": "squeezenet1_1", "weights": weights, "crop": 56}
    points = tuple(replace(p, loss=-1.0, interval=(-2.0, -1.0)) for p in tuned.contents.points)
    made = {**tuned.contents.made, "network": network}
    drowsy.VideoKnob(model, replace(tuned.contents, points=points, made=made)).save(out)
    return str(out)


def test_a_knob_is_evaluated_on_clips(
    knob: str, clips: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", knob, "--data", *clips, "--frames", "10"]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert "sold with" in lines[0]
    assert len(lines) == 2 + len([line for line in told.err.splitlines() if "loses" in line])
    assert "awake: loses 0 of agreement here (0 to 0), sold with -2 to -1: no" in told.err
    for more, told_of in (
        (["--batch", "3"], "batch: got 3, allowed: --batch for a knob for images"),
        (["--labels", "x"], "labels: got x, allowed: --labels for a knob for images"),
    ):
        assert main(["evaluate", knob, "--data", *clips, *more]) == 2
        assert told_of in capsys.readouterr().err


def test_a_knob_has_a_page(
    knob: str, clips: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("PIL", reason="needs Pillow")
    names, page = tmp_path / "names", tmp_path / "page.html"
    names.write_text("\n".join(f"thing {n}" for n in range(1000)))
    line = ["report", knob, "--out", str(page)]
    shown = ["--data", clips[0], "--images", "2:6", "--names", str(names)]
    assert main([*line, *shown]) == 0
    assert "holds 4 of the frames" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.count('id="picture') == 4
    assert "thing " in text
    assert main(line) == 0
    assert "No example pictures were given" in page.read_text(encoding="utf-8")
    for more, told in (
        (["--data", clips[0], "--images", "10:18"], "images: got 10:18, allowed: within 0:14"),
        (
            ["--data", clips[0], "--labels", "x"],
            "labels: got x, allowed: --labels for a knob for images",
        ),
        (["--names", str(names)], "names: got"),
    ):
        assert main([*line, *more]) == 2
        assert told in capsys.readouterr().err


def test_clips_are_compared(
    clips: list[str], weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["compare", "--model", "squeezenet1_1", "--weights", weights, *NETWORK]
    command += ["--video", *clips, "--frames", "8", "--savings", "0.5", "--out", str(out)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "where it moves" in told
    assert "bands" in told
    assert {path.name for path in out.iterdir()} == {
        *("compare.csv", "compare_clips.csv", "compare.json", "compare.png"),
    }
    about = json.loads((out / "compare.json").read_text())
    assert about["frames"] == {"one": 8, "two": 8}


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["tune", "squeezenet1_1", "a", "b", "--out", "o"], "data: got 2 folders, allowed: one"),
        (
            ["tune", "squeezenet1_1", "a", "--out", "o", "--frames", "4"],
            "frames: got 4, allowed: with --video",
        ),
        (
            ["tune", "squeezenet1_1", "a", "--out", "o", "--video", "--batch", "4"],
            "batch: got 4, allowed: without --video",
        ),
        (
            ["tune", "squeezenet1_1", "a", "--out", "o", "--video", "--every", "0"],
            "every: got 0, allowed: 1 or more",
        ),
        (
            ["tune", "squeezenet1_1", "a.mkv", "--out", "o"],
            "data: a.mkv is a clip, allowed: a folder; clips: --video",
        ),
        (
            ["compare", "--model", "squeezenet1_1", "--data", "a.MP4"],
            "data: a.MP4 is a clip, allowed: a folder; clips: --video",
        ),
        (["live", "net.drowsy", "--data", "a.webm"], "data: a.webm is a clip, allowed: a folder"),
        (["compare", "--model", "squeezenet1_1"], "data: got none, allowed: --data, or clips"),
        (
            ["compare", "--model", "squeezenet1_1", "--data", "x", "--search", "0:4"],
            "report: got none, allowed: --report, or clips",
        ),
        (
            ["compare", "--model", "squeezenet1_1", "--video", "a", "--data", "x"],
            "data: got some, allowed: none with --video",
        ),
        (
            ["compare", "--model", "squeezenet1_1", "--video", "a", "--seeds", "1"],
            "seeds: got some, allowed: none with --video",
        ),
    ],
)
def test_options_that_do_not_go_together(
    command: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg"])
def test_a_picture_is_no_clip(
    name: str, clips: list[str], weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    picture = str(tmp_path / name)
    image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(picture)
    command = ["tune", "squeezenet1_1", clips[0], picture, "--video", "--weights", weights]
    assert main([*command, *NETWORK, "--out", str(tmp_path / "o")]) == 2
    told = f"clip: {picture} holds one frame, as a picture does, allowed: two or more"
    assert told in capsys.readouterr().err
    # One frame of a clip is one that was asked for.
    assert len(list(read_frames(clips[0], models.MODELS["resnet18"].preprocess, most=1))) == 1


def test_clips_of_one_name_are_refused(
    clips: list[str], weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--model", "squeezenet1_1", "--weights", weights, *NETWORK]
    assert main([*command, "--video", clips[0], clips[0]]) == 2
    assert "clips: got two that are called one" in capsys.readouterr().err
