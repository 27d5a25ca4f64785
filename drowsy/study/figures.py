"""The paper's study (section IV) of any network: Figures 4 to 7 as tables, records and pictures.

Each function measures, writes ``NAME.csv`` (the table), ``NAME.json`` (the record: where the
numbers come from) and ``NAME.png`` (the picture) into a folder, and returns the table's rows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drowsy.evaluation.measurer import Measurer
from drowsy.files.atomic import write_json, write_text
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row, csv_text
from drowsy.knob.frontier import Frontier
from drowsy.knob.metrics import judged_by
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import Setting
from drowsy.searches.methods import search_points
from drowsy.searches.race import Race
from drowsy.searches.settings import single_settings, spread, uniform_settings
from drowsy.study.plots import plot_nonuniform, plot_savings, plot_sensitivity, plot_uniform


class Study:
    """One network on one set of images.

    Layers that rest (``net.resting``) stay awake throughout, and are in no table of layers.

    Args:
        measurer: the network, images, seeds and store.
        out: folder for the results, made if missing.
        title: heads the pictures, e.g. ``SqueezeNet 1.1, 1,300 images``.
        about: further facts for the records (model, data, dtype ...).
    """

    def __init__(
        self,
        measurer: Measurer,
        out: str | os.PathLike[str],
        title: str,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.measurer, self.out, self.title = measurer, Path(out), title
        self.about = about or {}
        self._free = {layer: measurer.names[layer] for layer in measurer.free}
        self._k = measurer.net.k

    def sensitivity(self) -> list[Row]:
        """Fig. 4: each layer alone at rates ``0 .. (k-1)/k``."""
        start = time.perf_counter()
        settings = self._spread(single_settings(len(self._free), self._k))
        points = self.measurer.measure(settings, "sensitivity")
        rows = []
        for layer, name in self._free.items():
            for j in range(self._k):
                setting = tuple(j if i == layer else 0 for i in range(len(settings[0])))
                rows.append({"layer": name, **self._row(setting, points[setting], j)})
        path = self._write("sensitivity", rows, start)
        plot_sensitivity(rows, path, f"Sensitivity of each layer: {self.title}")
        return rows

    def savings(self) -> list[Row]:
        """Fig. 5: what each layer alone saves at each rate (arithmetic, not measured)."""
        start, shares = time.perf_counter(), self.measurer.shares
        rows = [
            {"layer": name, "rate": j / self._k, "saving": j / self._k * shares[name]}
            for name in self._free.values()
            for j in range(self._k)
        ]
        path = self._write("savings", rows, start)
        plot_savings(rows, path, f"Multiplications saved by each layer: {self.title}")
        return rows

    def uniform(self) -> list[Row]:
        """Fig. 6: one rate for all layers, rescaled, non-rescaled and the network's own fills."""
        start = time.perf_counter()
        rows = []
        net = self.measurer.net
        own = (layer.fill for layer in net.layers.values())
        with net.kept():
            for fill in dict.fromkeys(("rescale", "zero", *own)):
                net.set(0, fill=fill)
                settings = self._spread(uniform_settings(len(self._free), self._k))
                points = self.measurer.measure(settings, f"uniform, {fill}")
                rows += [
                    {"fill": fill, **self._row(s, points[s], j)} for j, s in enumerate(settings)
                ]
        path = self._write("uniform", rows, start)
        plot_uniform(rows, path, f"Uniform rates: {self.title}")
        return rows

    def nonuniform(
        self,
        uniform: Sequence[Row],
        method: str = "auto",
        budget: int | None = None,
        racing: bool = False,
    ) -> dict[str, Frontier]:
        """Fig. 7: search non-uniform rates; frontiers by objective, also written as JSON.

        Args:
            uniform: rows of ``uniform``, drawn beside.
            method, budget, racing: of ``drowsy.search``; a race drops what cannot be optimal in
                any objective.
        """
        start = time.perf_counter()
        judges = judged_by(self.measurer.objectives)
        race = Race(self.measurer, judges) if racing else None
        points = search_points(race or self.measurer, method, budget)
        facts: Row = {"cost": self.measurer.cost}
        if race is not None:
            facts["image_evaluations"] = race.image_evaluations
        frontiers = {name: self.measurer.frontier(points, name) for name in judges}
        rows = [self._row(setting, point) for setting, point in points.items()]
        path = self._write("nonuniform", rows, start, facts)
        for name, frontier in frontiers.items():
            frontier.save(self.out / f"frontier_{name}.json")
            frontier.to_csv(self.out / f"frontier_{name}.csv")
        lines = {
            name: [
                self._row(tuple(point.schedule.thresholds().values()), point)
                for point in sorted(frontier.points, key=lambda point: point.saving)
            ]
            for name, frontier in frontiers.items()
        }
        plot_nonuniform(rows, lines, uniform, path, f"Non-uniform rates: {self.title}")
        return frontiers

    def run(
        self, method: str = "auto", budget: int | None = None, racing: bool = False
    ) -> dict[str, Frontier]:
        """All four figures."""
        self.savings()
        self.sensitivity()
        return self.nonuniform(self.uniform(), method, budget, racing)

    # --- tables -------------------------------------------------------------------------------

    def _spread(self, settings: Sequence[Setting]) -> list[Setting]:
        """Settings of all layers, from such of those that are free."""
        return spread(settings, [[layer] for layer in self._free], len(self.measurer.names))

    def _row(self, setting: Setting, point: OperatingPoint, j: int | None = None) -> Row:
        row: Row = {"rate": j / self._k} if j is not None else {}
        row["saving"] = point.saving
        row["setting"] = " ".join(map(str, setting))
        for name, figure in point.figures.items():
            row[name] = figure
            if point.spread:
                row[f"{name}_std"] = point.spread[name]
        return row

    def _write(
        self, name: str, rows: list[Row], start: float, facts: Mapping[str, Any] | None = None
    ) -> Path:
        """Write the table and its record; returns where the picture goes."""
        net = self.measurer.net
        write_text(self.out / f"{name}.csv", csv_text(rows))
        record = {
            "study": name,
            "title": self.title,
            **self.about,
            "images": len(self.measurer.images),
            "seeds": list(self.measurer.seeds),
            "k": self._k,
            "backend": "torch",
            "layers": {
                layer: {"sleep": str(module.sleep), "fill": module.fill}
                for layer, module in net.layers.items()
            },
            "points": len(rows),
            **(facts or {}),
            "seconds": round(time.perf_counter() - start, 1),
            "seconds_note": "of this run; points found in the store cost nothing",
            **self.measurer.fingerprints,
            **provenance(),
        }
        write_json(self.out / f"{name}.json", record)
        return self.out / f"{name}.png"
