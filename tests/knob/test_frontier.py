"""``Frontier``: which measured points are optimal, and which of them a request gets."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from drowsy.knob.costs import ROUNDING
from drowsy.knob.frontier import Frontier, NoSuchPoint, pareto
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import LayerSetting, Schedule


def point(saving: float, top1: float, **measured: Any) -> OperatingPoint:
    """A point of a one-layer network whose rate is not 0 unless ``saving`` is."""
    rate = Fraction(min(7, max(1, round(8 * saving))), 8) if saving else Fraction(0)
    return OperatingPoint(Schedule(8, {"a": LayerSetting(rate)}), saving, top1, **measured)


def places(points: list[OperatingPoint]) -> list[tuple[float, float | None]]:
    return [(p.saving, p.top1) for p in points]


@pytest.fixture
def frontier() -> Frontier:
    return Frontier(
        [
            point(0.0, 0.80, latency_ms=4.0),
            point(0.2, 0.79, latency_ms=3.5),
            point(0.4, 0.75, latency_ms=3.0),
            point(0.6, 0.50),
            point(0.3, 0.60, latency_ms=1.0),
        ]
    )


# --- Pareto --------------------------------------------------------------------------------------


def test_only_points_that_nothing_beats_stay_sorted_by_saving():
    points = [point(0.5, 0.5), point(0.1, 0.9), point(0.4, 0.4), point(0.5, 0.3), point(0.2, 0.9)]
    assert places(pareto(points)) == [(0.2, 0.9), (0.5, 0.5)]


def test_of_equal_points_the_first_stays():
    first, second = point(0.5, 0.5, images=1), point(0.5, 0.5, images=2)
    assert pareto([first, second]) == [first]
    assert pareto([second, first]) == [second]


def test_the_objective_decides():
    points = [point(0.1, 0.5, top5=0.6), point(0.2, 0.4, top5=0.7)]
    assert len(pareto(points, "top1")) == 2
    assert places(pareto(points, "top5")) == [(0.2, 0.4)]


@pytest.mark.parametrize("seed", range(20))
def test_pareto_agrees_with_the_definition(seed: int):
    draw = random.Random(seed)
    # A coarse grid, so that ties in either coordinate and in both are common.
    points = [point(draw.randrange(6) / 8, draw.randrange(6) / 8) for _ in range(60)]

    def beaten(p: OperatingPoint) -> bool:
        return any(
            q.saving >= p.saving and q.top1 >= p.top1 and (q.saving, q.top1) != (p.saving, p.top1)
            for q in points
        )

    expected = sorted({(p.saving, p.top1) for p in points if not beaten(p)})
    assert places(pareto(points)) == expected


def test_an_objective_that_is_unknown_or_was_not_measured_is_refused():
    with pytest.raises(ValueError, match="objective: got 'speed', allowed: top1, top5, agreement"):
        pareto([point(0, 1)], "speed")
    with pytest.raises(ValueError, match="objective: top5 was not measured at every point"):
        Frontier([point(0, 1, top5=1.0), point(0.5, 0.5)], "top5")


def test_a_frontier_needs_a_point():
    with pytest.raises(ValueError, match="points: got none, allowed: one or more"):
        Frontier([])


# --- requests ------------------------------------------------------------------------------------


def test_requests_round_as_savings_do_everywhere() -> None:
    found = Frontier([point(0.0, 0.9), point(0.5 - ROUNDING / 2, 0.8)])
    assert found.at(saving=0.5).top1 == 0.8
    with pytest.raises(NoSuchPoint):
        found.at(saving=0.5 + ROUNDING)


@pytest.mark.parametrize(
    ("request_", "saving"),
    [
        ({"saving": 0.0}, 0.0),
        ({"saving": 0.2}, 0.2),
        ({"saving": 0.21}, 0.4),
        ({"saving": 0.6}, 0.6),
        ({"saving": -1}, 0.0),
        ({"max_loss": 0.0}, 0.0),
        ({"max_loss": 0.01}, 0.2),
        ({"max_loss": 0.0499}, 0.2),
        ({"max_loss": 0.05}, 0.4),
        ({"max_loss": 1}, 0.6),
        ({"latency_ms": 10}, 0.0),
        ({"latency_ms": 3.5}, 0.2),
        ({"latency_ms": 3.2}, 0.4),
    ],
    ids=str,
)
def test_a_request_gets_a_measured_point(
    frontier: Frontier, request_: dict[str, float], saving: float
):
    assert frontier.at(**request_).saving == saving


def test_savings_that_floats_round_down_still_count():
    assert 0.1 + 0.7 < 0.8
    assert Frontier([point(0.1 + 0.7, 0.5)]).at(saving=0.8)


def test_loss_is_counted_from_rate_0_even_where_sleep_beats_it():
    lucky = Frontier([point(0.0, 0.80), point(0.1, 0.82), point(0.3, 0.795), point(0.5, 0.70)])
    assert places(lucky.points)[0] == (0.1, 0.82)
    assert lucky.reference is not None
    assert lucky.reference.top1 == 0.80
    assert lucky.at(max_loss=0.01).saving == 0.3
    assert lucky.at(max_loss=-0.01).saving == 0.1


def test_loss_is_unknown_without_rate_0():
    with pytest.raises(NoSuchPoint, match="max_loss: no point at rate 0 was given"):
        Frontier([point(0.5, 0.5)]).at(max_loss=0.1)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            {"saving": 0.7},
            r"0.7; nearest: 0.6 \(saves 60.0% of the multiplications, top1 50.0%\) and 0.4 \(saves",
        ),
        ({"max_loss": -0.1}, r"nearest: 0 \(saves 0.0% of the multiplications, top1 80.0%\) and 0"),
        ({"latency_ms": 2}, r"latency_ms 2; nearest: 3 \(saves 40.0% of the multiplications, top1"),
        ({"joules": 1.0}, "joules: was not measured at any point, which takes a meter"),
    ],
    ids=str,
)
def test_what_no_point_satisfies_is_not_invented(
    frontier: Frontier, request_: dict[str, float], message: str
):
    with pytest.raises(NoSuchPoint, match=message):
        frontier.at(**request_)


@pytest.mark.parametrize(
    ("objective", "figure", "told"),
    [("top1", 0.7, "top1 70.0%"), ("psnr", 31.52, "psnr 31.52 dB"), ("ssim", 0.9, "ssim 0.9")],
)
def test_figures_are_told_in_their_unit(objective: str, figure: float, told: str) -> None:
    point = OperatingPoint(Schedule(8, {"a": LayerSetting()}), 0.25)
    with pytest.raises(NoSuchPoint, match=rf"nearest: 0.25 \(saves 25.0% of the .*, {told}\)$"):
        Frontier([point.with_figures({objective: figure})], objective).at(saving=0.5)


def test_what_is_saved_is_told_of_the_cost():
    points = [point(0.0, 0.8, latency_ms=4.0), point(0.5, 0.7, latency_ms=3.0)]
    frontier = Frontier(points, cost="latency")
    with pytest.raises(NoSuchPoint, match=r"nearest: 3 \(saves 25.0% of the time, top1 70.0%\)"):
        frontier.at(latency_ms=1)
    with pytest.raises(NoSuchPoint, match=r"no point saves 50.0% of the time; the most is 25.0%"):
        frontier.at_saved(0.5)
    # What this is asked for is of multiplications, whatever is traded for.
    assert frontier.at(saving=0.5) is points[1]
    with pytest.raises(NoSuchPoint, match=r"nearest: 0.5 \(saves 50.0% of the multiplications, "):
        frontier.at(saving=0.6)
    # Without a point at rate 0 nobody knows what time is saved.
    with pytest.raises(NoSuchPoint, match=r"nearest: 3 \(saves 50.0% of the multiplications, "):
        Frontier(points[1:], cost="latency").at(latency_ms=1)


def test_no_such_point_is_a_lookup_error():
    assert issubclass(NoSuchPoint, LookupError)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "at: got nothing, allowed: one of saving, max_loss, latency_ms, joules"),
        ({"saving": 0.5, "joules": 1}, "at: got saving, joules, allowed: one of"),
        ({"saving": float("nan")}, "saving: got nan, allowed: a finite number"),
        ({"max_loss": "1%"}, "max_loss: got '1%', allowed: a finite number"),
        ({"saving": True}, "saving: got True, allowed: a finite number"),
        (
            {"max_loss": 5},
            "max_loss: got 5, allowed: up to 1, as top1 is a fraction: 5 points are 0.05",
        ),
    ],
    ids=str,
)
def test_a_request_is_one_finite_number(frontier: Frontier, request_: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        frontier.at(**request_)


def test_a_request_by_another_name_is_told_the_names(frontier: Frontier):
    told = "Frontier.at: got 'savings', allowed: saving, max_loss, latency_ms, joules"
    with pytest.raises(TypeError, match=told):
        frontier.at(savings=0.5)  # type: ignore[call-arg]


# --- hypervolume ---------------------------------------------------------------------------------


def test_hypervolume_is_the_area_that_the_points_dominate():
    stairs = Frontier([point(0.0, 0.9), point(0.5, 0.8), point(0.75, 0.2)])
    assert stairs.hypervolume() == pytest.approx(0.5 * 0.8 + 0.25 * 0.2)
    assert stairs.hypervolume(ref=(0.25, 0.5)) == pytest.approx(0.25 * 0.3)
    assert stairs.hypervolume(ref=(0.8, 0.0)) == 0


def test_hypervolume_agrees_with_counting_dominated_cells():
    draw = random.Random(3)
    points = [point(draw.randrange(11) / 10, draw.randrange(11) / 10) for _ in range(8)]
    middles = [(i + 0.5) / 10 for i in range(10)]
    cells = sum(
        any(p.saving > x and p.top1 > y for p in points)
        for x, y in itertools.product(middles, middles)
    )
    assert Frontier(points).hypervolume() == pytest.approx(cells / 100)


# --- tables and files ----------------------------------------------------------------------------


def test_the_table_shows_what_was_measured_and_its_spread(tmp_path: Path):
    best = point(0.25, 0.7, spread={"top1": 0.0125}, images=744, seeds=(0, 1, 2))
    frontier = Frontier([best, point(0.5, 0.6, joules=0.02)])
    assert frontier.table().splitlines() == [
        "multiplications saved  top1    top1_std  joules  rates (1/8)",
        "---------------------  ------  --------  ------  -----------",
        "0.2500                 0.7000  0.0125            2",
        "0.5000                 0.6000            0.0200  4",
    ]
    frontier.to_csv(tmp_path / "f.csv")
    with open(tmp_path / "f.csv", newline="") as file:
        assert list(csv.DictReader(file)) == frontier.rows()


def test_what_was_saved_is_loaded(tmp_path: Path):
    measured = {
        "top5": 0.9,
        "agreement": 0.8,
        "divergence": 0.01,
        "latency_ms": 2.5,
        "joules": 0.1,
        "spread": {"top1": 0.01},
        "images": 744,
        "seeds": (0, 1, 2),
    }
    frontier = Frontier([point(0, 0.6), point(0.1, 0.7), point(0.5, 0.5, **measured)])
    frontier.save(tmp_path / "f.json")
    loaded = Frontier.load(tmp_path / "f.json")
    assert loaded.points == frontier.points
    assert loaded.objective == "top1"
    assert loaded.reference == frontier.reference
    assert loaded.at(max_loss=0.0).saving == 0.1


def test_a_network_without_labels_has_a_frontier_of_agreement(tmp_path: Path):
    schedule = Schedule(8, {"a": LayerSetting("1/8")})
    frontier = Frontier([OperatingPoint(schedule, 0.1, agreement=0.99)], "agreement")
    frontier.save(tmp_path / "f.json")
    assert Frontier.load(tmp_path / "f.json").points[0].top1 is None


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("format",), "drowsy.schedule", "format: got 'drowsy.schedule', allowed: 'drowsy.front"),
        (("version",), 99, "version: got 99, allowed: 1"),
        (("objective",), "speed", "objective: got 'speed', allowed: top1, top5, agreement"),
        (("cost",), "euros", "cost: got 'euros', allowed: macs, latency, joules"),
        (("cost",), ["macs"], r"cost: got \['macs'\], allowed: macs, latency, joules"),
        (("points",), {}, r"points: got \{\}, allowed: a list of points"),
        (("points",), [], r"points: got \[\], allowed: a list of points"),
        (("note",), "x", "unknown note; allowed: cost, format, objective, points"),
        (("points", 0), 3, "point 0: got int, allowed: an object"),
        (("points", 1, "saving"), 1.5, "point 1: saving: got 1.5, allowed: 0 to 1"),
        (("points", 1, "saving"), None, "point 1: saving: got None, allowed: a number"),
        (("points", 1, "top1"), "0.5", "point 1: top1: got '0.5', allowed: a number"),
        (("points", 1, "top1"), None, "objective: top1 was not measured at every point"),
        (("points", 1, "joules"), -1, "point 1: joules: got -1, allowed: a finite number, 0 or"),
        (("points", 1, "images"), 1.5, "point 1: images: got 1.5, allowed: an integer"),
        (("points", 1, "seeds"), ["a"], r"point 1: seeds: got \['a'\], allowed: a list of int"),
        (("points", 1, "spread"), {"top1": "x"}, "point 1: spread: got .*, allowed: names with"),
        *[
            (
                ("points", 1, name),
                number,
                f"point 1: {name}: got {str(number)[:4]}.*, allowed: a nu",
            )
            for name in ("saving", "top1", "divergence", "latency_ms", "joules")
            for number in (float("nan"), float("-inf"), 10**400, -(10**400), False)
        ],
        (
            ("points", 1, "spread"),
            {"top1": 10**400},
            "point 1: spread: got .*, allowed: names with",
        ),
        (("points", 1, "spread"), {"top1": math.inf}, "point 1: spread: got .*, allowed: names wi"),
        (
            ("points", 1, "spread"),
            {"top1": -0.1},
            r"point 1: spread: got 'top1': -0\.1, allowed: of",
        ),
        (
            ("points", 1, "spread"),
            {"\n": 0.1},
            r"point 1: spread: got '\\n': 0\.1, allowed: of top1",
        ),
        (("points", 1, "speed"), 1, "point 1: unknown speed"),
        (("points", 1, "a\x1b[2J"), 1, r"point 1: unknown 'a\\x1b\[2J'; allowed: "),
        (("points", 1, "schedule", "k"), 1, "point 1: schedule: k: got 1, allowed: an integer"),
        (("reference", "saving"), 2, "reference: saving: got 2, allowed: 0 to 1"),
        (("reference", "schedule", "layers", "a", "rate"), "1/8", "reference: allowed: a point wh"),
        (
            ("points", 0, "schedule", "layers", "a", "rate"),
            "1e100000000",
            "point 0: schedule: layers: a: rate: got '1e100000000'",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_field_is_named_with_its_file(
    tmp_path: Path, frontier: Frontier, place: tuple[Any, ...], value: Any, message: str
):
    path = tmp_path / "bad.json"
    frontier.save(path)
    data = json.loads(path.read_text())
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"bad\.json: {message}"):
        Frontier.load(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        Frontier.load(tmp_path / "none.json")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        Frontier.load(tmp_path)


def test_of_no_cost_nothing_can_be_saved():
    points = [point(0.0, 0.8, joules=0.0), point(0.5, 0.9, joules=1.0)]
    frontier = Frontier(points, cost="joules")
    with pytest.raises(ValueError, match="saved: joules at rate 0 is 0, of which nothing"):
        frontier.saved(points[1])


def test_a_truncated_file_is_refused(tmp_path: Path, frontier: Frontier):
    path = tmp_path / "cut.json"
    frontier.save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"cut\.json: not valid JSON .*truncated"):
        Frontier.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("saving", 1.01),
        ("saving", float("nan")),
        ("top1", -0.1),
        ("agreement", 57.0),
        ("divergence", float("inf")),
        ("latency_ms", float("nan")),
        ("joules", -1.0),
    ],
)
def test_a_point_holds_fractions_and_finite_figures(name: str, value: float):
    with pytest.raises(ValueError, match=f"{name}: got .*, allowed: "):
        dataclasses.replace(point(0.5, 0.5), **{name: value})


def test_a_file_that_names_no_cost_is_of_multiplications(
    tmp_path: Path, frontier: Frontier
) -> None:
    frontier.save(tmp_path / "old.json")
    data = json.loads((tmp_path / "old.json").read_text())
    del data["cost"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    assert Frontier.load(tmp_path / "old.json").cost == "macs"


def test_points_and_frontiers_are_shown_in_a_line():
    layers = {f"layer{i}": LayerSetting(Fraction(i % 2, 2)) for i in range(99)}
    point = OperatingPoint(
        Schedule(8, layers), 0.25, top1=0.8765, divergence=0.012345, latency_ms=1.5
    )
    assert repr(point) == (
        "OperatingPoint(49 of 99 layers asleep, k=8, top1=0.8765, divergence=0.01235, "
        "latency_ms=1.5, multiplications_saved=0.25)"
    )
    awake = OperatingPoint(Schedule(8), 0.0, top1=0.9)
    assert repr(awake) == (
        "OperatingPoint(0 of 0 layers asleep, k=8, top1=0.9, multiplications_saved=0)"
    )
    assert repr(Frontier([awake, point])) == (
        "Frontier(points=2, cost='macs', saving=0..0.25 of the multiplications, top1=0.9..0.8765)"
    )
