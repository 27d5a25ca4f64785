"""Loss against milliseconds: what is drawn, in which colours, and where it is named."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from drowsy.files.pictures import apart
from drowsy.study.losses import plot_losses

Figure = pytest.importorskip("matplotlib.figure", reason="needs matplotlib").Figure
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
    assert axis.get_xlabel() == "milliseconds for a batch of 8"
    assert axis.get_ylabel() == "top-1 accuracy lost (points)"
    rivals = {line.get_label(): line for line in axis.get_lines() if line.get_linestyle() == "--"}
    assert list(rivals) == ["a smaller image", "the paper's neuron"]
    assert list(rivals["a smaller image"].get_xdata()) == [31, 12]
    assert list(rivals["a smaller image"].get_ydata()) == pytest.approx([2, 23])
    dots = axis.containers
    assert [each[0].get_color() for each in dots] == ["black", "tab:green", *["tab:cyan"] * 3]
    (bar,) = dots[-1][2]
    assert bar.get_segments()[0][:, 1] == pytest.approx([19, 22])
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["awake", "format", "view + format"]


def test_every_point_is_named_and_names_do_not_overlap(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_losses(ROWS, "top1", 8, tmp_path / "l.png", "")
    (axis,) = drawn[0].axes
    drawn[0].draw_without_rendering()
    told = [text.get_text() for text in axis.texts]
    assert {r["setting"] for r in ROWS[:5]} <= set(told)
    assert {"a smaller image, 112 px", "the paper's neuron, 1/8 asleep"} <= set(told)
    # The two that are nearly one stand one above the other.
    boxes = [
        Text.get_window_extent(t) for t in axis.texts if t.get_text().endswith("4 px, bfloat16")
    ]
    boxes += [Text.get_window_extent(t) for t in axis.texts if t.get_text() == "192 px, bfloat16"]
    assert not boxes[0].overlaps(boxes[1])
    figure = drawn[0].bbox
    for text in axis.texts:
        box = Text.get_window_extent(text)
        assert 0 <= box.x0 < box.x1 <= figure.x1
        assert 0 <= box.y0 < box.y1 <= figure.y1


def test_a_name_is_not_printed_over_an_interval(tmp_path: Path, drawn: list[Figure]) -> None:
    wide = row("knob", "128 px, bfloat16", "view + format", 31, 0.05)
    wide |= {"loss_low": 0.022, "loss_high": 0.079}
    other = row("knob", "152 px of 0.88, bfloat16", "view + format", 41, 0.027)
    plot_losses([*ROWS, wide, other], "top1", 8, tmp_path / "l.png", "")
    (axis,) = drawn[0].axes
    drawn[0].draw_without_rendering()
    (name,) = [text for text in axis.texts if text.get_text() == other["setting"]]
    box = Text.get_window_extent(name)
    ends = [axis.transData.transform((31, loss)) for loss in (2.2, 7.9)]
    assert not (box.x0 < ends[0][0] < box.x1 and ends[0][1] < box.y1 and box.y0 < ends[1][1])


def test_a_metric_without_a_unit_is_drawn_as_it_is(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_losses(ROWS, "score", 1, tmp_path / "l.png", "")
    assert drawn[0].axes[0].get_ylabel() == "score lost"
    lines = [line for line in drawn[0].axes[0].get_lines() if line.get_linestyle() == "--"]
    assert list(lines[0].get_ydata()) == [0.02, 0.23]


def test_what_was_not_timed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows: got none"):
        plot_losses([], "top1", 8, tmp_path / "l.png", "")
    with pytest.raises(ValueError, match="without milliseconds"):
        plot_losses([ROWS[0] | {"latency_ms": None}], "top1", 8, tmp_path / "l.png", "")


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
