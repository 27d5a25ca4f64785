"""The CIFAR-10 ResNets of He et al. (2016), section 4.2: depth ``6n + 2``, without projections.

Shortcuts are option A, free of parameters. Parameter names are those of
``akamaster/pytorch_resnet_cifar10``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PaddedShortcut(nn.Module):
    """Option A: every second row and column, zero channels on both sides.

    ``[N, C, H, W]`` -> ``[N, C + 2 * extra, ceil(H / 2), ceil(W / 2)]``.
    """

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``[N, inputs, H, W]`` -> ``[N, width, H', W']``."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        stride = width // inputs
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = PaddedShortcut(width // 4) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output to its input."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """CIFAR ResNet of depth ``6 * blocks + 2``: ``[N, 3, 32, 32]`` -> logits ``[N, num_classes]``.

    Args:
        blocks: residual blocks in each of the three stages.
    """

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks)
        self.layer2 = self._stage(16, 32, blocks)
        self.layer3 = self._stage(32, 64, blocks)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(inputs: int, width: int, blocks: int) -> nn.Sequential:
        first = CifarBlock(inputs, width)
        return nn.Sequential(first, *(CifarBlock(width, width) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of images."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1)
        return self.linear(torch.flatten(x, 1))


def cifar_resnet20(num_classes: int = 10) -> CifarResNet:
    """CIFAR ResNet-20."""
    return CifarResNet(3, num_classes)


def cifar_resnet56(num_classes: int = 10) -> CifarResNet:
    """CIFAR ResNet-56."""
    return CifarResNet(9, num_classes)
