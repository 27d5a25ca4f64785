"""What ``convert`` tells of a network's convolutions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """What ``convert`` did with one convolution, and why.

    Attributes:
        name: of its module.
        geometry: channels, kernel, stride (``/2``) and groups as text; the kind of what is no
            ``nn.Conv2d``.
        norm: name of the batch norm folded into it; None for none.
        activation: what its neurons apply, ``none`` included; None where it is left awake.
        fill: what its sleepers output; None where it is left awake.
        reason: of the fill, or of being left awake.
    """

    name: str
    geometry: str
    norm: str | None
    activation: str | None
    fill: str | None
    reason: str
