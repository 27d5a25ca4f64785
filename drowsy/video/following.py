"""What a program was made of, and whether the network still is that."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from drowsy.knob.control import Control
from drowsy.network.kept import Kept
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.video.program import Program

_FORM = ("_modules", "_forward_hooks", "_forward_pre_hooks")


class MadeOf:
    """What the present program of a network depends on, in a form that is quickly compared.

    Of every module its children and hooks, and its tensors and other attributes, but where it runs
    behind all maps: those are read in every frame. Of layers, which change some at every call, the
    parameters, what they count themselves and a forward of their own; of their knob nothing.
    """

    def __init__(self, net: DrowsyNet, program: Program) -> None:
        self._net, self._layers = net, list(net.layers.values())
        behind = {id(each) for module in program.behind_maps() for each in module.modules()}
        modules = {id(module): module for module in net.parts.values()}
        places: list[dict[Any, Any]] = []
        for module in modules.values():
            kept = vars(module)
            places += (kept[name] for name in _FORM)
            if id(module) not in behind or isinstance(module, DrowsyConv2d):
                places.append(kept["_parameters"])
                if not isinstance(module, DrowsyConv2d | Control):
                    places += (kept, kept["_buffers"])
        self._kept = Kept(places)
        self._tensors = [each for each in self._kept.things if isinstance(each, Tensor)]
        self._versioned = [each for each in self._tensors if not each.is_inference()]
        self._marks = self._marks_now()

    def holds(self) -> bool:
        """Whether all of it is as it was."""
        return self._kept.holds() and self._marks_now() == self._marks

    def _marks_now(self) -> tuple[Any, ...]:
        """What tells whether things are what they were, being the same."""
        return (
            self._net.known,
            [(each.laid, each.written, vars(each).get("forward")) for each in self._layers],
            [each.data_ptr() for each in self._tensors],
            [each._version for each in self._versioned],
        )
