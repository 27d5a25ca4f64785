"""Which block shapes a convolution gets.

Apart from the kernels, so that the reasons for the numbers stand in one place and offline
compilation can list every configuration that may be launched (``SHIPPED_CONFIGS``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

# Programs that keep a large GPU busy: two for each of the 132 multiprocessors of an H100/H200.
_ENOUGH_PROGRAMS = 264
# Below this many input channels a K step runs across filter taps: a step of one tap would be
# mostly padding (a photograph has 3 channels, a K step 32).
MIN_CHANNELS_PER_TAP = 32


@dataclass(frozen=True)
class ConvConfig:
    """Block shape and launch options of one convolution program.

    Args:
        block_m: output positions of a tile.
        block_n: output channels of a tile.
        block_k: depth of one K step; 0 where there is none (depthwise).
        num_warps: warps of a program.
        num_stages: K steps in flight.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_n}x{self.block_k}-w{self.num_warps}-s{self.num_stages}"


# 64 rows are one wgmma instruction of a warpgroup of four warps; 128 x 128 accumulators need eight
# warps to stay clear of spills (64 registers a thread). A K step of 64 halves is one 128-byte
# shared-memory row, the widest swizzle; 32 serves channel counts that 64 would pad. Stages fill
# at most half of an H200's 227 KB, so that two programs share a multiprocessor, and fit the 163 KB
# of an A100.
_HALF = tuple(
    ConvConfig(block_m, block_n, block_k, 8 if block_m * block_n == 128 * 128 else 4, 3)
    for block_m in (64, 128)
    for block_n in (16, 32, 64, 128)
    for block_k in (32, 64)
)
# IEEE float32 has no tensor core: accumulators and operands of an outer product live in registers,
# 64 x 64 on four warps is 32 accumulators a thread. At 64 x 16, ptxas trades registers of four
# warps for a spill; two warps have none.
_SINGLE = tuple(
    ConvConfig(64, block_n, 32, 2 if block_n == 16 else 4, 3) for block_n in (16, 32, 64)
)
# Depthwise is bound by memory: 16-byte loads across channels, 16 to 32 elements a thread.
_DEPTHWISE = tuple(ConvConfig(block_m, 32, 0, 4, 1) for block_m in (64, 128))

SHIPPED_CONFIGS: dict[str, tuple[ConvConfig, ...]] = {
    "half": _HALF,
    "single": _SINGLE,
    "depthwise": _DEPTHWISE,
}


def choose_config(
    *,
    images: int,
    positions: int,
    channels_per_group: int,
    out_channels_per_group: int,
    groups: int,
    dtype: torch.dtype,
    cell: tuple[int, int] | None = None,
) -> ConvConfig:
    """The configuration of a convolution, one of ``SHIPPED_CONFIGS``.

    Args:
        images: batch size.
        positions: ``OH * OW``.
        channels_per_group, out_channels_per_group, groups: of the weight.
        dtype: of input and weight.
        cell: ``(positions, channels)`` of a sleep cell; a tile that fits into one can be skipped.
    """
    if groups > 1 and channels_per_group == 1:
        candidates = SHIPPED_CONFIGS["depthwise"]
        # Channels that one row of tiles covers, and how many such rows there are.
        span, spans = groups * out_channels_per_group, 1
    else:
        shipped = SHIPPED_CONFIGS["single" if dtype == torch.float32 else "half"]
        depth = _block_k(channels_per_group, max(config.block_k for config in shipped))
        candidates = tuple(config for config in shipped if config.block_k == depth)
        span, spans = out_channels_per_group, groups
    if cell is not None:
        within = tuple(
            config
            for config in candidates
            if cell[0] % config.block_m == 0 and cell[1] % config.block_n == 0
        )
        candidates = within or candidates

    widths = sorted({config.block_n for config in candidates})
    block_n = next((width for width in widths if width >= span), widths[-1])
    fitting = sorted(
        (config for config in candidates if config.block_n == block_n),
        key=lambda config: config.block_m,
    )
    # The tallest tile that neither starves the GPU nor reaches past a small image.
    for config in reversed(fitting[1:]):
        tiles = spans * triton.cdiv(span, block_n) * triton.cdiv(positions, config.block_m)
        if positions > fitting[0].block_m and images * tiles >= _ENOUGH_PROGRAMS:
            return config
    return fitting[0]


def _block_k(channels: int, deepest: int) -> int:
    """The deepest K step that pads ``channels`` no further than a step of 32 does."""
    if channels < MIN_CHANNELS_PER_TAP:
        return 32
    padded = triton.cdiv(channels, deepest) * deepest
    return deepest if padded == triton.cdiv(channels, 32) * 32 else 32
