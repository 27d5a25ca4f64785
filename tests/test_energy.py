"""Energy meters, on a machine that is made of traces: its clock is the test's."""

from __future__ import annotations

import inspect
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_nvml import FakeClock, FakeGpu, FakeNvml, FakeRapl
from torch import nn

import drowsy
from drowsy import energy, sensors
from drowsy.cli import main
from drowsy.energy import Measurement, Meter, NoMeter, Profile, available, measure, profile
from drowsy.frontier import Frontier, NoSuchPoint, OperatingPoint
from drowsy.schedule import LayerSetting, Schedule

# Of the trace "burst": idle, then work from here to there (seconds), at these watts or so.
WORK, REST, IDLE_WATTS, WORK_WATTS = 3.0, 11.0, 70, 420


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeClock]:
    clock = FakeClock()
    clock.install(monkeypatch)
    yield clock
    assert clock.running == []  # no test leaves a meter sampling


def gpu_meter(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, trace: str = "burst", **gpu: object
) -> Meter:
    FakeNvml(FakeGpu(clock, trace, **gpu)).install(monkeypatch)
    return Meter(0)


def window(meter: Meter, clock: FakeClock, seconds: float = 6.0) -> Measurement:
    with meter:
        clock.advance(seconds)
    return meter.measurement


def small_net() -> drowsy.drowsy.DrowsyNet:
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


# --- one window ----------------------------------------------------------------------------------


def test_a_window_by_counter_and_by_integral(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = gpu_meter(clock, monkeypatch)
    assert meter.measure_idle(2.0) == pytest.approx(IDLE_WATTS, rel=0.02)
    clock.advance(WORK + 1 - 2.0)
    got = window(meter, clock)
    (device,) = got.devices
    assert got.seconds == pytest.approx(6.0)
    assert got.joules_counter == pytest.approx(5 * WORK_WATTS + 500, rel=0.01)
    assert got.joules_integrated == pytest.approx(got.joules_counter, rel=0.01)
    assert got.joules == got.joules_counter
    assert got.joules_above_idle == pytest.approx(got.joules - 6 * IDLE_WATTS, rel=0.01)
    assert abs(got.disagreement) < 0.01
    assert not got.disagrees
    assert (device.device, device.name, device.driver) == ("cuda:0", "Fake GPU A", "600.00")
    assert device.power == "instant"
    assert device.power_limit == 500
    assert device.temperature.start < device.temperature.end == device.temperature.max
    assert (device.sm_mhz.min, device.sm_mhz.max) == (1450, 1755)
    assert 1650 < device.sm_mhz.mean < 1755
    assert device.memory_mhz.min == device.memory_mhz.max == 2600
    assert device.reasons == ("sw_power_cap",)
    assert got.warnings == ("cuda:0: was throttled: sw_power_cap",)


def test_the_curve_is_cut_at_the_windows_ends(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power that rises in a line, read slowly: trapezoids are exact, the window's ends are not on
    samples."""

    def rising(gpu: FakeGpu, column: str, error: str) -> float:
        clock.time += 0.002
        value = 50 * (clock.time - gpu.start)
        clock.time += 0.002
        return value

    monkeypatch.setattr(FakeGpu, "read", rising)
    FakeNvml(FakeGpu(clock, "burst")).install(monkeypatch)
    meter = Meter(0, interval=0.7)
    clock.advance(1.0)
    got = window(meter, clock)
    (device,) = got.devices
    first, last = device.samples[0], device.samples[-1]
    assert first.seconds < 0
    assert last.seconds > got.seconds
    start = first.watts / 50 - first.seconds
    exact = 25 * ((start + got.seconds) ** 2 - start**2)
    assert device.joules_integrated == pytest.approx(exact, rel=1e-9)
    # Clocks are those of the window alone.
    assert first.sm_mhz < device.sm_mhz.min < device.sm_mhz.max < last.sm_mhz


def test_counter_and_integral_that_disagree_are_flagged(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = gpu_meter(clock, monkeypatch, "steady", scale=1.25)
    got = window(meter, clock)
    assert got.disagreement == pytest.approx(-0.2, abs=0.01)
    assert got.disagrees
    assert got.warnings == ("cuda:0: integrated power is -20% off the counter",)


def test_a_record_is_json_with_raw_samples(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = window(gpu_meter(clock, monkeypatch), clock)
    record = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    (device,) = record["devices"]
    samples = device["samples"]
    assert record["joules_counter"] == device["joules_counter"] == got.joules_counter
    assert record["calls"] is None
    assert len(samples["seconds"]) == len(samples["watts"]) == pytest.approx(302, abs=2)
    np.testing.assert_allclose(np.diff(samples["seconds"])[1:-1], 0.02, rtol=1e-6)
    assert "joules" not in samples  # a GPU's samples have none
    # What changes slowly is read every 0.2 s.
    assert sum(v is not None for v in samples["celsius"]) == pytest.approx(30, abs=3)


def test_a_short_window_is_told(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    got = window(gpu_meter(clock, monkeypatch, "steady"), clock, 1.0)
    assert got.warnings == ("cuda:0: the window is 1 s long, reliable: 5 s or more",)


@pytest.mark.parametrize(
    ("gpu", "power", "text"),
    [
        ({"errors": {"instant": 3}}, "usage", None),
        ({"errors": {"counter": 3}}, "instant", "has no energy counter .*Not Supported.*MIG"),
        ({"errors": {"instant": 3, "power": 4}}, None, "tells no power .*Insufficient Perm"),
        ({"mig": True}, "instant", "is split by MIG, and NVML meters the whole board"),
        ({"errors": {"mig": 3}}, "instant", None),
        ({"errors": {"state": 3}}, "instant", None),
        ({"frozen": True}, "instant", "the energy counter did not advance"),
        ({"scale": -1.0}, "instant", "the energy counter went back"),
        (
            {"errors": {"counter": 15}, "error_times": (3, 99)},
            "instant",
            "counter could not be read at both ends",
        ),
        (
            {"errors": {"instant": 15}, "error_times": (2, 2.1)},
            "instant",
            r"power could not be read [56] times of 30\d",
        ),
        (
            {"errors": {"instant": 15}, "error_times": (2, 3)},
            "instant",
            r"no sample for 1\.0\d s, wanted: every 0\.02 s",
        ),
        (
            {"errors": {"instant": 15}, "error_times": (3, 99)},
            "instant",
            "power could not be read at both ends of the window",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_told_and_not_guessed(
    gpu: dict,
    power: str | None,
    text: str | None,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    got = window(gpu_meter(clock, monkeypatch, "steady", **gpu), clock)
    (device,) = got.devices
    assert device.power == power
    counted = (
        not {"counter"} & gpu.get("errors", {}).keys() and not {"frozen", "scale"} & gpu.keys()
    )
    assert (device.joules_counter is not None) == counted
    ends = text is not None and "power could not be read at both" in text
    assert (device.joules_integrated is None) == (power is None or ends)
    assert device.joules == pytest.approx(6 * 120, rel=0.02)  # of whichever is left
    if "state" in gpu.get("errors", {}):
        assert device.temperature is device.sm_mhz is device.memory_mhz is None
    if text is None:
        assert got.warnings == ()
    else:
        assert re.search(text, "\n".join(got.warnings))


def test_a_gpu_that_tells_nothing_is_no_meter(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoMeter, match=r"cuda:0 \(Fake GPU B\) has no energy counter .* no power"):
        gpu_meter(clock, monkeypatch, "steady", errors={"counter": 3, "instant": 3, "power": 3})


# --- windows -------------------------------------------------------------------------------------


def test_windows_nest_and_overlap_as_if_each_were_alone(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeNvml(FakeGpu(clock, "burst")).install(monkeypatch)
    meter, alone = Meter(0), Meter(0)
    with meter:
        clock.advance(1.0)
        meter.begin("a")
        clock.advance(3.0)
        meter.begin("b")
        alone.begin("b")
        clock.advance(2.0)
        a = meter.end("a")
        clock.advance(5.0)
        b, b_alone = meter.end("b"), alone.end("b")
        assert len(clock.running) == 1  # for all windows of a meter
        clock.advance(1.0)
    block = meter.measurement
    assert (a.name, b.name, block.name) == ("a", "b", "block")
    assert [m.seconds for m in (a, b, block)] == pytest.approx([5, 7, 12])
    assert b.joules_counter == b_alone.joules_counter
    assert b.joules_integrated == pytest.approx(b_alone.joules_integrated, rel=1e-3)
    for each in (a, b, block):
        assert each.joules_integrated == pytest.approx(each.joules_counter, rel=0.02)
        first, second = each.devices[0].samples[:2]
        assert first.seconds <= 0 < second.seconds


def test_an_exception_ends_sampling_and_leaves_no_measurement(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = gpu_meter(clock, monkeypatch)

    def fails() -> None:
        with meter:
            meter.begin("inner")
            clock.advance(1.0)
            assert clock.running
            raise ZeroDivisionError

    meter.measure_idle()
    with pytest.raises(ZeroDivisionError):
        fails()
    assert clock.running == []
    with pytest.raises(RuntimeError, match="measurement: no window was closed"):
        _ = meter.measurement
    assert window(meter, clock).seconds == pytest.approx(6.0)  # it can be used again


def test_windows_have_names(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = gpu_meter(clock, monkeypatch)
    meter.begin("a")
    with pytest.raises(ValueError, match="name: a window 'a' is open"):
        meter.begin("a")
    with pytest.raises(ValueError, match="name: got 'b', allowed: an open window; there are 'a'"):
        meter.end("b")
    meter.close()
    with pytest.raises(ValueError, match="there are none"):
        meter.end("a")


def test_a_thread_samples_while_real_time_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = FakeRapl(tmp_path, FakeClock()).install(monkeypatch)
    tree.add("intel-rapl:0", "package-0", 1.0)

    def fails() -> None:
        with meter:
            assert sampling()
            raise ZeroDivisionError

    def sampling() -> bool:
        return any(thread.name == "drowsy-energy" for thread in threading.enumerate())

    meter = Meter("cpu", interval=0.01)
    with meter:
        time.sleep(0.2)
    got = meter.measurement
    assert 0.2 <= got.seconds < 5
    assert len(got.devices[0].samples) > 4
    assert not sampling()
    with pytest.raises(ZeroDivisionError):
        fails()
    assert not sampling()


def test_an_interrupted_idle_measurement_ends_sampling(
    rapl: FakeRapl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sensors.clock, "sleep", interrupt)
    meter = Meter("cpu")
    with pytest.raises(KeyboardInterrupt):
        meter.measure_idle()
    assert rapl.clock.running == []
    assert meter.idle_watts is None


# --- several GPUs --------------------------------------------------------------------------------


def test_several_gpus_are_measured_each_and_in_sum(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = FakeNvml(FakeGpu(clock, "burst"), FakeGpu(clock, "steady"))
    synchronized = gpus.install(monkeypatch)
    meter = Meter([0, "cuda:1"], idle_watts=[70, 100])
    clock.advance(4.0)
    got = window(meter, clock)
    a, b = got.devices
    assert (a.device, b.device) == meter.devices == ("cuda:0", "cuda:1")
    assert b.joules_counter == pytest.approx(6 * 120, rel=0.01)
    assert got.joules_counter == a.joules_counter + b.joules_counter
    assert got.joules_integrated == pytest.approx(a.joules_integrated + b.joules_integrated)
    assert b.joules_above_idle == pytest.approx(b.joules - 600)
    assert got.joules_above_idle == pytest.approx(a.joules_above_idle + b.joules_above_idle)
    assert synchronized == [0, 1, 0, 1]  # both, before the start and before the end


def test_a_gpu_without_a_counter_leaves_no_sum_of_counters(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = FakeNvml(FakeGpu(clock, "burst"), FakeGpu(clock, "steady", errors={"counter": 3}))
    gpus.install(monkeypatch)
    got = window(Meter([0, 1]), clock)
    a, b = got.devices
    assert got.joules_counter is None
    assert got.joules == pytest.approx(a.joules_counter + b.joules_integrated)
    assert got.disagreement is None
    assert not got.disagrees


@pytest.mark.parametrize("mig", [False, True], ids=["by UUID", "by bus id"])
def test_torchs_index_is_not_nvmls(
    mig: bool, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with CUDA_VISIBLE_DEVICES=1,0."""
    gpus = FakeNvml(FakeGpu(clock, "burst", mig=mig), FakeGpu(clock, "steady", mig=mig))
    synchronized = gpus.install(monkeypatch, order=(1, 0))
    got = window(Meter("cuda"), clock)
    assert got.devices[0].name == "Fake GPU B"
    assert got.joules_counter == pytest.approx(6 * 120, rel=0.01)
    assert set(synchronized) == {0}


def test_a_gpu_that_nvml_does_not_know(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(clock, "steady")
    nvml = FakeNvml(gpu)
    nvml.install(monkeypatch)
    nvml.gpus = ()
    with pytest.raises(NoMeter, match=r"cuda:0: NVML does not know torch's GPU b{8}.*Not Found"):
        Meter(0)


# --- repeated calls ------------------------------------------------------------------------------


def test_measure_repeats_without_waiting_after_every_call(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml(FakeGpu(clock, "steady"))
    synchronized = nvml.install(monkeypatch)
    calls = 0

    def replay() -> None:
        nonlocal calls
        calls += 1
        clock.advance(0.01)

    got = measure(replay, device=0, seconds=5.0, warmup=2)
    assert got.seconds >= 5.0
    assert got.calls == pytest.approx(5.1 / 0.01, abs=2)
    assert calls > got.calls  # warm-up and pace are not counted
    assert got.seconds_per_call == pytest.approx(0.01)
    assert got.joules_per_call == pytest.approx(120 * 0.01, rel=0.02)
    assert got.joules_above_idle_per_call is None
    assert len(synchronized) < 20


def test_measure_goes_on_where_calls_become_faster(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = gpu_meter(clock, monkeypatch, "steady")
    start = clock.now()
    got = meter.measure(lambda: clock.advance(0.1 if clock.now() < start + 1 else 0.03))
    assert got.seconds >= 5.0
    assert got.seconds == pytest.approx(5.1, abs=0.5)


def test_measure_inside_of_a_window_ends_with_it(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = gpu_meter(clock, monkeypatch)

    def fails() -> None:
        clock.advance(1.0)
        if clock.now() > 105:
            raise ZeroDivisionError

    with meter:
        with pytest.raises(ZeroDivisionError):
            meter.measure(fails)
        assert len(clock.running) == 1  # the block's
    assert meter.measurement.name == "block"
    with pytest.raises(ZeroDivisionError):
        meter.measure(fails)
    assert clock.running == []


# --- the CPU -------------------------------------------------------------------------------------


@pytest.fixture
def rapl(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> FakeRapl:
    """Two packages, one of which tells of its memory; what is inside others must not count."""
    tree = FakeRapl(tmp_path / "powercap", clock).install(monkeypatch)
    tree.add("intel-rapl:0", "package-0", 80.0)
    tree.add("intel-rapl:0:0", "core", 60.0)
    tree.add("intel-rapl:0:1", "dram", 10.0)
    tree.add("intel-rapl:1", "package-1", 30.0)
    tree.add("intel-rapl:2", "psys", 150.0)
    return tree


@pytest.mark.parametrize("device", ["cpu", "auto", torch.device("cpu")], ids=str)
def test_rapl_counts_packages_and_memory_around_the_wrap(
    device: str, rapl: FakeRapl, clock: FakeClock
) -> None:
    got = window(Meter(device), clock, 30.0)  # 2,400 J of package 0: nine times around 262 J
    assert [each.device for each in got.devices] == [
        "cpu:package-0",
        "cpu:dram of package-0",
        "cpu:package-1",
    ]
    assert [each.joules_counter for each in got.devices] == pytest.approx([2400, 300, 900])
    assert got.joules == pytest.approx(3600)
    assert got.watts == pytest.approx(120)
    assert got.joules_integrated is None  # RAPL tells no watts to integrate
    assert got.warnings == ()
    assert "watts" not in got.to_dict()["devices"][0]["samples"]


def test_idle_power_is_subtracted(rapl: FakeRapl, clock: FakeClock) -> None:
    meter = Meter("cpu")
    assert meter.measure_idle() == pytest.approx(120)
    with meter:
        clock.advance(6.0)
        rapl.watts = {zone: 2 * watts for zone, watts in rapl.watts.items()}
        rapl.start = (clock.now() + rapl.start) / 2  # the counters do not jump
        clock.advance(6.0)
    assert meter.measurement.joules == pytest.approx(120 * 6 + 240 * 6)
    assert meter.measurement.joules_above_idle == pytest.approx(120 * 6)


def test_a_file_that_may_not_be_read_is_named(
    rapl: FakeRapl, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_text

    def forbidden(path: Path, **options: object) -> str:
        if path.match("*/intel-rapl:1/energy_uj"):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, **options)

    monkeypatch.setattr(Path, "read_text", forbidden)
    with pytest.raises(
        NoMeter, match=r"intel-rapl:1/energy_uj may not be read \(Permission denied\).*chmod a\+r"
    ):
        Meter("cpu")


def test_a_file_that_vanishes_is_told(rapl: FakeRapl, clock: FakeClock) -> None:
    meter = Meter("cpu")
    with meter:
        clock.advance(6.0)
        del rapl.watts["intel-rapl:1"]
        (rapl.folder / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.measurement.joules is None
    assert meter.measurement.warnings == (
        "cpu:package-1: the energy counter could not be read at both ends of the window",
    )
    (rapl.folder / "intel-rapl:1" / "energy_uj").write_text("half")
    with pytest.raises(NoMeter, match=r"not from .*intel-rapl:1/energy_uj here: invalid literal"):
        Meter("cpu")


# --- no meter ------------------------------------------------------------------------------------


def test_a_machine_with_neither_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "RAPL", tmp_path / "powercap")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(NoMeter) as told:
        Meter()
    for part in ("torch finds no CUDA device", f"{tmp_path}/powercap", "virtual machines"):
        assert part in str(told.value)
    gpu, cpu = available()
    assert (gpu.device, gpu.metered, cpu.device, cpu.metered) == ("cuda", False, "cpu", False)
    assert "no CUDA device" in gpu.what
    assert "there is no" in cpu.what


def test_available_says_what_is_read(rapl: FakeRapl, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = FakeNvml(
        FakeGpu(rapl.clock, "burst"), FakeGpu(rapl.clock, "steady", errors={"counter": 3})
    )
    gpus.install(monkeypatch)
    a, b, cpu = available()
    assert a.what == "cuda:0 (Fake GPU A): energy counter and instant power"
    assert b.what.startswith("cuda:1 (Fake GPU B): instant power, has no energy counter (NVML: Not")
    assert cpu.what.startswith("cpu:package-0 (RAPL intel-rapl:0): energy counter; cpu:dram of")
    assert a.metered
    assert b.metered
    assert cpu.metered


def test_without_pynvml_the_pip_line_is_told(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeNvml(FakeGpu(clock, "steady")).install(monkeypatch)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoMeter, match=r'pip install "drowsynet\[energy\]"'):
        Meter("auto")


def test_without_a_driver_it_is_told(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(FakeGpu(clock, "steady"))
    nvml.install(monkeypatch)

    def fails() -> None:
        raise nvml.NVMLError(6)

    monkeypatch.setattr(nvml, "nvmlInit", fails)
    with pytest.raises(NoMeter, match=r"NVML, which does not start \(Not Found\).*driver"):
        Meter("cuda:0")


def test_the_fake_offers_only_what_pynvml_has() -> None:
    pynvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    for name in (name for name in vars(FakeNvml) if name.lower().startswith("nvml")):
        mine, real = getattr(FakeNvml, name), getattr(pynvml, name)
        if inspect.isfunction(mine):
            assert [*inspect.signature(mine).parameters][1:] == [
                *inspect.signature(real).parameters
            ]
        elif not inspect.isclass(mine):
            assert mine == real
    bits = {n: v for n, v in vars(pynvml).items() if n.startswith("nvmlClocksThrottleReason")}
    for bit, name in sensors._REASONS.items():
        camel = "nvmlClocksThrottleReason" + name.title().replace("_", "")
        assert bits[camel] == bit


# --- operating points ----------------------------------------------------------------------------


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
    assert [point.saving for point in points] == [0, pytest.approx(0.5)]
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
    times = energy._latencies(lambda: clock.advance(0.03), seconds=1.0, cuda=True)
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


# --- the command ---------------------------------------------------------------------------------


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
    Frontier(uniform(0, 4)).save("frontier.json")
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
    assert Frontier.load(tmp_path / "measured.json").at(joules=1e6).saving == 0
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


def test_the_command_measures_with_corrections(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smallnet import build

    torch.manual_seed(0)
    net = drowsy.convert(build().eval())
    drowsy.calibrate(net, torch.randn(4, 3, 8, 8), Frontier.load("frontier.json")).save("c.tensors")
    corrected = []
    original = drowsy.DrowsyNet.set

    def spied(self: drowsy.DrowsyNet, *args: object, **options: object) -> None:
        original(self, *args, **options)
        corrected.append((self.corrected_for, list(self.corrected)))

    monkeypatch.setattr(sensors, "RAPL", tmp_path / "powercap")
    monkeypatch.setattr(drowsy.DrowsyNet, "set", spied)
    assert main([*command, "--calibration", "c.tensors"]) == 0
    assert ((4, 4), ["2"]) in corrected


def test_the_command_says_that_there_is_no_meter(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sensors, "RAPL", tmp_path / "powercap")
    assert main(command) == 0
    assert "no joules, latency only: CPU energy is read from RAPL, but" in capsys.readouterr().out
    for point in Frontier.load(tmp_path / "measured.json").points:
        assert point.joules is None
        assert point.latency_ms > 0
