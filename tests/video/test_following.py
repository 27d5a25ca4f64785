"""A stream follows what its network's own code follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

import drowsy
from drowsy import Stream
from drowsy.network.net import DrowsyNet
from drowsy.network.standin import Standin


class Mixed(nn.Module):
    """Neurons with a norm and slopes, and with a bias alone; norm and parameter after a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.normed, self.norm, self.slopes = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8)
        self.bare, self.act = nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.2)
        self.after, self.skipped = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)
        self.gain = nn.Parameter(torch.full((1, 8, 1, 1), 0.5))
        self.leaky = nn.LeakyReLU(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slopes(self.norm(self.normed(x)))
        x = self.after((self.act(self.bare(x)) + x) * self.gain)
        return self.skipped(self.leaky(x))


class Headed(Mixed):
    """With a layer behind all maps."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(super().forward(x).mean((2, 3)))


def made() -> tuple[DrowsyNet, Stream, Tensor]:
    """A stream that has seen two frames, and the next."""
    torch.manual_seed(0)
    net = drowsy.convert(Mixed().eval(), skip=("skipped",))
    stream, clip = Stream(net, cut=None), torch.randn(3, 3, 24, 24)
    for frame in clip[:2].split(1):
        stream(frame)
    return net, stream, clip[2:]


def assert_followed(net: DrowsyNet, stream: Stream, x: Tensor, change: Callable[[], Any]) -> None:
    before = net(x)
    change()
    expected = net(x)
    assert not torch.allclose(expected, before, atol=1e-3)
    torch.testing.assert_close(stream(x), expected)


TENSORS = ["normed.weight", "normed.bias", "norm.weight", "norm.running_mean", "slopes.weight"]
TENSORS += ["bare.weight", "bare.bias", "after.bias", "after.running_var", "gain"]
TENSORS += ["skipped.weight", "skipped.bias"]


@torch.no_grad()
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_are_followed(name: str, replaced: bool) -> None:
    net, stream, x = made()
    *owner, own = name.split(".")
    module = net.get_submodule(".".join(owner))
    tensor = getattr(module, own)

    def change() -> None:
        if replaced:
            new = tensor.clone() * 2 + 0.5
            setattr(module, own, nn.Parameter(new) if isinstance(tensor, nn.Parameter) else new)
        else:
            tensor.mul_(2).add_(0.5)
            if name.startswith("norm"):  # which a layer has folded
                net.refresh()

    assert_followed(net, stream, x, change)


@torch.no_grad()
def test_tensors_that_lie_where_others_did_are_followed() -> None:
    net, stream, x = made()

    def change() -> None:
        net.norm.bias = nn.Parameter(torch.randn(8))

    for _ in range(5):
        assert_followed(net, stream, x, change)


@torch.no_grad()
@pytest.mark.parametrize("name", ["after", "leaky", "skipped"])
def test_hooks_are_followed(name: str) -> None:
    """Of what is no part of a neuron; what has hooks is computed whole."""
    net, stream, x = made()
    module = net.get_submodule(name)

    def change() -> None:
        module.register_forward_hook(lambda module, args, output: 2 * output + 1)

    assert_followed(net, stream, x, change)
    assert len(stream.whole) > 0
    (key,) = module._forward_hooks
    del module._forward_hooks[key]
    torch.testing.assert_close(stream(x), net(x))


@torch.no_grad()
@pytest.mark.parametrize("name", ["normed", "norm", "slopes", "bare", "act"])
def test_hooks_within_neurons_are_refused(name: str) -> None:
    net, stream, x = made()
    module = net.get_submodule(name)
    module.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(ValueError, match="a stream needs the network's graph, and there is none"):
        stream(x)


def doubled(module: nn.Module) -> None:
    """Give a module a forward of its own."""
    original = module.stood_for if isinstance(module, Standin) else module
    forward = type(original).forward
    original.forward = lambda *args: 2 * forward(original, *args)  # type: ignore[method-assign]


@torch.no_grad()
@pytest.mark.parametrize("name", ["after", "leaky", "skipped"])
def test_a_modules_own_forward_is_followed(name: str) -> None:
    net, stream, x = made()
    assert_followed(net, stream, x, lambda: doubled(net.get_submodule(name)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["normed", "norm", "slopes", "bare", "act"])
def test_a_forward_within_neurons_is_refused(name: str) -> None:
    net, stream, x = made()
    doubled(net.get_submodule(name))
    with pytest.raises(ValueError, match="a stream needs the network's graph, and there is none"):
        stream(x)


class Dropping(Headed):
    """With dropout among the maps and behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.among, self.behind = nn.Dropout2d(), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = self.among(self.slopes(self.norm(self.normed(x))))
        return self.head(self.behind(self.skipped(self.act(self.bare(x))).mean((2, 3))))


@torch.no_grad()
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", ["among", "behind", "after"])
def test_a_part_in_training_mode_is_refused(name: str, before: bool) -> None:
    net = drowsy.convert(Dropping().eval())
    stream, x = Stream(net, cut=None), torch.randn(1, 3, 24, 24)
    if before:
        stream(x)
    net.get_submodule(name).train()
    with pytest.raises(
        ValueError, match=rf"^net: is in training mode \({name}\), allowed for a st"
    ):
        stream(x)
    net.eval()
    torch.testing.assert_close(stream(x), net(x))


@torch.no_grad()
@pytest.mark.parametrize(
    "register", [register_module_forward_hook, register_module_forward_pre_hook]
)
def test_hooks_of_all_modules_are_refused(register: Callable[..., Any]) -> None:
    _, stream, x = made()
    handle = register(lambda *_: None)
    try:
        with pytest.raises(RuntimeError, match="hooks of all modules are registered"):
            stream(x)
    finally:
        handle.remove()
    stream(x)


@torch.no_grad()
def test_attributes_and_modules_are_followed() -> None:
    net, stream, x = made()
    assert_followed(net, stream, x, lambda: setattr(net.leaky, "negative_slope", -1.0))
    assert_followed(net, stream, x, lambda: setattr(net, "leaky", nn.Softplus().eval()))


@torch.no_grad()
def test_what_runs_behind_all_maps_is_followed_and_nothing_forgotten() -> None:
    net = drowsy.convert(Headed().eval())
    stream, clip = Stream(net, cut=None), torch.randn(3, 3, 24, 24)
    twin = Stream(net, cut=None)
    for frame in clip[:2].split(1):
        stream(frame)
        twin(frame)
    before = twin(clip[2:])
    net.head.weight = nn.Parameter(-2 * net.head.weight)
    got, (look,) = stream(clip[2:]), stream.looks
    assert look is not None
    assert look.why == "areas"
    torch.testing.assert_close(got, -2 * before)
    net.head.register_forward_hook(lambda module, args, output: 2 * output)
    torch.testing.assert_close(stream(clip[2:]), net(clip[2:]))


@torch.no_grad()
def test_nothing_is_made_anew_where_nothing_was_changed() -> None:
    net, stream, x = made()
    program = stream._program
    net.reseed(3)
    net(x)
    net.set(0.5)
    net(x)
    net.set(0)
    for rate in (0, 0.5, 0):
        stream.set(rate)
        stream(x)
    assert stream._program is program


@torch.no_grad()
def test_frames_run_no_code_that_writes_to_itself() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3), None
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = self.conv(x)
            return self.last

    x = torch.randn(1, 3, 16, 16)
    net = drowsy.convert(Counting().eval(), x)
    stream = Stream(net, cut=None)
    whys = []
    for frame in torch.randn(3, 1, 3, 16, 16):
        stream(frame)
        whys += [look.why for look in stream.looks if look is not None]
    assert whys == ["first", "areas", "areas"]
    # Who runs the network's own code between frames may have changed what it computes.
    net(x)
    torch.testing.assert_close(stream(x), net(x))


class Frozen(nn.Module):
    """Computes with a buffer and a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(4))
        self.gain = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x * self.factor.reshape(1, -1, 1, 1)


@pytest.mark.parametrize("change", [
    lambda frozen: frozen.factor.mul_(3),
    lambda frozen: setattr(frozen, "factor", 3 * frozen.factor),
    lambda frozen: setattr(frozen, "gain", 2.0),
], ids=["in place", "another", "a number"])  # fmt: skip
@torch.no_grad()
def test_buffers_and_numbers_of_other_modules_are_refused(change: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Frozen(), nn.ReLU(), nn.Conv2d(4, 4, 1))
    net = drowsy.convert(model.eval())
    stream, x = Stream(net, cut=None), torch.randn(1, 3, 16, 16)
    for _ in range(3):
        stream(x)
    change(net[1])
    # Its code computed with them when the graph was made: that one has them as they were.
    with pytest.raises(ValueError, match="what the network computes was changed"):
        stream(x)
