"""What a page says of a knob for images alone: views, sleep maps, batches."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from drowsy.knob.point import OperatingPoint
from drowsy.reporting.markup import Inside, tag
from drowsy.reporting.pictures import Album, schema
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
from drowsy.reporting.words import how_measured, not_said
from drowsy.tuning.knob import Knob

_LEVERS = ("view", "format", "sleep")
_LEGEND = (
    "Bars are the sleep rates of the layers, the first on the left; a full bar is all of a layer's "
    "neurons. Boxes show what of the picture is taken."
)

_MEANT = "pictures of the kind and framing that it was tuned on, and this machine"
_CODE = 'knob = drowsy.load("FILE.drowsy", model); knob.set(saving=0.5)'


def parts(knob: Knob, name: str, album: Album | None) -> list[Element | None]:
    """The sections of the page, in the order in which they are read."""
    settings = settings_of(knob)
    return [
        heading(knob, name, settings),
        deals(knob, settings),
        frontier(knob, settings),
        table(knob, settings, columns(knob, _spent(knob))),
        lever_by_lever(knob, settings, _LEVERS, _drawn, _LEGEND),
        views(settings, album, "view"),
        nights(knob, settings, album),
        section("How it was measured", pairs(how_measured(knob))),
        silences(not_said(knob)),
        model_card(knob, name, _layers(knob), _MEANT, _CODE),
    ]


def _spent(knob: Knob) -> list[Column]:
    """What the table tells of what a setting takes."""
    time = f"ms / batch of {knob.batch}"
    found = [
        Column(time, time, lambda each: written(each.point.latency_ms), is_time=True),
        Column("images / s", "images / s", lambda each: written(_speed(each.point, knob.batch))),
    ]
    if any(point.joules is not None for point in knob.contents.points):
        found.append(Column("J / image", "J / image", lambda each: written(each.point.joules)))
    return found


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


def _layers(knob: Knob) -> list[tuple[str, str]]:
    recipe = knob.contents.recipe
    return [
        ("Layers that can sleep", str(len(knob.awake.schedule.layers))),
        (
            "How they sleep",
            f"maps by {recipe.source}, grain {recipe.grain}, rates in steps of 1/{recipe.k}, "
            f"sleepers filled by {recipe.fill}, correction: {recipe.correction}",
        ),
    ]
