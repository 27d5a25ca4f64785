"""The page as a reader has it: the command started, and looked at in a browser without a screen."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_knob import Tuned, write_clip

pytest.importorskip("nicegui", reason='needs NiceGUI: pip install -e ".[live]"')

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Without a screen, and nothing that a browser does on its own account.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@contextmanager
def served(
    tuned: Tuned, *arguments: str, shown: tuple[str, str] = ("--data", "photos")
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command at work: the address that it tells, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "drowsy",
        "live",
        "tiny.drowsy",
        "--model",
        "nets:build",
        *shown,
    ]
    # NiceGUI serves tests of its own where it finds pytest's variables.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    with subprocess.Popen(
        [*command, "--port", str(port), *arguments],
        cwd=tuned.folder,
        # As many threads as made the knob's file, or its points are measured anew.
        env={**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        told = ""
        for line in process.stderr:
            told += line
            if found := re.match(r"(http://\S+) \(", line):
                break
        else:
            pytest.fail(told)
        try:
            yield found[1], process
        finally:
            process.kill()


def asked(address: str, **more: Any) -> int:
    """The status that a request comes to."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, **more)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


class Reader:
    """A browser with one page, and whatever went wrong in it."""

    def __init__(self, browser: Any, address: str, size: dict[str, int]) -> None:
        self.page = browser.new_context(viewport=size).new_page()
        self.wrong: list[str] = []
        # Where pages lead elsewhere, too, is wrong.
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", lambda request: self.wrong.append(request.url))
        self.page.on("request", lambda request: self._check(request.url, address))
        self.page.goto(address)
        self.page.wait_for_selector(".tile")

    def _check(self, url: str, address: str) -> None:
        if not url.startswith((address.partition("?")[0], "data:")):
            self.wrong.append(url)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def waits_for(self, selector: str, text: str) -> None:
        self.page.locator(selector, has_text=text).first.wait_for(timeout=30_000)

    def slide(self, key: str, times: int = 1) -> None:
        self.page.locator(".q-slider__track-container").focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def picture(self) -> str:
        return self.page.locator(".shown img").get_attribute("src") or ""

    def next_picture(self) -> str:
        before = self.picture()
        self.page.wait_for_function(
            "before => document.querySelector('.shown img').src !== before", arg=before
        )
        return self.picture()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser, one of {', '.join(BROWSERS)}: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=QUIET)
        yield started
        started.close()


def test_two_readers_turn_one_network(tuned: Tuned, browser: Any) -> None:
    with served(tuned) as (address, process):
        one, other = Reader(browser, address, DESK), Reader(browser, address, PHONE)
        assert one.text("h1") == "nets:build, live"
        assert one.text(".saved") == "Saves 0% of its time"
        assert len({one.picture(), one.next_picture(), one.next_picture()}) == 3
        # The slider asks for at least so much, and the server tells what that comes to.
        one.slide("ArrowRight", 3)
        one.waits_for(".saved", "Saves 40% of its time")
        one.waits_for(".setting", "50% asleep (asked for at least 3%)")
        other.slide("PageUp", 6)
        other.waits_for(".saved", "Saves 60% of its time")
        for _ in range(3):
            assert one.next_picture() != other.next_picture()
        assert one.text(".saved") == "Saves 40% of its time"
        assert "50% of all layers' work" in one.text(".note >> nth=1")
        # The other way of looking at who sleeps.
        one.page.locator(".layer").click()
        one.page.get_by_role("option", name="two").click()
        one.waits_for(".note", "of two's work")
        # A budget takes the slider, and gives it back.
        field = one.page.locator(".budget-latency_ms input")
        field.fill("0.000001")
        one.waits_for(".governor", "No point holds")
        one.waits_for(".saved", "Saves 60% of its time")
        assert one.page.locator(".q-slider.disabled").count() == 1
        field.fill("")
        one.page.locator(".q-slider:not(.disabled)").wait_for()
        one.slide("PageDown", 6)
        one.waits_for(".saved", "Saves 0% of its time")
        assert other.text(".saved") == "Saves 60% of its time"
        for reader in (one, other):
            told = reader.text(".tiles")
            assert "Latency" in told
            assert "Agreement with awake" in told
            whole, shown = reader.page.evaluate(
                "[document.documentElement.scrollWidth, window.innerWidth]"
            )
            assert whole <= shown
            assert reader.page.locator(".chart circle.present").count() == 2
            assert reader.wrong == []
        # What no reader does.
        assert asked(address, method="POST", data=b"x") == 405
        assert asked(address, headers={"Host": "evil.example"}) == 403
        left = {path.name for path in tuned.folder.iterdir()} - {"__pycache__"}
        assert left == {"nets.py", "photos", "tiny.drowsy"}
        process.send_signal(signal.SIGINT)
        # Where the tests were begun with Ctrl-C ignored, as a background job, Python hears of none.
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert process.wait(20) == (0 if ignored else 130)


def test_a_budget_turns_the_rate_of_a_stream(tuned: Tuned, browser: Any) -> None:
    clip = str(write_clip(tuned.folder / "clip.mkv", rate=10))
    with served(tuned, "--refresh", "quads", shown=("--video", clip)) as (address, _):
        reader = Reader(browser, address, DESK)
        assert reader.text(".saved") == "Saves 0% of its multiplications"
        assert reader.page.locator(".budget-watts input").is_disabled()
        field = reader.page.locator(".budget-latency_ms input")
        field.fill("100000")
        reader.waits_for(".governor", "The governor holds 100,000 ms.")
        assert reader.page.locator(".q-slider.disabled").count() == 1
        field.fill("0.000001")
        reader.waits_for(".governor", "No point holds")
        field.fill("")
        reader.page.locator(".q-slider:not(.disabled)").wait_for()
        reader.slide("PageUp", 6)
        reader.waits_for(".setting", "quads, 3/4 of the picture asleep (asked for at least 60%)")
        assert "Classes have numbers here" in reader.text(".unnamed")
        assert reader.wrong == []


def test_another_address_takes_a_token(tuned: Tuned, browser: Any) -> None:
    with served(tuned, "--host", "127.0.0.2") as (address, _):
        bare, _, token = address.partition("?token=")
        assert len(token) >= 43
        assert asked(bare) == 403
        assert asked(f"{bare}?token={token[:-1]}") == 403
        reader = Reader(browser, address, DESK)
        assert reader.page.url == bare
        reader.next_picture()
        assert reader.wrong == []
