"""Small networks of everything that streams compute in parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _randomised(model: nn.Module) -> nn.Module:
    """In eval mode, with norms and slopes that do something."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
            ):
                assert tensor is not None
                drawn = torch.rand(tensor.shape, generator=generator)
                tensor.data.copy_(low + (high - low) * drawn)
        elif isinstance(module, nn.PReLU):
            drawn = torch.rand(module.weight.shape, generator=generator)
            module.weight.data.copy_(2 * drawn - 0.5)
    return model.eval()


class Residual(nn.Module):
    """Strides, a padded pool, sums with and without a shortcut's convolution, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        self.a1 = nn.Conv2d(8, 8, 3, padding=1)
        self.n1 = nn.BatchNorm2d(8)
        self.a2 = nn.Conv2d(8, 8, 1)
        self.b1 = nn.Conv2d(8, 16, 3, 2, 1)
        self.b2 = nn.Conv2d(16, 16, 3, 1, 1)
        self.short = nn.Conv2d(8, 16, 1, 2)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu(self.a2(self.relu(self.n1(self.a1(x)))) + x)
        y = self.b2(self.relu(self.b1(x)))
        y += self.short(x)
        y = F.relu(y)
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Mobile(nn.Module):
    """Grouped and depthwise layers, odd kernels, dilation, paddings of every kind, other norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, (5, 3), (2, 1), (2, 1))
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.grouped = nn.Conv2d(12, 16, 3, 2, 1, groups=4)
        self.dilated = nn.Conv2d(16, 8, 3, padding=2, dilation=2)
        self.narrow = nn.Conv2d(8, 8, 3)
        self.reflect = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.around = nn.Conv2d(8, 8, (1, 5), padding=(0, 2), padding_mode="circular")
        self.even = nn.Conv2d(8, 6, 4, padding="same")
        self.norm = nn.BatchNorm2d(8)
        self.slopes, self.slope = nn.PReLU(8), nn.PReLU()
        self.mix = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first(x))
        x = F.hardswish(self.depth(x))
        x = F.leaky_relu(self.grouped(x), 0.2)
        x = torch.sigmoid(self.dilated(x))
        x = self.slopes(self.norm(self.narrow(x)))
        x = self.slope(self.mix(x) + x)
        return self.even(self.around(self.reflect(x)))


class Fire(nn.Module):
    """Concatenations, pools of all kinds, a gate, scaling up and down, several answers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.wide = nn.Conv2d(8, 6, 3, padding=1)
        self.slim = nn.Conv2d(8, 6, 1)
        self.average = nn.AvgPool2d(3, 1, 1)
        self.odd = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        down, up = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.gate = nn.Sequential(down, nn.ReLU(), up, nn.Sigmoid())
        self.mix = nn.Conv2d(12, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.last = nn.Conv2d(4, 3, 3, padding=1)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.pool(F.relu(self.first(x)))
        x = torch.cat([F.relu(self.wide(x)), self.average(F.relu(self.slim(x)))], 1)
        x = x * self.gate(x.mean((2, 3), keepdim=True))
        y = self.drop(self.mix(x) - 0.5)
        y = (y / 2).clamp(-1, 1) + F.max_pool2d(y, 3, stride=1, padding=1)
        small = self.odd(y)
        large = F.interpolate(y, scale_factor=2.0)
        shown = self.last(self.up(y)) + 1
        return {"map": shown, "label": small.mean((2, 3)), "large": large.exp()}


class Dense(nn.Module):
    """Norms before convolutions, every output read by all that follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8 + 4 * i) for i in range(3)])
        self.convs = nn.ModuleList([nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3)])
        self.out = nn.Conv2d(20, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x), inplace=True))], 1)
        return self.out(x)


class Even(nn.Module):
    """Maps that a grid of seven divides: what cells of it are computed by."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 5, 2, 2)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.reflect = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.down = nn.Conv2d(16, 8, 3, 2, 1, groups=2)
        self.average = nn.AvgPool2d(3, 1, 1)
        self.mix = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.last = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Negative values, around which a convolution pads with zeros and a pool with less.
        x = self.first(x - 0.5) - 4
        y = torch.cat([self.reflect(x), self.pool(x)], 1)
        y = self.average(F.relu(self.down(y) + 2))
        y = self.mix(y) * torch.sigmoid(y.mean((2, 3), keepdim=True))
        return F.relu(self.up(y) + x).mean((2, 3)), self.last(self.up(y) + x)


NETWORKS = {
    "residual": (Residual, (37, 53)),
    "residual, even": (Residual, (56, 56)),
    "even": (Even, (28, 28)),
    "mobile": (Mobile, (40, 31)),
    "fire": (Fire, (45, 38)),
    "dense": (Dense, (14, 14)),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[int, int]]:
    """A network, and the size of its frames: odd ones, so that areas differ by a row."""
    torch.manual_seed(3)
    kind, size = NETWORKS[name]
    return _randomised(kind()).to(dtype), size
