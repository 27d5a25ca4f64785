"""Timers: the host's, and a GPU's by events that stand-ins play."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from drowsy.governor.timing import CudaTimer, HostTimer


def test_the_hosts() -> None:
    now = [1.0]
    timer = HostTimer(lambda: now[0])
    start = timer.start()
    now[0] = 1.012
    timer.stop(start, "first")
    ((what, taken),) = timer.done()
    assert (what, taken) == ("first", pytest.approx(12.0))
    assert timer.done() == []


class Event:
    """An event of a GPU that gets to it when the test says so."""

    gpu = 0.0
    queries = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        Event.gpu += 7.0
        self.at, self.passed = Event.gpu, False

    def query(self) -> bool:
        Event.queries += 1
        return self.passed

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at

    def synchronize(self) -> None:
        raise AssertionError("nobody waits")


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> CudaTimer:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return CudaTimer(torch.device("cuda:0"))


def test_a_gpus_come_late_in_order_and_without_waiting(timer: CudaTimer) -> None:
    events = []
    for number in range(3):
        events.append(timer.start())
        timer.stop(events[-1], number)
    assert timer.done() == []
    events[0][1].passed = events[1][1].passed = True
    assert timer.done() == [(0, 7.0), (1, 7.0)]
    events[2][1].passed = True
    assert timer.done() == [(2, 7.0)]


def test_a_gpu_that_is_far_behind_is_asked_once_and_events_are_bounded(timer: CudaTimer) -> None:
    for number in range(1000):
        timer.stop(timer.start(), number)
    assert len(timer._running) == 64
    Event.queries = 0
    assert timer.done() == []
    assert Event.queries == 1


def test_nothing_is_recorded_into_a_graph(
    timer: CudaTimer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    timer.stop(timer.start(), 0)
    assert timer._running == type(timer._running)()
