"""Source ``lfsr``: registers as they step on a chip."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from drawing import draw, shift

from drowsy.sleep import Lfsr, lfsr_rates, source_text


def test_three_bit_register_has_period_seven_and_never_holds_zero() -> None:
    drawn = draw("lfsr:engines=1", shape=(1, 1, 1, 70)).flatten()
    assert sorted(drawn[:7].tolist()) == [1, 2, 3, 4, 5, 6, 7]
    assert torch.equal(drawn[7:], drawn[:-7])


def test_three_bit_register_gives_rates_of_its_own() -> None:
    expected = [0, 0, *(Fraction(j, 7) for j in range(1, 7))]
    assert lfsr_rates(Lfsr()) == pytest.approx([float(rate) for rate in expected], abs=1e-7)
    drawn = draw("lfsr", shape=(7, 64, 7, 7))
    for j, rate in enumerate(expected):
        assert int((drawn < j).sum()) == rate * drawn.numel()


@pytest.mark.parametrize("engines", [1, 3, 8, 64])
def test_engines_step_on_as_registers_on_a_chip_do(engines: int) -> None:
    register = Lfsr(width=3, taps=(3, 2), engines=engines)
    images, channels, positions = 4, 10, 12
    drawn = draw(source_text(register), shape=(images, channels, 3, 4), seed=6, image=9)
    rounds = math.ceil(channels / engines)
    for engine in range(min(engines, channels)):
        state = None
        # The engine computes its channels in raster order, image after image, and never stops;
        # it also steps in a last round that has no channel for it.
        for image, turn, position in itertools.product(
            range(images), range(rounds), range(positions)
        ):
            channel = turn * engines + engine
            state = None if state is None else shift(state, register)
            if channel < channels:
                level = int(drawn[image, position, channel])
                assert state in (None, level)
                state = level


def test_engines_start_where_seeding_says() -> None:
    register = "lfsr:width=4,taps=4.3,engines=3,seeding=1.7.12"
    drawn = draw(register, k=16, shape=(1, 3, 1, 2))
    assert drawn[0, 0].tolist() == [1, 7, 12]
    assert drawn[0, 1].tolist() == [
        shift(state, Lfsr(4, (4, 3), 3, (1, 7, 12))) for state in (1, 7, 12)
    ]
    together = draw("lfsr:width=4,taps=4.3,engines=3,seeding=5", k=16, shape=(1, 3, 1, 2))
    assert together[0, 0].tolist() == [5, 5, 5]


def test_engines_are_seeded_apart_by_default() -> None:
    drawn = draw("lfsr:width=16,taps=16.15.13.4,engines=64", k=256, shape=(1, 64, 1, 1))
    assert drawn.unique().numel() > 40
    assert not torch.equal(
        drawn, draw("lfsr:width=16,taps=16.15.13.4", k=256, shape=(1, 64, 1, 1), seed=1)
    )
    assert not torch.equal(
        drawn, draw("lfsr:width=16,taps=16.15.13.4", k=256, shape=(1, 64, 1, 1), stream=1)
    )


def test_wider_register_comes_closer_to_the_rate_asked_for() -> None:
    wide = Lfsr(width=16, taps=(16, 15, 13, 4), engines=1)
    asked = torch.arange(8) / 8
    narrow_error = (torch.tensor(lfsr_rates(Lfsr())) - asked).abs().max()
    wide_error = (torch.tensor(lfsr_rates(wide)) - asked).abs().max()
    assert narrow_error == pytest.approx(1 / 8)
    assert wide_error < 1 / 2**16
    drawn = draw(source_text(wide), shape=(1, 1, 255, 257))  # 65535 positions, a whole period
    for j in range(1, 8):
        assert int((drawn < j).sum()) == j * 2**13 - 1


@pytest.mark.parametrize("taps", [(3,), (4, 2), (4,), (4, 3, 2, 1)])
def test_register_that_is_not_of_maximal_length_is_refused(taps: tuple[int, ...]) -> None:
    width = max(*taps, 3)
    with pytest.raises(ValueError, match=r"lfsr taps: .* maximal register"):
        Lfsr(width=width, taps=taps)


@pytest.mark.parametrize(
    ("width", "taps"), [(2, (2, 1)), (4, (4, 3)), (8, (8, 6, 5, 4)), (16, (16, 15, 13, 4))]
)
def test_register_of_maximal_length_is_accepted(width: int, taps: tuple[int, ...]) -> None:
    state, states = 1, set()
    while state not in states:
        states.add(state)
        state = shift(state, Lfsr(width, taps))
    assert states == set(range(1, 2**width))
