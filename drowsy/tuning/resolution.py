"""Smaller images as a rival: which size saves how much, for networks that take one size too."""

from __future__ import annotations

import bisect
import copy
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import nn

from drowsy.graph.running import shapes
from drowsy.images.scaling import Size
from drowsy.knob.costs import layer_costs, network_cost
from drowsy.network.net import DrowsyNet

# Pixels; what strides and joins of maps ask for.
_STEPS = (1, 8, 16, 32)


def resolution_for(saving: float, multiplies: Callable[[Size], int], full: Size) -> Size | None:
    """The largest size, of the shape of ``full``, that saves at least ``saving``; else None.

    To the pixel: where strides round sizes, a step of 8 would cost the rival up to ten points.
    Networks that join maps of several resolutions take only some sizes: of these, one in whole
    steps of 8, 16 or 32.

    Args:
        saving: fraction of the multiplications, 0 to 1.
        multiplies: of all convolutions for one image of a size; must not fall as the size grows.
            RuntimeError: a kernel is larger than what is left of the image.
        full: ``(H, W)`` of the unscaled image.
    """
    allowed = (1 - saving) * multiplies(full)
    found = (_largest(allowed, multiplies, full, step) for step in _STEPS)
    return next((size for size in found if size is not None), None)


def shadow(net: DrowsyNet, image: tuple[int, int, int]) -> nn.Module:
    """What tells shapes and costs without memory or time, or the network where it cannot.

    Tensors that are neither parameters nor buffers stay where they are.
    """
    made = copy.deepcopy(net).to("meta")
    try:
        network_cost(made, image)
    except RuntimeError:
        return net
    return made


def _largest(
    allowed: float, multiplies: Callable[[Size], int], full: Size, step: int
) -> Size | None:
    """The largest size in whole steps that is allowed; None if the network does not take it."""
    short = min(full)

    def size(side: int) -> Size:
        height, width = (max(round(length * side / short / step), 1) * step for length in full)
        return height, width

    def too_much(side: int) -> bool:
        try:
            return multiplies(size(side)) > allowed
        except RuntimeError:
            return False

    sides = range(step, short + 1, step)
    # Of those that save enough the last.
    place = bisect.bisect_left(sides, True, key=too_much) - 1
    if place < 0:
        return None
    try:
        return size(sides[place]) if multiplies(size(sides[place])) <= allowed else None
    except RuntimeError:
        return None


def fit_flatten(net: DrowsyNet, image: Sequence[int]) -> list[str]:
    """Let a network whose flatten takes features of one size take smaller images too, in place.

    Features are scaled (bilinearly) to the size that the linear layer was trained with; at the
    trained size that changes nothing. A network that takes smaller images as it is stays as it is,
    and so does one without a graph.

    Args:
        net: a converted network.
        image: ``(C, H, W)`` that it was trained with.

    Returns:
        Names of the graph's nodes whose features are scaled.
    """
    channels, height, width = image
    try:
        # On the meta device, where only shapes are computed.
        layer_costs(copy.deepcopy(net).to("meta"), (channels, -(-height // 2), -(-width // 2)))
        return []
    except RuntimeError:
        fitted = []
    if net.graph is None:
        # Nothing can be put between its nodes, and the meta device may not know its branches: it
        # takes the sizes that it takes.
        return []
    graph = net.graph
    trained = shapes(net, next(net.parameters()).new_zeros(1, *image))
    for node in list(graph.nodes):
        if len(node.all_input_nodes) != 1:
            continue
        (features,) = node.all_input_nodes
        before, after = trained.get(features, ()), trained.get(node, ())
        if len(before) == 4 and len(after) == 2 and before.numel() == after.numel():
            with graph.inserting_before(node):
                size = tuple(before[-2:])
                scaled = graph.call_function(
                    F.interpolate, (features,), {"size": size, "mode": "bilinear"}
                )
            node.replace_input_with(features, scaled)
            fitted.append(features.name)
    if fitted:
        net.rewrite_graph(graph)
    return fitted
