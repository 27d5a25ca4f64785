"""Recipes: ways to save multiplications, each said in a few fields."""

from __future__ import annotations

from dataclasses import dataclass

from drowsy.sleep import DEFAULT_K

RATES = ("uniform", "search")
CORRECTIONS = ("none", "affine", "reconstruct")


class Recipe:
    """A way to save multiplications; ``name`` heads its rows."""

    name: str


@dataclass(frozen=True)
class Sleep(Recipe):
    """Neurons asleep, at a lower resolution or not.

    Args:
        name: of the recipe.
        source, grain, k, fill, skip: as for ``drowsy.convert``.
        aligned: layers of a stage share one position map (``drowsy.align``).
        rates: ``uniform`` (one rate for all layers) or ``search`` (the additive search).
        scaling: how much of a saving may be left to the input's size: 0 is nothing, at 1 nobody
            sleeps. Of the operations at each, the most accurate one on the search images is taken
            (without labels, the one of least divergence).
        cropped: whether images are cropped to these sizes instead of scaled.
        correction: what ``drowsy.calibrate`` does before an operation is measured: ``none``,
            ``affine`` or ``reconstruct``. Searches then go by the affine one, on fewer images, and
            what they find best is held against one rate for all layers, both really corrected, on
            all search images: the one of least divergence is taken, or if both are about as good in
            that, the more accurate one. Where quality is a matter of degree for a single image,
            searches go by none, and one rate for all layers is held against what they find, on
            images that they did not go by: it gives way only to what is better there by more than
            a standard error.
    """

    name: str
    source: str = "bernoulli"
    grain: str = "neuron"
    k: int = DEFAULT_K
    fill: str = "auto"
    skip: tuple[str, ...] = ()
    aligned: bool = False
    rates: str = "search"
    scaling: tuple[float, ...] = (0.0,)
    cropped: bool = False
    correction: str = "none"

    def __post_init__(self) -> None:
        if self.correction not in CORRECTIONS:
            raise ValueError(
                f"correction: got {self.correction!r}, allowed: {', '.join(CORRECTIONS)}"
            )
        if self.rates not in RATES:
            raise ValueError(f"rates: got {self.rates!r}, allowed: {', '.join(RATES)}")
        if not self.scaling or not all(0 <= part <= 1 for part in self.scaling):
            raise ValueError(f"scaling: got {self.scaling}, allowed: parts from 0 to 1")

    @property
    def calibrates(self) -> bool:
        """Whether it needs calibration images."""
        return self.correction != "none" or self.fill == "stencil"
