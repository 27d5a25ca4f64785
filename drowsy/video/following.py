"""What a program was made of, and whether the network still is that."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor, nn

from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.video.program import Program

_FORM = ("_modules", "_forward_hooks", "_forward_pre_hooks")


class MadeOf:
    """What the present program of a network depends on, in a form that is quickly compared.

    Of every module its children and hooks, and its parameters, but where it runs behind all maps:
    those are read in every frame. Of torch's own modules without children, and of norms that layers
    have folded, also buffers and other attributes: the code of others may change them. Of layers
    also what they count themselves.
    """

    def __init__(self, net: DrowsyNet, program: Program) -> None:
        self._net, self._layers = net, list(net.layers.values())
        norms = [layer.norm for layer in self._layers if layer.norm is not None]
        inert = {id(each) for norm in norms for each in norm.modules()}
        behind = {id(each) for module in program.behind_maps() for each in module.modules()}
        modules = {id(module): module for module in net.parts.values()}
        places: list[dict[Any, Any]] = []
        for module in modules.values():
            kept = vars(module)
            places += (kept[name] for name in _FORM)
            if id(module) not in behind or isinstance(module, DrowsyConv2d):
                places.append(kept["_parameters"])
                if id(module) in inert or _is_inert(module):
                    places += (kept, kept["_buffers"])
        self._empty = [place for place in places if not place]
        self._filled = [place for place in places if place]
        # Held: nothing else can come to lie where they do.
        self._things = list(self._now())
        self._tensors = [each for each in self._things if isinstance(each, Tensor)]
        self._versioned = [each for each in self._tensors if not each.is_inference()]
        self._marks = self._marks_now()

    def holds(self) -> bool:
        """Whether all of it is as it was."""
        now = list(self._now())
        same = len(now) == len(self._things) and all(map(is_, now, self._things))
        return same and not any(self._empty) and self._marks_now() == self._marks

    def _now(self) -> Iterator[Any]:
        return chain.from_iterable(place.values() for place in self._filled)

    def _marks_now(self) -> tuple[Any, ...]:
        """What tells whether things are what they were, being the same."""
        return (
            self._net.known,
            [(layer.laid, layer.written) for layer in self._layers],
            [each.data_ptr() for each in self._tensors],
            [each._version for each in self._versioned],
        )


def _is_inert(module: nn.Module) -> bool:
    """Whether a module computes, and changes nothing in itself by that."""
    library = type(module).__module__.startswith("torch.nn.")
    return library and not module._modules and not isinstance(module, DrowsyConv2d)
