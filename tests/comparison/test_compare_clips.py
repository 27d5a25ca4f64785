"""Ways to spend less on clips, side by side."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from drowsy.comparison.clips import clips_table, compare_clips, write_clips
from drowsy.video.motions import moved

HALF, MOST = Fraction(1, 2), Fraction(3, 4)


class Classifier(nn.Module):
    """Four convolutions and a label, or a map of labels."""

    def __init__(self, dense: bool = False) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, stride, 1)
            for inputs, outputs, stride in ((3, 8, 2), (8, 8, 1), (8, 16, 2), (16, 16, 1))
        )
        self.dense = dense
        self.head: nn.Module = nn.ConvTranspose2d(16, 5, 4, 4) if dense else nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.relu(conv(x))
        return self.head(x if self.dense else x.mean((2, 3)))


@pytest.fixture
def clips(generator: torch.Generator) -> dict[str, Tensor]:
    coarse = torch.rand(2, 3, 8, 8, generator=generator)
    pictures = nn.functional.interpolate(coarse, (56, 56), mode="bicubic") * 4 - 2
    return {
        motion: moved(picture, motion, 10, 0.03)
        for motion, picture in zip(("thing", "pan"), pictures, strict=True)
    }


def made(clips: dict[str, Tensor], dense: bool = False) -> nn.Module:
    """A network that tells the clips' frames apart."""
    torch.manual_seed(5)
    model = Classifier(dense).eval()
    with torch.no_grad():
        shown = torch.cat(list(clips.values()))
        found = model(shown)
        others = [n for n in range(found.dim()) if n != 1]
        for parameter in model.head.parameters():
            parameter *= 2 / found.std(others).mean()
        model.head.bias -= model(shown).mean(others)
    return model


def test_every_way_is_compared(clips: dict[str, Tensor]) -> None:
    done: list[str] = []
    table, rows = compare_clips(made(clips), clips, each=done.append)
    assert len(table) == 6 + 7
    assert len(rows) == len(done) == 2 * len(table)
    for row in table:
        share, way = 1 - float(Fraction(row["saving"])), row["way"]
        assert 0 < row["divergence"] <= row["worst_divergence"]
        assert row["divergence_low"] <= row["divergence"] <= row["divergence_high"]
        assert row["work"] <= share + 0.08, way
        assert row["peak"] == 1 if way.startswith("dense") else row["peak"] <= share + 0.05
    by_clip = {(row["clip"], row["saving"], row["way"]): row for row in rows}
    # Where one thing moves before a resting camera, blocks by change beat bands there.
    thing = {key[1:]: row for key, row in by_clip.items() if key[0] == "thing"}
    assert thing["3/4", "change"]["moving_error"] < thing["3/4", "bands"]["moving_error"]
    assert thing["1/2", "change"]["feature_error"] < thing["1/2", "scaled down"]["feature_error"]
    # The first clip begins with no cut. After one a stream is dense; spread work comes late.
    assert by_clip["thing", "1/2", "bands"]["after_cut"] is None
    after = {way: by_clip["pan", "3/4", way]["after_cut"] for way in ("bands", "spread over 4")}
    assert 0 <= after["bands"] < after["spread over 4"]


def test_maps_are_compared_by_pixel(clips: dict[str, Tensor]) -> None:
    table, _ = compare_clips(made(clips, dense=True), clips, savings=[HALF])
    by_way = {row["way"]: row for row in table}
    assert {"scaled down", "bands", "change", "dense every 2"} <= by_way.keys()
    for row in table:
        assert 0 < row["miou"] < 1
    assert by_way["bands"]["divergence"] < by_way["spatial fill"]["divergence"]


def test_one_clip_has_no_interval_and_files_are_written(
    clips: dict[str, Tensor], tmp_path: Path
) -> None:
    table, rows = compare_clips(made(clips), {"pan": clips["pan"]}, savings=[MOST])
    assert all(row["divergence_low"] is None for row in table)
    paths = write_clips(table, rows, tmp_path / "net", "net, 1 clip", {"frames": 8})
    assert [path.name for path in paths] == [
        *("net.csv", "net_clips.csv", "net.json", "net.png"),
    ]
    with paths[0].open() as file:
        assert [row["way"] for row in csv.DictReader(file)] == [row["way"] for row in table]
    told = json.loads(paths[2].read_text())
    assert (told["clips"], told["frames"]) == (["pan"], 8)
    assert paths[3].read_bytes()[1:4] == b"PNG"
    head, _, *lines = clips_table(table).splitlines()
    assert "divergence (nats)" in head
    assert "after a cut" in head
    assert len(lines) == 7


def test_clear_errors(clips: dict[str, Tensor]) -> None:
    model = Classifier().eval()
    with pytest.raises(TypeError, match="clips: got list, allowed: tensors by name"):
        compare_clips(model, list(clips.values()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"clips: pan: got shape \(7, 3, 56, 56\), allowed: .*8"):
        compare_clips(model, {"pan": clips["pan"][:7]})
    with pytest.raises(ValueError, match="savings: got 1/3, allowed: 1/2 and 3/4"):
        compare_clips(model, clips, savings=[Fraction(1, 3)])

    class Branching(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    with pytest.raises(ValueError, match="model: Branching cannot be traced"):
        compare_clips(Branching().eval(), clips)
