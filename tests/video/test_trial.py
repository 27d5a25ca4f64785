"""Ways to spend less on a clip, and how they are scored."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from drowsy.evaluation.classification import CLASSIFICATION
from drowsy.evaluation.segmentation import segmentation
from drowsy.video.motions import moved
from drowsy.video.rivals import Told, awake_answers, played, rivals, spread
from drowsy.video.trial import score, settling_after_cut, with_features
from drowsy.video.ways import Way


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
    return [(torch.tensor([[n, 0.0]]), torch.full((1, 1, 2, 2), n)) for n in numbers]


def test_spreading_is_late_and_begins_anew_after_a_cut(picture: Tensor) -> None:
    clip, awake = picture.repeat(9, 1, 1, 1), answers(*range(1, 10))

    def told(clip: Tensor) -> list[float]:
        found = spread(3)(None, clip, awake)  # type: ignore[arg-type]
        assert found.work == [1.0] + [1 / 3] * 8
        return [float(logits[0, 0]) for logits, _ in found.answers]

    # Begun with frame 3 (the fourth), it is there with frame 5.
    assert told(clip) == [1, 1, 1, 1, 1, 4, 4, 4, 7]
    clip[4:] = -picture.flip(1)
    assert told(clip) == [1, 1, 1, 1, 1, 1, 5, 5, 5]


def test_scores_by_hand() -> None:
    clip = torch.zeros(6, 3, 4, 4)
    # From frame to frame only the lower right quarter changes.
    clip[1::2, :, 2:, 2:] = 1
    awake = [(torch.zeros(1, 2), torch.ones(1, 1, 2, 2)) for _ in range(6)]
    mine = list(awake)
    mine[3] = (torch.tensor([[0.0, 1.0]]), torch.tensor([[[[1.0, 1.0], [1.0, 3.0]]]]))
    told = Told(mine, [1.0, 0.5, 0.25, 0.5, 0.5, 0.75])
    found = score(told, awake, clip, CLASSIFICATION)
    divergence = 0.5 * (torch.tensor([0.5, 0.5]) / torch.tensor([1.0, 0.0]).softmax(0)).log().sum()
    assert found["divergence"] == pytest.approx(float(divergence) / 5, rel=1e-5)
    assert found["worst_divergence"] == pytest.approx(float(divergence), rel=1e-5)
    assert found["agreement"] == pytest.approx(4 / 5)
    assert found["feature_error"] == pytest.approx(1 / 5)  # of length 2, the awake map's too
    assert found["worst_feature_error"] == 1  # in both spans of four
    assert found["moving_error"] == pytest.approx(2 / 5)
    assert (found["work"], found["peak"]) == (0.5, 0.75)
    assert found["after_cut"] is None
    # Of a clip that begins with the third of nine frames, which may be troubled to the sixth.
    clip, awake = torch.cat([clip, clip[:3]]), awake + awake[:3]
    mine += [awake[0], mine[3], awake[0]]
    told = Told(mine, [*told.work, 1.0, 0.0, 0.25])
    after = score(told, awake, clip, CLASSIFICATION, lead=2)
    assert after["after_cut"] == pytest.approx(float(divergence) / 4, rel=1e-5)
    assert after["divergence"] == pytest.approx(float(divergence) / 3, rel=1e-5)
    assert after["feature_error"] == pytest.approx(1 / 3)
    assert after["moving_error"] == pytest.approx(2 / 3)
    assert (after["work"], after["peak"]) == (pytest.approx(1.25 / 3), 1.0)
    clip, awake, mine, told = clip[:6], awake[:6], mine[:6], Told(mine[:6], told.work[:6])
    still = score(told, awake, torch.zeros(6, 3, 4, 4), CLASSIFICATION)
    assert still["moving_error"] is None


def test_maps_of_classes_are_scored_by_pixel() -> None:
    clip = torch.zeros(6, 3, 2, 2)
    maps = torch.zeros(1, 3, 2, 2)
    maps[:, 0] = 1
    awake = [(maps, maps)] * 6
    other = maps.clone()
    other[:, 1, 0, 0] = 9
    found = score(Told([(other, other)] * 6, [1.0] * 6), awake, clip, segmentation())
    pixel = torch.tensor([1.0, 0, 0]).log_softmax(0), torch.tensor([1.0, 9, 0]).log_softmax(0)
    divergence = float((pixel[0].exp() * (pixel[0] - pixel[1])).sum()) / 4
    assert found["divergence"] == pytest.approx(divergence, rel=1e-5)
    # Three of four pixels of the one class that is there, and none of one that is not.
    assert found["miou"] == pytest.approx(3 / 8)


def test_on_a_still_clip_only_smaller_and_spatial_ways_err(net, picture: Tensor) -> None:  # type: ignore[no-untyped-def]
    clip = moved(picture, "still", 4)
    with torch.inference_mode():
        awake = awake_answers(net, clip)
        for way, run in rivals(Fraction(1, 2), (40, 40)).items():
            found = score(run(net, clip, awake), awake, clip, CLASSIFICATION)
            far = way in ("spatial fill", "scaled down")
            assert (found["feature_error"] > 0.01) == far, way


def test_cuts_settle_at_once_with_the_detector(net, picture: Tensor) -> None:  # type: ignore[no-untyped-def]
    before, after = moved(picture, "pan", 4, 0.01), moved(-picture.flip(1), "pan", 12, 0.01)
    half = Fraction(1, 2)
    assert settling_after_cut(net, before, after, "bands", half, detect=True) <= 1
    assert 0 < settling_after_cut(net, before, after, "bands", half, detect=False) <= 4


def test_a_stream_of_the_trial_sees_cuts(net, picture: Tensor) -> None:  # type: ignore[no-untyped-def]
    clip = torch.stack([picture, picture, -picture.flip(1)])
    with torch.inference_mode():
        told = played(Way(refresh="bands", rate=Fraction(1, 2)))(net, clip, [])
    assert told.work[0] == told.work[2] == 1 > told.work[1]
