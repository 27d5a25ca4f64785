"""Settings as a tree, one level a layer: what they share is computed once.

The tensors that flow into a layer depend only on the rates before it, and a layer's outputs before
sleep do not depend on its own rate either. So the walk keeps, at each branching, the network's live
tensors for every image, and a setting costs its changed tail: for ``k`` rates and ``n`` layers in a
chain, layer ``i`` is convolved ``k**(i - 1)`` times instead of ``k**n``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from drowsy.evaluation.outputs import joined
from drowsy.graph.overwriting import Apart, over
from drowsy.graph.running import Values
from drowsy.knob.schedule import Setting
from drowsy.network.net import DrowsyNet
from drowsy.neuron import sleep
from drowsy.sleep import SleepSpec, levels, scale


class Tree:
    """A network with a graph, and chunks of images: outputs of many settings.

    Args:
        net: its own rates do not matter and are not changed.
        chunks: images ``[N, C, H, W]``, each with the index of its first.
        seed: of the sleep maps.
        map_cache: bytes of level maps to keep.
        take: ``(output, images)`` -> a chunk's output as it is wanted, so that chunks can be joined
            (``drowsy.evaluation.outputs``).

    Attributes:
        maps: the level maps kept, by how they are drawn, their shape and their chunk.
    """

    def __init__(
        self,
        net: DrowsyNet,
        chunks: Sequence[tuple[int, Tensor]],
        seed: int,
        map_cache: int,
        take: Callable[[Any, Tensor], Any],
    ) -> None:
        self._take = take
        self._layers, self._chunks, self._seed = list(net.layers.values()), chunks, seed
        self.maps: dict[tuple[SleepSpec, torch.Size, int], Tensor] = {}
        self._room = map_cache
        self._details = [net.detail_of(images) for _, images in chunks]
        self._executor = Apart(net)
        *nodes, self._output = self._executor.nodes
        index = {name: i for i, name in enumerate(net.layers)}
        self._layer_of = {
            node: index[str(node.target)]
            for node in nodes
            if node.op == "call_module" and node.target in index
        }
        # Cut at each layer's first call: one stretch up to each, and one to the end.
        first: dict[int, fx.Node] = {}
        self._stretches: list[list[fx.Node]] = [[]]
        for node in nodes:
            self._stretches[-1].append(node)
            layer = self._layer_of.get(node)
            if layer is not None and layer not in first:
                first[layer] = node
                self._stretches.append([])
        # The layers that run, in order of execution.
        self._order, self._first_calls = list(first), list(first.values())

    def walk(self, settings: Sequence[Setting]) -> Iterator[tuple[Setting, Any]]:
        """Outputs of settings, which are sorted and each there once, as soon as they are known."""
        yield from self._descend(0, self._roots(), settings)

    # --- the walk -----------------------------------------------------------------------------

    def _roots(self) -> list[Values]:
        """Live tensors at the first layer, by chunk; the layer's neurons all awake."""
        states = []
        for chunk, (_, images) in enumerate(self._chunks):
            live = self._executor.start(images)
            self._advance(0, live, chunk, ())
            states.append(live)
        return states

    def _descend(
        self, depth: int, states: list[Values], settings: Sequence[Setting]
    ) -> Iterator[tuple[Setting, Any]]:
        """Outputs of settings that agree before the ``depth``-th layer that runs.

        Its awake outputs are known.
        """
        if depth == len(self._order):  # they differ in layers that do not run
            outputs = self._tail(depth, states, settings[0])
            yield from ((setting, outputs) for setting in settings)
            return
        groups: dict[int, list[Setting]] = {}
        for setting in settings:
            groups.setdefault(setting[self._order[depth]], []).append(setting)
        ordered = sorted(groups.values(), key=len)
        for group in ordered:
            if len(group) == 1:
                yield group[0], self._tail(depth, states, group[0])
                continue
            deeper = []
            for chunk, live in enumerate(states):
                # The largest group goes last; its tensors replace these, chunk by chunk.
                if group is ordered[-1]:
                    states[chunk] = {}
                live = dict(live)
                self._fall_asleep(depth, live, chunk, group[0])
                self._advance(depth + 1, live, chunk, group[0])
                deeper.append(live)
            yield from self._descend(depth + 1, deeper, group)

    def _tail(self, depth: int, states: list[Values], setting: Setting) -> Any:
        """Outputs of one setting from the ``depth``-th layer that runs to the end."""
        outputs = []
        for chunk, live in enumerate(states):
            live = dict(live)
            for place in range(depth, len(self._order)):
                self._fall_asleep(place, live, chunk, setting)
                self._advance(place + 1, live, chunk, setting)
            output = self._executor.compute(self._output, live)
            outputs.append(self._take(output, self._chunks[chunk][1]))
        return joined(outputs)

    # --- layers -------------------------------------------------------------------------------

    def _fall_asleep(self, place: int, live: Values, chunk: int, setting: Setting) -> None:
        """Put the neurons of a layer, all awake at its first call so far, to sleep at its rate."""
        call = self._first_calls[place]
        if call in live:  # else nothing reads it
            live[call] = self._sleep(live[call], call, chunk, setting)

    def _advance(self, stretch: int, live: Values, chunk: int, setting: Setting) -> None:
        """Run a stretch. The layer at its end stays awake; what is called again in it sleeps."""
        for node in self._stretches[stretch]:
            live[node] = self._executor.compute(node, live)
            if node in self._layer_of and node not in self._first_calls:
                live[node] = self._sleep(live[node], node, chunk, setting)
            self._executor.drop(node, live)

    def _sleep(self, y: Tensor, call: fx.Node, chunk: int, setting: Setting) -> Tensor:
        """The outputs of one call of a layer, its neurons all awake so far, at its rate."""
        index = self._layer_of[call]
        j, layer = setting[index], self._layers[index]
        if j == 0:
            return y
        if y.dim() == 3:  # one image without a batch, as a layer takes it too
            return self._sleep(y[None], call, chunk, setting)[0]
        factor = scale(j, layer.sleep.k, layer.fill)
        # The many small operations of a map and a fill are a quarter faster in inference mode.
        with torch.inference_mode():
            drawn = self._levels(layer.sleep, y, chunk)
            slept = sleep(y, drawn, j, factor, layer.sleep.grain, layer.fill, layer.table)
        # The executor must see who writes to it, which no tensor of inference mode tells.
        return over(slept.untyped_storage(), slept)

    def _levels(self, spec: SleepSpec, y: Tensor, chunk: int) -> Tensor:
        """The level map of outputs ``[N, C, OH, OW]``; calls of one layer may differ in size."""
        key = (spec, y.shape, chunk)
        drawn = self.maps.get(key)
        if drawn is None:
            n, channels, height, width = y.shape
            clock = torch.tensor([self._seed, self._chunks[chunk][0]], device=y.device)
            detail = self._details[chunk]
            drawn = levels(spec, (n, channels, height, width), clock, detail)
            if drawn.numel() <= self._room:
                self.maps[key] = drawn
                self._room -= drawn.numel()
        return drawn
