"""Clips made from pictures move as they are told."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from drowsy.video.motions import MOTIONS, moved


@pytest.fixture
def picture(generator: torch.Generator) -> torch.Tensor:
    coarse = torch.rand(1, 3, 10, 10, generator=generator)
    return F.interpolate(coarse, (70, 56), mode="bicubic")[0]


def test_still_is_still_and_others_are_not(picture: torch.Tensor) -> None:
    for motion in MOTIONS:
        clip = moved(picture, motion, 4, speed=0.03)
        assert clip.shape == (4, 3, 70, 56)
        steps = (clip[1:] - clip[:-1]).abs().amax((1, 2, 3))
        assert (steps == 0).all() if motion == "still" else (steps > 0.01).all()


def test_a_pan_shifts_what_was_seen(picture: torch.Tensor) -> None:
    # Half a speed of the picture's side is so many columns of what is seen of it.
    clip = moved(picture, "pan", 2, speed=2 * 0.8 * 3 / 56)
    assert torch.allclose(clip[1][:, :, :-3], clip[0][:, :, 3:], atol=1e-4)


def test_behind_a_thing_the_picture_rests(picture: torch.Tensor) -> None:
    clip = moved(picture, "thing", 6, speed=0.05)
    changed = (clip != clip[:1]).any(1).any(0)
    assert changed.any()
    assert not changed[:24].any()
    assert not changed[46:].any()


def test_cameras_turn_back_at_the_edge(picture: torch.Tensor) -> None:
    clip = moved(picture, "pan", 9, speed=0.05)
    assert torch.allclose(clip[8], clip[0], atol=1e-4)
    assert torch.allclose(clip[7], clip[1], atol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"motion": "spin"}, "motion: got 'spin', allowed: still, shake"),
        ({"frames": 0}, "frames: got 0, allowed: an integer, 1 or more"),
        ({"speed": -1.0}, "speed: got -1.0, allowed: a number of 0 or more"),
    ],
)
def test_bad_input(picture: torch.Tensor, given: dict[str, object], message: str) -> None:
    arguments = {"motion": "pan", "frames": 2} | given
    with pytest.raises(ValueError, match=message):
        moved(picture, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"picture: got torch.float32 \(1, 3, 70, 56\), allowed"):
        moved(picture[None], "pan", 2)
