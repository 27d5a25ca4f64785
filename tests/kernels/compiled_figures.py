"""What a compile report says of kernels that are known to spill, or to store whole vectors.

Run by ``test_offline`` with no interpreter.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import drowsy_kernels as kernels
import torch
from drowsy_kernels.offline import compile_launch, spill_bytes
from torch import Tensor

ARCH = 90
CONFIG = kernels.ConvConfig(64, 64, 64, 4, 4)


def meta(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def layer(**options: Any) -> kernels.Launch:
    """3x3, 64 channels to 64."""
    weight = kernels.pack_weight(meta(64, 64, 3, 3))
    _, (launch,) = kernels.plan_conv2d(
        meta(3, 64, 10, 10), weight, padding=(1, 1, 1, 1), config=CONFIG, **options
    )
    return launch


def check_spills() -> None:
    """Both ways to count them agree, on a kernel without and on one that is short of registers."""
    launch = layer()
    free = compile_launch(launch, ARCH)
    # It takes 80; the assembler refuses where a matrix instruction does not find its operands.
    starved = replace(launch, max_registers=64)
    short = compile_launch(starved, ARCH)
    assert free.registers > short.registers == starved.max_registers
    assert (free.spill_bytes, spill_bytes(launch, ARCH)) == (0, 0)
    assert short.spill_bytes > 0
    assert short.spill_bytes == spill_bytes(starved, ARCH)


def check_stores() -> None:
    """Lists of channels in whole cells are stored in whole vectors, with a residual and without."""

    def narrowest(cell_c: int, residual: Tensor | None) -> int:
        launch = layer(
            bitmap=meta(3, 1, -(-64 // cell_c // 32), dtype=torch.int32),
            cell=(100, cell_c),
            awake=kernels.AwakeChannels(meta(3, 64, dtype=torch.int32), meta(3, dtype=torch.int32)),
            residual=residual,
        )
        return compile_launch(launch, ARCH).narrowest_store

    channels_last = meta(3, 64, 10, 10).contiguous(memory_format=torch.channels_last)
    for residual in (None, channels_last):
        found = [narrowest(cell_c, residual) for cell_c in (1, 8, 16)]
        assert found == [2, 16, 16], found


if __name__ == "__main__":
    for check in sys.argv[1:]:
        globals()[f"check_{check}"]()
