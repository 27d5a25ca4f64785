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
from typing import Any

import torch
import triton
import triton.language as tl
from drowsy_kernels.conv2d import (
    PRECISIONS,
    PackedWeight,
    _check_bitmap,
    _check_input,
    output_size,
)
from drowsy_kernels.epilogue import (
    activate,
    all_asleep,
    asleep,
    dot,
    parse_activation,
    tile_words,
)
from drowsy_kernels.heuristics import ConvConfig
from drowsy_kernels.launch import Launch, check_device, check_operand, interpreted
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def _finish_part(
    acc,
    y,
    residual,
    bias,
    scale,
    bitmap,
    row,
    first_n,
    first_y,
    first_x,
    first_c,
    cell_c,
    words,
    OC: tl.constexpr,
    MAP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    POST_ACTIVATION: tl.constexpr,
    POST_SLOPE: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Epilogue of ``BLOCK_C`` channels of a tile; ``row`` are the bitmap rows of its positions."""
    BLOCK_M: tl.constexpr = BOX_N * BOX_H * BOX_W
    if bias is not None:
        c = first_c + tl.arange(0, BLOCK_C)
        acc += tl.load(bias + c, mask=c < OC, other=0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION, SLOPE)
    if scale is not None:
        acc *= tl.load(scale)
    if bitmap is not None:
        b_asleep = asleep(bitmap, row, first_c, cell_c, words, MAP, BLOCK_M, BLOCK_C)
        acc = tl.where(b_asleep, 0.0, acc)
    if residual is not None:
        b_residual = residual.load([first_n, first_y, first_x, first_c])
        acc += b_residual.reshape(BLOCK_M, BLOCK_C).to(tl.float32)
    acc = activate(acc, POST_ACTIVATION, POST_SLOPE)
    b_y = acc.to(y.dtype).reshape(BOX_N, BOX_H, BOX_W, BLOCK_C)
    y.store([first_n, first_y, first_x, first_c], b_y)


@triton.jit
def _conv2d_box_kernel(
    x,
    w,
    y,
    residual,
    bias,
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
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    """Descriptors ``x`` and ``y`` [N, H, W, C], ``w`` [OC, KH * KW, IC]; any number of programs.

    ``GEMM``: images and rows are laid end to end in W; a position is then ``x % positions`` of
    image ``x // positions``.
    """
    BLOCK_M: tl.constexpr = BOX_N * BOX_H * BOX_W
    TILES_C: tl.constexpr = (OC + BLOCK_N - 1) // BLOCK_N
    TAPS: tl.constexpr = KH * KW
    STEPS: tl.constexpr = TAPS * ((IC + BLOCK_K - 1) // BLOCK_K)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        box = tile // TILES_C
        first_c = tile % TILES_C * BLOCK_N
        first_x = box % tiles_w * BOX_W
        first_y = box // tiles_w % tiles_h * BOX_H
        first_n = box // tiles_w // tiles_h * BOX_N

        steps = STEPS
        row = None
        map_n = None
        if bitmap is not None:
            # Rows past the end repeat the last one of the box: their bits need no mask.
            m = tl.arange(0, BLOCK_M)
            at_n = tl.minimum(first_n + m // (BOX_H * BOX_W), images - 1)
            at_y = tl.minimum(first_y + m // BOX_W % BOX_H, out_height - 1)
            at_x = tl.minimum(first_x + m % BOX_W, out_width - 1)
            if GEMM:
                at_n = at_x // positions
                at_x = at_x % positions
            map_n = tl.min(at_n, axis=0)
            row = (at_n - map_n) * cell_rows + (at_y * out_width + at_x) // cell_p
            map_n = bitmap + map_n.to(tl.int64) * cell_rows * words
            last_c = tl.minimum(first_c + BLOCK_N, OC)
            if all_asleep(map_n, row, first_c, last_c, cell_c, words, TILE_WORDS):
                steps = 0

        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for step in range(steps):
            # Taps run fastest: their boxes overlap and are read while L2 holds them.
            tap = step % TAPS
            first_k = step // TAPS * BLOCK_K
            in_y = first_y + tap // KW * DILATION_H - TOP
            in_x = first_x + tap % KW * DILATION_W - LEFT
            b_w = w.load([tap, first_c, first_k]).reshape(BLOCK_N, BLOCK_K)
            b_x = x.load([first_n, in_y, in_x, first_k]).reshape(BLOCK_M, BLOCK_K)
            acc = dot(b_w, b_x.T, acc, PRECISION, WIDEN)
        acc = acc.T

        if PARTS == 1:
            _finish_part(
                acc,
                y,
                residual,
                bias,
                scale,
                map_n,
                row,
                first_n,
                first_y,
                first_x,
                first_c,
                cell_c,
                words,
                OC,
                MAP,
                ACTIVATION,
                SLOPE,
                POST_ACTIVATION,
                POST_SLOPE,
                BOX_N,
                BOX_H,
                BOX_W,
                BLOCK_N,
            )
        else:
            HALF: tl.constexpr = BLOCK_N // 2
            low, high = acc.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1).split()
            for part in tl.static_range(2):
                _finish_part(
                    low if part == 0 else high,
                    y,
                    residual,
                    bias,
                    scale,
                    map_n,
                    row,
                    first_n,
                    first_y,
                    first_x,
                    first_c + part * HALF,
                    cell_c,
                    words,
                    OC,
                    MAP,
                    ACTIVATION,
                    SLOPE,
                    POST_ACTIVATION,
                    POST_SLOPE,
                    BOX_N,
                    BOX_H,
                    BOX_W,
                    HALF,
                )


# --- box shapes ---------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def choose_box(
    images: int, height: int, width: int, block_m: int, kernel_size: tuple[int, int] = (3, 3)
) -> tuple[int, int, int]:
    """``(images, rows, columns)`` of a tile: powers of two whose product is ``block_m``.

    The fewest tiles cover the output map; among equals, the box whose taps read the fewest
    distinct inputs, then the widest, whose rows are contiguous memory.

    Args:
        images: batch size.
        height, width: of the output map.
        block_m: output positions of a tile, a power of two.
        kernel_size: ``(KH, KW)``.
    """

    def cost(box: tuple[int, int, int]) -> tuple[int, int, int]:
        n, h, w = box
        tiles = triton.cdiv(images, n) * triton.cdiv(height, h) * triton.cdiv(width, w)
        return tiles, n * (h + kernel_size[0] - 1) * (w + kernel_size[1] - 1), -w

    exponents = range(block_m.bit_length())
    boxes = ((block_m >> (h + w), 1 << h, 1 << w) for h in exponents for w in exponents)
    return min((box for box in boxes if box[0] > 0), key=cost)


def box_efficiency(images: int, height: int, width: int, box: tuple[int, int, int]) -> float:
    """Share of the computed positions that exist: 1 where boxes tile the output map exactly."""
    n, h, w = box
    computed = triton.cdiv(images, n) * n * triton.cdiv(height, h) * h * triton.cdiv(width, w) * w
    return images * height * width / computed


# --- launcher -----------------------------------------------------------------------------------

# Programs that stay resident for one multiprocessor each; an H100 or H200 has 132.
_MULTIPROCESSORS = 132

# A multiprocessor's shared memory holds two 128 x 128 programs of 3 stages, so that one computes
# while the other stores, or one of 256 x 128, whose operands are read from L2 a quarter less often.
# Instructions m64n256k16 take their 256 columns from the box, so the box is the longer side. K
# steps of 64 halves are one 128-byte row of the widest swizzle.
BOX_CONFIGS: dict[str, tuple[ConvConfig, ...]] = {
    "half": (
        ConvConfig(128, 64, 64, 4, 3),
        ConvConfig(128, 128, 64, 8, 3),
        ConvConfig(256, 64, 64, 4, 4),
        ConvConfig(256, 128, 64, 8, 3),
    ),
    "single": (ConvConfig(64, 64, 32, 4, 3),),
}


def choose_box_config(
    *, images: int, positions: int, out_channels: int, dtype: torch.dtype
) -> ConvConfig:
    """One of ``BOX_CONFIGS``: the largest tile that still leaves one for every multiprocessor."""
    shipped = BOX_CONFIGS["single" if dtype == torch.float32 else "half"]
    narrow = [config for config in shipped if config.block_n >= out_channels]
    fitting = (
        [c for c in shipped if c.block_n == min(narrow, key=lambda c: c.block_n).block_n]
        if narrow
        else [c for c in shipped if c.block_n == shipped[-1].block_n]
    )
    for config in reversed(fitting):
        tiles = triton.cdiv(images * positions, config.block_m) * triton.cdiv(
            out_channels, config.block_n
        )
        if tiles >= _MULTIPROCESSORS:
            return config
    return fitting[0]


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
    for name, channels in (("input", weight.in_channels), ("output", weight.out_channels)):
        if channels * size % 16:
            return f"{channels} {name} channels of {size} bytes are no multiple of 16 bytes"
    if 0 in x.shape[1:]:
        return f"an input of shape {tuple(x.shape)} has no elements"
    if x.data_ptr() % 16 or weight.data.data_ptr() % 16:
        return "the input's or the weight's address is no multiple of 16 bytes"
    return ""


def conv2d_box(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    *,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    activation: str = "none",
    bitmap: Tensor | None = None,
    cell: tuple[int, int] | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    post_activation: str = "none",
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
    device = check_device("x", x)
    out, launch = plan_conv2d_box(
        x,
        weight,
        bias,
        padding=padding,
        dilation=dilation,
        activation=activation,
        bitmap=bitmap,
        cell=cell,
        scale=scale,
        residual=residual,
        post_activation=post_activation,
        precision=precision,
        out=out,
        config=config,
    )
    launch.run(device)
    return out


def plan_conv2d_box(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    *,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    activation: str = "none",
    bitmap: Tensor | None = None,
    cell: tuple[int, int] | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    post_activation: str = "none",
    precision: str = "ieee",
    out: Tensor | None = None,
    config: ConvConfig | None = None,
) -> tuple[Tensor, Launch]:
    """Check arguments, allocate the output and say what to launch; see ``conv2d_box``."""
    kind, slope = parse_activation(activation)
    post_kind, post_slope = parse_activation(post_activation)
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, allowed: {', '.join(PRECISIONS)}")
    images, channels, height, width = _check_input(x, weight)
    reason = box_supports(x, weight)
    if reason:
        raise ValueError(f"conv2d_box: {reason}")
    oh, ow = output_size((height, width), weight.kernel_size, (1, 1), padding, dilation)
    positions, out_channels = oh * ow, weight.out_channels
    if bias is not None:
        check_operand(
            "bias",
            bias,
            dtypes=(x.dtype, torch.float32),
            shape=(out_channels,),
            device=x.device,
        )
    if scale is not None:
        check_operand("scale", scale, dtypes=(torch.float32,), shape=(1,), device=x.device)
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
        return out, Launch(_conv2d_box_kernel, (0,), {}, num_warps=4, num_stages=1)
    if config is None:
        config = choose_box_config(
            images=images, positions=positions, out_channels=out_channels, dtype=x.dtype
        )

    gemm = weight.kernel_size == (1, 1) and not any(padding)
    # N, H and W of input and output as the kernel sees them.
    space = (1, 1, images * positions) if gemm else (images, oh, ow)
    in_space = space if gemm else (images, height, width)
    if gemm:
        box = (1, 1, config.block_m)
    else:
        box = choose_box(*space, config.block_m, weight.kernel_size)
    tiles = [triton.cdiv(length, side) for length, side in zip(space, box, strict=True)]
    tiles_c = triton.cdiv(out_channels, config.block_n)
    count = tiles[0] * tiles[1] * tiles[2] * tiles_c
    parts = 2 if config.block_m * config.block_n > 128 * 128 and config.block_n >= 128 else 1
    part = [*box, config.block_n // parts]

    def described(
        tensor: Tensor, extent: tuple[int, int, int], block: list[int]
    ) -> TensorDescriptor:
        rows = tensor.permute(0, 2, 3, 1).contiguous()
        rows = rows.view(*extent, rows.shape[-1])
        return TensorDescriptor(rows, list(rows.shape), list(rows.stride()), block)

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
        "y": described(out, space, part),
        "residual": None if residual is None else described(residual, space, part),
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
        "ACTIVATION": kind,
        "SLOPE": slope,
        "POST_ACTIVATION": post_kind,
        "POST_SLOPE": post_slope,
        "PRECISION": precision,
        "WIDEN": interpreted() and x.dtype == torch.bfloat16,
        "BOX_N": box[0],
        "BOX_H": box[1],
        "BOX_W": box[2],
        "BLOCK_N": config.block_n,
        "BLOCK_K": block_k,
        "PARTS": parts,
        "FLATTEN": False,
    }
    return out, Launch(
        _conv2d_box_kernel,
        (min(count, _MULTIPROCESSORS),),
        arguments,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


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
    if cell_c == 1:
        return "words"
    return "columns" if cell_p >= positions and box[0] == 1 and not gemm else "any"
