"""Compile every branch of the kernels for sm_90; run by ``test_offline`` with no interpreter.

Interpreted kernels see plain numbers where compiled ones see constants (an argument of 1 becomes
one), so code that only compiles, or only interprets, shows here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import drowsy_kernels as kernels
import torch
from drowsy_kernels.offline import spill_bytes
from torch import Tensor

ARCH = 90


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*shape: int) -> Tensor:
    return meta(*shape, dtype=torch.int32)


def conv_plans() -> Iterator[tuple[str, kernels.Launch]]:
    def plan(
        name: str,
        *,
        channels: int = 32,
        size: int = 10,
        out_channels: int = 64,
        groups: int = 1,
        kernel: int = 1,
        cell: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.float16,
        **options: Any,
    ) -> Iterator[tuple[str, kernels.Launch]]:
        weight = meta(out_channels, channels // groups, kernel, kernel, dtype=dtype)
        if cell is not None:
            cells = -(-out_channels // cell[1])
            rows = -(-size * size // cell[0])
            options |= {"cell": cell, "bitmap": meta(3, rows, -(-cells // 32), dtype=torch.int32)}
        _, launches = kernels.plan_conv2d(
            meta(3, channels, size, size, dtype=dtype),
            kernels.pack_weight(weight, groups),
            **options,
        )
        for launch in launches:
            yield f"conv2d {name}", launch

    for activation in (*kernels.ACTIVATIONS[:-1], "leaky_relu:0.1"):
        slopes = {"slopes": meta(64)} if activation == "prelu" else {}
        yield from plan(activation, activation=activation, **slopes)
    yield from plan("prelu of one slope", activation="prelu", slopes=meta(1).expand(64))
    maps = {
        "rows": (1, 64),
        "columns": (100, 1),
        "words": (1, 1),
        "any": (3, 5),
        "one cell": (100, 64),
    }
    for name, cell in maps.items():
        yield from plan(name, cell=cell)
        yield from plan(f"{name} depthwise", cell=cell, channels=32, groups=32)
    yield from plan("one neuron", channels=1, size=1, out_channels=1, cell=(1, 1))
    yield from plan(
        "one neuron depthwise", channels=2, size=1, out_channels=2, groups=2, cell=(1, 1)
    )
    yield from plan("odd channels", channels=33, kernel=3, padding=(1, 1, 1, 1))
    yield from plan("odd channels, no padding", channels=33, kernel=3)
    yield from plan("odd groups", channels=99, out_channels=15, groups=3, cell=(1, 1))
    yield from plan("3 channels", channels=3, kernel=7, padding=(3, 3, 3, 3), stride=(2, 2))
    yield from plan("3 channels, no padding", channels=3, kernel=7, dtype=torch.float32)
    yield from plan("dilated 3 channels", channels=3, kernel=3, dilation=(2, 2))
    yield from plan("many taps", channels=16, kernel=7, padding=(3, 3, 3, 3))
    # 3 images of 4000 x 4000 x 64 are more than 2**31 elements.
    yield from plan("64-bit offsets", channels=64, size=4000, kernel=3, padding=(1, 1, 1, 1))
    yield from plan("64-bit offsets, depthwise", channels=64, size=4000, groups=64)
    yield from plan("narrow groups", groups=8, kernel=3, padding=(1, 1, 1, 1))
    residual = meta(3, 64, 10, 10, dtype=torch.float16)
    residual = residual.contiguous(memory_format=torch.channels_last)
    post: dict[str, Any] = {"residual": residual, "post_activation": "relu"}
    yield from plan("residual", **post)
    half = meta(64, dtype=torch.float16)
    prelu: dict[str, Any] = {"post_activation": "prelu", "post_slopes": half, "residual": residual}
    for groups in (1, 64):
        yield from plan(f"prelu, {groups}", channels=64, groups=groups, cell=(100, 64), **prelu)
    yield from plan("residual, masked", cell=(100, 64), **post)
    yield from plan("residual, depthwise", channels=64, groups=64, cell=(100, 64), **post)
    split = kernels.ConvConfig(64, 32, 16, 4, 3, split_k=2)
    for name, cell in maps.items():
        yield from plan(f"split, {name}", cell=cell, config=split, **post)
    blocks = kernels.AwakeBlocks(ints(3, 2), ints(3), 16)
    yield from plan("input blocks", cell=(100, 1), x_blocks=blocks)
    yield from plan("input blocks, a tile per cell", cell=(64, 64), x_blocks=blocks)
    for name, options in (("alone", {}), ("residual", post)):
        yield from plan(
            f"cells, {name}",
            cell=(64, 64),
            awake=kernels.AwakeCells(ints(6), ints(1)),
            **options,
        )
        for cell_c in (1, 64):
            lists = 64 // cell_c
            yield from plan(
                f"rows, {lists} lists, {name}",
                cell=(1, cell_c),
                awake=kernels.AwakeRows(ints(lists, 300), ints(lists)),
                **options,
            )
        channels = kernels.AwakeChannels(ints(3, 64), ints(3))
        yield from plan(f"channels, {name}", cell=(100, 1), awake=channels, **options)
        yield from plan(
            f"channels, input blocks, {name}",
            cell=(100, 1),
            awake=channels,
            x_blocks=blocks,
            kernel=3,
            padding=(1, 1, 1, 1),
            **options,
        )
    yield from plan("channels, prelu", cell=(100, 1), awake=channels, **prelu)
    areas: dict[str, Any] = {"awake": kernels.AwakeRows(ints(1, 300), ints(1))}
    for name, options in (("alone", {}), ("residual", post)):
        yield from plan(f"areas, {name}", **areas, **options)
        yield from plan(f"areas, split, {name}", config=split, **areas, **options)
        yield from plan(f"areas, depthwise, {name}", channels=64, groups=64, **areas, **options)
    edge: dict[str, Any] = {"kernel": 3, "padding": (1, 1, 1, 1)}
    yield from plan("areas, groups", channels=64, groups=2, **edge, **areas)
    large = kernels.AwakeRows(ints(1, 3 * 4000 * 4000), ints(1))
    yield from plan("areas, 64-bit offsets", channels=64, size=4000, awake=large, **edge)
    one = kernels.AwakeChannels(ints(3, 1), ints(3))
    yield from plan("one channel", channels=1, size=1, out_channels=1, cell=(1, 1), awake=one)


def row_plans() -> Iterator[tuple[str, kernels.Launch]]:
    for channels in (3, 64):
        for kernel in (1, 3):
            for rows in (1, 100):
                weight = meta(40, channels, kernel, kernel, dtype=torch.float16)
                _, (launch,) = kernels.plan_conv2d_rows(
                    meta(77, channels, dtype=torch.float16),
                    kernels.pack_weight(weight),
                    table=ints(kernel * kernel, rows),
                    count=ints(1),
                    residual=meta(rows, 40, dtype=torch.float16),
                )
                yield f"conv2d_rows {channels} {kernel} {rows}", launch
    _, (launch,) = kernels.plan_conv2d_rows(
        meta(77, 64), kernels.pack_weight(meta(40, 64, 1, 1)), table=None, count=ints(1)
    )
    yield "conv2d_rows no table", launch


def box_plans() -> Iterator[tuple[str, kernels.Launch]]:
    def plan(
        name: str,
        *,
        channels: int = 64,
        size: int = 10,
        images: int = 3,
        out_channels: int = 64,
        kernel: int = 3,
        cell: tuple[int, int] | None = None,
        **options: Any,
    ) -> tuple[str, kernels.Launch]:
        if cell is not None:
            cells = -(-out_channels // cell[1])
            rows = -(-size * size // cell[0])
            options |= {"cell": cell, "bitmap": ints(images, rows, -(-cells // 32))}
        x = meta(images, channels, size, size, dtype=torch.float16)
        weight = meta(out_channels, channels, kernel, kernel, dtype=torch.float16)
        options = {"padding": (kernel // 2,) * 4} | options
        _, (launch,) = kernels.plan_conv2d_box(x, kernels.pack_weight(weight), **options)
        return f"conv2d_box {name}", launch

    maps = {
        "rows": (1, 64),
        "columns": (100, 3),
        "words": (1, 1),
        "word": (1, 8),
        "any": (3, 5),
        "one cell": (100, 64),
    }
    for name, cell in maps.items():
        yield plan(name, cell=cell)
        yield plan(f"{name}, GEMM", cell=cell, kernel=1)
    yield plan("one pixel", size=1, images=1, out_channels=8, channels=8, cell=(1, 1))
    yield plan("one pixel, GEMM", size=1, images=1, out_channels=8, channels=8, kernel=1)
    yield plan("dilated", dilation=(2, 3))
    yield plan("1x1 with padding", kernel=1, padding=(1, 0, 1, 0))
    residual = meta(3, 64, 10, 10, dtype=torch.float16)
    residual = residual.contiguous(memory_format=torch.channels_last)
    for config in (None, *kernels.BOX_CONFIGS["half"]):
        yield plan(f"residual, {config}", residual=residual, post_activation="relu", config=config)
    slopes = meta(64, dtype=torch.float16)
    both: dict[str, Any] = {"post_activation": "prelu", "post_slopes": slopes}
    yield plan("prelu", activation="prelu", slopes=slopes, residual=residual, **both)


def sleep_plans() -> Iterator[tuple[str, kernels.Launch]]:
    for source in kernels.SOURCES:
        for shape, cell in (
            ((1, 1, 1, 1), (1, 1)),
            ((2, 40, 5, 7), (1, 1)),
            ((2, 40, 5, 7), (35, 1)),
            ((2, 40, 5, 7), (1, 40)),
        ):
            if source in ("fovea", "bluenoise", "detail") and cell[0] > 1:
                continue
            _, (launch,) = kernels.plan_sleep_map(
                source,
                shape,
                cell=cell,
                k=8,
                stream=1,
                threshold=meta(1, dtype=torch.int32),
                clock=meta(2, dtype=torch.int64),
                lattice=(meta(4, 4, dtype=torch.uint8), meta(8, 2, dtype=torch.uint8))
                if source == "lattice"
                else None,
                fovea=meta(8, shape[2] * shape[3], dtype=torch.uint8)
                if source == "fovea"
                else None,
                bluenoise=meta(64, 64, dtype=torch.uint8) if source == "bluenoise" else None,
                detail=meta(
                    shape[0],
                    min(8, -(-shape[1] // cell[1])),
                    shape[2] * shape[3],
                    dtype=torch.uint8,
                )
                if source == "detail"
                else None,
                lfsr=(meta(7, dtype=torch.uint8), meta(1, dtype=torch.int64))
                if source == "lfsr"
                else None,
            )
            yield f"sleep_map {source} {shape} {cell}", launch
    for source, k in (("bernoulli", 8), ("stratified", 8), ("stratified", 31)):
        _, (launch,) = kernels.plan_sleep_map(
            source,
            (2, 40, 5, 7),
            cell=(1, 1),
            k=k,
            stream=1,
            threshold=meta(1, dtype=torch.int32),
            clock=meta(2, dtype=torch.int64),
            upside_down=True,
        )
        yield f"sleep_map {source} {k}, upside down", launch


def list_plans() -> Iterator[tuple[str, kernels.Launch]]:
    def bitmap(shape: tuple[int, int, int, int], cell: tuple[int, int]) -> Tensor:
        rows, cells = -(-shape[2] * shape[3] // cell[0]), -(-shape[1] // cell[1])
        return meta(shape[0], rows, -(-cells // 32), dtype=torch.int32)

    exact = (8, meta(1, dtype=torch.int32))
    one, small, large, huge = (1, 1, 1, 1), (2, 40, 5, 7), (8, 64, 56, 56), (64, 256, 112, 112)
    for name, plan, shape, cell, options in (
        ("cells", kernels.plan_awake_cells, one, (1, 1), {}),
        ("cells", kernels.plan_awake_cells, small, (4, 16), {}),
        ("cells", kernels.plan_awake_cells, large, (1, 16), {}),
        ("cells", kernels.plan_awake_cells, huge, (1, 16), {}),
        ("rows", kernels.plan_awake_rows, small, (1, 40), {}),
        ("rows", kernels.plan_awake_rows, large, (1, 16), {}),
        ("rows, exact", kernels.plan_awake_rows, large, (1, 64), {"exact": exact}),
        ("channels", kernels.plan_awake_channels, small, (35, 1), {}),
        ("channels", kernels.plan_awake_channels, small, (35, 3), {}),
        ("blocks", kernels.plan_awake_blocks, small, (35, 1), {"block": 16}),
        ("blocks", kernels.plan_awake_blocks, small, (35, 3), {"block": 64}),
    ):
        _, launches = plan(bitmap(shape, cell), shape, cell, **options)
        for launch in launches:
            yield f"awake {name} {shape} {cell}", launch


def fill_plans() -> Iterator[tuple[str, kernels.Launch]]:
    def plan(
        fill: str,
        channels: int,
        size: int,
        cell: tuple[int, int],
        **options: Any,
    ) -> tuple[str, kernels.Launch]:
        shape = (2, channels, size, size)
        y = meta(*shape, dtype=torch.float16).to(memory_format=torch.channels_last)
        rows, cells = -(-size * size // cell[0]), -(-channels // cell[1])
        bitmap = meta(2, rows, -(-cells // 32), dtype=torch.int32)
        if "post_activation" in options:
            options["residual"] = y
        if fill == "stencil":
            options["table"] = meta(256, 9, channels, dtype=torch.float16)
        _, (launch,) = kernels.plan_fill_sleepers(y, bitmap, cell, fill, **options)
        return f"fill {fill} {channels}x{size}x{size} {cell}", launch

    for fill in kernels.FILLS[1:]:
        yield plan(fill, 1, 1, (1, 1))
        yield plan(fill, 64, 1, (1, 1))
        for cell in ((1, 1), (1, 128), (1, 5)):
            yield plan(fill, 128, 10, cell)
    for cell in ((100, 1), (64, 32)):
        yield plan("zero", 128, 10, cell, post_activation="silu")


def table_plans() -> Iterator[tuple[str, kernels.Launch]]:
    for size, channels, dtype in (((1, 1), 1, torch.float32), ((7, 5), 70, torch.bfloat16)):
        positions = size[0] * size[1]
        bitmap = meta(2, positions, 1, dtype=torch.int32)
        rows, _ = kernels.plan_awake_rows(bitmap, (2, 1, *size), (1, 1))
        index, launches = kernels.plan_row_index(bitmap, rows, size, "nearest")
        for launch in launches:
            yield f"row index {size}", launch
        for kernel, table_index in ((1, None), (3, None), (3, index)):
            edge = kernel // 2
            geometry = kernels.Geometry(size, (kernel, kernel), padding=(edge, edge, edge, edge))
            _, (launch,) = kernels.plan_tap_table(rows, 2, geometry, table_index)
            yield f"tap table {size} {kernel}x{kernel}", launch
        shape = (2, channels, *size)
        data = meta(2 * positions, channels, dtype=dtype)
        full = meta(*shape, dtype=dtype).to(memory_format=torch.channels_last)
        _, (launch,) = kernels.plan_expand_rows(data, index, shape)
        yield f"expand rows {channels}x{size}", launch
        _, (launch,) = kernels.plan_expand_rows(
            data, index, shape, residual=full, post_activation="relu"
        )
        yield f"expand rows {channels}x{size} with residual", launch
        bias, scale = meta(channels, dtype=dtype), meta(1)
        _, (launch,) = kernels.plan_fill_unread(full, bitmap, bitmap)
        yield f"fill unread {channels}x{size}", launch
        _, launches = kernels.plan_join_rows([data, data], rows.counts)
        for launch in launches:
            yield f"join rows {channels}x{size}", launch
        _, (launch,) = kernels.plan_fill_unread(
            full, bitmap, bitmap, bias, activation="relu", scale=scale, residual=full
        )
        yield f"fill unread {channels}x{size} with all", launch


def area_plans() -> Iterator[tuple[str, kernels.Launch]]:
    lists = kernels.area_lists(3, [(10, 10), (1, 1)], "meta")
    _, (launch,) = kernels.plan_list_areas(ints(9, kernels.BOX_FIELDS), lists)
    yield "areas listed", launch
    for images, channels, size in ((3, 64, 10), (1, 1, 1), (3, 64, 4000)):
        y = meta(images, channels, size, size, dtype=torch.float16)
        y = y.to(memory_format=torch.channels_last)
        awake = kernels.AwakeRows(ints(1, images * size * size), ints(1))
        for kind in kernels.POOLS:
            _, (launch,) = kernels.plan_pool_areas(
                y, awake, y, kind, (3, 3), stride=(1, 1), before=(1, 1)
            )
            yield f"areas, {kind} {channels}x{size}", launch
        for residual in (None, y):
            _, (launch,) = kernels.plan_place_areas(y, awake, y, residual=residual)
            yield f"areas placed {channels}x{size}", launch


if __name__ == "__main__":
    plans = (
        *conv_plans(),
        *row_plans(),
        *box_plans(),
        *sleep_plans(),
        *list_plans(),
        *fill_plans(),
        *table_plans(),
        *area_plans(),
    )
    for name, launch in plans:
        assert spill_bytes(launch, ARCH) == 0, f"{name}: registers are spilled"
