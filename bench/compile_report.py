"""Compile every shipped kernel configuration for GPUs that need not be there, and tabulate it.

    python -m bench.compile_report                  # everything, for sm_80, sm_90 and sm_100
    python -m bench.compile_report --core           # the small set that continuous integration runs
    python -m bench.compile_report --json out.json  # the same rows as a file
    python -m bench.compile_report --markdown       # as a Markdown table

Exit code 1 when a kernel spills registers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any

# Interpreted kernels cannot be compiled; this must come before they are decorated.
os.environ.pop("TRITON_INTERPRET", None)

import drowsy_kernels as kernels
import torch
import triton
from drowsy_kernels.heuristics import serves
from drowsy_kernels.offline import ARCHITECTURES, CompileReport, compile_launch

from bench.study_page import markdown
from drowsy.backends.triton import map_options
from drowsy.files.atomic import write_json
from drowsy.files.provenance import provenance
from drowsy.sleep import SleepSpec, parse_source

_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
# Of the usual 8 bits, where the paper's register has 3.
_WIDE_LFSR = "lfsr:width=8,taps=8.6.5.4"
_CORE_CASES = (
    "conv2d fp16 128x128x64-w8-s3",
    "conv2d fp16 128x128x64-w8-s3 1x1",
    "conv2d fp16 128x128x64-w8-s3 cells",
    "conv2d fp16 128x128x64-w8-s3 rows",
    "conv2d fp16 128x128x64-w8-s3 table",
    "conv2d fp16 128x128x64-w8-s3 areas",
    "conv2d fp16 256x128x64-w8-s3",
    "conv2d fp16 256x128x64-w8-s3 cells",
    "conv2d fp16 256x128x64-w8-s3 rows",
    "conv2d fp16 256x128x64-w8-s3 table",
    "conv2d fp16 256x64x64-w8-s3 rows",
    "conv2d fp16 256x64x64-w8-s3 channels",
    "conv2d fp16 256x64x64-w8-s3 channels of 8",
    "conv2d fp16 128x128x64-w8-s3 compact",
    "conv2d fp16 128x128x64-w8-s3 compact 1 step",
    "conv2d fp16 64x64x64-w4-s4 channels",
    "conv2d fp16 64x64x64-w4-s4 channels blocks",
    "conv2d fp16 64x64x64-w4-s4 split",
    "conv2d fp16 64x64x64-w4-s4 areas split",
    "conv2d bf16 64x64x64-w4-s4",
    "conv2d fp16 128x64x16-w4-s4",
    "conv2d fp32-ieee 64x64x32-w4-s3",
    "conv2d fp32-tf32 64x64x32-w4-s3",
    "conv2d fp32-tf32 64x64x32-w4-s3 rows",
    "conv2d fp32-tf32 128x32x16-w4-s3 rows",
    "conv2d_box bf16 256x128x64-w8-s4",
    "conv2d_box bf16 256x128x64-w8-s4 dense",
    "conv2d_box bf16 256x128x64-w8-s4 1x1",
    "conv2d_box bf16 256x128x64-w8-s4 tiles",
    "conv2d_box bf16 256x64x64-w4-s2",
    "first layer fp16",
    "depthwise fp16 128x32x0-w4-s1",
    "depthwise fp16 128x32x0-w4-s1 areas",
    "sleep_map bernoulli k=8",
    "sleep_map stratified k=8",
    "sleep_map stratified k=256",
    "sleep_map lattice k=8",
    "sleep_map fovea k=8",
    "sleep_map bluenoise k=8",
    "sleep_map detail k=8",
    "sleep_map lfsr k=8",
    "counting rows",
    "listing rows",
    "listing areas",
    "pooling areas fp16",
    "placing areas fp16",
    "fill interpolate fp16 1x1",
    "fill interpolate fp16 1x128",
    "fill stencil fp16 1x1",
    "fill stencil fp16 1x128",
)
_COLUMNS = (
    ("registers", "regs"),
    ("spill_bytes", "spills"),
    ("shared_bytes", "smem"),
    ("wgmma", "wgmma"),
    ("mma", "mma"),
    ("tcgen05", "tcgen05"),
    ("narrowest_store", "store"),
    ("loop_instructions", "loop"),
    ("loop_products", "products"),
    ("step_instructions", "a step"),
    ("step_loads", "loads"),
)
# Ways through a convolution that every configuration may be asked for.
_WAYS = (
    "1x1",
    "cells",
    "rows",
    "table",
    "compact",
    "compact 1 step",
    "channels",
    "channels blocks",
    "channels of 8",
    "split",
    "areas",
    "areas split",
)


def conv_launches(
    config: kernels.ConvConfig | None,
    dtype: torch.dtype,
    *,
    channels: int,
    groups: int = 1,
    precision: str = "ieee",
    way: str = "",
    kernel: int = 3,
    residual: bool = True,
) -> tuple[kernels.Launch, ...]:
    """A layer with everything fused and, unless a list says else, a bit per neuron.

    ``way``: one of ``_WAYS``; without one, every tile is computed and masked. ``table`` and
    ``compact`` are 3x3 and 1x1 over compact rows; ``channels of 8`` sleep in cells of 8; ``areas``
    have a list of positions and no bits.
    """
    meta = partial(torch.empty, device="meta")
    ints = partial(meta, dtype=torch.int32)
    n, size = 32, 56
    positions = size * size
    width = channels if groups > 1 else 256
    kernel = 1 if way.startswith(("1x1", "compact")) else kernel
    if config is not None and way == "compact 1 step":
        channels = config.block_k
    shape = (width, channels // groups, kernel, kernel)
    weight = meta(shape, dtype=dtype, memory_format=torch.channels_last)
    packed = kernels.pack_weight(weight, groups)
    bias, scale = meta(width, dtype=dtype), meta(1)
    last = torch.channels_last
    options: dict[str, Any] = {
        "activation": "silu",
        "scale": scale,
        "residual": meta((n, width, size, size), dtype=dtype, memory_format=last),
        "post_activation": "relu",
        "precision": precision,
        "config": config,
    }
    if not residual:
        options |= {"residual": None, "post_activation": "none"}
    if way == "table" or way.startswith("compact"):
        rows = n * positions // 2
        options["residual"] = meta((rows, width), dtype=dtype)
        _, launches = kernels.plan_conv2d_rows(
            meta((rows, channels), dtype=dtype),
            packed,
            bias,
            table=ints((kernel * kernel, rows)) if kernel > 1 else None,
            count=ints(1),
            **options,
        )
        return launches
    cell = (1, 1)
    if way == "cells":
        cell = (128, 128)
        cells = n * triton.cdiv(positions, 128) * triton.cdiv(width, 128)
        options["awake"] = kernels.AwakeCells(ints(cells), ints(1))
    elif way == "rows":
        cell = (1, 128)
        lists = triton.cdiv(width, 128)
        options["awake"] = kernels.AwakeRows(ints((lists, n * positions)), ints(lists))
    elif way.startswith("channels"):
        cell = (positions, 8 if way.endswith("of 8") else 1)
        options["awake"] = kernels.AwakeChannels(ints((n, width)), ints(n))
    if config is not None and way.endswith("blocks"):
        block = config.block_k
        options["x_blocks"] = kernels.AwakeBlocks(
            ints((n, triton.cdiv(channels, block))), ints(n), block
        )
    if config is not None and way.endswith("split"):
        options["config"] = replace(config, split_k=2)
    if way.startswith("areas"):
        options["awake"] = kernels.AwakeRows(ints((1, n * positions)), ints(1))
    else:
        words = triton.cdiv(triton.cdiv(width, cell[1]), 32)
        bitmap = ints((n, triton.cdiv(positions, cell[0]), words))
        options |= {"bitmap": bitmap, "cell": cell}
    _, launches = kernels.plan_conv2d(
        meta((n, channels, size, size), dtype=dtype, memory_format=torch.channels_last),
        packed,
        bias,
        padding=(kernel // 2,) * 4,
        **options,
    )
    return launches


def conv_launch(*arguments: Any, part: int = 0, **options: Any) -> kernels.Launch:
    """One of ``conv_launches``."""
    return conv_launches(*arguments, **options)[part]


def box_launch(
    config: kernels.ConvConfig,
    dtype: torch.dtype,
    *,
    channels: int,
    precision: str = "ieee",
    way: str = "",
) -> kernels.Launch:
    """A 3x3 layer on tensor descriptors with everything fused and a bit per neuron.

    ``way``: ``dense`` has neither bits nor residual; ``1x1`` is a plain GEMM; ``tiles`` has cells
    of two rows by 128 channels, whose tiles are skipped.
    """
    meta = partial(torch.empty, device="meta")
    n, size, width = 256, 56, 256
    kernel, cell = (1 if way == "1x1" else 3), ((2 * size, 128) if way == "tiles" else (1, 1))
    last = torch.channels_last
    bitmap_shape = (
        n,
        triton.cdiv(size * size, cell[0]),
        triton.cdiv(triton.cdiv(width, cell[1]), 32),
    )
    options: dict[str, Any] = {}
    if way != "dense":
        options = {
            "bitmap": meta(bitmap_shape, dtype=torch.int32),
            "cell": cell,
            "scale": meta(1),
            "residual": meta((n, width, size, size), dtype=dtype, memory_format=last),
            "post_activation": "relu",
        }
    _, (launch,) = kernels.plan_conv2d_box(
        meta((n, channels, size, size), dtype=dtype, memory_format=last),
        kernels.pack_weight(meta((width, channels, kernel, kernel), dtype=dtype)),
        meta(width, dtype=dtype),
        padding=(kernel // 2,) * 4,
        activation="silu",
        precision=precision,
        config=config,
        **options,
    )
    return launch


def sleep_launch(source: str, cell: tuple[int, int], k: int) -> kernels.Launch:
    """The sleep map of a layer of 128 channels at 28 x 28."""
    spec = SleepSpec(parse_source(_WIDE_LFSR if source == "lfsr" else source), k=k)
    shape, clock = (8, 128, 28, 28), torch.empty(2, dtype=torch.int64, device="meta")
    seen = torch.empty((8, 28, 28), dtype=torch.int32, device="meta")
    _, (launch,) = kernels.plan_sleep_map(
        source,
        shape,
        cell=cell,
        k=k,
        stream=3,
        threshold=torch.empty(1, dtype=torch.int32, device="meta"),
        clock=clock,
        **map_options(spec, shape, clock, seen),
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
    table = meta((256, 9, 128), dtype=dtype) if fill == "stencil" else None
    _, (launch,) = kernels.plan_fill_sleepers(y, bitmap, cell, fill, residual=residual, table=table)
    return launch


def cases(core: bool) -> dict[str, Callable[[], kernels.Launch]]:
    """Name -> plan of every kernel that the report compiles."""
    every = dict(_all_cases())
    return {name: every[name] for name in _CORE_CASES} if core else every


def _all_cases() -> Iterator[tuple[str, Callable[[], kernels.Launch]]]:
    # Channels that choose_config gives this K step, and enough that the main loop stays a loop.
    channels = {16: 48, 32: 96, 64: 256}
    for dtype in (torch.float16, torch.bfloat16):
        for config in kernels.SHIPPED_CONFIGS["half"]:
            layer = partial(conv_launch, config, dtype, channels=channels[config.block_k])
            name = f"conv2d {_NAMES[dtype]} {config}"
            yield name, layer
            if dtype == torch.float16:
                for way in _ways(config, "half"):
                    yield f"{name} {way}", partial(layer, way=way)
    for group, precision in (("single", "ieee"), ("tf32", "tf32")):
        for config in kernels.SHIPPED_CONFIGS[group]:
            layer = partial(
                conv_launch,
                config,
                torch.float32,
                channels=channels[config.block_k],
                precision=precision,
            )
            name = f"conv2d fp32-{precision} {config}"
            yield name, layer
            for way in _ways(config, group):
                yield f"{name} {way}", partial(layer, way=way)
    photograph = partial(conv_launch, None, torch.float16, channels=3, kernel=7, residual=False)
    yield "first layer fp16", partial(photograph, part=1)
    yield "packing fp16", photograph
    yield (
        "adding parts fp16",
        partial(
            conv_launch,
            kernels.SHIPPED_CONFIGS["half"][-1],
            torch.float16,
            channels=256,
            way="split",
            part=1,
        ),
    )
    yield from _box_cases()
    for config in kernels.SHIPPED_CONFIGS["depthwise"]:
        for dtype, label in _NAMES.items():
            name = f"depthwise {label} {config}"
            layer = partial(conv_launch, config, dtype, channels=96, groups=96)
            yield name, layer
            yield f"{name} areas", partial(layer, way="areas")
    for source in kernels.SOURCES:
        yield f"sleep_map {source} k=8", partial(sleep_launch, source, (1, 1), 8)
    # Runs too long to rank in registers, and runs along channels, take another kernel.
    yield "sleep_map stratified k=256", partial(sleep_launch, "stratified", (1, 1), 256)
    yield "sleep_map stratified k=8 channel", partial(sleep_launch, "stratified", (28 * 28, 1), 8)
    yield from _sleeper_cases()


def area_launch(step: str, dtype: torch.dtype = torch.float16) -> kernels.Launch:
    """What lists areas, or pools or places at them, of a layer of 128 channels at 28 x 28."""
    ints = partial(torch.empty, dtype=torch.int32, device="meta")
    shape = (8, 128, 28, 28)
    y = torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)
    awake = kernels.AwakeRows(ints((1, 8 * 28 * 28)), ints(1))
    if step == "listing":
        lists = kernels.area_lists(8, [(28, 28), (14, 14)], "meta")
        return kernels.plan_list_areas(ints((65, kernels.BOX_FIELDS)), lists)[1][0]
    if step == "pooling":
        window = {"stride": (1, 1), "before": (1, 1)}
        return kernels.plan_pool_areas(y, awake, y, "max", (3, 3), **window)[1][0]
    return kernels.plan_place_areas(y, awake, y, residual=y, activation="silu")[1][0]


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
    yield "listing areas", partial(area_launch, "listing")
    for dtype, label in _NAMES.items():
        yield f"pooling areas {label}", partial(area_launch, "pooling", dtype)
        yield f"placing areas {label}", partial(area_launch, "placing", dtype)
    for fill in kernels.FILLS[1:]:
        for cell in ((1, 1), (1, 128)):
            for dtype in (torch.float16, torch.float32):
                name = f"fill {fill} {_NAMES[dtype]} {cell[0]}x{cell[1]}"
                yield name, partial(fill_launch, fill, cell, dtype)


def _box_cases() -> Iterator[tuple[str, Callable[[], kernels.Launch]]]:
    for kind, configs in kernels.BOX_CONFIGS.items():
        for config in configs:
            dtypes = (torch.float16, torch.bfloat16) if kind == "half" else (torch.float32,)
            for dtype in dtypes:
                label = _NAMES[dtype] if kind == "half" else f"fp32-{kind}"
                layer = partial(
                    box_launch,
                    config,
                    dtype,
                    channels=4 * config.block_k,
                    precision="tf32" if kind == "tf32" else "ieee",
                )
                yield f"conv2d_box {label} {config}", layer
                if dtype != torch.float16:
                    for way in ("dense", "1x1", "tiles"):
                        yield f"conv2d_box {label} {config} {way}", partial(layer, way=way)


def _ways(config: kernels.ConvConfig, group: str) -> Iterator[str]:
    yield from (way for way in _WAYS if serves(config, group, way.split()[0]))


def _compile(name: str, arch: int) -> CompileReport:
    return compile_launch(cases(core=False)[name](), arch)


def report(core: bool, architectures: tuple[int, ...]) -> list[dict[str, int | str]]:
    """Compile and describe; a row per kernel configuration and architecture."""
    work = [
        (name, arch)
        for name in cases(core)
        for arch in architectures
        # Before Hopper there is no hardware for tensor descriptors: `box_supports` refuses.
        if arch >= 90 or not name.startswith("conv2d_box")
    ]
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
        + "".join(f"{row[key]:>9.4g}" for key, _ in _COLUMNS)
        for row in rows
    ]
    return "\n".join([head, *lines])


def markdown_table(rows: list[dict[str, int | str]]) -> str:
    """The same for a page."""
    head = ["kernel", "arch", *(label for _, label in _COLUMNS)]
    cells = [
        [str(row["case"]), f"sm_{row['arch']}", *(f"{row[key]:g}" for key, _ in _COLUMNS)]
        for row in rows
    ]
    return markdown([head, *cells])


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
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    options = parser.parse_args(arguments)
    rows = report(options.core, tuple(options.arch))
    print(markdown_table(rows) if options.markdown else table(rows))
    if options.json:
        write_json(options.json, {**provenance(), "rows": rows})
    spilling = [f"{row['case']} sm_{row['arch']}" for row in rows if row["spill_bytes"]]
    if spilling:
        print(f"register spills in {len(spilling)} kernels: {', '.join(spilling)}", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
