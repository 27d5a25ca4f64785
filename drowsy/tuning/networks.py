"""Networks as recipes want them, in any number format."""

from __future__ import annotations

import copy

import torch
from torch import nn

from drowsy.graph.convert import convert
from drowsy.graph.stages import align
from drowsy.network.net import DrowsyNet
from drowsy.tuning.recipe import Sleep
from drowsy.tuning.resolution import fit_flatten

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def made(
    model: nn.Module,
    example: torch.Tensor,
    recipe: Sleep,
    number_format: str | None = None,
    *,
    verify: bool = True,
) -> tuple[DrowsyNet, list[str]]:
    """A copy of a model as a recipe wants it, and the nodes whose features are scaled in it.

    Tables of stencils, which need images, are not made: where the recipe fills by them, the fill is
    what ``convert`` chooses.

    Args:
        model: shares nothing with the network, which may be in another format.
        example: an image ``[1, C, H, W]`` at full resolution, which decides what rests; of the
            model's dtype and device.
        recipe: its rates and correction do not matter.
        number_format: None for the model's own.
        verify: compare the network with the model.
    """
    net = convert(
        copy.deepcopy(model),
        example,
        source=recipe.source,
        grain=recipe.grain,
        k=recipe.k,
        fill="auto" if recipe.fill == "stencil" else recipe.fill,
        skip=recipe.skip,
        verify=verify,
    )
    fitted = fit_flatten(net, example.shape[1:])
    if recipe.aligned:
        align(net, example, grain=recipe.grain)
    if number_format is not None:
        # Batch norms stay folded in the model's own format.
        net.to(dtype=DTYPES[number_format])
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net, fitted
