"""Turn recorded results into tables and pictures.

    python -m bench.report bench/results/nvidia-h200 --out report

Reads every JSON file of pytest-benchmark in the folder (and in ``../offline`` the compile report,
in ``../cpu`` the CPU's results). Of a test that was measured more than once the newest result
counts. Writes ``report.md`` and its pictures, in a folder for each kind of GPU where there are
several; ``--figures`` writes nothing. Every figure is a ratio to something measured in the same
run; what was not measured says so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from drowsy_kernels.tuning import table_path

from bench.figures import figures
from bench.pictures import PICTURES
from bench.records import (
    TITLES,
    Results,
    baseline,
    dense_ratio,
    fastest,
    gpu_name,
    joules,
    read_results,
    sleep_ratio,
)
from bench.study_page import markdown
from drowsy.files.atomic import write_text
from drowsy.files.tables import Row, align

# --- tables ---------------------------------------------------------------------------------------


def figure_rows(results: Results) -> list[list[str]]:
    """The table of figures."""
    rows = [["figure", "bar", "aim", "measured", "state", "note"]]
    for figure in figures(results):
        measured = "" if figure.value is None else f"{figure.value:.3g}"
        rows.append(
            [
                figure.name,
                f"<= {figure.bar:g}",
                f"<= {figure.aim:g}",
                measured,
                figure.state,
                figure.note,
            ]
        )
    return rows


def dense_rows(results: Results) -> list[list[str]]:
    """Dense layers: milliseconds of every way."""
    ways = ("box", "pointer", "cudnn", "cudnn_neuron", "inductor")
    rows = [["layer", "batch", "format", *ways, "ours / cudnn", "TFLOP/s", "of roofline", "spread"]]
    for row in results.of("test_dense"):
        own = [row["ways"][way] for way in ("box", "pointer") if way in row["ways"]]
        ours = min(own, key=lambda times: times["ms"], default=None)
        ratio = dense_ratio(row)
        rows.append(
            [
                row["shape"],
                str(row["images"]),
                row["number"],
                *(_ms(row["ways"].get(way)) for way in ways),
                "" if ratio is None else f"{ratio:.2f}",
                *(
                    ("failed", "", "")
                    if ours is None
                    else (
                        f"{ours['tflop_per_s']:.0f}",
                        f"{ours['of_roofline']:.0%}",
                        f"{ours['spread']:.1%}",
                    )
                ),
            ]
        )
    return rows


def sleep_rows(results: Results) -> list[list[str]]:
    """Layers asleep: ``sleep_ratio`` at every rate."""
    rates = sorted({float(rate) for row in results.of("test_sleep") for rate in row["rates"]})
    heads = [f"r = {rate:g}" for rate in rates]
    rows = [["layer", "batch", "format", "grain", "dense ms", *heads, "with its map at 0.5"]]
    for row in results.of("test_sleep"):
        ratios = [sleep_ratio(row, rate) for rate in rates]
        drawn = sleep_ratio(row, 0.5, "_map")
        rows.append(
            [
                row["shape"],
                str(row["images"]),
                row["number"],
                row["grain"],
                "failed"
                if (dense := fastest(row["ways"], ("box", "pointer"))) is None
                else f"{dense:.3g}",
                *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
                "" if drawn is None else f"{drawn:.2f}",
            ]
        )
    return rows


def network_rows(results: Results) -> list[list[str]]:
    """Networks: images a second and joules an image."""
    heads = ["network", "batch", "format", "sleeps by", "saved", "images/s", "time / dense"]
    rows = [[*heads, "J/image", "above idle", "J / dense"]]
    seen = set()
    for row in results.of("test_network"):
        head = [TITLES.get(row["network"], row["network"]), str(row["images"]), row["number"]]
        best = baseline(row)
        dense = best and joules(best[1])
        if tuple(head) not in seen:
            seen.add(tuple(head))
            for way, times in row["baselines"].items():
                rows.append([*head, f"dense: {way}", "", *_network_cells(times, best, dense)])
        for point in sorted(row["points"], key=lambda point: point["saving"]):
            saved = f"{point['saving']:.1%}"
            rows.append([*head, row["variant"], saved, *_network_cells(point, best, dense)])
    return rows


def _network_cells(times: Row, best: tuple[str, Row] | None, dense: float | None) -> list[str]:
    energy = times["energy"] or {}
    spent, above = energy.get("joules_per_image"), energy.get("above_idle_per_image")
    return [
        f"{times['images_per_s']:,.0f}",
        "" if best is None else f"{times['ms'] / best[1]['ms']:.3f}",
        "not measured" if spent is None else f"{spent:.4g}",
        "" if above is None else f"{above:.4g}",
        "" if spent is None or not dense else f"{spent / dense:.3f}",
    ]


def stream_rows(results: Results) -> list[list[str]]:
    """Video: a frame's time against the awake network's, by share of the work."""
    heads = ["network", "pixels", "streams", "format", "awake ms", "dense / awake"]
    rows = [[*heads, "1/2 / awake", "1/4 / awake", "spread", "host ms"]]
    for row in results.of("test_stream"):
        ways = row["ways"]
        awake, half = ways["awake"], ways["1/2"]
        rows.append(
            [
                str(TITLES.get(row["network"], row["network"])),
                *(str(row[key]) for key in ("side", "images", "number")),
                _ms(awake),
                *(f"{ways[way]['ms'] / awake['ms']:.2f}" for way in ("dense", "1/2", "1/4")),
                f"{half['spread']:.1%}",
                f"{half['host_us'] / 1e3:.3g}",
            ]
        )
    return rows


def overhead_rows(results: Results) -> list[list[str]]:
    """What is not convolution, in microseconds."""
    rows = [["what", "of", "layer", "batch", "microseconds", "spread"]]
    for test, what in (("test_map", "map"), ("test_compaction", "list"), ("test_fill", "fill")):
        for row in results.of(test):
            of = " ".join(row[key] for key in ("source", "kind", "list", "fill") if key in row)
            cells = [what, of, row["shape"], str(row["images"])]
            rows.append([*cells, f"{1e3 * row['ms']:.1f}", f"{row['spread']:.1%}"])
    for row in results.of("test_turn"):
        times = row["gpu_us"]
        spread = (max(times) - min(times)) / statistics.median(times)
        name = TITLES[row["network"]]
        rows.append(
            ["knob", row["turn"], name, "", f"{statistics.median(times):.1f}", f"{spread:.0%}"]
        )
    return rows


def _ms(times: Row | None) -> str:
    return "" if times is None else f"{times['ms']:.3g}"


# --- the page ------------------------------------------------------------------------------------


def write_report(results: Results, out: Path) -> None:
    """Write ``report.md`` and its pictures into ``out``."""
    parts = [f"# Measurements: {gpu_name(results)}", _about(results), "## Figures"]
    parts.append(markdown(figure_rows(results)))
    for name, (plot, text) in PICTURES.items():
        if plot(results, out / name):
            parts.append(f"![{text}]({name})")
    for title, rows in (
        ("Networks", network_rows(results)),
        ("Layers, nobody asleep (ms)", dense_rows(results)),
        ("Layers asleep: time / ((1 - r) x own dense time)", sleep_rows(results)),
        ("Streams: a frame's time over the awake network's", stream_rows(results)),
        ("Everything else", overhead_rows(results)),
    ):
        parts += [f"## {title}", markdown(rows) if len(rows) > 1 else "Not measured."]
    write_text(out / "report.md", "\n\n".join(parts) + "\n")


def _about(results: Results) -> str:
    if results.machine is None:
        return "No results of a GPU."
    gpu, record = results.machine["gpu"], results.machine["drowsy"]
    versions = ", ".join(f"{name} {text}" for name, text in record["versions"].items() if text)
    return (
        f"{gpu['name']} (compute capability {gpu['capability'][0]}.{gpu['capability'][1]}, "
        f"{gpu['multiprocessors']} multiprocessors), CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}, "
        f"{versions}; commits {', '.join(results.commits)}. Weights of whole networks are random: "
        "time and energy only."
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("results", type=Path, help="folder of recorded JSON")
    parser.add_argument("--out", type=Path, help="folder to write (default: RESULTS/report)")
    parser.add_argument("--figures", action="store_true", help="print the figures, write nothing")
    options = parser.parse_args(arguments)
    out = options.out or options.results / "report"
    try:
        kinds = read_results(options.results)
        for results in kinds:
            print(f"{gpu_name(results)}\n\n{align(figure_rows(results))}\n")
            if not options.figures:
                place = out if len(kinds) == 1 else out / slug(gpu_name(results))
                write_report(results, place)
                print(f"wrote {place}\n")
    except (OSError, ValueError, ImportError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    return 0


def slug(name: str) -> str:
    """A GPU's name as a folder's: ``nvidia-h200``."""
    return table_path(name).stem


if __name__ == "__main__":
    sys.exit(main())
