"""What is the same for every recipe of a comparison."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from drowsy.evaluation.arguments import check_seeds
from drowsy.evaluation.store import Store
from drowsy.images.checks import check_batch
from drowsy.images.scaling import INTERPOLATIONS
from drowsy.searches.methods import check_method

SAVINGS = (0.25, 0.5, 0.75)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Conditions:
    """What is the same for every recipe of a comparison.

    Args:
        savings: fractions of the convolution multiplications of the whole network at full
            resolution, each above 0 and below 1.
        seeds: of the sleep maps, each once.
        budget: settings of each search, as for ``drowsy.search``.
        interpolation: how images are scaled down (antialiased): ``bicubic`` or ``bilinear``.
        mirrored: whether weights are reconstructed from the calibration images mirrored too.
        batch, dtype, device, progress: of the evaluation.
        store: where results go at once; None keeps them in memory.

    Raises:
        ValueError: a value outside of what is listed here.
    """

    savings: tuple[float, ...] = SAVINGS
    seeds: tuple[int, ...] = SEEDS
    budget: int | None = None
    interpolation: str = INTERPOLATIONS[0]
    mirrored: bool = False
    batch: int = 50
    dtype: torch.dtype = torch.float32
    device: str | torch.device = "cpu"
    progress: bool = False
    store: Store | None = None

    def __post_init__(self) -> None:
        if not self.savings:
            raise ValueError("savings: got none, allowed: one or more")
        for wanted in self.savings:
            if not 0 < wanted < 1:
                raise ValueError(f"savings: got {wanted}, allowed: above 0 and below 1")
        check_seeds(self.seeds)
        check_method("additive", self.budget)
        check_batch(self.batch)
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation: got {self.interpolation!r}, allowed: {', '.join(INTERPOLATIONS)}"
            )
