"""How tests read a page: its elements and texts, and what it refers to."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """A page's elements and texts; fails where a tag is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [each for _, each in self.tags if name in (each.get("class") or "").split()]


def references(page: Page) -> Iterator[str]:
    """Whatever a browser might fetch."""
    for _, attributes in page.tags:
        for name in ("href", "src", "xlink:href", "action", "data", "poster", "srcset"):
            if attributes.get(name) is not None:
                yield str(attributes[name])
