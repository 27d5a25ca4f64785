"""How far a run is that may take so many minutes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from drowsy._optional import require


class Tell(Protocol):
    """Told what is being done: a stage of the run, and what in it."""

    def __call__(self, stage: str, doing: str = "") -> None: ...


def silent(stage: str, doing: str = "") -> None:
    """Tells nobody."""


@contextmanager
def shown(minutes: float, progress: bool | None) -> Iterator[Tell]:
    """A function to tell what is being done, which shows how much of the time is over.

    On a terminal that is a bar. Elsewhere, where it is asked for, it is a line a stage.
    """
    terminal = sys.stderr.isatty()
    if not (terminal if progress is None else progress):
        yield silent
        return
    start = time.monotonic()
    if not terminal:
        yield _in_lines(start, minutes)
        return
    form = "{desc}: {percentage:.0f}% of " + f"{minutes:g} min" + " |{bar}|"
    with require("tqdm", "search").tqdm(total=60 * minutes, bar_format=form) as bar:

        def tell(stage: str, doing: str = "") -> None:
            bar.n = min(time.monotonic() - start, bar.total)
            bar.set_description_str(f"{stage}, {doing}" if doing else stage)

        yield tell


def _in_lines(start: float, minutes: float) -> Tell:
    """A line at the beginning of every stage."""
    present = ""

    def tell(stage: str, doing: str = "") -> None:
        nonlocal present
        if stage != present:
            taken = (time.monotonic() - start) / 60
            print(f"{taken:.1f} of {minutes:g} min: {stage}", file=sys.stderr, flush=True)
        present = stage

    return tell
