"""The Triton kernels against eager torch: the same maps bit for bit, outputs within a budget.

Budget of an output: as far from float64 as the eager backend is at the same precision, plus
``eps * sqrt(K)`` of the accumulated magnitude for sums taken in another order.
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass
from typing import Any

import drowsy_kernels as kernels
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drowsy import neuron
from drowsy.backends import triton
from drowsy.network.inference import inference
from drowsy.network.layer import DrowsyConv2d
from drowsy.neuron import ACTIVATIONS
from drowsy.sleep import (
    FILLS,
    NEIGHBOUR_FILLS,
    SOURCES,
    Grain,
    SleepSpec,
    detail_map,
    expand_cells,
    levels,
    unpack_bitmap,
)

GRAINS = ("neuron", "position", "channel", "tile")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Whose maps run along positions, which tiles and channels have not.
OF_POSITIONS = ("fovea", "bluenoise", "detail")
MEETINGS = [
    (source, grain, dtype)
    for source in SOURCES
    for grain in (GRAINS[:2] if source in OF_POSITIONS else GRAINS)
    for dtype in DTYPES
]
CONFIGURATIONS = 3 * len(MEETINGS)
LFSRS = ("lfsr", "lfsr:engines=5", "lfsr:width=8,taps=8.6.5.4", "lfsr:width=4,taps=4.3,seeding=9")


@dataclass(frozen=True)
class Configuration:
    """One layer, its input and its clock."""

    source: str
    grain: str
    k: int
    j: int
    fill: str
    activation: str
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    kernel: tuple[int, int]
    groups: int
    channels: tuple[int, int]
    bias: bool
    dtype: torch.dtype
    layout: torch.memory_format
    shape: tuple[int, int, int]
    seed: int
    image: int
    stream: int
    phase: int

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        n, height, width = self.shape
        return (
            f"{self.source}-{self.grain}-{self.j}of{self.k}-{self.fill}-{self.activation}-{dtype}"
            f"-N{n}C{self.channels[0]}H{height}W{width}-O{self.channels[1]}"
            f"K{self.kernel[0]}x{self.kernel[1]}G{self.groups}"
        )


def configuration(number: int) -> Configuration:
    """The layer of this number: sources, grains and dtypes take turns, the rest is drawn."""
    turn, meeting = divmod(number, len(MEETINGS))
    source, grain, dtype = MEETINGS[meeting]
    rng = random.Random(1000 + number)
    pick = rng.choice
    k = pick((2, 3, 4, 5, 7, 8, 8, 8, 8, 8, 10, 16, 31, 256))
    groups = pick((1, 1, 1, 2, 3))
    grain = {
        "neuron": "neuron",
        "position": pick(("position", "position:3", "position:16", "position:32")),
        "channel": pick(("channel", "channel:5")),
        "tile": f"tile:{pick((2, 8, 16))}x{pick((3, 16, 32))}",
    }[grain]
    fills = FILLS if Grain.parse(grain).of_single_positions else ("zero", "rescale")
    kernel = (pick((1, 2, 3)), pick((1, 2, 3)))
    dilation = (pick((1, 1, 2)), pick((1, 1, 2)))
    return Configuration(
        source=pick(LFSRS) if source == "lfsr" else source,
        grain=grain,
        k=k,
        j=rng.randrange(k) if rng.random() < 0.9 else pick((0, k - 1)),
        fill=fills[(number + turn) % len(fills)],
        activation=pick([name.replace("SLOPE", "0.2") for name in ACTIVATIONS]),
        stride=(pick((1, 1, 2)), pick((1, 1, 2))),
        padding=(pick((0, 1, 2)), pick((0, 1, 2))),
        dilation=dilation,
        kernel=kernel,
        groups=groups,
        channels=(groups * pick((1, 3, 5)), groups * pick((1, 7, 16, 18))),
        bias=rng.random() < 0.7,
        dtype=dtype,
        layout=pick((torch.contiguous_format, torch.channels_last)),
        shape=(pick((1, 1, 2)), rng.randint(5, 7), rng.randint(5, 7)),
        seed=pick((0, 1, 2**32 + 5, 2**63 - 1, rng.randrange(2**63))),
        image=pick((0, 1, 49_999, 2**31 - 1, 2**32 - 2, 2**32 + 7)),
        stream=pick((0, 1, 30, 2**31, 2**32 - 1)),
        phase=pick((0, 0, 1, 2)),
    )


def _activation(c: Configuration, device: torch.device) -> str | nn.PReLU:
    """A PReLU has a slope a channel, or one."""
    if c.activation != "prelu":
        return c.activation
    prelu = nn.PReLU(c.channels[1] if c.seed % 2 else 1, device=device, dtype=c.dtype)
    nn.init.normal_(prelu.weight, std=2)
    return prelu


def make_layer(c: Configuration, device: torch.device) -> tuple[DrowsyConv2d, Tensor]:
    layer = DrowsyConv2d(
        *c.channels,
        c.kernel,
        c.stride,
        c.padding,
        c.dilation,
        c.groups,
        c.bias,
        device=device,
        dtype=c.dtype,
        activation=_activation(c, device),
        sleep=SleepSpec(c.source, c.grain, c.k, c.stream, c.phase),
        rate=c.j / c.k,
    )
    if c.fill == "stencil":
        layer.set_stencil(torch.randn(256, 9, c.channels[1]) / 3)
    layer.set(fill=c.fill)
    n, height, width = c.shape
    x = torch.randn(n, c.channels[0], height, width, device=device).to(c.dtype)
    return layer, x.contiguous(memory_format=c.layout)


def run_at(layer: DrowsyConv2d, x: Tensor, c: Configuration, backend: str) -> Tensor:
    layer.backend = backend
    layer.control.reseed(c.seed, c.image)
    with torch.inference_mode(), inference(layer.control) as begun:
        begun.detail = detail_map(x)
        return layer(x)


@pytest.fixture(autouse=True)
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that take one tile after the other do so, and few are interpreted."""
    if kernels.interpreted():
        # By its full name: the package's attribute of that name is the function.
        module = sys.modules["drowsy_kernels.conv2d"]
        monkeypatch.setattr(module, "multiprocessors", lambda device: 1)


@pytest.fixture
def bitmaps(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The sleep bitmaps that kernels drew for the layers that ran."""
    drawn: list[Tensor] = []
    draw = triton.draw_bitmap

    def recording(*args: Any) -> Tensor:
        drawn.append(draw(*args))
        return drawn[-1]

    monkeypatch.setattr(triton, "draw_bitmap", recording)
    return drawn


@pytest.mark.parametrize("number", range(CONFIGURATIONS))
def test_backends_agree(number: int, triton_device: torch.device, bitmaps: list[Tensor]) -> None:
    c = configuration(number)
    torch.manual_seed(number)
    layer, x = make_layer(c, triton_device)
    eager, kernel = run_at(layer, x, c, "torch"), run_at(layer, x, c, "triton")
    assert kernel.shape == eager.shape, c
    assert kernel.dtype == eager.dtype, c

    # The map, bit for bit.
    spec, shape = layer.sleep, tuple(eager.shape)
    at = torch.tensor([c.seed, c.image], device=triton_device)
    drawn = levels(spec, shape, at, detail_map(x))
    (bitmap,) = bitmaps
    assert torch.equal(unpack_bitmap(bitmap, drawn.shape[2]), drawn < c.j), c
    whole = unpack_bitmap(bitmap, bitmap.shape[2] * 32)
    assert not whole[..., drawn.shape[2] :].any(), f"padding bits are 0: {c}"

    # The output, against float64.
    scale = float(layer.control.scales[0])
    weight, bias = layer.weight.detach(), layer.bias.detach() if c.bias else None
    exact = _float64(layer, x, weight, bias, drawn, c.j, scale)
    eager_error = (eager.double() - exact).abs().max().item()
    kernel_error = (kernel.double() - exact).abs().max().item()
    terms = weight[0].numel()
    magnitude = max(1.0, exact.abs().max().item())
    slack = torch.finfo(c.dtype).eps * math.sqrt(terms) * magnitude
    assert kernel_error <= eager_error + slack, (c, kernel_error, eager_error, slack)
    if c.fill not in NEIGHBOUR_FILLS:
        asleep = expand_cells(drawn < c.j, shape, spec.grain)
        assert (kernel[asleep] == 0).all(), c


def _float64(
    layer: DrowsyConv2d,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    drawn: Tensor,
    j: int,
    scale: float,
) -> Tensor:
    """The layer's output in float64, from the same rounded input and parameters."""
    awake = neuron.awake_conv2d(
        x.double(),
        weight.double(),
        None if bias is None else bias.double(),
        layer.spec,
        None if layer.slopes is None else layer.slopes.detach().double(),
    )
    table = None if layer.table is None else layer.table.double()
    return neuron.sleep(awake, drawn, j, scale, layer.sleep.grain, layer.fill, table)


def test_configurations_meet_every_source_grain_and_dtype() -> None:
    drawn = [configuration(number) for number in range(CONFIGURATIONS)]
    met = {
        (c.source.partition(":")[0], c.grain.partition(":")[0], c.dtype) for c in drawn if c.j > 0
    }
    assert len(met) == (7 * 2 + 4 * 2) * 3
    assert {c.activation.partition(":")[0] for c in drawn} == {
        name.partition(":")[0] for name in ACTIVATIONS
    }
    assert {(c.source.partition(":")[0], c.fill) for c in drawn if c.j > 0} == {
        (source, fill) for source in SOURCES for fill in FILLS
    }
    assert any(c.grain == "channel:5" and c.channels[1] > 5 for c in drawn)
    assert len({str(c) for c in drawn}) == CONFIGURATIONS


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_backends_agree_on_other_paddings(mode: str, triton_device: torch.device) -> None:
    layer = DrowsyConv2d(3, 5, 3, padding="same", padding_mode=mode, rate=0.5, device=triton_device)
    x = torch.randn(2, 3, 6, 6, device=triton_device)
    outputs = []
    for backend in ("torch", "triton"):
        layer.backend = backend
        layer.control.reseed(0)
        with torch.inference_mode():
            outputs.append(layer(x))
    torch.testing.assert_close(outputs[1], outputs[0])


@pytest.mark.parametrize("rate", [0, 0.5])
def test_backends_agree_on_zeros_that_are_added_first(
    rate: float, triton_device: torch.device
) -> None:
    layer = DrowsyConv2d(3, 5, 3, stride=2, padding=(0, 1), rate=rate, device=triton_device)
    layer.pads_first = (0, 1, 2, 0)
    x = torch.randn(2, 3, 7, 6, device=triton_device)
    expected = F.conv2d(F.pad(x, (1, 2, 2, 0)), layer.weight, layer.bias, 2).detach()
    for backend in ("torch", "triton"):
        layer.backend = backend
        layer.control.reseed(0)
        with torch.inference_mode():
            y = layer(x)
        awake = y != 0
        assert bool(awake.all()) == (rate == 0)
        torch.testing.assert_close(y[awake], expected[awake])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_triton_sleeper_is_zero_whatever_it_held(value: float, triton_device: torch.device) -> None:
    layer = DrowsyConv2d(2, 8, 1, rate=0.5, fill="rescale", backend="triton", device=triton_device)
    with torch.inference_mode():
        y = layer(torch.full((2, 2, 6, 6), value, device=triton_device))
    layer.control.reseed(0)
    drawn = levels(layer.sleep, (2, 8, 6, 6), layer.control.clock)
    asleep = expand_cells(drawn < 4, (2, 8, 6, 6), layer.sleep.grain)
    assert (y[asleep] == 0).all()
    assert not y[~asleep].isfinite().any()


@pytest.mark.parametrize("shape", [(0, 3, 6, 6), (2, 3, 6, 6)])
def test_triton_takes_an_empty_batch_and_a_sleeping_layer(
    shape: tuple[int, int, int, int], triton_device: torch.device
) -> None:
    spec = SleepSpec("stratified", "position", k=256)
    layer = DrowsyConv2d(3, 5, 3, sleep=spec, rate=255 / 256, device=triton_device)
    outputs = []
    for backend in ("torch", "triton"):
        layer.backend = backend
        layer.control.reseed(2)
        with torch.inference_mode():
            outputs.append(layer(torch.ones(shape, device=triton_device)))
    torch.testing.assert_close(outputs[1], outputs[0])
    assert outputs[1].shape == (shape[0], 5, 4, 4)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("grain", ["neuron", "position:4", "channel", "tile:4x2"])
@pytest.mark.parametrize(
    ("k", "size"), [(4, (6, 8)), (4, (8, 8)), (4, (32, 16)), (4, (5, 5)), (6, (6, 6))]
)
def test_exact_runs_are_exact(source: str, grain: str, k: int, size: tuple[int, int]) -> None:
    if source in OF_POSITIONS and not Grain.parse(grain).of_single_positions:
        pytest.skip("not a grain of single positions")
    spec, shape = SleepSpec(source, grain, k), (3, 8, *size)
    run = triton.exact_run(spec, shape)
    drawn = levels(spec, shape, torch.tensor([1, 2]), detail_map(torch.randn(3, 1, 8, 8)))
    exact = {
        "stratified": size[0] * size[1] % 4 == 0,
        "lattice": size in ((6, 8), (8, 8), (32, 16)),
        # Of whole images, where those do not straddle two blocks.
        "detail": size in ((8, 8), (32, 16)),
    }
    known = grain in ("neuron", "position:4") and k == 4 and exact.get(source, False)
    assert run == (k if known else None)
    if run is not None:
        for j in range(k):
            blocks = (drawn < j).flatten(0, 1).split(kernels.LIST_BLOCK)
            for block in blocks:
                assert (block.sum(0) * k == j * len(block)).all()
