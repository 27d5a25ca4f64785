"""Reading text, JSON, and JSON with a format and a version: schedules, frontiers, calibrations.

Files are data from strangers: whatever they hold, reading ends soon, and an error names the place.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from typing import Any

from drowsy.files.messages import legible, listed, quoted

# Far above any file of the project: frontiers of thousands of points have tens of megabytes.
_BYTES = 1 << 28
_LEVELS = 32


def read_text(path: str | os.PathLike[str], kind: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; errors tell its ``kind``.

    Raises:
        FileNotFoundError, IsADirectoryError, other OSError: the file cannot be opened.
        TypeError: no path, as a number, which would be an open file's.
        ValueError: it is larger than any text of the project, or not in UTF-8; names the file.
    """
    where = legible(os.fspath(path))
    with open(path, "rb") as file:
        data = file.read(_BYTES + 1)
    if len(data) > _BYTES:
        raise ValueError(f"{where}: is larger than {_BYTES >> 20} MiB, allowed: up to that")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not valid {kind} ({error})") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Parse a JSON file, as ``parse_json``; errors of ``read_text`` too. They name the file."""
    return parse_json(read_text(path, "JSON"), legible(path))


def parse_json(text: str, where: str) -> Any:
    """Parse JSON; ``where`` names it in errors.

    NaN and infinity, which are no JSON but which some write, come back as floats: who knows the
    field they stand in refuses them by its name (``is_number``).

    Raises:
        ValueError: no JSON, an object that has a name twice, an integer of too many digits, or
            lists and objects nested more deeply than any file of the project.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = (name for name, count in counts.items() if count > 1)
            raise ValueError(f"{where}: {listed(twice)}: given more than once")
        return found

    def integer(digits: str) -> int:
        try:
            return int(digits)
        except ValueError as error:  # Python reads a few thousand digits, no more
            raise ValueError(
                f"{where}: got an integer of {len(digits)} digits, allowed: as many as "
                f"{sys.get_int_max_str_digits()}"
            ) from error

    too_deep = ValueError(f"{where}: nested too deeply, allowed: a few levels")
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_int=integer)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error}); is the file truncated?") from error
    except RecursionError:
        raise too_deep from None
    # How deep Python's parser goes is its own affair; who walks through the value relies on less.
    if not _within(value, _LEVELS):
        raise too_deep
    return value


def _within(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested to so many levels at most."""
    inside = [value]
    for _ in range(levels + 1):
        nested = [each for each in inside if isinstance(each, (dict, list))]
        inside = [x for each in nested for x in (each.values() if isinstance(each, dict) else each)]
        if not nested:
            return True
    return False


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
        raise ValueError(f"{where}: format: got {quoted(data.get('format'))}, allowed: {form!r}")
    if type(data.get("version")) is not int or data["version"] != version:
        raise ValueError(f"{where}: version: got {quoted(data.get('version'))}, allowed: {version}")


def check_keys(data: Any, keys: set[str], where: str) -> None:
    """Raise ValueError unless ``data`` is an object with exactly these keys."""
    if not isinstance(data, dict):
        raise ValueError(f"{where}: got {type(data).__name__}, allowed: an object")
    if missing := keys - data.keys():
        raise ValueError(f"{where}: missing {', '.join(sorted(missing))}")
    if unknown := data.keys() - keys:
        raise ValueError(f"{where}: unknown {listed(unknown)}; allowed: {', '.join(sorted(keys))}")
