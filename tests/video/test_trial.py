"""Ways to spend less on a clip, and how they are scored."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from drowsy.video.motions import moved
from drowsy.video.rivals import (
    Told,
    awake_answers,
    every_nth,
    remembering,
    scaled_size,
    spread,
    ways,
)
from drowsy.video.trial import compare_clips, score, settling_after_cut, with_features


class Classifier(nn.Module):
    """Four convolutions and a label."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, stride, 1)
            for inputs, outputs, stride in ((3, 8, 2), (8, 8, 1), (8, 16, 2), (16, 16, 1))
        )
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.relu(conv(x))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def picture(generator: torch.Generator) -> Tensor:
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    return nn.functional.interpolate(coarse, (56, 56), mode="bicubic")[0] * 4 - 2


@pytest.fixture
def net(picture: Tensor):  # type: ignore[no-untyped-def]
    return with_features(Classifier().eval(), picture[None])


def test_the_network_puts_out_its_last_map_too(picture: Tensor) -> None:
    model = Classifier().eval()
    with torch.inference_mode():
        logits, features = with_features(model, picture[None])(picture[None])
        assert torch.allclose(logits, model(picture[None]), atol=1e-6)
        assert features.shape == (1, 16, 14, 14)
        assert torch.allclose(model.fc(features.mean((2, 3))), logits, atol=1e-6)


def answers(*numbers: float) -> list[tuple[Tensor, Tensor]]:
    return [(torch.tensor([n, 0.0]), torch.full((1, 2, 2), n)) for n in numbers]


def test_skipping_repeats_and_spreading_is_late() -> None:
    clip, awake = torch.zeros(7, 3, 4, 4), answers(*range(1, 8))
    told = every_nth(3)(None, clip, awake)  # type: ignore[arg-type]
    assert [float(logits[0]) for logits, _ in told.answers] == [1, 1, 1, 4, 4, 4, 7]
    assert told.work == [1, 0, 0, 1, 0, 0, 1]
    told = spread(3)(None, clip, awake)  # type: ignore[arg-type]
    # Begun with frame 3 (the fourth), it is there with frame 5.
    assert [float(logits[0]) for logits, _ in told.answers] == [1, 1, 1, 1, 1, 4, 4]
    assert told.work[1:] == [1 / 3] * 6


def test_scores_by_hand() -> None:
    clip = torch.zeros(6, 3, 4, 4)
    # From frame to frame only the lower right quarter changes.
    clip[1::2, :, 2:, 2:] = 1
    awake = [(torch.zeros(2), torch.ones(1, 2, 2)) for _ in range(6)]
    mine = [(torch.zeros(2), torch.ones(1, 2, 2)) for _ in range(6)]
    mine[3] = (torch.tensor([1.0, 0.0]), torch.tensor([[[1.0, 1.0], [1.0, 3.0]]]))
    found = score(Told(mine, [1.0, 0.5, 0.25, 0.5, 0.5, 0.75]), awake, clip)
    divergence = 0.5 * (torch.tensor([0.5, 0.5]) / torch.tensor([1.0, 0.0]).softmax(0)).log().sum()
    assert found.divergence == pytest.approx(float(divergence) / 5, rel=1e-5)
    assert found.error == pytest.approx(1 / 5)  # of length 2, the awake map's too
    assert found.worst_error == 1  # in both spans of four
    assert found.moving_error == pytest.approx(2 / 5)
    assert (found.work, found.peak) == (0.5, 0.75)
    still = score(Told(mine, [0.0] * 6), awake, torch.zeros(6, 3, 4, 4))
    assert still.moving_error is None


def test_every_way_is_compared(net, picture: Tensor) -> None:  # type: ignore[no-untyped-def]
    clips = {motion: moved(picture, motion, 6, 0.03) for motion in ("thing", "pan")}
    table, rows = compare_clips(net, clips, [Fraction(1, 2), Fraction(3, 4)])
    assert len(table) == 6 + 7
    assert len(rows) == 2 * len(table)
    by_way = {(row["saving"], row["way"]): row for row in table}
    for (saving, way), row in by_way.items():
        share = 1 - float(Fraction(saving))
        assert 0 < row["divergence"] <= row["worst_divergence"]
        assert row["work"] <= share + 0.03, way
        assert row["peak"] == 1 if way.startswith("dense") else row["peak"] <= share + 0.05
    # Where one thing moves before a resting camera, blocks by change beat bands there.
    thing = {(row["saving"], row["way"]): row for row in rows if row["clip"] == "thing"}
    assert thing["3/4", "change"]["moving_error"] < thing["3/4", "bands"]["moving_error"]
    assert thing["1/2", "change"]["error"] < thing["1/2", "scaled down"]["error"]


def test_on_a_still_clip_only_smaller_and_spatial_ways_err(net, picture: Tensor) -> None:  # type: ignore[no-untyped-def]
    clip = moved(picture, "still", 4)
    with torch.inference_mode():
        awake = awake_answers(net, clip)
        for way, run in ways(Fraction(1, 2)).items():
            error = score(run(net, clip, awake), awake, clip).error
            assert (error > 0.01) == (way in ("spatial fill", "scaled down")), way


def test_the_scaled_size_saves_enough_and_no_more(net, picture: Tensor) -> None:  # type: ignore[no-untyped-def]
    clip = picture[None]
    (height, width), work = scaled_size(net, clip, Fraction(1, 2))
    assert height == width
    assert work <= 0.5
    larger = scaled_size(net, clip, Fraction(1, 4))
    assert larger[0] > (height, width)


def test_cuts_settle_at_once_with_the_detector(net, picture: Tensor) -> None:  # type: ignore[no-untyped-def]
    before, after = moved(picture, "pan", 4, 0.01), moved(-picture.flip(1), "pan", 12, 0.01)
    half = Fraction(1, 2)
    assert settling_after_cut(net, before, after, "bands", half, detect=True) <= 1
    assert 0 < settling_after_cut(net, before, after, "bands", half, detect=False) <= 4


def test_a_stream_of_the_trial_sees_cuts(net, picture: Tensor) -> None:  # type: ignore[no-untyped-def]
    clip = torch.stack([picture, picture, -picture.flip(1)])
    with torch.inference_mode():
        told = remembering("bands", Fraction(1, 2))(net, clip, [])
    assert told.work[0] == told.work[2] == 1 > told.work[1]
