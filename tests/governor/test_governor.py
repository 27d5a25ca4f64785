"""The governor: what it promises to whoever calls it, on a clock that the test turns."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

import drowsy
from drowsy.governor import Board, Change, Governor, Reading


@dataclass(frozen=True)
class Point:
    saving: float
    loss: float | None
    latency_ms: float | None
    joules: float | None


POINTS = (
    Point(0.0, 0.0, 20.0, 0.2),
    Point(0.2, 0.01, 16.0, 0.16),
    Point(0.4, 0.03, 12.0, 0.12),
    Point(0.6, 0.08, 8.0, 0.08),
)
BATCH = torch.empty(4, 3, 8, 8)


class Knob:
    """Takes as long as its point says, times ``slow``; calls come every 50 ms."""

    def __init__(self, points: tuple[Point, ...] = POINTS) -> None:
        self.points, self.point = points, points[0]
        self.time, self.slow, self.calls = 0.0, 1.0, 0
        self._due = 0.0

    def now(self) -> float:
        return self.time

    def set(self, point: Point) -> None:
        self.point = point

    def __call__(self, batch: Any) -> Any:
        self.calls += 1
        self._due = self.time + 0.05
        self.time += 1e-3 * self.slow * (self.point.latency_ms or 10.0)
        return batch

    def wait(self) -> None:
        """Until the next batch arrives."""
        self.time = max(self.time, self._due)

    @property
    def at(self) -> int:
        return self.points.index(self.point)


class Device:
    """A board whose readings the test gives."""

    def __init__(self, knob: Knob) -> None:
        self.watts: Any = 30.0
        self.celsius: Any = 40.0
        self._knob = knob
        self.board = Board("test", self._read, now=knob.now)

    def _read(self) -> Reading:
        return Reading(self._knob.time, self._knob.time - 0.2, self.watts, self.celsius)


def run(governor: Governor, knob: Knob, times: int) -> None:
    for _ in range(times):
        knob.wait()
        governor(BATCH)


# --- what it does ------------------------------------------------------------------------------


def test_it_answers_what_the_knob_answers() -> None:
    knob = Knob()
    assert Governor(knob, latency_ms=100, now=knob.now)(BATCH) is BATCH


def test_it_starts_where_the_recordings_fit_and_follows_what_is_measured() -> None:
    knob = Knob()
    governor = Governor(knob, latency_ms=18, now=knob.now)
    governor(BATCH)
    assert knob.at == 2  # with the doubt that there is before a measurement
    run(governor, knob, 50)
    assert knob.at == 1
    knob.slow = 1.6
    run(governor, knob, 50)
    assert knob.at == 3
    knob.slow = 1.0
    run(governor, knob, 100)
    assert knob.at == 1


def test_points_may_come_in_any_order() -> None:
    knob = Knob(tuple(reversed(POINTS)))
    governor = Governor(knob, latency_ms=100, now=knob.now)
    run(governor, knob, 40)
    assert knob.point is POINTS[0]


def test_losses_that_are_not_known_are_ordered_by_saving() -> None:
    points = tuple(replace(each, loss=None) for each in (POINTS[2], POINTS[0], POINTS[3]))
    knob = Knob(points)
    run(Governor(knob, latency_ms=100, now=knob.now), knob, 40)
    assert knob.point is points[1]


def test_throughput_is_a_latency_a_batch() -> None:
    knob = Knob()
    run(Governor(knob, images_per_s=220, now=knob.now), knob, 50)
    assert knob.at == 1  # 4 images in 16 ms are 250 a second, in 20 ms 200


def test_the_floor_is_never_exceeded() -> None:
    knob = Knob()
    seen = set()
    governor = Governor(knob, latency_ms=9, floor=0.03, now=knob.now)
    for _ in range(50):
        governor(BATCH)
        seen.add(knob.at)
    assert max(seen) == 2


def test_infeasible_is_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "drowsy.governor")
    knob = Knob()
    governor = Governor(knob, latency_ms=18, now=knob.now)
    run(governor, knob, 40)
    knob.slow = 5.0
    run(governor, knob, 200)
    warned = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warned) == 1
    assert warned[0].startswith("no point holds latency_ms")
    assert knob.at == 3
    assert governor.state.feasible is False
    knob.slow = 1.0
    run(governor, knob, 100)
    assert caplog.text.count("the budgets can be held again") == 1
    assert governor.state.feasible is True


def test_every_change_is_logged_and_told_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "drowsy.governor")
    knob = Knob()
    changes: list[Change] = []
    governor = Governor(knob, latency_ms=18, now=knob.now, on_change=changes.append)
    run(governor, knob, 40)
    knob.slow = 1.6
    run(governor, knob, 40)
    assert [change.limit for change in changes] == ["latency_ms"] * len(changes)
    assert changes[-1].after is knob.point
    assert changes[-1].reason.startswith("over budget: latency_ms")
    assert all(change.reason in caplog.text for change in changes)
    assert governor.state.changes == len(changes)
    # This knob tells no cost of its own.
    told = f"to {knob.point.saving} of the multiplications saved: {changes[-1].reason}"
    assert told in caplog.messages[-1]


def test_a_change_is_logged_by_what_the_knob_saves(caplog: pytest.LogCaptureFixture) -> None:
    class OfTime(Knob):
        cost = "latency"

        def saved(self, point: Point) -> float:
            assert point.latency_ms is not None
            return 1 - point.latency_ms / 25

    caplog.set_level(logging.INFO, "drowsy.governor")
    knob = OfTime()
    Governor(knob, latency_ms=18, now=knob.now)(BATCH)
    assert knob.at == 2
    assert caplog.messages[0].startswith("0.2 to 0.52 of the time saved: over budget: latency_ms")


def test_an_observer_that_fails_is_logged_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    def fail(change: Change) -> None:
        raise RuntimeError("a broken dashboard")

    knob = Knob()
    run(Governor(knob, latency_ms=18, now=knob.now, on_change=fail), knob, 40)
    assert knob.at == 1
    assert "a broken dashboard" in caplog.text


def test_errors_of_the_network_are_the_callers() -> None:
    class Broken(Knob):
        def __call__(self, batch: Any) -> Any:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Governor(Broken(), latency_ms=18)(BATCH)


def test_another_hand_on_the_knob_is_followed() -> None:
    knob = Knob()
    governor = Governor(knob, latency_ms=18, now=knob.now)
    run(governor, knob, 40)
    knob.set(POINTS[3])
    governor(BATCH)
    assert governor.state.point is knob.point
    run(governor, knob, 40)
    assert knob.at == 1


def test_one_point_for_batches_of_two_shapes() -> None:
    """The smaller ones would fit at a more accurate point; the knob is not turned for each."""
    knob = Knob()
    governor = Governor(knob, latency_ms=18, now=knob.now)
    run(governor, knob, 40)
    before = governor.state.changes
    small = torch.empty(1, 3, 8, 8)
    for i in range(200):
        knob.wait()
        governor(small if i % 2 else BATCH)
    assert governor.state.changes - before <= 1
    assert knob.at == 1


def test_as_many_shapes_as_one_likes_are_kept_few() -> None:
    knob = Knob()
    governor = Governor(knob, latency_ms=18, now=knob.now)
    for width in range(1, 500):
        governor(torch.empty(1, 3, 8, width, device="meta"))
    assert len(governor._latencies._estimators) <= 64
    assert len(governor._latencies._recent) <= 4


def test_threads_may_call_side_by_side() -> None:
    knob = Knob()
    governor = Governor(knob, latency_ms=18, now=knob.now)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            run(governor, knob, 200)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert knob.calls == 800


# --- watts and temperature -----------------------------------------------------------------------


def test_watts_are_predicted_before_they_are_measured() -> None:
    """4 images every 50 ms are 16 W at point 0, and 12.8 W at point 1."""
    knob = Knob()
    device = Device(knob)
    governor = Governor(knob, watts=14.5, device=device.board, now=knob.now)
    run(governor, knob, 3)
    assert knob.at == 2


def test_other_load_pushes_down_and_its_end_lets_up() -> None:
    knob = Knob()
    device = Device(knob)
    governor = Governor(knob, watts=40, device=device.board, now=knob.now)

    def live(seconds: float, others: float) -> None:
        for _ in range(int(seconds / 0.2)):
            run(governor, knob, 4)
            device.watts = others + 80 * (knob.point.joules or 0) + 0.1 * (knob.calls % 7)
            device.board.sample()

    live(20, 20.0)
    assert knob.at == 0
    live(20, 30.0)
    assert knob.at == 3
    live(40, 20.0)
    assert knob.at == 0


def test_a_sensor_that_vanishes_leaves_a_growing_margin(caplog: pytest.LogCaptureFixture) -> None:
    knob = Knob()
    device = Device(knob)
    governor = Governor(knob, watts=38, device=device.board, now=knob.now)
    for i in range(200):
        run(governor, knob, 4)
        device.watts = 20 + 80 * (knob.point.joules or 0) + 0.1 * (i % 7)
        device.board.sample()
    assert knob.at == 0
    device.watts = None
    for _ in range(200):
        run(governor, knob, 4)
        device.board.sample()
    assert knob.at == 1  # a tenth of 38 W is kept free
    assert caplog.text.count("the last estimate stands, with a growing margin") == 1


@pytest.mark.parametrize("fault", [OSError("gone"), ValueError("bad"), KeyError("x")])
def test_what_a_sensor_raises_is_a_reading_of_nothing(fault: Exception) -> None:
    knob = Knob()

    def read() -> Reading:
        raise fault

    board = Board("broken", read, now=knob.now)
    governor = Governor(knob, watts=38, celsius=60, device=board, now=knob.now)
    for _ in range(20):
        run(governor, knob, 4)
        board.sample()
    assert governor.state.measured["watts"] == 0


# --- several governors of one device ------------------------------------------------------------


def test_governors_of_one_device_share_its_watts() -> None:
    """20 W of the device, and 16 W at most for each of the two: 50 W are to be held."""
    knobs = [Knob(), Knob()]
    device = Device(knobs[0])
    governors = [Governor(each, watts=50, device=device.board, now=knobs[0].now) for each in knobs]
    over = 0
    for i in range(400):
        for _ in range(4):
            for governor, knob in zip(governors, knobs, strict=True):
                knob.time = knobs[0].time
                governor(BATCH)
            knobs[0].wait()
        device.watts = 20 + sum(80 * (each.point.joules or 0) for each in knobs) + 0.1 * (i % 7)
        over += device.watts > 50
        device.board.sample()
    assert over <= 8
    # Neither pays for both: 20 + 12.8 + 12.8 = 45.6.
    assert [each.at for each in knobs] == [1, 1]
    for governor in governors:
        governor.close()


def test_what_one_leaves_of_its_share_another_may_use() -> None:
    """One is held to point 3 by its latency, and needs 6.4 of its 14 W."""
    knobs = [Knob(), Knob()]
    device = Device(knobs[0])
    budgets: list[dict[str, float]] = [{"watts": 48}, {"watts": 48, "latency_ms": 9}]
    governors = [
        Governor(each, device=device.board, now=knobs[0].now, **budget)  # type: ignore[arg-type]
        for each, budget in zip(knobs, budgets, strict=True)
    ]
    for i in range(200):
        for _ in range(4):
            for governor, knob in zip(governors, knobs, strict=True):
                knob.time = knobs[0].time
                governor(BATCH)
                knobs[0].time = knob.time
            knobs[0].wait()
        device.watts = 20 + sum(80 * (each.point.joules or 0) for each in knobs) + 0.1 * (i % 7)
        device.board.sample()
    assert [each.at for each in knobs] == [0, 3]


def test_a_governor_that_is_gone_draws_nothing() -> None:
    knobs = [Knob(), Knob()]
    device = Device(knobs[0])
    mine, other = (Governor(k, watts=48, device=device.board, now=knobs[0].now) for k in knobs)
    for _ in range(5):
        knobs[0].wait()
        mine(BATCH)
        other(BATCH)
    assert device.board.others(mine, knobs[0].time)[1] == pytest.approx(16.0, rel=0.1)
    assert device.board.others(mine, knobs[0].time + 10) == (0.0, 0.0)
    other.close()
    assert device.board.others(mine, knobs[0].time) == (0.0, 0.0)


# --- a real network -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cost", "whole", "saved"),
    [
        ("macs", 20.0, "0.5 of the multiplications saved"),
        ("latency", 25.0, "0.6 of the time saved"),
    ],
)
def test_a_network_with_its_frontier(
    cost: str, whole: float, saved: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    net = drowsy.convert(model)
    points = []
    for rate, top1, ms in ((0, 0.8, whole), (0.25, 0.78, 15.0), (0.5, 0.7, 10.0)):
        net.set(rate)
        points.append(drowsy.OperatingPoint(net.schedule, rate, top1=top1, latency_ms=ms))
    now = [0.0]

    def tick() -> float:
        now[0] += 0.012  # a call lasts so long: twice the recording's 12 ms at the dearest
        return now[0]

    caplog.set_level(logging.INFO, "drowsy.governor")
    frontier = drowsy.Frontier(points, cost=cost)
    governor = drowsy.Governor(net, latency_ms=17, frontier=frontier, now=tick)
    with torch.inference_mode():
        answer = governor(torch.randn(1, 3, 8, 8))
    assert answer.shape == (1, 8, 6, 6)
    assert governor.state.point.loss == pytest.approx(0.1)
    assert net.schedule == points[2].schedule
    assert caplog.messages[0].startswith(f"0 to {saved}: ")


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ({}, "budgets: got none, allowed: one or more of latency_ms"),
        ({"latency_ms": 0}, "latency_ms: got 0, allowed: a finite number above 0"),
        ({"watts": float("nan")}, "watts: got nan, allowed"),
        ({"celsius": "70"}, "celsius: got '70', allowed"),
        ({"joules_per_image": 10**400}, "joules_per_image: got 1.*0, allowed: a finite number"),
        ({"images_per_s": True}, "images_per_s: got True, allowed"),
        ({"latency_ms": 5, "floor": -1}, "floor: got -1, allowed"),
        ({"latency_ms": 5, "floor": 10**400}, "floor: got 1.*0, allowed: a finite number"),
    ],
)
def test_budgets_that_are_none(budgets: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"^" + said.replace("(", r"\(")):
        Governor(Knob(), **budgets)


@pytest.mark.parametrize(
    ("budget", "figure"),
    [
        ("latency_ms", "latency_ms"),
        ("images_per_s", "latency_ms"),
        ("watts", "joules"),
        ("celsius", "joules"),
        ("joules_per_image", "joules"),
    ],
)
def test_points_must_have_measured_what_a_budget_needs(budget: str, figure: str) -> None:
    points = (POINTS[0], replace(POINTS[1], **{figure: None}), POINTS[2])
    with pytest.raises(
        ValueError, match=f"^{budget}: 1 of 3 points have no {figure} .* measure it"
    ):
        Governor(Knob(points), **{budget: 10})


def test_a_floor_needs_losses_and_a_point_above_it() -> None:
    with pytest.raises(ValueError, match=r"^floor: there are points without a loss"):
        Governor(Knob((replace(POINTS[0], loss=None),)), latency_ms=10, floor=0.1)
    with pytest.raises(ValueError, match=r"^floor: got 0.005, allowed: 0.01 or more"):
        Governor(Knob(POINTS[1:]), latency_ms=10, floor=0.005)


def test_a_floor_in_points_is_refused_where_losses_are_fractions() -> None:
    knob = Knob()
    knob.objective = "psnr"  # type: ignore[attr-defined]
    Governor(knob, latency_ms=10, floor=5)
    knob.objective = "top1"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^floor: got 5, allowed: up to 1, .* 5 points are 0.05"):
        Governor(knob, latency_ms=10, floor=5)


def test_what_is_no_knob() -> None:
    with pytest.raises(TypeError, match=r"^knob: got int, which lacks points, point, set"):
        Governor(3, latency_ms=10)
    net = drowsy.convert(nn.Sequential(nn.Conv2d(3, 4, 3)).eval())
    with pytest.raises(
        TypeError, match=r"^Governor: got 'latency', allowed: knob, latency_ms, wat"
    ):
        Governor(Knob(), latency=10)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^frontier: got NoneType, allowed: the Frontier"):
        Governor(net, latency_ms=10)
    with pytest.raises(TypeError, match=r"^batch: got list"):
        Governor(Knob(), latency_ms=10)([1, 2])


def test_a_board_that_does_not_tell_what_is_needed() -> None:
    board = Board("cold", lambda: Reading(0, 0), tells=("celsius",))
    with pytest.raises(ValueError, match=r"^device: cold does not tell watts"):
        Governor(Knob(), watts=10, device=board)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_governor_is_not_copied(way: Any) -> None:
    governor = Governor(Knob(), latency_ms=20)
    with pytest.raises(TypeError, match=r"^Governor: got copied or pickled, allowed: another"):
        way(governor)
