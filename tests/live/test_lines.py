"""Live lines: what is kept, drawn and said of a figure."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from drowsy.live.lines import SECONDS, Line, Track, tile


def drawn(line: Line) -> str:
    return ET.tostring(tile(line), encoding="unicode")


def test_a_track_keeps_the_last_minute() -> None:
    track = Track()
    for second in range(100):
        track.note(second, float(second))
    track.note(100, None)
    kept = track.since(100)
    assert kept[0] == (SECONDS, 40.0)
    assert kept[-1] == (1, 99.0)


def test_readings_within_a_step_are_told_as_their_mean() -> None:
    track = Track()
    for n in range(1000):
        track.note(n * 1e-4, float(n % 2))
    assert track.since(0.1) == [(pytest.approx(0.1), 0.5)]
    track.note(1.0, 3.0)
    assert track.since(1.0) == [(1.0, 0.5), (0.0, 3.0)]


def test_a_line_shows_its_scale_its_budget_and_no_line_over_gaps() -> None:
    readings = [(40.0, 11.0), (38.0, 12.0), (12.0, 14.0), (10.0, 13.0)]
    text = drawn(Line("latency_ms", "Latency", "13 ms", "a picture", readings, budget=18.0))
    assert text.count('class="run"') == 2
    assert ">0<" in text
    assert ">20<" in text  # the next round number
    assert 'class="budget"' in text
    assert "13 ms" in text
    share = drawn(Line("likeness", "Agreement", "50%", "", [(1.0, 50.0)], span=(0.0, 100.0)))
    assert ">100<" in share
    assert 'class="budget"' not in share


@pytest.mark.parametrize(
    ("readings", "span"),
    [([], (0.0, None)), ([(1.0, 0.0)], (0.0, None)), ([(1.0, -3.0), (0.0, -2.0)], (0.0, None))],
)
def test_lines_without_height_are_drawn(readings: list, span: tuple) -> None:
    text = drawn(Line("celsius", "Temperature", "", "", readings, span=span))
    assert "nan" not in text
    assert "\u2026" in text


def test_what_is_not_measured_says_why() -> None:
    text = drawn(Line("watts", "Power", "", "", [], why="there is no <meter> here"))
    assert "Power: not measured" in text
    assert "There is no &lt;meter&gt; here." in text
    assert "<svg" not in text
