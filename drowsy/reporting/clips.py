"""What a page says of a knob for video alone: frames in a row, and when to skip them instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import torch

from drowsy.files.versioned import is_number
from drowsy.knob.metrics import METRICS
from drowsy.reporting.film import Film, Moment
from drowsy.reporting.markup import Inside, tag
from drowsy.reporting.pictures import Album, moments, shrunk
from drowsy.reporting.sections import (
    Column,
    columns,
    count,
    deals,
    frontier,
    heading,
    lever_by_lever,
    model_card,
    no_pictures,
    pairs,
    section,
    silences,
    table,
    views,
    words_of,
    written,
)
from drowsy.reporting.settings import Setting, settings_of
from drowsy.reporting.words import (
    Losses,
    judged,
    machine_told,
    made_by,
    metered,
    not_said_of_any,
    percent,
    plain,
)
from drowsy.tuning.clips.knob import VideoKnob
from drowsy.tuning.clips.point import VideoPoint
from drowsy.video.areas import REFRESH, WHOLE, Box
from drowsy.video.ways import Way

_LEVERS = ("size", "skip", "remember", "packed")
_ROWS = (
    "Small squares are four frames in a row, coloured where something is computed (of change an "
    "example: it goes by what moves)."
)
_BOXES = "Boxes show the pixels of a frame beside those of the whole."
# Frames in a row that small squares stand for, and pixels that areas by change look at there.
_SHOWN, _LOOKED_AT = 4, 56
# Fewer report frames or clips than these are few, and the page says so.
_FEW_FRAMES, _FEW_CLIPS = 500, 10

_MEANT = "frames in a row of cameras like those of the clips, at their frame rate, and this machine"
_CODE = 'knob = drowsy.load("FILE.drowsy", model); answer = knob(frame)'


def parts(
    knob: VideoKnob, name: str, album: Album | None, classes: Sequence[str] | None
) -> list[Element | None]:
    """The sections of the page, in the order in which they are read."""
    settings = settings_of(knob)
    turned = {lever for each in settings if each.name for lever in each.turned}
    levers = [lever for lever in _LEVERS if lever in turned]
    legend = [_ROWS] * bool(turned & {"skip", "remember"}) + [_BOXES] * ("size" in turned)
    return [
        heading(knob, name, settings),
        deals(knob, settings),
        frontier(knob, settings),
        table(knob, settings, columns(knob, _spent(knob))),
        lever_by_lever(knob, settings, levers, _drawn, " ".join(legend)),
        views(settings, album, "size"),
        film(knob, settings, album, classes),
        section("How it was measured", pairs(how_measured(knob))),
        silences(not_said(knob)),
        model_card(knob, name, [], _MEANT, _CODE),
    ]


def _spent(knob: VideoKnob) -> list[Column]:
    """What the table tells of what a setting takes."""
    found = [
        Column("ms / frame", "ms / frame", lambda each: written(each.point.latency_ms), True),
        Column("ms, slowest", "ms, slowest", lambda each: written(each.point.slowest_ms)),
        Column("work at most", "work at most", lambda each: percent(each.point.peak)),
    ]
    if any(point.joules is not None for point in knob.contents.points):
        found.append(Column("J / frame", "J / frame", lambda each: written(each.point.joules)))
    return found


def _drawn(lever: str, setting: Setting) -> Element | None:
    way: Way = setting.point.way
    if lever == "size" and setting.view is not None:
        return shrunk(setting.view)
    if lever == "skip":
        return moments([() if n % way.every else (WHOLE,) for n in range(_SHOWN)], lever)
    return moments(_areas(way), lever) if lever == "remember" else None


def _areas(way: Way) -> list[tuple[Box, ...]]:
    """Which areas are awake in frames in a row, of noise."""
    assert way.refresh is not None, "it remembers"
    areas = REFRESH[way.refresh](way.rate)
    noise = torch.rand(
        _SHOWN, 3, _LOOKED_AT, _LOOKED_AT, generator=torch.Generator().manual_seed(0)
    )
    return [areas.next(frame) for frame in noise]


def film(
    knob: VideoKnob,
    settings: Sequence[Setting],
    album: Album | None,
    classes: Sequence[str] | None,
) -> Element:
    """Frames in a row at every point: what of them is computed, and the answers."""
    title = "What is computed, frame by frame"
    if album is None:
        return section(title, no_pictures())
    shown, figures = Film(knob, album.images, classes), []
    for each in (each for each in settings if each.name):
        frames = [_frame(album, n, moment) for n, moment in enumerate(shown.at(each.point))]
        row = tag("div", frames, class_="film")
        caption = tag("h3", f"Number {each.name}: ", words_of(each))
        figures.append(tag("figure", caption, row))
    told: list[Inside] = [
        f"{count(len(album.images), 'frame')} in a row of a clip, from the left. Dark is what is "
        "not computed: neurons there remember, or the whole answer is repeated. Below each frame "
        "what is computed of it, and the answer; ",
        tag("span", "so", class_="strays"),
        " where it is another one than awake. The first frame is computed whole by all.",
    ]
    return section(title, tag("p", told, class_="note"), figures)


def _frame(album: Album, n: int, moment: Moment) -> Element:
    told = tag("span", moment.computed, class_="note")
    answer = tag("span", moment.answer, class_="strays" if moment.strays else None)
    return tag("div", album.partly(n, moment.boxes, f"computed: {moment.computed}"), told, answer)


def how_measured(knob: VideoKnob) -> list[tuple[str, str]]:
    """What was done to get the figures, a line each."""
    made = knob.contents.made
    told = judged(knob, "on the same frame")
    given, frames = made.get("clips"), made.get("frames")
    if isinstance(given, dict) and isinstance(frames, dict):
        split = ", ".join(
            f"{plain(given[name])} to {purpose} ({plain(frames.get(name))} frames)"
            for name, purpose in {"choose": "choose points by", "report": "report on"}.items()
            if name in given
        )
        told.append(("Clips", f"{split}; disjoint; the first frame of each does not count"))
    clips = _reported(made)
    blocks = "blocks of about eight frames in a row"
    told.append(
        (
            "Intervals",
            "none, as the frames are too few"
            if any(point.interval is None for point in knob.contents.points)
            else f"95%, bootstrapped over {blocks}"
            + (f" of {clips} clips, which are drawn again too" if clips and clips > 1 else "")
            + ", each point by itself",
        )
    )
    told.append(
        (
            "Milliseconds",
            f"a frame of one camera on {machine_told(made)}; each setting took turns with the "
            "network awake at every frame, and is told by medians of the ratios, of the mean and "
            "of the slowest of four frames in a row; no cut was among them",
        )
    )
    return [*told, metered(knob, "a frame"), *made_by(made)]


def not_said(knob: VideoKnob) -> list[str]:
    """What a reader might take the figures to say, and they do not."""
    contents, made = knob.contents, knob.contents.made
    told = [_when_to_skip(knob), _how_steady(made)]
    told.append(
        "The first frame, and one after a cut, are computed whole at every point: they take as "
        "long as awake, and count for no slowest frame. A cut to a scene of like colours may not "
        "be found; the scene before then shows for some frames."
    )
    clips = _reported(made)
    if clips is None or clips < _FEW_CLIPS:
        few = "few clips" if clips is None else count(clips, "clip")
        told.append(
            f"Losses are of {few}, and intervals say little of other cameras: another motion, "
            "distance or frame rate may lose more. knob.evaluate(clips) tells."
        )
    frames = min(point.frames for point in contents.points)
    if frames < _FEW_FRAMES:
        told.append(
            f"Losses are of {frames} frames, which are few, and frames in a row are much alike: "
            "read the intervals, not the means, and of each point alone."
        )
    return told + not_said_of_any(
        knob, "a frame of one camera", "sizes of frames, numbers of cameras"
    )


def _how_steady(made: Mapping[str, Any]) -> str:
    """How much is lost by repeating answers, where these hardly change."""
    told = (
        "Where answers hardly change from frame to frame, whatever repeats old ones loses little "
        "by that alone"
    )
    steady = made.get("steady")
    known, value = None, None
    if isinstance(steady, dict):
        known, value = METRICS.get(str(steady.get("metric"))), steady.get("value")
    if known is not None and isinstance(value, float) and is_number(value):
        same = known.told(value).removeprefix(known.name).strip()
        told += (
            f". Of the network awake, {known.title} with its own answer to the frame before is "
            f"{same} on the clips reported on"
        )
    return (
        f"{told}. Where they change faster, or at fewer frames a second, skipping and remembering "
        "lose more."
    )


def _when_to_skip(knob: VideoKnob) -> str:
    """When skipping frames is the better choice, with what was measured here."""
    told = (
        "Skipping frames is the better choice where only the mean over frames counts, answers "
        "hardly change from one to the next, and full work now and then does no harm. A frame that "
        "is computed then takes as long as ever, and the answers between are of an older frame."
    )
    costs: dict[str, Callable[[VideoPoint], float | None]] = {
        "in the mean": lambda point: point.latency_ms,
        "of its slowest frame": lambda point: point.slowest_ms,
    }
    for what, cost in costs.items():
        whole = cost(knob.awake)
        within = [
            point
            for point in knob.contents.points
            if whole and (own := cost(point)) is not None and own <= whole / 2
        ]
        if not within:
            told += f" Nothing here saves half the time {what}."
            continue
        best = min(within, key=lambda point: point.loss)
        losses = Losses(knob.objective)
        unit = f" {losses.unit}" if losses.unit else ""
        doing = "skips" if best.way.every > 1 else "does not skip"
        told += (
            f" Of what saves half the time {what}, \u201c{best.way}\u201d loses least here "
            f"({losses.written(best.loss)}{unit}), which {doing}."
        )
    return told


def _reported(made: Mapping[str, Any]) -> int | None:
    """Clips that were reported on, as far as the file tells."""
    clips = made.get("clips")
    told = clips.get("report") if isinstance(clips, dict) else None
    return told if type(told) is int else None
