"""The suite itself: what its tests are called, which of them want a GPU, and in what precision."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drowsy.backends import triton

ROOT = Path(__file__).parents[1]
COLLECT = """
import json, sys

class Listing:
    def pytest_collection_finish(self, session):
        print(json.dumps({item.nodeid: item.fixturenames for item in session.items}))

absent, *arguments = sys.argv[1:]
sys.modules.update(dict.fromkeys(absent.split()))
import pytest
sys.exit(pytest.main(["--collect-only", "-qq", "-o", "addopts=", *arguments], [Listing()]))
"""


def collected(*arguments: str, absent: str = "") -> dict[str, list[str]]:
    """Names and fixtures of the tests that pytest finds in a process without some modules."""
    found = subprocess.run(
        [sys.executable, "-c", COLLECT, absent, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "17"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return json.loads(next(line for line in found.stdout.splitlines() if line.startswith("{")))


def test_another_process_gives_the_tests_the_same_names(request: pytest.FixtureRequest) -> None:
    """Names without addresses or the order of sets, or pytest-xdist's processes disagree."""
    own = [item.nodeid for item in request.session.items]
    files = dict.fromkeys(str(item.path) for item in request.session.items)
    assert [name for name in collected(*files) if name in set(own)] == own


def test_the_gpu_stage_runs_what_touches_the_device_and_nothing_else() -> None:
    """With what the stage says it needs: torch, triton, pytest and pytest-benchmark."""
    script = (ROOT / "bench/gpu_session.sh").read_text(encoding="utf-8")
    (arguments,) = re.findall(r"^check\(\) .*?run pytest (.*?) \$workers", script, re.S | re.M)
    extras = "PIL matplotlib optuna pynvml ray safetensors tqdm"
    chosen = collected(*shlex.split(arguments), absent=extras)
    devices = {"triton_device", "cuda_device"}
    assert all(devices.intersection(fixtures) for fixtures in chosen.values())
    files = {name.partition("::")[0].removeprefix("tests/") for name in chosen}
    assert {
        "kernels/test_conv2d.py",
        "backends/test_agreement.py",
        "deployment/test_deploy.py",
    } < files
    assert len(chosen) > 500


def test_float32_is_not_tf32() -> None:
    assert triton.precision(torch.device("cuda")) == "ieee"
    assert not torch.backends.cuda.matmul.allow_tf32
