"""A network on a clip: what is shown, written and told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import drowsy
from drowsy.images.frames import frame_rate, read_frames
from drowsy.images.preprocess import Preprocess
from drowsy.video.command import watch

av = pytest.importorskip("av", reason='needs PyAV: pip install -e ".[video]"')

PREPROCESS = Preprocess(None, 56, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SHADES = (40, 90, 140, 190, 240)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Five grey frames of 80 x 60, with a white square that moves."""
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 60, "yuv444p"
        for time, shade in enumerate(SHADES):
            pixels = np.full((60, 80, 3), shade, np.uint8)
            pixels[20:30, 20 + 5 * time : 30 + 5 * time] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def network() -> drowsy.DrowsyNet:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    return drowsy.convert(nn.Sequential(*body, *head).eval())


def test_frames_are_scaled_and_cut_from_the_middle(clip: Path) -> None:
    frames = list(read_frames(clip, PREPROCESS))
    assert [tuple(frame.shape) for frame in frames] == [(56, 56, 3)] * 5
    assert frames[0].dtype == torch.uint8
    for frame, shade in zip(frames, SHADES, strict=True):
        assert abs(int(frame[50, 5, 0]) - shade) <= 2
    # A square from column 20 of 80 on lies at (20 - 10) * 56/60 of the cut.
    assert (frames[0][21:26, 11:17] > 230).all()
    assert frame_rate(clip) == 10
    first, third = read_frames(clip, PREPROCESS, most=2, every=2)
    assert abs(int(first[50, 5, 0]) - SHADES[0]) <= 2
    assert abs(int(third[50, 5, 0]) - SHADES[2]) <= 2
    large = next(read_frames(clip, Preprocess(64, 48, (0,) * 3, (1,) * 3)))
    assert large.shape == (48, 48, 3)


def test_a_clip_is_watched(clip: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    out = tmp_path / "shown.mp4"
    table = watch(
        network(),
        PREPROCESS,
        clip,
        refresh="change",
        rate=0.75,
        cut=None,
        out=out,
        names=["ant", "bee", "cat"],
        show=lines.append,
    )
    assert len(lines) == 5
    assert "work 100% (first)" in lines[0]
    assert "(areas)" in lines[1]
    assert any(name in lines[0] for name in ("ant", "bee", "cat"))
    rows = {line[:14].strip(): line.split() for line in table.splitlines()[2:]}
    assert list(rows) == ["awake", "change", "bands", "quads", "dense every 4"]
    assert rows["awake"][-2:] == ["100.0%", "0.000"]
    with av.open(str(out)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(shown) == 5
    assert shown[0].shape == (70, 56, 3)
    # The first frame is awake as a whole; later most of the picture is dark.
    assert abs(int(shown[0][50, 5, 0]) - 40) < 12
    dark = [np.mean(shown[4][:56, :, 0] < 160)]
    assert 0.6 < dark[0] < 0.9


def test_rates_that_a_refresh_lacks_leave_it_out(clip: Path) -> None:
    table = watch(network(), PREPROCESS, clip, refresh="bands", rate=1 / 3, most=2)
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["awake", "bands", "dense"]


def test_clear_errors(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clip: .* is a folder, allowed: a clip, such as one in"):
        next(read_frames(tmp_path, PREPROCESS))
    with pytest.raises(ValueError, match=r"clip: .*none.mp4 cannot be read as a video"):
        next(read_frames(tmp_path / "none.mp4", PREPROCESS))
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(ValueError, match=r"clip: .*text.mp4 cannot be read as a video"):
        next(read_frames(text, PREPROCESS))
    with pytest.raises(ValueError, match="every: got 0, allowed: an integer, 1 or more"):
        next(read_frames(clip, PREPROCESS, every=0))
    with pytest.raises(ValueError, match=r"rate: got 0\.3"):
        watch(network(), PREPROCESS, clip, refresh="change", rate=0.3)
