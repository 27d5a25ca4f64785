"""Areas of maps that are kept, by Triton: who is awake, and what is computed there, in place.

Maps are ``[N, C, H, W]``, channels_last, an image for each camera. What is written is written at
the listed positions alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import drowsy_kernels as kernels
import torch
from torch import Tensor

from drowsy.backends.triton import precision
from drowsy.neuron import NO_ACTIVATION, Activation, ConvSpec

Positions = kernels.AwakeRows
"""A list of awake positions of maps of one size, on the device."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_POSITIONS, MAX_ELEMENTS = 2**31 - 1024, 2**31 - 1
"""Of all images' positions of a map, and of one image's elements: as many as kernels can number."""


def runs_on(device: torch.device) -> bool:
    """Whether kernels run on such a device here."""
    return device.type == "cuda" or (device.type == "cpu" and kernels.interpreted())


class Awake:
    """Who is awake, told as boxes and listed as positions of maps of every size.

    Args:
        images: of every map.
        sizes: ``(h, w)`` of maps.
        most: boxes that may be told.
        device: where maps lie.
    """

    def __init__(
        self, images: int, sizes: Sequence[tuple[int, int]], most: int, device: torch.device
    ) -> None:
        self._lists = kernels.area_lists(images, sizes, device)
        shape = (1 + most, kernels.BOX_FIELDS)
        self._boxes = torch.zeros(shape, dtype=torch.int32, device=device)

    def tell(self, boxes: Sequence[Sequence[int]]) -> None:
        """Which boxes are awake from here on, each in the order of ``BOX_FIELDS``.

        The host does not wait for the device.
        """
        head = [len(boxes)] + [0] * (kernels.BOX_FIELDS - 1)
        told = torch.tensor([head, *boxes], dtype=torch.int32)
        self._boxes[: len(told)].copy_(told, non_blocking=True)

    def list(self) -> None:
        """Make lists of what was told last; may be captured."""
        kernels.list_areas(self._boxes, self._lists)

    def of(self, size: tuple[int, int]) -> Positions:
        """The list for maps of one of the sizes."""
        return self._lists.of(size)


class Convolution:
    """A convolution with its bias and activation.

    Args:
        weight: ``[OC, C / groups, KH, KW]``; followed where it lies if ``packed_bytes`` is 0.
        bias: ``[OC]`` or None.
        spec: with padding of zeros.
        slopes: ``[OC]`` of activation ``prelu``, None for all others.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, spec: ConvSpec, slopes: Tensor | None = None
    ) -> None:
        self._weight = kernels.pack_weight(weight.detach(), spec.groups)
        self._bias, self._spec = None if bias is None else bias.detach(), spec
        self._slopes = None if slopes is None else slopes.detach()

    def __call__(
        self,
        x: Tensor,
        awake: Positions,
        out: Tensor,
        other: Tensor | None = None,
        then: Activation = NO_ACTIVATION,
    ) -> None:
        """``out = then(activation(conv(x) + bias) + other)``."""
        spec = self._spec
        kernels.conv2d(
            x,
            self._weight,
            self._bias,
            stride=spec.stride,
            padding=spec.padding,
            dilation=spec.dilation,
            activation=spec.activation,
            slopes=self._slopes,
            awake=awake,
            residual=other,
            post_activation=then.name,
            post_slopes=then.slopes,
            precision=precision(x.device),
            out=out,
        )


def packed_bytes(weight: Tensor, groups: int) -> int:
    """Bytes of a weight's copy in the order of the kernels; 0 where it is read as it lies."""
    with torch.inference_mode(False):
        like = torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device="meta")
        data = kernels.pack_weight(like, groups).data
        return 0 if data._base is like else data.numel() * data.element_size()


def pool(
    x: Tensor,
    awake: Positions,
    out: Tensor,
    kind: str,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    before: tuple[int, int],
) -> None:
    """A ``max`` or ``average`` of windows, the first ``before`` rows and columns ahead of ``x``."""
    kernels.pool_areas(x, awake, out, kind, kernel, stride=stride, before=before)


def place(
    x: Tensor,
    awake: Positions,
    out: Tensor,
    *,
    first: int = 0,
    other: Tensor | None = None,
    then: Activation = NO_ACTIVATION,
) -> None:
    """``out = then(x + other)``, in channels of ``out`` from ``first`` on."""
    kernels.place_areas(
        x, awake, out, first=first, residual=other, activation=then.name, slopes=then.slopes
    )
