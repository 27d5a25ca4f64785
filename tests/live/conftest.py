"""A small knob with its network and pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_knob


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tiny_knob.Tuned]:
    yield tiny_knob.tune(tmp_path, monkeypatch)
    sys.modules.pop("nets", None)
