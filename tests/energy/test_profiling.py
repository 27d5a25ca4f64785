"""Latency and joules of operating points, and the command ``drowsy energy``."""

from __future__ import annotations

import json
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from fake_nvml import FakeClock, FakeRapl, gpu_meter
from torch import nn

import drowsy
from drowsy import energy
from drowsy.cli.main import main
from drowsy.energy import Meter, Profile, profile
from drowsy.knob.frontier import Frontier, NoSuchPoint
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import LayerSetting, Schedule


def small_net() -> drowsy.DrowsyNet:
    return drowsy.convert(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, 5)
        ).eval()
    )


def uniform(*eighths: int) -> list[OperatingPoint]:
    """Points at these rates in eighths, each a little less accurate than the one before."""
    return [
        OperatingPoint(
            Schedule(8, {name: LayerSetting(Fraction(j, 8), fill="zero") for name in ("0", "2")}),
            saving=j / 8,
            top1=0.9 - j / 100,
        )
        for j in eighths
    ]


def test_a_frontier_gets_latency_and_joules(rapl: FakeRapl, clock: FakeClock) -> None:
    net = small_net()
    net.set(0.25)
    frontier = Frontier(uniform(0, 2, 4, 6))
    images = torch.randn(4, 3, 8, 8)

    def forward(batch: torch.Tensor) -> None:
        assert batch is images
        rate = float(net.schedule.layers["0"].rate)
        clock.advance(0.08 * (1 - rate) + 0.02)

    done: list[Profile] = []
    found = profile(
        net, images, frontier, meter=Meter("cpu"), seconds=5.0, forward=forward, each=done.append
    )
    assert isinstance(found, Frontier)
    assert found.objective == "top1"
    assert [p.saving for p in found.points] == [0, 0.25, 0.5, 0.75]
    latencies = [100.0, 80.0, 60.0, 40.0]
    assert [p.latency_ms for p in found.points] == pytest.approx(latencies)
    joules = [120 * ms / 1e3 / 4 for ms in latencies]  # 120 W, 4 images in a batch
    assert [p.joules for p in found.points] == pytest.approx(joules)
    assert found.at(joules=joules[1] * 1.01).saving == 0.25
    assert found.at(latency_ms=61).saving == 0.5
    assert found.reference == found.points[0]
    assert [one.point for one in done] == found.points
    assert all(len(one.latencies_ms) >= 5 and one.measurement.seconds >= 5 for one in done)
    json.dumps([one.to_dict() for one in done], allow_nan=False)
    assert {layer.rate for layer in net.schedule.layers.values()} == {Fraction(1, 4)}


def test_rate_0_stays_the_reference_where_it_is_not_optimal(clock: FakeClock) -> None:
    points = [*uniform(2), OperatingPoint(Schedule(8, {}), saving=0.0, top1=0.5)]
    frontier = Frontier(points)
    assert frontier.reference not in frontier.points
    found = profile(
        small_net(),
        torch.randn(1, 3, 8, 8),
        frontier,
        meter=None,
        forward=lambda _: clock.advance(0.1),
    )
    assert found.reference.latency_ms == pytest.approx(100)
    assert found.at(max_loss=0.0).saving == 0.25


def test_without_a_meter_there_is_latency_only() -> None:
    net, images = small_net(), torch.randn(2, 3, 8, 8)
    schedules = [point.schedule for point in uniform(0, 4)]
    done: list[Profile] = []
    points = profile(net, images, schedules, meter=None, seconds=0.01, each=done.append)
    # Half of the convolutions, of the whole network: its linear layer multiplies too.
    convolutions, linear = 36 * (4 * 27 + 4 * 4), 144 * 5
    half = pytest.approx(convolutions / 2 / (convolutions + linear))
    assert [point.saving for point in points] == [0, half]
    assert all(point.latency_ms > 0 and point.joules is None for point in points)
    assert all(one.measurement is None for one in done)
    with pytest.raises(NoSuchPoint, match="joules: was not measured"):
        Frontier([*uniform(2)]).at(joules=1.0)


def test_a_gpus_latency_is_the_time_between_events(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = 0

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.time = clock.now()

        def synchronize(self) -> None:
            nonlocal waits
            waits += 1

        def elapsed_time(self, later: Event) -> float:
            return 1e3 * (later.time - self.time)

    monkeypatch.setattr("torch.cuda.Event", Event)
    times = energy.profiling._latencies(lambda: clock.advance(0.03), seconds=1.0, cuda=True)
    assert times == pytest.approx([30.0] * 35)
    assert waits == 7  # not after every call


def test_the_meter_must_be_of_the_images_device(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = gpu_meter(clock, monkeypatch)
    with pytest.raises(ValueError, match="meter: got one of cuda:0, allowed: one of cpu, where"):
        profile(small_net(), torch.randn(1, 3, 8, 8), uniform(4), meter=meter)


def test_a_failing_network_is_set_back(rapl: FakeRapl, clock: FakeClock) -> None:
    net = small_net()
    net.set(0.25)

    def fails(_: torch.Tensor) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        profile(net, torch.randn(1, 3, 8, 8), uniform(4), meter=Meter("cpu"), forward=fails)
    assert {layer.rate for layer in net.schedule.layers.values()} == {Fraction(1, 4)}


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """``drowsy energy`` on three images, a small network and a frontier of two points."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    (tmp_path / "images").mkdir()
    for i in range(3):
        image.new("RGB", (8, 8), (80 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "smallnet.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1),\n"
        "                         nn.Flatten(), nn.Linear(144, 5))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Frontier(uniform(0, 4), source="stratified").save("frontier.json")
    network = ["--model", "smallnet:build", "--crop", "8", "--classes", "5"]
    files = ["--data", "images", "--frontier", "frontier.json", "--out", "measured.json"]
    return ["energy", *network, *files, "--seconds", "0.02"]


def test_the_command_measures_a_frontier(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Running(FakeClock):
        """Real time, for a tree of RAPL under a network that really runs."""

        time = property(lambda _: time.perf_counter(), lambda *_: None)

    tree = FakeRapl(tmp_path / "powercap", Running()).install(monkeypatch)
    tree.add("intel-rapl:0", "package-0", 50.0)
    assert main(command) == 0
    found = Frontier.load(tmp_path / "measured.json")
    assert (found.at(joules=1e6).saving, found.source) == (0, "stratified")
    record = json.loads((tmp_path / "measured.samples.json").read_text())
    assert record["images"] == [3, 3, 8, 8]
    assert record["versions"]["torch"]
    assert [one["point"]["saving"] for one in record["profiles"]] == [0, 0.5]
    for one in record["profiles"]:
        measurement = one["measurement"]
        assert measurement["joules"] == pytest.approx(50.0 * measurement["seconds"], rel=0.05)
        assert one["point"]["joules"] == pytest.approx(measurement["joules_per_call"] / 3)
        assert measurement["devices"][0]["samples"]["joules"]
    told = capsys.readouterr()
    assert "J/image  above idle" in re.sub("  +", "  ", told.out)
    assert "reliable: 5 s or more" in told.out
    assert "batch: got 50, measured with 3 images, all there are" in told.out


def test_the_command_measures_with_corrections(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smallnet import build

    torch.manual_seed(0)
    net = drowsy.convert(build().eval(), source="stratified")
    drowsy.calibrate(net, torch.randn(4, 3, 8, 8), Frontier.load("frontier.json")).save("c.tensors")
    corrected = []
    original = drowsy.DrowsyNet.set

    def spied(self: drowsy.DrowsyNet, *args: object, **options: object) -> None:
        original(self, *args, **options)
        corrected.append((self.corrected_for, list(self.corrected)))

    monkeypatch.setattr("drowsy.sensors.rapl.RAPL", tmp_path / "powercap")
    monkeypatch.setattr(drowsy.DrowsyNet, "set", spied)
    assert main([*command, "--calibration", "c.tensors"]) == 0
    assert ((4, 4), ["2"]) in corrected


def test_the_command_says_that_there_is_no_meter(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("drowsy.sensors.rapl.RAPL", tmp_path / "powercap")
    assert main(command) == 0
    assert "no joules, latency only: CPU energy is read from RAPL, but" in capsys.readouterr().out
    for point in Frontier.load(tmp_path / "measured.json").points:
        assert point.joules is None
        assert point.latency_ms > 0
