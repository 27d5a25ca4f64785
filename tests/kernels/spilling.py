"""A kernel that spills is seen to; run by ``test_offline`` with no interpreter."""

from __future__ import annotations

from dataclasses import replace

import drowsy_kernels as kernels
import torch
from drowsy_kernels.offline import compile_launch, spill_bytes
from torch import Tensor

ARCH = 90
CONFIG = kernels.ConvConfig(64, 64, 64, 4, 4)


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float16, device="meta")


if __name__ == "__main__":
    weight = kernels.pack_weight(meta(64, 64, 3, 3))
    _, (launch,) = kernels.plan_conv2d(
        meta(3, 64, 10, 10), weight, padding=(1, 1, 1, 1), config=CONFIG
    )
    free = compile_launch(launch, ARCH)
    # It takes 80; the assembler refuses where a matrix instruction does not find its operands.
    starved = replace(launch, max_registers=64)
    short = compile_launch(starved, ARCH)
    assert free.registers > short.registers == starved.max_registers
    assert (free.spill_bytes, spill_bytes(launch, ARCH)) == (0, 0)
    assert short.spill_bytes > 0
    assert short.spill_bytes == spill_bytes(starved, ARCH)
