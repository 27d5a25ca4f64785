"""Means, spreads and ridge regression over the positions of many chunks of images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Ridges in units of the mean second moment of the inputs; the last stands for no change of the
# weight; no change of the bias either is always the alternative.
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, math.inf)


class Spread:
    """Mean and standard deviation of each channel's awake neurons, in float64; 0 of none."""

    def __init__(self) -> None:
        self.count = self.sum = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor, awake: Tensor | None) -> None:
        """Add values ``[positions, C]``, or the ``awake`` of them."""
        keep = None if awake is None else awake.to(values.dtype)
        kept = values if keep is None else values * keep
        count = torch.tensor(len(values)) if awake is None else awake.sum(0)
        mean = kept.sum(0).double() / count.clamp_min(1)
        # From their mean, sums of squares keep their digits.
        rest = values - mean.to(values.dtype)
        if keep is not None:
            rest.mul_(keep)
        self.count = self.count + count
        self.sum = self.sum + count * mean
        self.squares = self.squares + rest.square_().sum(0).double() + count * mean.square()

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count.clamp_min(1)

    @property
    def std(self) -> Tensor:
        spread = self.squares / self.count.clamp_min(1) - self.mean.square()
        return spread.clamp_min(0).sqrt()


class Moments:
    """Second moments of inputs ``[rows, K]`` and targets ``[rows, C]``."""

    def __init__(self) -> None:
        self.rows = 0
        self.sums: list[Tensor] = []

    def add(self, a: Tensor, b: Tensor) -> None:
        new = [a.sum(0), b.sum(0), a.T @ a, a.T @ b, b.square().sum(0)]
        self.sums = [x + y for x, y in zip(self.sums, new, strict=True)] if self.sums else new
        self.rows += len(a)

    def __add__(self, other: Moments) -> Moments:
        both = Moments()
        both.rows = self.rows + other.rows
        both.sums = [x + y for x, y in zip(self.sums, other.sums, strict=True)]
        return both

    def error(self, weight: Tensor, constant: Tensor) -> float:
        """Mean squared error of ``a @ weight + constant`` as a guess of the targets."""
        # The largest product is exact enough as it is.
        product = (self.sums[2] @ weight).double() / self.rows
        a, b, ab, bb = (self.sums[i].double() / self.rows for i in (0, 1, 3, 4))
        weight, constant = weight.double(), constant.double()
        guess = (weight * product).sum(0) + constant * (constant + 2 * (a @ weight))
        both = (weight * ab).sum(0) + constant * b
        return float((bb - 2 * both + guess).sum())


def ridge(fit: Moments, held: Moments) -> tuple[Tensor, Tensor]:
    """Weight ``[K, C]`` and constant ``[C]`` by ridge regression; what is held out chooses how.

    Both are 0 where no ridge is better than that on what is held out.
    """

    def solve(moments: Moments, ridge: float | None) -> tuple[Tensor, Tensor]:
        a, b, aa, ab, _ = (total / moments.rows for total in moments.sums)
        if ridge is None:
            return torch.zeros_like(ab), torch.zeros_like(b)
        if math.isinf(ridge):
            return torch.zeros_like(ab), b
        shift = ridge * aa.diagonal().mean() + torch.finfo(aa.dtype).tiny
        covariance = aa.addr_(a, a, alpha=-1)
        covariance.diagonal().add_(shift)
        factor = torch.linalg.cholesky(covariance)
        weight = torch.cholesky_solve(torch.addr(ab, a, b, alpha=-1), factor)
        return weight, b - a @ weight

    candidates = (None, *RIDGES)
    errors = [held.error(*solve(fit, ridge)) for ridge in candidates]
    return solve(fit + held, candidates[errors.index(min(errors))])
