"""The page of a knob for video: frames in a row, and when to skip them instead."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import Page, references
from torch import Tensor, nn

import drowsy
from drowsy.evaluation.identity import fingerprint_state
from drowsy.reporting import write_report
from drowsy.tuning.clips.file import VideoContents
from drowsy.tuning.clips.point import VideoPoint
from drowsy.tuning.witness import Witness
from drowsy.video.motions import moved
from drowsy.video.ways import Way

IMAGE = (3, 32, 32)
HALF = Fraction(1, 2)
MADE = {
    "task": "classification (outputs [N, 3])",
    "labelled": False,
    "clips": {"choose": 2, "report": 3},
    "frames": {"choose": 44, "report": 66},
    "steady": {"metric": "agreement", "value": 0.977},
    "machine": {"processor": "Abacus 9000", "cores": 4, "threads": 1, "gpu": None},
}
# A way, milliseconds in the mean and of the slowest frame, work, peak, loss.
POINTS = (
    (Way(), 10.0, 12.0, 1.0, 1.0, 0.0),
    (Way(every=2, packed=True), 4.5, 9.0, 0.5, 1.0, 0.01),
    (Way(refresh="bands", rate=HALF), 4.25, 5.0, 0.5, 0.52, 0.02),
    (Way(every=4, packed=True), 2.125, 9.5, 0.25, 1.0, 0.04),
    (Way(size=(16, 24)), 2.0, 2.375, 0.375, 0.375, 0.2),
    (Way(refresh="change", rate=HALF), 4.75, 4.875, 0.49, 0.49, 0.03),
)


class Net(nn.Module):
    """Its class is that of the colour that there is most of."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.one.weight.copy_(torch.eye(3)[..., None, None])
            self.one.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x).relu().mean((2, 3))


def contents_of(model: nn.Module, **more: Any) -> VideoContents:
    points = tuple(
        VideoPoint(
            way, work, peak, {"agreement": 1 - loss}, loss, (max(loss - 0.01, 0), loss + 0.03), 66,
            mean, slowest,
        )
        for way, mean, slowest, work, peak, loss in POINTS
    )  # fmt: skip
    told: dict[str, Any] = {
        "weights": fingerprint_state(model.state_dict()),
        "witness": Witness.of(model, IMAGE),
        "image": IMAGE,
        "points": points,
        "objective": "agreement",
        "cost": "latency",
        "levers": {"skip": "2 tried"},
        "made": MADE,
    }
    return VideoContents(**(told | more))


@pytest.fixture
def model() -> nn.Module:
    return Net().eval()


@pytest.fixture
def knob(model: nn.Module) -> drowsy.VideoKnob:
    return drowsy.VideoKnob(model, contents_of(model))


def page_of(knob: drowsy.VideoKnob, folder: Path, *given: Any, **more: Any) -> tuple[Page, str]:
    text = write_report(knob, folder / "page.html", *given, **more).read_text(encoding="utf-8")
    return Page(text), text


def test_every_point_is_there_by_its_mean_and_by_its_slowest_frame(
    knob: drowsy.VideoKnob, tmp_path: Path
) -> None:
    page, _ = page_of(knob, tmp_path)
    for ms in ("10", "12", "4.5", "4.25", "2.12", "9.5", "2.38", "4.75", "4.88"):
        assert ms in page.texts, ms
    # Both costs, for a desk and for a phone.
    assert len(page.of_class("chart")) == 4
    assert "milliseconds a frame, the mean" in page.text
    assert "milliseconds of the slowest frame" in page.text
    # By the mean, change is not worth it: in the pictures, and folded away in the table.
    assert len(page.of_class("spare")) == 4
    assert "1 more setting, measured and not worth it here" in page.text
    for lever, count in (("skip", 2), ("packed", 2), ("remember", 1), ("size", 1)):
        dots = [each for each in page.of_class("dot") if lever in str(each["class"]).split()]
        assert len(dots) == 4 * count + 1, lever
    cards = "".join(page.texts)
    assert "55%less time for at most 1 pointNumber 1: loses 1.0 points (95%: 0.0 to 4.0); its" in (
        cards
    )
    assert "its slowest frame 0.75 times as long" in cards
    # Of four frames skipping computes the first and the third.
    two = [each for each in page.of_class("on") if "skip" in str(each["class"])][0:4]
    assert [bool(each["d"]) for each in two] == [True, False, True, False]
    bands = [each["d"] for each in page.of_class("on") if "remember" in str(each["class"])]
    assert bands[:2] == ["M0 0h24v12h-24Z", "M0 12h24v12h-24Z"]


def test_it_tells_when_to_skip_frames_and_what_else_it_does_not_say(
    model: nn.Module, tmp_path: Path
) -> None:
    contents = contents_of(model)
    page, _ = page_of(drowsy.VideoKnob(model, contents), tmp_path)
    for said in (
        "Skipping frames is the better choice where only the mean over frames counts",
        "saves half the time in the mean, “one frame of 2, packed” loses least here (1.0 points), "
        "which skips",
        "half the time of its slowest frame, “bands, 1/2 asleep” loses least here (2.0 points), "
        "which does not skip",
        "agreement with its own answer to the frame before is 97.7% on the clips reported on",
        "The first frame, and one after a cut, are computed whole at every point",
        "Losses are of 3 clips, and intervals say little of other cameras",
        "Losses are of 66 frames, which are few",
        "2 to choose points by (44 frames), 3 to report on (66 frames); disjoint",
        "a frame of one camera on Abacus 9000, 4 cores, 1 thread",
        "of 3 clips, which are drawn again too",
        "not metered",
        "Nothing is said of energy",
        "No example pictures were given",
        contents.weights,
    ):
        assert said in page.text, said

    # Many clips and frames, joules, nothing that saves half of the slowest frame, nothing told.
    points = [replace(each, frames=5000, joules=0.25, slowest_ms=11.0) for each in contents.points]
    made = {"clips": {"report": 20}}
    other = replace(contents, points=tuple(points), made=made, cost="macs", measured_here=False)
    page, _ = page_of(drowsy.VideoKnob(model, other), tmp_path)
    assert "Nothing here saves half the time of its slowest frame." in page.text
    assert "J / frame" in page.text
    assert "Nothing is said of energy" not in page.text
    assert "which are few" not in page.text
    assert "say little of other cameras" not in page.text
    assert "frame before is" not in page.text
    assert "not the one that this page was written on" in page.text
    assert "multiplications of a frame, % of awake, the mean" in page.text
    assert len(page.of_class("chart")) == 6


@pytest.fixture
def clip() -> Tensor:
    """Six frames, all of the first colour, then all of the second."""
    frames = torch.zeros(6, *IMAGE)
    frames[:3, 0] = frames[3:, 1] = 1.0
    return frames


def test_it_shows_which_areas_are_awake_and_the_answers(
    model: nn.Module, clip: Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("PIL", reason="needs Pillow")
    knob = drowsy.VideoKnob(model, contents_of(model), cut=None)
    knob.set(2)
    knob(clip[:1])
    before = knob.point, knob.looks
    classes = ["red", "green", "blue"]
    page, _ = page_of(knob, tmp_path, clip, mean=(0, 0, 0), std=(1, 1, 1), classes=classes)
    assert (knob.point, knob.looks) == before
    # Each picture once; a frame of every size, pixel by pixel.
    pictures = [each for name, each in page.tags if name == "image"]
    assert [each.get("id") for each in pictures[:6]] == [f"picture{n}" for n in range(6)]
    assert len(page.of_class("film")) == 5
    nights = [str(each["d"]) for each in page.of_class("night")]
    whole = "M0 0h32v32h-32Z"
    # One frame of two: three are not computed; bands: all but the first are in part.
    assert nights[:3] == [whole] * 3
    lower, upper = "M0 16h32v16h-32Z", "M0 0h32v16h-32Z"
    assert nights[3:8] == [whole + each for each in (upper, lower, upper, lower, upper)]
    assert nights[8:] == [whole] * 4
    told = page.text.split("What is computed, frame by frame")[1].split("How it was measured")[0]
    _, _, two, bands, four, small = told.split("Number ")
    repeated, part, whole = (f"computed: {each}" for each in ("none: repeated", "50%", "all"))
    assert (two.count(repeated), four.count(repeated)) == (3, 4)
    assert (bands.count(part), small.count(whole)) == (5, 6)
    # Frame 3 repeats red where awake sees green; at frame 3 by bands half is still red, as much.
    share = float(torch.tensor([1.0, 0.0, 0.0]).softmax(0)[0])
    assert (two.count(f"red {share:.0%}"), two.count(f"green {share:.0%}")) == (4, 2)
    assert (four.count(f"red {share:.0%}"), four.count(f"green {share:.0%}")) == (4, 2)
    # That of the legend too.
    assert len(page.of_class("strays")) == 1 + 3


def test_maps_are_told_by_how_much_they_are_awake_s(
    model: nn.Module, clip: Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("PIL", reason="needs Pillow")

    class Maps(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.one(x).relu().repeat(1, 2, 1, 1)

    maps = Maps().eval()
    made = MADE | {"task": "segmentation (outputs [N, 6, H, W])"}
    knob = drowsy.VideoKnob(maps, contents_of(maps, made=made, objective="miou", points=tuple(
        replace(point, figures={"miou": 1 - point.loss}) for point in contents_of(maps).points
    )))  # fmt: skip
    page, _ = page_of(knob, tmp_path, clip)
    assert page.text.count("miou 100.0%") > 6
    assert "miou 0.0%" in page.text
    with pytest.raises(ValueError, match="classes: got some, allowed: None of a network for segm"):
        page_of(knob, tmp_path, clip, classes=["a"])
    # Of a function's answers nothing is known.
    knob = drowsy.VideoKnob(model, contents_of(model, made=MADE | {"task": "mine"}))
    page, _ = page_of(knob, tmp_path, clip)
    assert len(page.of_class("film")) == 5
    assert len(page.of_class("strays")) == 1


EVIL = """<script>alert("1")</script>' onload="x" & </style><img src=http://e.vil> \x1b[31m"""


def test_nothing_is_fetched_and_whatever_a_file_tells_is_text(
    model: nn.Module, clip: Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("PIL", reason="needs Pillow")
    evil: dict[str, Any] = dict.fromkeys(("command", "commit", "data"), EVIL)
    evil |= {"task": MADE["task"], "clips": {"report": EVIL}, "frames": EVIL, "steady": EVIL}
    contents = contents_of(model, made=evil, levers={EVIL: EVIL}, weights=EVIL)
    knob = drowsy.VideoKnob(model, contents)
    page, text = page_of(knob, tmp_path, clip, name=EVIL, classes=[EVIL] * 3)
    assert all(each.startswith(("data:", "#")) for each in references(page))
    assert not {name for name, _ in page.tags} & {"script", "link"}
    assert not any("onload" in each for _, each in page.tags)
    assert "\x1b" not in text
    assert page.text.count(EVIL.replace("\x1b", "\ufffd")) >= 30
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_same_knob_gives_the_same_bytes(model: nn.Module, clip: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="needs Pillow")
    pages = []
    for name in ("one", "other"):
        knob = drowsy.VideoKnob(model, contents_of(model))
        if name == "other":
            knob.set(2)
            knob(clip[:1])
        pages.append(write_report(knob, tmp_path / name, clip).read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("given", "more", "message"),
    [
        ((torch.rand(9, *IMAGE),), {}, "images: got 9, allowed: 1 to 8"),
        ((torch.rand(2, 3, 16, 16),), {}, r"images: got frames of \(3, 16, 16\), allowed: \(3, 32"),
        ((torch.rand(2, *IMAGE),), {"classes": ["a"]}, "classes: got 1 names, allowed: 3"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(
    knob: drowsy.VideoKnob, tmp_path: Path, given: Any, more: dict[str, Any], message: str
) -> None:
    pytest.importorskip("PIL", reason="needs Pillow")
    with pytest.raises((TypeError, ValueError), match=message):
        write_report(knob, tmp_path / "page.html", *given, **more)
    assert list(tmp_path.iterdir()) == []


def test_a_knob_of_one_point_has_a_page(model: nn.Module, tmp_path: Path) -> None:
    points = contents_of(model).points[:1]
    alone = contents_of(model, points=(replace(points[0], interval=None),), made={}, levers={})
    page, _ = page_of(drowsy.VideoKnob(model, alone), tmp_path)
    assert "1 setting of one network" in page.text
    assert "none, as the frames are too few" in page.text


def test_motion_is_followed_by_change(model: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="needs Pillow")
    still = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    clip = moved(still, "thing", 6, 0.05)
    points = tuple(p for p in contents_of(model).points if p.way.refresh != "bands")
    knob = drowsy.VideoKnob(model, contents_of(model, points=points, cost="slowest"))
    page, _ = page_of(knob, tmp_path, clip)
    nights = [str(each["d"]) for each in page.of_class("night")]
    assert any(each.count("M") > 3 for each in nights)
