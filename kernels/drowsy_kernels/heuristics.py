"""Which block shapes a convolution gets.

Apart from the kernels, so that the reasons for the numbers stand in one place and offline
compilation can list every configuration that may be launched (``SHIPPED_CONFIGS``).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
import triton

# An H100/H200, which a plan without a GPU is made for.
_MULTIPROCESSORS = 132
_SHARED_BYTES = 227 * 1024
_REGISTERS = 65536
# Of one of its multiprocessors, in a cycle: multiplications of each family, bytes from L2 (what
# good kernels sustain), instructions issued.
_PRODUCTS = {"half": 2048, "tf32": 1024, "single": 128}
_L2_BYTES = 40
_ISSUES = 4
# Instructions of a K step and warp, by the compile report: addresses, masks, copies, barriers.
_STEP_INSTRUCTIONS = 100
# Cycles from asking L2 for a K step to having it; to start a tile; to launch another kernel; and
# outputs of a tile that are finished in a cycle.
_LATENCY, _TILE_CYCLES, _LAUNCH_CYCLES, _OUTPUTS = 800, 1000, 4000, 16
_SPLITS = (1, 2, 4, 8)
# Depthwise: programs below which a tile is halved.
_ENOUGH_PROGRAMS = 2 * _MULTIPROCESSORS


@dataclass(frozen=True)
class ConvConfig:
    """Block shape and launch options of one convolution program.

    Args:
        block_m: output positions of a tile.
        block_n: output channels of a tile.
        block_k: input channels of one K step; 0 where there is none (depthwise).
        num_warps: warps of a program.
        num_stages: K steps in flight.
        group_m: row tiles of a band; programs walk down a band before they move right.
        split_k: programs that share the K steps of a tile; lists of what is awake do without.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group_m: int = 8
    split_k: int = 1

    def __str__(self) -> str:
        split = f"-k{self.split_k}" if self.split_k > 1 else ""
        shape = f"{self.block_m}x{self.block_n}x{self.block_k}"
        return f"{shape}-w{self.num_warps}-s{self.num_stages}{split}"

    def resident(self, itemsize: int, awake: str = "none") -> int:
        """Programs that share a multiprocessor: by shared memory and by registers.

        ``awake``: what a list of the awake holds, as for ``choose_config``.
        """
        stage = (self.block_m + self.block_n) * max(self.block_k, 1) * itemsize
        by_memory = _SHARED_BYTES // (stage * self.num_stages + 1024)
        # Twelve warps have 168 registers a thread. Sixteen have 128, which is enough where eight
        # warps share a tile of halves. Eight have all there are: for scattered stores, for a list
        # beside 64 accumulators a thread, and for 128 accumulators.
        warps = 16 if self.num_warps == 8 and itemsize == 2 else 12
        accumulators = self.block_m * self.block_n // (32 * self.num_warps)
        listed = awake not in ("none", "areas") and self.num_warps == 4
        if awake == "channels" or accumulators >= (64 if listed else 128):
            warps = 8
        by_registers = warps // self.num_warps
        return max(1, min(by_memory, by_registers))

    def max_registers(self, itemsize: int, awake: str = "none") -> int:
        """Registers that a thread may have if so many programs are to share a multiprocessor."""
        threads = 32 * self.num_warps * self.resident(itemsize, awake)
        return min(255, _REGISTERS // threads // 8 * 8)


# 64 rows are one wgmma instruction of a warpgroup of four warps; 128 x 128 accumulators need eight
# warps to stay clear of spills (64 registers a thread). A K step of 64 halves is one 128-byte
# shared-memory row, the widest swizzle; 32 serves channel counts that 64 would pad, 16 narrow
# groups. Stages fill at most half of an H200's 227 KB, so that two programs share a
# multiprocessor, and fit the 163 KB of an A100: four, or three of the largest. 256 rows read a
# quarter less from L2 for the same products and have a multiprocessor to themselves.
_HALF = (
    *(
        ConvConfig(
            block_m,
            block_n,
            block_k,
            8 if block_m * block_n == 128 * 128 else 4,
            3 if (block_m + block_n) * block_k > 192 * 64 else 4,
        )
        for block_m in (64, 128)
        for block_n in (16, 32, 64, 128)
        for block_k in (16, 32, 64)
    ),
    ConvConfig(256, 64, 64, 8, 3),
    ConvConfig(256, 128, 64, 8, 3),
)
# IEEE float32 has no tensor core: accumulators and operands of an outer product live in registers,
# 64 x 64 on four warps is 32 accumulators a thread.
_SINGLE = tuple(
    ConvConfig(64, block_n, block_k, 4, 3) for block_n in (16, 32, 64) for block_k in (16, 32)
)
# TF32: a 128-byte shared-memory row is a K step of 32.
_TF32 = tuple(
    ConvConfig(
        block_m,
        block_n,
        block_k,
        8 if block_m * block_n == 128 * 128 else 4,
        3,
    )
    for block_m in (64, 128)
    for block_n in (16, 32, 64, 128)
    for block_k in (16, 32)
)
# Depthwise is bound by memory: 16-byte loads across channels, 16 to 32 elements a thread.
_DEPTHWISE = tuple(ConvConfig(block_m, 32, 0, 4, 1) for block_m in (64, 128))

SHIPPED_CONFIGS: dict[str, tuple[ConvConfig, ...]] = {
    "half": _HALF,
    "single": _SINGLE,
    "tf32": _TF32,
    "depthwise": _DEPTHWISE,
}
"""Tile shapes of ``conv2d`` and ``conv2d_rows`` by family: number format, or ``depthwise``."""


def serves(config: ConvConfig, kind: str, awake: str) -> bool:
    """Whether a configuration of family ``kind`` follows a list of this kind without a spill.

    Of lists of channels every column has an address of its own: tiles of 64 columns find the
    registers (without tensor cores: of 32), 256 x 128 does not, and none between them ships for it.
    Nor does 256 x 128 for positions of areas where K is split.
    """
    if awake == "areas":
        return config.block_m * config.block_n < 256 * 128
    return awake != "channels" or config.block_n <= (32 if kind == "single" else 64)


def family(dtype: torch.dtype, precision: str, depthwise: bool = False) -> str:
    """The key of ``SHIPPED_CONFIGS`` that serves a dtype and a precision of float32 products."""
    if depthwise:
        return "depthwise"
    if dtype != torch.float32:
        return "half"
    return "tf32" if precision == "tf32" else "single"


@functools.lru_cache
def multiprocessors(device: torch.device) -> int:
    """Of a CUDA device; an H100's of one that is not there."""
    if device.type == "cpu":
        # The interpreter runs programs one after another: enough of them to share the work.
        return 1
    if device.type != "cuda":
        return _MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.lru_cache(maxsize=4096)
def choose_config(
    *,
    images: int,
    positions: int,
    channels_per_group: int,
    out_channels_per_group: int,
    groups: int,
    dtype: torch.dtype,
    taps: int = 1,
    precision: str = "ieee",
    cell: tuple[int, int] | None = None,
    awake: str = "none",
    block_k: int | None = None,
) -> ConvConfig:
    """The configuration of a convolution: one of ``SHIPPED_CONFIGS``, perhaps with K split.

    It is the one of least cost, in cycles of an H100, as ``_cycles`` estimates them.

    Args:
        images: batch size.
        positions: ``OH * OW``.
        channels_per_group, out_channels_per_group, groups: of the weight.
        dtype: of input and weight.
        taps: ``KH * KW``.
        precision: of float32 products.
        cell: ``(positions, channels)`` of a sleep cell; a tile that fits into one can be skipped.
        awake: what a list of the awake holds: ``none``, ``cells``, ``rows`` or ``channels``; or
            ``areas``, of which every layer follows the positions, by tiles of its own.
        block_k: the depth of a K step where a list of input blocks prescribes it.

    Raises:
        ValueError: a ``block_k`` that no configuration has.
    """
    if groups > 1 and channels_per_group == 1:
        columns = triton.cdiv(groups * out_channels_per_group, _DEPTHWISE[0].block_n)
        tiles = columns * triton.cdiv(images * positions, _DEPTHWISE[-1].block_m)
        return _DEPTHWISE[-1 if tiles >= _ENOUGH_PROGRAMS else 0]

    kind = family(dtype, precision)
    shipped = SHIPPED_CONFIGS[kind]
    depths = sorted({config.block_k for config in shipped})
    if block_k is not None and block_k not in depths:
        raise ValueError(f"x_blocks: got blocks of {block_k} channels, allowed: {depths}")
    if channels_per_group * groups * dtype.itemsize % 4:
        # Single halves are loaded by way of registers: the shallowest step holds fewest.
        depths = depths[:1]
    depth = block_k or _block_k(channels_per_group, depths)
    candidates = tuple(config for config in shipped if config.block_k == depth)
    # Positions and channels after which tiles start anew, and how often they do.
    segment, segments = images * positions, 1
    span, spans = out_channels_per_group, groups
    candidates = tuple(config for config in candidates if serves(config, kind, awake))
    if cell is not None:
        cell_p, cell_c = cell
        # Rows of a list come from anywhere, and tiles never reach past an image's last position.
        tall = awake in ("rows", "channels") or cell_p >= positions
        wide = awake == "channels" or cell_c >= span
        within = tuple(
            config
            for config in candidates
            if (tall or cell_p % config.block_m == 0) and (wide or cell_c % config.block_n == 0)
        )
        candidates = within or candidates
        if awake in ("cells", "channels"):
            segment = min(positions, cell_p)
            segments = images * triton.cdiv(positions, segment)
        if awake in ("cells", "rows"):
            span, spans = min(span, cell_c), spans * triton.cdiv(span, min(span, cell_c))

    blocks = triton.cdiv(channels_per_group, depth)
    splittable = awake in ("none", "areas") and block_k is None
    ways = [
        replace(config, split_k=split)
        for config in candidates
        for split in (_SPLITS if splittable else _SPLITS[:1])
        if split <= blocks
    ]

    def cycles(config: ConvConfig) -> float:
        tiles = segments * triton.cdiv(segment, config.block_m)
        tiles *= spans * triton.cdiv(span, config.block_n)
        steps = triton.cdiv(blocks, config.split_k) * taps
        return _cycles(config, kind, dtype.itemsize, tiles, steps, awake)

    return min(ways, key=cycles)


def _cycles(
    config: ConvConfig, kind: str, itemsize: int, tiles: int, steps: int, awake: str
) -> float:
    """Estimated time of so many tiles of so many K steps.

    A multiprocessor takes its programs' K steps at the pace of the scarcest of matrix units, L2
    and instruction issue; few programs are paced by latency instead.
    """
    area, edge = config.block_m * config.block_n, config.block_m + config.block_n
    products = area * config.block_k / _PRODUCTS[kind]
    traffic = edge * config.block_k * itemsize / _L2_BYTES
    issue = _STEP_INSTRUCTIONS * config.num_warps / _ISSUES
    alone = _LATENCY / (config.num_stages - 1)
    programs = triton.cdiv(tiles * config.split_k, _MULTIPROCESSORS)
    rounds = triton.cdiv(programs, config.resident(itemsize, awake))
    work = steps * max(programs * max(products, traffic, issue), rounds * alone)
    work += rounds * (_TILE_CYCLES + area / _OUTPUTS)
    if config.split_k == 1:
        return work
    # Sums go out and come back as float32.
    sums = tiles * area * config.split_k * 8 / _MULTIPROCESSORS / _L2_BYTES
    return work + sums + _LAUNCH_CYCLES


def _block_k(channels: int, depths: list[int]) -> int:
    """The K step of least cost, where a step costs as much as 16 channels beside its own."""
    return min(depths, key=lambda depth: (triton.cdiv(channels, depth) * (depth + 16), -depth))
