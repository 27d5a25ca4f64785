"""Whether what was timed was timed on a machine that others used: seen, told, and not told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import drowsy
from drowsy.images.view import View
from drowsy.tuning import waiting as watching
from drowsy.tuning.conditions import Conditions
from drowsy.tuning.journal import Journal
from drowsy.tuning.rig import Rig
from drowsy.tuning.waiting import BUSY, Waiting, busy, noted
from drowsy.tuning.workbench import Workbench


@pytest.fixture
def model() -> nn.Module:
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, 4)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(24, 3, 16, 16)


class Machine:
    """Of which others take a share."""

    def __init__(self) -> None:
        self.taken = 0.0

    def waits(self) -> dict[str, float]:
        return {"1": self.taken * time.perf_counter()}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(watching, "_waits", machine.waits)
    return machine


def warned(run: Any) -> tuple[Any, list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run()
    return found, [each for each in caught if each.category is RuntimeWarning]


def test_of_threads_that_begin_and_end_what_they_waited_meanwhile_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = iter([{"1": 5.0, "2": 7.0}, {"1": 5.5, "3": 0.25}])
    clock = iter([10.0, 13.0])
    monkeypatch.setattr(watching, "_waits", lambda: next(told))
    monkeypatch.setattr(watching.time, "perf_counter", lambda: next(clock))
    waiting = Waiting()
    assert waiting.share == 0
    with waiting.watched():
        pass
    assert (waiting.seconds, waiting.waited, waiting.share) == (3.0, 0.75, 0.25)
    waiting.add(2.0, 0.0)
    assert waiting.share == 0.15


def test_where_no_system_tells_nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_TASKS", Path("nowhere"))
    assert watching._waits() == {}


@pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="needs Linux, which tells of waiting"
)
def test_a_core_that_is_shared_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_TASKS", Path("/proc/self/task"))
    mine = os.sched_getaffinity(0)
    one = min(mine)
    line = f"import os\nos.sched_setaffinity(0, [{one}])\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", line], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        os.sched_setaffinity(0, {one})
        try:
            waiting, stop = Waiting(), time.perf_counter() + 1
            with waiting.watched():
                while time.perf_counter() < stop:
                    pass
        finally:
            os.sched_setaffinity(0, mine)
            other.kill()
    assert waiting.share > 2 * BUSY


def test_tune_on_a_busy_machine_warns_once_and_says_so_below_the_table(
    model: nn.Module, images: Tensor, machine: Machine, tmp_path: Path
) -> None:
    machine.taken = 0.5
    given: dict[str, Any] = {"levers": "view", "minutes": 0.02, "progress": False}
    knob, (warning,) = warned(lambda: drowsy.tune(model, images, **given))
    assert warning.filename == __file__
    text = str(warning.message)
    assert "points were measured, threads waited 0.50 s for a core in every second" in text
    assert "milliseconds are not to be trusted: measure again (knob.measure, drowsy bench)" in text
    assert knob.contents.made["waited"] == pytest.approx({"choosing": 0.5, "measuring": 0.5}, 0.1)
    assert str(knob).count("\na busy machine: ") == 2
    # The file keeps it.
    knob.save(tmp_path / "a.drowsy")
    assert str(drowsy.load(tmp_path / "a.drowsy", model)) == str(knob)
    # By multiplications no clock chooses.
    knob, (warning,) = warned(lambda: drowsy.tune(model, images, cost="macs", **given))
    assert "were chosen" not in str(warning.message)


def test_measuring_on_a_quiet_machine_makes_good_what_was_measured_alone(
    model: nn.Module, images: Tensor, machine: Machine
) -> None:
    machine.taken = BUSY / 2
    given: dict[str, Any] = {"levers": "view", "minutes": 0.02, "progress": False}
    knob, told = warned(lambda: drowsy.tune(model, images, **given))
    assert not told
    assert "busy" not in str(knob)
    assert knob.contents.made["waited"]["measuring"] > 0
    machine.taken = 0.5
    _, (warning,) = warned(lambda: knob.measure(seconds=0.01))
    assert warning.filename == __file__
    assert "busy machine: while points were measured" in str(knob)
    made = noted(knob.contents.made, choosing=0.5)
    knob.contents = replace(knob.contents, made=made)
    machine.taken = 0.0
    _, told = warned(lambda: knob.measure(seconds=0.01))
    assert not told
    assert "were measured" not in str(knob)
    assert "while points were chosen" in str(knob)


def test_a_run_that_goes_on_knows_what_the_one_before_saw(
    model: nn.Module, images: Tensor, machine: Machine, tmp_path: Path
) -> None:
    splits = {"calibration": range(8), "search": range(8, 16), "report": range(16, 24)}
    workbench = Workbench(model, images, None, splits, Conditions())
    operation = workbench.awake_at(View.whole(workbench.full))
    machine.taken = 0.5
    rigs = []
    for _ in range(2):
        rig = Rig(model, workbench, "latency", 4, Journal(tmp_path / "journal", {}))
        for _ in range(2):
            rig.measured(operation)
        rigs.append(rig)
        machine.taken = 0.0
    assert rigs[0].waiting.share == pytest.approx(0.5, 0.05)
    assert vars(rigs[1].waiting) == vars(rigs[0].waiting)


def test_what_a_stranger_s_file_tells_breaks_nothing() -> None:
    for waited in (None, 3, "x", [1], {"measuring": "x", "choosing": None}, {"measuring": True}):
        assert busy({"waited": waited}) == []
    for share in (10**400, float("inf"), float("nan"), -1.0, 2**64):
        assert busy({"waited": {"measuring": share}}) == []
    assert len(busy({"waited": {"measuring": 1e3, "other": 1.0}})) == 1
