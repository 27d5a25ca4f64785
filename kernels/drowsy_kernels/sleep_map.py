"""Sleep maps, drawn on the device and packed to one bit per grain cell.

A lane of a kernel draws one byte of the bitmap: eight neighbouring channel cells of one position
cell. ``bernoulli`` spends a single Philox call on it (8 cells x 16 bits = 128 bits). The
definitions are those of ``drowsy.sleep`` and agree with them bit for bit; nothing depends on how
images are split into batches or cells into lanes.

Threshold, seed and image index are read from tensors inside the kernels: turning the knob or
reseeding neither recompiles nor synchronises, and works in a captured graph. At threshold 0 no
random number is drawn.
"""

# Triton's language has no type annotations.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from drowsy_kernels.launch import (
    MAX_ELEMENTS,
    VIEWS,
    Launch,
    check_operand,
    launched,
    plan_of,
    planned,
)
from torch import Tensor

SOURCES = ("bernoulli", "stratified", "lattice", "fovea", "bluenoise", "detail", "lfsr")
"""How ``sleep_map`` can draw."""
MAX_K = 256
# Positions along the side of a blue-noise tile.
SIDE = 64

# Bytes of bitmap per program: a few for every thread of four warps, so that byte stores merge.
_BLOCK = 512
# Up to this k a lane ranks whole runs in registers: k keys and k*(k-1) comparisons, unrolled.
_MAX_UNROLLED_K = 16
# Runs of k positions x 8 channel cells, per program.
_BLOCK_RUNS = 64
# Bytes x 8 cells, per program, where every cell walks over its own run.
_BLOCK_CELLS = 64
# Layers differ in their streams: one compiled kernel serves them all. (No argument may be called
# ``stream``: Triton's launcher takes that for itself.)
_STREAM = ("layer",)


@triton.jit
def _image_draw(c0, image, layer, TAG: tl.constexpr, seed):
    """Philox-4x32-10 with counters (c0, image, layer, tag) and the 64-bit key ``seed``."""
    zero = c0 * 0
    c1 = zero + image.to(tl.uint32)
    c2 = zero + layer.to(tl.uint32, bitcast=True)
    return tl.philox(seed, c0, c1, c2, zero + TAG)


@triton.jit
def _half(w0, w1, w2, w3, BIT: tl.constexpr):
    """The ``BIT``-th of the eight 16-bit halves of a draw, the lower half of each word first."""
    word = (w0 if BIT < 2 else w1) if BIT < 4 else (w2 if BIT < 6 else w3)
    return (word >> 16 if BIT % 2 else word & 0xFFFF).to(tl.int32)


@triton.jit
def _lanes(row_bytes, blocks, BLOCK: tl.constexpr):
    """A program's image, and of each lane: its place there, its row and its byte of the row."""
    n = tl.program_id(0) // blocks
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    return n, place, place // row_bytes, place % row_bytes


@triton.jit
def _store_bytes(out, b_bits, n, place, image_bytes):
    p_out = out + n.to(tl.int64) * image_bytes + place
    tl.store(p_out, b_bits.to(tl.uint8), mask=place < image_bytes)


@triton.jit(do_not_specialize=_STREAM, do_not_specialize_on_alignment=VIEWS)
def _bernoulli_kernel(
    out,
    threshold,
    clock,
    layer,
    row_bytes,
    image_bytes,
    cells,
    blocks,
    UPSIDE_DOWN: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n, place, pc, byte = _lanes(row_bytes, blocks, BLOCK)
    j = tl.load(threshold)
    b_bits = tl.zeros([BLOCK], tl.int32)
    if j > 0:
        seed = tl.load(clock)
        image = tl.load(clock + 1) + n
        counter = (pc * ((cells + 7) // 8) + byte).to(tl.uint32)
        w0, w1, w2, w3 = _image_draw(counter, image, layer, 0, seed)
        for bit in tl.static_range(8):
            u = _half(w0, w1, w2, w3, bit)
            level = (u * K) >> 16
            if UPSIDE_DOWN:
                level = K - 1 - level
            asleep = (level < j) & (byte * 8 + bit < cells)
            b_bits |= asleep.to(tl.int32) << bit
    _store_bytes(out, b_bits, n, place, image_bytes)


@triton.jit(do_not_specialize=_STREAM, do_not_specialize_on_alignment=VIEWS)
def _stratified_runs_kernel(
    out,
    threshold,
    clock,
    layer,
    row_bytes,
    image_bytes,
    cells,
    positions,
    blocks,
    UPSIDE_DOWN: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Runs along positions, small k: a lane pair (run, channel cell) ranks all k keys at once."""
    n, _, run, byte = _lanes(row_bytes, blocks, BLOCK)
    bit = tl.arange(0, 8)
    cell = byte[:, None] * 8 + bit[None, :]
    j = tl.load(threshold)
    p_out = out + n.to(tl.int64) * image_bytes + byte
    if j > 0:
        seed = tl.load(clock)
        image = tl.load(clock + 1) + n
        LANES: tl.constexpr = (K + 3) // 4
        counter = ((run[:, None] * cells + cell) * LANES).to(tl.uint32)
        keys = ()
        for lane in tl.static_range(LANES):
            keys = keys + _image_draw(counter + lane, image, layer, 1, seed)
        for m in tl.static_range(K):
            level = tl.zeros([BLOCK, 8], tl.int32)
            for t in tl.static_range(K):
                if t < m:
                    level += (keys[t] <= keys[m]).to(tl.int32)
                elif t > m:
                    level += (keys[t] < keys[m]).to(tl.int32)
            if UPSIDE_DOWN:
                level = K - 1 - level
            asleep = ((level < j) & (cell < cells)).to(tl.int32)
            b_bits = tl.sum(asleep << bit[None, :], axis=1)
            pc = run * K + m
            tl.store(p_out + pc * row_bytes, b_bits.to(tl.uint8), mask=pc < positions)
    else:
        for m in tl.static_range(K):
            pc = run * K + m
            b_zero = tl.zeros([BLOCK], tl.uint8)
            tl.store(p_out + pc * row_bytes, b_zero, mask=pc < positions)


@triton.jit(do_not_specialize=_STREAM, do_not_specialize_on_alignment=VIEWS)
def _stratified_cells_kernel(
    out,
    threshold,
    clock,
    layer,
    row_bytes,
    image_bytes,
    cells,
    blocks,
    ALONG_CHANNELS: tl.constexpr,
    UPSIDE_DOWN: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Any k, runs along positions or channels: every cell counts the smaller keys of its run."""
    n, place, pc, byte = _lanes(row_bytes, blocks, BLOCK)
    bit = tl.arange(0, 8)
    cell = byte[:, None] * 8 + bit[None, :]
    j = tl.load(threshold)
    b_bits = tl.zeros([BLOCK], tl.int32)
    if j > 0:
        seed = tl.load(clock)
        image = tl.load(clock + 1) + n
        LANES: tl.constexpr = (K + 3) // 4
        if ALONG_CHANNELS:
            run, m = cell // K, cell % K
        else:
            run, m = (pc[:, None] // K) * cells + cell, (pc[:, None] % K) + cell * 0
        counter = (run * LANES + m // 4).to(tl.uint32)
        w0, w1, w2, w3 = _image_draw(counter, image, layer, 1, seed)
        key = tl.where(m % 4 < 2, tl.where(m % 4 == 0, w0, w1), tl.where(m % 4 == 2, w2, w3))
        level = tl.zeros([BLOCK, 8], tl.int32)
        for lane in range(LANES):
            counter_t = (run * LANES + lane).to(tl.uint32)
            v0, v1, v2, v3 = _image_draw(counter_t, image, layer, 1, seed)
            t = lane * 4
            level += ((v0 < key) | ((v0 == key) & (t < m))).to(tl.int32)
            # The last lane may draw more keys than the run has members.
            level += ((t + 1 < K) & ((v1 < key) | ((v1 == key) & (t + 1 < m)))).to(tl.int32)
            level += ((t + 2 < K) & ((v2 < key) | ((v2 == key) & (t + 2 < m)))).to(tl.int32)
            level += ((t + 3 < K) & ((v3 < key) | ((v3 == key) & (t + 3 < m)))).to(tl.int32)
        if UPSIDE_DOWN:
            level = K - 1 - level
        asleep = ((level < j) & (cell < cells)).to(tl.int32)
        b_bits = tl.sum(asleep << bit[None, :], axis=1)
    _store_bytes(out, b_bits, n, place, image_bytes)


@triton.jit
def _lattice_phase(image, layer, K: tl.constexpr, seed):
    """By how many phases the pattern is shifted in an image, ``[1]``."""
    word, _, _, _ = _image_draw(tl.zeros([1], tl.uint32), image, layer, 2, seed)
    return ((word >> 16).to(tl.int32) * K) >> 16


@triton.jit(do_not_specialize=_STREAM, do_not_specialize_on_alignment=VIEWS)
def _lattice_kernel(
    out,
    threshold,
    clock,
    tile,
    shifts,
    layer,
    row_bytes,
    image_bytes,
    cells,
    width,
    blocks,
    BY_ROW: tl.constexpr,
    PERIOD: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n, place, pc, byte = _lanes(row_bytes, blocks, BLOCK)
    j = tl.load(threshold)
    b_bits = tl.zeros([BLOCK], tl.int32)
    if j > 0:
        seed = tl.load(clock)
        image = tl.load(clock + 1) + n
        phase = _lattice_phase(image, layer, K, seed)
        if BY_ROW:
            y, x = pc // width, pc % width
            first = byte * 8 + phase
        else:
            y, x = pc * 0, pc * 0
            first = byte * 8 + phase + pc
        for bit in tl.static_range(8):
            p_shift = shifts + (first + bit) % K * 2
            down, across = tl.load(p_shift).to(tl.int32), tl.load(p_shift + 1).to(tl.int32)
            at = (y + down) % PERIOD * PERIOD + (x + across) % PERIOD
            level = tl.load(tile + at).to(tl.int32)
            asleep = (level < j) & (byte * 8 + bit < cells)
            b_bits |= asleep.to(tl.int32) << bit
    _store_bytes(out, b_bits, n, place, image_bytes)


@triton.jit(do_not_specialize=_STREAM, do_not_specialize_on_alignment=VIEWS)
def _fovea_kernel(
    out,
    threshold,
    clock,
    table,
    layer,
    row_bytes,
    image_bytes,
    cells,
    positions,
    blocks,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The lattice's phase chooses a whole map from the table."""
    n, place, pc, byte = _lanes(row_bytes, blocks, BLOCK)
    j = tl.load(threshold)
    b_bits = tl.zeros([BLOCK], tl.int32)
    if j > 0:
        seed = tl.load(clock)
        image = tl.load(clock + 1) + n
        phase = _lattice_phase(image, layer, K, seed)
        first = byte * 8 + phase
        for bit in tl.static_range(8):
            exists = (byte * 8 + bit < cells) & (pc < positions)
            at = (first + bit) % K * positions + pc
            level = tl.load(table + at, mask=exists, other=0).to(tl.int32)
            b_bits |= ((level < j) & exists).to(tl.int32) << bit
    _store_bytes(out, b_bits, n, place, image_bytes)


@triton.jit(do_not_specialize=_STREAM, do_not_specialize_on_alignment=VIEWS)
def _bluenoise_kernel(
    out,
    threshold,
    clock,
    table,
    layer,
    row_bytes,
    image_bytes,
    cells,
    width,
    blocks,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every channel cell looks up its own shift of the tile, 8 bits down and 8 across."""
    n, place, pc, byte = _lanes(row_bytes, blocks, BLOCK)
    j = tl.load(threshold)
    b_bits = tl.zeros([BLOCK], tl.int32)
    if j > 0:
        seed = tl.load(clock)
        image = tl.load(clock + 1) + n
        w0, w1, w2, w3 = _image_draw(byte.to(tl.uint32), image, layer, 4, seed)
        y, x = pc // width, pc % width
        for bit in tl.static_range(8):
            u = _half(w0, w1, w2, w3, bit)
            at = (y + (u >> 8)) % SIDE * SIDE + (x + u) % SIDE
            level = tl.load(table + at).to(tl.int32)
            asleep = (level < j) & (byte * 8 + bit < cells)
            b_bits |= asleep.to(tl.int32) << bit
    _store_bytes(out, b_bits, n, place, image_bytes)


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def _detail_kernel(
    out,
    threshold,
    table,
    row_bytes,
    image_bytes,
    cells,
    positions,
    blocks,
    MAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every image has maps of its own in the table, which its channel cells take by turns."""
    n, place, pc, byte = _lanes(row_bytes, blocks, BLOCK)
    j = tl.load(threshold)
    b_bits = tl.zeros([BLOCK], tl.int32)
    if j > 0:
        p_maps = table + n.to(tl.int64) * MAPS * positions + pc
        for bit in tl.static_range(8):
            cell = byte * 8 + bit
            exists = (cell < cells) & (pc < positions)
            level = tl.load(p_maps + cell % MAPS * positions, mask=exists, other=0).to(tl.int32)
            b_bits |= ((level < j) & exists).to(tl.int32) << bit
    _store_bytes(out, b_bits, n, place, image_bytes)


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def _lfsr_kernel(
    out,
    threshold,
    clock,
    table,
    phases,
    row_bytes,
    image_bytes,
    cells,
    positions,
    blocks,
    ENGINES: tl.constexpr,
    PERIOD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n, place, pc, byte = _lanes(row_bytes, blocks, BLOCK)
    j = tl.load(threshold)
    b_bits = tl.zeros([BLOCK], tl.int32)
    if j > 0:
        image = (tl.load(clock + 1) + n) & 0xFFFFFFFF
        rounds = (cells + ENGINES - 1) // ENGINES
        # Where the registers stand after the images before this one; one 64-bit division.
        start = (image * (rounds * positions) % PERIOD).to(tl.int32)
        # Not unrolled: eight gathers of tables at once would spill.
        for bit in range(8):
            cell = byte * 8 + bit
            exists = cell < cells
            phase = tl.load(phases + cell % ENGINES, mask=exists, other=0).to(tl.int32)
            step = ((cell // ENGINES) * positions + pc) % PERIOD
            level = tl.load(table + (phase + start + step) % PERIOD).to(tl.int32)
            b_bits |= ((level < j) & exists).to(tl.int32) << bit
    _store_bytes(out, b_bits, n, place, image_bytes)


@launched
def sleep_map(
    source: str,
    shape: tuple[int, int, int, int],
    *,
    cell: tuple[int, int],
    k: int,
    stream: int,
    threshold: Tensor,
    clock: Tensor,
    upside_down: bool = False,
    lattice: tuple[Tensor, Tensor] | None = None,
    fovea: Tensor | None = None,
    bluenoise: Tensor | None = None,
    detail: Tensor | None = None,
    lfsr: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Draw the sleep bitmap of one layer for one batch.

    Args:
        source: one of ``SOURCES``.
        shape: ``(N, C, OH, OW)`` of the layer's output.
        cell: ``(cell_p, cell_c)``: positions and channels that share a bit.
        k: number of levels, 2 to 256. A change of ``k`` compiles anew.
        stream: random stream of the layer, 0 to 2**32 - 1.
        threshold: int32 tensor of one element; a cell sleeps when its level is below it.
        clock: int64 tensor ``(seed, image)``; image is the running index of the batch's first.
        upside_down: whether level ``l`` becomes ``k - 1 - l``; for sources ``bernoulli`` and
            ``stratified``, while the others' tables say it.
        lattice: ``(tile, shifts)``, uint8 ``[T, T]`` of levels and uint8 ``[k, 2]``, rows and
            columns that each phase shifts the tile by; for source ``lattice``, and only there.
        fovea: uint8 ``[k, OH * OW]``, the levels of a whole map at each phase; for source
            ``fovea``, and only there. Its cells are single positions: ``cell[0] == 1``.
        bluenoise: uint8 ``[64, 64]``, the levels of a tile; for source ``bluenoise``, and only
            there. Its cells are single positions: ``cell[0] == 1``.
        detail: uint8 ``[N, min(k, CC), OH * OW]``, each image's levels of whole maps, of which
            channel cell ``c`` has the ``c % k``-th; for source ``detail``, and only there. Its
            cells are single positions: ``cell[0] == 1``.
        lfsr: ``(table, phases)``, table uint8 ``[period]`` of levels along the register's cycle,
            phases int64 ``[engines]`` with values in ``[0, period)``; for source ``lfsr``, and
            only there.
        out: int32 ``[N, PC, W]``, contiguous, to write into.

    Returns:
        int32 ``[N, PC, W]`` with ``PC = ceil(OH * OW / cell_p)``, ``CC = ceil(C / cell_c)`` and
        ``W = ceil(CC / 32)``. Bit ``b`` of word ``w`` is channel cell ``32 * w + b``; 1 sleeps;
        unused bits are 0. Every word is written.

    Raises:
        ValueError, TypeError: an argument outside of what is listed here.
    """
    _check_numbers(source, shape, cell, k, stream)
    device = clock.device
    check_operand("threshold", threshold, dtypes=(torch.int32,), shape=(1,), device=device)
    check_operand("clock", clock, dtypes=(torch.int64,), shape=(2,), device=device)
    if upside_down and source not in ("bernoulli", "stratified"):
        raise ValueError(f"upside_down: goes with bernoulli and stratified, got source {source!r}")
    tables = {
        "lattice": lattice,
        "fovea": fovea,
        "bluenoise": bluenoise,
        "detail": detail,
        "lfsr": lfsr,
    }
    for name, given in tables.items():
        if (given is not None) != (source == name):
            raise ValueError(f"{name}: its table goes with source {name!r}, got source {source!r}")

    n, channels, height, width = shape
    positions, cells = triton.cdiv(height * width, cell[0]), triton.cdiv(channels, cell[1])
    words = triton.cdiv(cells, 32)
    if out is None:
        out = torch.empty((n, positions, words), dtype=torch.int32, device=device)
    check_operand("out", out, dtypes=(torch.int32,), shape=(n, positions, words), device=device)
    row_bytes, image_bytes = 4 * words, 4 * words * positions
    if image_bytes > MAX_ELEMENTS // 8:
        raise ValueError(
            f"shape: got {shape}, allowed: fewer than 2**31 cells in an image's sleep map"
        )

    arguments: dict[str, Any] = {
        "out": out.view(torch.uint8),
        "threshold": threshold,
        "clock": clock,
        "row_bytes": row_bytes,
        "image_bytes": image_bytes,
        "cells": cells,
    }
    items, block = image_bytes, _BLOCK
    if source not in ("detail", "lfsr"):
        # The same 32 bits whatever the stream: an argument of one type never recompiles.
        arguments["layer"] = stream - 2**32 if stream >= 2**31 else stream
    if cell[0] != 1 and source in ("fovea", "bluenoise", "detail"):
        raise ValueError(f"cell: got {cell}, allowed: one position (source {source})")
    if source in ("bernoulli", "stratified", "lattice", "fovea"):
        arguments["K"] = k
    if source in ("bernoulli", "stratified"):
        arguments["UPSIDE_DOWN"] = upside_down
    if source == "bernoulli":
        kernel = _bernoulli_kernel
    elif source == "stratified" and positions > 1 and k <= _MAX_UNROLLED_K:
        kernel = _stratified_runs_kernel
        arguments |= {"positions": positions}
        items, block = triton.cdiv(positions, k) * row_bytes, _BLOCK_RUNS
    elif source == "stratified":
        kernel = _stratified_cells_kernel
        arguments |= {"ALONG_CHANNELS": positions == 1}
        block = _BLOCK_CELLS
    elif lattice is not None:
        kernel = _lattice_kernel
        tile, shifts = lattice
        period = tile.shape[0]
        for name, table, size in (("tile", tile, (period, period)), ("shifts", shifts, (k, 2))):
            check_operand(
                f"lattice {name}", table, dtypes=(torch.uint8,), shape=size, device=device
            )
        arguments |= {
            "tile": tile,
            "shifts": shifts,
            "width": max(width, 1),
            "BY_ROW": cell[0] == 1,
            "PERIOD": period,
        }
    elif fovea is not None:
        kernel = _fovea_kernel
        size = (k, positions)
        check_operand("fovea", fovea, dtypes=(torch.uint8,), shape=size, device=device)
        if fovea.numel() > MAX_ELEMENTS:
            raise ValueError(
                f"fovea: got {tuple(fovea.shape)}, allowed: at most {MAX_ELEMENTS} levels"
            )
        arguments |= {"table": fovea, "positions": positions}
    elif bluenoise is not None:
        kernel = _bluenoise_kernel
        check_operand(
            "bluenoise", bluenoise, dtypes=(torch.uint8,), shape=(SIDE, SIDE), device=device
        )
        arguments |= {"table": bluenoise, "width": max(width, 1), "SIDE": SIDE}
    elif detail is not None:
        kernel = _detail_kernel
        maps = (n, min(k, cells), positions)
        check_operand("detail", detail, dtypes=(torch.uint8,), shape=maps, device=device)
        arguments |= {"table": detail, "positions": positions, "MAPS": max(maps[1], 1)}
    elif lfsr is not None:
        kernel = _lfsr_kernel
        arguments |= _lfsr_arguments(*lfsr, positions=positions, device=device)
    blocks = triton.cdiv(items, block)
    arguments |= {"blocks": blocks, "BLOCK": block}
    return planned(
        out,
        Launch.pick(kernel, n * blocks, arguments, num_warps=4, num_stages=1),
        on=("clock", clock),
    )


plan_sleep_map = plan_of(sleep_map)
"""``(result, launches)`` of ``sleep_map``, and nothing is run: meta tensors will do."""


def _check_numbers(
    source: str, shape: tuple[int, ...], cell: tuple[int, int], k: int, stream: int
) -> None:
    if source not in SOURCES:
        raise ValueError(f"source: got {source!r}, allowed: {', '.join(SOURCES)}")
    if len(shape) != 4 or min(shape) < 0:
        raise ValueError(f"shape: got {shape}, allowed: (N, C, OH, OW), each 0 or more")
    if len(cell) != 2 or min(cell) < 1:
        raise ValueError(f"cell: got {cell}, allowed: (positions, channels), each 1 or more")
    if not 2 <= k <= MAX_K:
        raise ValueError(f"k: got {k}, allowed: 2 to {MAX_K}")
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream: got {stream}, allowed: 0 to {2**32 - 1}")


def _lfsr_arguments(
    table: Tensor, phases: Tensor, *, positions: int, device: torch.device
) -> dict[str, Any]:
    period, engines = table.numel(), phases.numel()
    if not 1 <= period < 2**29 or engines < 1:
        raise ValueError(
            f"lfsr: got a table of {period} levels and {engines} phases, allowed: a table of 1 to "
            "2**29 - 1 levels and at least one phase"
        )
    check_operand("lfsr table", table, dtypes=(torch.uint8,), shape=(period,), device=device)
    check_operand("lfsr phases", phases, dtypes=(torch.int64,), shape=(engines,), device=device)
    return {
        "table": table,
        "phases": phases,
        "positions": positions,
        "ENGINES": engines,
        "PERIOD": period,
    }
