"""Tables are made once, kept up to a number of bytes, and for good where a graph reads them."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from drowsy.sleep.memory import Memory


class Made:
    """A table of so many bytes, and how often each was made."""

    def __init__(self) -> None:
        self.times: dict[int, int] = {}
        self.lock = threading.Lock()

    def __call__(self, size: int) -> Tensor:
        with self.lock:
            self.times[size] = self.times.get(size, 0) + 1
        return torch.zeros(size, dtype=torch.uint8)


def test_a_table_is_made_once() -> None:
    made = Made()
    table = Memory(1000)(made)
    assert table(10) is table(10)
    assert made.times == {10: 1}


def test_bytes_are_bounded_and_those_used_last_stay() -> None:
    made = Made()
    table = Memory(1000)(made)
    for size in (400, 500, 400, 300):
        table(size)  # 500 is the one used longest ago
    assert made.times == {400: 1, 500: 1, 300: 1}
    table(400)
    table(300)
    assert made.times == {400: 1, 500: 1, 300: 1}
    table(500)
    assert made.times == {400: 1, 500: 2, 300: 1}


def test_many_small_tables_are_kept() -> None:
    made = Made()
    table = Memory(100_000)(made)
    for _ in range(2):
        for size in range(1, 400):
            table(size)
    assert set(made.times.values()) == {1}


def test_a_table_larger_than_all_is_kept_until_the_next() -> None:
    made = Made()
    table = Memory(1000)(made)
    table(5000)
    table(5000)
    assert made.times == {5000: 1}
    table(10)
    table(5000)
    assert made.times == {5000: 2, 10: 1}


def test_tuples_count_the_bytes_of_all_their_tensors() -> None:
    calls = []

    @Memory(1000)
    def tables(number: int) -> tuple[Tensor, int, Tensor]:
        calls.append(number)
        return torch.zeros(50, dtype=torch.int64), number, torch.zeros(100, dtype=torch.uint8)

    for number in (0, 1, 2, 2, 1, 0):
        tables(number)
    assert calls == [0, 1, 2, 0]  # two of 500 bytes fit


def test_threads_make_a_table_once() -> None:
    made = Made()
    table = Memory(1 << 20)(made)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(table, [7, 8, 9, 10] * 200))
    assert set(made.times.values()) == {1}
    assert all(found[i] is found[i % 4] for i in range(len(found)))


def test_what_a_captured_graph_reads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda(Tensor):
        is_cuda = True  # type: ignore[assignment]

    capturing = False
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)

    @Memory(100)
    def table(number: int) -> Tensor:
        return torch.zeros(80, dtype=torch.uint8).as_subclass(OnCuda)

    table(0)
    capturing = True
    read = weakref.ref(table(0))
    capturing = False
    others = [weakref.ref(table(number)) for number in (1, 2)]
    gc.collect()
    assert others[0]() is None  # dropped for the next
    assert read() is not None
