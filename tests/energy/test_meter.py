"""Energy meters, on a machine that is made of traces: its clock is the test's."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fake_nvml import FakeClock, FakeGpu, FakeNvml, FakeRapl, gpu_meter, window

from drowsy import sensors
from drowsy.energy import Meter, NoMeter, available, measure

# Of the trace "burst": idle, then work from here to there (seconds), at these watts or so.
WORK, REST, IDLE_WATTS, WORK_WATTS = 3.0, 11.0, 70, 420


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


def test_what_cannot_go_on_without_joules_says_why_there_are_none(
    clock: FakeClock, rapl: FakeRapl
) -> None:
    meter = Meter("cpu")
    found = meter.measure(lambda: clock.advance(0.5))
    assert found.known_per_call() == found.joules_per_call
    rapl.files["intel-rapl:1"] = "7\n"
    still = meter.measure(lambda: clock.advance(0.5))
    assert still.joules_per_call is None
    told = r"cpu:package-1 \(.*\) metered no energy in 5.* s: .*counter did not advance"
    # The one that did tell its joules is not blamed.
    with pytest.raises(NoMeter, match=f"^{told}"):
        still.known_per_call()


def test_seconds_of_numpy_are_numbers(clock: FakeClock, rapl: FakeRapl) -> None:
    meter = Meter("cpu")
    for seconds in (np.float32(1), np.int64(1)):
        assert meter.measure(lambda: clock.advance(0.5), seconds=seconds).seconds > 0


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


# --- what is here --------------------------------------------------------------------------------


def test_a_machine_with_neither_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drowsy.sensors.rapl.RAPL", tmp_path / "powercap")
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
