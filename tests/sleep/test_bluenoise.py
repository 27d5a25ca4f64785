"""Source ``bluenoise``: the rank map, and shifts of it."""

from __future__ import annotations

import hashlib
import itertools

import pytest
import torch
from drawing import SIGMAS, chi_square_sigmas, draw, nearest_awake, pair_table

from drowsy.sleep.bluenoise import rank_map


def test_rank_map_is_the_same_everywhere() -> None:
    ranks = rank_map()
    assert sorted(ranks.ravel().tolist()) == list(range(64 * 64))
    digest = hashlib.sha256(ranks.astype("<i8").tobytes()).hexdigest()
    assert digest == "e2ff598a2bfe6aedd7e8652de4925997dd73beb080ee124c3d7fa13ad877e378"
    assert (rank_map(1) != ranks).mean() > 0.99


@pytest.mark.parametrize("k", [2, 8, 16, 256])
@pytest.mark.parametrize("grain", ["neuron", "position", "tile:1x3"])
def test_blue_noise_has_every_level_equally_often_in_a_period(grain: str, k: int) -> None:
    # Any 64 x 64 positions, also beside and across the tile's edges.
    drawn = draw("bluenoise", grain, k, shape=(2, 5, 64, 100)).unflatten(1, (64, 100))
    for window in (drawn[:, :, :64], drawn[:, :, 36:], drawn[:, :, 17:81]):
        for j in range(k):
            assert ((window < j).sum((1, 2)) == j * 64 * 64 // k).all()


@pytest.mark.parametrize("k", [3, 10, 255])
def test_blue_noise_of_other_k_is_within_one_of_exact(k: int) -> None:
    drawn = draw("bluenoise", "position", k, shape=(1, 1, 64, 64))
    for j in range(k):
        assert 0 <= int((drawn < j).sum()) - j * 64 * 64 / k < 1


def test_blue_noise_is_one_tile_shifted_anew_for_each_image_and_channel() -> None:
    drawn = draw("bluenoise", k=256, shape=(6, 20, 64, 64)).unflatten(1, (64, 64))
    tile = drawn[0, ..., 0]
    starts = set()
    spectrum = torch.fft.rfft2(tile.double())
    for image, channel in itertools.product(range(6), range(20)):
        shifted = drawn[image, ..., channel]
        match = torch.fft.irfft2(torch.fft.rfft2(shifted.double()) * spectrum.conj())
        y, x = divmod(int(match.argmax()), 64)
        assert torch.equal(shifted, tile.roll((y, x), (0, 1)))
        starts.add((y, x))
    assert len(starts) >= 115


def test_blue_noise_shift_is_uniform_over_images_channels_and_streams() -> None:
    one = {"k": 8, "shape": (4000, 16, 1, 1)}
    images = draw("bluenoise", **one)
    for stream in (0, 1):
        drawn = draw("bluenoise", stream=stream, **one)
        assert abs(chi_square_sigmas(torch.bincount(drawn.flatten().long()).double())) < SIGMAS
    for first, second in (
        (images[1:], images[:-1]),
        (images[..., 1:], images[..., :-1]),
        (images, draw("bluenoise", stream=1, **one)),
        (images, draw("bluenoise", seed=1, **one)),
    ):
        assert abs(chi_square_sigmas(pair_table(first, second, 8))) < SIGMAS


def test_blue_noise_spreads_both_sleepers_and_awake() -> None:
    ranks = torch.from_numpy(rank_map())
    for asleep in (ranks < 512, ranks >= 4096 - 512):
        # No two sleepers of an eighth touch, not even at a corner.
        for step in ((0, 1), (1, 0), (1, 1), (1, -1)):
            assert not (asleep & asleep.roll(step, (0, 1))).any()
    # No sleeper is far from those that are left awake: mean and most, squared.
    for j, mean, most in ((4, 1, 1), (5, 1.03, 2), (6, 1.13, 2), (7, 1.69, 5)):
        far = nearest_awake(ranks * 8 // 4096 >= j)
        assert far[ranks * 8 // 4096 < j].double().mean() <= mean
        assert far.max() <= most


@pytest.mark.parametrize(("size", "spread"), [(7, 1.2), (14, 1.8), (28, 2.9), (56, 3.6)])
def test_blue_noise_of_small_maps_varies_little_in_its_work(size: int, spread: float) -> None:
    drawn = draw("bluenoise", "position", shape=(400, 1, size, size))
    for j in range(1, 8):
        counts = (drawn < j).sum((1, 2)).double()
        expected = size * size * j / 8
        assert abs(counts.mean() - expected) < SIGMAS * counts.std() / 20
        # Independent bits spread by 3.5, 7, 14 and 28 at rate 1/2.
        assert counts.std() < spread
