"""How much of the exhaustive frontier each search finds, by evaluations.

    python -m bench.search_methods

The recorded table of all 32,768 settings of the CaffeNet-shaped network answers in place of the
network, so nothing is evaluated. Every budget is a search of its own, and its figure is the
hypervolume of its frontier as a share of the exhaustive one's. Writes a table (CSV), its record
(JSON) and a picture (PNG).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import statistics
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from drowsy._optional import require
from drowsy.evaluation.classification import CLASSIFICATION
from drowsy.evaluation.measurer import Measurer
from drowsy.files.atomic import replacing, write_json, write_text
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row, align
from drowsy.knob.costs import multiplication_gains
from drowsy.knob.frontier import Frontier
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import Schedule, Setting
from drowsy.searches.methods import METHODS, search_points

STUDY = Path(__file__).parents[1] / "docs" / "study"
TABLE = STUDY / "caffenet_cifar" / "nonuniform.csv"
# What the table has, and what searches go by.
OBJECTIVES = CLASSIFICATION.objectives(labelled=True)
SEARCHES = [name for name in METHODS if name not in ("auto", "exhaustive")]
# Optuna's methods draw; the others have one course.
DRAWN = ("nsga2", "tpe")
# Up to 1% of the settings.
BUDGETS = (25, 50, 75, 100, 125, 150, 175, 200, 250, 300, 327)
BAR = 0.99


class Recorded:
    """Answers like a ``Measurer``, from a table of all settings."""

    def __init__(self, path: Path) -> None:
        self.points: dict[Setting, OperatingPoint] = {}
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                setting = tuple(map(int, row.pop("setting").split()))
                measured: dict[str, Any] = {name: float(value) for name, value in row.items()}
                self.points[setting] = OperatingPoint(Schedule(8), **measured)
        deepest, layers = max(self.points)[0], len(next(iter(self.points)))
        self.net = SimpleNamespace(k=deepest + 1)
        self.names = [f"conv{i + 1}" for i in range(layers)]
        shares = {}
        for layer, name in enumerate(self.names):
            alone = tuple(deepest if i == layer else 0 for i in range(layers))
            shares[name] = self.points[alone].saving * self.net.k / deepest
        self.gains = multiplication_gains(shares, self.net.k)
        self.damage = CLASSIFICATION.damage
        self.free = list(range(layers))
        self.ties = [[layer] for layer in self.free]

    def measure(
        self, settings: Iterable[Setting], label: str = ""
    ) -> dict[Setting, OperatingPoint]:
        """Look settings up."""
        return {setting: self.points[setting] for setting in settings}


def compare(recorded: Recorded, seeds: Iterable[int]) -> list[Row]:
    """A row for each method, seed and budget: evaluations, and shares of the hypervolume."""
    whole = _volumes(recorded.points.values())
    rows = []
    for method in SEARCHES:
        for seed in seeds if method in DRAWN else (0,):
            for budget in BUDGETS:
                points = search_points(cast(Measurer, recorded), method, budget, seed)
                found = _volumes(points.values())
                shares = {name: found[name] / whole[name] for name in OBJECTIVES}
                rows.append({"method": method, "seed": seed, "evaluations": len(points), **shares})
    return rows


def _volumes(points: Iterable[OperatingPoint]) -> dict[str, float]:
    pool = list(points)
    return {name: Frontier(pool, name).hypervolume() for name in OBJECTIVES}


def _curves(rows: list[Row], objective: str) -> dict[str, dict[int, list[float]]]:
    """Method -> evaluations -> the seeds' shares."""
    curves: dict[str, dict[int, list[float]]] = {name: {} for name in SEARCHES}
    for row in rows:
        curves[row["method"]].setdefault(row["evaluations"], []).append(row[objective])
    return curves


def table(rows: list[Row], objective: str) -> str:
    """Shares in per cent by evaluations; mean and least of the seeds where there are several."""
    lines = [(objective, *map(str, BUDGETS))]
    for method, curve in _curves(rows, objective).items():
        cells = []
        for budget in BUDGETS:
            shares = curve.get(budget, [])
            cell = f"{100 * statistics.fmean(shares):.2f}" if shares else "-"
            cells.append(cell + (f" ({100 * min(shares):.2f})" if len(shares) > 1 else ""))
        lines.append((method, *cells))
    return align(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Share of the hypervolume against evaluations; a band from the least to the best seed."""
    figure = require("matplotlib.figure", "plot").Figure(figsize=(11, 4.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, objective in zip(axes, ("top1", "top5"), strict=True):
        for method, curve in _curves(rows, objective).items():
            x = sorted(curve)
            mean = [100 * statistics.fmean(curve[n]) for n in x]
            (line,) = axis.plot(x, mean, marker="o", markersize=4, label=method)
            low, high = ([100 * pick(curve[n]) for n in x] for pick in (min, max))
            axis.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axis.axhline(100 * BAR, color="0.4", linestyle="--", linewidth=1, label="bar: 99%")
        axis.set_ylim(90, 100.2)
        axis.set_xlabel("evaluations (327 are 1% of all settings)")
        axis.set_ylabel(f"hypervolume, {objective} (% of exhaustive)")
        axis.grid(color="0.9", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, loc="lower right")
    figure.suptitle("Searches of the CaffeNet-shaped network, 32,768 settings", fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=STUDY / "search")
    parser.add_argument("--seeds", type=int, default=5, help="of the methods that draw")
    args = parser.parse_args()
    recorded = Recorded(TABLE)
    rows = compare(recorded, range(args.seeds))
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: f"{v:.5f}" if isinstance(v, float) else v for key, v in row.items()} for row in rows
    )
    write_text(args.out / "methods.csv", text.getvalue())
    record = {
        "study": "share of the exhaustive frontier's hypervolume, from (0, 0)",
        "settings": len(recorded.points),
        "table_sha256": hashlib.sha256(TABLE.read_bytes()).hexdigest(),
        "seeds": args.seeds,
        "optuna": require("optuna", "search").__version__,
        **provenance(),
    }
    write_json(args.out / "methods.json", record)
    plot(rows, args.out / "methods.png")
    for objective in OBJECTIVES:
        print(table(rows, objective) + "\n")
    print(f"wrote {args.out}: methods.csv, methods.json, methods.png")


if __name__ == "__main__":
    main()
