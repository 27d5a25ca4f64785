"""Rates, and what a fill makes of the expected value."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from drawing import SIGMAS
from torch import Tensor

from drowsy.network.layer import DrowsyConv2d
from drowsy.sleep import MAX_K, SleepSpec, scale, threshold


def _mean_over_maps(source: str, fill: str, j: int, images: int) -> tuple[Tensor, Tensor]:
    """Awake output of one image, and the mean of its slept outputs over many maps."""
    layer = DrowsyConv2d(
        3, 6, 3, padding=1, activation="relu", sleep=SleepSpec(source), rate=j / 8, fill=fill
    )
    x = torch.randn(1, 3, 5, 5)
    with torch.inference_mode():
        awake = layer.awake(x)[0].double()
        mean = layer(x.expand(images, -1, -1, -1)).double().mean(0)
    assert (awake > 0).sum() > 30
    return awake, mean


@pytest.mark.parametrize("j", [1, 4, 7])
@pytest.mark.parametrize("source", ["bernoulli", "stratified", "lattice"])
def test_rescale_keeps_the_expected_value(source: str, j: int) -> None:
    images = 2000
    awake, mean = _mean_over_maps(source, "rescale", j, images)
    sigma = awake * math.sqrt(j / (8 - j) / images)
    assert ((mean - awake).abs() <= SIGMAS * sigma + 1e-6 * awake).all()


@pytest.mark.parametrize("j", [1, 4, 7])
@pytest.mark.parametrize("source", ["bernoulli", "stratified", "lattice"])
def test_zero_lowers_the_expected_value_by_the_rate(source: str, j: int) -> None:
    images = 2000
    awake, mean = _mean_over_maps(source, "zero", j, images)
    sigma = awake * math.sqrt(j * (8 - j) / 64 / images)
    assert ((mean - awake * (1 - j / 8)).abs() <= SIGMAS * sigma + 1e-6 * awake).all()
    assert ((mean - awake).abs() > SIGMAS * sigma)[awake > 0].all()


def test_scale_is_one_over_the_awake_fraction() -> None:
    assert [scale(j, 8, "rescale") for j in (0, 2, 4, 7)] == [1, 8 / 6, 2, 8]
    assert {scale(j, 8, "zero") for j in range(8)} == {1.0}


@pytest.mark.parametrize("k", [2, 3, 7, 8, 10, 100, MAX_K])
def test_every_multiple_of_a_step_is_a_rate(k: int) -> None:
    for j in range(k):
        assert threshold(j / k, k) == j
        assert threshold(Fraction(j, k), k) == j


@pytest.mark.parametrize(
    "rate",
    [1.0, -0.125, 2, 0.1, 1 / 3, 0.124, math.nan, math.inf, 10**5000, Fraction(10**5000, 3)],
    ids=lambda rate: str(float(rate)) if rate < 9 else "large",
)
def test_other_numbers_are_not_rates(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate: got .*allowed: multiples of 1/8 from 0 to 7/8"):
        threshold(rate, 8)
