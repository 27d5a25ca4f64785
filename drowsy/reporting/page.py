"""``write_report``: a knob as one HTML page that needs nothing else and nobody's network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from drowsy import _distribution
from drowsy.files.atomic import write_text
from drowsy.files.messages import quoted
from drowsy.images.checks import check_images
from drowsy.reporting import clips, stills
from drowsy.reporting.markup import document, tag
from drowsy.reporting.pictures import Album
from drowsy.reporting.style import STYLE
from drowsy.reporting.words import AnyKnob
from drowsy.tuning.clips.knob import VideoKnob
from drowsy.tuning.knob import Knob, check_batch_of

# Example images of a page, at most.
MOST_IMAGES = 8


def write_report(
    knob: AnyKnob,
    path: str | os.PathLike[str],
    images: Tensor | None = None,
    *,
    name: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
) -> Path:
    """Write a knob's points, how they were measured and what they do not say as one HTML page.

    The page holds all that it shows, the images given too, at up to 256 pixels a side; its own
    policy forbids a browser to fetch anything. The same knob and images give the same bytes.

    Args:
        knob: for images or for video, as ``drowsy.tune`` or ``drowsy.load`` made it; stays as it
            is.
        path: of the page, written whole or not at all.
        images: 1 to 8 examples ``[N, C, H, W]`` as the network takes them, on its device, to show
            views and sleep maps on; of a ``VideoKnob`` so many frames in a row of a clip, to show
            which areas are awake, and the answers. They are sent with the page.
        name: of the network, as the page calls it; None for what the knob's file tells.
        mean, std: what the images were normalised by, a number a channel, so that they show their
            own colours; None shows each from its darkest to its brightest value.
        classes: names of the classes that a ``VideoKnob``'s network tells apart, in the order of
            its outputs; None for their numbers.

    Raises:
        TypeError, ValueError: an argument outside of what is listed here.
        ImportError: images, and Pillow is not installed.
    """
    if not isinstance(knob, Knob | VideoKnob):
        raise TypeError(
            f"knob: got {type(knob).__name__}, allowed: a Knob or a VideoKnob (drowsy.tune, "
            "drowsy.load)"
        )
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise ValueError(f"name: got {quoted(name)}, allowed: a text, or None")
    if classes is not None and not isinstance(knob, VideoKnob):
        raise ValueError("classes: got some, allowed: None of a Knob, whose page has no answers")
    _check_normalisation(knob, mean, std)
    album = None
    if images is not None:
        check_images(images)
        check_batch_of(images, knob.contents.image)
        if isinstance(knob, VideoKnob) and images.shape[1:] != knob.contents.image:
            raise ValueError(
                f"images: got frames of {tuple(images.shape[1:])}, allowed: {knob.contents.image}"
            )
        if len(images) > MOST_IMAGES:
            raise ValueError(f"images: got {len(images)}, allowed: 1 to {MOST_IMAGES}")
        album = Album(images, mean, std)
    called = name or _own_name(knob)
    write_text(path, _page(knob, called, album, classes))
    return Path(path)


def _check_normalisation(
    knob: AnyKnob, mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    channels = knob.contents.image[0]
    if (mean is None) != (std is None):
        raise ValueError(f"mean, std: got {quoted(mean)}, {quoted(std)}, allowed: both, or none")
    for what, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            raise ValueError(f"{what}: got {quoted(values)}, allowed: {channels} numbers, or None")


def _own_name(knob: AnyKnob) -> str:
    network = knob.contents.made.get("network")
    known = network.get("model") if isinstance(network, dict) else None
    return known if isinstance(known, str) and known else "A network without a name"


def _page(knob: AnyKnob, name: str, album: Album | None, classes: Sequence[str] | None) -> str:
    told = (
        clips.parts(knob, name, album, classes)
        if isinstance(knob, VideoKnob)
        else stills.parts(knob, name, album)
    )
    store = None if album is None else album.store()
    footer = tag("footer", f"Written by drowsy {_distribution.VERSION}.")
    return document(f"{name}: what its knob buys", STYLE, tag("main", store, told, footer))
