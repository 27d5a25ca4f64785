"""The recipes that a comparison knows: ours, the paper's, and their rivals."""

from __future__ import annotations

from dataclasses import dataclass, replace

from drowsy.tuning.recipe import Recipe, Sleep


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
