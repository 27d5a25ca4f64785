"""A network that runs as it does, while its layers do what a caller says."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from drowsy.knob.uncompiled import uncompiled
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet

Forward = Callable[[str, DrowsyConv2d, Tensor], Tensor]
"""What a layer does with its input: its name, the layer, the input -> its output."""


@contextmanager
def layers_doing(net: DrowsyNet, forward: Forward) -> Iterator[None]:
    """Let a network's layers do something else for a while; its clock then is as it was."""

    def called(name: str, layer: DrowsyConv2d, input: Tensor) -> Tensor:
        return forward(name, layer, input)

    clock = net.control.clock.clone()
    try:
        for name, layer in net.layers.items():
            layer.compute = functools.partial(called, name, layer)  # type: ignore[method-assign]
        with uncompiled(net):
            yield
    finally:
        for layer in net.layers.values():
            if "compute" in vars(layer):
                del layer.compute
        net.control.clock.copy_(clock)
