"""The convolution on tensor descriptors against eager torch in float64.

Error budget: no further from float64 than eager torch in the same dtype, plus the rounding that
the order of a sum of K terms may add in float32, plus one rounding of the result.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import drowsy_kernels as kernels
import pytest
import torch
from torch import Tensor

from drowsy.neuron import ConvSpec, activate, awake_conv2d
from drowsy.sleep import Grain, SleepSpec, expand_cells, levels, pack_bitmap
from tests.kernels.slopes import slopes_of

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
GRAINS = (
    "neuron",
    "position",
    "position:2",
    "position:3",
    "position:32",
    "channel",
    "tile:5x4",
    "tile:32x64",
    "tile:64x128",
)


@dataclass(frozen=True)
class Case:
    """One stride-1 convolution; a default 3x3 layer with whatever a test changes."""

    dtype: str = "fp16"
    images: int = 2
    channels: int = 24
    size: tuple[int, int] = (9, 7)
    out_channels: int = 40
    kernel: tuple[int, int] = (3, 3)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    activation: str = "relu"
    post_activation: str = "none"
    grain: str = "neuron"
    bias: bool = True
    residual: bool = False
    config: kernels.ConvConfig | None = None

    def __str__(self) -> str:
        return "-".join(
            str(value).replace(" ", "").replace("(", "").replace(")", "")
            for value in self.__dict__.values()
        )

    @property
    def depth(self) -> int:
        """Terms of a sum."""
        return self.channels * math.prod(self.kernel)


@dataclass(frozen=True)
class Layer:
    """A case's tensors: operands, sleep bits and the float64 output with everyone awake."""

    case: Case
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None
    asleep: Tensor
    bitmap: Tensor
    cell: tuple[int, int]
    awake: Tensor

    def run(self, **changes: Any) -> Tensor:
        """``kernels.conv2d_box`` into a buffer of NaN."""
        case = self.case
        out = torch.full_like(self.awake, math.nan, dtype=self.x.dtype)
        arguments: dict[str, Any] = {
            "padding": case.padding,
            "dilation": case.dilation,
            "activation": case.activation,
            "post_activation": case.post_activation,
            "slopes": slopes_of(case.activation, case.out_channels, self.x),
            "post_slopes": slopes_of(case.post_activation, case.out_channels, self.x),
            "bitmap": self.bitmap,
            "cell": self.cell,
            "residual": self.residual,
            "out": out.contiguous(memory_format=torch.channels_last),
            "config": case.config,
        }
        weight = kernels.pack_weight(self.weight)
        return kernels.conv2d_box(self.x, weight, self.bias, **arguments | changes)

    def expected(self, scale: float = 1.0, asleep: Tensor | None = None) -> Tensor:
        """The float64 output; ``asleep`` defaults to the layer's own sleepers."""
        asleep = self.asleep if asleep is None else asleep
        y = (self.awake * scale).masked_fill(asleep, 0)
        if self.residual is not None:
            y = y + self.residual.double()
        slopes = slopes_of(self.case.post_activation, y.shape[1], y)
        return activate(y, self.case.post_activation, slopes)

    def check(
        self, y: Tensor, expected: Tensor, scale: float = 1.0, precision: str = "ieee"
    ) -> None:
        """Assert that ``y`` is within the budget of ``expected`` (float64).

        Tensor cores may cut TF32 operands to 10 explicit bits of mantissa where eager rounds them:
        every product is then up to 2^-9 smaller, and a sum, whose errors partly cancel, 2^-10 off.
        """
        dtype = DTYPES[self.case.dtype]
        eager = (eager_conv2d(self, dtype).double() - self.awake).abs().max() * scale
        largest = torch.clamp(expected.abs().max(), min=1.0)
        order = torch.finfo(torch.float32).eps * math.sqrt(self.case.depth)
        rounding = 2.0**-10 if precision == "tf32" else torch.finfo(dtype).eps / 2
        budget = eager + (order + rounding) * largest
        error = (y.double() - expected).abs().max()
        assert error <= budget, f"error {error:.3e}, budget {budget:.3e}"


ACTIVATIONS = ("none", "relu", "silu", "prelu")


def eager_conv2d(layer: Layer, dtype: torch.dtype) -> Tensor:
    case = layer.case
    spec = ConvSpec(padding=case.padding, dilation=case.dilation, activation=case.activation)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    slopes = slopes_of(case.activation, case.out_channels, layer.x)
    slopes = None if slopes is None else slopes.to(dtype)
    return awake_conv2d(layer.x.to(dtype), layer.weight.to(dtype), bias, spec, slopes)


def make_layer(case: Case, device: torch.device, j: int = 4) -> Layer:
    """Draw a case's tensors; ``j`` eighths of its cells sleep."""
    dtype, n = DTYPES[case.dtype], case.images
    x = torch.randn(n, case.channels, *case.size).to(device, dtype)
    weight = torch.randn(case.out_channels, case.channels, *case.kernel) / math.sqrt(case.depth)
    bias = torch.randn(case.out_channels).to(device, dtype) if case.bias else None
    empty = torch.empty(0, device=device)
    layer = Layer(case, x, weight.to(device, dtype), bias, None, empty, empty, (1, 1), empty)
    awake = eager_conv2d(layer, torch.float64)
    residual = None
    if case.residual:
        residual = torch.randn(awake.shape).to(device, dtype)
        residual = residual.contiguous(memory_format=torch.channels_last)
    shape = tuple(awake.shape)
    clock = torch.tensor([5, 0], device=device)
    cells = levels(SleepSpec("bernoulli", case.grain), shape, clock) < j
    grain = Grain.parse(case.grain)
    return Layer(
        case,
        x,
        layer.weight,
        bias,
        residual,
        expand_cells(cells, shape, grain),
        pack_bitmap(cells),
        grain.cell(case.out_channels, shape[2] * shape[3]),
        awake,
    )


def configs(dtype: str) -> Iterator[tuple[kernels.ConvConfig, str]]:
    """Every shipped configuration for a dtype, with its precision."""
    kinds = {"ieee": "ieee", "tf32": "tf32"} if dtype == "fp32" else {"half": "ieee"}
    for kind, precision in kinds.items():
        for config in kernels.BOX_CONFIGS[kind]:
            yield config, precision


def random_cases(count: int) -> list[Case]:
    """Layers drawn from the whole space of parameters."""
    draw = random.Random(2019)
    cases: list[Case] = []
    while len(cases) < count:
        dtype = draw.choice(tuple(DTYPES))
        kind = "ieee" if dtype == "fp32" else "half"
        case = Case(
            dtype=dtype,
            images=draw.choice((1, 2, 5)),
            channels=draw.choice((8, 24, 64, 72)),
            size=draw.choice(((9, 7), (12, 12), (6, 15), (1, 5))),
            out_channels=draw.choice((8, 40, 64, 136)),
            kernel=draw.choice(((1, 1), (3, 3), (3, 1), (2, 5))),
            padding=tuple(draw.choice((0, 1, 2)) for _ in range(4))  # type: ignore[arg-type]
            if draw.random() < 0.7
            else (0, 0, 0, 0),
            dilation=(draw.choice((1, 2)), draw.choice((1, 2))),
            activation=draw.choice(ACTIVATIONS),
            post_activation=draw.choice(ACTIVATIONS),
            grain=draw.choice(GRAINS),
            bias=draw.random() < 0.8,
            residual=draw.random() < 0.5,
            config=draw.choice((None, *kernels.BOX_CONFIGS[kind])),
        )
        try:
            kernels.output_size(case.size, case.kernel, (1, 1), case.padding, case.dilation)
        except ValueError:
            continue
        cases.append(case)
    return cases


@pytest.mark.parametrize("case", random_cases(40), ids=str)
def test_sweep(case: Case, triton_device: torch.device) -> None:
    layer = make_layer(case, triton_device)
    y = layer.run(scale=torch.tensor([2.0], device=triton_device))
    assert y.permute(0, 2, 3, 1).is_contiguous()
    layer.check(y, layer.expected(scale=2), scale=2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_configuration(dtype: str, triton_device: torch.device) -> None:
    """More channels than a K step, more output channels than a tile, images cut by boxes."""
    case = Case(
        dtype, images=3, channels=72, size=(5, 6), out_channels=136, kernel=(1, 2), dilation=(1, 3)
    )
    layer = make_layer(case, triton_device)
    awake = torch.zeros_like(layer.asleep)
    for config, precision in configs(dtype):
        y = layer.run(bitmap=None, cell=None, config=config, precision=precision)
        layer.check(y, layer.expected(asleep=awake), precision=precision)


@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 0, 2, 3)])
@pytest.mark.parametrize("end", [0, -1])
def test_grains_mask_and_nothing_else(
    end: int, padding: tuple[int, int, int, int], triton_device: torch.device
) -> None:
    """Awake neurons are bit for bit what they are without sleep; sleepers are 0.

    A 1x1 kernel, so that without padding it is a GEMM and with padding a convolution of boxes.
    """
    config, awake = kernels.BOX_CONFIGS["half"][end], None
    for grain in GRAINS:
        case = Case(
            images=2, size=(8, 9), out_channels=136, kernel=(1, 1), padding=padding, grain=grain
        )
        torch.manual_seed(0)
        layer = make_layer(case, triton_device)
        if awake is None:
            awake = layer.run(bitmap=None, cell=None, config=config)
        y = layer.run(config=config)
        assert torch.equal(y, awake.masked_fill(layer.asleep, 0)), grain


def test_large_batches_of_small_maps(triton_device: torch.device) -> None:
    """Boxes of many images, the last ones past the end of the batch."""
    case = Case(images=70, channels=8, size=(2, 3), out_channels=8, kernel=(1, 3), residual=True)
    layer = make_layer(case, triton_device)
    for config in kernels.BOX_CONFIGS["half"][-2:]:
        layer.check(layer.run(config=config), layer.expected())


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
    config = kernels.ConvConfig(32, 64, 32, 4, 3)
    case = Case(channels=32, size=(8, 8), out_channels=128, grain="tile:32x64", config=config)
    layer = make_layer(case, triton_device)
    awake = sum(2 - int(row).bit_count() for row in layer.bitmap.flatten())
    assert 0 < awake < 8
    layer.run()
    assert products == awake * 9  # a K step per tap

    products = 0
    y = layer.run(bitmap=torch.full_like(layer.bitmap, 0b11))
    assert products == 0
    assert not y.any()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_sleepers_of_a_poisoned_input_are_zero(triton_device: torch.device) -> None:
    layer = make_layer(Case(), triton_device)
    layer.x.fill_(math.nan)
    y = layer.run()
    assert not y[layer.asleep].any()
    assert y[~layer.asleep].isnan().all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_steps_past_the_last_channel_meet_no_other_tap(triton_device: torch.device) -> None:
    """24 channels in a K step of 64: what a descriptor reads past them is 0, not the next tap."""
    layer = make_layer(Case(kernel=(1, 3), padding=(0, 2, 0, 0), size=(1, 4)), triton_device)
    layer.weight[:, 0, 0, 2] = math.inf
    y = layer.run(bitmap=None, cell=None, activation="none", config=kernels.BOX_CONFIGS["half"][0])
    # Infinity times one input; NaN would be infinity times a zero past the other taps' channels.
    assert y[..., :2].abs().isinf().all()


def test_layouts_of_input(triton_device: torch.device) -> None:
    layer = make_layer(Case(), triton_device)
    expected = layer.run()
    for x in (
        layer.x.contiguous(memory_format=torch.channels_last),
        torch.cat([layer.x, layer.x], dim=1)[:, :24],
        torch.cat([layer.x, layer.x], dim=3)[..., :7],
    ):
        y = kernels.conv2d_box(
            x,
            kernels.pack_weight(layer.weight),
            layer.bias,
            padding=layer.case.padding,
            activation="relu",
            bitmap=layer.bitmap,
            cell=layer.cell,
        )
        assert torch.equal(y, expected)


def test_one_image_with_odd_strides(triton_device: torch.device) -> None:
    """A dimension of length 1 may have any stride; descriptors take none of the tensor's."""
    layer = make_layer(Case(images=1, channels=8, size=(1, 5), out_channels=8), triton_device)
    rows = layer.x.permute(0, 2, 3, 1).contiguous()
    x = rows.as_strided(rows.shape, (3, 1, 8, 1)).permute(0, 3, 1, 2)
    weight = kernels.pack_weight(layer.weight)
    y = kernels.conv2d_box(x, weight, layer.bias, padding=layer.case.padding, activation="relu")
    assert torch.equal(y, layer.run(bitmap=None, cell=None))


def test_empty_batch_and_no_channels(triton_device: torch.device) -> None:
    weight = kernels.pack_weight(torch.randn(4, 8, 3, 3, device=triton_device))
    none = torch.empty(0, 8, 9, 7, device=triton_device)
    assert kernels.conv2d_box(none, weight, padding=(1, 1, 1, 1)).shape == (0, 4, 9, 7)
    nothing = kernels.pack_weight(torch.empty(0, 8, 3, 3, device=triton_device))
    x = torch.randn(2, 8, 9, 7, device=triton_device)
    assert kernels.conv2d_box(x, nothing).shape == (2, 0, 7, 5)


# --- boxes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "size", "block_m", "box", "efficiency"),
    [
        (256, 224, 256, (1, 16, 16), 1),
        (256, 112, 128, (1, 8, 16), 1),
        (256, 56, 128, (2, 8, 8), 1),
        (256, 28, 128, (8, 4, 4), 1),
        (256, 14, 128, (32, 2, 2), 1),
        (256, 7, 128, (128, 1, 1), 1),
        (32, 14, 256, (8, 2, 16), 7 / 8),
        (32, 7, 128, (16, 1, 8), 7 / 8),
        (1, 56, 128, (1, 8, 16), 7 / 8),
        (1, 28, 64, (1, 4, 16), 7 / 8),
        (1, 14, 64, (1, 8, 8), 49 / 64),
        (1, 7, 64, (1, 8, 8), 49 / 64),
    ],
)
def test_boxes_waste_little(
    images: int, size: int, block_m: int, box: tuple[int, int, int], efficiency: float
) -> None:
    assert kernels.choose_box(images, size, size, block_m) == box
    assert kernels.box_efficiency(images, size, size, box) == pytest.approx(efficiency)


@pytest.mark.parametrize(
    ("cell_p", "box"),
    [
        (112, (1, 2, 64)),  # two rows are a cell: 1/8 of the positions for one cell a tile
        (56 * 56, (1, 8, 16)),  # an image is a cell
        (1, (2, 8, 8)),  # nothing to gain
    ],
)
def test_boxes_follow_cells(cell_p: int, box: tuple[int, int, int]) -> None:
    assert kernels.choose_box(256, 56, 56, 128, cell_p=cell_p, cells_c=1) == box


def test_boxes_are_never_better_than_the_map() -> None:
    draw = random.Random(7)
    for _ in range(200):
        images, height, width = draw.randint(1, 40), draw.randint(1, 60), draw.randint(1, 60)
        block_m = draw.choice((64, 128, 256))
        box = kernels.choose_box(images, height, width, block_m)
        assert math.prod(box) == block_m
        assert all(side & (side - 1) == 0 for side in box)
        assert 0 < kernels.box_efficiency(images, height, width, box) <= 1


def test_cells_that_a_box_touches_are_bounded() -> None:
    """The bound holds for every box of random maps."""
    draw = random.Random(11)
    for _ in range(60):
        height, width = draw.randint(1, 20), draw.randint(1, 20)
        cell_p = draw.choice((1, 3, 8, width, 2 * width, height * width, 500))
        box = (1, 1 << draw.randint(0, 4), 1 << draw.randint(0, 5))
        most = max(
            len(
                {
                    (y * width + x) // cell_p
                    for y in range(first_y, min(first_y + box[1], height))
                    for x in range(first_x, min(first_x + box[2], width))
                }
            )
            for first_y in range(0, height, box[1])
            for first_x in range(0, width, box[2])
        )
        assert most <= kernels.cells_in_box(box, height, width, cell_p)


def test_configurations_fit_the_layer() -> None:
    def chosen(images: int, size: int, channels: int, **options: Any) -> kernels.ConvConfig:
        return kernels.choose_box_config(
            images=images,
            size=(size, size),
            in_channels=channels,
            out_channels=channels,
            dtype=options.pop("dtype", torch.bfloat16),
            **options,
        )

    assert str(chosen(256, 56, 256)) == "256x128x64-w8-s4"
    assert str(chosen(256, 56, 64)) == "256x64x64-w4-s2"
    assert chosen(1, 14, 256).block_m == 64
    assert chosen(256, 56, 32).block_k == 32
    assert chosen(256, 56, 256, dtype=torch.float32) in kernels.BOX_CONFIGS["ieee"]
    tf32 = chosen(256, 56, 256, dtype=torch.float32, precision="tf32")
    assert tf32 in kernels.BOX_CONFIGS["tf32"]


# --- boundary -----------------------------------------------------------------------------------


def meta_weight(*shape: int, dtype: torch.dtype = torch.float16, groups: int = 1) -> Any:
    return kernels.pack_weight(torch.empty(shape, dtype=dtype, device="meta"), groups)


@pytest.mark.parametrize(
    ("weight", "stride", "reason"),
    [
        (meta_weight(40, 24, 3, 3), (1, 1), ""),
        (meta_weight(40, 24, 3, 3), (2, 1), "stride (1, 1), not (2, 1)"),
        (meta_weight(40, 12, 3, 3, groups=2), (1, 1), "one group, not 2"),
        (meta_weight(24, 1, 3, 3, groups=24), (1, 1), "one group, not 24"),
        (meta_weight(40, 20, 3, 3), (1, 1), "20 input channels of 2 bytes"),
        (meta_weight(36, 24, 3, 3), (1, 1), "36 output channels of 2 bytes"),
        (meta_weight(36, 20, 3, 3, dtype=torch.float32), (1, 1), ""),
    ],
)
def test_why_a_convolution_is_refused(
    weight: kernels.PackedWeight, stride: tuple[int, int], reason: str
) -> None:
    shape = (2, weight.in_channels, 9, 7)
    x = torch.empty(shape, dtype=weight.data.dtype, device="meta")
    said = kernels.box_supports(x, weight, stride=stride)
    assert reason in said if reason else not said


def test_refusals_of_inputs() -> None:
    weight = kernels.pack_weight(torch.zeros(8, 8, 1, 1, dtype=torch.float16))
    rows = torch.zeros(2 * 5 * 5 * 8 + 1, dtype=torch.float16)[1:].view(2, 5, 5, 8)
    assert "address" in kernels.box_supports(rows.permute(0, 3, 1, 2), weight)
    assert "no elements" in kernels.box_supports(torch.zeros(2, 8, 0, 5).half(), weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "mish"}, "activation: got 'mish'"),
        ({"post_activation": "mish"}, "activation: got 'mish'"),
        ({"precision": "fp8"}, "precision"),
        ({"dilation": (1, 0)}, "dilation"),
        ({"padding": (1, 1)}, "padding"),
        ({"x": torch.zeros(1, 8, 9, 7, dtype=torch.float64)}, "x: got torch.float64"),
        ({"x": torch.zeros(1, 7, 9, 7)}, "x: got shape"),
        ({"weight": torch.zeros(3, 8, 3, 3)}, "conv2d_box: 3 output channels"),
        ({"bias": torch.zeros(5)}, "bias: got shape"),
        ({"scale": torch.zeros(2)}, "scale"),
        ({"cell": (1, 1)}, "bitmap, cell"),
        ({"bitmap": torch.zeros(1, 62, 1, dtype=torch.int32), "cell": (1, 1)}, "bitmap: got shape"),
        ({"out": torch.zeros(1, 4, 9, 7)}, "out"),
        ({"residual": torch.zeros(1, 4, 9, 7)}, "residual"),
        ({"residual": torch.zeros(1, 9, 7, 4).half().permute(0, 3, 1, 2)}, "residual"),
        ({"config": kernels.ConvConfig(512, 64, 32, 4, 3)}, "config: got block_m 512"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(
    change: dict[str, Any], message: str, triton_device: torch.device
) -> None:
    arguments: dict[str, Any] = {
        "x": torch.zeros(1, 8, 9, 7),
        "weight": torch.zeros(4, 8, 3, 3),
        "padding": (1, 1, 1, 1),
        **change,
    }
    arguments = {
        name: value.to(triton_device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    weight = kernels.pack_weight(arguments.pop("weight"))
    with pytest.raises((ValueError, TypeError), match=message):
        kernels.conv2d_box(arguments.pop("x"), weight, arguments.pop("bias", None), **arguments)


def test_positions_leave_room_for_a_tile_beyond_the_last() -> None:
    """Rows and tiles are counted in 32 bits, up to one step past the end."""
    x = torch.empty(1, 8, 1, 2**31 - 512, dtype=torch.float16, device="meta")
    with pytest.raises(ValueError, match="positions"):
        kernels.plan_conv2d_box(x, meta_weight(8, 8, 1, 1))
