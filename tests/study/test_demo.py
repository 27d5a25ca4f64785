"""The demo: what it leaves behind is known to the commands that it names."""

from __future__ import annotations

import csv
import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from drowsy.cli import main
from drowsy.cli.arguments import parse
from drowsy.cli.knobs import look_into
from drowsy.cli.networks import model_info
from drowsy.study import demo

pytest.importorskip("safetensors", reason="needs safetensors")
pytest.importorskip("matplotlib", reason="needs matplotlib")


def squeezenet() -> nn.Module:
    """A network of a moment, always with the same weights."""
    torch.manual_seed(0)
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000)]
    return nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3), nn.ReLU(), *pooled).eval()


def test_the_commands_that_it_ends_with_find_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = torch.rand(4, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(demo, "squeezenet", squeezenet)
    monkeypatch.setattr(demo, "labelled_images", lambda: (pictures, torch.zeros(4)))
    monkeypatch.setattr(demo, "_MINUTES", 0.02)
    monkeypatch.setattr(demo, "_SECONDS", 0.1)
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a few images, and a busy machine, are told of
            assert main(["demo", "--out", str(tmp_path / "an out")]) == 0
    finally:
        torch.set_num_threads(threads)
    told = capsys.readouterr().out
    with open(tmp_path / "an out" / "knob.csv", newline="") as table:
        drawn = [(row["series"], row["setting"]) for row in csv.DictReader(table)]
    assert [setting for series, setting in drawn if "paper" in series] == ["1/8 asleep"]
    for series, setting in drawn:
        assert re.search(rf"^{series} +{setting}  ", told, re.M)
    commands = [shlex.split(line) for line in re.findall(r"^  python -m drowsy (.*)", told, re.M)]
    assert [command[0] for command in commands] == ["bench", "report"]
    for command in commands:
        few = ["--seconds", "0.1"] if command[0] == "bench" else []
        assert main([*command, *few]) == 0
    assert (tmp_path / "an out" / "squeezenet.html").exists()
    found, _ = look_into(parse(commands[0]))
    assert model_info(found).preprocess == demo._PREPROCESS
