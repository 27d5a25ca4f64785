"""Networks of other tasks than classification, with images, targets and the metric of each.

    network = load("carn_m", root)        # model, images, targets, metric, calibration
    drowsy.search(drowsy.convert(network.model), network.images, network.targets,
                  metric=network.metric)

- ``carn_m``: super-resolution, twice the size (Ahn et al., ECCV 2018). Images are halved
  photographs, targets the photographs.
- ``espnet``: segmentation of streets (Mehta et al., ECCV 2018).
- ``ultraface``: boxes of faces, which have no targets.

``root`` is the folder that has ``data`` and ``weights``; what is in it is told in its README files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drowsy._optional import require
from drowsy.evaluation.detection import detection
from drowsy.evaluation.metrics import Task
from drowsy.evaluation.restoration import restoration
from drowsy.evaluation.segmentation import segmentation
from drowsy.images.scaling import Size
from drowsy.models.checkpoint import load_weights

# --- super-resolution ----------------------------------------------------------------------------


class _Shift(nn.Module):
    """Adds a mean, by a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.shifter = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shifter(x)


class _Residual(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=groups), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, groups=groups), nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + x)


class _Fusion(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def _cascade(x: Tensor, steps: Sequence[tuple[nn.Module, nn.Module]]) -> Tensor:
    """Every step sees all outputs so far, fused."""
    seen, y = x, x
    for block, fusion in steps:
        seen = torch.cat([seen, block(y)], 1)
        y = fusion(seen)
    return y


class _Cascading(nn.Module):
    """One residual unit, used three times."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.b1 = _Residual(channels, groups)
        self.c1, self.c2, self.c3 = (_Fusion(n * channels, channels) for n in (2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return _cascade(x, [(self.b1, self.c1), (self.b1, self.c2), (self.b1, self.c3)])


class _Doubling(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 4 * channels, 3, padding=1, groups=groups), nn.ReLU(),
            nn.PixelShuffle(2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class CarnM(nn.Module):
    """CARN-M for factor 2: RGB ``[N, 3, H, W]`` in 0 to 1 -> ``[N, 3, 2 H, 2 W]``."""

    def __init__(self, channels: int = 64, groups: int = 4) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = _Shift(), _Shift()
        self.entry = nn.Conv2d(3, channels, 3, padding=1)
        self.b1, self.b2, self.b3 = (_Cascading(channels, groups) for _ in range(3))
        self.c1, self.c2, self.c3 = (_Fusion(n * channels, channels) for n in (2, 3, 4))
        self.upsample = nn.ModuleDict({"up2": _Doubling(channels, groups)})
        self.exit = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(self.sub_mean(x))
        x = _cascade(x, [(self.b1, self.c1), (self.b2, self.c2), (self.b3, self.c3)])
        return self.add_mean(self.exit(self.upsample["up2"](x)))


# Pixels of a side of what is enlarged without a network.
FLAT = 8


def enlarged_where_flat(images: Tensor, outputs: Tensor, share: float) -> Tensor:
    """Outputs of a network that restores, but the bicubically enlarged image in its flattest tiles.

    Args:
        images: ``[N, C, H, W]``, sides multiples of ``FLAT``.
        outputs: ``[N, C, t H, t W]``, of all of them.
        share: of the tiles at least, by which the image differs least from pixel to pixel.
    """
    changes = F.pad(images.diff(dim=3).abs().sum(1), (1, 0))
    changes[:, 1:] += images.diff(dim=2).abs().sum(1)
    seen = F.avg_pool2d(changes[:, None], FLAT)
    count = math.ceil(share * seen[0].numel() - 1e-9)
    order = seen.flatten(1).argsort(dim=1)
    flat = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :count], True)
    mask = F.interpolate(flat.view(seen.shape).float(), outputs.shape[2:]) > 0
    large = F.interpolate(images, outputs.shape[2:], mode="bicubic", antialias=True)
    return torch.where(mask, large, outputs)


# --- segmentation --------------------------------------------------------------------------------


class _Conv(nn.Module):
    """A convolution without bias, its output as large as the input, or half of it."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, size, stride, dilation * (size // 2), dilation, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _NormAct(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn, self.act = nn.BatchNorm2d(channels, eps=1e-3), nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(x))


class _ConvNormAct(_Conv):
    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride)
        self.bn, self.act = nn.BatchNorm2d(outputs, eps=1e-3), nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class _Pyramid(nn.Module):
    """Five dilations of one reduced map, whose running sums are put side by side."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        n = outputs // 5
        self.c1 = _Conv(inputs, n, 3 if stride > 1 else 1, stride)
        self.d1 = _Conv(n, outputs - 4 * n, 3)
        self.d2, self.d4, self.d8, self.d16 = (_Conv(n, n, 3, dilation=d) for d in (2, 4, 8, 16))

    def sides(self, x: Tensor) -> Tensor:
        x = self.c1(x)
        second = self.d2(x)
        third = second + self.d4(x)
        fourth = third + self.d8(x)
        return torch.cat([self.d1(x), second, third, fourth, fourth + self.d16(x)], 1)


class _Esp(_Pyramid):
    """An ESP block."""

    def __init__(self, inputs: int, outputs: int, residual: bool = True) -> None:
        super().__init__(inputs, outputs)
        self.bn, self.residual = _NormAct(outputs), residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.sides(x)
        return self.bn(x + y if self.residual else y)


class _EspDown(_Pyramid):
    """An ESP block that halves the map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, stride=2)
        self.bn, self.act = nn.BatchNorm2d(outputs, eps=1e-3), nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.sides(x)))


class _Encoder(nn.Module):
    def __init__(self, classes: int, p: int, q: int) -> None:
        super().__init__()
        self.level1 = _ConvNormAct(3, 16, 3, 2)
        self.b1 = _NormAct(19)
        self.level2_0, self.level2 = _EspDown(19, 64), nn.ModuleList(_Esp(64, 64) for _ in range(p))
        self.b2 = _NormAct(131)
        self.level3_0 = _EspDown(131, 128)
        self.level3 = nn.ModuleList(_Esp(128, 128) for _ in range(q))
        self.b3 = _NormAct(256)
        self.classifier = _Conv(256, classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps at a half, a quarter and an eighth of the size."""
        half = F.avg_pool2d(x, 3, 2, 1)
        first = self.b1(torch.cat([self.level1(x), half], 1))
        start = y = self.level2_0(first)
        for block in self.level2:
            y = block(y)
        second = self.b2(torch.cat([y, start, F.avg_pool2d(half, 3, 2, 1)], 1))
        start = y = self.level3_0(second)
        for block in self.level3:
            y = block(y)
        return first, second, self.classifier(self.b3(torch.cat([start, y], 1)))


class EspNet(nn.Module):
    """ESPNet: RGB ``[N, 3, H, W]``, multiples of 8 -> logits ``[N, classes, H, W]``."""

    def __init__(self, classes: int = 12, p: int = 2, q: int = 8) -> None:
        super().__init__()
        self.encoder = _Encoder(classes, p, q)
        self.br = nn.BatchNorm2d(classes, eps=1e-3)
        self.up_l3 = nn.Sequential(nn.ConvTranspose2d(classes, classes, 2, 2, bias=False))
        self.level3_C = _Conv(131, classes, 1)
        self.combine_l2_l3 = nn.Sequential(
            _NormAct(2 * classes), _Esp(2 * classes, classes, residual=False)
        )
        self.up_l2 = nn.Sequential(
            nn.ConvTranspose2d(classes, classes, 2, 2, bias=False), _NormAct(classes)
        )
        self.conv = _ConvNormAct(19 + classes, classes, 3)
        self.classifier = nn.ConvTranspose2d(classes, classes, 2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.encoder(x)
        y = torch.cat([self.level3_C(second), self.up_l3(self.br(third))], 1)
        y = self.up_l2(self.combine_l2_l3(y))
        return self.classifier(self.conv(torch.cat([y, first], 1)))


# --- detection -----------------------------------------------------------------------------------


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs), nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


def _depthwise(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs), nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1),
    )  # fmt: skip


class UltraFace(nn.Module):
    """UltraFace slim: RGB ``[N, 3, 240, 320]`` -> scores ``[N, A, 2]``, boxes ``[N, A, 4]``.

    Scores are probabilities, of a face the second; boxes are corners as fractions of the image.
    """

    STEPS = (
        (32, 1), (32, 2), (32, 1), (64, 2), (64, 1), (64, 1), (64, 1), (128, 2), (128, 1),
        (128, 1), (256, 2), (256, 1),
    )  # fmt: skip
    # After so many steps a head looks for faces of these sizes in pixels, at cells of the stride.
    HEADS = {8: (8, (10, 16, 24)), 11: (16, (32, 48)), 13: (32, (64, 96))}
    LAST = (64, (128, 192, 256))
    WIDTH, HEIGHT = 320, 240

    anchors: Tensor

    def __init__(self, height: int = HEIGHT, width: int = WIDTH) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        channels = (16, *(outputs for outputs, _ in self.STEPS))
        steps = (_separable(channels[i], *step) for i, step in enumerate(self.STEPS))
        self.base_net = nn.Sequential(first, *steps)
        extra = nn.Sequential(nn.Conv2d(256, 64, 1), nn.ReLU(), _depthwise(64, 256, 2), nn.ReLU())
        self.extras = nn.ModuleList([extra])
        heads = [(channels[steps - 1], len(sizes)) for steps, (_, sizes) in self.HEADS.items()]
        last = len(self.LAST[1])
        self.classification_headers, self.regression_headers = (
            nn.ModuleList(
                [
                    *(_depthwise(inputs, count * each) for inputs, count in heads),
                    nn.Conv2d(256, last * each, 3, padding=1),
                ]
            )
            for each in (2, 4)
        )
        self.register_buffer("anchors", self._anchors(height, width), persistent=False)

    def _anchors(self, height: int, width: int) -> Tensor:
        """``[A, 4]``: centres, widths and heights, as fractions of the image."""
        found = []
        for stride, sizes in (*self.HEADS.values(), self.LAST):
            rows, columns = -(-height // stride), -(-width // stride)
            for i, j, size in product(range(rows), range(columns), sizes):
                middle = ((j + 0.5) / columns, (i + 0.5) / rows)
                found.append((*middle, size / width, size / height))
        return torch.tensor(found).clamp_(0, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = []
        for number, step in enumerate(self.base_net, 1):
            x = step(x)
            if number in self.HEADS:
                maps.append(x)
        maps.append(F.relu(self.extras[0](x)))
        scores = self._rows(maps, self.classification_headers, 2).softmax(2)
        offsets = self._rows(maps, self.regression_headers, 4)
        centres = self.anchors[:, :2] + 0.1 * offsets[..., :2] * self.anchors[:, 2:]
        halves = self.anchors[:, 2:] * (0.2 * offsets[..., 2:]).exp() / 2
        return scores, torch.cat([centres - halves, centres + halves], 2)

    @staticmethod
    def _rows(maps: list[Tensor], heads: nn.ModuleList, each: int) -> Tensor:
        """``[N, A, each]``, the anchors of a cell side by side."""
        parts = [head(x).permute(0, 2, 3, 1) for head, x in zip(heads, maps, strict=True)]
        return torch.cat([part.flatten(1).unflatten(1, (-1, each)) for part in parts], 1)


# --- with what they are measured on --------------------------------------------------------------


@dataclass(frozen=True)
class Dense:
    """A network and what it is measured on.

    Args:
        model: in eval mode, with its weights.
        images: ``[N, C, H, W]``, as the network takes them.
        targets: what it should put out; None: what it puts out awake.
        metric: the task.
        calibration: other images, without targets.
        at: of a network that takes images of one size, the same for another ``(H, W)``.
    """

    model: nn.Module
    images: Tensor
    targets: Tensor | None
    metric: Task
    calibration: Tensor
    at: Callable[[Size], nn.Module] | None = None


# Pixels of the square tiles of photographs that are restored, which have several sizes.
TILE = 192
VOID = 11


def halved(photograph: Any) -> tuple[Tensor, Tensor]:
    """A photograph ``[3, H, W]`` of even size, 0 to 1, and its half by antialiased bicubic."""
    width, height = (size // 2 * 2 for size in photograph.size)
    whole = photograph.convert("RGB").crop((0, 0, width, height))
    half = whole.resize((width // 2, height // 2), require("PIL.Image", "data").Resampling.BICUBIC)
    return _pixels(whole) / 255, _pixels(half) / 255


def carn_m(root: Path) -> Dense:
    """CARN-M on tiles of Set14; PSNR and SSIM of the luma, two pixels from the edge, as is usual.

    Tiles of the first five photographs are for calibration.
    """
    photographs = sorted((root / "data" / "sr_set14").glob("*.png"))
    tiles = [(n, *pair) for n, path in enumerate(photographs) for pair in _tiles(path)]
    images = torch.stack([half for n, half, _ in tiles if n >= 5])
    targets = torch.stack([whole for n, _, whole in tiles if n >= 5])
    calibration = torch.stack([half for n, half, _ in tiles if n < 5])
    model = _loaded(CarnM(), root / "weights" / "carn_m_x2.safetensors")
    return Dense(model, images, targets, restoration(1, luma=True, border=2), calibration)


def espnet(root: Path) -> Dense:
    """ESPNet on CamVid, by the share of pixels that keep their class; overlaps leave out void."""
    folder = root / "data" / "camvid"
    names = sorted((folder / "test" / "images").glob("*.png"))
    others = sorted((folder / "calibration" / "images").glob("*.png"))
    labels = [_pixels(_opened(folder / "test" / "labels" / path.name)).long() for path in names]
    model = _loaded(EspNet(), root / "weights" / "espnet_camvid.safetensors")
    images, calibration = (
        torch.stack([street(_pixels(_opened(path).convert("RGB"))) for path in each])
        for each in (names, others)
    )
    task = replace(segmentation(VOID), principal=("agreement", "agreement"))
    return Dense(model, images, torch.cat(labels), task, calibration)


def ultraface(root: Path) -> Dense:
    """UltraFace slim on photographs of many people; boxes count from a score of .6 on.

    The first four photographs are for calibration.
    """
    photographs = sorted((root / "data" / "faces").glob("*.jpg"), key=lambda path: int(path.stem))
    size = (UltraFace.WIDTH, UltraFace.HEIGHT)
    pictures = (_opened(path).convert("RGB") for path in photographs)
    faces = torch.stack([(_pixels(picture.resize(size)) - 127) / 128 for picture in pictures])
    path = root / "weights" / "ultraface_slim320.safetensors"

    def at(size: Size) -> nn.Module:
        return _loaded(UltraFace(*size), path)

    return Dense(
        at((UltraFace.HEIGHT, UltraFace.WIDTH)), faces[4:], None, detection(0.6), faces[:4], at
    )


NETWORKS: dict[str, Callable[[Path], Dense]] = {
    "carn_m": carn_m,
    "espnet": espnet,
    "ultraface": ultraface,
}


def load(name: str, root: Path) -> Dense:
    """A network by name, with what it is measured on.

    Raises:
        ValueError: an unknown name.
    """
    if name not in NETWORKS:
        raise ValueError(f"name: got {name!r}, allowed: {', '.join(NETWORKS)}")
    return NETWORKS[name](root)


def _loaded(model: nn.Module, path: Path) -> nn.Module:
    load_weights(model, path)
    return model.eval()


def _opened(path: Path) -> Any:
    return require("PIL.Image", "data").open(path)


def _pixels(picture: Any) -> Tensor:
    """float32 ``[C, H, W]``, 0 to 255."""
    array = np.array(picture, np.float32)
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)


def _tiles(path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """A photograph's tiles, each after itself at half the size, from the upper left."""
    whole, half = halved(_opened(path))
    rows, columns = (size // TILE for size in whole.shape[1:])
    for i, j in product(range(rows), range(columns)):
        small = half[:, i * TILE // 2 :, j * TILE // 2 :][:, : TILE // 2, : TILE // 2]
        yield small, whole[:, i * TILE :, j * TILE :][:, :TILE, :TILE]


def street(pixels: Tensor) -> Tensor:
    """RGB ``[3, H, W]``, 0 to 255, as ESPNet takes it.

    In the order blue, green, red, and divided by 255 once more.
    """
    mean, std = (110.93, 109.66, 106.90), (72.20, 72.80, 70.11)
    shape = (3, 1, 1)
    return (pixels.flip(0) - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape) / 255
