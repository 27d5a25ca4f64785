"""Smaller images as a rival: which size saves how much, for networks that take one size too."""

from __future__ import annotations

import bisect
import copy
from collections.abc import Callable, Sequence

import torch.nn.functional as F

from drowsy.graph.running import shapes
from drowsy.images.scaling import Size
from drowsy.knob.costs import layer_costs
from drowsy.network.net import DrowsyNet


def resolution_for(saving: float, multiplies: Callable[[Size], int], full: Size) -> Size | None:
    """The largest size, of the shape of ``full``, that saves at least ``saving``; else None.

    To the pixel: where strides round sizes, a step of 8 would cost the rival up to ten points.

    Args:
        saving: fraction of the multiplications, 0 to 1.
        multiplies: of all convolutions for one image of a size; must not fall as the size grows.
            RuntimeError: a kernel is larger than what is left of the image.
        full: ``(H, W)`` of the unscaled image.
    """
    short = min(full)
    allowed = (1 - saving) * multiplies(full)

    def size(side: int) -> Size:
        height, width = (max(round(length * side / short), 1) for length in full)
        return height, width

    def too_much(side: int) -> bool:
        try:
            return multiplies(size(side)) > allowed
        except RuntimeError:
            return False

    # As many sides save enough as the largest that does is long.
    largest = bisect.bisect_left(range(1, short + 1), True, key=too_much)
    try:
        multiplies(size(largest))
    except RuntimeError:
        return None
    return size(largest)


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
