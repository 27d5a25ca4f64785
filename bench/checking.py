"""The tests on a GPU: those first that say most, and none begun past a deadline.

    python -m pytest tests -m gpu -n 12 -p bench.checking --deadline 400

Of each test function, as few cases as show every value of every parameter (of a dataclass: of each
of its fields) once; those of the kernels before the others. Then every number format, grain, list
and activation has been compared, and what is left is combinations of them, which come last.

What fails is told at once. The summary says what came of each of the three parts, and when. Exit
code 5 where tests are left: the deadline had passed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch

_START = time.monotonic()
INCOMPLETE, LOST = 5, 7
PARTS = ("kernels, each value once", "the others, each value once", "combinations")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of benchmarks."""
    parser.getgroup("drowsy").addoption(
        "--deadline",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="skip tests that would start later than this after the session's start",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Count where reports arrive, not in the processes that run tests."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Summary(), "drowsy-checking")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort what was selected into the parts; a report knows its test's."""
    once = each_value_once(items)
    part = {}
    for item in items:
        of_kernels = "tests/kernels/" in item.nodeid
        part[item] = PARTS[2 if item not in once else 0 if of_kernels else 1]
        item.user_properties.append(("part", part[item]))
    items.sort(key=lambda item: PARTS.index(part[item]))


def each_value_once(items: Iterable[pytest.Item]) -> set[pytest.Item]:
    """Of each test function, cases that show every value of its parameters."""
    seen: set[Hashable] = set()
    found = set()
    for item in items:
        function = item.nodeid.split("[")[0]
        values: set[Hashable] = {(function, *each) for each in _values(item)} or {function}
        if values - seen:
            found.add(item)
        seen |= values
    return found


def _values(item: pytest.Item) -> Iterator[tuple[str, str]]:
    callspec = getattr(item, "callspec", None)
    for name, value in (callspec.params if callspec else {}).items():
        if is_dataclass(value):
            for field in fields(value):
                yield f"{name}.{field.name}", str(getattr(value, field.name))
        else:
            yield name, str(value)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what starts past the deadline, so that the summary is printed in time."""
    if time.monotonic() - _START > item.config.getoption("--deadline"):
        pytest.skip("not run: the deadline had passed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """End a process that has lost its GPU, in which every later test would fail too."""
    report: Any = yield  # type: ignore[misc]
    if report.failed and torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            if hasattr(item.config, "workerinput"):
                os._exit(LOST)  # pytest-xdist names the test and starts another process
            pytest.exit(f"{item.nodeid} cost this process its GPU", LOST)
    return report


class Summary:
    """Counts tests by what came of them, in each part."""

    def __init__(self) -> None:
        self.counts = {part: {"passed": 0, "failed": 0, "left": 0} for part in PARTS}
        self.ended = dict.fromkeys(PARTS, 0.0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one; tell a failure at once."""
        # A process that died has no report but its controller's, which knows no part.
        part = str(dict(report.user_properties).get("part", PARTS[-1]))
        counts, self.ended[part] = self.counts[part], time.monotonic() - _START
        if report.failed:
            counts["failed"] += 1
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message.splitlines()[0] if crash else ""
            print(f"\nFAILED {report.nodeid} {why}", flush=True)
        elif report.skipped:
            counts["left"] += "the deadline had passed" in str(report.longrepr)
        elif report.when == "call":
            counts["passed"] += 1

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Tests that are left show in the exit code."""
        if exitstatus == 0 and any(counts["left"] for counts in self.counts.values()):
            session.exitstatus = INCOMPLETE

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """One line for each part."""
        for part, counts in self.counts.items():
            said = ", ".join(f"{count} {what}" for what, count in counts.items())
            terminalreporter.line(f"{part}: {said}; {self.ended[part]:.0f} s after the start")
