"""Time every way that a sleeping layer can run on the CPU, and record which one wins.

    python -m bench.cpu_crossover                          # SqueezeNet 1.1 and ResNet-18, batch 8
    python -m bench.cpu_crossover --batch 1 --dtype bfloat16
    python -m bench.cpu_crossover --networks vgg16 --threads 4

Writes the winners, and their times over those of the layer awake, to
``drowsy/backends/cpu/crossover.json``, where the CPU backend looks them up, and all times to
``bench/results/cpu/crossover.json``. Entries of other layers, batches, numbers of threads and types
stay.

A time is the CPU time of the calling thread while its helpers sleep when they have nothing to do,
the least of a few rounds: that is the wall time of a quiet machine, and other programs do not
lengthen it much.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Read by OpenMP when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor

import drowsy
from drowsy import models, neuron
from drowsy.backends import cpu
from drowsy.backends.cpu import crossover
from drowsy.backends.cpu.crossover import Layer
from drowsy.files.atomic import write_json
from drowsy.files.provenance import provenance
from drowsy.sleep import SleepSpec

TIMES = Path(__file__).parent / "results" / "cpu" / "crossover.json"
SETTINGS = (
    ("lattice", "position"),
    ("fovea", "position"),
    ("stratified", "position"),
    ("lattice", "channel:16"),
    ("stratified", "channel:16"),
    ("stratified", "tile:64x64"),
    ("bernoulli", "neuron"),
)
RATES = range(1, crossover.TABLE_K)
_KEY = ("layer", "dtype", "unit", "batch", "threads", "source", "grain")


def layers_of(network: str, batch: int, dtype: torch.dtype) -> list[tuple[Layer, Tensor]]:
    """Every different convolution of a network, and the weight of one."""
    info = models.MODELS[network]
    net = drowsy.convert(models.create(network).to(dtype).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    found: dict[Layer, Tensor] = {}

    def note(layer: drowsy.DrowsyConv2d, inputs: tuple[Tensor, ...]) -> None:
        weight, _ = layer.parameters_in_effect()
        found.setdefault(Layer.of(inputs[0], weight, layer.spec), weight)

    for layer in net.layers.values():
        layer.register_forward_pre_hook(note)  # type: ignore[arg-type]
    image = torch.randn(batch, 3, info.preprocess.crop, info.preprocess.crop, dtype=dtype)
    with torch.inference_mode():
        net(image.to(memory_format=torch.channels_last))
    return list(found.items())


def least_times(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of each run, the least of ``rounds`` that alternate."""
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            least[name] = min(least[name], (time.thread_time() - start) * 1e3)
    return {name: float(f"{value:.3g}") for name, value in least.items()}


def measure(layer: Layer, weight: Tensor, source: str, grain: str, rounds: int) -> dict[str, Any]:
    """Times of ``F.conv2d`` with its activation, and of each way at each rate."""
    sleep = SleepSpec(source, grain, crossover.TABLE_K)  # type: ignore[arg-type]
    # What a layer sees in a network: half of it zeros.
    x = torch.randn(layer.input, dtype=weight.dtype).relu().to(memory_format=torch.channels_last)
    bias, clock = torch.zeros_like(weight[:, 0, 0, 0]), torch.tensor([0, 0])

    def run(way: str, j: int) -> Tensor:
        # The call anew each time, which remembers what it has drawn.
        return cpu.run(cpu.Call(x, weight, bias, j, 1.0, clock, layer, sleep), way)

    ways = crossover.candidates(layer, sleep)
    runs: dict[str, Callable[[], Any]] = {
        "dense": partial(neuron.awake_conv2d, x, weight, bias, layer.spec),
        "mask": partial(run, "mask", 1),
    }
    for way in ways[1:]:
        runs |= {f"{way} {j}": partial(run, way, j) for j in RATES}
    with torch.inference_mode():
        times = least_times(runs, rounds)
    # What ``mask`` costs does not depend on the rate.
    return {
        "dense": times["dense"],
        "mask": [times["mask"]] * len(RATES),
        **{way: [times[f"{way} {j}"] for j in RATES] for way in ways[1:]},
    }


def winners(times: dict[str, Any]) -> dict[str, Any]:
    """The fastest way at each rate and its time over that of the layer awake."""
    ways = [way for way in times if way in crossover.WAYS]
    best = [min(ways, key=lambda way: times[way][j - 1]) for j in RATES]
    ratios = [times[way][j - 1] / times["dense"] for way, j in zip(best, RATES, strict=True)]
    return {"ways": " ".join(best), "ratios": [float(f"{ratio:.3g}") for ratio in ratios]}


def merged(path: Path, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of a file with these in the place of their predecessors."""
    old = json.loads(path.read_text(encoding="utf-8"))["entries"] if path.exists() else []
    table = {tuple(entry[key] for key in _KEY): entry for entry in [*old, *entries]}
    return [table[key] for key in sorted(table)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--networks", default="squeezenet1_1,resnet18")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", type=Path, default=crossover.TABLE)
    parser.add_argument("--times", type=Path, default=TIMES)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    found = {
        layer.name: (layer, weight)
        for network in options.networks.split(",")
        for layer, weight in layers_of(network, options.batch, dtype)
        if layer.spec.groups == 1
    }
    times = []
    for name, (layer, weight) in found.items():
        of_layer = (name, options.dtype, crossover.unit(dtype), options.batch, options.threads)
        for setting in SETTINGS:
            key = dict(zip(_KEY, (*of_layer, *setting), strict=True))
            times.append(key | measure(layer, weight, *setting, options.rounds))
            print(name, *setting, *winners(times[-1]).values(), flush=True)
    machine = provenance() | {"load": os.getloadavg()[0]}
    rows = [{key: row[key] for key in _KEY} | winners(row) for row in times]
    for path, entries in ((options.times, times), (options.table, rows)):
        record = {
            "version": crossover.VERSION,
            "machine": machine,
            "entries": merged(path, entries),
        }
        write_json(path, record)


if __name__ == "__main__":
    main()
