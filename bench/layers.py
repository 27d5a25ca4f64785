"""The convolutions that benchmarks run: every distinct shape of six networks.

    python -m bench.layers      # the list

Shapes come from the networks' definitions, by a pass on the ``meta`` device.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from drowsy_kernels.tuning import ConvShape
from torch import nn

from drowsy import models
from drowsy.files.tables import align
from drowsy.graph.inspection import layer_shapes

NETWORKS = ("caffenet", "vgg16", "resnet18", "resnet50", "squeezenet1_1", "mobilenet_v2")


@dataclass(frozen=True)
class Layer:
    """A convolution shape, and how often each network runs it for an image."""

    shape: ConvShape
    counts: dict[str, int]

    def __str__(self) -> str:
        return str(self.shape)


def network_shapes(network: str) -> Counter[ConvShape]:
    """Distinct shapes of a network in order of execution, and how many layers have each.

    Raises:
        ValueError: a network that is not one of ``NETWORKS``.
    """
    if network not in NETWORKS:
        raise ValueError(f"network: got {network!r}, allowed: {', '.join(NETWORKS)}")
    with torch.device("meta"):
        if network == "mobilenet_v2":
            model, side = _mobilenet_v2(), 224
        else:
            model, side = models.create(network), models.MODELS[network].preprocess.crop
    return Counter(shape for _, shape in layer_shapes(model, (3, side, side)))


def layers(*networks: str) -> list[Layer]:
    """Distinct shapes of these networks (by default of all), in order of first appearance."""
    found: dict[ConvShape, dict[str, int]] = {}
    for network in networks or NETWORKS:
        for shape, count in network_shapes(network).items():
            found.setdefault(shape, {})[network] = count
    return [Layer(shape, counts) for shape, counts in found.items()]


def _mobilenet_v2() -> nn.Module:
    """Convolutions of MobileNetV2 as a chain; shortcuts add outputs and change no shape.

    Source: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", CVPR 2018,
    Table 2: expansion, output channels, repeats, stride of the first.
    """
    table = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    channels = 32
    chain: list[nn.Module] = [nn.Conv2d(3, channels, 3, stride=2, padding=1)]
    for expansion, outputs, repeats, first_stride in table:
        for i in range(repeats):
            wide, stride = channels * expansion, first_stride if i == 0 else 1
            if expansion > 1:
                chain.append(nn.Conv2d(channels, wide, 1))
            chain.append(nn.Conv2d(wide, wide, 3, stride=stride, padding=1, groups=wide))
            chain.append(nn.Conv2d(wide, outputs, 1))
            channels = outputs
    chain.append(nn.Conv2d(channels, 1280, 1))
    return nn.Sequential(*chain).eval()


def main() -> None:
    """Print the list."""
    rows = [["shape", "M multiplies", *NETWORKS]]
    for layer in layers():
        counts = [str(layer.counts.get(network, "")) for network in NETWORKS]
        rows.append([str(layer), f"{layer.shape.multiplies / 1e6:.1f}", *counts])
    print(align(rows))


if __name__ == "__main__":
    main()
