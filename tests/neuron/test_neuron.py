"""The Drowsy Neuron against the paper's equation, written out as loops in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drowsy.neuron import (
    ACTIVATIONS,
    ConvSize,
    ConvSpec,
    activate,
    awake_conv2d,
    check_activation,
    sleep,
    stencil,
)
from drowsy.neuron.asleep import choose_nearest
from drowsy.neuron.window import WINDOW
from drowsy.sleep import NEIGHBOUR_FILLS, Grain, check_fill, expand_cells, scale

TORCH_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu:0.1": lambda y: F.leaky_relu(y, 0.1),
    "leaky_relu:-0.5": lambda y: F.leaky_relu(y, -0.5),
    "leaky_relu:1e-3": lambda y: F.leaky_relu(y, 1e-3),
    "leaky_relu:1e+16": lambda y: F.leaky_relu(y, 1e16),
    "leaky_relu:-1.5e-07": lambda y: F.leaky_relu(y, -1.5e-7),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def paper_neuron(
    x: Tensor, weight: Tensor, bias: Tensor, asleep: Tensor, rate: float, flavour: str
) -> Tensor:
    """DrowsyNet's equations of section III-A, neuron by neuron: ReLU, stride 1, no padding."""
    images, _, height, width = x.shape
    filters, channels, rows, columns = weight.shape
    out = torch.empty(images, filters, height - rows + 1, width - columns + 1, dtype=torch.float64)
    for n, f, i, j in itertools.product(*map(range, out.shape)):
        total = bias[f].item()
        for c, u, v in itertools.product(range(channels), range(rows), range(columns)):
            total += x[n, c, i + u, j + v].item() * weight[f, c, u, v].item()
        output = max(total, 0.0)
        if flavour == "rescale":
            output = output / (1 - rate)
        out[n, f, i, j] = 0.0 if asleep[n, f, i, j] else output
    return out


@pytest.mark.parametrize("flavour", ["zero", "rescale"])
@pytest.mark.parametrize("j", [0, 1, 4, 7])
def test_both_flavours_follow_the_papers_equation(
    flavour: str, j: int, generator: torch.Generator
) -> None:
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator)
    weight = torch.randn(4, 3, 3, 2, dtype=torch.float64, generator=generator)
    bias = torch.randn(4, dtype=torch.float64, generator=generator)
    levels = torch.randint(0, 8, (2, 9, 4), dtype=torch.uint8, generator=generator)
    asleep = (levels < j).view(2, 3, 3, 4).permute(0, 3, 1, 2)

    awake = awake_conv2d(x, weight, bias, ConvSpec(activation="relu"))
    slept = sleep(awake, levels, j, scale(j, 8, flavour), Grain())

    expected = paper_neuron(x, weight, bias, asleep, j / 8, flavour)
    torch.testing.assert_close(slept, expected, rtol=1e-13, atol=1e-13)
    assert (slept[asleep] == 0).all()
    assert (slept != 0).any()


@pytest.mark.parametrize("name", TORCH_ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_activation_is_torchs(name: str, dtype: torch.dtype) -> None:
    x = torch.linspace(-8, 8, 161, dtype=dtype).view(1, 1, 7, 23)
    identity = torch.ones(1, 1, 1, 1, dtype=dtype)
    y = awake_conv2d(x, identity, None, ConvSpec(activation=name))
    assert torch.equal(y, TORCH_ACTIVATIONS[name](x))
    assert y.dtype == dtype


def test_every_activation_is_tested() -> None:
    tested = {
        "leaky_relu:SLOPE" if name.startswith("leaky") else name for name in TORCH_ACTIVATIONS
    }
    assert tested | {"prelu"} == set(ACTIVATIONS)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_slopes_are_torchs(dtype: torch.dtype, shared: bool, generator: torch.Generator) -> None:
    x = torch.randn(2, 5, 7, 3, generator=generator).to(dtype)
    x[0, 0, 0, 0] = math.nan
    slopes = torch.tensor([-1.5, 0.0, 0.25, 1.0, 3.0], dtype=dtype)
    if shared:
        slopes = slopes[:1].expand(5)
    expected = F.prelu(x, slopes)
    for layout in (torch.contiguous_format, torch.channels_last):
        y = x.clone(memory_format=layout)
        assert activate(y, "prelu", slopes) is y
        assert y.is_contiguous(memory_format=layout)
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    spec = ConvSpec(activation="prelu", groups=5)
    y = awake_conv2d(x, torch.ones(5, 1, 1, 1, dtype=dtype), None, spec, slopes)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


def test_slopes_belong_to_one_activation() -> None:
    with pytest.raises(ValueError, match=r"slopes: got none with activation 'prelu', allowed: a"):
        activate(torch.zeros(1, 2, 1, 1), "prelu")
    with pytest.raises(ValueError, match=r"slopes: got some with activation 'relu'"):
        activate(torch.zeros(1, 2, 1, 1), "relu", torch.zeros(2))


LEAKY = ["leaky_relu", *(f"leaky_relu:{slope}" for slope in ("", "x", "inf", "nan", "1e999"))]


@pytest.mark.parametrize("name", ["relu7", "", "ReLU", *LEAKY])
def test_unknown_activation_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"activation: got .*allowed: none, relu"):
        check_activation(name)


@pytest.mark.parametrize("activation", ["none", "relu", "sigmoid", "hardswish"])
def test_activation_leaves_the_input_as_it_was(activation: str) -> None:
    x = torch.randn(1, 2, 3, 3)
    before = x.clone()
    awake_conv2d(x, torch.randn(2, 2, 1, 1), None, ConvSpec(activation=activation))
    assert torch.equal(x, before)


GEOMETRIES = [
    (3, {"padding": 1}),
    ((2, 4), {"padding": "same"}),
    ((3, 2), {"stride": (2, 3), "padding": (2, 0), "dilation": (2, 1), "groups": 2}),
    (5, {"padding": 2, "padding_mode": "reflect", "stride": 2}),
]


@pytest.mark.parametrize(("kernel", "options"), GEOMETRIES)
def test_sizes_are_those_of_torch(kernel: int | tuple[int, int], options: dict[str, Any]) -> None:
    conv = nn.Conv2d(4, 6, kernel, **options)
    x = torch.randn(2, 4, 9, 11)
    size = ConvSize(tuple(x.shape), tuple(conv.weight.shape), ConvSpec.of_conv(conv))
    assert size.output == conv(x).shape
    assert size.positions == conv(x)[0, 0].numel()
    assert size.window == conv.weight[0].numel()


@pytest.mark.parametrize(("kernel", "options"), GEOMETRIES)
def test_a_specification_is_its_arguments(
    kernel: int | tuple[int, int], options: dict[str, Any]
) -> None:
    spec = ConvSpec.of_conv(nn.Conv2d(4, 6, kernel, **options), "relu6")
    # An operator hands lists on.
    arguments = [list(a) if isinstance(a, tuple) else a for a in spec.arguments()]
    assert ConvSpec.of(*arguments) == spec
    assert hash(ConvSpec.of(*arguments)) == hash(spec)
    names = [argument.split()[-1] for argument in ConvSpec.SCHEMA.split(", ")]
    assert dict(zip(names, spec.arguments(), strict=True)) == vars(spec)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_sleeper_is_zero_whatever_it_held(value: float, factor: float) -> None:
    y = torch.full((1, 2, 1, 2), value)
    levels = torch.tensor([[[0, 5], [7, 1]]], dtype=torch.uint8)
    slept = sleep(y, levels, 2, factor, Grain())
    assert slept[0, :, 0, 0].tolist()[0] == 0
    assert slept[0, :, 0, 1].tolist()[1] == 0
    awake = torch.stack([slept[0, 1, 0, 0], slept[0, 0, 0, 1]])
    torch.testing.assert_close(awake, torch.full((2,), value), equal_nan=True)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_sleep_leaves_its_input_as_it_was(factor: float) -> None:
    y = torch.randn(2, 3, 4, 4)
    before = y.clone()
    levels = torch.randint(0, 8, (2, 16, 3), dtype=torch.uint8)
    slept = sleep(y, levels, 4, factor, Grain())
    assert torch.equal(y, before)
    assert slept.data_ptr() != y.data_ptr()


def test_threshold_and_scale_may_be_tensors() -> None:
    y, levels = torch.randn(2, 3, 4, 4), torch.randint(0, 8, (2, 16, 3), dtype=torch.uint8)
    tensors = sleep(y, levels, torch.tensor(3, dtype=torch.int32), torch.tensor(1.6), Grain())
    assert torch.equal(tensors, sleep(y, levels, 3, 1.6, Grain()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_output_keeps_its_dtype(dtype: torch.dtype) -> None:
    y = torch.randn(1, 2, 2, 2, dtype=dtype)
    levels = torch.randint(0, 8, (1, 4, 2), dtype=torch.uint8)
    assert sleep(y, levels, 3, torch.tensor(1.6), Grain()).dtype == dtype


# --- from awake neighbours -----------------------------------------------------------------------


def random_table(channels: int, generator: torch.Generator) -> Tensor:
    """Weights and constants of ``stencil``; those of neighbours that sleep are NaN: never read."""
    table = torch.randn(256, 9, channels, dtype=torch.float64, generator=generator)
    for number, bit in itertools.product(range(256), range(8)):
        if not number >> bit & 1:
            table[number, bit] = math.nan
    return table


def filled_neuron(y: Tensor, asleep: Tensor, fill: str, table: Tensor) -> Tensor:
    """The definitions of the fills that read neighbours, neuron by neuron in float64."""
    height, width = y.shape[2:]
    window = sorted(
        (dy * dy + dx * dx, dy, dx) for dy, dx in itertools.product(range(-2, 3), repeat=2)
    )
    out = y.double()
    for n, c, i, u in asleep.nonzero().tolist():
        neighbours = [
            (squared, y[n, c, i + dy, u + dx].item())
            for squared, dy, dx in window
            if 0 <= i + dy < height and 0 <= u + dx < width and not asleep[n, c, i + dy, u + dx]
        ]
        if fill == "stencil":
            around = sorted((dy, dx) for squared, dy, dx in window if 0 < squared <= 2)
            steps = [
                bit
                for bit, (dy, dx) in enumerate(around)
                if 0 <= i + dy < height and 0 <= u + dx < width and not asleep[n, c, i + dy, u + dx]
            ]
            weights = table[sum(2**bit for bit in steps), :, c].tolist()
            out[n, c, i, u] = weights[8] + sum(
                weights[bit] * y[n, c, i + around[bit][0], u + around[bit][1]].item()
                for bit in steps
            )
            continue
        if fill == "interpolate":
            chosen = [pair for pair in neighbours if pair[0] <= 2] or neighbours
        else:
            chosen = neighbours[:1]
        total = sum(1 / squared for squared, _ in chosen)
        out[n, c, i, u] = sum(v / squared for squared, v in chosen) / total if chosen else 0.0
    return out


@pytest.mark.parametrize("grain", ["neuron", "position", "position:3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sleepers_alike_or_not_are_predicted_alike(
    grain: str, dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether those with the same awake neighbours are many enough to go by themselves."""
    shape, parsed = (3, 6, 17, 18), Grain.parse(grain)
    cells = -(-shape[1] // parsed.cell(shape[1], 1)[1])
    levels = torch.randint(
        0, 8, (shape[0], shape[2] * shape[3], cells), dtype=torch.uint8, generator=generator
    )
    y = torch.randn(shape, generator=generator).to(dtype)
    table = random_table(shape[1], generator).to(dtype)
    exact = sleep(y.double(), levels, 3, 1.0, parsed, "stencil", table.double())
    for many in (1, 40, 1 << 40):
        monkeypatch.setattr(stencil, "_MANY", many)
        found = sleep(y, levels, 3, 1.0, parsed, "stencil", table)
        # Summed in float32, rounded once.
        torch.testing.assert_close(found, exact.to(dtype), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("grain", ["neuron", "position", "position:2", "tile:1x3"])
@pytest.mark.parametrize("fill", NEIGHBOUR_FILLS)
def test_sleepers_take_from_awake_neighbours(
    fill: str, grain: str, layout: torch.memory_format, generator: torch.Generator
) -> None:
    parsed = Grain.parse(grain)
    for shape, j in (((2, 5, 6, 7), 4), ((1, 5, 7, 6), 7), ((2, 3, 1, 9), 6), ((1, 1, 1, 1), 8)):
        cells = -(-shape[1] // parsed.cell(shape[1], 1)[1])
        levels = torch.randint(
            0, 8, (shape[0], shape[2] * shape[3], cells), dtype=torch.uint8, generator=generator
        )
        asleep = expand_cells(levels < j, shape, parsed)
        y = torch.randn(shape, dtype=torch.float64, generator=generator)
        y = y.contiguous(memory_format=layout)
        # A sleeper's own value is never read, nor is the factor on awake outputs.
        poisoned = y.clone().masked_fill_(asleep, math.nan)
        table = random_table(shape[1], generator)
        slept = sleep(poisoned, levels, j, torch.tensor(8.0), parsed, fill, table)
        exact = filled_neuron(y, asleep, fill, table)
        torch.testing.assert_close(slept, exact, rtol=1e-14, atol=1e-14)
        assert torch.equal(slept[~asleep], y[~asleep])
        assert slept.is_contiguous(memory_format=layout)
        assert torch.equal(poisoned.isnan(), asleep)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("fill", NEIGHBOUR_FILLS)
def test_neighbours_are_added_up_in_float32(
    fill: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    levels = torch.randint(0, 8, (2, 63, 4), dtype=torch.uint8, generator=generator)
    y = torch.randn(2, 4, 9, 7, generator=generator).to(dtype)
    table = random_table(4, generator).to(dtype)
    slept = sleep(y, levels, 4, 1.0, Grain(), fill, table)
    asleep = expand_cells(levels < 4, (2, 4, 9, 7), Grain())
    exact = filled_neuron(y, asleep, fill, table.double())
    assert slept.dtype == dtype
    if fill == "nearest":
        assert torch.equal(slept.double(), exact)
    else:  # one rounding, at the end
        tolerance = torch.finfo(dtype).eps * (4 if dtype == torch.float32 else 1)
        torch.testing.assert_close(slept.double(), exact, rtol=tolerance, atol=tolerance)


def test_three_neurons_in_a_row_take_from_the_first() -> None:
    """The example that ``drowsy.neuron.asleep`` works out for the choice of the nearest."""
    asleep = torch.tensor([False, True, True]).view(1, 1, 1, 3)
    assert choose_nearest(asleep).flatten().tolist() == [0, 2, 10]
    assert [(dy, dx) for _, dy, dx in (WINDOW[2 - 1], WINDOW[10 - 1])] == [(0, -1), (0, -2)]
    y = torch.tensor([1.5, math.nan, math.nan]).view(1, 1, 1, 3)
    filled = sleep(y, asleep.logical_not().byte().view(1, 3, 1), 1, 1.0, Grain(), "nearest")
    assert filled.flatten().tolist() == [1.5, 1.5, 1.5]


@pytest.mark.parametrize("fill", NEIGHBOUR_FILLS)
def test_empty_batch_of_neighbours(fill: str) -> None:
    y, levels = torch.randn(0, 3, 4, 4), torch.empty(0, 16, 3, dtype=torch.uint8)
    assert sleep(y, levels, 4, 1.0, Grain(), fill).shape == y.shape


@pytest.mark.parametrize("grain", ["channel", "channel:4", "tile:2x1", "tile:64x32"])
def test_neighbour_fills_need_cells_of_single_positions(grain: str) -> None:
    for fill in NEIGHBOUR_FILLS:
        with pytest.raises(ValueError, match=rf"fill: got '{fill}' with grain {grain}, allowed: z"):
            check_fill(fill, Grain.parse(grain))
    assert check_fill("rescale", Grain.parse(grain)) == "rescale"
    assert {scale(4, 8, fill) for fill in NEIGHBOUR_FILLS} == {1.0}
