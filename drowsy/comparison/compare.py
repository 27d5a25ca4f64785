"""Ways to save multiplications, side by side: one network, one set of images, equal savings.

A *recipe* says how to save multiplications; on a workbench it turns a wanted saving into an
*operation*: a network, an image size and a setting whose convolutions need so many multiplications
less than the network as it is. Operations are chosen on search images and reported on others.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drowsy.comparison.operate import operate
from drowsy.comparison.plot import plot_comparison
from drowsy.comparison.recipes import SETS, Scale
from drowsy.evaluation.store import Store
from drowsy.files.atomic import write_json, write_text
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row, csv_text
from drowsy.files.tables import align as align_columns
from drowsy.images.view import View
from drowsy.knob.metrics import judged_by
from drowsy.knob.point import OperatingPoint
from drowsy.tuning.conditions import SAVINGS, SEEDS, Conditions
from drowsy.tuning.recipe import Recipe, Sleep
from drowsy.tuning.workbench import Workbench


def compare(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    search: range,
    report: range,
    calibration: range | None = None,
    savings: Sequence[float] = SAVINGS,
    seeds: Sequence[int] = SEEDS,
    recipes: Sequence[Recipe] = SETS["methods"],
    budget: int | None = None,
    interpolation: str = "bicubic",
    store: Store | None = None,
    batch: int = 50,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    progress: bool = False,
    each: Callable[[Row], None] = lambda row: None,
    out: str | os.PathLike[str] | None = None,
    title: str = "",
    about: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Accuracy lost by each recipe at each saving.

    Args:
        model: a network in eval mode that ``drowsy.convert`` takes; stays as it was.
        images: float32 ``[N, C, H, W]``, as the network takes them at full resolution.
        labels: int64 ``[N]``, or None: then agreement with the network as it is stands for top-1.
        search: images on which operations are chosen, with the first seed.
        report: images on which they are reported, with every seed.
        calibration: images, labels unused, for recipes that calibrate. The three are disjoint.
        savings: fractions of the convolution multiplications of the whole network at full
            resolution, each above 0 and below 1. A recipe reaches at least these.
        seeds: of the sleep maps, two or more.
        recipes: what is compared; names must differ.
        budget: settings of each search, as for ``drowsy.search``.
        interpolation: how images are scaled down (antialiased): ``bicubic`` or ``bilinear``.
        store: results go there at once, and what it holds is not evaluated again.
        batch, dtype, device, progress: of the evaluation.
        each: called with every row as soon as it is known.
        out: folder for ``compare.csv`` (the rows), ``compare.json`` (where they come from) and
            ``compare.png`` (the picture); None writes nothing.
        title, about: of the picture, and further facts for the record.

    Returns:
        A row for each saving and recipe: ``method``, ``saving`` (wanted), ``saving_reached``,
        ``size`` (of the image), ``NAME_lost`` in points and ``NAME_std`` over the seeds for top1
        and top5 (or agreement), ``NAME_beats`` (``yes`` where it loses less than ``resolution`` by
        more than the larger spread of the two, ``no`` where it loses more by that, else ``even``),
        ``sampling_error`` (points: so large at most is the standard error of the loss of top1 or
        agreement that is due to the choice of the images), ``divergence`` from the network as it is
        (mean, nats), ``images``, ``seeds``, ``rates`` in 1/k. What a recipe cannot reach is None.

    Raises:
        ValueError: splits that overlap or are empty, a saving out of range, fewer than two seeds,
            recipes of one name, or no calibration images for a recipe that calibrates.
    """
    if len(tuple(seeds)) < 2:
        raise ValueError(
            f"seeds: got {tuple(seeds)}, allowed: two or more, as their spread is reported"
        )
    conditions = Conditions(
        savings=tuple(savings),
        seeds=tuple(seeds),
        budget=budget,
        interpolation=interpolation,
        batch=batch,
        dtype=dtype,
        device=torch.device(device),
        progress=progress,
        store=store,
    )
    splits = {"search": search, "report": report}
    if calibration is not None:
        splits["calibration"] = calibration
    _check_recipes(recipes, splits)
    workbench = Workbench(model, images, labels, splits, conditions, recipes)
    start = time.perf_counter()
    dense = workbench.measure(workbench.awake_at(View.whole(workbench.full)))
    rows = []
    for row in _rows(workbench, recipes, dense):
        rows.append(row)
        each(row)
    if out is not None:
        facts = {
            "comparison": title,
            **(about or {}),
            "as it is": {name: dense.figures[name] for name in judged_by(dense.figures)},
            "splits": {name: [span.start, span.stop] for name, span in splits.items()},
            "seeds": list(conditions.seeds),
            "budget": budget,
            "images scaled": f"{interpolation}, antialiased",
            "features scaled before flattening": workbench.fitted,
            "recipes": {recipe.name: _described(recipe) for recipe in recipes},
            "seconds": round(time.perf_counter() - start, 1),
            "seconds_note": "of this run; points found in the store cost nothing",
            **workbench.fingerprints,
            **provenance(),
        }
        _write(Path(out), rows, facts, _rival(recipes))
    return rows


def _check_recipes(recipes: Sequence[Recipe], splits: Mapping[str, range]) -> None:
    names = [recipe.name for recipe in recipes]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"recipes: got {names}, allowed: one or more, each name once")
    needy = [r.name for r in recipes if isinstance(r, Sleep) and r.calibrates]
    if needy and "calibration" not in splits:
        raise ValueError(f"calibration: got none, allowed: a range, as {needy[0]} calibrates")


def _rival(recipes: Sequence[Recipe]) -> Recipe | None:
    """What the others are judged by, if it is among them."""
    return next((recipe for recipe in recipes if isinstance(recipe, Scale)), None)


def _rows(workbench: Workbench, recipes: Sequence[Recipe], dense: OperatingPoint) -> Iterator[Row]:
    """A row for each saving and recipe, each as soon as it is known."""
    scaling = _rival(recipes)
    for wanted in workbench.conditions.savings:
        # First what the others are judged by.
        rival = None if scaling is None else _row(workbench, scaling, wanted, dense)
        for recipe in recipes:
            if recipe is scaling and rival is not None:
                yield rival | _verdicts(rival, None)
            else:
                row = _row(workbench, recipe, wanted, dense)
                yield row | _verdicts(row, rival)


def _write(folder: Path, rows: Sequence[Row], facts: Row, rival: Recipe | None) -> None:
    """The table, its record and its picture."""
    write_text(folder / "compare.csv", csv_text(rows))
    write_json(folder / "compare.json", facts)
    as_it_is = " / ".join(f"{100 * value:.1f}" for value in facts["as it is"].values())
    plot_comparison(
        rows,
        folder / "compare.png",
        f"{facts['comparison']}; with all multiplications {as_it_is}%",
        None if rival is None else rival.name,
    )


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    shown = [key for key in rows[0] if key not in ("rates", "images", "seeds")]
    return align_columns([shown, *([_text(key, row[key]) for key in shown] for row in rows)])


def _text(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    # Adding 0 turns -0.0 into 0.0.
    if key == "divergence":
        return f"{value:.3f}"
    return f"{value:.1%}" if key.startswith("saving") else f"{round(value, 1) + 0.0:.1f}"


def _row(workbench: Workbench, recipe: Recipe, wanted: float, dense: OperatingPoint) -> Row:
    """What a recipe loses at a saving; None in every column where it cannot reach it."""
    operation = operate(recipe, workbench, wanted)
    point = None if operation is None else workbench.measure(operation)
    row: Row = {
        "method": recipe.name,
        "saving": wanted,
        "saving_reached": operation and operation.saving,
        "size": operation and "x".join(map(str, operation.view.size)),
    }
    for name in judged_by(dense.figures):
        lost = point and 100 * (dense.figures[name] - point.figures[name])
        row[f"{name}_lost"] = lost
        # One seed was measured where nothing is random.
        row[f"{name}_std"] = point and 100 * (point.spread or {}).get(name, 0.0)
    return {
        **row,
        # Losses differ from 0 only on images that get another first choice.
        "sampling_error": point and 100 * math.sqrt((1 - (point.agreement or 0)) / dense.images),
        "divergence": point and point.divergence,
        "images": dense.images,
        "seeds": len(workbench.conditions.seeds),
        "rates": operation and " ".join(map(str, operation.setting)),
    }


def _verdicts(row: Row, rival: Row | None) -> Row:
    """Whether a row loses less than its rival, by more than the larger spread of the two."""
    verdicts: Row = {}
    for name in (key.removesuffix("_lost") for key in row if key.endswith("_lost")):
        lost = row[f"{name}_lost"]
        if rival is None or None in (lost, rival[f"{name}_lost"]):
            verdicts[f"{name}_beats"] = None
            continue
        less = rival[f"{name}_lost"] - lost
        spread = max(row[f"{name}_std"], rival[f"{name}_std"])
        verdicts[f"{name}_beats"] = "even" if abs(less) <= spread else "yes" if less > 0 else "no"
    return verdicts


def _described(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields, JSON-able."""
    return {"kind": type(recipe).__name__, **vars(recipe)}
