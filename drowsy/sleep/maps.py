"""Maps of a layer: levels drawn for a batch, bits packed and unpacked, cells spread to neurons."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from drowsy.sleep.counters import MASK32
from drowsy.sleep.grain import Grain
from drowsy.sleep.source import LayerMap, Source
from drowsy.sleep.spec import SleepSpec

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Philox calls of one draw on the CPU: a dozen int64 temporaries then stay in the L2 cache.
_CPU_CHUNK = 1 << 14


def levels(
    spec: SleepSpec,
    shape: tuple[int, int, int, int],
    clock: Tensor,
    detail: Tensor | None = None,
) -> Tensor:
    """Draw the level map of a layer.

    Args:
        spec: how to draw.
        shape: ``(N, C, OH, OW)`` of the layer's output.
        clock: int64 tensor ``(seed, image)``: the seed, and the running index of the batch's
            first image. Its device is where the map is drawn.
        detail: int32 ``[N, GH, GW]``, of the network's input as ``detail_map`` tells it, on the
            same device, for sources that see it; others ignore it.

    Returns:
        uint8 tensor ``[N, PC, CC]`` with values in ``0 .. k-1``; a cell sleeps at rate ``j/k``
        when its level is below ``j``.
    """
    spec.check_seen(shape[0], detail)
    layer, images = spec.layer_map(shape, detail), _images(shape[0], clock)
    out = torch.empty((shape[0], *layer.cells), dtype=torch.uint8, device=clock.device)
    if out.numel() == 0:
        return out
    for part in _image_chunks(shape[0], layer.cells, clock.device):
        own = layer if layer.detail is None else replace(layer, detail=layer.detail[part])
        out[part] = _drawn(spec.source, own, images[part], clock[0])
    return out


def asleep(
    spec: SleepSpec,
    shape: tuple[int, int, int, int],
    j: int,
    clock: Tensor,
    detail: Tensor | None = None,
) -> Tensor:
    """Which cells sleep at rate ``j/k``: ``levels(spec, shape, clock, detail) < j``, boolean."""
    if spec.source.sees:
        return levels(spec, shape, clock, detail) < j
    layer, images = spec.layer_map(shape), _images(shape[0], clock)
    if 0 < j < spec.k and shape[0] * layer.cells[0] * layer.cells[1] > 0:
        drawn = spec.source.sleepers(layer, images, clock[0], j)
        if drawn is not None:
            return drawn
    return levels(spec, shape, clock) < j


def _images(n: int, clock: Tensor) -> Tensor:
    """The indices of a batch's images, modulo ``2**32``."""
    if clock.dtype != torch.int64 or clock.shape != (2,):
        raise ValueError(f"clock: got {clock.dtype} {tuple(clock.shape)}, allowed: int64 [2]")
    return (clock[1] + torch.arange(n, device=clock.device)) & MASK32


def _drawn(source: Source, layer: LayerMap, images: Tensor, seed: Tensor) -> Tensor:
    """What a source draws, once it is known to be levels: a source may be a user's own."""
    drawn, size = source.draw(layer, images, seed), (len(images), *layer.cells)
    if not isinstance(drawn, Tensor) or drawn.dtype not in _INTEGERS:
        kind = drawn.dtype if isinstance(drawn, Tensor) else type(drawn).__name__
        raise TypeError(f"source {source.name}: drew {kind}, allowed: a tensor of integers")
    if drawn.shape != size or drawn.device != images.device:
        raise ValueError(
            f"source {source.name}: drew {tuple(drawn.shape)} on {drawn.device}, allowed: "
            f"[N, PC, CC], here {size} on {images.device}"
        )
    least, most = (level.long() for level in drawn.aminmax())
    if drawn.device.type != "cpu":
        # Without waiting for the device, which a captured graph could not.
        torch._assert_async((least >= 0) & (most < layer.k), f"source {source.name}: not levels")
    elif not 0 <= least <= most < layer.k:
        raise ValueError(
            f"source {source.name}: drew levels from {least} to {most}, allowed: 0 to {layer.k - 1}"
        )
    return drawn


def _image_chunks(n: int, cells: tuple[int, int], device: torch.device) -> list[slice]:
    step = n if device.type != "cpu" else max(1, _CPU_CHUNK * 8 // (cells[0] * cells[1]))
    return [slice(start, start + step) for start in range(0, n, max(step, 1))]


def pack_bitmap(asleep: Tensor) -> Tensor:
    """Pack a boolean map ``[N, PC, CC]`` to int32 words ``[N, PC, ceil(CC / 32)]``.

    Bit ``b`` of word ``w`` is cell ``32 * w + b``; 1 sleeps; unused bits are 0.
    """
    n, positions, channels = asleep.shape
    words = -(-channels // 32)
    padded = torch.zeros((n, positions, words * 32), dtype=torch.int64, device=asleep.device)
    padded[:, :, :channels] = asleep
    weights = torch.ones((), dtype=torch.int64, device=asleep.device) << torch.arange(
        32, device=asleep.device
    )
    packed = (padded.view(n, positions, words, 32) * weights).sum(dim=-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def unpack_bitmap(bitmap: Tensor, channels: int) -> Tensor:
    """Inverse of ``pack_bitmap``: boolean ``[N, PC, channels]`` with ``channels`` cells a row."""
    if bitmap.dtype != torch.int32 or bitmap.dim() != 3 or channels > bitmap.shape[2] * 32:
        raise ValueError(
            f"bitmap: got {bitmap.dtype} {tuple(bitmap.shape)} for {channels} cells, "
            f"allowed: int32 [N, PC, ceil({channels} / 32)]"
        )
    bits = bitmap[..., None] >> torch.arange(32, device=bitmap.device, dtype=torch.int32) & 1
    return bits.flatten(2)[:, :, :channels].bool()


def expand_cells(cells: Tensor, shape: tuple[int, int, int, int], grain: Grain) -> Tensor:
    """Spread a map over cells ``[N, PC, CC]`` to its neurons ``[N, C, OH, OW]``, channels last.

    One cell for all positions or channels is expanded, not copied.
    """
    n, channels, height, width = shape
    cell_p, cell_c = grain.cell(max(channels, 1), max(height * width, 1))
    if cells.shape[1] == 1:
        cells = cells.expand(-1, height * width, -1)
    elif cell_p > 1:
        cells = cells.repeat_interleave(cell_p, dim=1)[:, : height * width]
    if cells.shape[2] == 1:
        cells = cells.expand(-1, -1, channels)
    elif cell_c > 1:
        cells = cells.repeat_interleave(cell_c, dim=2)[:, :, :channels]
    return cells.reshape(n, height, width, channels).permute(0, 3, 1, 2)
