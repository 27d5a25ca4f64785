"""Starts the page: where it listens, and with what token."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass

from drowsy._optional import require
from drowsy.live.feed import Feed
from drowsy.live.gate import LOOPBACK, TOKEN, Gate
from drowsy.live.network import Network
from drowsy.live.page import Page
from drowsy.live.sensing import Sensing

# A message of a browser, at most: it turns a slider.
_LARGEST = 1 << 16


@dataclass(frozen=True)
class Show:
    """What a page shows.

    Args:
        title: of the network.
        network, feed, sensing: what viewers share.
        refresh: of streams (``drowsy.Stream``); None turns the knob.
    """

    title: str
    network: Network
    feed: Feed
    sensing: Sensing
    refresh: str | None = None


def check_serving(host: str, port: int) -> None:
    """Raise where nothing can be served, before anything is loaded for it.

    Raises:
        OSError: nobody can listen there.
        ImportError: the packages of the extra ``live`` are not installed.
    """
    require("nicegui", "live")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise OSError(
                f"host, port: got {host}, {port} ({error.strerror or error}), allowed: an address "
                "of this machine and a port that is free"
            ) from error


def serve(show: Show, host: str, port: int, tell: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted.

    On another address than this machine's own it takes a token, which is made here and is in the
    address that is told.

    Args:
        show: what is on it.
        host, port: where to listen; ``check_serving`` has passed them.
        tell: called with a line for whoever started it.

    Raises:
        ImportError: the packages of the extra ``live`` are not installed.
    """
    nicegui = require("nicegui", "live")
    token = None if host in LOOPBACK else secrets.token_urlsafe()
    page = Page(show.title, show.network, show.feed, show.sensing, show.refresh)
    nicegui.app.add_middleware(Gate, token=token, cookie=f"drowsy_{port}")

    async def welcome() -> None:
        await _open(host, port)
        tell(_address(host, port, token))

    nicegui.app.on_startup(welcome)
    try:
        nicegui.ui.run(
            page.build,
            host=host,
            port=port,
            title=f"{show.title}, live",
            favicon="\U0001f4a4",
            dark=None,
            tailwind=False,
            reload=False,
            show=False,
            show_welcome_message=False,
            message_history_length=0,
            ws_max_size=_LARGEST,
            server_header=False,
        )
    finally:
        show.sensing.close()


async def _open(host: str, port: int) -> None:
    """Wait until it listens."""
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return


def _address(host: str, port: int, token: str | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    if token is None:
        return f"http://{shown}:{port}/ (for this machine alone; --host shows it to others)"
    if host in ("0.0.0.0", "::"):
        shown = socket.gethostname()
    return f"http://{shown}:{port}/?{TOKEN}={token} (whoever has this address may look)"
