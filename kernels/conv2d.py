"""Convolution, bias, activation and sleep in one kernel.

Implicit GEMM: a program computes ``BLOCK_M`` positions of one image by ``BLOCK_N`` output channels
of one group; K runs over filter taps and input channels, flattened into one loop so that software
pipelining never drains between taps. Data are channels_last; a weight row holds one output
channel's taps in the same order, which is a channels_last ``nn.Conv2d`` weight as it lies in
memory, and the K-major operand that wgmma takes for every dtype.

A program first reads the sleep bits of its tile. When all of its neurons sleep it stores zeros and
returns, having touched neither input nor weights. Otherwise the epilogue, in float32, is

    y = 0 where asleep, else activation(acc + bias) * scale

as a masked write: a sleeper whose convolution is NaN comes out as 0.

Depthwise convolutions (one input channel per group) have no GEMM to do; they get a kernel that
multiplies and adds per channel.
"""

# Triton's language has no type annotations.
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from drowsy_kernels.epilogue import (
    activate,
    all_asleep,
    asleep,
    dot,
    map_mode,
    parse_activation,
    tile_words,
)
from drowsy_kernels.heuristics import MIN_CHANNELS_PER_TAP, ConvConfig, choose_config
from drowsy_kernels.launch import (
    MAX_ELEMENTS,
    Launch,
    check_device,
    check_operand,
    interpreted,
)
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PRECISIONS = ("ieee", "tf32")


@triton.jit
def _finish_tile(
    acc,
    y,
    bias,
    scale,
    bitmap,
    first_m,
    first_c,
    last_c,
    positions,
    cell_p,
    cell_c,
    words,
    OC: tl.constexpr,
    MAP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Epilogue: bias, activation, scale, sleep, store; ``y`` and ``bitmap`` are the image's."""
    m = first_m + tl.arange(0, BLOCK_M)
    c = first_c + tl.arange(0, BLOCK_N)
    if bias is not None:
        b_bias = tl.load(bias + c, mask=c < last_c, other=0)
        acc += b_bias.to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION, SLOPE)
    if scale is not None:
        acc *= tl.load(scale)
    if bitmap is not None:
        pc = tl.minimum(m, positions - 1) // cell_p
        b_asleep = asleep(bitmap, pc, first_c, cell_c, words, MAP, BLOCK_M, BLOCK_N)
        acc = tl.where(b_asleep, 0.0, acc)
    m_tile = (m < positions)[:, None] & (c < last_c)[None, :]
    tl.store(y + m[:, None] * OC + c[None, :], acc.to(y.dtype.element_ty), mask=m_tile)


@triton.jit
def _store_zeros(
    y,
    first_m,
    first_c,
    last_c,
    positions,
    OC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m = first_m + tl.arange(0, BLOCK_M)
    c = first_c + tl.arange(0, BLOCK_N)
    m_tile = (m < positions)[:, None] & (c < last_c)[None, :]
    b_zero = tl.zeros([BLOCK_M, BLOCK_N], y.dtype.element_ty)
    tl.store(y + m[:, None] * OC + c[None, :], b_zero, mask=m_tile)


# --- kernels ------------------------------------------------------------------------------------


@triton.jit
def _conv2d_kernel(
    x,
    w,
    bias,
    scale,
    bitmap,
    y,
    height,
    width,
    out_width,
    positions,
    tiles_m,
    cell_p,
    cell_c,
    cell_rows,
    words,
    IC: tl.constexpr,
    OC: tl.constexpr,
    GROUPS: tl.constexpr,
    W_STRIDE: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    CHECK_TAPS: tl.constexpr,
    FLAT: tl.constexpr,
    MAP: tl.constexpr,
    TILE_WORDS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Implicit GEMM; grid: images x tiles_m x channel tiles, the channel tile running fastest.

    ``x`` [N, H, W, IC], ``w`` [OC, W_STRIDE] rows of (ky, kx, channel), ``y`` [N, positions, OC].
    """
    IC_G: tl.constexpr = IC // GROUPS
    OC_G: tl.constexpr = OC // GROUPS
    TILES_G: tl.constexpr = (OC_G + BLOCK_N - 1) // BLOCK_N
    tile_n = tl.program_id(0) % (TILES_G * GROUPS)
    tile_m = (tl.program_id(0) // (TILES_G * GROUPS)) % tiles_m
    n = (tl.program_id(0) // (TILES_G * GROUPS) // tiles_m).to(tl.int64)
    group = tile_n // TILES_G
    first_m = tile_m * BLOCK_M
    first_c = group * OC_G + (tile_n % TILES_G) * BLOCK_N
    last_c = tl.minimum(first_c + BLOCK_N, (group + 1) * OC_G)
    # Rows and columns past the end repeat the last one: their loads need no mask.
    m = tl.minimum(first_m + tl.arange(0, BLOCK_M), positions - 1)
    c = tl.minimum(first_c + tl.arange(0, BLOCK_N), last_c - 1)
    y += n * positions * OC

    if bitmap is not None:
        bitmap += n * cell_rows * words
        if all_asleep(bitmap, m // cell_p, first_c, last_c, cell_c, words, TILE_WORDS):
            _store_zeros(y, first_m, first_c, last_c, positions, OC, BLOCK_M, BLOCK_N)
            return

    x += n * height * width * IC + group * IC_G
    in_y = (m // out_width) * STRIDE_H - TOP
    in_x = (m % out_width) * STRIDE_W - LEFT
    o_row = (in_y * width + in_x) * IC
    k = tl.arange(0, BLOCK_K)
    p_w = w + c[None, :] * W_STRIDE + k[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if FLAT:
        # Few channels: a K step takes whatever taps its elements belong to.
        DEPTH: tl.constexpr = KH * KW * IC_G
        for step in range((DEPTH + BLOCK_K - 1) // BLOCK_K):
            depth = step * BLOCK_K + k
            tap = depth // IC_G
            dy, dx = (tap // KW) * DILATION_H, (tap % KW) * DILATION_W
            o_depth = (dy * width + dx) * IC + depth % IC_G
            m_depth = depth < DEPTH
            m_x = m_depth[None, :]
            if CHECK_TAPS:
                at_y, at_x = in_y[:, None] + dy[None, :], in_x[:, None] + dx[None, :]
                m_x = m_x & (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
            b_x = tl.load(x + (o_row[:, None] + o_depth[None, :]), mask=m_x, other=0.0)
            b_w = tl.load(p_w + step * BLOCK_K, mask=m_depth[:, None], other=0.0)
            acc = dot(b_x, b_w, acc, PRECISION, WIDEN)
    else:
        STEPS_TAP: tl.constexpr = (IC_G + BLOCK_K - 1) // BLOCK_K
        o_x = o_row[:, None] + k[None, :]
        for step in range(KH * KW * STEPS_TAP):
            tap = step // STEPS_TAP
            first_k = (step % STEPS_TAP) * BLOCK_K
            dy, dx = (tap // KW) * DILATION_H, (tap % KW) * DILATION_W
            p_x = x + ((dy * width + dx) * IC + first_k) + o_x
            p_wk = p_w + (tap * IC_G + first_k)
            at_y, at_x = in_y + dy, in_x + dx
            m_tap = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
            if IC_G % BLOCK_K != 0:
                m_k = k < IC_G - first_k
                m_x = m_k[None, :]
                if CHECK_TAPS:
                    m_x = m_x & m_tap[:, None]
                b_x = tl.load(p_x, mask=m_x, other=0.0)
                b_w = tl.load(p_wk, mask=m_k[:, None], other=0.0)
            else:
                if CHECK_TAPS:
                    b_x = tl.load(p_x, mask=m_tap[:, None], other=0.0)
                else:
                    b_x = tl.load(p_x)
                b_w = tl.load(p_wk)
            acc = dot(b_x, b_w, acc, PRECISION, WIDEN)

    _finish_tile(
        acc,
        y,
        bias,
        scale,
        bitmap,
        first_m,
        first_c,
        last_c,
        positions,
        cell_p,
        cell_c,
        words,
        OC,
        MAP,
        ACTIVATION,
        SLOPE,
        BLOCK_M,
        BLOCK_N,
    )


@triton.jit
def _depthwise_kernel(
    x,
    w,
    bias,
    scale,
    bitmap,
    y,
    height,
    width,
    out_width,
    positions,
    tiles_m,
    cell_p,
    cell_c,
    cell_rows,
    words,
    IC: tl.constexpr,
    OC: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    CHECK_TAPS: tl.constexpr,
    MAP: tl.constexpr,
    TILE_WORDS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One input channel per group; ``w`` [KH * KW, OC]; grid as for the implicit GEMM."""
    TILES_N: tl.constexpr = (OC + BLOCK_N - 1) // BLOCK_N
    tile_m = (tl.program_id(0) // TILES_N) % tiles_m
    n = (tl.program_id(0) // TILES_N // tiles_m).to(tl.int64)
    first_m = tile_m * BLOCK_M
    first_c = (tl.program_id(0) % TILES_N) * BLOCK_N
    last_c = tl.minimum(first_c + BLOCK_N, OC)
    m = tl.minimum(first_m + tl.arange(0, BLOCK_M), positions - 1)
    c = first_c + tl.arange(0, BLOCK_N)
    m_c = c < OC
    y += n * positions * OC

    if bitmap is not None:
        bitmap += n * cell_rows * words
        if all_asleep(bitmap, m // cell_p, first_c, last_c, cell_c, words, TILE_WORDS):
            _store_zeros(y, first_m, first_c, last_c, positions, OC, BLOCK_M, BLOCK_N)
            return

    x += n * height * width * IC
    in_y = (m // out_width) * STRIDE_H - TOP
    in_x = (m % out_width) * STRIDE_W - LEFT
    o_x = ((in_y * width + in_x) * IC)[:, None] + (c // (OC // IC))[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for ky in range(KH):
        for kx in tl.static_range(KW):
            at_y, at_x = in_y + ky * DILATION_H, in_x + kx * DILATION_W
            m_x = m_c[None, :]
            if CHECK_TAPS:
                m_tap = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
                m_x = m_x & m_tap[:, None]
            p_x = x + (ky * DILATION_H * width + kx * DILATION_W) * IC + o_x
            b_x = tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)
            b_w = tl.load(w + (ky * KW + kx) * OC + c, mask=m_c, other=0.0).to(tl.float32)
            acc += b_x * b_w[None, :]

    _finish_tile(
        acc,
        y,
        bias,
        scale,
        bitmap,
        first_m,
        first_c,
        last_c,
        positions,
        cell_p,
        cell_c,
        words,
        OC,
        MAP,
        ACTIVATION,
        SLOPE,
        BLOCK_M,
        BLOCK_N,
    )


# --- launcher -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A convolution weight in the layout of the kernels; made by ``pack_weight``.

    Args:
        data: ``[OC, K]`` with rows of (ky, kx, input channel), zero-padded to 16 bytes; for a
            depthwise weight ``[KH * KW, OC]``.
        out_channels: ``OC``, of all groups.
        channels_per_group: input channels of a group.
        kernel_size: ``(KH, KW)``.
        groups: number of groups.
    """

    data: Tensor
    out_channels: int
    channels_per_group: int
    kernel_size: tuple[int, int]
    groups: int

    @property
    def in_channels(self) -> int:
        """Input channels of all groups."""
        return self.channels_per_group * self.groups

    @property
    def depthwise(self) -> bool:
        """Whether every group has a single input channel."""
        return _is_depthwise(self.channels_per_group, self.groups)


def _is_depthwise(channels_per_group: int, groups: int) -> bool:
    return groups > 1 and channels_per_group == 1


def pack_weight(weight: Tensor, groups: int = 1) -> PackedWeight:
    """Lay a weight out for ``conv2d``.

    Args:
        weight: ``[OC, IC / groups, KH, KW]``, any strides; float32, float16 or bfloat16.
        groups: number of groups; divides ``OC``.

    A channels_last weight whose rows are whole multiples of 16 bytes is not copied: the result is a
    view that follows in-place updates. Any other is copied.
    """
    if weight.dtype not in DTYPES:
        raise TypeError(f"weight: got {weight.dtype}, allowed: {', '.join(map(str, DTYPES))}")
    if weight.dim() != 4 or min(weight.shape[1:]) < 1:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, allowed: [OC, IC / groups, KH, KW], "
            "no dimension but OC empty"
        )
    out_channels, channels, kh, kw = weight.shape
    if groups < 1 or out_channels % groups:
        raise ValueError(f"groups: got {groups}, allowed: divisors of {out_channels} channels")
    depth = channels * kh * kw
    if out_channels * depth > MAX_ELEMENTS // 2:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, allowed: below 2**30 elements")
    if _is_depthwise(channels, groups):
        data = weight.reshape(out_channels, depth).t().contiguous()
    else:
        data = weight.permute(0, 2, 3, 1).reshape(out_channels, depth)
        unit = 16 // weight.element_size()
        if depth % unit:
            data = torch.nn.functional.pad(data, (0, -depth % unit))
        data = data.contiguous()
    return PackedWeight(data, out_channels, channels, (kh, kw), groups)


def conv2d(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    activation: str = "none",
    bitmap: Tensor | None = None,
    cell: tuple[int, int] | None = None,
    scale: Tensor | None = None,
    precision: str = "ieee",
    out: Tensor | None = None,
    config: ConvConfig | None = None,
) -> Tensor:
    """Convolution with fused bias, activation, scale and sleep.

    Args:
        x: ``[N, C, H, W]``, float32, float16 or bfloat16; copied unless channels_last.
        weight: from ``pack_weight``, of the same dtype; carries kernel size and groups.
        bias: ``[OC]`` of the same dtype or float32.
        stride, dilation: ``(vertical, horizontal)``.
        padding: zeros around the input, ``(left, right, top, bottom)`` as in ``F.pad``.
        activation: one of ``ACTIVATIONS``.
        bitmap: int32 ``[N, PC, W]`` from ``sleep_map``; sleeping neurons come out as 0.
        cell: ``(cell_p, cell_c)`` of the bitmap.
        scale: float32 tensor of one element, read on the device: factor on awake outputs.
        precision: of float32 products, ``ieee`` or ``tf32``; sums are float32 always.
        out: channels_last ``[N, OC, OH, OW]`` of ``x``'s dtype to write into; every element is
            written.
        config: block shapes, in place of those that ``choose_config`` picks.

    Returns:
        ``[N, OC, OH, OW]``, channels_last, of ``x``'s dtype.

    Raises:
        ValueError, TypeError: an argument outside of what is listed here, or shapes that do not
            fit each other.
    """
    device = check_device("x", x)
    out, launch = plan_conv2d(
        x,
        weight,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation=activation,
        bitmap=bitmap,
        cell=cell,
        scale=scale,
        precision=precision,
        out=out,
        config=config,
    )
    launch.run(device)
    return out


def plan_conv2d(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    activation: str = "none",
    bitmap: Tensor | None = None,
    cell: tuple[int, int] | None = None,
    scale: Tensor | None = None,
    precision: str = "ieee",
    out: Tensor | None = None,
    config: ConvConfig | None = None,
) -> tuple[Tensor, Launch]:
    """Check arguments, allocate the output and say what to launch; see ``conv2d``."""
    kind, slope = parse_activation(activation)
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, allowed: {', '.join(PRECISIONS)}")
    images, channels, height, width = _check_input(x, weight)
    oh, ow = output_size((height, width), weight.kernel_size, stride, padding, dilation)
    positions, out_channels = oh * ow, weight.out_channels
    if max(height * width * channels, positions * out_channels) > MAX_ELEMENTS:
        raise ValueError(
            f"x: {(channels, height, width)} -> {(out_channels, oh, ow)}, allowed: fewer than "
            "2**31 elements in an image's input and output"
        )
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
    y = out.permute(0, 2, 3, 1)
    check_operand(
        "out (as N, OH, OW, OC)",
        y,
        dtypes=(x.dtype,),
        shape=(images, oh, ow, out_channels),
        device=x.device,
    )

    out_channels_per_group = out_channels // weight.groups
    if config is None:
        config = choose_config(
            images=images,
            positions=positions,
            channels_per_group=weight.channels_per_group,
            out_channels_per_group=out_channels_per_group,
            groups=weight.groups,
            dtype=x.dtype,
            cell=cell,
        )
    cell_p, cell_c = cell or (1, 1)
    # Depthwise tiles cross groups.
    span = out_channels if weight.depthwise else out_channels_per_group
    tiles_m = triton.cdiv(positions, config.block_m)
    tiles_n = out_channels // max(span, 1) * triton.cdiv(span, config.block_n)
    arguments: dict[str, Any] = {
        "x": x.permute(0, 2, 3, 1).contiguous(),
        "w": weight.data,
        "bias": bias,
        "scale": scale,
        "bitmap": bitmap,
        "y": y,
        "height": height,
        "width": width,
        "out_width": ow,
        "positions": positions,
        "tiles_m": tiles_m,
        "cell_p": cell_p,
        "cell_c": cell_c,
        "cell_rows": cell_rows,
        "words": words,
        "IC": channels,
        "OC": out_channels,
        "KH": weight.kernel_size[0],
        "KW": weight.kernel_size[1],
        "STRIDE_H": stride[0],
        "STRIDE_W": stride[1],
        "DILATION_H": dilation[0],
        "DILATION_W": dilation[1],
        "TOP": padding[2],
        "LEFT": padding[0],
        "CHECK_TAPS": any(padding),
        "MAP": map_mode(bitmap, (cell_p, cell_c), positions, out_channels, span, config),
        "TILE_WORDS": tile_words(cell_c, span, out_channels, config.block_n),
        "ACTIVATION": kind,
        "SLOPE": slope,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
    }
    kernel = _depthwise_kernel
    if not weight.depthwise:
        kernel = _conv2d_kernel
        arguments |= {
            "GROUPS": weight.groups,
            "W_STRIDE": weight.data.shape[1],
            "FLAT": weight.channels_per_group < MIN_CHANNELS_PER_TAP,
            "PRECISION": precision,
            "WIDEN": interpreted() and x.dtype == torch.bfloat16,
            "BLOCK_K": config.block_k,
        }
    return out, Launch(
        kernel,
        (images * tiles_m * tiles_n,),
        arguments,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _check_input(x: Tensor, weight: PackedWeight) -> tuple[int, int, int, int]:
    if x.dtype not in DTYPES:
        raise TypeError(f"x: got {x.dtype}, allowed: {', '.join(map(str, DTYPES))}")
    if x.dtype != weight.data.dtype or x.device != weight.data.device:
        raise TypeError(
            f"x: got {x.dtype} on {x.device} with a weight of {weight.data.dtype} on "
            f"{weight.data.device}, allowed: one dtype and device"
        )
    if x.dim() != 4 or x.shape[1] != weight.in_channels:
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, allowed: [N, {weight.in_channels}, H, W] "
            f"({weight.groups} group(s) of {weight.channels_per_group} channels)"
        )
    n, channels, height, width = x.shape
    return n, channels, height, width


def output_size(
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
) -> tuple[int, int]:
    """``(OH, OW)`` of a convolution over an input of ``size`` (H, W); arguments as ``conv2d``'s.

    Raises:
        ValueError: an argument out of range, or a padded input smaller than the kernel's extent.
    """
    for name, value, least, length in (
        ("stride", stride, 1, 2),
        ("dilation", dilation, 1, 2),
        ("padding", padding, 0, 4),
    ):
        if len(value) != length or min(value) < least:
            raise ValueError(f"{name}: got {value}, allowed: {length} integers from {least}")
    left, right, top, bottom = padding
    padded = (size[0] + top + bottom, size[1] + left + right)
    extent = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True))
    if padded[0] < extent[0] or padded[1] < extent[1]:
        raise ValueError(
            f"x: got {padded} rows and columns with padding, allowed: at least the extent "
            f"{extent} of a kernel {kernel_size} with dilation {dilation}"
        )
    return (padded[0] - extent[0]) // stride[0] + 1, (padded[1] - extent[1]) // stride[1] + 1


def _check_bitmap(
    bitmap: Tensor | None,
    cell: tuple[int, int] | None,
    images: int,
    positions: int,
    channels: int,
    device: torch.device,
) -> tuple[int, int]:
    """``(PC, W)`` of a bitmap."""
    if (bitmap is None) != (cell is None):
        raise ValueError("bitmap, cell: got one without the other, allowed: both or neither")
    if bitmap is None or cell is None:
        return 0, 0
    if len(cell) != 2 or min(cell) < 1:
        raise ValueError(f"cell: got {cell}, allowed: (positions, channels), each 1 or more")
    rows, cells = triton.cdiv(positions, cell[0]), triton.cdiv(channels, cell[1])
    words = triton.cdiv(cells, 32)
    check_operand(
        "bitmap", bitmap, dtypes=(torch.int32,), shape=(images, rows, words), device=device
    )
    return rows, words
