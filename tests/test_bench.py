"""Benchmarks without a GPU: what they would run, that they refuse wrong results, and the report."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drowsy_kernels import tuning
from drowsy_kernels.tuning import ConvShape
from torch import Tensor

import drowsy
from bench import bare_outputs, fill_rules, networks, records, report, study_page, sweep, tune
from bench.compiling import Job
from bench.figures import figures
from bench.layers import NETWORKS, layers, network_shapes
from bench.measure import grain_of, measure_dense, measure_sleep
from bench.pictures import PICTURES
from bench.timing import Roofline, Timing, activations, copies_for, time_copies
from bench.ways import Problem, RedCheck
from drowsy import models
from drowsy.files.atomic import write_text
from drowsy.files.tables import csv_text
from drowsy.knob.costs import layer_costs

CPU = torch.device("cpu")
SMALL = ConvShape(16, 24, (9, 7), (3, 3), padding=(1, 1, 1, 1))
ROOFLINE = Roofline(1e9, {"fp16": 1e9, "fp32": 1e9})


# --- layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [name for name in NETWORKS if name in models.MODELS])
def test_shapes_cost_what_the_network_costs(network: str) -> None:
    with torch.device("meta"):
        model = models.create(network)
    crop = models.MODELS[network].preprocess.crop
    expected = sum(cost.multiplies for cost in layer_costs(model, (3, crop, crop)))
    found = network_shapes(network)
    assert sum(shape.multiplies * count for shape, count in found.items()) == expected


def test_mobilenet_v2_is_the_published_one() -> None:
    # 52 convolutions and, with the linear layer's 1.28 M, the paper's 300 M multiply-adds.
    found = network_shapes("mobilenet_v2")
    assert found.total() == 52
    total = sum(shape.multiplies * count for shape, count in found.items())
    assert total + 1_280_000 == pytest.approx(300e6, rel=0.01)
    assert sum(count for shape, count in found.items() if shape.depthwise) == 17


def test_names_of_layers_are_unique() -> None:
    names = [str(layer) for layer in layers()]
    assert len(names) == len(set(names)) == 90


# --- timing --------------------------------------------------------------------------------------


def test_copies_outgrow_the_l2_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    assert copies_for(1000, CPU) == 1
    monkeypatch.setattr("bench.timing.l2_bytes", lambda _: 50_000_000)
    assert copies_for(30_000_000, CPU) == 5
    assert copies_for(10**9, CPU) == 1
    assert copies_for(1, CPU) == 64


def test_median_and_spread() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 5.0), 1)
    assert timing.ms == 3
    assert timing.spread == pytest.approx(1.0)
    assert Timing((2.0,), 1).spread == 0
    calls: list[int] = []
    timed = time_copies([lambda: calls.append(0), lambda: calls.append(1)], CPU)
    assert calls == [0, 1] * len(timed.samples)


def test_no_time_of_the_host_is_in_a_sample() -> None:
    """On the dry run's stand-in: a call that takes the host 0.2 ms and the GPU 0.7."""
    # Its own process: it makes torch believe in a GPU.
    script = """
import torch
from bench.dry_run import Machine, standing_in
from bench.timing import time_call
machine = Machine()
def call():
    machine.host += 0.2e-3
    machine.work(0.7e-3)
with standing_in(machine):
    timing = time_call(call, torch.device("cuda"))
print(f"{timing.ms:.2f} {max(timing.samples):.2f} {timing.exposed} {timing.calls}")
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.split() == ["0.70", "0.70", "0", "1"]


def test_what_a_network_becomes_by_a_move_is_known_on_the_stand_in() -> None:
    """Its model moves with it, and a correction stays in force: as where tensors hold numbers."""
    script = """
import torch
import drowsy
from bench.dry_run import Machine, standing_in
machine = Machine()
with standing_in(machine), torch.no_grad():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
    net = drowsy.convert(model.to("cuda"), backend="torch")
    weight = net.layers["0"].weight
    net.layers["0"].correct(torch.ones(8), torch.zeros(8))
    net.double().half()
    x = torch.randn(1, 3, 9, 9).to("cuda").half()
    y = net(x)
    net.layers["0"].weight = torch.nn.Parameter(torch.randn(8, 3, 3, 3).to("cuda").half())
    try:
        net(x)
    except RuntimeError as error:
        print(weight.dtype, weight.device, y.dtype, str(error)[:24], sep="; ")
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    told = done.stdout.strip()
    assert told == "torch.float16; cuda:0; torch.float16; a correction is in force", done.stderr


@pytest.mark.parametrize("channels", [3, 16])
def test_activations_are_no_zeros(channels: int) -> None:
    x = activations((2, channels, 20, 20), torch.float16, torch.Generator().manual_seed(0))
    assert x.is_contiguous(memory_format=torch.channels_last)
    zeros = (x == 0).float().mean()
    assert zeros < 0.05 if channels == 3 else 0.2 < zeros < 0.8
    assert x.std() > 0.3


def test_floor_is_the_larger_of_work_and_traffic() -> None:
    work, traffic = Roofline(1e30, {"fp16": 1e12}), Roofline(1e12, {"fp16": 1e30})
    assert work.floor_ms(SMALL, 2, "fp16") == pytest.approx(4e-9 * SMALL.multiplies)
    assert work.floor_ms(SMALL, 2, "fp16", 0.75) == pytest.approx(1e-9 * SMALL.multiplies)
    elements = 2 * 63 * (16 + 24) + 24 * 16 * 9
    assert traffic.floor_ms(SMALL, 2, "fp16", 0.75) == pytest.approx(2e-9 * elements)


# --- ways ----------------------------------------------------------------------------------------


def test_dense_row_holds_every_way() -> None:
    problem = Problem(SMALL, 2, "fp32", CPU)
    row = measure_dense(problem, ROOFLINE)
    assert set(row["ways"]) == {"box", "pointer", "cudnn", "cudnn_neuron"}
    json.dumps(row, allow_nan=False)
    ours = row["ways"]["pointer"]
    assert ours["tflop_per_s"] == pytest.approx(4e-9 * SMALL.multiplies / ours["ms"])


def test_a_way_that_fails_leaves_the_others_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(self: Problem, way: str, *_: Any) -> Callable[[], Tensor]:
        raise RuntimeError(f"{way}: no engine\nfound")

    monkeypatch.setattr(Problem, "_library", no_library)
    monkeypatch.setattr("bench.measure._dense_ways", lambda _: ["pointer"])
    row = measure_dense(Problem(SMALL, 1, "fp16", CPU), ROOFLINE)
    assert set(row["ways"]) == {"pointer"}
    assert row["failed"] == {
        "cudnn": "RuntimeError: cudnn: no engine found",
        "cudnn_neuron": "RuntimeError: cudnn_neuron: no engine found",
    }


@pytest.mark.parametrize(
    ("kind", "listed"),
    [("neuron", None), ("position", "rows"), ("tile", "cells"), ("channel", "channels")],
)
def test_sleep_row_holds_every_rate(
    kind: str, listed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Interpreted, the dense ways take seconds; they are in the rows of every kind.
    monkeypatch.setattr("bench.measure.OURS", (listed or "box",))
    monkeypatch.setattr("bench.measure._dense_ways", lambda _: [])
    shape = ConvShape(16, 16, (12, 12), (3, 3), padding=(1, 1, 1, 1))
    row = measure_sleep(Problem(shape, 1, "fp16", CPU), kind, [0.5], ROOFLINE)
    assert row["grain"] == grain_of(kind, shape)
    way = listed or "box"
    assert set(row["rates"]["0.5"]) == {"slept", way, f"{way}_map"}
    json.dumps(row, allow_nan=False)


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(SMALL, 2, "fp16", CPU)

    def without_bias(x: Tensor, weight: Any, bias: Tensor, **options: Any) -> Tensor:
        return true(x, weight, None, **options)

    true: Callable[..., Tensor] = __import__("drowsy_kernels").conv2d
    monkeypatch.setattr("drowsy_kernels.conv2d", without_bias)
    with pytest.raises(RedCheck, match=r"pointer on 16x9x7-o24-k3x3 x 2 fp16: error .* not timed"):
        problem.copies("pointer")


def test_sleepers_that_were_not_cleared_are_not_timed() -> None:
    problem = Problem(SMALL, 2, "fp16", CPU)
    sleep = problem.sleep_map("neuron", 0.5)
    awake = problem.copies("pointer")[0]()
    with pytest.raises(RedCheck, match="not timed"):
        problem.check(awake, "pointer", sleep)
    with pytest.raises(ValueError, match="sleep: got None"):
        problem.copies("cells")


# --- tuning --------------------------------------------------------------------------------------


def test_jobs_cover_every_way_in_whole_tiles() -> None:
    shape = ConvShape(64, 128, (56, 56), (3, 3), padding=(1, 1, 1, 1))
    work = tune.jobs(shape, 256, "bf16")
    assert {(job.kind, job.way) for job in work} == {
        ("neuron", "box"),
        ("neuron", "pointer"),
        ("position", "rows"),
        ("tile", "cells"),
        ("channel", "channels"),
    }
    assert all(job.config is not None and job.config.block_n in (64, 128) for job in work)
    depthwise = ConvShape(64, 64, (9, 9), (3, 3), groups=64)
    assert {job.way for job in tune.jobs(depthwise, 1, "fp16")} == {"pointer"}
    strided = ConvShape(64, 64, (9, 9), (3, 3), (2, 2))
    assert "box" not in {job.way for job in tune.jobs(strided, 1, "fp16")}


@pytest.mark.parametrize("number", tuning.NUMBERS)
@pytest.mark.parametrize("way", ["box", "pointer", "cells", "rows", "channels"])
def test_every_way_has_configurations(way: str, number: str) -> None:
    found = tune.configurations(way, ConvShape(64, 64, (14, 14), (3, 3)), number)
    assert found
    if way == "channels":
        assert max(config.block_n for config in found) <= 64


def test_tuner_records_every_grain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Two configurations of the masked way, one of a list: interpreted, each takes a second.
    monkeypatch.setattr(
        tune,
        "jobs",
        lambda *problem: [
            Job(*problem, kind, way, config)
            for kind, way, config in (
                ("neuron", "pointer", tuning.parse_config("64x32x16-w4-s4")),
                ("neuron", "pointer", tuning.parse_config("64x16x16-w4-s4")),
                ("channel", "channels", tuning.parse_config("64x16x16-w4-s4")),
            )
        ],
    )
    monkeypatch.setattr(tune, "KINDS", ("neuron", "channel"))
    tuner = tune.Tuner(CPU)
    entries = tuner.measure(SMALL, 1, "fp16")
    assert [entry.cell for entry in entries] == [(1, 1), (63, 1)]
    methods = [[candidate.method for candidate in entry.candidates] for entry in entries]
    assert methods == [["cudnn", "pointer"], ["cudnn", "pointer", "channels"]]
    assert [set(c.ms) for c in entries[1].candidates] == [{0}, set(tune.RATES), set(tune.RATES)]
    assert tuner.red == []
    table = tuning.TuningTable("test", (9, 0), {}, None, tuple(entries))
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table.to_dict()))
    assert tuning.load_table(path) == table


def test_tuner_never_records_wrong_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Problem, "check", _red)
    tuner = tune.Tuner(CPU)
    problem = Problem(SMALL, 1, "fp16", CPU)
    config = tuning.parse_config("64x32x16-w4-s4")
    job = Job(SMALL, 1, "fp16", "neuron", "pointer", config)
    assert tuner._time(problem, job, problem.sleep_map("neuron", 0.5)) is None
    assert tuner.red == [f"pointer {config} neuron: wrong"]


def test_tuner_goes_on_after_any_error_of_a_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr("drowsy_kernels.conv2d", refuse)
    problem = Problem(SMALL, 1, "fp16", CPU)
    job = Job(SMALL, 1, "fp16", "neuron", "pointer", tuning.parse_config("64x32x16-w4-s4"))
    assert tune.Tuner(CPU)._time(problem, job, problem.sleep_map("neuron", 0.5)) is None
    assert "PassManager::run failed" in capsys.readouterr().err


def _red(*_: object) -> None:
    raise RedCheck("wrong")


def test_tuning_wants_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tune.main([])
    assert "tuning needs a CUDA GPU" in capsys.readouterr().err


def test_kernels_compile_as_they_are_launched() -> None:
    """Through Triton's own launcher, which a stand-in for the driver tells of an H100."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # ``-m`` puts the checkout on the path: ``bench`` is not installed.
    subprocess.run(
        [sys.executable, "-m", "tests.compile_ahead"],
        check=True,
        env=environment,
        cwd=Path(__file__).parents[1],
    )


def test_the_gpu_session_names_its_stages() -> None:
    script = Path(__file__).parents[1] / "bench" / "gpu_session.sh"
    done = subprocess.run(["bash", script, "nap"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "stage: got nap, allowed: networks turn layers dense check" in done.stderr


def test_a_stage_is_walked_without_a_gpu(tmp_path: Path) -> None:
    """One network's test, with every line of ours that wants a GPU; nothing is launched."""
    # As on the GPU's machine: benchmarks record nothing where they think that xdist runs them.
    ours = ("TRITON_INTERPRET", "PYTEST_XDIST_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    record = tmp_path / "record.json"
    test = "bench/test_networks.py::test_network[vgg16-b256-bf16-channel-half]"
    command = [sys.executable, "-m", "bench.dry_run", str(tmp_path), "120", "pytest", test]
    command += ["--benchmark-enable", "-p", "no:xdist", "--record", str(record)]
    run = functools.partial(
        subprocess.run,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    done = run(command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"1 tests, 0 failed, 0 past .*; \d+ kernels compiled ahead; ", done.stdout)
    (benchmark,) = json.loads(record.read_text())["benchmarks"]
    assert benchmark["gpu"] == "stand-in for an H100"
    row = benchmark["extra_info"]
    assert [point["rate"] for point in row["points"]] == [0.5, 0.0]
    assert all(point["energy"]["seconds"] >= 5 for point in row["points"])
    assert all(point["exposed"] == 0 for point in row["points"])
    # What was measured is not measured again.
    again = run([*command, "--known", str(tmp_path)])
    assert again.stdout.splitlines()[-1].startswith("0 tests, 0 failed"), again.stdout


CHECKED = """
import os, pytest

@pytest.mark.parametrize("number", ["fp16", "tf32"])
@pytest.mark.parametrize("grain", ["tile", "channel"])
def test_meets(grain, number):
    assert (grain, number) != ("channel", "tf32")

def test_alone():
    if os.environ.get("CRASH"):
        os._exit(1)
"""


def checked(tmp_path: Path, *options: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of a session of tests by ``bench.checking``."""
    (tmp_path / "tests" / "kernels").mkdir(parents=True, exist_ok=True)
    (tmp_path / "tests" / "kernels" / "test_x.py").write_text(CHECKED)
    checkout = Path(__file__).parents[1]
    paths = f"{checkout}:{checkout / 'kernels'}"
    command = [sys.executable, "-m", "pytest", "tests", "-v", "-p", "bench.checking", *options]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": paths} | environment,
        cwd=tmp_path,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_check_shows_each_value_before_it_combines_them(tmp_path: Path) -> None:
    status, said = checked(tmp_path, "-p", "no:xdist")
    order = re.findall(r"^\S+::(test_\S+) (?:PASSED|$)", said, re.M)
    assert order[:4] == [
        "test_meets[tile-fp16]",
        "test_meets[tile-tf32]",
        "test_meets[channel-fp16]",
        "test_alone",
    ]
    assert status == 1
    assert re.search(r"kernels, each value once: 4 passed, 0 failed, 0 left; \d+ s", said)
    assert "combinations: 0 passed, 1 failed, 0 left" in said
    assert "FAILED tests/kernels/test_x.py::test_meets[channel-tf32] AssertionError" in said


def test_a_check_past_its_deadline_says_what_is_left(tmp_path: Path) -> None:
    status, said = checked(tmp_path, "-p", "no:xdist", "--deadline", "-1")
    assert status == 5
    assert "kernels, each value once: 0 passed, 0 failed, 4 left" in said


def test_a_check_outlives_a_process_that_dies(tmp_path: Path) -> None:
    status, said = checked(tmp_path, "-n2", CRASH="yes")
    assert status == 1
    assert "INTERNALERROR" not in said
    assert "kernels, each value once: 3 passed, 0 failed, 0 left" in said
    assert "combinations: 0 passed, 2 failed, 0 left" in said


def test_sweep_runs_and_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ConvShape(16, 24, (5, 3))
    monkeypatch.setattr(sweep, "OURS", ("pointer",))
    assert sweep.sweep(CPU, [plain], ["fp16"]) == (4, [], True)
    assert sweep.sweep(CPU, [plain], ["fp16"], seconds=-1) == (0, [], False)
    monkeypatch.setattr(Problem, "check", _red)
    done, red, complete = sweep.sweep(CPU, [plain], ["fp16"])
    assert (done, red[0], complete) == (4, "neuron: wrong", True)


# --- networks ------------------------------------------------------------------------------------


def test_networks_are_lively() -> None:
    model = networks.make_network("cifar_resnet20", "fp32", CPU)
    batch = networks.photographs("cifar_resnet20", 4, torch.float32, CPU)
    with torch.inference_mode():
        logits = model(batch)
        # He's initialisation, batch norms of a batch: nothing vanishes, nothing blows up.
        assert 0.1 < logits.std() < 100
    row = networks.measure_dense("cifar_resnet20", 4, "fp32", CPU, meter=None, seconds=1)
    assert row["energy"] is None
    assert row["images_per_s"] == pytest.approx(4e3 / row["ms"])


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_shares_are_those_of_the_converted_network(name: str) -> None:
    with torch.device("meta"):
        net = drowsy.convert(models.create(name).eval())  # type: ignore[call-overload]
    shares = networks.network_shares(name)
    assert list(shares) == list(net.layers)
    side = models.MODELS[name].preprocess.crop
    convolutions = sum(cost.multiplies for cost in layer_costs(net, (3, side, side)))
    linear = sum(m.weight.numel() for m in net.modules() if isinstance(m, torch.nn.Linear))
    assert sum(shares.values()) == pytest.approx(convolutions / (convolutions + linear))


def test_networks_that_differ_are_not_timed() -> None:
    model = networks.make_network("caffenet_cifar", "fp32", CPU)
    batch = networks.photographs("caffenet_cifar", 2, torch.float32, CPU)
    with torch.inference_mode():
        net = networks.convert(model, "channel", batch)
        net.set(0.5)
        networks.check(net, net, batch, "fp32")
        other = copy.deepcopy(net)
        other.set(0.25)
        for number in ("fp32", "tf32"):
            with pytest.raises(RedCheck, match=r"deployed: error .* not timed"):
                networks.check(net, other, batch, number)


def test_operands_cut_to_tf32_are_no_error_of_a_network() -> None:
    model = networks.make_network("caffenet_cifar", "fp32", CPU)
    batch = networks.photographs("caffenet_cifar", 2, torch.float32, CPU)
    with torch.inference_mode():
        net = networks.convert(model, "channel", batch)

        def off_by(part: float) -> Callable[[Tensor], Tensor]:
            return lambda x: net(x) * (1 + part)

        networks.check(net, off_by(2**-10), batch, "tf32")
        for part, number in ((2**-10, "fp32"), (2**-5, "tf32")):
            with pytest.raises(RedCheck):
                networks.check(net, off_by(part), batch, number)


# --- report --------------------------------------------------------------------------------------

SYNTHETIC = "SYNTHETIC TEST DATA, no GPU"


def synthetic_results(folder: Path, slowdown: float = 1.0) -> Path:
    """Made-up results in the form of recorded ones; they say in every picture that they are."""
    folder.mkdir(parents=True)
    machine = {
        "gpu": {
            "name": SYNTHETIC,
            "capability": [9, 0],
            "multiprocessors": 132,
            "cuda": "13.0",
            "cudnn": 91002,
        },
        "drowsy": {"commit": "0" * 40, "versions": {"torch": "2.11.0", "triton": "3.6.0"}},
    }
    peak, bandwidth = 700e12, 3.0e12
    dense, asleep = [], []
    for i, layer in enumerate(layers("vgg16", "resnet50", "caffenet")):
        shape = layer.shape
        floor = Roofline(bandwidth, {"bf16": peak}).floor_ms(shape, 256, "bf16")
        head = {
            "shape": str(shape),
            "kernel": list(shape.kernel_size),
            "images": 256,
            "number": "bf16",
            "gflop": 2e-9 * 256 * shape.multiplies,
            "mbytes": 2e-6 * shape.elements(256),
            "bytes_per_s": bandwidth,
            "flop_per_s": peak,
            "networks": layer.counts,
        }

        def timed(ms: float, shape: ConvShape = shape, floor: float = floor) -> dict[str, Any]:
            tflops = 2 * 256 * shape.multiplies / ms * 1e-9
            return {"ms": ms, "spread": 0.01, "tflop_per_s": tflops, "of_roofline": floor / ms}

        lib = floor * (1.25 + 0.1 * math.sin(i))
        own = {"pointer": timed(1.1 * slowdown * lib), "box": timed(slowdown * lib)}
        library = {"cudnn": timed(lib), "cudnn_neuron": timed(1.02 * lib)}
        dense.append(head | {"ways": own | library})
        if shape.kernel_size != (3, 3) or shape.channels == 3 or "caffenet" in layer.counts:
            continue
        for kind, way in (("tile", "cells"), ("position", "rows"), ("channel", "channels")):
            rates: dict[str, Any] = {}
            for rate in (0.25, 0.5, 0.75):
                ms = slowdown * lib * ((1 - rate) * 1.02 + 0.02 + 0.01 * math.cos(i))
                rates[str(rate)] = {way: timed(ms), f"{way}_map": timed(1.03 * ms)}
            grain = grain_of(kind, shape)
            asleep.append(head | {"ways": own, "kind": kind, "grain": grain, "rates": rates})
        half = {"0.5": {"box": timed(1.01 * slowdown * lib)}}
        asleep.append(head | {"ways": own, "kind": "neuron", "grain": "neuron", "rates": half})

    def point(rate: float, ms: float, joules: float) -> dict[str, Any]:
        energy = {"joules_per_image": joules, "above_idle_per_image": 0.8 * joules}
        times = {"ms": ms, "spread": 0.005, "images_per_s": 256e3 / ms, "energy": energy}
        return times | {"rate": rate, "saving": rate}

    whole = [
        {
            "network": network,
            "images": 256,
            "number": "bf16",
            "variant": variant,
            "baselines": {"eager_graph": point(0, ms, 0.1 * ms)},
            "points": [
                point(
                    j / 8, ms * (offset + slope * (1 - j / 8)), 0.1 * ms * (0.1 + 0.9 * (1 - j / 8))
                )
                for j in range(8)
            ],
        }
        for network, ms in (("vgg16", 60.0), ("resnet50", 24.0))
        for variant, offset, slope in (("position", 0.03, 1.0), ("tile:128x64", 0.05, 1.05))
    ]
    # On a machine of half the speed, in a run of its own.
    autotuned = [
        {"network": network, "images": 256, "number": "bf16"}
        | {"baselines": {"eager_graph": point(0, 2, 2), "max_autotune": point(0, 2.2, 2.2)}}
        for network in ("vgg16", "resnet50")
    ]
    turn = {"network": "resnet50", "turn": "set", "gpu_us": [4.0, 4.2, 4.1]}
    tests = {
        "test_dense": dense,
        "test_sleep": asleep,
        "test_network": whole,
        "test_max_autotune": autotuned,
        "test_turn": [turn | {"recaptured": False, "followed": True}],
        "test_stream": [
            {"network": "resnet18", "side": 448, "images": 8, "number": "bf16"}
            | {
                "ways": {
                    way: {"ms": ms, "spread": 0.02, "host_us": 150.0}
                    for way, ms in (("awake", 0.4), ("dense", 0.5), ("1/2", 0.3), ("1/4", 0.25))
                }
            }
        ],
        "test_map": [
            {"shape": "128x112x112-o128-k3x3", "kind": "tile", "source": "bernoulli", "images": 256}
            | {"ms": 0.012, "spread": 0.02}
        ],
    }
    for test, rows in tests.items():
        benchmarks = [
            {"fullname": f"bench/x.py::{test}[{i}]", "extra_info": row}
            for i, row in enumerate(rows)
        ]
        data = {"machine_info": machine, "benchmarks": benchmarks}
        (folder / f"{test}.json").write_text(json.dumps(data))
    wall = {"lattice position": {"median": 0.7}, "dense channels_last": {"median": 1.0}}
    cpu = {
        "fullname": "bench/test_cpu.py::test_half_of_the_multiplications[resnet18]",
        "params": {"name": "resnet18"},
        "extra_info": {"threads": 2, "ratio": {"wall": wall, "thread": wall}},
    }
    (folder.parent / "cpu").mkdir(exist_ok=True)
    (folder.parent / "cpu" / "cpu.json").write_text(
        json.dumps({"machine_info": {}, "benchmarks": [cpu]})
    )
    offline = folder.parent / "offline"
    offline.mkdir(exist_ok=True)
    rows = [{"case": "conv2d", "arch": 90, "spill_bytes": 0}] * 3
    (offline / "compile_report.json").write_text(json.dumps({"rows": rows}))
    return folder


def only(folder: Path) -> records.Results:
    """Results of a folder that holds one kind of GPU."""
    (results,) = records.read_results(folder)
    return results


def states(results: records.Results) -> dict[str, str]:
    return {figure.name: figure.state for figure in figures(results)}


def test_report_of_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = synthetic_results(tmp_path / "synthetic")
    out = tmp_path / "report"
    assert report.main([str(folder), "--out", str(out)]) == 0
    assert "ResNet-18, lattice position, 2 threads" in capsys.readouterr().out
    page = (out / "report.md").read_text()
    for name in PICTURES:
        assert (out / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert f"({name})" in page
    assert SYNTHETIC in page
    assert re.search(r"ResNet-18 *\| *448 *\| *8 *\| *bf16 *\| *0.4 *\| *1.25 *\| *0.75 *\|", page)
    results = only(folder)
    assert set(states(results).values()) == {"met"}
    # Of what was measured apart, the ratio to eager torch of its own run counts.
    baselines = results.of("test_network")[0]["baselines"]
    assert baselines["max_autotune"]["ms"] == pytest.approx(1.1 * baselines["eager_graph"]["ms"])


def test_newest_result_of_a_test_counts(tmp_path: Path) -> None:
    folder = synthetic_results(tmp_path / "synthetic")
    data = json.loads((folder / "test_turn.json").read_text())
    for name, when, gpu_us in (("a", "2026-02-02", 7.0), ("z", "2026-01-01", 9.0)):
        data["benchmarks"][0]["extra_info"]["gpu_us"] = [gpu_us]
        (folder / f"{name}.json").write_text(json.dumps(data | {"datetime": when}))
    assert [row["gpu_us"] for row in only(folder).of("test_turn")] == [[7.0]]


def test_kinds_of_gpu_are_kept_apart(tmp_path: Path) -> None:
    folder = synthetic_results(tmp_path / "synthetic")
    data = json.loads((folder / "test_turn.json").read_text())
    data["machine_info"]["gpu"]["name"] = "another"
    (folder / "another.json").write_text(json.dumps(data))
    assert report.main([str(folder), "--out", str(tmp_path / "out")]) == 0
    pages = sorted(path.parent.name for path in (tmp_path / "out").rglob("report.md"))
    assert pages == ["another", "synthetic-test-data-no-gpu"]


def test_slow_kernels_miss_the_bar(tmp_path: Path) -> None:
    results = only(synthetic_results(tmp_path / "synthetic", slowdown=1.3))
    dense, *asleep = figures(results)[:4]
    assert dense.state == "missed"
    assert dense.value == pytest.approx(1.3)
    # Against its own dense time, a kernel sleeps as well as before.
    assert [figure.state for figure in asleep] == ["met"] * 3


def test_missing_layers_leave_a_figure_incomplete(tmp_path: Path) -> None:
    folder = synthetic_results(tmp_path / "synthetic")
    path = folder / "test_dense.json"
    data = json.loads(path.read_text())
    data["benchmarks"] = data["benchmarks"][:10]
    path.write_text(json.dumps(data))
    dense = figures(only(folder))[0]
    assert (dense.state, dense.note.split(",")[0]) == ("incomplete", "10 of 37 shapes")


def test_report_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    results = only(tmp_path / "results")
    report.write_report(results, tmp_path / "out")
    assert set(states(results).values()) == {"not measured"}
    assert "No results of a GPU" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "x.json").write_text("{"), "x.json: not valid JSON"),
    ],
)
def test_report_refuses(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], object],
    message: str,
) -> None:
    folder = synthetic_results(tmp_path / "synthetic")
    spoil(folder)
    assert report.main([str(folder), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert report.main([str(tmp_path / "nowhere")]) == 2


# --- the study's page ----------------------------------------------------------------------------


def test_savings_on_the_page_are_of_the_convolutions_whatever_records_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_convolutions = study_page.nonuniform_table()
    assert "12.3 / 26.5" in of_convolutions
    for network in study_page.NETWORKS:
        for name in ("uniform", "nonuniform"):
            rows = study_page.read(network, name)
            for row in rows:
                row["saving"] = f"{0.9875 * float(row['saving']):.6g}"
            write_text(tmp_path / network / f"{name}.csv", csv_text(rows))
    monkeypatch.setattr(study_page, "STUDY", tmp_path)
    assert study_page.nonuniform_table() == of_convolutions


def test_what_is_saved_above_what_was_asked_stands_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"saving": 0.5, "method": method, "saving_reached": reached, "setting": "160 px"}
        | {"top1_lost": lost, "low": lost - 1, "high": lost + 1}
        for method, reached, lost in (("tune", 0.559782, 8.0), ("sleep", 0.509, 6.0))
    ]
    write_text(tmp_path / "tune" / "resnet18.csv", csv_text(rows))
    monkeypatch.setattr(study_page, "STUDY", tmp_path)
    *_, told = study_page.tuned_table().splitlines()
    wanted = "50% | 160 px | 8.0 (7.0 to 9.0), at 56% | - | 6.0 (5.0 to 7.0) | - | -"
    assert told == f"| ResNet-18, ImageNet | {wanted} |"


def test_agreement_with_itself_is_no_figure_of_the_network_awake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for metric, awake in (("agreement", 1), ("miou", 0.507)):
        row = {"metric": metric, "images": 13, "awake": awake, "saving": 0.5, "method": "tune"}
        row |= {"setting": "50% asleep", "lost": 0.1, "low": 0.05, "high": 0.2}
        write_text(tmp_path / "tune" / "espnet.csv", csv_text([row]))
        monkeypatch.setattr(study_page, "STUDY", tmp_path)
        *_, told = study_page.dense_table().splitlines()
        shown = {1: "-", 0.507: "50.7"}[awake]
        assert f"| 13 | {shown} | 50% | 50% asleep | 10.0 (5.0 to 20.0) | - | - | - |" in told


# --- fill rules ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "kinds"),
    [
        (
            "caffenet_cifar",
            {"max-pooling then normalisation": 2, "convolution": 2, "max-pooling": 1},
        ),
        (
            "squeezenet1_1",
            {"concatenation": 16, "convolution": 8, "max-pooling": 1, "average pooling": 1},
        ),
        ("resnet18", {"addition": 11, "convolution": 8, "max-pooling": 1}),
    ],
)
def test_layers_are_sorted_by_what_reads_them(network: str, kinds: dict[str, int]) -> None:
    found = list(fill_rules.followers(drowsy.convert(models.create(network).eval())).values())
    assert {kind: found.count(kind) for kind in found} == kinds


def test_every_kind_of_reader_is_measured_with_every_fill_alone() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(4, 4, 3), torch.nn.Conv2d(4, 2, 1),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    ).eval()  # fmt: skip
    net = drowsy.convert(model, source="lattice", grain="position")
    images, labels = torch.randn(12, 3, 16, 16), torch.arange(12) % 2
    rows = fill_rules.measured(net, images, labels, 4)
    kinds = ["max-pooling", "convolution", "average pooling"]
    assert [row["follows"] for row in rows] == kinds * 2 * len(drowsy.sleep.FILLS)
    shares = [row["saving"] for row in rows[:3]]
    assert sum(shares) == pytest.approx(0.5)
    harm = {(r["follows"], r["fill"], r["correction"]): r["divergence"] for r in rows}
    assert all(each > 0 for each in harm.values())
    # Nothing drowsy is behind the last layer but the linear head, so nothing can correct it.
    assert harm["average pooling", "zero", "none"] == harm["average pooling", "zero", "affine"]
    assert harm["max-pooling", "zero", "none"] != harm["max-pooling", "zero", "affine"]


# --- bare outputs --------------------------------------------------------------------------------


class NormedNet(torch.nn.Module):
    """Two neurons with a norm that shifts, the first activated by a call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm1 = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
        self.conv2, self.norm2 = torch.nn.Conv2d(8, 6, 3), torch.nn.BatchNorm2d(6)
        self.act2 = torch.nn.ReLU()
        for norm in (self.norm1, self.norm2):
            torch.nn.init.normal_(norm.bias)
            torch.nn.init.normal_(norm.running_mean)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.relu(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(x))).flatten(1)


def asleep_on(way: str, **sleep: str) -> drowsy.DrowsyNet:
    net = drowsy.convert(NormedNet().eval(), torch.zeros(1, 3, 12, 12), **sleep)
    bare_outputs.act_on(net, way)
    return net


@pytest.mark.parametrize("way", bare_outputs.WAYS)
def test_whatever_sleep_acts_on_nobody_asleep_changes_nothing(way: str) -> None:
    net, images = asleep_on(way), torch.randn(4, 3, 12, 12)
    expected = drowsy.revert(net)(images)
    torch.testing.assert_close(bare_outputs.logits_of(net, images), expected)
    inside = {(layer.norm is not None, layer.activation) for layer in net.layers.values()}
    wanted = {"neuron": (True, "relu"), "normed": (True, "none"), "convolution": (False, "none")}
    assert inside == {wanted[way]}


@pytest.mark.parametrize("way", bare_outputs.WAYS)
def test_a_sleeper_is_zero_where_sleep_acts(way: str) -> None:
    """What follows, it goes through: a norm makes another constant of the 0."""
    model = NormedNet().eval()
    images = torch.randn(2, 3, 12, 12)
    net = drowsy.convert(model, images[:1], fill="zero")
    bare_outputs.act_on(net, way)
    seen = []
    net.conv2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    net.set({"conv1": 0.5})
    bare_outputs.logits_of(net, images)
    neurons = torch.relu(model.norm1(model.conv1(images)))
    sleeper = torch.zeros(8)
    if way == "convolution":
        sleeper = torch.relu(model.norm1(torch.zeros(1, 8, 1, 1))).flatten()
        assert sleeper.count_nonzero() > 0
    is_awake = torch.isclose(seen[0], neurons, atol=1e-5)
    is_asleep = torch.isclose(seen[0], sleeper[:, None, None].expand_as(neurons), atol=1e-5)
    assert (is_awake | is_asleep).all()
    # Half sleep; beside them stand those that are 0 awake.
    assert (~is_asleep).float().mean() > 0.1
    assert (~is_awake).float().mean() > 0.1


@pytest.mark.parametrize(
    ("sleep", "same"),
    [
        (("bernoulli", "neuron", "zero"), ("neuron", "normed")),
        (("bernoulli", "neuron", "rescale"), ("neuron", "normed")),
        (("lattice", "position", "interpolate"), ("normed", "convolution")),
        (("lattice", "position", "nearest"), ("neuron", "normed", "convolution")),
    ],
)
def test_ways_are_one_where_a_fill_commutes_with_what_is_between(
    sleep: tuple[str, str, str], same: tuple[str, ...]
) -> None:
    """Zeros and positive factors with ReLU, means with norms, copies with both."""
    images = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    outputs = {}
    for way in bare_outputs.WAYS:
        source, grain, fill = sleep
        net = asleep_on(way, source=source, grain=grain, fill=fill)
        net.set(0.5)
        net.reseed(3)
        outputs[way] = bare_outputs.logits_of(net, images)
    for way, output in outputs.items():
        equal = torch.allclose(output, outputs[same[0]], atol=1e-5)
        assert equal == (way in same), way


def test_a_norm_with_its_own_activation_cannot_be_left_alone() -> None:
    class NormAct(torch.nn.BatchNorm2d):
        act = torch.nn.ReLU()

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.act(super().forward(input))

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), NormAct(5))
    net = drowsy.convert(model.eval(), torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match="0 has a norm that applies relu itself"):
        bare_outputs.act_on(net, "normed")
    bare_outputs.act_on(net, "convolution")


def test_every_sleep_rate_and_way_is_measured_and_counted_from_the_neuron() -> None:
    model = NormedNet().eval()  # which seeds what follows
    images, labels = torch.randn(60, 3, 12, 12), torch.arange(60) % 6
    rows = bare_outputs.measured(model, images, labels, (0, 1))
    awake, asleep = rows[0], rows[1:]
    assert (awake["agreement"], awake["top1_cost"]) == (100, None)
    keys = [(row["fill"], row["acts_on"], row["rate"]) for row in asleep]
    fills = [fill for _, _, fill in bare_outputs.SLEEPS]
    assert keys == [
        (fill, way, rate)
        for fill in fills
        for way in bare_outputs.WAYS
        for rate in bare_outputs.RATES
    ]
    by = dict(zip(keys, asleep, strict=True))
    for (fill, _, rate), row in by.items():
        neuron = by[fill, "neuron", rate]
        for metric in bare_outputs.METRICS:
            assert row[f"{metric}_cost"] == pytest.approx(neuron[metric] - row[metric], abs=1e-9)
            assert row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"]
    assert by["zero", "normed", 0.5]["agreement_cost_error"] == 0
    assert by["zero", "convolution", 0.5]["agreement_cost_error"] > 0


def test_answers_are_shares_of_the_seeds() -> None:
    awake = torch.eye(6)[[0, 1, 2]]
    other = torch.eye(6)[[0, 2, 2]] - 2 * torch.eye(6)[[5, 5, 5]]
    answers = bare_outputs.Answers.of([awake, other], awake, torch.tensor([0, 1, 5]))
    assert answers.top1.tolist() == [1, 0.5, 0]
    assert answers.agreement.tolist() == [1, 0.5, 1]
    # Of equal logits the first ones come first, so that class 5 is the last at both.
    assert answers.top5.tolist() == [1, 1, 0]


def test_intervals_of_a_share() -> None:
    assert bare_outputs.wilson(0.0, 200) == pytest.approx((0, 0.018845), abs=1e-5)
    assert bare_outputs.wilson(0.5, 100) == pytest.approx((0.403832, 0.596168), abs=1e-5)
