"""The suite itself: what its tests are called, and which of them want a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_another_process_gives_the_tests_the_same_names(request: pytest.FixtureRequest) -> None:
    """Names without addresses or the order of sets, or pytest-xdist's processes disagree."""
    files = list(dict.fromkeys(item.path for item in request.session.items))
    listing = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-o", "addopts="]
    found = subprocess.run(
        [*listing, *map(str, files)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": "17"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    names = [line for line in found.stdout.splitlines() if "::" in line]
    own = {item.nodeid for item in request.session.items}
    assert [name for name in names if name in own] == [
        item.nodeid for item in request.session.items
    ]
