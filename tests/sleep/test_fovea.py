"""Source ``fovea``: a lattice from the border inwards."""

from __future__ import annotations

import pytest
import torch
from drawing import clock, draw

from drowsy.sleep import SleepSpec, levels, simplest


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (12, 20)])
def test_fovea_is_the_lattice_where_half_of_what_is_left_sleeps(size: tuple[int, int]) -> None:
    one = {"shape": (20, 3, *size), "stream": 4, "seed": 5}
    fovea, lattice = draw("fovea", **one), draw("lattice", **one)
    for j in (4, 6, 7):
        assert torch.equal(fovea < j, lattice < j)
    assert not torch.equal(fovea, lattice)


@pytest.mark.parametrize(("k", "halves"), [(8, {4, 6, 7}), (10, {5, 8, 9}), (3, {2}), (2, {1})])
def test_the_simplest_specification_draws_the_same_map(k: int, halves: set[int]) -> None:
    shape = (5, 6, 7, 10)
    for j in range(1, k):
        spec = SleepSpec("fovea", "position:2", k, stream=3, phase=1)
        plain = simplest(spec, j)
        assert plain.source.name == ("lattice" if j in halves else "fovea")
        assert torch.equal(levels(plain, shape, clock(9)) < j, levels(spec, shape, clock(9)) < j)
    assert simplest(SleepSpec("bluenoise"), 4) == SleepSpec("bluenoise")


@pytest.mark.parametrize("j", [1, 2, 3, 5])
def test_fovea_sleeps_from_the_border_inwards(j: int) -> None:
    height, width = 16, 24
    drawn = draw("fovea", "position", shape=(8, 4, height, width))[..., 0]
    assert ((drawn < j).sum(1) == height * width * j // 8).all()
    y = (torch.arange(height).double() - (height - 1) / 2) / height
    x = (torch.arange(width).double() - (width - 1) / 2) / width
    distance = (y[:, None] ** 2 + x**2).flatten()
    first, last = (0, 4) if j < 4 else (4, 6)
    for levels_of_image in drawn:
        members = (first <= levels_of_image) & (levels_of_image < last)
        asleep = members & (levels_of_image < j)
        assert distance[asleep].min() >= distance[members & ~asleep].max() - 1e-12
