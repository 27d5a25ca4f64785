"""Calibration of networks that have no graph: as with one, in whole forwards alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drowsy.correction import by_graph
from drowsy.correction.calibrate import calibrate
from drowsy.correction.corrected import Corrected
from drowsy.correction.stencils import calibrate_stencils
from drowsy.evaluation.measurer import Measurer
from drowsy.graph.convert import convert
from drowsy.network.calibration import Calibration
from drowsy.network.net import DrowsyNet
from drowsy.sleep import levels

N, CHANNELS = 18, 6


class Network(nn.Module):
    """A stem, three layers, a head; ``forward`` is what a function makes of them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.a = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.b = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=2)
        self.c, self.fc = nn.Conv2d(CHANNELS, 4, 1), nn.Linear(4, 5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.function(self, F.relu(self.stem(x))).mean((2, 3)))


def _overwriting(n: Any, x: Tensor) -> Tensor:
    y = n.b(F.relu(n.a(x)))
    x.mul_(0.5)
    return n.c(y.relu_() * x)


HABITS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "chain": lambda n, x: n.c(F.relu(n.b(F.relu(n.a(x))))),
    "concatenation": lambda n, x: n.c((n.a(x) + n.b(x) * 2)[:, :, ::2]),
    "a layer twice": lambda n, x: n.c(F.relu(n.b(F.relu(n.a(F.relu(n.a(x))))))),
    "a layer at two sizes": lambda n, x: n.c(
        F.relu(n.b(n.a(x))) * F.interpolate(n.a(F.avg_pool2d(x, 2)), scale_factor=2)
    ),
    "a layer for nobody": lambda n, x: (n.b(x), n.c(n.a(x)))[1],
    "no layer of a module": lambda n, x: n.c(F.gelu(x)),
    "overwriting": _overwriting,
    "one image": lambda n, x: n.c(x * n.a(x[0])) + n.c(n.b(x[:1].expand(4, -1, -1, -1))[:1]),
}


def photos(count: int = N, side: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    coarse = torch.randn(count, 3, side // 3, side // 3, generator=generator)
    return F.interpolate(coarse, (side, side), mode="bicubic")


def converted(function: Callable[[Any, Tensor], Tensor], **options: Any) -> DrowsyNet:
    torch.manual_seed(1)
    options = {"grain": "position", "source": "stratified", "fill": "nearest"} | options
    net = convert(Network(function).eval(), photos(2), **options)
    net.set(0.5)
    return net


@pytest.fixture
def without_graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on networks have no graph; they run as ever."""
    return lambda: monkeypatch.setattr(DrowsyNet, "graph", None)


def check_alike(found: Calibration, expected: Calibration) -> None:
    """To rounding: convolutions of more images at once may sum in another order."""
    assert found.points.keys() == expected.points.keys()
    for setting, corrections in expected.points.items():
        assert found.points[setting].keys() == corrections.keys()
        for name, want in corrections.items():
            for part, tensor in vars(want).items():
                own = getattr(found.points[setting][name], part)
                torch.testing.assert_close(own, tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reconstruct", [False, True])
@pytest.mark.parametrize("habit", [name for name in HABITS if name != "one image"])
def test_corrections_are_those_of_the_graph(
    habit: str,
    reconstruct: bool,
    without_graphs: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What is lost in the other summand of a sum only a graph tells.
    monkeypatch.setattr(by_graph, "_summand", lambda *_: None)
    net, images = converted(HABITS[habit]), photos()
    options = {"reconstruct": reconstruct, "seed": 3, "batch": 5}
    expected = calibrate(net, images, **options)
    without_graphs()
    found = calibrate(net, images, **options)
    check_alike(found, expected)
    (corrections,) = found.points.values()
    assert len(corrections) > 0
    assert any(each.delta is not None for each in corrections.values()) == reconstruct


@pytest.mark.parametrize(
    "options",
    [
        {"grain": "neuron", "source": "bernoulli", "fill": "rescale"},
        {"grain": "channel:2", "fill": "auto"},
        {"grain": "tile:2x2", "source": "bernoulli", "fill": "zero"},
        {"source": "lattice", "fill": "interpolate"},
        {"fold_bn": False},
    ],
    ids=str,
)
def test_so_they_are_for_other_sleepers(
    options: dict[str, Any], without_graphs: Callable[[], None]
) -> None:
    net, images = converted(HABITS["chain"], **options), photos()
    net.set(0)
    settings = [net.schedule_of(setting) for setting in ((4, 3, 2, 1), (0, 0, 5, 0))]
    expected = calibrate(net, images, settings)
    without_graphs()
    found = calibrate(net, images, settings)
    check_alike(found, expected)
    # What comes before the first sleeper sees what it sees awake.
    assert [list(corrections) for corrections in found.points.values()] == [["a", "b", "c"], ["c"]]


@pytest.mark.parametrize("graph", [True, False])
def test_a_layer_that_runs_at_two_sizes_is_corrected_for_its_first_input(
    graph: bool, without_graphs: Callable[[], None]
) -> None:
    net, images = converted(HABITS["a layer at two sizes"]), photos()
    if not graph:
        without_graphs()

    def spreads() -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Mean and deviation of the sums at each call, of those awake at rate 1/2."""
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}

        def hook(layer: Any, given: tuple[Tensor], _: Tensor) -> None:
            weight, bias = layer.parameters_in_effect()
            x = given[0].double()
            bias = bias.double()
            z = F.conv2d(x, weight.double(), bias, 1, layer.padding, 1, layer.groups)
            awake = levels(layer.sleep, tuple(z.shape), torch.tensor([0, 0])) >= 4
            kept = z.permute(0, 2, 3, 1).flatten(0, 2)[awake.flatten()]
            calls = found.setdefault(names[layer], [])
            calls.append((kept.mean(0), kept.std(0, correction=0)))

        names = {layer: name for name, layer in net.layers.items()}
        handles = [layer.register_forward_hook(hook) for layer in net.layers.values()]
        net.reseed(0)
        with torch.inference_mode():
            net(images.clone())
        for handle in handles:
            handle.remove()
        return found

    drowsy = spreads()
    net.set(0)
    wanted = spreads()
    net.set(0.5)
    calibrate(net, images, batch=5)
    own = spreads()
    assert {name: len(calls) for name, calls in own.items()} == {"stem": 1, "a": 2, "b": 1, "c": 1}
    # The last layer reads what comes of both calls.
    for name in ("a", "b", "c"):
        for mine, want, before in zip(own[name][0], wanted[name][0], drowsy[name][0], strict=True):
            torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(before, want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(own["a"][1][1], wanted["a"][1][1], rtol=1e-4, atol=1e-5)
    # The second call computes with the correction too.
    assert not torch.allclose(own["a"][1][1], drowsy["a"][1][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("graph", [True, False])
def test_layers_on_other_batches_are_corrected(
    graph: bool, without_graphs: Callable[[], None]
) -> None:
    """One image without a batch, and one that is all of a batch."""
    net = converted(HABITS["one image"])
    if not graph:
        without_graphs()
    (corrections,) = calibrate(net, photos(), reconstruct=True).points.values()
    assert corrections.keys() == {"a", "b", "c"}
    assert all(part.isfinite().all() for c in corrections.values() for part in (c.scale, c.bias))


def test_the_network_is_as_it_was(without_graphs: Callable[[], None]) -> None:
    net, images = converted(HABITS["chain"]), photos()
    without_graphs()
    net.reseed(3, 14)
    before, kept = net.schedule, images.clone()
    forwards = [layer.forward for layer in net.layers.values()]
    calibrate(net, images, reconstruct=True)
    assert (net.schedule, net.control.clock.tolist()) == (before, [3, 14])
    assert torch.equal(images, kept)
    assert [layer.forward for layer in net.layers.values()] == forwards
    assert not any("forward" in vars(layer) for layer in net.layers.values())
    fixed = net.calibration
    net.layers["b"].weight.data[:] = torch.inf
    net.refresh()
    message = "layer b: its outputs are not finite, allowed: images"
    with pytest.raises(ValueError, match=message):
        calibrate(net, images)
    assert net.calibration is not None
    assert net.calibration.points.keys() == fixed.points.keys()
    assert not any("forward" in vars(layer) for layer in net.layers.values())


def test_progress_is_shown(
    without_graphs: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tqdm")
    net = converted(HABITS["a layer twice"])
    without_graphs()
    calibrate(net, photos(), progress=True)
    # Awake and asleep, each layer once.
    assert "8/8" in capsys.readouterr().err


def test_engines_that_correct_need_no_graph(without_graphs: Callable[[], None]) -> None:
    net, images = converted(HABITS["chain"]), photos()
    settings = [(0, 0, 0, 0), (4, 4, 4, 4), (2, 0, 6, 1)]
    measurers = [Measurer(net, images, torch.arange(N) % 5, engine=Corrected(photos(8)))] * 2
    expected = measurers[0].measure(settings)
    without_graphs()
    assert measurers[1].measure(settings) == expected


# --- what no graph can tell ----------------------------------------------------------------------


class Keeping(nn.Module):
    """A network that keeps a tensor from one layer to a later one where no argument shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = F.relu(self.stem(x))
        y = F.relu(self.a(self.kept))
        return self.b(y * self.kept).mean((2, 3))


def test_networks_that_keep_tensors_are_calibrated(without_graphs: Callable[[], None]) -> None:
    net, images = convert(Keeping().eval(), fill="zero"), photos()
    net.set(0.5)
    expected = calibrate(net, images)
    without_graphs()
    check_alike(calibrate(net, images), expected)


class Choosy(Network):
    """Its first outputs decide which of its layers run, and on how many images."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.c(x).mean((2, 3))
        if (x == 0).float().mean() > 0.6:  # asleep
            y = y + F.relu(self.b(x)).mean((1, 2, 3))[:, None]
        some = F.relu(self.a(x[x.mean((1, 2, 3)) > 0.08]))
        return self.fc(y + some.sum())


@pytest.fixture
def choosy() -> DrowsyNet:
    torch.manual_seed(1)
    options = {"grain": "position", "source": "stratified", "fill": "zero"}
    net = convert(Choosy(HABITS["chain"]).eval(), photos(), **options)  # type: ignore[arg-type]
    net.set(0.5)
    return net


def test_layers_that_run_asleep_alone_are_left_alone(
    choosy: DrowsyNet,
) -> None:
    images = photos()

    def images_at(rate: float) -> dict[str, int]:
        seen: dict[str, int] = {}
        for name, layer in choosy.layers.items():
            layer.register_forward_hook(lambda _, x, y, name=name: seen.update({name: len(y)}))
        choosy.set(rate)
        choosy.reseed(0)
        with torch.inference_mode():
            choosy(images)
        return seen

    assert images_at(0) == {"stem": N, "c": N, "a": N}
    assert images_at(0.5) == {"stem": N, "c": N, "b": N, "a": 8}
    (corrections,) = calibrate(choosy, images).points.values()
    # Fewer images come to one of them than awake: their spread is still what is wanted.
    assert corrections.keys() == {"c", "a"}
    with pytest.raises(
        ValueError, match="layer a: its outputs have other shapes asleep than awake"
    ):
        calibrate(choosy, images, reconstruct=True)


def test_stencils_need_no_graph(without_graphs: Callable[[], None]) -> None:
    nets = [converted(HABITS["one image"], fill="zero") for _ in range(2)]
    calibrate_stencils(nets[0], photos())
    without_graphs()
    nets[1].reseed(3, 14)
    calibrate_stencils(nets[1], photos())
    assert nets[1].control.clock.tolist() == [3, 14]
    for name, layer in nets[0].layers.items():
        assert torch.equal(layer.stencil, nets[1].layers[name].stencil)


def test_layers_that_do_not_run_have_no_stencil() -> None:
    class Short(Network):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.stem(x if x.sum() else x + 1))).mean((2, 3))

    net = convert(Short(HABITS["chain"]).eval(), source="stratified", grain="position")
    with pytest.raises(ValueError, match="net: a, b did not run, allowed: layers that do"):
        calibrate_stencils(net, photos())
