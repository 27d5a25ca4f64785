"""Compile every shipped kernel configuration for GPUs that need not be there, and tabulate it.

    python -m bench.compile_report                  # everything, for sm_80, sm_90 and sm_100
    python -m bench.compile_report --core           # the small set that continuous integration runs
    python -m bench.compile_report --json out.json  # the same rows as a file

Exit code 1 when a kernel spills registers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

# Interpreted kernels cannot be compiled; this must come before they are decorated.
os.environ.pop("TRITON_INTERPRET", None)

import drowsy_kernels as kernels
import torch
import triton
from drowsy_kernels.offline import ARCHITECTURES, CompileReport, compile_launch

from drowsy.atomic import write_json

_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
_CORE_CASES = (
    "conv2d fp16 128x128x64-w8-s3 ic=256",
    "conv2d bf16 64x64x64-w4-s3 ic=256",
    "conv2d fp16 128x64x32-w4-s3 ic=16",
    "conv2d fp32-ieee 64x64x32-w4-s3 ic=96",
    "conv2d fp32-tf32 64x64x32-w4-s3 ic=96",
    "depthwise fp16 128x32x0-w4-s1",
    "sleep_map bernoulli k=8",
    "sleep_map stratified k=8",
    "sleep_map stratified k=256",
    "sleep_map lattice k=8",
    "sleep_map lfsr k=8",
    "counting rows",
    "listing rows",
    "fill interpolate fp16 1x1",
    "fill interpolate fp16 1x128",
)
_COLUMNS = (
    ("registers", "regs"),
    ("spill_bytes", "spills"),
    ("shared_bytes", "smem"),
    ("wgmma", "wgmma"),
    ("mma", "mma"),
    ("tcgen05", "tcgen05"),
    ("loop_instructions", "loop"),
    ("loop_global_loads", "loads"),
)


def conv_launch(
    config: kernels.ConvConfig,
    dtype: torch.dtype,
    *,
    channels: int,
    groups: int = 1,
    precision: str = "ieee",
) -> kernels.Launch:
    """A 3x3 layer with everything fused and a bit per neuron, the heaviest epilogue."""
    meta = partial(torch.empty, device="meta")
    n, size = 8, 56
    width = channels if groups > 1 else 256
    weight = meta((width, channels // groups, 3, 3), dtype=dtype)
    _, launch = kernels.plan_conv2d(
        meta((n, channels, size, size), dtype=dtype, memory_format=torch.channels_last),
        kernels.pack_weight(weight, groups),
        meta(width, dtype=dtype),
        padding=(1, 1, 1, 1),
        activation="silu",
        bitmap=meta((n, size * size, triton.cdiv(width, 32)), dtype=torch.int32),
        cell=(1, 1),
        scale=meta(1),
        precision=precision,
        config=config,
    )
    return launch


def sleep_launch(source: str, cell: tuple[int, int], k: int) -> kernels.Launch:
    """The sleep map of a layer of 128 channels at 28 x 28."""
    meta = partial(torch.empty, device="meta")
    _, launch = kernels.plan_sleep_map(
        source,
        (8, 128, 28, 28),
        cell=cell,
        k=k,
        stream=3,
        threshold=meta(1, dtype=torch.int32),
        clock=meta(2, dtype=torch.int64),
        lattice=(3, meta(k, dtype=torch.uint8)) if source == "lattice" else None,
        lfsr=(meta(255, dtype=torch.uint8), meta(64, dtype=torch.int64))
        if source == "lfsr"
        else None,
    )
    return launch


def list_launch(
    order: str, cell: tuple[int, int], part: int = -1, **options: Any
) -> kernels.Launch:
    """One of the launches that list the awake of a layer of 256 channels at 56 x 56."""
    rows, cells = triton.cdiv(56 * 56, cell[0]), triton.cdiv(256, cell[1])
    bitmap = torch.empty((256, rows, triton.cdiv(cells, 32)), dtype=torch.int32, device="meta")
    plan = getattr(kernels, f"plan_awake_{order}")
    return plan(bitmap, (256, 256, 56, 56), cell, **options)[1][part]


def fill_launch(fill: str, cell: tuple[int, int], dtype: torch.dtype) -> kernels.Launch:
    """The sleepers of a layer of 128 channels at 28 x 28."""
    meta = partial(torch.empty, device="meta")
    y = meta((8, 128, 28, 28), dtype=dtype, memory_format=torch.channels_last)
    rows, cells = triton.cdiv(28 * 28, cell[0]), triton.cdiv(128, cell[1])
    bitmap = meta((8, rows, triton.cdiv(cells, 32)), dtype=torch.int32)
    residual = y if fill == "zero" else None
    return kernels.plan_fill_sleepers(y, bitmap, cell, fill, residual=residual)


def cases(core: bool) -> dict[str, Callable[[], kernels.Launch]]:
    """Name -> plan of every kernel that the report compiles."""
    every = dict(_all_cases())
    return {name: every[name] for name in _CORE_CASES} if core else every


def _all_cases() -> Iterator[tuple[str, Callable[[], kernels.Launch]]]:
    for config in kernels.SHIPPED_CONFIGS["half"]:
        for dtype in (torch.float16, torch.bfloat16):
            # Channel counts that choose_config gives this K step, and enough steps that the main
            # loop stays a loop; 16 channels take the K step that runs across taps.
            for channels in (256,) if config.block_k == 64 else (96, 16):
                name = f"conv2d {_NAMES[dtype]} {config} ic={channels}"
                yield name, partial(conv_launch, config, dtype, channels=channels)
    for config in kernels.SHIPPED_CONFIGS["single"]:
        for precision in kernels.PRECISIONS:
            for channels in (96, 16):
                name = f"conv2d fp32-{precision} {config} ic={channels}"
                yield (
                    name,
                    partial(
                        conv_launch, config, torch.float32, channels=channels, precision=precision
                    ),
                )
    for config in kernels.SHIPPED_CONFIGS["depthwise"]:
        for dtype, label in _NAMES.items():
            name = f"depthwise {label} {config}"
            yield name, partial(conv_launch, config, dtype, channels=96, groups=96)
    for source in kernels.SOURCES:
        yield f"sleep_map {source} k=8", partial(sleep_launch, source, (1, 1), 8)
    # Runs too long to rank in registers, and runs along channels, take another kernel.
    yield "sleep_map stratified k=256", partial(sleep_launch, "stratified", (1, 1), 256)
    yield "sleep_map stratified k=8 channel", partial(sleep_launch, "stratified", (28 * 28, 1), 8)
    yield from _sleeper_cases()


def _sleeper_cases() -> Iterator[tuple[str, Callable[[], kernels.Launch]]]:
    """Lists of the awake, and what is written over the others."""
    exact = (8, torch.empty(1, dtype=torch.int32, device="meta"))
    yield "counting cells", partial(list_launch, "cells", (64, 64), 0)
    yield "listing cells", partial(list_launch, "cells", (64, 64))
    yield "counting cells, many", partial(list_launch, "cells", (1, 16), 0)
    yield "listing cells, many", partial(list_launch, "cells", (1, 16))
    yield "counting rows", partial(list_launch, "rows", (1, 64), 0)
    yield "listing rows", partial(list_launch, "rows", (1, 64))
    yield "listing rows, exact", partial(list_launch, "rows", (1, 64), exact=exact)
    yield "listing channels", partial(list_launch, "channels", (56 * 56, 1))
    yield "listing blocks of 64", partial(list_launch, "blocks", (56 * 56, 1), block=64)
    for fill in kernels.FILLS[1:]:
        for cell in ((1, 1), (1, 128)):
            for dtype in (torch.float16, torch.float32):
                name = f"fill {fill} {_NAMES[dtype]} {cell[0]}x{cell[1]}"
                yield name, partial(fill_launch, fill, cell, dtype)


def _compile(name: str, arch: int) -> CompileReport:
    return compile_launch(cases(core=False)[name](), arch)


def report(core: bool, architectures: tuple[int, ...]) -> list[dict[str, int | str]]:
    """Compile and describe; a row per kernel configuration and architecture."""
    work = [(name, arch) for name in cases(core) for arch in architectures]
    # Fresh processes: a fork of one that holds torch's and LLVM's threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        reports = pool.map(_compile, *zip(*work, strict=True))
        return [{"case": name, **asdict(row)} for (name, _), row in zip(work, reports, strict=True)]


def table(rows: list[dict[str, int | str]]) -> str:
    """The rows as text, a line each."""
    wide = max(len(str(row["case"])) for row in rows)
    head = f"{'kernel':{wide}}  {'arch':>6}" + "".join(f"{label:>9}" for _, label in _COLUMNS)
    lines = [
        f"{row['case']:{wide}}  sm_{row['arch']:<3}"
        + "".join(f"{row[key]:>9}" for key, _ in _COLUMNS)
        for row in rows
    ]
    return "\n".join([head, *lines])


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.compile_report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--core", action="store_true", help="compile only a small set")
    parser.add_argument(
        "--arch",
        type=int,
        nargs="+",
        choices=ARCHITECTURES,
        default=ARCHITECTURES,
        help="compute capabilities to compile for (default: all)",
    )
    parser.add_argument("--json", metavar="PATH", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    rows = report(options.core, tuple(options.arch))
    print(table(rows))
    if options.json:
        versions = {
            "triton": triton.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        write_json(options.json, {"versions": versions, "rows": rows})
    spilling = [f"{row['case']} sm_{row['arch']}" for row in rows if row["spill_bytes"]]
    if spilling:
        print(f"register spills in {len(spilling)} kernels: {', '.join(spilling)}", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
