"""What a picture came to, as the page tells it."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from drowsy.live.lines import Line, tile
from drowsy.live.network import Network
from drowsy.live.viewer import CHECKED, Shot, Viewer
from drowsy.reporting.markup import tag
from drowsy.reporting.words import number
from drowsy.sensors import clock


def answers(shot: Shot, network: Network) -> list[Element]:
    """What the network says of a picture, and what is laid over the picture."""
    told = tag("p", f"{shot.picture.name}: {shot.seen}", class_="note")
    if not shot.answers:
        words = f"Its task is {network.task}: it puts out no classes to name."
        return [told, tag("p", words)]
    rows = []
    for name, share in shot.answers:
        bar = tag("i", tag("b", style=f"width:{100 * share:.0f}%"))
        rows.append(
            tag("div", tag("span", name), bar, tag("span", f"{share:.0%}"), class_="answer")
        )
    found = [told, tag("div", rows, class_="answers")]
    if network.names is None:
        unnamed = "Classes have numbers here: drowsy live --names FILE gives them names."
        found.append(tag("p", unnamed, class_="note unnamed"))
    return found


def tiles(shot: Shot, viewer: Viewer, network: Network) -> list[Element]:
    """The lines of the last minute."""
    now = clock.now()
    budgets = viewer.governing.budgets
    figures = shot.figures

    def line(name: str, title: str, form: str, told: str, scale: float = 1.0, **more: str) -> Line:
        value = figures[name]
        budget = budgets.get(name)
        return Line(
            name,
            title,
            "" if value is None else form.format(number(value * scale)),
            told,
            [(ago, scale * each) for ago, each in viewer.tracks[name].since(now)],
            budget,
            (0.0, 100.0 if scale == 100 else None),
            **more,
        )

    fraction, title = network.metric.is_fraction, network.metric.title
    multiplied = figures["multiplied"] or 0.0
    mega = f"of awake, {number(multiplied * network.multiplies / 1e6)} M"
    checks = f"{shot.checks} check{'' if shot.checks == 1 else 's'}, 1 in {CHECKED}"
    likeness = line(
        "likeness",
        f"{title[:1].upper()}{title[1:]} with awake",
        "{}%" if fraction else "{}",
        checks,
        100 if fraction else 1,
    )
    lines = [
        line("latency_ms", "Latency", "{} ms", "a picture"),
        line("multiplied", "Multiplications", "{}%", mega, 100),
        likeness,
    ]
    for name, title, form in (("watts", "Power", "{} W"), ("celsius", "Temperature", "{} \u00b0C")):
        told = "of the device" if figures[name] is not None else "not read just now"
        lines.append(line(name, title, form, told, why=viewer.unmeasured.get(name, "")))
    return list(map(tile, lines))
