"""Tuning for video: what is offered, what is kept, and the knob that follows it."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import pickle
import re
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import drowsy
from drowsy.evaluation.classification import CLASSIFICATION
from drowsy.tuning import evaluate, measuring
from drowsy.tuning.clips import tune as tuning
from drowsy.tuning.clips.footage import Footage, Stretch, gather, split
from drowsy.tuning.clips.knob import worth_having
from drowsy.tuning.clips.pace import Pace, pace
from drowsy.tuning.clips.point import VideoPoint
from drowsy.video.motions import moved
from drowsy.video.ways import Way

HALF, MOST = Fraction(1, 2), Fraction(3, 4)
BANDS = Way(refresh="bands", rate=HALF)


class Net(nn.Module):
    """A small classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, 2, 1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))


class Fixed(Net):
    """It has a number for every place."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, 8, 28, 28))

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.one(x).relu()).relu() + self.places
        return self.head(y.mean((2, 3)))


class Dense(Net):
    """A map of five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.ConvTranspose2d(8, 5, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x).relu()).relu())


class Branching(Net):
    """No graph: what it does depends on what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > -1e9 else super().forward(-x)


@pytest.fixture
def clips() -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    picture = nn.functional.interpolate(
        torch.randn(1, 3, 8, 8, generator=generator), (56, 56), mode="bicubic"
    )[0]
    return [moved(picture, motion, 14, 0.02) for motion in ("shake", "pan", "zoom")]


def varied(kind: type[nn.Module], clips: list[Tensor]) -> nn.Module:
    """A network whose answers change within the clips."""
    torch.manual_seed(1)
    model = kind().eval()
    with torch.no_grad():
        found = model(clips[1])
        others = [n for n in range(found.dim()) if n != 1]
        for parameter in model.head.parameters():
            parameter /= found.std(others).mean()
        model.head.bias -= model(clips[1]).mean(others)
    return model


@pytest.fixture
def model(clips: list[Tensor]) -> nn.Module:
    return varied(Net, clips)


PACES = {
    "awake": (1.0, 1.0),
    "packed": (0.8, 0.8),
    "one frame of 2, packed": (0.4, 0.8),
    "one frame of 4, packed": (0.2, 0.8),
    "one frame of 2": (0.5, 1.0),
    "one frame of 4": (0.25, 1.0),
    "bands, 1/2 asleep": (0.45, 0.45),
    "bands, 3/4 asleep": (1.2, 1.3),
    "quads, 1/2 asleep": (0.5, 0.5),
    "quads, 3/4 asleep": (1.01, 1.01),
    "change, 1/2 asleep": (0.55, 0.55),
    "change, 3/4 asleep": (0.3, 0.3),
}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Way]:
    """Milliseconds as this says, of smaller frames a half; the ways that were asked for."""
    asked: list[Way] = []

    def told(net: object, way: Way, clip: Tensor, seconds: float) -> Pace:
        asked.append(way)
        name = str(replace(way, size=None))
        part = 1.0 if way.size is None else 0.5
        mean, slowest = PACES[name]
        return Pace(part * mean, part * slowest, 10.0)

    monkeypatch.setattr(tuning, "pace", told)
    return asked


def tune(model: nn.Module, clips: Any, *args: Any, **given: Any) -> drowsy.VideoKnob:
    return drowsy.tune(model, clips, *args, video=True, progress=False, **given)


# --- what is offered and kept -------------------------------------------------------------------


def test_every_lever_and_its_mixtures_are_tried(
    model: nn.Module, clips: list[Tensor], timed: list[Way]
) -> None:
    knob = tune(model, clips)
    tried = set(timed)
    assert {Way(), Way(packed=True), BANDS, Way(every=2, packed=True)} <= tried
    for refresh in ("bands", "quads", "change"):
        assert {Way(refresh=refresh, rate=HALF), Way(refresh=refresh, rate=MOST)} <= tried
    sizes = {way.size for way in tried if way.size}
    assert len(sizes) == 3
    mixed = {(way.size, way.refresh, way.every) for way in tried if way.size}
    for size in sorted(sizes)[1:]:
        assert {(size, "bands", 1), (size, "change", 1), (size, None, 2)} <= mixed
    assert set(knob.contents.levers) == {
        *("packed", "size", "skip", "remember", "mixtures", "frames"),
    }


def test_nothing_slower_than_awake_or_a_better_one_enters(
    model: nn.Module, clips: list[Tensor], timed: list[Way]
) -> None:
    knob = tune(model, clips, levers=["remember", "packed"])
    assert {Way(refresh="bands", rate=MOST), Way(refresh="quads", rate=MOST)} <= set(timed)
    # Not even in the file: 1.2 and 1.01 of the time awake.
    assert not {p.way for p in knob.contents.points} & {
        Way(refresh="bands", rate=MOST),
        Way(refresh="quads", rate=MOST),
    }
    ordered = [(p.latency_ms, p.figures["agreement"]) for p in knob.points]
    assert ordered == sorted(ordered, reverse=True)
    assert len({ms for ms, _ in ordered}) == len({good for _, good in ordered}) == len(ordered)
    # Packed frames are the network's and take less, so that the network as it is is no point.
    assert knob.points[0].way.packed
    assert knob.awake not in knob.points
    assert knob.awake.latency_ms == 10


def test_of_the_slowest_frame_skipping_saves_nothing(
    model: nn.Module, clips: list[Tensor], timed: list[Way]
) -> None:
    knob = tune(model, clips, cost="slowest")
    assert not any(point.way.every > 1 for point in knob.points)
    assert any(point.way.refresh for point in knob.points)
    assert knob.saved(knob.points[-1]) == pytest.approx(1 - (knob.points[-1].slowest_ms or 0) / 10)


def test_by_multiplications_no_clock_decides(
    model: nn.Module, clips: list[Tensor], timed: list[Way]
) -> None:
    knob = tune(model, clips, levers="remember", cost="macs")
    assert knob.saved(knob.awake) == 0
    for point in knob.points:
        assert knob.saved(point) == pytest.approx(1 - point.work)


def test_mean_and_peak_work_are_told_apart(
    model: nn.Module, clips: list[Tensor], timed: list[Way]
) -> None:
    by_way = {p.way: p for p in tune(model, clips, levers=["skip"], cost="macs").contents.points}
    skipped = by_way[Way(every=4)]
    # Of frames 1 to 13 of a clip three are computed.
    assert skipped.work == pytest.approx(3 / 13)
    assert skipped.peak == 1
    knob = tune(model, clips, levers=["remember"], cost="macs")
    (point, *_) = [p for p in knob.contents.points if p.way.refresh and p.way.rate == HALF]
    assert 0.4 < point.work < 0.6
    assert point.peak < 0.6
    head, _, *lines = knob.table().splitlines()
    assert head.split()[:6] == ["setting", "saved", "ms/frame", "slowest", "work", "peak"]
    assert len(lines) == len(knob.rows())


@pytest.mark.parametrize(
    ("kind", "lever", "told"),
    [
        (Fixed, "size", "left out: the network takes no smaller frame"),
        (Branching, "remember", "left out: net: "),
        (Branching, "packed", "left out: net: "),
    ],
)
def test_levers_that_a_network_lacks_are_left_out_with_a_reason(
    kind: type[nn.Module], lever: str, told: str, clips: list[Tensor]
) -> None:
    knob = tune(varied(kind, clips), clips[:2], minutes=0.02)
    assert knob.contents.levers[lever].startswith(told)
    assert not any(getattr(p.way, lever, None) for p in knob.points)
    knob.set(-1)
    assert knob(clips[0][:1]).shape == (1, 4)


def test_maps_are_compared_with_awake_by_pixel(clips: list[Tensor], timed: list[Way]) -> None:
    knob = tune(varied(Dense, clips), clips, levers="size")
    assert knob.objective == "miou"
    sized = [p for p in knob.contents.points if p.way.size]
    assert sized
    assert 0 < sized[0].loss < 1
    for point in knob.contents.points:
        knob.set(point)
        assert knob(clips[0][:1]).shape == (1, 5, 56, 56)


def test_labels_are_what_counts_where_there_are_some(
    model: nn.Module, clips: list[Tensor], timed: list[Way]
) -> None:
    with torch.no_grad():
        labels = [model(clip).argmax(1) for clip in clips]
    labels[1][7:] = (labels[1][7:] + 1) % 4
    knob = tune(model, clips, labels, levers="skip")
    assert knob.objective == "top1"
    # Reported on the second clip, where the later labels are wrong, without its first frame.
    assert knob.awake.figures["top1"] == pytest.approx(6 / 13)
    assert knob.awake.figures["agreement"] == 1


# --- footage ------------------------------------------------------------------------------------


def test_what_is_chosen_on_is_not_reported_on(clips: list[Tensor]) -> None:
    like = clips[0]
    choosing, reporting, told = split(gather(clips, None, like))
    assert [each.frames is clip for each, clip in zip(choosing, clips[::2], strict=True)]
    assert len(reporting) == 1
    assert torch.equal(reporting[0].frames, clips[1])
    assert told.startswith("every second clip")
    (one,), (other,), told = split(gather(clips[0], list(range(14)), like))
    assert torch.equal(torch.cat([one.frames, other.frames]), clips[0])
    assert one.labels.tolist() + other.labels.tolist() == list(range(14))
    assert told.startswith("the first half")


def test_losses_are_of_frames_and_their_intervals_of_blocks(model: nn.Module) -> None:
    # Of the first clip all frames err by .5, of the second none.
    net = drowsy.convert(model)
    frames = torch.rand(17, 3, 56, 56)
    footage = Footage(net, [Stretch(frames, None), Stretch(frames, None)], CLASSIFICATION)
    assert footage.frames == 32
    awake = footage.seen(Way())
    assert awake.figures()["agreement"] == 1
    assert (awake.work, awake.peak) == (1, 1)
    seen = type(awake)({"agreement": [np.full(16, 0.5), np.ones(16)]}, 1.0, 1.0)
    loss, interval = footage.lost(awake, seen, "agreement")
    assert loss == 0.25
    # Four blocks, two of each: the mean of four draws is 0 or .5 once in 16 times.
    assert interval == (0, 0.5)


def test_of_one_block_of_frames_there_is_no_interval(
    model: nn.Module, clips: list[Tensor], timed: list[Way], tmp_path: Path
) -> None:
    knob = tune(model, clips[1], levers="skip", cost="macs")
    assert [point.interval for point in knob.contents.points] == [None] * 3
    assert "there are no intervals, as two blocks" in knob.contents.levers["frames"]
    assert all(row["loss_low"] is None and row["loss_high"] is None for row in knob.rows())
    assert " to " not in knob.table()
    knob.save(tmp_path / "net.drowsy")
    assert drowsy.load(tmp_path / "net.drowsy", model).table() == knob.table()
    knob = tune(model, clips, levers="skip", cost="macs")
    assert all(point.interval for point in knob.contents.points)
    assert "intervals are of blocks" in knob.contents.levers["frames"]


def test_frames_that_the_time_leaves_out_are_told(
    model: nn.Module, clips: list[Tensor], timed: list[Way]
) -> None:
    knob = tune(model, clips, levers="skip", cost="macs")
    assert knob.contents.made["given"] == 42
    assert ": 28 and 14 frames; " in knob.contents.levers["frames"]
    knob = tune(model, clips, levers="skip", cost="macs", minutes=1e-4)
    frames = knob.contents.made["frames"]
    told = f": {frames['choose']} and {frames['report']} frames of 42, as 0.0001 min allow no more"
    assert sum(frames.values()) < 42
    assert told in str(knob)


def test_what_the_time_left_out_is_not_told_as_tried(
    model: nn.Module, clips: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning.Clock, "has", lambda clock, share: False)
    told = tune(
        model, clips, levers=["size", "remember"], cost="macs", minutes=0.02
    ).contents.levers
    assert told["ways"].startswith("1 of ")
    assert re.match(r"\d+ sizes offered", told["size"])
    assert re.match(r"\d+ ways offered", told["remember"])
    assert not any("none kept" in each for each in told.values())


def test_a_lever_that_was_tried_in_vain_says_so(
    model: nn.Module, clips: list[Tensor], timed: list[Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tune(model, clips)
    assert not any("none " in kept.contents.levers[name] for name in tuning.VIDEO_LEVERS)
    knob = tune(model, clips, levers="skip", cost="slowest")
    assert {p.way.every for p in knob.contents.points} - {1}  # worth their mean
    assert "none " not in knob.contents.levers["skip"]
    points = tuning._points

    def beaten(*args: Any) -> Any:
        for point in points(*args):
            yield point if point.is_awake else replace(point, work=1.0, figures={"agreement": 0.0})

    monkeypatch.setattr(tuning, "_points", beaten)
    told = tune(model, clips, levers="skip", cost="macs").contents.levers
    assert told["skip"].endswith("; none worth having when tuned")
    monkeypatch.setattr(tuning._Bench, "spent", lambda bench, way, seen, cost: 1.0)
    told = tune(model, clips).contents.levers
    assert all(told[name].endswith("; none kept") for name in tuning.VIDEO_LEVERS)


def test_frames_after_a_cut_count_and_are_no_peak(model: nn.Module, clips: list[Tensor]) -> None:
    net = drowsy.convert(model)
    cut = torch.cat([clips[0][:7], -clips[1].flip(2)[:7]])
    seen = Footage(net, [Stretch(cut, None)], CLASSIFICATION).seen(BANDS)
    assert seen.peak < 0.6
    assert seen.work == pytest.approx((12 * seen.peak + 1) / 13, rel=0.05)


# --- the clock ----------------------------------------------------------------------------------


def test_pace_tells_the_mean_from_the_slowest_frame(
    model: nn.Module, clips: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from drowsy.tuning.clips import pace as pacing

    def taken(runs: Any, seconds: float, *, cuda: bool, turns: int) -> dict[str, list[float]]:
        for _ in range(turns):
            for run in runs.values():
                run()
        # The machine slows down half-way, for both.
        slow = [1.0] * 4 + [3.0] * 4
        own = [0.0, 4.0, 0.0, 2.0] * 2
        return {
            "awake": [2 * each for each in slow],
            "way": [a * b for a, b in zip(own, slow, strict=False)],
        }

    monkeypatch.setattr(pacing, "in_turns", taken)
    found = pace(drowsy.convert(model), Way(every=2), clips[0], 1.0)
    assert found == Pace(mean=0.75, slowest=2.0, awake_ms=4.0)


def test_a_real_clock_sees_what_skipping_saves(clips: list[Tensor]) -> None:
    found = pace(drowsy.convert(varied(Dense, clips)), Way(every=4), clips[0], 0.2)
    assert found.mean < 0.75 * found.slowest
    assert found.awake_ms > 0


# --- the knob -----------------------------------------------------------------------------------


@pytest.fixture
def knob(model: nn.Module, clips: list[Tensor], timed: list[Way]) -> drowsy.VideoKnob:
    return tune(model, clips, cost="macs", levers=["size", "remember"])


def test_a_knob_answers_as_its_way_does(
    model: nn.Module, knob: drowsy.VideoKnob, clips: list[Tensor]
) -> None:
    net = drowsy.convert(model)
    (point, *_) = [p for p in knob.contents.points if p.way.refresh and p.way.size is None]
    knob.set(point)
    assert point.way.refresh is not None
    stream = drowsy.Stream(net, refresh=point.way.refresh, rate=point.way.rate)
    for frame in clips[0].split(1):
        assert torch.equal(knob(frame), stream(frame))
        assert knob.looks == stream.looks
    knob.set(knob.awake)
    with torch.inference_mode():
        assert torch.equal(knob(clips[0][3:4]), net(clips[0][3:4]))


def test_turning_to_another_rate_keeps_what_is_remembered(
    model: nn.Module, clips: list[Tensor], timed: list[Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACES, "bands, 3/4 asleep", (0.2, 0.2))
    knob = tune(model, clips, levers="remember")
    by_way = {p.way: p for p in knob.contents.points}
    pairs = [
        (by_way[way], by_way[Way(refresh=way.refresh, rate=MOST)])
        for way in by_way
        if way.rate == HALF and Way(refresh=way.refresh, rate=MOST) in by_way
    ]
    assert pairs
    one, other = pairs[0]

    def why(frame: Tensor) -> str:
        knob(frame)
        (look,) = knob.looks
        assert look is not None
        return look.why

    clip = clips[0]
    knob.set(one)
    assert [why(clip[:1]), why(clip[1:2])] == ["first", "areas"]
    knob.set(other)
    assert why(clip[2:3]) == "areas"
    assert knob.looks[0].work < 0.3  # type: ignore[union-attr]
    knob.set(knob.awake)
    knob.set(one)
    assert why(clip[3:4]) == "first"
    knob.reset()
    assert why(clip[4:5]) == "first"


def test_requests(knob: drowsy.VideoKnob) -> None:
    assert knob.set(saving=0) is knob.awake
    best = knob.set(saving=0.5)
    assert knob.saved(best) >= 0.5
    assert best.figures["agreement"] == max(
        p.figures["agreement"] for p in knob.points if knob.saved(p) >= 0.5
    )
    cheap = knob.set(max_loss=1.0)
    assert knob.saved(cheap) == max(map(knob.saved, knob.points))
    assert knob.point is cheap
    # The slowest frame is bounded by points too that are not worth their mean.
    quick = knob.set(slowest_ms=5.5)
    assert quick.slowest_ms is not None
    assert quick.slowest_ms <= 5.5
    assert knob.set(latency_ms=10).figures["agreement"] == 1
    with pytest.raises(
        drowsy.NoSuchPoint, match=r"saves 99.0% of the multiplications; the most is \d+.\d%$"
    ):
        knob.set(saving=0.99)
    told = (
        "VideoKnob.set: got 'ms', allowed: point, saving, max_loss, latency_ms, slowest_ms, joule"
    )
    with pytest.raises(TypeError, match=told):
        knob.set(ms=8)  # type: ignore[call-arg]
    for wish in ({"latency_ms": 0.001}, {"max_loss": -2.0}):
        with pytest.raises(drowsy.NoSuchPoint, match=f"no point with {next(iter(wish))}"):
            knob.set(**wish)
    for wish, told in (
        ({}, "set: got nothing, allowed: a point, or one of saving"),
        ({"saving": 0.5, "max_loss": 0.1}, "set: got saving, max_loss"),
        ({"saving": 1.0}, "saving: got 1.0, allowed: 0 or more and below 1"),
        ({"max_loss": float("nan")}, "max_loss: got nan, allowed: a finite number"),
        ({"latency_ms": 10**400}, "latency_ms: got 1.*0, allowed: a finite number"),
        ({"max_loss": 2}, "max_loss: got 2, allowed: up to 1, as agreement is a fraction"),
        ({"point": 99}, "point: got 99, allowed: 0 to"),
        ({"point": 0.5}, "point: got 0.5, allowed: 0 to .*by its name: saving=0.5"),
        ({"point": knob.awake.way}, "point: got one that this knob does not have"),
    ):
        with pytest.raises(ValueError, match=told):
            knob.set(**wish)


def every_kind(model: nn.Module, knob: drowsy.VideoKnob) -> drowsy.VideoKnob:
    """A knob with a point of each kind."""
    ways = [Way(), Way(packed=True), Way(every=2), BANDS, Way(size=(28, 28), packed=True)]
    points = tuple(
        VideoPoint(way, 1 - n / 10, 1, {"agreement": 1 - n / 10}, n / 10, None, 9, 10.0 - n, 10.0)
        for n, way in enumerate(ways)
    )
    return drowsy.VideoKnob(model, replace(knob.contents, points=points))


def test_points_keep_their_dtype_under_autocast(
    model: nn.Module, knob: drowsy.VideoKnob, clips: list[Tensor]
) -> None:
    knob = every_kind(model, knob)
    for point in knob.contents.points:
        knob.set(point)
        own = [knob(frame) for frame in clips[0][:3].split(1)]
        knob.reset()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = [knob(frame) for frame in clips[0][:3].split(1)]
        for one, other in zip(own, cast, strict=True):
            assert other.dtype == torch.float32
            assert torch.equal(one, other)


def test_figures_are_those_without_autocast(
    model: nn.Module, clips: list[Tensor], timed: list[Way]
) -> None:
    own = tune(model, clips, levers="remember", cost="macs")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tune(model, clips, levers="remember", cost="macs")
    assert own.contents.points == cast.contents.points


def test_frames_that_are_refused(
    model: nn.Module, knob: drowsy.VideoKnob, clips: list[Tensor]
) -> None:
    knob, frame = every_kind(model, knob), clips[0][:1]
    for point in knob.contents.points:
        knob.set(point)
        for given, error, told in (
            (frame.double(), TypeError, "frames: got torch.float64, allowed: torch.float32"),
            (frame.byte(), TypeError, "frames: got torch.uint8, allowed: torch.float32"),
            (frame.numpy(), TypeError, "frames: got ndarray, allowed: torch.float32"),
            (frame[:, :1], ValueError, r"frames: got \(1, 1, 56, 56\), allowed: \[N, 3, 56, 56\]"),
            (frame[0], ValueError, r"frames: got \(3, 56, 56\), allowed: \[N, 3, 56, 56\]"),
            (frame.to("meta"), ValueError, "frames: lie on meta, the network on cpu"),
        ):
            with pytest.raises(error, match=told):
                knob(given)
        assert knob(frame).isfinite().all()


def test_a_copy_has_its_own_network_and_has_seen_nothing(
    model: nn.Module, knob: drowsy.VideoKnob, clips: list[Tensor]
) -> None:
    knob = every_kind(model, knob)
    for point in knob.contents.points:
        knob.set(point)
        first = knob(clips[0][:1])
        twin = copy.deepcopy(knob)
        assert twin.point == point
        assert twin.looks == (None,)
        assert twin.point in twin.contents.points
        torch.testing.assert_close(twin(clips[0][:1]), first)
        before = knob.looks
        twin.set(twin.awake)
        for parameter in twin._net.parameters():
            parameter.data.zero_()
        assert (knob.point, knob.looks) == (point, before)
        knob.reset()
        torch.testing.assert_close(knob(clips[0][:1]), first)


def test_several_cameras(model: nn.Module, knob: drowsy.VideoKnob, clips: list[Tensor]) -> None:
    both = drowsy.VideoKnob(model, knob.contents, streams=2)
    point = next(p for p in both.contents.points if p.way.refresh)
    knob.set(point)
    both.set(point)
    for time in range(5):
        one, other = clips[0][time : time + 1], clips[1][time : time + 1]
        assert torch.equal(both(torch.cat([one, other]))[:1], knob(one))
    with pytest.raises(
        ValueError, match=r"frames: got \(1, 3, 28, 28\), allowed: \[N, 3, 56, 56\]"
    ):
        both(clips[0][:1, :, ::2, ::2])


def test_measuring_here_changes_milliseconds_alone(
    knob: drowsy.VideoKnob, clips: list[Tensor]
) -> None:
    before = knob.contents.points
    knob.set(1)
    way = knob.point.way
    knob.measure(clips[0], seconds=0.01)
    assert knob.point.way == way
    assert knob.point in knob.contents.points
    for one, other in zip(before, knob.contents.points, strict=True):
        assert one.latency_ms != other.latency_ms
        assert (one.way, one.figures, one.work) == (other.way, other.figures, other.work)
    knob.measure(seconds=0.01)
    with pytest.raises(ValueError, match=r"clip: got frames of \(3, 28, 28\)"):
        knob.measure(clips[0][:, :, ::2, ::2])
    kept = knob.contents
    for seconds in (0, -1, float("nan"), float("inf"), 1e300):
        with pytest.raises(ValueError, match=r"seconds: got \S+, allowed: a number above 0, up"):
            knob.measure(seconds=seconds)
    for wrong in ("1", True, None):
        with pytest.raises(TypeError, match=r"seconds: got \S+, allowed: a number above 0"):
            knob.measure(seconds=wrong)  # type: ignore[arg-type]
    assert knob.contents is kept


def test_the_governor_turns_it(knob: drowsy.VideoKnob, clips: list[Tensor]) -> None:
    governor = drowsy.Governor(knob, latency_ms=1000.0)
    for frame in clips[0].split(1):
        assert governor(frame).shape == (1, 4)


def test_a_knob_is_saved_and_not_pickled(knob: drowsy.VideoKnob, clips: list[Tensor]) -> None:
    told = r"VideoKnob: got pickled .* allowed: knob.save\(path\)"
    with pytest.raises(TypeError, match=told):
        pickle.dumps(knob)
    with pytest.raises(TypeError, match=told):
        torch.save(knob, io.BytesIO())
    # A copy shares the network, and remembers for itself.
    knob.set(1)
    answer = knob(clips[0][:1])
    twin = copy.copy(knob)
    assert (twin._net, twin.point) == (knob._net, knob.point)
    assert (twin.looks, knob.looks[0] is None) == ((None,), False)
    assert torch.equal(twin(clips[0][:1]), answer)


class FakeMeter:
    """Every frame takes a joule, of ways that call the network less, less."""

    def __init__(self, device: str) -> None:
        assert device == "cpu"
        self.idle = False

    def measure_idle(self) -> None:
        self.idle = True

    def measure(self, run: Any) -> Any:
        assert self.idle
        run()
        return SimpleNamespace(joules_per_call=4 * next(JOULES))


JOULES: Any = None


def test_joules_are_of_a_frame_and_asked_for_as_of_images(
    model: nn.Module, clips: list[Tensor], timed: list[Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(device: str) -> None:
        raise drowsy.energy.NoMeter("nothing here")

    monkeypatch.setattr(measuring, "Meter", none)
    knob = tune(model, clips, levers="skip", cost="macs")
    assert [point.joules for point in knob.contents.points] == [None] * 3
    assert "J/frame" not in knob.table()
    told = "joules: was not measured at any point, which takes a meter"
    with pytest.raises(drowsy.NoSuchPoint, match=told):
        knob.set(joules=1.0)
    monkeypatch.setattr(measuring, "Meter", FakeMeter)
    monkeypatch.setattr(sys.modules[__name__], "JOULES", iter((3.0, 2.0, 1.0, 6.0, 5.0, 4.0)))
    knob = tune(model, clips, levers="skip", cost="macs")
    # Of four frames each.
    assert [point.joules for point in knob.contents.points] == [3, 2, 1]
    assert knob.table().splitlines()[0].split()[6] == "J/frame"
    assert [row["joules"] for row in knob.rows()] == [3, 2, 1]
    assert knob.set(joules=2.5).way.every == 2
    with pytest.raises(drowsy.NoSuchPoint, match=r"no point with joules 0\.5; the nearest has 1"):
        knob.set(joules=0.5)
    knob.measure(clips[0], seconds=0.01)
    assert [point.joules for point in knob.contents.points] == [6, 5, 4]


# --- other clips --------------------------------------------------------------------------------


def test_losses_on_other_clips_are_counted_frame_by_frame(
    model: nn.Module, clips: list[Tensor], timed: list[Way]
) -> None:
    knob = tune(model, clips, levers="skip", cost="macs")
    others = [clips[0].flip(3), clips[2].flip(3)]
    rows = knob.evaluate(others)
    assert [row["setting"] for row in rows] == [row["setting"] for row in knob.rows()]
    with torch.inference_mode():
        answers = [model(clip).argmax(1) for clip in others]
    for row, every in zip(rows, (1, 2, 4), strict=True):
        shown = torch.arange(14) // every * every
        wrong = torch.cat([(own != own[shown])[1:] for own in answers]).double().mean()
        assert row["loss"] == pytest.approx(float(wrong), abs=1e-6)
        assert row["agreement"] == pytest.approx(1 - row["loss"])
        assert row["work"] == pytest.approx(sum(n % every == 0 for n in range(1, 14)) / 13)
        assert row["loss_low"] <= row["loss"] <= row["loss_high"]
    assert rows[2]["loss"] > 0
    assert "lost (points) here" in evaluate.table(rows, "agreement")


def test_what_a_point_was_sold_with_is_compared(
    model: nn.Module, clips: list[Tensor], timed: list[Way]
) -> None:
    knob = tune(model, clips, levers="skip", cost="macs")
    points = tuple(
        replace(point, loss=loss, interval=interval)
        for point, (loss, interval) in zip(
            knob.contents.points, ((0.0, (0.0, 0.0)), (0.1, (0.0, 0.9)), (0.0, (0.0, 0.0))),
            strict=True,
        )
    )  # fmt: skip
    # Frames of which the second half is of another class than the first, and again.
    jumping = clips[1][torch.tensor([0, 7] * 7)]
    knob = drowsy.VideoKnob(model, replace(knob.contents, points=points), cut=None)
    rows = {row["setting"]: row for row in knob.evaluate([jumping] * 2)}
    assert (rows["awake"]["loss"], rows["awake"]["holds"]) == (0, True)
    assert rows["one frame of 2"]["sold_high"] == 0.9
    assert rows["one frame of 2"]["holds"]
    assert rows["one frame of 4"]["loss"] > 0.3
    assert not rows["one frame of 4"]["holds"]
    assert evaluate.verdict(rows["one frame of 4"]) == "no"
    # Of one block there is no interval, and nothing is sure.
    rows = {row["setting"]: row for row in knob.evaluate(jumping[:6])}
    assert rows["one frame of 4"]["loss_low"] is None
    assert evaluate.verdict(rows["one frame of 4"]) == "no, or by chance"
    # With labels it is another objective, of which nothing was sold.
    with torch.inference_mode():
        labels = model(jumping).argmax(1)
    rows = knob.evaluate(jumping, labels)
    assert {row["objective"] for row in rows} == {"agreement"}
    labelled = replace(knob.contents, objective="agreement", made={"task": "classification"})
    with pytest.raises(ValueError, match=r"clips: got frames of \(3, 28, 28\), allowed: \(3, 56"):
        knob.evaluate(jumping[:, :, ::2, ::2])
    with pytest.raises(ValueError, match="metric: got none, and the knob was tuned by one"):
        drowsy.VideoKnob(model, replace(labelled, made={})).evaluate(jumping)


def test_with_labels_a_knob_of_labels_is_compared(
    model: nn.Module, clips: list[Tensor], timed: list[Way]
) -> None:
    with torch.no_grad():
        labels = [model(clip).argmax(1) for clip in clips]
    knob = tune(model, clips, labels, levers="skip", cost="macs")
    rows = knob.evaluate(clips[1:2], labels[1:2])
    assert {row["objective"] for row in rows} == {"top1"}
    # The very frames that were reported on.
    assert [row["loss"] for row in rows] == [row["sold_loss"] for row in rows]
    assert all(row["holds"] for row in rows)
    rows = knob.evaluate(clips[1:2])
    assert {row["objective"] for row in rows} == {"agreement"}
    assert {row["holds"] for row in rows} == {None}
    with pytest.raises(ValueError, match="labels: awake the network is right in 0 of"):
        knob.evaluate(clips, [(own + 1) % 4 for own in labels])


# --- a run that is stopped ----------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "after"), [("looks", 7), ("paces", 6)])
def test_stopped_anywhere_it_ends_with_the_same_file(
    kind: str,
    after: int,
    model: nn.Module,
    clips: list[Tensor],
    timed: list[Way],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    stopped = False

    def counted(kind_: str, run: Any) -> Any:
        def call(*args: Any) -> Any:
            if stopped and kind_ == kind and done.count(kind) == after:
                raise KeyboardInterrupt
            done.append(kind_)
            return run(*args)

        return call

    monkeypatch.setattr(Footage, "_looked_at", counted("looks", Footage._looked_at))
    monkeypatch.setattr(tuning, "pace", counted("paces", tuning.pace))

    def run(store: str) -> bytes:
        knob = tune(model, clips, levers=["remember", "skip"], store=tmp_path / store)
        knob.save(tmp_path / "net.drowsy")
        return (tmp_path / "net.drowsy").read_bytes()

    whole, all_of_it = run("whole.sqlite"), sorted(done)
    done.clear()
    # All is known: nothing is looked at or timed again.
    assert (run("whole.sqlite"), done) == (whole, [])
    stopped = True
    with pytest.raises(KeyboardInterrupt):
        run("stopped.sqlite")
    stopped = False
    assert run("stopped.sqlite") == whole
    assert sorted(done) == all_of_it
    # What other clips or another time did is not taken for this.
    done.clear()
    tune(model, clips[::-1], levers="skip", store=tmp_path / "stopped.sqlite")
    assert done.count("looks") == 6


def test_a_file_gives_the_knob_back(
    model: nn.Module, knob: drowsy.VideoKnob, tmp_path: Path
) -> None:
    path = tmp_path / "net.drowsy"
    knob.save(path)
    again = drowsy.load(path, model)
    assert isinstance(again, drowsy.VideoKnob)
    assert replace(again.contents, witness=knob.contents.witness) == knob.contents
    assert again.table() == knob.table()


def write(path: Path, data: dict[str, Any]) -> None:
    """A file as a stranger may write it, with the checksum that it must have."""
    data = {name: value for name, value in data.items() if name != "checksum"}
    text = json.dumps(data, sort_keys=True)
    path.write_text(json.dumps(data | {"checksum": hashlib.sha256(text.encode()).hexdigest()}))


def test_a_file_of_which_a_byte_has_changed_is_refused_or_read_as_it_was(
    model: nn.Module, knob: drowsy.VideoKnob, tmp_path: Path
) -> None:
    path = tmp_path / "net.drowsy"
    knob.save(path)
    told = path.read_bytes()
    path.write_bytes(told.replace(b'"loss": 0.0', b'"loss": 0.9', 1))
    with pytest.raises(ValueError, match="is not as it was written; its checksum differs"):
        drowsy.load(path, model)
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(len(told), size=40).tolist():
        path.write_bytes(told[:place] + bytes([told[place] ^ 1]) + told[place + 1 :])
        try:
            again = drowsy.load(path, model)
        except ValueError:
            refused += 1
        else:
            assert again.contents.points == knob.contents.points
    assert refused > 20


def test_texts_of_a_file_reach_no_terminal_as_they_are(
    model: nn.Module, knob: drowsy.VideoKnob, tmp_path: Path
) -> None:
    path = tmp_path / "net.drowsy"
    knob.save(path)
    data = json.loads(path.read_text())
    write(path, data | {"levers": {"a\x1b[31m": "\x1b[2Jx\ny"}})
    told = str(drowsy.load(path, model))
    assert "\x1b" not in told
    assert told.splitlines()[-1] == r"'a\x1b[31m': '\x1b[2Jx\ny'"


def test_files_that_are_refused(model: nn.Module, knob: drowsy.VideoKnob, tmp_path: Path) -> None:
    path = tmp_path / "net.drowsy"
    knob.save(path)
    data = json.loads(path.read_text())
    torch.manual_seed(9)
    with pytest.raises(ValueError, match="was tuned for other weights than this model's"):
        drowsy.load(path, Net().eval())

    class Other(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.two(self.one(x).sigmoid()).relu().mean((2, 3)))

    other = Other().eval()
    other.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="was tuned for another network that has this model's"):
        drowsy.load(path, other)

    def refused(change: dict[str, Any], told: str) -> None:
        write(path, data | change)
        with pytest.raises(ValueError, match=told):
            drowsy.load(path, model)

    first, *rest = data["points"]
    at = next(n for n, each in enumerate(data["points"]) if each["way"]["size"])

    def refused_point(change: dict[str, Any], told: str, n: int = 0) -> None:
        points = list(data["points"])
        points[n] = points[n] | change
        refused({"points": points}, f"point {n}: {told}")

    refused({"version": 2}, "version: got 2, allowed: 3")
    refused({"cost": "joules"}, "cost: got 'joules', allowed: latency, slowest, macs")
    refused({"objective": "divergence"}, "objective: got 'divergence', allowed: top1, top5, agree")
    refused({"weights": 3}, "weights: got 3, allowed: a fingerprint")
    refused({"made": {"minutes": 1e300}}, r"made: got 1e\+300, allowed: up to 2\*\*64")
    for image in ([3, 0, 1], [3, 32, 10**7], [3, 1 << 15, 1 << 15], [3, 32]):
        refused({"image": image}, "image: got")
    refused({"points": rest}, "points: got none awake")
    refused({"points": []}, "points: got 0 of them, allowed: a list of 1 to 1024")
    refused({"points": [first, *rest, rest[0]]}, "points: got one way twice")
    refused({"points": [first, *rest, {**first, "loss": 0.5}]}, "points: got one way twice")
    refused_point({"work": "all"}, "work: got 'all'")
    refused_point({"work": 0}, "work: got 0 awake, allowed: above 0")
    refused_point({"work": -1}, "work: got -1, allowed: 0 or more", 1)
    refused_point({"latency_ms": 0}, "latency_ms: got 0, allowed: above 0")
    refused_point({"joules": -1}, "joules: got -1, allowed: 0 or more")
    refused_point({"way": {}}, "way: missing")
    refused_point({"way": first["way"] | {"every": 10**9}}, "way: every: got 1000000000, allowed")
    sized = data["points"][at]["way"]
    refused_point(
        {"way": sized | {"size": [57, 10]}}, r"way: size: got \(57, 10\), allowed: up", at
    )
    refused_point({"figures": {}}, "has not agreement and work")
    refused_point({"figures": {"agreement": 1e9}}, "figures: agreement: got 1000000000.0, allowed")
    refused_point(
        {"interval": [1, -1]}, r"interval: got \[1, -1\], allowed: two numbers, ascending"
    )
    refused({"witness": {"exact": True, "found": {"one": ["x"]}}}, r"witness: found: .*numbers")
    refused({"witness": {"exact": True, "found": {"one": [1, 2]}}}, r"witness: found: one: got sha")
    refused({"witness": {"exact": True, "found": {}}}, "witness: got none, allowed: what the net")
    refused({"more": 1}, "unknown more")
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        drowsy.load(path, model)


def test_what_is_no_path_is_not_opened(
    model: nn.Module, knob: drowsy.VideoKnob, tmp_path: Path
) -> None:
    path = tmp_path / "net.drowsy"
    knob.save(path)
    with path.open("rb") as file:
        for given in (file.fileno(), True, file, bytes(path)):
            with pytest.raises(TypeError, match=r"knob: got \w+, allowed: the path of a file"):
                drowsy.load(given, model)  # type: ignore[arg-type]
        assert file.read(1) == b"{"
    with pytest.raises(TypeError, match="knob: got Net, allowed: the path of a file"):
        drowsy.load(model, path)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model: got \w*Path, allowed: an nn\.Module"):
        drowsy.load(path, path)  # type: ignore[arg-type]


def test_of_another_machine_milliseconds_are_warned_of(
    model: nn.Module, knob: drowsy.VideoKnob, tmp_path: Path
) -> None:
    path = tmp_path / "net.drowsy"
    knob.save(path)
    data = json.loads(path.read_text())
    data["made"]["machine"] = {"processor": "another"}
    write(path, data)
    told = r"milliseconds are of another machine \(processor another\); knob.measure\(\) measures"
    with pytest.warns(UserWarning, match=told) as caught:
        drowsy.load(path, model)
    # Where the user called.
    assert [each.filename for each in caught] == [__file__]


def test_sizes_of_a_file_that_the_network_does_not_take_are_refused_at_once(
    clips: list[Tensor], timed: list[Way], tmp_path: Path
) -> None:
    fixed = varied(Fixed, clips)
    knob = tune(fixed, clips, levers="skip", cost="macs")
    path = tmp_path / "net.drowsy"
    knob.save(path)
    assert drowsy.load(path, fixed).table() == knob.table()
    data = json.loads(path.read_text())
    data["points"][1]["way"] |= {"size": [28, 28]}
    write(path, data)
    told = r"net.drowsy: point 1: way: got 28 px, one frame of \d, allowed: what the network takes"
    with pytest.raises(ValueError, match=told):
        drowsy.load(path, fixed)
    branching = varied(Branching, clips)
    knob = tune(branching, clips, levers="skip", cost="macs")
    knob.save(path)
    data = json.loads(path.read_text())
    data["points"][1]["way"] |= {"refresh": "bands", "rate": "1/2", "every": 1, "packed": False}
    write(path, data)
    with pytest.raises(ValueError, match="point 1: way: got bands, 1/2 asleep, allowed: what the"):
        drowsy.load(path, branching)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"batch": 4}, "batch: got 4, allowed: none with video"),
        ({"seeds": (1,)}, r"seeds: got \(1,\), allowed: none with video"),
        ({"store": "/proc/knob"}, "store /proc/knob: cannot be opened"),
        ({"cost": "joules"}, "cost: got 'joules', allowed for video: latency, slowest, macs"),
        ({"levers": "view"}, "levers: got 'view', allowed for video: auto, or some of packed"),
        ({"levers": []}, r"levers: got \[\], allowed for video"),
        ({"minutes": 0}, "minutes: got 0"),
    ],
)
def test_arguments_that_are_refused(
    given: dict[str, Any], told: str, model: nn.Module, clips: list[Tensor]
) -> None:
    with pytest.raises(ValueError, match=told):
        tune(model, clips, **given)


def test_clips_that_are_refused(model: nn.Module, clips: list[Tensor]) -> None:
    one = clips[0]
    for given, error, told in (
        (5, TypeError, r"clips: got int, allowed: a tensor \[T, C, H, W\], or a list of them"),
        ([], ValueError, "clips: got none, allowed: one or more"),
        (one[:11], ValueError, r"clips: 0: got shape \(11, 3, 56, 56\), allowed: .*T of 12"),
        ([one, one[:5]], ValueError, r"clips: 1: got shape \(5, 3, 56, 56\), allowed: .*T of 6"),
        ([one, one[..., :28]], ValueError, r"clips: 1: got frames of \(3, 56, 28\)"),
        (one.long(), TypeError, "clips: 0: got torch.int64"),
        (one * torch.nan, ValueError, "clips: 0: holds NaN"),
    ):
        with pytest.raises(error, match=told):
            tune(model, given)
    with pytest.raises(ValueError, match="labels: got 2 for 3 clips, allowed: one of each"):
        tune(model, clips, [[0] * 14] * 2)
    told = r"clips: got frames of \(4, 56, 56\), allowed: what the network takes \(.*4 channels"
    with pytest.raises(ValueError, match=told):
        tune(model, torch.cat([one, one[:, :1]], 1))


def test_labels_that_are_refused_before_any_work(model: nn.Module, clips: list[Tensor]) -> None:
    right = [0] * 14
    for labels, error, told in (
        (3, TypeError, "labels: got int, allowed: a tensor, an array or a list, with one of each"),
        (torch.tensor(3), TypeError, "labels: got one number, allowed: a tensor"),
        ([right, None, right], TypeError, "labels: clip 1: got NoneType, allowed: .* 14 frames"),
        ([right, right, 5], TypeError, "labels: clip 2: got int, allowed: .* of 14 frames"),
        ([right, right[1:], right], ValueError, "labels: clip 1: got 13 for 14 frames"),
        ([[*right, 0], right, right], ValueError, "labels: clip 0: got 15 for 14 frames"),
    ):
        with pytest.raises(error, match=told):
            gather(clips, labels, clips[0])
    for labels, told in (([0] * 13, "got 13 for"), ([0] * 15, "got 15 for")):
        with pytest.raises(ValueError, match=f"labels: {told} 14 frames, allowed: one of each"):
            tune(model, clips[0], labels)
    with pytest.raises(TypeError, match="labels: got object in a list"):
        tune(model, clips[0], [None] * 14)


@pytest.mark.parametrize("part", [0, 1])
def test_labels_that_are_not_the_network_s_are_told(
    part: int, model: nn.Module, clips: list[Tensor], timed: list[Way]
) -> None:
    with torch.inference_mode():
        labels = [model(clip).argmax(1) for clip in clips]
    # Of the clip that is chosen on, or the one that is reported on.
    labels[part] = torch.full((14,), 9)
    with pytest.raises(ValueError, match=r"labels: got \d to 9, allowed: 0 to 3"):
        tune(model, clips[:2], labels[:2])
    with torch.inference_mode():
        labels = [(model(clip).argmax(1) - 1) % 4 for clip in clips]
    assert not {way for way in timed if not way.is_awake}
    # Two classes in two clips are too few to be sure.
    with pytest.warns(UserWarning, match="labels: awake the network is right in 0 of 28 images"):
        tune(model, clips[:2], labels[:2], cost="macs", levers=["skip"])
    # One clip that it misreads throughout is none.
    with torch.inference_mode():
        labels[part] = model(clips[part]).argmax(1)
    tune(model, clips[:2], labels[:2], cost="macs", levers=["skip"])


def test_points_worth_having() -> None:
    def point(way: Way, ms: float, good: float) -> VideoPoint:
        return VideoPoint(way, 0.5, 0.5, {"agreement": good}, 1 - good, (0, 1), 9, ms, ms)

    awake, slow = point(Way(), 10, 1.0), point(BANDS, 9, 0.8)
    quick = point(Way(every=2), 5, 0.9)
    assert worth_having([awake, slow, quick], "agreement", "latency") == (awake, quick)
