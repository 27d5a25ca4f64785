"""NVIDIA GPUs: which one is metered, what it cannot tell, and what it tells that cannot be true."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
from fake_nvml import FakeClock, FakeGpu, FakeNvml, gpu_meter, window

from drowsy import sensors
from drowsy.energy import Meter, NoMeter, available

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
    with pytest.raises(NoMeter, match=r'the pynvml in /old/pynvml\.py .*"\.\[energy\]"'):
        Meter(0)


def test_a_gpu_without_a_name_is_metered(
    tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> str:
        raise FakeNvml.NVMLError(3)

    monkeypatch.setattr("drowsy.sensors.rapl.RAPL", tmp_path)
    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetName", fails)
    assert available()[0].what == "cuda:0 (of unknown name): energy counter and instant power"


def test_a_gpu_that_tells_nothing_is_no_meter(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoMeter, match=r"cuda:0 \(Fake GPU B\) has no energy counter .* no power"):
        gpu_meter(clock, monkeypatch, "steady", errors={"counter": 3, "instant": 3, "power": 3})


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


def test_without_pynvml_the_pip_line_is_told(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeNvml(FakeGpu(clock, "steady")).install(monkeypatch)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoMeter, match=r'pip install -e "\.\[energy\]"'):
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
    for bit, name in sensors.nvml._REASONS.items():
        camel = "nvmlClocksThrottleReason" + name.title().replace("_", "")
        assert bits[camel] == bit
