"""Who sleeps at a setting: the sleep maps of a network's layers, as one picture of spared work."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drowsy.knob.uncompiled import uncompiled
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.sleep.maps import expand_cells, levels

# Positions of a side, at most.
FINEST = 64


def sleep_map(net: DrowsyNet, images: Tensor, layer: str | None = None) -> Tensor:
    """Where the multiplications of a network's convolutions sleep in the next inference.

    Layers whose batch is not the pictures' (of windows or boxes) are left out: their positions are
    none of a picture. The network's clock goes on.

    Args:
        net: at any setting.
        images: ``[N, C, H, W]`` as it takes them.
        layer: the only one to look at, by name; None for all of them.

    Returns:
        float32 ``[N, h, w]``: of the multiplications made for each place the fraction that sleeps;
        as fine as the finest layer, up to ``FINEST`` a side.
    """
    looked_at = net.layers if layer is None else {layer: net.layers[layer]}
    found: list[tuple[int, Tensor]] = []
    clock = net.control.clock.clone()
    detail = net.detail_of(images)

    def note(of: DrowsyConv2d) -> Callable[..., None]:
        def hook(module: nn.Module, given: object, output: Tensor) -> None:
            if output.dim() == 4 and len(output) == len(images):
                n, channels, height, width = output.shape
                asleep = sleepers(of, (n, channels, height, width), clock, detail)
                each = channels * of.weight[0].numel()
                found.append((each * height * width, asleep.float().mean(1, keepdim=True)))

        return hook

    handles = [each.register_forward_hook(note(each)) for each in looked_at.values()]
    try:
        with torch.inference_mode(), uncompiled(net):
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        return torch.zeros(len(images), 1, 1)
    height, width = max((tuple(share.shape[-2:]) for _, share in found), key=lambda s: s[0] * s[1])
    size = min(height, FINEST), min(width, FINEST)
    whole = sum(work for work, _ in found)
    parts = [work / whole * F.interpolate(share, size, mode="area") for work, share in found]
    return torch.stack(parts).sum(0)[:, 0].cpu()


def sleepers(
    layer: DrowsyConv2d,
    shape: tuple[int, int, int, int],
    clock: Tensor,
    detail: Tensor | None = None,
) -> Tensor:
    """Which neurons of a layer sleep at its rate: boolean ``[N, C, OH, OW]``.

    Args:
        layer: of a network.
        shape: of its output.
        clock: int64 ``(seed, image)``, as for ``drowsy.sleep.maps.levels``.
        detail: of the network's input (``DrowsyNet.detail_of``), for sources that see it.
    """
    j = layer.control.settings[layer.index]
    if j == 0:
        return torch.zeros(1, dtype=torch.bool, device=clock.device).expand(shape)
    drawn = levels(layer.sleep, shape, clock, detail)
    return expand_cells(drawn < j, shape, layer.sleep.grain)
