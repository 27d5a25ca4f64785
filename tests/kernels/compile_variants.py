"""Compile every branch of the kernels for sm_90; run by ``test_offline`` with no interpreter.

Interpreted kernels see plain numbers where compiled ones see constants (an argument of 1 becomes
one), so code that only compiles, or only interprets, shows here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import drowsy_kernels as kernels
import torch
from drowsy_kernels.offline import compile_launch
from torch import Tensor

ARCH = 90


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


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
    ) -> tuple[str, kernels.Launch]:
        weight = meta(out_channels, channels // groups, kernel, kernel, dtype=dtype)
        if cell is not None:
            cells = -(-out_channels // cell[1])
            rows = -(-size * size // cell[0])
            options |= {"cell": cell, "bitmap": meta(3, rows, -(-cells // 32), dtype=torch.int32)}
        _, launch = kernels.plan_conv2d(
            meta(3, channels, size, size, dtype=dtype),
            kernels.pack_weight(weight, groups),
            **options,
        )
        return f"conv2d {name}", launch

    for activation in (*kernels.ACTIVATIONS[:-1], "leaky_relu:0.1"):
        yield plan(activation, activation=activation)
    maps = {
        "rows": (1, 64),
        "columns": (100, 1),
        "words": (1, 1),
        "any": (3, 5),
        "one cell": (100, 64),
    }
    for name, cell in maps.items():
        yield plan(name, cell=cell)
        yield plan(f"{name} depthwise", cell=cell, channels=32, groups=32)
    yield plan("one neuron", channels=1, size=1, out_channels=1, cell=(1, 1))
    yield plan("one neuron depthwise", channels=2, size=1, out_channels=2, groups=2, cell=(1, 1))
    yield plan("odd channels", channels=33, kernel=3, padding=(1, 1, 1, 1))
    yield plan("odd channels, no padding", channels=33, kernel=3)
    yield plan("odd groups", channels=99, out_channels=15, groups=3, cell=(1, 1))
    yield plan("3 channels", channels=3, kernel=7, padding=(3, 3, 3, 3), stride=(2, 2))
    yield plan("3 channels, no padding", channels=3, kernel=7, dtype=torch.float32)


def sleep_plans() -> Iterator[tuple[str, kernels.Launch]]:
    for source in kernels.SOURCES:
        for shape, cell in (
            ((1, 1, 1, 1), (1, 1)),
            ((2, 40, 5, 7), (1, 1)),
            ((2, 40, 5, 7), (35, 1)),
            ((2, 40, 5, 7), (1, 40)),
        ):
            _, launch = kernels.plan_sleep_map(
                source,
                shape,
                cell=cell,
                k=8,
                stream=1,
                threshold=meta(1, dtype=torch.int32),
                clock=meta(2, dtype=torch.int64),
                lattice=(1, meta(8, dtype=torch.uint8)) if source == "lattice" else None,
                lfsr=(meta(7, dtype=torch.uint8), meta(1, dtype=torch.int64))
                if source == "lfsr"
                else None,
            )
            yield f"sleep_map {source} {shape} {cell}", launch


if __name__ == "__main__":
    for name, launch in (*conv_plans(), *sleep_plans()):
        report = compile_launch(launch, ARCH)
        print(f"{name}: {report.registers} registers, {report.spill_bytes} bytes spilled")
        assert report.spill_bytes == 0, name
