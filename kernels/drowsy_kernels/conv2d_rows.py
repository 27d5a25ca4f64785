"""Convolution of compact activations, whose neighbours a table names.

Where all layers of a stage share one sleep map, activations hold the awake positions alone, as rows
``[R, IC]`` of a matrix. What a filter tap reads for output row i is then no arithmetic but an entry
of a table: ``x[table[tap, i]]``, or zeros where the entry is -1. A convolution of one tap whose
rows stay where they are needs no table and is a plain GEMM.

The number of rows is known on the device only: as many programs as stay resident share them.
"""

# Triton's language has no type annotations.
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from drowsy_kernels.conv2d import PRECISIONS, check_epilogue
from drowsy_kernels.epilogue import activation_arguments, dot, finish, offsets
from drowsy_kernels.heuristics import ConvConfig, choose_config, multiprocessors
from drowsy_kernels.launch import (
    MAX_ELEMENTS,
    VIEWS,
    Launch,
    check_operand,
    interpreted,
    launched,
    plan_of,
    planned,
)
from drowsy_kernels.weight import DTYPES, PackedWeight
from torch import Tensor


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def conv2d_rows_kernel(
    x,
    w,
    bias,
    slopes,
    post_slopes,
    scale,
    residual,
    y,
    table,
    count,
    length,
    IC: tl.constexpr,
    W_PITCH: tl.constexpr,
    OC: tl.constexpr,
    W_STRIDE: tl.constexpr,
    TAPS: tl.constexpr,
    WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    POST_ACTIVATION: tl.constexpr,
    POST_SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``x`` [R, IC], ``w`` [OC, W_STRIDE] rows of (tap, W_PITCH channels),
    ``y`` [length, OC], ``table`` [TAPS, length].

    Taps run inside, blocks of input channels outside, as in the implicit GEMM: the table's entries
    of the next step are on their way while this one multiplies.
    """
    TILES_N: tl.constexpr = (OC + BLOCK_N - 1) // BLOCK_N
    BLOCKS: tl.constexpr = (IC + BLOCK_K - 1) // BLOCK_K
    rows = tl.load(count)
    k = tl.arange(0, BLOCK_K)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BLOCK_M) * TILES_N, tl.num_programs(0)):
        first_c = tile % TILES_N * BLOCK_N
        m_all = tile // TILES_N * BLOCK_M + tl.arange(0, BLOCK_M)
        m_m = m_all < rows
        c_all = first_c + tl.arange(0, BLOCK_N)
        c = c_all
        if OC % BLOCK_N != 0:
            c = tl.minimum(c_all, OC - 1)
        m = tl.minimum(m_all, rows - 1)
        o_w = c[None, :] * W_STRIDE + k[:, None]
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        first_k = 0
        tap = 0
        for _ in range(BLOCKS * TAPS):
            source = m
            if table is not None:
                source = tl.load(table + tap * length + m)
            p_x = x + first_k + (offsets(source, IC, WIDE)[:, None] + k[None, :])
            p_w = w + (tap * W_PITCH + first_k) + o_w
            m_source = (source >= 0)[:, None]
            if IC % BLOCK_K != 0:
                m_k = k < IC - first_k
                m_x = m_k[None, :]
                if table is not None:
                    m_x = m_x & m_source
                b_x = tl.load(p_x, mask=m_x, other=0.0)
                b_w = tl.load(p_w, mask=m_k[:, None], other=0.0)
            else:
                if table is not None:
                    b_x = tl.load(p_x, mask=m_source, other=0.0)
                else:
                    b_x = tl.load(p_x)
                b_w = tl.load(p_w)
            acc = dot(b_x, b_w, acc, PRECISION, WIDEN)
            if TAPS > 1:
                tap += 1
                last = tap == TAPS
                tap = tl.where(last, 0, tap)
                first_k += tl.where(last, BLOCK_K, 0)
            else:
                first_k += BLOCK_K
        finish(
            acc,
            y,
            residual,
            bias,
            slopes,
            post_slopes,
            scale,
            None,
            m,
            m_all,
            m_m,
            first_c,
            OC,
            1,
            1,
            OC,
            "none",
            ACTIVATION,
            SLOPE,
            POST_ACTIVATION,
            POST_SLOPE,
            WIDE,
            BLOCK_M,
            BLOCK_N,
        )


@launched
def conv2d_rows(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    *,
    table: Tensor | None,
    count: Tensor,
    activation: str = "none",
    slopes: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    post_activation: str = "none",
    post_slopes: Tensor | None = None,
    precision: str = "ieee",
    out: Tensor | None = None,
    config: ConvConfig | None = None,
) -> Tensor:
    """Convolution of compact rows, with the epilogue of ``conv2d``.

    Args:
        x: ``[R, IC]``, contiguous; float32, float16 or bfloat16.
        weight: from ``pack_weight``, of the same dtype, one group.
        bias: ``[OC]`` of the same dtype or float32.
        table: int32 ``[KH * KW, L]``: the row of ``x`` that tap t of output row i reads, or -1 for
            zeros. None for a weight of one tap: row i reads row i, and ``L`` is ``R``.
        count: int32, one element, read on the device: rows to compute, up to ``L``.
        activation, slopes, scale, residual, post_activation, post_slopes, precision, config: as
            for ``conv2d``; ``residual`` is ``[L, OC]``.
        out: ``[L, OC]`` to write into; rows from ``count`` on are left as they are.

    Returns:
        ``[L, OC]`` of ``x``'s dtype.

    Raises:
        ValueError, TypeError: an argument outside of what is listed here, or shapes that do not
            fit each other.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, allowed: {', '.join(PRECISIONS)}")
    if weight.groups != 1:
        raise ValueError(f"weight: got {weight.groups} groups, allowed: 1")
    if x.dim() != 2 or x.shape[1] != weight.in_channels:
        raise ValueError(f"x: got shape {tuple(x.shape)}, allowed: [rows, {weight.in_channels}]")
    check_operand("x", x, dtypes=DTYPES, shape=tuple(x.shape), device=weight.data.device)
    if x.dtype != weight.data.dtype:
        raise TypeError(f"x: got {x.dtype}, allowed: the weight's {weight.data.dtype}")
    channels, out_channels = x.shape[1], weight.out_channels
    taps = weight.kernel_size[0] * weight.kernel_size[1]
    length = x.shape[0]
    if table is not None:
        length = table.shape[-1]
        check_operand("table", table, dtypes=(torch.int32,), shape=(taps, length), device=x.device)
        if table.numel() > MAX_ELEMENTS:
            raise ValueError(f"table: got {table.numel()} entries, allowed: fewer than 2**31")
    elif taps != 1:
        raise ValueError(f"table: got None, allowed: int32 [{taps}, rows] for {taps} taps")
    check_operand("count", count, dtypes=(torch.int32,), shape=(1,), device=x.device)
    check_epilogue(bias, scale, out_channels, x.dtype, x.device)
    of_output = out_channels, x.dtype, x.device
    activations = activation_arguments(activation, slopes, *of_output)
    activations |= activation_arguments(post_activation, post_slopes, *of_output, post=True)
    shape = (length, out_channels)
    if out is None:
        out = x.new_empty(shape)
    for name, tensor in (("out", out), ("residual", residual)):
        if tensor is not None:
            check_operand(name, tensor, dtypes=(x.dtype,), shape=shape, device=x.device)
    if out.numel() == 0:
        return planned(out, on=("x", x))

    if config is None:
        config = choose_config(
            images=1,
            positions=length,
            channels_per_group=weight.pitch,
            out_channels_per_group=out_channels,
            groups=1,
            dtype=x.dtype,
            taps=taps,
            precision=precision,
            cell=(1, out_channels),
            awake="rows",
        )
    steps = taps * triton.cdiv(channels, config.block_k)
    if steps == 1:
        # Stages are then tiles in flight; with two of them two programs share a multiprocessor.
        config = replace(config, num_stages=2)
    arguments: dict[str, Any] = {
        "x": x,
        "w": weight.data,
        "bias": bias,
        "scale": scale,
        "residual": residual,
        "y": out,
        "table": table,
        "count": count,
        "length": length,
        "IC": channels,
        "W_PITCH": weight.pitch,
        "OC": out_channels,
        "W_STRIDE": weight.data.shape[1],
        "TAPS": taps,
        "WIDE": max(x.numel(), out.numel()) > MAX_ELEMENTS,
        **activations,
        "PRECISION": precision,
        "WIDEN": interpreted() and x.dtype == torch.bfloat16,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
    }
    tiles = triton.cdiv(length, config.block_m) * triton.cdiv(out_channels, config.block_n)
    programs = multiprocessors(x.device) * config.resident(x.element_size(), "rows")
    launch = Launch(
        conv2d_rows_kernel,
        (min(programs, tiles),),
        arguments,
        config.num_warps,
        # Half of the stages are spent between a table's entries and the rows that they name.
        config.num_stages if table is None else 2 * config.num_stages - 1,
        config.max_registers(x.element_size(), "rows"),
    )
    return planned(out, launch, on=("x", x))


plan_conv2d_rows = plan_of(conv2d_rows)
"""``(result, launches)`` of ``conv2d_rows``, and nothing is run: meta tensors will do."""
