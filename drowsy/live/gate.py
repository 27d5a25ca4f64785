"""Who may see the page: an ASGI application around another one.

On this machine alone, whoever asks by another name than this machine's is turned away: a page of
somebody else's whose name leads here would otherwise be let in by the reader's own browser. For all
machines, whoever does not bring the token is. Sockets are opened by the page itself alone. Nothing
is ever taken in: requests only fetch.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN = "token"
# What a browser may do with the page: nothing of it leads elsewhere.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Gate:
    """Lets requests through to an application, or turns them away.

    Args:
        app: ASGI.
        token: that requests must bring, in the address once and in a cookie from then on; None
            where the page is for this machine alone.
        cookie: its name.
    """

    def __init__(self, app: Application, token: str | None, cookie: str) -> None:
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        brought = parse_qs(scope["query_string"].decode("latin-1")).get(TOKEN, [""])[0]
        if scope["type"] == "websocket":
            allowed = self._may_see(headers, "") and _of_the_page(headers)
            if allowed:
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
        elif scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, "This page takes nothing in.")
        elif not self._may_see(headers, brought):
            await _answer(send, 403, self._refusal)
        elif brought and self._token is not None:
            # The token leaves the address, where others could read it.
            value = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Lax"
            await _answer(send, 303, "", (b"location", b"/"), (b"set-cookie", value.encode()))
        else:
            await self._app(scope, receive, _with_headers(send))

    @property
    def _refusal(self) -> str:
        if self._token is None:
            return "This page is for the machine that it runs on, by the name localhost."
        return "This page needs the address that `drowsy live` printed, with its token."

    def _may_see(self, headers: dict[bytes, str], brought: str) -> bool:
        if self._token is None:
            return _host(headers.get(b"host", "")) in LOOPBACK
        try:
            kept = SimpleCookie(headers.get(b"cookie", "")).get(self._cookie)
        except CookieError:
            kept = None
        given = brought or ("" if kept is None else kept.value)
        return hmac.compare_digest(given.encode(), self._token.encode())


def _host(asked: str) -> str | None:
    """The name in a header ``Host``; None where it holds none."""
    try:
        return urlsplit(f"//{asked}").hostname
    except ValueError:
        return None


def _of_the_page(headers: dict[bytes, str]) -> bool:
    """Whether a socket is opened by a page of this server, as browsers tell."""
    origin = headers.get(b"origin")
    return origin is None or origin.partition("://")[2] == headers.get(b"host")


def _with_headers(send: Send) -> Send:
    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return sent


async def _answer(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    kind = (b"content-type", b"text/plain; charset=utf-8")
    start = {"type": "http.response.start", "status": status}
    await send({**start, "headers": [kind, *headers, *_HEADERS]})
    await send({"type": "http.response.body", "body": text.encode()})
