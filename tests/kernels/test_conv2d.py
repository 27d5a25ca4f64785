"""The convolution kernels against eager torch in float64.

Error budget: no further from float64 than eager torch in the same dtype, plus the rounding that
the order of a sum of K terms may add in float32, plus one rounding of the result (eager may happen
to hit the exact value).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

import drowsy_kernels as kernels
import pytest
import torch
from drowsy_kernels.epilogue import parse_activation
from torch import Tensor

from drowsy.neuron import ConvSpec, activate, awake_conv2d, check_activation
from drowsy.sleep import Grain, SleepSpec, expand_cells, levels, pack_bitmap
from tests.kernels.moving import moved
from tests.kernels.slopes import slopes_of

POST = ("none", "relu", "silu", "prelu")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ACTIVATIONS = (*kernels.ACTIVATIONS[:-1], "leaky_relu:0.1")
# Lists that the sweep makes of a map of each grain. Lists of narrow cells make many tiles, too
# many for an interpreter; ``test_lists_of_any_cell`` has them small.
LISTS = {
    "neuron": ("none",),
    "position": ("none", "rows"),
    "position:16": ("none", "rows"),
    "channel": ("none", "channels"),
    "tile:64x32": ("none", "cells"),
    "tile:200x16": ("none", "cells", "channels"),
}
GRAINS = (
    "neuron",
    "position",
    "position:3",
    "position:16",
    "channel",
    "tile:5x4",
    "tile:64x32",
    "tile:200x16",
)


@dataclass(frozen=True)
class Case:
    """One convolution; a default 3x3 layer with whatever a test changes."""

    dtype: str = "fp16"
    images: int = 2
    channels: int = 8
    size: tuple[int, int] = (9, 7)
    out_channels: int = 20
    groups: int = 1
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    activation: str = "relu"
    grain: str = "neuron"
    bias: bool = True
    config: kernels.ConvConfig | None = None
    lists: str = "none"
    block: int = 0
    residual: bool = False
    post: str = "none"

    def __str__(self) -> str:
        def joined(values: tuple[int, ...]) -> str:
            return "x".join(map(str, values))

        return (
            f"{self.dtype}-N{self.images}-C{self.channels}-{joined(self.size)}"
            f"-O{self.out_channels}-g{self.groups}-k{joined(self.kernel)}-s{joined(self.stride)}"
            f"-p{joined(self.padding)}-d{joined(self.dilation)}-{self.activation}-{self.grain}"
            f"-{'bias' if self.bias else 'plain'}-{self.config or 'auto'}"
            f"-{self.lists}-x{self.block}-{'residual' if self.residual else 'alone'}-{self.post}"
        )

    @property
    def depth(self) -> int:
        """Terms of a sum."""
        return self.channels // self.groups * math.prod(self.kernel)

    @property
    def geometry(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "activation": self.activation,
        }


@dataclass(frozen=True)
class Layer:
    """A case's tensors: operands, sleep bits and float64 output with everyone awake."""

    case: Case
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    asleep: Tensor
    bitmap: Tensor
    cell: tuple[int, int]
    awake: Tensor
    cells: Tensor
    residual: Tensor | None
    x_blocks: kernels.AwakeBlocks | None

    def expected(self, scale: float) -> Tensor:
        """The output in float64 where awake neurons are scaled."""
        y = (self.awake * scale).masked_fill(self.asleep, 0)
        if self.residual is not None:
            y = y + self.residual.double()
        return activate(y, self.case.post, slopes_of(self.case.post, y.shape[1], y))

    def eager(self, dtype: torch.dtype) -> Tensor:
        slopes = slopes_of(self.case.activation, self.case.out_channels, self.x)
        # Strides are those of what it gives: at 3, oneDNN's bfloat16 is of memory that nobody wrote
        # (pytorch#169688).
        y = awake_conv2d(
            self.x.to(dtype),
            self.weight.to(dtype),
            None if self.bias is None else self.bias.to(dtype),
            ConvSpec(groups=self.case.groups, **{**self.case.geometry, "stride": (1, 1)}),
            None if slopes is None else slopes.to(dtype),
        )
        down, across = self.case.stride
        return y[:, :, ::down, ::across]

    def run(self, **changes: Any) -> Tensor:
        """``kernels.conv2d`` into a buffer of NaN."""
        out = torch.full_like(self.awake, math.nan, dtype=self.x.dtype)
        arguments: dict[str, Any] = {
            "bitmap": self.bitmap,
            "cell": self.cell,
            "out": out.contiguous(memory_format=torch.channels_last),
            "config": self.case.config,
            "awake": self.lists(),
            "x_blocks": self.x_blocks,
            "residual": self.residual,
            "post_activation": self.case.post,
            "slopes": slopes_of(self.case.activation, self.case.out_channels, self.x),
            "post_slopes": slopes_of(self.case.post, self.case.out_channels, self.x),
            **self.case.geometry,
        }
        weight = kernels.pack_weight(self.weight, self.case.groups)
        return kernels.conv2d(self.x, weight, self.bias, **arguments | changes)

    def lists(self) -> Any:
        """What ``lists.py`` would make of the map."""
        channels = self.awake.shape[1]
        kind, awake = self.case.lists, ~self.cells
        if kind == "cells":
            return kernels.AwakeCells(*listed(awake.reshape(1, -1), flat=True))
        if kind == "rows":
            return kernels.AwakeRows(*listed(awake.flatten(0, 1).t()))
        if kind == "channels":
            wide = awake[:, 0].repeat_interleave(self.cell[1], dim=1)[:, :channels]
            return kernels.AwakeChannels(*listed(wide))
        return None

    def check(
        self, y: Tensor, expected: Tensor, scale: float = 1.0, precision: str = "ieee"
    ) -> None:
        """Assert that ``y`` is within the budget of ``expected`` (float64).

        Tensor cores may cut TF32 operands to 10 explicit bits of mantissa where eager rounds them:
        every product is then up to 2^-9 smaller, and a sum, whose errors partly cancel, 2^-10 off.
        """
        dtype = DTYPES[self.case.dtype]
        eager = (self.eager(dtype).double() - self.awake).abs().max() * scale
        largest = expected.abs().max()
        order = torch.finfo(torch.float32).eps * math.sqrt(self.case.depth)
        rounding = 2.0**-10 if precision == "tf32" else torch.finfo(dtype).eps / 2
        budget = eager + order * torch.clamp(largest, min=1.0) + rounding * largest
        error = (y.double() - expected).abs().max()
        assert error <= budget, f"error {error:.3e}, budget {budget:.3e}"


def listed(awake: Tensor, flat: bool = False) -> tuple[Tensor, Tensor]:
    """Indices of what is awake in every row of a matrix, then nonsense; and how many they are."""
    counts = awake.sum(dim=1, dtype=torch.int32)
    indices = torch.full(awake.shape, 2**30, dtype=torch.int32, device=awake.device)
    for row, count, members in zip(indices, counts, awake, strict=True):
        row[:count] = members.nonzero()[:, 0]
    return (indices.flatten() if flat else indices), counts


def make_layer(case: Case, device: torch.device, j: int = 4) -> Layer:
    """Draw a case's tensors; ``j`` eighths of its cells sleep."""
    dtype, n = DTYPES[case.dtype], case.images
    shape = (case.out_channels, case.channels // case.groups, *case.kernel)
    x = torch.randn(n, case.channels, *case.size).to(device, dtype)
    weight = (torch.randn(shape) / math.sqrt(case.depth)).to(device, dtype)
    bias = torch.randn(case.out_channels).to(device, dtype) if case.bias else None
    x_blocks = None
    if case.block:
        awake_blocks = torch.rand(n, -(-case.channels // case.block)) < 0.6
        wide = awake_blocks.repeat_interleave(case.block, dim=1)[:, : case.channels]
        x *= wide[:, :, None, None].to(device)
        x_blocks = kernels.AwakeBlocks(*listed(awake_blocks.to(device)), case.block)
    empty = torch.empty(0, device=device)
    layer = Layer(case, x, weight, bias, empty, empty, (1, 1), empty, empty, None, x_blocks)
    awake = layer.eager(torch.float64)
    out_shape = (n, case.out_channels, awake.shape[2], awake.shape[3])
    spec = SleepSpec("bernoulli", case.grain)
    cells = levels(spec, out_shape, torch.tensor([5, 0], device=device)) < j
    grain = Grain.parse(case.grain)
    residual = None
    if case.residual:
        residual = torch.randn(out_shape).to(device, dtype)
        residual = residual.contiguous(memory_format=torch.channels_last)
    return Layer(
        case,
        x,
        weight,
        bias,
        expand_cells(cells, out_shape, grain),
        pack_bitmap(cells),
        grain.cell(case.out_channels, out_shape[2] * out_shape[3]),
        awake,
        cells,
        residual,
        x_blocks,
    )


INTS = torch.zeros(63, dtype=torch.int32)
MAP: dict[str, Any] = {"bitmap": INTS.view(1, 63, 1), "cell": (1, 1)}


def random_cases(count: int) -> list[Case]:
    """Layers drawn from the whole space of parameters; those that torch refuses are redrawn."""
    draw = random.Random(2017)
    cases: list[Case] = []
    while len(cases) < count:
        groups = draw.choice((1, 1, 1, 2, 3))
        dtype = draw.choice(tuple(DTYPES))
        channels = groups * draw.choice((1, 3, 5, 16, 33, 64, 80))
        shipped = kernels.SHIPPED_CONFIGS["single" if dtype == "fp32" else "half"]
        fixed = draw.choice(shipped) if channels > groups and draw.random() < 0.5 else None
        if fixed is not None:
            fixed = replace(fixed, split_k=draw.choice((1, 1, 2, 3)), group_m=draw.choice((1, 8)))
        grain = draw.choice(GRAINS)
        block = (
            0 if draw.random() < 0.5 else draw.choice((16, 32)) if fixed is None else fixed.block_k
        )
        case = Case(
            dtype=dtype,
            images=draw.choice((1, 2)),
            channels=channels,
            size=draw.choice(((9, 7), (12, 12), (6, 15), (1, 5))),
            out_channels=groups * draw.choice((1, 5, 16, 33, 70)),
            groups=groups,
            kernel=draw.choice(((1, 1), (3, 3), (3, 1), (2, 5))),
            stride=(draw.choice((1, 2)), draw.choice((1, 3))),
            padding=tuple(draw.choice((0, 1, 2)) for _ in range(4)),  # type: ignore[arg-type]
            dilation=(draw.choice((1, 2)), draw.choice((1, 2))),
            activation=draw.choice(ACTIVATIONS),
            grain=grain,
            bias=draw.random() < 0.8,
            config=fixed,
            lists=draw.choice(LISTS.get(grain, ("none",))),
            block=block,
            residual=draw.random() < 0.4,
            post=draw.choice(POST),
        )
        try:
            kernels.output_size(case.size, case.kernel, case.stride, case.padding, case.dilation)
        except ValueError:
            continue
        cases.append(case)
    return cases


@pytest.mark.parametrize("case", random_cases(100), ids=str)
def test_sweep(case: Case, triton_device: torch.device) -> None:
    layer = make_layer(case, triton_device)
    y = layer.run(scale=torch.tensor([2.0], device=triton_device))
    assert y.permute(0, 2, 3, 1).is_contiguous()
    expected = layer.expected(2)
    if case.lists in ("cells", "rows") and y.isnan().any():
        # A list was followed; sleepers are left to whoever fills them, all of them.
        assert torch.equal(y.isnan(), layer.asleep)
        y[layer.asleep] = expected[layer.asleep].to(y.dtype)
    layer.check(y, expected, scale=2)


@pytest.mark.parametrize(
    ("lists", "grain"),
    [
        *(("cells", grain) for grain in ("neuron", "position:3", "channel", "tile:4x4")),
        *(("rows", grain) for grain in ("neuron", "position", "position:3")),
        *(("channels", grain) for grain in ("channel", "tile:16x4")),
    ],
)
@pytest.mark.parametrize("j", [0, 3, 8])
def test_lists_of_any_cell(lists: str, grain: str, j: int, triton_device: torch.device) -> None:
    """Cells narrower than a tile, and maps without an awake or a sleeping neuron."""
    case = Case(
        "fp32",
        size=(2, 3),
        out_channels=5,
        kernel=(1, 2),
        padding=(1, 0, 0, 0),
        grain=grain,
        lists=lists,
        residual=True,
    )
    layer = make_layer(case, triton_device, j)
    y = layer.run()
    if lists != "channels":
        assert torch.equal(y.isnan(), layer.asleep)
        y = y.where(~layer.asleep, layer.residual)
    layer.check(y, layer.expected(1))


NUMBERS = ("0.1", "-0.5", "1e-3", "1e16", "1e+16", "-1.5e-07", "3.", "1e308")
NO_NUMBERS = (
    "",
    "x",
    "inf",
    "nan",
    "1e999",
    "-1e999",
    "1e",
    "1e+",
    ".5",
    "+1",
    "1 ",
    "0x1",
    "1_0",
    "\u0663",
)


@pytest.mark.parametrize("slope", NUMBERS)
def test_a_slope_is_a_finite_number(slope: str) -> None:
    name = f"leaky_relu:{slope}"
    assert parse_activation(name) == ("leaky_relu", float(slope))
    assert parse_activation(check_activation(name)) == ("leaky_relu", float(slope))


@pytest.mark.parametrize("slope", NO_NUMBERS)
def test_other_slopes_are_refused_as_drowsy_refuses_them(slope: str) -> None:
    for check in (parse_activation, check_activation):
        with pytest.raises(ValueError, match="activation: got"):
            check(f"leaky_relu:{slope}")


@pytest.mark.parametrize("j", [0, 3, 8])
@pytest.mark.parametrize(("block_m", "block_n"), [(64, 32), (128, 64)])
@pytest.mark.parametrize(
    ("cell", "out_channels"), [(2, 70), (4, 100), (8, 136), (8, 70), (16, 136), (24, 80), (200, 40)]
)
def test_channels_are_listed_by_whole_cells(
    cell: int, out_channels: int, block_m: int, block_n: int, j: int, triton_device: torch.device
) -> None:
    """Of two channels and more, also where the last cell is narrower: runs of the list in vectors.

    What is written is what the map masks. To the last place, since the interpreter's products of
    matrices add in an order that goes by a column's place.
    """
    case = Case(
        channels=32,
        size=(8, 9),
        out_channels=out_channels,
        kernel=(1, 1),
        padding=(0, 0, 0, 0),
        grain=f"tile:200x{cell}",
        config=kernels.ConvConfig(block_m, block_n, 32, 4, 4),
        lists="channels",
        residual=True,
        post="silu",
    )
    layer = make_layer(case, triton_device, j)
    y = layer.run()
    torch.testing.assert_close(y, layer.run(awake=None), rtol=2**-10, atol=2**-10)
    layer.check(y, layer.expected(1))


# Tiles that the epilogue takes in two or four parts: those of 256 rows, and float32.
IN_PARTS = [
    *(("fp16", config) for config in kernels.SHIPPED_CONFIGS["half"] if config.block_m == 256),
    *(
        ("fp32", config)
        for config in kernels.SHIPPED_CONFIGS["tf32"]
        if config.block_k == 32
        and (config.block_m, config.block_n) in ((64, 64), (64, 128), (128, 32), (128, 128))
    ),
]


@pytest.mark.parametrize(
    ("dtype", "config"), IN_PARTS, ids=[f"{dtype} {config}" for dtype, config in IN_PARTS]
)
@pytest.mark.parametrize(
    ("grain", "lists"),
    [
        ("neuron", "none"),
        ("position", "none"),
        ("channel", "none"),
        ("position", "rows"),
        ("position:16", "rows"),
        ("tile:64x32", "cells"),
        ("channel", "channels"),
        ("tile:200x8", "channels"),
    ],
)
def test_tiles_in_parts(
    grain: str,
    lists: str,
    dtype: str,
    config: kernels.ConvConfig,
    triton_device: torch.device,
) -> None:
    """Rows and columns of the last tiles end within one."""
    case = Case(
        dtype,
        channels=64,
        size=(14, 13),
        out_channels=160,
        kernel=(1, 3),
        padding=(1, 1, 0, 0),
        grain=grain,
        lists=lists,
        config=config,
        residual=True,
        post="relu",
    )
    layer = make_layer(case, triton_device)
    y = layer.run(scale=torch.tensor([2.0], device=triton_device))
    expected = layer.expected(2)
    if lists in ("cells", "rows"):
        assert torch.equal(y.isnan(), layer.asleep)
        y[layer.asleep] = expected[layer.asleep].to(y.dtype)
    layer.check(y, expected, scale=2)


def test_configurations_fit_the_layer() -> None:
    def chosen(positions: int, channels: int, out_channels: int, **options: Any) -> str:
        config = kernels.choose_config(
            images=256,
            positions=positions,
            channels_per_group=channels,
            out_channels_per_group=out_channels,
            groups=1,
            dtype=torch.bfloat16,
            **options,
        )
        return str(config)

    rows: dict[str, Any] = {"awake": "rows", "cell": (1, 256)}
    assert chosen(56 * 56, 256, 256, taps=9, **rows) == "256x128x64-w8-s3"
    assert chosen(56 * 56, 64, 64, taps=9, **rows) == "256x64x64-w8-s3"
    # One K step: an epilogue should run beside another program's loads.
    assert chosen(56 * 56, 64, 256, taps=1, **rows) == "128x128x64-w8-s3"
    # A tile that fits into a cell can be skipped.
    assert chosen(56 * 56, 256, 256, taps=9, awake="cells", cell=(128, 128)).startswith("128x128")
    # Where tiles end with an image's positions, tall ones would compute none.
    channels: dict[str, Any] = {"taps": 9, "awake": "channels"}
    assert chosen(49, 64, 64, cell=(49, 1), **channels) == "64x64x64-w4-s4"
    assert chosen(49, 512, 512, cell=(49, 1), **channels) == "64x64x64-w4-s4"
    assert chosen(56 * 56, 256, 256, cell=(56 * 56, 1), **channels) == "256x64x64-w8-s3"
    assert chosen(49, 512, 512, taps=9, awake="cells", cell=(49, 128)).startswith("64x")


@pytest.mark.parametrize("lists", ["cells", "channels"])
@pytest.mark.parametrize("groups", [3, 8])
def test_lists_that_cannot_be_followed(
    lists: str, groups: int, triton_device: torch.device
) -> None:
    """The bitmap is, and sleepers are written."""
    channels = 8 if groups == 8 else 48
    case = Case(channels=channels, out_channels=48, groups=groups, grain="tile:63x10", lists=lists)
    layer = make_layer(case, triton_device)
    layer.check(layer.run(), layer.expected(1))


# Sums of sleeping tiles are whatever the workspace held.
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("split_k", [2, 4])
@pytest.mark.parametrize("grain", ["neuron", "position", "tile:64x16"])
def test_split_k(split_k: int, grain: str, triton_device: torch.device) -> None:
    config = kernels.ConvConfig(64, 16, 16, 4, 3, split_k=split_k)
    case = Case(
        "fp32", channels=70, grain=grain, config=config, residual=True, post="silu", size=(9, 9)
    )
    layer = make_layer(case, triton_device)
    layer.check(layer.run(), layer.expected(1))


def test_sleeping_input_blocks_are_not_read(triton_device: torch.device) -> None:
    layer = make_layer(Case(channels=80, block=16, grain="channel"), triton_device)
    assert layer.x_blocks is not None
    for lists in ("none", "channels"):
        case = replace(layer.case, lists=lists)
        expected = replace(layer, case=case, x_blocks=None).run()
        poisoned = layer.x.masked_fill(layer.x == 0, math.nan)
        y = replace(layer, case=case, x=poisoned).run()
        assert torch.equal(y, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, triton_device: torch.device) -> None:
    layer = make_layer(Case("fp32", activation=activation), triton_device)
    layer.check(layer.run(bitmap=None, cell=None), layer.awake)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_reach_the_awake(activation: str, triton_device: torch.device) -> None:
    case = Case(
        "fp32",
        channels=1,
        size=(1, 3),
        out_channels=1,
        kernel=(1, 1),
        padding=(0, 0, 0, 0),
        activation=activation,
        bias=False,
    )
    layer = make_layer(case, triton_device)
    layer.x.copy_(torch.tensor([math.nan, math.inf, -math.inf]).view(1, 1, 1, 3).expand(2, 1, 1, 3))
    layer.weight.fill_(1)
    y, expected = layer.run(bitmap=None, cell=None), layer.eager(torch.float64).float()
    torch.testing.assert_close(y, expected, equal_nan=True)


@pytest.mark.parametrize("end", [0, -1])
@pytest.mark.parametrize(("groups", "out_channels"), [(1, 70), (2, 128), (2, 70), (8, 72)])
def test_grains_mask_and_nothing_else(
    groups: int, out_channels: int, end: int, triton_device: torch.device
) -> None:
    """Awake neurons are bit for bit what they are without sleep; sleepers are 0."""
    config = kernels.SHIPPED_CONFIGS["depthwise" if groups == 8 else "half"][end]
    awake = None
    for grain in (*GRAINS, "tile:64x64", "tile:32x128", "position:128"):
        case = Case(images=1, out_channels=out_channels, groups=groups, grain=grain, size=(12, 9))
        torch.manual_seed(0)
        layer = make_layer(case, triton_device)
        if awake is None:
            awake = layer.run(bitmap=None, cell=None, config=config)
        y = layer.run(config=config)
        assert torch.equal(y, awake.masked_fill(layer.asleep, 0)), grain


@pytest.mark.parametrize("groups", [1, 8])
def test_all_asleep(groups: int, triton_device: torch.device) -> None:
    layer = make_layer(Case(out_channels=16, groups=groups), triton_device, j=8)
    assert layer.asleep.all()
    assert not layer.run().any()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_sleepers_of_a_poisoned_input_are_zero(
    poison: float, groups: int, triton_device: torch.device
) -> None:
    layer = make_layer(Case(out_channels=16, groups=groups), triton_device)
    layer.x.fill_(poison)
    y = layer.run()
    assert not y[layer.asleep].any()
    assert y[~layer.asleep].isnan().any()


@pytest.mark.skipif(not kernels.interpreted(), reason="counts the interpreter's dot products")
def test_sleeping_tiles_do_no_work(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    products = 0
    create_dot = InterpreterBuilder.create_dot

    def counting(*arguments: Any) -> Any:
        nonlocal products
        products += 1
        return create_dot(*arguments)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counting)
    config = kernels.ConvConfig(64, 32, 32, 4, 3)
    case = Case(channels=32, size=(16, 12), out_channels=96, grain="tile:64x32", config=config)
    layer = make_layer(case, triton_device)
    rows = layer.bitmap & 0b111  # two images x three tiles of positions, a bit per channel tile
    awake = sum(3 - int(row).bit_count() for row in rows.flatten())
    assert 0 < awake < 18

    layer.run()
    assert products == awake * 9  # a K step per tap

    products = 0
    layer.run(bitmap=torch.full_like(layer.bitmap, 0b111))
    assert products == 0


def test_a_sleeping_channel_tile_never_meets_its_weights(triton_device: torch.device) -> None:
    case = Case(out_channels=64, grain="channel", config=kernels.ConvConfig(64, 32, 32, 4, 3))
    layer = make_layer(case, triton_device)
    asleep = torch.arange(64, device=triton_device) >= 32
    poisoned = replace(
        layer, weight=layer.weight.masked_fill(asleep[:, None, None, None], math.nan)
    )
    y = poisoned.run(bitmap=pack_bitmap(asleep.expand(2, 1, 64)))
    assert not y[:, 32:].any()
    layer.check(y[:, :32], layer.awake[:, :32])


def test_padding_bits_do_not_keep_a_tile_awake(triton_device: torch.device) -> None:
    """Only bits of real cells count: 20 channels leave 12 zero bits in their word."""
    layer = make_layer(Case(out_channels=20), triton_device)
    bitmap = torch.full_like(layer.bitmap, (1 << 20) - 1)
    layer.x.fill_(math.nan)
    assert not layer.run(bitmap=bitmap).any()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layouts_of_input_and_weight(
    memory_format: torch.memory_format, triton_device: torch.device
) -> None:
    layer = make_layer(Case(), triton_device)
    weight = kernels.pack_weight(layer.weight.contiguous(memory_format=memory_format))
    x = torch.cat([layer.x, layer.x], dim=1)[:, :8].contiguous(memory_format=memory_format)
    y = kernels.conv2d(x, weight, layer.bias, **layer.case.geometry)
    assert torch.equal(y, layer.run(bitmap=None, cell=None, out=None))
    sliced = torch.cat([layer.x, layer.x], dim=3)[..., :7]
    y = kernels.conv2d(sliced, weight, layer.bias, **layer.case.geometry)
    assert torch.equal(y, layer.run(bitmap=None, cell=None, out=None))


def test_packing_a_channels_last_weight_copies_nothing() -> None:
    weight = torch.randn(6, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    assert kernels.pack_weight(weight).data.data_ptr() == weight.data_ptr()
    assert kernels.pack_weight(weight).shares_memory(weight)
    assert not kernels.pack_weight(weight.contiguous()).shares_memory(weight)
    assert kernels.pack_weight(torch.randn(6, 3, 3, 3)).data.shape == (6, 36)
    assert kernels.pack_weight(torch.randn(6, 1, 3, 3), groups=6).data.shape == (9, 6)


def test_float32_bias_with_half_weights(triton_device: torch.device) -> None:
    layer = make_layer(Case(), triton_device)
    assert layer.bias is not None
    weight = kernels.pack_weight(layer.weight)
    y = kernels.conv2d(layer.x, weight, layer.bias.float(), **layer.case.geometry)
    assert torch.equal(y, layer.run(bitmap=None, cell=None))


@pytest.mark.parametrize("channels", [16, 40])
def test_tf32(channels: int, triton_device: torch.device) -> None:
    layer = make_layer(Case("fp32", channels=channels), triton_device)
    y = layer.run(bitmap=None, cell=None, precision="tf32")
    layer.check(y, layer.awake, precision="tf32")


def test_empty_batch_and_no_channels(triton_device: torch.device) -> None:
    geometry = Case().geometry
    weight = kernels.pack_weight(torch.randn(4, 8, 3, 3, device=triton_device))
    none = torch.empty(0, 8, 9, 7, device=triton_device)
    assert kernels.conv2d(none, weight, **geometry).shape == (0, 4, 9, 7)
    bitmap = torch.empty(0, 63, 1, dtype=torch.int32, device=triton_device)
    y = kernels.conv2d(none, weight, bitmap=bitmap, cell=(1, 1), **geometry)
    assert y.shape == (0, 4, 9, 7)
    nothing = kernels.pack_weight(torch.empty(0, 8, 3, 3, device=triton_device))
    x = torch.randn(2, 8, 9, 7, device=triton_device)
    assert kernels.conv2d(x, nothing, **geometry).shape == (2, 0, 9, 7)


@pytest.mark.parametrize(("images", "wide"), [(2, False), (3, True)])
def test_offsets_are_of_64_bits_where_they_must_be(images: int, wide: bool) -> None:
    """Planned from tensors without memory: 2**30 elements an image, less a row."""
    x = torch.empty(images, 64, 4095, 4096, dtype=torch.float16, device="meta")
    weight = kernels.pack_weight(torch.empty(64, 64, 1, 1, dtype=torch.float16, device="meta"))
    _, (launch,) = kernels.plan_conv2d(x, weight)
    assert launch.arguments["WIDE"] is wide


def test_too_many_rows_are_refused() -> None:
    x = torch.empty(2**15, 1, 2**8, 2**8, device="meta")
    weight = kernels.pack_weight(torch.empty(1, 1, 1, 1, device="meta"))
    with pytest.raises(ValueError, match="output positions"):
        kernels.plan_conv2d(x, weight)


def test_few_channels_may_lie_far_apart(triton_device: torch.device) -> None:
    """2**30 elements from channel to channel; what lies between is never touched."""
    memory = torch.empty(2**31 + 64, dtype=torch.float16, device=triton_device)
    x = memory.as_strided((1, 3, 8, 8), (0, 2**30, 8, 1))
    x.copy_(torch.randn(1, 3, 8, 8))
    weight = kernels.pack_weight(torch.randn(4, 3, 3, 3).to(triton_device, torch.float16))
    assert torch.equal(kernels.conv2d(x, weight), kernels.conv2d(x.contiguous(), weight))


def test_a_residual_in_the_memory_of_the_output_is_refused(triton_device: torch.device) -> None:
    x = torch.randn(1, 8, 4, 4, device=triton_device).contiguous(memory_format=torch.channels_last)
    y = torch.zeros_like(x)
    weight = kernels.pack_weight(torch.randn(8, 8, 1, 1, device=triton_device))
    with pytest.raises(ValueError, match="residual: got the memory of out"):
        kernels.conv2d(x, weight, residual=y, out=y)


def test_more_than_2_to_31_elements(cuda_device: torch.device) -> None:
    """5 GB: nothing for an interpreter."""
    x = torch.randn(33, 64, 1024, 1024, dtype=torch.float16, device=cuda_device)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = kernels.pack_weight(torch.randn(16, 64, 1, 1, dtype=torch.float16, device=cuda_device))
    y = kernels.conv2d(x, weight, stride=(512, 512))
    assert torch.equal(y[-1:], kernels.conv2d(x[-1:], weight, stride=(512, 512)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "mish"}, "activation: got 'mish'"),
        ({"activation": "leaky_relu"}, "activation"),
        ({"precision": "fp8"}, "precision"),
        ({"stride": (0, 1)}, "stride"),
        ({"dilation": (1, 0)}, "dilation"),
        ({"padding": (1, 1)}, "padding"),
        ({"padding": (-1, 0, 0, 0)}, "padding"),
        ({"dilation": (9, 9)}, "extent"),
        ({"x": torch.zeros(1, 8, 9, 7, dtype=torch.float64)}, "x: got torch.float64"),
        ({"x": torch.zeros(1, 8, 9, 7, dtype=torch.float16)}, "one dtype"),
        ({"x": torch.zeros(1, 7, 9, 7)}, "x: got shape"),
        ({"x": torch.zeros(8, 9, 7)}, "x: got shape"),
        ({"bias": torch.zeros(5)}, "bias: got shape"),
        ({"bias": torch.zeros(4, dtype=torch.float16)}, "bias: got torch.float16"),
        ({"scale": torch.zeros(2)}, "scale"),
        ({"scale": torch.zeros(1, dtype=torch.float64)}, "scale"),
        ({"cell": (1, 1)}, "bitmap, cell"),
        ({"bitmap": torch.zeros(1, 63, 1, dtype=torch.int32)}, "bitmap, cell"),
        ({"bitmap": torch.zeros(1, 62, 1, dtype=torch.int32), "cell": (1, 1)}, "bitmap: got shape"),
        ({"bitmap": torch.zeros(1, 63, 1), "cell": (1, 1)}, "bitmap: got torch.float32"),
        ({"bitmap": torch.zeros(1, 63, 1, dtype=torch.int32), "cell": (0, 1)}, "cell"),
        ({"out": torch.zeros(1, 4, 9, 7)}, "out"),
        ({"residual": torch.zeros(1, 4, 9, 7)}, "residual"),
        ({"residual": torch.zeros(4, 9, 7)}, "residual"),
        ({"post_activation": "mish"}, "activation: got 'mish'"),
        ({"activation": "prelu"}, "slopes: got none with activation 'prelu'"),
        ({"slopes": torch.zeros(4)}, "slopes: got some with activation 'none'"),
        ({"activation": "prelu", "slopes": torch.zeros(5)}, "slopes: got shape"),
        ({"activation": "prelu", "slopes": torch.zeros(())}, "slopes: got shape"),
        (
            {"activation": "prelu", "slopes": torch.zeros(4, dtype=torch.float64)},
            "slopes: got torch.float64",
        ),
        ({"post_activation": "prelu"}, "post_slopes: got none with post_activation 'prelu'"),
        ({"awake": kernels.AwakeCells(INTS, INTS)}, "awake: got a list without"),
        ({"awake": INTS, **MAP}, "awake: got Tensor"),
        ({"awake": kernels.AwakeCells(INTS, INTS), **MAP}, "awake.indices: got shape"),
        (
            {"awake": kernels.AwakeRows(INTS[None].expand(4, 63).contiguous(), INTS), **MAP},
            "awake.counts: got shape",
        ),
        ({"awake": kernels.AwakeChannels(INTS, INTS), **MAP}, "AwakeChannels of cells"),
        ({"x_blocks": kernels.AwakeBlocks(INTS, INTS, 16)}, "x_blocks.indices: got shape"),
        (
            {"x_blocks": kernels.AwakeBlocks(INTS[:8, None].T.contiguous(), INTS[:1], 1)},
            "x_blocks",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(
    change: dict[str, Any], message: str, triton_device: torch.device
) -> None:
    arguments = {"x": torch.zeros(1, 8, 9, 7), "padding": (1, 1, 1, 1), **change}
    arguments = {name: moved(value, triton_device) for name, value in arguments.items()}
    weight = kernels.pack_weight(torch.zeros(4, 8, 3, 3, device=triton_device))
    with pytest.raises((ValueError, TypeError), match=message):
        kernels.conv2d(arguments.pop("x"), weight, arguments.pop("bias", None), **arguments)


@pytest.mark.parametrize(
    ("weight", "groups", "message"),
    [
        (torch.zeros(4, 8, 3, 3, dtype=torch.float64), 1, "weight: got torch.float64"),
        (torch.zeros(4, 8, 3), 1, "weight: got shape"),
        (torch.zeros(4, 8, 3, 3), 3, "groups: got 3"),
        (torch.zeros(4, 8, 3, 3), 0, "groups: got 0"),
    ],
    ids=["dtype", "shape", "groups", "no-groups"],
)
def test_bad_weights_are_named(weight: Tensor, groups: int, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        kernels.pack_weight(weight, groups)
