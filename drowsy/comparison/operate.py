"""From a recipe and a wanted saving to an operation, on a workbench."""

from __future__ import annotations

from drowsy.comparison.recipes import Crop, Slim
from drowsy.comparison.slimming import slim_to
from drowsy.images.scaling import Size
from drowsy.images.view import View
from drowsy.tuning.recipe import Recipe, Sleep
from drowsy.tuning.sleeping import asleep
from drowsy.tuning.workbench import Operation, Workbench


def operate(recipe: Recipe, workbench: Workbench, saving: float) -> Operation | None:
    """How a recipe saves at least ``saving`` on a workbench; None where it cannot."""
    if isinstance(recipe, Sleep):
        return _asleep(recipe, workbench, saving)
    if isinstance(recipe, Slim):
        slim = slim_to(workbench.dense, workbench.image, saving)
        return slim and Operation(slim[0], View.whole(workbench.full), workbench.awake, slim[1])
    size = workbench.resolution_for(saving)
    cropped = isinstance(recipe, Crop)
    return size and workbench.awake_at(_view(workbench, size, cropped))


def _asleep(recipe: Sleep, workbench: Workbench, saving: float) -> Operation | None:
    """Of the operations at each part that is left to the images' size, the best one."""
    found: dict[Size, Operation] = {}
    for part in recipe.scaling:
        size = workbench.resolution_for(part * saving)
        if size is None:
            continue
        operation = asleep(recipe, workbench, _view(workbench, size, recipe.cropped), saving)
        if operation is not None:
            found[size] = operation
    if len(found) < 2:
        return next(iter(found.values()), None)
    return max(found.values(), key=workbench.quality)


def _view(workbench: Workbench, size: Size, cropped: bool) -> View:
    return workbench.cropped(size) if cropped else workbench.scaled(size)
