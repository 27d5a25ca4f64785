"""Many threads on one network, each at a point of its own."""

from __future__ import annotations

import threading
import time

import pytest

from drowsy.tuning.gate import Gate


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
