"""How many neurons, and which, a recipe lets sleep to reach a saving on a view."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

from drowsy.evaluation.intervals import as_good
from drowsy.images.view import View
from drowsy.knob.costs import ROUNDING
from drowsy.knob.schedule import Setting
from drowsy.network.net import DrowsyNet
from drowsy.tuning.recipe import Sleep
from drowsy.tuning.workbench import Operation, Workbench

# Up to this ratio divergences do not tell which of two settings is the better one.
TIED = 1.1
# Images that tell whether one operation is better than another, at least.
_TELLING = 2


def asleep(
    recipe: Sleep,
    workbench: Workbench,
    view: View,
    saving: float,
    number_format: str | None = None,
    used: Collection[Setting] = (),
) -> Operation | None:
    """What saves at least ``saving`` of all multiplications on a view; None where nothing does.

    ``used`` are settings that it may not have, as a network has one correction a setting.
    """
    net = workbench.net(recipe, number_format)
    spared = workbench.spared(view.size)
    if spared >= saving - ROUNDING:
        return workbench.awake_at(view, number_format)
    wanted = workbench.left_to_sleep(view.size, saving) - ROUNDING
    saved = partial(workbench.asleep, net, view.size)
    settings = _settings(recipe, workbench, net, saved, wanted, used)
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
        # A search flatters what it found on the images that it went by; the others tell.
        searched, uniform = operations
        one, other = (workbench.qualities(each)[workbench.quick :] for each in operations)
        return uniform if len(one) < _TELLING or as_good(other, one) else searched
    # Of those that are about as close to the network awake, the most accurate one.
    damage = {operation: workbench.damage(operation) for operation in operations}
    least = min(operations, key=damage.__getitem__)
    # Of answers that hardly move, sums of rounded logarithms may come out below 0.
    near = [o for o in operations if o is least or damage[o] <= TIED * damage[least]]
    return max(near, key=workbench.quality)


def _settings(
    recipe: Sleep,
    workbench: Workbench,
    net: DrowsyNet,
    saved: Callable[[Setting], float],
    wanted: float,
    used: Collection[Setting],
) -> list[Setting]:
    """What may be best of the settings that save so much of the multiplications, none in use.

    Beside what was searched one rate for all layers, to be held against it.
    """
    if recipe.rates == "uniform":
        return _uniform(net, saved, wanted, {}, used)
    damage = workbench.search(recipe)
    uniform = _uniform(net, saved, wanted, damage, used)
    enough = (s for s in damage if s not in used and saved(s) >= wanted)
    searched = sorted(enough, key=damage.__getitem__)[:1]
    if recipe.correction == "none" and not workbench.graded:
        # A search without corrections has measured just what counts, of uniform rates too.
        return searched
    return list(dict.fromkeys(searched + uniform))


def _uniform(
    net: DrowsyNet,
    saved: Callable[[Setting], float],
    wanted: float,
    damage: Mapping[Setting, float],
    used: Collection[Setting],
) -> list[Setting]:
    """One rate for all layers that saves enough, as one setting; none where none does.

    Layers that rest make a rate fall short of its own figure, and it may be in use. Where one step
    in one other layer makes up for that, only that layer sleeps a step more: of such layers the one
    that does least damage when it sleeps alone, as far as that was measured, or that saves least by
    the step.
    """
    free = [int(name not in net.resting) for name in net.layers]
    alone: dict[int, float] = {}
    for setting in damage:
        if sum(map(bool, setting)) == 1:
            layer = setting.index(max(setting))
            alone[layer] = max(alone.get(layer, 0.0), damage[setting])
    for j in range(net.k):
        rate = tuple(j * each for each in free)
        if saved(rate) >= wanted and rate not in used:
            return [rate]
        if 0 < j < net.k - 1:
            steps = {n: (*rate[:n], j + 1, *rate[n + 1 :]) for n, each in enumerate(free) if each}
            enough = [n for n, step in steps.items() if saved(step) >= wanted and step not in used]
            if enough:
                return [steps[min(enough, key=lambda n: (alone.get(n, 0.0), saved(steps[n])))]]
    return []
