"""Layers of unusual convolutions and norms, geometry changed by hand, weights given for a call."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_convolutions import COMPUTED, PLAIN, SAME, STATIC
from test_norms import NORMS
from torch import Tensor, nn
from torch.func import functional_call
from unusual import BatchNormAct, ConvSame, FrozenBatchNorm, StdConv, randomise

from drowsy.network.layer import DrowsyConv2d
from drowsy.neuron import sleep
from drowsy.sleep import levels

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
FIRST = {f"zeros first, {name}": make for name, (make, _) in STATIC.items()}
CONVOLUTIONS = PLAIN | SAME | COMPUTED | FIRST


def run(module: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


def pair(name: str) -> tuple[nn.Conv2d, DrowsyConv2d]:
    module = CONVOLUTIONS[name]().eval()
    return module, DrowsyConv2d.from_conv(module)


# --- unusual convolutions and norms -----------------------------------------------------------


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_layer_computes_what_the_module_did(name: str) -> None:
    module, layer = pair(name)
    for size in ((9, 9), (8, 11), (13, 12), (7, 7)):
        x = torch.randn(2, 4, *size)
        expected = run(module, x)
        layer.set(rate=0)
        assert torch.equal(run(layer, x), expected)
        layer.set(rate=0.5)
        layer.control.reseed(3, 1)
        y = run(layer, x)
        drawn = levels(layer.sleep, tuple(expected.shape), torch.tensor([3, 1]))
        torch.testing.assert_close(y, sleep(expected, drawn, 4, 1.0, layer.sleep.grain))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_keys_and_parameters_are_the_modules(name: str) -> None:
    module, layer = pair(name)
    assert list(layer.state_dict()) == list(module.state_dict())
    given = dict(module.named_parameters())
    assert all(parameter is given[key] for key, parameter in layer.named_parameters())
    assert isinstance(layer.weight, Tensor)
    assert layer.weight.shape == (6, 4 // module.groups, *module.kernel_size)


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_are_computed_again_by_refresh(name: str) -> None:
    _, layer = pair(name)
    other = CONVOLUTIONS[name]().eval()
    x = torch.randn(1, 4, 9, 9)
    before, expected = run(layer, x), run(other, x)
    assert not torch.allclose(before, expected)
    layer.load_state_dict(other.state_dict())
    layer.refresh()
    torch.testing.assert_close(run(layer, x), expected)


@pytest.mark.parametrize("name", [name for name in COMPUTED if "orthogonal" not in name])
def test_layers_with_computed_weights_change_their_dtype(name: str) -> None:
    module, layer = pair(name)
    layer.double()
    x = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    expected = run(in_double(name, module), x)
    torch.testing.assert_close(run(layer, x), expected, rtol=1e-4, atol=1e-5)
    layer.refresh()
    torch.testing.assert_close(run(layer, x), expected)


def in_double(name: str, module: nn.Conv2d) -> nn.Conv2d:
    other = CONVOLUTIONS[name]().eval()
    other.load_state_dict(module.state_dict())
    return other.double()


@pytest.mark.parametrize("name", [*COMPUTED, "same, stride 2, dilation 1"])
def test_copies_are_on_their_own(name: str) -> None:
    _, layer = pair(name)
    x = torch.randn(1, 4, 9, 9)
    before = run(layer, x)
    copies = [copy.deepcopy(layer)]
    if "parametrizations.weight.original" not in layer.state_dict() and "_norm" not in name:
        copies.append(pickle.loads(pickle.dumps(layer)))
    for copied in copies:
        assert torch.equal(run(copied, x), before)
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.add_(torch.rand_like(parameter))
        copied.refresh()
        assert not torch.allclose(run(copied, x), before)
        layer.refresh()
        assert torch.equal(run(layer, x), before)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("convolution", ["nn.Conv2d", "standardised", "weight_norm"])
def test_any_norm_is_folded_with_its_activation(convolution: str, name: str) -> None:
    module = nn.Conv2d(4, 5, 3) if convolution == "nn.Conv2d" else None
    if module is None:
        module = StdConv(4, 5, 3)
        if convolution == "weight_norm":
            module = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 5, 3))
    make, activation = NORMS[name]
    norm = randomise(make())
    layer = DrowsyConv2d.from_conv(module.eval(), norm=norm)
    assert layer.norm is norm
    assert layer.activation == activation
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(
        run(layer, x), run(nn.Sequential(module, norm), x), rtol=1e-4, atol=1e-5
    )


def test_two_activations_are_one_too_many() -> None:
    norm = randomise(BatchNormAct(5))
    with pytest.raises(ValueError, match="activation: got 'silu' after a norm that applies relu"):
        DrowsyConv2d.from_conv(nn.Conv2d(4, 5, 3), norm=norm, activation="silu")


def test_a_layer_of_its_own_has_the_slopes_of_a_prelu() -> None:
    prelu = nn.PReLU(5)
    nn.init.normal_(prelu.weight, std=2)
    layer = DrowsyConv2d(4, 5, 3, activation=prelu)
    assert layer.state_dict().keys() == {"weight", "bias"}
    assert layer.prelu is prelu
    x = torch.randn(2, 4, 9, 8)
    for module in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        expected = prelu(F.conv2d(x, layer.weight, layer.bias))
        torch.testing.assert_close(run(module, x), expected)
        torch.testing.assert_close(run(module, x[0]), expected[0])
    prelu.requires_grad_(True)
    layer.requires_grad_(False)
    with pytest.raises(RuntimeError, match="DrowsyConv2d is for inference"):
        layer(x)
    layer.activation = "relu"
    expected = F.conv2d(x, layer.weight, layer.bias).relu()
    torch.testing.assert_close(run(layer, x), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"conv": "conv"}, TypeError, "conv: got str, allowed: an nn.Module"),
        ({"conv": nn.Linear(2, 2)}, ValueError, "conv: got Linear, .*is not an nn.Conv2d"),
        ({"conv": DrowsyConv2d(2, 3, 1)}, ValueError, "is drowsy already"),
        ({"norm": "norm"}, TypeError, "norm: got str, allowed: an nn.Module"),
        ({"norm": nn.BatchNorm2d(3)}, ValueError, "norm: got BatchNorm2d in training mode"),
        ({"norm": nn.GroupNorm(1, 3)}, ValueError, "norm: got GroupNorm without running stat"),
        ({"sleep": "stratified"}, TypeError, "sleep: got 'stratified', allowed: a drowsy.Sleep"),
        ({"activation": nn.Softsign()}, TypeError, r"activation: got Softsign\(\), allowed: none"),
        ({"activation": "prelu"}, ValueError, "activation: got 'prelu', allowed: the nn.PReLU"),
        (
            {"activation": nn.PReLU(2)},
            ValueError,
            "activation: got an nn.PReLU of 2 slopes, allowed: 1 or 3",
        ),
    ],
    ids=str,
)
def test_wrong_arguments_are_told(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DrowsyConv2d.from_conv(**({"conv": nn.Conv2d(2, 3, 1)} | change))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sleep": "foo"}, TypeError, "sleep: got 'foo', allowed: a drowsy.SleepSpec"),
        ({"sleep": 0}, TypeError, "sleep: got 0, allowed"),
        ({"rate": None}, TypeError, "rate: got None, allowed: a number"),
        ({"rate": "half"}, TypeError, "rate: got 'half', allowed: a number"),
        ({"activation": None}, TypeError, "activation: got None, allowed: none, relu"),
        ({"fill": None}, ValueError, "fill: got None, allowed: zero"),
        ({"backend": "cuda"}, ValueError, "backend: got 'cuda', allowed: auto"),
    ],
    ids=str,
)
def test_wrong_options_of_the_constructor_are_told(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DrowsyConv2d(2, 3, 1, **options)


@pytest.mark.parametrize("what", ["weight", "bias", "norm"])
def test_no_gradient_is_silently_missing(what: str) -> None:
    norm = randomise(nn.BatchNorm2d(3))
    layer = DrowsyConv2d.from_conv(nn.Conv2d(2, 3, 1), norm=norm).requires_grad_(False)
    norm.requires_grad_(False)
    x = torch.randn(1, 2, 4, 4)
    assert not layer(x).requires_grad
    (norm.weight if what == "norm" else getattr(layer, what)).requires_grad_()
    with pytest.raises(RuntimeError, match="has no gradient"):
        layer(x)


# --- geometry changed by hand ------------------------------------------------------------------

CHANGES: dict[str, Callable[[random.Random], Any]] = {
    "padding": lambda r: r.choice([0, 1, 2, (1, 2), (2, 0), [1, 1], (1,), "same", "valid"]),
    "stride": lambda r: r.choice([1, 2, (1, 2), (2, 1), [3, 1], (2,)]),
    "dilation": lambda r: r.choice([1, 2, (1, 2), (2, 1), [2, 2], (2,)]),
    "weight": lambda r: nn.Parameter(torch.randn(6, 4, r.choice((1, 2, 3)), r.choice((1, 3, 4)))),
    "groups": lambda r: 2,
    "padding_mode": lambda r: r.choice(["zeros", "reflect", "replicate", "circular"]),
    "_reversed_padding_repeated_twice": lambda r: r.choice([[1, 0, 2, 1], (0, 2, 1, 1)]),
}


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_changed_geometry_is_that_of_the_convolution(when: str, mode: str) -> None:
    draw = random.Random(f"{when}, {mode}")
    agreed = 0
    for _ in range(60):
        padding = draw.choice([0, 1, (2, 1), "same", "valid"])
        conv = nn.Conv2d(4, 6, draw.choice([2, 3, (1, 3)]), padding=padding, padding_mode=mode)
        layers = [] if when == "before" else _layers(conv)
        x = torch.randn(2, 4, 9, 8)
        for layer in layers:
            run(layer, x)
        names = draw.sample(sorted(CHANGES), draw.choice([1, 2, 3]))
        changes = {name: CHANGES[name](draw) for name in names}
        if changes.get("groups") == 2 and "weight" not in changes:
            changes["weight"] = nn.Parameter(conv.weight[:, :2].detach().clone())
        elif changes.get("groups") == 2:
            changes["weight"] = nn.Parameter(changes["weight"][:, :2].detach().clone())
        for name, value in changes.items():
            for module in (conv, *layers):
                setattr(module, name, value)
        layers = layers or [DrowsyConv2d.from_conv(conv)]
        try:
            expected = run(conv, x)
        except (RuntimeError, ValueError):
            expected = None
        for layer, rate in itertools.product(layers, (0, 0.5)):
            layer.set(rate=rate)
            if expected is None:
                with pytest.raises((RuntimeError, ValueError)):
                    run(layer, x)
                continue
            y = run(layer, x)
            if rate == 0:
                assert torch.equal(y, expected), changes
            assert torch.equal(y[y != 0], expected[y != 0]), changes
            assert y.shape == expected.shape, changes
        agreed += expected is not None
    assert agreed > 30


def _layers(conv: nn.Conv2d) -> list[DrowsyConv2d]:
    made = DrowsyConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        padding=conv.padding,
        padding_mode=conv.padding_mode,
    )
    made.load_state_dict(conv.state_dict())
    return [DrowsyConv2d.from_conv(conv), made]


@pytest.mark.parametrize("folded", [True, False])
def test_what_torch_does_to_a_layers_weight_is_followed(folded: bool) -> None:
    norm = randomise(nn.BatchNorm2d(3)) if folded else None
    conv = nn.Conv2d(2, 3, 3, padding="same")
    layer, x = DrowsyConv2d.from_conv(conv, norm=norm), torch.randn(1, 2, 6, 6)
    wider = {"weight": torch.randn(3, 2, 5, 5)}
    for change in (
        lambda module: nn.utils.prune.l1_unstructured(module, "weight", 0.5),
        lambda module: nn.utils.parametrizations.weight_norm(module),
    ):
        run(layer, x)
        with torch.no_grad():
            expected = functional_call(conv, wider, (x,))
            expected = expected if norm is None else norm(expected)
            torch.testing.assert_close(functional_call(layer, wider, (x,)), expected)
        plain, changed = copy.deepcopy(conv), copy.deepcopy(layer)
        change(plain)
        change(changed)
        assert changed.norm is None or changed.norm is not norm
        expected = run(plain if norm is None else nn.Sequential(plain, norm), x)
        torch.testing.assert_close(run(changed, x), expected)
        with pytest.raises(RuntimeError, match="has no gradient"):
            changed(x)


@pytest.mark.parametrize(
    ("name", "value"), [("padding", -1), ("stride", 0), ("dilation", (1, 2, 3))]
)
def test_impossible_geometry_is_told(name: str, value: Any) -> None:
    layer = DrowsyConv2d(2, 3, 3, rate=0.5)
    setattr(layer, name, value)
    with pytest.raises(ValueError, match=f"{name}: got"):
        run(layer, torch.randn(1, 2, 5, 5))


def test_a_change_of_geometry_is_seen_by_what_was_built_from_the_layer() -> None:
    layer = DrowsyConv2d(2, 3, 3)
    for name in ("padding", "stride", "dilation"):
        laid, version = layer.laid, layer.control.version
        setattr(layer, name, 2)
        assert layer.laid > laid
        assert layer.control.version > version


# --- other weights for a call ------------------------------------------------------------------


def _given(layer: nn.Module) -> dict[str, Tensor]:
    return {name: torch.randn_like(p) for name, p in layer.named_parameters()}


@pytest.mark.parametrize("rate", [0, 0.5])
@pytest.mark.parametrize("name", ["nn.Conv2d", *COMPUTED])
@pytest.mark.parametrize("cached", [True, False])
def test_weights_given_for_a_call_are_taken(name: str, cached: bool, rate: float) -> None:
    if "orthogonal" in name or "spectral" in name:
        pytest.skip("random numbers are no parameters of these")
    module = CONVOLUTIONS[name]().eval()
    norm = randomise(nn.BatchNorm2d(6))
    layer = DrowsyConv2d.from_conv(module, norm=norm, cache_folded=cached)
    layer.set(rate=rate)
    x, given = torch.randn(1, 4, 9, 9), _given(module)
    with torch.no_grad():
        before = layer(x)
        expected = norm(functional_call(module, given, (x,)))
        layer.control.reseed(5)
        y = functional_call(layer, given, (x,))
        torch.testing.assert_close(y[y != 0], expected[y != 0])
        layer.control.reseed(0)
        assert torch.equal(layer(x), before)


class _Net(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.layer = DrowsyConv2d.from_conv(nn.Conv2d(2, 5, 3), norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, FrozenBatchNorm])
def test_statistics_given_for_a_call_are_taken(kind: type[nn.Module]) -> None:
    net = _Net(randomise(kind(5))).eval()
    other = copy.deepcopy(net.norm)
    randomise(other)
    x = torch.randn(1, 2, 6, 6)
    given = {f"norm.{name}": value for name, value in other.state_dict().items()}
    conv = nn.Conv2d(2, 5, 3)
    conv.load_state_dict(net.layer.state_dict())
    with torch.no_grad():
        expected = other(conv(x))
        torch.testing.assert_close(functional_call(net, given, (x,)), expected)
        compiled = torch.compile(
            lambda given, x: functional_call(net, given, (x,)), backend="eager", fullgraph=True
        )
        torch.testing.assert_close(compiled(given, x), expected)


def test_a_move_keeps_what_was_folded() -> None:
    net = _Net(randomise(nn.BatchNorm2d(5))).eval()
    folded = net.layer.folded_weight
    assert folded is not None
    net.half()
    assert torch.equal(net.layer.parameters_in_effect()[0], folded.half())
    assert not net.layer._replaced()
    net.norm.running_var = net.norm.running_var * 4
    torch.testing.assert_close(
        net.layer.parameters_in_effect()[0], folded.half() / 2, rtol=1e-2, atol=1e-3
    )


@pytest.mark.parametrize("corrected", [True, False])
def test_a_network_without_memory_has_shapes(corrected: bool) -> None:
    net = _Net(randomise(nn.BatchNorm2d(5))).eval()
    if corrected:
        net.layer.correct(torch.ones(5), torch.zeros(5))
    meta = copy.deepcopy(net).to("meta")
    assert run(meta, torch.randn(1, 2, 6, 6, device="meta")).shape == (1, 5, 4, 4)


@pytest.mark.parametrize("folded", [True, False])
def test_corrections_are_of_the_weights_that_they_were_made_for(folded: bool) -> None:
    norm = randomise(nn.BatchNorm2d(3)) if folded else None
    layer = DrowsyConv2d.from_conv(nn.Conv2d(2, 3, 3), norm=norm)
    layer.correct(torch.ones(3), torch.zeros(3))
    x = torch.randn(1, 2, 6, 6)
    with torch.no_grad():
        layer(x)
        with pytest.raises(RuntimeError, match="correction is in force over other weights"):
            functional_call(layer, _given(layer), (x,))
        layer(x)
        exported = torch.export.export(layer, (x,)).module()
        assert torch.equal(exported(x), layer(x))


def test_thresholds_given_for_a_call_are_taken() -> None:
    layer, x = DrowsyConv2d(2, 3, 3), torch.randn(1, 2, 6, 6)
    given = {"control.thresholds": torch.tensor([7], dtype=torch.int32)}
    with torch.no_grad():
        y = functional_call(layer, given, (x,))
        assert (y == 0).float().mean() > 0.5
        assert (layer(x) != 0).all()


# --- tracers ------------------------------------------------------------------------------------


def _unusual() -> DrowsyConv2d:
    conv = ConvSame(2, 3, 3, stride=2).eval()
    layer = DrowsyConv2d.from_conv(conv, norm=randomise(nn.BatchNorm2d(3)))
    for parameter in (*layer.parameters(), *layer.norm.parameters()):
        parameter.requires_grad_(False)
    return layer


def _saved(layer: DrowsyConv2d, x: Tensor) -> Any:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(layer, (x,)), file)
    file.seek(0)
    return torch.jit.load(file)


def _make_fx(layer: DrowsyConv2d, x: Tensor, **options: Any) -> Any:
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(layer, **options)(x)


def _export(layer: DrowsyConv2d, x: Tensor, strict: bool) -> Any:
    free = {0: torch.export.Dim("N"), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    shapes = {"input": free}
    return torch.export.export(layer, (x,), strict=strict, dynamic_shapes=shapes).module()


TRACERS: dict[str, Callable[[DrowsyConv2d, Tensor], Any]] = {
    "jit.trace": lambda layer, x: torch.jit.trace(layer, (x,)),
    "jit.freeze": lambda layer, x: torch.jit.freeze(torch.jit.trace(layer, (x,)).eval()),
    "make_fx": _make_fx,
    "make_fx, pre-dispatch": lambda layer, x: _make_fx(layer, x, pre_dispatch=True),
    "export": lambda layer, x: _export(layer, x, False),
    "export, strict": lambda layer, x: _export(layer, x, True),
    "compile": lambda layer, x: torch.compile(layer, backend="aot_eager", fullgraph=True),
}


@pytest.mark.parametrize("name", TRACERS)
@pytest.mark.parametrize("make", [_unusual, lambda: DrowsyConv2d(2, 3, 3, padding="same")])
def test_a_trace_at_rate_zero_follows_the_knob(make: Callable[[], DrowsyConv2d], name: str) -> None:
    layer, x = make().requires_grad_(False), torch.randn(5, 2, 8, 8)
    traced = TRACERS[name](layer, x)
    others = [] if name.startswith("make_fx") else [torch.randn(4, 2, 9, 7)]
    for given, (rate, seed) in itertools.product(
        [x, *others], [(0.5, 0), (0, 0), (0.5, 3), (0.875, 1), (0, 0)]
    ):
        layer.set(rate=rate)
        layer.control.reseed(seed)
        expected = run(layer, given)
        layer.control.reseed(seed)
        torch.testing.assert_close(run(traced, given), expected)
        assert layer.control.clock.tolist() == [seed, len(given)]


def test_a_saved_trace_has_the_setting_that_it_was_saved_with() -> None:
    layer, x = _unusual(), torch.randn(5, 2, 8, 8)
    layer.set(rate=0.5)
    saved = _saved(layer, x)
    layer.control.reseed(0)
    layer.set(rate=0)
    clock = dict(saved.named_buffers()).get("control.clock", saved.control.clock)
    clock.zero_()
    y = run(saved, x)
    layer.set(rate=0.5)
    assert torch.equal(y, run(layer, x))


TRANSFORMS: dict[str, Callable[[DrowsyConv2d, Tensor], Any]] = {
    "vmap": lambda layer, x: torch.vmap(layer)(x[:, None]),
    "vmap of images": lambda layer, x: torch.vmap(layer)(x),
    "jvp": lambda layer, x: torch.func.jvp(layer, (x,), (x,)),
    "functionalize": lambda layer, x: torch.func.functionalize(layer)(x),
    "compiled vmap": lambda layer, x: torch.compile(torch.vmap(layer), backend="eager")(x[:, None]),
}


@pytest.mark.parametrize("rate", [0, 0.5])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_refused(name: str, rate: float) -> None:
    layer = _unusual()
    layer.set(rate=rate)
    with torch.no_grad(), pytest.raises(Exception, match=r"drowsy layer cannot run.*revert\(net\)"):
        TRANSFORMS[name](layer, torch.randn(2, 2, 8, 8))


def test_stacked_layers_are_refused() -> None:
    layers, x = [_unusual(), _unusual()], torch.randn(1, 2, 8, 8)
    layers[1].set(rate=0.5)
    state = torch.func.stack_module_state(layers)  # type: ignore[arg-type]
    with torch.no_grad(), pytest.raises(RuntimeError, match="cannot run under transforms"):
        torch.vmap(lambda s: functional_call(layers[0], s, (x,)))(state)


def test_scripting_is_refused() -> None:
    for module in (_unusual(), nn.Sequential(_unusual())):
        with pytest.raises(RuntimeError, match=r"jit\.script: use torch\.jit\.trace.*revert"):
            torch.jit.script(module)
