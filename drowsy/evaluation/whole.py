"""Networks that have no graph: the network itself runs, from its first layer, at every setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from drowsy.evaluation.outputs import joined
from drowsy.knob.schedule import Setting
from drowsy.knob.uncompiled import uncompiled
from drowsy.network.net import DrowsyNet
from drowsy.sleep import scale


class Whole:
    """A network, and chunks of images: outputs of settings that share no work.

    Args: as for ``Tree``.
    """

    def __init__(
        self,
        net: DrowsyNet,
        chunks: Sequence[tuple[int, Tensor]],
        seed: int,
        take: Callable[[Any, Tensor], Any],
    ) -> None:
        self._net, self._chunks, self._seed, self._take = net, chunks, seed, take

    def walk(self, settings: Sequence[Setting]) -> Iterator[tuple[Setting, Any]]:
        """Outputs of settings, in their order."""
        for setting in settings:
            yield setting, self._outputs(setting)

    def _outputs(self, setting: Setting) -> Any:
        net, outputs = self._net, []
        layers = net.layers.values()
        scales = [scale(j, net.k, layer.fill) for j, layer in zip(setting, layers, strict=True)]
        with _lent(net):
            net.control.set(setting, scales)
            for first, images in self._chunks:
                net.reseed(self._seed, first)
                # A network may overwrite its input, which lies in the memory of all images.
                outputs.append(self._take(net(images.clone()), images))
        return joined(outputs)


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
        with uncompiled(net):
            yield
    finally:
        for layer, backend in zip(layers, backends, strict=True):
            layer.backend = backend
        control.set(settings, scales)
        control.clock.copy_(clock)
