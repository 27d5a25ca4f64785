"""Dense stride-1 convolution on tensor descriptors: boxes in, boxes out, no mask in the loop.

The positions of a tile are a box of ``BOX_N`` images by ``BOX_H`` rows by ``BOX_W`` columns. With
stride 1 the inputs that a filter tap needs for them are a box of the same shape, moved by the tap:
one descriptor load, which the tensor memory accelerator of Hopper and later carries out with no
pointer and no mask in any thread. What lies outside of the image reads as zero, which is the
padding; what lies outside of the output is dropped as it is stored. Weights are boxes of
``[KH * KW, OC, IC]``, so that a K step past the last input channel reads zeros on both sides.

The product is formed transposed, ``[channels, positions] = weights x inputs^T``: the second operand
of a matrix instruction always comes from shared memory, where a box of four dimensions becomes a
matrix for free; as the first operand it would pass through registers.

A 1x1 convolution without padding is the same kernel on ``[1, 1, N * H * W, IC]``, a plain GEMM.

The grid is persistent: as many programs as stay resident, each walking over tiles, channel tiles
fastest, so that a box is fetched from memory once and shared through L2 with its neighbours while
the weights stay there. A tile whose neurons all sleep runs no K step. The epilogue is, in float32,

    y = post(residual + (0 where asleep, else activation(acc + bias) * scale))
"""

# Triton's language has no type annotations.
# mypy: allow-untyped-defs

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from drowsy_kernels.conv2d import (
    MAX_ROWS,
    PRECISIONS,
    _check_bitmap,
    _check_input,
    check_epilogue,
    output_size,
)
from drowsy_kernels.epilogue import (
    activate,
    activation_arguments,
    all_asleep,
    asleep,
    columns,
    dot,
    tile_words,
)
from drowsy_kernels.heuristics import ConvConfig, multiprocessors
from drowsy_kernels.launch import (
    VIEWS,
    Launch,
    check_operand,
    interpreted,
    launched,
    plan_of,
    planned,
)
from drowsy_kernels.weight import PackedWeight
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def _map_rows(
    first_n,
    first_y,
    first_x,
    images,
    out_height,
    out_width,
    positions,
    cell_p,
    cell_rows,
    GEMM: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
):
    """The map rows of a box's positions."""
    m = tl.arange(0, BOX_N * BOX_H * BOX_W)
    # Positions past the end repeat the last one of the box: their bits need no mask.
    n = tl.minimum(first_n + m // (BOX_H * BOX_W), images - 1)
    y = tl.minimum(first_y + m // BOX_W % BOX_H, out_height - 1)
    x = tl.minimum(first_x + m % BOX_W, out_width - 1)
    if GEMM:
        n, x = x // positions, x % positions
    return n * cell_rows + (y * out_width + x) // cell_p


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def _conv2d_box_kernel(
    x,
    w,
    y,
    residual,
    bias,
    slopes,
    post_slopes,
    scale,
    bitmap,
    images,
    out_height,
    out_width,
    tiles_h,
    tiles_w,
    tiles,
    positions,
    cell_p,
    cell_c,
    cell_rows,
    words,
    IC: tl.constexpr,
    OC: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    GEMM: tl.constexpr,
    MAP: tl.constexpr,
    TILE_WORDS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    POST_ACTIVATION: tl.constexpr,
    POST_SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    PART_H: tl.constexpr,
    PART_W: tl.constexpr,
    PART_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SKIP: tl.constexpr,
):
    """Descriptors ``x``, ``y`` and ``residual`` [N, H, W, C], ``w`` [KH * KW, OC, IC]; any grid.

    The epilogue takes a box 64 positions at a time, which bounds the registers that it needs.
    ``GEMM``: images and rows are laid end to end in W; a position is then ``x % positions`` of
    image ``x // positions``.
    """
    BOX_N: tl.constexpr = BLOCK_M // (BOX_H * BOX_W)
    PART_N: tl.constexpr = PART_M // (PART_H * PART_W)
    TILES_C: tl.constexpr = (OC + BLOCK_N - 1) // BLOCK_N
    TAPS: tl.constexpr = KH * KW
    STEPS: tl.constexpr = TAPS * ((IC + BLOCK_K - 1) // BLOCK_K)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=not SKIP):
        box = tile // TILES_C
        first_c = tile % TILES_C * BLOCK_N
        first_x = box % tiles_w * BOX_W
        first_y = box // tiles_w % tiles_h * BOX_H
        first_n = box // tiles_w // tiles_h * BOX_N

        steps = STEPS
        if SKIP:
            row = _map_rows(
                first_n,
                first_y,
                first_x,
                images,
                out_height,
                out_width,
                positions,
                cell_p,
                cell_rows,
                GEMM,
                BOX_N,
                BOX_H,
                BOX_W,
            )
            last_c = tl.minimum(first_c + BLOCK_N, OC)
            if all_asleep(bitmap, row, first_c, last_c, cell_c, words, TILE_WORDS):
                steps = 0

        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        # Taps run fastest: their boxes overlap and are read while L2 holds them. Where a tap lies
        # is counted on, as divisions would be a sixth of the loop.
        top, left = first_y - TOP, first_x - LEFT
        tap, first_k, in_y, in_x = 0, 0, top, left
        for _ in range(steps):
            b_w = w.load([tap, first_c, first_k]).reshape(BLOCK_N, BLOCK_K)
            b_x = x.load([first_n, in_y, in_x, first_k]).reshape(BLOCK_M, BLOCK_K)
            acc = dot(b_w, b_x.T, acc, PRECISION, WIDEN)
            tap += 1
            in_x += DILATION_W
            row_ends, taps_end = in_x == left + KW * DILATION_W, tap == TAPS
            in_x = tl.where(row_ends, left, in_x)
            in_y = tl.where(taps_end, top, tl.where(row_ends, in_y + DILATION_H, in_y))
            first_k = tl.where(taps_end, first_k + BLOCK_K, first_k)
            tap = tl.where(taps_end, 0, tap)

        for part in tl.static_range(BLOCK_M // PART_M):
            at_n = first_n + part * PART_M // (BOX_H * BOX_W)
            at_y = first_y + part * PART_M // BOX_W % BOX_H
            at_x = first_x + part * PART_M % BOX_W
            v = columns(acc, part, PART_M).T
            c = first_c + tl.arange(0, BLOCK_N)
            if bias is not None:
                v += tl.load(bias + c, mask=c < OC, other=0).to(tl.float32)[None, :]
            v = activate(v, ACTIVATION, SLOPE, slopes, c, c < OC)
            if scale is not None:
                v *= tl.load(scale)
            if bitmap is not None:
                row = _map_rows(
                    at_n,
                    at_y,
                    at_x,
                    images,
                    out_height,
                    out_width,
                    positions,
                    cell_p,
                    cell_rows,
                    GEMM,
                    PART_N,
                    PART_H,
                    PART_W,
                )
                b_asleep = asleep(bitmap, row, first_c, cell_c, words, MAP, PART_M, BLOCK_N)
                v = tl.where(b_asleep, 0.0, v)
            if residual is not None:
                b_residual = residual.load([at_n, at_y, at_x, first_c])
                v += b_residual.reshape(PART_M, BLOCK_N).to(tl.float32)
            v = activate(v, POST_ACTIVATION, POST_SLOPE, post_slopes, c, c < OC)
            b_y = v.to(y.dtype).reshape(PART_N, PART_H, PART_W, BLOCK_N)
            y.store([at_n, at_y, at_x, first_c], b_y)


# --- box shapes ---------------------------------------------------------------------------------


# The share of cells asleep at which boxes are judged: where skipping tiles should already pay.
_JUDGED_RATE = 0.75


def cells_in_box(box: tuple[int, int, int], height: int, width: int, cell_p: int) -> int:
    """Sleep cells of ``cell_p`` positions, in raster order, that a box touches at most.

    Args:
        box: ``(images, rows, columns)``.
        height, width: of the output map.
        cell_p: positions of a cell.
    """
    n, h, w = box
    positions = height * width
    if w >= width:  # Whole rows are one run of positions.
        runs, run, start = 1, min(h * width, positions), h * width
    else:
        runs, run, start = h, w, math.gcd(width, w)
    # Runs start at multiples of `start`: at worst this far into a cell.
    offset = cell_p - math.gcd(cell_p, start)
    touched = (offset + run - 1) // cell_p + 1
    return n * min(runs * touched, triton.cdiv(positions, cell_p))


def expected_tiles(
    images: int,
    height: int,
    width: int,
    box: tuple[int, int, int],
    cell_p: int = 1,
    cells_c: int = 0,
) -> float:
    """Tiles of a channel column that must be computed at a rate of 3/4; without cells, all.

    Args:
        images: batch size.
        height, width: of the output map.
        box: ``(images, rows, columns)`` of a tile.
        cell_p: positions of a sleep cell.
        cells_c: channel cells of a tile; 0 where nothing sleeps.
    """
    n, h, w = box
    tiles = triton.cdiv(images, n) * triton.cdiv(height, h) * triton.cdiv(width, w)
    if cells_c == 0:
        return tiles
    return tiles * (1 - _JUDGED_RATE ** (cells_in_box(box, height, width, cell_p) * cells_c))


@functools.lru_cache(maxsize=1024)
def choose_box(
    images: int,
    height: int,
    width: int,
    block_m: int,
    kernel_size: tuple[int, int] = (3, 3),
    cell_p: int = 1,
    cells_c: int = 0,
) -> tuple[int, int, int]:
    """``(images, rows, columns)`` of a tile: powers of two whose product is ``block_m``.

    The fewest tiles to compute; among equals, the box whose taps read the fewest distinct inputs,
    then the widest, whose rows are contiguous memory. Arguments as ``expected_tiles``'s, and

    Args:
        block_m: positions of a tile, a power of two.
        kernel_size: ``(KH, KW)``.
    """

    def cost(box: tuple[int, int, int]) -> tuple[float, int, int]:
        n, h, w = box
        tiles = expected_tiles(images, height, width, box, cell_p, cells_c)
        return tiles, n * (h + kernel_size[0] - 1) * (w + kernel_size[1] - 1), -w

    exponents = range(block_m.bit_length())
    boxes = ((block_m >> (h + w), 1 << h, 1 << w) for h in exponents for w in exponents)
    return min((box for box in boxes if box[0] > 0), key=cost)


def box_efficiency(images: int, height: int, width: int, box: tuple[int, int, int]) -> float:
    """Share of the computed positions that exist: 1 where boxes cover the output map exactly."""
    computed = expected_tiles(images, height, width, box) * math.prod(box)
    return images * height * width / computed


# --- configurations -----------------------------------------------------------------------------

# Positions that the epilogue takes at a time.
_PART = 64

# A K step is one 128-byte row of shared memory, the widest swizzle; 64-byte rows serve channel
# counts that would pad it. An instruction m64n256k16 takes its 256 columns from the box, so the box
# is the longer side: 256 x 128 reads a quarter less from L2 for the same products than 128 x 128.
# Accumulators are 128 registers a thread at most. Stages fill the shared memory of one program,
# or of two where a tile is small; IEEE float32 multiplies in registers, which hold 16 channels.
BOX_CONFIGS: dict[str, tuple[ConvConfig, ...]] = {
    "half": (
        ConvConfig(64, 64, 64, 4, 4),
        ConvConfig(128, 64, 32, 4, 4),
        ConvConfig(128, 64, 64, 4, 3),
        ConvConfig(128, 128, 32, 8, 4),
        ConvConfig(128, 128, 64, 8, 3),
        ConvConfig(256, 64, 64, 4, 2),
        ConvConfig(256, 64, 64, 4, 4),
        ConvConfig(256, 128, 64, 8, 4),
    ),
    "tf32": (
        ConvConfig(64, 64, 32, 4, 4),
        ConvConfig(128, 64, 32, 4, 3),
        ConvConfig(128, 128, 32, 8, 3),
    ),
    "ieee": (ConvConfig(64, 64, 16, 4, 3),),
}
"""Tile shapes of ``conv2d_box`` by number format: ``half``, ``tf32`` or ``ieee``."""

# What an H100 or H200 does in a clock, per multiprocessor: multiplications of a tensor core unit
# and bytes from L2 (5120 for all of them). The time between the last K step of a tile and the first
# of the next one, in clocks, is a guess.
_MULTIPROCESSORS = 132
_PRODUCTS = {"half": 2048, "tf32": 1024, "ieee": 128}
_L2_BYTES = 39
_BETWEEN_TILES = 1500
_SHARED_BYTES = 228 * 1024


@functools.lru_cache(maxsize=1024)
def choose_box_config(
    *,
    images: int,
    size: tuple[int, int],
    in_channels: int,
    out_channels: int,
    kernel_size: tuple[int, int] = (3, 3),
    dtype: torch.dtype,
    precision: str = "ieee",
    cell: tuple[int, int] | None = None,
) -> ConvConfig:
    """The configuration of ``BOX_CONFIGS`` with the shortest predicted time on an H100 or H200.

    Rounds of tiles on all multiprocessors, times the clocks that a tile's K steps take, by tensor
    cores or by reading from L2, whichever is slower. Programs that share a multiprocessor overlap
    what is between tiles.

    Args:
        images: batch size.
        size: ``(OH, OW)``.
        in_channels, out_channels, kernel_size: of the weight.
        dtype, precision: of input and weight, and of float32 products.
        cell: ``(positions, channels)`` of a sleep cell.
    """
    kind = precision if dtype == torch.float32 else "half"

    def clocks(config: ConvConfig) -> float:
        box = choose_box(images, *size, config.block_m, kernel_size, *_cells(cell, config.block_n))
        tiles = expected_tiles(images, *size, box, *_cells(cell, config.block_n))
        sharing = _resident(config, dtype.itemsize, False)
        tiles *= triton.cdiv(out_channels, config.block_n)
        rounds = math.ceil(tiles / (_MULTIPROCESSORS * sharing))
        steps = math.prod(kernel_size) * triton.cdiv(in_channels, config.block_k)
        products = config.block_m * config.block_n * config.block_k
        read = (config.block_m + config.block_n) * config.block_k * dtype.itemsize
        step = max(products / _PRODUCTS[kind], read / _L2_BYTES)
        return rounds * (sharing * steps * step + _BETWEEN_TILES)

    return min(BOX_CONFIGS[kind], key=clocks)


def _cells(cell: tuple[int, int] | None, block_n: int) -> tuple[int, int]:
    """``(cell_p, cells_c)`` as ``expected_tiles`` takes them."""
    return (1, 0) if cell is None else (cell[0], triton.cdiv(block_n, cell[1]))


# --- launcher -----------------------------------------------------------------------------------


def box_supports(
    x: Tensor,
    weight: PackedWeight,
    *,
    stride: tuple[int, int] = (1, 1),
) -> str:
    """Why ``conv2d_box`` cannot compute this convolution; empty where it can.

    Args:
        x: ``[N, C, H, W]``; a meta tensor will do.
        weight: from ``pack_weight``.
        stride: of the convolution.
    """
    size = weight.data.element_size()
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0):
        return "tensor descriptors need compute capability 9.0 (Hopper) or later"
    if tuple(stride) != (1, 1):
        return f"boxes need stride (1, 1), not {tuple(stride)}"
    if weight.groups != 1:
        return f"boxes need one group, not {weight.groups}"
    if weight.padded:
        return "the weight's rows are packed for an input of few channels"
    for name, channels in (("input", weight.in_channels), ("output", weight.out_channels)):
        if channels * size % 16:
            return f"{channels} {name} channels of {size} bytes are no multiple of 16 bytes"
    if 0 in x.shape[1:]:
        return f"an input of shape {tuple(x.shape)} has no elements"
    if x.data_ptr() % 16 or weight.data.data_ptr() % 16:
        return "the input's or the weight's address is no multiple of 16 bytes"
    return ""


@launched
def conv2d_box(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    *,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    activation: str = "none",
    slopes: Tensor | None = None,
    bitmap: Tensor | None = None,
    cell: tuple[int, int] | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    post_activation: str = "none",
    post_slopes: Tensor | None = None,
    precision: str = "ieee",
    out: Tensor | None = None,
    config: ConvConfig | None = None,
) -> Tensor:
    """Stride-1 convolution of one group with fused bias, activation, scale, sleep and residual.

    Args:
        x: ``[N, C, H, W]``, float32, float16 or bfloat16; copied unless channels_last.
        weight: from ``pack_weight``, of the same dtype; carries the kernel size.
        bias: ``[OC]`` of the same dtype or float32.
        padding: zeros around the input, ``(left, right, top, bottom)`` as in ``F.pad``.
        dilation: ``(vertical, horizontal)``.
        activation: one of ``ACTIVATIONS``.
        slopes, post_slopes: of ``prelu``, as for ``conv2d``.
        bitmap: int32 ``[N, PC, W]`` from ``sleep_map``; sleeping neurons come out as 0.
        cell: ``(cell_p, cell_c)`` of the bitmap.
        scale: float32 tensor of one element, read on the device: factor on awake outputs.
        residual: channels_last ``[N, OC, OH, OW]`` of ``x``'s dtype, added to every neuron after
            sleep.
        post_activation: one of ``ACTIVATIONS``, of the sum with ``residual``.
        precision: of float32 products, ``ieee`` or ``tf32``; sums are float32 always.
        out: channels_last ``[N, OC, OH, OW]`` of ``x``'s dtype to write into; every element is
            written.
        config: block shapes, in place of those that ``choose_box_config`` picks.

    Returns:
        ``[N, OC, OH, OW]``, channels_last, of ``x``'s dtype.

    Raises:
        ValueError, TypeError: an argument outside of what is listed here, shapes that do not fit
            each other, or a convolution that ``box_supports`` refuses.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, allowed: {', '.join(PRECISIONS)}")
    images, channels, height, width = _check_input(x, weight)
    reason = box_supports(x, weight)
    if reason:
        raise ValueError(f"conv2d_box: {reason}")
    oh, ow = output_size((height, width), weight.kernel_size, (1, 1), padding, dilation)
    positions, out_channels = oh * ow, weight.out_channels
    check_epilogue(bias, scale, out_channels, x.dtype, x.device)
    of_output = out_channels, x.dtype, x.device
    activations = activation_arguments(activation, slopes, *of_output)
    activations |= activation_arguments(post_activation, post_slopes, *of_output, post=True)
    cell_rows, words = _check_bitmap(bitmap, cell, images, positions, out_channels, x.device)
    if out is None:
        out = torch.empty(
            (images, out_channels, oh, ow),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
    for name, tensor in (("out", out), ("residual", residual)):
        if tensor is not None:
            check_operand(
                f"{name} (as N, OH, OW, OC)",
                tensor.permute(0, 2, 3, 1),
                dtypes=(x.dtype,),
                shape=(images, oh, ow, out_channels),
                device=x.device,
            )
            if tensor.data_ptr() % 16:
                raise ValueError(
                    f"{name}: got address {tensor.data_ptr():#x}, allowed: multiples of 16 bytes"
                )
    if out.numel() == 0:
        return planned(out, on=("x", x))
    if config is None:
        config = choose_box_config(
            images=images,
            size=(oh, ow),
            in_channels=channels,
            out_channels=out_channels,
            kernel_size=weight.kernel_size,
            dtype=x.dtype,
            precision=precision,
            cell=None if cell is None else (cell[0], cell[1]),
        )
    elif config.block_m > 4 * _PART:
        raise ValueError(f"config: got block_m {config.block_m}, allowed: up to {4 * _PART}")

    # N, H and W of input and output as the kernel sees them; for a plain GEMM, one long row.
    space, in_space = (images, oh, ow), (images, height, width)
    flat = (1, 1, images * positions)
    cells = _cells(cell, config.block_n)
    box = choose_box(*space, config.block_m, weight.kernel_size, *cells)
    flat_box = (1, 1, config.block_m)
    gemm = (
        weight.kernel_size == (1, 1)
        and not any(padding)
        and expected_tiles(*flat, flat_box, *cells) <= expected_tiles(*space, box, *cells)
    )
    if gemm:
        space, in_space, box = flat, flat, flat_box
    tiles = [triton.cdiv(length, side) for length, side in zip(space, box, strict=True)]
    count = math.prod(tiles) * triton.cdiv(out_channels, config.block_n)
    if max(images * positions, count) > MAX_ROWS:
        raise ValueError(
            f"x: got {images} images of {oh} x {ow} outputs, allowed: up to {MAX_ROWS} positions"
        )
    # The test whether a tile sleeps keeps its K steps apart from the next tile's; it must pay.
    skip = bitmap is not None and expected_tiles(*space, box, *cells) < 0.98 * math.prod(tiles)
    part = _first_of(box, _PART)

    def described(
        tensor: Tensor, extent: tuple[int, int, int], block: list[int]
    ) -> TensorDescriptor:
        n, h, w, c = *extent, tensor.shape[1]
        rows = tensor.permute(0, 2, 3, 1).contiguous()
        return TensorDescriptor(rows, [n, h, w, c], [h * w * c, w * c, c, 1], block)

    taps, block_k = weight.kernel_size[0] * weight.kernel_size[1], config.block_k
    cell_p, cell_c = cell or (1, 1)
    arguments: dict[str, Any] = {
        "x": described(x, in_space, [*box, block_k]),
        "w": TensorDescriptor(
            weight.data,
            [taps, out_channels, channels],
            [channels, weight.data.stride(0), 1],
            [1, config.block_n, block_k],
        ),
        "y": described(out, space, [*part, config.block_n]),
        "residual": None
        if residual is None
        else described(residual, space, [*part, config.block_n]),
        "bias": bias,
        "scale": scale,
        "bitmap": bitmap,
        "images": space[0],
        "out_height": space[1],
        "out_width": space[2],
        "tiles_h": tiles[1],
        "tiles_w": tiles[2],
        "tiles": count,
        "positions": positions,
        "cell_p": cell_p,
        "cell_c": cell_c,
        "cell_rows": cell_rows,
        "words": words,
        "IC": channels,
        "OC": out_channels,
        "KH": weight.kernel_size[0],
        "KW": weight.kernel_size[1],
        "DILATION_H": dilation[0],
        "DILATION_W": dilation[1],
        "TOP": padding[2],
        "LEFT": padding[0],
        "GEMM": gemm,
        "MAP": _map_mode(bitmap, (cell_p, cell_c), positions, out_channels, box, gemm, config),
        "TILE_WORDS": tile_words(cell_c, out_channels, out_channels, config.block_n),
        **activations,
        "PRECISION": precision,
        "WIDEN": interpreted() and x.dtype == torch.bfloat16,
        "BOX_H": box[1],
        "BOX_W": box[2],
        "PART_H": part[1],
        "PART_W": part[2],
        "PART_M": math.prod(part),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": block_k,
        "SKIP": skip,
    }
    sharing = _resident(config, x.element_size(), residual is not None)
    programs = multiprocessors(x.device) * sharing
    launch = Launch(
        _conv2d_box_kernel,
        (min(count, programs),),
        arguments,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return planned(out, launch, on=("x", x))


plan_conv2d_box = plan_of(conv2d_box)
"""``(result, launches)`` of ``conv2d_box``, and nothing is run: meta tensors will do."""


def _resident(config: ConvConfig, itemsize: int, residual: bool) -> int:
    """Programs that share a multiprocessor: one or two."""
    loaded = config.num_stages * (config.block_m + config.block_n) * config.block_k
    stored = _PART * config.block_n * (2 if residual else 1)
    shared = (loaded + stored) * itemsize + 2048
    return 2 if 2 * shared <= _SHARED_BYTES else 1


def _map_mode(
    bitmap: Tensor | None,
    cell: tuple[int, int],
    positions: int,
    out_channels: int,
    box: tuple[int, int, int],
    gemm: bool,
    config: ConvConfig,
) -> str:
    """``epilogue.map_mode`` for tiles of several images, whose rows are no run of positions."""
    cell_p, cell_c = cell
    if bitmap is None:
        return "none"
    if cell_c >= out_channels or cell_c % config.block_n == 0:
        return "rows"
    if 32 * cell_c % config.block_n == 0:
        return "word"
    if cell_c == 1:
        return "words"
    return "columns" if cell_p >= positions and box[0] == 1 and not gemm else "any"


def _first_of(box: tuple[int, int, int], positions: int) -> tuple[int, int, int]:
    """The part of a box that holds its first ``positions``, a power of two."""
    w = min(box[2], positions)
    h = min(box[1], positions // w)
    return min(box[0], positions // (w * h)), h, w
