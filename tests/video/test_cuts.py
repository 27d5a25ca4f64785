"""Cuts are found, and nothing else is."""

from __future__ import annotations

import pytest
import torch

from drowsy.video.cuts import Cuts


def picture(seed: int) -> torch.Tensor:
    """Something smooth with contrast, ``[3, 64, 64]``."""
    noise = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (64, 64), mode="bicubic")[0]


def test_a_cut_is_found_and_the_frames_around_it_are_not() -> None:
    cuts = Cuts()
    shown = [picture(1), picture(1).roll(2, 2), picture(2), picture(2).roll(1, 1)]
    assert [cuts.found(frame) for frame in shown] == [False, False, True, False]


def between(share: float) -> torch.Tensor:
    """Picture 1, with so much of what makes picture 2 another."""
    return (1 - share) * picture(1) + share * picture(2)


def test_a_smaller_difference_is_a_cut_where_it_is_a_leap() -> None:
    shown = [between(share) for share in (0, 0.02, 0.04, 0.3)]
    cuts, differences = Cuts(), Cuts()
    assert [cuts.found(frame) for frame in shown] == [False, False, False, True]
    assert 0.3 < [differences.difference(frame) for frame in shown][-1] < 0.6


def test_what_changes_more_and_more_is_no_cut() -> None:
    shown = [between(share) for share in (0, 0.02, 0.06, 0.15, 0.3, 0.55)]
    cuts, differences = Cuts(), Cuts()
    assert not any(cuts.found(frame) for frame in shown)
    assert [differences.difference(frame) for frame in shown][-1] > 0.6


@pytest.mark.parametrize("change", [lambda x: 3 * x - 5, lambda x: x / 255])
def test_preprocessing_does_not_change_what_a_difference_is(change) -> None:  # type: ignore[no-untyped-def]
    plain, changed = Cuts(), Cuts()
    for seed in (1, 2):
        a, b = plain.difference(picture(seed)), changed.difference(change(picture(seed)))
    assert b == pytest.approx(a, rel=1e-3)
    assert a > 0.6


def test_from_black_is_a_cut_and_black_is_none() -> None:
    cuts = Cuts()
    black = torch.zeros(3, 64, 64)
    assert [cuts.found(x) for x in (black, black, picture(1))] == [False, False, True]


def test_after_a_cut_none_is_found_for_a_while() -> None:
    cuts = Cuts(rest=3)
    found = [cuts.found(picture(seed)) for seed in range(10)]
    assert found == [False, True, False, False, False, True, False, False, False, True]


@pytest.mark.parametrize("least", [0, -1, True, "much", float("nan")])
def test_a_threshold_is_a_number_above_0(least: object) -> None:
    with pytest.raises(ValueError, match=r"cut: got .*, allowed: a number above 0, or None"):
        Cuts(least)  # type: ignore[arg-type]
