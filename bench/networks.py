"""What is measured of a whole network: images a second and joules an image, dense and asleep.

Weights are random. Time and energy depend on them through the activations only, so they are drawn
such that activations look like a trained network's: He's initialisation, and batch norms that hold
the statistics of a batch. Nothing here says anything about accuracy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import drowsy
from bench.compiling import Compiler, recorded
from bench.timing import DTYPES, activations, time_call, with_tf32
from bench.ways import RedCheck
from drowsy import models
from drowsy.energy import Meter
from drowsy.files.tables import Row
from drowsy.knob.costs import layer_shares, network_cost, saving
from drowsy.knob.point import OperatingPoint

NETWORKS = ("vgg16", "resnet50", "caffenet", "resnet18")
# How a network sleeps: a grain for all layers, or position maps that the layers of a stage share.
VARIANTS = ("tile:128x64", "position", "aligned", "channel", "neuron")
_CALIBRATED = 16
_CHECKED = 8
_SEED = 5


def make_network(name: str, number: str, device: torch.device) -> nn.Module:
    """A network with random weights and lively activations, channels_last, in eval mode."""
    torch.manual_seed(0)
    with device:
        model = models.create(name)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for norm in norms:
        # No running mean: one batch sets the statistics.
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        model(photographs(name, _CALIBRATED, torch.float32, device))
    model.eval()
    return model.to(DTYPES[number], memory_format=torch.channels_last)  # type: ignore[call-overload]


def photographs(name: str, images: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A batch of the network's size, ``[N, 3, H, W]``, smooth as pictures are."""
    side = models.MODELS[name].preprocess.crop
    generator = torch.Generator(device).manual_seed(1)
    return activations((images, 3, side, side), dtype, generator)


def network_shares(name: str) -> dict[str, float]:
    """Each convolution's share of a network's multiplications.

    Of a network without data: a pass of the converted one would compile its kernels one by one.
    """
    with torch.device("meta"):
        model = models.create(name).eval()  # type: ignore[call-overload]
    side = models.MODELS[name].preprocess.crop
    return layer_shares(network_cost(model, (3, side, side)))


# --- dense baselines -----------------------------------------------------------------------------


def eager_graph(model: nn.Module, batch: Tensor) -> Callable[[], object]:
    """Eager torch with folded batch norms, captured in a CUDA graph; copies its input in."""
    folded = fuse(copy.deepcopy(model))
    return _captured(folded, batch)


def max_autotune(model: nn.Module, batch: Tensor) -> Callable[[], object]:
    """``torch.compile(mode="max-autotune")`` of the same, with CUDA graphs of its own."""
    torch._dynamo.reset()
    compiled = torch.compile(fuse(copy.deepcopy(model)), mode="max-autotune", dynamic=False)

    def run() -> object:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(batch)

    for _ in range(3):
        run()
    return run


def _captured(model: nn.Module, batch: Tensor) -> Callable[[], object]:
    if not batch.is_cuda:
        return lambda: model(batch)
    static = batch.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = model(static)

    def run() -> object:
        static.copy_(batch)
        graph.replay()
        return kept

    # The graph knows addresses alone: the weights must live as long as it does.
    run.model = model  # type: ignore[attr-defined]
    return run


# --- asleep --------------------------------------------------------------------------------------


def convert(model: nn.Module, variant: str, batch: Tensor) -> drowsy.DrowsyNet:
    """The network with a knob, sleeping as ``variant`` says.

    It is compared with its model by torch's convolutions: ours are to be compiled ahead, together.
    """
    grain = "position" if variant == "aligned" else variant
    net = drowsy.convert(copy.deepcopy(model), grain=grain, backend="torch")
    net.settle(batch[:_CHECKED])
    for layer in net.layers.values():
        layer.backend = "auto"
    if variant == "aligned":
        drowsy.align(net, batch)
    return net


def compile_ahead(net: drowsy.DrowsyNet, batch: Tensor, compiler: Compiler) -> None:
    """Let other processes compile what the deployed network will launch."""
    compiler.compile(recorded(lambda: drowsy.deploy(net, batch, graph=False)(batch)))


def check(
    net: drowsy.DrowsyNet, fast: Callable[[Tensor], Tensor], batch: Tensor, number: str
) -> None:
    """Raise unless the deployed network does what the network does.

    Its root mean square error against float64, over a few images, is at most twice that of the
    same network, with the same sleepers, in eager torch and the batch's number format. With TF32 it
    may be larger by 2^-10 of the largest output: tensor cores may cut operands to 10 bits of
    mantissa where the library rounds them.
    """
    net.reseed(_SEED)
    y = fast(batch)[:_CHECKED].double()
    exact, eager = (
        _eager(net, batch[:_CHECKED].to(dtype)) for dtype in (torch.float64, batch.dtype)
    )

    size = exact.square().mean().sqrt().item()

    def distance(a: Tensor) -> float:
        return (a - exact).square().mean().sqrt().item() / size

    cut = 2.0**-10 * exact.abs().max().item() / size if number == "tf32" else 0.0
    error, budget = distance(y), 2 * distance(eager) + 1e-6 + cut
    if not error <= budget:
        raise RedCheck(
            f"deployed: error {error:.3e} against float64, budget {budget:.3e}; not timed"
        )


def _eager(net: drowsy.DrowsyNet, batch: Tensor) -> Tensor:
    twin = copy.deepcopy(net).to(batch.dtype)
    for layer in twin.layers.values():
        layer.backend = "torch"
    twin.refresh()
    twin.reseed(_SEED)
    return twin(batch).double()


def measure_network(
    name: str,
    images: int,
    number: str,
    variant: str,
    settings: Iterable[float | OperatingPoint],
    device: torch.device,
    *,
    baselines: dict[str, Row],
    meter: Meter | None,
    seconds: float,
    compiler: Compiler | None = None,
) -> Row:
    """Time and energy of a deployed network at every setting, next to its dense baselines.

    Args:
        name, images, number, variant: what to run.
        settings: rates for all layers, or points of a frontier.
        baselines: from ``measure_dense``, in the same run.
        meter: None where energy cannot be read.
        seconds: of an energy window.
        compiler: to compile what the network launches ahead; None compiles it one by one.

    Raises:
        RedCheck: the deployed network is further from float64 than eager torch allows.
    """
    with_tf32(number)
    model = make_network(name, number, device)
    batch = photographs(name, images, DTYPES[number], device)
    row: Row = {
        "network": name,
        "images": images,
        "number": number,
        "variant": variant,
        "weights": "random",
        "baselines": baselines,
        "points": [],
    }
    shares = network_shares(name)
    with torch.inference_mode():
        net = convert(model, variant, batch)
        if compiler is not None:
            compile_ahead(net, batch, compiler)
        fast = drowsy.deploy(net, batch)
        row["steps"] = [vars(step) for step in fast.steps]
        for setting in settings:
            net.set(setting)
            check(net, fast, batch, number)
            rates = {layer: each.rate for layer, each in net.schedule.layers.items()}
            row["points"].append(
                {
                    "rate": setting if isinstance(setting, float) else None,
                    "saving": saving(rates, shares),
                    **_measured(lambda: fast(batch), images, device, meter, seconds),
                }
            )
    return row


def measure_dense(
    name: str,
    images: int,
    number: str,
    device: torch.device,
    *,
    meter: Meter | None,
    seconds: float,
    way: Callable[[nn.Module, Tensor], Callable[[], object]] = eager_graph,
) -> Row:
    """Time and energy of the dense network, run by ``eager_graph`` or ``max_autotune``."""
    with_tf32(number)
    model = make_network(name, number, device)
    batch = photographs(name, images, DTYPES[number], device)
    with torch.inference_mode():
        return _measured(way(model, batch), images, device, meter, seconds)


def _measured(
    run: Callable[[], object],
    images: int,
    device: torch.device,
    meter: Meter | None,
    seconds: float,
) -> Row:
    timing = time_call(run, device)
    row = {**timing.to_dict(), "images_per_s": images / timing.ms * 1e3, "energy": None}
    if meter is not None:
        energy = meter.measure(run, seconds=seconds)
        joules, above_idle = energy.joules_per_call, energy.joules_above_idle_per_call
        row["energy"] = {
            "joules_per_image": joules and joules / images,
            "above_idle_per_image": above_idle and above_idle / images,
            "images_per_s": energy.seconds_per_call and images / energy.seconds_per_call,
            "watts": energy.watts,
            "idle_watts": energy.idle_watts,
            "joules_counter": energy.joules_counter,
            "joules_integrated": energy.joules_integrated,
            "seconds": energy.seconds,
            "calls": energy.calls,
            "warnings": list(energy.warnings),
        }
    return row
