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

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from drowsy.evaluation.metrics import Counts, rank
from drowsy.graph.overwriting import IN_PLACE, Live, asked_in_place, with_own_memory
from drowsy.images.checks import check_batch, check_images, check_labels
from drowsy.knob.schedule import Setting
from drowsy.network.layer import DrowsyConv2d
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
        """Where each layer first runs, and which tensors are still needed there."""
        self._nodes = [node for node in self.net.graph.nodes if node.target != "control"]
        index = {name: i for i, (name, _) in enumerate(self.layers)}
        self._layer_of = {
            node: index[node.target]
            for node in self._nodes
            if node.op == "call_module" and node.target in index
        }
        first: dict[int, int] = {}
        for place, node in enumerate(self._nodes):
            if node in self._layer_of:
                first.setdefault(self._layer_of[node], place)
        assert list(first) == sorted(first), "layers are numbered in order of execution"
        self._cuts = list(first.values())
        self._in_place = {node for node in self._nodes if self._overwrites(node)}
        self._last_use = {
            used: place for place, node in enumerate(self._nodes) for used in node.all_input_nodes
        }

    def _roots(self) -> list[Live]:
        """Live tensors at the first layer, by chunk; the layer's neurons all awake."""
        return [self._run({}, 0, self._cuts[0], i, ()) for i in range(len(self._chunks))]

    def _descend(
        self, depth: int, states: list[Live], settings: list[Setting]
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
                start, stop = self._cuts[depth] + 1, self._cuts[depth + 1]
                deeper.append(self._run(live, start, stop, chunk, group[0]))
            yield from self._descend(depth + 1, deeper, group)

    def _tail(self, depth: int, states: list[Live], setting: Setting) -> Tensor:
        """Logits of one setting from layer ``depth`` to the end."""
        start, stop = self._cuts[depth] + 1, len(self._nodes) - 1
        logits = []
        for chunk, live in enumerate(states):
            out = self._run(live, start, stop, chunk, setting)
            value = fx.map_arg(self._nodes[-1].args[0], out.__getitem__)
            if not isinstance(value, Tensor) or value.dim() != 2:
                raise TypeError(
                    f"model: its output is {type(value).__name__}, "
                    "allowed: one tensor of logits [N, classes]"
                )
            logits.append(value.float())
        return torch.cat(logits)

    def _run(self, live: Live, start: int, stop: int, chunk: int, prefix: Setting) -> Live:
        """Run nodes ``start`` to ``stop``; ``live`` is not changed.

        A layer whose rate is in ``prefix`` puts its neurons to sleep; the one at ``stop`` is run
        with all of them awake.
        """
        live = dict(live)
        if start > 0:
            node = self._nodes[start - 1]
            live[node] = self._sleep(live[node], node, chunk, prefix)
            self._drop(live, start - 1)
        for place in range(start, min(stop + 1, len(self._nodes) - 1)):
            node = self._nodes[place]
            if node in self._in_place:
                # Live tensors are shared between branches of the walk, which must not see this.
                live = with_own_memory(live, live[node.all_input_nodes[0]])
            value = self._call(node, live, chunk)
            if place != stop and node in self._layer_of:
                value = self._sleep(value, node, chunk, prefix)
            live[node] = value
            self._drop(live, place)
        return live

    def _drop(self, live: Live, place: int) -> None:
        node = self._nodes[place]
        for used in (*node.all_input_nodes, node):
            if self._last_use.get(used, -1) <= place:
                live.pop(used, None)

    def _call(self, node: fx.Node, live: Live, chunk: int) -> Any:
        if node.op == "placeholder":
            images = self._chunks[chunk]
            # A chunk lies in the memory of all images.
            return images.clone() if self._in_place else images
        target: Any = node.target
        args: Any = fx.map_arg(node.args, live.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, live.__getitem__)
        if node.op == "get_attr":
            return operator.attrgetter(target)(self.net)
        if node.op == "call_module":
            module = self.net.get_submodule(target)
            if isinstance(module, DrowsyConv2d):
                return module.awake(*args, **kwargs)
            return module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    def _overwrites(self, node: fx.Node) -> bool:
        """Whether a node writes its result over its first argument."""
        if not node.all_input_nodes:
            return False
        if node.op == "call_module":
            return bool(getattr(self.net.get_submodule(str(node.target)), "inplace", False))
        if node.op == "call_function" and node.target in IN_PLACE:
            return True
        name = str(getattr(node.target, "__name__", node.target))
        return (name.endswith("_") and not name.endswith("__")) or asked_in_place(node)

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
        baseline = self._baseline
        divergence = F.kl_div(
            logits.log_softmax(1), baseline.log_softmax(1), reduction="sum", log_target=True
        )
        top1 = top5 = None
        if self.labels is not None:
            low, high = self.labels.aminmax()
            if low < 0 or high >= logits.shape[1]:
                raise ValueError(
                    f"labels: got {int(low)} to {int(high)}, allowed: 0 to {logits.shape[1] - 1}, "
                    "the network's classes"
                )
            place = rank(logits, self.labels.to(logits.device))
            top1, top5 = int((place < 1).sum()), int((place < 5).sum())
        agree = int((rank(logits, baseline.argmax(1)) < 1).sum())
        return Counts(len(logits), top1, top5, agree, float(divergence))
