"""Corrections of a network without a graph: all images go through it as one batch, twice.

First with all awake: of every layer, what its pre-activations are is written down. Then asleep: a
layer runs after those before it, so that its correction can be found, from the input that it really
gets, before its output is. That takes all images at each layer, and forwards are whole ones, one
after the other, for a network may keep things from one of its layers to another where nobody sees
them: so all are one batch. What the network holds of all images at once, and two or three copies of
a layer's outputs, must fit in memory. Only within a layer images are taken by chunks. Sleep maps
are those of that batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from drowsy._optional import require
from drowsy.correction.interception import layers_doing
from drowsy.correction.layerwise import Call, Wanted, chunk_size
from drowsy.network.calibration import Correction
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet


@torch.no_grad()
def corrections_by_forward(
    net: DrowsyNet, images: Tensor, reconstruct: bool, seed: int, batch: int, progress: bool
) -> dict[str, Correction]:
    """Corrections at the setting in force, which the network computes without any so far."""
    thresholds, detail = net.control.settings, net.detail_of(images)
    # By layer, at its first call: what its input is, and what comes of it.
    seen: dict[str, tuple[int, Wanted]] = {}
    found: dict[str, Correction | None] = {}

    def called(name: str, layer: DrowsyConv2d, x: Tensor) -> Call:
        size = chunk_size(len(x), batch) if x.dim() == 4 else 1
        chunks = x.split(size) if x.dim() == 4 else [x]
        starts = range(0, len(chunks) * size, size)
        return Call.of(
            name,
            layer,
            thresholds[layer.index],
            chunks,
            starts=starts,
            images=len(images),
            seed=seed,
            detail=detail,
        )

    def awake(name: str, layer: DrowsyConv2d, x: Tensor) -> Tensor:
        call = called(name, layer, x)
        if name not in seen:
            seen[name] = _checksum(x), call.wanted(call.sums, reconstruct)
            step()
        return _joined([call.output(chunk) for chunk in range(len(call.sums))])

    def drowsy(name: str, layer: DrowsyConv2d, x: Tensor) -> Tensor:
        call = called(name, layer, x)
        if name not in found:
            found[name] = None
            if name in seen and seen[name][0] != _checksum(x):
                found[name] = call.correct(seen[name][1])
            step()
        elif (known := found[name]) is not None:
            # The network has one correction for all calls of a layer.
            call.apply(known)
        return _joined([call.asleep(c, call.output(c)) for c in range(len(call.sums))])

    with _progress(2 * len(net.layers), progress) as step:
        for forward in (awake, drowsy):
            with layers_doing(net, forward):
                net(images.clone())
    return {name: each for name, each in found.items() if each is not None}


def _checksum(x: Tensor) -> int:
    """Of a tensor's bits: inputs that sleep has touched have another."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return int(x.contiguous().view(bits).sum(dtype=torch.int64))


def _joined(chunks: list[Tensor]) -> Tensor:
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[], object]]:
    """A function to call at each of so many steps, which a bar shows."""
    if not shown:
        yield lambda: None
        return
    with require("tqdm", "search").tqdm(total=total) as bar:
        yield bar.update
