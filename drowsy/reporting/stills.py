"""What a page says of a knob for images alone: views, sleep maps, batches."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from drowsy.knob.metrics import METRICS
from drowsy.knob.point import OperatingPoint
from drowsy.reporting.markup import Inside, tag
from drowsy.reporting.pictures import Album, schema
from drowsy.reporting.sections import (
    Column,
    count,
    deals,
    frontier,
    heading,
    lever_by_lever,
    no_pictures,
    pairs,
    section,
    shortly,
    silences,
    table,
    views,
    words_of,
    written,
)
from drowsy.reporting.settings import Setting, settings_of
from drowsy.reporting.words import Losses, how_measured, not_said, percent, saves
from drowsy.tuning.knob import Knob

_LEVERS = ("view", "format", "sleep")
_LEGEND = (
    "Bars are the sleep rates of the layers, the first on the left; a full bar is all of a layer's "
    "neurons. Boxes show what of the picture is taken."
)


def parts(knob: Knob, name: str, album: Album | None) -> list[Element | None]:
    """The sections of the page, in the order in which they are read."""
    settings = settings_of(knob)
    return [
        heading(knob, name, settings),
        deals(knob, settings),
        frontier(knob, settings),
        table(knob, settings, columns(knob)),
        lever_by_lever(knob, settings, _LEVERS, _drawn, _LEGEND),
        views(settings, album, "view"),
        nights(knob, settings, album),
        section("How it was measured", pairs(how_measured(knob))),
        silences(not_said(knob)),
        model_card(knob, name),
    ]


def columns(knob: Knob) -> list[Column]:
    """What the table tells of a setting."""
    losses, metric = Losses(knob.objective), METRICS[knob.objective]
    saved, multiplications = f"{saves(knob.cost)} saved", f"{saves('macs')} saved"
    lost = f"lost ({losses.unit})" if losses.unit else "lost"
    time = f"ms / batch of {knob.batch}"
    found = [Column(saved, shortly(saved), lambda each: percent(each.saved))]
    if knob.cost != "macs":
        found.append(
            Column(
                multiplications,
                shortly(multiplications),
                lambda each: percent(each.point.saving),
            )
        )
    found.append(Column(time, time, lambda each: written(each.point.latency_ms), is_time=True))
    found.append(
        Column("images / s", "images / s", lambda each: written(_speed(each.point, knob.batch)))
    )
    if any(point.joules is not None for point in knob.contents.points):
        found.append(Column("J / image", "J / image", lambda each: written(each.point.joules)))
    return [
        *found,
        Column(
            metric.axis,
            metric.axis,
            lambda each: losses.written(each.point.figure(knob.objective)),
        ),
        Column(lost, lost, lambda each: losses.written(each.loss)),
        # Awake loses nothing against itself, which is no measurement.
        Column(
            "95% interval",
            "95%",
            lambda each: "" if each.point.is_awake else losses.between(each.interval),
        ),
    ]


def _speed(point: OperatingPoint, batch: int) -> float | None:
    """Images a second."""
    return 1e3 * batch / point.latency_ms if point.latency_ms else None


def _drawn(lever: str, setting: Setting) -> Element | None:
    if lever == "view" and setting.view is not None:
        return schema(setting.view)
    return _rates(setting) if lever == "sleep" else None


def _rates(setting: Setting) -> Element:
    """A bar a layer, as high as its rate."""
    rates = [float(layer.rate) for layer in setting.point.schedule.layers.values()]
    bars = "".join(
        f"M{n + 0.08:.2f} 1v{-rate:.4g}h.84v{rate:.4g}z" for n, rate in enumerate(rates) if rate
    )
    asleep = sum(rate > 0 for rate in rates)
    return tag(
        "svg",
        tag("title", f"{asleep} of {count(len(rates), 'layer')} asleep"),
        tag("rect", x=0, y=0, width=len(rates), height=1, class_="base"),
        tag("path", d=bars, class_="bar"),
        viewBox=f"0 0 {len(rates)} 1",
        preserveAspectRatio="none",
        class_="rates",
        role="img",
    )


def nights(knob: Knob, settings: Sequence[Setting], album: Album | None) -> Element | None:
    """Sleep maps over the pictures, for every point that sleeps."""
    asleep = [each for each in settings if each.name and "sleep" in each.turned]
    if not asleep:
        return None
    if album is None:
        return section("Where it sleeps", no_pictures())
    figures = []
    for each in asleep:
        row = tag("div", album.asleep(knob, each.point), class_="nights")
        row.set("style", f"--columns: {len(album.images)}")
        caption = tag("h3", f"Number {each.name}: ", words_of(each))
        figures.append(tag("figure", caption, row))
    told: list[Inside] = [
        "Of the multiplications made for each place of a picture, the part that sleeps: ",
        tag("span", "none", tag("i"), "all", class_="scale"),
        ". All layers together, each by its work; a map of the first seed. What a view leaves "
        "out is veiled.",
    ]
    return section("Where it sleeps", tag("p", told, class_="note"), figures)


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
            f"{count(awake.images, 'image')}",
        ),
        ("Layers that can sleep", str(len(awake.schedule.layers))),
        (
            "How they sleep",
            f"maps by {recipe.source}, grain {recipe.grain}, rates in steps of 1/{recipe.k}, "
            f"sleepers filled by {recipe.fill}, correction: {recipe.correction}",
        ),
        ("Saves", f"{saves(knob.cost)}, {count(len(knob.points), 'point')}"),
        ("Meant for", "pictures of the kind and framing that it was tuned on, and this machine"),
        (
            "To use it",
            tag("code", 'knob = drowsy.load("FILE.drowsy", model); knob.set(saving=0.5)'),
        ),
    ]
    return section("Model card", pairs(told))
