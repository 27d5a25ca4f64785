"""The commands that take clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import drowsy
from drowsy import models
from drowsy.cli import main

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
    told = capsys.readouterr().out
    assert "peak" in told
    assert "remember: not asked for" in told
    assert "every second clip is chosen on" in told
    model = models.load("squeezenet1_1", weights)
    knob = drowsy.load(out, model)
    assert isinstance(knob, drowsy.VideoKnob)
    assert knob.contents.image == (3, 56, 56)
    assert knob.contents.made["network"]["model"] == "squeezenet1_1"
    for name in ("evaluate", "bench", "report"):
        rest = {"evaluate": ["--data", "x"], "bench": [], "report": ["--out", str(tmp_path / "r")]}
        assert main([name, str(out), *rest[name]]) == 2
        assert "is for video, allowed: one for images" in capsys.readouterr().err


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


def test_clips_of_one_name_are_refused(
    clips: list[str], weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--model", "squeezenet1_1", "--weights", weights, *NETWORK]
    assert main([*command, "--video", clips[0], clips[0]]) == 2
    assert "clips: got two that are called one" in capsys.readouterr().err
