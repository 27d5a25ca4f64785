"""The network while nobody sleeps, of torch's own modules, and when there is none."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import drowsy
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.tail import Absorbed
from drowsy.tuning.dense import dense

EXAMPLE = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect", groups=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.one(x)))
        return self.head(self.two(x).relu().mean((2, 3)))


class SharedNorm(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.two(self.norm(self.one(x)).relu())).mean((2, 3)))


class Remembering(Net):
    """Whose code keeps something from call to call, which no graph shows."""

    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last


class Counting(Net):
    """Whose code writes into a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return super().forward(x)


class CountingInside(Net):
    """Whose code writes into what it holds in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = {"calls": 0, "last": [torch.zeros(5)]}

    def forward(self, x: Tensor) -> Tensor:
        self.kept["calls"] += 1
        return super().forward(x)


class WritingInside(CountingInside):
    def forward(self, x: Tensor) -> Tensor:
        y = Net.forward(self, x)
        self.kept["last"][0].add_(y[0])
        return y


class ReadingItsNorm(Net):
    """As attention by the weights of a norm does."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.one(x))
        share = self.norm.weight / self.norm.weight.sum()
        return self.head(self.two(y * torch.sigmoid(y * share.view(1, -1, 1, 1))).mean((2, 3)))


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def seeded(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(5)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("kind", [Net, SharedNorm])
def test_computes_what_the_model_does_with_torchs_own_modules(kind: type[nn.Module]) -> None:
    model = seeded(kind)
    net = drowsy.convert(model, EXAMPLE)
    net.set(0.5)
    before = net.schedule
    plain = dense(net, EXAMPLE)
    assert plain is not None
    assert not [m for m in plain.modules() if isinstance(m, DrowsyConv2d | Absorbed)]
    images = torch.rand(5, 3, 12, 12)
    with torch.inference_mode():
        expected = model.double()(images.double())
        torch.testing.assert_close(plain.float()(images).double(), expected, atol=1e-5, rtol=1e-5)
    assert net.schedule == before


def test_a_norm_is_folded_where_one_convolution_has_it() -> None:
    plain = dense(drowsy.convert(seeded(Net), EXAMPLE), EXAMPLE)
    assert isinstance(plain, Net)
    assert type(plain.norm) is nn.Identity
    shared = dense(drowsy.convert(seeded(SharedNorm), EXAMPLE), EXAMPLE)
    assert isinstance(shared, SharedNorm)
    assert type(shared.norm) is nn.BatchNorm2d


def test_tensors_are_those_of_the_network() -> None:
    net = drowsy.convert(seeded(Net), EXAMPLE)
    plain = dense(net, EXAMPLE)
    assert isinstance(plain, Net)
    weight, _ = net.layers["one"].parameters_in_effect()
    assert plain.one.weight.data_ptr() == weight.data_ptr()
    assert plain.head.weight.data_ptr() == net.model.head.weight.data_ptr()


@pytest.mark.parametrize("kind", [Remembering, Counting, CountingInside, WritingInside])
def test_none_where_the_code_keeps_something(kind: type[nn.Module]) -> None:
    model = seeded(kind)
    net = drowsy.convert(model, EXAMPLE)
    before = copy.deepcopy(net)
    assert dense(net, EXAMPLE) is None
    # Nor has the search for one written to what the network keeps.
    with torch.inference_mode():
        assert torch.equal(net(EXAMPLE), before(EXAMPLE))
    if kind is Counting:
        assert net.model.calls == before.model.calls
    if issubclass(kind, CountingInside):
        assert net.model.kept["calls"] == before.model.kept["calls"]
        assert torch.equal(net.model.kept["last"][0], before.model.kept["last"][0])


def test_none_without_a_graph() -> None:
    net = drowsy.convert(seeded(Branching), EXAMPLE)
    assert net.graph is None
    assert dense(net, EXAMPLE) is None


def test_none_where_the_code_looks_at_a_norm() -> None:
    net = drowsy.convert(seeded(ReadingItsNorm), EXAMPLE)
    assert net.graph is not None
    assert dense(net, EXAMPLE) is None


@pytest.mark.parametrize("reconstruct", [False, True])
def test_corrections_of_points_where_some_sleep_stay_with_these(reconstruct: bool) -> None:
    torch.manual_seed(0)
    model, images = Net().eval(), torch.rand(64, 3, 12, 12)
    net = drowsy.convert(model, EXAMPLE)
    net.set(0.5)
    drowsy.calibrate(net, images, reconstruct=reconstruct)
    for when in (0, 0.5):
        net.set(when)
        plain = dense(net, EXAMPLE)
        assert plain is not None
        with torch.inference_mode():
            for rate in (0.5, 0, 0.5):
                net.set(rate)
                assert bool(net.corrected) == (rate > 0)
                torch.testing.assert_close(plain(images), model(images))
