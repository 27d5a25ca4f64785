"""What a sleeper outputs: the names of fills, and which grains they go with.

``drowsy.neuron`` says what each of them is.
"""

from __future__ import annotations

from drowsy.files.messages import quoted
from drowsy.sleep.grain import Grain

NEIGHBOUR_FILLS = ("nearest", "interpolate", "stencil")
FILLS = ("zero", "rescale", *NEIGHBOUR_FILLS)


def check_fill(fill: str, grain: Grain) -> str:
    """Return the name of a fill.

    Raises:
        ValueError: not one of ``FILLS``, or one that takes its values from awake neighbours where
            the grain's cells are larger than a position.
    """
    if fill not in FILLS:
        raise ValueError(f"fill: got {quoted(fill)}, allowed: {', '.join(FILLS)}")
    if fill in NEIGHBOUR_FILLS and not grain.of_single_positions:
        raise ValueError(
            f"fill: got {fill!r} with grain {grain}, allowed: "
            f"{', '.join(name for name in FILLS if name not in NEIGHBOUR_FILLS)}; "
            f"{', '.join(NEIGHBOUR_FILLS)} need a grain of single positions "
            "(neuron, position, position:G, tile:1xN)"
        )
    return fill


def scale(j: int, k: int, fill: str) -> float:
    """Factor on awake outputs: ``k / (k - j)`` for ``rescale`` (paper, III-A), 1 for the others."""
    return k / (k - j) if fill == "rescale" else 1.0
