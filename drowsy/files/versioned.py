"""Reading JSON that has a format and a version: schedules, frontiers, calibrations."""

from __future__ import annotations

import json
import os
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
        names = [name for name, _ in pairs]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{where}: {', '.join(sorted(twice))}: given more than once")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error}); is the file truncated?") from error


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
