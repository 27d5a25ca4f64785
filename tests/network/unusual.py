"""Convolutions and batch norms that are built as those of well-known libraries are."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Harmless(nn.Conv2d):
    """A subclass that runs its parent's code."""

    def describe(self) -> str:
        return f"{self.in_channels} to {self.out_channels}"


def pad_same(x: Tensor, kernel: Any, stride: Any, dilation: Any) -> Tensor:
    sides = []
    sizes = (x.shape[-2:], kernel, stride, dilation)
    for size, k, s, d in reversed(list(zip(*sizes, strict=True))):
        total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides)


class ConvSame(nn.Conv2d):
    """Pads as TensorFlow does, by the size of its input."""

    def forward(self, x: Tensor) -> Tensor:
        x = pad_same(x, self.weight.shape[-2:], self.stride, self.dilation)
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class ConvStatic(nn.Conv2d):
    """Pads as TensorFlow does for images of one size, by a module of its own, whatever the size."""

    def __init__(self, *args: Any, image_size: int = 224, **options: Any) -> None:
        super().__init__(*args, **options)
        needed = pad_same(
            torch.empty(1, 1, image_size, image_size).expand(1, 1, -1, -1),
            self.kernel_size,
            self.stride,
            self.dilation,
        )
        down, across = (size - image_size for size in needed.shape[-2:])
        sides = (across // 2, across - across // 2, down // 2, down - down // 2)
        self.static_padding = nn.ZeroPad2d(sides) if any(sides) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        given = self.stride, self.padding, self.dilation, self.groups
        return F.conv2d(x, self.weight, self.bias, *given)


class StdConv(nn.Conv2d):
    """Standardises its weight at every call by a batch norm over it."""

    def __init__(self, *args: Any, same: bool = False, eps: float = 1e-6, **options: Any) -> None:
        super().__init__(*args, **options)
        self.same, self.eps = same, eps

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return F.conv2d(
            x,
            self.standardised(),
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def standardised(self, scale: Tensor | None = None) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        flat = F.batch_norm(
            flat, None, None, weight=scale, training=True, momentum=0.0, eps=self.eps
        )
        return flat.reshape_as(self.weight)


class ScaledStdConv(StdConv):
    """Gives the standardised weight a learned gain."""

    def __init__(self, *args: Any, gamma: float = 1.7, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)
        self.scale = gamma * self.weight[0].numel() ** -0.5

    def standardised(self, scale: Tensor | None = None) -> Tensor:
        return super().standardised((self.gain * self.scale).view(-1))


class FrozenBatchNorm(nn.Module):
    """A batch norm of buffers alone."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            start = torch.zeros if name in ("bias", "running_mean") else torch.ones
            self.register_buffer(name, start(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class BatchNormAct(nn.BatchNorm2d):
    """A batch norm with drop and activation of its own."""

    def __init__(self, channels: int, act: nn.Module | None = None, **options: Any) -> None:
        super().__init__(channels, **options)
        self.drop = nn.Identity()
        self.act = nn.ReLU(inplace=True) if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            self.momentum,
            self.eps,
        )
        return self.act(self.drop(x))


def randomise(norm: nn.Module) -> nn.Module:
    """Give a norm's tensors values that matter; returns it in eval mode."""
    with torch.no_grad():
        for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
            if name == "running_var":
                tensor.uniform_(0.1, 4)
            elif tensor.is_floating_point():
                tensor.normal_()
    return norm.eval()
