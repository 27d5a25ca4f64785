"""Who may see the page, and what is turned away."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from drowsy.live.gate import Gate

TOKEN = "a-token-of-43-characters-as-they-are-made-here"


class Page:
    """Stands for the page: answers 200, and accepts sockets."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"the page"})


def asked(
    token: str | None,
    *,
    kind: str = "http",
    method: str = "GET",
    query: str = "",
    **headers: str,
) -> tuple[Any, dict[str, str]]:
    """What a request comes to: a status, or what a socket is told; and the headers."""
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request"}

    scope = {
        "type": kind,
        "method": method,
        "path": "/",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    gate = Gate(Page(), token, "drowsy_1")
    asyncio.run(gate(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0].get("headers", ())}
    return sent[0].get("status", sent[0]["type"]), found


@pytest.mark.parametrize("host", ["127.0.0.1:8321", "localhost:8321", "[::1]:8321"])
def test_this_machine_needs_no_token(host: str) -> None:
    status, headers = asked(None, host=host)
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    assert asked(None, kind="websocket", host=host, origin=f"http://{host}")[0].endswith("accept")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8321", "[", ""])
def test_another_name_for_this_machine_is_turned_away(host: str) -> None:
    assert asked(None, host=host)[0] == 403
    assert asked(None, kind="websocket", host=host)[0] == "websocket.close"


def test_others_bring_the_token_once() -> None:
    assert asked(TOKEN, host="lab:8321")[0] == 403
    for wrong in ("", TOKEN[:-1], TOKEN + "x", "\u00e9"):
        assert asked(TOKEN, query=f"token={wrong}", host="lab:8321")[0] == 403
        assert asked(TOKEN, cookie=f"drowsy_1={wrong}", host="lab:8321")[0] == 403
    status, headers = asked(TOKEN, query=f"token={TOKEN}", host="lab:8321")
    assert (status, headers["location"]) == (303, "/")
    cookie, *rules = headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Lax"} <= set(rules)
    assert asked(TOKEN, host="lab:8321", cookie=cookie)[0] == 200
    assert asked(TOKEN, host="lab:8321", cookie=cookie.replace("_1", "_2"))[0] == 403


def test_sockets_are_opened_by_the_page_alone() -> None:
    kept = {"host": "lab:8321", "cookie": f"drowsy_1={TOKEN}"}
    for origin, told in (("http://lab:8321", "accept"), ("http://evil.example", "close")):
        assert asked(TOKEN, kind="websocket", origin=origin, **kept)[0] == f"websocket.{told}"
    # A page of somebody else's on this machine, at another port.
    local = {"host": "localhost:8321", "origin": "http://localhost:9999"}
    assert asked(None, kind="websocket", **local)[0] == "websocket.close"
    # The address is not read for sockets: only the cookie opens them.
    found = asked(TOKEN, kind="websocket", query=f"token={TOKEN}", host="lab:8321")
    assert found[0] == "websocket.close"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_is_taken_in(method: str) -> None:
    assert asked(None, method=method, host="localhost:8321")[0] == 405
    assert asked(TOKEN, method=method, host="lab", cookie=f"drowsy_1={TOKEN}")[0] == 405
