"""What each lever offers: operations that may be worth having, and what came of it in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from drowsy.correction.calibrate import FEWEST
from drowsy.energy import NoMeter
from drowsy.evaluation.intervals import as_good
from drowsy.evaluation.metrics import NotFinite
from drowsy.files.messages import counted
from drowsy.images.view import View
from drowsy.knob.frontier import SAVES
from drowsy.knob.schedule import Setting
from drowsy.tuning.clock import Clock
from drowsy.tuning.progress import Tell, silent
from drowsy.tuning.recipe import CORRECTIONS, Sleep
from drowsy.tuning.rig import Rig
from drowsy.tuning.sleeping import asleep
from drowsy.tuning.workbench import Operation, Workbench

LEVERS = ("view", "sleep", "format")
# Savings that views are made for; between them lie sizes of a few pixels' difference.
VIEW_SAVINGS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
# Parts of a picture's sides that a view may show, from the whole inwards.
MIDDLES = (1.0, 0.94, 0.88, 0.82, 0.76, 0.70, 0.64)
# Savings that something sleeps for, those first that are left out last where time is short.
SLEEP_SAVINGS = (1 / 2, 1 / 4, 3 / 4, 3 / 8, 5 / 8)
# A format or a sleep that takes more than this of what it replaces is not worth its loss.
WORTH = 0.95
# Why an operation is left out, in words.
NOT_FINITE = "the network puts out NaN or infinity then"
# What sleepers add to a smaller view they save more than this.
_APART = 1 / 16
# Savings that recipes are chosen at.
_TRIED = (0.22, 0.45)
# Images that a search of rates measures on, at least, where their outputs cover the picture.
_FEW = 4
# Of the time: when it is over sleep is not begun, no more recipes are compared, and no sleep is
# offered at further savings. Views, which are cheap and save most places something, are all tried.
_SLEEP, _RECIPES, _SAVINGS = 0.5, 0.6, 0.85


@dataclass
class Offers:
    """Operations in the order in which they were found, and a word on every lever.

    ``tell`` is told what is being done, while the ``clock`` runs.
    """

    clock: Clock
    operations: list[Operation] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)
    tell: Tell = silent

    def tell_kept(self, kept: Iterable[Iterable[str]], worth: Iterable[Iterable[str]]) -> None:
        """``tell_kept`` of these operations."""
        tell_kept(self.told, map(_turned, self.operations), kept, worth)


def tell_kept(
    told: dict[str, str],
    tried: Iterable[Iterable[str]],
    kept: Iterable[Iterable[str]],
    worth: Iterable[Iterable[str]],
) -> None:
    """Say of every lever that was tried, and that no point worth having turns, that it was in vain.

    Args:
        told: a word on every lever, which is added to.
        tried: the levers that each way which was tried turns.
        kept: those that each point in the knob's file turns.
        worth: those that each point worth having turns.
    """
    there = set[str]().union(*kept)
    for name in set[str]().union(*tried).difference(*worth):
        told[name] += "; none worth having when tuned" if name in there else "; none kept"


def _turned(operation: Operation) -> set[str]:
    """The levers that an operation turns."""
    turned = {
        "view": not operation.view.is_whole,
        "sleep": any(operation.setting),
        "format": operation.number_format is not None,
    }
    return {name for name in LEVERS if turned[name]}


def allows(minutes: float) -> str:
    """Why images or frames are left out, in words."""
    return f"as {minutes:g} min allow no more"


def offer_formats(rig: Rig, formats: Sequence[str], offers: Offers) -> str | None:
    """Offer the formats that are faster than the model's own; returns the fastest, None for own."""
    if rig.cost == "macs":
        offers.told["format"] = "left out, as it saves no multiplications"
        return None
    offers.tell("format")
    whole = View.whole(rig.workbench.full)
    own = rig.measured(rig.workbench.awake_at(whole))
    found: dict[str, float] = {}
    told = []
    for name in formats:
        try:
            operation = rig.workbench.awake_at(whole, name)
            took = rig.measured(operation) / own
        except NoMeter:
            raise
        except (RuntimeError, NotImplementedError) as error:
            told.append(f"{name} does not run ({str(error).splitlines()[0]})")
            continue
        told.append(f"{name} takes {took:.2f} of the {SAVES[rig.cost]} of the network's own format")
        if took < WORTH and not rig.workbench.is_finite(operation):
            told[-1] += f", and is left out: {NOT_FINITE}"
        elif took < WORTH:
            found[name] = took
            offers.operations.append(operation)
    offers.told["format"] = "; ".join(told) or "none but the network's own on this device"
    return min(found, key=found.__getitem__, default=None)


def offer_views(rig: Rig, number_format: str | None, crops: bool, offers: Offers) -> None:
    """Offer smaller views: at every size that part of the middle which does best.

    Args:
        rig: measures.
        number_format: that they run in.
        crops: whether a view may leave out the border; else it shows the whole picture.
        offers: they go there.
    """
    workbench = rig.workbench
    middles = MIDDLES if crops else MIDDLES[:1]
    place, count = 0, len(offers.operations)
    seen: set[View] = set()
    lost: set[View] = set()
    for saving in VIEW_SAVINGS:
        size = workbench.resolution_for(saving)
        if size is None or size == workbench.full:
            continue
        if not workbench.comparable(workbench.scaled(size)):
            continue
        quality: dict[int, float] = {}

        def at(n: int, size: tuple[int, int] = size, quality: dict[int, float] = quality) -> float:
            if n not in quality:
                view = View.of(workbench.full, size, middles[n])
                operation = workbench.awake_at(view, number_format)
                offers.tell("view", str(view))
                if workbench.is_finite(operation):
                    quality[n] = workbench.quality(operation)
                    if view not in seen:
                        offers.operations.append(operation)
                    seen.add(view)
                else:
                    quality[n] = -math.inf
                    lost.add(view)
            return quality[n]

        # Uphill from where the next larger size did best.
        for step in (1, -1):
            while 0 <= place + step < len(middles) and at(place + step) > at(place):
                place += step
        at(place)
        # Now, so that the clock knows of it.
        rig.spent(workbench.awake_at(workbench.scaled(size), number_format))
    offered = len(offers.operations) - count
    offers.told["view"] = (
        ("1 size or part" if offered == 1 else f"{offered} sizes and parts")
        + " of the picture tried"
        + ("" if crops else "; the whole picture, as outputs cover it")
        + (
            "; it bets on what matters being in the middle, as in the images given"
            if crops and offered
            else ""
        )
        if offered
        else "left out: the network takes no smaller image, or its outputs have another shape then"
        if not lost
        else f"left out: {NOT_FINITE}"
    )
    if offered and lost:
        offers.told["view"] += f"; {len(lost)} more left out: {NOT_FINITE}"


def offer_sleep(
    rig: Rig,
    recipes: Sequence[Sleep],
    number_format: str | None,
    views: Sequence[View],
    afforded: Callable[[str, int], int],
    offers: Offers,
) -> Sleep:
    """Offer sleep on these views, by the recipe and the correction that do best; returns these.

    Args:
        rig: measures.
        recipes: that differ in how they sleep.
        number_format: that they run in.
        views: the whole picture first.
        afforded: by correction and images that it measures on, how many settings a search of rates
            may measure.
        offers: they go there.
    """
    workbench = rig.workbench
    if not offers.clock.has(_SLEEP):
        offers.told["sleep"] = f"left out, {allows(offers.clock.minutes)}"
        return recipes[0]
    offers.tell("sleep", "by which recipe")
    if rig.cost != "macs":
        took = min(_pace(rig, recipe, number_format, rate) for recipe in recipes for rate in (4, 6))
        if took > WORTH:
            offers.told["sleep"] = (
                f"left out: asleep at 1/2 and 3/4 it took {took:.2f} of the {SAVES[rig.cost]} "
                "awake, when tuned" + (f", in {number_format}" if number_format else "")
            )
            return recipes[0]
    wanted = {
        saving: [view for view in views if workbench.spared(view.size) <= saving - _APART]
        for saving in SLEEP_SAVINGS
    }
    left = [workbench.left_to_sleep(v.size, s) for s, shown in wanted.items() for v in shown]
    ways = _ways(workbench, recipes, views[0], left, number_format, afforded, offers)
    if not ways:
        offers.told["sleep"] = f"left out: no setting saves enough, or {NOT_FINITE}"
        return recipes[0]
    recipe = ways[0]
    count = len(offers.operations)
    late = _add_asleep(workbench, ways, wanted, number_format, offers)
    offers.told["sleep"] = (
        f"{counted(len(offers.operations) - count, 'setting')} tried, {recipe.source}, "
        f"rates: {recipe.rates}, filled by {recipe.fill}, "
        f"correction: {' or '.join(way.correction for way in ways)}"
        + late
        + ("; fovea bets on the middle of the picture" if recipe.source == "fovea" else "")
    )
    return recipe


def _ways(
    workbench: Workbench,
    recipes: Sequence[Sleep],
    view: View,
    wanted: Sequence[float],
    number_format: str | None,
    afforded: Callable[[str, int], int],
    offers: Offers,
) -> list[Sleep]:
    """The recipe that does best, its rates searched if that is afforded; none if none saves enough.

    What a search looks for are settings that save what is ``wanted`` of the convolutions.

    Where quality is graded also the same without correction, if it has one: what mends a network in
    which most sleep may harm one in which few do. Searches go by none there, and what they find
    tells which correction does best.
    """
    plain = [replace(each, rates="uniform") for each in recipes]
    recipe = _best(workbench, plain, view, number_format, offers.clock)
    if recipe is None:
        return []
    fitted = len(workbench.images("calibration")) >= FEWEST
    corrections = [each for each in CORRECTIONS if fitted or each != "reconstruct"]
    tried = corrections[:1] if workbench.graded else corrections
    fills = [replace(recipe, correction=each) for each in tried]
    fills.append(replace(recipe, fill="interpolate"))
    recipe = _best(workbench, fills, view, number_format, offers.clock) or recipe
    net = workbench.net(recipe, number_format)
    fewest, few = len(net.layers) - len(net.resting) + net.k, workbench.quick
    # A picture that is answered everywhere tells much: sooner fewer of them than fewer settings.
    while workbench.covers and few > _FEW and afforded(recipe.correction, few) < 2 * fewest:
        few = max(few // 2, _FEW)
    budget = afforded(recipe.correction, few)
    # Fewer than it takes to try every layer are no search of rates.
    if budget >= fewest:
        offers.tell("sleep", "layer by layer")
        with suppress(NotFinite):
            workbench.search(replace(recipe, rates="search"), budget, few, wanted)
            recipe = replace(recipe, rates="search")
    if not workbench.graded:
        return [recipe]
    corrected = [replace(recipe, correction=each) for each in corrections]
    recipe = _best(workbench, corrected, view, number_format, offers.clock) or recipe
    return list(dict.fromkeys([recipe, corrected[0]]))


def _add_asleep(
    workbench: Workbench,
    ways: Sequence[Sleep],
    wanted: Mapping[float, Sequence[View]],
    number_format: str | None,
    offers: Offers,
) -> str:
    """Offer what sleeps to reach each saving on each view; returns what is left out, in words."""
    used: set[Setting] = set()
    for n, (saving, views) in enumerate(wanted.items()):
        # Of what was searched for, something is offered however late it is.
        if n and not offers.clock.has(_SAVINGS):
            rest = ", ".join(f"{each:.0%}" for each in [*wanted][n:])
            return f"; none that saves {rest}, {allows(offers.clock.minutes)}"
        for view in views:
            offers.tell("sleep", f"{saving:.0%} saved on {view}")
            # A network has one correction a setting, or none, which is that of one view.
            found = [_asleep(way, workbench, view, saving, number_format, used) for way in ways]
            operation = max(filter(None, found), key=workbench.quality, default=None)
            if operation is not None:
                used.add(operation.setting)
                offers.operations.append(operation)
    return ""


def _best(
    workbench: Workbench,
    recipes: Sequence[Sleep],
    view: View,
    number_format: str | None,
    clock: Clock,
) -> Sleep | None:
    """The recipe that does best, of those that the time allows; None where none saves enough.

    Whether an answer is right is told by few images; how far it moved by each. Where quality is a
    matter of degree, of those that are about as good the one that moved answers least.
    """
    found: dict[Sleep, list[Operation]] = {}
    for recipe in recipes:
        if found and not clock.has(_RECIPES):
            break
        operations = [_asleep(recipe, workbench, view, each, number_format) for each in _TRIED]
        if all(operations):
            found[recipe] = [each for each in operations if each]
    near = found
    if workbench.graded and found:
        values = {r: np.sum([workbench.qualities(o) for o in each], 0) for r, each in found.items()}
        best = max(values.values(), key=np.mean)
        near = {r: each for r, each in found.items() if as_good(values[r], best)}
    return min(near, key=lambda r: sum(map(workbench.damage, near[r])), default=None)


def _asleep(
    recipe: Sleep,
    workbench: Workbench,
    view: View,
    saving: float,
    number_format: str | None,
    used: Collection[Setting] = (),
) -> Operation | None:
    """``asleep``; None, too, where the network puts out NaN."""
    with suppress(NotFinite):
        operation = asleep(recipe, workbench, view, saving, number_format, used)
        if operation is not None and workbench.is_finite(operation):
            return operation
    return None


def _pace(rig: Rig, recipe: Sleep, number_format: str | None, rate: int) -> float:
    """What a rate for every layer costs, as a fraction of awake in this format."""
    workbench = rig.workbench
    # Any fill that computes no table tells.
    net = workbench.net(replace(recipe, fill="interpolate"), number_format)
    whole = View.whole(workbench.full)
    awake = rig.measured(workbench.awake_at(whole, number_format))
    setting = tuple(rate * (name not in net.resting) for name in net.layers)
    return rig.measured(Operation(net, whole, setting, 0.0, number_format=number_format)) / awake
