"""Where a kernel may run."""

from __future__ import annotations

import triton
from torch import Tensor


def interpreting() -> bool:
    """Whether this process runs Triton kernels on the CPU, in the interpreter."""
    return bool(triton.knobs.runtime.interpret)


def check_device(tensor: Tensor, name: str) -> None:
    """Raise RuntimeError unless a kernel can run on this tensor's device."""
    if not tensor.is_cuda and not interpreting():
        raise RuntimeError(
            f"{name}: is on {tensor.device}; Triton kernels run on CUDA, or on the CPU in a process "
            "started with TRITON_INTERPRET=1"
        )
