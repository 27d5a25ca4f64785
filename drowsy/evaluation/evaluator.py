"""Measure accuracy at many settings, computing what they share once.

Settings are walked as a tree, one level a layer. The tensors that flow into a layer depend only on
the rates before it, and a layer's outputs before sleep do not depend on its own rate either. So the
walk keeps, at each branching, the network's live tensors for every image, and a setting costs its
changed tail: for ``k`` rates and ``n`` layers in a chain, layer ``i`` is convolved ``k**(i - 1)``
times instead of ``k**n``.

Sleep maps come from ``drowsy.sleep`` (the torch backend) with the image's place in the data set as
its index, so that results do not depend on the split into batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx

from drowsy.evaluation.classification import CLASSIFICATION
from drowsy.evaluation.metrics import Counts
from drowsy.graph.overwriting import give_own_memory, overwriting
from drowsy.graph.running import Executor, Values
from drowsy.images.checks import check_batch, check_images, check_labels
from drowsy.knob.schedule import Setting
from drowsy.network.net import DrowsyNet, check_network
from drowsy.neuron import sleep
from drowsy.sleep import levels, scale

MAP_CACHE = 6 << 30  # bytes


class Evaluator:
    """A network, images, and one seed of sleep maps.

    Args:
        net: a converted network; its own rates do not matter and are not changed. A correction in
            force (``drowsy.calibrate``) holds at every setting but rate 0.
        images: float ``[N, C, H, W]``, finite.
        labels: int64 ``[N]``, or None to measure only agreement and divergence.
        seed: of the sleep maps.
        batch: images per forward pass; does not change results beyond rounding.
        first: the first image's index, from which its sleep maps follow.
        baseline: logits ``[N, classes]`` that agreement and divergence compare with; None for the
            network's own at rate 0.
        map_cache: bytes of level maps to keep; maps beyond that are drawn again when needed.
    """

    def __init__(
        self,
        net: DrowsyNet,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int = 0,
        batch: int = 50,
        first: int = 0,
        baseline: Tensor | None = None,
        map_cache: int = MAP_CACHE,
    ) -> None:
        check_network(net)
        check_images(images)
        check_labels(labels, images)
        if baseline is not None and baseline.shape[:1] != images.shape[:1]:
            raise ValueError(
                f"baseline: got shape {tuple(baseline.shape)} for {len(images)} images, "
                f"allowed: ({len(images)}, classes)"
            )
        check_batch(batch)
        self.net, self.labels, self.seed = net, labels, seed
        self.layers = list(net.layers.items())
        self._chunks = images.split(batch)
        self._starts = [first + i * batch for i in range(len(self._chunks))]
        self._plan()
        self._maps: dict[tuple[int, int], Tensor] = {}
        self._room = map_cache
        self._baseline = baseline

    # --- public -------------------------------------------------------------------------------

    def evaluate(self, setting: Setting) -> Counts:
        """Counts at one setting."""
        return next(iter(self.walk([setting])))[1]

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Float32 ``[N, classes]`` with every neuron awake and nothing corrected."""
        with self.net.uncorrected():
            return self._tail(0, self._roots(), (0,) * len(self.layers))

    @torch.inference_mode()
    def walk(self, settings: Sequence[Setting]) -> Iterator[tuple[Setting, Counts]]:
        """Evaluate settings in the tree's order; yields each as soon as it is known."""
        k = self.net.k
        for setting in settings:
            if len(setting) != len(self.layers) or not all(0 <= j < k for j in setting):
                raise ValueError(
                    f"setting: got {setting}, allowed: {len(self.layers)} integers 0 to {k - 1}"
                )
        todo = sorted(set(settings))
        if todo and not any(todo[0]) and self.net.corrected:
            yield todo[0], self._count(todo.pop(0), self.logits())
        if not todo:
            return
        if self._baseline is None and any(any(setting) for setting in todo):
            self._baseline = self.logits()
        for setting, logits in self._descend(0, self._roots(), todo):
            yield setting, self._count(setting, logits)

    # --- the graph ----------------------------------------------------------------------------

    def _plan(self) -> None:
        """Cut the graph at each layer's first call: one stretch up to each, and one to the end."""
        self._executor = Executor(self.net)
        *nodes, self._output = self._executor.nodes
        index = {name: i for i, (name, _) in enumerate(self.layers)}
        self._layer_of = {
            node: index[node.target]
            for node in nodes
            if node.op == "call_module" and node.target in index
        }
        self._first_calls: list[fx.Node] = []
        self._stretches: list[list[fx.Node]] = [[]]
        for node in nodes:
            self._stretches[-1].append(node)
            if self._layer_of.get(node) == len(self._first_calls):
                self._first_calls.append(node)
                self._stretches.append([])
        assert len(self._first_calls) == len(self.layers), (
            "layers are numbered in order of execution"
        )
        modules = self.net.parts
        found = {node: overwriting(node, modules) for node in nodes}
        self._overwritten = {node: each.overwritten for node, each in found.items() if each}

    def _roots(self) -> list[Values]:
        """Live tensors at the first layer, by chunk; the layer's neurons all awake."""
        states = []
        for chunk, images in enumerate(self._chunks):
            # A chunk lies in the memory of all images.
            live = self._executor.start(images.clone() if self._overwritten else images)
            self._advance(0, live, chunk, ())
            states.append(live)
        return states

    def _descend(
        self, depth: int, states: list[Values], settings: list[Setting]
    ) -> Iterator[tuple[Setting, Tensor]]:
        """Logits of settings that agree before layer ``depth``, whose awake outputs are known."""
        groups: dict[int, list[Setting]] = {}
        for setting in settings:
            groups.setdefault(setting[depth], []).append(setting)
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

    def _tail(self, depth: int, states: list[Values], setting: Setting) -> Tensor:
        """Logits of one setting from layer ``depth`` to the end."""
        logits = []
        for chunk, live in enumerate(states):
            live = dict(live)
            for layer in range(depth, len(self.layers)):
                self._fall_asleep(layer, live, chunk, setting)
                self._advance(layer + 1, live, chunk, setting)
            value = self._executor.compute(self._output, live)
            if not isinstance(value, Tensor) or value.dim() != 2:
                raise TypeError(
                    f"model: its output is {type(value).__name__}, "
                    "allowed: one tensor of logits [N, classes]"
                )
            logits.append(value.float())
        return torch.cat(logits)

    def _fall_asleep(self, layer: int, live: Values, chunk: int, setting: Setting) -> None:
        """Put the neurons of a layer, all awake at its first call so far, to sleep at its rate."""
        call = self._first_calls[layer]
        if call in self._executor.last_reader:  # else it is forgotten already
            live[call] = self._sleep(live[call], call, chunk, setting)

    def _advance(self, stretch: int, live: Values, chunk: int, setting: Setting) -> None:
        """Run a stretch. The layer at its end stays awake; what is called again in it sleeps."""
        for node in self._stretches[stretch]:
            if node in self._overwritten:
                # Live tensors are shared between branches of the walk, which must not see this.
                give_own_memory(live, self._overwritten[node])
            live[node] = self._executor.compute(node, live)
            if node in self._layer_of and node not in self._first_calls:
                live[node] = self._sleep(live[node], node, chunk, setting)
            self._executor.drop(node, live)

    def _sleep(self, y: Tensor, node: fx.Node, chunk: int, setting: Setting) -> Tensor:
        index = self._layer_of[node]
        j = setting[index]
        if j == 0:
            return y
        layer = self.layers[index][1]
        drawn = self._maps.get((index, chunk))
        if drawn is None:
            clock = torch.tensor([self.seed, self._starts[chunk]], device=y.device)
            n, channels, height, width = y.shape
            drawn = levels(layer.sleep, (n, channels, height, width), clock)
            if drawn.numel() <= self._room:
                self._maps[index, chunk] = drawn
                self._room -= drawn.numel()
        factor = scale(j, layer.sleep.k, layer.fill)
        return sleep(y, drawn, j, factor, layer.sleep.grain, layer.fill, layer.table)

    # --- counting -----------------------------------------------------------------------------

    def _count(self, setting: Setting, logits: Tensor) -> Counts:
        if self._baseline is None:
            self._baseline = logits
        return CLASSIFICATION.count(logits, self._baseline, self.labels)
