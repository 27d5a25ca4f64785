"""A network as torch's own modules compute it while nobody sleeps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from drowsy.graph.agreement import disagreement
from drowsy.graph.tree import copied
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet


def dense(net: DrowsyNet, example: Tensor) -> nn.Module | None:
    """The model that ``net`` was made from, batch norms folded, of torch's own modules.

    Its convolutions ask nothing before they compute, which small ones notice. It shares its tensors
    with ``net`` and does not follow it: for a network that nobody changes.

    Args:
        net: stays as it is.
        example: an image ``[1, C, H, W]``, of the network's dtype and device.

    Returns:
        None where the network has no graph, so that little is known of its code; where this code
        keeps something from call to call, which the two would then keep apart; where it computes
        anything but this; on CUDA, where a layer may be faster by a kernel of its own than by
        cuDNN.
    """
    if net.graph is None or example.is_cuda:
        return None
    with net.kept(), torch.inference_mode():
        net.set(0)
        if net.corrected:
            return None
        found = copied(net.original, _folded(net))
        before, output = _kept(found), net(example)
        expected = found(example)
        if _kept(found) != before:
            return None
        different = disagreement(output, expected, lambda rounded: found(rounded(example)))
    return None if different else found


def _kept(model: nn.Module) -> list[tuple[str, int, int]]:
    """All that modules hold, with how often tensors have been written to."""
    return [
        (name, id(value), _version(value))
        for module in model.modules()
        for held in (vars(module), module._buffers)
        for name, value in held.items()
    ]


def _version(value: Any) -> int:
    # Tensors of inference mode do not count.
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _folded(net: DrowsyNet) -> dict[int, nn.Module]:
    """What comes in the place of convolutions and norms, by the ``id`` of these."""
    norms = Counter(line.norm for line in net.report)
    swaps: dict[int, nn.Module] = {}
    for line in net.report:
        if line.norm is None or norms[line.norm] > 1:
            continue
        conv = net.original.get_submodule(line.name)
        norm = net.original.get_submodule(line.norm)
        if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
            swaps[id(conv)] = _convolution(conv, net.layers[line.name])
            swaps[id(norm)] = nn.Identity()
    return swaps


def _convolution(conv: nn.Conv2d, layer: DrowsyConv2d) -> nn.Conv2d:
    """A convolution with the weights that a layer has folded."""
    weight, bias = layer.parameters_in_effect()
    made = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        bias is not None,
        conv.padding_mode,
        device="meta",
    )
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made.eval()
