"""One viewer among several: settings apart, figures as they were measured, budgets held."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_knob import PREPROCESS, SAVED, SIDE, Tuned
from torch import Tensor

from drowsy.knob.frontier import NoSuchPoint
from drowsy.live import picture as pictures
from drowsy.live.feed import Feed, Picture
from drowsy.live.network import Network, read_names
from drowsy.live.sensing import Sensing
from drowsy.live.viewer import CHECKED, Shot, Viewer


class Still(Feed):
    """Shows what it is told to."""

    def __init__(self) -> None:
        super().__init__("stills", self._nothing, None)

    def _nothing(self) -> Iterator[tuple[Tensor, str]]:
        yield from ()

    def join(self) -> None:
        self.viewers += 1

    def leave(self) -> None:
        self.viewers -= 1

    def show(self, number: int) -> None:
        shown = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (SIDE, SIDE, 3), generator=shown, dtype=torch.uint8)
        self.newest = Picture(number, pixels, f"still {number}")


class Room:
    """What viewers share; nothing is metered."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.feed = network, Still()
        self.sensing = Sensing("cpu", folder / "no-sys")

    def enter(self, refresh: str | None = None) -> Viewer:
        if refresh is not None:
            self.network.rates(refresh, seconds=0.1)
        return Viewer(self.network, self.feed, self.sensing, refresh)

    def look(self, viewer: Viewer, number: int) -> Shot:
        self.feed.show(number)
        shot = viewer.look()
        assert shot is not None
        return shot


@pytest.fixture
def room(tuned: Tuned, tmp_path: Path) -> Room:
    return Room(tuned.network(), tmp_path)


def image_of(shot: Shot) -> np.ndarray:
    data = base64.b64decode(shot.image.removeprefix("data:image/jpeg;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_viewers_do_not_turn_each_other(room: Room, tuned: Tuned) -> None:
    one, other = room.enter(), room.enter()
    one.save(0.3)
    other.save(0.5)
    for number in range(3):
        mine, theirs = room.look(one, number), room.look(other, number)
        assert (mine.saved, theirs.saved) == pytest.approx(SAVED[1:])
        assert mine.image != theirs.image
        # Of each the answer is that of its own point, with the maps of this picture.
        frame = room.network.frame(mine.picture.pixels)
        for shot in (mine, theirs):
            tuned.knob.reseed(0, number)
            with tuned.knob.at(shot.point):
                assert shot.answers == room.network.answers(tuned.knob(frame), frame)
    assert tuned.knob.point is tuned.knob.awake
    assert room.feed.viewers == 2
    one.close()
    assert room.feed.viewers == 1
    with pytest.raises(NoSuchPoint):
        other.save(0.9)
    assert other.hand.saved == pytest.approx(SAVED[2])
    other.save(0.0)
    assert room.look(other, 5).told == "awake"
    other.close()
    other.look()
    assert room.feed.viewers == 0


def test_a_picture_is_looked_at_once(room: Room) -> None:
    viewer = room.enter()
    assert viewer.look() is None
    room.look(viewer, 0)
    assert viewer.look() is None
    assert room.look(viewer, 1).picture.name == "still 1"


def test_figures_are_told_and_what_is_missing_is_not_made_up(room: Room, tuned: Tuned) -> None:
    viewer = room.enter()
    viewer.save(0.3)
    shots = [room.look(viewer, number) for number in range(CHECKED + 1)]
    assert [shot.checks for shot in shots] == [1, 1, 1, 1, 2]
    last = shots[-1]
    assert last.figures["multiplied"] == pytest.approx(0.55)
    assert last.figures["watts"] is None
    assert last.figures["celsius"] is None
    assert viewer.unmeasured.keys() == {"watts", "celsius"}
    assert all(0 < (shot.figures["latency_ms"] or 0) < 1e4 for shot in shots)
    # As many of both checks as agree, by hand.
    agreed = []
    for shot in (shots[0], shots[CHECKED]):
        frame = room.network.frame(shot.picture.pixels)
        awake = room.network.answers(room.network.awake(frame), frame)
        agreed.append(awake[0][0] == shot.answers[0][0])
    assert last.figures["likeness"] == np.mean(agreed)
    # Another setting is compared anew.
    viewer.save(0.5)
    assert room.look(viewer, 9).checks <= 1


def test_who_sleeps_is_laid_over_the_picture(room: Room, tuned: Tuned) -> None:
    viewer = room.enter()
    viewer.save(0.5)
    shot = room.look(viewer, 7)
    asleep = image_of(shot)
    plain = image_of(replace(shot, image=pictures.of_knob(shot.picture.pixels, None, None)))
    # Outside of the middle 0.75 it is dark, inside every other place is violet.
    edge = len(asleep) // 16
    assert asleep[:edge].mean() == pytest.approx(0.3 * plain[:edge].mean(), rel=0.05)
    inside = slice(len(asleep) // 8 + 4, -len(asleep) // 8 - 4)
    tint = (asleep - plain)[inside, inside].mean((0, 1))
    assert tint[2] > tint[0] > tint[1]
    assert "50% of all layers' work" in shot.seen
    assert "dark border" in shot.seen
    viewer.layer = "one"
    assert "of one's work" in room.look(viewer, 8).seen


def test_budgets_take_the_slider(room: Room) -> None:
    viewer = room.enter()
    assert viewer.unholdable.keys() == {"watts", "celsius"}
    viewer.hold({"latency_ms": 1e4})
    room.look(viewer, 0)
    assert viewer.governing.told.startswith("The governor holds 10,000 ms.")
    assert viewer.hand.saved == 0
    # Nothing holds this, and the nearest is the fastest.
    viewer.hold({"latency_ms": 1e-6})
    for number in range(1, 9):
        shot = room.look(viewer, number)
    assert shot.saved == pytest.approx(SAVED[2])
    told = viewer.governing.told
    assert told.startswith("No point holds")
    assert "latency_ms" not in told
    other = room.enter()
    assert room.look(other, 20).told == "awake"
    for wrong, why in (({"watts": 5.0}, "nothing measures it"), ({"latency_ms": -1.0}, "above 0")):
        with pytest.raises(ValueError, match=why):
            viewer.hold(wrong)
        assert viewer.governing.budgets == {"latency_ms": 1e-6}
    viewer.hold({})
    assert viewer.governing.told == ""
    viewer.save(0.3)
    assert room.look(viewer, 30).saved == pytest.approx(SAVED[1])


def test_a_meter_without_joules_in_the_file_is_said(room: Room) -> None:
    room.sensing.why.clear()
    why = room.enter().unholdable["watts"]
    assert "joules an image for 3 of 3 points" in why


def test_a_stream_lets_areas_sleep(room: Room) -> None:
    viewer, other = room.enter("bands"), room.enter("quads")
    assert room.look(viewer, 0).figures["multiplied"] == 1
    viewer.save(0.4)
    room.look(viewer, 1)
    shot = room.look(viewer, 2)
    assert shot.saved == 0.5
    assert shot.point is None
    assert 0.3 < (shot.figures["multiplied"] or math.nan) < 0.9
    assert "areas that sleep are dark" in shot.seen
    assert image_of(shot).shape[0] % SIDE == 0
    other.save(0.7)
    assert room.look(other, 3).saved == 0.75
    assert viewer.hand.saved == 0.5


def test_a_governor_turns_the_rate_of_a_stream(room: Room) -> None:
    """The least rate that holds the budget, by what a frame was measured to take at each."""
    viewer = room.enter("quads")
    rates = room.network.rates("quads")
    assert [rate.saving for rate in rates] == [0, 0.25, 0.5, 0.75]
    assert all(rate.latency_ms > 0 for rate in rates)
    assert viewer.unholdable.keys() == {"watts", "celsius"}
    viewer.hold({"latency_ms": 1e4})
    assert room.look(viewer, 0).saved == 0
    # Nothing holds this, and the nearest is the fastest.
    viewer.hold({"latency_ms": 1e-6})
    for number in range(1, 5):
        shot = room.look(viewer, number)
    fastest = min(rates, key=lambda rate: rate.latency_ms)
    assert shot.saved == fastest.saving
    assert viewer.governing.told.startswith("No point holds")
    viewer.hold({})
    viewer.save(0.3)
    assert room.look(viewer, 5).saved == 0.5


def test_of_a_stream_no_joules_are_measured(room: Room) -> None:
    room.sensing.why.clear()
    assert "no joules an image" in room.enter("quads").unholdable["watts"]


def test_classes_are_named(tmp_path: Path, tuned: Tuned) -> None:
    file = tmp_path / "names.txt"
    file.write_text("n01440764 tench, Tinca tinca\nzebra, striped\ncat\ndog\ncow\n")
    names = read_names(str(file), 5)
    assert names == ["tench", "zebra, striped", "cat", "dog", "cow"]
    network = tuned.network(names)
    frame = network.frame(torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8))
    assert frame.mean() == pytest.approx(-PREPROCESS.mean[0] / PREPROCESS.std[0])
    found = network.answers(torch.tensor([[0.0, 9.0, 0.0, 1.0, 0.0]]), frame)
    assert [name for name, _ in found[:2]] == ["zebra, striped", "dog"]
    with pytest.raises(ValueError, match=r"names: .* holds 5 lines, allowed: 4"):
        read_names(str(file), 4)
