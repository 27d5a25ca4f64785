"""CaffeNet: five convolutions, two of them normalised, three of them grouped.

Source: Jia et al., "Caffe: convolutional architecture for fast feature embedding", 2014
(``models/bvlc_reference_caffenet``). The order is Caffe's: convolution, ReLU, pooling, and only
then local response normalisation, the other way round from AlexNet. Caffe rounds pooled sizes up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class _CaffeNet(nn.Module):
    """The topology that both sizes share."""

    def __init__(
        self,
        convolutions: Sequence[nn.Conv2d],
        features: int,
        hidden: tuple[int, int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4, self.conv5 = convolutions
        self.relu = nn.ReLU(inplace=True)
        self.pool1, self.pool2, self.pool5 = (
            nn.MaxPool2d(3, stride=2, ceil_mode=True) for _ in range(3)
        )
        self.norm1, self.norm2 = (
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0) for _ in range(2)
        )
        self.fc6 = nn.Linear(features, hidden[0])
        self.fc7 = nn.Linear(hidden[0], hidden[1])
        self.fc8 = nn.Linear(hidden[1], num_classes)
        self.drop6, self.drop7 = nn.Dropout(0.5), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of images: logits ``[N, num_classes]``."""
        x = self.norm1(self.pool1(self.relu(self.conv1(x))))
        x = self.norm2(self.pool2(self.relu(self.conv2(x))))
        x = self.relu(self.conv3(x))
        x = self.relu(self.conv4(x))
        x = self.pool5(self.relu(self.conv5(x)))
        x = self.drop6(self.relu(self.fc6(torch.flatten(x, 1))))
        x = self.drop7(self.relu(self.fc7(x)))
        return self.fc8(x)


class CaffeNet(_CaffeNet):
    """CaffeNet for ImageNet: ``[N, 3, 227, 227]`` -> logits ``[N, num_classes]``.

    Parameters carry Caffe's layer names. Caffe's own weights expect BGR: to use them with this
    package's RGB images, reverse the input channels of ``conv1.weight``.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        convolutions = (
            nn.Conv2d(3, 96, 11, stride=4),
            nn.Conv2d(96, 256, 5, padding=2, groups=2),
            nn.Conv2d(256, 384, 3, padding=1),
            nn.Conv2d(384, 384, 3, padding=1, groups=2),
            nn.Conv2d(384, 256, 3, padding=1, groups=2),
        )
        super().__init__(convolutions, 256 * 6 * 6, (4096, 4096), num_classes)


class CaffeNetCifar(_CaffeNet):
    """CaffeNet's topology for CIFAR-10: ``[N, 3, 32, 32]`` -> logits ``[N, num_classes]``.

    The same layers in the same order, grouped where CaffeNet is; narrower, and without the first
    layer's stride.
    """

    def __init__(self, num_classes: int = 10) -> None:
        convolutions = (
            nn.Conv2d(3, 48, 5, padding=2),
            nn.Conv2d(48, 96, 5, padding=2, groups=2),
            nn.Conv2d(96, 144, 3, padding=1),
            nn.Conv2d(144, 144, 3, padding=1, groups=2),
            nn.Conv2d(144, 96, 3, padding=1, groups=2),
        )
        super().__init__(convolutions, 96 * 4 * 4, (256, 256), num_classes)
