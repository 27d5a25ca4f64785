"""Fewer channels as a rival: those of lowest L1 norm are dropped, without retraining."""

from __future__ import annotations

import bisect
import copy
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from drowsy.graph.running import Executor, shapes
from drowsy.knob.costs import layer_costs
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet

# Widths tried by ``slim_to``: multiples of 1/64 of each layer's channels.
_WIDTHS = 64


def slim_to(net: DrowsyNet, image: Sequence[int], saving: float) -> tuple[DrowsyNet, float] | None:
    """The widest slimmed copy of a network that saves at least ``saving``, and what it saves.

    Every layer that another layer reads loses the same share of its channels: those whose weights
    have the lowest L1 norms (Li et al., "Pruning filters for efficient ConvNets", ICLR 2017; with
    batch norms folded in, the norms choose worse). A removed channel outputs 0, and what reads it
    multiplies by it no more, which counts as saved too. None where no width saves that much.

    Args:
        net: a converted network; stays as it was.
        image: ``(C, H, W)``.
        saving: fraction of the convolution multiplications, 0 to 1.
    """
    net.need_graph("compare (dropping channels)")
    total = sum(cost.multiplies for cost in layer_costs(net, image))
    sizes = shapes(net, next(net.parameters()).new_zeros(1, *image))

    def saved(width: int) -> float:
        return 1 - _multiplies(net, sizes, _kept(net, width / _WIDTHS)) / total

    width = bisect.bisect_left(range(_WIDTHS), saving, key=saved)
    if width == _WIDTHS:
        return None
    slim = copy.deepcopy(net)
    for name, kept in _kept(net, width / _WIDTHS).items():
        _silence(slim.layers[name], ~kept)
    return slim, saved(width)


def _kept(net: DrowsyNet, share: float) -> dict[str, Tensor]:
    """Which channels stay, by layer, when each loses ``share`` of its own."""
    kept = {}
    for name in _read_by_layers(net):
        norms = net.layers[name].weight.detach().abs().sum((1, 2, 3), dtype=torch.float32)
        kept[name] = torch.ones(len(norms), dtype=torch.bool)
        kept[name][norms.argsort(stable=True)[: int(share * len(norms))].cpu()] = False
    return kept


def _read_by_layers(net: DrowsyNet) -> list[str]:
    """Layers whose outputs a convolution or linear layer reads; the others give the logits."""
    modules = net.parts

    def weighs(node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(modules[str(node.target)], (nn.Conv2d, nn.Linear))
        return node.target is F.linear

    read: dict[fx.Node, bool] = {}
    nodes = net.need_graph("compare (dropping channels)").nodes
    for node in reversed(nodes):
        read[node] = any(weighs(user) or read[user] for user in node.users)
    return [name for name in net.layers if all(read[node] for node in nodes if node.target == name)]


def _silence(layer: DrowsyConv2d, removed: Tensor) -> None:
    """Set what these channels compute before the activation to 0."""
    removed = removed.to(layer.weight.device)
    tensors = [layer.weight, layer.bias, *layer.parameters_in_effect()]
    if layer.norm is not None:
        tensors += [layer.norm.bias, layer.norm.running_mean]
    with torch.no_grad():
        for tensor in tensors:
            if tensor is not None:
                tensor[removed] = 0


def _multiplies(
    net: DrowsyNet, sizes: Mapping[fx.Node, torch.Size], kept: Mapping[str, Tensor]
) -> int:
    """Multiplications by inputs that can differ from 0, for the outputs of channels that stay.

    The network runs on tensors of 1, with 0 where a channel is 0 whatever the image.
    """
    count = 0
    executor = Executor(net)
    image = next(size for node, size in sizes.items() if node.op == "placeholder")
    with torch.inference_mode():
        values = executor.start(next(net.parameters()).new_ones(image))
        for node in executor.nodes:
            name = str(node.target)
            module = net.known.value(name) if node.op == "call_module" else None
            if isinstance(module, nn.BatchNorm2d):
                values[node] = values[node.all_input_nodes[0]]
            elif isinstance(module, nn.Conv2d):
                x = values[node.all_input_nodes[0]]
                stay = kept[name].to(x) if name in kept else x.new_ones(module.out_channels)
                alive = (x != 0).any(3).any(2).any(0)
                # Each output of a group multiplies by each living input of the group.
                pairs = stay.view(module.groups, -1).sum(1) * alive.view(module.groups, -1).sum(1)
                positions = sizes[node][-2] * sizes[node][-1]
                kernel = module.kernel_size[0] * module.kernel_size[1]
                count += int(pairs.sum()) * kernel * positions
                values[node] = stay[None, :, None, None].expand(sizes[node]).contiguous()
            else:
                values[node] = executor.compute(node, values)
            executor.drop(node, values)
    return count
