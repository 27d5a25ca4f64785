"""``tune``: every lever of a network, searched on the user's images, measured on the machine."""

from __future__ import annotations

import copy
import os
import statistics
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from drowsy.energy import Meter
from drowsy.evaluation.arguments import check_count, check_seeds, gather
from drowsy.evaluation.evaluator import task_of
from drowsy.evaluation.identity import fingerprint_data, fingerprint_state
from drowsy.evaluation.intervals import as_good, expected_loss, paired
from drowsy.evaluation.store import Store
from drowsy.files.provenance import provenance
from drowsy.graph.convert import check_model, convert, inside
from drowsy.images.checks import check_splits
from drowsy.images.view import View
from drowsy.knob.costs import ROUNDING
from drowsy.knob.frontier import check_cost
from drowsy.knob.point import OperatingPoint
from drowsy.knob.tradeoffs import undominated
from drowsy.network.calibration import Calibration
from drowsy.tuning.clock import Clock, check_minutes
from drowsy.tuning.conditions import Conditions
from drowsy.tuning.journal import Journal, beside
from drowsy.tuning.knob import Knob
from drowsy.tuning.knobfile import MOST_BATCH, Contents
from drowsy.tuning.levers import (
    LEVERS,
    Offers,
    allows,
    offer_formats,
    offer_sleep,
    offer_views,
)
from drowsy.tuning.plan import SEARCHING, Plan
from drowsy.tuning.progress import Tell, shown
from drowsy.tuning.recipe import Sleep
from drowsy.tuning.rig import Rig
from drowsy.tuning.timing import in_turns
from drowsy.tuning.waiting import noted, warn_if_busy
from drowsy.tuning.witness import Witness, sizes_of
from drowsy.tuning.workbench import Operation, Workbench

if TYPE_CHECKING:
    from drowsy.tuning.clips.knob import VideoKnob

# A knob has one point for every step of what can be saved, at most.
STEPS = 16
MINUTES = 10.0
BATCH, SEEDS = 8, (0,)
_SEED = 0
_FEWEST = 6
# Part of the time by which a search of rates ends, as what comes later takes time too.
_SEARCHED = 0.8
# Part of the time that the points of the knob are timed for, all together.
_MEASURING = 0.05
_OURS = Sleep("ours", source="fovea", grain="position", fill="stencil", aligned=True)
_LATTICE = replace(_OURS, source="lattice")
# Savings of views that sleep may add to.
_BASES = (1 / 4, 3 / 8, 1 / 2)
# By whether outputs cover the picture: then its flat parts matter least, else perhaps its border.
_RECIPES = {False: (_OURS, _LATTICE), True: (_LATTICE, replace(_OURS, source="detail"))}
# Number formats that devices have fast ways for.
_FORMATS = {"cpu": ("bfloat16",), "cuda": ("bfloat16", "float16")}


@overload
def tune(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    labels: Any = None,
    *,
    metric: Any = "auto",
    levers: str | Sequence[str] = "auto",
    cost: str = "latency",
    minutes: float = MINUTES,
    batch: int | None = None,
    splits: Mapping[str, range] | None = None,
    seeds: Sequence[int] | None = None,
    store: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    video: Literal[False] = False,
) -> Knob: ...
@overload
def tune(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    labels: Any = None,
    *,
    metric: Any = "auto",
    levers: str | Sequence[str] = "auto",
    cost: str = "latency",
    minutes: float = MINUTES,
    store: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    video: Literal[True],
) -> VideoKnob: ...
def tune(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    labels: Any = None,
    *,
    metric: Any = "auto",
    levers: str | Sequence[str] = "auto",
    cost: str = "latency",
    minutes: float = MINUTES,
    batch: int | None = None,
    splits: Mapping[str, range] | None = None,
    seeds: Sequence[int] | None = None,
    store: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    video: bool = False,
) -> Knob | VideoKnob:
    """Give a pretrained network a knob over everything that trades accuracy for work.

    Three levers are tried, alone and together, and of everything tried those points are kept that
    no other beats in cost and quality:

    - *view*: how much of the picture's middle the network is shown, at how many pixels;
    - *sleep*: which neurons sleep, layer by layer, with weights that make up for it;
    - *format*: bfloat16 or float16, where the machine is faster in it.

    The images are split into three disjoint parts: to calibrate, to choose by, and to report on;
    ``knob.contents.made`` says how many each. They should be such as
    the network will see: views that leave out the border are chosen on them, and hold for pictures
    that are framed like them.

    With ``video``, for clips, what is tried is how the frames of a camera are answered:

    - *packed*: whole frames, with weights in the order that the device's library wants;
    - *size*: frames scaled down;
    - *skip*: every second or fourth frame computed, and its answer repeated;
    - *remember*: a half or a quarter of each frame computed (``drowsy.Stream``), by every refresh;
    - mixtures of size with skipping and with remembering.

    Args:
        model: in eval mode; stays as it was.
        images: float ``[N, C, H, W]`` on the model's device, as the network takes them; or an
            array, a loader or a data set, which is read into memory. Some hundred at least, or
            intervals are wide.
        labels: what the metric compares with: classes ``[N]``, maps, pictures or boxes. None: the
            awake network's own outputs.
        metric: what counts as quality: a task (``classification``, ``segmentation``,
            ``restoration``, ``detection``), a function ``(outputs, awake outputs, targets) -> [N]``
            numbers of which higher is better, or ``auto``, by the outputs' form.
        levers: ``auto`` for all that save here, or some of ``view``, ``sleep``, ``format``.
        cost: what is saved: ``latency``, measured here; ``joules``, where a meter is; or ``macs``,
            multiplications, wherever it will run.
        minutes: that it should take, about: it decides how many images and settings are tried, and
            what has taken more than its share is offered no further. What first calls take longer,
            as where kernels are compiled on a GPU, is taken from the search of rates as far as it
            is known by then; what is compiled later comes on top, and so does what takes long
            awake: a few timings, and 50 images that are reported on at every point.
        batch: images a batch, for latency and joules; None for 8.
        splits: which images are ``calibration``, ``search`` and ``report``, disjoint ranges; None
            shuffles them (always alike) and takes as many as the time allows.
        seeds: of the sleep maps that a point is reported with; it is chosen by the first; None for
            seed 0.
        store: file for results, SQLite; a run that was killed goes on from there, and ends with
            the same knob. What was timed stands in a file beside it, ``.journal``.
        progress: tell what is being done: by a bar on a terminal, elsewhere by a line a stage on
            stderr. None: on a terminal alone.
        video: ``images`` is a clip ``[T, C, H, W]`` or a list of clips of one size, ``labels``
            those of its frames or a list of such. Of several clips every second is chosen on and
            the others are reported on; a single one is cut in its middle. ``levers`` are
            ``packed``, ``size``, ``skip`` and ``remember``; ``cost`` is ``latency``, the mean of a
            frame, ``slowest``, of the frame that takes longest, or ``macs``. ``batch``, ``splits``
            and ``seeds`` are of images alone.

    Returns:
        the knob; with ``video`` a ``VideoKnob``, which is called with frames.

    Warns:
        RuntimeWarning: other programs took the cores while something was timed; it is noted in
            ``contents.made["waited"]``, seconds in every second, and told below the table.

    Raises:
        TypeError, ValueError: a model that ``drowsy.convert`` does not take, an argument outside
            of what is listed here, or labels by which the model does no better than guessing (few
            images are told of in a warning).
        NoMeter: ``joules``, and nothing here can meter them.
    """
    check_minutes(minutes)
    if video:
        others = {"batch": batch, "splits": splits, "seeds": seeds}
        for name, value in others.items():
            if value is not None:
                raise ValueError(f"{name}: got {value!r}, allowed: none with video")
        # Imported here: what streams are made of must not slow down programs without video.
        from drowsy.tuning.clips.tune import tune_video

        with _opened(store) as opened, shown(minutes, progress) as tell:
            video_knob = tune_video(
                model, images, labels, metric, levers, cost, minutes, tell, opened, beside(store)
            )
        warn_if_busy(video_knob.contents.made, "choosing", "measuring", stacklevel=2)
        return video_knob
    check_model(inside(model))
    chosen = _levers(levers)
    batch = BATCH if batch is None else batch
    check_count("batch", batch)
    if batch > MOST_BATCH:
        raise ValueError(f"batch: got {batch}, allowed: 1 to {MOST_BATCH}")
    check_cost(cost)
    seeds = check_seeds(SEEDS if seeds is None else seeds)
    if cost == "joules":
        Meter(str(next(model.parameters()).device))
    with _opened(store):
        pass  # Or it would be known after the work that its file cannot be written.
    # What runs is a copy: code may write to what its model holds.
    copied = copy.deepcopy(model)
    example = convert(copied)
    images, labels = gather(example, images, labels)
    if len(images) < _FEWEST:
        raise ValueError(f"images: got {len(images)}, allowed: {_FEWEST} or more, better 500")
    # Of another dtype they are cast, as the knob casts them: after they are scaled.
    dtype = next(model.parameters()).dtype
    task = task_of(example, images.to(dtype), labels, metric)
    labels = None if labels is None else task.check(labels, images)
    if splits is None:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_SEED))
        images, labels = images[order.to(images.device)], _in_order(labels, order)
    else:
        _check_splits(splits, len(images))
    about = {
        "weights": fingerprint_state(inside(model).state_dict()),
        "data": fingerprint_data(images, labels),
        "batch": batch,
        "minutes": minutes,
        "machine": provenance()["machine"],
    }
    journal = Journal(beside(store), about)
    judged = f"{task.name} {task.told}"
    clock = Clock(minutes, journal, f"{cost}, {sorted(chosen)}, {judged}, {splits}, {seeds}")
    seconds = journal.get("seconds an image", lambda: _seconds(copied, images[:batch].to(dtype)))
    plan = Plan.of(len(images), seconds, minutes)
    if splits is not None:
        plan = plan.on({name: len(span) for name, span in splits.items()})
    parts = plan.splits if splits is None else dict(splits)
    with _opened(store) as opened, shown(minutes, progress) as tell:
        tell("preparing")
        conditions = Conditions(
            seeds=seeds,
            mirrored=True,
            batch=min(50, plan.search),
            dtype=dtype,
            device=images.device,
            store=opened,
        )
        workbench = Workbench(model, images, labels, parts, conditions, task=task)
        workbench.check_targets()
        rig = Rig(copied, workbench, cost, batch, journal)
        offers, recipe = _offers(rig, chosen, plan, clock, tell)
        used = sum(map(len, parts.values()))
        # Halves of an odd number leave one.
        if splits is None and used < len(images) - 1:
            offers.told["images"] = f"{used} of {len(images)} used, {allows(minutes)}"
        tell("choosing")
        operations = _choose(rig, offers.operations)
        reported = {}
        for n, operation in enumerate(operations):
            tell("reporting", f"{n + 1} of {len(operations)}")
            # What has no figures on these images is no point, however it did on others.
            if not n or workbench.is_finite(operation, "report"):
                reported[operation] = _point(workbench, operation)
        operations, points = list(reported), list(reported.values())
        tell("measuring")
        contents = Contents(
            weights=about["weights"],
            witness=Witness.of(model, workbench.image, sizes_of(points)),
            image=workbench.image,
            recipe=recipe,
            points=tuple(points),
            objective=workbench.objective,
            cost=cost,
            batch=batch,
            restores=workbench.covers,
            stencils=_stencils(operations),
            calibrations=_calibrations(workbench, operations),
            levers=offers.told,
            made=noted(
                {
                    "task": str(task),
                    "labelled": labels is not None,
                    "images": {name: len(span) for name, span in parts.items()},
                    "given": len(images),
                    "data": about["data"],
                    "minutes": minutes,
                    **provenance(),
                },
                choosing=rig.waiting.share,
            ),
        )
        knob = Knob(model, contents, rig.images, _MEASURING * 60 * minutes)
        offers.tell_kept(*(map(knob.turned, some) for some in (points, knob.points)))
        knob.contents = replace(knob.contents, levers=offers.told)
    warn_if_busy(knob.contents.made, "choosing", "measuring", stacklevel=2)
    return knob


def _levers(levers: str | Sequence[str]) -> set[str]:
    """Names of the levers that are asked for."""
    if levers == "auto":
        return set(LEVERS)
    names = (
        [levers] if isinstance(levers, str) or not isinstance(levers, Iterable) else list(levers)
    )
    if not names or any(name not in LEVERS for name in names):
        raise ValueError(f"levers: got {levers!r}, allowed: auto, or some of {', '.join(LEVERS)}")
    return set(names)


def _check_splits(splits: Mapping[str, range], images: int) -> None:
    names = {"calibration", "search", "report"}
    if not isinstance(splits, Mapping):
        raise TypeError(f"splits: got {type(splits).__name__}, allowed: ranges by name, or None")
    if set(splits) != names:
        raise ValueError(
            f"splits: got {', '.join(splits) or 'none'}, allowed: {', '.join(sorted(names))}"
        )
    check_splits(splits, images)


def _in_order(labels: Any, order: Tensor) -> Any:
    if isinstance(labels, Tensor):
        return labels[order.to(labels.device)]
    return labels if labels is None else [labels[int(n)] for n in order]


def _seconds(model: nn.Module, images: Tensor) -> float:
    """Seconds an image, awake."""
    taken = in_turns({"model": lambda: model(images)}, 1.0, cuda=images.is_cuda)["model"]
    return 1e-3 * statistics.median(taken) / len(images)


@contextmanager
def _opened(store: str | os.PathLike[str] | None) -> Iterator[Store | None]:
    if store is None:
        yield None
    else:
        with Store(store) as opened:
            yield opened


def _offers(
    rig: Rig, levers: set[str], plan: Plan, clock: Clock, tell: Tell
) -> tuple[Offers, Sleep]:
    """Everything that may be worth having, the network as it is among it."""
    workbench = rig.workbench
    whole = View.whole(workbench.full)
    offers = Offers(clock, [workbench.awake_at(whole)], {}, tell)
    number_format = None
    if "format" in levers:
        number_format = offer_formats(rig, _FORMATS.get(rig.images.device.type, ()), offers)
    if "view" in levers:
        offer_views(rig, number_format, not workbench.covers, offers)
    # What shares maps is told by a graph.
    traced = workbench.dense.graph is not None
    recipes = [replace(each, aligned=traced) for each in _RECIPES[workbench.covers]]
    recipe = recipes[0]
    if "sleep" in levers:
        views = [whole, *_bases(rig, offers.operations)]

        def afforded(correction: str, few: int) -> int:
            late = max(SEARCHING + clock.over() - _SEARCHED, 0.0) * 60 * clock.minutes
            return plan.settings(correction, few, max(rig.compiling, late))

        recipe = offer_sleep(rig, recipes, number_format, views, afforded, offers)
    offers.told |= {name: "not asked for" for name in LEVERS if name not in levers}
    return offers, recipe


def _bases(rig: Rig, operations: Sequence[Operation]) -> list[View]:
    """Views that sleep may add to: the best ones that save about so much."""
    kept = [o for o in _undominated(rig, operations) if not o.view.is_whole]
    spared = rig.workbench.spared
    near = {
        min(kept, key=lambda o: abs(spared(o.view.size) - wanted)).view for wanted in _BASES if kept
    }
    return sorted(near, key=lambda view: spared(view.size))


def _undominated(rig: Rig, operations: Sequence[Operation]) -> list[Operation]:
    """Those that no other one beats on the search images, by what they save."""
    distinct = list(dict.fromkeys(operations))
    saved = np.array([1 - rig.spent(each) for each in distinct])
    harm = np.array([-rig.workbench.quality(each) for each in distinct])
    return [distinct[n] for n in undominated(saved, harm)]


def _choose(rig: Rig, operations: Sequence[Operation]) -> list[Operation]:
    """Awake, and the points of a knob: the best operation of every step of saving.

    The best one on the search images may be so by chance, the more the more answers it changes. So
    it is the one whose loss is expected to be least, as nothing is expected to gain. It is left out
    where the best of what saves more is better by more than a standard error.
    """
    awake, qualities = operations[0], rig.workbench.qualities
    offered = {each: 1 - rig.spent(each) for each in operations if each != awake}
    quality, reference = {each: qualities(each) for each in offered}, qualities(awake)
    lost = {each: expected_loss(quality[each], reference) for each in offered}
    loss = _rising(lost, offered, quality)

    def least(some: Sequence[Operation]) -> Operation:
        return min(some, key=lambda each: (loss[each], offered[each]))

    chosen: list[Operation] = []
    for step in range(1, STEPS):
        enough = [each for each, saved in offered.items() if saved >= step / STEPS - ROUNDING]
        own = [each for each in enough if offered[each] < (step + 1) / STEPS - ROUNDING]
        if own and as_good(quality[least(own)], quality[least(enough)]):
            chosen.append(least(own))
    return [awake, *chosen]


def _rising(
    loss: Mapping[Operation, float],
    saved: Mapping[Operation, float],
    quality: Mapping[Operation, np.ndarray],
) -> dict[Operation, float]:
    """Losses where, of one kind, what saves more loses no less, as far as these images can tell.

    Where more sleep on the same view, or fewer pixels of the same part, look better by no more than
    chance, all are taken for their mean, as in isotonic regression.
    """
    kinds: dict[Hashable, list[Operation]] = {}
    for each in sorted(loss, key=saved.__getitem__):
        shown = each.view if any(each.setting) else each.view.middle
        kinds.setdefault((shown, each.number_format), []).append(each)

    def mean(group: Sequence[Operation]) -> float:
        return statistics.fmean(loss[each] for each in group)

    found: dict[Operation, float] = {}
    for kind in kinds.values():
        groups: list[list[Operation]] = []
        for each in kind:
            groups.append([each])
            while len(groups) > 1 and mean(groups[-2]) > mean(groups[-1]):
                less, more = groups[-2:]
                if not as_good(quality[less[-1]], quality[more[0]]):
                    break
                groups[-2:] = [less + more]
        found |= {each: mean(group) for group in groups for each in group}
    return found


def _point(workbench: Workbench, operation: Operation) -> OperatingPoint:
    """What an operation does on the report images, and what it loses against awake there."""
    point = workbench.measure(operation)
    if operation.view.is_whole and operation.number_format is None and not any(operation.setting):
        return replace(point, loss=0.0, interval=(0.0, 0.0))
    awake = workbench.awake_at(View.whole(workbench.full))
    one, other = (workbench.values(each) for each in (awake, operation))
    loss = paired(one, other)
    return replace(
        point,
        saving=operation.saving,
        view=None if operation.view.is_whole else operation.view,
        number_format=operation.number_format,
        loss=loss.mean,
        interval=(loss.low, loss.high),
    )


def _stencils(operations: Sequence[Operation]) -> dict[str, Tensor]:
    """Tables of the networks that fill by them; one serves every format."""
    nets = [each.net for each in operations if any(each.setting)]
    layers = nets[0].layers if nets else {}
    return {n: layer.stencil for n, layer in layers.items() if layer.stencil is not None}


def _calibrations(
    workbench: Workbench, operations: Sequence[Operation]
) -> dict[str | None, Calibration]:
    """The corrections of all operations that have some, by number format."""
    found: dict[str | None, Calibration] = {}
    for operation in operations:
        made = workbench.calibration(operation)
        if made is not None:
            known = found.setdefault(operation.number_format, made)
            known.points |= made.points
            known.sleeps |= made.sleeps
    for operation in operations:
        # Of points that are not corrected it says so: else the nearest one's would be in force.
        if operation.number_format in found and operation.correction == "none":
            known = found[operation.number_format]
            known.points[operation.setting] = {}
            known.sleeps[operation.setting] = operation.net.sleeps
    return found
