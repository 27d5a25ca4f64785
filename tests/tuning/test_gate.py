"""Many threads on one network, each at a point of its own."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch

from drowsy.tuning.gate import Gate, Streams


def test_blocks_run_at_their_own_point_and_never_beside_another() -> None:
    points = [object() for _ in range(3)]
    now: list[object] = [None]
    inside: dict[int, int] = {}
    wrong = []
    gate: Gate[object] = Gate(lambda point: now.__setitem__(0, point))

    def work(point: object) -> None:
        for _ in range(40):
            with gate.at(point):
                inside[id(point)] = inside.get(id(point), 0) + 1
                time.sleep(0.0005)
                if now[0] is not point:
                    wrong.append(point)

    threads = [threading.Thread(target=work, args=(points[n % 3],)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_one_point_runs_side_by_side_and_turns_once() -> None:
    turned: list[object] = []
    gate: Gate[str] = Gate(turned.append)
    both = threading.Barrier(2, timeout=20)

    def work() -> None:
        with gate.at("a"):
            both.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert turned == ["a"]
    assert not both.broken


def test_who_wants_another_point_is_not_kept_waiting_for_ever() -> None:
    gate: Gate[str] = Gate(lambda point: None)
    stop, reached = threading.Event(), threading.Event()

    def hold() -> None:
        while not stop.is_set():
            with gate.at("a"):
                time.sleep(0.002)

    holders = [threading.Thread(target=hold) for _ in range(4)]
    for thread in holders:
        thread.start()

    def other() -> None:
        with gate.at("b"):
            reached.set()

    late = threading.Thread(target=other)
    late.start()
    assert reached.wait(20)
    stop.set()
    for thread in (*holders, late):
        thread.join(20)


def test_a_turn_that_fails_is_tried_again() -> None:
    fails = [True]

    def turn(point: str) -> None:
        if fails.pop():
            raise ValueError("no")

    gate: Gate[str] = Gate(turn)
    with pytest.raises(ValueError, match="no"), gate.at("a"):
        pass
    fails.append(False)
    with gate.at("a"):
        pass
    assert not fails


class Event:
    done = False


class Stream:
    """Runs in order what it was asked for, some time."""

    def __init__(self) -> None:
        self.asked: deque[tuple[str, Any]] = deque()

    def record_event(self) -> Event:
        event = Event()
        self.asked.append(("record", event))
        return event

    def wait_event(self, event: Event) -> None:
        self.asked.append(("wait", event))

    def ready(self) -> bool:
        return bool(self.asked) and not (self.asked[0][0] == "wait" and not self.asked[0][1].done)

    def step(self) -> None:
        kind, what = self.asked.popleft()
        if kind == "record":
            what.done = True
        elif kind == "run":
            what()


class Device:
    """``torch.cuda`` with many streams, as far as order goes; which of them goes on is chance."""

    def __init__(self, streams: int) -> None:
        self.streams = [Stream() for _ in range(streams)]
        self.here, self.capturing = self.streams[0], False

    def current_stream(self, device: torch.device) -> Stream:
        return self.here

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def finish(self, chance: random.Random) -> None:
        while any(stream.asked for stream in self.streams):
            chance.choice([stream for stream in self.streams if stream.ready()]).step()


@pytest.mark.parametrize("seed", range(20))
def test_streams_see_the_point_that_they_were_asked_for(seed: int) -> None:
    """Whatever the order in which a device gets to what its streams were asked for."""
    chance = random.Random(seed)
    device = Device(3)
    now: list[int] = [-1]
    wrong: list[tuple[int, int]] = []

    def turn(point: int) -> None:
        device.here.asked.append(("run", lambda: now.__setitem__(0, point)))

    def infer(point: int) -> Callable[[], None]:
        return lambda: None if now[0] == point else wrong.append((now[0], point))

    gate = Gate(turn, Streams(torch.device("cuda"), device))
    for _ in range(60):
        device.here = chance.choice(device.streams)
        point = chance.randrange(2)
        with gate.at(point):
            # Two kernels of an inference.
            device.here.asked.extend([("run", infer(point))] * 2)
        for _ in range(chance.randrange(4)):
            ready = [stream for stream in device.streams if stream.ready()]
            if ready:
                chance.choice(ready).step()
    device.finish(chance)
    assert not wrong


def test_one_stream_waits_for_nothing_and_a_captured_one_records_nothing() -> None:
    device = Device(2)
    gate: Gate[int] = Gate(lambda point: None, Streams(torch.device("cuda"), device))
    for point in (0, 1, 1, 0):
        with gate.at(point):
            pass
    assert {kind for kind, _ in device.here.asked} == {"record"}
    device.here, device.capturing = device.streams[1], True
    with gate.at(1):
        pass
    assert not device.here.asked
