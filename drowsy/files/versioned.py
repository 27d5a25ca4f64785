"""Reading JSON that has a format and a version: schedules, frontiers, calibrations.

Files are data from strangers: whatever they hold, reading ends soon, and an error names the place.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any


def read_json(path: str | os.PathLike[str]) -> Any:
    """Parse a JSON file; ValueError names the file when it is truncated or is no JSON."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    return parse_json(text, str(path))


def parse_json(text: str, where: str) -> Any:
    """Parse JSON in which no object has a name twice; ``where`` names it in errors."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = sorted(name for name, count in counts.items() if count > 1)
            raise ValueError(f"{where}: {', '.join(twice)}: given more than once")
        return found

    def integer(digits: str) -> int:
        try:
            return int(digits)
        except ValueError as error:  # Python reads a few thousand digits, no more
            raise ValueError(
                f"{where}: got an integer of {len(digits)} digits, allowed: as many as "
                f"{sys.get_int_max_str_digits()}"
            ) from error

    try:
        return json.loads(text, object_pairs_hook=unique, parse_int=integer)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error}); is the file truncated?") from error
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deeply, allowed: a few levels") from error


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that a float can hold; NaN and infinity are none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    # Compared and not converted, since an integer may have any number of digits.
    return -sys.float_info.max <= value <= sys.float_info.max


def check_header(data: Any, form: str, version: int, where: str) -> None:
    """Raise ValueError unless ``data`` is an object of this format and version."""
    if not isinstance(data, dict):
        raise ValueError(f"{where}: got {type(data).__name__}, allowed: an object")
    if data.get("format") != form:
        raise ValueError(f"{where}: format: got {data.get('format')!r}, allowed: {form!r}")
    if type(data.get("version")) is not int or data["version"] != version:
        raise ValueError(f"{where}: version: got {data.get('version')!r}, allowed: {version}")


def check_keys(data: Any, keys: set[str], where: str) -> None:
    """Raise ValueError unless ``data`` is an object with exactly these keys."""
    if not isinstance(data, dict):
        raise ValueError(f"{where}: got {type(data).__name__}, allowed: an object")
    if missing := keys - data.keys():
        raise ValueError(f"{where}: missing {', '.join(sorted(missing))}")
    if unknown := data.keys() - keys:
        raise ValueError(
            f"{where}: unknown {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(keys))}"
        )
