"""Where results come from."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from drowsy.files.provenance import provenance


@pytest.mark.parametrize(
    ("spec", "program", "told"),
    [
        (None, "/opt/bin/drowsy", "drowsy"),
        (SimpleNamespace(name="drowsy.__main__"), "/src/drowsy/__main__.py", "python -m drowsy"),
        (SimpleNamespace(name="bench.tuned"), "/src/bench/tuned.py", "python -m bench.tuned"),
        (SimpleNamespace(name="__main__"), "/src/folder", "folder"),
    ],
)
def test_a_command_is_told_as_it_is_given(
    spec: Any, program: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", [program, "report", "/home/me/net.drowsy", "--batch", "2"])
    assert provenance()["command"] == f"{told} report net.drowsy --batch 2"
