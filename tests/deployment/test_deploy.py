"""Deployed networks: what the network returns, faster, and the knob still turns.

Outputs are held to those of the eager network at the same clock, within the rounding of sums taken
in another order; where a neuron sleeps shows in the outputs of a last layer without activation,
exactly. Kernels run in Triton's interpreter where there is no GPU; what needs CUDA graphs skips.
"""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import drowsy
from drowsy.deployment.builder import Builder
from drowsy.deployment.deploy import Deployed
from drowsy.network.calibration import Calibration, Correction
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet

SOURCES = ("stratified", "lattice", "fovea", "bluenoise", "detail", "lfsr:width=8,taps=8.6.5.4")


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    norm = nn.BatchNorm2d(outputs)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    return nn.Sequential(layer, norm)


class Block(nn.Module):
    """A residual block, basic or bottleneck, as in ResNets; ``slopes``: with PReLUs."""

    def __init__(
        self, inputs: int, width: int, stride: int, expansion: int, slopes: bool = False
    ) -> None:
        super().__init__()
        outputs = width * expansion
        self.act = nn.PReLU(outputs) if slopes else nn.ReLU(inplace=True)
        if expansion == 1:
            between = nn.PReLU() if slopes else nn.ReLU(inplace=True)
            self.body = nn.Sequential(conv(inputs, width, 3, stride), between, conv(width, outputs))
        else:
            self.body = nn.Sequential(
                conv(inputs, width, 1),
                nn.ReLU(inplace=True),
                conv(width, width, 3, stride),
                nn.ReLU(inplace=True),
                conv(width, outputs, 1),
            )
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += self.shortcut(x)
        return self.act(y)


class Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.left, self.right = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)


def residual(expansion: int, slopes: bool = False) -> nn.Module:
    """Stem, pooling, two stages of two blocks, global pooling and a classifier."""
    wide = 4 * expansion
    return nn.Sequential(
        conv(3, 4, 3, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        Block(4, 4, 1, expansion, slopes),
        Block(wide, 4, 1, expansion, slopes),
        Block(wide, 6, 2, expansion, slopes),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6 * expansion, 5),
    )


def fire() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2),
        nn.ReLU(),
        Fire(6, 3, 4),
        Fire(8, 4, 5),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(10, 4, 6),
        nn.Dropout(),
        nn.Conv2d(12, 7, 1),
        nn.AdaptiveAvgPool2d(1),
    )


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, 2, 1),
        nn.GELU(),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(5, 7, (1, 3), (1, 2), (0, 2), dilation=2),
        nn.Hardswish(),
        nn.Conv2d(7, 6, 1, padding=1),
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
        nn.SiLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 3, 3, padding=1),
    )


def lively(model: nn.Module) -> nn.Module:
    """Small random networks die: strong weights and positive biases keep some neurons above 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.uniform_(module.bias, 0, 0.5)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.5, 1.5)
    return model.eval()


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "basic": (lambda: residual(1), (13, 19)),
    "bottleneck": (lambda: residual(4), (15, 19)),
    "slopes": (lambda: residual(1, slopes=True), (13, 19)),
    "fire": (fire, (15, 13)),
    "sequential": (sequential, (11, 9)),
}


def make(
    name: str, device: torch.device, *, aligned: bool = True, images: int = 2, **options: Any
) -> tuple[DrowsyNet, Tensor]:
    build, size = NETS[name]
    x = torch.randn(images, 3, *size).to(device)
    net = drowsy.convert(lively(build()).to(device), **options)
    if aligned:
        drowsy.align(net, x)
    return net, x


def run(net: Any, x: Tensor) -> Any:
    with torch.inference_mode():
        return net(x)


def check(net: DrowsyNet, fast: Deployed, x: Tensor) -> Tensor:
    """Run both at the same clock: equal within rounding, of float64 too; returns the output."""
    clock = net.control.clock.clone()
    expected = run(net, x)
    after = net.control.clock.clone()
    exact_net = copy.deepcopy(net).double()
    exact_net.control.clock.copy_(clock)
    for layer in exact_net.layers.values():
        layer.backend = "torch"
    exact = run(exact_net, x.double())
    net.control.clock.copy_(clock)
    y = run(fast, x)
    assert torch.equal(net.control.clock, after)
    # What sleeps is exactly 0 in both, and nothing else is.
    assert torch.equal(y == 0, expected == 0)
    assert expected.any()
    largest = exact.abs().max()
    error, eager = (y - exact).abs().max(), (expected - exact).abs().max()
    assert error <= 2 * eager + 8 * torch.finfo(x.dtype).eps * largest, (error, eager)
    return y


# --- the network's outputs -----------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["rescale", "nearest"])
@pytest.mark.parametrize("name", NETS)
def test_aligned_network(name: str, fill: str, triton_device: torch.device) -> None:
    net, x = make(name, triton_device)
    net.set(0.5, fill=fill)
    fast = drowsy.deploy(net, x, graph=False)
    assert any(step.output == "compact" for step in fast.steps)
    outputs = []
    # Half asleep, then all but an eighth with another seed.
    for rate, seed in ((0.5, 7), (0.875, 2**40)):
        net.set(rate)
        net.reseed(seed, 3)
        outputs.append(check(net, fast, x))
    assert not torch.equal(*outputs)


@pytest.mark.parametrize(
    ("name", "fill"), [("fire", "auto"), ("bottleneck", "interpolate"), ("basic", "stencil")]
)
def test_network_as_converted(name: str, fill: str, triton_device: torch.device) -> None:
    net, x = make(name, triton_device, aligned=False)
    drowsy.calibrate_stencils(net, x)
    net.set(0.5, fill=fill)
    fast = drowsy.deploy(net, x, graph=False)
    assert {step.output for step in fast.steps} == {"full"}
    net.set({next(iter(net.layers)): 0.25})
    check(net, fast, x)


@pytest.mark.parametrize("grain", ["position:2", "channel", "channel:2", "tile:5x4"])
def test_grains(grain: str, triton_device: torch.device) -> None:
    net, x = make("basic", triton_device, aligned=False, grain=grain)
    net.set(0.5)
    check(net, drowsy.deploy(net, x, graph=False), x)


@pytest.mark.parametrize("fill", ["rescale", "zero"])
def test_sleeping_channels_are_not_read(fill: str, triton_device: torch.device) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 8, 1),
    )
    x = torch.randn(2, 3, 11, 9, device=triton_device)
    net = drowsy.convert(lively(model).to(triton_device), grain="channel:16", fill=fill)
    fast = drowsy.deploy(net, x, graph=False)
    reads = ["full", "awake channels by 16", "awake channels by 16"]
    assert [step.reads for step in fast.steps] == reads
    net.set(0.5)
    check(net, fast, x)


@pytest.mark.parametrize("fill", ["rescale", "zero"])
def test_positions_that_slept_in_every_channel_are_not_read(
    fill: str, triton_device: torch.device
) -> None:
    """The bottleneck's last 1x1 reads a layer that sleeps elsewhere, and takes in the sum."""
    net, x = make("bottleneck", triton_device, aligned=False, grain="position", fill=fill)
    net.set(0.5)
    fast = drowsy.deploy(net, x, graph=False)
    skipping = [step for step in fast.steps if step.reads == "awake rows"]
    assert [step.layer for step in skipping] == ["3.body.4.0", "4.body.4.0", "5.body.4.0"]
    assert "sum + relu" in [step.fused for step in skipping]
    net.set(0.75)
    check(net, fast, x)


@pytest.mark.parametrize("source", SOURCES)
def test_sources(source: str, triton_device: torch.device) -> None:
    net, x = make("sequential", triton_device, source=source)
    net.set(0.5, fill="nearest")
    fast = drowsy.deploy(net, x, graph=False)
    first = check(net, fast, x)
    net.reseed(9)
    assert not torch.equal(check(net, fast, x), first)


@pytest.mark.parametrize("source", ["bernoulli", "lattice", "fovea", "bluenoise", "detail"])
def test_shifted_stages(source: str, triton_device: torch.device) -> None:
    net, x = make("basic", triton_device, source=source)
    net.set(0.5, fill="nearest")
    fast = drowsy.deploy(net, x, graph=False)
    shared = check(net, fast, x)
    net.reseed(0)
    drowsy.align(net, x, step=1)
    assert not torch.equal(check(net, fast, x), shared)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, triton_device: torch.device) -> None:
    net, x = make("bottleneck", triton_device)
    net.to(dtype)
    net.set(0.5, fill="nearest")
    check(net, drowsy.deploy(net, x.to(dtype), graph=False), x.to(dtype))


def test_not_compact(triton_device: torch.device) -> None:
    net, x = make("bottleneck", triton_device)
    net.set(0.5, fill="zero")
    fast = drowsy.deploy(net, x, compact=False, graph=False)
    assert {step.output for step in fast.steps} == {"full"}
    check(net, fast, x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compact_rows_of_one_image(
    layout: torch.memory_format, triton_device: torch.device
) -> None:
    """Whose channels may lie apart: a map of one image has rows in either order."""
    net, x = noticing("plain", triton_device)
    x = x[:1].contiguous(memory_format=layout)
    fast = drowsy.deploy(net, x, graph=False)
    assert (fast.steps[0].reads, fast.steps[0].output) == ("full", "compact")
    check(net, fast, x)


def test_result_does_not_depend_on_the_split_into_batches(triton_device: torch.device) -> None:
    net, x = make("fire", triton_device, images=4)
    net.set(0.5, fill="nearest")
    expected = run(net, x)
    net.reseed(0)
    fast = drowsy.deploy(net, x[:2], graph=False)
    halves = torch.cat([run(fast, half) for half in x.split(2)])
    torch.testing.assert_close(halves, expected)


# --- graphs that want care -----------------------------------------------------------------------


class _Graph(nn.Module):
    """A network given by a function of its layers ``a``, ``b``, ``c`` and its input."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(4, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.stem(x))


def _reads_what_was_overwritten(n: Any, x: Tensor) -> Tensor:
    y = n.a(x)
    F.relu(x, inplace=True)
    return n.c(y + x)


def _preactivated(n: Any, x: Tensor) -> Tensor:
    y = n.b(x.relu_())
    y += x
    return n.c(y)


def _sleeps_and_not(n: Any, x: Tensor) -> Tensor:
    y = F.max_pool2d(x, 3, 1, 1)
    return F.relu(n.a(y) + y) + n.c(y)


GRAPHS: dict[str, Callable[..., Tensor]] = {
    "both operands are layers": lambda n, x: F.relu(n.a(x) + n.b(x)),
    "sum of a layer with itself": lambda n, x: n.c(n.a(x) + n.a(x)),
    "one tensor twice": lambda n, x: (lambda y: n.c(y + y))(n.a(x)),
    "a layer read twice": lambda n, x: (lambda y: n.b(y) + n.c(y) + y)(n.a(x)),
    "sum of three": lambda n, x: torch.tanh(n.a(x) + n.b(x) + n.c(x)),
    "activation that wakes zeros": lambda n, x: n.c(torch.sigmoid(n.a(x) + n.b(x))),
    "broadcast": lambda n, x: n.c(n.a(x) + n.b(x).mean((2, 3), keepdim=True)),
    "scaled": lambda n, x: n.c(n.a(x) * 0.5 + 1),
    "awake operand": _sleeps_and_not,
    "overwritten": _reads_what_was_overwritten,
    "preactivated": _preactivated,
    "overwritten by position": lambda n, x: n.c(n.a(x) + F.relu(x, True)) + x,
    "overwritten by keyword": lambda n, x: n.c(n.a(x) + F.relu_(input=x)),
    "torch.add with a factor": lambda n, x: n.c(torch.add(n.a(x), n.b(x), alpha=2)),
    "concatenation": lambda n, x: (lambda y: n.c(torch.cat([y, n.b(x), y], 1)[:, 6:10]))(n.a(x)),
    "concatenation of two forms": lambda n, x: torch.cat([n.a(x), F.avg_pool2d(x, 3, 1, 1)], 1),
    "layer as the output": lambda n, x: n.a(x),
}


@pytest.mark.parametrize("fill", ["zero", "nearest"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_graph(graph: str, fill: str, triton_device: torch.device) -> None:
    x = torch.randn(2, 3, 7, 5, device=triton_device)
    net = drowsy.convert(lively(_Graph(GRAPHS[graph])).to(triton_device))
    drowsy.align(net, x)
    net.set(0.5, fill=fill)
    check(net, drowsy.deploy(net, x, graph=False), x)


def test_forms_are_as_expected(triton_device: torch.device) -> None:
    net, x = make("bottleneck", triton_device)
    net.set(0.5, fill="nearest")
    fast = drowsy.deploy(net, x, graph=False)
    stem, *body = fast.steps
    assert (stem.output, stem.reads) == ("full", "full")
    assert {step.output for step in body} == {"compact"}
    # What reads the pooled stem reads a full map; from there on everything is compact.
    assert [step.layer for step in body if step.reads == "full"] == ["3.body.0.0", "3.shortcut.0"]
    assert [step.layer for step in body if step.fused] == [
        "3.shortcut.0",
        "4.body.4.0",
        "5.shortcut.0",
    ]
    assert fast.explain().count("sum + relu") == 3


# --- the knob ------------------------------------------------------------------------------------


def test_knob_and_seed_build_nothing(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = make("fire", triton_device)
    net.set(0.5, fill="zero")
    fast = drowsy.deploy(net, x, graph=False)
    monkeypatch.setattr(Deployed, "_build", lambda self: pytest.fail("built anew"))
    for rate in (0.25, 0):
        net.set(rate, fill="rescale")
        net.reseed(4)
        check(net, fast, x)


def test_what_changes_the_graph_builds_it_anew(triton_device: torch.device) -> None:
    net, x = make("fire", triton_device)
    net.set(0.5, fill="zero")
    fast = drowsy.deploy(net, x, graph=False)
    compact = [step.layer for step in fast.steps if step.output == "compact"]
    net.set(0.5, fill="nearest")
    check(net, fast, x)
    # A layer that sleeps at another rate than its stage no longer shares the stage's map.
    net.set({compact[1]: 0.25})
    check(net, fast, x)
    left = [step.layer for step in fast.steps if step.output == "compact"]
    assert compact[1] not in left
    assert left
    net.set(0.25)
    net.set_grain("position:2")
    check(net, fast, x)
    assert {step.output for step in fast.steps} == {"full"}


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (None, "example: got NoneType"),
        (torch.zeros(2, 3, 21, 27, dtype=torch.int32), "example: got torch.int32"),
        (torch.zeros(2, 3, 21, 27, dtype=torch.float16), "example: got torch.float16 on cpu"),
        (torch.zeros(0, 3, 21, 27), "example: got shape"),
    ],
    ids=["none", "integers", "another dtype", "empty"],
)
def test_examples_that_do_not_fit_are_named(example: Any, message: str) -> None:
    net, _ = make("basic", torch.device("cpu"), aligned=False)
    with pytest.raises((TypeError, ValueError), match=message):
        drowsy.deploy(net, example)


def test_a_batch_unlike_the_example_is_refused(triton_device: torch.device) -> None:
    net, x = make("basic", triton_device)
    fast = drowsy.deploy(net, x, graph=False)
    with pytest.raises(ValueError, match=r"batch: got torch\.float32 \(1, 3, 13, 19\)"):
        fast(x[:1])
    net.model.train()
    with pytest.raises(ValueError, match="training mode"):
        drowsy.deploy(net, x)


# --- what a deployed network notices --------------------------------------------------------------


def _correction(layer: DrowsyConv2d, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    channels = layer.out_channels
    given = {"scale": torch.rand(channels) + 0.5, "bias": torch.randn(channels)}
    return {name: value.to(layer.weight.device) for name, value in given.items()}


def _calibration(net: DrowsyNet, seed: int) -> Calibration:
    """Random corrections of every layer at 1/2."""
    names = tuple(net.layers)
    norms = tuple(float(layer.weight.detach().norm()) for layer in net.layers.values())
    made = Calibration(net.k, names, (1 / len(names),) * len(names), norms)
    made.points[(net.k // 2,) * len(net.layers)] = {
        name: Correction(**_correction(layer, seed)) for name, layer in net.layers.items()
    }
    return made


def _first(net: DrowsyNet) -> DrowsyConv2d:
    return next(iter(net.layers.values()))


def _last(net: DrowsyNet) -> DrowsyConv2d:
    return list(net.layers.values())[-1]


def _change_parameters(net: DrowsyNet) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(-0.75)
    net.refresh()


def _load(net: DrowsyNet, **options: Any) -> None:
    net.load_state_dict({k: v * 0.75 for k, v in net.state_dict().items()}, **options)


def _move_away_and_back(net: DrowsyNet) -> None:
    """Weights in other memory; only later writes tell."""
    net.double().float()
    _last(net).correct(**_correction(_last(net), 6))


def _load_stencils(net: DrowsyNet, path: Path) -> None:
    other = copy.deepcopy(net)
    _install_random_tables(other, 4)
    drowsy.save_stencils(other, path)
    drowsy.load_stencils(net, path)


def _install_random_tables(net: DrowsyNet, seed: int) -> None:
    torch.manual_seed(seed)
    for layer in net.layers.values():
        layer.set_stencil(torch.randn(256, 9, layer.out_channels) / 3)


def _uncorrected(net: DrowsyNet) -> None:
    _last(net).uncorrect()
    _first(net).correct(None)


def _assign_table(net: DrowsyNet) -> None:
    _last(net).stencil = torch.rand_like(_last(net).stencil)


# By what changes: how the network is before, and the change, given a path to write to.
CHANGES: dict[str, tuple[str, Callable[[DrowsyNet, Path], object]]] = {
    "net.set, rates": ("plain", lambda net, _: net.set({"2": 0.25})),
    "net.set, fill": ("plain", lambda net, _: net.set(0.5, fill="interpolate")),
    "net.set, schedule with streams": ("plain", lambda net, _: net.set(_shifted(net))),
    "net.set_grain": ("plain", lambda net, _: net.set_grain("position:2")),
    "net.refresh": ("plain", lambda net, _: _change_parameters(net)),
    "net.refresh, corrected": ("corrected", lambda net, _: _change_parameters(net)),
    "load_state_dict": ("plain", lambda net, _: _load(net)),
    "load_state_dict, assigned": ("plain", lambda net, _: _load(net, assign=True)),
    "load_state_dict, corrected": ("corrected", lambda net, _: _load(net)),
    "calibration given": (
        "plain",
        lambda net, _: setattr(net, "calibration", _calibration(net, 2)),
    ),
    "another calibration": (
        "corrected",
        lambda net, _: setattr(net, "calibration", _calibration(net, 2)),
    ),
    "no calibration": ("corrected", lambda net, _: setattr(net, "calibration", None)),
    "another calibrated point": ("corrected", lambda net, _: net.set(0)),
    "other memory": ("corrected", lambda net, _: _move_away_and_back(net)),
    "layer.set, rate": ("plain", lambda net, _: _last(net).set(rate=0.25)),
    "layer.set, grain": ("plain", lambda net, _: _last(net).set(grain="position:2")),
    "layer.stage, fill": ("plain", lambda net, _: _last(net).stage(fill="interpolate")),
    "layer.stage, stream": ("plain", lambda net, _: _last(net).stage(stream=77)),
    "layer.stage, phase": ("plain", lambda net, _: _last(net).stage(phase=1)),
    "layer.correct": ("plain", lambda net, _: _last(net).correct(**_correction(_last(net), 3))),
    "layer.correct, copied": (
        "plain",
        lambda net, _: _first(net).correct(**_correction(_first(net), 3)),
    ),
    "layer.correct, again": (
        "corrected",
        lambda net, _: _first(net).correct(**_correction(_first(net), 3)),
    ),
    "layer.uncorrect": ("corrected", lambda net, _: _uncorrected(net)),
    "align": (
        "plain",
        lambda net, _: drowsy.align(
            net, torch.zeros(1, 3, 5, 4, device=_first(net).weight.device), step=1
        ),
    ),
    "layer.set_stencil": ("stencil", lambda net, _: _install_random_tables(net, 4)),
    "load_stencils": ("stencil", _load_stencils),
    "layer.stencil": ("stencil", lambda net, _: _assign_table(net)),
}


def _shifted(net: DrowsyNet) -> drowsy.Schedule:
    other = copy.deepcopy(net)
    for i, layer in enumerate(other.layers.values()):
        layer.stage(stream=9 + i)
    return other.schedule


def noticing(state: str, device: torch.device) -> tuple[DrowsyNet, Tensor]:
    """Weights that the graph reads where they lie (16 channels), and such as it copies."""
    torch.manual_seed(1)
    model = nn.Sequential(
        conv(3, 16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), conv(16, 5)
    )
    model = lively(model).to(device, memory_format=torch.channels_last)
    net = drowsy.convert(model, source="lattice", grain="position")
    x = torch.randn(1, 3, 5, 4, device=device)
    drowsy.align(net, x)
    net.set(0.5, fill="nearest")
    if state == "corrected":
        net.calibration = _calibration(net, 1)
    if state == "stencil":
        _install_random_tables(net, 1)
        net.set(0.5, fill="stencil")
    return net, x


@pytest.mark.filterwarnings("ignore:calibration")
@pytest.mark.parametrize("change", CHANGES)
def test_a_deployed_network_notices(
    change: str, tmp_path: Path, triton_device: torch.device
) -> None:
    state, turn = CHANGES[change]
    net, x = noticing(state, triton_device)
    fast = [drowsy.deploy(net, x, compact=compact, graph=False) for compact in (True, False)]
    before = _outputs(net, net, x)
    turn(net, tmp_path / "file.safetensors")
    after = _outputs(net, net, x)
    assert not torch.allclose(before, after)
    for each in fast:
        torch.testing.assert_close(_outputs(net, each, x), after, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:calibration")
@pytest.mark.parametrize("change", ["net.set, fill", "another calibration", "layer.set_stencil"])
@pytest.mark.parametrize("way", ["copied", "pickled"])
def test_a_deployed_copy_notices_its_own_changes(
    change: str, way: str, tmp_path: Path, triton_device: torch.device
) -> None:
    state, turn = CHANGES[change]
    first, x = noticing(state, triton_device)
    net = copy.deepcopy(first) if way == "copied" else pickle.loads(pickle.dumps(first))
    kept, fast = (drowsy.deploy(each, x, graph=False) for each in (first, net))
    before = _outputs(first, first, x)
    turn(net, tmp_path / "file.safetensors")
    after = _outputs(net, net, x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(_outputs(net, fast, x), after, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(_outputs(first, kept, x), before, rtol=1e-4, atol=1e-4)


def _outputs(net: DrowsyNet, way: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """What the network, or a deployed one that follows it, gives for the same maps every time."""
    net.reseed(3)
    return run(way, x)


@pytest.mark.filterwarnings("ignore:calibration")
@pytest.mark.parametrize("state", ["plain", "corrected", "stencil"])
def test_a_call_without_changes_reads_no_structure(
    state: str, triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = noticing(state, triton_device)
    fast = drowsy.deploy(net, x, graph=False)
    net.set(0.25, fill="stencil" if state == "stencil" else None)
    fast(x)
    monkeypatch.setattr(
        "drowsy.deployment.builder.structure", lambda *_: pytest.fail("structure read")
    )
    for seed in (5, 6):
        net.reseed(seed)
        fast(x)
        copy.deepcopy(net).set(0)
        fast(x)


def test_reverting_leaves_a_deployed_network_as_it_was(triton_device: torch.device) -> None:
    net, x = noticing("plain", triton_device)
    fast = drowsy.deploy(net, x, graph=False)
    drowsy.revert(net)
    net.set(0.25)
    expected = _outputs(net, net, x)
    torch.testing.assert_close(_outputs(net, fast, x), expected, rtol=1e-4, atol=1e-4)


def test_a_build_that_fails_is_tried_again(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = noticing("plain", triton_device)
    fast = drowsy.deploy(net, x, graph=False)
    net.set_grain("position:2")
    with monkeypatch.context() as patched:
        patched.setattr("drowsy.deployment.builder.Builder.build", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fast(x)
    expected = _outputs(net, net, x)
    torch.testing.assert_close(_outputs(net, fast, x), expected, rtol=1e-4, atol=1e-4)


def test_a_knob_turned_by_another_thread_during_a_build_is_followed(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = noticing("plain", triton_device)
    fast = drowsy.deploy(net, x, graph=False)
    build = Builder.build

    def slow(builder: Builder) -> Any:
        built = build(builder)
        net.set(0.5, fill="nearest")
        return built

    net.set_grain("position")
    with monkeypatch.context() as patched:
        patched.setattr(Builder, "build", slow)
        fast(x)
    expected = _outputs(net, net, x)
    torch.testing.assert_close(_outputs(net, fast, x), expected, rtol=1e-4, atol=1e-4)


# --- CUDA graphs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["rescale", "nearest"])
@pytest.mark.parametrize("name", NETS)
def test_captured_graph_follows_knob_and_seed(
    name: str, fill: str, cuda_device: torch.device
) -> None:
    net, x = make(name, cuda_device)
    net.set(0.5, fill=fill)
    net.reseed(1)
    fast = drowsy.deploy(net, x)
    assert net.control.clock.tolist() == [1, 0]
    for rate, seed in ((0.5, 7), (0.25, None), (0.875, None), (0, 3)):
        net.set(rate)
        if seed is not None:
            net.reseed(seed)
        check(net, fast, x)
        check(net, fast, torch.randn_like(x))


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_captured(source: str, cuda_device: torch.device) -> None:
    net, x = make("basic", cuda_device, source=source)
    net.set(0.5, fill="nearest")
    fast = drowsy.deploy(net, x)
    net.reseed(5)
    check(net, fast, x)


@pytest.mark.parametrize("grain", ["neuron", "position:2", "channel", "tile:5x4"])
def test_every_grain_is_captured(grain: str, cuda_device: torch.device) -> None:
    net, x = make("basic", cuda_device, aligned=False, grain=grain)
    net.set(0.5)
    fast = drowsy.deploy(net, x)
    net.set(0.25)
    check(net, fast, x)


def test_turning_the_knob_never_waits_for_the_gpu(cuda_device: torch.device) -> None:
    net, x = make("bottleneck", cuda_device)
    net.set(0.5, fill="nearest")
    fast = drowsy.deploy(net, x)
    fast(x)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for rate in (0.25, 0.5, 0.875):
            net.set(rate)
            net.set({next(iter(net.layers)): 0.125})
            net.reseed(3)
            net.set(rate)
            fast(x)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    check(net, fast, x)


def test_outputs_of_earlier_replays_stay(cuda_device: torch.device) -> None:
    net, x = make("basic", cuda_device)
    fast = drowsy.deploy(net, x)
    first = fast(x)
    kept = first.clone()
    fast(-x)
    assert torch.equal(first, kept)


# --- torch.compile -------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["rescale", "nearest"])
def test_compiled_network_follows_the_knob(fill: str) -> None:
    """The whole converted network is one graph to ``torch.compile``, aligned or not."""
    torch._dynamo.reset()
    net, x = make("bottleneck", torch.device("cpu"))
    net.set(0.5, fill=fill)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for rate, seed in ((0.5, 0), (0.25, 0), (0.875, 6), (0, 6)):
        net.set(rate)
        net.reseed(seed)
        with torch._dynamo.config.patch(error_on_recompile=True):
            y = run(compiled, x)
        net.reseed(seed)
        torch.testing.assert_close(y, run(net, x))


def test_a_captured_graph_keeps_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph holds addresses alone: weights and maps must live as long as the deployed network."""
    captured: list[weakref.ref] = []

    def capture(self: Deployed, module: nn.Module) -> Callable[[Tensor], Any]:
        captured.append(weakref.ref(module))
        return lambda batch: batch

    monkeypatch.setattr(Deployed, "_captured", capture)
    net = drowsy.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval())
    deployed = Deployed(net, torch.randn(1, 3, 6, 6), compact=True, graph=True)
    gc.collect()
    assert captured[0]() is not None, deployed


@pytest.mark.parametrize("where", ["example", "deployment"])
def test_deploy_in_inference_mode(where: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)).eval()
    net = drowsy.convert(model, grain="position")
    net.set(0.5)
    with torch.inference_mode(where == "example"):
        example = torch.randn(2, 3, 6, 6)
    with torch.inference_mode(where == "deployment"):
        fast = drowsy.deploy(net, example)
    with torch.inference_mode():
        net.reseed(1)
        expected = net(example)
        net.reseed(1)
        torch.testing.assert_close(fast(example), expected)


def test_geometry_changed_by_hand_is_followed(triton_device: torch.device) -> None:
    layers = (nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 8, 1))
    model = nn.Sequential(*layers).eval().to(triton_device)
    net = drowsy.convert(model, source="lattice", grain="position", backend="triton")
    net.set(0.5)
    x = torch.randn(2, 8, 9, 8, device=triton_device)
    fast = drowsy.deploy(net, x, graph=False)
    assert check(net, fast, x).shape == (2, 8, 2, 1)
    first, second = net.layers["0"], net.layers["2"]
    # By TensorFlow's rule, which depends on the input's size.
    first.pads_same = second.pads_same = True
    assert check(net, fast, x).shape == (2, 8, 5, 4)
    second.dilation, first.pads_same, first.padding = 2, False, 2
    assert check(net, fast, x).shape == (2, 8, 6, 5)
    first.padding, first.pads_first = 0, (0, 1, 0, 1)
    assert check(net, fast, x).shape == (2, 8, 4, 4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("0.norm", "eps", 3.0),
        ("0.act", "negative_slope", -2.0),
        ("0.act", "negative_slope", math.inf),
        ("after", "negative_slope", -2.0),
    ],
)
def test_attributes_changed_by_hand_are_followed(
    name: str, attribute: str, value: float, triton_device: torch.device
) -> None:
    class Net(nn.Sequential):
        """The activation after the sum becomes part of a convolution."""

        def forward(self, x: Tensor) -> Tensor:
            y = self[0](x)
            return self.after(self[1](y) + y)

    parts = {"conv": nn.Conv2d(8, 8, 1), "norm": nn.BatchNorm2d(8), "act": nn.LeakyReLU(0.1)}
    model = Net(nn.Sequential(OrderedDict(parts)), nn.Conv2d(8, 8, 3, padding=1))
    model.add_module("after", nn.LeakyReLU(0.1))
    model.eval().to(triton_device)
    net = drowsy.convert(model, source="lattice", grain="position", fill="zero", backend="triton")
    net.set(0.5)
    x = torch.randn(2, 8, 6, 5, device=triton_device)
    fast = drowsy.deploy(net, x, graph=x.is_cuda)
    assert "leaky_relu:0.1" in fast.explain()
    before = check(net, fast, x)
    net.reseed(0)
    setattr(model.get_submodule(name), attribute, value)
    if value == math.inf:
        with pytest.raises(ValueError, match="convert the network anew"):
            fast(x)
    else:
        assert (check(net, fast, x) - before).abs().max() > 1e-3
