"""How many neurons, and which, a recipe lets sleep to reach a saving on a view."""

from __future__ import annotations

from collections.abc import Callable

from drowsy.images.view import View
from drowsy.knob.costs import ROUNDING
from drowsy.knob.schedule import Setting
from drowsy.network.net import DrowsyNet
from drowsy.tuning.recipe import Sleep
from drowsy.tuning.workbench import Operation, Workbench

# Up to this ratio divergences do not tell which of two settings is the better one.
TIED = 1.1


def asleep(
    recipe: Sleep, workbench: Workbench, view: View, saving: float, number_format: str | None = None
) -> Operation | None:
    """What saves at least ``saving`` of all multiplications on a view; None where nothing does."""
    net = workbench.net(recipe, number_format)
    spared = workbench.spared(view.size)
    if spared >= saving - ROUNDING:
        return workbench.awake_at(view, number_format)
    wanted = workbench.left_to_sleep(view.size, saving) - ROUNDING
    settings = _settings(
        recipe, workbench, net, lambda s: workbench.asleep(net, view.size, s) >= wanted
    )
    operations = [
        Operation(
            net,
            view,
            setting,
            1 - (1 - spared) * (1 - workbench.asleep(net, view.size, setting)),
            recipe.correction,
            number_format,
        )
        for setting in settings
    ]
    if len(operations) < 2:
        return next(iter(operations), None)
    if workbench.graded:
        return max(operations, key=workbench.quality)
    # Of those that are about as close to the network awake, the most accurate one.
    damage = {operation: workbench.damage(operation) for operation in operations}
    near = TIED * min(damage.values())
    return max((o for o in operations if damage[o] <= near), key=workbench.quality)


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
