"""What all viewers look at: one picture after another, of a folder, a clip or a camera.

A thread decodes while somebody looks, so that a camera is open once and not for nobody. Who is slow
misses pictures.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from drowsy.files.messages import legible
from drowsy.images.folders import check_folder
from drowsy.images.frames import frame_rate, read_frames
from drowsy.images.listing import list_images
from drowsy.images.preprocess import Preprocess
from drowsy.images.reading import read_images
from drowsy.sensors import clock

# Seconds that a picture of a folder stays.
_STAYS = 0.5


@dataclass(frozen=True)
class Picture:
    """One picture.

    Args:
        number: it counts from 0, round after round.
        pixels: uint8 ``[S, S, 3]``, RGB, as the network sees it.
        name: of its file, or where in a clip it is.
    """

    number: int
    pixels: Tensor
    name: str


Round = Callable[[], Iterator[tuple[Tensor, str]]]
"""Opens what is shown and gives its pictures with their names, once each."""


class Feed:
    """Shows pictures at their pace, round after round, as long as somebody looks.

    Args:
        title: what is shown, in words.
        pictures: opened for every round.
        seconds: that a picture stays; None: until there is another one, as of a camera.

    Attributes:
        newest: the picture of the moment; None before the first.
        viewers: how many look.
        why: why there are no pictures any more; empty where there are.
    """

    def __init__(self, title: str, pictures: Round, seconds: float | None) -> None:
        self.title = title
        self.newest: Picture | None = None
        self.why = ""
        self._pictures, self._seconds = pictures, seconds
        self._numbers = itertools.count()
        self.viewers = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def join(self) -> None:
        """One more looks; with the first of them the pictures start."""
        with self._lock:
            self.viewers += 1
            if self.viewers == 1:
                self._stop = threading.Event()
                run = threading.Thread(target=self._run, args=(self._stop,), daemon=True)
                run.start()

    def leave(self) -> None:
        """One looks no more; with the last of them the pictures stop."""
        with self._lock:
            self.viewers -= 1
            if not self.viewers:
                self._stop.set()

    def _run(self, stop: threading.Event) -> None:
        self.why = ""
        try:
            while not stop.is_set():
                self._round(stop)
        except Exception as error:  # told on the page: there is nobody else to tell
            self.why = str(error) or type(error).__name__

    def _round(self, stop: threading.Event) -> None:
        due = clock.now()
        for pixels, name in self._pictures():
            if stop.wait(max(0.0, due - clock.now())):
                return
            self.newest = Picture(next(self._numbers), pixels, name)
            if self._seconds is not None:
                # Who decodes more slowly than that is not hurried afterwards.
                due = max(due, clock.now() - self._seconds) + self._seconds


def of_folder(folder: str, preprocess: Preprocess, classes: int) -> Feed:
    """A folder of images in the order of their names, as ``drowsy.images.folders`` lists them.

    Raises:
        FileNotFoundError, NotADirectoryError: no such folder.
        ValueError: no image in it, or a bad table.
    """
    root = Path(folder)
    check_folder(root, "a folder of images, or one with a subfolder per class")
    paths = [path for path, _ in list_images(root, None, classes)]
    if not paths:
        raise ValueError(f"data: no image in {legible(root)}")

    def pictures() -> Iterator[tuple[Tensor, str]]:
        for path in paths:
            pixels, _ = read_images([path], preprocess)
            yield pixels[0], path.name

    pictures_told = f"{len(paths):,} picture{'s' if len(paths) > 1 else ''}"
    return Feed(f"{root.resolve().name}, {pictures_told}", pictures, _STAYS)


def of_clip(clip: str, preprocess: Preprocess) -> Feed:
    """A clip at its own pace, again and again.

    Raises:
        ValueError: no video can be read there.
        ImportError: PyAV is not installed.
    """
    seconds = 1 / frame_rate(clip)
    # Before the page is there a single picture is refused.
    for _ in itertools.islice(read_frames(clip, preprocess), 2):
        pass

    def pictures() -> Iterator[tuple[Tensor, str]]:
        for n, pixels in enumerate(read_frames(clip, preprocess)):
            yield pixels, f"{n * seconds:.1f} s"

    return Feed(Path(clip).name, pictures, seconds)


def of_camera(number: int, preprocess: Preprocess) -> Feed:
    """A camera of this machine, ``/dev/video0`` and so on.

    Raises:
        ValueError: it cannot be opened.
        ImportError: PyAV is not installed.
    """
    device = f"/dev/video{number}"
    frame_rate(device)  # opens it, so that what is wrong is said before the page is there

    def pictures() -> Iterator[tuple[Tensor, str]]:
        for pixels in read_frames(device, preprocess):
            yield pixels, "now"

    return Feed(f"camera {number}", pictures, None)
