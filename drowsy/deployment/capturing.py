"""CUDA graphs: calls of the host that become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def captured(
    run: Callable[[], Any], device: torch.device, warm: Callable[[], object] | None = None
) -> tuple[Callable[[], None], Any]:
    """A function as a CUDA graph over the memory that it reads and writes.

    Args:
        run: no call in it may wait for the device.
        device: CUDA.
        warm: does what ``run`` does at least once, before the capture, so that every kernel is
            compiled and every cache filled, neither of which a capture can do; by default ``run``,
            twice.

    Returns:
        ``(replay, held)``: what ``run`` returned; the next ``replay`` overwrites its tensors.
    """

    def twice() -> None:
        run()
        run()

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        aside, current = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            (warm or twice)()
        current.wait_stream(aside)
        with torch.cuda.graph(graph):
            held = run()
    return graph.replay, held
