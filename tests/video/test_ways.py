"""Ways to answer frames: what is computed, repeated and scaled back."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from networks import make
from torch import Tensor

import drowsy
from drowsy.video.motions import moved
from drowsy.video.ways import Player, Way

HALF = Fraction(1, 2)


@pytest.fixture
def net() -> drowsy.DrowsyNet:
    model, _ = make("residual, even", torch.float32)
    return drowsy.convert(model)


@pytest.fixture
def clip(generator: torch.Generator) -> Tensor:
    picture = torch.nn.functional.interpolate(
        torch.rand(1, 3, 8, 8, generator=generator), (56, 56), mode="bicubic"
    )[0]
    return moved(picture, "pan", 9, 0.02)


def answered(player: Player, clip: Tensor) -> tuple[list[Tensor], list[str], list[float]]:
    outputs, whys, work = [], [], []
    for frame in clip.split(1):
        outputs.append(player(frame))
        (look,) = player.looks
        assert look is not None
        whys.append(look.why)
        work.append(look.work)
    return outputs, whys, work


def test_skipping_computes_every_nth_frame_and_repeats(net: drowsy.DrowsyNet, clip: Tensor) -> None:
    outputs, whys, work = answered(Player(net, Way(every=3)), clip)
    with torch.inference_mode():
        awake = [net(frame) for frame in clip.split(1)]
    for time, output in enumerate(outputs):
        assert torch.equal(output, awake[time - time % 3])
    assert whys == ["first", "skipped", "skipped"] + ["turn", "skipped", "skipped"] * 2
    assert work == [1, 0, 0] * 3


def test_a_repeated_answer_is_the_callers_own(net: drowsy.DrowsyNet, clip: Tensor) -> None:
    player = Player(net, Way(every=4))
    first = player(clip[:1])
    kept = first.clone()
    for time in (1, 2, 3):
        with torch.inference_mode():
            first.zero_()
        first = player(clip[time : time + 1])
        assert torch.equal(first, kept)


def test_after_a_cut_a_frame_is_computed(net: drowsy.DrowsyNet, clip: Tensor) -> None:
    cut = torch.cat([clip[:2], 1 - clip[2:].flip(2)])
    _, whys, _ = answered(Player(net, Way(every=4)), cut)
    assert whys == ["first", "skipped", "cut", *["skipped"] * 3, "turn", *["skipped"] * 2]
    _, whys, _ = answered(Player(net, Way(every=4), cut=None), cut)
    assert "cut" not in whys


def test_after_a_failure_a_frame_is_computed(net: drowsy.DrowsyNet, clip: Tensor) -> None:
    player = Player(net, Way(every=2))
    for frame in clip[:2].split(1):
        player(frame)
    with pytest.raises(RuntimeError):
        player(clip[2:3, :2])  # without a colour
    assert torch.equal(player(clip[3:4]), Player(net, Way())(clip[3:4]))


def test_packed_frames_are_the_networks(net: drowsy.DrowsyNet, clip: Tensor) -> None:
    outputs, whys, work = answered(Player(net, Way(packed=True)), clip)
    with torch.inference_mode():
        for output, frame in zip(outputs, clip.split(1), strict=True):
            assert torch.allclose(output, net(frame), atol=1e-5)
    assert whys == ["first", *["turn"] * 8]
    assert work == [1.0] * 9


def test_smaller_frames_cost_less_and_maps_come_back_whole() -> None:
    model, _ = make("dense", torch.float32)
    net = drowsy.convert(model)
    clip = torch.rand(2, 3, 28, 28)
    player = Player(net, Way(size=(14, 14)))
    (output, _), _, work = answered(player, clip)
    assert output.shape == (1, 5, 28, 28)
    with torch.inference_mode():
        small = net(drowsy.images.scaling.scale_images(clip[:1], (14, 14)))
    again = torch.nn.functional.interpolate(small, (28, 28), mode="bicubic")
    assert torch.allclose(output, again, atol=1e-6)
    assert work == pytest.approx([1 / 4] * 2)


def test_smaller_frames_are_skipped_and_remembered_too(net: drowsy.DrowsyNet, clip: Tensor) -> None:
    _, whys, work = answered(Player(net, Way(size=(28, 28), every=2)), clip)
    assert whys[:3] == ["first", "skipped", "turn"]
    assert 0.2 < work[0] < 0.3
    assert work[1] == 0
    way = Way(size=(28, 28), refresh="bands", rate=HALF)
    outputs, whys, work = answered(Player(net, way), clip)
    assert whys == ["first", *["areas"] * 8]
    assert 0.1 < work[1] < 0.6 * work[0]
    stream = drowsy.Stream(net, rate=HALF)
    for output, frame in zip(outputs, clip.split(1), strict=True):
        small = drowsy.images.scaling.scale_images(frame, (28, 28))
        assert torch.equal(output, stream(small))


@pytest.mark.parametrize(
    "way",
    [Way(), Way(every=2), Way(packed=True), Way(refresh="quads", rate=HALF), Way(size=(28, 28))],
    ids=str,
)
def test_slots_are_apart(net: drowsy.DrowsyNet, clip: Tensor, way: Way) -> None:
    other = 1 - clip
    alone = answered(Player(net, way, cut=None), clip)[0]
    player = Player(net, way, streams=2, cut=None)
    # The second camera sees a frame more before the first begins.
    player(other[:1], [1])
    for time in range(4):
        both = player(torch.cat([clip[time : time + 1], other[time + 1 : time + 2]]), [0, 1])
        assert torch.equal(both[:1], alone[time])
        assert both.shape == (2, 5)
    player.reset(0)
    player(clip[:1], [0])
    first, second = player.looks
    assert first is not None
    assert first.why == "first"
    assert second is not None
    assert way.every > 1 or second.why != "first"


def test_reset_forgets(net: drowsy.DrowsyNet, clip: Tensor) -> None:
    for way in (Way(every=4), Way(refresh="bands", rate=HALF)):
        player = Player(net, way)
        player(clip[:1])
        player.reset()
        player(clip[1:2])
        (look,) = player.looks
        assert look is not None
        assert look.why == "first"


def test_ways_read_back() -> None:
    for way in (
        Way(),
        Way(size=(24, 32), every=4, packed=True),
        Way(size=(24, 32), refresh="change", rate=Fraction(3, 4)),
    ):
        assert Way.from_dict(way.to_dict()) == way
    assert str(Way()) == "awake"
    assert str(Way(size=(24, 24), every=2)) == "24 px, one frame of 2"
    assert str(Way(refresh="bands", rate=HALF)) == "bands, 1/2 asleep"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"size": (0, 4)}, r"size: got \(0, 4\), allowed: \(H, W\) in pixels, or None"),
        ({"every": 0}, "every: got 0, allowed: an integer, 1 or more"),
        ({"every": True}, "every: got True"),
        ({"rate": HALF}, "rate: got 1/2, allowed: 0 without a refresh"),
        ({"refresh": "lines", "rate": HALF}, "refresh: got 'lines', allowed: bands, quads"),
        ({"refresh": "quads", "rate": Fraction(1, 3)}, "rate: got 1/3, allowed: 0, 1/4"),
        ({"refresh": "quads"}, "rate: got 0, allowed: above 0"),
        (
            {"refresh": "bands", "rate": HALF, "every": 2},
            "refresh: got bands and every 2, allowed: one",
        ),
        ({"refresh": "bands", "rate": HALF, "packed": True}, "refresh: got bands and packed"),
        ({"packed": 1}, "packed: got 1, allowed: True or False"),
    ],
)
def test_clear_errors(given: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Way(**given)
    good = {"size": None, "every": 1, "refresh": None, "rate": "0", "packed": False}
    with pytest.raises(ValueError, match=f"point 3: way: {told}"):
        Way.from_dict(
            good | {n: list(v) if n == "size" else v for n, v in given.items()}, "point 3: way"
        )


def test_frames_that_do_not_fit(net: drowsy.DrowsyNet, clip: Tensor) -> None:
    player = Player(net, Way(every=2))
    with pytest.raises(ValueError, match=r"frames: got \(2, 3, 56, 56\), allowed: \[1, C, H, W\]"):
        player(clip[:2])
    with pytest.raises(ValueError, match="slots: got"):
        player(clip[:1], [1])
