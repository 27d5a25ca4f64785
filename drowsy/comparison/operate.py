"""From a recipe and a wanted saving to an operation, on a workbench."""

from __future__ import annotations

from collections.abc import Callable

from drowsy.comparison.recipes import Crop, Slim
from drowsy.comparison.slimming import slim_to
from drowsy.images.scaling import Size
from drowsy.images.view import View
from drowsy.knob.costs import ROUNDING
from drowsy.knob.schedule import Setting
from drowsy.network.net import DrowsyNet
from drowsy.tuning.recipe import Recipe, Sleep
from drowsy.tuning.workbench import Operation, Workbench

# Up to this ratio divergences do not tell which of two settings is the better one.
TIED = 1.1


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
        operation = None if size is None else _at(recipe, workbench, size, saving)
        if size is not None and operation is not None:
            found[size] = operation
    if len(found) < 2:
        return next(iter(found.values()), None)
    return max(found.values(), key=workbench.quality)


def _at(recipe: Sleep, workbench: Workbench, size: Size, saving: float) -> Operation | None:
    """What saves at least ``saving`` at a size of the images."""
    net, view = workbench.net(recipe), _view(workbench, size, recipe.cropped)
    if workbench.spared(size) >= saving - ROUNDING:
        return workbench.awake_at(view)
    wanted = workbench.left_to_sleep(size, saving) - ROUNDING
    settings = _settings(recipe, workbench, net, lambda s: workbench.asleep(net, size, s) >= wanted)
    operations = [
        Operation(
            net,
            view,
            setting,
            1 - (1 - workbench.spared(size)) * (1 - workbench.asleep(net, size, setting)),
            recipe.correction,
        )
        for setting in settings
    ]
    if len(operations) < 2:
        return next(iter(operations), None)
    # Of those that are about as close to the network awake, the most accurate one.
    divergence = {operation: workbench.divergence(operation) for operation in operations}
    near = TIED * min(divergence.values())
    return max((o for o in operations if divergence[o] <= near), key=workbench.quality)


def _view(workbench: Workbench, size: Size, cropped: bool) -> View:
    return workbench.cropped(size) if cropped else workbench.scaled(size)


def _settings(
    recipe: Sleep, workbench: Workbench, net: DrowsyNet, enough: Callable[[Setting], bool]
) -> list[Setting]:
    """What may be best of the settings that save enough."""
    free = [name not in net.resting for name in net.layers]
    rates = (tuple(j * each for each in free) for j in range(recipe.k))
    uniform = list(filter(enough, rates))[:1]
    if recipe.rates == "uniform":
        return uniform
    damage = workbench.search(recipe)
    searched = sorted(filter(enough, damage), key=damage.__getitem__)[:1]
    # A search without corrections has measured just what counts, of uniform rates too.
    return searched if recipe.correction == "none" else list(dict.fromkeys(searched + uniform))
