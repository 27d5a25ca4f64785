"""What was measured on this machine while a knob was tuned: a run that resumes decides alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from drowsy.evaluation.store import MEMORY
from drowsy.files.atomic import write_json
from drowsy.files.messages import legible
from drowsy.files.versioned import check_header, check_keys, read_json

FORMAT, VERSION = "drowsy.journal", 1


class Journal:
    """Values by key, JSON-able; each is measured once and written at once.

    Args:
        path: of its file; None keeps it in memory.
        about: what the values belong to, JSON-able; a file of something else is begun anew.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no journal.
    """

    def __init__(self, path: str | os.PathLike[str] | None, about: Mapping[str, Any]) -> None:
        self._path, self._about = path, dict(about)
        self._values: dict[str, Any] = {}
        if path is not None and Path(path).exists():
            data, where = read_json(path), legible(path)
            check_header(data, FORMAT, VERSION, where)
            check_keys(data, {"format", "version", "about", "values"}, where)
            if not isinstance(data["values"], dict):
                raise ValueError(f"{where}: values: allowed: an object")
            if data["about"] == self._about:
                self._values = data["values"]

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """What is known by this key, or measured now."""
        if key not in self._values:
            self._values[key] = measure()
            if self._path is not None:
                whole = {"format": FORMAT, "version": VERSION, "about": self._about}
                write_json(self._path, {**whole, "values": self._values})
        return self._values[key]


def beside(store: str | os.PathLike[str] | None) -> str | None:
    """The path of the journal of a run with such a store; None: in memory, as its results are."""
    return None if store is None or store == MEMORY else f"{os.fsdecode(store)}.journal"
