"""Text and JSON of strangers: what is read, and that reading ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drowsy.files import versioned
from drowsy.files.versioned import parse_json, read_json, read_text


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("value", [1, "a", [], {}, {"a": [1, {"b": None}]}, json.loads(nested(32))])
def test_json_is_read(tmp_path: Path, value: Any) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "a.json") == value
    # As some editors save it: with a byte order mark.
    (tmp_path / "a.json").write_text(json.dumps(value), encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize(
    "text",
    [nested(33), nested(900), nested(10**5), '{"a":' * 33 + "1" + "}" * 33],
    ids=["33 lists", "900 lists", "100,000 lists", "33 objects"],
)
def test_deep_json_is_refused_however_deep_the_parser_goes(text: str) -> None:
    with pytest.raises(ValueError, match=r"^here: nested too deeply, allowed: a few levels$"):
        parse_json(text, "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a\\n": 1, "a\\n": 2}', r"here: 'a\\n': given more than once"),
        ("[" + "9" * 5000 + "]", "here: got an integer of 5000 digits, allowed: as many as "),
        ("[1, 2", r"here: not valid JSON .*truncated\?"),
        ("", r"here: not valid JSON .*truncated\?"),
    ],
)
def test_bad_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text, "here")


def test_a_file_that_is_larger_than_any_of_the_project_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versioned, "_BYTES", 1 << 20)
    path = tmp_path / "a.json"
    path.write_text(" " * ((1 << 20) - 1) + "1")
    assert read_json(path) == 1
    path.write_text(" " * (1 << 20) + "1")
    with pytest.raises(ValueError, match=r"a\.json: is larger than 1 MiB, allowed: up to that"):
        read_json(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_json(tmp_path / "none.json")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        read_json(tmp_path)
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"/a: not valid CSV \(.*byte 0xff"):
        read_text(tmp_path / "a", "CSV")


def test_an_open_files_number_is_no_path(tmp_path: Path) -> None:
    with open(tmp_path / "x.json", "w+") as file:
        with pytest.raises(TypeError):
            read_json(file.fileno())  # type: ignore[arg-type]
        file.write("still open")
