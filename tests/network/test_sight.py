"""Networks whose sources see their input: one look an inference, the same for whoever asks."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import drowsy
from drowsy.correction import layerwise
from drowsy.evaluation.evaluator import Evaluator
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.neuron import sleep
from drowsy.sleep import SleepSpec, detail_map, levels


class Network(nn.Module):
    """Strides, a residual sum and a head; overwrites its input where asked to."""

    def __init__(self, overwrites: bool = False) -> None:
        super().__init__()
        self.overwrites = overwrites
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.down, self.fc = nn.Conv2d(8, 12, 3, 2, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.overwrites:
            x.mul_(0.5).add_(x.flip(-1))
        y = F.relu(self.stem(x))
        y = F.relu(y + self.b(F.relu(self.a(y))))
        return self.fc(F.relu(self.down(y)).mean((-2, -1)))


def pictures(count: int = 6, size: tuple[int, int] = (24, 36)) -> Tensor:
    """Flat in different places."""
    strength = F.interpolate(torch.rand(count, 1, 3, 4) ** 4, size)
    return torch.randn(count, 3, *size) * strength + torch.randn(count, 3, 1, 1)


def converted(**options: Any) -> DrowsyNet:
    options = {"source": "detail", "grain": "position", "fill": "nearest"} | options
    model = Network(options.pop("overwrites", False)).eval()
    net = drowsy.convert(model, pictures(2), **options)
    net.set(0.5)
    return net


def run(net: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return net(x)


def by_hand(net: DrowsyNet, x: Tensor) -> Tensor:
    """What the network computes, from its layers' awake outputs and maps drawn for the picture."""
    seen, layers = detail_map(x), net.layers

    def sleeping(name: str, given: Tensor, activation: Any = F.relu) -> Tensor:
        layer = layers[name]
        y = activation(F.conv2d(given, layer.weight, layer.bias, layer.stride, layer.padding))
        size = (y.shape[0], y.shape[1], y.shape[2], y.shape[3])
        drawn = levels(layer.sleep, size, net.control.clock, seen)
        return sleep(y, drawn, 4, 1.0, layer.sleep.grain, layer.fill)

    with torch.inference_mode():
        y = sleeping("stem", x)
        y = F.relu(y + sleeping("b", sleeping("a", y), nn.Identity()))
        return net.model.fc(sleeping("down", y).mean((-2, -1)))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("grain", ["position", "position:4", "neuron"])
def test_layers_sleep_by_the_networks_input(grain: str, aligned: bool) -> None:
    net, x = converted(grain=grain), pictures()
    if aligned:
        stages = drowsy.align(net, x, grain=None)
        assert max(len(stage.layers) for stage in stages) == 3
    net.reseed(3)
    expected = by_hand(net, x)
    torch.testing.assert_close(run(net, x), expected)
    # Nor does it matter which images they are, or how they are split.
    torch.testing.assert_close(torch.cat([run(net, part) for part in x.split([1, 3, 2])]), expected)
    torch.testing.assert_close(run(net, x.flip(0)), expected.flip(0))
    torch.testing.assert_close(run(net, x[4])[None], expected[4:5])
    assert not torch.allclose(run(net, x), run(net.original, x), atol=1e-3)


@pytest.mark.parametrize("fill", ["zero", "interpolate"])
@pytest.mark.parametrize("grain", ["position", "neuron"])
def test_backends_agree(grain: str, fill: str, triton_device: torch.device) -> None:
    net = converted(grain=grain, fill=fill).to(triton_device)
    x = pictures(2).to(triton_device)
    outputs = []
    for backend in ("torch", "triton"):
        for layer in net.layers.values():
            layer.backend = backend
        net.reseed(1)
        outputs.append(run(net, x))
    torch.testing.assert_close(*outputs)
    net.set(0)
    torch.testing.assert_close(run(net, x), run(net.original, x))


def test_at_rate_zero_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = converted(), pictures()
    monkeypatch.setattr(DrowsyNet, "detail_of", lambda *_: pytest.fail("it looked"))
    net.set(0)
    torch.testing.assert_close(run(net, x), run(net.original, x))
    lattice = converted(source="lattice")
    assert run(lattice, x).isfinite().all()


def test_the_input_is_seen_as_it_was_before_the_network_overwrote_it() -> None:
    net, x = converted(overwrites=True), pictures()
    net.reseed(2)
    first = run(net, x.clone())
    assert torch.equal(first, run(net, x.clone()))
    for evaluator in (Evaluator(net, x, seed=2), Evaluator(net, x, seed=2, batch=4)):
        ((_, logits),) = evaluator._way.walk([(4, 4, 4, 4)])
        torch.testing.assert_close(logits, first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reconstruct", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_corrections_are_made_for_the_maps_of_the_pictures(
    graph: bool, reconstruct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, net = pictures(12), converted()
    whole, seen = detail_map(x), []

    def recorded(spec: SleepSpec, shape: Any, clock: Tensor, detail: Tensor | None) -> Tensor:
        start = int(clock[1])
        assert detail is not None
        assert torch.equal(detail, whole[start : start + shape[0]])
        seen.append(start)
        return levels(spec, shape, clock, detail)

    monkeypatch.setattr(layerwise, "levels", recorded)
    if not graph:
        monkeypatch.setattr(DrowsyNet, "graph", None)
    drowsy.calibrate(net, x, reconstruct=reconstruct, batch=5)
    assert set(seen) == {0, 3, 6, 9}
    assert net.corrected
    awake = run(net.original, x)
    error = (run(net, x) - awake).square().mean()
    with net.uncorrected():
        assert error < (run(net, x) - awake).square().mean()


def test_threads_see_their_own_pictures() -> None:
    net = converted()
    batches = [pictures() for _ in range(8)]
    alone = [run(net, x) for x in batches]
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait(timeout=60)
        for i in range(40):
            place = (i * 3 + number) % len(batches)
            assert torch.equal(run(net, batches[place]), alone[place])

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, number) for number in range(4)]:
            done.result(timeout=120)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_network_sees_every_input(backend: str) -> None:
    net = converted()
    batches = [pictures(), pictures()]
    expected = []
    for rate in (0.5, 0.0, 0.25):
        net.set(rate)
        expected.append([run(net, x) for x in batches])
    torch._dynamo.reset()
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    for rate, wanted in zip((0.5, 0.0, 0.25), expected, strict=True):
        net.set(rate)
        for x, y in zip(batches, wanted, strict=True):
            torch.testing.assert_close(run(compiled, x), y)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_traced_and_exported_networks_see_every_input(rate: float) -> None:
    """Made at rate 0 they follow the knob all the same."""
    net, x, other = converted(), pictures(), pictures()
    net.set(rate)
    with torch.inference_mode(False), torch.no_grad():
        traced = torch.jit.trace(net, x, check_trace=False)
        exported = torch.export.export(net, (x,)).module()
        net.set(0.5)
        awake = run(net.original, other)
        assert not torch.allclose(traced(other), awake, atol=1e-3)
        torch.testing.assert_close(traced(other), run(net, other))
    if rate:
        torch.testing.assert_close(run(exported, other), run(net, other))


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_is_refused_unless_nobody_sleeps(dynamo: bool) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    net, x = converted(), pictures(2)
    told = "source detail sleeps by what is in the picture"
    with torch.no_grad():
        with pytest.raises(Exception, match=told):
            torch.onnx.export(net, (x,), io.BytesIO(), dynamo=dynamo, verbose=False)
        net.set(0)
        torch.onnx.export(net, (x,), io.BytesIO(), dynamo=dynamo, verbose=False)


def test_a_deployed_network_sees_every_batch(triton_device: torch.device) -> None:
    net = converted(fill="nearest").to(triton_device)
    drowsy.align(net, pictures(2).to(triton_device))
    first, second = (pictures(2).to(triton_device) for _ in range(2))
    fast = drowsy.deploy(net, first, graph=False)
    assert any(step.output == "compact" for step in fast.steps)
    for rate in (0.5, 0.25):
        net.set(rate)
        for x in (first, second):
            torch.testing.assert_close(fast(x), run(net, x))
    net.reseed(5)
    torch.testing.assert_close(fast(first), run(net, first))


# --- errors --------------------------------------------------------------------------------------


def test_a_layer_without_its_network_is_refused_unless_nobody_sleeps() -> None:
    layer = DrowsyConv2d(3, 4, 3, sleep=SleepSpec("detail", "position"))
    x = pictures(2)
    torch.testing.assert_close(run(layer, x), F.conv2d(x, layer.weight, layer.bias))
    layer.set(rate=0.5)
    with pytest.raises(ValueError, match="got source detail for a layer that was called without"):
        run(layer, x)
    with pytest.raises(ValueError, match="got source detail for a layer that was called without"):
        run(converted().layers["stem"], x)


class Two(nn.Module):
    """Takes images in two ways, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, *given: Tensor) -> Tensor:
        return self.conv(
            sum(each if each.dim() > 2 else each[None].expand(3, -1, -1) for each in given)
        )


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ([(2, 3, 8, 8), (2, 3, 8, 8)], r"\(2, 3, 8, 8\), \(2, 3, 8, 8\)"),
        ([(8, 8)], r"\(8, 8\)"),
    ],
)
def test_a_network_that_is_not_given_pictures_is_refused(
    shapes: list[tuple[int, ...]], told: str
) -> None:
    net = drowsy.convert(Two().eval(), source="detail", grain="position")
    given = [torch.randn(shape) for shape in shapes]
    with torch.inference_mode():
        net(*given)  # nobody sleeps
        net.set(0.5)
        with pytest.raises(
            ValueError, match=f"source detail.*got tensors {told}, allowed: exactly"
        ):
            net(*given)
        net(torch.randn(2, 3, 8, 8))
        net(torch.randn(3, 8, 8))


def test_a_layer_that_is_given_other_images_is_refused() -> None:
    class Crops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.cat([x[..., :8], x[..., 8:]]))

    net = drowsy.convert(Crops().eval(), source="detail", grain="position")
    net.set(0.5)
    with pytest.raises(ValueError, match="source detail: got 2 pictures for the maps of 4 images"):
        run(net, torch.randn(2, 3, 16, 16))
