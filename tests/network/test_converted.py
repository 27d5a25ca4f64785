"""A converted model as it runs: its own code, names, hooks, inputs and outputs; threads."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer, symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx

from drowsy.correction.calibrate import calibrate
from drowsy.graph.convert import convert, revert
from drowsy.network.net import DrowsyNet

X = (2, 3, 8, 8)
# Names that a network has, as a child, a buffer, a parameter or an attribute of a model.
OURS = ("layers", "k", "control", "schedule", "original", "graph", "set", "report", "calibration")
OURS += ("sleeps", "reseed", "kept", "model", "parts", "known", "refresh", "resting", "settle")


def run(module: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.inference_mode():
        return module(*args, **kwargs)


def block() -> nn.Sequential:
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), norm, nn.ReLU())


class Named(nn.Module):
    """Something of the model's own under one name."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__()
        self.kind, self.name = kind, name
        self.first, self.last = block(), nn.Conv2d(6, 4, 1)
        if kind == "child":
            setattr(self, name, nn.Conv2d(6, 6, 1))
        elif kind == "buffer":
            self.register_buffer(name, torch.randn(6, 1, 1))
        elif kind == "parameter":
            setattr(self, name, nn.Parameter(torch.randn(6, 1, 1)))
        else:
            setattr(self, name, torch.randn(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, own = self.first(x), getattr(self, self.name)
        return self.last(own(x) if self.kind == "child" else x * own)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["child", "buffer", "parameter", "attribute"])
@pytest.mark.parametrize("name", OURS)
def test_a_name_of_the_models_is_not_taken_for_ours(name: str, kind: str) -> None:
    model = Named(name, kind).eval()
    net = convert(model)
    x = torch.randn(X)
    torch.testing.assert_close(run(net, x), run(model, x))
    assert net.graph is not None
    assert net.state_dict().keys() == model.state_dict().keys()
    assert net.layers.keys() == {"first.0", "last"} | ({name} if kind == "child" else set())
    for network in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        network.set(0.5)
        network.reseed(1)
        net.set(0.5)
        net.reseed(1)
        assert torch.equal(run(network, x), run(net, x))
    if kind != "attribute":
        net.to(torch.float64)
        net.set(0)
        torch.testing.assert_close(run(net, x.double()), run(revert(net), x.double()))


def test_attributes_and_methods_of_the_model_are_the_networks() -> None:
    class Backbone(nn.Module):
        out_channels = 6

        def __init__(self) -> None:
            super().__init__()
            self.body, self.config = block(), {"depth": 1}
            self.fc = nn.Linear(6, 5)

        @property
        def device(self) -> torch.device:
            return self.fc.weight.device

        def forward_features(self, x: Tensor) -> Tensor:
            return self.body(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.forward_features(x).mean((2, 3)))

    model = Backbone().eval()
    net = convert(model)
    assert isinstance(net, Backbone)
    assert type(net) is DrowsyNet
    assert (net.out_channels, net.config, net.device) == (6, {"depth": 1}, torch.device("cpu"))
    assert net.fc is model.fc
    x = torch.randn(X)
    torch.testing.assert_close(run(net.forward_features, x), run(model.forward_features, x))
    net.set(0.5)
    before = net.control.clock.tolist()
    assert not torch.equal(run(net.forward_features, x), run(net.forward_features, x))
    assert net.control.clock.tolist() == [before[0], before[1] + 4]
    net.out_channels = 7
    assert (net.model.out_channels, model.out_channels) == (7, 6)
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        _ = net.nonesuch


def test_a_host_uses_a_converted_backbone_as_its_own() -> None:
    class Host(nn.Module):
        def __init__(self, backbone: nn.Module) -> None:
            super().__init__()
            assert isinstance(backbone, Named)
            self.backbone, self.head = backbone, nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.backbone(x).mean((2, 3)))

    model = Named("layers", "child").eval()
    net = convert(model)
    host, plain = Host(net).eval(), Host(model).eval()
    host.head = plain.head
    x = torch.randn(X)
    torch.testing.assert_close(run(host, x), run(plain, x))
    assert host.state_dict().keys() == plain.state_dict().keys()
    net.set(0.5)
    assert not torch.equal(run(host, x), run(plain, x))


def test_a_converted_container_is_one_and_others_are_none() -> None:
    model = nn.Sequential(block(), nn.Conv2d(6, 4, 1), nn.Flatten()).eval()
    net, x = convert(model), torch.randn(X)
    expected = run(net, x)
    assert len(net) == len(model) == 3
    assert net[1] is net.layers["1"]
    assert net[-1] is net.model[2]
    assert list(net) == list(net.model)
    assert net[1] in net
    for start, stop in ((0, 2), (2, None)):
        x = run(net[start:stop], x)
    torch.testing.assert_close(x, expected)
    net[2] = nn.Identity()
    torch.testing.assert_close(run(net, torch.zeros(X)).shape, torch.Size((2, 4, 8, 8)))
    assert isinstance(model[2], nn.Flatten)
    del net[2]
    assert len(net) == 2
    other = convert(Named("k", "buffer").eval())
    assert other
    for use in (len, iter, lambda n: n[0], lambda n: 0 in n):
        with pytest.raises(TypeError, match="Named"):
            use(other)


# --- the model's own code -------------------------------------------------------------------------


class Masked(nn.Module):
    """Optional arguments, keyword arguments and a branch on a flag of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.extra, self.with_extra = block(), nn.Conv2d(6, 6, 1), False

    def forward(self, x: Tensor, mask: Tensor | None = None, *, gain: float = 1.0) -> Any:
        y = self.body(x)
        if mask is not None:
            y = y * mask
        if self.with_extra:
            y = self.extra(y)
        return {"features": [y * gain], "pooled": y.mean((2, 3))}


def test_optional_arguments_and_flags_are_followed() -> None:
    model = Masked().eval()
    x, mask = torch.randn(X), torch.rand(2, 1, 8, 8).round()
    for example in (None, x, (x, mask), {"x": x, "gain": 2.0}):
        net = convert(model, example)
        for call in (lambda m: run(m, x), lambda m: run(m, x, mask), lambda m: run(m, x=x, gain=3)):
            torch.testing.assert_close(call(net), call(model))
        net.with_extra = model.with_extra = True
        torch.testing.assert_close(run(net, x), run(model, x))
        model.with_extra = False


@pytest.mark.parametrize("where", ["model", "block", "later, model", "later, block"])
def test_hooks_of_containers_are_called_once(where: str) -> None:
    model = Named("k", "buffer").eval()
    later = where.startswith("later")
    net = convert(model) if later else None
    for network in filter(None, (model, net)):
        home = network if where.endswith("model") else network.first
        home.register_forward_hook(lambda module, inputs, output: output * 2)
        home.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    net = net or convert(model)
    x = torch.randn(X)
    torch.testing.assert_close(run(net, x), run(model, x))
    net.set(0.5)
    assert not torch.allclose(run(net, x), run(model, x))


def test_hooks_that_come_later_to_an_absorbed_norm_are_called() -> None:
    model = Named("k", "buffer").eval()
    net = convert(model)
    x = torch.randn(X)
    run(net, x)
    for network in (model, net):
        network.first[1].register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.warns(UserWarning, match="hooks now"):
        torch.testing.assert_close(run(net, x), run(model, x))
    torch.testing.assert_close(run(net, x), run(model, x))


def test_another_forward_of_an_absorbed_activation_is_called() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(), nn.Conv2d(4, 4, 3)).eval()
    net, x = convert(model, torch.randn(X)), torch.randn(X)
    net.set(0.5)
    model[1].forward = lambda y: 2 * y  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="another forward now"):
        asleep = run(net, x)
    net.set(0)
    torch.testing.assert_close(run(net, x), run(model, x))
    assert not torch.allclose(asleep, run(model, x))


class Turning(nn.Module):
    """Goes another way at another call: the batch norm is left out."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        self.function, self.way = function, 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.way == 0:
            y = self.function(self.norm(y))
        elif self.way == 1:
            y = self.norm(y) * 3
        return y + 1


@pytest.mark.parametrize("rate", [0, 0.5])
@pytest.mark.parametrize("function", [F.relu, F.silu, torch.sigmoid, Tensor.tanh_, nn.GELU()])
@pytest.mark.parametrize("way", [1, 2])
def test_code_that_goes_another_way_than_observed_is_followed(
    way: int, function: Callable[[Tensor], Tensor], rate: float
) -> None:
    model = Turning(function).eval()
    x = torch.randn(X)
    net = convert(model, x)
    assert net.layers["conv"].norm is model.norm
    assert net.layers["conv"].activation != "none"
    torch.testing.assert_close(run(net, x), run(model, x))
    net.way = model.way = way
    net.set(rate)
    if (way, rate) == (1, 0):
        # Awake, a layer leaves its activation to the model's code, which need not come to it.
        torch.testing.assert_close(run(net, x), run(model, x))
        assert net.layers["conv"].norm is model.norm
    else:
        with pytest.warns(UserWarning, match="another way"):
            found = run(net, x)
        assert net.layers["conv"].norm is None
        assert torch.allclose(found, run(model, x), rtol=1e-4, atol=1e-5) == (rate == 0)
    net.set(0)
    torch.testing.assert_close(run(net, x), run(model, x))
    net.way = model.way = 0
    torch.testing.assert_close(run(net, x), run(model, x))


class Reading(nn.Module):
    """Reads, keeps or returns before the norm or activation what other calls read after it only."""

    def __init__(self, way: str, before: str) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 6, 3), block()[1], nn.Conv2d(6, 6, 1)
        self.act = nn.ReLU()
        self.way, self.before, self.on = way, before, False

    def forward(self, x: Tensor) -> Any:
        z = y = self.conv(x)
        if self.before == "activation":
            z = y = self.norm(z)
            y = F.silu(y)
        elif self.before == "activation module":
            z = y = self.norm(z)
            y = self.act(y)
        else:
            y = self.norm(y)
        y = self.last(y)
        if not self.on:
            return y
        if self.way == "returned":
            return y, [z]
        if self.way == "cast":
            return y + z.type(torch.float32)
        if self.way == "kept":
            self.seen = z
            return y
        return y + z


@pytest.mark.parametrize("rate", [0, 0.5])
@pytest.mark.parametrize("before", ["norm", "activation", "activation module"])
@pytest.mark.parametrize("way", ["returned", "added", "cast", "kept"])
def test_what_only_some_calls_read_before_a_norm_or_activation_is_the_models(
    way: str, before: str, rate: float
) -> None:
    model, x = Reading(way, before).eval(), torch.randn(X)
    net = convert(model, x)
    assert net.layers["conv"].norm is model.norm
    net.on = model.on = True
    net.set(rate)
    if before == "norm" or rate:
        with pytest.warns(UserWarning, match="another way"):
            run(net, x)
        assert net.layers["conv"].norm is None
    net.set(0)
    torch.testing.assert_close(run(net, x), run(model, x))
    if way == "kept":
        torch.testing.assert_close(net.seen, model.seen)


def test_code_that_catches_errors_hides_no_other_way() -> None:
    class Catching(Reading):
        def forward(self, x: Tensor) -> Any:
            z = self.conv(x)
            extra = 0
            if self.on:
                try:
                    extra = z.mean()
                except RuntimeError:
                    extra = 5
            return self.last(self.norm(z)) + extra

    model, x = Catching("", "norm").eval(), torch.randn(X)
    net = convert(model, x)
    net.on = model.on = True
    with pytest.warns(UserWarning, match="another way"):
        torch.testing.assert_close(run(net, x), run(model, x))


def test_what_overwrites_its_arguments_is_not_run_twice_on_them() -> None:
    class Overwriting(Reading):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.mul_(0.5))

    model = Overwriting("added", "norm").eval()
    net = convert(model, torch.randn(X))
    net.on = model.on = True
    x = torch.randn(X)
    with (
        pytest.warns(UserWarning, match="another way"),
        pytest.raises(RuntimeError, match="has overwritten its arguments: call it again"),
    ):
        run(net, x.clone())
    torch.testing.assert_close(run(net, x.clone()), run(model, x.clone()))


@pytest.mark.parametrize("name", ["relu_", "hardswish in place"])
def test_an_activation_in_place_whose_result_is_left_is_passed_over(name: str) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y.relu_() if name == "relu_" else F.hardswish(y, True)
            return y

    model, x = InPlace().eval(), torch.randn(X)
    net = convert(model, (x.clone(),))
    output = run(net, x)
    assert type(output) is Tensor
    torch.testing.assert_close(output, run(model, x))


def test_the_clock_counts_what_layers_see_not_the_first_argument() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = block()

        def forward(self, scale: Any, images: Any) -> Tensor:
            x = images["x"] if isinstance(images, dict) else torch.stack(images)
            return self.body(x) * (1 if scale is None else scale)

    x = torch.randn(5, 3, 8, 8)
    net = convert(Scaled().eval(), (2.0, {"x": x}))
    net.set(0.5)
    for scale, images in ((2.0, {"x": x}), (None, list(x)), (torch.ones(1), {"x": x[:2]})):
        before = int(net.control.clock[1])
        run(net, scale, images)
        assert int(net.control.clock[1]) - before == (2 if scale is not None and scale != 2 else 5)


def test_an_unbatched_image_is_one_image() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    net = convert(model)
    x = torch.randn(3, 8, 8)
    torch.testing.assert_close(run(net, x), run(model, x))
    assert net.control.clock.tolist() == [0, 1]


def test_layers_used_outside_of_the_network_draw_fresh_maps() -> None:
    net = convert(nn.Sequential(block(), nn.Conv2d(6, 4, 1)).eval())
    x = torch.randn(X)
    run(net, x)
    net.set(0.5)
    net.reseed(0)
    first, second = run(net.model[0], x), run(net.model[0], x)
    assert not torch.equal(first, second)
    assert net.control.clock.tolist() == [0, 2]


# --- inference only -------------------------------------------------------------------------------


def test_training_mode_is_refused_and_leaves_the_original_alone() -> None:
    model = Named("k", "buffer").eval()
    net = convert(model)
    with pytest.raises(RuntimeError, match="drowsy networks are for inference"):
        net.train()
    with pytest.raises(RuntimeError, match="drowsy networks are for inference"):
        nn.Sequential(net).train()
    assert not any(module.training for module in model.modules())
    assert net.eval() is net


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_reverted_follows_a_change_of_dtype(dtype: torch.dtype) -> None:
    model = Named("k", "buffer").eval()
    net = convert(model)
    x = torch.randn(X, dtype=dtype)
    run(net, x.float())
    net.to(dtype)
    assert run(revert(net), x).dtype == dtype
    torch.testing.assert_close(run(net, x), run(model, x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["buffer", "attribute"])
def test_a_change_of_the_originals_dtype_is_followed(
    kind: str, dtype: torch.dtype, corrected: bool
) -> None:
    model = Named("own", kind).eval()
    x = torch.randn(X)
    net = convert(model, x)
    if corrected:
        net.set(0.5)
        net.calibration = calibrate(net, x)
        net.set(0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if kind == "attribute":
        model.own = net.own = model.own.to(dtype)  # which no module moves
    model.to(dtype)
    y, expected = run(net, x.to(dtype)), run(model, x.to(dtype))
    assert y.dtype == expected.dtype == dtype
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)
    net.set(0.5)
    assert not torch.equal(run(net, x.to(dtype)), y)
    model.float()
    net.set(0)
    if kind == "buffer":
        torch.testing.assert_close(run(net, x), run(model, x), rtol=0.05, atol=0.05)
        net.refresh()  # what was folded was rounded, too
        torch.testing.assert_close(run(net, x), run(model, x))
        rounding = 0.05 if dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(dict(model.state_dict()), state, rtol=rounding, atol=rounding)


def test_weights_of_another_dtype_for_one_call_move_nothing() -> None:
    model, x = Named("own", "buffer").eval(), torch.randn(X)
    net = convert(model, x)
    before = run(net, x)
    given = {name: tensor.double() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        y = torch.func.functional_call(net, given, (x.double(),))
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.float(), before)
    assert torch.equal(run(net, x), before)


# --- tracers --------------------------------------------------------------------------------------


class Holder(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * 2


@pytest.mark.parametrize("called", [True, False])
def test_symbols_for_tensors_are_refused_by_name(called: bool) -> None:
    net, x = convert(Named("k", "buffer").eval()), torch.randn(X)
    if called:
        run(net, x)
    for module in (net, Holder(net)):
        with pytest.raises(RuntimeError, match=r"traces a drowsy network.*is_leaf_module"):
            symbolic_trace(module)
    expected = run(net, x)

    class Leaves(Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, DrowsyNet) or super().is_leaf_module(module, name)

    host = Holder(net)
    torch.testing.assert_close(run(GraphModule(host, Leaves().trace(host)), x), expected * 2)


@pytest.mark.parametrize("mode", ["real", "fake"])
def test_make_fx_before_the_first_call_is_refused(mode: str) -> None:
    net, x = convert(Named("k", "buffer").eval()), torch.randn(X)
    with torch.no_grad(), pytest.raises(RuntimeError, match="traced or exported before it was"):
        make_fx(net, tracing_mode=mode)(x)
    assert not net.settled
    run(net, x)
    assert net.settled


# --- threads --------------------------------------------------------------------------------------


def test_an_inference_sees_one_setting_whole() -> None:
    """Every layer is the identity and its fill ``rescale``: a mixture would show in the values."""
    depth, side = 6, 16
    model = nn.Sequential(*(nn.Conv2d(1, 1, 1, bias=False) for _ in range(depth))).eval()
    for conv in model:
        nn.init.ones_(conv.weight)
    net = convert(model, fill="rescale")
    x = torch.ones(1, 1, side, side)
    run(net, x)
    rates = (0.5, 0.75)
    allowed = {0.0, *((1 / (1 - rate)) ** depth for rate in rates)}
    stop, seen, errors = threading.Event(), set(), []

    def turn() -> None:
        while not stop.is_set():
            for rate in rates:
                net.set(rate)

    def infer() -> None:
        try:
            for _ in range(150):
                seen.update(run(net, x).flatten().tolist())
        except Exception as error:
            errors.append(error)

    net.set(rates[0])
    threads = [threading.Thread(target=infer) for _ in range(2)]
    turner = threading.Thread(target=turn)
    for thread in (turner, *threads):
        thread.start()
    for thread in threads:
        thread.join(60)
    stop.set()
    turner.join(60)
    assert not errors
    assert seen <= allowed


def test_a_hook_may_turn_the_knob_of_the_network_that_runs() -> None:
    net = convert(nn.Sequential(block(), nn.Conv2d(6, 4, 1)).eval())
    x = torch.randn(X)
    run(net, x)
    net.model[0].register_forward_hook(lambda *_: net.set(0.5))
    run(net, x)
    assert float(net.layers["1"].rate) == 0.5
