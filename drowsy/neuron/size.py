"""How large a convolution is: from the shapes of its tensors, everything that follows from them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from drowsy.neuron.awake import ConvSpec


@dataclass(frozen=True)
class ConvSize:
    """Sizes of a convolution.

    Args:
        input: ``(N, IC, H, W)``, before padding.
        weight: ``(OC, IC / groups, KH, KW)``.
        spec: geometry and activation; mode ``same`` is worked out.
    """

    input: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    spec: ConvSpec

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", self.spec.at(self.input[2:]))

    @functools.cached_property
    def output(self) -> tuple[int, int, int, int]:
        """``(N, OC, OH, OW)``."""
        n, _, height, width = self.input
        return (n, self.weight[0], *self.spec.output_size((height, width), self.kernel))

    @property
    def kernel(self) -> tuple[int, int]:
        """``(KH, KW)``."""
        return self.weight[2], self.weight[3]

    @property
    def positions(self) -> int:
        """Positions of one image's output."""
        return self.output[2] * self.output[3]

    @property
    def window(self) -> int:
        """Inputs of one neuron."""
        return math.prod(self.weight[1:])
