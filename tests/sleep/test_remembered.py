"""Tables are made once, kept up to a number of bytes, and for good where a graph reads them."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from drowsy.backends.cpu import tables
from drowsy.backends.cpu.crossover import grids
from drowsy.network.layer import DrowsyConv2d
from drowsy.neuron import ConvSize, ConvSpec
from drowsy.sleep import SOURCES, SleepSpec, detail_map, levels
from drowsy.sleep.memory import Memory, remembered


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


def test_functions_share_the_bytes() -> None:
    memory, made, others = Memory(1000), Made(), Made()
    table, other = memory(made), memory(others)
    assert table(400) is not other(400)
    assert table(400) is table(400)
    other(500)  # in the place of its own 400, which was used longest ago
    table(400)
    other(400)
    assert made.times == {400: 1}
    assert others.times == {400: 2, 500: 1}


def test_a_table_may_be_made_of_others() -> None:
    memory, made = Memory(1000), Made()
    part = memory(made)
    calls = []

    @memory
    def whole(size: int) -> dict[str, Tensor]:
        calls.append(size)
        return {"part": part(size), "more": torch.zeros(size, dtype=torch.uint8)}

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(whole, [100, 101] * 50))
    assert sorted(calls) == [100, 101]
    assert made.times == {100: 1, 101: 1}
    assert all(each is found[i % 2] for i, each in enumerate(found))


def test_what_fails_is_made_again() -> None:
    fails = [False, True]

    @Memory(1000)
    def table(size: int) -> Tensor:
        if fails.pop():
            raise RuntimeError("once")
        return torch.zeros(size)

    with pytest.raises(RuntimeError, match="once"):
        table(3)
    assert table(3).shape == (3,)


def test_tables_of_maps_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever sizes, rates, sources and fills there are."""
    monkeypatch.setattr(remembered, "_limit", 1 << 19)
    kinds = set()
    for source, k, fill in [
        ("lattice", 8, "interpolate"),
        ("fovea", 32, "zero"),
        ("lfsr", 8, "zero"),
    ]:
        sleep = SleepSpec(source, "position", k)
        layer = DrowsyConv2d(4, 4, 1, sleep=sleep).to(memory_format=torch.channels_last)
        for side, j in itertools.product((20, 40, 60, 80), (1, k - 1)):
            layer.set(rate=j / k, fill=fill)
            with torch.inference_mode():
                layer(torch.ones(1, 4, side, side).to(memory_format=torch.channels_last))
            kept = remembered._kept
            kinds |= {key[0].__name__ for key in kept}  # type: ignore[attr-defined]
            assert remembered._held == sum(size for _, size, _ in kept.values())
            assert remembered._held <= 1 << 19
    assert {"lattice_tables", "fovea_table", "_level_table", "readings", "_phase_block"} <= kinds


@pytest.mark.parametrize(("k", "j"), [(8, 4), (255, 1), (256, 128)])
def test_tables_of_grids_do_not_grow_with_k(k: int, j: int) -> None:
    spec = ConvSpec(padding=(1, 1, 1, 1))
    size = ConvSize((1, 16, 224, 224), (16, 16, 3, 3), spec)
    for spacing in grids(k, j):
        made = tables.grid(size, spacing, 226)
        held = 8 * (made.starts.numel() + made.places.numel())
        # An entry for every position, those beyond the map among them, and one a row of each grid.
        side = -(-224 // spacing) * spacing
        assert held <= 8 * (side**2 + spacing**2 * (side + 3))


def test_tables_are_made_on_the_cpu_whatever_torchs_default_device() -> None:
    maps, shape, pictures = [], (2, 8, 9, 10), torch.randn(2, 3, 20, 30)
    for device in ("cpu", "meta"):
        remembered._kept.clear()
        remembered._held = 0
        with torch.device(device):
            clock = torch.tensor([3, 1], device="cpu")
            maps.append(
                [
                    levels(SleepSpec(source, "position", 12), shape, clock, detail_map(pictures))
                    for source in SOURCES
                ]
            )
    assert all(map(torch.equal, *maps))


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
