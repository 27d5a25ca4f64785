"""The sections of a page, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from drowsy.images.view import View
from drowsy.knob.metrics import METRICS
from drowsy.knob.point import OperatingPoint
from drowsy.reporting.chart import NARROW, WIDE, Mark, chart, dot
from drowsy.reporting.markup import Inside, tag
from drowsy.reporting.pictures import Album, schema
from drowsy.reporting.settings import Axis, Setting, axes
from drowsy.reporting.words import (
    Losses,
    how_measured,
    machine_told,
    not_said,
    number,
    percent,
    saves,
)
from drowsy.tuning.knob import Knob

LEVERS = {
    "view": "what of the picture it is shown",
    "format": "the format of its numbers",
    "sleep": "which neurons sleep",
}
# Losses that somebody may put up with, by the unit of the metric.
_BEARABLE = {"points": (0.01, 0.02, 0.05), "dB": (0.1, 0.5, 1.0)}
_LESS = {"latency": "less time", "joules": "less energy", "macs": "fewer multiplications"}


def heading(knob: Knob, name: str) -> Element:
    """What this is, in two sentences."""
    most = max(map(knob.saved, knob.points))
    lead = (
        f"{_count(len(knob.points), 'setting')} of one network, which save up to {percent(most)} "
        f"of its {saves(knob.cost)}. What each of them loses is below."
    )
    reported = max(point.images for point in knob.contents.points)
    where = f"Time on {machine_told(knob.contents.made)}. Losses on {_count(reported, 'image')}."
    return tag(
        "header", tag("h1", name), tag("p", lead, class_="lead"), tag("p", where, class_="note")
    )


def deals(knob: Knob, settings: Sequence[Setting]) -> Element | None:
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


def _time_beside(knob: Knob, setting: Setting) -> str:
    """The time, where something else is saved."""
    took, awake = setting.point.latency_ms, knob.awake.latency_ms
    if knob.cost == "latency" or took is None or not awake:
        return ""
    return f"; takes {number(took / awake)} times as long as awake"


def frontier(knob: Knob, settings: Sequence[Setting]) -> Element:
    """The points as a picture, for every cost that is known."""
    drawn = [each for axis in axes(knob) for each in charts(knob, settings, axis)]
    told = (
        "Further left costs less, further down loses less. Losses are on a scale of square roots; "
        "lines up and down are 95% intervals. Numbers are those of the table."
    )
    if any(not each.name for each in settings):
        told += " Grey: measured too, but another point costs no more and loses no more."
    return _section(
        "What it costs, what it loses",
        chart_key(settings),
        tag("figure", drawn, tag("figcaption", told)),
    )


def charts(
    knob: Knob,
    settings: Sequence[Setting],
    axis: Axis,
    present: OperatingPoint | None = None,
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
    key = [_keyed(used[n : n + 1], LEVERS[lever]) for n, lever in enumerate(used)]
    key.append(_keyed((), "awake, the network as it is"))
    return tag("ul", key, class_="key")


def _keyed(levers: Iterable[str], told: str) -> Element:
    levers = list(levers)
    inside = tag("svg", dot(7, 7, levers), viewBox="0 0 14 14", aria_hidden="true")
    return tag("li", inside, [tag("b", lever, class_=lever) for lever in levers], tag("span", told))


def table(knob: Knob, settings: Sequence[Setting]) -> Element:
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
            tag("summary", f"{_count(len(spare), 'more setting')}, measured and not worth it here"),
            _table(knob, spare),
        )
    return _section("Every point", _table(knob, worth), tag("p", told, class_="note"), more)


def _table(knob: Knob, settings: Sequence[Setting]) -> Element:
    columns = _columns(knob)
    body = []
    for each in settings:
        row = [tag("td", tag("span", each.name, class_="n"), _words(each), class_="what")]
        for column in columns:
            kind = "slow" if column.is_time and each.slower else None
            row.append(tag("td", column.told(each), data_label=column.short, class_=kind))
        body.append(tag("tr", row, class_="awake" if each.point.is_awake else None))
    first = tag("th", "what it does", class_="what")
    head = tag("thead", tag("tr", first, [tag("th", column.title) for column in columns]))
    return tag("table", head, tag("tbody", body))


@dataclass(frozen=True)
class _Column:
    """Of the table: its title, a shorter one for phones, and what it tells of a setting."""

    title: str
    short: str
    told: Callable[[Setting], str]
    is_time: bool = False


def _columns(knob: Knob) -> list[_Column]:
    losses, metric = Losses(knob.objective), METRICS[knob.objective]
    saved, multiplications = f"{saves(knob.cost)} saved", f"{saves('macs')} saved"
    lost = f"lost ({losses.unit})" if losses.unit else "lost"
    time = f"ms / batch of {knob.batch}"
    found = [_Column(saved, _shortly(saved), lambda each: percent(each.saved))]
    if knob.cost != "macs":
        found.append(
            _Column(
                multiplications,
                _shortly(multiplications),
                lambda each: percent(each.point.saving),
            )
        )
    found.append(_Column(time, time, lambda each: _written(each.point.latency_ms), is_time=True))
    found.append(
        _Column("images / s", "images / s", lambda each: _written(_speed(each.point, knob.batch)))
    )
    if any(point.joules is not None for point in knob.contents.points):
        found.append(_Column("J / image", "J / image", lambda each: _written(each.point.joules)))
    return [
        *found,
        _Column(
            metric.axis,
            metric.axis,
            lambda each: losses.written(each.point.figure(knob.objective)),
        ),
        _Column(lost, lost, lambda each: losses.written(each.loss)),
        # Awake loses nothing against itself, which is no measurement.
        _Column(
            "95% interval",
            "95%",
            lambda each: "" if each.point.is_awake else losses.between(each.interval),
        ),
    ]


def _shortly(title: str) -> str:
    return title.replace(saves("macs"), "MACs")


def _written(value: float | None) -> str:
    return "" if value is None else number(value)


def _speed(point: OperatingPoint, batch: int) -> float | None:
    """Images a second."""
    return 1e3 * batch / point.latency_ms if point.latency_ms else None


def _words(setting: Setting) -> list[Element | str]:
    parts: list[Element | str] = []
    for lever, told in setting.turned.items():
        parts += [", "] * bool(parts) + [tag("b", told, class_=lever)]
    return parts or ["awake"]


def lever_by_lever(knob: Knob, settings: Sequence[Setting]) -> Element:
    """What each lever does at each point, and what came of each in tuning."""
    heads = ("", *LEVERS)
    rows = [tag("div", [tag("span", head) for head in heads], class_="turn head")]
    for each in (each for each in settings if each.name):
        parts = [tag("span", each.name, class_="n")]
        if each.turned:
            parts += [_cell(lever, each) for lever in LEVERS]
        else:
            parts.append(tag("span", "awake", class_="all"))
        rows.append(tag("div", parts, class_="turn"))
    told = [(tag("b", lever, class_=lever), why) for lever, why in knob.contents.levers.items()]
    return _section(
        "Which lever does what",
        tag("div", rows, class_="levers"),
        tag(
            "p",
            "Bars are the sleep rates of the layers, the first on the left; a full bar is all of a "
            "layer's neurons. Boxes show what of the picture is taken.",
            class_="note",
        ),
        tag("h3", "What came of each lever") if told else None,
        _pairs(told),
    )


def _cell(lever: str, setting: Setting) -> Element:
    told = setting.turned.get(lever)
    picture = None
    if told is None:
        text = {"view": "whole", "format": "its own", "sleep": "all awake"}[lever]
        return tag("div", text, class_="cell off")
    if lever == "view" and setting.point.view is not None:
        picture = schema(setting.point.view)
    elif lever == "sleep":
        picture = _rates(setting)
    return tag("div", picture, tag("b", told, class_=lever), class_="cell")


def _rates(setting: Setting) -> Element:
    """A bar a layer, as high as its rate."""
    rates = [float(layer.rate) for layer in setting.point.schedule.layers.values()]
    bars = "".join(
        f"M{n + 0.08:.2f} 1v{-rate:.4g}h.84v{rate:.4g}z" for n, rate in enumerate(rates) if rate
    )
    asleep = sum(rate > 0 for rate in rates)
    return tag(
        "svg",
        tag("title", f"{asleep} of {_count(len(rates), 'layer')} asleep"),
        tag("rect", x=0, y=0, width=len(rates), height=1, class_="base"),
        tag("path", d=bars, class_="bar"),
        viewBox=f"0 0 {len(rates)} 1",
        preserveAspectRatio="none",
        class_="rates",
        role="img",
    )


def views(settings: Sequence[Setting], album: Album | None) -> Element | None:
    """What every view takes of the first picture, and what it makes of it."""
    found: dict[View, list[str]] = {}
    for each in settings:
        if each.name and "view" in each.turned and each.point.view is not None:
            found.setdefault(each.point.view, []).append(each.name)
    if not found:
        return None
    if album is None:
        return _section("What a view shows", _no_pictures())
    figures = [
        tag(
            "figure",
            tag("div", album.framed(view), album.shown(view), class_="pair"),
            tag("figcaption", tag("b", str(view), class_="view"), f", {_numbers(names)}"),
        )
        for view, names in found.items()
    ]
    told = "On the left what is taken of a picture, on the right the pixels that the network gets."
    return _section(
        "What a view shows", tag("p", told, class_="note"), tag("div", figures, class_="pictures")
    )


def nights(knob: Knob, settings: Sequence[Setting], album: Album | None) -> Element | None:
    """Sleep maps over the pictures, for every point that sleeps."""
    asleep = [each for each in settings if each.name and "sleep" in each.turned]
    if not asleep:
        return None
    if album is None:
        return _section("Where it sleeps", _no_pictures())
    figures = []
    for each in asleep:
        row = tag("div", album.asleep(knob, each.point), class_="nights")
        row.set("style", f"--columns: {len(album.images)}")
        caption = tag("h3", f"Number {each.name}: ", _words(each))
        figures.append(tag("figure", caption, row))
    told: list[Inside] = [
        "Of the multiplications made for each place of a picture, the part that sleeps: ",
        tag("span", "none", tag("i"), "all", class_="scale"),
        ". All layers together, each by its work; a map of the first seed. What a view leaves "
        "out is veiled.",
    ]
    return _section("Where it sleeps", tag("p", told, class_="note"), figures)


def measuring(knob: Knob) -> Element:
    """How the figures came about."""
    return _section("How it was measured", _pairs(how_measured(knob)))


def silences(knob: Knob) -> Element:
    """What does not follow from the figures."""
    return _section("What this does not say", tag("ul", [tag("li", t) for t in not_said(knob)]))


def model_card(knob: Knob, name: str) -> Element:
    """The network, and how to turn its knob."""
    contents, recipe, losses = knob.contents, knob.contents.recipe, Losses(knob.objective)
    awake = knob.awake
    told: list[tuple[str | Element, str | Element]] = [
        ("Name", name),
        ("Weights (SHA-256)", tag("code", contents.weights)),
        ("Input", " \u00d7 ".join(map(str, contents.image)) + " (channels, height, width)"),
        (
            "Awake",
            f"{METRICS[knob.objective].axis} {losses.written(awake.figure(knob.objective))} on "
            f"{_count(awake.images, 'image')}",
        ),
        ("Layers that can sleep", str(len(awake.schedule.layers))),
        (
            "How they sleep",
            f"maps by {recipe.source}, grain {recipe.grain}, rates in steps of 1/{recipe.k}, "
            f"sleepers filled by {recipe.fill}, correction: {recipe.correction}",
        ),
        ("Saves", f"{saves(knob.cost)}, {_count(len(knob.points), 'point')}"),
        ("Meant for", "pictures of the kind and framing that it was tuned on, and this machine"),
        (
            "To use it",
            tag("code", 'knob = drowsy.load("FILE.drowsy", model); knob.set(saving=0.5)'),
        ),
    ]
    return _section("Model card", _pairs(told))


def _section(title: str, *inside: object) -> Element:
    return tag("section", tag("h2", title), inside)  # type: ignore[arg-type]


def _pairs(told: Iterable[tuple[str | Element, str | Element]]) -> Element | None:
    parts = [[tag("dt", what), tag("dd", how)] for what, how in told]
    return tag("dl", parts) if parts else None


def _no_pictures() -> Element:
    return tag("p", "No example pictures were given to show it on.", class_="note")


def _numbers(names: Sequence[str]) -> str:
    return f"number{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
