"""What tests of sleep maps share: draws, the cases they run over, and their statistics."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from drowsy.sleep import Grain, Lfsr, SleepSpec, levels

SOURCES = (
    "bernoulli",
    "stratified",
    "lattice",
    "fovea",
    "bluenoise",
    "lfsr",
    "lfsr:width=5,taps=5.3,engines=3",
)
GRAINS = ("neuron", "position", "position:3", "channel", "channel:3", "tile:4x2", "tile:7x64")
MAPS = [
    (source, grain)
    for source in SOURCES
    for grain in GRAINS
    if source not in ("fovea", "bluenoise") or Grain.parse(grain).of_single_positions
]
SIGMAS = 5
MASK32 = 0xFFFFFFFF


def clock(seed: int = 0, image: int = 0) -> Tensor:
    return torch.tensor([seed, image])


def draw(
    source: str = "bernoulli",
    grain: str = "neuron",
    k: int = 8,
    *,
    shape: tuple[int, int, int, int],
    seed: int = 0,
    image: int = 0,
    stream: int = 0,
) -> Tensor:
    return levels(SleepSpec(source, grain, k, stream), shape, clock(seed, image))


def assert_binomial(hits: Tensor | int, trials: int, p: float) -> None:
    """Each count lies within five standard deviations of its expectation, on either side."""
    deviation = (torch.as_tensor(hits, dtype=torch.float64) - trials * p).abs().max().item()
    assert deviation <= SIGMAS * math.sqrt(trials * p * (1 - p)), (deviation, trials, p)


def chi_square_sigmas(counts: Tensor) -> float:
    """How unlike a uniform table these counts are, in standard deviations (Wilson-Hilferty)."""
    expected = counts.sum().item() / counts.numel()
    assert expected >= 5, "too few draws for a chi-square test"
    freedom = counts.numel() - 1
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def pair_table(first: Tensor, second: Tensor, k: int) -> Tensor:
    """How often each pair of levels occurs."""
    pairs = first.flatten().long() * k + second.flatten().long()
    return torch.bincount(pairs, minlength=k * k).double()


def philox_in_python(c0: int, c1: int, c2: int, c3: int, seed: int) -> list[int]:
    """Philox-4x32-10 as the paper writes it, one counter at a time."""
    key0, key1 = seed & MASK32, seed >> 32
    for _ in range(10):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (right >> 32) ^ c1 ^ key0,
            right & MASK32,
            (left >> 32) ^ c3 ^ key1,
            left & MASK32,
        )
        key0, key1 = (key0 + 0x9E3779B9) & MASK32, (key1 + 0xBB67AE85) & MASK32
    return [c0, c1, c2, c3]


def shift(state: int, register: Lfsr) -> int:
    """One step of a Fibonacci register: XOR the taps, shift left, feed the XOR in on the right."""
    feedback = 0
    for tap in register.taps:
        feedback ^= state >> (tap - 1) & 1
    return (state << 1 | feedback) & (1 << register.width) - 1


def nearest_awake(awake: Tensor) -> Tensor:
    """Squared distance from every position of a periodic map to its nearest awake one."""
    reach = range(-4, 5)
    nearest = torch.full(awake.shape, 99)
    for down, across in itertools.product(reach, reach):
        there = awake.roll((-down, -across), (0, 1))
        nearest = torch.where(there, nearest.clamp(max=down**2 + across**2), nearest)
    return nearest
