"""What GPUs tell that cannot be true: counters that go back or leap, and impossible watts."""

from __future__ import annotations

import pytest
from fake_nvml import FakeClock, FakeGpu, FakeNvml

from drowsy.energy import Meter, NoMeter

WATTS = 120  # of the trace "steady"


@pytest.fixture
def gpu(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu(clock, "steady")
    FakeNvml(gpu).install(monkeypatch)
    return gpu


@pytest.mark.parametrize(
    ("scale", "told"), [(0.0, "went back from"), (1e6, "leapt from")], ids=["back", "leap"]
)
def test_a_counter_that_is_reset_leaves_the_integral(
    scale: float, told: str, gpu: FakeGpu, clock: FakeClock
) -> None:
    meter = Meter(0)
    clock.advance(3.0)
    with meter:
        clock.advance(3.0)
        gpu.scale = scale
        clock.advance(3.0)
    (warning,) = meter.measurement.warnings
    assert warning.startswith(f"cuda:0: the energy counter {told}")
    assert warning.endswith("was it reset?")
    assert meter.measurement.joules_counter is None
    assert meter.measurement.joules == pytest.approx(6 * WATTS, rel=0.01)


def test_windows_before_and_after_a_reset_are_counted(gpu: FakeGpu, clock: FakeClock) -> None:
    meter = Meter(0)
    counted = []
    for scale in (1.0, 1e-3, 1.0):
        gpu.scale = scale
        with meter:
            clock.advance(6.0)
        counted.append(meter.measurement.joules_counter)
    assert counted == pytest.approx([6 * WATTS, 6e-3 * WATTS, 6 * WATTS], rel=0.01)


def test_why_a_counter_cannot_be_read_is_told(gpu: FakeGpu, clock: FakeClock) -> None:
    with (meter := Meter(0)):
        clock.advance(6.0)
        gpu.errors = {"counter": 15}
    assert meter.measurement.warnings == (
        "cuda:0: the energy counter could not be read at both ends of the window: "
        "NVML: GPU is lost",
    )
    assert meter.measurement.joules_counter is None


@pytest.mark.parametrize("watts", [0, 4294967.295], ids=["0 W", "2^32 - 1 mW"])
def test_watts_that_cannot_be_are_not_integrated(
    watts: float, gpu: FakeGpu, clock: FakeClock
) -> None:
    true = list(gpu.columns["watts"])
    with (meter := Meter(0)):
        clock.advance(3.0)
        gpu.columns["watts"] = [watts] * len(true)
        clock.advance(0.1)
        gpu.columns["watts"] = true
        clock.advance(2.9)
    (warning,) = meter.measurement.warnings
    assert warning == "cuda:0: power could not be read 5 times of 302"
    assert meter.measurement.joules_integrated == pytest.approx(6 * WATTS, rel=0.01)


@pytest.mark.parametrize("watts", [0, 4294967.295], ids=["0 W", "2^32 - 1 mW"])
def test_a_gpu_that_always_tells_such_watts_tells_no_power(
    watts: float, gpu: FakeGpu, clock: FakeClock
) -> None:
    gpu.columns["watts"] = [watts] * len(gpu.columns["watts"])
    with (meter := Meter(0)):
        clock.advance(6.0)
    (warning,) = meter.measurement.warnings
    assert warning == (
        f"cuda:0: tells no power (NVML tells {watts:,.7g} W, believed: above 0, up to 5,000 W)"
    )
    assert meter.measurement.joules_integrated is None
    assert meter.measurement.joules == pytest.approx(6 * WATTS, rel=0.01)
    gpu.errors = {"counter": 3}
    with pytest.raises(NoMeter, match=r"has no energy counter .* and tells no power"):
        Meter(0)


def test_another_package_by_the_name_of_pynvml_is_told(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml(FakeGpu(clock, "steady"))
    nvml.install(monkeypatch)
    monkeypatch.setattr(nvml, "__file__", "/old/pynvml.py", raising=False)
    monkeypatch.delattr(FakeNvml, "NVML_FI_DEV_POWER_INSTANT")
    with pytest.raises(NoMeter, match=r'the pynvml in /old/pynvml\.py .*"drowsy\[energy\]"'):
        Meter(0)


def test_a_gpu_without_a_name_is_metered(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> str:
        raise FakeNvml.NVMLError(3)

    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetName", fails)
    assert Meter(0)._tracks[0].sensor.name == "of unknown name"
