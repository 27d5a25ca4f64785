"""The examples of the documentation run, in short time and without a download."""

from __future__ import annotations

import re
import runpy
import sys
import warnings
from functools import partial
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_nvml import FakeClock, FakeRapl
from torch import nn

import drowsy

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES, README = ROOT / "docs" / "examples", ROOT / "README.md"
# What each script tells, beside that it ends without an error: its checks are its own.
TELLS = {
    "turn_the_knob": r"0\.0% +100\.0%\n[\s\S]*\nconv5 +\d",
    "search_and_calibrate": r"agreement[\s\S]*chosen: 49\.\d% of .*\nerror of the logits: 0\.",
    "deploy": r"reads compact, writes compact\n[\s\S]*50\.0% \d\.\de-\d+ (\d|needs a GPU)",
    "measure_energy": r"cpu: (not )?metered[\s\S]*\n74\.1% +\d+\.\d",
    "layer_and_kernels": r"\n[.#]{8}\n[\s\S]*differ by \d\.\de-\d+ at most",
}


@pytest.mark.parametrize("name", TELLS)
def test_example(
    name: str, triton_device: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    told = capsys.readouterr().out
    assert re.search(TELLS[name], told), told


def test_the_first_lines_of_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they stand, for a folder of pictures; torchvision is made up, and minutes are few."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    (tmp_path / "FOLDER").mkdir()
    for n in range(12):
        pixels = np.random.default_rng(n).integers(0, 256, (240, 250, 3), np.uint8)
        image.fromarray(pixels).save(tmp_path / "FOLDER" / f"{n}.png")

    def resnet18(weights: str) -> nn.Module:
        torch.manual_seed(0)
        pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000)]
        return nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3), nn.ReLU(), *pooled)

    torchvision = SimpleNamespace(models=SimpleNamespace(resnet18=resnet18))
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)  # type: ignore[arg-type]
    quick = partial(drowsy.tune, minutes=0.05, cost="macs", levers="view")
    monkeypatch.setattr(drowsy, "tune", quick)
    monkeypatch.chdir(tmp_path)
    block = re.search(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)
    assert block is not None
    assert "drowsy.tune(" in block[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few images are told of
        found: dict[str, Any] = {}
        exec(block[1], found)
    assert "saved: of the multiplications" in capsys.readouterr().out
    assert found["logits"].shape == (8, 1000)
    again = drowsy.load(tmp_path / "resnet18.drowsy", found["model"])
    assert [p.saving for p in again.points] == [p.saving for p in found["knob"].points]


def test_energy_is_told_where_there_is_a_meter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Passing(FakeClock):
        """The time that passes, for a meter that is not there."""

        time = property(lambda _: perf_counter(), lambda *_: None)  # type: ignore[assignment]

    FakeRapl(tmp_path, Passing()).install(monkeypatch).add("intel-rapl:0", "package-0", 40.0)
    runpy.run_path(str(EXAMPLES / "measure_energy.py"))
    told = capsys.readouterr().out
    assert re.search(r"cpu: metered: .*package-0[\s\S]*idle: \d+\.\d W\nhalf asleep: \S+ J", told)
    row = re.search(r"^74\.1% +\S+ +\S+ - \S+ +(\S+)", told, re.M)
    assert row is not None
    assert float(row[1]) > 0


def test_examples_are_short_listed_and_public() -> None:
    scripts = {path.stem: path.read_text() for path in EXAMPLES.glob("*.py")}
    assert scripts.keys() == TELLS.keys()
    listed = re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\)", (EXAMPLES / "README.md").read_text(), re.M)
    assert listed == list(TELLS)
    for name, source in scripts.items():
        assert source.count("\n") < 60, name
        # Modules move; what a newcomer copies must not.
        assert not re.search(r"(from|import) drowsy(_kernels)?\.", source), name
