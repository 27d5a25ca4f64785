"""Hypervolume of the measured frontier by images evaluated, with and without racing.

    python -m bench.racing --data FOLDER

Searches the CaffeNet-shaped network on CIFAR-10 test images: all settings at steps of 1/4, and
additive and greedy searches at steps of 1/8. Writes the courses (CSV) and their record (JSON).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from bench.search_methods import STUDY
from drowsy import models
from drowsy.evaluation.measurer import Measurer
from drowsy.files.atomic import write_json, write_text
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row, align, csv_text
from drowsy.graph.convert import convert
from drowsy.images.folders import ImageSet, load_images
from drowsy.knob.frontier import Frontier
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import Setting
from drowsy.models import MODELS
from drowsy.searches.methods import search_points
from drowsy.searches.race import CONFIDENCE, Race

OBJECTIVE = "top1"
# Method, k, budget.
SEARCHES: tuple[tuple[str, int, int | None], ...] = (
    ("exhaustive", 4, None),
    ("additive", 8, 200),
    ("greedy", 8, 200),
)
COLUMNS = ("method", "k", "racing", "images", "settings", "image_evaluations", "hypervolume")


class Watched(Race):
    """A race that writes down its course; one of a single rung measures as without racing."""

    def __init__(self, measurer: Measurer, racing: bool) -> None:
        super().__init__(measurer, [OBJECTIVE])
        if not racing:
            self.stops = self.stops[-1:]
        self.course: list[tuple[int, int, float]] = []

    def measure(
        self, settings: Iterable[Setting], label: str = "settings", values: bool = True
    ) -> dict[Setting, OperatingPoint]:
        """As ``Race.measure``."""
        points = super().measure(settings, label, values)
        area = Frontier(self._complete.values(), OBJECTIVE).hypervolume()
        before = self.course[-1][0] if self.course else 0
        self.course.append((before + len(points), self.image_evaluations, area))
        return points


def run(data: ImageSet, method: str, k: int, budget: int | None, racing: bool) -> list[Row]:
    """The course of one search: a row after each of its steps."""
    model = models.load("caffenet_cifar").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    watched = Watched(Measurer(convert(model, k=k), data.images, data.labels), racing)
    search_points(watched, method, budget)
    about = (method, k, int(racing), len(data))
    return [dict(zip(COLUMNS, (*about, *step), strict=True)) for step in watched.course]


def table(rows: list[Row]) -> str:
    """Where each search ends, as aligned text."""
    last = {(row["method"], row["racing"]): row for row in rows}
    cells = [[f"{row[c]:.5f}" if c == "hypervolume" else str(row[c]) for c in COLUMNS]
             for row in last.values()]  # fmt: skip
    return align([COLUMNS, *cells])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10's test images")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=STUDY / "search")
    args = parser.parse_args()
    info = MODELS["caffenet_cifar"]
    data = load_images(args.data, info.preprocess, indices=range(args.images))
    start = time.perf_counter()
    rows: list[Row] = []
    for method, k, budget in SEARCHES:
        for racing in (False, True):
            rows += run(data, method, k, budget, racing)
    write_text(args.out / "racing.csv", csv_text(rows))
    record = {
        "study": f"hypervolume ({OBJECTIVE}, from (0, 0)) by images evaluated",
        "images": len(data),
        "confidence": CONFIDENCE,
        "seconds": round(time.perf_counter() - start, 1),
        **provenance(),
    }
    write_json(args.out / "racing.json", record)
    print(table(rows))
    print(f"\nwrote {args.out}: racing.csv, racing.json")


if __name__ == "__main__":
    main()
