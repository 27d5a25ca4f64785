"""The page: what a viewer sees and turns, in NiceGUI's elements (extra ``live``)."""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from drowsy._optional import require
from drowsy.knob.point import OperatingPoint
from drowsy.live.budgets import OFFERED
from drowsy.live.feed import Feed
from drowsy.live.hands import KnobHand
from drowsy.live.network import Network
from drowsy.live.sensing import Sensing
from drowsy.live.style import STYLE
from drowsy.live.telling import answers, tiles
from drowsy.live.viewer import Shot, Viewer
from drowsy.reporting.markup import tag
from drowsy.reporting.sections import chart_key, charts
from drowsy.reporting.settings import axes, settings_of
from drowsy.reporting.words import percent

log = logging.getLogger("drowsy.live")

# Viewers at once: each takes its part of one device.
MOST_VIEWERS = 8
# Seconds between two looks for a new picture.
_TICK = 0.08
_ALL_LAYERS = "all layers"


class Page:
    """Builds the page for each viewer.

    Args:
        title: of the network.
        network, feed, sensing, refresh: as for ``Viewer``.
    """

    def __init__(
        self,
        title: str,
        network: Network,
        feed: Feed,
        sensing: Sensing,
        refresh: str | None = None,
    ) -> None:
        self.title, self.network, self.feed = title, network, feed
        self.sensing, self.refresh = sensing, refresh
        self._settings = settings_of(network.knob)

    def build(self) -> None:
        """The elements of one viewer, who is the browser that asks just now."""
        ui = require("nicegui", "live").ui
        ui.add_css(STYLE)
        _html(
            ui,
            [
                tag("h1", f"{self.title}, live"),
                tag("p", f"Shown: {self.feed.title}.", class_="note"),
            ],
        )
        if self.feed.viewers >= MOST_VIEWERS:
            _html(ui, tag("p", f"{MOST_VIEWERS} viewers look already. Come back when one leaves."))
            return
        _Desk(ui, self, Viewer(self.network, self.feed, self.sensing, self.refresh))

    def frontier(self, point: OperatingPoint | None) -> list[Element]:
        """The knob's points as a picture, the present one ringed."""
        knob = self.network.knob
        told = "Further left costs less, further down loses less. "
        told += (
            "None is ringed: a stream's settings are none of the knob's."
            if point is None
            else "The point in force is ringed."
        )
        (axis, *_) = axes(knob)
        drawn = charts(knob, self._settings, axis, point)
        return [
            tag("h2", "What it costs, what it loses"),
            chart_key(self._settings),
            tag("figure", drawn, tag("figcaption", told)),
        ]


class _Desk:
    """One viewer's elements.

    Args:
        ui: NiceGUI's.
        page: whose page it is.
        viewer: what is set here.
    """

    def __init__(self, ui: Any, page: Page, viewer: Viewer) -> None:
        self._page, self._viewer = page, viewer
        self._io = require("nicegui", "live").run.io_bound
        self._wish: float | None = None
        self._asked = 0.0
        self._ringed: OperatingPoint | None = None
        with ui.element("div").classes("top"):
            with ui.element("div").classes("card see"):
                self._image = ui.interactive_image().classes("shown").props('alt="what is shown"')
                with ui.element("div").classes("body"):
                    self._answers = _html(ui, "waiting for the first picture")
            with ui.element("div"):
                with ui.element("div").classes("card turn"):
                    self._controls(ui)
                self._tiles = _html(ui, None).classes("tiles")
        self._frontier = _html(ui, None).classes("frontier")
        self._show_frontier(viewer.point)
        self._say()
        ui.timer(_TICK, self._tick)
        ui.context.client.on_delete(viewer.close)

    def _controls(self, ui: Any) -> None:
        hand = self._viewer.hand
        self._told = _html(ui, None)
        most = max(int(100 * hand.most + 1e-9), 1)
        self._slider = _slider(ui, min=0, max=most, step=1, value=0, on_change=self._turned)
        self._slider.props(f'aria-label="save at least, in % of {hand.saves}"')
        _html(ui, tag("h3", "Budgets, which the governor holds by turning the slider itself"))
        self._budgets = {}
        with ui.element("div").classes("budgets"):
            for budget in OFFERED:
                field = ui.number(f"max {budget.unit}", min=0, on_change=self._bound)
                field.props("debounce=500 clearable dense").classes(f"budget-{budget.name}")
                field.set_enabled(budget.name not in self._viewer.unholdable)
                self._budgets[budget.name] = field
        self._governor = _html(ui, None).classes("governor note")
        if unholdable := self._viewer.unholdable:
            titles = {budget.name: budget.title for budget in OFFERED}
            reasons = [tag("p", f"{titles[name]}: {why}") for name, why in unholdable.items()]
            what = "Some cannot be held here" if len(reasons) < len(OFFERED) else "None can be held"
            _html(ui, tag("details", tag("summary", f"{what}: why"), reasons))
        if isinstance(hand, KnobHand) and any(
            map(self._page.network.knob.share_asleep, hand.points)
        ):
            layers = [_ALL_LAYERS, *self._page.network.knob.awake.schedule.layers]
            chosen = ui.select(layers, value=_ALL_LAYERS, label="who sleeps, of")
            chosen.props("dense").classes("layer").on_value_change(self._chosen)

    # --- what the viewer does -----------------------------------------------------------------

    def _turned(self, event: Any) -> None:
        # Where a governor turns, the slider follows and asks for nothing.
        if not self._viewer.governing.budgets:
            self._wish = self._asked = event.value / 100

    async def _bound(self) -> None:
        given = {name: field.value for name, field in self._budgets.items()}
        budgets = {name: value for name, value in given.items() if value is not None}
        try:
            await self._io(self._viewer.hold, budgets)
        except ValueError as error:
            self._say(str(error))
            return
        self._slider.set_enabled(not budgets)
        self._say()

    def _chosen(self, event: Any) -> None:
        self._viewer.layer = None if event.value == _ALL_LAYERS else event.value

    # --- what comes of it ---------------------------------------------------------------------

    async def _tick(self) -> None:
        wish, self._wish = self._wish, None
        try:
            if wish is not None:
                await self._io(self._viewer.save, wish)
            shot = await self._io(self._viewer.look)
        except Exception as error:  # of the network or a sensor: the page stays, and says so
            log.exception("a picture failed")
            self._say(f"{type(error).__name__}: {error}")
            return
        if shot is not None:
            self._show(shot)
        elif wish is not None:
            self._say()
        if self._page.feed.why:
            self._say(f"There are no more pictures: {self._page.feed.why}")

    def _show(self, shot: Shot) -> None:
        self._image.set_source(shot.image)
        _put(self._answers, answers(shot, self._page.network))
        _put(self._tiles, tiles(shot, self._viewer, self._page.network))
        if self._viewer.governing.budgets:
            self._slider.set_value(round(100 * shot.saved))
        self._show_frontier(shot.point)
        self._say()

    def _show_frontier(self, point: OperatingPoint | None) -> None:
        if point is not self._ringed or not self._frontier.content:
            self._ringed = point
            _put(self._frontier, self._page.frontier(point))

    def _say(self, problem: str = "") -> None:
        """What is set, and what the governor does or what is wrong."""
        hand = self._viewer.hand
        saved = f"Saves {percent(hand.saved)} of its {hand.saves}"
        told = hand.told
        if self._asked and not self._viewer.governing.budgets:
            told += f" (asked for at least {percent(self._asked)})"
        _put(self._told, [tag("div", saved, class_="saved"), tag("div", told, class_="setting")])
        governing = tag("span", problem, class_="slow") if problem else self._viewer.governing.told
        _put(self._governor, governing)


def _slider(ui: Any, **options: Any) -> Any:
    """A slider that follows the hand at once, and not when the server has heard of it."""

    class Slider(ui.slider):
        LOOPBACK = False

    return Slider(**options)


def _html(ui: Any, inside: Any) -> Any:
    """An element that holds markup of ours, whose texts are escaped."""
    made = ui.html("", sanitize=False)
    _put(made, inside)
    return made


def _put(element: Any, inside: str | Element | Sequence[Any] | None) -> None:
    whole = ET.tostring(tag("div", inside), encoding="unicode", method="html")
    element.set_content(whole[len("<div>") : -len("</div>")])
