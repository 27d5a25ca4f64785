"""Fill the tables of the pages in ``docs/study`` from the recorded results beside them.

    python -m bench.study_page

A table stands between ``<!-- NAME -->`` and ``<!-- end -->``; the sentences around it are written
by hand and stay.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from drowsy import models
from drowsy.files.atomic import write_text
from drowsy.knob.costs import layer_costs

STUDY = Path(__file__).parents[1] / "docs" / "study"
NETWORKS = {
    "caffenet_cifar": "CaffeNet-shaped, CIFAR-10",
    "squeezenet1_1": "SqueezeNet 1.1, ImageNet",
    "resnet18": "ResNet-18, ImageNet",
}
COMPARED = {
    "caffenet_cifar": "CaffeNet-shaped, CIFAR-10",
    "cifar_resnet56": "ResNet-56, CIFAR-10",
    "squeezenet1_1": "SqueezeNet 1.1, ImageNet",
    "resnet18": "ResNet-18, ImageNet",
    "resnet50": "ResNet-50, ImageNet",
}
RATES = (1 / 8, 1 / 4, 3 / 8, 1 / 2)
# Points lost by the paper's CaffeNet, uniform and non-rescaled (section IV).
PAPER = {"top1": (1.9, 5.4, 12.8, 26.6), "top5": (1.3, 4.3, 9.5, 22.9)}
# Table I as printed: neurons (K), multiplies per neuron, multiplies (M).
PAPER_TABLE = {
    "conv1": ("290", "363", "105"),
    "conv2": ("187", "2.4 K", "448"),
    "conv3": ("65", "2.3 K", "150"),
    "conv4": ("64", "3.5 K", "224"),
    "conv5": ("43", "3.5 K", "150"),
}

Recorded = dict[str, str]


def read(network: str, name: str) -> list[Recorded]:
    """Rows of one recorded table; none where it is not recorded."""
    path = STUDY / network / f"{name}.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def uniform_table() -> str:
    """Points lost at uniform rates, beside the paper's."""
    rows = [["network", "fill", "accuracy", *(f"{rate:g}" for rate in RATES)]]
    for metric, losses in PAPER.items():
        rows.append(["*paper: CaffeNet, ImageNet*", "non-rescaled", metric, *map(str, losses)])
    for network, title in NETWORKS.items():
        table = read(network, "uniform")
        for fill, shown in (("zero", "non-rescaled"), ("rescale", "rescaled")):
            for metric in PAPER:
                found = {float(r["rate"]): float(r[metric]) for r in table if r["fill"] == fill}
                if found:
                    lost = [f"{100 * (found[0.0] - found[rate]):.1f}" for rate in RATES]
                    rows.append([title, shown, metric, *lost])
    return markdown(rows)


def nonuniform_table() -> str:
    """Points lost by the best measured setting at a saving, and by uniform rates there.

    These savings are of the convolutions, as the paper's. Records have them of the network (older
    ones of its convolutions): what all layers save at one rate tells which part that is.
    """
    savings = (0.1, 0.25, 0.5)
    rows = [["network", "accuracy", *(f"{s:.0%} saved: best / uniform" for s in savings)]]
    rows.append(["*paper: CaffeNet, ImageNet*", "top1", "", "", "13.8 / 26.6"])
    rows.append(["*paper: CaffeNet, ImageNet*", "top5", "", "", "10.9 / 22.9"])
    for network, title in NETWORKS.items():
        points, uniform = read(network, "nonuniform"), read(network, "uniform")
        asleep = [r for r in uniform if float(r["rate"])]
        part = max((float(r["saving"]) / float(r["rate"]) for r in asleep), default=1.0)
        for metric in PAPER if points else ():
            dense = max(float(r[metric]) for r in points if float(r["saving"]) == 0)
            cells = []
            for saving in savings:
                # Records have six digits.
                least = part * saving - 1e-5
                best = max(float(r[metric]) for r in points if float(r["saving"]) >= least)
                even = [float(r[metric]) for r in uniform if float(r["saving"]) >= least]
                cells.append(f"{100 * (dense - best):.1f} / {100 * (dense - max(even)):.1f}")
            rows.append([title, metric, *cells])
    return markdown(rows)


def sensitivity_table() -> str:
    """Top-1 points lost with one layer at rate 1/2: the five most and five least sensitive."""
    rows = [["network", "most sensitive", "least sensitive"]]
    rows.append(["*paper: CaffeNet, ImageNet*", "conv1", "conv5"])
    for network, title in NETWORKS.items():
        table = read(network, "sensitivity")
        if not table:
            continue
        awake = {r["layer"]: float(r["top1"]) for r in table if float(r["rate"]) == 0}
        loss = {
            r["layer"]: 100 * (awake[r["layer"]] - float(r["top1"]))
            for r in table
            if float(r["rate"]) == 0.5
        }
        ordered = sorted(loss, key=lambda layer: -loss[layer])
        count = min(5, len(ordered) // 2)
        rows.append([title, *(_named(loss, part) for part in (ordered[:count], ordered[-count:]))])
    return markdown(rows)


def cost_comparison() -> str:
    """The paper's Table I beside the arithmetic."""
    model = models.create("caffenet")
    rows = [["layer", "#N paper (K)", "#N", "#M paper", "#M", "#N x #M paper (M)", "#N x #M (M)"]]
    for cost in layer_costs(model, (3, 227, 227)):
        neurons, per_neuron, millions = PAPER_TABLE[cost.name]
        ours = (f"{cost.neurons:,}", f"{cost.multiplies_per_neuron:,}")
        total = f"{cost.multiplies / 1e6:.1f}"
        rows.append([cost.name, neurons, ours[0], per_neuron, ours[1], millions, total])
    return markdown(rows)


def lfsr_table() -> str:
    """Rates and accuracy of shift registers."""
    with open(STUDY / "lfsr.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    asked = [row["asked"] for row in table if row["source"] == table[0]["source"]]
    rows = [["asked", *(f"{float(rate):g}" for rate in asked)]]
    for source in dict.fromkeys(row["source"] for row in table):
        mine = [row for row in table if row["source"] == source]
        rows.append([f"{source}: slept", *(f"{float(row['slept']):.3f}" for row in mine)])
        rows.append(
            [f"{source}: top-1 (%)"]
            + [f"{100 * float(r['top1']):.1f} ± {100 * float(r['top1_std']):.1f}" for r in mine]
        )
    return markdown(rows)


def comparison_table(name: str) -> str:
    """Points lost by every recipe of a comparison, top-1 / top-5, at each saving."""
    recorded = {network: read(f"compare/{network}", name) for network in COMPARED}
    networks = {network: table for network, table in recorded.items() if table}
    measured = [each for table in networks.values() for each in table]
    methods = dict.fromkeys(each["method"] for each in measured)
    savings = sorted({float(each["saving"]) for each in measured})
    rows = [["network", "recipe", *(f"{saving:.0%} saved" for saving in savings)]]
    for network, table in networks.items():
        for method in methods:
            mine = {float(r["saving"]): r for r in table if r["method"] == method}
            if mine:
                cells = [_lost(mine[saving]) if saving in mine else "" for saving in savings]
                rows.append([COMPARED[network], f"`{method}`", *cells])
    return markdown(rows)


def _lost(row: Recorded) -> str:
    """``1.3 ± 0.2 / 0.4 ± 0.1``; bold where it loses less than resolution beyond the spread."""
    cells = []
    for metric in PAPER:
        lost, spread = row[f"{metric}_lost"], row[f"{metric}_std"]
        if not lost:
            return "not reached"
        text = f"{float(lost) + 0.0:.1f}" + (f" ± {float(spread):.1f}" if float(spread) else "")
        cells.append(f"**{text}**" if row[f"{metric}_beats"] == "yes" else text)
    return " / ".join(cells) + _reached(row)


def rules_table() -> str:
    """Top-1 points lost and divergence by what reads the sleepers, and by fill."""
    files = {name: read("fills", f"rules_{name}") for name in COMPARED}
    fills = list(dict.fromkeys(row["fill"] for table in files.values() for row in table))
    rows = [["network", "read by", "source", "correction", *(f"`{fill}`" for fill in fills)]]
    for network, table in files.items():
        for source in dict.fromkeys(row["source"] for row in table):
            for kind in dict.fromkeys(row["follows"] for row in table):
                for correction in dict.fromkeys(row["correction"] for row in table):
                    key = (source, kind, correction)
                    mine = {
                        row["fill"]: row
                        for row in table
                        if (row["source"], row["follows"], row["correction"]) == key
                    }
                    least = min(mine, key=lambda fill: float(mine[fill]["divergence"]))
                    cells = [_harm(mine[fill], fill == least) for fill in fills]
                    rows.append([COMPARED[network], kind, source, correction, *cells])
    return markdown(rows)


def bare_table() -> str:
    """What sleep on outputs of convolutions and norms costs, beside sleep on neurons."""
    titles = ("sleep", "rate", "on neurons", "on norms' outputs", "on convolutions' outputs")
    rows = [["network, images", *titles]]
    for network, title in COMPARED.items():
        table = read("bare", network)
        if not table:
            continue
        record = json.loads((STUDY / "bare" / f"{network}.json").read_text())
        name = f"{title}, {record['images']}"
        for asleep in table:
            if asleep["acts_on"] != "neuron":
                continue
            keys = ("source", "grain", "fill", "rate")
            ways = [r for r in table if all(r[key] == asleep[key] for key in keys)]
            what = ", ".join(f"`{asleep[key]}`" for key in keys[:3])
            rows.append(
                [
                    name,
                    what if float(asleep["rate"]) else "awake",
                    f"{float(asleep['rate']):g}",
                    _joined(asleep, _share),
                    *(_joined(way, _cost) for way in ways if way is not asleep),
                ]
            )
            rows[-1] += [""] * (len(rows[0]) - len(rows[-1]))
    return markdown(rows)


def _joined(row: Recorded, cell: Callable[[Recorded, str], str]) -> str:
    return " / ".join(cell(row, metric) for metric in ("top1", "top5", "agreement"))


def _share(row: Recorded, metric: str) -> str:
    low, share, high = (float(row[f"{metric}{end}"]) for end in ("_low", "", "_high"))
    return f"{share:.1f} ({low:.1f} to {high:.1f})"


def _cost(row: Recorded, metric: str) -> str:
    cost, error = float(row[f"{metric}_cost"]), float(row[f"{metric}_cost_error"])
    lost = f"{round(cost, 1) + 0.0:.1f}"
    return f"{lost} ± {error:.1f}" if error else lost


def _harm(row: Recorded, least: bool) -> str:
    text = f"{float(row['top1_lost']) + 0.0:.1f} / {float(row['divergence']):.3f}"
    return f"**{text}**" if least else text


def comparison_provenance() -> str:
    """What comparisons were measured on."""
    rows = [["network", "comparison", "dtype", "calibration, search, report", "seeds", "commit"]]
    for network, title in COMPARED.items():
        for path in sorted((STUDY / "compare" / network).glob("*.json")):
            record = json.loads(path.read_text())
            splits = record["splits"]
            spans = [
                ":".join(map(str, splits[split])) if split in splits else "-"
                for split in ("calibration", "search", "report")
            ]
            seeds = " ".join(map(str, record["seeds"]))
            commit = (record["commit"] or "")[:10]
            rows.append([title, path.stem, record["dtype"], ", ".join(spans), seeds, commit])
    return markdown(rows)


def provenance_table() -> str:
    """What was measured on what."""
    rows = [["network", "images", "dtype", "seeds", "settings measured", "commit"]]
    for network, title in NETWORKS.items():
        for name in ("sensitivity", "uniform", "nonuniform"):
            path = STUDY / network / f"{name}.json"
            if path.exists():
                record = json.loads(path.read_text())
                rows.append(
                    [
                        f"{title}: {name}",
                        f"{record['images']:,}",
                        record["dtype"],
                        " ".join(map(str, record["seeds"])),
                        f"{record['points']:,}",
                        (record["commit"] or "")[:10],
                    ]
                )
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its header, and a dash stands where there is nothing."""
    lines = ["| " + " | ".join(cell or "-" for cell in row) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("---" for _ in rows[0]) + " |")
    return "\n".join(lines)


def _named(loss: dict[str, float], layers: Iterable[str]) -> str:
    return ", ".join(f"{layer} ({loss[layer]:.1f})" for layer in layers)


TUNED = ("tune", "view", "sleep", "resolution", "crop")
DENSE = {
    ("carn_m", "psnr"): "CARN-M, Set14, PSNR (dB)",
    ("espnet", "agreement"): "ESPNet, CamVid, pixels of the class awake (%)",
    ("espnet", "miou"): "ESPNet, CamVid, mean overlap with the labels (%)",
    ("ultraface", "f1"): "UltraFace, F1 of boxes against those awake (%)",
}


def tuned_table() -> str:
    """Points lost by ``tune``, by each of its levers alone and by the plain rivals."""
    lines = [["network", "saved", "chosen", *(f"`{name}`" for name in TUNED)]]
    for network, title in COMPARED.items():
        rows = read("tune", network)
        for saving in dict.fromkeys(row["saving"] for row in rows):
            of = {row["method"]: row for row in rows if row["saving"] == saving}
            cells = [
                _between(of.get(method), ("top1_lost", "low", "high")) + _reached(of.get(method))
                for method in TUNED
            ]
            lines.append([title, f"{float(saving):.0%}", of["tune"]["setting"], *cells])
    return markdown(lines)


def framed_table() -> str:
    """The same points on photographs that are framed tightly."""
    lines = [["network", "saved", *(f"`{name}`" for name in TUNED)]]
    for network, title in COMPARED.items():
        rows = [row for row in read("tune", network) if row.get("framed_lost")]
        for saving in dict.fromkeys(row["saving"] for row in rows):
            of = {row["method"]: row for row in rows if row["saving"] == saving}
            columns = ("framed_lost", "framed_low", "framed_high")
            cells = [_between(of.get(method), columns) for method in TUNED]
            lines.append([title, f"{float(saving):.0%}", *cells])
    return markdown(lines)


def framed_tuned_table() -> str:
    """Views that were tuned on such photographs, beside those that were tuned on others."""
    methods = ("tuned here", "tuned on ImageNet", "resolution")
    lines = [["network", "saved", "chosen", *methods[:2], f"`{methods[2]}`"]]
    rows = read("tune", "framed_tuned")
    for network, saving in dict.fromkeys((row["network"], row["saving"]) for row in rows):
        of = {r["method"]: r for r in rows if (r["network"], r["saving"]) == (network, saving)}
        cells = [_between(of.get(method), ("top1_lost", "low", "high")) for method in methods]
        chosen = of["tuned here"]["setting"] if "tuned here" in of else ""
        lines.append([COMPARED[network], f"{float(saving):.0%}", chosen, *cells])
    return markdown(lines)


def _reached(row: Recorded | None) -> str:
    """What is saved, where that is a point and more above what was asked for."""
    if row is None or not row["saving_reached"]:
        return ""
    asked, reached = float(row["saving"]), float(row["saving_reached"])
    return f", at {reached:.0%}" if reached >= asked + 0.01 else ""


def dense_table() -> str:
    """What ``tune`` and what is simple lose where outputs cover the picture."""
    head = ["network", "images", "awake", "saved", "`tune`", "lost", "`resolution`", "lost"]
    lines = [[*head, "`bicubic`, lost"]]
    for (network, metric), title in DENSE.items():
        rows = [row for row in read("tune", network) if row["metric"] == metric]
        for saving in dict.fromkeys(row["saving"] for row in rows):
            of = {row["method"]: row for row in rows if row["saving"] == saving}
            times = 1 if metric == "psnr" else 100
            awake = float(rows[0]["awake"])
            # Of a fraction 1 says only that the network agrees with itself.
            told = f"{times * awake:.1f}" if times == 1 or awake < 1 else ""
            cells = [title, rows[0]["images"], told, f"{float(saving):.0%}"]
            for method in ("tune", "resolution"):
                row = of.get(method)
                cells.append(row["setting"] if row else "")
                cells.append(_dense_lost(row, times))
            lines.append([*cells, _dense_lost(of.get("bicubic"), times)])
    return markdown(lines)


def _dense_lost(row: Recorded | None, times: float) -> str:
    """A loss with its interval, in hundredths of decibels, which are few."""
    return _between(row, ("lost", "low", "high"), times, 2 if times == 1 else 1)


def _between(
    row: Recorded | None, names: tuple[str, str, str], times: float = 1, digits: int = 1
) -> str:
    """A loss with its interval; a dash where it was not measured."""
    if row is None or not row[names[0]]:
        return "-"
    # Adding 0 turns -0.0 into 0.0.
    each = (round(times * float(row[name]), digits) + 0.0 for name in names)
    lost, low, high = (f"{number:.{digits}f}" for number in each)
    return f"{lost} ({low} to {high})"


def main() -> None:
    """Rewrite the pages' tables."""
    fill(
        STUDY / "README.md",
        {
            "uniform": uniform_table,
            "nonuniform": nonuniform_table,
            "sensitivity": sensitivity_table,
            "cost": cost_comparison,
            "lfsr": lfsr_table,
            "bare": bare_table,
            "provenance": provenance_table,
        },
    )
    fill(
        STUDY / "tune" / "README.md",
        {
            "tuned": tuned_table,
            "framed": framed_table,
            "framed tuned": framed_tuned_table,
            "dense": dense_table,
        },
    )
    fill(
        STUDY / "compare" / "README.md",
        {
            "methods": partial(comparison_table, "compare"),
            "ablation": partial(comparison_table, "ablation"),
            "groups": partial(comparison_table, "groups"),
            "rules": rules_table,
            "grains": partial(comparison_table, "grains"),
            "patterns": partial(comparison_table, "patterns"),
            "provenance": comparison_provenance,
        },
    )


def fill(page: Path, tables: Mapping[str, Callable[[], str]]) -> None:
    """Write each table between its marks on a page."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        filled = f"\\g<1>{table()}\n\\g<2>"
        text, count = re.subn(pattern, filled, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{page}: wants one <!-- {name} --> ... <!-- end -->, has {count}")
    write_text(page, text)


if __name__ == "__main__":
    main()
