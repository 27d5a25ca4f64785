"""What all look at: pictures in their order and at their pace, while somebody looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_knob import PREPROCESS, SIDE, Tuned, write_clip
from torch import Tensor

from drowsy.live.feed import Feed, of_camera, of_clip, of_folder


def until(true: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


class Pictures:
    """Pictures of one number each; tells how often they were opened and closed."""

    def __init__(self, count: int) -> None:
        self.count, self.opened, self.closed = count, 0, 0
        self.go = threading.Semaphore(0)

    def __call__(self) -> Iterator[tuple[Tensor, str]]:
        self.opened += 1
        try:
            for n in range(self.count):
                self.go.acquire()
                yield torch.full((2, 2, 3), n, dtype=torch.uint8), f"picture {n}"
        finally:
            self.closed += 1


def test_a_picture_is_no_clip_to_show(tuned: Tuned, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs PyAV")
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    image.new("RGB", (SIDE, SIDE)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"clip: \S*one.png holds one frame, as a picture does"):
        of_clip(str(tmp_path / "one.png"), PREPROCESS)


def test_pictures_are_decoded_while_somebody_looks() -> None:
    pictures = Pictures(2)
    feed = Feed("two", pictures, None)
    time.sleep(0.05)
    assert pictures.opened == 0
    feed.join()
    feed.join()
    for number, name in enumerate(("picture 0", "picture 1", "picture 0")):
        pictures.go.release()
        until(lambda number=number: feed.newest is not None and feed.newest.number == number)
        assert feed.newest is not None
        assert feed.newest.name == name
    feed.leave()
    assert feed.viewers == 1
    feed.leave()
    pictures.go.release()
    until(lambda: pictures.closed == pictures.opened == 2)
    assert feed.newest.number == 2
    feed.join()
    pictures.go.release()
    until(lambda: feed.newest is not None and feed.newest.number == 3)
    feed.leave()
    pictures.go.release()


def test_pictures_come_at_their_pace() -> None:
    pictures = Pictures(1000)
    pictures.go.release(1000)
    feed = Feed("many", pictures, 0.05)
    start = time.monotonic()
    feed.join()
    until(lambda: feed.newest is not None and feed.newest.number == 6)
    feed.leave()
    assert time.monotonic() - start >= 6 * 0.05 - 0.01


def test_what_ends_the_pictures_is_told() -> None:
    def pictures() -> Iterator[tuple[Tensor, str]]:
        yield torch.zeros(2, 2, 3, dtype=torch.uint8), "one"
        raise ValueError("clip: it breaks off")

    feed = Feed("broken", pictures, None)
    feed.join()
    until(lambda: feed.why)
    assert feed.why == "clip: it breaks off"
    feed.leave()


def test_a_folder_shows_its_pictures_by_name(tuned: Tuned, tmp_path: Path) -> None:
    feed = of_folder(str(tuned.photos), PREPROCESS, 5)
    assert feed.title == "photos, 6 pictures"
    feed.join()
    until(lambda: feed.newest)
    feed.leave()
    assert feed.newest is not None
    assert feed.newest.name == "photo0.png"
    assert feed.newest.pixels.shape == (SIDE, SIDE, 3)
    assert feed.newest.pixels.dtype == torch.uint8
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="data: no image in"):
        of_folder(str(tmp_path / "nothing"), PREPROCESS, 5)
    with pytest.raises(FileNotFoundError, match="data: no folder"):
        of_folder(str(tmp_path / "nowhere"), PREPROCESS, 5)


def test_a_clip_goes_on_from_its_start(tmp_path: Path) -> None:
    feed = of_clip(str(write_clip(tmp_path / "clip.mkv", rate=50)), PREPROCESS)
    feed.join()
    until(lambda: feed.newest is not None and feed.newest.number >= 3)
    feed.leave()
    with pytest.raises(ValueError, match="cannot be read as a video"):
        of_camera(97, PREPROCESS)
