"""The paper's figures: what is drawn, from which rows, in which words."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drowsy.comparison.plot import plot_comparison
from drowsy.sleep import FILLS
from drowsy.study.plots import plot_nonuniform, plot_savings, plot_sensitivity, plot_uniform

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
Figure = pytest.importorskip("matplotlib.figure", reason="needs matplotlib").Figure
Text = pytest.importorskip("matplotlib.text", reason="needs matplotlib").Text

LAYERS = ("conv1", "conv2", "conv3")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that were saved, in order."""
    figures: list[Figure] = []
    savefig = Figure.savefig

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def layer_rows(layers: tuple[str, ...] = LAYERS, **more: Any) -> list[dict[str, Any]]:
    """One layer asleep at a time, as the study writes them."""
    return [
        {
            "layer": name,
            "rate": j / 8,
            "saving": j / 8 * (i + 1) / 10,
            "top1": 0.6 - 0.01 * (i % 3) * j,
            "top5": 0.8 - 0.01 * (i % 3) * j,
            **more,
        }
        for i, name in enumerate(layers)
        for j in range(8)
    ]


def uniform_rows() -> list[dict[str, Any]]:
    return [
        {"fill": fill, "saving": j / 8, "top1": top * (1 - j / 8), "top5": top, "top1_std": 0.02}
        for fill, top in (("rescale", 0.5), ("zero", 0.6))
        for j in range(8)
    ]


def lines(axis: Any) -> dict[str, tuple[list[float], list[float], str]]:
    """Lines of a panel by their label: x, y, dash."""
    return {
        line.get_label(): (*map(list, line.get_data()), line.get_linestyle())
        for line in axis.get_lines()
    }


def bands(axis: Any) -> int:
    return len([c for c in axis.collections if type(c).__name__.startswith("FillBetween")])


def names(axis: Any) -> list[str]:
    """What is written beside a panel, the highest first."""
    texts = sorted(axis.texts, key=lambda text: -text.xyann[1])
    return [text.get_text() for text in texts]


def legend_texts(figure: Figure) -> list[str]:
    legends = [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


# --- Fig. 4 --------------------------------------------------------------------------------------


def test_sensitivity_is_a_line_per_layer_in_per_cent(tmp_path: Path, drawn: list[Figure]):
    path = plot_sensitivity(layer_rows(), tmp_path / "s.png", "Fig. 4")
    (figure,) = drawn
    assert path == tmp_path / "s.png"
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "top-1 accuracy (%)",
        "top-5 accuracy (%)",
    ]
    assert {axis.get_xlabel() for axis in figure.axes} == {"dropout rate of the layer"}
    found = lines(figure.axes[0])
    assert set(found) == set(LAYERS)
    assert found["conv3"][0] == [j / 8 for j in range(8)]
    assert found["conv3"][1] == pytest.approx([60 - 2 * j for j in range(8)])
    # Named where they end, in the order of their ends; no legend to look up.
    assert [names(axis) for axis in figure.axes] == [["conv1", "conv2", "conv3"]] * 2
    assert legend_texts(figure) == []
    # The first marker lies on the axis and is drawn whole.
    assert not any(line.get_clip_on() for line in figure.axes[0].get_lines())
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()][:3] == ["0", "1/8", "2/8"]


def test_a_band_is_drawn_where_the_spread_is_known(tmp_path: Path, drawn: list[Figure]):
    plot_sensitivity(layer_rows(("conv1",), top1_std=0.01), tmp_path / "s.png", "")
    assert [bands(axis) for axis in drawn[0].axes] == [1, 0]
    band = drawn[0].axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((59, 61))


def test_without_labels_agreement_is_drawn(tmp_path: Path, drawn: list[Figure]):
    rows = [{"layer": "a", "rate": j / 8, "agreement": 1 - j / 8} for j in range(8)]
    plot_sensitivity(rows, tmp_path / "s.png", "")
    assert [axis.get_ylabel() for axis in drawn[0].axes] == ["agreement (%)"]


@pytest.mark.parametrize("count", [10, 26, 55])
def test_every_line_is_named_or_grey_and_no_two_names_overlap(
    tmp_path: Path, drawn: list[Figure], count: int
):
    rows = [
        {"layer": f"features.{i}.expand3x3", "rate": j / 8, "top1": 0.7 - 0.001 * i * j}
        for i in range(count)
        for j in range(8)
    ]
    plot_sensitivity(rows, tmp_path / "s.png", "")
    (figure,) = drawn
    (axis,) = figure.axes
    found = {line.get_label(): line for line in axis.get_lines()}
    assert len(found) == count
    coloured = [name for name, line in found.items() if line.get_color() != "0.6"]
    # The six that lose most, on top of the others.
    assert set(coloured) == {f"features.{i}.expand3x3" for i in range(count - 6, count)}
    assert coloured == list(found)[-6:]
    assert len({str(found[name].get_color()) for name in coloured}) == 6
    told = names(axis)
    if count <= 30:
        assert set(told) == set(found)
    else:
        assert len(told) == 30
        assert set(told) - set(found) == {"26 more, in grey"}
        assert set(coloured) <= set(told)
    figure.draw_without_rendering()
    # Of the text alone, without the line that leads to it.
    extents = [Text.get_window_extent(text) for text in axis.texts]
    boxes = sorted(extents, key=lambda box: box.y0)
    for one, other in itertools.pairwise(boxes):
        assert other.y0 >= one.y0 + 0.7 * one.height
    for text, box in zip(axis.texts, extents, strict=True):
        assert box.x0 > axis.get_window_extent().x1, text
        assert box.x1 <= figure.bbox.x1
        assert box.y0 >= 0


# --- Fig. 5 --------------------------------------------------------------------------------------


def test_savings_are_shares_of_the_networks_multiplications(tmp_path: Path, drawn: list[Figure]):
    plot_savings(layer_rows(), tmp_path / "s.png", "Fig. 5")
    (axis,) = drawn[0].axes
    assert axis.get_ylabel() == "multiplications saved (% of the network's)"
    assert lines(axis)["conv2"][1] == pytest.approx([100 * j / 8 * 0.2 for j in range(8)])


# --- Fig. 6 --------------------------------------------------------------------------------------


def test_uniform_is_a_solid_line_per_flavour(tmp_path: Path, drawn: list[Figure]):
    plot_uniform(uniform_rows(), tmp_path / "u.png", "Fig. 6")
    (figure,) = drawn
    for axis in figure.axes:
        found = lines(axis)
        assert list(found) == ["uniform, rescaled", "uniform, non-rescaled"]
        assert {dash for _, _, dash in found.values()} == {"-"}
        assert axis.get_xlabel() == "multiplications saved (%)"
    x, y, _ = lines(figure.axes[0])["uniform, rescaled"]
    assert x == pytest.approx([12.5 * j for j in range(8)])
    assert y == pytest.approx([50 * (1 - j / 8) for j in range(8)])
    assert [bands(axis) for axis in figure.axes] == [2, 0]


def test_of_fills_that_do_alike_none_is_hidden(tmp_path: Path, drawn: list[Figure]):
    rows = [row | {"fill": fill} for fill in ("rescale", "zero") for row in uniform_rows()[:8]]
    plot_uniform(rows, tmp_path / "u.png", "Fig. 6")
    behind, before = drawn[0].axes[0].get_lines()
    assert list(behind.get_ydata()) == list(before.get_ydata())
    assert behind.get_linewidth() >= before.get_linewidth() + 1
    assert behind.get_markersize() >= before.get_markersize() + 1


def test_every_fill_has_a_line(tmp_path: Path, drawn: list[Figure]):
    rows = [row | {"fill": fill} for fill in (*FILLS, "auto") for row in uniform_rows()[:8]]
    plot_uniform(rows, tmp_path / "u.png", "Fig. 6")
    assert len(lines(drawn[0].axes[0])) == len(FILLS) + 1


# --- Fig. 7 --------------------------------------------------------------------------------------


def test_nonuniform_is_dots_a_solid_frontier_and_dashed_uniform_lines(
    tmp_path: Path, drawn: list[Figure]
):
    draw = np.random.default_rng(0)
    rows = [
        {"saving": s, "top1": a, "top5": min(1, a + 0.2)}
        for s, a in zip(draw.random(3000), draw.random(3000), strict=True)
    ]
    best = {"top1": rows[:3], "top5": rows[:4]}
    plot_nonuniform(rows, best, uniform_rows(), tmp_path / "n.png", "Fig. 7")
    (figure,) = drawn
    for axis, count in zip(figure.axes, (3, 4), strict=True):
        dots = axis.collections[0]
        assert len(dots.get_offsets()) == 3000
        assert dots.get_rasterized()
        found = lines(axis)
        assert len(found["non-uniform, Pareto-optimal"][0]) == count
        assert {label: dash for label, (_, _, dash) in found.items()} == {
            "uniform, rescaled": "--",
            "uniform, non-rescaled": "--",
            "non-uniform, Pareto-optimal": "-",
        }
        # Dashes over a solid line leave both to be seen.
        (solid,) = [each for each in axis.get_lines() if each.get_linestyle() == "-"]
        dashed = [each for each in axis.get_lines() if each.get_linestyle() == "--"]
        assert all(each.get_zorder() > solid.get_zorder() for each in dashed)
    assert figure.axes[1].collections[0].get_offsets()[0].tolist() == pytest.approx(
        [100 * rows[0]["saving"], 100 * rows[0]["top5"]]
    )
    assert legend_texts(figure)[0] == "each of 3,000 settings"
    box = figure.legends[0].get_window_extent()
    assert all(not box.overlaps(axis.get_window_extent()) for axis in figure.axes)


# --- files ---------------------------------------------------------------------------------------


def test_the_picture_is_a_png_and_nothing_is_left_beside_it(tmp_path: Path):
    path = plot_uniform(uniform_rows(), str(tmp_path / "u.png"), "title")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_picture_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = plot_uniform(uniform_rows(), tmp_path / "u.png", "title")
    before = path.read_bytes()

    def fail(figure: Figure, file: Path, **kwargs: Any) -> None:
        Path(file).write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plot_uniform(uniform_rows(), path, "title")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_rows_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="rows: got none, allowed: one or more"):
        plot_uniform([], tmp_path / "u.png", "")
    assert not list(tmp_path.iterdir())


def test_plots_need_no_display_and_touch_no_global_state(tmp_path: Path):
    code = (
        "import sys; from drowsy.study.plots import plot_savings\n"
        "assert 'matplotlib' not in sys.modules, 'imported before it is needed'\n"
        "rows = [{'layer': 'a', 'rate': 0.0, 'saving': 0.0}]\n"
        "plot_savings(rows, sys.argv[1], '')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "s.png")]
    subprocess.run(run, check=True, timeout=60)
    assert (tmp_path / "s.png").exists()


# --- comparisons ---------------------------------------------------------------------------------


def comparison_rows() -> list[dict[str, Any]]:
    lost = {"paper": (8.0, 70.0), "resolution": (3.0, 7.0), "ours": (-1.0, 2.0)}
    return [
        {
            "method": method,
            "saving_reached": None if (method, i) == ("paper", 1) else 0.26 + 0.25 * i,
            "top1_lost": points[i],
            "top1_std": 0.5,
            "top5_lost": points[i] / 2,
            "top5_std": 0.0,
        }
        for i in range(2)
        for method, points in lost.items()
    ]


def test_a_comparison_is_a_line_per_method_in_points_lost(tmp_path: Path, drawn: list[Figure]):
    plot_comparison(comparison_rows(), tmp_path / "c.png", "", rival="resolution")
    (figure,) = drawn
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels == ["top-1 accuracy lost (points)", "top-5 accuracy lost (points)"]
    (axis, _) = figure.axes
    found = {bars.get_label(): bars for bars in axis.containers}
    assert list(found) == legend_texts(figure) == ["paper", "resolution", "ours"]
    line, _, (bars,) = found["ours"]
    assert list(line.get_xdata()) == pytest.approx([26, 51])
    assert list(line.get_ydata()) == [-1, 2]
    assert [found[name][0].get_linestyle() for name in found] == ["-", "--", "-"]
    assert [tuple(s[:, 1]) for s in bars.get_segments()] == [(-1.5, -0.5), (1.5, 2.5)]
    # A line behind another is the wider one.
    widths = [found[name][0].get_linewidth() for name in ("paper", "ours")]
    assert widths[0] > widths[1]
    # What a method cannot reach is left out; the bars lie within the panel.
    assert list(found["paper"][0].get_xdata()) == [26]
    low, high = axis.get_ylim()
    assert -2 < low < -1.5
    assert 8.5 < high < 10
    assert list(axis.get_yticks()) == pytest.approx([-1, -0.2, 0, 0.2, 1, 2, 5, 8])


def test_a_comparison_without_labels_is_of_agreement(tmp_path: Path, drawn: list[Figure]):
    rows = [{"method": "a", "saving_reached": 0.3, "agreement_lost": 4.0, "agreement_std": 0.0}]
    plot_comparison(rows, tmp_path / "c.png", "")
    assert [axis.get_ylabel() for axis in drawn[0].axes] == ["agreement lost (points)"]
