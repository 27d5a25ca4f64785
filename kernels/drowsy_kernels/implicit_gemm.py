"""The implicit GEMM behind every convolution that is not depthwise.

M runs over output neurons of a channel, flattened over the whole batch (row ``n * P + p``), N over
output channels, K over input channels and filter taps. Data are channels_last; a weight row holds
one output channel's taps in the same order, which is a channels_last ``nn.Conv2d`` weight as it
lies in memory, and the K-major operand that wgmma takes for every dtype.

The main loop is one loop over K steps, filter taps inside, blocks of input channels outside, so
that software pipelining never drains. Nothing in it divides: a step moves two scalar offsets, and
an input element's address is a row's offset, fixed before the loop, plus a scalar. Whether a tap
lies within the image is a bit of a word that a row has computed before the loop.

``conv2d_kernel`` gives each tile a program; a tile that sleeps is found by its bits and exits
early. ``awake_conv2d_kernel`` is launched with as many programs as a GPU keeps resident, which
share the tiles that lists of awake cells, rows or channels leave: their number is read on the
device.
"""

# Triton's language has no type annotations.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from drowsy_kernels.epilogue import all_asleep, dot, finish, offsets, store_rest
from drowsy_kernels.launch import VIEWS

# Channels of the widest store, 16 bytes of halves.
VECTOR = tl.constexpr(8)


@triton.jit
def locate(
    m,
    height,
    width,
    out_width,
    positions,
    PITCH: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    CHECK_TAPS: tl.constexpr,
    PLAIN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """``(offset, taps)`` of output rows ``m``.

    ``offset``: of the input pixel under the first tap. ``taps``: bit ``ky * KW + kx`` says whether
    that tap lies within the image. ``PLAIN``: row m reads pixel m and nothing else.
    """
    if PLAIN:
        return offsets(m, PITCH, WIDE), m
    n = m // positions
    p = m - n * positions
    out_y = p // out_width
    in_y = out_y * STRIDE_H - TOP
    in_x = (p - out_y * out_width) * STRIDE_W - LEFT
    taps = tl.zeros_like(m)
    if CHECK_TAPS:
        # One unsigned comparison for both ends.
        rows = (taps + height).to(tl.uint32, bitcast=True)
        line = (taps + width).to(tl.uint32, bitcast=True)
        columns = tl.zeros_like(m)
        for kx in tl.static_range(KW):
            within = (in_x + kx * DILATION_W).to(tl.uint32, bitcast=True) < line
            columns |= within.to(tl.int32) << kx
        for ky in tl.static_range(KH):
            within = (in_y + ky * DILATION_H).to(tl.uint32, bitcast=True) < rows
            taps |= tl.where(within, columns << (ky * KW), 0)
    if WIDE:
        n = n.to(tl.int64)
    return ((n * height + in_y) * width + in_x) * PITCH, taps


@triton.jit
def multiply(
    x,
    o_row,
    taps,
    w,
    c,
    width,
    blocks,
    first_block,
    count,
    PITCH: tl.constexpr,
    CHANNELS: tl.constexpr,
    W_STRIDE: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    CHECK_TAPS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Accumulate ``count`` blocks of ``BLOCK_K`` input channels, all their taps.

    ``blocks``: a list of them; without one they follow ``first_block``. ``CHANNELS``: elements of a
    tap in a weight row. Nothing is read beyond the rows ``o_row`` and ``c``.
    """
    TAPS: tl.constexpr = KH * KW
    k = tl.arange(0, BLOCK_K)
    o_x = o_row[:, None] + k[None, :]
    o_w = c.to(tl.int64)[None, :] * W_STRIDE + k[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)

    first_k = first_block * BLOCK_K
    ahead = first_k
    if blocks is not None:
        # The next block's number is read a block ahead, so that no address waits for it.
        first_k = tl.load(blocks, mask=count > 0, other=0) * BLOCK_K
        ahead = tl.load(blocks + 1, mask=count > 1, other=0) * BLOCK_K
    visited = 0
    kx = 0
    bit = 1
    o_tap = 0
    o_weight = 0
    for _ in range(count * TAPS):
        p_x = x + o_x + (o_tap + first_k)
        p_w = w + o_w + (o_weight + first_k)
        m_tap = (taps & bit) != 0
        if CHANNELS % BLOCK_K != 0:
            m_k = k < CHANNELS - first_k
            m_x = m_k[None, :]
            if CHECK_TAPS:
                m_x = m_x & m_tap[:, None]
            b_x = tl.load(p_x, mask=m_x, other=0.0)
            b_w = tl.load(p_w, mask=m_k[:, None], other=0.0)
        else:
            if CHECK_TAPS:
                b_x = tl.load(p_x, mask=m_tap[:, None], other=0.0)
            else:
                b_x = tl.load(p_x)
            b_w = tl.load(p_w)
        acc = dot(b_x, b_w, acc, PRECISION, WIDEN)

        last = True
        if TAPS > 1:
            o_weight += CHANNELS
            last = o_weight == TAPS * CHANNELS
            if CHECK_TAPS:
                bit = tl.where(last, 1, bit << 1)
            if KH == 1:
                o_tap += DILATION_W * PITCH
            elif KW == 1:
                o_tap += DILATION_H * width * PITCH
            else:
                kx += 1
                row_ends = kx == KW
                kx = tl.where(row_ends, 0, kx)
                NEXT: tl.constexpr = DILATION_W * PITCH
                o_tap += tl.where(
                    row_ends, (DILATION_H * width - (KW - 1) * DILATION_W) * PITCH, NEXT
                )
            o_weight = tl.where(last, 0, o_weight)
            o_tap = tl.where(last, 0, o_tap)
        if blocks is not None:
            first_k = tl.where(last, ahead, first_k)
            visited += tl.where(last, 1, 0)
            ahead = tl.load(blocks + visited + 1, mask=visited + 1 < count, other=0) * BLOCK_K
        else:
            first_k += tl.where(last, BLOCK_K, 0)
    return acc


@triton.jit
def tile_of(tile, tiles_m, TILES_N: tl.constexpr, GROUP_M: tl.constexpr):
    """``(row tile, column tile)``: bands of ``GROUP_M`` row tiles, rows fastest in a band.

    Tiles that run at the same time form a rectangle, which shares most through the L2 cache.
    """
    if TILES_N == 1:
        return tile, 0
    band = tile // (GROUP_M * TILES_N)
    inside = tile - band * (GROUP_M * TILES_N)
    rows = tl.minimum(tiles_m - band * GROUP_M, GROUP_M)
    return band * GROUP_M + inside % rows, inside // rows


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def conv2d_kernel(
    x,
    w,
    bias,
    slopes,
    post_slopes,
    scale,
    bitmap,
    residual,
    y,
    partial,
    blocks,
    block_counts,
    listed,
    count,
    images,
    height,
    width,
    out_width,
    positions,
    k_blocks,
    tiles_m,
    segment,
    segments,
    segment_tiles,
    cell_p,
    cell_c,
    cell_rows,
    words,
    PITCH: tl.constexpr,
    CHANNELS: tl.constexpr,
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
    PLAIN: tl.constexpr,
    WIDE: tl.constexpr,
    SEGMENTED: tl.constexpr,
    MAP: tl.constexpr,
    TILE_WORDS: tl.constexpr,
    EXIT_EARLY: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    POST_ACTIVATION: tl.constexpr,
    POST_SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLIT_K: tl.constexpr,
):
    """A program per tile and K split; ``x`` [N, H, W, PITCH], ``y`` [N * positions, OC].

    ``listed``: the rows that are computed, of which there are ``count``; the others are left as
    they are, and tiles past the end return at once.

    ``SEGMENTED``: tiles stay within one position cell of one image: ``segment`` positions,
    ``segments`` an image, ``segment_tiles`` tiles each. ``partial`` [SPLIT_K, N * positions, OC]
    takes the sums of a split in place of ``y``.
    """
    OC_G: tl.constexpr = OC // GROUPS
    TILES_G: tl.constexpr = (OC_G + BLOCK_N - 1) // BLOCK_N
    tile_m, tile_n = tile_of(tl.program_id(0) // SPLIT_K, tiles_m, TILES_G * GROUPS, GROUP_M)
    group = tile_n // TILES_G
    first_c = group * OC_G + (tile_n % TILES_G) * BLOCK_N
    last_c = tl.minimum(first_c + BLOCK_N, (group + 1) * OC_G)
    if SEGMENTED:
        n = tile_m // (segments * segment_tiles)
        part = tile_m // segment_tiles - n * segments
        first_m = n * positions + part * segment + tile_m % segment_tiles * BLOCK_M
        last_m = n * positions + tl.minimum((part + 1) * segment, positions)
    else:
        n = 0
        first_m = tile_m * BLOCK_M
        last_m = images * positions
        if listed is not None:
            last_m = tl.load(count)
            if first_m >= last_m:
                return
    # Rows and columns past the end repeat the last one: their loads need no mask.
    m_all = first_m + tl.arange(0, BLOCK_M)
    m_m = m_all < last_m
    m = tl.minimum(m_all, last_m - 1)
    m_y = m_all
    if listed is not None:
        m = tl.load(listed + m)
        m_y = m
    c_all = first_c + tl.arange(0, BLOCK_N)
    c = c_all
    if OC_G % BLOCK_N != 0:
        c = tl.minimum(c_all, last_c - 1)
    m_c = c_all < last_c

    row = m
    if bitmap is not None:
        if cell_p != 1:
            row_n = m // positions
            row = row_n * cell_rows + (m - row_n * positions) // cell_p
        if EXIT_EARLY:
            if all_asleep(bitmap, row, first_c, last_c, cell_c, words, TILE_WORDS):
                if SPLIT_K == 1:
                    store_rest(
                        y,
                        residual,
                        post_slopes,
                        m_all,
                        m_m,
                        c_all,
                        m_c,
                        OC,
                        POST_ACTIVATION,
                        POST_SLOPE,
                        WIDE,
                        BLOCK_M,
                        BLOCK_N,
                    )
                return

    o_row, taps = locate(
        m,
        height,
        width,
        out_width,
        positions,
        PITCH,
        KH,
        KW,
        STRIDE_H,
        STRIDE_W,
        DILATION_H,
        DILATION_W,
        TOP,
        LEFT,
        CHECK_TAPS,
        PLAIN,
        WIDE,
    )
    first_block = 0
    steps = k_blocks
    if SPLIT_K > 1:
        split = tl.program_id(0) % SPLIT_K
        first_block = split * k_blocks // SPLIT_K
        steps = (split + 1) * k_blocks // SPLIT_K - first_block
    if blocks is not None:
        blocks += n * k_blocks
        steps = tl.load(block_counts + n)
    acc = multiply(
        x + group * CHANNELS,
        o_row,
        taps,
        w,
        c,
        width,
        blocks,
        first_block,
        steps,
        PITCH,
        CHANNELS,
        W_STRIDE,
        KH,
        KW,
        DILATION_H,
        DILATION_W,
        CHECK_TAPS,
        PRECISION,
        WIDEN,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    if SPLIT_K > 1:
        partial += split.to(tl.int64) * images * positions * OC
        o_y = offsets(m_all, OC, WIDE)[:, None] + c_all[None, :]
        tl.store(partial + o_y, acc, mask=m_m[:, None] & m_c[None, :])
    else:
        finish(
            acc,
            y,
            residual,
            bias,
            slopes,
            post_slopes,
            scale,
            bitmap,
            row,
            m_y,
            m_m,
            first_c,
            last_c,
            cell_c,
            words,
            OC,
            MAP,
            ACTIVATION,
            SLOPE,
            POST_ACTIVATION,
            POST_SLOPE,
            WIDE,
            BLOCK_M,
            BLOCK_N,
        )


@triton.jit
def _store_sleepers(
    y,
    residual,
    post_slopes,
    m,
    m_m,
    first_c,
    last_c,
    OC: tl.constexpr,
    POST_ACTIVATION: tl.constexpr,
    POST_SLOPE: tl.constexpr,
    WIDE: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Sleepers over channels [first_c, last_c): whole vectors but for the ends.

    Both are multiples of ``RUN``: where that is a vector there are no ends.
    """
    first_whole = (first_c + VECTOR - 1) // VECTOR * VECTOR
    last_whole = last_c // VECTOR * VECTOR
    if RUN < VECTOR:
        c = first_c // VECTOR * VECTOR + tl.arange(0, VECTOR)
        m_c = (c >= first_c) & (c < tl.minimum(first_whole, last_c))
        store_rest(
            y,
            residual,
            post_slopes,
            m,
            m_m,
            c,
            m_c,
            OC,
            POST_ACTIVATION,
            POST_SLOPE,
            WIDE,
            BLOCK_M,
            VECTOR,
        )
    for whole in range(first_whole, last_whole, BLOCK_N):
        c_whole = tl.multiple_of(whole, VECTOR) + tl.arange(0, BLOCK_N)
        store_rest(
            y,
            residual,
            post_slopes,
            m,
            m_m,
            c_whole,
            c_whole < last_whole,
            OC,
            POST_ACTIVATION,
            POST_SLOPE,
            WIDE,
            BLOCK_M,
            BLOCK_N,
        )
    if RUN < VECTOR:
        c = last_whole + tl.arange(0, VECTOR)
        m_c = (c >= first_whole) & (c < last_c)
        store_rest(
            y,
            residual,
            post_slopes,
            m,
            m_m,
            c,
            m_c,
            OC,
            POST_ACTIVATION,
            POST_SLOPE,
            WIDE,
            BLOCK_M,
            VECTOR,
        )


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def awake_conv2d_kernel(
    x,
    w,
    bias,
    slopes,
    post_slopes,
    scale,
    residual,
    y,
    awake,
    counts,
    blocks,
    block_counts,
    images,
    height,
    width,
    out_width,
    positions,
    k_blocks,
    segment,
    segments,
    segment_tiles,
    cells,
    PITCH: tl.constexpr,
    CHANNELS: tl.constexpr,
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
    PLAIN: tl.constexpr,
    WIDE: tl.constexpr,
    AWAKE: tl.constexpr,
    LISTS: tl.constexpr,
    UNIT: tl.constexpr,
    CELL_UNITS: tl.constexpr,
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
    """Programs that share what is awake; tensors as for ``conv2d_kernel``.

    ``AWAKE`` says what ``awake`` lists: ``cells`` of ``segment`` positions (``segments`` an image)
    and ``cells`` an image's row of them; ``rows``, in ``cells`` lists; ``channels``, a list for
    every image. ``LISTS``: a power of two, as many as there are lists or more.

    ``UNIT``: channels that lie in one cell and one group; ``CELL_UNITS`` of them make a cell.
    """
    OC_G: tl.constexpr = OC // GROUPS
    TILES_UNIT: tl.constexpr = (UNIT + BLOCK_N - 1) // BLOCK_N
    TILES_CELL: tl.constexpr = TILES_UNIT * CELL_UNITS
    # Of a list of channels: runs so long that begin at multiples of it, as cells are listed whole.
    # It is the largest power of two up to a vector that divides both.
    RUN: tl.constexpr = (VECTOR | UNIT | OC) & -(VECTOR | UNIT | OC)
    i_m = tl.arange(0, BLOCK_M)
    i_n = tl.arange(0, BLOCK_N)
    if AWAKE == "cells":
        tiles = tl.load(counts) * segment_tiles * TILES_CELL
    else:
        i_list = tl.arange(0, LISTS)
        lists = images if AWAKE == "channels" else cells
        longest = tl.max(tl.load(counts + i_list, mask=i_list < lists, other=0), axis=0)
        if AWAKE == "rows":
            tiles = tl.cdiv(longest, BLOCK_M) * cells * TILES_CELL
        else:
            tiles_n = tl.maximum(tl.cdiv(longest, BLOCK_N), 1)
            tiles = images * segment_tiles * tiles_n

    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        n = 0
        if AWAKE == "channels":
            tile_m = tile // tiles_n
            n = tile_m // segment_tiles
            first_j = (tile - tile_m * tiles_n) * BLOCK_N
            channels = tl.load(counts + n)
            first_m = n * positions + (tile_m - n * segment_tiles) * BLOCK_M
            last_m = (n + 1) * positions
            # An image without an awake channel still has its sleepers stored.
            alive = (first_j < channels) | (first_j == 0)
        else:
            sub_n = tile % TILES_CELL
            tile_m = tile // TILES_CELL
            if AWAKE == "cells":
                item = tl.load(awake + tile_m // segment_tiles)
                part = item // cells
                cell = item - part * cells
                n = part // segments
                part -= n * segments
                first_m = n * positions + part * segment + tile_m % segment_tiles * BLOCK_M
                last_m = n * positions + tl.minimum((part + 1) * segment, positions)
            else:
                first_m = tile_m // cells * BLOCK_M
                cell = tile_m % cells
                last_m = tl.load(counts + cell)
            unit = cell * CELL_UNITS + sub_n // TILES_UNIT
            first_c = unit * UNIT + sub_n % TILES_UNIT * BLOCK_N
            last_c = tl.minimum(tl.minimum(first_c + BLOCK_N, (unit + 1) * UNIT), OC)
            # Cells at an edge are smaller and lists shorter than the tiles laid out for them.
            alive = (first_m < last_m) & (first_c < last_c)
        if alive:
            m_all = first_m + i_m
            m_m = m_all < last_m
            m = tl.minimum(m_all, last_m - 1)
            if AWAKE == "rows":
                m = tl.load(awake + cell.to(tl.int64) * images * positions + m)
            count = k_blocks
            if blocks is not None:
                count = tl.load(block_counts + n)
            if AWAKE == "channels":
                group = 0
                p_channels = awake + n * OC
                c = first_j + i_n
                c = tl.load(p_channels + c, mask=c < tl.multiple_of(channels, RUN), other=0)
                c = tl.max_contiguous(tl.multiple_of(c, RUN), RUN)
                count = tl.where(channels > 0, count, 0)
            else:
                group = unit * UNIT // OC_G
                c = first_c + i_n
                if UNIT % BLOCK_N != 0 or OC % UNIT != 0:
                    c = tl.minimum(c, last_c - 1)
            o_row, taps = locate(
                m,
                height,
                width,
                out_width,
                positions,
                PITCH,
                KH,
                KW,
                STRIDE_H,
                STRIDE_W,
                DILATION_H,
                DILATION_W,
                TOP,
                LEFT,
                CHECK_TAPS,
                PLAIN,
                WIDE,
            )
            acc = multiply(
                x + group * CHANNELS,
                o_row,
                taps,
                w,
                c,
                width,
                blocks if blocks is None else blocks + n * k_blocks,
                0,
                count,
                PITCH,
                CHANNELS,
                W_STRIDE,
                KH,
                KW,
                DILATION_H,
                DILATION_W,
                CHECK_TAPS,
                PRECISION,
                WIDEN,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
            )
            if AWAKE == "channels":
                # From the tile's first channel to the next tile's; the image's ends go with the
                # first and the last tile.
                first_c = tl.load(p_channels + first_j, mask=first_j > 0, other=0)
                end = first_j + BLOCK_N
                last_c = tl.load(p_channels + end, mask=end < channels, other=OC)
                _store_sleepers(
                    y,
                    residual,
                    post_slopes,
                    m,
                    m_m,
                    first_c,
                    last_c,
                    OC,
                    POST_ACTIVATION,
                    POST_SLOPE,
                    WIDE,
                    RUN,
                    BLOCK_M,
                    BLOCK_N,
                )
                # The awake are written over it.
                tl.debug_barrier()
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
                    m,
                    m_m,
                    first_j,
                    channels,
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
                    p_channels,
                    RUN,
                )
            else:
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
                    m,
                    m_m,
                    first_c,
                    last_c,
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
