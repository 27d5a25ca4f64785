"""How far a run is that may take so many minutes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from drowsy._optional import require


@contextmanager
def shown(minutes: float, progress: bool | None) -> Iterator[Callable[[str], None]]:
    """A function to tell what is being done, which shows how much of the time is over."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda doing: None
        return
    start = time.monotonic()
    form = "{desc}: {percentage:.0f}% of " + f"{minutes:g} min" + " |{bar}|"
    with require("tqdm", "search").tqdm(total=60 * minutes, bar_format=form) as bar:

        def tell(doing: str) -> None:
            bar.n = min(time.monotonic() - start, bar.total)
            bar.set_description_str(doing)

        yield tell
