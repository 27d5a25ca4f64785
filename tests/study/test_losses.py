"""Loss against milliseconds: what is drawn, in which colours, and where it is named."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drowsy.files.labels import _Room
from drowsy.files.pictures import apart, root, round_losses
from drowsy.study.knobs import record
from drowsy.study.losses import _COLOURS, plot_losses

Figure = pytest.importorskip("matplotlib.figure", reason="needs matplotlib").Figure
Bbox = pytest.importorskip("matplotlib.transforms", reason="needs matplotlib").Bbox
Text = pytest.importorskip("matplotlib.text", reason="needs matplotlib").Text


def row(series: str, setting: str, levers: str, ms: float, loss: float) -> dict[str, Any]:
    ends = {"loss_low": loss - 0.01, "loss_high": loss + 0.02}
    return {
        "series": series,
        "setting": setting,
        "levers": levers,
        "latency_ms": ms,
        "loss": loss,
        **ends,
    }


ROWS = [
    row("knob", "awake", "awake", 40, 0) | {"loss_low": 0, "loss_high": 0},
    row("knob", "bfloat16", "format", 20, 0.002),
    row("knob", "192 px, bfloat16", "view + format", 17, 0.01),
    row("knob", "184 px, bfloat16", "view + format", 16.5, 0.011),
    row("knob", "96 px of the middle 0.70, bfloat16", "view + format", 6, 0.2),
    row("a smaller image", "192 px", "", 31, 0.02),
    row("a smaller image", "112 px", "", 12, 0.23),
    row("the paper's neuron", "1/8 asleep", "", 90, 0.4),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda fig, *a, **k: (figures.append(fig), savefig(fig, *a, **k))
    )
    return figures


def test_points_are_dots_with_intervals_and_rivals_dashed_lines(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    path = plot_losses(ROWS, "top1", 8, tmp_path / "l.png", "title")
    assert path.read_bytes()[:4] == b"\x89PNG"
    (axis,) = drawn[0].axes
    assert axis.get_xlabel() == "milliseconds for a batch of 8 (log scale)"
    assert axis.get_ylabel() == "top-1 accuracy lost (points), scale of square roots"
    rivals = {line.get_label(): line for line in axis.get_lines() if line.get_linestyle() == "--"}
    assert list(rivals) == ["a smaller image", "the paper's neuron"]
    assert list(rivals["a smaller image"].get_xdata()) == [31, 12]
    assert list(rivals["a smaller image"].get_ydata()) == pytest.approx([2, 23])
    dots = axis.containers
    assert [each[0].get_color() for each in dots] == ["black", "tab:green", *["tab:cyan"] * 3]
    (bar,) = dots[-1][2]
    assert bar.get_segments()[0][:, 1] == pytest.approx([19, 22])
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["awake", "format", "view + format", *rivals]


def many(count: int, seed: int) -> list[dict[str, Any]]:
    """A knob of so many points along a curve, near each other, beside two rivals."""
    rng = random.Random(seed)
    rows = [row("knob", "awake", "awake", 40, 0) | {"loss_low": 0, "loss_high": 0}]
    for n in range(count):
        ms = 40 * 0.93 ** (n + rng.random())
        lost = 0.5 * (1 - ms / 40) ** 3 + 0.02 * rng.random()
        rows.append(row("knob", f"{224 - 8 * n} px of the middle 0.88", "view", ms, lost))
    for n, saved in enumerate((0.1, 0.25, 0.5, 0.75)):
        rows.append(row("a smaller image", f"{n} px", "", 41 * (1 - saved), saved**3))
    return [*rows, *(row("the paper's neuron", f"{n}/8 asleep", "", 95, 0.9) for n in (1, 2))]


@pytest.mark.parametrize(
    "rows", [ROWS, many(5, 0), many(9, 1), many(9, 2), many(12, 3)], ids=lambda rows: len(rows)
)
def test_every_point_is_named_beside_all_names_points_and_intervals(
    rows: list[dict[str, Any]], tmp_path: Path, drawn: list[Figure]
) -> None:
    plot_losses(rows, "top1", 8, tmp_path / "l.png", "title")
    (axis,) = drawn[0].axes
    drawn[0].draw_without_rendering()
    knob = [each for each in rows if each["series"] == "knob"]
    told = {each["setting"] for each in knob}
    assert told <= {text.get_text() for text in axis.texts}
    assert len(axis.texts) == len(knob) + 2
    boxes = [Text.get_window_extent(text) for text in axis.texts]
    for box, other in itertools.combinations(boxes, 2):
        assert not box.overlaps(other)
    # Half of what a dot and a cap measure, in pixels.
    half = 3 * drawn[0].dpi / 72
    marks = [(each, "loss", "loss") for each in rows]
    for each, low, high in [*marks, *((each, "loss_low", "loss_high") for each in knob)]:
        ends = [(each["latency_ms"], 100 * each[end]) for end in (low, high)]
        mark = Bbox(axis.transData.transform(ends)).padded(half)
        assert not mark.count_overlaps(boxes)
    assert all(box.x0 >= axis.bbox.x0 and box.x1 <= axis.bbox.x1 for box in boxes)
    assert all(box.y0 >= axis.bbox.y0 and box.y1 <= axis.bbox.y1 for box in boxes)


def test_the_names_of_all_levers_and_rivals_fit_below(tmp_path: Path, drawn: list[Figure]) -> None:
    rivals = ["a smaller image", "a smaller image, bfloat16", "the paper's neuron"]
    rows = [row("knob", "", levers, 9, 0.1) for levers in _COLOURS]
    plot_losses(
        [*rows, *(row(name, "", "", 9, 0.1) for name in rivals)], "top1", 8, tmp_path / "l.png", ""
    )
    (legend,) = drawn[0].legends
    assert len(legend.get_texts()) == len(_COLOURS) + len(rivals)
    assert 0 < legend.get_window_extent().x0 < legend.get_window_extent().x1 < drawn[0].bbox.x1


@pytest.mark.parametrize("rows", [many(9, 5), many(12, 5), many(14, 0)], ids=lambda rows: len(rows))
def test_lines_to_names_do_not_cross(
    rows: list[dict[str, Any]], tmp_path: Path, drawn: list[Figure]
) -> None:
    plot_losses(rows, "top1", 8, tmp_path / "l.png", "title")
    (axis,) = drawn[0].axes
    drawn[0].draw_without_rendering()
    arrows = [text.arrow_patch for text in axis.texts if text.arrow_patch.get_visible()]
    leads = [arrow.get_transform().transform_path(arrow.get_path()) for arrow in arrows]
    assert len(leads) > 3
    for lead, other in itertools.combinations(leads, 2):
        assert not lead.intersects_path(other, filled=False)


def test_intervals_end_within_the_panel(tmp_path: Path, drawn: list[Figure]) -> None:
    below = row("knob", "192 px", "view", 30, -0.004) | {"loss_low": -0.03}
    plot_losses([*ROWS, below], "top1", 8, tmp_path / "l.png", "")
    (axis,) = drawn[0].axes
    caps = [
        axis.transData.transform((each["latency_ms"], 100 * each[end]))[1]
        for each in [*ROWS[:5], below]
        for end in ("loss_low", "loss_high")
    ]
    assert axis.bbox.y0 + 4 < min(caps) < max(caps) < axis.bbox.y1 - 4


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (-1.3, 84, [-1, 0, 1, 5, 10, 20, 30, 50, 80]),
        (0, 2, [0, 0.02, 0.1, 0.2, 0.5, 1, 2]),
        (-30, 4, [-30, -20, -10, -5, -1, 0, 1]),
        (0, 0, [0]),
    ],
)
def test_ticks_are_round_and_stand_apart(low: float, high: float, wanted: list[float]) -> None:
    found = round_losses(low, high, 0.08)
    assert found == pytest.approx(wanted)
    span = root(high) - root(low)
    assert all(root(b) - root(a) >= 0.08 * span for a, b in itertools.pairwise(found))


def test_a_metric_without_a_unit_is_drawn_as_it_is(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_losses(ROWS, "score", 1, tmp_path / "l.png", "")
    assert drawn[0].axes[0].get_ylabel() == "score lost, scale of square roots"
    lines = [line for line in drawn[0].axes[0].get_lines() if line.get_linestyle() == "--"]
    assert list(lines[0].get_ydata()) == [0.02, 0.23]


def test_what_was_not_timed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows: got none"):
        plot_losses([], "top1", 8, tmp_path / "l.png", "")
    with pytest.raises(ValueError, match="without milliseconds"):
        plot_losses([ROWS[0] | {"latency_ms": None}], "top1", 8, tmp_path / "l.png", "")
    for unknown in ({"loss": None}, {"loss_low": None, "loss_high": None}):
        with pytest.raises(ValueError, match="without losses"):
            plot_losses([ROWS[0] | unknown], "top1", 8, tmp_path / "l.png", "")


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["latency_ms", "loss", "loss_low", "loss_high"])
def test_what_is_not_finite_is_refused_by_name(name: str, value: float, tmp_path: Path) -> None:
    told = f"rows: {name}: got {value} at 112 px, allowed: a finite number"
    with pytest.raises(ValueError, match=told):
        plot_losses([*ROWS[:6], ROWS[6] | {name: value}], "top1", 8, tmp_path / "l.png", "")
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_drawn_is_not_half_recorded(tmp_path: Path) -> None:
    knob: Any = SimpleNamespace(batch=8)
    rows = [{**each, "top1": 0.5, "loss_high": math.inf} for each in ROWS]
    with pytest.raises(ValueError, match="rows: loss_high: got inf at awake"):
        record(knob, rows, tmp_path / "knob", "title")
    assert not any(tmp_path.iterdir())


def test_which_lines_are_crossed_is_told_of_few_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longest, and what is farther off than the best place so far is no better."""
    crossed, over, counted = _Room._crossed, _Room._over, Counter[str]()

    def count(name: str, tell: Any) -> Any:
        def counting(*args: Any) -> Any:
            counted[name] += 1
            return tell(*args)

        return counting

    monkeypatch.setattr(_Room, "_crossed", count("crossed", crossed))
    monkeypatch.setattr(_Room, "_over", count("over", over))
    many = [row("knob", f"{n} px", "view", 1 + n * 37 % 30, n * 53 % 30 / 60) for n in range(30)]
    plot_losses(many, "top1", 8, tmp_path / "l.png", "")
    assert counted["crossed"] < counted["over"] / 2


@pytest.mark.parametrize(
    ("places", "gap", "wanted"),
    [
        ([0.2, 0.8], 0.1, [0.2, 0.8]),
        # Evenly about the mean of what is too near.
        ([0.5, 0.5], 0.1, [0.45, 0.55]),
        ([0.3, 0.5, 0.5], 0.2, [0.7 / 3, 1.3 / 3, 1.9 / 3]),
        # Within the panel.
        ([0.0, 0.0, 0.9], 0.1, [0.0, 0.1, 0.9]),
        ([1.0, 1.0], 0.25, [0.75, 1.0]),
        ([], 0.1, []),
    ],
)
def test_places_are_moved_apart_as_little_as_can_be(
    places: list[float], gap: float, wanted: list[float]
) -> None:
    found = apart(places, gap)
    assert found == pytest.approx(wanted)
    assert all(b - a > gap - 1e-9 for a, b in itertools.pairwise(found))
