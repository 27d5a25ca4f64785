"""Networks that have no graph: the network itself runs, from its first layer, at every setting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from drowsy.evaluation.classification import check_logits
from drowsy.knob.schedule import Setting
from drowsy.network.net import DrowsyNet
from drowsy.sleep import scale


class Whole:
    """A network, and chunks of images: logits of settings that share no work.

    Args: as for ``Tree``.
    """

    def __init__(self, net: DrowsyNet, chunks: Sequence[tuple[int, Tensor]], seed: int) -> None:
        self._net, self._chunks, self._seed = net, chunks, seed

    def walk(self, settings: Sequence[Setting]) -> Iterator[tuple[Setting, Tensor]]:
        """Logits of settings, in their order."""
        for setting in settings:
            yield setting, self._logits(setting)

    def _logits(self, setting: Setting) -> Tensor:
        net, logits = self._net, []
        layers = net.layers.values()
        scales = [scale(j, net.k, layer.fill) for j, layer in zip(setting, layers, strict=True)]
        with _lent(net):
            net.control.set(setting, scales)
            for first, images in self._chunks:
                net.reseed(self._seed, first)
                # A network may overwrite its input, which lies in the memory of all images.
                logits.append(check_logits(net(images.clone()), images))
        return torch.cat(logits)


@contextmanager
def _lent(net: DrowsyNet) -> Iterator[None]:
    """Let a block write the knob and run; rates, clock and backends are given back.

    Fills, maps and the corrections in force are not the block's to change: ``net.kept`` would write
    the corrections anew at every setting.
    """
    control, layers = net.control, net.layers.values()
    settings, scales, clock = control.settings, control.scales.tolist(), control.clock.clone()
    backends = [layer.backend for layer in layers]
    try:
        for layer in layers:
            layer.backend = "torch"
        yield
    finally:
        for layer, backend in zip(layers, backends, strict=True):
            layer.backend = backend
        control.set(settings, scales)
        control.clock.copy_(clock)
