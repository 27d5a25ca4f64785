"""Corrections of a network with a graph: it runs awake and asleep side by side, node by node."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx

from drowsy._optional import require
from drowsy.correction.layerwise import Call, chunk_size
from drowsy.graph.running import Executor
from drowsy.network.calibration import Correction
from drowsy.network.net import DrowsyNet

_ADDITIONS = (operator.add, operator.iadd, torch.add)


class _Lane:
    """A run of the network over all images, one node at a time."""

    def __init__(self, executor: Executor, chunks: Sequence[Tensor]) -> None:
        self._executor = executor
        self._states = [executor.start(images.clone()) for images in chunks]

    def step(self, node: fx.Node) -> None:
        for state in self._states:
            state[node] = self._executor.compute(node, state)

    def values(self, node: fx.Node) -> list[Tensor]:
        return [state[node] for state in self._states]

    def put(self, node: fx.Node, chunk: int, value: Tensor) -> None:
        self._states[chunk][node] = value

    def has(self, node: fx.Node) -> bool:
        return node in self._states[0]

    def drop(self, node: fx.Node) -> None:
        for state in self._states:
            self._executor.drop(node, state)


@torch.no_grad()
def corrections_by_graph(
    net: DrowsyNet, images: Tensor, reconstruct: bool, seed: int, batch: int, progress: bool
) -> dict[str, Correction]:
    """Corrections at the setting in force, which the network computes without any so far."""
    size = chunk_size(len(images), batch)
    chunks, starts = images.split(size), range(0, len(images), size)
    layers, thresholds, detail = net.layers, net.control.settings, net.detail_of(images)
    executor = Executor(net)
    awake, drowsy = _Lane(executor, chunks), _Lane(executor, chunks)
    found: dict[str, Correction | None] = {}
    bar = require("tqdm", "search").tqdm if progress else iter
    for node in bar(executor.nodes):
        name = str(node.target)
        if node.op != "call_module" or name not in layers:
            awake.step(node)
            drowsy.step(node)
        else:
            (source,) = node.all_input_nodes
            given, inputs = awake.values(source), drowsy.values(source)
            threshold, about = thresholds[layers[name].index], (name, layers[name])
            clean = Call.of(
                *about,
                threshold,
                given,
                starts=starts,
                images=len(images),
                seed=seed,
                detail=detail,
            )
            call = clean.on(inputs)
            if name not in found:
                found[name] = None
                if call is not clean:
                    targets = _targets(node, clean, awake, drowsy)
                    found[name] = call.correct(clean.wanted(targets, reconstruct))
            elif (known := found[name]) is not None:
                # The network has one correction for all calls of a layer.
                call = dataclasses.replace(call)
                call.apply(known)
            _go_on(node, clean, call, awake, drowsy)
        for lane in (awake, drowsy):
            lane.drop(node)
    return {name: each for name, each in found.items() if each is not None}


def _go_on(node: fx.Node, clean: Call, call: Call, awake: _Lane, drowsy: _Lane) -> None:
    """Let both runs go on with a layer's outputs; the drowsy one with its sleep."""
    for chunk in range(len(clean.sums)):
        y = clean.output(chunk)
        awake.put(node, chunk, y)
        slept = call.asleep(chunk, y if call is clean else call.output(chunk))
        # What one of the runs overwrites the other must not see.
        drowsy.put(node, chunk, slept.clone() if slept is y else slept)


def _targets(node: fx.Node, clean: Call, awake: _Lane, drowsy: _Lane) -> Iterator[Tensor]:
    """What each chunk's drowsy pre-activations should be."""
    other = _summand(node, clean)
    for chunk, wanted in enumerate(clean.sums):
        if other is not None and awake.has(other):
            lost = awake.values(other)[chunk] - drowsy.values(other)[chunk]
            # What is broadcast over positions cannot be made up for at one of them.
            if lost.shape == wanted.shape:
                wanted = wanted + lost.float()
        yield wanted


def _summand(node: fx.Node, call: Call) -> fx.Node | None:
    """What is added to a layer's output, where that is all that becomes of it."""
    users = list(node.users)
    if call.layer.activation != "none" or len(users) != 1:
        return None
    (user,) = users
    if user.op != "call_function" or user.target not in _ADDITIONS or user.kwargs:
        return None
    others = [arg for arg in user.args if arg is not node]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None
