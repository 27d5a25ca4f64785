"""A network as torch's own modules compute it while nobody sleeps."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
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
        keeps something from call to call, which the two would then keep apart; where it looks at a
        norm that is folded, or computes anything but the model does; on CUDA, where a layer may be
        faster by a kernel of its own than by cuDNN.
    """
    if net.graph is None or example.is_cuda:
        return None
    with net.kept():
        net.set(0)
        if net.corrected:
            return None
        swaps = _folded(net)
    # Tried on copies: what the code writes to is written to there.
    tried, model = (copied(net.original, each, own_state=True) for each in (swaps, {}))
    before = _state(tried, set())
    try:
        with torch.inference_mode():
            output, expected = tried(example), model(example)
            different = disagreement(output, expected, lambda rounded: model(rounded(example)))
    except Exception:  # whatever code raises that misses a norm
        return None
    return None if different or _state(tried, set()) != before else copied(net.original, swaps)


def _state(value: Any, seen: set[int]) -> Any:
    """All that a module holds, in whatever it holds it, as something to compare."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    if id(value) in seen:
        return id(value)
    seen.add(id(value))
    if isinstance(value, Tensor):
        # Tensors of inference mode do not count how often they are written to.
        return id(value), 0 if value.is_inference() else value._version
    if isinstance(value, Mapping):
        return id(value), tuple((_state(k, seen), _state(v, seen)) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return id(value), tuple(_state(each, seen) for each in value)
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return id(value)
    return id(value), _state(vars(value), seen)[1]


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
    weight, bias = layer.uncorrected_parameters()
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
