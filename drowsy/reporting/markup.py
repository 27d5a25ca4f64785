"""Elements of a page; whatever text they hold is escaped where they are written."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from typing import Union
from xml.etree.ElementTree import Element

Inside = Union[str, Element, None, Iterable["Inside"]]  # noqa: UP007 (of itself)
"""What stands in an element: text, elements, any of them in lists; None is nothing."""


def tag(name: str, /, *inside: Inside, **attributes: str | float | None) -> Element:
    """An element. ``class_`` is the attribute ``class``, ``stroke_width`` is ``stroke-width``.

    Numbers are written to a hundredth; attributes that are None are left out.
    """
    element = Element(name)
    for key, value in attributes.items():
        if value is not None:
            text = value if isinstance(value, str) else f"{round(value, 2) + 0.0:g}"
            element.set(key.rstrip("_").replace("_", "-"), printable(text))
    _fill(element, inside)
    return element


def _fill(element: Element, inside: Inside) -> None:
    if inside is None:
        return
    if isinstance(inside, Element):
        element.append(inside)
    elif isinstance(inside, str):
        text = printable(inside)
        if len(element):
            element[-1].tail = (element[-1].tail or "") + text
        else:
            element.text = (element.text or "") + text
    else:
        for each in inside:
            _fill(element, each)


def printable(text: str) -> str:
    """The text with line breaks as spaces and a sign in the place of what cannot be shown."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def document(title: str, style: str, *body: Inside) -> str:
    """A whole page, which may fetch nothing: its own policy forbids the browser to."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    rules = Element("style")
    rules.text = style
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        rules,
    )
    page = tag("html", head, tag("body", *body), lang="en")
    return "<!DOCTYPE html>\n" + ET.tostring(page, encoding="unicode", method="html") + "\n"
