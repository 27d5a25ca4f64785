"""A small knob whose points are made up, its network as ``drowsy live`` finds it, and pictures."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from drowsy.evaluation.identity import fingerprint_state
from drowsy.files.provenance import provenance
from drowsy.images.preprocess import Preprocess
from drowsy.images.view import View
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import Schedule
from drowsy.live.network import Network
from drowsy.tuning.knob import Knob
from drowsy.tuning.knobfile import Contents
from drowsy.tuning.networks import made
from drowsy.tuning.recipe import Sleep
from drowsy.tuning.witness import Witness

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

NETWORK = """
import torch
from torch import nn
class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
    def forward(self, x):
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))
def build():
    torch.manual_seed(1)
    return Tiny()
"""
SIDE = 32
PREPROCESS = Preprocess(SIDE, SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
RECIPE = Sleep("ours", source="lattice", grain="position", aligned=True)
# What the three points save of the time, by the figures that are made up here.
SAVED = (0.0, 0.4, 0.6)


@dataclass
class Tuned:
    """A folder with ``nets.py``, ``tiny.drowsy`` and ``photos/``, and what is in it."""

    folder: Path
    model: nn.Module
    knob: Knob

    @property
    def file(self) -> Path:
        return self.folder / "tiny.drowsy"

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    def network(self, names: list[str] | None = None) -> Network:
        return Network(self.model, self.knob, PREPROCESS, names)


def tune(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tuned:
    """Write the network, its knob and six pictures."""
    (folder / "nets.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    model = importlib.import_module("nets").build().eval()
    knob = Knob(model, contents_of(model))
    knob.save(folder / "tiny.drowsy")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for n in range(6):
        pixels = rng.integers(0, 256, (SIDE, SIDE + 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"photo{n}.png")
    return Tuned(folder, model, knob)


def write_clip(path: Path, rate: int) -> Path:
    """Two frames, a dark one and a bright one, so many a second."""
    av = pytest.importorskip("av", reason='needs PyAV: pip install -e ".[video]"')
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv444p"
        for shade in (20, 200):
            pixels = np.full((40, 48, 3), shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def contents_of(model: nn.Module, batch: int = 1) -> Contents:
    """Awake; half asleep; half asleep on a smaller view of the middle."""
    net, _ = made(model, torch.rand(1, 3, SIDE, SIDE), RECIPE)
    awake = net.schedule
    net.set(Fraction(1, 2))
    asleep = net.schedule
    small = View.of((SIDE, SIDE), (20, 20), 0.75)

    def point(schedule: Schedule, saving: float, ms: float, loss: float, **more: Any) -> Any:
        measured = {"loss": loss, "interval": (loss - 0.01, loss + 0.01), "latency_ms": ms}
        return OperatingPoint(schedule, saving, top1=0.9 - loss, images=8, **measured, **more)

    return Contents(
        weights=fingerprint_state(model.state_dict()),
        witness=Witness.of(model, (3, SIDE, SIDE)),
        image=(3, SIDE, SIDE),
        recipe=RECIPE,
        points=(
            point(awake, 0.0, 10, 0.0),
            point(asleep, 0.45, 6, 0.05),
            point(asleep, 0.75, 4, 0.2, view=small),
        ),
        objective="top1",
        cost="latency",
        batch=batch,
        restores=False,
        stencils={},
        calibrations={},
        levers={},
        made={
            **provenance(),
            "task": "classification",
            "labelled": True,
            "network": {
                "model": "nets:build",
                "weights": None,
                "classes": 5,
                "resize": SIDE,
                "crop": SIDE,
                "mean": list(PREPROCESS.mean),
                "std": list(PREPROCESS.std),
            },
        },
    )
