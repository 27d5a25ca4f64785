"""Measure every shipped configuration of every method, and write this GPU's tuning table.

    python -m bench.tune                       # ResNet-50, VGG-16 and CaffeNet at batch 256, bf16
    python -m bench.tune --networks mobilenet_v2 --images 1 32 --numbers fp16 --seconds 600

The table goes where ``drowsy_kernels.tuning`` looks for it; what an earlier run recorded of other
shapes stays in it, and ``--missing`` goes on where that run was stopped. Each layer is written as
soon as it is measured. Configurations are compiled ahead, by other processes.

Exit code 1 when a configuration gave a wrong result; such a one is never recorded. Exit code 5 when
layers are left: the time was over.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import drowsy_kernels as kernels
import torch
from drowsy_kernels import tuning
from drowsy_kernels.heuristics import ConvConfig, serves
from drowsy_kernels.tuning import Candidate, ConvShape, Entry, TuningTable

from bench.compiling import Compiler, Job
from bench.layers import NETWORKS, layers
from bench.measure import KINDS, grain_of
from bench.timing import Call, check_alive, reason, time_copies
from bench.ways import LISTS, OURS, Problem, RedCheck, SleepMap, eligible
from drowsy.files.atomic import write_json
from drowsy.files.provenance import provenance

RATES = (Fraction(0), Fraction(1, 2))
# Configurations of a masked way that are timed at every kind of grain.
_FINALISTS = 2
# Layers whose configurations are compiled while one is measured.
_AHEAD = 2
INCOMPLETE = 5
Maps = dict[tuple[str | None, Fraction], SleepMap]


def fits(job: Job) -> bool:
    """Whether the way takes such a map; a list in whole tiles, at the kind that it is for."""
    assert job.cell is not None
    assert job.config is not None
    if not eligible(job.way, job.shape, job.number, job.cell):
        return False
    if job.way not in LISTS:
        return True
    (cell_p, cell_c), span = job.cell, job.shape.out_channels // job.shape.groups
    rows = cell_p % job.config.block_m == 0 or cell_p >= job.shape.positions
    columns = cell_c % job.config.block_n == 0 or cell_c >= span
    whole = {"cells": rows and columns, "rows": columns, "channels": True}[job.way]
    return (
        whole and job.kind == {"cells": "tile", "rows": "position", "channels": "channel"}[job.way]
    )


def configurations(way: str, shape: ConvShape, number: str) -> tuple[ConvConfig, ...]:
    """What ships for a way, less what cannot win: tiles much wider or narrower than the layer."""
    if way == "box":
        kind = {"tf32": "tf32", "fp32": "ieee"}.get(number, "half")
        shipped = kernels.BOX_CONFIGS[kind]
    elif shape.depthwise:
        return kernels.SHIPPED_CONFIGS["depthwise"]
    else:
        kind = {"tf32": "tf32", "fp32": "single"}.get(number, "half")
        shipped = kernels.SHIPPED_CONFIGS[kind]
    span, depth = shape.out_channels // shape.groups, shape.channels // shape.groups
    widths = sorted({config.block_n for config in shipped})
    covering = next((width for width in widths if width >= span), widths[-1])
    deep = [config.block_k for config in shipped if config.block_k <= depth]
    return tuple(
        config
        for config in shipped
        if covering / 2 <= config.block_n <= covering
        and config.block_k >= max(deep, default=0) / 2
        and (way == "box" or serves(config, kind, way))
    )


def jobs(shape: ConvShape, images: int, number: str) -> list[Job]:
    """What is compiled ahead: every configuration at ``neuron``, every list at its own kind."""
    every = (
        Job(shape, images, number, kind, way, config)
        for kind in KINDS
        for way in OURS
        for config in configurations(way, shape, number)
        if way in LISTS or kind == "neuron"
    )
    return [job for job in every if fits(job)]


# --- measuring -----------------------------------------------------------------------------------


class Tuner:
    """Measures problems; ``red`` collects what was wrong."""

    def __init__(self, device: torch.device, compiler: Compiler | None = None) -> None:
        self.device, self.compiler = device, compiler
        self.red: list[str] = []

    def measure(self, shape: ConvShape, images: int, number: str) -> list[Entry]:
        """An entry for each kind of grain.

        Every configuration is timed at ``neuron`` or, if it goes by a list, at the list's kind;
        the best masked ones are then timed at the other kinds too.
        """
        problem = Problem(shape, images, number, self.device)
        cudnn = self._timed("cudnn_neuron", lambda: problem.copies("cudnn_neuron"))
        found: dict[str, list[Candidate]] = {
            kind: [] if cudnn is None else [Candidate("cudnn", None, {Fraction(0): cudnn})]
            for kind in KINDS
        }
        maps: Maps = {
            (kind, rate): problem.sleep_map(grain_of(kind, shape), float(rate))
            for kind in KINDS
            for rate in RATES
        }
        ahead = [job for job in jobs(shape, images, number) if problem.eligible(job.way, job.cell)]
        masked = [job for job in ahead if job.kind == "neuron"]
        listed = [job for job in ahead if job.kind != "neuron"]
        for way in ("box", "pointer"):
            ranked = self._ranked(problem, [job for job in masked if job.way == way], maps)
            if not ranked:
                continue
            found["neuron"].append(self._candidate(problem, ranked[0][1], ranked[0][0], maps))
            again = [
                replace(job, kind=kind) for kind in KINDS[1:] for _, job in ranked[:_FINALISTS]
            ]
            self._start(again)
            listed += again
        for kind in KINDS[1:]:
            for way in OURS:
                work = [job for job in listed if (job.kind, job.way) == (kind, way)]
                ranked = self._ranked(problem, work, maps)
                if ranked:
                    found[kind].append(self._candidate(problem, ranked[0][1], ranked[0][0], maps))
        return [
            Entry(shape, images, number, maps[kind, RATES[0]].cell, tuple(found[kind]))
            for kind in KINDS
            if found[kind]
        ]

    def _ranked(self, problem: Problem, work: Sequence[Job], maps: Maps) -> list[tuple[float, Job]]:
        """Time and job of what works, at the highest rate, the fastest first."""
        timed = [(self._time(problem, job, maps[job.kind, RATES[-1]]), job) for job in work]
        return sorted(
            ((ms, job) for ms, job in timed if ms is not None),
            key=lambda each: (each[0], str(each[1].config)),
        )

    def _candidate(self, problem: Problem, job: Job, ms: float, maps: Maps) -> Candidate:
        times = {rate: self._time(problem, job, maps[job.kind, rate]) or ms for rate in RATES[:-1]}
        return Candidate(job.way, str(job.config), times | {RATES[-1]: ms})

    def _start(self, work: Sequence[Job]) -> None:
        if self.compiler is not None:
            self.compiler.start(work)

    def _time(self, problem: Problem, job: Job, sleep: SleepMap) -> float | None:
        """Milliseconds; None where a configuration does not fit this GPU, or is wrong."""
        if self.compiler is not None:
            self.compiler.wait(job)
        name = f"{job.way} {job.config} {job.kind}"
        return self._timed(name, lambda: problem.copies(job.way, sleep, job.config))

    def _timed(self, name: str, copies: Callable[[], Sequence[Call]]) -> float | None:
        """Milliseconds; None, and a note, where it cannot be run.

        Raises:
            Exception: the GPU itself is lost.
        """
        try:
            return time_copies(copies(), self.device).ms
        except RedCheck as error:
            self.red.append(f"{name}: {error}")
        except Exception as error:  # any stage of the compiler may refuse, each in its own way
            check_alive(self.device)
            print(f"  {name}: {reason(error)}", file=sys.stderr)
        return None


def _best(entry: Entry) -> str:
    """An entry's cell and the fastest way to sleep by it."""
    asleep = [candidate for candidate in entry.candidates if RATES[-1] in candidate.ms]
    best = min(asleep, key=lambda candidate: candidate.ms[RATES[-1]], default=None)
    return f"{entry.cell[0]}x{entry.cell[1]} {best}"


def merged(path: Path, entries: Sequence[Entry]) -> TuningTable:
    """A table of this GPU: ``entries``, and what the file at ``path`` holds of other problems."""
    properties = torch.cuda.get_device_properties(0)
    record = provenance()
    versions = record["versions"] | {
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()),
    }

    def key(entry: Entry) -> tuple[object, ...]:
        return entry.shape, entry.images, entry.number, entry.cell

    kept: dict[tuple[object, ...], Entry] = {}
    if path.exists():
        kept = {key(entry): entry for entry in tuning.load_table(path).entries}
    kept |= {key(entry): entry for entry in entries}
    return TuningTable(
        properties.name,
        (properties.major, properties.minor),
        versions,
        record["commit"],
        tuple(kept.values()),
    )


def problems(
    networks: Sequence[str], images: Sequence[int], numbers: Sequence[str]
) -> Iterator[tuple[ConvShape, int, str]]:
    """What to tune, in order."""
    for number in numbers:
        for count in images:
            for layer in layers(*networks):
                yield layer.shape, count, number


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=["vgg16", "resnet50", "caffenet"]
    )
    parser.add_argument("--images", type=int, nargs="+", default=[256], help="batch sizes")
    parser.add_argument("--numbers", nargs="+", choices=tuning.NUMBERS, default=["bf16"])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no layer later")
    parser.add_argument("--missing", action="store_true", help="only what the table lacks")
    parser.add_argument("--workers", type=int, help="compiling processes (default: cores less 2)")
    parser.add_argument("--out", type=Path, help="file (default: where the dispatcher looks)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("tuning needs a CUDA GPU; torch finds none here")
    torch.backends.cudnn.benchmark = True
    start = time.monotonic()
    path = options.out or tuning.table_path(torch.cuda.get_device_name())
    compiler = Compiler(options.workers)
    work = list(problems(options.networks, options.images, options.numbers))
    if options.missing and path.exists():
        known = {(e.shape, e.images, e.number) for e in tuning.load_table(path).entries}
        work = [problem for problem in work if problem not in known]
    tuner = Tuner(torch.device("cuda"), compiler)
    done, seen = 0, 0
    for i, (shape, images, number) in enumerate(work):
        # No further: a layer's finalists are compiled after what has been begun by then.
        for problem in work[i : i + 1 + _AHEAD]:
            compiler.start(jobs(*problem))
        if time.monotonic() - start > options.seconds:
            break
        entries = tuner.measure(shape, images, number)
        if entries:
            write_json(path, merged(path, entries).to_dict())
        done, seen = done + bool(entries), seen + 1
        kinds = ", ".join(_best(entry) for entry in entries) or "nothing could be run"
        print(
            f"{time.monotonic() - start:6.0f} s  {shape} x {images} {number}: {kinds}", flush=True
        )
    compiler.close()
    print(f"{done} of {len(work)} layers in {path}")
    for line in tuner.red:
        print(f"WRONG: {line}", file=sys.stderr)
    if tuner.red:
        return 1
    return 0 if seen == len(work) else INCOMPLETE


if __name__ == "__main__":
    sys.exit(main())
