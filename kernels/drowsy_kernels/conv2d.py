"""Convolution, bias, activation, sleep and residual in one call.

What is launched depends on the layer and on what is known of its sleep. The implicit GEMM
(``implicit_gemm.py``) computes whole tiles and lets those that sleep exit early, or works through a
list of awake cells, rows or channels. Layers of few tiles split K (``split_k.py``), inputs of few
channels are packed first (``pack_input.py``), and depthwise layers have a kernel of their own
(``depthwise.py``). Every one ends in the same epilogue, in float32:

    y = post_activation(residual + (0 where asleep, else activation(acc + bias) * scale))

as a masked write: a sleeper whose convolution is NaN comes out as 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
from drowsy_kernels.depthwise import depthwise_kernel
from drowsy_kernels.epilogue import activation_arguments, map_mode, tile_words
from drowsy_kernels.heuristics import ConvConfig, choose_config, multiprocessors
from drowsy_kernels.implicit_gemm import awake_conv2d_kernel, conv2d_kernel
from drowsy_kernels.launch import (
    ALL_REGISTERS,
    MAX_ELEMENTS,
    Launch,
    check_operand,
    interpreted,
    launched,
    plan_of,
    planned,
)
from drowsy_kernels.lists import AwakeBlocks, AwakeCells, AwakeChannels, AwakeRows
from drowsy_kernels.pack_input import pack_input_kernel
from drowsy_kernels.split_k import add_parts_kernel
from drowsy_kernels.weight import DTYPES, PackedWeight
from torch import Tensor

PRECISIONS = ("ieee", "tf32")
"""How float32 is multiplied: in full, or rounded to TF32 for tensor cores."""
Awake = AwakeCells | AwakeRows | AwakeChannels

# Rows are numbered in 32 bits, up to a tile beyond the last.
MAX_ROWS = 2**31 - 1024
# A tile of more cells than this is hardly ever asleep as a whole: it is not worth a look.
_MOST_CELLS = 32
# Taps whose validity fits into a row's word.
_MOST_TAPS = 32
_PACK_BLOCK = 512
# Tile of the kernel that adds the parts of a split.
_ADD_BLOCK = (32, 64)


@launched
def conv2d(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    activation: str = "none",
    slopes: Tensor | None = None,
    bitmap: Tensor | None = None,
    cell: tuple[int, int] | None = None,
    awake: Awake | None = None,
    x_blocks: AwakeBlocks | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    post_activation: str = "none",
    post_slopes: Tensor | None = None,
    precision: str = "ieee",
    out: Tensor | None = None,
    config: ConvConfig | None = None,
) -> Tensor:
    """Convolution with fused bias, activation, scale, sleep and residual.

    Args:
        x: ``[N, C, H, W]``, float32, float16 or bfloat16; copied unless channels_last.
        weight: from ``pack_weight``, of the same dtype; carries kernel size and groups.
        bias: ``[OC]`` of the same dtype or float32.
        stride, dilation: ``(vertical, horizontal)``.
        padding: zeros around the input, ``(left, right, top, bottom)`` as in ``F.pad``.
        activation: one of ``ACTIVATIONS``.
        slopes: of activation ``prelu``, ``[OC]`` of the same dtype or float32; one slope expanded
            to all channels will do. None for all other activations.
        bitmap: int32 ``[N, PC, W]`` from ``sleep_map``; sleeping neurons come out as 0.
        cell: ``(cell_p, cell_c)`` of the bitmap.
        awake: a list of what is awake in ``bitmap``. Of ``AwakeCells`` or ``AwakeRows``, awake
            neurons are computed and written and *sleepers are left as they are*, for
            ``fill_sleepers``; with ``AwakeChannels`` every element is written. Where a list cannot
            be followed (depthwise layers; cells that straddle groups; lists of channels of a
            grouped layer) the bitmap is, and every element is written. ``AwakeRows`` of one list
            *without* bitmap and cell are followed by layers of every kind: the listed positions
            are computed in all channels, and the others are left as they are.
        x_blocks: the input's awake channel blocks of every image; the others are zero and not
            read. Followed where a tile is of one image: not with ``AwakeRows``, nor in grouped and
            depthwise layers or those of fewer than 8 input channels.
        scale: float32 tensor of one element, read on the device: factor on awake outputs.
        residual: channels_last ``[N, OC, OH, OW]`` of ``x``'s dtype, added to every output; not the
            memory of ``out``.
        post_activation: one of ``ACTIVATIONS``, applied to the sum.
        post_slopes: of post_activation ``prelu``, as ``slopes``.
        precision: of float32 products, ``ieee`` or ``tf32``; sums are float32 always.
        out: channels_last ``[N, OC, OH, OW]`` of ``x``'s dtype to write into.
        config: block shapes, in place of those that ``choose_config`` picks.

    Returns:
        ``[N, OC, OH, OW]``, channels_last, of ``x``'s dtype.

    Raises:
        ValueError, TypeError: an argument outside of what is listed here, or shapes that do not
            fit each other.
    """
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
    if images * positions > MAX_ROWS:
        raise ValueError(
            f"x: {images} images of {positions} output positions, allowed: up to {MAX_ROWS} in all"
        )
    check_epilogue(bias, scale, out_channels, x.dtype, x.device)
    of_output = out_channels, x.dtype, x.device
    activations = activation_arguments(activation, slopes, *of_output)
    activations |= activation_arguments(post_activation, post_slopes, *of_output, post=True)
    listed = awake if bitmap is None and isinstance(awake, AwakeRows) else None
    cell_rows, words = _check_bitmap(bitmap, cell, images, positions, out_channels, x.device)
    cell_p, cell_c = cell or (1, 1)
    shape = (images, oh, ow, out_channels)
    if out is None:
        out = torch.empty(
            (images, out_channels, oh, ow),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
    y = out.permute(0, 2, 3, 1)
    check_operand("out (as N, OH, OW, OC)", y, dtypes=(x.dtype,), shape=shape, device=x.device)
    if residual is not None:
        residual = residual.permute(0, 2, 3, 1) if residual.dim() == 4 else residual
        check_operand(
            "residual (as N, OH, OW, OC)",
            residual,
            dtypes=(x.dtype,),
            shape=shape,
            device=x.device,
        )
        if 0 != residual.data_ptr() == y.data_ptr():
            raise ValueError("residual: got the memory of out, allowed: memory of its own")
    list_cell = cell if listed is None else (1, out_channels)
    _check_lists(awake, x_blocks, list_cell, (images, positions, out_channels), x)
    if out.numel() == 0:
        return planned(out, on=("x", x))

    view, packing = _input_view(x, weight, stride, padding, dilation)
    groups = weight.groups // weight.merged
    if isinstance(awake, AwakeRows) or weight.depthwise or weight.padded or groups > 1:
        x_blocks = None
    follows = listed is None and _can_follow(awake, cell_c, out_channels, groups)
    if weight.depthwise or not follows:
        awake = None
    if config is None:
        config = choose_config(
            images=images,
            # Half of them, as suits what half of a map is computed by.
            positions=positions if listed is None else triton.cdiv(positions, 2),
            channels_per_group=1 if weight.depthwise else view.channels,
            out_channels_per_group=out_channels // groups,
            groups=groups,
            dtype=x.dtype,
            taps=view.kernel_size[0] * view.kernel_size[1],
            precision=precision,
            cell=cell,
            awake=_KINDS[type(awake)] if listed is None else "areas",
            block_k=None if x_blocks is None else x_blocks.block,
        )
    elif x_blocks is not None and x_blocks.block != config.block_k:
        raise ValueError(
            f"x_blocks: got blocks of {x_blocks.block} channels, allowed: {config.block_k}, the "
            "K step of config"
        )
    sleep = _Sleep(bitmap, cell_p, cell_c, cell_rows, words, positions, out_channels)
    arguments: dict[str, Any] = {
        **view.arguments,
        "w": weight.data,
        "bias": bias,
        "scale": scale,
        "residual": residual,
        "y": y,
        "listed": None if listed is None else listed.indices,
        "count": None if listed is None else listed.counts,
        "images": images,
        "out_width": ow,
        "positions": positions,
        "OC": out_channels,
        "STRIDE_H": stride[0],
        "STRIDE_W": stride[1],
        "DILATION_H": dilation[0],
        "DILATION_W": dilation[1],
        "WIDE": max(view.x.numel(), out.numel()) > MAX_ELEMENTS,
        **activations,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
    }
    if weight.depthwise:
        arguments |= sleep.arguments(config.block_m, config.block_n, out_channels, False)
        launch = _depthwise(arguments, config, images * positions, channels)
        return planned(out, *packing, launch, on=("x", x))
    arguments |= {
        "GROUPS": groups,
        "W_STRIDE": weight.data.shape[1],
        "PRECISION": precision,
        "WIDEN": interpreted() and x.dtype == torch.bfloat16,
        "BLOCK_K": config.block_k,
        "k_blocks": triton.cdiv(view.channels, config.block_k),
        "blocks": None if x_blocks is None else x_blocks.indices,
        "block_counts": None if x_blocks is None else x_blocks.counts,
    }
    if awake is None:
        return planned(out, *packing, *_masked(arguments, config, sleep), on=("x", x))
    return planned(out, *packing, _listed(arguments, config, sleep, awake), on=("x", x))


plan_conv2d = plan_of(conv2d)
"""``(result, launches)`` of ``conv2d``, and nothing is run: meta tensors will do."""


@dataclass(frozen=True)
class _Sleep:
    """A bitmap and how its cells lie."""

    bitmap: Tensor | None
    cell_p: int
    cell_c: int
    cell_rows: int
    words: int
    positions: int
    out_channels: int

    def within(self, block_m: int) -> bool:
        """Whether tiles of this many rows can stay within position cells."""
        return self.bitmap is not None and (
            self.cell_p >= self.positions or self.cell_p % block_m == 0
        )

    def arguments(self, block_m: int, block_n: int, span: int, segmented: bool) -> dict[str, Any]:
        """By which a tile finds its bits; channel tiles start anew every ``span`` channels."""
        cells = triton.cdiv(block_m, self.cell_p) * triton.cdiv(min(block_n, span), self.cell_c)
        return {
            "bitmap": self.bitmap,
            "cell_p": self.cell_p,
            "cell_c": self.cell_c,
            "cell_rows": self.cell_rows,
            "words": self.words,
            "MAP": map_mode(self.bitmap, self.cell_c, segmented, self.out_channels, span, block_n),
            "TILE_WORDS": tile_words(self.cell_c, span, self.out_channels, block_n),
            "EXIT_EARLY": cells <= _MOST_CELLS,
        }


def _depthwise(arguments: dict[str, Any], config: ConvConfig, rows: int, channels: int) -> Launch:
    tiles_n = triton.cdiv(arguments["OC"], config.block_n)
    programs = triton.cdiv(rows, config.block_m) * tiles_n
    arguments = arguments | {"IC": channels}
    return Launch.pick(depthwise_kernel, programs, arguments, config.num_warps, config.num_stages)


def _masked(arguments: dict[str, Any], config: ConvConfig, sleep: _Sleep) -> tuple[Launch, ...]:
    """Tiles all over the output; where a tile fits into a cell it stays within."""
    images, positions, groups = (arguments[name] for name in ("images", "positions", "GROUPS"))
    out_channels, block_m, block_n = sleep.out_channels, config.block_m, config.block_n
    span = out_channels // groups
    in_cell = sleep.within(block_m) and (sleep.cell_c >= span or sleep.cell_c % block_n == 0)
    segment = min(sleep.cell_p, positions) if in_cell else positions
    segmented = in_cell or arguments["blocks"] is not None
    segments, segment_tiles = triton.cdiv(positions, segment), triton.cdiv(segment, block_m)
    tiles_m = triton.cdiv(images * positions, block_m)
    if segmented:
        tiles_m = images * segments * segment_tiles
    split_k = min(config.split_k, triton.cdiv(arguments["CHANNELS"], config.block_k))
    partial = None
    if arguments["blocks"] is not None:
        split_k = 1
    if split_k > 1:
        partial = arguments["y"].new_empty(
            (split_k, images * positions, out_channels), dtype=torch.float32
        )
    tiles = tiles_m * groups * triton.cdiv(span, block_n)
    launch = Launch.pick(
        conv2d_kernel,
        tiles * split_k,
        arguments
        | sleep.arguments(block_m, block_n, span, in_cell)
        | {
            "partial": partial,
            "tiles_m": tiles_m,
            "segment": segment,
            "segments": segments,
            "segment_tiles": segment_tiles,
            "SEGMENTED": segmented,
            "GROUP_M": config.group_m,
            "SPLIT_K": split_k,
        },
        config.num_warps,
        config.num_stages,
        # The few programs of a split need not share multiprocessors.
        ALL_REGISTERS if split_k > 1 else config.max_registers(arguments["y"].element_size()),
    )
    if split_k == 1:
        return (launch,)
    block_m, block_n = _ADD_BLOCK
    programs = triton.cdiv(images * positions, block_m) * triton.cdiv(out_channels, block_n)
    arguments = (
        arguments
        | sleep.arguments(block_m, block_n, out_channels, False)
        | {
            "partial": partial,
            "rows": images * positions,
            "SPLIT_K": split_k,
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
        }
    )
    return launch, Launch.pick(add_parts_kernel, programs, arguments, num_warps=4, num_stages=1)


_KINDS = {
    type(None): "none",
    AwakeCells: "cells",
    AwakeRows: "rows",
    AwakeChannels: "channels",
}


def _can_follow(awake: Awake | None, cell_c: int, out_channels: int, groups: int) -> bool:
    """Whether no cell straddles groups, and lists of channels have no groups to tell apart."""
    span = out_channels // groups
    if isinstance(awake, AwakeChannels):
        return groups == 1
    return cell_c >= out_channels or cell_c % span == 0 or span % cell_c == 0 or groups == 1


def _listed(arguments: dict[str, Any], config: ConvConfig, sleep: _Sleep, awake: Awake) -> Launch:
    """As many programs as stay resident, for the tiles of what is awake."""
    images, positions = arguments["images"], sleep.positions
    span = sleep.out_channels // arguments["GROUPS"]
    unit = min(sleep.cell_c, span)
    segment, segments = positions, 1
    cells = triton.cdiv(sleep.out_channels, sleep.cell_c)
    lists = 1
    if isinstance(awake, AwakeCells):
        segment = min(sleep.cell_p, positions)
        segments = triton.cdiv(positions, segment)
    else:
        lists = images if isinstance(awake, AwakeChannels) else cells
    itemsize, kind = arguments["y"].element_size(), _KINDS[type(awake)]
    return Launch.pick(
        awake_conv2d_kernel,
        multiprocessors(arguments["y"].device) * config.resident(itemsize, kind),
        arguments
        | {
            "awake": awake.indices,
            "counts": awake.count if isinstance(awake, AwakeCells) else awake.counts,
            "segment": segment,
            "segments": segments,
            "segment_tiles": triton.cdiv(segment, config.block_m),
            "cells": cells,
            "AWAKE": kind,
            "LISTS": triton.next_power_of_2(lists),
            "UNIT": unit,
            "CELL_UNITS": triton.cdiv(min(sleep.cell_c, sleep.out_channels), unit),
        },
        config.num_warps,
        config.num_stages,
        config.max_registers(itemsize, kind),
    )


# --- the input ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """An input as the implicit GEMM sees it.

    Args:
        x: ``[N, H, W, PITCH]``, contiguous.
        channels: of a tap and a group.
        kernel_size: taps, vertical and horizontal.
        top, left: rows and columns of zeros that are not in memory.
        check_taps: whether taps may fall outside of the image.
        plain: whether row m of the output reads pixel m and no other.
    """

    x: Tensor
    channels: int
    kernel_size: tuple[int, int]
    top: int
    left: int
    check_taps: bool
    plain: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """As kernels take them."""
        return {
            "x": self.x,
            "height": self.x.shape[1],
            "width": self.x.shape[2],
            "PITCH": self.x.shape[3],
            "CHANNELS": self.channels,
            "KH": self.kernel_size[0],
            "KW": self.kernel_size[1],
            "TOP": self.top,
            "LEFT": self.left,
            "CHECK_TAPS": self.check_taps,
            "PLAIN": self.plain,
        }


def _input_view(
    x: Tensor,
    weight: PackedWeight,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
) -> tuple[_View, tuple[Launch, ...]]:
    """The input in the layout of the kernels, and what must be launched to have it so."""
    (kh, kw), pitch = weight.kernel_size, weight.pitch
    if weight.padded:
        packed, launch = _pack_input(x, pitch, padding)
        if dilation[1] == 1:
            return _View(packed, kw * pitch, (kh, 1), 0, 0, False, False), (launch,)
        return _View(packed, pitch, (kh, kw), 0, 0, False, False), (launch,)
    if any(padding) and kh * kw > _MOST_TAPS and not weight.depthwise:
        x, padding = F.pad(x, padding), (0, 0, 0, 0)
    plain = (kh, kw) == (1, 1) and stride == (1, 1) and not any(padding)
    left, _, top, _ = padding
    channels_last = x.permute(0, 2, 3, 1).contiguous()
    return _View(channels_last, pitch, (kh, kw), top, left, any(padding), plain), ()


def _pack_input(x: Tensor, pitch: int, padding: tuple[int, int, int, int]) -> tuple[Tensor, Launch]:
    """``[N, H, W, pitch]`` with zeros for padding and for channels that are not there."""
    images, channels, height, width = x.shape
    left, right, top, bottom = padding
    packed = x.new_empty((images, height + top + bottom, width + left + right, pitch))
    pixels = packed.numel() // pitch
    if pixels > MAX_ROWS:
        raise ValueError(f"x: got {pixels} pixels with padding, allowed: up to {MAX_ROWS} in all")
    names = ("stride_n", "stride_c", "stride_y", "stride_x")
    arguments = {
        "x": x,
        "packed": packed,
        "pixels": pixels,
        "height": height,
        "width": width,
        "padded_height": packed.shape[1],
        "padded_width": packed.shape[2],
        **dict(zip(names, x.stride(), strict=True)),
        "CHANNELS": channels,
        "TOP": top,
        "LEFT": left,
        "PITCH": pitch,
        "BLOCK": _PACK_BLOCK,
    }
    grid = (triton.cdiv(pixels, _PACK_BLOCK),)
    return packed, Launch(pack_input_kernel, grid, arguments, num_warps=4, num_stages=1)


# --- checks -------------------------------------------------------------------------------------


def check_epilogue(
    bias: Tensor | None,
    scale: Tensor | None,
    out_channels: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Raise unless bias and scale fit an output of this many channels."""
    if bias is not None:
        check_operand(
            "bias", bias, dtypes=(dtype, torch.float32), shape=(out_channels,), device=device
        )
    if scale is not None:
        check_operand("scale", scale, dtypes=(torch.float32,), shape=(1,), device=device)


def _check_lists(
    awake: Awake | None,
    x_blocks: AwakeBlocks | None,
    cell: tuple[int, int] | None,
    shape: tuple[int, int, int],
    x: Tensor,
) -> None:
    images, positions, channels = shape
    lists: list[tuple[str, Tensor, tuple[int, ...]]] = []
    if awake is not None:
        if cell is None:
            raise ValueError("awake: got a list without bitmap and cell, allowed: all three")
        rows, cells = triton.cdiv(positions, cell[0]), triton.cdiv(channels, cell[1])
        if isinstance(awake, AwakeCells):
            lists.append(("awake.indices", awake.indices, (images * rows * cells,)))
            lists.append(("awake.count", awake.count, (1,)))
        elif isinstance(awake, AwakeRows):
            if cell[0] != 1:
                raise ValueError(f"awake: got AwakeRows of cells {cell}, allowed: of 1 position")
            lists.append(("awake.indices", awake.indices, (cells, images * positions)))
            lists.append(("awake.counts", awake.counts, (cells,)))
        elif isinstance(awake, AwakeChannels):
            if rows != 1:
                raise ValueError(
                    f"awake: got AwakeChannels of cells {cell}, allowed: of all {positions} "
                    "positions"
                )
            lists.append(("awake.indices", awake.indices, (images, channels)))
            lists.append(("awake.counts", awake.counts, (images,)))
        else:
            raise TypeError(
                f"awake: got {type(awake).__name__}, allowed: AwakeCells, AwakeRows, AwakeChannels"
            )
    if x_blocks is not None:
        blocks = triton.cdiv(x.shape[1], x_blocks.block)
        lists.append(("x_blocks.indices", x_blocks.indices, (images, blocks)))
        lists.append(("x_blocks.counts", x_blocks.counts, (images,)))
    for name, tensor, allowed in lists:
        check_operand(name, tensor, dtypes=(torch.int32,), shape=allowed, device=x.device)


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
    if images * rows * words > MAX_ELEMENTS:
        raise ValueError(f"bitmap: {images * rows * words} words, allowed: fewer than 2**31")
    check_operand(
        "bitmap", bitmap, dtypes=(torch.int32,), shape=(images, rows, words), device=device
    )
    return rows, words
