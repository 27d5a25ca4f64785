"""The sections of a page, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from drowsy.images.view import View
from drowsy.knob.metrics import METRICS
from drowsy.reporting.chart import NARROW, WIDE, Mark, chart, dot
from drowsy.reporting.markup import tag
from drowsy.reporting.pictures import Album
from drowsy.reporting.settings import Axis, Setting, axes
from drowsy.reporting.words import (
    AnyKnob,
    AnyPoint,
    Losses,
    machine_told,
    number,
    percent,
    saves,
)
from drowsy.tuning.clips.point import VideoPoint

# What each lever turns, and what is said of a point where it turns nothing.
LEVERS = {
    "view": ("what of the picture it is shown", "whole"),
    "format": ("the format of its numbers", "its own"),
    "sleep": ("which neurons sleep", "all awake"),
    "size": ("at how many pixels frames are seen", "all pixels"),
    "skip": ("which frames are computed at all", "every frame"),
    "remember": ("which areas are computed, where others remember", "all areas"),
    "packed": ("weights laid out anew, for the same answers", "as they are"),
}
# Losses that somebody may put up with, by the unit of the metric.
_BEARABLE = {"points": (0.01, 0.02, 0.05), "dB": (0.1, 0.5, 1.0)}
_LESS = {
    "latency": "less time",
    "slowest": "less time of the slowest frame",
    "joules": "less energy",
    "macs": "fewer multiplications",
}


def heading(knob: AnyKnob, name: str, settings: Sequence[Setting]) -> Element:
    """What this is, in two sentences."""
    most = max(each.saved or 0.0 for each in settings if each.name)
    lead = (
        f"{count(len(knob.points), 'setting')} of one network, which save up to {percent(most)} "
        f"of its {saves(knob.cost)}. What each of them loses is below."
    )
    most_seen = max(knob.contents.points, key=_counted)
    where = f"Time on {machine_told(knob.contents.made)}. Losses on {_seen(most_seen)}."
    return tag(
        "header", tag("h1", name), tag("p", lead, class_="lead"), tag("p", where, class_="note")
    )


def deals(knob: AnyKnob, settings: Sequence[Setting]) -> Element | None:
    """What a few bearable losses buy; None where the metric has no such measure."""
    losses, shown, cards = Losses(knob.objective), set(), []
    for most in _BEARABLE.get(losses.unit, ()):
        within = [
            each
            for each in settings
            if each.name and each.saved and each.saved > 0 and each.loss <= most + 1e-9
        ]
        best = max(within, key=lambda each: each.saved or 0.0, default=None)
        if best is None or best.name in shown:
            continue
        shown.add(best.name)
        told = f"loses {losses.written(best.loss)} {losses.unit}"
        if best.interval is not None:
            told += f" (95%: {losses.between(best.interval)})"
        bound = f"{number(most * losses.scale)} {losses.unit}".replace("1 points", "1 point")
        parts = [
            tag("b", percent(best.saved)),
            tag("span", f"{_LESS[knob.cost]} for at most {bound}"),
            tag("span", f"Number {best.name}: {told}{_time_beside(knob, best)}"),
        ]
        cards.append(tag("div", parts, class_="deal"))
    return tag("div", cards, class_="deals") if cards else None


def _time_beside(knob: AnyKnob, setting: Setting) -> str:
    """The time, where something else is saved; of video the mean and the slowest frame's."""
    one, awake = setting.point, knob.awake
    told = []
    if knob.cost != "latency" and one.latency_ms is not None and awake.latency_ms:
        told.append(f"takes {number(one.latency_ms / awake.latency_ms)} times as long as awake")
    if knob.cost != "slowest" and isinstance(awake, VideoPoint) and awake.slowest_ms:
        slowest = number(one.slowest_ms / awake.slowest_ms)
        told.append(f"its slowest frame {slowest} times as long")
    return "".join(f"; {each}" for each in told)


def frontier(knob: AnyKnob, settings: Sequence[Setting]) -> Element:
    """The points as a picture, for every cost that is known."""
    drawn = [each for axis in axes(knob) for each in charts(knob, settings, axis)]
    told = (
        "Further left costs less, further down loses less. Losses are on a scale of square roots; "
        "lines up and down are 95% intervals. Numbers are those of the table."
    )
    if any(not each.name for each in settings):
        told += (
            f" Grey: measured too, but by {saves(knob.cost)} another point costs no more and loses "
            "no more."
        )
    return section(
        "What it costs, what it loses",
        chart_key(settings),
        tag("figure", drawn, tag("figcaption", told)),
    )


def charts(
    knob: AnyKnob,
    settings: Sequence[Setting],
    axis: Axis,
    present: AnyPoint | None = None,
) -> list[Element]:
    """The points by what they lose and one cost, for a desk and for a phone.

    ``present``: the point to ring, if any.
    """
    losses, metric = Losses(knob.objective), METRICS[knob.objective]
    unit = f" ({losses.unit})" if losses.unit else ""
    marks = [
        Mark(
            each.name,
            axis.of(each.point) or 0.0,
            losses.scale * each.loss,
            each.interval and losses.scale * each.interval[0],
            each.interval and losses.scale * each.interval[1],
            each.turned,
            each.point is present,
        )
        for each in settings
    ]
    y_title = f"lost {metric.title}{unit}"
    return [chart(marks, axis.title, y_title, shape) for shape in (WIDE, NARROW)]


def chart_key(settings: Sequence[Setting]) -> Element:
    """What the colours of charts mean."""
    used = [lever for lever in LEVERS if any(lever in each.turned for each in settings)]
    key = [_keyed(used[n : n + 1], LEVERS[lever][0]) for n, lever in enumerate(used)]
    key.append(_keyed((), "awake, the network as it is"))
    return tag("ul", key, class_="key")


def _keyed(levers: Iterable[str], told: str) -> Element:
    levers = list(levers)
    inside = tag("svg", dot(7, 7, levers), viewBox="0 0 14 14", aria_hidden="true")
    return tag("li", inside, [tag("b", lever, class_=lever) for lever in levers], tag("span", told))


def table(knob: AnyKnob, settings: Sequence[Setting], columns: Sequence[Column]) -> Element:
    """Every point in figures; those that are not worth having folded away."""
    worth = [each for each in settings if each.name]
    spare = [each for each in settings if not each.name]
    told: list[str | Element] = [
        tag("code", f"knob.set({len(knob.points) - 1})"),
        f" turns to number {len(knob.points) - 1}, ",
        tag("code", "knob.set(max_loss=0.01)"),
        " finds the number itself.",
    ]
    if any(each.slower for each in settings):
        told += [" ", tag("span", "Red", class_="slow"), ": slower here than awake."]
    more = None
    if spare:
        more = tag(
            "details",
            tag("summary", f"{count(len(spare), 'more setting')}, measured and not worth it here"),
            _table(spare, columns),
        )
    return section("Every point", _table(worth, columns), tag("p", told, class_="note"), more)


def _table(settings: Sequence[Setting], columns: Sequence[Column]) -> Element:
    body = []
    for each in settings:
        row = [tag("td", tag("span", each.name, class_="n"), words_of(each), class_="what")]
        for column in columns:
            kind = "slow" if column.is_time and each.slower else None
            row.append(tag("td", column.told(each), data_label=column.short, class_=kind))
        body.append(tag("tr", row, class_="awake" if each.point.is_awake else None))
    first = tag("th", "what it does", class_="what")
    head = tag("thead", tag("tr", first, [tag("th", column.title) for column in columns]))
    return tag("table", head, tag("tbody", body))


@dataclass(frozen=True)
class Column:
    """Of the table: its title, a shorter one for phones, and what it tells of a setting."""

    title: str
    short: str
    told: Callable[[Setting], str]
    is_time: bool = False


def columns(knob: AnyKnob, spent: Sequence[Column]) -> list[Column]:
    """What the table tells of a setting: what it saves, what it spends, what it loses."""
    losses, metric = Losses(knob.objective), METRICS[knob.objective]
    saved, multiplied = f"{saves(knob.cost)} saved", f"{saves('macs')} saved"
    found = [Column(saved, _shortly(saved), lambda each: percent(each.saved))]
    if knob.cost != "macs":
        told = Column(multiplied, _shortly(multiplied), lambda each: percent(each.point.saving))
        found.append(told)
    return [
        *found,
        *spent,
        Column(
            metric.axis,
            metric.axis,
            lambda each: losses.written(each.point.figure(knob.objective)),
        ),
        Column(metric.lost, metric.lost, lambda each: losses.written(each.loss)),
        # Awake loses nothing against itself, which is no measurement.
        Column(
            "95% interval",
            "95%",
            lambda each: "" if each.point.is_awake else losses.between(each.interval),
        ),
    ]


def _shortly(title: str) -> str:
    """A title for phones."""
    return title.replace(saves("macs"), "MACs").replace(saves("slowest"), "slowest")


def written(value: float | None) -> str:
    """A number of the table; nothing for None."""
    return "" if value is None else number(value)


def words_of(setting: Setting) -> list[Element | str]:
    """What levers do at a setting, in their colours."""
    parts: list[Element | str] = []
    for lever, told in setting.turned.items():
        parts += [", "] * bool(parts) + [tag("b", told, class_=lever)]
    return parts or ["awake"]


def lever_by_lever(
    knob: AnyKnob,
    settings: Sequence[Setting],
    levers: Sequence[str],
    drawn: Callable[[str, Setting], Element | None],
    legend: str,
) -> Element:
    """What each lever does at each point, and what came of each in tuning.

    Args:
        levers: that there are, in the order of columns.
        drawn: a small picture of what a lever does at a setting, if there is one.
        legend: on these.
    """
    heads = ("", *levers)
    rows = [tag("div", [tag("span", head) for head in heads], class_="turn head")]
    for each in (each for each in settings if each.name):
        parts = [tag("span", each.name, class_="n")]
        if each.turned:
            parts += [_cell(lever, each, drawn) for lever in levers]
        else:
            parts.append(tag("span", "awake", class_="all"))
        rows.append(tag("div", parts, class_="turn"))
    told = [(tag("b", lever, class_=lever), why) for lever, why in knob.contents.levers.items()]
    return section(
        "Which lever does what",
        tag("div", rows, class_=f"levers of{len(levers)}"),
        tag("p", legend, class_="note"),
        tag("h3", "What came of each lever") if told else None,
        pairs(told),
    )


def _cell(lever: str, setting: Setting, drawn: Callable[[str, Setting], Element | None]) -> Element:
    told = setting.turned.get(lever)
    if told is None:
        return tag("div", LEVERS[lever][1], class_="cell off")
    return tag("div", drawn(lever, setting), tag("b", told, class_=lever), class_="cell")


def views(settings: Sequence[Setting], album: Album | None, lever: str) -> Element | None:
    """What every view takes of the first picture, and what it makes of it.

    ``lever``: that the views are made by.
    """
    found: dict[View, list[str]] = {}
    for each in settings:
        if each.name and lever in each.turned and each.view is not None:
            found.setdefault(each.view, []).append(each.name)
    if not found:
        return None
    title = f"What a {lever} shows"
    if album is None:
        return section(title, no_pictures())
    figures = [
        tag(
            "figure",
            tag("div", album.framed(view), album.shown(view), class_="pair"),
            tag("figcaption", tag("b", str(view), class_=lever), f", {numbers(names)}"),
        )
        for view, names in found.items()
    ]
    told = "On the left what is taken of a picture, on the right the pixels that the network gets."
    return section(title, tag("p", told, class_="note"), tag("div", figures, class_="pictures"))


def silences(told: Sequence[str]) -> Element:
    """What does not follow from the figures."""
    return section("What this does not say", tag("ul", [tag("li", each) for each in told]))


def model_card(
    knob: AnyKnob, name: str, layers: Sequence[tuple[str, str]], meant: str, code: str
) -> Element:
    """The network, and how to turn its knob.

    Args:
        knob: of either kind.
        name: of the network.
        layers: what is told of its layers.
        meant: what the knob is meant for.
        code: by which it is used.
    """
    contents, losses, awake = knob.contents, Losses(knob.objective), knob.awake
    figure = losses.written(awake.figure(knob.objective))
    told: list[tuple[str | Element, str | Element]] = [
        ("Name", name),
        ("Weights (SHA-256)", tag("code", contents.weights)),
        ("Input", " \u00d7 ".join(map(str, contents.image)) + " (channels, height, width)"),
        ("Awake", f"{METRICS[knob.objective].axis} {figure} on {_seen(awake)}"),
        *layers,
        ("Saves", f"{saves(knob.cost)}, {count(len(knob.points), 'point')}"),
        ("Meant for", meant),
        ("To use it", tag("code", code)),
    ]
    return section("Model card", pairs(told))


def section(title: str, *inside: object) -> Element:
    """A part of the page with its title."""
    return tag("section", tag("h2", title), inside)  # type: ignore[arg-type]


def pairs(told: Iterable[tuple[str | Element, str | Element]]) -> Element | None:
    """What things are about, and what is told of them."""
    parts = [[tag("dt", what), tag("dd", how)] for what, how in told]
    return tag("dl", parts) if parts else None


def no_pictures() -> Element:
    """What stands where pictures would."""
    return tag("p", "No example pictures were given to show it on.", class_="note")


def numbers(names: Sequence[str]) -> str:
    """Points by their numbers."""
    return f"number{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _counted(point: AnyPoint) -> int:
    return point.frames if isinstance(point, VideoPoint) else point.images


def _seen(point: AnyPoint) -> str:
    """Images or frames that a point was measured on."""
    return count(_counted(point), "frame" if isinstance(point, VideoPoint) else "image")


def count(number: int, what: str) -> str:
    """So many of something."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
