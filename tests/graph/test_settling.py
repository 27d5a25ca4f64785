"""A network and its model made to agree: with a graph, without one, or not at all."""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_convert import NETWORKS, X, randomise_norms
from torch import Tensor, nn

import drowsy
from drowsy import models
from drowsy.evaluation.evaluator import Evaluator
from drowsy.graph import settling
from drowsy.graph.convert import convert
from drowsy.graph.observing import observe
from drowsy.graph.settling import observed_neurons


def run(module: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.inference_mode():
        return module(*args, **kwargs)


def without_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    def trace(model: nn.Module) -> None:
        raise ValueError("torch.fx cannot trace it (as told)")

    monkeypatch.setattr(settling, "trace", trace)


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    scale: float


class Untraceable(nn.Module):
    """Branches on values; takes a list of images of several sizes; returns a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.act = nn.Conv2d(6, 6, 3, padding=1), nn.SiLU(inplace=True)
        self.conv3, self.head = nn.Conv2d(6, 8, 1), nn.Linear(8, 5)

    def forward(self, images: list[Tensor]) -> Output:
        size = max(image.shape[-1] for image in images)
        x = torch.stack([F.pad(image, (0, size - image.shape[-1])) for image in images])
        if x.mean() > 100:
            x = x / 255
        x = F.relu(self.norm1(self.conv1(x)))
        y = self.act(self.conv2(x)) + x
        z = torch.sigmoid(self.conv3(y))
        return Output(self.head(z.mean((2, 3))), (x, y, z), float(size))


IMAGES = [(3, 8, 8), (3, 8, 6)]


# --- without a graph ------------------------------------------------------------------------------


@pytest.mark.parametrize("with_example", [True, False])
def test_a_model_that_cannot_be_traced_runs_its_own_code(with_example: bool) -> None:
    model = randomise_norms(Untraceable())
    images = [torch.randn(size) for size in IMAGES]
    net = convert(model, (images,) if with_example else None)
    output, expected = run(net, images), run(model, images)
    assert type(output) is Output
    torch.testing.assert_close(vars(output), vars(expected))
    assert net.graph is None
    assert "torch.fx cannot trace Untraceable" in net.known.reason
    neurons = {line.name: (line.norm, line.activation) for line in net.report}
    assert neurons == {
        "conv1": ("norm1", "relu"),
        "conv2": (None, "silu"),
        "conv3": (None, "sigmoid"),
    }
    net.set(0.5)
    net.reseed(3)
    asleep = run(net, images)
    assert not torch.allclose(asleep.logits, expected.logits)
    # A neuron sleeps after its activation: what sleeps is 0, where the sigmoid of 0 is not.
    assert (asleep.hidden[2] == 0).float().mean() > 0.4
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        other.reseed(3)
        assert torch.equal(run(other, images).logits, asleep.logits)


def test_what_needs_a_graph_says_so() -> None:
    net = convert(randomise_norms(Untraceable()), ([torch.randn(size) for size in IMAGES],))
    x = torch.randn(1, 3, 8, 8)
    for name in ("deploy", "align", "find_stages", "find_ties"):
        message = rf"net: {name} needs the network's graph.*cannot trace Untraceable"
        with pytest.raises(ValueError, match=message):
            getattr(drowsy, name)(net, x)
    with pytest.raises(RuntimeError, match=r"needs its graph.*cannot trace Untraceable"):
        torch.jit.trace(net, (torch.randn(1, 3, 8, 8),))


@pytest.mark.parametrize("name", [*NETWORKS, "cifar_resnet20", "squeezenet1_1", "resnet18"])
def test_an_observed_run_finds_the_neurons_that_the_graph_tells(name: str) -> None:
    shipped = name in models.MODELS
    model = models.create(name, num_classes=4) if shipped else NETWORKS[name]()
    model = randomise_norms(model)
    by_graph = convert(model)
    modules = {name: model.get_submodule(name) for name in by_graph.layers}
    absorbable = [m for m in model.modules() if settling.absorbable(m)]
    x = torch.randn(1, 3, 40, 40) if shipped else torch.randn(X)
    with torch.inference_mode():
        seen = observe(model, [*modules.values(), *absorbable], "forward", (x,), {})
    torch.testing.assert_close(seen.output, run(model, x))
    found = observed_neurons(seen, model, modules)
    told = {line.name: (line.norm, line.activation) for line in by_graph.report if line.fill}
    assert {name: (n.norm_name, n.activation) for name, n in found.items()} == told


@pytest.mark.parametrize("name", NETWORKS)
def test_with_and_without_a_graph_neurons_sleep_alike(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = randomise_norms(NETWORKS[name]()), torch.randn(X)
    with_graph = convert(model, x, fill="zero")
    without_tracing(monkeypatch)
    without = convert(model, x, fill="zero")
    assert (with_graph.graph is None, without.graph is None) == (False, True)
    assert list(with_graph.layers) == list(without.layers)
    for net in (with_graph, without):
        net.set(0.5)
        net.reseed(5)
    assert torch.equal(run(with_graph, x), run(without, x))


class FrozenNorm(nn.Module):
    """A batch norm of buffers, as detectors have them: no class of torch's, so traced inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.randn(channels))
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        factor = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * factor
        return x * factor[:, None, None] + shift[:, None, None]


def test_a_norm_of_ones_own_stays_whole_in_the_graph_and_is_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenNorm(4), nn.ReLU(), FrozenNorm(4)).eval()
    x = torch.randn(X)
    net = convert(model, x)
    assert net.graph is not None
    assert (net.report[0].norm, net.report[0].activation) == ("1", "relu")
    torch.testing.assert_close(run(net, x), run(model, x))


# --- graphs that tell another thing ---------------------------------------------------------------


class Misread(nn.Module):
    """Traced, a proxy is no tensor, so that the graph holds the other branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor | dict[str, Tensor]) -> Tensor:
        if isinstance(x, Tensor):
            return F.relu(self.norm(self.conv(x)))
        return self.other(x["image"])


def test_a_graph_that_tells_another_thing_is_dropped() -> None:
    model, x = randomise_norms(Misread()), torch.randn(X)
    net = convert(model)
    torch.testing.assert_close(run(net, x), run(model, x))
    assert net.graph is None
    assert "graph" in net.known.reason


class Constants(nn.Module):
    """Reads tensors that are neither parameters, buffers nor modules."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.conv = torch.rand(3), nn.Conv2d(3, 4, 3)
        self.nested = nn.Identity()
        self.nested.gain = torch.rand(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.mean.view(-1, 1, 1)
        return self.conv(x) * self.nested.gain + torch.tensor([1.0, 2, 3, 4]).view(-1, 1, 1)


def test_tensors_of_no_module_are_kept_and_the_model_gains_nothing() -> None:
    model, x = Constants().eval(), torch.randn(X)
    before = {name: {*module.__dict__} for name, module in model.named_modules()}
    net = convert(model, x)
    assert net.graph is not None
    assert {name: {*module.__dict__} for name, module in model.named_modules()} == before
    torch.testing.assert_close(run(net, x), run(model, x))
    net.set(0.5)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        other.reseed(1)
        net.reseed(1)
        assert torch.equal(run(other, x), run(net, x))


def test_a_function_named_as_a_module_hides_it_not() -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))
            self.conv2d, self.conv2d_1 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.weight)
            return self.conv2d_1(self.conv2d(x))

    model, x = Clash().eval(), torch.randn(X)
    net = convert(model, x)
    assert list(net.layers) == ["conv2d", "conv2d_1"]
    assert sum(line.geometry == "F.conv2d" for line in net.report) == 1
    torch.testing.assert_close(run(net, x), run(model, x))


# --- what is inside, and what is refused ----------------------------------------------------------


def test_what_a_wrapper_holds_is_converted() -> None:
    model, x = randomise_norms(NETWORKS["sequential"]()), torch.randn(X)
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        net = convert(wrapped, x)
        assert net.original is model
        torch.testing.assert_close(run(net, x), run(model, x))


def test_what_cannot_be_converted_is_named() -> None:
    model, x = randomise_norms(NETWORKS["sequential"]()), torch.randn(X)
    with pytest.raises(ValueError, match="scripted or traced"):
        convert(torch.jit.trace(model, (x,)))
    net = convert(model)
    with pytest.raises(ValueError, match="already drowsy"):
        convert(net)
    with pytest.raises(ValueError, match="1 is already drowsy"):
        convert(nn.Sequential(nn.Conv2d(3, 3, 1), net).eval())
    model[1].train()
    with pytest.raises(ValueError, match=r"training mode \(1\)"):
        convert(model)


def test_one_model_is_converted_twice_and_inside_inference_mode() -> None:
    model, x = randomise_norms(NETWORKS["residual x + y"]()), torch.randn(X)
    expected = run(model, x)
    with torch.inference_mode():
        first = convert(model, x)
    second = convert(model)
    first.set(0.5)
    torch.testing.assert_close(run(second, x), expected)
    first.set(0)
    first.refresh()
    with torch.no_grad():
        torch.testing.assert_close(first(x), expected)


class Stateful(nn.Module):
    """Counts in buffers, in place and anew, and in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 4, 3), 0
        self.register_buffer("written", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.written.add_(1)
        self.replaced = self.replaced + x.shape[0]
        return self.conv(x)


@pytest.mark.parametrize("with_example", [True, False])
def test_converting_and_comparing_leave_no_trace_in_the_models_state(with_example: bool) -> None:
    model, x = Stateful().eval(), torch.randn(X)
    net = convert(model, x if with_example else None)
    for count in range(3):
        for each, calls in ((model, 0), (net, count)):
            assert (each.calls, float(each.replaced)) == (calls, calls * X[0])
        run(net, x)
    # What is written in place is written in the memory that the two share.
    assert float(model.written) == 3


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + torch.randn_like(x))


def test_a_model_whose_answers_differ_by_themselves_is_not_compared_in_vain() -> None:
    # Two runs of the model differ by as much as the network from it: nothing can be told.
    net = convert(Random().eval(), torch.randn(X))
    assert net.layers.keys() == {"conv"}


class Particular(nn.Module):
    """Computes something else where its convolution is not the very class that it asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (1 if type(self.conv) is nn.Conv2d else 2)


def test_another_output_is_an_error_and_comparing_can_be_left_out() -> None:
    model, x = Particular().eval(), torch.randn(X)
    message = "at rate 0 the converted Particular does not compute what the model does: output"
    with pytest.raises(ValueError, match=message):
        convert(model, x)
    net = convert(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            run(net, x)
    net = convert(model)
    run(net, x[:0])  # of which nothing can be told
    with pytest.raises(ValueError, match=message):
        run(net, x)
    unverified = convert(model, x, verify=False)
    torch.testing.assert_close(run(unverified, x), 2 * run(model, x))


# --- who rests ------------------------------------------------------------------------------------


class Gated(nn.Module):
    """Squeeze and excitation, and a layer too small to save anything."""

    def __init__(self) -> None:
        super().__init__()
        self.tiny, self.conv1 = nn.Conv2d(1, 1, 1), nn.Conv2d(3, 32, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x * self.tiny(x[:, :1]))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return self.conv2(x * gate.sigmoid())


@pytest.mark.parametrize("first", ["set", "run"])
def test_gates_and_small_layers_stay_awake_unless_asked(first: str) -> None:
    model, x = Gated().eval(), torch.randn(2, 3, 16, 16)
    net = convert(model)
    if first == "run":
        run(net, x)
    net.set(0.5)
    run(net, x)
    assert net.resting.keys() == {"tiny", "squeeze", "excite"}
    rates = {name: float(layer.rate) for name, layer in net.layers.items()}
    assert rates == {"tiny": 0, "conv1": 0.5, "squeeze": 0, "excite": 0, "conv2": 0.5}
    net.set({"squeeze": 0.25})
    assert float(net.layers["squeeze"].rate) == 0.25
    net.set(net.schedule)
    assert float(net.layers["squeeze"].rate) == 0.25


# --- models with a state --------------------------------------------------------------------------


class Streaming(nn.Module):
    """Remembers earlier calls: in an attribute, a list, buffers and a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.before, self.calls, self.plain = None, [], torch.zeros(1)
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("sum", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        self.sum = self.sum + 2
        self.plain += 3
        self.calls.append(x)
        y = F.relu(self.conv(x))
        self.before = y if self.before is None else y + self.before
        return self.last(self.before) + self.count + self.sum + self.plain + len(self.calls)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("with_example", [True, False])
def test_a_comparison_leaves_no_trace_in_what_models_remember(
    with_example: bool, graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not graph:
        without_tracing(monkeypatch)
    model, x = Streaming().eval(), torch.randn(X)
    net = convert(model, x if with_example else None)
    if with_example:
        held = model.count, model.sum, model.plain, model.calls, model.before
        assert held == (0, 0, 0, [], None)
    twin = copy.deepcopy(model)
    for _ in range(3):
        torch.testing.assert_close(run(net, x), run(twin, x))
    assert model.before is None
    assert model.calls == []


# --- graphs gone stale, outputs of any kind -------------------------------------------------------


class Flagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.fc, self.doubled = nn.Linear(6, 4), False

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(self.body(x).mean((2, 3)))
        return y * 2 if self.doubled else y


def _flag(net: Any) -> None:
    net.doubled = True


def _hook(net: Any) -> None:
    net.body.register_forward_hook(lambda module, inputs, output: output + 1)


def _layer_hook(net: Any) -> None:
    net.layers["body.0"].register_forward_hook(lambda module, inputs, output: output + 1)


def _model_hook(net: Any) -> None:
    net.register_forward_hook(lambda module, inputs, output: output.flip(1))


def _other_head(net: Any) -> None:
    net.fc = nn.Linear(6, 4)


@pytest.mark.parametrize("change", [_flag, _hook, _layer_hook, _model_hook, _other_head])
def test_what_is_evaluated_is_what_runs_after_a_change(change: Any) -> None:
    x = torch.randn(6, 3, 8, 8)
    net = convert(Flagged().eval(), x)
    assert net.graph is not None
    change(net)
    evaluator = Evaluator(net, x, seed=3)
    with torch.inference_mode():
        torch.testing.assert_close(evaluator.logits(), net(x))
    setting = (4,)
    net.set(0.5)
    net.reseed(3)
    own = run(net, x).argmax(1)
    counts = Evaluator(net, x, own, seed=3).evaluate(setting)
    assert counts.rates()["top1"] == 1


class Odd:
    """An output of a class that nobody knows."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Many(nn.Module):
    """Outputs of which one is random, and one right only where the convolution is torch's."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.conv, self.wrong = nn.Conv2d(3, 4, 3), wrong

    def forward(self, x: Tensor) -> Odd:
        y = self.conv(x)
        factor = 2.0 if self.wrong and type(self.conv) is not nn.Conv2d else 1.0
        return Odd(noise=torch.randn(3), mean=float(y.mean()), nested=[Odd(logits=y * factor)])


def test_outputs_of_any_class_are_compared_each_by_itself() -> None:
    x = torch.randn(X)
    assert convert(Many(False).eval(), x).layers.keys() == {"conv"}
    with pytest.raises(ValueError, match=r"output\['nested'\]\[0\]\['logits'\]: differs by 1 "):
        convert(Many(True).eval(), x)


# --- methods other than forward -------------------------------------------------------------------


class Backbone(nn.Module):
    """Features by a method of their own, as timm's models have them."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.head, self.act = nn.Conv2d(6, 4, 1), nn.ReLU()
        self.factor = factor

    def forward_features(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))

    def early(self, x: Tensor) -> Tensor:
        """Reads before the norm."""
        return self.conv(x) * 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.head(self.forward_features(x)))
        return y * (1 if type(self.head) is nn.Conv2d else self.factor)


@pytest.mark.parametrize("graph", [True, False])
def test_a_method_is_compared_and_forward_still_after_it(
    graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not graph:
        without_tracing(monkeypatch)
    model, x = randomise_norms(Backbone()), torch.randn(X)
    net = convert(model)
    net.set(0.5)
    run(net.forward_features, x)
    assert not net.settled
    assert (net.graph is None) == (not graph)
    assert net.layers["conv"].norm is model.norm
    assert float(net.layers["head"].rate) == 0.5
    run(net, x)
    assert net.settled
    assert (net.graph is None) == (not graph)
    assert [layer.activation for layer in net.layers.values()] == ["relu", "relu"]
    assert net.layers["conv"].norm is model.norm
    net.set(0)
    for name in ("forward_features", "forward"):
        torch.testing.assert_close(run(getattr(net, name), x), run(getattr(model, name), x))


@pytest.mark.parametrize("graph", [True, False])
def test_a_forward_that_is_wrong_is_told_after_a_method_that_is_right(
    graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not graph:
        without_tracing(monkeypatch)
    model, x = randomise_norms(Backbone(factor=2.0)), torch.randn(X)
    net = convert(model)
    torch.testing.assert_close(run(net.forward_features, x), run(model.forward_features, x))
    for _ in range(2):
        with pytest.raises(ValueError, match="the converted Backbone does not compute what"):
            run(net, x)
    assert not net.settled


@pytest.mark.parametrize("first", ["early", "forward"])
@pytest.mark.parametrize("graph", [True, False])
def test_a_method_that_reads_elsewhere_takes_from_the_neuron_what_they_do_not_share(
    graph: bool, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not graph:
        without_tracing(monkeypatch)
    model, x = randomise_norms(Backbone()), torch.randn(X)
    net = convert(model)
    order = ["early", "forward", "forward_features"]
    for name in order if first == "early" else [order[1], order[0], order[2]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the way that the code goes
            found = run(getattr(net, name), x)
        torch.testing.assert_close(found, run(getattr(model, name), x))
    assert net.settled
    assert net.graph is None
    assert net.layers["conv"].norm is None
    net.set(0.5)
    for name in order:
        net.reseed(0)
        before = run(getattr(net, name), x)
        net.reseed(0)
        assert torch.equal(run(getattr(net, name), x), before)


def test_a_copy_of_a_network_that_ran_a_method_is_not_settled_either() -> None:
    model, x = randomise_norms(Backbone(factor=2.0)), torch.randn(X)
    net = convert(model)
    run(net.forward_features, x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert not other.settled
        with pytest.raises(ValueError, match="does not compute what"):
            run(other, x)


def test_layers_set_one_by_one_before_the_first_call_stay_as_set() -> None:
    net, x = convert(Gated().eval()), torch.randn(2, 3, 16, 16)
    net.layers["conv1"].set(rate=0.5)
    run(net, x)
    assert net.resting
    assert float(net.layers["conv1"].rate) == 0.5


class Unnormed(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


def test_a_calibration_of_another_neuron_is_dropped_with_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_tracing(monkeypatch)
    model, x = Unnormed().eval(), torch.randn(X)
    net = convert(model, x)
    net.set(0.5)
    net.calibration = drowsy.calibrate(net, x)
    run(net.forward_features, x)
    assert net.calibration is not None
    net.set(0)
    with pytest.warns(UserWarning, match=r"net\.calibration: dropped.*conv"):
        found = run(net.early, x)
    assert net.calibration is None
    torch.testing.assert_close(found, run(model.early, x))
