"""Recipes: ways to save multiplications, each said in a few fields."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
            that, the more accurate one.
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


@dataclass(frozen=True)
class Scale(Recipe):
    """Smaller images, nobody asleep: the simplest rival."""

    name: str = "resolution"


@dataclass(frozen=True)
class Crop(Recipe):
    """The middle of the images at full resolution, nobody asleep.

    What can be had by looking at the middle alone: for sleepers that come from the border inwards
    to be held against.
    """

    name: str = "crop"


@dataclass(frozen=True)
class Slim(Recipe):
    """Whole channels dropped, those of lowest L1 norm, the same share in every layer."""

    name: str = "channels"


_OURS = Sleep(
    "ours",
    source="fovea",
    grain="position",
    fill="stencil",
    aligned=True,
    correction="reconstruct",
)
# Of a saving, left to the size of the images.
_PARTS = (0.0, 0.5, 0.75, 1.0)
_UNIFORM = replace(_OURS, rates="uniform")
_LATTICE = replace(_UNIFORM, source="lattice")
_INTERPOLATED = replace(_LATTICE, fill="interpolate", correction="none")
_PAPER = Sleep("paper-uniform", rates="uniform")
SETS: dict[str, tuple[Recipe, ...]] = {
    "methods": (
        _PAPER,
        Sleep("paper-nonuniform"),
        # Figurnov et al., "PerforatedCNNs", NIPS 2016: a grid of positions, a rate for each layer.
        Sleep("perforation", source="lattice", grain="position", fill="nearest"),
        Slim(),
        Scale(),
        Crop(),
        _OURS,
        replace(_OURS, name="ours+resolution", scaling=_PARTS),
        replace(_OURS, name="ours+crop", scaling=_PARTS, cropped=True),
    ),
    # One ingredient more in every line, from the paper's method to ours.
    "ablation": (
        _PAPER,
        replace(_PAPER, name="+interpolate", fill="interpolate"),
        replace(_PAPER, name="+lattice", fill="interpolate", source="lattice"),
        replace(_INTERPOLATED, name="+position", aligned=False),
        replace(_INTERPOLATED, name="+aligned"),
        replace(_LATTICE, name="+stencil", correction="none"),
        replace(_LATTICE, name="+affine", correction="affine"),
        replace(_LATTICE, name="+reconstruct"),
        replace(_UNIFORM, name="+fovea"),
        _OURS,
    ),
    # What shares a bit decides what time is saved; the same rate in every layer.
    "grains": (
        replace(_UNIFORM, name="neuron", grain="neuron"),
        replace(_UNIFORM, name="position:64", grain="position:64"),
        replace(_UNIFORM, name="position:128", grain="position:128"),
        replace(_UNIFORM, name="position"),
        replace(
            _UNIFORM,
            name="channel",
            source="stratified",
            grain="channel",
            fill="auto",
            aligned=False,
        ),
    ),
    # What else could fill the sleepers of ours, and where they could lie; at the same rates.
    "patterns": (
        replace(_UNIFORM, name="interpolate", fill="interpolate"),
        replace(_UNIFORM, name="nearest", fill="nearest"),
        replace(_UNIFORM, name="lattice", source="lattice"),
        replace(_UNIFORM, name="bluenoise", source="bluenoise"),
        replace(_UNIFORM, name="stratified", source="stratified"),
        replace(_UNIFORM, name="bernoulli", source="bernoulli"),
    ),
}
RECIPES = {recipe.name: recipe for recipes in SETS.values() for recipe in recipes}
