"""Layers that are called by their network's own code while nobody sleeps."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from unusual import BatchNormAct, ConvSame, ConvStatic, FrozenBatchNorm, StdConv, randomise

from drowsy.graph.convert import convert
from drowsy.network.net import DrowsyNet


def run(module: Any, *args: Any) -> Any:
    with torch.inference_mode():
        return module(*args)


class Block(nn.Module):
    """A convolution, a norm or none, and an activation or none, called by turns."""

    def __init__(self, conv: nn.Module, norm: nn.Module | None, act: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv, norm, act

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.act is None else self.act(x)


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "3x3": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "without bias": lambda: nn.Conv2d(4, 6, (3, 1), padding=(1, 0), dilation=2, bias=False),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "same, even": lambda: nn.Conv2d(4, 6, 4, padding="same"),
    "TensorFlow's": lambda: ConvSame(4, 6, 3, stride=2),
    "zeros first": lambda: ConvStatic(4, 6, 3, stride=2),
    "standardised": lambda: StdConv(4, 6, 3),
    "weight_norm": lambda: nn.utils.weight_norm(nn.Conv2d(4, 6, 3)),
}
NORMS: dict[str, Callable[[], nn.Module | None]] = {
    "none": lambda: None,
    "norm": lambda: nn.BatchNorm2d(6),
    "frozen": lambda: FrozenBatchNorm(6),
    "norm and activation": lambda: BatchNormAct(6, nn.SiLU(inplace=True)),
}
ACTIVATIONS: dict[str, Any] = {
    "none": None,
    "module": nn.ReLU(),
    "module in place": nn.Hardswish(inplace=True),
    "function": F.silu,
    "method in place": Tensor.tanh_,
    "function in place": lambda y: F.leaky_relu(y, 0.3, True),
    "slope": nn.PReLU(init=-0.3),
}


def network(conv: str, norm: str, act: str) -> tuple[nn.Module, DrowsyNet, Tensor]:
    made = NORMS[norm]()
    if made is not None:
        randomise(made)
    blocks = [Block(CONVOLUTIONS[conv](), made, ACTIVATIONS[act]), nn.Conv2d(6, 5, 1)]
    model = nn.Sequential(*blocks).eval()
    x = torch.randn(2, 4, 9, 8)
    return model, convert(model, x), x


def the_usual_way(net: DrowsyNet, *args: Any) -> Any:
    """The network's output with a hook on every layer that does nothing, and has to be called."""
    called: list[str] = []
    handles = [
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, layer in net.layers.items()
    ]
    output = run(net, *args)
    assert called == list(net.layers)
    for handle in handles:
        handle.remove()
    return output


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_what_is_prepared_is_what_the_layer_computes(conv: str, norm: str, act: str) -> None:
    if norm == "norm and activation" and act != "none":
        pytest.skip("two activations")
    model, net, x = network(conv, norm, act)
    expected = the_usual_way(net, x)
    assert torch.equal(run(net, x), expected)
    assert all(layer._prepared is not None for layer in net.layers.values())
    torch.testing.assert_close(expected, run(model, x), rtol=1e-4, atol=1e-5)
    single = x[0]
    if conv != "TensorFlow's":
        torch.testing.assert_close(run(net, single), expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_dtypes_and_autocast_are_followed(norm: str, dtype: torch.dtype) -> None:
    _, net, x = network("3x3", norm, "none")
    run(net, x)
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype):
            found = run(net, x)
            assert torch.equal(found, the_usual_way(net, x))
        assert found.dtype == dtype
    net.to(dtype)
    assert torch.equal(run(net, x.to(dtype)), the_usual_way(net, x.to(dtype)))
    with pytest.raises(TypeError, match=r"input: got torch\.complex64"):
        run(net, x.to(torch.complex64))


def _weight(net: DrowsyNet) -> None:
    net.layers["0.conv"].weight = nn.Parameter(torch.randn(6, 4, 3, 3))


def _weight_in_place(net: DrowsyNet) -> None:
    net.layers["0.conv"].weight.data = torch.randn(6, 4, 3, 3)


def _bias(net: DrowsyNet) -> None:
    net.layers["0.conv"].bias = nn.Parameter(torch.randn(6))


def _no_bias(net: DrowsyNet) -> None:
    net.layers["1"]._parameters["bias"] = None


def _kernel(net: DrowsyNet) -> None:
    net.layers["0.conv"].weight.data = torch.randn(6, 4, 1, 1)


def _statistics(net: DrowsyNet) -> None:
    net.layers["0.conv"].norm.running_var = torch.rand(6) + 3


def _other_state(net: DrowsyNet) -> dict[str, Tensor]:
    return {name: torch.rand(value.shape) + 1 for name, value in net.state_dict().items()}


def _assigned(net: DrowsyNet) -> None:
    net.load_state_dict(_other_state(net), assign=True)


def _loaded(net: DrowsyNet) -> None:
    net.load_state_dict(_other_state(net))


def _stride(net: DrowsyNet) -> None:
    net.layers["0.conv"].stride = (1, 1)


def _padding(net: DrowsyNet) -> None:
    net.layers["0.conv"].padding = "valid"


def _correction(net: DrowsyNet) -> None:
    net.layers["0.conv"].correct(torch.rand(6) + 1, torch.randn(6))


def _other_correction(net: DrowsyNet) -> None:
    _correction(net)
    run(net, torch.randn(2, 4, 9, 8))
    _correction(net)


CHANGES = [_weight, _weight_in_place, _bias, _no_bias, _kernel, _statistics, _assigned, _loaded]
CHANGES += [_stride, _padding, _correction, _other_correction]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("norm", ["none", "norm"])
def test_changes_are_followed(norm: str, change: Callable[[DrowsyNet], None]) -> None:
    if norm == "none" and change is _statistics:
        pytest.skip("there are none")
    _, net, x = network("3x3", norm, "function")
    before = run(net, x)
    change(net)
    found = run(net, x)
    expected = the_usual_way(net, x)
    assert found.shape == expected.shape
    assert torch.equal(found, expected)
    # A folded weight waits for ``refresh`` where a parameter was overwritten by hand.
    waits = norm == "norm" and change in (_weight_in_place, _kernel)
    assert (found.shape == before.shape and torch.equal(found, before)) == waits
    net.refresh()
    assert torch.equal(run(net, x), the_usual_way(net, x))


def test_a_kernel_of_another_size_that_decides_the_padding_is_followed() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding="same"), nn.Conv2d(6, 5, 1)).eval()
    x = torch.randn(2, 4, 9, 8)
    net = convert(model, x)
    run(net, x)
    model[0].weight.data = torch.randn(6, 4, 5, 1)
    assert torch.equal(run(net, x), run(model, x))


@pytest.mark.parametrize("norm", ["none", "norm"])
def test_tensors_given_for_a_call_are_taken_for_that_call(norm: str) -> None:
    model, net, x = network("3x3", norm, "function")
    before = run(net, x)
    given = {name: torch.rand_like(value) for name, value in model.named_parameters()}
    with torch.inference_mode():
        expected = functional_call(model, given, (x,))
        for _ in range(2):
            found = functional_call(net, given, (x,))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            for value in given.values():  # the same tensors, of other values at the next call
                value.mul_(1.5)
            expected = functional_call(model, given, (x,))
        thresholds = torch.full_like(net.control.thresholds, 4)
        asleep = functional_call(net, {"control.thresholds": thresholds}, (x,))
    assert not torch.allclose(asleep, before)
    assert torch.equal(run(net, x), before)


def test_folding_at_every_call_is_not_prepared() -> None:
    model, x = network("3x3", "norm", "function")[::2]
    net = convert(model, x, fold_bn=False)
    run(net, x)
    net.layers["0.conv"].norm.running_var.mul_(2)
    torch.testing.assert_close(run(net, x), run(model, x))


def test_hooks_and_methods_that_come_later_are_called() -> None:
    _, net, x = network("3x3", "norm", "module")
    before, layer = run(net, x), net.layers["0.conv"]
    for register in (
        layer.register_forward_hook,
        nn.modules.module.register_module_forward_hook,
    ):
        seen: list[Tensor] = []

        def hook(module: nn.Module, _: Any, y: Tensor, seen: list[Tensor] = seen) -> None:
            if module is layer:
                seen.append(y)

        handle = register(hook)
        assert torch.equal(run(net, x), before)
        handle.remove()
        # What a hook sees is the neuron's output, activation and all.
        assert len(seen) == 1
        assert seen[0].min() == 0
    for name in ("forward", "compute", "awake"):
        own = getattr(layer, name)
        setattr(layer, name, lambda y, own=own: own(y) * 0)
        assert not torch.equal(run(net, x), before)
        delattr(layer, name)
        assert torch.equal(run(net, x), before)


def test_the_knob_is_followed_at_every_turn() -> None:
    _, net, x = network("3x3", "norm", "function")
    before = run(net, x)
    for rate in (0.5, 0):
        for turn in (net.set, lambda r: [each.set(rate=r) for each in net.layers.values()]):
            turn(rate)
            net.reseed(0)
            assert torch.equal(run(net, x), before) == (rate == 0)
            assert int(net.control.clock[1]) == 2


def test_who_only_looks_at_ease_is_refused_or_recorded_as_ever() -> None:
    _, net, x = network("3x3", "norm", "function")
    run(net, x)
    with torch.enable_grad(), pytest.raises(RuntimeError, match="has no gradient"):
        net(x)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"transforms of torch\.func"):
        vmap(net)(x[None])
    with torch.no_grad():
        recorded = make_fx(net)(x)
        traced = torch.jit.trace(net, (x,), check_trace=False)
        net.set(0.5)
        for program in (recorded, traced):
            net.reseed(1)
            expected = net(x)
            net.reseed(1)
            assert torch.equal(program(x), expected)


class Within(nn.Module):
    """A model whose own code does something unusual around its convolution."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.way = nn.Conv2d(4, 6, 3), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "gradients":
            with torch.enable_grad():
                return self.conv(x)
        if self.way == "vmap":
            return vmap(self.conv)(x[None])[0]
        return self.conv(x)


@pytest.mark.parametrize("way", ["gradients", "vmap"])
def test_what_a_models_code_does_unusual_is_noticed(way: str) -> None:
    net, x = convert(Within("none").eval(), torch.randn(2, 4, 6, 6)), torch.randn(2, 4, 6, 6)
    run(net, x)
    net.way = way
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"no gradient|torch\.func"):
        net(x)


def test_copies_are_prepared_for_themselves() -> None:
    _, net, x = network("3x3", "norm", "function")
    before = run(net, x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(layer._prepared is None for layer in other.layers.values())
        assert torch.equal(run(other, x), before)
        other.layers["1"].weight.data.zero_()
        other.layers["1"].bias.data.zero_()
        assert not run(other, x).any()
    assert torch.equal(run(net, x), before)


def test_a_network_without_memory_has_shapes() -> None:
    _, net, x = network("3x3", "norm", "function")
    expected = run(net, x).shape
    net.to("meta")
    for _ in range(2):
        y = run(net, x.to("meta"))
        assert (y.device.type, y.shape) == ("meta", expected)


def _python_calls(module: nn.Module, x: Tensor) -> int:
    """How many Python functions a call of a module runs."""
    count = 0

    def note(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event == "call"

    run(module, x)
    with torch.inference_mode():
        sys.setprofile(note)
        try:
            module(x)
        finally:
            sys.setprofile(None)
    return count


@pytest.mark.parametrize("act", ["none", "module", "module in place", "function"])
@pytest.mark.parametrize("norm", ["none", "norm"])
def test_a_layer_awake_takes_little_of_python(norm: str, act: str) -> None:
    """Not more than eight functions a layer beyond the model's own, whose norm is spared."""

    def calls(depth: int) -> tuple[int, int]:
        blocks = [
            Block(
                nn.Conv2d(4, 4, 1),
                nn.BatchNorm2d(4) if norm == "norm" else None,
                ACTIVATIONS[act],
            )
            for _ in range(depth)
        ]
        model, x = nn.Sequential(*blocks).eval(), torch.randn(1, 4, 3, 3)
        return _python_calls(model, x), _python_calls(convert(model, x), x)

    (few, few_drowsy), (many, many_drowsy) = calls(1), calls(11)
    dense, drowsy = (many - few) / 10, (many_drowsy - few_drowsy) / 10
    assert drowsy <= dense + 8
