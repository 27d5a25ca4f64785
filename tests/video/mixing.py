"""What a stream computes, told another way: densely, and mixed map by map with what there was."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from drowsy.video.areas import Box

# Computed whole: what is no convolution or pool of windows and does not treat positions alone.
_WHOLE = (nn.ConvTranspose2d, nn.Linear)
_WHOLE_CALLS = (F.interpolate, F.adaptive_avg_pool2d, "mean", "flatten")


class Mixing(fx.Interpreter):
    """Runs a model densely in every frame, and keeps old values outside of the areas.

    Every map that the model's own operations put out is mixed: where the picture is awake it is
    computed from the maps that this frame has mixed so far, elsewhere it is as it was.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(fx.symbolic_trace(model))
        self._kept: dict[fx.Node, Tensor] = {}
        self._boxes: tuple[Box, ...] = ()

    def frame(self, frame: Tensor, boxes: tuple[Box, ...]) -> Any:
        self._boxes = boxes
        return self.run(frame)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op in ("placeholder", "output", "get_attr") or self._is_whole(n, result):
            return result
        before = self._kept.get(n)
        mixed = result.clone() if before is None else before.clone()
        for box in self._boxes:
            top, bottom, left, right = box.at((result.shape[2], result.shape[3]))
            mixed[:, :, top:bottom, left:right] = result[:, :, top:bottom, left:right]
        self._kept[n] = mixed
        return mixed.clone()  # the model may write over it

    def _is_whole(self, n: fx.Node, result: Any) -> bool:
        if not isinstance(result, Tensor) or result.dim() != 4 or result.shape[2:] == (1, 1):
            return True
        if n.op == "call_module":
            module = self.module.get_submodule(str(n.target))
            odd = isinstance(module, nn.AvgPool2d) and not module.count_include_pad
            return odd or isinstance(module, _WHOLE)
        return n.target in _WHOLE_CALLS


def frames(count: int, size: tuple[int, int], dtype: torch.dtype, seed: int = 5) -> Tensor:
    """A clip ``[T, 3, H, W]`` that moves and changes."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.rand(1, 3, *size, generator=generator, dtype=torch.float64)
    shifted = [picture.roll((t, 2 * t), (2, 3)) for t in range(count)]
    noise = 0.1 * torch.rand(count, 3, *size, generator=generator, dtype=torch.float64)
    return (torch.cat(shifted) + noise).to(dtype)
