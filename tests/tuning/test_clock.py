"""What a run of ``tune`` leaves out when its time is over, and that one that resumes does too."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import drowsy
from drowsy.tuning import clock as clocks
from drowsy.tuning.clock import Clock
from drowsy.tuning.journal import Journal
from drowsy.tuning.levers import SLEEP_SAVINGS
from drowsy.tuning.workbench import Workbench

MINUTES = 0.05


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))


class Time:
    """Of which every look at the clock takes so much, as a fraction of the minutes."""

    def __init__(self, step: float) -> None:
        self.step, self.time = step, 0.0

    def __call__(self) -> float:
        self.time += self.step * 60 * MINUTES
        return self.time


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Time]:
    """Starts a clock."""

    def start(step: float) -> Time:
        time = Time(step)
        monkeypatch.setattr(clocks, "now", time)
        return time

    return start


def tune(store: Path | None = None, **given: Any) -> drowsy.Knob:
    torch.manual_seed(1)
    model = Net().eval()
    images = torch.randn(48, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    with warnings.catch_warnings():
        # A small budget for a search is told.
        warnings.simplefilter("ignore")
        return drowsy.tune(model, images, cost="macs", minutes=MINUTES, store=store, **given)


def points(knob: drowsy.Knob) -> list[Any]:
    return [
        (p.schedule.thresholds(), str(p.view), p.saving, p.loss, p.interval)
        for p in knob.contents.points
    ]


def test_what_the_clock_said_is_said_again(
    tmp_path: Path, started: Callable[[float], Time]
) -> None:
    started(0.25)
    path = tmp_path / "journal"
    clock = Clock(MINUTES, Journal(path, {}), "one")
    assert [clock.over(), clock.over()] == [0.25, 0.5]
    # A run that resumes goes on from there, however long it was dead.
    time = started(0.0)
    clock = Clock(MINUTES, Journal(path, {}), "one")
    assert [clock.over(), clock.over()] == [0.25, 0.5]
    time.time += 0.1 * 60 * MINUTES
    assert clock.over() == 0.6
    # Of another run nothing was said yet.
    assert Clock(MINUTES, Journal(path, {}), "other").over() == 0


def test_sleep_does_not_begin_late_and_views_are_always_tried(
    started: Callable[[float], Time],
) -> None:
    started(0.0)
    whole = tune().contents.levers
    started(0.6)
    late = tune().contents
    assert late.levers["sleep"] == "left out, as 0.05 min allow no more"
    # Or a slow or busy machine would be sold no knob at all.
    assert late.levers["view"] == whole["view"]
    assert len(late.points) > 1


def test_sleep_ends_with_its_share(started: Callable[[float], Time]) -> None:
    time = started(0.0)
    whole = tune(levers="sleep").contents
    assert "allow no more" not in whole.levers["sleep"]

    # All of the time is over once the first saving was offered.
    from drowsy.tuning import levers

    offered = []
    asleep = levers.asleep

    def one(recipe: Any, workbench: Any, view: Any, saving: float, *args: Any) -> Any:
        if saving == SLEEP_SAVINGS[0]:
            offered.append(saving)
            time.time = 60 * MINUTES
        return asleep(recipe, workbench, view, saving, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levers, "asleep", one)
        cut = tune(levers="sleep").contents
    assert offered
    wanted = "; none that saves 25%, 75%, 38%, 62%, as 0.05 min allow no more"
    assert wanted in cut.levers["sleep"]
    assert 1 < len(cut.points) < len(whole.points)


def test_a_search_of_rates_has_what_is_left(
    started: Callable[[float], Time], monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[int] = []
    search = Workbench.search

    def counted(bench: Any, recipe: Any, budget: int | None = None, *args: Any) -> Any:
        budgets.extend([budget] if budget else [])
        return search(bench, recipe, budget, *args)

    monkeypatch.setattr(Workbench, "search", counted)
    monkeypatch.setattr("drowsy.tuning.tune._seconds", lambda model, images: 2e-4)
    for over in (0.0, 0.4, 0.5):
        monkeypatch.setattr(Clock, "over", lambda clock, over=over: over)
        tune(levers="sleep")
    full, same, less = budgets
    assert full == same
    # 0.3 of the minutes in place of 0.4.
    assert less == pytest.approx(0.75 * full, abs=1)


def test_a_run_that_goes_on_ends_with_the_same_knob(
    tmp_path: Path, started: Callable[[float], Time]
) -> None:
    started(0.15)
    first = tune(tmp_path / "points.sqlite")
    started(0.0)
    again = tune(tmp_path / "points.sqlite")
    assert again.contents.levers == first.contents.levers
    assert points(again) == points(first)
    # One of other levers has a clock of its own.
    assert "allow" not in tune(tmp_path / "points.sqlite", levers="view").contents.levers["view"]
