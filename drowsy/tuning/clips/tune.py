"""``tune`` for video: which of a clip's frames to compute, at what size, and how much of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drowsy.evaluation.evaluator import task_of
from drowsy.evaluation.identity import fingerprint_state
from drowsy.evaluation.metrics import Task
from drowsy.evaluation.store import Store
from drowsy.files.messages import counted, legible, quoted
from drowsy.files.provenance import provenance
from drowsy.graph.convert import check_model, inside
from drowsy.images.scaling import Size
from drowsy.images.structures import tensors_in
from drowsy.knob.costs import network_cost
from drowsy.knob.tradeoffs import undominated
from drowsy.network.net import DrowsyNet
from drowsy.tuning.clips.file import VideoContents
from drowsy.tuning.clips.footage import (
    BLOCK,
    Footage,
    Seen,
    Stretch,
    fingerprint_clips,
    gather,
    shortened,
    split,
)
from drowsy.tuning.clips.knob import VideoKnob, network_for, worth_having
from drowsy.tuning.clips.pace import Pace, joules_a_frame, pace
from drowsy.tuning.clips.point import COSTS, VideoPoint
from drowsy.tuning.clock import Clock
from drowsy.tuning.journal import Journal
from drowsy.tuning.levers import NOT_FINITE, WORTH, allows, tell_kept
from drowsy.tuning.progress import Tell
from drowsy.tuning.resolution import resolution_for, shadow
from drowsy.tuning.waiting import Waiting, noted
from drowsy.tuning.witness import Witness
from drowsy.video.areas import REFRESH
from drowsy.video.ways import Player, Way

VIDEO_LEVERS = ("packed", "size", "skip", "remember")
# Savings of multiplications by size, of which the first are mixed with others; frames of which one
# is computed; and what sleeps of a frame.
_SIZES, _MIXED = (1 / 4, 1 / 2, 3 / 4), 2
_SKIPS = (2, 4)
_RATES = (Fraction(1, 2), Fraction(3, 4))
# Of the time: for choosing, reporting and timing each way; passes over frames of the first two, in
# those of the network awake; seconds a way is timed at most.
_CHOOSING, _REPORTING, _TIMING = 0.4, 0.3, 0.3
_PASSES = {"choose": 12, "report": 6}
_TIMED = 2.0
# Of the time: when it is over no further ways are tried.
_TRIED = 0.7
# Fewer clips than this are few to draw again.
_FEW = 10


@dataclass
class _Offers:
    """Ways that may be worth having, or were tried, and a word on every lever."""

    ways: list[Way] = field(default_factory=lambda: [Way()])
    told: dict[str, str] = field(default_factory=dict)


def tune_video(
    model: nn.Module,
    clips: Any,
    labels: Any,
    metric: Any,
    levers: str | Sequence[str],
    cost: str,
    minutes: float,
    tell: Tell,
    store: Store | None,
    beside: str | None,
) -> VideoKnob:
    """What ``drowsy.tune`` does with ``video=True``; arguments as told there.

    ``tell`` is told what is being done; ``beside`` the store is the path of the journal.
    """
    check_model(inside(model))
    chosen = _levers(levers)
    # In the network's own dtype, as the knob answers.
    with torch.autocast(next(model.parameters()).device.type, enabled=False):
        return _tuned(model, clips, labels, metric, chosen, cost, minutes, tell, store, beside)


def _tuned(
    model: nn.Module,
    clips: Any,
    labels: Any,
    metric: Any,
    chosen: set[str],
    cost: str,
    minutes: float,
    tell: Tell,
    store: Store | None,
    beside: str | None,
) -> VideoKnob:
    if cost not in tuple(COSTS):
        raise ValueError(f"cost: got {quoted(cost)}, allowed for video: {', '.join(COSTS)}")
    like = next(model.parameters())
    stretches = gather(clips, labels, like)
    first = stretches[0]
    try:
        net = network_for(model, first.frames[:1])
    except RuntimeError as error:
        raise ValueError(
            f"clips: got frames of {tuple(first.frames.shape[1:])}, allowed: what the network "
            f"takes ({legible(error)})"
        ) from error
    few = first.part(0, 4)
    task = task_of(net, few.frames, few.labels, metric)
    if labels is not None:
        for each in stretches:
            task.check(each.labels, each.frames)
    about = {
        "weights": fingerprint_state(inside(model).state_dict()),
        "data": fingerprint_clips(stretches),
        "minutes": minutes,
        "machine": provenance()["machine"],
    }
    journal = Journal(beside, about)
    clock = Clock(minutes, journal, f"{cost}, {sorted(chosen)}, {task.name} {task.told}")
    bench = _Bench(net, first.frames[:32], cost, 60 * minutes, journal)
    tell("preparing")
    seconds = 1e-3 * bench.pace(Way()).awake_ms
    choosing, reporting, how = split(stretches)
    budget = 60 * minutes / seconds
    choosing = shortened(choosing, int(_CHOOSING * budget / _PASSES["choose"]))
    reporting = shortened(reporting, int(_REPORTING * budget / _PASSES["report"]))
    if labels is not None:
        # Together: one clip that the network misreads throughout is no reason to doubt its labels.
        Footage(net, [*choosing, *reporting], task).check_targets()
    offers = _offered(bench, chosen)
    chosen_on = Footage(net, choosing, task, store, journal)
    ways = _chosen(bench, chosen_on, offers, labels is not None, clock, tell)
    report = Footage(net, reporting, task, store, journal)
    objective = task.quality(labels is not None)
    points = list(_points(bench, report, ways, objective, tell))
    unlabelled = task.quality(False)
    steady = journal.get(f"steady: {task.name} {task.told}", lambda: report.steady(unlabelled))
    tell("measuring")
    all_of_them = "; ".join(map(str, ways))
    metered = journal.get(f"joules: {all_of_them}", lambda: joules_a_frame(net, ways, bench.clip))
    points = [replace(p, joules=each) for p, each in zip(points, metered, strict=True)]
    tell_kept(
        offers.told,
        tried=(way.turned for way in offers.ways),
        kept=(point.way.turned for point in points),
        worth=(p.way.turned for by in _costs(cost) for p in worth_having(points, objective, by)),
    )
    intervals = _intervals_told(len(reporting), points[0].interval is not None)
    used, given = _count(choosing) + _count(reporting), _count(stretches)
    left = f" of {given}, {allows(minutes)}" if used < given else ""
    offers.told["frames"] = (
        f"{how}: {_count(choosing)} and {counted(_count(reporting), 'frame')}{left}; {intervals}"
    )
    image = (first.frames.shape[1], first.frames.shape[2], first.frames.shape[3])
    contents = VideoContents(
        weights=about["weights"],
        witness=Witness.of(model, image, [p.way.size for p in points if p.way.size is not None]),
        image=image,
        points=tuple(points),
        objective=objective,
        cost=cost,
        levers=offers.told,
        made=noted(
            {
                "task": str(task),
                "labelled": labels is not None,
                "clips": {"choose": len(choosing), "report": len(reporting)},
                "frames": {"choose": _count(choosing), "report": _count(reporting)},
                "given": given,
                "steady": {"metric": unlabelled, "value": steady},
                "data": about["data"],
                "minutes": minutes,
                **provenance(),
            },
            # Ways are chosen by the milliseconds that are told of them.
            choosing=bench.waiting.share,
            measuring=bench.waiting.share,
        ),
    )
    return VideoKnob(model, contents)


def _levers(levers: str | Sequence[str]) -> set[str]:
    if levers == "auto":
        return set(VIDEO_LEVERS)
    names = (
        [levers] if isinstance(levers, str) or not isinstance(levers, Iterable) else list(levers)
    )
    if not names or any(name not in VIDEO_LEVERS for name in names):
        allowed = ", ".join(VIDEO_LEVERS)
        raise ValueError(f"levers: got {levers!r}, allowed for video: auto, or some of {allowed}")
    return set(names)


def _intervals_told(clips: int, there: bool) -> str:
    """What intervals are of, in words."""
    if not there:
        return (
            f"there are no intervals, as two blocks of about {BLOCK} frames in a row are the least"
        )
    blocks = "blocks of frames in a row"
    if clips == 1:
        return f"intervals are of {blocks} of one clip, and say nothing of other cameras"
    few = f"; {clips} clips are few, and intervals rough" if clips < _FEW else ""
    return f"intervals are of {clips} clips drawn again, and {blocks} in each{few}"


def _count(stretches: Sequence[Stretch]) -> int:
    return sum(len(each.frames) for each in stretches)


class _Bench:
    """A network with a clock, each way timed once, in a run that resumes too."""

    def __init__(
        self, net: DrowsyNet, clip: Tensor, cost: str, seconds: float, journal: Journal
    ) -> None:
        self.net, self.clip, self.cost, self._journal = net, clip, cost, journal
        self.waiting = Waiting()
        # About as many ways as there are.
        self._seconds = min(_TIMED, _TIMING * seconds / 30)

    def pace(self, way: Way) -> Pace:
        """How long a way takes here."""

        def taken() -> list[float]:
            return list(astuple(pace(self.net, way, self.clip, self._seconds)))

        return Pace(*self.waiting.timed(self._journal, f"pace: {way}", taken))

    def spent(self, way: Way, seen: Seen, cost: str) -> float:
        """What a way costs, as a fraction of awake."""
        if way.is_awake:
            return 1.0
        if cost == "macs":
            return seen.work
        found = self.pace(way)
        # Of the network awake, some frame always takes a little longer than the mean.
        slowest = found.slowest / self.pace(Way()).slowest
        return found.mean if cost == "latency" else slowest

    def refusal(self, way: Way) -> str | None:
        """Why the network cannot answer frames so; None where it can."""
        frames = self.clip[:2]
        player = Player(self.net, way)
        try:
            with torch.inference_mode():
                answers = [player(frame) for frame in frames.split(1)]
                whole = self.net(frames[:1])
        except (RuntimeError, ValueError, NotImplementedError) as error:
            return str(error).splitlines()[0]
        one, other = map(tensors_in, (answers[1], whole))
        if [y.shape for y in one] != [y.shape for y in other]:
            return "its outputs have another shape then"
        pairs = zip(one, other, strict=True)
        lost = any(b.isfinite().all() and not a.isfinite().all() for a, b in pairs)
        return NOT_FINITE if lost else None


def _offered(bench: _Bench, levers: set[str]) -> _Offers:
    """Everything that may be worth having."""
    offers = _Offers()
    whole = _packed(bench, offers) if "packed" in levers else Way()
    sizes = _sized(bench, whole, offers) if "size" in levers else []
    skips = [replace(whole, every=n) for n in _SKIPS] if "skip" in levers else []
    remembering = _remembering(bench, offers) if "remember" in levers else []
    mixed = [
        replace(other, size=size.size)
        for size in sizes[:_MIXED]
        for other in [*skips[:1], *(way for way in remembering if way.rate == _RATES[0])]
    ]
    fitting = [way for way in mixed if bench.refusal(way) is None]
    offers.ways += [*sizes, *skips, *remembering, *fitting]
    if skips:
        offers.told["skip"] = (
            f"one frame of {' and of '.join(map(str, _SKIPS))} computed; the frame that is takes "
            "as long as ever"
        )
    if fitting:
        offers.told["mixtures"] = f"{len(fitting)} of smaller frames with one of the other levers"
    offers.told |= {name: "not asked for" for name in VIDEO_LEVERS if name not in levers}
    return offers


def _packed(bench: _Bench, offers: _Offers) -> Way:
    """How whole frames are computed: with packed weights, where that is faster."""
    way = Way(packed=True)
    refusal = bench.refusal(way)
    if refusal is not None:
        offers.told["packed"] = f"left out: {refusal}"
        return Way()
    took = bench.pace(way).mean
    offers.told["packed"] = (
        f"whole frames take {took:.2f} of the time awake, with weights laid out anew"
    )
    if took >= WORTH:
        offers.told["packed"] += ", so that they are not"
        return Way()
    offers.ways.append(way)
    return way


def _sized(bench: _Bench, whole: Way, offers: _Offers) -> list[Way]:
    """Frames at fewer pixels, largest first."""
    channels, height, width = bench.clip.shape[1:]
    told = shadow(bench.net, (channels, height, width))

    def multiplies(size: Size) -> int:
        return network_cost(told, (channels, *size)).multiplies

    sizes = [resolution_for(saving, multiplies, (height, width)) for saving in _SIZES]
    ways = [
        replace(whole, size=size)
        for size in dict.fromkeys(sizes)
        if size not in (None, (height, width))
    ]
    refusals = [bench.refusal(way) for way in ways]
    found = [way for way, why in zip(ways, refusals, strict=True) if why is None]
    why = next((each for each in refusals if each), "its maps have one size")
    offers.told["size"] = (
        f"{counted(len(found), 'size')} offered"
        if found
        else f"left out: the network takes no smaller frame ({why})"
    )
    return found


def _remembering(bench: _Bench, offers: _Offers) -> list[Way]:
    """A part of each frame."""
    ways = [Way(refresh=refresh, rate=rate) for refresh in REFRESH for rate in _RATES]
    refusals = [bench.refusal(way) for way in ways]
    found = [way for way, why in zip(ways, refusals, strict=True) if why is None]
    offers.told["remember"] = (
        f"{counted(len(found), 'way')} offered; a frame after a cut is computed whole"
        if found
        else f"left out: {refusals[0]}"
    )
    return found


def _chosen(
    bench: _Bench,
    footage: Footage,
    offers: _Offers,
    labelled: bool,
    clock: Clock,
    tell: Tell,
) -> list[Way]:
    """Awake, and the ways that no other beats in cost and quality, each well below awake's cost.

    By the clock, both in the mean and in the slowest frame, since a knob is asked for either.
    """
    seen: dict[Way, Seen] = {}
    for way in offers.ways:
        if seen and not clock.has(_TRIED):
            tried = f"{len(seen)} of {len(offers.ways)} tried"
            offers.told["ways"] = f"{tried}, {allows(clock.minutes)}"
            break
        tell("choosing", str(way))
        seen[way] = footage.seen(way)
        if bench.cost != "macs":
            # Now, so that the clock knows of it.
            bench.pace(way)
    ways = offers.ways = list(seen)
    harm = {way: -_quality(footage.task, seen[way], labelled) for way in ways}
    chosen = [ways[0]]
    for cost in _costs(bench.cost):
        spent = {way: bench.spent(way, seen[way], cost) for way in ways}
        kept = [way for way in ways if way.is_awake or spent[way] < WORTH]
        saved = np.array([1 - spent[way] for way in kept])
        best = undominated(saved, np.array([harm[way] for way in kept]))
        chosen += [kept[n] for n in best]
    return list(dict.fromkeys(chosen))


def _costs(cost: str) -> tuple[str, ...]:
    """What a knob by this cost is asked for."""
    return ("macs",) if cost == "macs" else ("latency", "slowest")


def _quality(task: Task, seen: Seen, labelled: bool) -> float:
    """How good a way is beside others; without labels by what is finer than agreement."""
    objective = task.quality(labelled)
    if objective == "agreement":
        return -float(seen.each(task.damage).mean())
    return float(seen.each(objective).mean())


def _points(
    bench: _Bench,
    footage: Footage,
    ways: Sequence[Way],
    objective: str,
    tell: Tell,
) -> Iterator[VideoPoint]:
    """What each way does on frames that played no part in choosing it."""
    awake_ms = float(np.median([bench.pace(way).awake_ms for way in ways]))
    awake = footage.seen(ways[0])
    for n, way in enumerate(ways):
        tell("reporting", f"{n + 1} of {len(ways)}")
        seen, found = footage.seen(way), bench.pace(way)
        loss, interval = footage.lost(awake, seen, objective)
        yield VideoPoint(
            way,
            work=seen.work,
            peak=seen.peak,
            figures=seen.figures(),
            loss=loss,
            interval=interval,
            frames=footage.frames,
            latency_ms=found.mean * awake_ms,
            slowest_ms=found.slowest * awake_ms,
        )
